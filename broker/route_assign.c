// SPDX-License-Identifier: Apache-2.0
/* Batches to workers that have room. */
#include "limits.h"
#include "log.h"
#include "route_internal.h"

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
    struct peer to;
    peer_of(&to, w);
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

enum { FULL_TOLD_MS = 60000 }; /* between two lines about a spool that stays full */

static void spool_full(struct route *r)
{
    if (!r->full_told_ms || r->now_ms >= r->full_told_ms + FULL_TOLD_MS) {
        log_event(LOG_WARN, "spool.full", "reason=%s",
                  log_quote("no room for more images until some are fetched"));
        r->full_told_ms = r->now_ms;
    }
    r->no_room = 1; /* after the undoing, which makes room */
}

/* Room and a lease for as many of the batch as there is room for; how many. */
static int assign_lease(struct route *r, struct worker *w, const struct taken *taken,
                        struct lease **leases, int count)
{
    int n = 0;
    while (n < count && !store_reserve(r->store, taken[n].job->image_bytes)) {
        leases[n] = sched_lease(r->sched, w, 0, 0, taken[n].job, taken[n].index,
                                r->now_ms + r->options.lease_ms, count);
        if (!leases[n]) {
            store_release(r->store, taken[n].job->image_bytes);
            break;
        }
        n++;
    }
    for (int i = 0; i < n; i++)
        leases[i]->company = n; /* the others have stayed behind */
    return n;
}

/* One batch to w; 0: there was none, or it could not go out. */
static int assign(struct route *r, struct worker *w)
{
    struct taken taken[STEER_BATCH_MAX];
    struct lease *leases[STEER_BATCH_MAX] = {NULL};
    int room = w->batch_max && w->batch_max < STEER_BATCH_MAX ? (int)w->batch_max : STEER_BATCH_MAX;
    int count = sched_take(r->sched, r->queue, w, r->now_ms, taken, room);
    if (!count) return 0;
    int n = assign_lease(r, w, taken, leases, count);
    if (n < count) {
        assign_undo(r, taken + n, leases + n, count - n);
        spool_full(r);
    }
    if (!n) return 0;
    if (!assign_send(r, w, taken, leases, n)) return 1;
    assign_undo(r, taken, leases, n);
    return 0;
}

void assign_all(struct route *r)
{
    if (r->paused) return;
    for (int again = 1; again && !r->no_room;) {
        again = 0;
        for (struct worker *w = sched_first(r->sched); w && !r->no_room; w = w->next)
            again |= assign(r, w);
    }
}
