// SPDX-License-Identifier: Apache-2.0
/* The cpu backend's passes: which steps are one, which type and layout each tensor has, and who
 * computes each step.
 *
 * 1. A tensor is bf16 when all that read it multiply matrices, or lead to one that does: GEGLU,
 *    products, the norm and rotation of queries and keys, a concat that is bf16 itself. Residual
 *    sums and what other norms read stay f32.
 * 2. A 3x3 convolution over many pixels runs in f32 by Winograd, which beats bf16 there: its input
 *    stays f32, in oneDNN's blocked layout.
 * 3. A layer norm takes along the modulation after it, an RMS norm the rotation: one pass.
 * 4. Weights held as int8 (those of weight_hold_int8) are multiplied by our own kernel, in the type
 *    of rule 1 and channels last.
 * 5. An f32 tensor is blocked when all that make and read it can be. A convolution has one layout
 *    on both sides, for oneDNN has no fast code for two; norms and sums read and write either, so
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
    if (op->kind != OP_CONV || op->w->int8) return 0;
    if (op->w->size != 3 || op->stride != 1 || op->padding != 1) return 0;
    struct shape out = p->tensors[op->out].shape;
    int pixels = out.h * out.w;
    if (op->w->in % 16 || op->w->out % 16) return 0;
    if (op->w->in < WINOGRAD_CHANNELS_MIN || op->w->out < WINOGRAD_CHANNELS_MIN) return 0;
    int least =
        p->compute->precision == PRECISION_BF16 ? WINOGRAD_PIXELS_BF16 : WINOGRAD_PIXELS_F32;
    return tuning_winograd(p->compute, op->w->in, op->w->out, out.h, out.w, pixels >= least);
}

/* What is known of a tensor's readers. bf16, blocked: all of them would read it so. */
struct uses {
    int readers, views, made_by, bf16, blocked;
};

/* ---- fusing ---- */

/* The step that makes tensor t for nobody but its one reader; -1: there is none. */
static int sole_maker(const struct plan *p, const struct uses *uses, int t)
{
    const struct uses *u = uses + t;
    return u->readers == 1 && !u->views && !p->tensors[t].output ? u->made_by : -1;
}

/* A modulation takes the layer norm before it along, and a rotation the RMS norm, in one pass over
 * memory: the later step becomes the norm with the other's inputs behind its own. */
static void fuse(struct plan *p, const struct uses *uses)
{
    int kept = 0;
    for (int i = 0; i < p->steps_count; i++) {
        struct op *op = &p->steps[i].op;
        int maker = sole_maker(p, uses, op->in[0]);
        const struct op *norm = maker >= 0 ? &p->steps[maker].op : NULL;
        int fits = norm &&
                   ((op->kind == OP_MODULATE && norm->kind == OP_LAYER_NORM && !norm->w) ||
                    (op->kind == OP_ROPE && norm->kind == OP_RMS_NORM && norm->heads == op->heads));
        if (!fits) continue;
        struct op both = *norm;
        both.in[1] = op->in[1];
        both.in[2] = op->in[2];
        both.out = op->out;
        *op = both;
        p->steps[maker].op.kind = OP_KINDS; /* gone */
    }
    for (int i = 0; i < p->steps_count; i++)
        if (p->steps[i].op.kind != OP_KINDS) p->steps[kept++] = p->steps[i];
    p->steps_count = kept;
}

/* ---- types ---- */

/* Whether op takes its k-th input in bf16; decided after the type of what it writes. */
static int reads_bf16(const struct plan *p, const struct op *op, int k)
{
    switch (op->kind) {
    case OP_LINEAR:
    case OP_GEGLU:
    case OP_MULTIPLY: return 1;
    case OP_CONV: return k == 0 && !winograd_wanted(p, op);
    case OP_RMS_NORM:
    case OP_ROPE: return k == 0;
    case OP_ATTENTION: return k < IN_POSITIVE + 2;
    case OP_GUIDED_ATTENTION: /* neither masks nor parameters */
        return k < IN_PARAMS && k != IN_POSITIVE + 2 && k != IN_NEGATIVE + 2 && k != IN_SHARED + 2;
    case OP_CONCAT: return p->places[op->out].type == TYPE_BF16;
    default: return 0;
    }
}

static int writes_bf16(const struct op *op)
{
    switch (op->kind) {
    case OP_LINEAR:
    case OP_CONV:
    case OP_GROUP_NORM:
    case OP_LAYER_NORM:
    case OP_RMS_NORM:
    case OP_MODULATE:
    case OP_ROPE:
    case OP_ATTENTION:
    case OP_GUIDED_ATTENTION:
    case OP_GEGLU:
    case OP_MULTIPLY:
    case OP_CONCAT:
    case OP_RESIZE: return 1;
    default: return 0;
    }
}

/* ---- layouts ---- */

static int writes_blocked(const struct op *op)
{
    if (op->kind == OP_CONV) return !op->w->int8;
    return op->kind == OP_GROUP_NORM || op->kind == OP_ADD || op->kind == OP_RESIZE ||
           op->kind == OP_ACTIVATION || op->kind == OP_CONCAT;
}

static int reads_blocked(const struct op *op, int k)
{
    if (op->kind == OP_CONV) return k == 0 && !op->w->int8;
    return writes_blocked(op);
}

/* Of an f32 tensor that is no output. */
static int may_be_blocked(const struct plan *p, const struct op *op, const struct uses *u)
{
    return p->places[op->out].shape.c % 16 == 0 && u->blocked && !u->views && writes_blocked(op) &&
           (op->kind != OP_CONCAT || p->tensors[op->in[0]].shape.c % 16 == 0);
}

static void uses_count(const struct plan *p, struct uses *uses)
{
    for (int i = 0; i < p->tensors_count; i++)
        uses[i] = (struct uses){.made_by = -1, .bf16 = 1, .blocked = 1};
    for (int i = 0; i < p->tensors_count; i++)
        if (p->tensors[i].role == ROLE_VIEW) uses[p->tensors[i].parent].views++;
    for (int i = 0; i < p->steps_count; i++) {
        const struct op *op = &p->steps[i].op;
        uses[op->out].made_by = i;
        for (int k = 0; k < OP_INPUTS_MAX; k++)
            if (op->in[k] >= 0) uses[p->places[op->in[k]].root].readers++;
    }
}

/* From the last step to the first, so that a step knows all readers' wishes and its own result. */
static void types_choose(struct plan *p, struct uses *uses)
{
    int narrow = p->compute->precision == PRECISION_BF16;
    for (int i = p->steps_count - 1; i >= 0; i--) {
        const struct op *op = &p->steps[i].op;
        struct place *out = p->places + op->out;
        const struct uses *u = uses + op->out;
        if (!p->tensors[op->out].output && out->type == TYPE_F32) {
            if (narrow && u->bf16 && u->readers && writes_bf16(op) && !winograd_wanted(p, op))
                out->type = TYPE_BF16;
            else if (may_be_blocked(p, op, u))
                out->layout = LAYOUT_BLOCKED;
        }
        for (int k = 0; k < OP_INPUTS_MAX; k++) {
            if (op->in[k] < 0) continue;
            struct uses *read = uses + p->places[op->in[k]].root;
            read->bf16 &= reads_bf16(p, op, k);
            read->blocked &= reads_blocked(op, k);
        }
    }
}

static void choose(struct plan *p)
{
    struct uses *uses = calloc((size_t)p->tensors_count + 1, sizeof *uses);
    if (!uses) return; /* all dense f32, one step after the other, is right too */
    uses_count(p, uses);
    fuse(p, uses);
    types_choose(p, uses);
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

/* Inputs that a kernel reads as f32 only; a bound one may be bf16. */
static int wants_f32(const struct op *op, int k)
{
    switch (op->kind) {
    case OP_GROUP_NORM:
    case OP_RESIZE: return 1;
    case OP_RMS_NORM:
    case OP_ROPE: return k == 1;
    case OP_ATTENTION: return k == IN_BIAS;
    case OP_GUIDED_ATTENTION: return k == IN_PARAMS;
    default: return 0;
    }
}

static int prepare(struct plan *p, struct step *s, struct steer_error *err)
{
    const struct cpu_kernels *k = p->compute->kernels;
    for (int i = 0; i < OP_INPUTS_MAX; i++)
        if (s->op.in[i] >= 0 && wants_f32(&s->op, i) && p->places[s->op.in[i]].type != TYPE_F32)
            return steer_fail(err, STEER_INTERNAL, "it would read bf16 as f32");
    int multiplies = s->op.kind == OP_LINEAR || s->op.kind == OP_CONV;
    if (multiplies && s->op.w->int8) {
        s->scratch_bytes = int8_scratch(p);
        s->run = k->int8;
        s->primitive = k->int8_name;
        return weight_ready(s->op.w, err);
    }
    switch (s->op.kind) {
    case OP_LINEAR: return onednn_linear(p, s, err);
    case OP_CONV: return onednn_conv(p, s, winograd_wanted(p, &s->op), err);
    case OP_ATTENTION:
    case OP_GUIDED_ATTENTION:
        s->scratch_bytes = attention_scratch(p, &s->op);
        s->run = k->attention;
        break;
    case OP_GROUP_NORM:
        s->scratch_bytes = group_norm_scratch(p, &s->op);
        s->run = k->group_norm;
        break;
    case OP_LAYER_NORM: s->run = k->layer_norm; break;
    case OP_RMS_NORM:
    case OP_ROPE: s->run = k->rms_norm; break;
    case OP_ACTIVATION:
    case OP_ADD:
    case OP_MULTIPLY:
    case OP_MODULATE:
    case OP_GATED_ADD: s->run = k->elementwise; break;
    case OP_CONCAT: s->run = k->concat; break;
    case OP_RESIZE: s->run = k->resize; break;
    case OP_GEGLU: s->run = k->geglu; break;
    default: return ref_prepare(p, s, err);
    }
    s->primitive = k->name;
    return s->op.w ? weight_ready(s->op.w, err) : 0;
}

static struct compute_peak peak(struct compute *c)
{
    enum { RUNS = 5 };
    return (struct compute_peak){c->kernels->fma_peak(c->threads), onednn_peak(c, TYPE_F32, RUNS),
                                 onednn_bf16_native() ? onednn_peak(c, TYPE_BF16, RUNS) : 0};
}

const struct backend backend_cpu = {"cpu", choose, prepare, peak};
