/* engine.h - the thread that owns the device, and the one that encodes behind it.
 *
 * The link hands batches in and takes finished images out; neither side waits for the other. The
 * engine thread opens models, renders, and passes pixels on; the encoder thread makes WebP or PNG
 * of them while the device goes on. `wake` is written to whenever something can be taken.
 *
 * Packed weights and plans are taken from one budget before they are allocated. What does not fit
 * makes idle plans and then the least recently used other models leave, and fails its job with
 * NO_MEMORY when that is not enough: the worker lives. */
#ifndef WORKER_ENGINE_H
#define WORKER_ENGINE_H
#include <stdint.h>

#include "compute.h"
#include "error.h"
#include "limits.h"
#include "steer.pb-c.h"
#include "wire.h"

struct engine;

struct engine_options {
    struct compute_options compute; /* precision: of PRECISION AUTO jobs; host: the engine's */
    size_t memory_bytes;            /* for models and plans; 0: three quarters of what we may use */
    int text_leaves;                /* of pipeline_limits */
    int wake;                       /* an eventfd, borrowed */
    /* The folder or file of a model name, or NULL; called on the engine thread. */
    const char *(*model_path)(void *data, const char *name);
    void *data;
};

/* A finished or failed image. Made when its batch is submitted, so that there is always something
 * to tell how it ended, and counted, as its image may be on its way in a socket's thread. */
struct done {
    struct done *next;
    _Atomic int users;
    uint64_t epoch, lease;
    char job[STEER_JOB_ID_BYTES_MAX + 1];
    uint32_t index;
    int code; /* 0: image is there; otherwise error says why */
    int retryable;
    struct steer_error error;
    uint8_t *image;
    size_t image_bytes;
    Steerfarm__Result header; /* its texts point into this struct */
    Steerfarm__Timing timing;
    char model_hash[33], numerics[128], warning[256];
};
void done_keep(struct done *d); /* one more user */
void done_free(struct done *d); /* one less; NULL is fine */

int engine_start(struct engine **ret, const struct engine_options *options,
                 struct steer_error *err) STEER_MUSTCHECK;
/* Finishes the batch that runs and joins; nothing is told of what waits (engine_drain before). */
void engine_stop(struct engine *e);

/* Takes a parsed ASSIGN (m->body becomes NULL). Each of its images comes back in exactly one done,
 * unless it is revoked. */
int engine_submit(struct engine *e, struct wire_message *m) STEER_MUSTCHECK;
/* The image of that lease need not be finished; its done never comes. */
void engine_revoke(struct engine *e, uint64_t epoch, uint64_t lease);
/* Batches that have not begun, and all that are submitted from now on, come back as dones with
 * STEER_CANCELLED. */
void engine_drain(struct engine *e);
/* The next finished image, or NULL. The caller frees it. */
struct done *engine_take(struct engine *e);

struct engine_status {
    uint64_t ticked_ms;   /* CLOCK_MONOTONIC of the last sign of life; now when idle */
    int waiting, running; /* images */
    int step, steps;      /* of the running batch */
    int batches_waiting;
};
struct engine_status engine_status(struct engine *e);
/* 1 when the engine holds the model open. */
int engine_has(struct engine *e, const char *model);
/* Lives as long as e; of AUTO jobs. */
const char *engine_numerics(const struct engine *e);

#endif
