// SPDX-License-Identifier: Apache-2.0
#include "route.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "limits.h"
#include "log.h"
#include "route_internal.h"
#include "text.h"

enum {
    RETRY_AFTER_MS = 2000, /* told to clients that meet a limit */
};

uint64_t utc_now(const struct route *r)
{
    return r->now_ms + r->options.utc_offset_ms;
}

/* ---- sending ---- */

void peer_of(struct peer *to, const struct worker *w)
{
    memset(to, 0, sizeof *to); /* peers are compared whole */
    to->side = SIDE_WORKERS;
    to->size = w->identity_size;
    memcpy(to->identity, w->identity, w->identity_size);
}

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
    m.has_retry_after_ms = code == STEER_BUSY || code == STEER_DISK_FULL || code == STEER_NO_MEMORY;
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
    if (grows) store_batch_grows(b);
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

struct effect *effect_new(enum effect_kind kind, uint64_t job)
{
    struct effect *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->kind = kind;
    e->job = job;
    return e;
}

void effect_link(struct turn *t, struct effect *e)
{
    *t->effects_end = e;
    t->effects_end = &e->next;
}

struct effect *effect_add(struct turn *t, enum effect_kind kind, uint64_t job)
{
    struct effect *e = effect_new(kind, job);
    if (e) effect_link(t, e);
    return e;
}

void turn_free(struct turn *t)
{
    if (!t) return;
    while (t->effects) {
        struct effect *e = t->effects;
        t->effects = e->next;
        free(e->key);
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
int route_turn(struct route *r, uint64_t now_ms, struct steer_error *err)
{
    r->now_ms = now_ms;
    completions(r);
    timers(r);
    turn_submit(r, &r->grow); /* counts its images in: what is assigned must see them */
    turn_submit(r, &r->shrink);
    assign_all(r);
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
        int type =
            count && frames->size == WIRE_HEAD_BYTES ? ((const uint8_t *)frames->data)[3] : 0;
        refuse(r, &from, code, err.text, type, 0, 0, NULL, NULL);
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
    job_touched_load(r, j, s->accepted_ms);
    job_watch_deadline(r, j);
    queue_move(r->queue, j, 0, IMAGE_QUEUED);
    return 0;
}

static int load_chunk(void *data, const struct store_chunk *c)
{
    struct route *r = data;
    struct job *j = queue_find(r->queue, c->job);
    return j ? job_chunk_load(r, j, c) : 0;
}

static int load_failure(void *data, const struct store_failure *f)
{
    struct route *r = data;
    struct job *j = queue_find(r->queue, f->job);
    struct trouble *t =
        j && f->index < j->states.images ? trouble_get(&j->troubles, f->index) : NULL;
    if (!t) return 0;
    if (states_get(&j->states, f->index) == IMAGE_FAILED) {
        trouble_settle(j, t, f->attempts, f->code, f->text ? f->text : "");
        return 0;
    }
    t->attempts = f->attempts;
    t->code = f->code;
    text_copy(t->text, sizeof t->text, f->text ? f->text : "");
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
    if (getrandom(&r->salt, sizeof r->salt, 0) != sizeof r->salt) r->salt = now_ms;
    r->queue = queue_new(r->salt);
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
    free(r->deadlines.jobs);
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
