/* engine.h - the thread that owns the device, and the one that encodes behind it.
 *
 * The link hands batches in and takes finished images out; neither side waits for the other. The
 * engine thread opens models (least recently used ones leave when the memory budget asks for it),
 * renders, and passes pixels on; the encoder thread makes WebP or PNG of them while the device goes
 * on. `wake` is written to whenever something can be taken. */
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
    struct compute_options compute; /* precision: of PRECISION AUTO jobs */
    size_t memory_bytes;            /* for models and plans; 0: half of what the machine has */
    int wake;                       /* an eventfd, borrowed */
    /* The folder of a model name, or NULL; called on the engine thread. */
    const char *(*model_dir)(void *data, const char *name);
    void *data;
};

/* A finished or failed image, freed with done_free. */
struct done {
    struct done *next;
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
void done_free(struct done *d);

int engine_start(struct engine **ret, const struct engine_options *options,
                 struct steer_error *err) STEER_MUSTCHECK;
/* Finishes the batch that runs, fails what waits with CANCELLED and retryable, joins. */
void engine_stop(struct engine *e);

/* Takes a parsed ASSIGN (m->body becomes NULL). */
int engine_submit(struct engine *e, struct wire_message *m) STEER_MUSTCHECK;
/* The image of that lease need not be finished; its done never comes. */
void engine_revoke(struct engine *e, uint64_t epoch, uint64_t lease);
/* Batches that have not begun are given back: their leases are written to ret (room for
 * STEER_LEASES_MAX) and no done comes for them. */
int engine_give_back(struct engine *e, Steerfarm__Lease *ret);
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
