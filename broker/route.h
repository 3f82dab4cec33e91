/* route.h - what each message does: the farm's state, the store's commits and the answers.
 *
 * One thread. Messages come in by route_receive, whatever they change is gathered into a batch,
 * route_turn hands the batch to the store, and answers that promise something wait for its commit:
 * store first, then memory, then reply. Sockets and clocks are the caller's (loop.c), so tests
 * drive a route without either. docs/protocol.md has the whole conversation. */
#ifndef BROKER_ROUTE_H
#define BROKER_ROUTE_H
#include <protobuf-c/protobuf-c.h>

#include "store.h"
#include "wire.h"

enum side { SIDE_CLIENTS, SIDE_WORKERS };

/* Where messages go. */
struct transport {
    /* 0, or -1: the peer is gone or its queue is full, and nothing was sent. payload (NULL: none)
     * is malloc'ed and taken in any case. */
    int (*send)(void *data, enum side side, const uint8_t *identity, size_t identity_size, int type,
                const ProtobufCMessage *body, uint8_t *payload, size_t payload_bytes);
    void *data;
};

struct route_options {
    struct store_options store;
    uint64_t keep_ms;       /* ended jobs are forgotten after it */
    uint64_t utc_offset_ms; /* UTC = now_ms + this; fixed at start */
    uint32_t heartbeat_ms, lease_ms;
};

struct route;

/* Opens the store and takes up what it holds. now_ms is monotonic, as in every call. */
int route_open(struct route **ret, const struct route_options *options,
               const struct transport *transport, uint64_t now_ms,
               struct steer_error *err) STEER_MUSTCHECK;
void route_close(struct route *r); /* NULL is fine */

/* frames without the identity; payload describes frames[2] when there is one, and is taken. */
void route_receive(struct route *r, enum side side, const uint8_t *identity, size_t identity_size,
                   const struct wire_frame *frames, size_t count, struct store_payload *payload,
                   uint64_t now_ms);
/* After all messages of a turn: completions, timers, assignments, the batch. A code: the store
 * failed, and the broker must stop. */
int route_turn(struct route *r, uint64_t now_ms, struct steer_error *err) STEER_MUSTCHECK;
/* Readable when route_turn has completions to look at. */
int route_fd(const struct route *r);

#endif
