// SPDX-License-Identifier: Apache-2.0
/* Sums, activations, GEGLU, concat and resize: bound by memory, so one pass each. Tensors of either
 * layout are read and written 16 channels of a pixel at a time. */
#include "cpu.h"

#include <string.h>

#include "vector.h"

INLINE v16 activate(v16 x, enum activation act)
{
    switch (act) {
    case ACT_NONE: return x;
    case ACT_SILU: return vsilu(x);
    case ACT_GELU: return vgelu(x);
    case ACT_GELU_TANH: return x / (vexp((x * x * x * 0.044715f + x) * -1.59576912f) + 1.f);
    case ACT_QUICK_GELU: return x / (vexp(x * -1.702f) + 1.f);
    case ACT_RELU: return vmax(x, splat(0));
    case ACT_TANH: return 1.f - 2.f / (vexp(x * 2.f) + 1.f);
    }
    return x;
}

/* OP_ADD and OP_ACTIVATION, f32 in and out. */
int ISA(elementwise)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    const struct place *in = p->places + op->in[0], *out = p->places + op->out;
    const struct place *second = op->kind == OP_ADD ? p->places + op->in[1] : NULL;
    int channels = out->shape.c, blocks = (channels + LANES - 1) / LANES;
    for (int image = 0; image < out->shape.b; image++) {
        const float *x = place_image(p, op->in[0], image);
        const float *more = second ? place_image(p, op->in[1], image) : NULL;
        float *y = place_image(p, op->out, image);
#pragma omp parallel for schedule(static)
        for (int row = 0; row < out->shape.h; row++)
            for (int block = 0; block < blocks; block++) {
                int n = channels - block * LANES < LANES ? channels - block * LANES : LANES;
                size_t first = (size_t)row * (size_t)out->shape.w;
                for (size_t i = first; i < first + (size_t)out->shape.w; i++) {
                    v16 v = load_typed(x + block_at(in, block, i), TYPE_F32, n);
                    if (more)
                        v += load_typed(more + block_at(second, block, i), TYPE_F32, n);
                    else
                        v = activate(v, op->act);
                    store_typed(y + block_at(out, block, i), TYPE_F32, v, n);
                }
            }
    }
    return 0;
}

INLINE void geglu_row(const char *x, char *y, int channels, const enum compute_type from,
                      const enum compute_type to)
{
    size_t in = compute_type_bytes(from), out = compute_type_bytes(to);
    for (int c = 0; c < channels; c += LANES) {
        int n = channels - c < LANES ? channels - c : LANES;
        v16 a = load_typed(x + (size_t)c * in, from, n);
        v16 gate = load_typed(x + (size_t)(channels + c) * in, from, n);
        store_typed(y + (size_t)c * out, to, a * vgelu(gate), n);
    }
}

int ISA(geglu)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    const struct place *in = p->places + op->in[0], *out = p->places + op->out;
    size_t channels = (size_t)out->shape.c;
    size_t from = 2 * channels * compute_type_bytes(in->type);
    size_t to = channels * compute_type_bytes(out->type);
    for (int image = 0; image < out->shape.b; image++) {
        const char *x = place_image(p, op->in[0], image);
        char *y = place_image(p, op->out, image);
#pragma omp parallel for schedule(static)
        for (int i = 0; i < out->shape.h * out->shape.w; i++)
            if (in->type == TYPE_BF16 && out->type == TYPE_BF16)
                geglu_row(x + (size_t)i * from, y + (size_t)i * to, (int)channels, TYPE_BF16,
                          TYPE_BF16);
            else
                geglu_row(x + (size_t)i * from, y + (size_t)i * to, (int)channels, in->type,
                          out->type);
    }
    return 0;
}

/* Channels of one tensor to `first` and on of another, f32. first is a multiple of 16 where out is
 * blocked. */
static void channels_copy(struct plan *p, int from, int to, int first, int image)
{
    const struct place *in = p->places + from, *out = p->places + to;
    const float *x = place_image(p, from, image);
    float *y = place_image(p, to, image);
    int channels = in->shape.c, blocks = (channels + LANES - 1) / LANES;
#pragma omp parallel for schedule(static)
    for (int row = 0; row < out->shape.h; row++)
        for (int block = 0; block < blocks; block++) {
            int n = channels - block * LANES < LANES ? channels - block * LANES : LANES;
            size_t begin = (size_t)row * (size_t)out->shape.w;
            for (size_t i = begin; i < begin + (size_t)out->shape.w; i++) {
                size_t at = out->layout == LAYOUT_BLOCKED
                                ? block_at(out, block + first / LANES, i)
                                : i * (size_t)out->pitch + (size_t)(first + block * LANES);
                store_typed(y + at, TYPE_F32, load_typed(x + block_at(in, block, i), TYPE_F32, n),
                            n);
            }
        }
}

int ISA(concat)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    for (int image = 0; image < p->places[op->out].shape.b; image++) {
        channels_copy(p, op->in[0], op->out, 0, image);
        channels_copy(p, op->in[1], op->out, p->places[op->in[0]].shape.c, image);
    }
    return 0;
}

int ISA(resize)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    const struct place *in = p->places + op->in[0], *out = p->places + op->out;
    int channels = out->shape.c, blocks = (channels + LANES - 1) / LANES;
    size_t bytes = compute_type_bytes(out->type);
    for (int image = 0; image < out->shape.b; image++) {
        const float *x = place_image(p, op->in[0], image);
        char *y = place_image(p, op->out, image);
#pragma omp parallel for schedule(static)
        for (int row = 0; row < out->shape.h; row++) {
            size_t source = (size_t)((int64_t)row * in->shape.h / out->shape.h);
            for (int block = 0; block < blocks; block++) {
                int n = channels - block * LANES < LANES ? channels - block * LANES : LANES;
                for (int column = 0; column < out->shape.w; column++) {
                    size_t from = source * (size_t)in->shape.w +
                                  (size_t)((int64_t)column * in->shape.w / out->shape.w);
                    size_t to = (size_t)row * (size_t)out->shape.w + (size_t)column;
                    v16 v = load_typed(x + block_at(in, block, from), TYPE_F32, n);
                    store_typed(y + block_at(out, block, to) * bytes, out->type, v, n);
                }
            }
        }
    }
    return 0;
}

const struct cpu_kernels ISA(cpu_kernels) = {
    "ours:" ISA_TEXT, ISA(attention), ISA(guided_attention), ISA(group_norm), ISA(layer_norm),
    ISA(elementwise), ISA(geglu),     ISA(concat),           ISA(resize),     ISA(fma_peak)};
