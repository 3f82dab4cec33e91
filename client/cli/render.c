// SPDX-License-Identifier: Apache-2.0
/* steer render, submit, fetch: jobs in, images out. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "limits.h"
#include "output.h"
#include "pb_json.h"
#include "wire.h"

enum { LINE_KEY_BYTES_MAX = 116 }; /* of --key with --prompts: "-1234567890" follows */

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
TEXT_SETTER(output)
TEXT_SETTER(from)
TEXT_SETTER(prompts)
SWITCH_SETTER(detach)
SWITCH_SETTER(overwrite)

static int set_model(void *target, const char *value, struct steer_error *err)
{
    ((struct render_args *)target)->model = value;
    return job_args_text(value, err);
}

static int set_key(void *target, const char *value, struct steer_error *err)
{
    ((struct render_args *)target)->key = value;
    if (!*value || strlen(value) > STEER_KEY_BYTES_MAX)
        return steer_fail(err, STEER_BAD_TEXT, "%zu bytes: expected 1 to %d", strlen(value),
                          STEER_KEY_BYTES_MAX);
    return job_args_text(value, err);
}

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
    {"detach", NULL, "Ctrl-C leaves the job on the farm and prints its id", set_detach},
    {NULL, NULL, NULL, NULL},
};
static const struct args_option output_options[] = {
    {"output", "FILE", ".webp or .png; may hold {index} {seed} {job} {model} (default {job}.webp)",
     set_output},
    {"overwrite", NULL, "replace files that hold something else (render always does)",
     set_overwrite},
    {NULL, NULL, NULL, NULL},
};
static const struct args_option submit_options[] = {
    {"prompts", "FILE|-",
     "a job a line: a prompt, or a JSON object like message Job, which wins over flags",
     set_prompts},
    {NULL, NULL, NULL, NULL},
};
static const struct args_option fetch_options[] = {
    {"index", "I|I-J", "only these images", set_index},
    {NULL, NULL, NULL, NULL},
};

/* The prompt as a word, and the model. */
static int words_take(struct job_args *j, const struct render_args *a, int words, char **argv,
                      struct steer_error *err)
{
    if (words > 1)
        return steer_fail(err, STEER_USAGE, "unexpected \"%s\": quote the prompt", argv[1]);
    if (words) j->job.prompt = argv[0];
    if (a->model) j->job.model = (char *)(uintptr_t)a->model;
    return words && job_args_text(argv[0], NULL)
               ? steer_fail(err, STEER_BAD_TEXT, "the prompt is not UTF-8")
               : 0;
}

/* ---- render ---- */

/* The file's name says the format; --format may only say more of it. */
static int format_by_name(json_t *job, const char *name, int given, struct steer_error *err)
{
    int png, code = output_format(&png, name, err);
    if (code) return code;
    json_t *output = json_object_get(job, "output");
    const char *format = json_text(output, "format"); /* "": the default, WebP */
    if (png == !strcmp(format, "png")) return 0;
    if (given)
        return steer_fail(err, STEER_BAD_VALUE,
                          "--format %s and --output %s: expected a name that ends in .%s", format,
                          name, png ? "webp" : "png");
    if (!output) json_object_set_new(job, "output", output = json_object());
    json_object_set_new(output, "format", json_string(png ? "png" : "webp"));
    return 0;
}

static int render_job(json_t **ret, const struct render_args *a, const struct job_args *j,
                      struct steer_error *err)
{
    json_t *flags = NULL, *job = NULL;
    int code = job_of_flags(&flags, j, err);
    if (!code && a->from) code = job_of_image(&job, a->from, err);
    if (!code) {
        if (!job) job = json_object();
        job_overlay(job, flags);
    }
    if (!code && a->output) code = format_by_name(job, a->output, j->output.has_format, err);
    if (!code) code = output_check(a->output ? a->output : "{job}.webp", err);
    json_decref(flags);
    if (code)
        json_decref(job);
    else
        *ret = job;
    return code;
}

/* Ctrl-C while the SUBMIT had no answer: it may have arrived, so its key is cancelled. */
static int interrupted_early(struct steer_client *c, const struct render_args *a, const char *key,
                             struct steer_error *err)
{
    struct steer_fault fault;
    if (a->detach)
        return steer_fail(err, STEER_INTERRUPTED,
                          "interrupted before the broker had answered; --key %s names the job",
                          key);
    interrupted = 0; /* a second one ends this wait too */
    if (steer_cancel(c, NULL, key, NULL, 3000, &fault))
        return steer_fail(err, STEER_INTERRUPTED,
                          "interrupted, and the broker does not answer; if it has the job, "
                          "`steer cancel --key %s` cancels it",
                          key);
    return steer_fail(err, STEER_INTERRUPTED, "interrupted; the job is cancelled");
}

static int interrupted_late(const struct transfer *t, const struct render_args *a,
                            struct steer_error *err)
{
    struct steer_fault fault;
    if (a->detach) {
        printf(t->cli->json ? "{\"job\": \"%s\"}\n" : "%s\n", t->job);
        fflush(stdout);
        return steer_fail(err, STEER_INTERRUPTED,
                          "interrupted; `steer fetch %s` gets the images of the job", t->job);
    }
    interrupted = 0;
    if (steer_cancel(t->client, t->job, NULL, NULL, 5000, &fault))
        return steer_fail(err, STEER_INTERRUPTED, "interrupted; job %s may still run", t->job);
    return steer_fail(err, STEER_INTERRUPTED, "interrupted; job %s is cancelled", t->job);
}

int command_render(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    struct render_args a = {.first = 1};
    struct job_args j;
    struct transfer t = {.cli = &cli, .overwrite = 1, .first = 1};
    char key[STEER_KEY_SIZE];
    json_t *job = NULL;
    int words;
    job_args_init(&j);
    const struct args_group groups[] = {
        {"Job", job_options, &a},          {"Render", render_options, &a},
        {"Image", job_args_image, &j},     {"Guidance", job_args_guidance, &j},
        {"Output", output_options, &a},    {"Farm", job_args_farm, &j},
        {"Connection", cli_options, &cli}, {NULL, NULL, NULL}};
    int code =
        cli_parse(&cli, groups,
                  "steer render PROMPT [options]\n\n"
                  "  steer render \"a red apple\" --negative \"stripes\" --output apple.webp\n"
                  "  steer render \"a cat\" --images 20 --output 'cat-{index}-{seed}.webp'\n"
                  "  steer render --from cat.webp --guidance none --output plain.webp\n\n"
                  "Ctrl-C cancels the job, or with --detach leaves it; the exit code is 130.\n",
                  argc, argv, &words, err);
    if (code) return code == 1 ? 0 : code;
    t.output = a.output;
    code = words_take(&j, &a, words, argv, err);
    if (!code) code = render_job(&job, &a, &j, err);
    if (!code) code = cli_open(&t.client, &cli, err);
    if (!code) {
        /* Our own key, so that what is interrupted in between can be cancelled by it. */
        steer_key_make(key);
        if (a.key) snprintf(key, sizeof key, "%s", a.key);
        code = job_send(t.client, &cli, job, key, t.job, err);
        if (code == STEER_INTERRUPTED) code = interrupted_early(t.client, &a, key, err);
    }
    json_decref(job);
    if (!code) {
        if (!cli.quiet && !cli.json) fprintf(stderr, "job %s\n", t.job);
        code = transfer_run(&t, err);
        if (code == STEER_INTERRUPTED) code = interrupted_late(&t, &a, err);
    }
    steer_close(t.client);
    return code;
}

/* ---- fetch ---- */

int command_fetch(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    struct render_args a = {.first = 1};
    struct transfer t = {.cli = &cli};
    int words, png;
    const struct args_group groups[] = {{"Fetch", fetch_options, &a},
                                        {"Output", output_options, &a},
                                        {"Connection", cli_options, &cli},
                                        {NULL, NULL, NULL}};
    int code = cli_parse(
        &cli, groups,
        "steer fetch JOB [--index 3-7] [--output 'x-{index}.webp'] [options]\n\n"
        "Waits for the images, writes and acknowledges them; the farm then forgets them. A file\n"
        "that is there already and holds the same image counts as written.\n",
        argc, argv, &words, err);
    if (code) return code == 1 ? 0 : code;
    if (words != 1) return steer_fail(err, STEER_USAGE, "one JOB is needed (see --help)");
    if ((code = cli_job_id(argv[0], err))) return code;
    snprintf(t.job, sizeof t.job, "%s", argv[0]);
    t.output = a.output;
    t.overwrite = a.overwrite;
    t.first = a.first;
    t.last = a.last;
    if (a.output && (code = output_format(&png, a.output, err))) return code;
    if ((code = output_check(a.output ? a.output : "{job}.webp", err))) return code;
    code = cli_open(&t.client, &cli, err);
    if (!code) code = transfer_run(&t, err);
    steer_close(t.client);
    return code;
}

/* ---- submit ---- */

static void submit_print(const struct cli *cli, const char *id, const json_t *job)
{
    int64_t images = json_number(job, "images");
    if (cli->json)
        printf("{\"job\": \"%s\", \"images\": %" PRId64 "}\n", id, images ? images : 1);
    else
        printf("%s\n", id);
    fflush(stdout);
}

/* What a line says over what the flags say. */
static int line_job(json_t **ret, const char *line, size_t size, const json_t *flags,
                    struct steer_error *err)
{
    json_error_t where;
    if (strlen(line) != size || !wire_utf8_valid(line, size))
        return steer_fail(err, STEER_BAD_TEXT, "the line is not UTF-8 without NUL");
    const char *begin = line + strspn(line, " \t");
    json_t *said = *begin == '{' ? pb_json_read(begin, &where) : json_pack("{s:s}", "prompt", line);
    if (!said) return steer_fail(err, STEER_BAD_VALUE, "not JSON: %s", where.text);
    *ret = json_deep_copy(flags);
    job_overlay(*ret, said);
    json_decref(said);
    return 0;
}

struct lines {
    int number, submitted, bad, code; /* the last bad line's code */
};

static void line_submit(struct lines *n, struct steer_client *c, const struct cli *cli,
                        const char *base, const char *line, size_t size, const json_t *flags,
                        struct steer_error *why)
{
    char id[STEER_JOB_ID_SIZE], key[STEER_KEY_SIZE];
    json_t *job = NULL;
    int code = line_job(&job, line, size, flags, why);
    if (base) snprintf(key, sizeof key, "%.*s-%d", LINE_KEY_BYTES_MAX, base, n->number);
    if (!code) code = job_send(c, cli, job, base ? key : NULL, id, why);
    if (!code) {
        submit_print(cli, id, job);
        n->submitted++;
    } else {
        fprintf(stderr, "steer submit: line %d: %s\n", n->number, why->text);
        n->bad++;
        n->code = code;
    }
    json_decref(job);
}

/* Each line is a job. A bad one is named and the others go on; a broker that is away ends it. */
static int submit_lines(struct steer_client *c, const struct cli *cli, const struct render_args *a,
                        const json_t *flags, struct steer_error *err)
{
    FILE *f = strcmp(a->prompts, "-") == 0 ? stdin : fopen(a->prompts, "re");
    struct lines n = {0};
    char *line = NULL;
    size_t room = 0;
    ssize_t size = 0;
    if (!f)
        return steer_fail(err, STEER_NOT_FOUND, "--prompts %s: %s", a->prompts, strerror(errno));
    while (!interrupted && n.code != STEER_TIMEOUT && (size = getline(&line, &room, f)) > 0) {
        struct steer_error why = {0};
        n.number++;
        while (size && (line[size - 1] == '\n' || line[size - 1] == '\r'))
            line[--size] = 0;
        if ((size_t)size == strspn(line, " \t")) continue;
        line_submit(&n, c, cli, a->key, line, (size_t)size, flags, &why);
    }
    int reason = errno, unread = ferror(f);
    free(line);
    if (f != stdin) fclose(f);
    if (interrupted)
        return steer_fail(err, STEER_INTERRUPTED, "interrupted at line %d; %d jobs were submitted",
                          n.number, n.submitted);
    if (unread)
        return steer_fail(err, STEER_IO,
                          "--prompts %s: reading ended after line %d: %s; %d jobs "
                          "were submitted",
                          a->prompts, n.number, strerror(reason), n.submitted);
    if (!n.bad) return 0;
    return steer_fail(err, n.code, "%d of %d lines were not submitted; %d jobs were", n.bad,
                      n.number, n.submitted);
}

int command_submit(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    struct render_args a = {0};
    struct job_args j;
    struct steer_client *c = NULL;
    char id[STEER_JOB_ID_SIZE];
    json_t *job = NULL;
    int words;
    job_args_init(&j);
    const struct args_group groups[] = {{"Job", job_options, &a},
                                        {"Submit", submit_options, &a},
                                        {"Image", job_args_image, &j},
                                        {"Guidance", job_args_guidance, &j},
                                        {"Farm", job_args_farm, &j},
                                        {"Connection", cli_options, &cli},
                                        {NULL, NULL, NULL}};
    int code = cli_parse(
        &cli, groups,
        "steer submit PROMPT | --prompts FILE|- [options]\n\n"
        "Prints the job's id once the job is durable; the same key again is the same job. With\n"
        "--prompts line N's key is KEY-N.\n",
        argc, argv, &words, err);
    if (code) return code == 1 ? 0 : code;
    if ((code = words_take(&j, &a, words, argv, err))) return code;
    if (a.prompts && j.job.prompt)
        return steer_fail(err, STEER_USAGE, "a prompt or --prompts FILE: expected one of them");
    if (a.prompts && a.key && strlen(a.key) > LINE_KEY_BYTES_MAX)
        return steer_fail(err, STEER_BAD_TEXT,
                          "--key with --prompts: %zu bytes: expected at most %d, as each line adds "
                          "its number",
                          strlen(a.key), LINE_KEY_BYTES_MAX);
    code = job_of_flags(&job, &j, err);
    if (!code) code = cli_open(&c, &cli, err);
    if (!code && a.prompts) {
        code = submit_lines(c, &cli, &a, job, err);
    } else if (!code && !(code = job_send(c, &cli, job, a.key, id, err))) {
        submit_print(&cli, id, job);
    }
    json_decref(job);
    steer_close(c);
    return code;
}
