// SPDX-License-Identifier: Apache-2.0
/* What time does: leases run out, deadlines pass, what nobody fetches ends. */
#include <stdlib.h>

#include "log.h"
#include "route_internal.h"

enum {
    SWEEP_MS = 500,       /* between two looks at leases and heartbeats */
    EXPIRE_MS = 60000,    /* between two looks at ended jobs' age */
    EXPIRE_LIMIT = 10000, /* records forgotten in one batch */
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
static void deadline_check(void *data, struct job *j)
{
    struct route *r = data;
    if (!j->deadline_ms || j->ending || !j->committed || utc_now(r) < j->deadline_ms) return;
    if (j->states.counts[IMAGE_QUEUED] + j->states.counts[IMAGE_LEASED] == 0) return;
    job_cancel(r, j, IMAGE_EXPIRED, 0);
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

void timers(struct route *r)
{
    audiences_sweep(r);
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
