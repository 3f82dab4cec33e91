/* plan.h - a graph made ready to run: where each tensor lies, and the function of each step.
 *
 * Making a plan goes in four passes, in compute_plan: the backend chooses every tensor's type and
 * layout; lifetimes are read off the list; all tensors are placed in one allocation, those whose
 * lives do not meet in the same bytes; the backend prepares each step (primitives, packed weights,
 * scratch). Running it is a loop. */
#ifndef KERNELS_PLAN_H
#define KERNELS_PLAN_H
#include "graph.h"

/* NHWC: [B][H][W][C], C contiguous. BLOCKED: [B][C/16][H][W][16], oneDNN's nChw16c. */
#define ATTENTION_HEAD_MAX 1024
#define TUNING_BYTES_MAX   (1 << 20)
#define LARGE_PAGE         ((size_t)2 << 20)

enum layout { LAYOUT_NHWC, LAYOUT_BLOCKED };

struct place {
    struct shape shape;
    enum compute_type type;
    enum layout layout;
    int root;      /* itself, or the tensor that a view looks at */
    int pitch;     /* elements from a pixel to the next */
    size_t offset; /* bytes in the arena; of a view: its first element's */
    size_t image_bytes;
    int first, last;    /* steps between which a root must keep its bytes */
    const void **bound; /* ROLE_BOUND: an address per image */
};

struct step {
    struct op op;
    int (*run)(struct plan *p, struct step *s);
    void *state; /* of the backend */
    void (*state_free)(void *state);
    size_t scratch_bytes;
    const char *primitive; /* lives as long as the step */
    double gflop, seconds;
};

struct plan {
    struct compute *compute;
    struct step *steps;
    struct place *places;
    struct tensor_info *tensors;
    int steps_count, tensors_count;
    char *arena, *scratch;
    size_t arena_bytes, scratch_bytes;
    size_t taken; /* bytes of both that the host counts */
    int profiling, runs;
    struct plan_counters counters;
};

struct backend {
    const char *name;
    /* Sets type and layout of every inner root; inputs, views and outputs are done. */
    void (*choose)(struct plan *p);
    /* Sets run, state, scratch_bytes and primitive of a step. */
    int (*prepare)(struct plan *p, struct step *s, struct steer_error *err);
    struct compute_peak (*peak)(struct compute *c);
};
extern const struct backend backend_ref, backend_cpu;

struct compute {
    const struct backend *backend;
    enum compute_precision precision;
    enum compute_weights weights;
    int threads;
    struct compute_host *host, own_host;
    size_t refused; /* what compute_take denied last, for the sentence about it */
    char numerics[128];
    void *engine; /* of the cpu backend */
    const struct cpu_kernels *kernels;
    char *tuning;  /* the table's text; NULL: our own rule */
    void *staging; /* where a matrix is while it is packed, weight.c */
    size_t staging_bytes;
};

/* Every byte of packed weights and plans is taken before it is allocated. STEER_NO_MEMORY: over the
 * host's limit. */
int compute_take(struct compute *c, size_t bytes) STEER_MUSTCHECK;
void compute_give(struct compute *c, size_t bytes);
/* Zeroed pages, large ones where the kernel has them; NULL for 0 bytes and when out of memory. */
void *pages_new(size_t bytes);

/* How many keys an attention has in the segment that begins at in[at]; 0: the segment is empty. */
static inline int keys_count(const struct plan *p, const struct op *op, int at)
{
    return op->in[at] < 0 ? 0 : p->places[op->in[at]].shape.w;
}

/* Image b of tensor t; a tensor of one image is every image's. */
static inline void *place_image(const struct plan *p, int t, int b)
{
    const struct place *at = p->places + t;
    if (at->shape.b == 1) b = 0;
    if (at->bound) return (void *)(uintptr_t)at->bound[b];
    return p->arena + at->offset + (size_t)b * p->places[at->root].image_bytes;
}

#endif
