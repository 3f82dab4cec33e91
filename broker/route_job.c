// SPDX-License-Identifier: Apache-2.0
/* What becomes of images and jobs: retried, failed, cancelled, ended; and of leases. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "limits.h"
#include "log.h"
#include "route_internal.h"
#include "text.h"

enum { BACK_OFF_MS = 500 };

void chunk_put(struct route *r, struct job *j, uint32_t index)
{
    uint8_t data[STATES_CHUNK / 2];
    struct turn *t = turn_shrink(r);
    struct store_chunk c = {.job = j->id, .number = index / STATES_CHUNK, .data = data};
    c.bytes = states_pack(&j->states, c.number, data);
    if (t && store_batch_chunk_put(t->batch, &c))
        log_event(LOG_ERROR, "broker.memory", "job=%" PRIu64, j->id);
}

/* Written only when it has moved so far; whoever reads it adds as much, so that a restart never
 * ends a job too early. */
static uint64_t touch_grain_ms(const struct route *r)
{
    return r->options.keep_ms / 16;
}

void job_touch(struct route *r, struct job *j)
{
    j->touched_ms = utc_now(r);
    if (j->touched_ms < j->touched_put_ms + touch_grain_ms(r)) return;
    struct turn *t = turn_shrink(r);
    struct store_chunk c = {j->id, CHUNK_TOUCHED, &j->touched_ms, sizeof j->touched_ms};
    if (t && !store_batch_chunk_put(t->batch, &c)) j->touched_put_ms = j->touched_ms;
}

void job_touched_load(struct route *r, struct job *j, uint64_t put_ms)
{
    j->touched_put_ms = put_ms;
    j->touched_ms = put_ms + touch_grain_ms(r);
}

int job_chunk_load(struct route *r, struct job *j, const struct store_chunk *c)
{
    if (c->number != CHUNK_TOUCHED)
        return queue_chunk_load(r->queue, j, c->number, c->data, c->bytes);
    uint64_t put_ms;
    if (c->bytes != sizeof put_ms) return STEER_STORE;
    memcpy(&put_ms, c->data, sizeof put_ms);
    job_touched_load(r, j, put_ms);
    return 0;
}

void job_settle(struct route *r, struct job *j)
{
    struct audience *a = j->audience;
    if (a) a->dirty = 1;
    audience_settle(r, j);
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

void job_watch_deadline(struct route *r, struct job *j)
{
    if (deadline_watch(&r->deadlines, j))
        log_event(LOG_ERROR, "broker.memory", "job=%" PRIu64, j->id);
}

void job_forget(struct route *r, struct job *j)
{
    audience_free(r, j->audience);
    deadline_drop(&r->deadlines, j);
    queue_remove(r->queue, j);
}

/* Nobody reads more reasons than a JobStatus has room for, and the store has them all. */
void trouble_settle(struct job *j, struct trouble *t, uint32_t attempts, int code, const char *text)
{
    if (j->reasons >= STATUS_FAILURES_MAX) {
        trouble_drop(&j->troubles, t->index);
        return;
    }
    j->reasons++;
    t->attempts = attempts;
    t->code = code;
    text_copy(t->text, sizeof t->text, text);
}

void image_fail(struct route *r, struct job *j, uint32_t index, int code, const char *text)
{
    char id[QUEUE_ID_BYTES];
    struct trouble *t = trouble_get(&j->troubles, index);
    struct turn *turn = turn_shrink(r);
    uint32_t attempts = t && t->attempts ? t->attempts : 1;
    job_id_write(id, j->id);
    log_event(LOG_WARN, "image.failed", "job=%s index=%u attempts=%u code=%s reason=%s", id, index,
              attempts, steer_code_name(code), log_quote(text));
    r->failures++;
    struct store_failure f = {j->id, index, attempts, code, text};
    if (turn && store_batch_failure_put(turn->batch, &f))
        log_event(LOG_ERROR, "broker.memory", "job=%s", id);
    queue_move(r->queue, j, index, IMAGE_FAILED);
    if (t) trouble_settle(j, t, attempts, code, text);
    chunk_put(r, j, index);
    job_settle(r, j);
}

void image_retry(struct route *r, struct job *j, uint32_t index, int code, const char *text,
                 const char *worker, int counted, int single)
{
    struct trouble *t = counted || single ? trouble_get(&j->troubles, index) : NULL;
    if (t && counted) {
        t->attempts++;
        t->code = code;
        text_copy(t->text, sizeof t->text, text);
        text_copy(t->worker, sizeof t->worker, worker);
        t->not_before_ms = r->now_ms + ((uint64_t)BACK_OFF_MS << (t->attempts - 1));
        if (t->attempts >= STEER_ATTEMPTS_MAX) {
            image_fail(r, j, index, code, text);
            return;
        }
        /* Attempts are remembered over restarts, where the disk has room for that. */
        struct turn *turn = turn_grow(r);
        struct store_failure f = {j->id, index, t->attempts, code, text};
        if (turn && store_batch_failure_put(turn->batch, &f))
            log_event(LOG_ERROR, "broker.memory", "job=%" PRIu64, j->id);
    }
    if (t && single) t->single = 1;
    queue_move(r->queue, j, index, IMAGE_QUEUED);
}

/* An image that is on its way to the store is dropped by this batch, which comes after its own:
 * when the cancellation is durable nothing is left that could undo it. */
void job_cancel(struct route *r, struct job *j, enum image_state to, int spooled)
{
    struct turn *t = turn_shrink(r);
    int failed = !t || (spooled && store_batch_images_drop(t->batch, j->id));
    for (uint32_t i = 0; i < j->states.images && !failed; i++) {
        enum image_state state = states_get(&j->states, i);
        struct lease *l = state == IMAGE_LEASED ? sched_lease_of(r->sched, j->id, i) : NULL;
        if (l) {
            revoke(r, l);
            lease_drop(r, l);
        } else if (state == IMAGE_LEASED) {
            failed = !spooled && store_batch_image_drop(t->batch, j->id, i);
        } else if (state != IMAGE_QUEUED && (state != IMAGE_SPOOLED || !spooled)) {
            continue;
        }
        queue_move(r->queue, j, i, to);
    }
    if (failed) log_event(LOG_ERROR, "broker.memory", "job=%" PRIu64, j->id);
    for (uint32_t i = 0; i < j->states.images; i += STATES_CHUNK)
        chunk_put(r, j, i);
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
    struct peer to;
    peer_of(&to, l->worker);
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
    text_copy(worker, sizeof worker, l->worker->id);
    lease_drop(r, l);
    if (j && states_get(&j->states, index) == IMAGE_LEASED)
        image_retry(r, j, index, STEER_WORKER_LOST, why, worker, company == 1, company > 1);
}

/* An engine that hangs would lose one image after the other. */
void lease_expired(struct route *r, struct lease *l)
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
