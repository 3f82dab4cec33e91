// SPDX-License-Identifier: Apache-2.0
/* steer-worker bench: the stages of a model by the clock, beside the machine's peak. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "session.h"

enum { RUNS_MAX = 1000, STAGES = 4 };

struct bench_args {
    const char *model;
    uint64_t batch, runs;
    int ops, json;
};

static int set_model(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct bench_args *)target)->model = value;
    return 0;
}

static int set_batch(void *target, const char *value, struct steer_error *err)
{
    return args_u64(&((struct bench_args *)target)->batch, value, 1, STEER_BATCH_MAX, err);
}

static int set_runs(void *target, const char *value, struct steer_error *err)
{
    return args_u64(&((struct bench_args *)target)->runs, value, 1, RUNS_MAX, err);
}

static int set_ops(void *target, const char *value, struct steer_error *err)
{
    (void)value;
    (void)err;
    ((struct bench_args *)target)->ops = 1;
    return 0;
}

static int set_json(void *target, const char *value, struct steer_error *err)
{
    (void)value;
    (void)err;
    ((struct bench_args *)target)->json = 1;
    return 0;
}

static const struct args_option options[] = {
    {"model", "DIR|FILE", "a diffusers model folder, or a model file (.json)", set_model},
    {"batch", "N", "images of one forward pass (default 1)", set_batch},
    {"runs", "N", "timed runs after the first (default 5)", set_runs},
    {"ops", NULL, "a row per operation: of the decoder for one image, of the others per call",
     set_ops},
    {"json", NULL, "one JSON object (always so)", set_json},
    {NULL, NULL, NULL, NULL},
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static json_t *spread(double *ms, int count)
{
    qsort(ms, (size_t)count, sizeof *ms, by_value);
    double median = count % 2 ? ms[count / 2] : (ms[count / 2 - 1] + ms[count / 2]) / 2;
    return json_pack("{s:f, s:f}", "min_ms", ms[0], "median_ms", median);
}

static double plan_gflop(const struct plan *p)
{
    double sum = 0;
    for (int i = 0; p && i < plan_operations(p); i++)
        sum += plan_report(p, i).gflop;
    return sum;
}

static void ops_add(json_t *list, const char *stage, const struct plan *p)
{
    for (int i = 0; p && i < plan_operations(p); i++) {
        struct op_report r = plan_report(p, i);
        char shape[64];
        snprintf(shape, sizeof shape, "%dx%dx%dx%d", r.out.b, r.out.h, r.out.w, r.out.c);
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:f, s:f}", "stage",
                                              stage, "op", r.op, "primitive", r.primitive, "type",
                                              r.type, "layout", r.layout, "out", shape, "gflop",
                                              r.gflop, "ms", r.ms));
    }
}

struct bench {
    struct session s;
    struct job_plan plan;
    struct render_image images[STEER_BATCH_MAX];
    struct image_meta *meta;
    double load_ms, first_ms;
};

static void bench_close(struct bench *b)
{
    for (int i = 0; i < STEER_BATCH_MAX; i++)
        free(b->images[i].pixels);
    job_meta_free(b->meta);
    session_close(&b->s);
}

static int bench_open(struct bench *b, const struct bench_args *a, const struct machine_args *m,
                      struct job_args *j, struct steer_error *err)
{
    double begun = now_ms();
    int code = session_open(&b->s, a->model, m, j, 1, err);
    if (code || (code = session_plan(&b->s, 0, &b->plan, err))) return code;
    for (uint64_t i = 0; i < a->batch; i++) {
        b->images[i] = b->plan.image;
        b->images[i].seed += i;
        b->images[i].pixels =
            malloc((size_t)b->plan.shape.width * (size_t)b->plan.shape.height * 3);
        if (!b->images[i].pixels) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    }
    b->meta =
        job_meta(&b->s.resolved.job, &b->plan, b->s.model->hash, compute_numerics(b->s.compute));
    b->load_ms = now_ms() - begun;
    return b->meta ? 0 : steer_fail(err, STEER_NO_MEMORY, "out of memory");
}

/* One batch; ret: text, denoise, decode, encode in milliseconds. */
static int run_once(struct bench *b, const struct bench_args *a, int run, double ret[STAGES],
                    struct steer_error *err)
{
    int count = (int)a->batch;
    /* A new text for each image of each run, so that the text stage is not read from the cache. The
     * number comes first, where a long prompt is not cut, and all have equally many tokens. */
    static char prompts[STEER_BATCH_MAX][STEER_PROMPT_BYTES_MAX + 16];
    for (int i = 0; i < count; i++) {
        snprintf(prompts[i], sizeof prompts[i], "%04d %s", run * count + i, b->plan.image.prompt);
        b->images[i].prompt = prompts[i];
    }
    int code = pipeline_render(b->s.pipeline, &b->plan.shape, b->images, count, NULL, NULL, err);
    memset(ret, 0, STAGES * sizeof *ret);
    for (int i = 0; i < count && !code; i++) {
        uint8_t *file;
        size_t bytes;
        double begin = now_ms();
        if ((code = image_encode(&file, &bytes, b->images[i].pixels, b->meta, err))) break;
        free(file);
        ret[3] += now_ms() - begin;
        ret[0] += 1e-3 * (double)(b->images[i].times.tokenize_us + b->images[i].times.text_us);
    }
    ret[1] = 1e-3 * (double)b->images[0].times.denoise_us;
    ret[2] = 1e-3 * (double)b->images[0].times.decode_us;
    return code;
}

/* Bytes, mapped pages included. Not getrusage: that remembers the parent's from before exec. */
static long long peak_rss(void)
{
    char line[256];
    long long kib = 0;
    FILE *f = fopen("/proc/self/status", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lld kB", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

static json_t *peaks(const struct bench *b)
{
    struct compute_peak peak = compute_peak(b->s.compute);
    return json_pack("{s:f, s:f, s:f}", "fma_f32", peak.fma_f32, "onednn_f32", peak.gemm_f32,
                     "onednn_bf16", peak.gemm_bf16);
}

/* What a batch computes in each stage, the direct algorithm's multiply-adds as 2. Its negative text
 * is encoded once and stays in the cache. */
static int stages_gflop(struct bench *b, int count, const struct pipeline_plans *plans,
                        double ret[STAGES], struct steer_error *err)
{
    int calls, code = pipeline_calls(&b->plan.shape, &calls, err);
    ret[0] = plan_gflop(plans->text);
    for (int i = 0; plans->encoders[i]; i++)
        ret[0] += plan_gflop(plans->encoders[i]);
    ret[0] *= count * plans->chunks;
    ret[1] = calls * (plan_gflop(plans->denoise) + plan_gflop(plans->second));
    ret[2] = count * plan_gflop(plans->decode);
    ret[3] = 0;
    return code;
}

static json_t *ops_json(const struct pipeline_plans *plans)
{
    json_t *ops = json_array();
    for (int i = 0; plans->encoders[i]; i++)
        ops_add(ops, "text", plans->encoders[i]);
    ops_add(ops, "text", plans->text);
    ops_add(ops, "denoise", plans->denoise);
    ops_add(ops, "denoise_negative", plans->second);
    ops_add(ops, "decode", plans->decode);
    return ops;
}

static int bench_run(struct bench *b, const struct bench_args *a, struct steer_error *err)
{
    static const char *const names[STAGES] = {"text", "denoise", "decode", "encode"};
    static double ms[STAGES][RUNS_MAX], total[RUNS_MAX];
    struct pipeline_plans plans;
    double stage[STAGES], gflop[STAGES], begin = now_ms();
    int code = run_once(b, a, 0, stage, err), runs = (int)a->runs;
    b->first_ms = now_ms() - begin;
    if (code ||
        (code = pipeline_plans(b->s.pipeline, &b->plan.shape, b->images, (int)a->batch, &plans,
                               err)) ||
        (code = stages_gflop(b, (int)a->batch, &plans, gflop, err)))
        return code;
    struct plan *all[] = {plans.text, plans.denoise, plans.second, plans.decode};
    for (int i = 0; i < 4; i++)
        if (all[i]) plan_profile(all[i], 1);
    for (int i = 0; plans.encoders[i]; i++)
        plan_profile(plans.encoders[i], 1);
    for (int run = 0; run < runs && !code; run++) {
        begin = now_ms();
        code = run_once(b, a, run + 1, stage, err);
        total[run] = now_ms() - begin;
        for (int i = 0; i < STAGES; i++)
            ms[i][run] = stage[i];
    }
    if (code) return code;

    json_t *stages = json_object();
    for (int i = 0; i < STAGES; i++) {
        json_t *s = spread(ms[i], runs);
        json_object_set_new(s, "gflop", json_real(gflop[i]));
        json_object_set_new(stages, names[i], s);
    }
    char size[32];
    snprintf(size, sizeof size, "%dx%d", b->plan.shape.width, b->plan.shape.height);
    const char *numerics = compute_numerics(b->s.compute);
    long long rss = peak_rss(); /* before the peaks are measured, which take memory of their own */
    json_t *out = json_pack(
        "{s:s, s:s, s:i, s:i, s:s, s:f, s:s, s:s, s:i, s:i, s:s, s:f, s:f, s:I, s:o, s:o, s:o}",
        "model", b->s.model->name, "size", size, "batch", (int)a->batch, "steps",
        b->plan.shape.steps, "guidance", guidance_method_name(b->plan.shape.method),
        "guidance_scale", b->plan.image.guidance.scale, "precision",
        strstr(numerics, "-bf16-") ? "bf16" : "f32", "weights",
        compute_weights(b->s.compute) == WEIGHTS_INT8 ? "int8" : "auto", "threads",
        compute_threads(b->s.compute), "runs", runs, "numerics", numerics, "load_ms", b->load_ms,
        "first_image_ms", b->first_ms, "peak_rss_bytes", (json_int_t)rss, "stages", stages, "total",
        spread(total, runs), "peak_gflops", peaks(b));
    if (a->ops) json_object_set_new(out, "ops", ops_json(&plans));
    json_dumpf(out, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(out);
    return 0;
}

int command_bench(int argc, char **argv, struct steer_error *err)
{
    struct bench_args a = {.batch = 1, .runs = 5};
    struct machine_args m;
    struct job_args j;
    int words, help;
    machine_args_init(&m);
    job_args_init(&j);
    const struct args_group groups[] = {{"Bench", options, &a},
                                        {"Image", job_args_image, &j},
                                        {"Guidance", job_args_guidance, &j},
                                        {"Machine", machine_args_options, &m},
                                        {NULL, NULL, NULL}};
    int code = args_parse(groups, argc, argv, &words, &help, err);
    if (code) return code;
    if (help) {
        printf("steer-worker bench --model DIR --json [options]\n");
        args_help(stdout, groups);
        args_help_exits(stdout);
        return 0;
    }
    if (words) return steer_fail(err, STEER_USAGE, "unexpected \"%s\" (see --help)", argv[0]);
    if (!a.model) return steer_fail(err, STEER_USAGE, "--model DIR is needed (see --help)");
    static char prompt[] = "a photograph of an astronaut", negative[] = "blurry, low quality";
    if (!j.job.prompt) j.job.prompt = prompt;
    int guided = (j.guidance.has_method && j.guidance.method != STEERFARM__METHOD__NONE) ||
                 (j.guidance.has_guidance_scale && j.guidance.guidance_scale != 1);
    if (!j.job.negative_prompt && guided) j.job.negative_prompt = negative;
    struct bench b = {0};
    code = bench_open(&b, &a, &m, &j, err);
    if (!code) code = bench_run(&b, &a, err);
    bench_close(&b);
    return code;
}
