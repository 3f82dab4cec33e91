// SPDX-License-Identifier: Apache-2.0
/* Who watches and fetches: PROGRESS, RESULT until it is acknowledged, DONE. */
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "route_internal.h"

enum {
    RESEND_MS = 2000,  /* a RESULT that nobody acknowledged; doubled each time */
    PROGRESS_MS = 200, /* between two PROGRESS of a job */
};

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

void audience_free(struct route *r, struct audience *a)
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

void audiences_sweep(struct route *r)
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
