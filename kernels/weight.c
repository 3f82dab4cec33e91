// SPDX-License-Identifier: Apache-2.0
#include "weight.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "plan.h"

/* Whole numbers and f32 one operation after another: the same bytes on every processor. */
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))

/* Tensors in files need not be aligned, so values are copied out of them. */
static uint16_t half_at(const char *data, size_t i)
{
    uint16_t half;
    memcpy(&half, data + i * sizeof half, sizeof half);
    return half;
}

/* Exact, subnormals and infinities too, and without a branch: the exponent is moved by a
 * multiplication. */
CLONES static void f16_to_f32(float *out, const char *data, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t half = half_at(data, i), bits = (half & 0x7fff) << 13, high;
        float value;
        memcpy(&value, &bits, sizeof value);
        value *= 0x1p112f;
        memcpy(&high, &value, sizeof high);
        high |= (half & 0x8000) << 16 | ((half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0);
        memcpy(out + i, &high, sizeof high);
    }
}

CLONES static void bf16_to_f32(float *out, const char *data, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)half_at(data, i) << 16;
        memcpy(out + i, &bits, sizeof bits);
    }
}

/* In the calling thread alone. */
static void span_to_f32(float *out, struct stored s, size_t first, size_t count)
{
    const char *data = (const char *)s.data + first * compute_type_bytes(s.type);
    if (s.type == TYPE_F16)
        f16_to_f32(out, data, count);
    else if (s.type == TYPE_BF16)
        bf16_to_f32(out, data, count);
    else
        memcpy(out, data, count * sizeof *out);
}

void stored_to_f32(float *out, struct stored s, size_t first, size_t count)
{
    enum { SPAN = 1 << 16 };
#pragma omp parallel for schedule(static) if (count > 4 * SPAN)
    for (size_t at = 0; at < count; at += SPAN)
        span_to_f32(out + at, s, first + at, count - at < SPAN ? count - at : SPAN);
}

static int weight_new(struct weight **ret, struct compute *c, enum weight_kind kind)
{
    struct weight *w = calloc(1, sizeof *w);
    if (!w) return STEER_NO_MEMORY;
    w->compute = c;
    w->kind = kind;
    w->parts = 1;
    *ret = w;
    return 0;
}

int weight_linear(struct weight **ret, struct compute *c, int parts, const struct stored *matrices,
                  const struct stored *biases, const int *out, int in)
{
    struct weight *w;
    int code = weight_new(&w, c, WEIGHT_LINEAR);
    if (code) return code;
    w->parts = parts;
    w->in = in;
    w->size = 1;
    for (int i = 0; i < parts; i++) {
        w->matrix[i] = matrices[i];
        if (biases) w->vector[i] = biases[i];
        w->part_out[i] = out[i];
        w->out += out[i];
    }
    *ret = w;
    return 0;
}

int weight_conv(struct weight **ret, struct compute *c, struct stored kernel, struct stored bias,
                int out, int in, int size)
{
    struct weight *w;
    int code = weight_new(&w, c, WEIGHT_CONV);
    if (code) return code;
    w->matrix[0] = kernel;
    w->vector[0] = bias;
    w->out = w->part_out[0] = out;
    w->in = in;
    w->size = size;
    *ret = w;
    return 0;
}

int weight_norm(struct weight **ret, struct compute *c, struct stored scale, struct stored shift,
                int channels)
{
    struct weight *w;
    int code = weight_new(&w, c, WEIGHT_NORM);
    if (code) return code;
    w->matrix[0] = scale;
    w->vector[0] = shift;
    w->out = w->part_out[0] = channels;
    w->in = channels;
    w->size = 0; /* the scale is [channels], not a matrix */
    *ret = w;
    return 0;
}

int weight_table(struct weight **ret, struct compute *c, struct stored table, int rows,
                 int channels)
{
    struct weight *w;
    int code = weight_new(&w, c, WEIGHT_TABLE);
    if (code) return code;
    w->matrix[0] = table;
    w->out = w->part_out[0] = rows;
    w->in = channels;
    w->size = 1;
    *ret = w;
    return 0;
}

void weight_hold_int8(struct weight *w)
{
    enum { CHANNELS_MIN = 16 };
    int matrix = w->kind == WEIGHT_LINEAR || w->kind == WEIGHT_CONV;
    w->int8 = matrix && w->in % 2 == 0 && w->in >= CHANNELS_MIN && w->out >= CHANNELS_MIN;
}

void weight_unpack(struct weight *w)
{
    while (w->packed)
        weight_forget(w, w->packed->key);
}

void weight_free(struct weight *w)
{
    if (!w) return;
    weight_unpack(w);
    free(w);
}

static size_t part_elements(const struct weight *w, int part)
{
    if (w->kind == WEIGHT_NORM) return (size_t)w->in;
    return (size_t)w->part_out[part] * (size_t)w->in * (size_t)(w->size * w->size);
}

/* Lets the file's pages go: what was read is packed, and the peak of memory stays low. */
static void pages_drop(const struct weight *w)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < w->parts; i++) {
        if (!w->matrix[i].mapped) continue;
        uintptr_t first = (uintptr_t)w->matrix[i].data;
        uintptr_t last = first + part_elements(w, i) * compute_type_bytes(w->matrix[i].type);
        /* Only whole pages: a neighbour's bytes would merely be read from the file again. */
        first = (first + page - 1) & ~(page - 1);
        last &= ~(page - 1);
        if (last > first) (void)madvise((void *)first, last - first, MADV_DONTNEED);
    }
}

void *weight_packed(const struct weight *w, uint64_t key)
{
    for (struct packed *p = w->packed; p; p = p->next)
        if (p->key == key) return p->data;
    return NULL;
}

/* Large forms lie in large pages: a virtual machine takes microseconds for each page's first touch,
 * and there would be a million of them. */
static void *form_alloc(size_t bytes)
{
    size_t align = bytes >= LARGE_PAGE ? LARGE_PAGE : 64;
    size_t size = (bytes + align - 1) & ~(align - 1);
    void *data = aligned_alloc(align, size);
    if (data && align == LARGE_PAGE) (void)madvise(data, size, MADV_HUGEPAGE);
    return data;
}

void *weight_pack(struct weight *w, uint64_t key, size_t bytes)
{
    if (compute_take(w->compute, bytes)) return NULL;
    struct packed *p = malloc(sizeof *p);
    void *data = form_alloc(w->compute->host->counting ? 1 : bytes); /* never filled then */
    if (!p || !data) {
        compute_give(w->compute, bytes);
        free(p);
        free(data);
        return NULL;
    }
    *p = (struct packed){.next = w->packed, .key = key, .data = data, .bytes = bytes};
    w->packed = p;
    return data;
}

void weight_forget(struct weight *w, uint64_t key)
{
    for (struct packed **at = &w->packed; *at; at = &(*at)->next) {
        struct packed *p = *at;
        if (p->key != key) continue;
        *at = p->next;
        compute_give(w->compute, p->bytes);
        free(p->data);
        free(p);
        return;
    }
}

/* ---- LoRAs: all of a matrix as one product of f32 matrices ---- */

struct delta {
    float *up, *down; /* [out, rank] with the scales in it, [rank, columns]; NULL: nothing to add */
    size_t out, rank, columns, bytes;
};

static void delta_free(const struct weight *w, struct delta *d)
{
    if (d->up) compute_give(w->compute, d->bytes);
    free(d->up);
}

static int delta_make(struct delta *ret, const struct weight *w, int part)
{
    struct delta d = {.out = (size_t)w->part_out[part]};
    for (const struct low_rank *l = w->matrix[part].added; l; l = l->next)
        d.rank += (size_t)l->rank;
    *ret = d;
    if (!d.rank) return 0;
    d.columns = (size_t)w->in * (size_t)(w->size * w->size);
    d.bytes = d.rank * (d.out + d.columns) * sizeof *d.up;
    if (compute_take(w->compute, d.bytes)) return STEER_NO_MEMORY;
    if (w->compute->host->counting) { /* what it would take at most is known now */
        compute_give(w->compute, d.bytes);
        return 0;
    }
    if (!(d.up = malloc(d.bytes))) {
        compute_give(w->compute, d.bytes);
        return STEER_NO_MEMORY;
    }
    d.down = d.up + d.out * d.rank;
    size_t at = 0;
    for (const struct low_rank *l = w->matrix[part].added; l; l = l->next) {
        size_t rank = (size_t)l->rank;
        stored_to_f32(d.down + at * d.columns, l->down, 0, rank * d.columns);
        for (size_t i = 0; i < d.out; i++) {
            float *row = d.up + i * d.rank + at;
            span_to_f32(row, l->up, i * rank, rank);
            for (size_t k = 0; k < rank; k++)
                row[k] *= l->scale;
        }
        at += rank;
    }
    *ret = d;
    return 0;
}

/* out[n] += factors[rank] @ down[rank, n], whose rows lie `columns` apart. Multiplied and added one
 * after another in every lane, so that its bytes are those of a loop, whatever the processor. */
CLONES static void row_add(float *restrict out, const float *factors, const float *down,
                           size_t rank, size_t columns, size_t n)
{
    size_t k = 0;
    for (; k + 4 <= rank; k += 4) { /* four at a time: out is read and written less often */
        const float *f = factors + k, *d = down + k * columns;
        for (size_t i = 0; i < n; i++) {
            float sum = out[i] + f[0] * d[i];
            sum += f[1] * d[columns + i];
            sum += f[2] * d[2 * columns + i];
            out[i] = sum + f[3] * d[3 * columns + i];
        }
    }
    for (; k < rank; k++)
        for (size_t i = 0; i < n; i++)
            out[i] += factors[k] * down[k * columns + i];
}

typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
enum { TILE_ROWS = 4, TILE_COLUMNS = 1024, TILE_LANES = 16 };

/* The same for TILE_ROWS rows, `pitch` apart, so that what is read of down serves all of them, and
 * to the bit what row_add makes. Returns how many of the n columns that was: pairs of vectors. */
CLONES static size_t rows_add(float *restrict out, size_t pitch, const float *factors,
                              const float *down, size_t rank, size_t columns, size_t n)
{
    size_t i = 0;
    for (; i + 2 * TILE_LANES <= n; i += 2 * TILE_LANES) {
        v16 sum[TILE_ROWS][2];
        for (size_t r = 0; r < TILE_ROWS; r++)
            for (size_t v = 0; v < 2; v++)
                sum[r][v] = *(const v16 *)(out + r * pitch + i + v * TILE_LANES);
        for (size_t k = 0; k < rank; k++) {
            const float *d = down + k * columns + i;
            v16 x = *(const v16 *)d, y = *(const v16 *)(d + TILE_LANES);
            for (size_t r = 0; r < TILE_ROWS; r++) {
                sum[r][0] += factors[r * rank + k] * x;
                sum[r][1] += factors[r * rank + k] * y;
            }
        }
        for (size_t r = 0; r < TILE_ROWS; r++)
            for (size_t v = 0; v < 2; v++)
                *(v16 *)(out + r * pitch + i + v * TILE_LANES) = sum[r][v];
    }
    return i;
}

/* Adds a tile of up @ down: n columns of at most TILE_ROWS rows, which are `pitch` apart in out. */
static void tile_add(float *out, size_t pitch, const struct delta *d, size_t row, size_t rows,
                     size_t column, size_t n)
{
    const float *factors = d->up + row * d->rank, *down = d->down + column;
    size_t done = 0;
    if (rows == TILE_ROWS) done = rows_add(out, pitch, factors, down, d->rank, d->columns, n);
    for (size_t r = 0; r < rows && done < n; r++)
        row_add(out + r * pitch + done, factors + r * d->rank, down + done, d->rank, d->columns,
                n - done);
}

/* ---- matrices as backends pack them ---- */

enum { PIECE = 4096 }; /* values of a piece that stays in the processor's cache */

CLONES static void piece_to_bf16(uint16_t *out, const float *values, size_t n)
{
    for (size_t i = 0; i < n; i++) { /* nearest even */
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        uint16_t near = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        out[i] = values[i] != values[i] ? 0x7fc0 : near;
    }
}

static void matrix_to_bf16(uint16_t *out, struct stored s, size_t count)
{
#pragma omp parallel for schedule(static)
    for (size_t at = 0; at < count; at += PIECE) {
        size_t n = count - at < PIECE ? count - at : PIECE;
        const char *data = (const char *)s.data + at * compute_type_bytes(s.type);
        float values[PIECE];
        if (s.type == TYPE_BF16) {
            memcpy(out + at, data, n * sizeof *out);
            continue;
        }
        span_to_f32(values, s, at, n);
        piece_to_bf16(out + at, values, n);
    }
}

/* A matrix and its LoRAs, tile by tile: all rows of some columns, then of the next. */
static void sum_convert(void *out, enum compute_type type, struct stored s, const struct delta *d)
{
    size_t bands = (d->out + TILE_ROWS - 1) / TILE_ROWS;
    size_t tiles = bands * ((d->columns + TILE_COLUMNS - 1) / TILE_COLUMNS);
#pragma omp parallel for schedule(static)
    for (size_t tile = 0; tile < tiles; tile++) {
        float values[TILE_ROWS * TILE_COLUMNS];
        size_t row = tile % bands * TILE_ROWS, column = tile / bands * TILE_COLUMNS;
        size_t rows = d->out - row < TILE_ROWS ? d->out - row : TILE_ROWS;
        size_t n = d->columns - column < TILE_COLUMNS ? d->columns - column : TILE_COLUMNS;
        for (size_t r = 0; r < rows; r++)
            span_to_f32(values + r * n, s, (row + r) * d->columns + column, n);
        tile_add(values, n, d, row, rows, column, n);
        for (size_t r = 0; r < rows; r++) {
            size_t to = (row + r) * d->columns + column;
            if (type == TYPE_BF16)
                piece_to_bf16((uint16_t *)out + to, values + r * n, n);
            else
                memcpy((float *)out + to, values + r * n, n * sizeof *values);
        }
    }
}

static size_t elements(const struct weight *w)
{
    size_t count = 0;
    for (int i = 0; i < w->parts; i++)
        count += part_elements(w, i);
    return count;
}

/* All parts with their LoRAs, one after another. STEER_NO_MEMORY where those do not fit. */
static int matrix_convert(void *out, const struct weight *w, enum compute_type type)
{
    for (int i = 0; i < w->parts; i++) {
        size_t count = part_elements(w, i);
        struct delta d;
        int code = delta_make(&d, w, i);
        if (code) return code;
        if (w->compute->host->counting)
            ; /* only the LoRA's room mattered */
        else if (d.up)
            sum_convert(out, type, w->matrix[i], &d);
        else if (type == TYPE_BF16)
            matrix_to_bf16(out, w->matrix[i], count);
        else
            stored_to_f32(out, w->matrix[i], 0, count);
        delta_free(w, &d);
        out = (char *)out + count * compute_type_bytes(type);
    }
    pages_drop(w);
    return 0;
}

const float *weight_matrix_f32(struct weight *w)
{
    float *data = weight_packed(w, WEIGHT_MATRIX_F32);
    if (data) return data;
    if (!(data = weight_pack(w, WEIGHT_MATRIX_F32, elements(w) * sizeof *data))) return NULL;
    if (matrix_convert(data, w, TYPE_F32)) {
        weight_forget(w, WEIGHT_MATRIX_F32);
        return NULL;
    }
    return data;
}

/* Fresh pages are what a virtual machine is slowest at, so one piece of memory serves all. */
static void *staging_get(struct compute *c, size_t bytes)
{
    if (bytes <= c->staging_bytes) return c->staging;
    weight_staging_free(c);
    bytes = (bytes + LARGE_PAGE - 1) & ~(LARGE_PAGE - 1);
    if (compute_take(c, bytes)) return NULL;
    if (!(c->staging = pages_new(bytes))) {
        compute_give(c, bytes);
        return NULL;
    }
    c->staging_bytes = bytes;
    return c->staging;
}

const void *weight_matrix_staged(struct weight *w, enum compute_type type)
{
    void *data = staging_get(w->compute, elements(w) * compute_type_bytes(type));
    return data && !matrix_convert(data, w, type) ? data : NULL;
}

/* ---- int8 ---- */

/* max|x| as its bits, which are ordered like it; those of an infinity or NaN are above all. */
CLONES static uint32_t magnitude_bits(const float *row, size_t n)
{
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, row + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

/* To the nearest whole number, ties to even: adding 1.5 * 2^23 rounds there. */
CLONES static void row_round(int8_t *restrict out, const float *restrict row, size_t n, float per)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (int8_t)((row[i] * per + 12582912.f) - 12582912.f);
}

/* Output o from its stored row [in, size * size], to which its LoRAs are added; round: room for its
 * codes. Where a value is none, the scale is none, and so is whatever is multiplied by it. */
static void row_quantize(const struct weight *w, int8_t *codes, float *scale, int o,
                         const float *row, int8_t *round)
{
    int taps = w->size * w->size;
    size_t n = (size_t)w->in * (size_t)taps;
    uint32_t bits = magnitude_bits(row, n);
    float most;
    memcpy(&most, &bits, sizeof most);
    int finite = bits < 0x7f800000;
    /* 1 / a subnormal would be infinite: such a row is zeros. */
    float per = finite && most >= 0x1p-100f ? 127 / most : 0;
    *scale = !finite ? NAN : per > 0 ? most / 127 : 0;
    if (finite)
        row_round(round, row, n, per);
    else
        memset(round, 0, n);
    for (int tap = 0; tap < taps; tap++)
        for (int c = 0; c < w->in; c += 2) {
            int8_t *pair = codes + int8_place(w, o, tap, c);
            pair[0] = round[c * taps + tap];
            pair[1] = round[(c + 1) * taps + tap];
        }
}

/* Row by row, each thread in its part of the staging memory: no matrix is ever wide as a whole. */
static int int8_fill(struct weight *w, float *scales, int8_t *codes)
{
    struct compute *c = w->compute;
    size_t n = (size_t)w->in * (size_t)(w->size * w->size);
    size_t room = (n * (sizeof(float) + 1) + 63) & ~(size_t)63;
    char *rows = staging_get(c, (size_t)c->threads * room);
    if (!rows) return STEER_NO_MEMORY;
    for (int i = 0, first = 0; i < w->parts; first += w->part_out[i++]) {
        struct delta d;
        int code = delta_make(&d, w, i);
        if (code) return code;
        int count = c->host->counting ? 0 : w->part_out[i];
#pragma omp parallel for schedule(static) num_threads(c->threads)
        for (int o = 0; o < count; o++) {
            float *row = (float *)(void *)(rows + (size_t)omp_get_thread_num() * room);
            span_to_f32(row, w->matrix[i], (size_t)o * n, n);
            if (d.up) tile_add(row, n, &d, (size_t)o, 1, 0, n);
            row_quantize(w, codes, scales + first + o, first + o, row, (int8_t *)(row + n));
        }
        delta_free(w, &d);
    }
    pages_drop(w);
    return 0;
}

int weight_matrix_int8(struct weight *w, struct weight_int8 *ret)
{
    size_t panels = ((size_t)w->out + INT8_PANEL - 1) / INT8_PANEL;
    size_t scales = panels * INT8_PANEL * sizeof(float);
    size_t codes = panels * INT8_PANEL * (size_t)w->in * (size_t)(w->size * w->size);
    char *data = weight_packed(w, WEIGHT_MATRIX_INT8);
    if (!data) {
        if (!(data = weight_pack(w, WEIGHT_MATRIX_INT8, scales + codes))) return STEER_NO_MEMORY;
        if (!w->compute->host->counting) memset(data, 0, scales + codes);
        if (int8_fill(w, (float *)(void *)data, (int8_t *)data + scales)) {
            weight_forget(w, WEIGHT_MATRIX_INT8);
            return STEER_NO_MEMORY;
        }
    }
    *ret = (struct weight_int8){(float *)(void *)data, (int8_t *)data + scales};
    return 0;
}

void weight_staging_free(struct compute *c)
{
    if (!c->staging) return;
    (void)munmap(c->staging, c->staging_bytes);
    compute_give(c, c->staging_bytes);
    c->staging = NULL;
    c->staging_bytes = 0;
}

int weight_has_vector(const struct weight *w)
{
    for (int i = 0; i < w->parts; i++)
        if (w->vector[i].data) return 1;
    return 0;
}

const float *weight_vector_f32(struct weight *w)
{
    float *data = weight_packed(w, WEIGHT_VECTOR_F32);
    if (data) return data;
    if (!(data = weight_pack(w, WEIGHT_VECTOR_F32, (size_t)w->out * sizeof *data))) return NULL;
    if (w->compute->host->counting) return data;
    for (int i = 0, at = 0; i < w->parts; at += w->part_out[i++]) {
        if (w->vector[i].data)
            stored_to_f32(data + at, w->vector[i], 0, (size_t)w->part_out[i]);
        else
            memset(data + at, 0, (size_t)w->part_out[i] * sizeof *data);
    }
    return data;
}

int weight_ready(struct weight *w, struct steer_error *err)
{
    struct weight_int8 held;
    int matrix = w->int8 ? !weight_matrix_int8(w, &held) : weight_matrix_f32(w) != NULL;
    if (matrix && weight_vector_f32(w)) return 0;
    return steer_fail(err, STEER_NO_MEMORY, "no memory for packed weights");
}
