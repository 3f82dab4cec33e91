// SPDX-License-Identifier: Apache-2.0
/* steer render, submit, fetch: jobs in, images out. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "job_args.h"
#include "output.h"
#include "pb_json.h"

enum { CREDIT = 16 };

struct render_args {
    const char *model, *output, *from, *key, *prompts;
    int detach, overwrite;
    uint32_t first, last; /* first > last: all */
};

#define TEXT_SETTER(field)                                                                         \
    static int set_##field(void *target, const char *value, struct steer_error *err)               \
    {                                                                                              \
        (void)err;                                                                                 \
        ((struct render_args *)target)->field = value;                                             \
        return 0;                                                                                  \
    }
#define SWITCH_SETTER(field)                                                                       \
    static int set_##field(void *target, const char *value, struct steer_error *err)               \
    {                                                                                              \
        (void)value;                                                                               \
        (void)err;                                                                                 \
        ((struct render_args *)target)->field = 1;                                                 \
        return 0;                                                                                  \
    }
TEXT_SETTER(model)
TEXT_SETTER(output)
TEXT_SETTER(from)
TEXT_SETTER(key)
TEXT_SETTER(prompts)
SWITCH_SETTER(detach)
SWITCH_SETTER(overwrite)

/* "7" or "3-7" */
static int set_index(void *target, const char *value, struct steer_error *err)
{
    struct render_args *a = target;
    char text[32];
    uint64_t first = 0, last = 0;
    snprintf(text, sizeof text, "%s", value);
    char *dash = strchr(text, '-');
    if (dash) *dash = 0;
    int code = args_u64(&first, text, 0, STEER_IMAGES_MAX - 1, err);
    last = first;
    if (!code && dash) code = args_u64(&last, dash + 1, first, STEER_IMAGES_MAX - 1, err);
    a->first = (uint32_t)first;
    a->last = (uint32_t)last;
    return code;
}

static const struct args_option job_options[] = {
    {"model", "NAME", "a model of the farm (default: its only one)", set_model},
    {"key", "KEY", "idempotency key: the same key again is the same job", set_key},
    {NULL, NULL, NULL, NULL},
};
static const struct args_option render_options[] = {
    {"from", "IMAGE", "render again what an image says of itself; flags change it", set_from},
    {"detach", NULL, "Ctrl-C leaves the job on the farm instead of cancelling it", set_detach},
    {NULL, NULL, NULL, NULL},
};
static const struct args_option output_options[] = {
    {"output", "FILE", "may hold {index} {seed} {job} {model} (default {job}.webp)", set_output},
    {"overwrite", NULL, "replace files that exist (render always does)", set_overwrite},
    {NULL, NULL, NULL, NULL},
};
static const struct args_option submit_options[] = {
    {"prompts", "FILE|-", "a job a line: a prompt, or a JSON object like message Job", set_prompts},
    {NULL, NULL, NULL, NULL},
};
static const struct args_option fetch_options[] = {
    {"index", "I|I-J", "only these images", set_index},
    {NULL, NULL, NULL, NULL},
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* ---- jobs from flags ---- */

/* The farm's only model, where none was named. */
static int model_default(struct steer_client *c, const struct cli *cli, char *to, size_t size,
                         struct steer_error *err)
{
    struct steer_fault fault;
    char *text, names[600] = "";
    if (steer_ask(c, STEER_ASK_MODELS, NULL, &text, cli_answer_ms(cli), &fault))
        return fault_error(err, &fault);
    json_t *reply = json_loads(text, 0, NULL), *models = json_object_get(reply, "models");
    size_t count = json_array_size(models);
    for (size_t i = 0; i < count; i++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "",
                 printable(json_text(json_array_get(models, i), "name")));
    }
    snprintf(to, size, "%s", json_text(json_array_get(models, 0), "name"));
    json_decref(reply);
    free(text);
    if (count == 1) return 0;
    return count ? steer_fail(err, STEER_USAGE, "--model is needed; the farm has %s", names)
                 : steer_fail(err, STEER_UNKNOWN_MODEL, "no worker has offered a model yet");
}

/* Flags over what --from or a line of --prompts says. */
static int job_merge(json_t *to, const struct job_args *j)
{
    json_t *flags = pb_to_json(&j->job.base), *value;
    const char *key;
    json_object_foreach(flags, key, value)
    {
        json_t *old = json_object_get(to, key);
        if (json_is_object(old) && json_is_object(value))
            json_object_update(old, value);
        else
            json_object_set(to, key, value);
    }
    json_decref(flags);
    return 0;
}

static void format_by_name(struct job_args *j, const char *output)
{
    size_t length = output ? strlen(output) : 0;
    if (j->output.has_format || length < 4 || strcmp(output + length - 4, ".png") != 0) return;
    j->output.has_format = 1;
    j->output.format = STEERFARM__FORMAT__PNG;
    j->job.output = &j->output;
}

static int job_submit(struct steer_client *c, const struct cli *cli, json_t *job, const char *key,
                      char id[STEER_JOB_ID_SIZE], struct steer_error *err)
{
    struct steer_fault fault;
    char model[STEER_NAME_BYTES_MAX + 1];
    if (!json_object_get(job, "prompt"))
        return steer_fail(err, STEER_USAGE, "a prompt is needed (see --help)");
    if (!json_object_get(job, "model") || !*json_text(job, "model")) {
        int code = model_default(c, cli, model, sizeof model, err);
        if (code) return code;
        json_object_set_new(job, "model", json_string(model));
    }
    char *text = json_dumps(job, JSON_COMPACT);
    int code =
        text ? steer_submit_json(c, text, key, id, cli_answer_ms(cli), &fault) : STEER_NO_MEMORY;
    free(text);
    return code ? fault_error(err, &fault) : 0;
}

/* ---- images as they arrive ---- */

struct transfer {
    const struct cli *cli;
    const struct render_args *args;
    struct steer_client *client;
    char job[STEER_JOB_ID_SIZE], model[STEER_NAME_BYTES_MAX + 1];
    uint32_t images, written;
    int overwrite, bar;
    double begun;
    json_t *status; /* of DONE */
};

static void bar_clear(const struct transfer *t)
{
    if (t->bar) fputs("\r\033[K", stderr);
}

static void progress(const struct transfer *t, const json_t *counts)
{
    if (t->cli->quiet || t->cli->json) return;
    int done = (int)(json_integer_value(json_object_get(counts, "acked")) +
                     json_integer_value(json_object_get(counts, "spooled")));
    int running = (int)json_integer_value(json_object_get(counts, "leased"));
    if (!t->bar) return;
    int width = 30, filled = t->images ? (int)((int64_t)width * done / t->images) : 0;
    fprintf(stderr, "\r\033[K[%.*s%.*s] %d/%u done, %d running, %.1f s", filled,
            "##############################", width - filled, "..............................",
            done, t->images, running, (now_ms() - t->begun) / 1e3);
    fflush(stderr);
}

static void times_print(const json_t *timing, double transfer_ms)
{
    static const char *const stages[] = {"queue",   "dispatch", "load",   "tokenize", "text",
                                         "denoise", "decode",   "encode", "other"};
    printf("   ");
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_us", stages[i]);
        double ms = 1e-3 * (double)json_integer_value(json_object_get(timing, key));
        if (ms >= 0.05) printf(" %s %.1f", stages[i], ms);
    }
    printf(" transfer %.1f", transfer_ms);
    printf(" total %.1f ms\n",
           1e-3 * (double)json_integer_value(json_object_get(timing, "total_us")) + transfer_ms);
}

static int image_save(struct transfer *t, const struct steer_event *e, struct steer_error *err)
{
    char path[1200], pattern[64];
    double begin = now_ms();
    const char *output = t->args->output;
    if (!output) {
        snprintf(pattern, sizeof pattern, "{job}.%s", strcmp(e->format, "png") ? "webp" : "png");
        output = pattern;
    }
    if (output_name(path, sizeof path, output, t->images, e->index, e->seed, t->job, t->model))
        return steer_fail(err, STEER_BAD_VALUE, "the output's name is too long");
    int code = output_write(path, e->image, e->image_bytes, t->overwrite, err);
    if (code) return code;
    (void)steer_ack(t->client, e->job, e->index);
    t->written++;
    double transfer_ms = now_ms() - begin;
    json_t *result = json_loads(e->json, 0, NULL);
    bar_clear(t);
    if (*json_text(result, "warning") && !t->cli->quiet)
        fprintf(stderr, "steer: image %u: %s\n", e->index, printable(json_text(result, "warning")));
    if (t->cli->json) {
        json_object_set_new(result, "file", json_string(path));
        json_object_set_new(result, "transfer_us", json_integer((json_int_t)(transfer_ms * 1e3)));
        json_dumpf(result, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        printf("%s  seed %" PRIu64 "\n", path, e->seed);
        if (!t->cli->quiet) times_print(json_object_get(result, "timing"), transfer_ms);
    }
    fflush(stdout);
    json_decref(result);
    return 0;
}

/* How many images there will be, and what the job's model is called. */
static int transfer_learn(struct transfer *t, struct steer_error *err)
{
    struct steer_fault fault;
    char *text;
    if (steer_ask(t->client, STEER_ASK_JOB, t->job, &text, cli_answer_ms(t->cli), &fault))
        return fault_error(err, &fault);
    json_t *reply = json_loads(text, 0, NULL);
    const json_t *spec = json_object_get(json_array_get(json_object_get(reply, "jobs"), 0), "spec");
    t->images = (uint32_t)json_integer_value(json_object_get(spec, "images"));
    snprintf(t->model, sizeof t->model, "%s", json_text(spec, "model"));
    json_decref(reply);
    free(text);
    return 0;
}

static int interrupt(struct transfer *t, struct steer_error *err)
{
    bar_clear(t);
    if (t->args->detach)
        return steer_fail(err, STEER_CANCELLED, "left on the farm; `steer fetch %s` gets it",
                          t->job);
    struct steer_fault fault;
    if (interrupted > 1 || steer_cancel(t->client, t->job, NULL, NULL, 5000, &fault))
        return steer_fail(err, STEER_CANCELLED, "interrupted; job %s may still run", t->job);
    return steer_fail(err, STEER_CANCELLED, "job %s cancelled", t->job);
}

/* What DONE says: failures have their reasons. */
static int transfer_end(struct transfer *t, struct steer_error *err)
{
    const char *state = json_text(t->status, "state");
    const json_t *failures = json_object_get(t->status, "failures");
    bar_clear(t);
    for (size_t i = 0; i < json_array_size(failures); i++) {
        const json_t *f = json_array_get(failures, i);
        fprintf(stderr, "steer: image %d failed: %s: %s\n",
                (int)json_integer_value(json_object_get(f, "index")),
                printable(json_text(f, "code")), printable(json_text(f, "text")));
    }
    if (strcmp(state, "done") == 0) return 0;
    int code = strcmp(state, "cancelled") == 0 ? STEER_CANCELLED
               : strcmp(state, "expired") == 0 ? STEER_EXPIRED
                                               : STEER_RENDER_FAILED;
    return steer_fail(err, code, "job %s has %s", t->job, printable(state));
}

static int transfer_run(struct transfer *t, struct steer_error *err)
{
    struct steer_event e;
    struct steer_fault fault;
    uint32_t wanted = t->args->last >= t->args->first ? t->args->last - t->args->first + 1 : 0;
    t->begun = now_ms();
    t->bar = !t->cli->quiet && !t->cli->json && isatty(STDERR_FILENO);
    int code = transfer_learn(t, err);
    if (code) return code;
    uint32_t first = wanted ? t->args->first : 0,
             last = wanted ? t->args->last : STEER_IMAGES_MAX - 1;
    if (steer_fetch_range(t->client, t->job, CREDIT, first, last) || steer_watch(t->client, t->job))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    for (;;) {
        if (interrupted) return interrupt(t, err);
        if (t->cli->timeout_ms >= 0 && now_ms() - t->begun > t->cli->timeout_ms)
            return steer_fail(err, STEER_TIMEOUT,
                              "job %s has not ended in time; `steer fetch %s` waits on", t->job,
                              t->job);
        int got = steer_next(t->client, &e, 200, &fault);
        if (got < 0) return fault_error(err, &fault);
        if (!got || (e.job && strcmp(e.job, t->job) != 0)) continue;
        if (e.kind == STEER_EVENT_RESULT && (code = image_save(t, &e, err))) return code;
        if (wanted && t->written == wanted) return 0;
        json_t *json = json_loads(e.json, 0, NULL);
        if (e.kind == STEER_EVENT_PROGRESS) progress(t, json_object_get(json, "counts"));
        if (e.kind == STEER_EVENT_DONE) {
            t->status = json_object_get(json, "status");
            code = transfer_end(t, err);
            json_decref(json);
            return code;
        }
        json_decref(json);
        if (e.kind == STEER_EVENT_REFUSED) return fault_error(err, &e.fault);
    }
}

/* ---- commands ---- */

static void on_interrupt(int number)
{
    (void)number;
    interrupted++;
}

static int begin(const struct args_group *groups, const char *what, int argc, char **argv,
                 int *words, int *help, struct steer_error *err)
{
    int code = args_parse(groups, argc, argv, words, help, err);
    if (!code && *help) {
        fputs(what, stdout);
        args_help(stdout, groups);
        args_help_exits(stdout);
    }
    struct sigaction act = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    return code;
}

int command_render(int argc, char **argv, struct steer_error *err)
{
    struct cli cli = {.timeout_ms = -1};
    struct render_args a = {.first = 1};
    struct job_args j;
    struct transfer t = {.cli = &cli, .args = &a, .overwrite = 1};
    int words, help;
    job_args_init(&j);
    const struct args_group groups[] = {
        {"Job", job_options, &a},          {"Render", render_options, &a},
        {"Image", job_args_image, &j},     {"Guidance", job_args_guidance, &j},
        {"Output", output_options, &a},    {"Farm", job_args_farm, &j},
        {"Connection", cli_options, &cli}, {NULL, NULL, NULL}};
    int code = begin(groups,
                     "steer render PROMPT [options]\n\n"
                     "  steer render \"a red apple\" --negative \"stripes\" --output apple.webp\n"
                     "  steer render \"a cat\" --images 20 --output 'cat-{index}-{seed}.webp'\n"
                     "  steer render --from cat.webp --guidance none --output plain.webp\n",
                     argc, argv, &words, &help, err);
    if (code || help) return code;
    if (words > 1)
        return steer_fail(err, STEER_USAGE, "unexpected \"%s\": quote the prompt", argv[1]);
    if (words) j.job.prompt = argv[0];
    if (a.model) j.job.model = (char *)(uintptr_t)a.model;
    format_by_name(&j, a.output);
    json_t *job = NULL;
    if (a.from)
        code = job_of_image(&job, a.from, err);
    else
        job = json_object();
    if (!code) code = job_merge(job, &j);
    if (!code) code = cli_open(&t.client, &cli, err);
    if (!code) code = job_submit(t.client, &cli, job, a.key, t.job, err);
    json_decref(job);
    if (!code) {
        if (!cli.quiet && !cli.json) fprintf(stderr, "job %s\n", t.job);
        code = transfer_run(&t, err);
    }
    steer_close(t.client);
    return code;
}

int command_fetch(int argc, char **argv, struct steer_error *err)
{
    struct cli cli = {.timeout_ms = -1};
    struct render_args a = {.first = 1};
    struct transfer t = {.cli = &cli, .args = &a};
    int words, help;
    const struct args_group groups[] = {{"Fetch", fetch_options, &a},
                                        {"Output", output_options, &a},
                                        {"Connection", cli_options, &cli},
                                        {NULL, NULL, NULL}};
    int code =
        begin(groups, "steer fetch JOB [--index 3-7] [--output 'x-{index}.webp'] [options]\n", argc,
              argv, &words, &help, err);
    if (code || help) return code;
    if (words != 1) return steer_fail(err, STEER_USAGE, "one JOB is needed (see --help)");
    snprintf(t.job, sizeof t.job, "%s", argv[0]);
    t.overwrite = a.overwrite;
    a.detach = 1; /* Ctrl-C never cancels a job that somebody else may wait for */
    if (!(code = cli_open(&t.client, &cli, err))) code = transfer_run(&t, err);
    steer_close(t.client);
    return code;
}

/* ---- submit ---- */

static int submit_print(const struct cli *cli, const char *id, const json_t *job)
{
    const json_t *images = json_object_get(job, "images");
    if (cli->json)
        printf("{\"job\": \"%s\", \"images\": %d}\n", id,
               images ? (int)json_integer_value(images) : 1);
    else
        printf("%s\n", id);
    fflush(stdout);
    return 0;
}

/* Each line is a job; a bad one is named and the others go on. */
static int submit_lines(struct steer_client *c, const struct cli *cli, const struct render_args *a,
                        const struct job_args *j, struct steer_error *err)
{
    FILE *f = strcmp(a->prompts, "-") == 0 ? stdin : fopen(a->prompts, "re");
    char *line = NULL, id[STEER_JOB_ID_SIZE], key[STEER_KEY_SIZE];
    size_t room = 0;
    int number = 0, bad = 0, code = 0;
    if (!f) return steer_fail(err, STEER_NOT_FOUND, "%s: cannot be read", a->prompts);
    while (getline(&line, &room, f) > 0 && !interrupted) {
        struct steer_error why = {0};
        number++;
        line[strcspn(line, "\r\n")] = 0;
        if (!line[strspn(line, " \t")]) continue;
        json_error_t where;
        json_t *job =
            *line == '{' ? json_loads(line, JSON_REJECT_DUPLICATES, &where) : json_object();
        if (*line != '{') json_object_set_new(job, "prompt", json_string(line));
        int wrong =
            job ? job_merge(job, j) : steer_fail(&why, STEER_BAD_VALUE, "not JSON: %s", where.text);
        if (a->key) snprintf(key, sizeof key, "%.100s-%d", a->key, number);
        if (!wrong) wrong = job_submit(c, cli, job, a->key ? key : NULL, id, &why);
        if (!wrong) submit_print(cli, id, job);
        json_decref(job);
        if (!wrong) continue;
        fprintf(stderr, "steer submit: line %d: %s\n", number, why.text);
        code = wrong;
        bad++;
    }
    free(line);
    if (f != stdin) fclose(f);
    return bad ? steer_fail(err, code, "%d of %d lines were not submitted", bad, number) : 0;
}

int command_submit(int argc, char **argv, struct steer_error *err)
{
    struct cli cli = {.timeout_ms = -1};
    struct render_args a = {0};
    struct job_args j;
    struct steer_client *c = NULL;
    char id[STEER_JOB_ID_SIZE];
    int words, help;
    job_args_init(&j);
    const struct args_group groups[] = {{"Job", job_options, &a},
                                        {"Submit", submit_options, &a},
                                        {"Image", job_args_image, &j},
                                        {"Guidance", job_args_guidance, &j},
                                        {"Farm", job_args_farm, &j},
                                        {"Connection", cli_options, &cli},
                                        {NULL, NULL, NULL}};
    int code =
        begin(groups,
              "steer submit [PROMPT] [--prompts FILE|-] [options]\n\n"
              "Prints the job's id once the job is durable; the same key again is the same job.\n",
              argc, argv, &words, &help, err);
    if (code || help) return code;
    if (words > 1)
        return steer_fail(err, STEER_USAGE, "unexpected \"%s\": quote the prompt", argv[1]);
    if (words) j.job.prompt = argv[0];
    if (a.model) j.job.model = (char *)(uintptr_t)a.model;
    if ((code = cli_open(&c, &cli, err))) return code;
    if (a.prompts) {
        code = submit_lines(c, &cli, &a, &j, err);
    } else {
        json_t *job = json_object();
        (void)job_merge(job, &j);
        code = job_submit(c, &cli, job, a.key, id, err);
        if (!code) submit_print(&cli, id, job);
        json_decref(job);
    }
    steer_close(c);
    return code;
}
