// SPDX-License-Identifier: Apache-2.0
/* Invariant: jobs[i] is at deadline_at i + 1, and passes no earlier than jobs[(i - 1) / 2]. */
#include "deadline.h"

#include <stdlib.h>

static void put(struct deadlines *d, uint32_t at, struct job *j)
{
    d->jobs[at] = j;
    j->deadline_at = at + 1;
}

static void sift_up(struct deadlines *d, uint32_t at, struct job *j)
{
    while (at && d->jobs[(at - 1) / 2]->deadline_ms > j->deadline_ms) {
        put(d, at, d->jobs[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    put(d, at, j);
}

static void sift_down(struct deadlines *d, uint32_t at, struct job *j)
{
    for (uint32_t child; (child = 2 * at + 1) < d->count; at = child) {
        if (child + 1 < d->count && d->jobs[child + 1]->deadline_ms < d->jobs[child]->deadline_ms)
            child++;
        if (d->jobs[child]->deadline_ms >= j->deadline_ms) break;
        put(d, at, d->jobs[child]);
    }
    put(d, at, j);
}

int deadline_watch(struct deadlines *d, struct job *j)
{
    if (!j->deadline_ms || j->deadline_at) return 0;
    if (d->count == d->room) {
        uint32_t room = d->room ? 2 * d->room : 64;
        struct job **jobs = realloc(d->jobs, room * sizeof *jobs);
        if (!jobs) return STEER_NO_MEMORY;
        d->jobs = jobs;
        d->room = room;
    }
    sift_up(d, d->count++, j);
    return 0;
}

void deadline_drop(struct deadlines *d, struct job *j)
{
    if (!j->deadline_at) return;
    uint32_t at = j->deadline_at - 1;
    struct job *last = d->jobs[--d->count];
    j->deadline_at = 0;
    if (last == j) return;
    if (at && d->jobs[(at - 1) / 2]->deadline_ms > last->deadline_ms)
        sift_up(d, at, last);
    else
        sift_down(d, at, last);
}

struct job *deadline_passed(struct deadlines *d, uint64_t utc_ms)
{
    struct job *j = d->count ? d->jobs[0] : NULL;
    if (!j || utc_ms < j->deadline_ms) return NULL;
    deadline_drop(d, j);
    return j;
}
