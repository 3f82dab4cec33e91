// SPDX-License-Identifier: Apache-2.0
/* steer-worker render: one job through the same stages as on a farm, without a broker. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "output.h"
#include "safetensors.h"
#include "session.h"

struct render_args {
    const char *model, *output, *dump;
    int json;
};

#define TEXT_SETTER(field)                                                                         \
    static int set_##field(void *target, const char *value, struct steer_error *err)               \
    {                                                                                              \
        (void)err;                                                                                 \
        ((struct render_args *)target)->field = value;                                             \
        return 0;                                                                                  \
    }
TEXT_SETTER(model)
TEXT_SETTER(output)
TEXT_SETTER(dump)

static int set_json(void *target, const char *value, struct steer_error *err)
{
    (void)value;
    (void)err;
    ((struct render_args *)target)->json = 1;
    return 0;
}

static const struct args_option options[] = {
    {"model", "DIR|FILE", "a diffusers model folder, or a model file (.json)", set_model},
    {"output", "FILE",
     "where the image goes, with {index} {seed} {model}; several become FILE-0000 and so on",
     set_output},
    {"dump-tensors", "FILE", "every stage's tensors as safetensors (docs/models.md)", set_dump},
    {"json", NULL, "tell the result as one JSON object", set_json},
    {NULL, NULL, NULL, NULL},
};

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int dump_write(const struct dump *d, const char *path, struct steer_error *err)
{
    struct tensor_out out[DUMP_TENSORS_MAX];
    for (int i = 0; i < d->count; i++) {
        const struct dump_tensor *t = d->tensors + i;
        out[i] = (struct tensor_out){.name = t->name, .rank = t->rank, .data = t->data};
        out[i].dtype = t->type == TYPE_I32  ? TENSOR_I32
                       : t->type == TYPE_U8 ? TENSOR_U8
                                            : TENSOR_F32;
        memcpy(out[i].shape, t->shape, sizeof t->shape);
    }
    return tensors_write(path, out, (size_t)d->count, err);
}

static json_t *times_json(const struct render_times *t, uint64_t encode_us, uint64_t total_us)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "load_us", (json_int_t)t->load_us,
                     "tokenize_us", (json_int_t)t->tokenize_us, "text_us", (json_int_t)t->text_us,
                     "denoise_us", (json_int_t)t->denoise_us, "decode_us", (json_int_t)t->decode_us,
                     "encode_us", (json_int_t)encode_us, "total_us", (json_int_t)total_us);
}

static void report(const struct render_args *r, const char *path, const struct render_image *image,
                   int tokens, size_t bytes, uint64_t encode_us, uint64_t total_us, json_t *list)
{
    const struct render_times *t = &image->times;
    char cut[256];
    job_cut_text(cut, sizeof cut, image, tokens);
    if (*cut) fprintf(stderr, "steer-worker: %s\n", cut);
    if (r->json)
        json_array_append_new(list,
                              json_pack("{s:s, s:o, s:I, s:o}", "file", path, "seed",
                                        job_seed_json(image->seed), "bytes", (json_int_t)bytes,
                                        "times", times_json(t, encode_us, total_us)));
    else
        printf("%s  seed %" PRIu64
               "  load %.1f  text %.1f  denoise %.1f  decode %.1f  encode %.1f  total %.1f ms\n",
               path, image->seed, 1e-3 * (double)t->load_us,
               1e-3 * (double)(t->tokenize_us + t->text_us), 1e-3 * (double)t->denoise_us,
               1e-3 * (double)t->decode_us, 1e-3 * (double)encode_us, 1e-3 * (double)total_us);
}

static int render_one(struct session *s, const struct render_args *r, uint32_t index, json_t *list,
                      struct steer_error *err)
{
    const Steerfarm__Job *job = &s->resolved.job;
    struct job_plan p;
    struct dump dump = {0};
    struct image_meta *meta = NULL;
    uint8_t *file = NULL;
    size_t bytes = 0;
    char path[1100];
    uint64_t start = now_us(), encode;
    int code = session_plan(s, index, &p, err);
    if (code) return code;
    p.image.pixels = malloc((size_t)p.shape.width * (size_t)p.shape.height * 3);
    code = p.image.pixels ? pipeline_render(s->pipeline, &p.shape, &p.image, 1,
                                            r->dump && !index ? &dump : NULL, NULL, err)
                          : steer_fail(err, STEER_NO_MEMORY, "out of memory for an image");
    encode = now_us();
    if (!code && !(meta = job_meta(job, &p, s->model->hash, compute_numerics(s->compute))))
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if (!code) code = image_encode(&file, &bytes, p.image.pixels, meta, err);
    encode = now_us() - encode;
    if (!code && output_name(path, sizeof path, r->output, job->images, index, p.image.seed,
                             "render", s->model->name))
        code = steer_fail(err, STEER_BAD_VALUE, "--output %s: the name is too long", r->output);
    if (!code) code = output_write(path, file, bytes, 1, err);
    if (!code && r->dump && !index) code = dump_write(&dump, r->dump, err);
    if (!code)
        report(r, path, &p.image, s->model->text.tokens, bytes, encode, now_us() - start, list);
    dump_free(&dump);
    job_meta_free(meta);
    free(file);
    free(p.image.pixels);
    return code;
}

/* --format wins, then the file's name. */
static void format_by_name(struct job_args *j, const char *output)
{
    size_t length = strlen(output);
    if (j->output.has_format || length < 4 || strcmp(output + length - 4, ".png") != 0) return;
    j->output.has_format = 1;
    j->output.format = STEERFARM__FORMAT__PNG;
    j->job.output = &j->output;
}

static int render_all(struct session *s, const struct render_args *r, uint64_t begun,
                      struct steer_error *err)
{
    int code = 0;
    json_t *list = json_array();
    double load_ms = 1e-3 * (double)(now_us() - begun);
    for (uint32_t i = 0; i < s->resolved.job.images && !code; i++)
        code = render_one(s, r, i, list, err);
    if (!code && r->json) {
        json_t *all = json_pack("{s:s, s:s, s:s, s:f, s:O}", "model", s->model->name, "model_hash",
                                s->model->hash, "numerics", compute_numerics(s->compute), "load_ms",
                                load_ms, "images", list);
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(all);
    }
    json_decref(list);
    return code;
}

int command_render(int argc, char **argv, struct steer_error *err)
{
    struct render_args r = {0};
    struct machine_args m;
    struct job_args j;
    uint64_t begun = now_us();
    int words, help;
    machine_args_init(&m);
    job_args_init(&j);
    const struct args_group groups[] = {{"Job", options, &r},
                                        {"Image", job_args_image, &j},
                                        {"Guidance", job_args_guidance, &j},
                                        {"Machine", machine_args_options, &m},
                                        {"Memory", residence_args_options, &m},
                                        {NULL, NULL, NULL}};
    int code = args_parse(groups, argc, argv, &words, &help, err);
    if (code) return code;
    if (help) {
        printf("steer-worker render --model DIR --prompt TEXT --output FILE.webp [options]\n");
        args_help(stdout, groups);
        args_help_exits(stdout);
        return 0;
    }
    if (words) return steer_fail(err, STEER_USAGE, "unexpected \"%s\" (see --help)", argv[0]);
    if (!r.model || !r.output || !j.job.prompt)
        return steer_fail(err, STEER_USAGE, "%s is needed (see --help)",
                          !r.model        ? "--model DIR"
                          : !j.job.prompt ? "--prompt TEXT"
                                          : "--output FILE");
    format_by_name(&j, r.output);
    struct session s = {0};
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) seed = begun;
    code = session_open(&s, r.model, &m, &j, seed & UINT32_MAX, err);
    if (!code) code = render_all(&s, &r, begun, err);
    session_close(&s);
    return code;
}
