// SPDX-License-Identifier: Apache-2.0
/* Questions and orders about jobs, workers, models and the farm. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli.h"
#include "limits.h"

struct list_args {
    const char *state, *label, *key;
    uint64_t limit;
    int failed;
};

static int set_state(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct list_args *)target)->state = value;
    return 0;
}

static int set_label(void *target, const char *value, struct steer_error *err)
{
    if (!strchr(value, '='))
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected KEY=VALUE", value);
    ((struct list_args *)target)->label = value;
    return 0;
}

static int set_limit(void *target, const char *value, struct steer_error *err)
{
    return args_u64(&((struct list_args *)target)->limit, value, 1, 1000, err);
}

static int set_key(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct list_args *)target)->key = value;
    return 0;
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
static const struct args_option no_options[] = {{NULL, NULL, NULL, NULL}};

/* Parses flags, opens a client; 1: help was printed. `word` NULL: no word is expected. */
static int begin(struct cli *cli, const struct args_option *options, void *target, const char *what,
                 int argc, char **argv, const char **word, int optional, struct steer_client **c,
                 struct steer_error *err)
{
    int words, help;
    const struct args_group groups[] = {
        {"Options", options, target}, {"Connection", cli_options, cli}, {NULL, NULL, NULL}};
    *cli = (struct cli){.timeout_ms = -1};
    int code = args_parse(groups, argc, argv, &words, &help, err);
    if (code) return code;
    if (help) {
        printf("steer %s\n", what);
        args_help(stdout, groups);
        args_help_exits(stdout);
        return 1;
    }
    if (words > (word ? 1 : 0) || (word && !words && !optional))
        return steer_fail(err, STEER_USAGE, "expected: steer %s", what);
    if (word) *word = words ? argv[0] : NULL;
    return cli_open(c, cli, err);
}

static int ask(struct steer_client *c, const struct cli *cli, enum steer_question question,
               const char *argument, json_t **ret, struct steer_error *err)
{
    struct steer_fault fault;
    char *text;
    if (steer_ask(c, question, argument, &text, cli_answer_ms(cli), &fault))
        return fault_error(err, &fault);
    *ret = json_loads(text, 0, NULL);
    free(text);
    return *ret ? 0 : steer_fail(err, STEER_BAD_FRAME, "the broker's answer is no JSON");
}

static void line_json(const json_t *json)
{
    json_dumpf(json, stdout, JSON_COMPACT);
    putchar('\n');
}

static int64_t number(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static void time_write(char to[32], const json_t *job, const char *key)
{
    time_t seconds = (time_t)(number(job, key) / 1000);
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
    int64_t done = number(counts, "acked") + number(counts, "spooled");
    printf("%-16s %-10s %6" PRId64 "/%-6" PRId64 " %-19s %-16.16s %.40s\n",
           printable(json_text(job, "job")), printable(json_text(job, "state")), done,
           number(spec, "images"), accepted, printable(json_text(spec, "model")),
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
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        printf("  %-16s %s\n", key, printable(text));
        free(text);
    }
    for (size_t i = 0; i < json_array_size(failures); i++) {
        const json_t *f = json_array_get(failures, i);
        printf("failed    image %" PRId64 " after %" PRId64 " attempts: %s: %s\n",
               number(f, "index"), number(f, "attempts"), printable(json_text(f, "code")),
               printable(json_text(f, "text")));
    }
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
    int code = begin(&cli, no_options, NULL, "show JOB", argc, argv, &job, 0, &c, err);
    if (!code) code = ask(c, &cli, STEER_ASK_JOB, job, &reply, err);
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
    if (!code && steer_cancel(c, job, a.key, &text, cli_answer_ms(&cli), &fault))
        code = fault_error(err, &fault);
    if (!code) {
        json_t *reply = json_loads(text, 0, NULL);
        job_answer(&cli, reply);
        if (!json_array_size(json_object_get(reply, "jobs")) && !cli.quiet && !cli.json)
            printf("key %s is cancelled before its job\n", printable(a.key));
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
    if (!code) code = ask(c, &cli, STEER_DO_RETRY, job, &reply, err);
    if (!code) job_answer(&cli, reply);
    json_decref(reply);
    steer_close(c);
    return code == 1 ? 0 : code;
}

/* ---- watch and wait ---- */

static int end_code(const json_t *status, struct steer_error *err)
{
    const char *state = json_text(status, "state");
    if (strcmp(state, "done") == 0) return 0;
    int code = strcmp(state, "cancelled") == 0 ? STEER_CANCELLED
               : strcmp(state, "expired") == 0 ? STEER_EXPIRED
                                               : STEER_RENDER_FAILED;
    return steer_fail(err, code, "job %s has %s", printable(json_text(status, "job")),
                      printable(state));
}

static void on_interrupt(int sign)
{
    (void)sign;
    interrupted++;
}

/* A job counts as ended for wait when nothing is left to render, fetched or not. */
static int rendered(const json_t *counts)
{
    return !number(counts, "queued") && !number(counts, "leased");
}

static int follow(struct steer_client *c, const struct cli *cli, const char *job, int show,
                  struct steer_error *err)
{
    struct steer_event e;
    struct steer_fault fault;
    int waited = 0;
    struct sigaction act = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &act, NULL);
    if (steer_watch(c, job)) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    while (!interrupted) {
        int got = steer_next(c, &e, 200, &fault);
        if (got < 0) return fault_error(err, &fault);
        waited += 200;
        if (!got && cli->timeout_ms >= 0 && waited > cli->timeout_ms)
            return steer_fail(err, STEER_TIMEOUT, "job %s has not ended in time", job);
        if (!got) continue;
        if (e.kind == STEER_EVENT_REFUSED) return fault_error(err, &e.fault);
        json_t *json = json_loads(e.json, 0, NULL), *counts = json_object_get(json, "counts");
        if (e.kind == STEER_EVENT_PROGRESS && show) {
            if (cli->json)
                line_json(json);
            else
                printf("%s  queued %" PRId64 "  running %" PRId64 "  rendered %" PRId64
                       "  fetched %" PRId64 "  failed %" PRId64 "\n",
                       job, number(counts, "queued"), number(counts, "leased"),
                       number(counts, "spooled"), number(counts, "acked"),
                       number(counts, "failed"));
            fflush(stdout);
        }
        int over = e.kind == STEER_EVENT_PROGRESS && !show && rendered(counts);
        int code = 0;
        if (e.kind == STEER_EVENT_DONE) {
            const json_t *status = json_object_get(json, "status");
            if (cli->json) line_json(status);
            code = end_code(status, err);
            over = 1;
        }
        json_decref(json);
        if (over) return code;
    }
    return steer_fail(err, STEER_CANCELLED, "interrupted");
}

int command_watch(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    const char *job;
    int code = begin(&cli, no_options, NULL, "watch JOB", argc, argv, &job, 0, &c, err);
    if (!code) code = follow(c, &cli, job, 1, err);
    steer_close(c);
    return code == 1 ? 0 : code;
}

int command_wait(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    const char *job;
    int code = begin(&cli, no_options, NULL, "wait JOB", argc, argv, &job, 0, &c, err);
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
           printable(json_text(device, "kind")), number(w, "leased"), number(w, "done"),
           number(w, "failed"));
    for (size_t i = 0; i < json_array_size(models); i++)
        printf("%s%s", i ? ", " : "", printable(json_string_value(json_array_get(models, i))));
    printf("\n");
}

static void model_row(const json_t *m)
{
    const json_t *recipes = json_object_get(m, "recipes");
    printf("%-20s %-8s %4" PRId64 "x%-5" PRId64 " %-12.12s ", printable(json_text(m, "name")),
           printable(json_text(m, "family")), number(m, "width"), number(m, "height"),
           printable(json_text(m, "hash")));
    for (size_t i = 0; i < json_array_size(recipes); i++)
        printf("%s%s", i ? ", " : "", printable(json_text(json_array_get(recipes, i), "name")));
    printf("\n");
}

static void counter_row(const json_t *c)
{
    printf("%-20s %" PRId64 "\n", printable(json_text(c, "name")), number(c, "value"));
}

static int list(int argc, char **argv, const char *what, enum steer_question question,
                const char *field, const char *head, void (*row)(const json_t *),
                struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    json_t *reply = NULL;
    int code = begin(&cli, no_options, NULL, what, argc, argv, NULL, 0, &c, err);
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

int command_models(int argc, char **argv, struct steer_error *err)
{
    return list(
        argc, argv, "models", STEER_ASK_MODELS, "models",
        "MODEL                FAMILY   SIZE       HASH         RECIPES (the first is the default)",
        model_row, err);
}

int command_status(int argc, char **argv, struct steer_error *err)
{
    return list(argc, argv, "status", STEER_ASK_STATUS, "counters", NULL, counter_row, err);
}

static int order(int argc, char **argv, const char *what, enum steer_question question, int word,
                 struct steer_error *err)
{
    struct cli cli;
    struct steer_client *c = NULL;
    const char *argument = NULL;
    json_t *reply = NULL;
    int code = begin(&cli, no_options, NULL, what, argc, argv, word ? &argument : NULL, 0, &c, err);
    if (!code) code = ask(c, &cli, question, argument, &reply, err);
    if (!code && !cli.quiet && !cli.json) printf("ok\n");
    json_decref(reply);
    steer_close(c);
    return code == 1 ? 0 : code;
}

int command_drain(int argc, char **argv, struct steer_error *err)
{
    return order(argc, argv, "drain WORKER", STEER_DO_DRAIN, 1, err);
}

int command_pause(int argc, char **argv, struct steer_error *err)
{
    return order(argc, argv, "pause", STEER_DO_PAUSE, 0, err);
}

int command_resume(int argc, char **argv, struct steer_error *err)
{
    return order(argc, argv, "resume", STEER_DO_RESUME, 0, err);
}
