// SPDX-License-Identifier: Apache-2.0
/* Sums, products, modulation, activations, GEGLU, concat and resize: bound by memory, so one pass
 * each. Tensors are read and written 16 channels of a pixel at a time, in the order of memory where
 * both layouts allow it. */
#include "cpu.h"

#include <string.h>

#include "vector.h"

/* Pixels that a thread takes at a time. */
enum { TILE = 16 };

/* An image of a tensor, or one row of values for all pixels. */
struct operand {
    const struct place *at;
    char *data;
    int one_row;
};

static struct operand operand_of(const struct plan *p, int tensor, int image)
{
    if (tensor < 0) return (struct operand){0};
    const struct place *at = p->places + tensor;
    return (struct operand){at, place_image(p, tensor, image), 0};
}

INLINE char *operand_at(const struct operand *o, int block, size_t pixel)
{
    return o->data + block_at(o->at, block, o->one_row ? 0 : pixel) * bytes_of(o->at->type);
}

INLINE v16 operand_load(const struct operand *o, int block, size_t pixel, int n)
{
    return load_typed(operand_at(o, block, pixel), o->at->type, n);
}

INLINE void element(const struct op *op, const struct operand in[3], const struct operand *out,
                    int block, size_t pixel)
{
    int left = out->at->shape.c - block * LANES, n = left < LANES ? left : LANES;
    v16 v = operand_load(in, block, pixel, n);
    switch (op->kind) {
    case OP_ADD: v += operand_load(in + 1, block, pixel, n); break;
    case OP_MULTIPLY: v *= operand_load(in + 1, block, pixel, n); break;
    case OP_MODULATE:
        v = v * (operand_load(in + 2, block, pixel, n) + 1.f) +
            operand_load(in + 1, block, pixel, n);
        break;
    case OP_GATED_ADD:
        v += operand_load(in + 1, block, pixel, n) * operand_load(in + 2, block, pixel, n);
        break;
    default: v = activate(v, op->act);
    }
    store_typed(operand_at(out, block, pixel), out->at->type, v, n);
}

/* Sums, products, modulation and activations of any types; the first two of either layout. */
int ISA(elementwise)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct shape shape = p->places[op->out].shape;
    int blocks = (shape.c + LANES - 1) / LANES, blocked = 0;
    size_t pixels = (size_t)shape.h * (size_t)shape.w;
    for (int image = 0; image < shape.b; image++) {
        const struct operand out = operand_of(p, op->out, image);
        struct operand in[3];
        blocked = out.at->layout == LAYOUT_BLOCKED;
        for (int k = 0; k < 3; k++) {
            in[k] = operand_of(p, op->in[k], image);
            if (in[k].at && in[k].at->layout == LAYOUT_BLOCKED) blocked = 1;
        }
        in[1].one_row = op->kind == OP_MODULATE || op->kind == OP_GATED_ADD;
        in[2].one_row = op->kind == OP_MODULATE;
#pragma omp parallel for schedule(static)
        for (size_t first = 0; first < pixels; first += TILE) {
            size_t last = first + TILE < pixels ? first + TILE : pixels;
            for (int block = 0; blocked && block < blocks; block++)
                for (size_t i = first; i < last; i++)
                    element(op, in, &out, block, i);
            for (size_t i = first; !blocked && i < last; i++)
                for (int block = 0; block < blocks; block++)
                    element(op, in, &out, block, i);
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
    size_t from = (size_t)in->pitch * bytes_of(in->type);
    size_t to = channels * bytes_of(out->type);
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

INLINE void block_copy(const struct operand *in, const struct operand *out, int first, int block,
                       size_t pixel)
{
    int left = in->at->shape.c - block * LANES, n = left < LANES ? left : LANES;
    int whole = first / LANES; /* what is left of first lies inside a dense row only */
    char *to = operand_at(out, block + whole, pixel);
    to += (size_t)(first - whole * LANES) * bytes_of(out->at->type);
    store_typed(to, out->at->type, operand_load(in, block, pixel, n), n);
}

/* Channels of one tensor to `first` and on of another. first is a multiple of 16 where out is
 * blocked. */
static void channels_copy(struct plan *p, int from, int to, int first, int image)
{
    const struct operand in = operand_of(p, from, image), out = operand_of(p, to, image);
    int blocks = (in.at->shape.c + LANES - 1) / LANES;
    int blocked = in.at->layout == LAYOUT_BLOCKED || out.at->layout == LAYOUT_BLOCKED;
    size_t pixels = (size_t)out.at->shape.h * (size_t)out.at->shape.w;
#pragma omp parallel for schedule(static)
    for (size_t begin = 0; begin < pixels; begin += TILE) {
        size_t end = begin + TILE < pixels ? begin + TILE : pixels;
        for (int block = 0; blocked && block < blocks; block++)
            for (size_t i = begin; i < end; i++)
                block_copy(&in, &out, first, block, i);
        for (size_t i = begin; !blocked && i < end; i++)
            for (int block = 0; block < blocks; block++)
                block_copy(&in, &out, first, block, i);
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
    "ours:" ISA_TEXT, "ours_int8:" ISA_TEXT, ISA(attention), ISA(int8),
    ISA(group_norm),  ISA(layer_norm),       ISA(rms_norm),  ISA(elementwise),
    ISA(geglu),       ISA(concat),           ISA(resize),    ISA(fma_peak)};
