// SPDX-License-Identifier: Apache-2.0
/* Who watches and fetches: PROGRESS, RESULT until it is acknowledged, DONE. */
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "route_internal.h"

enum {
    RESEND_MS = 2000,  /* a RESULT that nobody acknowledged; doubled each time */
    PROGRESS_MS = 200, /* between two PROGRESS of a job */
    SWEEP_MS = 50,     /* between two looks at all audiences */
    READS_MAX = 256,   /* images on their way from disk to pipes, in memory */
    BLIND_TRIES = 2,   /* copies of a RESULT to somebody who says nothing any more */
};
#define UNACKED_BYTES_MAX (64ull << 20) /* of one job, at the worst, in the fetcher's pipe */

/* ---- who listens ---- */

struct audience *audience_of(struct route *r, struct job *j)
{
    if (j->audience) return j->audience;
    struct audience *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->job = j;
    a->at = &r->audiences;
    a->next = r->audiences;
    if (a->next) a->next->at = &a->next;
    r->audiences = a;
    return j->audience = a;
}

void audience_free(struct route *r, struct audience *a)
{
    (void)r;
    if (!a) return;
    *a->at = a->next;
    if (a->next) a->next->at = a->at;
    a->job->audience = NULL;
    free(a->watchers);
    free(a);
}

void audience_leave(struct route *r, struct audience *a)
{
    if (!a->watchers_count && !a->fetching) audience_free(r, a);
}

/* ---- what is fetched ---- */

static int by_first(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return (x[0] > y[0]) - (x[0] < y[0]);
}

/* Those of an index the job does not have are left out and counted in *ret_bad. */
size_t ranges_merge(uint32_t (*to)[2], Steerfarm__Range *const *from, size_t from_count,
                    uint32_t images, size_t *ret_bad)
{
    size_t good = 0, count = 0;
    for (size_t i = 0; i < from_count; i++) {
        if (from[i]->first >= images || from[i]->last < from[i]->first) continue;
        to[good][0] = from[i]->first;
        to[good++][1] = from[i]->last < images ? from[i]->last + 1 : images;
    }
    qsort(to, good, sizeof *to, by_first);
    for (size_t i = 0; i < good; i++) {
        if (count && to[i][0] <= to[count - 1][1]) {
            if (to[i][1] > to[count - 1][1]) to[count - 1][1] = to[i][1];
            continue;
        }
        memmove(to[count++], to[i], sizeof *to);
    }
    *ret_bad = from_count - good;
    return count;
}

static int ranges_take(struct audience *a, const Steerfarm__Fetch *m)
{
    uint32_t images = a->job->states.images, wanted[FETCH_RANGES_MAX][2] = {{0, images}};
    size_t bad = 0, count = 1;
    if (m->n_indices) count = ranges_merge(wanted, m->indices, m->n_indices, images, &bad);
    if (bad) return STEER_BAD_VALUE;
    memcpy(a->ranges, wanted, sizeof wanted);
    a->ranges_count = (uint32_t)count;
    return 0;
}

int audience_fetch(struct route *r, struct audience *a, const struct peer *from,
                   const Steerfarm__Fetch *m, const char **ret_why)
{
    *ret_why = "a FETCH of more than 64 ranges";
    if (m->n_indices > FETCH_RANGES_MAX) return STEER_BAD_VALUE;
    *ret_why = "a FETCH of images that the job does not have";
    if (ranges_take(a, m)) return STEER_BAD_VALUE;
    if (a->fetching && memcmp(&a->fetcher, from, sizeof *from) == 0) {
        for (uint32_t i = 0; i < a->sent_count; i++) /* it is back: what was given up begins anew */
            if (a->sent[i].tries >= BLIND_TRIES) a->sent[i].tries = 0;
    } else {
        if (a->fetching)
            refuse(r, &a->fetcher, STEER_REPLACED, "another client fetches this job now",
                   STEERFARM__MESSAGE_TYPE__FETCH, 0, 0, NULL, m->job);
        a->sent_count = 0;
    }
    a->fetcher = *from;
    a->fetching = 1;
    a->over = 0;
    a->pump_at = a->open_at = 0;
    uint64_t most = UNACKED_BYTES_MAX / a->job->image_bytes;
    a->credit = m->credit < FETCH_CREDIT_MAX ? m->credit : FETCH_CREDIT_MAX;
    if (a->credit > most) a->credit = most ? (uint32_t)most : 1;
    audience_settle(r, a->job);
    audience_pump(r, a->job);
    return 0;
}

/* Goes on to the first image from pump_at on that is fetched and spooled; 0: there is none. */
static int pump_next(struct audience *a)
{
    for (uint32_t k = 0; k < a->ranges_count; k++) {
        uint32_t from = a->ranges[k][0] > a->pump_at ? a->ranges[k][0] : a->pump_at;
        uint32_t end = a->ranges[k][1];
        if (from >= end) continue;
        a->pump_at = states_find_to(&a->job->states, from, end, IMAGE_SPOOLED);
        if (a->pump_at < end) return 1;
    }
    return 0;
}

static int fetch_over(struct audience *a)
{
    for (uint32_t k = 0; k < a->ranges_count; k++) {
        uint32_t from = a->ranges[k][0] > a->open_at ? a->ranges[k][0] : a->open_at;
        uint32_t end = a->ranges[k][1];
        if (from >= end) continue;
        a->open_at = states_find_open(&a->job->states, from, end);
        if (a->open_at < end) return 0;
    }
    return 1;
}

void audience_settle(struct route *r, struct job *j)
{
    struct audience *a = j->audience;
    if (!a || !a->fetching || a->over || j->ending || !fetch_over(a)) return;
    struct turn *t = turn_shrink(r);
    struct effect *e = t ? effect_add(t, EFFECT_FETCHED, j->id) : NULL;
    if (!e) return;
    e->to = a->fetcher;
    a->over = 1;
}

void fetched_now(struct route *r, const struct effect *e)
{
    struct job *j = queue_find(r->queue, e->job);
    struct audience *a = j ? j->audience : NULL;
    if (!a || !a->fetching || !a->over || memcmp(&a->fetcher, &e->to, sizeof e->to) != 0) return;
    struct status s;
    Steerfarm__Done m = STEERFARM__DONE__INIT;
    status_of_job(&s, j);
    m.status = &s.msg;
    (void)send_to(r, &a->fetcher, STEERFARM__MESSAGE_TYPE__DONE, &m.base);
    status_clear(&s);
    a->fetching = 0;
    audience_leave(r, a);
}

void audience_spooled(struct route *r, struct job *j, uint32_t index)
{
    struct audience *a = j->audience;
    if (!a) return;
    a->dirty = 1;
    if (index < a->pump_at) a->pump_at = index;
    audience_pump(r, j);
}

void audience_acked(struct job *j, uint32_t index)
{
    struct audience *a = j->audience;
    for (uint32_t k = 0; a && k < a->sent_count; k++)
        if (a->sent[k].index == index) a->sent[k--] = a->sent[--a->sent_count];
}

void audience_reopened(struct job *j)
{
    if (!j->audience) return;
    j->audience->open_at = 0;
    j->audience->over = 0;
}

/* ---- RESULT ---- */

static void image_read(struct route *r, struct audience *a, struct sent *s)
{
    /* What is not read now is due at the next sweep. */
    struct question *q = r->reads < READS_MAX ? calloc(1, sizeof *q) : NULL;
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
    r->reads++;
}

static int under_way(const struct audience *a, uint32_t index)
{
    for (uint32_t k = 0; k < a->sent_count; k++)
        if (a->sent[k].index == index) return 1;
    return 0;
}

void audience_pump(struct route *r, struct job *j)
{
    struct audience *a = j->audience;
    if (!a || !a->fetching || !j->committed) return;
    for (; a->sent_count < a->credit && pump_next(a); a->pump_at++) {
        if (under_way(a, a->pump_at)) continue;
        a->sent[a->sent_count] = (struct sent){.index = a->pump_at};
        image_read(r, a, a->sent + a->sent_count++);
    }
}

void image_send(struct route *r, struct question *q, struct store_completion *c)
{
    struct job *j = queue_find(r->queue, q->job);
    struct audience *a = j ? j->audience : NULL;
    struct sent *s = NULL;
    for (uint32_t k = 0; a && k < a->sent_count; k++)
        if (a->sent[k].index == q->index) s = a->sent + k;
    if (!j || states_get(&j->states, q->index) != IMAGE_SPOOLED) return;
    if (c->code == STEER_NOT_FOUND || c->code == STEER_IO) { /* rendered again */
        char id[QUEUE_ID_BYTES];
        job_id_write(id, j->id);
        log_event(LOG_WARN, "spool.lost", "job=%s index=%u code=%s", id, q->index,
                  steer_code_name(c->code));
        struct turn *t = turn_shrink(r);
        if (s) *s = a->sent[--a->sent_count];
        if (t && store_batch_image_drop(t->batch, j->id, q->index)) return;
        queue_move(r->queue, j, q->index, IMAGE_QUEUED);
        job_watch_deadline(r, j); /* it may have passed while all was made */
        return;
    }
    if (c->code) { /* says nothing about the image: it is read again, as if it had not arrived */
        if (s) s->reading = 0;
        if (s) s->sent_ms = r->now_ms;
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

void done_send(struct route *r, struct audience *a, struct status *s)
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
/* More and more slowly: after RESEND_TRIES, in 17 minutes, not again. */
static uint64_t resend_ms(const struct sent *s)
{
    return (uint64_t)RESEND_MS << (s->tries > 0 ? s->tries - 1 : 0);
}

/* A client that is silent may be gone, with all that was sent lying in its pipe: it gets a second
 * copy, in case one was lost on the way, and more only when it speaks again. */
static void resend(struct route *r, struct audience *a)
{
    uint64_t heard_ms = client_heard_ms(r, &a->fetcher);
    for (uint32_t i = 0; a->fetching && i < a->sent_count; i++) {
        struct sent *s = a->sent + i;
        if (s->reading || r->now_ms < s->sent_ms + resend_ms(s)) continue;
        if (s->tries >= RESEND_TRIES || !heard_ms)
            a->fetching = 0; /* nobody is there; a FETCH begins anew */
        else if (s->tries < BLIND_TRIES || heard_ms > s->sent_ms)
            image_read(r, a, s);
    }
}

void audiences_sweep(struct route *r)
{
    if (r->now_ms < r->audiences_ms + SWEEP_MS) return;
    r->audiences_ms = r->now_ms;
    for (struct audience *a = r->audiences, *next; a; a = next) {
        next = a->next;
        if (a->fetching) resend(r, a);
        if (a->watchers_count && a->dirty && r->now_ms >= a->progress_ms + PROGRESS_MS)
            progress_send(r, a);
        audience_leave(r, a);
    }
}
