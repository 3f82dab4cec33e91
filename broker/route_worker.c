// SPDX-License-Identifier: Apache-2.0
/* What a worker says: HELLO, CREDIT, RENEW, RESULT, FAIL, DRAIN, PONG. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "limits.h"
#include "log.h"
#include "route_internal.h"
#include "text.h"

static void verdict_send(struct route *r, const struct peer *to, Steerfarm__Lease *lease,
                         const char *verdict)
{
    Steerfarm__Verdict m = STEERFARM__VERDICT__INIT;
    m.lease = lease;
    m.verdict = (char *)(uintptr_t)verdict;
    (void)send_to(r, to, STEERFARM__MESSAGE_TYPE__VERDICT, &m.base);
}

/* ---- HELLO ---- */

/* What is cut would never be equal to what jobs say, and they would wait for ever. */
static int names_check(struct route *r, const struct peer *from, const Steerfarm__Hello *h)
{
    char text[512];
    const char *numerics = h->device->numerics;
    if (numerics && strlen(numerics) > STEER_NAME_BYTES_MAX) {
        refuse(r, from, STEER_BAD_VALUE, "a device's numerics class of over 128 bytes",
               STEERFARM__MESSAGE_TYPE__HELLO, 0, 0, NULL, NULL);
        return -1;
    }
    for (size_t i = 0; i < h->n_models; i++) {
        const Steerfarm__Model *m = h->models[i];
        size_t name = strlen(m->name), hash = strlen(m->hash);
        if (name && name <= STEER_NAME_BYTES_MAX && hash <= STEER_NAME_BYTES_MAX) continue;
        snprintf(
            text, sizeof text,
            "model \"%.*s\" has a name of %zu and a hash of %zu bytes: expected 1 to %d and at "
            "most %d",
            (int)text_cut(m->name, 100), m->name, name, hash, STEER_NAME_BYTES_MAX,
            STEER_NAME_BYTES_MAX);
        refuse(r, from, STEER_BAD_VALUE, text, STEERFARM__MESSAGE_TYPE__HELLO, 0, 0, NULL, NULL);
        return -1;
    }
    return 0;
}

static int hello_check(struct route *r, const struct peer *from, const Steerfarm__Hello *h)
{
    char text[256];
    if (h->version_min > STEER_WIRE_VERSION || h->version_max < STEER_WIRE_VERSION_MIN) {
        snprintf(text, sizeof text, "protocol versions %u to %u: this broker speaks %d to %d",
                 h->version_min, h->version_max, STEER_WIRE_VERSION_MIN, STEER_WIRE_VERSION);
        refuse(r, from, STEER_BAD_VERSION, text, STEERFARM__MESSAGE_TYPE__HELLO, 0, 0, NULL, NULL);
        return -1;
    }
    if (h->n_requires) {
        snprintf(text, sizeof text, "required feature \"%.*s\" is unknown to this broker",
                 (int)text_cut(h->requires[0], 100), h->requires[0]);
        refuse(r, from, STEER_UNSUPPORTED, text, STEERFARM__MESSAGE_TYPE__HELLO, 0, 0, NULL, NULL);
        return -1;
    }
    if (h->role != STEERFARM__ROLE__WORKER || !h->worker || !*h->worker ||
        strlen(h->worker) > STEER_NAME_BYTES_MAX || !h->has_incarnation || !h->device) {
        refuse(r, from, STEER_BAD_VALUE,
               "a worker's HELLO needs role WORKER, a worker id, an incarnation and a device",
               STEERFARM__MESSAGE_TYPE__HELLO, 0, 0, NULL, NULL);
        return -1;
    }
    if (h->n_models > STEER_MODELS_MAX || h->n_held > STEER_LEASES_MAX ||
        h->n_unacknowledged > STEER_LEASES_MAX) {
        refuse(r, from, STEER_BAD_VALUE, "a HELLO with too many models or leases",
               STEERFARM__MESSAGE_TYPE__HELLO, 0, 0, NULL, NULL);
        return -1;
    }
    return names_check(r, from, h);
}

/* Learns what is offered; `loaded` is of the hour and stays out of the catalogue. */
static void models_learn(struct route *r, const Steerfarm__Hello *h)
{
    for (size_t i = 0; i < h->n_models; i++) {
        Steerfarm__Model m = *h->models[i];
        uint8_t *data = NULL;
        size_t size = 0;
        if (!m.n_recipes || m.n_recipes > STEER_RECIPES_MAX) continue;
        m.has_loaded = 0;
        if (wire_pack(&m.base, &data, &size)) continue;
        if (catalog_put(r->catalog, data, size) == 1) {
            struct turn *t = turn_grow(r);
            log_event(LOG_INFO, "model.learnt", "model=%s hash=%s", log_quote(m.name),
                      log_quote(m.hash));
            if (t) t->models = 1;
            if (!t || store_batch_model_put(t->batch, m.name, data, size)) r->models_unstored = 1;
        }
        free(data);
    }
}

void models_store(struct route *r)
{
    Steerfarm__Model **all = catalog_all(r->catalog);
    struct store_space space;
    store_space(r->store, &space);
    struct turn *t = space.full ? NULL : turn_grow(r);
    if (!t) return;
    r->models_unstored = 0;
    t->models = 1;
    for (size_t i = 0; i < catalog_count(r->catalog); i++) {
        uint8_t *data = NULL;
        size_t size = 0;
        if (wire_pack(&all[i]->base, &data, &size) ||
            store_batch_model_put(t->batch, all[i]->name, data, size))
            r->models_unstored = 1;
        free(data);
    }
}

/* Two workers of one id: the one that started later stays. 0: `from` may stay. */
static int replaced(struct route *r, const struct peer *from, const Steerfarm__Hello *h)
{
    struct worker *other = sched_worker_id(r->sched, h->worker);
    Steerfarm__Replaced m = STEERFARM__REPLACED__INIT;
    static char text[] = "another worker of this id started later";
    m.text = text;
    if (!other || (other->identity_size == from->size &&
                   !memcmp(other->identity, from->identity, from->size)))
        return 0;
    if (h->incarnation < other->incarnation) {
        (void)send_to(r, from, STEERFARM__MESSAGE_TYPE__REPLACED, &m.base);
        return -1;
    }
    struct peer old;
    peer_of(&old, other);
    (void)send_to(r, &old, STEERFARM__MESSAGE_TYPE__REPLACED, &m.base);
    worker_lost(r, other, "a newer worker of this id took over");
    return 0;
}

static int lease_listed(const struct lease *l, Steerfarm__Lease *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (list[i]->epoch == l->epoch && list[i]->lease == l->number) return 1;
    return 0;
}

/* What we think the worker holds and it does not list never reached it. */
static void leases_compare(struct route *r, struct worker *w, const Steerfarm__Hello *h)
{
    for (struct lease *l = w->leases, *next; l; l = next) {
        next = l->next;
        if (lease_listed(l, h->held, h->n_held) ||
            lease_listed(l, h->unacknowledged, h->n_unacknowledged))
            continue;
        struct job *j = queue_find(r->queue, l->job);
        uint32_t index = l->index;
        lease_drop(r, l);
        if (j && states_get(&j->states, index) == IMAGE_LEASED)
            image_retry(r, j, index, STEER_WORKER_LOST, "the assignment was lost", w->id, 0, 0);
    }
}

/* Adopts a lease of before a restart when its image is still open; what is not is revoked. Which of
 * the held ones are a batch nobody knows any more: all of them, to be on the safe side. */
static void lease_adopt(struct route *r, struct worker *w, const Steerfarm__Lease *held,
                        size_t company, int done)
{
    struct job *j = queue_find(r->queue, job_id_read(held->job));
    struct lease *known = sched_lease_find(r->sched, held->epoch, held->lease);
    if (known && (known->worker == w || !known->worker)) return;
    int open =
        j && held->index < j->states.images && states_get(&j->states, held->index) == IMAGE_QUEUED;
    if (open && !known && held->epoch && !store_reserve(r->store, j->image_bytes)) {
        if (sched_lease(r->sched, w, held->epoch, held->lease, j, held->index,
                        r->now_ms + r->options.lease_ms, (int)company)) {
            queue_move(r->queue, j, held->index, IMAGE_LEASED);
            return;
        }
        store_release(r->store, j->image_bytes);
    }
    if (done) return; /* its RESULT will get a verdict */
    struct peer to;
    Steerfarm__Lease copy = *held, *list[1] = {&copy};
    Steerfarm__Revoke m = STEERFARM__REVOKE__INIT;
    peer_of(&to, w);
    m.leases = list;
    m.n_leases = 1;
    (void)send_to(r, &to, STEERFARM__MESSAGE_TYPE__REVOKE, &m.base);
}

static void on_hello(struct route *r, const struct peer *from, const Steerfarm__Hello *h)
{
    if (hello_check(r, from, h) || replaced(r, from, h)) return;
    models_learn(r, h);
    struct worker *w = sched_hello(r->sched, from->identity, from->size, h, r->now_ms);
    if (!w) {
        refuse(r, from, STEER_BUSY, "the broker is out of memory", STEERFARM__MESSAGE_TYPE__HELLO,
               0, 0, NULL, NULL);
        return;
    }
    leases_compare(r, w, h);
    for (size_t i = 0; i < h->n_held; i++)
        lease_adopt(r, w, h->held[i], h->n_held, 0);
    for (size_t i = 0; i < h->n_unacknowledged; i++)
        lease_adopt(r, w, h->unacknowledged[i], 1, 1);
    Steerfarm__Welcome m = STEERFARM__WELCOME__INIT;
    m.version = h->version_max < STEER_WIRE_VERSION ? h->version_max : STEER_WIRE_VERSION;
    m.epoch = r->epoch;
    m.has_heartbeat_ms = m.has_lease_ms = m.has_frame_bytes_max = 1;
    m.heartbeat_ms = r->options.heartbeat_ms;
    m.lease_ms = r->options.lease_ms;
    m.frame_bytes_max = STEER_IMAGE_BYTES_MAX;
    log_event(LOG_INFO, "worker.hello", "worker=%s models=%zu held=%zu numerics=%s",
              log_quote(w->id), w->models_count, h->n_held + h->n_unacknowledged,
              log_quote(w->numerics));
    (void)send_to(r, from, STEERFARM__MESSAGE_TYPE__WELCOME, &m.base);
}

/* ---- leases ---- */

/* The lease of that token if it is this worker's and names that image. */
static struct lease *lease_held(struct route *r, const struct worker *w, const Steerfarm__Lease *t)
{
    struct lease *l = sched_lease_find(r->sched, t->epoch, t->lease);
    if (!l || l->worker != w || l->job != job_id_read(t->job) || l->index != t->index) return NULL;
    return l;
}

/* Sent by workers whose engine moves, with leases or without; what they lost is taken off them. */
static void on_renew(struct route *r, struct worker *w, const struct peer *from,
                     const Steerfarm__Renew *m)
{
    static char none[] = "0-0"; /* a RENEW does not say which job, and we do not know any more */
    Steerfarm__Lease gone[STEER_LEASES_MAX], *list[STEER_LEASES_MAX];
    Steerfarm__Revoke lost = STEERFARM__REVOKE__INIT;
    lost.leases = list;
    if (m->n_leases > STEER_LEASES_MAX) {
        refuse(r, from, STEER_BAD_VALUE, "a RENEW of more than 1024 leases",
               STEERFARM__MESSAGE_TYPE__RENEW, 0, 0, NULL, NULL);
        return;
    }
    w->stalled = 0;
    for (size_t i = 0; i < m->n_leases; i++) {
        const Steerfarm__LeaseProgress *p = m->leases[i];
        struct lease *l = sched_lease_find(r->sched, p->epoch, p->lease);
        if (l && !l->worker) continue; /* its RESULT is being stored: a VERDICT will come */
        if (!l || l->worker != w) {
            Steerfarm__Lease *g = gone + lost.n_leases;
            *g = (Steerfarm__Lease)STEERFARM__LEASE__INIT;
            g->epoch = p->epoch;
            g->lease = p->lease;
            g->job = none;
            list[lost.n_leases++] = g;
            continue;
        }
        l->expires_ms = r->now_ms + r->options.lease_ms;
        struct job *j = queue_find(r->queue, l->job);
        if (!j || !j->audience || !p->has_step) continue;
        j->audience->step = p->step;
        j->audience->steps = p->steps;
        j->audience->dirty = 1;
    }
    if (lost.n_leases) (void)send_to(r, from, STEERFARM__MESSAGE_TYPE__REVOKE, &lost.base);
}

static void on_fail(struct route *r, struct worker *w, const Steerfarm__Fail *m)
{
    struct lease *l = lease_held(r, w, m->lease);
    w->stalled = 0;
    if (!l) return; /* of before: somebody else has the image */
    struct job *j = queue_find(r->queue, l->job);
    uint32_t index = l->index;
    int code = steer_code_of(m->code), company = l->company;
    lease_drop(r, l);
    if (!j || states_get(&j->states, index) != IMAGE_LEASED) return;
    if (code == STEER_CANCELLED) { /* drained: given back untouched */
        image_retry(r, j, index, code, m->text, w->id, 0, 0);
        return;
    }
    w->failed++;
    log_event(LOG_WARN, "image.attempt_failed", "job=%s index=%u worker=%s code=%s reason=%s",
              m->lease->job, index, log_quote(w->id), steer_code_name(code), log_quote(m->text));
    if (m->retryable) /* in company it may be another's fault: alone it is tried for real */
        image_retry(r, j, index, code, m->text, w->id, company == 1, company > 1);
    else
        image_fail(r, j, index, code, m->text);
}

/* ---- RESULT ---- */

enum { DAMAGED_MAX = 3 };

static const char *result_fault(const Steerfarm__Result *m, const struct wire_message *w)
{
    if (!w->payload.size || w->payload.size != m->bytes) return "retry";
    if (wire_crc32(w->payload.data, w->payload.size) != m->crc32) return "retry";
    return NULL;
}

/* What the image's state says to a RESULT; NULL: it is wanted. */
static const char *result_verdict(struct route *r, const struct job *j, const Steerfarm__Result *m)
{
    if (!j || m->index >= j->states.images) return "unknown";
    switch (states_get(&j->states, m->index)) {
    case IMAGE_QUEUED: break;
    case IMAGE_LEASED: /* without a lease it is on its way to the store */
        if (!sched_lease_of(r->sched, j->id, m->index)) return "duplicate";
        break;
    case IMAGE_CANCELLED:
    case IMAGE_EXPIRED: return "cancelled";
    default: return "duplicate";
    }
    /* What says nothing of how it was made proves nothing. */
    if ((*j->model_hash && strcmp(j->model_hash, m->model_hash ? m->model_hash : "") != 0) ||
        (*j->numerics && strcmp(j->numerics, m->numerics ? m->numerics : "") != 0))
        return "unknown";
    return NULL;
}

/* The worker that failed this image before is to blame when another renders it. */
static void blame(struct route *r, struct job *j, uint32_t index, struct worker *w)
{
    const struct trouble *t = trouble_find(&j->troubles, index);
    sched_praise(w);
    if (!t) return;
    if (*t->worker && strcmp(t->worker, w->id) != 0 && t->code != STEER_WORKER_LOST) {
        struct worker *guilty = sched_worker_id(r->sched, t->worker);
        if (guilty && sched_blame(guilty, j->id))
            log_event(LOG_WARN, "worker.quarantined", "worker=%s reason=%s", log_quote(guilty->id),
                      log_quote("it failed three jobs that others rendered"));
    }
    struct turn *turn = turn_grow(r); /* together with the image: its failures are history */
    struct store_failure none = {j->id, index, 0, 0, NULL};
    if (t->attempts && turn && store_batch_failure_put(turn->batch, &none))
        log_event(LOG_ERROR, "broker.memory", "job=%" PRIu64, j->id);
    trouble_drop(&j->troubles, index);
}

/* Puts the image into the turn's batch; nothing has changed when that fails. */
static int result_store(struct route *r, const struct job *j, const Steerfarm__Result *m,
                        const struct peer *from, struct store_payload *payload)
{
    struct turn *t = turn_grow(r);
    Steerfarm__Result header = *m;
    Steerfarm__Timing timing = STEERFARM__TIMING__INIT;
    struct effect *e = effect_new(EFFECT_KEPT, j->id);
    uint8_t *packed = NULL;
    size_t size = 0;
    header.lease = NULL; /* a matter between us and the worker */
    if (m->timing) timing = *m->timing;
    header.timing = &timing;
    int code = t && e ? wire_pack(&header.base, &packed, &size) : STEER_NO_MEMORY;
    if (!code) {
        struct store_image image = {j->id, m->index, m->bytes, m->crc32, packed, size};
        code = store_batch_image_spool(t->batch, &image, payload);
        payload->release = NULL; /* the store's now, or let go of */
    }
    free(packed);
    if (code) {
        free(e);
        return code;
    }
    e->to = *from;
    e->epoch = m->lease->epoch;
    e->lease = m->lease->lease;
    e->index = m->index;
    effect_link(t, e);
    return 0;
}

static void on_result(struct route *r, struct worker *w, const struct peer *from,
                      const struct wire_message *wire, struct store_payload *payload)
{
    Steerfarm__Result *m = (Steerfarm__Result *)wire->body;
    if (!m->lease || !payload) {
        refuse(r, from, STEER_BAD_FRAME, "a worker's RESULT needs a lease and a payload",
               STEERFARM__MESSAGE_TYPE__RESULT, 0, 0, NULL, NULL);
        return;
    }
    if (strcmp(m->lease->job, m->job) != 0 || m->lease->index != m->index) {
        refuse(r, from, STEER_BAD_FRAME, "a RESULT of another image than its lease's",
               STEERFARM__MESSAGE_TYPE__RESULT, 0, 0, NULL, m->job);
        return;
    }
    struct lease *storing = sched_lease_find(r->sched, m->lease->epoch, m->lease->lease);
    if (storing && !storing->worker) return; /* sent again meanwhile: one VERDICT will do */
    struct job *j = queue_find(r->queue, job_id_read(m->job));
    const char *verdict = result_verdict(r, j, m);
    int damaged = !verdict && (verdict = result_fault(m, wire)) != NULL;
    struct lease *l = lease_held(r, w, m->lease);
    w->stalled = 0;
    if (verdict) {
        r->duplicates += strcmp(verdict, "duplicate") == 0;
        if (damaged && (!l || ++l->damaged >= DAMAGED_MAX)) verdict = "unknown";
        if (l && strcmp(verdict, "retry") != 0) {
            lease_drop(r, l);
            /* The image is still wanted, only not this one. */
            if (j && m->index < j->states.images &&
                states_get(&j->states, m->index) == IMAGE_LEASED)
                image_retry(
                    r, j, m->index, STEER_RENDER_FAILED,
                    damaged ? "the image's bytes arrived damaged"
                            : "the worker rendered with another model or numerics than the job's",
                    w->id, 1, 0);
        }
        verdict_send(r, from, m->lease, verdict);
        return;
    }
    if (result_store(r, j, m, from, payload)) return; /* out of memory: it is sent again */
    if (!l && (l = sched_lease_of(r->sched, j->id, m->index))) revoke(r, l);
    if (l) lease_drop(r, l);
    if (sched_storing(r->sched, m->lease->epoch, m->lease->lease))
        log_event(LOG_ERROR, "broker.memory", "job=%s", m->job);
    if (states_get(&j->states, m->index) == IMAGE_QUEUED)
        queue_move(r->queue, j, m->index, IMAGE_LEASED);
    blame(r, j, m->index, w);
    w->done++;
}

/* ---- all ---- */

void worker_message(struct route *r, const struct peer *from, const struct wire_message *m,
                    struct store_payload *payload)
{
    struct worker *w = sched_worker(r->sched, from->identity, from->size);
    if (m->type == STEERFARM__MESSAGE_TYPE__HELLO) {
        on_hello(r, from, (const Steerfarm__Hello *)m->body);
        return;
    }
    if (!w) {
        refuse(r, from, STEER_HELLO_REQUIRED, "say HELLO first", m->type, 0, 0, NULL, NULL);
        return;
    }
    w->heard_ms = r->now_ms;
    switch (m->type) {
    case STEERFARM__MESSAGE_TYPE__CREDIT: {
        const Steerfarm__Credit *c = (const Steerfarm__Credit *)m->body;
        w->credit_images = c->images < STEER_LEASES_MAX ? c->images : STEER_LEASES_MAX;
        w->credit_bytes = c->has_bytes ? c->bytes : UINT64_MAX;
        w->batch_max = c->batch;
        break;
    }
    case STEERFARM__MESSAGE_TYPE__RENEW:
        on_renew(r, w, from, (const Steerfarm__Renew *)m->body);
        break;
    case STEERFARM__MESSAGE_TYPE__FAIL: on_fail(r, w, (const Steerfarm__Fail *)m->body); break;
    case STEERFARM__MESSAGE_TYPE__RESULT: on_result(r, w, from, m, payload); break;
    case STEERFARM__MESSAGE_TYPE__DRAIN:
        w->state = WORKER_DRAINING;
        log_event(LOG_INFO, "worker.draining", "worker=%s", log_quote(w->id));
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
        refuse(r, from, STEER_BAD_FRAME, "workers do not send this message", m->type, 0, 0, NULL,
               NULL);
    }
}
