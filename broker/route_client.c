// SPDX-License-Identifier: Apache-2.0
/* What a client says: HELLO, SUBMIT, CANCEL, WATCH, FETCH, RESULT_ACK, QUERY, ADMIN, PING. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "../proto/job.h"
#include "limits.h"
#include "log.h"
#include "route_internal.h"
#include "text.h"

enum {
    JOBS_MAX = 4000000,
    CLIENTS_MAX = 100000,
    TOMBSTONES_MAX = 1000000,
    WATCHERS_MAX = 1024, /* of one job */
};
#define QUEUE_BYTES_MAX  (4ull << 30)   /* of jobs in memory */
#define FLIGHT_BYTES_MAX (128ull << 20) /* of jobs that are not stored yet */

/* ---- tombstones ---- */

static struct tombstone **tombstone_bucket(struct route *r, const char *key)
{
    return r->tombstones + (XXH64(key, strlen(key), r->salt) & (TOMBSTONE_BUCKETS - 1));
}

static struct tombstone *tombstone_find(struct route *r, const char *key)
{
    struct tombstone *t = *tombstone_bucket(r, key);
    while (t && strcmp(t->key, key) != 0)
        t = t->next;
    return t;
}

static void tombstone_drop(struct route *r, const char *key)
{
    for (struct tombstone **at = tombstone_bucket(r, key); *at; at = &(*at)->next) {
        struct tombstone *t = *at;
        if (strcmp(t->key, key) != 0) continue;
        *at = t->next;
        free(t);
        r->tombstones_count--;
        return;
    }
}

void tombstones_sweep(struct route *r, uint64_t before_ms)
{
    for (int i = 0; i < TOMBSTONE_BUCKETS; i++)
        for (struct tombstone **at = r->tombstones + i; *at;) {
            struct tombstone *t = *at;
            if (t->made_ms >= before_ms) {
                at = &t->next;
                continue;
            }
            *at = t->next;
            free(t);
            r->tombstones_count--;
        }
}

void tombstone_add(struct route *r, const char *key, uint64_t made_ms)
{
    size_t size = strlen(key) + 1;
    if (tombstone_find(r, key) || r->tombstones_count >= TOMBSTONES_MAX) return;
    struct tombstone *t = malloc(sizeof *t + size), **at = tombstone_bucket(r, key);
    if (!t) return;
    memcpy(t->key, key, size);
    t->made_ms = made_ms;
    t->next = *at;
    *at = t;
    r->tombstones_count++;
}

/* ---- HELLO ---- */

static struct client **client_bucket(struct route *r, const struct peer *p)
{
    return r->clients + (XXH64(p->identity, p->size, r->salt) & (CLIENT_BUCKETS - 1));
}

static struct client *client_find(struct route *r, const struct peer *p)
{
    struct client *c = *client_bucket(r, p);
    while (c && memcmp(&c->peer, p, sizeof *p) != 0)
        c = c->next;
    return c;
}

uint64_t client_heard_ms(struct route *r, const struct peer *p)
{
    const struct client *c = client_find(r, p);
    return c ? c->heard_ms : 0;
}

static void on_hello(struct route *r, const struct peer *from, const Steerfarm__Hello *h)
{
    char text[256];
    if (h->version_min > STEER_WIRE_VERSION || h->version_max < STEER_WIRE_VERSION_MIN) {
        snprintf(text, sizeof text, "protocol versions %u to %u: this broker speaks %d to %d",
                 h->version_min, h->version_max, STEER_WIRE_VERSION_MIN, STEER_WIRE_VERSION);
        refuse(r, from, STEER_BAD_VERSION, text, STEERFARM__MESSAGE_TYPE__HELLO, 0, 0, NULL, NULL);
        return;
    }
    if (h->n_requires) {
        snprintf(text, sizeof text, "required feature \"%.*s\" is unknown to this broker",
                 (int)text_cut(h->requires[0], 100), h->requires[0]);
        refuse(r, from, STEER_UNSUPPORTED, text, STEERFARM__MESSAGE_TYPE__HELLO, 0, 0, NULL, NULL);
        return;
    }
    if (h->role != STEERFARM__ROLE__CLIENT) {
        refuse(r, from, STEER_BAD_VALUE, "this port is for clients; workers have another",
               STEERFARM__MESSAGE_TYPE__HELLO, 0, 0, NULL, NULL);
        return;
    }
    struct client *c = client_find(r, from);
    if (!c) {
        if (r->clients_count >= CLIENTS_MAX || !(c = calloc(1, sizeof *c))) {
            refuse(r, from, STEER_BUSY, "too many clients", STEERFARM__MESSAGE_TYPE__HELLO, 0, 0,
                   NULL, NULL);
            return;
        }
        struct client **at = client_bucket(r, from);
        c->peer = *from;
        c->next = *at;
        *at = c;
        r->clients_count++;
    }
    c->heard_ms = r->now_ms;
    Steerfarm__Welcome m = STEERFARM__WELCOME__INIT;
    m.version = h->version_max < STEER_WIRE_VERSION ? h->version_max : STEER_WIRE_VERSION;
    m.epoch = r->epoch;
    m.has_heartbeat_ms = m.has_frame_bytes_max = 1;
    m.heartbeat_ms = r->options.heartbeat_ms;
    m.frame_bytes_max = STEER_IMAGE_BYTES_MAX;
    (void)send_to(r, from, STEERFARM__MESSAGE_TYPE__WELCOME, &m.base);
}

/* ---- SUBMIT ---- */

static void submit_refuse(struct route *r, const struct peer *from, const Steerfarm__Submit *m,
                          int code, const char *text)
{
    refuse(r, from, code, text, STEERFARM__MESSAGE_TYPE__SUBMIT, m->has_tag, m->tag, m->key, NULL);
}

static void accepted_later(struct route *r, struct turn *t, const struct peer *from,
                           const Steerfarm__Submit *m, uint64_t job, int again)
{
    struct effect *e = effect_new(EFFECT_ACCEPTED, job);
    if (!t || !e || (again && !(e->key = strdup(m->key)))) {
        free(e);
        submit_refuse(r, from, m, STEER_BUSY, "the broker is out of memory");
        return;
    }
    e->to = *from;
    e->has_tag = m->has_tag;
    e->tag = m->tag;
    e->again = again;
    effect_link(t, e);
}

/* The key is that of a job in the queue: the same job again, or a conflict. */
static void submit_again(struct route *r, const struct peer *from, const Steerfarm__Submit *m,
                         const struct job *j)
{
    uint8_t hash[QUEUE_HASH_BYTES];
    job_hash(hash, m->job);
    if (memcmp(hash, j->hash, sizeof hash) != 0) {
        submit_refuse(r, from, m, STEER_KEY_CONFLICT,
                      "this idempotency key belongs to another job");
        return;
    }
    /* After the first SUBMIT's own commit: batches complete in order. */
    accepted_later(r, turn_grow(r), from, m, j->id, 1);
}

/* What a job must pass before it is written; NULL and a refusal sent, or its model. */
static const Steerfarm__Model *submit_model(struct route *r, const struct peer *from,
                                            const Steerfarm__Submit *m)
{
    struct store_space space;
    struct steer_error err = {0};
    char text[1024], names[600];
    const Steerfarm__Model *model = NULL;
    if (job_check(m->job, &err)) {
        submit_refuse(r, from, m, err.code, err.text);
    } else if (queue_jobs(r->queue) >= JOBS_MAX || queue_bytes(r->queue) >= QUEUE_BYTES_MAX) {
        submit_refuse(r, from, m, STEER_BUSY, "the queue is full");
    } else if (r->flight_bytes >= FLIGHT_BYTES_MAX) {
        submit_refuse(r, from, m, STEER_BUSY, "jobs come faster than the disk can store them");
    } else if (store_space(r->store, &space), space.full) {
        submit_refuse(r, from, m, STEER_DISK_FULL, "the broker's disk is full");
    } else if (!(model = catalog_find(r->catalog, m->job->model))) {
        catalog_names(r->catalog, names, sizeof names);
        snprintf(text, sizeof text, "no worker has ever offered a model \"%s\"; known: %s",
                 m->job->model, names);
        submit_refuse(r, from, m, STEER_UNKNOWN_MODEL, text);
    }
    return model;
}

static uint64_t seed_draw(void)
{
    uint32_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) return 0;
    return seed;
}

static int submit_put(struct route *r, struct job *j, const Steerfarm__Job *spec)
{
    struct turn *t = turn_grow(r);
    struct store_label labels[STEER_LABELS_MAX];
    for (size_t i = 0; i < spec->n_labels; i++)
        labels[i] = (struct store_label){spec->labels[i]->key, spec->labels[i]->value};
    struct store_job put = {.id = j->id,
                            .tenant = "default",
                            .key = j->key,
                            .spec = j->spec,
                            .spec_bytes = j->spec_bytes,
                            .accepted_ms = j->accepted_ms,
                            .labels = labels,
                            .label_count = spec->n_labels};
    memcpy(put.hash, j->hash, sizeof put.hash);
    return t ? store_batch_job_put(t->batch, &put) : STEER_NO_MEMORY;
}

static void on_submit(struct route *r, const struct peer *from, const Steerfarm__Submit *m)
{
    struct steer_error err = {0};
    struct job_resolved resolved;
    if (!*m->key || strlen(m->key) > STEER_KEY_BYTES_MAX) {
        submit_refuse(r, from, m, STEER_BAD_VALUE, "the idempotency key needs 1 to 128 bytes");
        return;
    }
    if (tombstone_find(r, m->key)) {
        submit_refuse(r, from, m, STEER_CANCELLED,
                      "this key was cancelled before it was submitted");
        return;
    }
    struct job *j = queue_find_key(r->queue, m->key);
    if (j) {
        submit_again(r, from, m, j);
        return;
    }
    const Steerfarm__Model *model = submit_model(r, from, m);
    if (!model) return;
    if (job_resolve(&resolved, m->job, model, seed_draw(), &err)) {
        submit_refuse(r, from, m, err.code, err.text);
        return;
    }
    if (queue_lanes_full(r->queue, &resolved.job)) {
        submit_refuse(r, from, m, STEER_BUSY,
                      "too many different priorities, models and numerics classes are queued");
        return;
    }
    uint8_t *spec = NULL, hash[QUEUE_HASH_BYTES];
    size_t size = 0;
    struct store_space space;
    store_space(r->store, &space);
    if (queue_image_bytes(&resolved.job) > space.spool_max) {
        char text[160];
        snprintf(text, sizeof text,
                 "an image of %ux%u may need %" PRIu64
                 " bytes, but the broker's spool has %" PRIu64,
                 resolved.job.width, resolved.job.height, queue_image_bytes(&resolved.job),
                 space.spool_max);
        submit_refuse(r, from, m, STEER_BAD_SIZE, text);
        return;
    }
    job_hash(hash, m->job);
    int packed = !wire_pack(&resolved.job.base, &spec, &size);
    if (packed && size > STEER_SPEC_BYTES_MAX) {
        free(spec);
        submit_refuse(r, from, m, STEER_BAD_VALUE,
                      "the job has over 65536 bytes with all its fields, unknown ones included");
        return;
    }
    if (packed) j = queue_add(r->queue, r->job_last + 1, m->key, hash, spec, size, utc_now(r));
    free(spec);
    if (!j || submit_put(r, j, &resolved.job)) {
        if (j) queue_remove(r->queue, j);
        submit_refuse(r, from, m, STEER_BUSY, "the broker is out of memory");
        return;
    }
    r->job_last++;
    r->grow->bytes += size; /* submit_put has made it */
    r->flight_bytes += size;
    accepted_later(r, turn_grow(r), from, m, j->id, 0);
}

/* ---- CANCEL ---- */

static void status_later(struct route *r, const struct peer *from, int has_tag, uint64_t tag,
                         uint64_t job)
{
    struct turn *t = turn_shrink(r);
    struct effect *e = t ? effect_add(t, EFFECT_STATUS, job) : NULL;
    if (!e) return;
    e->to = *from;
    e->has_tag = has_tag;
    e->tag = tag;
}

static void job_cancel_told(struct route *r, struct job *j)
{
    char id[QUEUE_ID_BYTES];
    if (j->ending) return;
    job_id_write(id, j->id);
    log_event(LOG_INFO, "job.cancel", "job=%s", id);
    job_cancel(r, j, IMAGE_CANCELLED, 1);
}

static void cancel_refuse(struct route *r, const struct peer *to, int has_tag, uint64_t tag,
                          const char *key, int code, const char *text)
{
    refuse(r, to, code, text, STEERFARM__MESSAGE_TYPE__CANCEL, has_tag, tag, key, NULL);
}

/* A key that no open job has: the store tells whether an ended one has it. */
static void cancel_key(struct route *r, const struct peer *from, const char *key, int has_tag,
                       uint64_t tag)
{
    if (r->tombstones_count >= TOMBSTONES_MAX) {
        cancel_refuse(r, from, has_tag, tag, key, STEER_BUSY, "too many cancelled keys");
        return;
    }
    tombstone_add(r, key, utc_now(r)); /* at once: its SUBMIT may be right behind */
    ask_store(r, ASK_CANCEL, STEERFARM__MESSAGE_TYPE__CANCEL, from, NULL, key, has_tag, tag);
}

/* The job that was being stored when its CANCEL came is stored, or was refused: then it is its key
 * that was cancelled. */
void cancel_now(struct route *r, const struct effect *e)
{
    struct job *j = queue_find(r->queue, e->job);
    if (!j) {
        cancel_key(r, &e->to, e->key, e->has_tag, e->tag);
        return;
    }
    job_cancel_told(r, j);
    status_later(r, &e->to, e->has_tag, e->tag, e->job);
}

/* An effect that answers this CANCEL; NULL: refused. */
static struct effect *cancel_later(struct route *r, enum effect_kind kind, const struct peer *to,
                                   int has_tag, uint64_t tag, uint64_t job, const char *key)
{
    struct effect *e = effect_new(kind, job);
    struct turn *t = turn_grow(r);
    if (!e || !t || !(e->key = strdup(key))) {
        free(e);
        cancel_refuse(r, to, has_tag, tag, key, STEER_BUSY, "the broker is out of memory");
        return NULL;
    }
    e->to = *to;
    e->has_tag = has_tag;
    e->tag = tag;
    effect_link(t, e);
    return e;
}

/* The key is dead from now on, durably, or was not written. */
void tombstone_now(struct route *r, const struct effect *e, int code)
{
    if (!code) {
        Steerfarm__Reply m = STEERFARM__REPLY__INIT;
        m.has_tag = e->has_tag;
        m.tag = e->tag;
        (void)send_to(r, &e->to, STEERFARM__MESSAGE_TYPE__REPLY, &m.base);
        return;
    }
    tombstone_drop(r, e->key);
    cancel_refuse(r, &e->to, e->has_tag, e->tag, e->key, code, store_trouble(r->store));
}

/* A key that no open job has: a job that has ended answers, or the key is dead from now on. That is
 * new work to a full disk: there is no end of keys. */
void answer_cancel(struct route *r, const struct question *q, const struct store_completion *c)
{
    if (c->found_count) {
        struct status s;
        tombstone_drop(r, q->key);
        status_of_stored(&s, r, c->found);
        reply_status(r, &q->to, q->has_tag, q->tag, &s);
        status_clear(&s);
        return;
    }
    struct turn *t = turn_grow(r);
    struct store_tombstone stone = {"default", q->key, utc_now(r)};
    if (!t || store_batch_tombstone_put(t->batch, &stone)) {
        tombstone_drop(r, q->key);
        cancel_refuse(r, &q->to, q->has_tag, q->tag, q->key, STEER_BUSY,
                      "the broker is out of memory");
        return;
    }
    (void)cancel_later(r, EFFECT_TOMBSTONE, &q->to, q->has_tag, q->tag, 0, q->key);
}

static void on_cancel(struct route *r, const struct peer *from, const Steerfarm__Cancel *m)
{
    struct job *j = NULL;
    if (m->job)
        j = queue_find(r->queue, job_id_read(m->job));
    else if (m->key)
        j = queue_find_key(r->queue, m->key);
    if (j && !j->committed) { /* after its SUBMIT's own commit: batches complete in order */
        (void)cancel_later(r, EFFECT_CANCEL, from, m->has_tag, m->tag, j->id, j->key);
    } else if (j) {
        status_later(r, from, m->has_tag, m->tag, j->id);
        job_cancel_told(r, j);
    } else if (m->job) {
        ask_store(r, ASK_STATUS, STEERFARM__MESSAGE_TYPE__CANCEL, from, m->job, NULL, m->has_tag,
                  m->tag);
    } else if (!m->key || !*m->key || strlen(m->key) > STEER_KEY_BYTES_MAX) {
        cancel_refuse(r, from, m->has_tag, m->tag, NULL, STEER_BAD_VALUE,
                      "a CANCEL names a job or a key of 1 to 128 bytes");
    } else {
        cancel_key(r, from, m->key, m->has_tag, m->tag);
    }
}

/* ---- WATCH, FETCH ---- */

static void on_watch(struct route *r, const struct peer *from, const Steerfarm__Watch *m)
{
    struct job *j = queue_find(r->queue, job_id_read(m->job));
    if (!j) { /* ended jobs live in the store: it answers with DONE, or that there is none */
        ask_store(r, ASK_DONE, STEERFARM__MESSAGE_TYPE__WATCH, from, m->job, NULL, m->has_tag,
                  m->tag);
        return;
    }
    struct audience *a = audience_of(r, j);
    size_t i = 0;
    while (a && i < a->watchers_count && memcmp(a->watchers + i, from, sizeof *from) != 0)
        i++;
    if (a && m->has_stop && m->stop) {
        if (i < a->watchers_count) a->watchers[i] = a->watchers[--a->watchers_count];
        audience_leave(r, a);
        return;
    }
    if (a && i == a->watchers_count) {
        struct peer *more = i < WATCHERS_MAX ? realloc(a->watchers, (i + 1) * sizeof *more) : NULL;
        if (!more) {
            refuse(r, from, STEER_BUSY, "too many watch this job", STEERFARM__MESSAGE_TYPE__WATCH,
                   m->has_tag, m->tag, NULL, m->job);
            return;
        }
        a->watchers = more;
        a->watchers[a->watchers_count++] = *from;
    }
    if (a) a->dirty = 1; /* the first PROGRESS says where it stands, at once */
    r->audiences_ms = 0;
}

static void on_fetch(struct route *r, const struct peer *from, const Steerfarm__Fetch *m)
{
    struct job *j = queue_find(r->queue, job_id_read(m->job));
    if (!j) {
        ask_store(r, ASK_DONE, STEERFARM__MESSAGE_TYPE__FETCH, from, m->job, NULL, m->has_tag,
                  m->tag);
        return;
    }
    const char *why = "the broker is out of memory";
    struct audience *a = audience_of(r, j);
    int code = STEER_BUSY;
    if (a && m->credit) {
        code = audience_fetch(r, a, from, m, &why);
        if (!code) job_touch(r, j);
    } else if (a) { /* given up */
        if (a->fetching && memcmp(&a->fetcher, from, sizeof *from) == 0) a->fetching = 0;
        code = 0;
    }
    if (a) audience_leave(r, a);
    if (code)
        refuse(r, from, code, why, STEERFARM__MESSAGE_TYPE__FETCH, m->has_tag, m->tag, NULL,
               m->job);
}

/* ---- RESULT_ACK ---- */

static void acked(struct route *r, struct job *j, uint32_t index)
{
    struct turn *t = turn_shrink(r);
    if (!t || store_batch_image_drop(t->batch, j->id, index)) return; /* it is sent again */
    queue_move(r->queue, j, index, IMAGE_ACKED);
    audience_acked(j, index);
}

static void on_ack(struct route *r, const struct peer *from, const Steerfarm__ResultAck *m)
{
    struct job *j = queue_find(r->queue, job_id_read(m->job));
    if (m->n_indices > STEER_RANGES_MAX) {
        refuse(r, from, STEER_BAD_VALUE, "a RESULT_ACK of more than 4096 ranges",
               STEERFARM__MESSAGE_TYPE__RESULT_ACK, m->has_tag, m->tag, NULL, m->job);
        return;
    }
    /* With a tag it is answered, once durable. */
    if (m->has_tag) status_later(r, from, 1, m->tag, job_id_read(m->job));
    if (!j) return;
    job_touch(r, j);
    uint32_t ranges[STEER_RANGES_MAX][2], chunk = UINT32_MAX;
    size_t bad, count = ranges_merge(ranges, m->indices, m->n_indices, j->states.images, &bad);
    for (size_t i = 0; i < count; i++)
        for (uint32_t at = ranges[i][0], end = ranges[i][1];
             (at = states_find_to(&j->states, at, end, IMAGE_SPOOLED)) < end; at++) {
            if (chunk != UINT32_MAX && at / STATES_CHUNK != chunk)
                chunk_put(r, j, chunk * STATES_CHUNK);
            chunk = at / STATES_CHUNK;
            acked(r, j, at);
        }
    /* A job that ends with this needs no chunk: its summary tells. */
    if (chunk != UINT32_MAX && (!job_over(j) || j->states.images > 1))
        chunk_put(r, j, chunk * STATES_CHUNK);
    job_settle(r, j);
    audience_pump(r, j);
}

/* ---- ADMIN ---- */

static void retry_failed(struct route *r, struct job *j)
{
    uint32_t chunk = UINT32_MAX;
    struct turn *t = turn_shrink(r);
    if (!t) return;
    for (uint32_t i = states_find(&j->states, 0, IMAGE_FAILED); i < j->states.images;
         i = states_find(&j->states, i + 1, IMAGE_FAILED)) {
        struct store_failure none = {j->id, i, 0, 0, NULL};
        if (store_batch_failure_put(t->batch, &none)) break;
        trouble_drop(&j->troubles, i);
        queue_move(r->queue, j, i, IMAGE_QUEUED);
        if (chunk != UINT32_MAX && i / STATES_CHUNK != chunk) chunk_put(r, j, chunk * STATES_CHUNK);
        chunk = i / STATES_CHUNK;
    }
    if (chunk != UINT32_MAX) chunk_put(r, j, chunk * STATES_CHUNK);
    j->reasons = 0;
    audience_reopened(j);
}

/* An ended job comes back with what failed queued again. */
int job_reopen(struct route *r, const struct store_found *f)
{
    const struct store_job *s = &f->job;
    struct job *j = queue_find(r->queue, s->id);
    struct turn *t = turn_shrink(r);
    if (j || !t) return STEER_BUSY;
    j = queue_add(r->queue, s->id, s->key, s->hash, s->spec, s->spec_bytes, s->accepted_ms);
    if (!j) return STEER_NO_MEMORY;
    if (s->state == STORE_FAILED && j->states.images == 1) queue_move(r->queue, j, 0, IMAGE_FAILED);
    for (size_t i = 0; i < f->chunk_count; i++)
        if (job_chunk_load(r, j, f->chunks + i))
            log_event(LOG_ERROR, "store.chunk", "job=%" PRIu64, j->id);
    if (!j->states.counts[IMAGE_FAILED] || store_batch_job_reopen(t->batch, j->id)) {
        queue_remove(r->queue, j);
        return STEER_BAD_VALUE;
    }
    j->committed = 1;
    job_touch(r, j);
    job_watch_deadline(r, j);
    retry_failed(r, j);
    return 0;
}

static void drain_worker(struct route *r, const struct peer *from, const Steerfarm__Admin *m)
{
    struct worker *w = m->worker ? sched_worker_id(r->sched, m->worker) : NULL;
    if (!w) {
        refuse(r, from, STEER_UNKNOWN_WORKER, "no such worker", STEERFARM__MESSAGE_TYPE__ADMIN,
               m->has_tag, m->tag, NULL, NULL);
        return;
    }
    Steerfarm__Drain drain = STEERFARM__DRAIN__INIT;
    struct peer to;
    peer_of(&to, w);
    w->state = WORKER_DRAINING;
    (void)send_to(r, &to, STEERFARM__MESSAGE_TYPE__DRAIN, &drain.base);
    status_later(r, from, m->has_tag, m->tag, 0);
}

static void on_admin(struct route *r, const struct peer *from, const Steerfarm__Admin *m)
{
    struct job *j = m->job ? queue_find(r->queue, job_id_read(m->job)) : NULL;
    switch (m->kind) {
    case STEERFARM__ADMIN_KIND__ADMIN_DRAIN: drain_worker(r, from, m); return;
    case STEERFARM__ADMIN_KIND__ADMIN_PAUSE:
    case STEERFARM__ADMIN_KIND__ADMIN_RESUME:
        r->paused = m->kind == STEERFARM__ADMIN_KIND__ADMIN_PAUSE;
        log_event(LOG_INFO, r->paused ? "farm.pause" : "farm.resume", "jobs=%u",
                  queue_jobs(r->queue));
        status_later(r, from, m->has_tag, m->tag, 0);
        return;
    case STEERFARM__ADMIN_KIND__ADMIN_RETRY_FAILED:
        if (!j || j->ending) {
            ask_store(r, ASK_RETRY, STEERFARM__MESSAGE_TYPE__ADMIN, from, m->job ? m->job : "",
                      NULL, m->has_tag, m->tag);
            return;
        }
        retry_failed(r, j);
        status_later(r, from, m->has_tag, m->tag, j->id);
        return;
    default:
        refuse(r, from, STEER_BAD_VALUE, "an unknown kind of ADMIN", STEERFARM__MESSAGE_TYPE__ADMIN,
               m->has_tag, m->tag, NULL, NULL);
    }
}

/* ---- all ---- */

void client_message(struct route *r, const struct peer *from, const struct wire_message *m)
{
    if (m->type == STEERFARM__MESSAGE_TYPE__HELLO) {
        on_hello(r, from, (const Steerfarm__Hello *)m->body);
        return;
    }
    struct client *c = client_find(r, from);
    if (!c) {
        refuse(r, from, STEER_HELLO_REQUIRED, "say HELLO first", m->type, 0, 0, NULL, NULL);
        return;
    }
    c->heard_ms = r->now_ms;
    switch (m->type) {
    case STEERFARM__MESSAGE_TYPE__SUBMIT:
        on_submit(r, from, (const Steerfarm__Submit *)m->body);
        break;
    case STEERFARM__MESSAGE_TYPE__CANCEL:
        on_cancel(r, from, (const Steerfarm__Cancel *)m->body);
        break;
    case STEERFARM__MESSAGE_TYPE__WATCH:
        on_watch(r, from, (const Steerfarm__Watch *)m->body);
        break;
    case STEERFARM__MESSAGE_TYPE__FETCH:
        on_fetch(r, from, (const Steerfarm__Fetch *)m->body);
        break;
    case STEERFARM__MESSAGE_TYPE__RESULT_ACK:
        on_ack(r, from, (const Steerfarm__ResultAck *)m->body);
        break;
    case STEERFARM__MESSAGE_TYPE__QUERY:
        on_query(r, from, (const Steerfarm__Query *)m->body);
        break;
    case STEERFARM__MESSAGE_TYPE__ADMIN:
        on_admin(r, from, (const Steerfarm__Admin *)m->body);
        break;
    case STEERFARM__MESSAGE_TYPE__PING: {
        Steerfarm__Pong pong = STEERFARM__PONG__INIT;
        pong.has_tag = ((const Steerfarm__Ping *)m->body)->has_tag;
        pong.tag = ((const Steerfarm__Ping *)m->body)->tag;
        (void)send_to(r, from, STEERFARM__MESSAGE_TYPE__PONG, &pong.base);
        break;
    }
    case STEERFARM__MESSAGE_TYPE__PONG: break;
    default:
        refuse(r, from, STEER_BAD_FRAME, "clients do not send this message", m->type, 0, 0, NULL,
               NULL);
    }
}
