// SPDX-License-Identifier: Apache-2.0
#include "route.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "limits.h"
#include "log.h"
#include "route_internal.h"

enum {
    RETRY_AFTER_MS = 2000, /* told to clients that meet a limit */
    RESEND_MS = 2000,      /* a RESULT that nobody acknowledged; doubled each time */
    PROGRESS_MS = 200,     /* between two PROGRESS of a job */
    SWEEP_MS = 500,        /* between two looks at leases and heartbeats */
    EXPIRE_MS = 60000,     /* between two looks at ended jobs' age */
    EXPIRE_LIMIT = 10000,  /* records forgotten in one batch */
    CLIENT_SILENT_MS = 600000,
    BACK_OFF_MS = 500,
};

uint64_t utc_now(const struct route *r)
{
    return r->now_ms + r->options.utc_offset_ms;
}

/* ---- sending ---- */

int send_to(struct route *r, const struct peer *to, int type, const ProtobufCMessage *body)
{
    return r->transport.send(r->transport.data, to->side, to->identity, to->size, type, body, NULL,
                             0);
}

void refuse(struct route *r, const struct peer *to, int code, const char *text, int request,
            int has_tag, uint64_t tag, const char *key, const char *job)
{
    Steerfarm__Refused m = STEERFARM__REFUSED__INIT;
    m.code = (char *)(uintptr_t)steer_code_name(code);
    m.text = (char *)(uintptr_t)text;
    m.has_retry_after_ms = code == STEER_BUSY || code == STEER_DISK_FULL;
    m.retry_after_ms = RETRY_AFTER_MS;
    m.has_request = request > 0;
    m.request = (uint32_t)request;
    m.has_tag = has_tag;
    m.tag = tag;
    m.key = (char *)(uintptr_t)key;
    m.job = (char *)(uintptr_t)job;
    (void)send_to(r, to, STEERFARM__MESSAGE_TYPE__REFUSED, &m.base);
}

/* ---- batches and their effects ---- */

static struct turn *turn_get(struct turn **at, int grows)
{
    if (*at) return *at;
    struct turn *t = calloc(1, sizeof *t);
    struct store_batch *b = store_batch_new();
    if (!t || !b) {
        free(t);
        store_batch_free(b);
        log_event(LOG_ERROR, "broker.memory", "reason=%s", log_quote("out of memory"));
        return NULL;
    }
    t->batch = b;
    t->effects_end = &t->effects;
    t->grows = grows;
    return *at = t;
}

struct turn *turn_grow(struct route *r)
{
    return turn_get(&r->grow, 1);
}

struct turn *turn_shrink(struct route *r)
{
    return turn_get(&r->shrink, 0);
}

struct effect *effect_add(struct turn *t, enum effect_kind kind, uint64_t job)
{
    struct effect *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->kind = kind;
    e->job = job;
    *t->effects_end = e;
    t->effects_end = &e->next;
    return e;
}

static void turn_free(struct turn *t)
{
    if (!t) return;
    while (t->effects) {
        struct effect *e = t->effects;
        t->effects = e->next;
        free(e);
    }
    store_batch_free(t->batch);
    free(t);
}

static void turn_submit(struct route *r, struct turn **at)
{
    struct turn *t = *at;
    if (!t) return;
    *at = NULL;
    r->waiting++;
    store_submit(r->store, &t->batch, t);
}

/* ---- jobs and images ---- */

void chunk_put(struct route *r, struct job *j, uint32_t index)
{
    uint8_t data[STATES_CHUNK / 2];
    struct turn *t = turn_shrink(r);
    struct store_chunk c = {.job = j->id, .number = index / STATES_CHUNK, .data = data};
    c.bytes = states_pack(&j->states, c.number, data);
    if (t && store_batch_chunk_put(t->batch, &c))
        log_event(LOG_ERROR, "broker.memory", "job=%" PRIu64, j->id);
}

void job_settle(struct route *r, struct job *j)
{
    struct audience *a = j->audience;
    if (a) a->dirty = 1;
    if (j->ending || !job_over(j)) return;
    struct turn *t = turn_shrink(r);
    if (!t) return;
    j->ending = 1;
    Steerfarm__Counts counts = STEERFARM__COUNTS__INIT;
    const uint32_t *n = j->states.counts;
    counts.has_acked = counts.has_failed = counts.has_cancelled = counts.has_expired = 1;
    counts.acked = n[IMAGE_ACKED];
    counts.failed = n[IMAGE_FAILED];
    counts.cancelled = n[IMAGE_CANCELLED];
    counts.expired = n[IMAGE_EXPIRED];
    uint8_t summary[64];
    size_t size = steerfarm__counts__pack(&counts, summary);
    if (store_batch_job_end(t->batch, j->id, job_end_state(j), utc_now(r), summary, size) ||
        !effect_add(t, EFFECT_ENDED, j->id))
        log_event(LOG_ERROR, "broker.memory", "job=%" PRIu64, j->id);
}

void image_fail(struct route *r, struct job *j, uint32_t index, int code, const char *text)
{
    char id[QUEUE_ID_BYTES];
    struct trouble *t = job_trouble(j, index);
    struct turn *turn = turn_shrink(r);
    uint32_t attempts = t ? t->attempts : 1;
    job_id_write(id, j->id);
    log_event(LOG_WARN, "image.failed", "job=%s index=%u attempts=%u code=%s reason=%s", id, index,
              attempts, steer_code_name(code), log_quote(text));
    r->failures++;
    if (t) {
        t->code = code;
        snprintf(t->text, sizeof t->text, "%s", text);
    }
    struct store_failure f = {j->id, index, attempts ? attempts : 1, code, text};
    if (turn && store_batch_failure_put(turn->batch, &f))
        log_event(LOG_ERROR, "broker.memory", "job=%s", id);
    queue_move(r->queue, j, index, IMAGE_FAILED);
    chunk_put(r, j, index);
    job_settle(r, j);
}

void image_retry(struct route *r, struct job *j, uint32_t index, int code, const char *text,
                 const char *worker, int counted, int single)
{
    if (j->cancelled) {
        queue_move(r->queue, j, index, IMAGE_CANCELLED);
        chunk_put(r, j, index);
        job_settle(r, j);
        return;
    }
    struct trouble *t = counted || single ? job_trouble(j, index) : NULL;
    if (t && counted) {
        t->attempts++;
        t->code = code;
        snprintf(t->text, sizeof t->text, "%s", text);
        snprintf(t->worker, sizeof t->worker, "%s", worker);
        t->not_before_ms = r->now_ms + ((uint64_t)BACK_OFF_MS << (t->attempts - 1));
        if (t->attempts >= STEER_ATTEMPTS_MAX) {
            image_fail(r, j, index, code, text);
            return;
        }
        struct turn *turn = turn_shrink(r); /* attempts are remembered over restarts */
        struct store_failure f = {j->id, index, t->attempts, code, text};
        if (turn && store_batch_failure_put(turn->batch, &f))
            log_event(LOG_ERROR, "broker.memory", "job=%" PRIu64, j->id);
    }
    if (t && single) t->single = 1;
    queue_move(r->queue, j, index, IMAGE_QUEUED);
}

/* Everything that has not been delivered becomes `to` (cancelled or expired). */
void job_cancel(struct route *r, struct job *j, enum image_state to)
{
    j->cancelled = to == IMAGE_CANCELLED;
    for (uint32_t i = 0; i < j->states.images; i++) {
        enum image_state state = states_get(&j->states, i);
        if (state == IMAGE_LEASED) {
            struct lease *l = sched_lease_of(r->sched, j->id, i);
            if (!l) continue; /* on its way to the store: dropped when it arrives */
            revoke(r, l);
            lease_drop(r, l);
        } else if (state != IMAGE_QUEUED && (state != IMAGE_SPOOLED || to == IMAGE_EXPIRED)) {
            continue;
        }
        queue_move(r->queue, j, i, to);
    }
    for (uint32_t i = 0; i < j->states.images; i += STATES_CHUNK)
        chunk_put(r, j, i);
    struct turn *t = turn_shrink(r);
    if (to == IMAGE_CANCELLED && t && store_batch_images_drop(t->batch, j->id))
        log_event(LOG_ERROR, "broker.memory", "job=%" PRIu64, j->id);
    job_settle(r, j);
}

void lease_drop(struct route *r, struct lease *l)
{
    store_release(r->store, l->bytes);
    sched_release(r->sched, l);
    r->no_room = 0;
}

void revoke(struct route *r, const struct lease *l)
{
    char id[QUEUE_ID_BYTES];
    Steerfarm__Lease lease = STEERFARM__LEASE__INIT, *list[1] = {&lease};
    Steerfarm__Revoke m = STEERFARM__REVOKE__INIT;
    struct peer to = {.side = SIDE_WORKERS, .size = l->worker->identity_size};
    memcpy(to.identity, l->worker->identity, to.size);
    job_id_write(id, l->job);
    lease.epoch = l->epoch;
    lease.lease = l->number;
    lease.job = id;
    lease.index = l->index;
    m.leases = list;
    m.n_leases = 1;
    (void)send_to(r, &to, STEERFARM__MESSAGE_TYPE__REVOKE, &m.base);
}

/* A lost batch is retried singly, and only losses alone count. */
static void lease_lost(struct route *r, struct lease *l, const char *why)
{
    struct job *j = queue_find(r->queue, l->job);
    uint32_t index = l->index;
    int company = l->company;
    char worker[STEER_NAME_BYTES_MAX + 1];
    snprintf(worker, sizeof worker, "%s", l->worker->id);
    lease_drop(r, l);
    if (j && states_get(&j->states, index) == IMAGE_LEASED)
        image_retry(r, j, index, STEER_WORKER_LOST, why, worker, company == 1, company > 1);
}

/* An engine that hangs would lose one image after the other. */
static void lease_expired(struct route *r, struct lease *l)
{
    l->worker->stalled = 1;
    lease_lost(r, l, "the lease ran out");
}

void worker_lost(struct route *r, struct worker *w, const char *why)
{
    log_event(LOG_WARN, "worker.lost", "worker=%s leases=%u reason=%s", log_quote(w->id), w->leased,
              log_quote(why));
    while (w->leases)
        lease_lost(r, w->leases, why);
    sched_remove(r->sched, w);
}

/* ---- audiences ---- */

struct audience *audience_of(struct route *r, struct job *j)
{
    if (j->audience) return j->audience;
    struct audience *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->job = j;
    a->next = r->audiences;
    r->audiences = a;
    return j->audience = a;
}

static void audience_free(struct route *r, struct audience *a)
{
    if (!a) return;
    for (struct audience **at = &r->audiences; *at; at = &(*at)->next)
        if (*at == a) {
            *at = a->next;
            break;
        }
    free(a->watchers);
    free(a);
}

static int wanted(const struct audience *a, uint32_t index)
{
    for (uint32_t i = 0; i < a->ranges_count; i++)
        if (index >= a->ranges[i][0] && index <= a->ranges[i][1]) return 1;
    return !a->ranges_count;
}

static void image_read(struct route *r, struct audience *a, struct sent *s)
{
    struct question *q = calloc(1, sizeof *q);
    if (!q) return;
    q->kind = ASK_READ;
    q->job = a->job->id;
    q->index = s->index;
    q->to = a->fetcher;
    s->reading = 1;
    if (store_read(r->store, a->job->id, s->index, q)) {
        s->reading = 0;
        free(q);
        return;
    }
    r->waiting++;
}

/* Sends what is spooled and not under way, as far as the fetcher's credit goes. */
void audience_pump(struct route *r, struct job *j)
{
    struct audience *a = j->audience;
    if (!a || !a->fetching || !j->committed) return;
    uint32_t i = 0;
    while (a->sent_count < a->credit) {
        i = states_find(&j->states, i, IMAGE_SPOOLED);
        if (i >= j->states.images) return;
        int under_way = !wanted(a, i);
        for (uint32_t k = 0; k < a->sent_count && !under_way; k++)
            under_way = a->sent[k].index == i;
        if (!under_way) {
            a->sent[a->sent_count] = (struct sent){.index = i};
            image_read(r, a, a->sent + a->sent_count++);
        }
        i++;
    }
}

static void image_send(struct route *r, struct question *q, struct store_completion *c)
{
    struct job *j = queue_find(r->queue, q->job);
    struct audience *a = j ? j->audience : NULL;
    struct sent *s = NULL;
    for (uint32_t k = 0; a && k < a->sent_count; k++)
        if (a->sent[k].index == q->index) s = a->sent + k;
    if (!j || states_get(&j->states, q->index) != IMAGE_SPOOLED) return;
    if (c->code) { /* what cannot be read is rendered again */
        char id[QUEUE_ID_BYTES];
        job_id_write(id, j->id);
        log_event(LOG_WARN, "spool.lost", "job=%s index=%u code=%s", id, q->index,
                  steer_code_name(c->code));
        struct turn *t = turn_shrink(r);
        if (t && store_batch_image_drop(t->batch, j->id, q->index)) return;
        if (s) *s = a->sent[--a->sent_count];
        queue_move(r->queue, j, q->index, IMAGE_QUEUED);
        return;
    }
    if (!s || memcmp(&a->fetcher, &q->to, sizeof q->to) != 0) return;
    s->reading = 0;
    s->tries++;
    s->sent_ms = r->now_ms;
    Steerfarm__Result *m = steerfarm__result__unpack(NULL, c->image.header_bytes, c->image.header);
    if (!m) return;
    uint8_t *payload = c->payload;
    c->payload = NULL;
    if (r->transport.send(r->transport.data, SIDE_CLIENTS, a->fetcher.identity, a->fetcher.size,
                          STEERFARM__MESSAGE_TYPE__RESULT, &m->base, payload, c->image.bytes))
        s->tries = RESEND_TRIES; /* it is gone; a FETCH says that it is back */
    steerfarm__result__free_unpacked(m, NULL);
}

static void done_send(struct route *r, struct audience *a, struct status *s)
{
    Steerfarm__Done m = STEERFARM__DONE__INIT;
    m.status = &s->msg;
    for (size_t i = 0; i < a->watchers_count; i++)
        (void)send_to(r, a->watchers + i, STEERFARM__MESSAGE_TYPE__DONE, &m.base);
    if (a->fetching) (void)send_to(r, &a->fetcher, STEERFARM__MESSAGE_TYPE__DONE, &m.base);
}

static void progress_send(struct route *r, struct audience *a)
{
    struct status s;
    Steerfarm__Progress m = STEERFARM__PROGRESS__INIT;
    status_of_job(&s, a->job);
    m.job = s.id;
    m.counts = &s.counts;
    m.has_step = m.has_steps = a->steps > 0;
    m.step = a->step;
    m.steps = a->steps;
    for (size_t i = 0; i < a->watchers_count; i++)
        if (send_to(r, a->watchers + i, STEERFARM__MESSAGE_TYPE__PROGRESS, &m.base))
            a->watchers[i--] = a->watchers[--a->watchers_count]; /* it is gone */
    status_clear(&s);
    a->dirty = 0;
    a->progress_ms = r->now_ms;
}

/* ---- completions ---- */

static void accepted_send(struct route *r, const struct effect *e, struct job *j)
{
    char id[QUEUE_ID_BYTES];
    Steerfarm__Accepted m = STEERFARM__ACCEPTED__INIT;
    job_id_write(id, j->id);
    m.job = id;
    m.key = (char *)(uintptr_t)j->key;
    m.images = j->states.images;
    m.has_again = 1;
    m.again = e->again;
    m.has_tag = e->has_tag;
    m.tag = e->tag;
    m.resolved = job_spec(j);
    (void)send_to(r, &e->to, STEERFARM__MESSAGE_TYPE__ACCEPTED, &m.base);
    if (m.resolved) steerfarm__job__free_unpacked(m.resolved, NULL);
    if (!e->again) r->accepted++;
}

static void job_forget(struct route *r, struct job *j)
{
    audience_free(r, j->audience);
    j->audience = NULL;
    if (j->deadline_ms) r->deadlines--;
    queue_remove(r->queue, j);
}

static void accepted_now(struct route *r, const struct effect *e, int code)
{
    struct job *j = queue_find(r->queue, e->job);
    if (!j) { /* its first SUBMIT did not get through */
        refuse(r, &e->to, STEER_BUSY, "the job could not be stored; try again",
               STEERFARM__MESSAGE_TYPE__SUBMIT, e->has_tag, e->tag, NULL, NULL);
        return;
    }
    if (code) {
        char key[STEER_KEY_BYTES_MAX + 1];
        snprintf(key, sizeof key, "%s", j->key);
        job_forget(r, j);
        refuse(r, &e->to, code, store_trouble(r->store), STEERFARM__MESSAGE_TYPE__SUBMIT,
               e->has_tag, e->tag, key, NULL);
        return;
    }
    accepted_send(r, e, j);
    if (e->again || j->committed) return;
    j->committed = 1;
    queue_move(r->queue, j, 0, states_get(&j->states, 0)); /* into its lane */
}

/* An image is durable, or could not be stored and is rendered again when there is room. */
static void kept_now(struct route *r, const struct effect *e, int code)
{
    char id[QUEUE_ID_BYTES];
    Steerfarm__Lease lease = STEERFARM__LEASE__INIT;
    Steerfarm__Verdict m = STEERFARM__VERDICT__INIT;
    static char kept[] = "kept", unknown[] = "unknown", cancelled[] = "cancelled";
    struct job *j = queue_find(r->queue, e->job);
    m.verdict = code ? unknown : kept;
    if (j && j->cancelled) {
        struct turn *t = turn_shrink(r);
        if (t && !code && store_batch_image_drop(t->batch, j->id, e->index)) return;
        m.verdict = cancelled;
        queue_move(r->queue, j, e->index, IMAGE_CANCELLED);
        chunk_put(r, j, e->index);
        job_settle(r, j);
    } else if (j) {
        queue_move(r->queue, j, e->index, code ? IMAGE_QUEUED : IMAGE_SPOOLED);
        j->touched_ms = utc_now(r);
        if (j->audience) j->audience->dirty = 1;
        if (!code) audience_pump(r, j);
    }
    if (!code) r->results++;
    job_id_write(id, e->job);
    lease.epoch = e->epoch;
    lease.lease = e->lease;
    lease.job = id;
    lease.index = e->index;
    m.lease = &lease;
    (void)send_to(r, &e->to, STEERFARM__MESSAGE_TYPE__VERDICT, &m.base);
}

static void ended_now(struct route *r, const struct effect *e)
{
    struct job *j = queue_find(r->queue, e->job);
    struct status s;
    if (!j || !j->ending) return;
    status_of_job(&s, j);
    s.msg.has_ended_ms = 1;
    s.msg.ended_ms = utc_now(r);
    log_event(LOG_INFO, "job.end", "job=%s state=%s images=%u acked=%u failed=%u", s.id,
              s.msg.state, j->states.images, s.counts.acked, s.counts.failed);
    if (j->audience) done_send(r, j->audience, &s);
    status_clear(&s);
    job_forget(r, j);
}

static void status_now(struct route *r, const struct effect *e)
{
    struct status s;
    struct job *j = queue_find(r->queue, e->job);
    if (j) {
        status_of_job(&s, j);
        reply_status(r, &e->to, e->has_tag, e->tag, &s);
        status_clear(&s);
        return;
    }
    Steerfarm__Reply m =
        STEERFARM__REPLY__INIT; /* a tombstone, or a job that has ended meanwhile */
    m.has_tag = e->has_tag;
    m.tag = e->tag;
    (void)send_to(r, &e->to, STEERFARM__MESSAGE_TYPE__REPLY, &m.base);
}

/* The store knew the key of a job that has ended: the old job answers. */
static void known_now(struct route *r, struct turn *t, const struct store_known *k)
{
    struct job *j = queue_find(r->queue, k->put);
    if (!j) return;
    int same = memcmp(k->hash, j->hash, sizeof k->hash) == 0;
    for (struct effect *e = t->effects; e; e = e->next) {
        if (e->kind != EFFECT_ACCEPTED || e->job != k->put) continue;
        char id[QUEUE_ID_BYTES];
        job_id_write(id, k->job);
        if (!same) {
            refuse(r, &e->to, STEER_KEY_CONFLICT, "this idempotency key belongs to another job",
                   STEERFARM__MESSAGE_TYPE__SUBMIT, e->has_tag, e->tag, j->key, id);
        } else {
            Steerfarm__Accepted m = STEERFARM__ACCEPTED__INIT;
            m.job = id;
            m.key = (char *)(uintptr_t)j->key;
            m.images = j->states.images;
            m.has_again = m.again = 1;
            m.has_tag = e->has_tag;
            m.tag = e->tag;
            (void)send_to(r, &e->to, STEERFARM__MESSAGE_TYPE__ACCEPTED, &m.base);
        }
        e->job = 0; /* answered */
    }
    job_forget(r, j);
}

static void turn_done(struct route *r, struct turn *t, const struct store_completion *c)
{
    if (c->code == STEER_STORE || (c->code && !t->grows)) {
        r->broken = 1;
        steer_fail(&r->broken_error, c->code, "%s", store_trouble(r->store));
    } else {
        if (c->code)
            log_event(LOG_WARN, "store.full", "reason=%s", log_quote(store_trouble(r->store)));
        for (size_t i = 0; i < c->known_count; i++)
            known_now(r, t, c->known + i);
        for (struct effect *e = t->effects; e; e = e->next) {
            if (e->kind == EFFECT_ACCEPTED && e->job) accepted_now(r, e, c->code);
            if (e->kind == EFFECT_KEPT) kept_now(r, e, c->code);
            if (e->kind == EFFECT_ENDED) ended_now(r, e);
            if (e->kind == EFFECT_STATUS) status_now(r, e);
            if (e->kind == EFFECT_CANCEL) cancel_now(r, e);
        }
    }
    turn_free(t);
}

static void completions(struct route *r)
{
    struct store_completion c;
    while (!r->broken && store_next(r->store, &c) == 1) {
        r->waiting--;
        if (c.kind == STORE_BATCH) {
            turn_done(r, c.cookie, &c);
        } else {
            struct question *q = c.cookie;
            if (q->kind == ASK_READ)
                image_send(r, q, &c);
            else
                answer_query(r, q, &c);
            free(q);
        }
        store_completion_clear(&c);
    }
}

/* ---- assigning ---- */

static void assign_undo(struct route *r, struct taken *taken, struct lease **leases, int count)
{
    for (int i = 0; i < count; i++) {
        if (leases[i]) lease_drop(r, leases[i]);
        queue_move(r->queue, taken[i].job, taken[i].index, IMAGE_QUEUED);
    }
}

static int assign_send(struct route *r, struct worker *w, const struct taken *taken,
                       struct lease *const *leases, int count)
{
    Steerfarm__Assignment images[STEER_BATCH_MAX], *list[STEER_BATCH_MAX];
    Steerfarm__Lease lease[STEER_BATCH_MAX];
    char ids[STEER_BATCH_MAX][QUEUE_ID_BYTES];
    Steerfarm__Assign m = STEERFARM__ASSIGN__INIT;
    struct peer to = {.side = SIDE_WORKERS, .size = w->identity_size};
    memcpy(to.identity, w->identity, to.size);
    uint64_t oldest = UINT64_MAX;
    int code = 0;
    for (int i = 0; i < count; i++) {
        job_id_write(ids[i], taken[i].job->id);
        lease[i] = (Steerfarm__Lease)STEERFARM__LEASE__INIT;
        lease[i].epoch = leases[i]->epoch;
        lease[i].lease = leases[i]->number;
        lease[i].job = ids[i];
        lease[i].index = taken[i].index;
        images[i] = (Steerfarm__Assignment)STEERFARM__ASSIGNMENT__INIT;
        images[i].lease = lease + i;
        images[i].job = job_spec(taken[i].job);
        if (!images[i].job) code = -1;
        if (taken[i].job->accepted_ms < oldest) oldest = taken[i].job->accepted_ms;
        list[i] = images + i;
    }
    m.images = list;
    m.n_images = (size_t)count;
    m.has_queue_us = 1;
    m.queue_us = utc_now(r) > oldest ? (utc_now(r) - oldest) * 1000 : 0;
    if (!code) code = send_to(r, &to, STEERFARM__MESSAGE_TYPE__ASSIGN, &m.base);
    for (int i = 0; i < count; i++)
        if (images[i].job) steerfarm__job__free_unpacked(images[i].job, NULL);
    return code;
}

/* One batch to w; 0: there was none, or it could not go out. */
static int assign(struct route *r, struct worker *w)
{
    struct taken taken[STEER_BATCH_MAX];
    struct lease *leases[STEER_BATCH_MAX] = {NULL};
    int room = w->batch_max && w->batch_max < STEER_BATCH_MAX ? (int)w->batch_max : STEER_BATCH_MAX;
    int count = sched_take(r->sched, r->queue, w, r->now_ms, taken, room);
    for (int i = 0; i < count; i++) {
        if (store_reserve(r->store, taken[i].job->image_bytes)) {
            if (!r->no_room)
                log_event(LOG_WARN, "spool.full", "reason=%s",
                          log_quote("no room for more images until some are fetched"));
            r->no_room = 1;
            assign_undo(r, taken, leases, count);
            return 0;
        }
        leases[i] = sched_lease(r->sched, w, 0, 0, taken[i].job, taken[i].index,
                                r->now_ms + r->options.lease_ms, count);
        if (leases[i]) continue;
        store_release(r->store, taken[i].job->image_bytes);
        assign_undo(r, taken, leases, count);
        return 0;
    }
    if (!count) return 0;
    if (!assign_send(r, w, taken, leases, count)) return 1;
    assign_undo(r, taken, leases, count);
    return 0;
}

static void assign_all(struct route *r)
{
    if (r->paused) return;
    for (int again = 1; again;) {
        again = 0;
        for (struct worker *w = sched_first(r->sched); w; w = w->next)
            again |= assign(r, w);
    }
}

/* ---- timers ---- */

static void sweep_workers(struct route *r)
{
    for (struct worker *w = sched_first(r->sched), *next; w; w = next) {
        next = w->next;
        if (r->now_ms > w->heard_ms + r->options.lease_ms) {
            worker_lost(r, w, "the worker stopped answering");
            continue;
        }
        for (struct lease *l = w->leases, *after; l; l = after) {
            after = l->next;
            if (r->now_ms > l->expires_ms) lease_expired(r, l);
        }
        if (r->now_ms < w->pinged_ms + r->options.heartbeat_ms) continue;
        w->pinged_ms = r->now_ms;
        Steerfarm__Ping ping = STEERFARM__PING__INIT;
        struct peer to = {.side = SIDE_WORKERS, .size = w->identity_size};
        memcpy(to.identity, w->identity, to.size);
        (void)send_to(r, &to, STEERFARM__MESSAGE_TYPE__PING, &ping.base);
    }
}

/* More and more slowly: after RESEND_TRIES, in 17 minutes, not again. */
static uint64_t resend_ms(const struct sent *s)
{
    return (uint64_t)RESEND_MS << (s->tries > 0 ? s->tries - 1 : 0);
}

static void sweep_audience(struct route *r)
{
    for (struct audience *a = r->audiences; a; a = a->next) {
        for (uint32_t i = 0; a->fetching && i < a->sent_count; i++) {
            struct sent *s = a->sent + i;
            if (s->reading || r->now_ms < s->sent_ms + resend_ms(s)) continue;
            if (s->tries >= RESEND_TRIES)
                a->fetching = 0; /* nobody is there; a FETCH begins anew */
            else
                image_read(r, a, s);
        }
        if (a->watchers_count && a->dirty && r->now_ms >= a->progress_ms + PROGRESS_MS)
            progress_send(r, a);
    }
}

static void deadline_check(void *data, struct job *j)
{
    struct route *r = data;
    if (!j->deadline_ms || j->ending || !j->committed || utc_now(r) < j->deadline_ms) return;
    if (j->states.counts[IMAGE_QUEUED] + j->states.counts[IMAGE_LEASED] == 0) return;
    job_cancel(r, j, IMAGE_EXPIRED);
}

/* Images that nobody fetches for --keep end. */
static void age_check(void *data, struct job *j)
{
    struct route *r = data;
    const uint32_t *c = j->states.counts;
    if (j->ending || !c[IMAGE_SPOOLED] || c[IMAGE_QUEUED] + c[IMAGE_LEASED] ||
        utc_now(r) < j->touched_ms + r->options.keep_ms)
        return;
    struct turn *t = turn_shrink(r);
    if (!t || store_batch_images_drop(t->batch, j->id)) return; /* at the next look */
    for (uint32_t i = states_find(&j->states, 0, IMAGE_SPOOLED); i < j->states.images;
         i = states_find(&j->states, i + 1, IMAGE_SPOOLED))
        queue_move(r->queue, j, i, IMAGE_EXPIRED);
    for (uint32_t i = 0; i < j->states.images; i += STATES_CHUNK)
        chunk_put(r, j, i);
    job_settle(r, j);
}

static void sweep_clients(struct route *r)
{
    for (int i = 0; i < CLIENT_BUCKETS; i++)
        for (struct client **at = &r->clients[i]; *at;) {
            struct client *c = *at;
            if (r->now_ms < c->heard_ms + CLIENT_SILENT_MS) {
                at = &c->next;
                continue;
            }
            *at = c->next;
            free(c);
            r->clients_count--;
        }
}

static void timers(struct route *r)
{
    sweep_audience(r);
    if (r->now_ms < r->swept_ms + SWEEP_MS) return;
    r->swept_ms = r->now_ms;
    r->no_room = 0;
    sweep_workers(r);
    if (r->deadlines) queue_each(r->queue, deadline_check, r);
    if (r->expired_ms && r->now_ms < r->expired_ms + EXPIRE_MS) return;
    r->expired_ms = r->now_ms;
    sweep_clients(r);
    struct turn *t = turn_shrink(r);
    uint64_t utc = utc_now(r);
    queue_each(r->queue, age_check, r);
    if (utc > r->options.keep_ms) tombstones_sweep(r, utc - r->options.keep_ms);
    if (t && utc > r->options.keep_ms &&
        store_batch_expire(t->batch, utc - r->options.keep_ms, EXPIRE_LIMIT))
        log_event(LOG_ERROR, "broker.memory", "reason=%s", log_quote("expiry put off"));
}

int route_turn(struct route *r, uint64_t now_ms, struct steer_error *err)
{
    r->now_ms = now_ms;
    completions(r);
    timers(r);
    if (!r->no_room) assign_all(r);
    turn_submit(r, &r->grow);
    turn_submit(r, &r->shrink);
    if (!r->broken) return 0;
    if (err) *err = r->broken_error;
    return r->broken_error.code;
}

int route_fd(const struct route *r)
{
    return store_fd(r->store);
}

/* ---- receiving ---- */

void route_receive(struct route *r, enum side side, const uint8_t *identity, size_t identity_size,
                   const struct wire_frame *frames, size_t count, struct store_payload *payload,
                   uint64_t now_ms)
{
    struct wire_message m = {0};
    struct steer_error err = {0};
    struct peer from;
    memset(&from, 0, sizeof from); /* peers are compared whole */
    from.side = side;
    from.size = identity_size;
    r->now_ms = now_ms;
    int code = identity_size <= sizeof from.identity ? wire_parse(&m, frames, count, &err)
                                                     : STEER_BAD_FRAME;
    if (!code) {
        memcpy(from.identity, identity, identity_size);
        if (side == SIDE_CLIENTS)
            client_message(r, &from, &m);
        else
            worker_message(r, &from, &m, payload);
    } else if (identity_size <= sizeof from.identity) {
        memcpy(from.identity, identity, identity_size);
        log_event(LOG_WARN, "message.bad", "side=%s reason=%s",
                  side == SIDE_CLIENTS ? "clients" : "workers", log_quote(err.text));
        refuse(r, &from, code, err.text, 0, 0, 0, NULL, NULL);
    }
    wire_free(&m);
    if (payload && payload->release) {
        payload->release(payload->owner);
        payload->release = NULL;
    }
}

/* ---- opening ---- */

static int load_model(void *data, const char *name, const void *bytes, size_t size)
{
    struct route *r = data;
    (void)name;
    int code = catalog_put(r->catalog, bytes, size);
    return code < 0 ? code : 0;
}

static int load_tombstone(void *data, const struct store_tombstone *t)
{
    tombstone_add(data, t->key, t->made_ms);
    return 0;
}

static int load_job(void *data, const struct store_job *s)
{
    struct route *r = data;
    struct job *j =
        queue_add(r->queue, s->id, s->key, s->hash, s->spec, s->spec_bytes, s->accepted_ms);
    if (!j) return STEER_NO_MEMORY;
    j->committed = 1;
    j->touched_ms = utc_now(r);
    if (j->deadline_ms) r->deadlines++;
    queue_move(r->queue, j, 0, IMAGE_QUEUED);
    return 0;
}

static int load_chunk(void *data, const struct store_chunk *c)
{
    struct route *r = data;
    struct job *j = queue_find(r->queue, c->job);
    return j ? states_unpack(&j->states, c->number, c->data, c->bytes) : 0;
}

static int load_failure(void *data, const struct store_failure *f)
{
    struct route *r = data;
    struct job *j = queue_find(r->queue, f->job);
    struct trouble *t = j && f->index < j->states.images ? job_trouble(j, f->index) : NULL;
    if (!t) return 0;
    t->attempts = f->attempts;
    t->code = f->code;
    snprintf(t->text, sizeof t->text, "%s", f->text ? f->text : "");
    return 0;
}

static int load_image(void *data, const struct store_image *i, bool usable)
{
    struct route *r = data;
    struct job *j = queue_find(r->queue, i->job);
    if (j && usable && i->index < j->states.images &&
        states_get(&j->states, i->index) == IMAGE_QUEUED)
        queue_move(r->queue, j, i->index, IMAGE_SPOOLED);
    return 0;
}

/* A job whose end was not stored, though all its images had ended. */
static void settle_loaded(void *data, struct job *j)
{
    queue_move(((struct route *)data)->queue, j, 0, states_get(&j->states, 0));
    job_settle(data, j);
}

int route_open(struct route **ret, const struct route_options *options,
               const struct transport *transport, uint64_t now_ms, struct steer_error *err)
{
    struct route *r = calloc(1, sizeof *r);
    if (!r) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    r->options = *options;
    r->transport = *transport;
    r->now_ms = now_ms;
    r->queue = queue_new();
    r->catalog = catalog_new();
    struct store_load load = {r,        load_model, NULL,         load_tombstone,
                              load_job, load_chunk, load_failure, load_image};
    struct store_opened opened;
    int code = STEER_NO_MEMORY;
    if (r->queue && r->catalog) code = store_open(&r->store, &options->store, &load, &opened, err);
    if (!code && !(r->sched = sched_new(opened.epoch))) code = STEER_NO_MEMORY;
    if (code) {
        route_close(r);
        if (err && !err->code) steer_fail(err, code, "out of memory");
        return code;
    }
    r->epoch = opened.epoch;
    r->job_last = opened.job_last;
    queue_each(r->queue, settle_loaded, r);
    log_event(LOG_INFO, "store.open", "dir=%s epoch=%" PRIu64 " jobs=%" PRIu64 " lost=%" PRIu64,
              log_quote(options->store.dir), r->epoch, opened.jobs_open, opened.images_lost);
    *ret = r;
    return 0;
}

/* Until the store has given back everything: what was submitted is written. */
static void settle_store(struct route *r)
{
    struct store_completion c;
    turn_submit(r, &r->grow);
    turn_submit(r, &r->shrink);
    while (r->waiting) {
        struct pollfd p = {store_fd(r->store), POLLIN, 0};
        if (store_next(r->store, &c) != 1) {
            if (poll(&p, 1, -1) < 0 && errno != EINTR) return;
            continue;
        }
        r->waiting--;
        if (c.kind == STORE_BATCH)
            turn_free(c.cookie);
        else
            free(c.cookie);
        store_completion_clear(&c);
    }
}

void route_close(struct route *r)
{
    if (!r) return;
    if (r->store) settle_store(r);
    store_close(r->store);
    while (r->audiences)
        audience_free(r, r->audiences);
    sched_free(r->sched);
    queue_free(r->queue);
    catalog_free(r->catalog);
    for (int i = 0; i < CLIENT_BUCKETS; i++)
        while (r->clients[i]) {
            struct client *c = r->clients[i];
            r->clients[i] = c->next;
            free(c);
        }
    for (int i = 0; i < TOMBSTONE_BUCKETS; i++)
        while (r->tombstones[i]) {
            struct tombstone *t = r->tombstones[i];
            r->tombstones[i] = t->next;
            free(t);
        }
    free(r);
}
