// SPDX-License-Identifier: Apache-2.0
/* What the store has answered: the effects of a durable batch, in order. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "limits.h"
#include "log.h"
#include "route_internal.h"
#include "text.h"

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

static void accepted_now(struct route *r, const struct effect *e, int code)
{
    struct job *j = queue_find(r->queue, e->job);
    if (!j) { /* its first SUBMIT did not get through */
        refuse(r, &e->to, STEER_BUSY, "the job could not be stored; try again",
               STEERFARM__MESSAGE_TYPE__SUBMIT, e->has_tag, e->tag, e->key, NULL);
        return;
    }
    if (code && !j->committed) { /* an older job of this key stays, and is answered */
        char key[STEER_KEY_BYTES_MAX + 1];
        text_copy(key, sizeof key, j->key);
        job_forget(r, j);
        refuse(r, &e->to, code, store_trouble(r->store), STEERFARM__MESSAGE_TYPE__SUBMIT,
               e->has_tag, e->tag, key, NULL);
        return;
    }
    accepted_send(r, e, j);
    if (e->again || j->committed) return;
    j->committed = 1;
    job_watch_deadline(r, j);
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
    struct lease *storing = sched_lease_find(r->sched, e->epoch, e->lease);
    if (storing && !storing->worker) sched_release(r->sched, storing);
    m.verdict = code ? unknown : kept;
    if (!j || states_get(&j->states, e->index) != IMAGE_LEASED) {
        m.verdict = cancelled; /* meanwhile, by a batch that drops the image too */
    } else {
        queue_move(r->queue, j, e->index, code ? IMAGE_QUEUED : IMAGE_SPOOLED);
        job_touch(r, j);
        if (!code) audience_spooled(r, j, e->index);
        if (!code) r->results++;
    }
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
        if (c->code && t->models) r->models_unstored = 1;
        if (c->expired >= EXPIRE_LIMIT) r->expire_again = 1;
        for (size_t i = 0; i < c->known_count; i++)
            known_now(r, t, c->known + i);
        for (struct effect *e = t->effects; e; e = e->next) {
            if (e->kind == EFFECT_ACCEPTED && e->job) accepted_now(r, e, c->code);
            if (e->kind == EFFECT_KEPT) kept_now(r, e, c->code);
            if (e->kind == EFFECT_ENDED) ended_now(r, e);
            if (e->kind == EFFECT_STATUS) status_now(r, e);
            if (e->kind == EFFECT_CANCEL) cancel_now(r, e);
            if (e->kind == EFFECT_FETCHED) fetched_now(r, e);
            if (e->kind == EFFECT_TOMBSTONE) tombstone_now(r, e, c->code);
        }
    }
    r->flight_bytes -= t->bytes;
    turn_free(t);
}

void completions(struct route *r)
{
    struct store_completion c;
    while (!r->broken && store_next(r->store, &c) == 1) {
        r->waiting--;
        if (c.kind == STORE_BATCH) {
            turn_done(r, c.cookie, &c);
        } else {
            struct question *q = c.cookie;
            if (q->kind == ASK_READ)
                r->reads--;
            else
                r->questions--;
            if (q->kind == ASK_READ)
                image_send(r, q, &c);
            else
                answer_query(r, q, &c);
            free(q);
        }
        store_completion_clear(&c);
    }
}
