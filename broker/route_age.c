// SPDX-License-Identifier: Apache-2.0
/* What time does: leases run out, deadlines pass, what nobody fetches ends. */
#include <stdlib.h>

#include "log.h"
#include "route_internal.h"

enum {
    SWEEP_MS = 500,    /* between two looks at leases and heartbeats */
    EXPIRE_MS = 60000, /* between two looks at ended jobs' age */
    CLIENT_SILENT_MS = 600000,
};

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
        struct peer to;
        peer_of(&to, w);
        (void)send_to(r, &to, STEERFARM__MESSAGE_TYPE__PING, &ping.base);
    }
}
/* What is spooled by then stays: it was made in time. */
static void deadlines_check(struct route *r)
{
    for (struct job *j; (j = deadline_passed(&r->deadlines, utc_now(r)));)
        if (!j->ending && j->states.counts[IMAGE_QUEUED] + j->states.counts[IMAGE_LEASED])
            job_cancel(r, j, IMAGE_EXPIRED, 0);
}

/* A job whose images nobody has fetched for --keep ends, with what is still queued of it: as long
 * as that waited, the spool would stay full of what nobody wants. */
static void age_check(void *data, struct job *j)
{
    struct route *r = data;
    if (j->ending || !j->states.counts[IMAGE_SPOOLED] ||
        utc_now(r) < j->touched_ms + r->options.keep_ms)
        return;
    char id[QUEUE_ID_BYTES];
    job_id_write(id, j->id);
    log_event(LOG_WARN, "job.abandoned", "job=%s spooled=%u queued=%u", id,
              j->states.counts[IMAGE_SPOOLED], j->states.counts[IMAGE_QUEUED]);
    job_cancel(r, j, IMAGE_EXPIRED, 1);
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

/* So many records in one batch: acks and results are not held up by more. */
static void store_expire(struct route *r)
{
    struct turn *t = turn_shrink(r);
    uint64_t utc = utc_now(r);
    r->expire_again = 0;
    if (t && utc > r->options.keep_ms &&
        store_batch_expire(t->batch, utc - r->options.keep_ms, EXPIRE_LIMIT))
        log_event(LOG_ERROR, "broker.memory", "reason=%s", log_quote("expiry put off"));
}

void timers(struct route *r)
{
    audiences_sweep(r);
    if (r->now_ms < r->swept_ms + SWEEP_MS) return;
    r->swept_ms = r->now_ms;
    r->no_room = 0;
    sweep_workers(r);
    if (r->models_unstored) models_store(r);
    deadlines_check(r);
    if (r->expire_again) store_expire(r);
    if (r->expired_ms && r->now_ms < r->expired_ms + EXPIRE_MS) return;
    r->expired_ms = r->now_ms;
    sweep_clients(r);
    queue_each(r->queue, age_check, r);
    store_expire(r);
    if (utc_now(r) > r->options.keep_ms) tombstones_sweep(r, utc_now(r) - r->options.keep_ms);
}
