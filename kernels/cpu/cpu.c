// SPDX-License-Identifier: Apache-2.0
/* The cpu backend's passes: which type and layout each tensor has, and who computes each step.
 *
 * 1. A tensor is bf16 when all that read it multiply matrices (or are GEGLU); residual sums and
 *    what norms read stay f32.
 * 2. A 3x3 convolution over many pixels runs in f32 by Winograd, which beats bf16 there: its input
 *    stays f32, in oneDNN's blocked layout.
 * 3. An f32 tensor is blocked when all that make and read it can be. A convolution has one layout
 * on both sides, for oneDNN has no fast code for two; norms and sums read and write either, so
 *    nothing is ever reordered in a step of its own. */
#include "cpu.h"

#include <stdlib.h>
#include <string.h>

#include "../ref/ref.h"
#include "../weight.h"
#include "onednn.h"

/* Fewer channels leave Winograd's transforms to dominate; fewer pixels, its four times larger
 * weights. In f32 it pays from small images on, against bf16 only on large ones. docs/speed.md. */
enum { WINOGRAD_CHANNELS_MIN = 64, WINOGRAD_PIXELS_F32 = 1024, WINOGRAD_PIXELS_BF16 = 8192 };

static int winograd_wanted(const struct plan *p, const struct op *op)
{
    if (op->kind != OP_CONV || op->w->size != 3 || op->stride != 1 || op->padding != 1) return 0;
    struct shape out = p->tensors[op->out].shape;
    int pixels = out.h * out.w;
    if (op->w->in % 16 || op->w->out % 16) return 0;
    if (op->w->in < WINOGRAD_CHANNELS_MIN || op->w->out < WINOGRAD_CHANNELS_MIN) return 0;
    int least =
        p->compute->precision == PRECISION_BF16 ? WINOGRAD_PIXELS_BF16 : WINOGRAD_PIXELS_F32;
    return tuning_winograd(p->compute, op->w->in, op->w->out, out.h, out.w, pixels >= least);
}

/* ---- types ---- */

/* For now: shared keys, an empty negative and a bias. */
static int attention_by_ref(const struct op *op)
{
    if (op->kind == OP_ATTENTION) return op->in[IN_BIAS] >= 0;
    return op->in[IN_SHARED] >= 0 || op->in[IN_NEGATIVE] < 0;
}

static int reads_bf16(const struct plan *p, const struct op *op, int tensor)
{
    switch (op->kind) {
    case OP_LINEAR: return 1;
    case OP_CONV: return tensor == op->in[0] && !winograd_wanted(p, op);
    case OP_ATTENTION:
    case OP_GUIDED_ATTENTION:
        if (attention_by_ref(op)) return 0;
        return tensor != op->in[IN_POSITIVE + 2] && tensor != op->in[IN_PARAMS];
    case OP_GEGLU: return 1;
    default: return 0;
    }
}

static int writes_bf16(const struct op *op)
{
    switch (op->kind) {
    case OP_LINEAR:
    case OP_GROUP_NORM:
    case OP_LAYER_NORM: return op->kind != OP_LAYER_NORM || op->w;
    case OP_ATTENTION:
    case OP_GUIDED_ATTENTION: return !attention_by_ref(op);
    case OP_GEGLU:
    case OP_RESIZE: return 1;
    case OP_CONV: return 1;
    default: return 0;
    }
}

/* ---- layouts ---- */

static int writes_blocked(const struct op *op)
{
    return op->kind == OP_CONV || op->kind == OP_GROUP_NORM || op->kind == OP_ADD ||
           op->kind == OP_RESIZE || op->kind == OP_ACTIVATION || op->kind == OP_CONCAT;
}

static int reads_blocked(const struct op *op, int tensor)
{
    if (op->kind == OP_CONV) return tensor == op->in[0];
    return writes_blocked(op);
}

/* What all readers and views of a tensor agree on. */
struct uses {
    int readers, bf16, blocked, views;
};

static void uses_count(const struct plan *p, struct uses *uses)
{
    for (int i = 0; i < p->tensors_count; i++)
        uses[i] = (struct uses){0, 1, 1, 0};
    for (int i = 0; i < p->tensors_count; i++)
        if (p->tensors[i].role == ROLE_VIEW) uses[p->tensors[i].parent].views++;
    for (int i = 0; i < p->steps_count; i++) {
        const struct op *op = &p->steps[i].op;
        for (int k = 0; k < OP_INPUTS_MAX; k++) {
            if (op->in[k] < 0) continue;
            struct uses *u = uses + p->places[op->in[k]].root;
            u->readers++;
            if (!reads_bf16(p, op, op->in[k])) u->bf16 = 0;
            if (!reads_blocked(op, op->in[k])) u->blocked = 0;
        }
    }
}

static int may_be_blocked(const struct plan *p, const struct op *op, const struct uses *u)
{
    const struct place *out = p->places + op->out;
    return !p->tensors[op->out].output && out->type == TYPE_F32 && out->shape.c % 16 == 0 &&
           u->blocked && !u->views && writes_blocked(op) &&
           (op->kind != OP_CONCAT || p->tensors[op->in[0]].shape.c % 16 == 0);
}

static void choose(struct plan *p)
{
    struct uses *uses = calloc((size_t)p->tensors_count + 1, sizeof *uses);
    if (!uses) return; /* all dense f32 is right too */
    uses_count(p, uses);
    for (int i = 0; i < p->steps_count; i++) {
        const struct op *op = &p->steps[i].op;
        struct place *out = p->places + op->out;
        const struct uses *u = uses + op->out;
        if (p->tensors[op->out].output || out->type != TYPE_F32) continue;
        if (p->compute->precision == PRECISION_BF16 && u->bf16 && u->readers && writes_bf16(op) &&
            !winograd_wanted(p, op))
            out->type = TYPE_BF16;
        else if (may_be_blocked(p, op, u))
            out->layout = LAYOUT_BLOCKED;
    }
    /* A convolution with two layouts gives up the blocked one, which may reach its neighbours. */
    for (int changed = 1; changed;) {
        changed = 0;
        for (int i = 0; i < p->steps_count; i++) {
            const struct op *op = &p->steps[i].op;
            if (op->kind != OP_CONV) continue;
            struct place *in = p->places + p->places[op->in[0]].root, *out = p->places + op->out;
            if (in->layout == out->layout) continue;
            in->layout = out->layout = LAYOUT_NHWC;
            changed = 1;
        }
    }
    free(uses);
}

/* ---- steps ---- */

const struct cpu_kernels *cpu_kernels_find(const char *isa)
{
    __builtin_cpu_init();
    const int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const struct {
        const struct cpu_kernels *kernels;
        int there;
    } all[] = {
        {&cpu_kernels_avx512_bf16, avx512 && __builtin_cpu_supports("avx512bf16")},
        {&cpu_kernels_avx512, avx512},
        {&cpu_kernels_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
        {&cpu_kernels_sse2, 1},
    };
    for (int i = 0; i < 4; i++)
        if (all[i].there && (!isa || strcmp(isa, strchr(all[i].kernels->name, ':') + 1) == 0))
            return all[i].kernels;
    return NULL;
}

static int prepare(struct plan *p, struct step *s, struct steer_error *err)
{
    const struct cpu_kernels *k = p->compute->kernels;
    switch (s->op.kind) {
    case OP_LINEAR: return onednn_linear(p, s, err);
    case OP_CONV: return onednn_conv(p, s, winograd_wanted(p, &s->op), err);
    case OP_ATTENTION:
    case OP_GUIDED_ATTENTION:
        if (attention_by_ref(&s->op)) return ref_prepare(p, s, err);
        s->scratch_bytes = attention_scratch(p, &s->op);
        s->run = s->op.kind == OP_ATTENTION ? k->attention : k->guided_attention;
        break;
    case OP_GROUP_NORM:
        if (!weight_matrix_f32(s->op.w) || !weight_vector_f32(s->op.w))
            return steer_fail(err, STEER_NO_MEMORY, "no memory for a norm");
        s->scratch_bytes = group_norm_scratch(p, &s->op);
        s->run = k->group_norm;
        break;
    case OP_LAYER_NORM:
        if (!s->op.w) return ref_prepare(p, s, err);
        if (!weight_matrix_f32(s->op.w) || !weight_vector_f32(s->op.w))
            return steer_fail(err, STEER_NO_MEMORY, "no memory for a norm");
        s->run = k->layer_norm;
        break;
    case OP_ACTIVATION:
    case OP_ADD: s->run = k->elementwise; break;
    case OP_CONCAT: s->run = k->concat; break;
    case OP_RESIZE: s->run = k->resize; break;
    case OP_GEGLU: s->run = k->geglu; break;
    default: return ref_prepare(p, s, err);
    }
    s->primitive = k->name;
    return 0;
}

static struct compute_peak peak(struct compute *c)
{
    enum { RUNS = 5 };
    return (struct compute_peak){c->kernels->fma_peak(c->threads), onednn_peak(c, TYPE_F32, RUNS),
                                 onednn_bf16_native() ? onednn_peak(c, TYPE_BF16, RUNS) : 0};
}

const struct backend backend_cpu = {"cpu", choose, prepare, peak};
