// SPDX-License-Identifier: Apache-2.0
#include "link.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "limits.h"
#include "log.h"

#define HEARTBEAT_MS 1000
/* The engine beats after each image, band and block of an operation and after each packed weight.
 * The longest between two beats is a 2048x2048 image's convolution (2.5 TFLOP) or the hash of a
 * folder on a slow disk; only an engine that hangs takes this long. */
#define STUCK_MS     300000
#define RESEND_MS    5000 /* a RESULT without a verdict; doubled each time */
#define CREDIT_BYTES (UINT64_C(512) << 20)

/* Invariants:
 * 1. A lease that the broker may believe in is in `held` until its VERDICT, FAIL or REVOKE. The
 * engine owes a done for each that has none, so what is renewed always comes to an end.
 * 2. A finished image stays there with its done to its VERDICT, a failed one until its FAIL is out,
 *    whatever the connection does.
 * 3. Nothing but HELLO is sent before WELCOME. */

struct held {
    uint64_t epoch, lease;
    char job[STEER_JOB_ID_BYTES_MAX + 1];
    uint32_t index;
    struct done *done; /* NULL: still rendering */
    uint64_t due_ms;   /* done: when to send it (again) */
    int tries;
};

struct link {
    const struct link_options *options;
    struct engine *engine;
    void *context, *socket;
    uint64_t incarnation;
    int welcomed, draining, drained_told;
    uint32_t heartbeat_ms, lease_ms;
    uint64_t heard_ms, hello_ms, renewed_ms;
    struct held held[STEER_LEASES_MAX];
    int held_count;
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- socket ---- */

static int socket_open(struct link *l, struct steer_error *err)
{
    l->socket = zmq_socket(l->context, ZMQ_DEALER);
    if (!l->socket)
        return steer_fail(err, STEER_NO_MEMORY, "a socket cannot be made: %s", zmq_strerror(errno));
    int linger = 500, immediate = 1, hwm = 4096, reconnect = 100, reconnect_max = 2000;
    int64_t bytes_max = STEER_BODY_BYTES_MAX;
    char id[STEER_NAME_BYTES_MAX + 24];
    int n = snprintf(id, sizeof id, "%s/%016" PRIx64, l->options->worker, l->incarnation);
    zmq_setsockopt(l->socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(l->socket, ZMQ_IMMEDIATE, &immediate, sizeof immediate);
    zmq_setsockopt(l->socket, ZMQ_SNDHWM, &hwm, sizeof hwm);
    zmq_setsockopt(l->socket, ZMQ_RCVHWM, &hwm, sizeof hwm);
    zmq_setsockopt(l->socket, ZMQ_MAXMSGSIZE, &bytes_max, sizeof bytes_max);
    zmq_setsockopt(l->socket, ZMQ_RECONNECT_IVL, &reconnect, sizeof reconnect);
    zmq_setsockopt(l->socket, ZMQ_RECONNECT_IVL_MAX, &reconnect_max, sizeof reconnect_max);
    zmq_setsockopt(l->socket, ZMQ_ROUTING_ID, id, (size_t)n);
    if (zmq_connect(l->socket, l->options->broker))
        return steer_fail(err, STEER_BAD_VALUE, "--broker \"%s\": %s", l->options->broker,
                          zmq_strerror(errno));
    return 0;
}

/* A fresh connection, so that nothing of the old conversation is left in a queue. */
static int socket_reopen(struct link *l, struct steer_error *err)
{
    int none = 0;
    zmq_setsockopt(l->socket, ZMQ_LINGER, &none, sizeof none);
    zmq_close(l->socket);
    l->welcomed = 0;
    l->hello_ms = 0;
    return socket_open(l, err);
}

static void image_sent(void *data, void *done)
{
    (void)data;
    done_free(done);
}

/* The image is not copied: its done lives until ZeroMQ is through with it. */
static int payload_init(zmq_msg_t *part, struct done *d)
{
    done_keep(d);
    if (!zmq_msg_init_data(part, d->image, d->image_bytes, image_sent, d)) return 0;
    done_free(d);
    return -1;
}

/* payload NULL: none. All parts are there before the first is sent, so that no message is left
 * half sent. */
static int send_message(struct link *l, int type, const ProtobufCMessage *body,
                        struct done *payload)
{
    uint8_t *data = NULL;
    size_t size;
    zmq_msg_t parts[3];
    int count = 0, code = -1;
    if (wire_pack(body, &data, &size)) return -1;
    if (!zmq_msg_init_size(parts, WIRE_HEAD_BYTES)) count++;
    if (count == 1 && !zmq_msg_init_size(parts + 1, size)) count++;
    if (count == 2 && payload && !payload_init(parts + 2, payload)) count++;
    if (count == (payload ? 3 : 2)) {
        wire_head(zmq_msg_data(parts), type);
        memcpy(zmq_msg_data(parts + 1), data, size);
        code = 0;
        for (int i = 0; i < count && !code; i++)
            if (zmq_msg_send(parts + i, l->socket,
                             ZMQ_DONTWAIT | (i + 1 < count ? ZMQ_SNDMORE : 0)) < 0)
                code = -1;
    }
    for (int i = 0; i < count; i++)
        zmq_msg_close(parts + i); /* empty once it is sent */
    free(data);
    return code;
}

/* ---- what is held ---- */

static struct held *held_find(struct link *l, uint64_t epoch, uint64_t lease)
{
    for (int i = 0; i < l->held_count; i++)
        if (l->held[i].epoch == epoch && l->held[i].lease == lease) return l->held + i;
    return NULL;
}

static void held_remove(struct link *l, struct held *h)
{
    done_free(h->done);
    *h = l->held[--l->held_count];
}

/* ---- sending ---- */

static void send_credit(struct link *l)
{
    Steerfarm__Credit credit = STEERFARM__CREDIT__INIT;
    uint64_t bytes = 0;
    for (int i = 0; i < l->held_count; i++)
        if (l->held[i].done) bytes += l->held[i].done->image_bytes;
    credit.images = l->draining ? 0 : (uint32_t)(l->options->batch_max * (1 + l->options->ahead));
    credit.has_batch = 1;
    credit.batch = (uint32_t)l->options->batch_max;
    credit.has_bytes = 1;
    credit.bytes = bytes < CREDIT_BYTES ? CREDIT_BYTES - bytes : 0;
    (void)send_message(l, STEERFARM__MESSAGE_TYPE__CREDIT, &credit.base, NULL);
}

static void send_result(struct link *l, struct held *h)
{
    struct done *d = h->done;
    Steerfarm__Lease lease = STEERFARM__LEASE__INIT;
    lease.epoch = h->epoch;
    lease.lease = h->lease;
    lease.job = h->job;
    lease.index = h->index;
    if (d->code) {
        Steerfarm__Fail fail = STEERFARM__FAIL__INIT;
        fail.lease = &lease;
        fail.code = (char *)(uintptr_t)steer_code_name(d->code);
        fail.text = d->error.text;
        fail.retryable = d->retryable;
        if (!send_message(l, STEERFARM__MESSAGE_TYPE__FAIL, &fail.base, NULL)) held_remove(l, h);
        return;
    }
    d->header.lease = &lease;
    d->header.worker = (char *)(uintptr_t)l->options->worker;
    d->header.device = l->options->device->name;
    /* Without a verdict the next HELLO lists it and WELCOME sends it again. So does time: RENEW
     * keeps its lease, so that the broker would wait for it for ever. */
    h->due_ms = now_ms();
    if (!send_message(l, STEERFARM__MESSAGE_TYPE__RESULT, &d->header.base, d))
        h->due_ms += (uint64_t)RESEND_MS << (h->tries < 6 ? h->tries++ : 6);
    d->header.lease = NULL;
}

static void send_hello(struct link *l)
{
    static char software[] = "steer-worker " STEER_VERSION;
    Steerfarm__Hello hello = STEERFARM__HELLO__INIT;
    Steerfarm__Lease leases[STEER_LEASES_MAX], *held[STEER_LEASES_MAX],
        *unacknowledged[STEER_LEASES_MAX];
    hello.version_min = STEER_WIRE_VERSION_MIN;
    hello.version_max = STEER_WIRE_VERSION;
    hello.role = STEERFARM__ROLE__WORKER;
    hello.software = software;
    hello.worker = (char *)(uintptr_t)l->options->worker;
    hello.has_incarnation = 1;
    hello.incarnation = l->incarnation;
    hello.models = l->options->models;
    hello.n_models = l->options->models_count;
    hello.device = l->options->device;
    for (size_t i = 0; i < hello.n_models; i++) {
        hello.models[i]->has_loaded = 1;
        hello.models[i]->loaded = engine_has(l->engine, hello.models[i]->name);
    }
    for (int i = 0; i < l->held_count; i++) {
        const struct held *h = l->held + i;
        leases[i] = (Steerfarm__Lease)STEERFARM__LEASE__INIT;
        leases[i].epoch = h->epoch;
        leases[i].lease = h->lease;
        leases[i].job = (char *)(uintptr_t)h->job;
        leases[i].index = h->index;
        if (h->done)
            unacknowledged[hello.n_unacknowledged++] = leases + i;
        else
            held[hello.n_held++] = leases + i;
    }
    hello.held = held;
    hello.unacknowledged = unacknowledged;
    /* Nobody to send it to yet: soon again, so that a worker is there as soon as its broker. */
    int unsent = send_message(l, STEERFARM__MESSAGE_TYPE__HELLO, &hello.base, NULL);
    l->hello_ms = now_ms() - (unsent ? HEARTBEAT_MS - 50 : 0);
}

/* Leases of what still renders, or none: the engine lives. A stuck one says nothing, so the broker
 * takes its work back and sends no other. */
static void send_renew(struct link *l)
{
    struct engine_status s = engine_status(l->engine);
    uint64_t now = now_ms();
    l->renewed_ms = now;
    if (now > s.ticked_ms + STUCK_MS) {
        log_event(LOG_ERROR, "engine.stuck", "silent_ms=%" PRIu64, now - s.ticked_ms);
        return;
    }
    Steerfarm__Renew renew = STEERFARM__RENEW__INIT;
    Steerfarm__LeaseProgress progress[STEER_LEASES_MAX], *list[STEER_LEASES_MAX];
    for (int i = 0; i < l->held_count; i++) {
        struct held *h = l->held + i;
        progress[renew.n_leases] = (Steerfarm__LeaseProgress)STEERFARM__LEASE_PROGRESS__INIT;
        progress[renew.n_leases].epoch = h->epoch;
        progress[renew.n_leases].lease = h->lease;
        progress[renew.n_leases].has_step = progress[renew.n_leases].has_steps = 1;
        progress[renew.n_leases].step = (uint32_t)s.step;
        progress[renew.n_leases].steps = (uint32_t)s.steps;
        list[renew.n_leases] = progress + renew.n_leases;
        renew.n_leases++;
    }
    renew.leases = list;
    (void)send_message(l, STEERFARM__MESSAGE_TYPE__RENEW, &renew.base, NULL);
}

static void results_repeat(struct link *l)
{
    uint64_t now = now_ms();
    for (int i = l->held_count - 1; i >= 0; i--)
        if (l->held[i].done && now >= l->held[i].due_ms) send_result(l, l->held + i);
}

static void drain_begin(struct link *l, const char *why)
{
    if (l->draining) return;
    l->draining = 1;
    log_event(LOG_INFO, "worker.drain", "reason=%s", log_quote(why));
    /* What waits comes back as FAIL(CANCELLED), after DRAIN and a credit of 0 have gone out, and so
     * does an ASSIGN that crosses them. */
    engine_drain(l->engine);
}

static void drain_tell(struct link *l)
{
    if (!l->draining || l->drained_told || !l->welcomed) return;
    Steerfarm__Drain drain = STEERFARM__DRAIN__INIT;
    if (send_message(l, STEERFARM__MESSAGE_TYPE__DRAIN, &drain.base, NULL)) return;
    send_credit(l);
    l->drained_told = 1;
}

/* ---- receiving ---- */

static void on_assign(struct link *l, struct wire_message *m)
{
    const Steerfarm__Assign *assign = (const Steerfarm__Assign *)m->body;
    if (!assign->n_images || assign->n_images > STEER_BATCH_MAX ||
        l->held_count + (int)assign->n_images > STEER_LEASES_MAX) {
        log_event(LOG_WARN, "assign.refused", "images=%zu held=%d", assign->n_images,
                  l->held_count);
        return;
    }
    int before = l->held_count;
    for (size_t i = 0; i < assign->n_images; i++) {
        const Steerfarm__Lease *lease = assign->images[i]->lease;
        if (held_find(l, lease->epoch, lease->lease)) { /* the same ASSIGN twice */
            l->held_count = before;
            return;
        }
        struct held *h = l->held + l->held_count++;
        *h = (struct held){.epoch = lease->epoch, .lease = lease->lease, .index = lease->index};
        snprintf(h->job, sizeof h->job, "%s", lease->job);
    }
    if (engine_submit(l->engine, m)) {
        l->held_count = before; /* not renewed: the leases run out */
        log_event(LOG_ERROR, "assign.failed", "reason=%s", log_quote("out of memory"));
    }
}

static void on_verdict(struct link *l, const Steerfarm__Verdict *v)
{
    struct held *h = held_find(l, v->lease->epoch, v->lease->lease);
    if (!h) return;
    log_event(LOG_DEBUG, "image.verdict", "job=%s index=%u verdict=%s", h->job, h->index,
              log_quote(v->verdict));
    if (strcmp(v->verdict, "retry") == 0 && h->done) {
        send_result(l, h);
        return;
    }
    if (!h->done) engine_revoke(l->engine, h->epoch, h->lease);
    held_remove(l, h);
    send_credit(l);
}

static void on_welcome(struct link *l, const Steerfarm__Welcome *w)
{
    l->welcomed = 1;
    l->drained_told = 0;
    l->heartbeat_ms = w->has_heartbeat_ms && w->heartbeat_ms ? w->heartbeat_ms : HEARTBEAT_MS;
    l->lease_ms = w->has_lease_ms && w->lease_ms ? w->lease_ms : 10 * HEARTBEAT_MS;
    log_event(LOG_INFO, "worker.welcome", "broker=%s epoch=%" PRIu64 " held=%d", l->options->broker,
              w->epoch, l->held_count);
    send_credit(l);
    for (int i = l->held_count - 1; i >= 0; i--)
        if (l->held[i].done) {
            l->held[i].tries = 0;
            send_result(l, l->held + i);
        }
}

/* 0, or the code with which the link ends. */
static int on_message(struct link *l, struct wire_message *m, struct steer_error *err)
{
    switch (m->type) {
    case STEERFARM__MESSAGE_TYPE__WELCOME:
        on_welcome(l, (const Steerfarm__Welcome *)m->body);
        return 0;
    case STEERFARM__MESSAGE_TYPE__ASSIGN: on_assign(l, m); return 0;
    case STEERFARM__MESSAGE_TYPE__VERDICT:
        on_verdict(l, (const Steerfarm__Verdict *)m->body);
        return 0;
    case STEERFARM__MESSAGE_TYPE__REVOKE: {
        const Steerfarm__Revoke *r = (const Steerfarm__Revoke *)m->body;
        for (size_t i = 0; i < r->n_leases; i++) {
            struct held *h = held_find(l, r->leases[i]->epoch, r->leases[i]->lease);
            engine_revoke(l->engine, r->leases[i]->epoch, r->leases[i]->lease);
            if (h) held_remove(l, h);
        }
        send_credit(l);
        return 0;
    }
    case STEERFARM__MESSAGE_TYPE__PING: {
        Steerfarm__Pong pong = STEERFARM__PONG__INIT;
        const Steerfarm__Ping *ping = (const Steerfarm__Ping *)m->body;
        pong.has_tag = ping->has_tag;
        pong.tag = ping->tag;
        (void)send_message(l, STEERFARM__MESSAGE_TYPE__PONG, &pong.base, NULL);
        return 0;
    }
    case STEERFARM__MESSAGE_TYPE__PONG: return 0;
    case STEERFARM__MESSAGE_TYPE__DRAIN: drain_begin(l, "asked by the broker"); return 0;
    case STEERFARM__MESSAGE_TYPE__REPLACED:
        return steer_fail(err, STEER_REPLACED, "another worker with the id \"%s\" has taken over",
                          l->options->worker);
    case STEERFARM__MESSAGE_TYPE__REFUSED: {
        const Steerfarm__Refused *r = (const Steerfarm__Refused *)m->body;
        log_event(LOG_WARN, "worker.refused", "code=%s text=%s", r->code, log_quote(r->text));
        int code = steer_code_of(r->code);
        if (code == STEER_HELLO_REQUIRED) {
            l->welcomed = 0;
            l->hello_ms = 0;
            return 0;
        }
        if (l->welcomed || r->has_retry_after_ms) return 0;
        return steer_fail(err, code, "the broker refused this worker: %s", r->text);
    }
    default:
        log_event(LOG_WARN, "message.unexpected", "type=%s", wire_type_name(m->type));
        return 0;
    }
}

#define FRAMES_MAX 3

static int receive_all(struct link *l, struct steer_error *err)
{
    for (;;) {
        zmq_msg_t parts[FRAMES_MAX];
        struct wire_frame frames[FRAMES_MAX];
        int count = 0, more = 1, excess = 0;
        while (more) {
            zmq_msg_t part;
            zmq_msg_init(&part);
            if (zmq_msg_recv(&part, l->socket, ZMQ_DONTWAIT) < 0) {
                zmq_msg_close(&part);
                break;
            }
            more = zmq_msg_more(&part);
            if (count == FRAMES_MAX) {
                excess = 1;
                zmq_msg_close(&part);
                continue;
            }
            parts[count] = part;
            frames[count] =
                (struct wire_frame){zmq_msg_data(parts + count), zmq_msg_size(parts + count)};
            count++;
        }
        if (!count) return 0;
        struct wire_message m = {0};
        struct steer_error bad = {0};
        int code = 0;
        if (excess || wire_parse(&m, frames, (size_t)count, &bad)) {
            log_event(LOG_WARN, "message.bad", "reason=%s",
                      log_quote(excess ? "too many frames" : bad.text));
        } else {
            l->heard_ms = now_ms();
            code = on_message(l, &m, err);
        }
        wire_free(&m);
        for (int i = 0; i < count; i++)
            zmq_msg_close(parts + i);
        if (code) return code;
    }
}

static void take_finished(struct link *l)
{
    uint64_t drained;
    ssize_t got = read(l->options->engine_wake, &drained, sizeof drained);
    (void)got;
    for (struct done *d; (d = engine_take(l->engine));) {
        struct held *h = held_find(l, d->epoch, d->lease);
        if (!h || h->done) { /* revoked meanwhile */
            done_free(d);
            continue;
        }
        h->done = d;
        int back = d->code == STEER_CANCELLED;
        log_event(d->code && !back ? LOG_WARN : LOG_INFO,
                  back      ? "image.given_back"
                  : d->code ? "image.failed"
                            : "image.done",
                  "job=%s index=%u ms=%" PRIu64 " reason=%s", h->job, h->index,
                  d->timing.total_us / 1000, log_quote(d->error.text));
        if (l->welcomed) send_result(l, h);
    }
}

int link_run(struct engine *e, const struct link_options *options, struct steer_error *err)
{
    struct link *l = calloc(1, sizeof *l);
    if (!l) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    *l = (struct link){.options = options,
                       .engine = e,
                       .heartbeat_ms = HEARTBEAT_MS,
                       .lease_ms = 10 * HEARTBEAT_MS};
    int code = 0;
    if (getrandom(&l->incarnation, sizeof l->incarnation, 0) != sizeof l->incarnation)
        l->incarnation = (uint64_t)getpid() << 32 ^ now_ms();
    /* Incarnations must grow, so that the broker can tell the newer of two: the clock goes first.
     */
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    l->incarnation = ((uint64_t)wall.tv_sec << 24 | (uint64_t)(wall.tv_nsec >> 20) << 12) |
                     (l->incarnation & 0xfff);
    if (!(l->context = zmq_ctx_new()) || (code = socket_open(l, err))) goto done;

    while (!code) {
        uint64_t now = now_ms();
        if (*options->drain) drain_begin(l, "SIGTERM");
        if (!l->welcomed && now >= l->hello_ms + HEARTBEAT_MS) send_hello(l);
        if (l->welcomed && now > l->heard_ms + 5 * (uint64_t)l->heartbeat_ms) {
            log_event(LOG_WARN, "broker.silent", "ms=%" PRIu64, now - l->heard_ms);
            l->heard_ms = now;
            if ((code = socket_reopen(l, err))) break;
            send_hello(l);
        }
        if (l->welcomed && now >= l->renewed_ms + l->lease_ms / 4) {
            send_renew(l);
            send_credit(l); /* absolute, so that a lost one costs no more than this */
        }
        if (l->welcomed) results_repeat(l);
        drain_tell(l);
        if (l->draining && !l->held_count) break;
        if (l->draining && !l->welcomed && *options->drain > 1)
            break; /* asked twice: do not wait for the broker */

        zmq_pollitem_t items[] = {{l->socket, 0, ZMQ_POLLIN, 0},
                                  {NULL, options->engine_wake, ZMQ_POLLIN, 0}};
        if (zmq_poll(items, 2, l->welcomed ? 200 : 50) < 0 && errno != EINTR) {
            code =
                steer_fail(err, STEER_IO, "waiting for the broker failed: %s", zmq_strerror(errno));
            break;
        }
        take_finished(l);
        code = receive_all(l, err);
    }
done:
    while (l->held_count)
        held_remove(l, l->held);
    if (l->socket) zmq_close(l->socket);
    if (l->context) zmq_ctx_term(l->context);
    free(l);
    return code;
}
