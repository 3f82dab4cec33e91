// SPDX-License-Identifier: Apache-2.0
/* Images as they arrive: written, acknowledged, counted; progress meanwhile. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "limits.h"
#include "output.h"

enum {
    CREDIT = 16,
    LINE_FIRST_MS = 2000, /* progress off a terminal: a line now and then */
    LINE_MS = 5000,
    IDLE_MS = 10000, /* nothing more is rendered and nothing came: the rest is not ours */
};

struct state {
    const struct transfer *t;
    char model[STEER_NAME_BYTES_MAX + 1], format[16];
    uint64_t seed;
    uint32_t images, first, last, written;
    uint8_t *have; /* a bit an image, from first */
    int bar, warned;
    int64_t line_ms, image_ms; /* when the last line was printed, the last image came */
    int over;                  /* PROGRESS: nothing is queued or rendered */
    long long told;            /* what the last line said */
};

static int is_chatty(const struct state *s)
{
    return !s->t->cli->quiet && !s->t->cli->json;
}

static int is_part(const struct state *s)
{
    return s->t->first <= s->t->last;
}

static void bar_clear(const struct state *s)
{
    if (s->bar) fputs("\r\033[K", stderr);
}

static void progress(struct state *s, const json_t *counts)
{
    int done = (int)(json_number(counts, "acked") + json_number(counts, "spooled"));
    int running = (int)json_number(counts, "leased"), queued = (int)json_number(counts, "queued");
    int64_t now = now_ms();
    double seconds = 1e-3 * (double)(now - s->t->cli->begun_ms);
    s->over = !running && !queued;
    if (s->bar) {
        int width = 30, filled = s->images ? (int)((int64_t)width * done / s->images) : 0;
        fprintf(stderr, "\r\033[K[%.*s%.*s] %d/%u done, %d running, %.1f s", filled,
                "##############################", width - filled, "..............................",
                done, s->images, running, seconds);
        fflush(stderr);
    } else if (is_chatty(s)) {
        long long tells = ((long long)done * STEER_IMAGES_MAX + running) * STEER_IMAGES_MAX;
        if (now < s->line_ms || s->told == tells + queued) return;
        s->line_ms = now + LINE_MS;
        s->told = tells + queued;
        fprintf(stderr, "job %s: %d/%u done, %d running, %d queued, %.1f s\n", s->t->job, done,
                s->images, running, queued, seconds);
    }
}

/* A job may wait for ever for a model that no worker here has. */
static void warn_no_worker(struct state *s)
{
    struct steer_error err = {0};
    json_t *reply = NULL;
    int there = 0;
    if (s->warned || s->t->cli->quiet ||
        cli_ask(s->t->client, s->t->cli, STEER_ASK_WORKERS, NULL, 1000, &reply, &err))
        return;
    const json_t *workers = json_object_get(reply, "workers");
    for (size_t i = 0; i < json_array_size(workers); i++) {
        const json_t *w = json_array_get(workers, i), *models = json_object_get(w, "models");
        for (size_t k = 0; k < json_array_size(models); k++)
            if (strcmp(json_string_value(json_array_get(models, k)), s->model) == 0)
                there |= strcmp(json_text(w, "state"), "ready") == 0;
    }
    json_decref(reply);
    if (there) return;
    bar_clear(s);
    fprintf(stderr, "steer: no worker with model \"%s\" is connected; the job waits for one\n",
            printable(s->model));
    s->warned = 1;
}

static void times_print(const json_t *timing, int64_t transfer_us)
{
    static const char *const stages[] = {"queue",   "dispatch", "load",   "tokenize", "text",
                                         "denoise", "decode",   "encode", "other"};
    printf("   ");
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_us", stages[i]);
        double ms = 1e-3 * (double)json_number(timing, key);
        if (ms >= 0.05) printf(" %s %.1f", stages[i], ms);
    }
    printf(" transfer %.1f total %.1f ms\n", 1e-3 * (double)transfer_us,
           1e-3 * (double)(json_number(timing, "total_us") + transfer_us));
}

static int path_of(const struct state *s, char *to, size_t size, uint32_t index,
                   struct steer_error *err)
{
    const char *output = s->t->output;
    if (!output) output = strcmp(s->format, "png") == 0 ? "{job}.png" : "{job}.webp";
    if (!output_name(to, size, output, s->images, index, s->seed + index, s->t->job, s->model))
        return 0;
    return steer_fail(err, STEER_BAD_VALUE, "--output %.60s...: the name is too long", output);
}

static int image_save(struct state *s, const struct steer_event *e, struct steer_error *err)
{
    char path[1200];
    int64_t begin = now_us();
    const struct cli *cli = s->t->cli;
    struct steer_error why = {0};
    int code = path_of(s, path, sizeof path, e->index, err);
    if (code) return code;
    if ((code = output_write(path, e->image, e->image_bytes, s->t->overwrite, &why)))
        return steer_fail(err, code, "%s (`steer fetch %s` gets what is missing)", why.text,
                          s->t->job);
    (void)steer_ack(s->t->client, e->job, e->index);
    s->image_ms = now_ms();
    s->have[(e->index - s->first) / 8] |= (uint8_t)(1 << ((e->index - s->first) % 8));
    s->written++;
    int64_t transfer_us = now_us() - begin;
    json_t *result = json_loads(e->json, 0, NULL);
    bar_clear(s);
    if (*json_text(result, "warning") && !cli->quiet)
        fprintf(stderr, "steer: image %u: %s\n", e->index, printable(json_text(result, "warning")));
    if (cli->json) {
        json_object_set_new(result, "file", json_string(path));
        json_object_set_new(result, "transfer_us", json_integer(transfer_us));
        line_json(result);
    } else {
        printf("%s  seed %" PRIu64 "\n", path, e->seed);
        if (!cli->quiet) times_print(json_object_get(result, "timing"), transfer_us);
        fflush(stdout);
    }
    json_decref(result);
    return 0;
}

/* The job's status, a new reference. */
static int status_ask(const struct state *s, json_t **ret, struct steer_error *err)
{
    json_t *reply = NULL;
    int code = cli_ask(s->t->client, s->t->cli, STEER_ASK_JOB, s->t->job, cli_left_ms(s->t->cli),
                       &reply, err);
    if (code) return code;
    *ret = json_incref(json_array_get(json_object_get(reply, "jobs"), 0));
    json_decref(reply);
    return *ret ? 0 : steer_fail(err, STEER_BAD_FRAME, "the broker's answer names no job");
}

static uint64_t seed_of(const json_t *spec)
{
    const json_t *seed = json_object_get(spec, "seed"); /* digits in a text beyond 2^63 */
    return json_is_string(seed) ? strtoull(json_string_value(seed), NULL, 10)
                                : (uint64_t)json_integer_value(seed);
}

/* What the job is, and which of its images are wanted. */
static int learn(struct state *s, struct steer_error *err)
{
    const struct transfer *t = s->t;
    json_t *status = NULL;
    int png, code = status_ask(s, &status, err);
    if (code) return code;
    const json_t *spec = json_object_get(status, "spec");
    const json_t *counts = json_object_get(status, "counts");
    s->images = (uint32_t)json_number(spec, "images");
    s->seed = seed_of(spec);
    snprintf(s->model, sizeof s->model, "%s", json_text(spec, "model"));
    snprintf(s->format, sizeof s->format, "%s",
             json_text(json_object_get(spec, "output"), "format"));
    int waits = json_number(counts, "queued") > 0 && !json_number(counts, "leased");
    json_decref(status);
    int all = t->first > t->last;
    s->first = all ? 0 : t->first;
    s->last = all || t->last >= s->images ? s->images - 1 : t->last;
    if (!s->images || s->first >= s->images)
        return steer_fail(err, STEER_BAD_VALUE, "--index %u: job %s has images 0 to %u", s->first,
                          t->job, s->images - 1);
    if (t->output && (code = output_format(&png, t->output, err))) return code;
    if (t->output && png != !strcmp(s->format, "png"))
        return steer_fail(err, STEER_BAD_VALUE,
                          "--output %s: job %s makes %s files; expected a name that ends in .%s",
                          t->output, t->job, png ? "WebP" : "PNG", png ? "webp" : "png");
    if (!(s->have = calloc((s->last - s->first) / 8 + 1, 1)))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if (waits) warn_no_worker(s);
    return 0;
}

/* Wanted images that did not come, and whose files are not there from an earlier fetch. */
static uint32_t missing_count(const struct state *s)
{
    struct steer_error err = {0};
    char path[1200];
    uint32_t missing = 0;
    for (uint32_t i = s->first; i <= s->last; i++)
        if (!(s->have[(i - s->first) / 8] >> ((i - s->first) % 8) & 1))
            missing += path_of(s, path, sizeof path, i, &err) || access(path, F_OK) != 0;
    return missing;
}

/* What the job's status says once nothing more will come. */
static int end(const struct state *s, const json_t *status, struct steer_error *err)
{
    const json_t *failures = json_object_get(status, "failures");
    size_t count = json_array_size(failures);
    uint32_t wanted = s->last - s->first + 1, failed = 0;
    int64_t all = json_number(json_object_get(status, "counts"), "failed");
    bar_clear(s);
    for (size_t i = 0; i < count; i++) {
        const json_t *f = json_array_get(failures, i);
        int64_t index = json_number(f, "index");
        if (index < s->first || index > s->last) continue;
        failed++;
        fprintf(stderr, "steer: image %" PRId64 " failed: %s: %s\n", index,
                printable(json_text(f, "code")), printable(json_text(f, "text")));
    }
    if (all > (int64_t)count && !s->t->cli->quiet)
        fprintf(stderr, "steer: %" PRId64 " images failed; the first %zu are told\n", all, count);
    if (s->written == wanted) return 0;
    /* Before any look at files: what lies there may be of another job. */
    if (failed)
        return steer_fail(err, STEER_RENDER_FAILED, "job %s: %u of %u images failed", s->t->job,
                          failed, wanted);
    /* Images of other ranges may have failed; these have not. */
    int elsewhere = is_part(s) && all <= (int64_t)count;
    int code = job_end(status, err);
    if (code && !(code == STEER_RENDER_FAILED && elsewhere)) return code;
    uint32_t missing = missing_count(s);
    if (missing)
        return steer_fail(err, STEER_NOT_FOUND,
                          "%u of %u images of job %s were fetched earlier, and the farm keeps no "
                          "image that was; their files are not here",
                          missing, wanted, s->t->job);
    if (!s->t->cli->quiet)
        fprintf(stderr, "steer: %u of %u images were fetched earlier; their files are there\n",
                wanted - s->written, wanted);
    return 0;
}

/* 1: it is over, and *code says how. */
static int event(struct state *s, const struct steer_event *e, int *code, struct steer_error *err)
{
    json_t *json;
    switch (e->kind) {
    case STEER_EVENT_RESULT:
        if (e->index < s->first || e->index > s->last) return 0;
        *code = image_save(s, e, err);
        return *code != 0;
    case STEER_EVENT_PROGRESS:
        json = json_loads(e->json, 0, NULL);
        progress(s, json_object_get(json, "counts"));
        json_decref(json);
        return 0;
    case STEER_EVENT_DONE:
        json = json_loads(e->json, 0, NULL);
        *code = end(s, json_object_get(json, "status"), err);
        json_decref(json);
        return 1;
    case STEER_EVENT_REFUSED: *code = fault_error(err, &e->fault); return 1;
    default: return 0;
    }
}

static int run(struct state *s, struct steer_error *err)
{
    const struct transfer *t = s->t;
    struct steer_event e;
    struct steer_fault fault;
    int code = 0;
    if (steer_fetch_range(t->client, t->job, CREDIT, s->first, s->last) ||
        steer_watch(t->client, t->job))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    s->line_ms = now_ms() + LINE_FIRST_MS;
    s->image_ms = now_ms();
    for (;;) {
        if (interrupted)
            return steer_fail(err, STEER_INTERRUPTED, "interrupted; `steer fetch %s` goes on",
                              t->job);
        if (t->cli->timeout_ms >= 0 && cli_left_ms(t->cli) == 0)
            return steer_fail(err, STEER_TIMEOUT,
                              "job %s has not ended in time; `steer fetch %s` waits on", t->job,
                              t->job);
        int got = steer_next(t->client, &e, 200, &fault);
        if (got < 0) return fault_error(err, &fault);
        if (got && (!e.job || strcmp(e.job, t->job) == 0) && event(s, &e, &code, err)) return code;
        /* Of a whole job DONE tells the end, of a part so may its counts, when nothing more comes.
         * The answer also tells that the broker has read the acknowledgements before it. */
        int complete = s->written == s->last - s->first + 1;
        if (is_part(s) && (complete || (s->over && now_ms() > s->image_ms + IDLE_MS))) {
            json_t *status = NULL;
            code = status_ask(s, &status, err);
            if (!code) code = end(s, status, err);
            json_decref(status);
            return code;
        }
    }
}

int transfer_run(const struct transfer *t, struct steer_error *err)
{
    struct state s = {.t = t, .told = -1};
    int code = learn(&s, err);
    s.bar = is_chatty(&s) && isatty(STDERR_FILENO);
    if (!code) code = run(&s, err);
    bar_clear(&s);
    free(s.have);
    return code;
}
