// SPDX-License-Identifier: Apache-2.0
/* Group norm (with SiLU), layer norm (with modulation), RMS norm and rotary positions. A group's
 * sums run over a whole image: partial sums per thread in double, shifted by the first pixel so
 * that a large mean costs no digits. */
#include "cpu.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "../weight.h"
#include "vector.h"

enum { TILE = 64 }; /* pixels between two additions into double */

struct share {
    size_t first, last;
};

INLINE struct share share_of(size_t count)
{
    size_t threads = (size_t)omp_get_num_threads(), me = (size_t)omp_get_thread_num();
    return (struct share){count * me / threads, count * (me + 1) / threads};
}

/* sums[0][C] += x - shift, sums[1][C] += (x - shift)^2 over this thread's pixels. */
static void partial_sums(const struct place *at, const float *x, const float *shift, double *sums,
                         struct share mine)
{
    int channels = at->shape.c, blocks = (channels + LANES - 1) / LANES;
    memset(sums, 0, 2 * (size_t)channels * sizeof *sums);
    for (size_t tile = mine.first; tile < mine.last; tile += TILE) {
        size_t end = tile + TILE < mine.last ? tile + TILE : mine.last;
        for (int block = 0; block < blocks; block++) {
            int n = channels - block * LANES < LANES ? channels - block * LANES : LANES;
            v16 base = load_part(shift + block * LANES, TYPE_F32, n), sum = splat(0), square = sum;
            for (size_t i = tile; i < end; i++) {
                v16 d = load_typed(x + block_at(at, block, i), TYPE_F32, n) - base;
                sum += d;
                square += d * d;
            }
            float lanes[2][LANES];
            store(lanes[0], sum);
            store(lanes[1], square);
            for (int c = 0; c < n; c++) {
                sums[block * LANES + c] += lanes[0][c];
                sums[channels + block * LANES + c] += lanes[1][c];
            }
        }
    }
}

/* y = (x - shift) * a + b per channel, from all threads' sums. The mean is taken off before the
 * multiplication (shift becomes it), so that one far above the deviation costs no digits. */
static void coefficients(const struct op *op, int channels, double pixels, int threads,
                         const double *sums, float *shift, float *a, float *b)
{
    const float *scale = weight_matrix_f32(op->w), *bias = weight_vector_f32(op->w);
    int width = channels / op->groups;
    for (int g = 0; g < op->groups; g++) {
        double total = 0, square = 0, count = pixels * width;
        for (int c = g * width; c < (g + 1) * width; c++) {
            double s = 0;
            for (int t = 0; t < threads; t++)
                s += sums[(size_t)t * 2 * (size_t)channels + (size_t)c];
            total += s + pixels * shift[c];
        }
        double mean = total / count;
        for (int c = g * width; c < (g + 1) * width; c++) {
            double s = 0, q = 0, off = mean - shift[c];
            for (int t = 0; t < threads; t++) {
                s += sums[(size_t)t * 2 * (size_t)channels + (size_t)c];
                q += sums[(size_t)t * 2 * (size_t)channels + (size_t)(channels + c)];
            }
            square += q - 2 * off * s + pixels * off * off;
        }
        double inverse = 1 / sqrt((square > 0 ? square : 0) / count + op->eps);
        for (int c = g * width; c < (g + 1) * width; c++) {
            a[c] = (float)(inverse * scale[c]);
            shift[c] = (float)mean;
            b[c] = (float)(bias[c] - (mean - shift[c]) * inverse * scale[c]);
        }
    }
}

INLINE void apply_as(const struct place *in, const struct place *out, const float *x, char *y,
                     const float *shift, const float *a, const float *b, struct share mine,
                     const enum compute_type type, const int silu)
{
    int channels = in->shape.c, blocks = (channels + LANES - 1) / LANES;
    size_t bytes = compute_type_bytes(type);
    for (size_t tile = mine.first; tile < mine.last; tile += TILE) {
        size_t end = tile + TILE < mine.last ? tile + TILE : mine.last;
        for (int block = 0; block < blocks; block++) {
            int n = channels - block * LANES < LANES ? channels - block * LANES : LANES;
            v16 mean = load_part(shift + block * LANES, TYPE_F32, n);
            v16 va = load_part(a + block * LANES, TYPE_F32, n);
            v16 vb = load_part(b + block * LANES, TYPE_F32, n);
            for (size_t i = tile; i < end; i++) {
                v16 v = (load_typed(x + block_at(in, block, i), TYPE_F32, n) - mean) * va + vb;
                if (silu) v = vsilu(v);
                store_typed(y + block_at(out, block, i) * bytes, type, v, n);
            }
        }
    }
}

static void apply(const struct place *in, const struct place *out, const float *x, char *y,
                  const float *shift, const float *a, const float *b, struct share mine, int silu)
{
    if (out->type == TYPE_BF16 && silu)
        apply_as(in, out, x, y, shift, a, b, mine, TYPE_BF16, 1);
    else if (out->type == TYPE_BF16)
        apply_as(in, out, x, y, shift, a, b, mine, TYPE_BF16, 0);
    else if (silu)
        apply_as(in, out, x, y, shift, a, b, mine, TYPE_F32, 1);
    else
        apply_as(in, out, x, y, shift, a, b, mine, TYPE_F32, 0);
}

int ISA(group_norm)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    const struct place *in = p->places + op->in[0], *out = p->places + op->out;
    size_t channels = (size_t)in->shape.c, pixels = (size_t)in->shape.h * (size_t)in->shape.w;
    int threads = p->compute->threads;
    double *sums = (double *)p->scratch;
    float *shift = (float *)(sums + 2 * channels * (size_t)threads);
    float *a = shift + channels, *b = a + channels;
    for (int image = 0; image < in->shape.b; image++) {
        const float *x = place_image(p, op->in[0], image);
        char *y = place_image(p, op->out, image);
        for (size_t c = 0; c < channels; c++)
            shift[c] = x[block_at(in, (int)(c / LANES), 0) + c % LANES];
        int team = 1;
#pragma omp parallel num_threads(threads)
        {
            struct share mine = share_of(pixels);
            partial_sums(in, x, shift, sums + 2 * channels * (size_t)omp_get_thread_num(), mine);
#pragma omp single
            team = omp_get_num_threads();
#pragma omp single
            coefficients(op, in->shape.c, (double)pixels, team, sums, shift, a, b);
            apply(in, out, x, y, shift, a, b, mine, op->act == ACT_SILU);
        }
    }
    return 0;
}

/* What a normalised row is multiplied by, and what is added then. scale NULL: nothing of it. */
struct row_affine {
    const char *scale, *shift;
    enum compute_type scale_type, shift_type;
    float more; /* 1 where scale means 1 + scale */
};

INLINE void row_norm(const char *x, char *y, const struct row_affine *affine, int channels,
                     double eps, const enum compute_type from, const enum compute_type to)
{
    v16 total = splat(0), square = splat(0), rest = splat(0);
    for (int c = 0; c < channels; c += LANES)
        total += load_row(x, c, from, channels);
    float mean = sum_lanes(total) / (float)channels;
    for (int c = 0; c < channels; c += LANES) {
        v16 d = load_row(x, c, from, channels) - mean;
        if (channels - c < LANES) { /* lanes beyond the row would count as -mean */
            float lanes[LANES] = {0};
            store_part(lanes, TYPE_F32, d, channels - c);
            d = load(lanes);
        }
        square += d * d;
        rest += d;
    }
    /* What rounding left in the mean. */
    double left = (double)sum_lanes(rest) / channels;
    double variance = (double)sum_lanes(square) / channels - left * left;
    float inverse = (float)(1 / sqrt((variance > 0 ? variance : 0) + eps)), off = (float)left;
    for (int c = 0; c < channels; c += LANES) {
        v16 v = (load_row(x, c, from, channels) - mean - off) * inverse;
        if (affine->scale) {
            v16 scale = load_row(affine->scale, c, affine->scale_type, channels) + affine->more;
            v = v * scale + load_row(affine->shift, c, affine->shift_type, channels);
        }
        store_row(y, c, to, v, channels);
    }
}

/* The weight's scale and shift, or those of the modulation that follows (cpu.c, fuse). */
static struct row_affine row_affine_of(const struct plan *p, const struct op *op, int image)
{
    struct row_affine a = {.scale_type = TYPE_F32, .shift_type = TYPE_F32};
    if (op->w) {
        a.scale = (const char *)weight_matrix_f32(op->w);
        a.shift = (const char *)weight_vector_f32(op->w);
    } else if (op->in[1] >= 0) {
        a.shift = place_image(p, op->in[1], image);
        a.scale = place_image(p, op->in[2], image);
        a.shift_type = p->places[op->in[1]].type;
        a.scale_type = p->places[op->in[2]].type;
        a.more = 1;
    }
    return a;
}

int ISA(layer_norm)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    const struct place *in = p->places + op->in[0], *out = p->places + op->out;
    size_t from = (size_t)in->pitch * bytes_of(in->type);
    size_t to = (size_t)out->pitch * bytes_of(out->type);
    int channels = in->shape.c;
    for (int image = 0; image < in->shape.b; image++) {
        const struct row_affine affine = row_affine_of(p, op, image);
        const char *x = place_image(p, op->in[0], image);
        char *y = place_image(p, op->out, image);
#pragma omp parallel for schedule(static)
        for (int i = 0; i < in->shape.h * in->shape.w; i++) {
            const char *row = x + (size_t)i * from;
            char *result = y + (size_t)i * to;
            if (in->type == TYPE_F32 && out->type == TYPE_BF16)
                row_norm(row, result, &affine, channels, op->eps, TYPE_F32, TYPE_BF16);
            else
                row_norm(row, result, &affine, channels, op->eps, in->type, out->type);
        }
    }
    return 0;
}

/* Pairs of channels c and on turned by their angles: table holds D / 2 cosines, then the sines. */
INLINE v16 turn(v16 x, const float *table, int c, int d)
{
    const v16 sign = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
    int pairs = (d - c) / 2;
    v16 cosines = load_pairs(table + c / 2, pairs);
    v16 sines = load_pairs(table + d / 2 + c / 2, pairs) * sign;
    return x * cosines + lanes_1(x) * sines;
}

/* One head of a pixel: normalised where there is a scale, turned where there is a table. */
INLINE void head_norm_turn(const char *x, char *y, const float *scale, const float *table, int d,
                           double eps, const enum compute_type from, const enum compute_type to)
{
    v16 square = splat(0);
    float inverse = 1;
    for (int c = 0; scale && c < d; c += LANES) {
        v16 v = load_row(x, c, from, d);
        square += v * v;
    }
    if (scale) inverse = (float)(1 / sqrt((double)sum_lanes(square) / d + eps));
    for (int c = 0; c < d; c += LANES) {
        v16 v = load_row(x, c, from, d);
        if (scale) v = v * inverse * load_row((const char *)scale, c, TYPE_F32, d);
        if (table) v = turn(v, table, c, d);
        store_row(y, c, to, v, d);
    }
}

/* OP_RMS_NORM, OP_ROPE, and the first with the second after it (cpu.c, fuse). */
int ISA(rms_norm)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    const struct place *in = p->places + op->in[0], *out = p->places + op->out;
    const float *scale = op->kind == OP_RMS_NORM ? weight_matrix_f32(op->w) : NULL;
    int d = in->shape.c / op->heads;
    size_t from = bytes_of(in->type), to = bytes_of(out->type);
    for (int image = 0; image < in->shape.b; image++) {
        const char *x = place_image(p, op->in[0], image);
        const float *table = op->in[1] >= 0 ? place_image(p, op->in[1], image) : NULL;
        size_t step = table ? (size_t)p->places[op->in[1]].pitch : 0;
        char *y = place_image(p, op->out, image);
#pragma omp parallel for schedule(static)
        for (int i = 0; i < in->shape.h * in->shape.w; i++)
            for (int head = 0; head < op->heads; head++) {
                const char *row = x + ((size_t)i * (size_t)in->pitch + (size_t)(head * d)) * from;
                char *result = y + ((size_t)i * (size_t)out->pitch + (size_t)(head * d)) * to;
                const float *angles = table ? table + (size_t)i * step : NULL;
                if (in->type == TYPE_BF16 && out->type == TYPE_BF16)
                    head_norm_turn(row, result, scale, angles, d, op->eps, TYPE_BF16, TYPE_BF16);
                else
                    head_norm_turn(row, result, scale, angles, d, op->eps, in->type, out->type);
            }
    }
    return 0;
}

#ifdef CPU_ISA_FIRST
size_t group_norm_scratch(const struct plan *p, const struct op *op)
{
    size_t channels = (size_t)p->tensors[op->in[0]].shape.c;
    return 2 * channels * (size_t)p->compute->threads * sizeof(double) +
           3 * channels * sizeof(float);
}
#endif
