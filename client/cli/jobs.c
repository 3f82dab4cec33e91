// SPDX-License-Identifier: Apache-2.0
/* Questions and orders about jobs, workers, models and the farm. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "limits.h"

struct list_args {
    const char *state, *label, *key;
    uint64_t limit;
    int failed;
};

static int set_state(void *target, const char *value, struct steer_error *err)
{
    ((struct list_args *)target)->state = value;
    return job_args_text(value, err);
}

static int set_label(void *target, const char *value, struct steer_error *err)
{
    if (!strchr(value, '='))
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected KEY=VALUE", value);
    ((struct list_args *)target)->label = value;
    return job_args_text(value, err);
}

static int set_limit(void *target, const char *value, struct steer_error *err)
{
    return args_u64(&((struct list_args *)target)->limit, value, 1, 1000, err);
}

static int set_key(void *target, const char *value, struct steer_error *err)
{
    ((struct list_args *)target)->key = value;
    return job_args_text(value, err);
}

static int set_failed(void *target, const char *value, struct steer_error *err)
{
    (void)value;
    (void)err;
    ((struct list_args *)target)->failed = 1;
    return 0;
}

static const struct args_option list_options[] = {
    {"state", "STATE", "queued, running, done, failed, cancelled or expired", set_state},
    {"label", "KEY=VALUE", "only jobs with this label", set_label},
    {"limit", "N", "at most N, newest first (default 20)", set_limit},
    {NULL, NULL, NULL, NULL},
};
static const struct args_option cancel_options[] = {
    {"key", "KEY", "by idempotency key; one not yet submitted will be refused then", set_key},
    {NULL, NULL, NULL, NULL},
};
static const struct args_option retry_options[] = {
    {"failed", NULL, "the images that failed (what retry does)", set_failed},
    {NULL, NULL, NULL, NULL},
};

/* Parses flags, opens a client; 1: help was printed. `word` NULL: no word is expected. */
static int begin(struct cli *cli, const struct args_option *options, void *target, const char *what,
                 int argc, char **argv, const char **word, int optional, struct steer_client **c,
                 struct steer_error *err)
{
    char usage[200];
    int words;
    const struct args_group with[] = {
        {"Options", options, target}, {"Connection", cli_options, cli}, {NULL, NULL, NULL}};
    snprintf(usage, sizeof usage, "steer %s\n", what);
    int code = cli_parse(cli, options ? with : with + 1, usage, argc, argv, &words, err);
    if (code) return code;
    if (words > (word ? 1 : 0) || (word && !words && !optional))
        return steer_fail(err, STEER_USAGE, "expected: steer %s", what);
    if (word) *word = words ? argv[0] : NULL;
    return cli_open(c, cli, err);
}

static int ask(struct steer_client *c, const struct cli *cli, enum steer_question question,
               const char *argument, json_t **ret, struct steer_error *err)
{
    return cli_ask(c, cli, question, argument, cli_answer_ms(cli), ret, err);
}

static int job_ask(struct steer_client *c, const struct cli *cli, enum steer_question question,
                   const char *job, json_t **ret, struct steer_error *err)
{
    int code = cli_job_id(job, err);
    return code ? code : ask(c, cli, question, job, ret, err);
}

static void time_write(char to[32], const json_t *job, const char *key)
{
    time_t seconds = (time_t)(json_number(job, key) / 1000);
    struct tm tm;
    snprintf(to, 32, "-");
    if (seconds && localtime_r(&seconds, &tm)) strftime(to, 32, "%Y-%m-%d %H:%M:%S", &tm);
}

/* ---- jobs ---- */

static void job_row(const json_t *job)
{
    const json_t *spec = json_object_get(job, "spec"), *counts = json_object_get(job, "counts");
    char accepted[32];
    time_write(accepted, job, "accepted_ms");
    int64_t done = json_number(counts, "acked") + json_number(counts, "spooled");
    printf("%-16s %-10s %6" PRId64 "/%-6" PRId64 " %-19s %-16.16s %.40s\n",
           printable(json_text(job, "job")), printable(json_text(job, "state")), done,
           json_number(spec, "images"), accepted, printable(json_text(spec, "model")),
           printable(json_text(spec, "prompt")));
}

int command_jobs(int argc, char **argv, struct steer_error *err)
{
    struct list_args a = {.limit = 20};
    struct cli cli;
    struct steer_client *c = NULL;
    json_t *reply = NULL, *what = json_object();
    int code = begin(&cli, list_options, &a, "jobs [--state S] [--label K=V] [--limit N]", argc,
                     argv, NULL, 0, &c, err);
    if (!code) {
        json_object_set_new(what, "limit", json_integer((json_int_t)a.limit));
        if (a.state) json_object_set_new(what, "state", json_string(a.state));
        const char *equals = a.label ? strchr(a.label, '=') : NULL;
        if (equals)
            json_object_set_new(what, "label",
                                json_pack("{s:s#, s:s}", "key", a.label, (int)(equals - a.label),
                                          "value", equals + 1));
        char *text = json_dumps(what, JSON_COMPACT);
        code = ask(c, &cli, STEER_ASK_JOBS, text, &reply, err);
        free(text);
    }
    const json_t *jobs = json_object_get(reply, "jobs");
    if (!code && !cli.json && !cli.quiet)
        printf("%-16s %-10s %13s %-19s %-16s %s\n", "JOB", "STATE", "DONE/IMAGES", "ACCEPTED",
               "MODEL", "PROMPT");
    for (size_t i = 0; i < json_array_size(jobs) && !code; i++) {
        if (cli.json)
            line_json(json_array_get(jobs, i));
        else
            job_row(json_array_get(jobs, i));
    }
    if (json_is_true(json_object_get(reply, "more")) && !cli.quiet)
        fprintf(stderr, "steer: there are more than these %zu; --limit N shows up to 1000\n",
                json_array_size(jobs));
    json_decref(reply);
    json_decref(what);
    steer_close(c);
    return code == 1 ? 0 : code;
}

static void job_print(const json_t *job)
{
    const json_t *counts = json_object_get(job, "counts"),
                 *failures = json_object_get(job, "failures");
    const json_t *spec = json_object_get(job, "spec");
    char accepted[32], ended[32];
    const char *key;
    json_t *value;
    time_write(accepted, job, "accepted_ms");
    time_write(ended, job, "ended_ms");
    printf("job       %s\nstate     %s\nkey       %s\naccepted  %s\nended     %s\nimages   ",
           printable(json_text(job, "job")), printable(json_text(job, "state")),
           printable(json_text(job, "key")), accepted, ended);
    json_object_foreach((json_t *)(uintptr_t)counts, key, value)
    {
        if (json_integer_value(value))
            printf(" %s %" JSON_INTEGER_FORMAT, key, json_integer_value(value));
    }
    printf("\n");
    json_object_foreach((json_t *)(uintptr_t)spec, key, value)
    {
        char *text =
            json_is_string(value) ? NULL : json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        printf("  %-16s %s\n", key, printable(text ? text : json_string_value(value)));
        free(text);
    }
    for (size_t i = 0; i < json_array_size(failures); i++) {
        const json_t *f = json_array_get(failures, i);
        printf("failed    image %" PRId64 " after %" PRId64 " attempts: %s: %s\n",
               json_number(f, "index"), json_number(f, "attempts"), printable(json_text(f, "code")),
               printable(json_text(f, "text")));
    }
    int64_t cut = json_number(counts, "failed") - (int64_t)json_array_size(failures);
    if (cut > 0) printf("failed    %" PRId64 " more images\n", cut);
}

static int job_answer(const struct cli *cli, const json_t *reply)
{
    const json_t *jobs = json_object_get(reply, "jobs");
    for (size_t i = 0; i < json_array_size(jobs); i++) {
        const json_t *job = json_array_get(jobs, i);
        if (cli->json)
            line_json(job);
        else if (!cli->quiet)
            job_print(job);
    }
    return 0;
}

int command_show(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    const char *job;
    json_t *reply = NULL;
    int code = begin(&cli, NULL, NULL, "show JOB", argc, argv, &job, 0, &c, err);
    if (!code) code = job_ask(c, &cli, STEER_ASK_JOB, job, &reply, err);
    if (!code) job_answer(&cli, reply);
    json_decref(reply);
    steer_close(c);
    return code == 1 ? 0 : code;
}

int command_cancel(int argc, char **argv, struct steer_error *err)
{
    struct list_args a = {0};
    struct cli cli;
    struct steer_client *c = NULL;
    struct steer_fault fault;
    const char *job;
    char *text = NULL;
    int code =
        begin(&cli, cancel_options, &a, "cancel JOB | --key KEY", argc, argv, &job, 1, &c, err);
    if (!code && !job == !a.key)
        code = steer_fail(err, STEER_USAGE, "expected: steer cancel JOB | --key KEY");
    if (!code && job) code = cli_job_id(job, err);
    if (!code && steer_cancel(c, job, a.key, &text, cli_answer_ms(&cli), &fault))
        code = strcmp(fault.code, "UNKNOWN_JOB") == 0 && job
                   ? steer_fail(err, STEER_UNKNOWN_JOB, "no such job \"%s\"", printable(job))
                   : fault_error(err, &fault);
    if (!code) {
        json_t *reply = json_loads(text, 0, NULL);
        job_answer(&cli, reply);
        if (!json_array_size(json_object_get(reply, "jobs"))) {
            json_t *stone = json_pack("{s:s, s:s}", "key", a.key, "state", "cancelled");
            if (cli.json)
                line_json(stone);
            else if (!cli.quiet)
                printf("key %s is cancelled before its job\n", printable(a.key));
            json_decref(stone);
        }
        json_decref(reply);
    }
    free(text);
    steer_close(c);
    return code == 1 ? 0 : code;
}

int command_retry(int argc, char **argv, struct steer_error *err)
{
    struct list_args a = {0};
    struct cli cli;
    struct steer_client *c = NULL;
    const char *job;
    json_t *reply = NULL;
    int code = begin(&cli, retry_options, &a, "retry JOB [--failed]", argc, argv, &job, 0, &c, err);
    if (!code) code = job_ask(c, &cli, STEER_DO_RETRY, job, &reply, err);
    if (!code) job_answer(&cli, reply);
    json_decref(reply);
    steer_close(c);
    return code == 1 ? 0 : code;
}

/* ---- watch and wait ---- */

/* Nothing is left to render, fetched or not: what wait and watch wait for. */
static int rendered(const json_t *counts)
{
    return !json_number(counts, "queued") && !json_number(counts, "leased");
}

static void progress_print(const struct cli *cli, const char *job, const json_t *progress)
{
    const json_t *counts = json_object_get(progress, "counts");
    if (cli->quiet) return;
    if (cli->json) {
        line_json(progress);
        return;
    }
    printf("%s  queued %" PRId64 "  running %" PRId64 "  rendered %" PRId64 "  fetched %" PRId64
           "  failed %" PRId64 "\n",
           job, json_number(counts, "queued"), json_number(counts, "leased"),
           json_number(counts, "spooled"), json_number(counts, "acked"),
           json_number(counts, "failed"));
    fflush(stdout);
}

/* Until nothing is left to render, or a fault. */
static int follow_events(struct steer_client *c, const struct cli *cli, const char *job, int show,
                         struct steer_error *err)
{
    struct steer_event e;
    struct steer_fault fault;
    if (steer_watch(c, job)) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    for (int over = 0; !over;) {
        if (interrupted)
            return steer_fail(err, STEER_INTERRUPTED, "interrupted; job %s goes on", job);
        if (cli_left_ms(cli) == 0)
            return steer_fail(err, STEER_TIMEOUT, "job %s has not ended in time", job);
        int got = steer_next(c, &e, 200, &fault);
        if (got < 0) return fault_error(err, &fault);
        if (!got) continue;
        if (e.kind == STEER_EVENT_REFUSED)
            return steer_fail(err, steer_code_of(e.fault.code), "%s \"%s\"",
                              printable(e.fault.text), job);
        json_t *json = json_loads(e.json, 0, NULL);
        over = e.kind == STEER_EVENT_DONE;
        if (e.kind == STEER_EVENT_PROGRESS) {
            over = rendered(json_object_get(json, "counts"));
            if (show) progress_print(cli, job, json);
        }
        json_decref(json);
    }
    return 0;
}

/* watch and wait: the job's final state is told, and is the exit code. */
static int follow(struct steer_client *c, const struct cli *cli, const char *job, int show,
                  struct steer_error *err)
{
    json_t *reply = NULL;
    int code = cli_job_id(job, err);
    if (!code) code = follow_events(c, cli, job, show, err);
    if (!code) code = cli_ask(c, cli, STEER_ASK_JOB, job, cli_left_ms(cli), &reply, err);
    if (code) return code;
    const json_t *status = json_array_get(json_object_get(reply, "jobs"), 0);
    const json_t *counts = json_object_get(status, "counts");
    int64_t spooled = json_number(counts, "spooled"), acked = json_number(counts, "acked");
    if (cli->json) {
        line_json(status);
    } else if (!cli->quiet) {
        /* A job is done when its images were fetched; for these commands, when they were made. */
        const char *state = spooled ? "rendered" : json_text(status, "state");
        printf("%s  %s: %" PRId64 " images to fetch, %" PRId64 " fetched, %" PRId64 " failed\n",
               job, printable(state), spooled, acked, json_number(counts, "failed"));
        fflush(stdout);
        if (spooled) fprintf(stderr, "steer: `steer fetch %s` gets the images\n", job);
    }
    code = job_end(status, err);
    json_decref(reply);
    return code;
}

int command_watch(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    const char *job;
    int code = begin(&cli, NULL, NULL, "watch JOB", argc, argv, &job, 0, &c, err);
    if (!code) code = follow(c, &cli, job, 1, err);
    steer_close(c);
    return code == 1 ? 0 : code;
}

int command_wait(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    const char *job;
    int code = begin(&cli, NULL, NULL, "wait JOB", argc, argv, &job, 0, &c, err);
    if (!code) code = follow(c, &cli, job, 0, err);
    steer_close(c);
    return code == 1 ? 0 : code;
}

/* ---- the farm ---- */

static void worker_row(const json_t *w)
{
    const json_t *models = json_object_get(w, "models"), *device = json_object_get(w, "device");
    printf("%-20s %-12s %-5s %6" PRId64 " %8" PRId64 " %6" PRId64 "  ",
           printable(json_text(w, "worker")), printable(json_text(w, "state")),
           printable(json_text(device, "kind")), json_number(w, "leased"), json_number(w, "done"),
           json_number(w, "failed"));
    for (size_t i = 0; i < json_array_size(models); i++)
        printf("%s%s", i ? ", " : "", printable(json_string_value(json_array_get(models, i))));
    printf("\n");
}

static void model_row(const json_t *m)
{
    const json_t *recipes = json_object_get(m, "recipes");
    printf("%-20s %-8s %4" PRId64 "x%-5" PRId64 " %-12.12s ", printable(json_text(m, "name")),
           printable(json_text(m, "family")), json_number(m, "width"), json_number(m, "height"),
           printable(json_text(m, "hash")));
    for (size_t i = 0; i < json_array_size(recipes); i++)
        printf("%s%s", i ? ", " : "", printable(json_text(json_array_get(recipes, i), "name")));
    printf("\n");
}

static void counter_row(const json_t *c)
{
    printf("%-20s %" PRId64 "\n", printable(json_text(c, "name")), json_number(c, "value"));
}

static int list(int argc, char **argv, const char *what, enum steer_question question,
                const char *field, const char *head, void (*row)(const json_t *),
                struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    json_t *reply = NULL;
    int code = begin(&cli, NULL, NULL, what, argc, argv, NULL, 0, &c, err);
    if (!code) code = ask(c, &cli, question, NULL, &reply, err);
    const json_t *items = json_object_get(reply, field);
    if (!code && head && !cli.json && !cli.quiet) printf("%s\n", head);
    for (size_t i = 0; i < json_array_size(items) && !code; i++) {
        if (cli.json)
            line_json(json_array_get(items, i));
        else
            row(json_array_get(items, i));
    }
    json_decref(reply);
    steer_close(c);
    return code == 1 ? 0 : code;
}

int command_workers(int argc, char **argv, struct steer_error *err)
{
    return list(argc, argv, "workers", STEER_ASK_WORKERS, "workers",
                "WORKER               STATE        DEV    HOLDS     DONE FAILED  MODELS",
                worker_row, err);
}

/* Only the worker reads models, so it answers in our place. */
static int models_check(int argc, char **argv, struct steer_error *err)
{
    char path[1200];
    const char **all = calloc((size_t)argc + 3, sizeof *all);
    if (!all) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    program_path(path, sizeof path, "steer-worker");
    all[0] = path;
    all[1] = "check";
    for (int i = 0; i < argc; i++)
        all[2 + i] = argv[i];
    execvp(path, (char **)(uintptr_t)all);
    int why = errno;
    free(all);
    return steer_fail(err, STEER_NOT_FOUND, "%s: %s", path, strerror(why));
}

int command_models(int argc, char **argv, struct steer_error *err)
{
    if (argc && strcmp(argv[0], "check") == 0) return models_check(argc - 1, argv + 1, err);
    return list(
        argc, argv, "models [check DIR|FILE.json]", STEER_ASK_MODELS, "models",
        "MODEL                FAMILY   SIZE       HASH         RECIPES (the first is the default)",
        model_row, err);
}

int command_status(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    json_t *reply = NULL, *all = json_object();
    int code = begin(&cli, NULL, NULL, "status", argc, argv, NULL, 0, &c, err);
    if (!code) code = ask(c, &cli, STEER_ASK_STATUS, NULL, &reply, err);
    const json_t *counters = json_object_get(reply, "counters");
    for (size_t i = 0; i < json_array_size(counters); i++) {
        const json_t *counter = json_array_get(counters, i);
        if (!cli.json)
            counter_row(counter);
        else
            json_object_set(all, json_text(counter, "name"), json_object_get(counter, "value"));
    }
    if (!code && cli.json) line_json(all);
    json_decref(all);
    json_decref(reply);
    steer_close(c);
    return code == 1 ? 0 : code;
}

/* `done` is what is true afterwards. */
static int order(int argc, char **argv, const char *what, enum steer_question question, int word,
                 const char *done, struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    const char *argument = NULL;
    json_t *reply = NULL;
    int code = begin(&cli, NULL, NULL, what, argc, argv, word ? &argument : NULL, 0, &c, err);
    if (!code) code = ask(c, &cli, question, argument, &reply, err);
    if (!code && cli.json)
        printf("{\"%s\": true}\n", done);
    else if (!code && !cli.quiet)
        printf("%s\n", done);
    json_decref(reply);
    steer_close(c);
    return code == 1 ? 0 : code;
}

int command_drain(int argc, char **argv, struct steer_error *err)
{
    return order(argc, argv, "drain WORKER", STEER_DO_DRAIN, 1, "draining", err);
}

int command_pause(int argc, char **argv, struct steer_error *err)
{
    return order(argc, argv, "pause", STEER_DO_PAUSE, 0, "paused", err);
}

int command_resume(int argc, char **argv, struct steer_error *err)
{
    return order(argc, argv, "resume", STEER_DO_RESUME, 0, "resumed", err);
}
