// SPDX-License-Identifier: Apache-2.0
/* Linear layers and convolutions whose weights are held as int8 (weight.h).
 *
 * Codes are whole numbers that f32 and bf16 have exactly: a piece of them is widened in the cache
 * and multiplied as any matrix is, and each output's sum takes its scale at the end. Memory is read
 * at a byte a weight, and nothing is rounded that was not by quantizing.
 *
 * A convolution is a linear layer over the channels of each tap, with rows from where the tap looks
 * and zeros beyond the image. A task is a panel of 64 outputs for BLOCK pixels: for each piece of
 * channels it widens the panel once and goes over its pixels ROWS at a time, whose sums wait in the
 * cache meanwhile. Tasks share nothing, so who takes which changes no byte. */
#include <omp.h>
#include <string.h>

#include "../weight.h"
#include "cpu.h"
#include "vector.h"

#ifdef __AVX512F__
enum { VECTORS = 4 }; /* of outputs that are summed at a time: ROWS * VECTORS registers */
#else
enum { VECTORS = 1 };
#endif
enum { ROWS = 6, BLOCK = 64 * ROWS, UNITS = 1024, PANEL = INT8_PANEL };

/* An element is four bytes: a float, or a pair of bf16 where the processor multiplies those. */
struct job {
    const struct op *op;
    const struct place *in, *out;
    struct weight_int8 held;
    const float *bias, *vector; /* vector: of this image, or NULL */
    const char *x;
    char *y;
    int unit; /* values in an element */
    int stride;
};

/* A thread's workspace. */
struct work {
    float panel[UNITS * PANEL]; /* widened: [element][PANEL] */
    float sums[BLOCK * PANEL];
    float wide[ROWS * UNITS]; /* rows of bf16 where those are not multiplied */
    float zeros[UNITS];
};

typedef int16_t s16 __attribute__((vector_size(32), aligned(2), may_alias));

INLINE void widen(float *to, const int8_t *codes, int pairs, const int unit)
{
    for (int pair = 0; pair < pairs; pair++)
        for (int o = 0; o < PANEL; o += LANES, codes += 2 * LANES) {
            i16 both = __builtin_convertvector(*(const s16 *)(const void *)codes, i16);
            v16 even = __builtin_convertvector((i16)((u16)both << 24) >> 24, v16);
            v16 odd = __builtin_convertvector(both >> 8, v16);
            if (unit == 2) {
                store(to + pair * PANEL + o, (v16)(((u16)even >> 16) | ((u16)odd & 0xffff0000)));
                continue;
            }
            store(to + 2 * pair * PANEL + o, even);
            store(to + (2 * pair + 1) * PANEL + o, odd);
        }
}

/* sums[count][PANEL] (+)= rows[count][depth] panel[depth][PANEL]. */
INLINE void multiply(float *sums, const float *const rows[ROWS], const float *panel, int depth,
                     int add, const int count, const int unit)
{
    for (int first = 0; first < PANEL; first += VECTORS * LANES) {
        v16 sum[ROWS][VECTORS];
        for (int r = 0; r < count; r++)
            for (int v = 0; v < VECTORS; v++)
                sum[r][v] = add ? load(sums + r * PANEL + first + v * LANES) : splat(0);
        for (int k = 0; k < depth; k++) {
            v16 w[VECTORS];
            for (int v = 0; v < VECTORS; v++)
                w[v] = load(panel + k * PANEL + first + v * LANES);
            for (int r = 0; r < count; r++) {
                v16 x = splat_bits(rows[r] + k);
                for (int v = 0; v < VECTORS; v++)
                    sum[r][v] = multiply_add(sum[r][v], x, w[v], unit);
            }
        }
        for (int r = 0; r < count; r++)
            for (int v = 0; v < VECTORS; v++)
                store(sums + r * PANEL + first + v * LANES, sum[r][v]);
    }
}

/* Where the tap's channels of an output pixel lie; NULL: beyond the image. */
INLINE const char *row_at(const struct job *j, size_t pixel, int tap)
{
    int size = j->op->w->size, width = j->out->shape.w;
    int row = (int)(pixel / (size_t)width) * j->stride - j->op->padding + tap / size;
    int column = (int)(pixel % (size_t)width) * j->stride - j->op->padding + tap % size;
    if (row < 0 || row >= j->in->shape.h || column < 0 || column >= j->in->shape.w) return NULL;
    size_t at = (size_t)row * (size_t)j->in->shape.w + (size_t)column;
    return j->x + at * (size_t)j->in->pitch * bytes_of(j->in->type);
}

/* Channels first .. first + count - 1 of a tap, of the pixels from `pixel` on; past the last of the
 * block some row, whose sums nobody reads. */
static void rows_find(const struct job *j, struct work *w, const float *rows[ROWS], size_t pixel,
                      size_t end, int tap, int first, int count)
{
    for (int r = 0; r < ROWS; r++) {
        size_t i = pixel + (size_t)r < end ? pixel + (size_t)r : end - 1;
        const char *x = row_at(j, i, tap);
        if (!x) {
            rows[r] = w->zeros;
            continue;
        }
        x += (size_t)first * bytes_of(j->in->type);
        rows[r] = (const float *)(const void *)x;
        if (j->in->type == TYPE_F32 || j->unit == 2) continue;
        float *wide = w->wide + r * UNITS;
        for (int c = 0; c < count; c += LANES)
            store_row((char *)wide, c, TYPE_F32, load_row(x, c, TYPE_BF16, count), count);
        rows[r] = wide;
    }
}

/* A piece of the panel over all pixels of a block. */
INLINE void piece_sum(const struct job *j, struct work *w, size_t begin, size_t end, int tap,
                      int first, int count, const int8_t *codes, const int unit)
{
    const float *rows[ROWS];
    widen(w->panel, codes, count / 2, unit);
    for (size_t pixel = begin; pixel < end; pixel += ROWS) {
        float *sums = w->sums + (pixel - begin) * PANEL;
        rows_find(j, w, rows, pixel, end, tap, first, count);
        if (end - pixel == 1)
            multiply(sums, rows, w->panel, count / unit, tap || first, 1, unit);
        else
            multiply(sums, rows, w->panel, count / unit, tap || first, ROWS, unit);
    }
}

static void block_sum(const struct job *j, struct work *w, int panel, size_t begin, size_t end)
{
    const struct weight *weight = j->op->w;
    for (int tap = 0; tap < weight->size * weight->size; tap++)
        for (int first = 0; first < weight->in; first += UNITS * j->unit) {
            int left = weight->in - first;
            int count = left < UNITS * j->unit ? left : UNITS * j->unit;
            const int8_t *codes = j->held.codes + int8_place(weight, panel * PANEL, tap, first);
            if (j->unit == 2)
                piece_sum(j, w, begin, end, tap, first, count, codes, 2);
            else
                piece_sum(j, w, begin, end, tap, first, count, codes, 1);
        }
}

/* Scale, bias, what is added per image, activation. */
static void block_store(const struct job *j, const struct work *w, int panel, size_t begin,
                        size_t end)
{
    const struct place *out = j->out;
    int channels = out->shape.c, first = panel * PANEL;
    int last = first + PANEL < channels ? first + PANEL : channels;
    for (size_t pixel = begin; pixel < end; pixel++) {
        char *y = j->y + pixel * (size_t)out->pitch * bytes_of(out->type);
        const float *sums = w->sums + (pixel - begin) * PANEL;
        for (int o = first; o < last; o += LANES) {
            v16 v = load(sums + (o - first)) * load(j->held.scales + o) +
                    load_row((const char *)j->bias, o, TYPE_F32, channels);
            if (j->vector) v += load_row((const char *)j->vector, o, TYPE_F32, channels);
            store_row(y, o, out->type, activate(v, j->op->act), channels);
        }
    }
}

int ISA(int8)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct job j = {.op = op, .in = p->places + op->in[0], .out = p->places + op->out};
    if (weight_matrix_int8(op->w, &j.held) || !(j.bias = weight_vector_f32(op->w)))
        return STEER_NO_MEMORY;
    j.stride = op->kind == OP_CONV ? op->stride : 1;
    j.unit = 1;
#ifdef __AVX512BF16__
    if (j.in->type == TYPE_BF16) j.unit = 2;
#endif
    size_t pixels = (size_t)j.out->shape.h * (size_t)j.out->shape.w;
    size_t blocks = (pixels + BLOCK - 1) / BLOCK;
    size_t panels = ((size_t)op->w->out + PANEL - 1) / PANEL;
    struct work *work = (struct work *)(void *)p->scratch;
    for (int image = 0; image < j.out->shape.b; image++) {
        j.x = place_image(p, op->in[0], image);
        j.y = place_image(p, op->out, image);
        if (op->kind == OP_CONV && op->in[1] >= 0) j.vector = place_image(p, op->in[1], image);
#pragma omp parallel for schedule(static)
        for (size_t task = 0; task < blocks * panels; task++) {
            struct work *w = work + omp_get_thread_num();
            size_t begin = task / panels * BLOCK, end = begin + BLOCK;
            if (end > pixels) end = pixels;
            memset(w->zeros, 0, sizeof w->zeros);
            block_sum(&j, w, (int)(task % panels), begin, end);
            block_store(&j, w, (int)(task % panels), begin, end);
            compute_beat(p->compute);
        }
    }
    return 0;
}

#ifdef CPU_ISA_FIRST
size_t int8_scratch(const struct plan *p)
{
    return (size_t)p->compute->threads * sizeof(struct work);
}
#endif
