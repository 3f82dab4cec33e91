// SPDX-License-Identifier: Apache-2.0
#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

#include "limits.h"
#include "log.h"
#include "steer.pb-c.h"

enum {
    MESSAGES_A_TURN = 512, /* of one side, before the other has its turn */
    IDLE_MS = 50,          /* timers are looked at this often */
    FRAMES_MAX = 4,        /* identity, head, body, payload */
    LINGER_MS = 500,
};

/* What one peer may have lying in memory: a client says small things and hears of images, a worker
 * the other way round. A full pipe holds the sender back; what cannot be sent is asked for again.
 */
static const struct side_limits {
    int64_t frame_bytes;
    int send, receive;
} side_limits[] = {
    /* Past the body's own limit, so that what is a little too big is answered and not cut off. */
    [SIDE_CLIENTS] = {4ll * STEER_BODY_BYTES_MAX, 4096, 1024},
    [SIDE_WORKERS] = {STEER_IMAGE_BYTES_MAX, 2048, 256},
};

struct loop {
    const struct loop_options *options;
    void *context, *sockets[2];
    struct route *route;
};

static uint64_t clock_ms(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- sending ---- */

static void payload_free(void *data, void *hint)
{
    (void)hint;
    free(data);
}

static int part_send(void *socket, const void *data, size_t size, int more)
{
    return zmq_send(socket, data, size, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) < 0 ? -1 : 0;
}

/* ROUTER_MANDATORY and DONTWAIT: a peer that is gone or full is an error at the first part, after
 * which nothing was sent. */
static int transport_send(void *data, enum side side, const uint8_t *identity, size_t identity_size,
                          int type, const ProtobufCMessage *body, uint8_t *payload,
                          size_t payload_bytes)
{
    struct loop *l = data;
    void *socket = l->sockets[side];
    uint8_t head[WIRE_HEAD_BYTES], *packed = NULL;
    size_t size = 0;
    zmq_msg_t part;
    int code = -1;
    if (wire_pack(body, &packed, &size)) goto done;
    wire_head(head, type);
    if (part_send(socket, identity, identity_size, 1)) goto done;
    if (part_send(socket, head, sizeof head, 1) || part_send(socket, packed, size, payload != NULL))
        goto done;
    if (payload) {
        if (zmq_msg_init_data(&part, payload, payload_bytes, payload_free, NULL)) goto done;
        payload = NULL; /* libzmq's now */
        if (zmq_msg_send(&part, socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&part);
            goto done;
        }
    }
    code = 0;
done:
    free(payload);
    free(packed);
    return code;
}

/* ---- receiving ---- */

static void part_release(void *owner)
{
    zmq_msg_close(owner);
    free(owner);
}

/* An image outlives the turn: it is the store's until it is on disk. */
static int payload_take(struct store_payload *ret, zmq_msg_t *part)
{
    zmq_msg_t *own = malloc(sizeof *own);
    if (!own) return STEER_NO_MEMORY;
    zmq_msg_init(own);
    zmq_msg_move(own, part);
    *ret = (struct store_payload){zmq_msg_data(own), zmq_msg_size(own), part_release, own};
    return 0;
}

/* One message with its identity; 0: there was none. */
static int receive_one(struct loop *l, enum side side)
{
    zmq_msg_t parts[FRAMES_MAX];
    struct wire_frame frames[FRAMES_MAX];
    size_t count = 0, all = 0;
    for (int more = 1; more;) {
        zmq_msg_t past, *into = count < FRAMES_MAX ? parts + count : &past;
        zmq_msg_init(into);
        if (zmq_msg_recv(into, l->sockets[side], ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(into);
            break;
        }
        all++;
        more = zmq_msg_more(into);
        if (into == &past)
            zmq_msg_close(into);
        else
            count++;
    }
    if (!all) return 0;
    struct store_payload payload = {0};
    int code = count == FRAMES_MAX ? payload_take(&payload, parts + FRAMES_MAX - 1) : 0;
    for (size_t i = 0; i < count; i++)
        frames[i] = (struct wire_frame){zmq_msg_data(parts + i), zmq_msg_size(parts + i)};
    if (count == FRAMES_MAX)
        frames[FRAMES_MAX - 1] = (struct wire_frame){payload.data, payload.bytes};
    /* Frames past the last allowed make the count wrong, which the parser says. */
    if (!code)
        route_receive(l->route, side, frames[0].data, frames[0].size, frames + 1, all - 1,
                      count == FRAMES_MAX ? &payload : NULL, clock_ms(CLOCK_MONOTONIC));
    else
        log_event(LOG_ERROR, "broker.memory", "reason=%s", log_quote("an image was not taken"));
    for (size_t i = 0; i < count; i++)
        zmq_msg_close(parts + i);
    return 1;
}

static int receive_side(struct loop *l, enum side side)
{
    int count = 0;
    while (count < MESSAGES_A_TURN && receive_one(l, side))
        count++;
    return count;
}

/* ---- life ---- */

static int socket_open(struct loop *l, enum side side, const char *endpoint, char *actual,
                       size_t actual_size, struct steer_error *err)
{
    const struct side_limits *limits = side_limits + side;
    int one = 1, linger = LINGER_MS;
    void *s = l->sockets[side] = zmq_socket(l->context, ZMQ_ROUTER);
    if (!s) return steer_fail(err, STEER_NO_MEMORY, "no socket: %s", zmq_strerror(errno));
    zmq_setsockopt(s, ZMQ_ROUTER_MANDATORY, &one, sizeof one);
    if (side == SIDE_WORKERS) zmq_setsockopt(s, ZMQ_ROUTER_HANDOVER, &one, sizeof one);
    zmq_setsockopt(s, ZMQ_IPV6, &one, sizeof one); /* or tcp://[::1] is no address */
    zmq_setsockopt(s, ZMQ_SNDHWM, &limits->send, sizeof limits->send);
    zmq_setsockopt(s, ZMQ_RCVHWM, &limits->receive, sizeof limits->receive);
    zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(s, ZMQ_MAXMSGSIZE, &limits->frame_bytes, sizeof limits->frame_bytes);
    zmq_setsockopt(s, ZMQ_TCP_KEEPALIVE, &one, sizeof one);
    if (zmq_bind(s, endpoint))
        return steer_fail(err, STEER_IO, "listening on %s failed: %s", endpoint,
                          zmq_strerror(errno));
    zmq_getsockopt(s, ZMQ_LAST_ENDPOINT, actual, &actual_size);
    return 0;
}

static int loop_turns(struct loop *l, struct steer_error *err)
{
    while (!*l->options->stop) {
        int busy = receive_side(l, SIDE_WORKERS) + receive_side(l, SIDE_CLIENTS);
        int code = route_turn(l->route, clock_ms(CLOCK_MONOTONIC), err);
        if (code) return code;
        zmq_pollitem_t items[] = {{l->sockets[SIDE_CLIENTS], 0, ZMQ_POLLIN, 0},
                                  {l->sockets[SIDE_WORKERS], 0, ZMQ_POLLIN, 0},
                                  {NULL, route_fd(l->route), ZMQ_POLLIN, 0}};
        if (!busy && zmq_poll(items, 3, IDLE_MS) < 0 && errno != EINTR)
            return steer_fail(err, STEER_IO, "waiting failed: %s", zmq_strerror(errno));
    }
    return 0;
}

int loop_run(const struct loop_options *options, struct steer_error *err)
{
    struct loop l = {.options = options};
    struct transport transport = {transport_send, &l};
    struct route_options route = options->route;
    char clients[256], workers[256];
    uint64_t now = clock_ms(CLOCK_MONOTONIC);
    route.utc_offset_ms = clock_ms(CLOCK_REALTIME) - now;
    int code = 0;
    if (!(l.context = zmq_ctx_new())) code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if (!code) code = route_open(&l.route, &route, &transport, now, err);
    if (!code) code = socket_open(&l, SIDE_WORKERS, options->workers, workers, sizeof workers, err);
    if (!code) code = socket_open(&l, SIDE_CLIENTS, options->clients, clients, sizeof clients, err);
    if (!code) {
        log_event(LOG_INFO, "broker.ready", "clients=%s workers=%s", clients, workers);
        code = loop_turns(&l, err);
    }
    route_close(l.route);
    for (int i = 0; i < 2; i++)
        if (l.sockets[i]) zmq_close(l.sockets[i]);
    if (l.context) zmq_ctx_term(l.context);
    return code;
}
