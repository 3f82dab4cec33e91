// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <inttypes.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "weight.h"

#define ALIGN 64

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- making ---- */

static size_t shape_elements(struct shape s)
{
    return (size_t)s.h * (size_t)s.w * (size_t)s.c;
}

/* Inputs and outputs are dense f32 (or i32, u8); what is bound, and kept as computed, has the
 * backend's narrow type. */
static void places_begin(struct plan *p)
{
    for (int i = 0; i < p->tensors_count; i++) {
        const struct tensor_info *t = p->tensors + i;
        struct place *at = p->places + i;
        at->shape = t->shape;
        at->root = t->role == ROLE_VIEW ? t->parent : i;
        at->type = t->type;
        at->first = INT32_MAX;
        at->last = -1;
        if (t->output == 2) at->type = compute_bound_type(p->compute);
    }
}

static int places_bind(struct plan *p)
{
    for (int i = 0; i < p->tensors_count; i++) {
        struct place *at = p->places + i;
        const struct place *root = p->places + at->root;
        at->type = root->type;
        at->layout = root->layout;
        at->pitch = root->shape.c;
        if (p->tensors[i].role != ROLE_BOUND) continue;
        if (!(at->bound = calloc((size_t)at->shape.b, sizeof *at->bound))) return STEER_NO_MEMORY;
    }
    return 0;
}

static void lifetimes(struct plan *p)
{
    for (int i = 0; i < p->steps_count; i++) {
        const struct op *op = &p->steps[i].op;
        p->places[op->out].first = i;
        if (p->places[op->out].last < i) p->places[op->out].last = i;
        for (int k = 0; k < OP_INPUTS_MAX; k++)
            if (op->in[k] >= 0) p->places[p->places[op->in[k]].root].last = i;
    }
    for (int i = 0; i < p->tensors_count; i++) {
        int given = p->tensors[i].role == ROLE_INPUT || p->tensors[i].role == ROLE_CONSTANT;
        if (given) p->places[i].first = 0;
        if (given || p->tensors[i].output) p->places[i].last = p->steps_count;
    }
}

struct span {
    int tensor;
    size_t bytes;
};

static int span_larger_first(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x->tensor - y->tensor;
}

/* The lowest offset at which bytes fit between the placed tensors whose lives meet this one's. */
static size_t offset_find(const struct plan *p, const struct span *placed, int count,
                          const struct span *s)
{
    const struct place *at = p->places + s->tensor;
    size_t offset = 0;
    for (int again = 1; again;) {
        again = 0;
        for (int i = 0; i < count; i++) {
            const struct place *other = p->places + placed[i].tensor;
            if (other->first > at->last || other->last < at->first) continue;
            if (offset + s->bytes <= other->offset || other->offset + placed[i].bytes <= offset)
                continue;
            offset = other->offset + placed[i].bytes;
            again = 1;
        }
    }
    return offset;
}

/* Large tensors first, each at the lowest place that is free during its whole life. */
static int places_assign(struct plan *p)
{
    struct span *spans = calloc((size_t)p->tensors_count + 1, sizeof *spans);
    if (!spans) return STEER_NO_MEMORY;
    int count = 0;
    for (int i = 0; i < p->tensors_count; i++) {
        struct place *at = p->places + i;
        enum tensor_role role = p->tensors[i].role;
        if (role == ROLE_VIEW || role == ROLE_BOUND || at->last < 0) continue;
        at->image_bytes = shape_elements(at->shape) * compute_type_bytes(at->type);
        size_t bytes = at->image_bytes * (size_t)at->shape.b;
        spans[count++] = (struct span){i, (bytes + ALIGN - 1) / ALIGN * ALIGN};
    }
    qsort(spans, (size_t)count, sizeof *spans, span_larger_first);
    for (int i = 0; i < count; i++) {
        struct place *at = p->places + spans[i].tensor;
        at->offset = offset_find(p, spans, i, spans + i);
        if (at->offset + spans[i].bytes > p->arena_bytes)
            p->arena_bytes = at->offset + spans[i].bytes;
    }
    free(spans);
    for (int i = 0; i < p->tensors_count; i++)
        if (p->tensors[i].role == ROLE_VIEW)
            p->places[i].offset =
                p->places[p->places[i].root].offset +
                (size_t)p->tensors[i].channel * compute_type_bytes(p->places[i].type);
    return 0;
}

static double op_gflop(const struct plan *p, const struct op *op)
{
    struct shape out = p->places[op->out].shape;
    double pixels = (double)out.b * out.h * out.w;
    switch (op->kind) {
    case OP_LINEAR: return 2e-9 * pixels * out.c * op->w->in;
    case OP_CONV: return 2e-9 * pixels * out.c * op->w->in * op->w->size * op->w->size;
    case OP_ATTENTION: return 4e-9 * pixels * keys_count(p, op, IN_POSITIVE) * out.c;
    case OP_GUIDED_ATTENTION:
        return 4e-9 * pixels * out.c *
               (keys_count(p, op, IN_POSITIVE) + keys_count(p, op, IN_NEGATIVE) +
                keys_count(p, op, IN_SHARED));
    default: return 0;
    }
}

void *pages_new(size_t bytes)
{
    if (!bytes) return NULL;
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return NULL;
    (void)madvise(data, bytes, MADV_HUGEPAGE);
    return data;
}

static int plan_take(struct plan *p, size_t bytes)
{
    int code = compute_take(p->compute, bytes);
    if (!code) p->taken += bytes;
    return code;
}

/* Memory first, so that a plan too large is refused before a weight is packed for it. */
static int steps_prepare(struct plan *p, struct steer_error *err)
{
    int taken = plan_take(p, p->arena_bytes);
    if (taken) return taken;
    for (int i = 0; i < p->steps_count; i++) {
        struct step *s = p->steps + i;
        s->gflop = op_gflop(p, &s->op);
        int code = p->compute->backend->prepare(p, s, err);
        if (code) return steer_fail_in(err, code, "operation %d (%s)", i, op_name(s->op.kind));
        if (s->scratch_bytes > p->scratch_bytes) p->scratch_bytes = s->scratch_bytes;
        compute_beat(p->compute);
    }
    return plan_take(p, p->scratch_bytes);
}

static void constants_copy(struct plan *p, const struct graph *g)
{
    for (int i = 0; i < p->tensors_count; i++) {
        const struct place *at = p->places + i;
        if (p->tensors[i].role == ROLE_CONSTANT)
            memcpy(place_image(p, i, 0), g->tensors[i].data, at->image_bytes * (size_t)at->shape.b);
    }
}

int compute_plan(struct plan **ret, struct compute *c, const struct graph *g,
                 struct steer_error *err)
{
    if (g->error.code) {
        if (err) *err = g->error;
        return g->error.code;
    }
    struct plan *p = calloc(1, sizeof *p);
    if (!p) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = STEER_NO_MEMORY;
    p->compute = c;
    c->refused = 0;
    p->tensors_count = g->tensors_count;
    p->steps = calloc((size_t)g->ops_count + 1, sizeof *p->steps);
    p->places = calloc((size_t)g->tensors_count + 1, sizeof *p->places);
    p->tensors = calloc((size_t)g->tensors_count + 1, sizeof *p->tensors);
    if (!p->steps || !p->places || !p->tensors) goto fail;
    p->steps_count = g->ops_count;
    for (int i = 0; i < g->ops_count; i++)
        p->steps[i].op = g->ops[i];
    if (g->tensors_count)
        memcpy(p->tensors, g->tensors, (size_t)g->tensors_count * sizeof *p->tensors);
    for (int i = 0; i < p->tensors_count; i++)
        p->tensors[i].data = NULL; /* the graph's, which may go before the plan */

    omp_set_num_threads(c->threads); /* oneDNN plans for the team it finds */
    places_begin(p);
    c->backend->choose(p);
    if ((code = places_bind(p))) goto fail;
    lifetimes(p);
    code = places_assign(p);
    if (!code) code = steps_prepare(p, err);
    weight_staging_free(c);
    if (code) goto fail;
    if (c->host->counting) {
        *ret = p;
        return 0;
    }
    code = STEER_NO_MEMORY;
    if (p->arena_bytes && !(p->arena = pages_new(p->arena_bytes))) goto fail;
    if (p->scratch_bytes && !(p->scratch = pages_new(p->scratch_bytes))) goto fail;
    constants_copy(p, g);
    *ret = p;
    return 0;
fail:
    if (c->refused)
        steer_fail(err, code,
                   "it needs at least %.1f MB more beside the %.1f MB in use; the limit is %.1f MB "
                   "(--memory)",
                   1e-6 * (double)c->refused, 1e-6 * (double)c->host->bytes,
                   1e-6 * (double)c->host->bytes_max);
    plan_free(p);
    if (err && !err->code)
        steer_fail(err, code, "no memory for a plan of %d operations", g->ops_count);
    return code;
}

void plan_free(struct plan *p)
{
    if (!p) return;
    for (int i = 0; i < p->steps_count; i++)
        if (p->steps[i].state_free) p->steps[i].state_free(p->steps[i].state);
    for (int i = 0; p->places && i < p->tensors_count; i++)
        free(p->places[i].bound);
    compute_give(p->compute, p->taken);
    if (p->arena) munmap(p->arena, p->arena_bytes);
    if (p->scratch) munmap(p->scratch, p->scratch_bytes);
    free(p->steps);
    free(p->places);
    free(p->tensors);
    free(p);
}

/* ---- using ---- */

size_t plan_bytes(const struct plan *p)
{
    return p->arena_bytes + p->scratch_bytes;
}

void *plan_data(struct plan *p, struct tensor t)
{
    return place_image(p, t.id, 0);
}

enum compute_type plan_type(const struct plan *p, struct tensor t)
{
    return p->places[t.id].type;
}

void plan_bind(struct plan *p, struct tensor t, int b, const void *data)
{
    p->places[t.id].bound[b] = data;
}

int plan_run(struct plan *p, const struct plan_watch *watch, struct steer_error *err)
{
    omp_set_num_threads(p->compute->threads);
    if (p->profiling) p->runs++;
    for (int i = 0; i < p->steps_count; i++) {
        struct step *s = p->steps + i;
        double before = p->profiling ? seconds_now() : 0;
        int code = s->run(p, s);
        if (code) return steer_fail(err, code, "operation %d (%s) failed", i, op_name(s->op.kind));
        if (p->profiling) s->seconds += seconds_now() - before;
        compute_beat(p->compute);
        if (watch && watch->tick && watch->tick(watch->data, i + 1, p->steps_count))
            return steer_fail(err, STEER_CANCELLED, "cancelled");
    }
    return 0;
}

void plan_profile(struct plan *p, int on)
{
    p->profiling = on;
    p->runs = 0;
    for (int i = 0; i < p->steps_count; i++)
        p->steps[i].seconds = 0;
}

int plan_operations(const struct plan *p)
{
    return p->steps_count;
}

struct op_report plan_report(const struct plan *p, int i)
{
    static const char *const types[2][2] = {{"f32>f32", "f32>bf16"}, {"bf16>f32", "bf16>bf16"}};
    static const char *const layouts[2][2] = {{"nhwc", "nhwc>nChw16c"},
                                              {"nChw16c>nhwc", "nChw16c"}};
    const struct step *s = p->steps + i;
    const struct place *in = p->places + s->op.in[0], *out = p->places + s->op.out;
    return (struct op_report){
        .op = op_name(s->op.kind),
        .primitive = s->primitive,
        .type =
            out->type == TYPE_U8 ? "f32>u8" : types[in->type == TYPE_BF16][out->type == TYPE_BF16],
        .layout = layouts[in->layout][out->layout],
        .out = out->shape,
        .gflop = s->gflop,
        .ms = p->runs ? 1e3 * s->seconds / p->runs : 0,
    };
}

struct plan_counters plan_counters(const struct plan *p)
{
    return p->counters;
}
