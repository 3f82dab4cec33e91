// SPDX-License-Identifier: Apache-2.0
/* Answers to questions: a job, the jobs, the workers, the models, the broker itself. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "limits.h"
#include "log.h"
#include "route_internal.h"
#include "text.h"

enum {
    LIST_MAX = 1000,
    LIST_BYTES_MAX = STEER_BODY_BYTES_MAX / 2, /* of one REPLY */
    QUESTIONS_MAX = 4096,
};

static const char *const state_names[] = {[STORE_OPEN] = "queued",
                                          [STORE_DONE] = "done",
                                          [STORE_FAILED] = "failed",
                                          [STORE_CANCELLED] = "cancelled",
                                          [STORE_EXPIRED] = "expired"};

enum store_state job_end_state(const struct job *j)
{
    const uint32_t *n = j->states.counts;
    return n[IMAGE_CANCELLED] ? STORE_CANCELLED
           : n[IMAGE_FAILED]  ? STORE_FAILED
           : n[IMAGE_EXPIRED] ? STORE_EXPIRED
                              : STORE_DONE;
}

static void counts_fill(Steerfarm__Counts *c, const uint32_t *n)
{
    *c = (Steerfarm__Counts)STEERFARM__COUNTS__INIT;
    c->has_queued = c->has_leased = c->has_spooled = c->has_acked = c->has_failed =
        c->has_cancelled = c->has_expired = 1;
    c->queued = n[IMAGE_QUEUED];
    c->leased = n[IMAGE_LEASED];
    c->spooled = n[IMAGE_SPOOLED];
    c->acked = n[IMAGE_ACKED];
    c->failed = n[IMAGE_FAILED];
    c->cancelled = n[IMAGE_CANCELLED];
    c->expired = n[IMAGE_EXPIRED];
}

static void failure_add(struct status *s, uint32_t index, int code, const char *text,
                        uint32_t attempts)
{
    if (s->msg.n_failures == STATUS_FAILURES_MAX) return;
    Steerfarm__Failure *f = s->failures + s->msg.n_failures;
    *f = (Steerfarm__Failure)STEERFARM__FAILURE__INIT;
    f->index = index;
    f->code = (char *)(uintptr_t)steer_code_name(code);
    f->text = (char *)(uintptr_t)text;
    f->has_attempts = 1;
    f->attempts = attempts;
    s->failure_list[s->msg.n_failures++] = f;
}

static int by_index(const void *a, const void *b)
{
    const Steerfarm__Failure *const *x = a, *const *y = b;
    return ((*x)->index > (*y)->index) - ((*x)->index < (*y)->index);
}

static void status_begin(struct status *s, uint64_t id)
{
    memset(s, 0, sizeof *s);
    s->msg = (Steerfarm__JobStatus)STEERFARM__JOB_STATUS__INIT;
    s->counts = (Steerfarm__Counts)STEERFARM__COUNTS__INIT;
    job_id_write(s->id, id);
    s->msg.job = s->id;
    s->msg.counts = &s->counts;
    s->msg.failures = s->failure_list;
}

void status_of_job(struct status *s, const struct job *j)
{
    static char queued[] = "queued", running[] = "running";
    status_begin(s, j->id);
    counts_fill(&s->counts, j->states.counts);
    s->msg.state = job_over(j) ? (char *)(uintptr_t)state_names[job_end_state(j)]
                   : j->states.counts[IMAGE_QUEUED] == j->states.images ? queued
                                                                        : running;
    s->msg.spec = s->spec = job_spec(j);
    s->msg.has_accepted_ms = 1;
    s->msg.accepted_ms = j->accepted_ms;
    s->msg.key = (char *)(uintptr_t)j->key;
    for (uint32_t i = 0, left = j->reasons; i < j->troubles.size && left; i++)
        for (const struct trouble *t = j->troubles.buckets[i]; t; t = t->next) {
            if (states_get(&j->states, t->index) != IMAGE_FAILED) continue;
            failure_add(s, t->index, t->code, t->text, t->attempts);
            left--;
        }
    qsort(s->failure_list, s->msg.n_failures, sizeof *s->failure_list, by_index);
}

void status_of_stored(struct status *s, const struct route *r, const struct store_found *f)
{
    const struct job *open = queue_find(r->queue, f->job.id);
    if (open && open->committed) {
        status_of_job(s, open);
        return;
    }
    status_begin(s, f->job.id);
    s->msg.state = (char *)(uintptr_t)state_names[f->job.state];
    s->msg.spec = s->spec = steerfarm__job__unpack(NULL, f->job.spec_bytes, f->job.spec);
    s->msg.has_accepted_ms = 1;
    s->msg.accepted_ms = f->job.accepted_ms;
    s->msg.has_ended_ms = f->job.ended_ms > 0;
    s->msg.ended_ms = f->job.ended_ms;
    s->msg.key = (char *)(uintptr_t)f->job.key;
    Steerfarm__Counts *c =
        f->job.summary ? steerfarm__counts__unpack(NULL, f->job.summary_bytes, f->job.summary)
                       : NULL;
    if (c) {
        s->counts = *c;
        steerfarm__counts__free_unpacked(c, NULL);
    }
    for (size_t i = 0; i < f->failure_count; i++)
        if (f->failures[i].code)
            failure_add(s, f->failures[i].index, f->failures[i].code, f->failures[i].text,
                        f->failures[i].attempts);
}

void status_clear(struct status *s)
{
    if (s->spec) steerfarm__job__free_unpacked(s->spec, NULL);
    s->spec = s->msg.spec = NULL;
}

void reply_status(struct route *r, const struct peer *to, int has_tag, uint64_t tag,
                  struct status *s)
{
    Steerfarm__Reply m = STEERFARM__REPLY__INIT;
    Steerfarm__JobStatus *list[1] = {&s->msg};
    m.has_tag = has_tag;
    m.tag = tag;
    m.jobs = list;
    m.n_jobs = 1;
    (void)send_to(r, to, STEERFARM__MESSAGE_TYPE__REPLY, &m.base);
}

/* ---- questions ---- */

int questions_full(const struct route *r)
{
    return r->questions >= QUESTIONS_MAX;
}

void ask_store(struct route *r, enum question_kind kind, int request, const struct peer *from,
               const char *job, const char *key, int has_tag, uint64_t tag)
{
    struct store_query what = {.job = job ? job_id_read(job) : 0, .limit = 1, .details = true};
    struct question *q = NULL;
    if (job && !what.job) {
        refuse(r, from, STEER_UNKNOWN_JOB, "no such job", request, has_tag, tag, NULL, job);
        return;
    }
    if (!job) {
        what.tenant = "default";
        what.key = key;
    }
    if (!questions_full(r) && (q = calloc(1, sizeof *q))) {
        q->kind = kind;
        q->request = request;
        q->to = *from;
        q->has_tag = has_tag;
        q->tag = tag;
        q->job = what.job;
        text_copy(q->key, sizeof q->key, key ? key : "");
        if (!store_query(r->store, &what, q)) {
            r->waiting++;
            r->questions++;
            return;
        }
        free(q);
    }
    refuse(r, from, STEER_BUSY, "too many questions at once", request, has_tag, tag, key, job);
}

static void query_job(struct route *r, const struct peer *from, const Steerfarm__Query *q)
{
    struct job *j = q->job ? queue_find(r->queue, job_id_read(q->job)) : NULL;
    struct status s;
    if (!j || !j->committed) {
        ask_store(r, ASK_STATUS, STEERFARM__MESSAGE_TYPE__QUERY, from, q->job ? q->job : "", NULL,
                  q->has_tag, q->tag);
        return;
    }
    status_of_job(&s, j);
    reply_status(r, from, q->has_tag, q->tag, &s);
    status_clear(&s);
}

static void query_jobs(struct route *r, const struct peer *from, const Steerfarm__Query *q)
{
    struct store_query what = {.tenant = "default", .limit = q->has_limit ? q->limit : 20};
    if (what.limit > LIST_MAX) what.limit = LIST_MAX;
    if (!what.limit) what.limit = 1;
    uint32_t limit = what.limit;
    for (int i = 0; q->state && *q->state && i <= STORE_EXPIRED; i++)
        if (strcmp(q->state, state_names[i]) == 0 ||
            (i == STORE_OPEN && !strcmp(q->state, "running")))
            what.states = 1u << i;
    if (q->state && *q->state && !what.states) {
        refuse(r, from, STEER_BAD_VALUE,
               "unknown state: expected queued, running, done, failed, cancelled or expired",
               STEERFARM__MESSAGE_TYPE__QUERY, q->has_tag, q->tag, NULL, NULL);
        return;
    }
    /* The store knows open jobs; which of them wait and which run is in memory. */
    if (what.states == 1u << STORE_OPEN) what.limit = LIST_MAX;
    if (q->label) what.label = (struct store_label){q->label->key, q->label->value};
    if (q->before && !(what.before = job_id_read(q->before))) {
        refuse(r, from, STEER_BAD_VALUE, "a page begins before a job's id",
               STEERFARM__MESSAGE_TYPE__QUERY, q->has_tag, q->tag, NULL, q->before);
        return;
    }
    struct question *ask = questions_full(r) ? NULL : calloc(1, sizeof *ask);
    if (!ask) {
        refuse(r, from, STEER_BUSY, "too many questions at once", STEERFARM__MESSAGE_TYPE__QUERY,
               q->has_tag, q->tag, NULL, NULL);
        return;
    }
    ask->kind = ASK_LIST;
    ask->request = STEERFARM__MESSAGE_TYPE__QUERY;
    ask->limit = limit;
    text_copy(ask->state, sizeof ask->state, q->state ? q->state : "");
    ask->to = *from;
    ask->has_tag = q->has_tag;
    ask->tag = q->tag;
    if (!store_query(r->store, &what, ask)) {
        r->waiting++;
        r->questions++;
        return;
    }
    free(ask);
    refuse(r, from, STEER_BUSY, "the broker is out of memory", STEERFARM__MESSAGE_TYPE__QUERY,
           q->has_tag, q->tag, NULL, NULL);
}

static void query_workers(struct route *r, const struct peer *from, const Steerfarm__Query *q)
{
    static const char *const names[] = {"ready", "draining", "quarantined"};
    Steerfarm__Reply m = STEERFARM__REPLY__INIT;
    Steerfarm__WorkerStatus list[LIST_MAX / 4], *pointers[LIST_MAX / 4];
    Steerfarm__Device devices[LIST_MAX / 4];
    char *models[LIST_MAX / 4][16];
    m.has_tag = q->has_tag;
    m.tag = q->tag;
    m.workers = pointers;
    for (struct worker *w = sched_first(r->sched); w && m.n_workers < LIST_MAX / 4; w = w->next) {
        size_t i = m.n_workers++;
        list[i] = (Steerfarm__WorkerStatus)STEERFARM__WORKER_STATUS__INIT;
        devices[i] = (Steerfarm__Device)STEERFARM__DEVICE__INIT;
        pointers[i] = list + i;
        list[i].worker = w->id;
        list[i].state = (char *)(uintptr_t)names[w->state];
        list[i].device = devices + i;
        devices[i].kind = w->device_kind;
        devices[i].name = w->device_name;
        devices[i].numerics = w->numerics;
        devices[i].has_memory_bytes = 1;
        devices[i].memory_bytes = w->device_memory;
        list[i].models = models[i];
        for (size_t k = 0; k < w->models_count && k < 16; k++)
            models[i][list[i].n_models++] = w->models[k].name;
        list[i].has_leased = list[i].has_done = list[i].has_failed = 1;
        list[i].leased = w->leased;
        list[i].done = w->done;
        list[i].failed = w->failed;
    }
    (void)send_to(r, from, STEERFARM__MESSAGE_TYPE__REPLY, &m.base);
}

static void query_status(struct route *r, const struct peer *from, const Steerfarm__Query *q)
{
    const uint64_t *images = queue_images(r->queue);
    uint64_t workers = 0;
    struct store_space space;
    struct store_figures figures;
    for (struct worker *w = sched_first(r->sched); w; w = w->next)
        workers++;
    store_space(r->store, &space);
    store_figures(r->store, &figures);
    const struct {
        const char *name;
        uint64_t value;
    } all[] = {{"epoch", r->epoch},
               {"paused", (uint64_t)r->paused},
               {"jobs_open", queue_jobs(r->queue)},
               {"images_queued", images[IMAGE_QUEUED]},
               {"images_leased", images[IMAGE_LEASED]},
               {"images_spooled", images[IMAGE_SPOOLED]},
               {"workers", workers},
               {"models", catalog_count(r->catalog)},
               {"clients", r->clients_count},
               {"jobs_accepted", r->accepted},
               {"results_kept", r->results},
               {"results_duplicate", r->duplicates},
               {"images_failed", r->failures},
               {"spool_bytes", space.spool_used},
               {"spool_bytes_max", space.spool_max},
               {"disk_free_bytes", space.disk_free},
               {"disk_full", space.full},
               {"commits", figures.commits},
               {"commit_us_max", figures.commit_us_max}};
    Steerfarm__Counter counters[sizeof all / sizeof *all], *list[sizeof all / sizeof *all];
    Steerfarm__Reply m = STEERFARM__REPLY__INIT;
    m.has_tag = q->has_tag;
    m.tag = q->tag;
    m.counters = list;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        counters[i] = (Steerfarm__Counter)STEERFARM__COUNTER__INIT;
        counters[i].name = (char *)(uintptr_t)all[i].name;
        counters[i].value = all[i].value;
        list[m.n_counters++] = counters + i;
    }
    (void)send_to(r, from, STEERFARM__MESSAGE_TYPE__REPLY, &m.base);
}

void on_query(struct route *r, const struct peer *from, const Steerfarm__Query *q)
{
    switch (q->kind) {
    case STEERFARM__QUERY_KIND__QUERY_JOB: query_job(r, from, q); break;
    case STEERFARM__QUERY_KIND__QUERY_JOBS: query_jobs(r, from, q); break;
    case STEERFARM__QUERY_KIND__QUERY_WORKERS: query_workers(r, from, q); break;
    case STEERFARM__QUERY_KIND__QUERY_MODELS: {
        Steerfarm__Reply m = STEERFARM__REPLY__INIT;
        m.has_tag = q->has_tag;
        m.tag = q->tag;
        m.models = catalog_all(r->catalog);
        m.n_models = catalog_count(r->catalog);
        (void)send_to(r, from, STEERFARM__MESSAGE_TYPE__REPLY, &m.base);
        break;
    }
    case STEERFARM__QUERY_KIND__QUERY_STATUS: query_status(r, from, q); break;
    default:
        refuse(r, from, STEER_BAD_VALUE, "an unknown kind of QUERY", STEERFARM__MESSAGE_TYPE__QUERY,
               q->has_tag, q->tag, NULL, NULL);
    }
}

/* ---- the store's answers ---- */

static void answer_list(struct route *r, const struct question *q, const struct store_completion *c)
{
    struct status *all = calloc(c->found_count + 1, sizeof *all);
    Steerfarm__JobStatus **list = calloc(c->found_count + 1, sizeof(Steerfarm__JobStatus *));
    Steerfarm__Reply m = STEERFARM__REPLY__INIT;
    m.has_tag = q->has_tag;
    m.tag = q->tag;
    m.has_more = 1;
    m.more = c->more;
    m.jobs = list;
    char next[QUEUE_ID_BYTES];
    size_t bytes = 0;
    for (size_t i = 0; all && list && i < c->found_count; i++) {
        struct status *s = all + m.n_jobs;
        if (m.n_jobs == q->limit || bytes > LIST_BYTES_MAX) {
            m.more = 1;
            break;
        }
        status_of_stored(s, r, c->found + i);
        job_id_write(next, c->found[i].job.id); /* so far this page has looked */
        m.next = next;
        if (*q->state && strcmp(q->state, s->msg.state) != 0) {
            status_clear(s);
            continue;
        }
        bytes += steerfarm__job_status__get_packed_size(&s->msg);
        list[m.n_jobs++] = &s->msg;
    }
    if (!m.more) m.next = NULL;
    if (list) (void)send_to(r, &q->to, STEERFARM__MESSAGE_TYPE__REPLY, &m.base);
    for (size_t i = 0; i < m.n_jobs; i++)
        status_clear(all + i);
    free(all);
    free(list);
}

static void answer_done(struct route *r, const struct question *q, struct status *s)
{
    Steerfarm__Done m = STEERFARM__DONE__INIT;
    m.status = &s->msg;
    (void)send_to(r, &q->to, STEERFARM__MESSAGE_TYPE__DONE, &m.base);
}

static void answer_retry(struct route *r, const struct question *q,
                         const struct store_completion *c)
{
    char id[QUEUE_ID_BYTES];
    int code = job_reopen(r, c->found);
    if (code) {
        job_id_write(id, q->job);
        refuse(r, &q->to, code,
               code == STEER_BAD_VALUE ? "no image of this job has failed" : "try again",
               q->request, q->has_tag, q->tag, NULL, id);
        return;
    }
    struct turn *t = turn_shrink(r);
    struct effect *e = t ? effect_add(t, EFFECT_STATUS, q->job) : NULL;
    if (!e) return;
    e->to = q->to;
    e->has_tag = q->has_tag;
    e->tag = q->tag;
}

void answer_query(struct route *r, const struct question *q, const struct store_completion *c)
{
    char id[QUEUE_ID_BYTES];
    job_id_write(id, q->job);
    if (c->code) {
        refuse(r, &q->to, c->code, "the store could not answer", q->request, q->has_tag, q->tag,
               *q->key ? q->key : NULL, q->job ? id : NULL);
        return;
    }
    if (q->kind == ASK_LIST || q->kind == ASK_CANCEL) {
        if (q->kind == ASK_LIST)
            answer_list(r, q, c);
        else
            answer_cancel(r, q, c);
        return;
    }
    if (!c->found_count) {
        refuse(r, &q->to, STEER_UNKNOWN_JOB, "no such job", q->request, q->has_tag, q->tag, NULL,
               id);
        return;
    }
    if (q->kind == ASK_RETRY) {
        answer_retry(r, q, c);
        return;
    }
    struct status s;
    status_of_stored(&s, r, c->found);
    if (q->kind == ASK_DONE)
        answer_done(r, q, &s);
    else
        reply_status(r, &q->to, q->has_tag, q->tag, &s);
    status_clear(&s);
}
