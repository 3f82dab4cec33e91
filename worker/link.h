/* link.h - the worker's side of the wire: HELLO, leases, results, and nothing of rendering.
 *
 * The link's thread owns the socket. It takes ASSIGNs to the engine, renews leases while the engine
 * shows signs of life, sends each finished image and keeps it until its VERDICT: after a broken
 * connection or a broker's restart HELLO lists what is held and what is unacknowledged, and
 * unacknowledged results are sent again. docs/protocol.md has the whole conversation. */
#ifndef WORKER_LINK_H
#define WORKER_LINK_H
#include <signal.h>

#include "engine.h"
#include "steer.pb-c.h"

struct link_options {
    const char *broker; /* endpoint */
    const char *worker; /* id: at most STEER_NAME_BYTES_MAX bytes */
    int ahead;          /* batches held besides the running one */
    int batch_max;      /* images of a batch, at most STEER_BATCH_MAX */
    /* What HELLO offers; borrowed. */
    Steerfarm__Model **models;
    size_t models_count;
    Steerfarm__Device *device;
    int engine_wake;                    /* the eventfd that the engine writes */
    const volatile sig_atomic_t *drain; /* non-zero: finish the batch, give back the rest, leave */
};

/* Runs until drained (0), replaced by a newer worker of the same id (STEER_REPLACED) or refused for
 * good (the broker's code). A broker that is away is waited for. */
int link_run(struct engine *e, const struct link_options *options,
             struct steer_error *err) STEER_MUSTCHECK;

#endif
