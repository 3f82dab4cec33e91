// SPDX-License-Identifier: Apache-2.0
/* Attention in tiles (FlashAttention's order): 48 queries against 64 keys at a time, a running
 * maximum and sum per row, everything accumulated in f32.
 *
 * Guided attention is the same loop over up to three segments of keys (positive and negative text,
 * the image's in joint attention) under one read of the queries; each segment keeps its own
 * maximum, sum and values, and they meet only at the end, so a negative whose logits lie far below
 * the positive's is still normalised by itself (docs/guidance.md).
 *
 * Keys are packed transposed, [head][tile][D][64], values [head][key][D rounded up to lanes]. Where
 * the processor multiplies pairs of bf16 into f32 and the tensors are bf16, the four bytes of an
 * element hold a pair: two neighbours of D in queries and keys, two neighbouring keys in weights
 * and values. The inner loop is then half as long, and otherwise the same. */
#include "cpu.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "vector.h"

enum { ROWS = 48, ROW_GROUP = 6, KEYS = 64 };
enum { NAG_BLOCKS = 4 }; /* blocks of queries that share a reading of the keys */

static size_t round_up(size_t x, size_t to)
{
    return (x + to - 1) / to * to;
}

/* Floats that one segment of keys takes when packed, its mask among them. */
static size_t packed_floats(int heads, int keys, int d)
{
    size_t padded = round_up((size_t)keys, KEYS);
    return padded + (size_t)heads * padded * ((size_t)d + round_up((size_t)d, LANES));
}

enum { POSITIVE, NEGATIVE, SHARED, SEGMENTS };
/* Where the k, v and mask of each begin in op->in. */
static const int segment_in[SEGMENTS] = {IN_POSITIVE, IN_NEGATIVE, IN_SHARED};

/* Floats that one thread works in. */
static size_t thread_floats(const struct op *op, int d)
{
    size_t dp = round_up((size_t)d, LANES), tile = ROWS * ((size_t)d + KEYS + LANES);
    size_t rows = op->method == GUIDANCE_NAG ? NAG_BLOCKS * ROWS : 0;
    tile += ROWS * SEGMENTS * (dp + 2);
    return round_up(tile + 2 * rows * (size_t)op->heads * (size_t)d, LANES);
}

struct segment {
    int keys, tiles;
    const float *kt, *v; /* packed */
    const float *mask;   /* of all tiles' keys; NULL: none */
    float offset;        /* added to every logit */
};

/* Shapes and places of one image's attention. */
struct job {
    const struct plan *p;
    const struct op *op;
    int image, heads, d, dp, rows, causal;
    int unit; /* values in an element: 2 for pairs of bf16 */
    int du;   /* elements in D */
    float scale;
    const float *bias;  /* [rows, keys, heads], of plain attention; NULL: none */
    const float *param; /* of the method; NULL: none */
    struct segment segment[SEGMENTS];
    int used; /* bits of the segments that are summed */
};

/* A thread's workspace. lanes: l before its lanes are added; zt, zp: NAG's rows [heads * D]. */
struct work {
    float *q, *s, *lanes, *o[SEGMENTS], *m[SEGMENTS], *l[SEGMENTS], *zt, *zp;
    uint64_t read, stored, shared; /* queries, rows and shared keys, each once per head */
};

static struct work work_of(float *base, const struct job *j)
{
    struct work w = {.q = base};
    w.s = w.q + ROWS * j->d;
    w.lanes = w.s + ROWS * KEYS;
    float *next = w.lanes + ROWS * LANES;
    for (int i = 0; i < SEGMENTS; i++) {
        w.o[i] = next;
        w.m[i] = w.o[i] + ROWS * j->dp;
        w.l[i] = w.m[i] + ROWS;
        next = w.l[i] + ROWS;
    }
    w.zt = next;
    w.zp = w.zt + NAG_BLOCKS * ROWS * j->heads * j->d;
    return w;
}

/* C[6][16 vectors] (+)= A[6][depth] B[depth][16 vectors]; the one inner loop of it all. */
INLINE void multiply(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb,
                     int depth, const int vectors, const int add, const int unit)
{
    v16 sum[ROW_GROUP][4];
    for (int r = 0; r < ROW_GROUP; r++)
        for (int v = 0; v < vectors; v++)
            sum[r][v] = add ? load(c + (size_t)r * ldc + (size_t)v * LANES) : splat(0);
    for (int k = 0; k < depth; k++) {
        v16 row[4];
        for (int v = 0; v < vectors; v++)
            row[v] = load(b + (size_t)k * ldb + (size_t)v * LANES);
        for (int r = 0; r < ROW_GROUP; r++) {
            v16 x = splat_bits(a + (size_t)r * lda + (size_t)k);
            for (int v = 0; v < vectors; v++)
                sum[r][v] = multiply_add(sum[r][v], x, row[v], unit);
        }
    }
    for (int r = 0; r < ROW_GROUP; r++)
        for (int v = 0; v < vectors; v++)
            store(c + (size_t)r * ldc + (size_t)v * LANES, sum[r][v]);
}

/* Of the first `vectors` times 16 keys: a text's last tile is rarely full. */
INLINE void logits(float *s, const float *q, const float *kt, int du, int vectors, const int unit)
{
    for (int r = 0; r < ROWS; r += ROW_GROUP) {
        float *to = s + r * KEYS;
        const float *from = q + r * du;
        size_t ld = (size_t)du;
        switch (vectors) {
        case 1: multiply(to, KEYS, from, ld, kt, KEYS, du, 1, 0, unit); break;
        case 2: multiply(to, KEYS, from, ld, kt, KEYS, du, 2, 0, unit); break;
        case 3: multiply(to, KEYS, from, ld, kt, KEYS, du, 3, 0, unit); break;
        default: multiply(to, KEYS, from, ld, kt, KEYS, du, 4, 0, unit);
        }
    }
}

INLINE void values_add(float *o, const float *s, const float *v, int dp, int depth, const int unit)
{
    for (int r = 0; r < ROWS; r += ROW_GROUP) {
        float *to = o + r * dp;
        const float *weights = s + r * KEYS;
        size_t ld = (size_t)dp;
        int c = 0;
        for (; c + 4 * LANES <= dp; c += 4 * LANES)
            multiply(to + c, ld, weights, KEYS, v + c, ld, depth, 4, 1, unit);
        switch ((dp - c) / LANES) {
        case 1: multiply(to + c, ld, weights, KEYS, v + c, ld, depth, 1, 1, unit); break;
        case 2: multiply(to + c, ld, weights, KEYS, v + c, ld, depth, 2, 1, unit); break;
        case 3: multiply(to + c, ld, weights, KEYS, v + c, ld, depth, 3, 1, unit); break;
        default: break;
        }
    }
}

INLINE v16 exponential(v16 x, const int unit)
{
#ifdef __AVX512BF16__
    if (unit == 2) return vexp_near(x);
#endif
    (void)unit;
    return vexp(x);
}

/* A tile's weights of one row, as values_add reads them. */
INLINE void weights_store(float *s, const v16 e[KEYS / LANES], const int unit)
{
#ifdef __AVX512BF16__
    if (unit == 2) {
        for (int i = 0; i < KEYS / LANES; i += 2) {
            __m512bh pairs = _mm512_cvtne2ps_pbh((__m512)e[i + 1], (__m512)e[i]);
            memcpy(s + i * LANES / 2, &pairs, sizeof pairs);
        }
        return;
    }
#endif
    (void)unit;
    for (int i = 0; i < KEYS / LANES; i++)
        store(s + i * LANES, e[i]);
}

/* Turns a row's products of one tile into weights under the running maximum; what was summed before
 * is scaled down to it. valid: keys of this tile that the row sees, all in the first `vectors`. */
INLINE void row_softmax(float *s, float *o, float *m, float *l, int dp, int valid, float scale,
                        const float *mask, float offset, const int vectors, const int unit)
{
    v16 x[KEYS / LANES] = {{0}}, most = splat(-INFINITY);
    v16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int i = 0; i < vectors; i++) {
        x[i] = load(s + i * LANES) * scale + offset;
        if (mask) x[i] += load(mask + i * LANES);
        if (valid < vectors * LANES)
            x[i] = pick(lane < splat((float)(valid - i * LANES)), x[i], splat(-INFINITY));
        most = vmax(most, x[i]);
    }
    float before = *m, now = max_lanes(most);
    now = now > before ? now : before;
    if (now == -INFINITY) { /* nothing seen yet */
        memset(s, 0, KEYS * sizeof *s);
        return;
    }
    if (now != before) {
        float shrink = before == -INFINITY ? 0 : expf(before - now);
        for (int c = 0; c < dp; c += LANES)
            store(o + c, load(o + c) * shrink);
        store(l, load(l) * shrink);
        *m = now;
    }
    v16 sum = splat(0);
    for (int i = 0; i < vectors; i++) {
        x[i] = exponential(x[i] - now, unit);
        sum += x[i];
    }
    weights_store(s, x, unit);
    store(l, load(l) + sum);
}

/* Logits with a bias of their own are scaled before it is added. */
static void bias_add(const struct job *j, struct work *w, int head, int tile, int first, int count,
                     int seen)
{
    size_t keys = (size_t)j->segment[POSITIVE].keys, heads = (size_t)j->heads;
    for (int r = 0; r < count; r++) {
        size_t key = (size_t)(first + r) * keys + (size_t)tile * KEYS;
        const float *bias = j->bias + key * heads + head;
        float *logits_row = w->s + r * KEYS;
        for (int i = 0; i < seen; i++)
            logits_row[i] = logits_row[i] * j->scale + bias[(size_t)i * heads];
    }
}

INLINE void rows_softmax(const struct job *j, int which, struct work *w, int tile, int first,
                         int count, int seen, const int vectors, const int unit)
{
    const struct segment *g = j->segment + which;
    for (int r = 0; r < count; r++) {
        int valid = seen, sees = first + r + 1 - tile * KEYS;
        if (j->causal && sees < valid) valid = sees < 0 ? 0 : sees;
        row_softmax(w->s + r * KEYS, w->o[which] + r * j->dp, w->m[which] + r, w->lanes + r * LANES,
                    j->dp, valid, j->bias ? 1 : j->scale, g->mask ? g->mask + tile * KEYS : NULL,
                    g->offset, vectors, unit);
    }
}

/* Adds up one head's segment for the queries in w->q. */
INLINE void segment_add(const struct job *j, int which, int head, int first, int count,
                        struct work *w, const int unit)
{
    const struct segment *g = j->segment + which;
    float *o = w->o[which], *m = w->m[which], *l = w->l[which];
    size_t padded = (size_t)g->tiles * KEYS;
    const float *kt = g->kt + (size_t)head * padded * (size_t)j->du;
    const float *v = g->v + (size_t)head * (padded / (size_t)unit) * (size_t)j->dp;
    memset(o, 0, (size_t)(ROWS * j->dp) * sizeof *o);
    memset(w->lanes, 0, ROWS * LANES * sizeof *w->lanes);
    for (int r = 0; r < ROWS; r++)
        m[r] = -INFINITY;
    for (int t = 0; t < g->tiles; t++) {
        int seen = g->keys - t * KEYS < KEYS ? g->keys - t * KEYS : KEYS;
        if (j->causal && t * KEYS > first + count - 1) break;
        int vectors = (seen + LANES - 1) / LANES;
        logits(w->s, w->q, kt + (size_t)t * KEYS * (size_t)j->du, j->du, vectors, unit);
        if (j->bias) bias_add(j, w, head, t, first, count, seen);
        if (vectors == KEYS / LANES)
            rows_softmax(j, which, w, t, first, count, seen, KEYS / LANES, unit);
        else
            rows_softmax(j, which, w, t, first, count, seen, vectors, unit);
        values_add(o, w->s, v + (size_t)t * (size_t)(KEYS / unit) * (size_t)j->dp, j->dp,
                   (seen + unit - 1) / unit, unit);
        if (which == SHARED) w->shared += (uint64_t)count * (uint64_t)seen;
    }
    for (int r = 0; r < ROWS; r++)
        l[r] = sum_lanes(load(w->lanes + r * LANES));
}

static void segment_sum(const struct job *j, int which, int head, int first, int count,
                        struct work *w)
{
    if (j->unit == 2)
        segment_add(j, which, head, first, count, w, 2);
    else
        segment_add(j, which, head, first, count, w, 1);
}

static const char *element(const struct job *j, int tensor, int row, int channel)
{
    const struct place *at = j->p->places + tensor;
    return (const char *)place_image(j->p, tensor, j->image) +
           ((size_t)row * (size_t)at->pitch + (size_t)channel) * compute_type_bytes(at->type);
}

/* Queries first.. of one head; rows beyond count, and what an odd D leaves of a pair, are zeros. */
static void queries_read(const struct job *j, int head, int first, int count, struct work *w)
{
    enum compute_type type = j->p->places[j->op->in[0]].type;
    memset(w->q, 0, (size_t)(ROWS * j->du) * sizeof *w->q);
    w->read += (uint64_t)count;
    for (int r = 0; r < count; r++) {
        const char *from = element(j, j->op->in[0], first + r, head * j->d);
        float *to = w->q + r * j->du;
        if (j->unit == 2) {
            memcpy(to, from, (size_t)j->d * sizeof(uint16_t));
            continue;
        }
        for (int c = 0; c < j->d; c += LANES) {
            int n = j->d - c < LANES ? j->d - c : LANES;
            v16 x = load_typed(from + (size_t)c * compute_type_bytes(type), type, n);
            store_part(to + c, TYPE_F32, x, n);
        }
    }
}

static void row_store(const struct job *j, int row, int channel, const float *from, int count)
{
    enum compute_type type = j->p->places[j->op->out].type;
    char *to = (char *)(uintptr_t)element(j, j->op->out, row, channel);
    for (int c = 0; c < count; c += LANES) {
        int n = count - c < LANES ? count - c : LANES;
        v16 x = load_part(from + c, TYPE_F32, n);
        store_typed(to + (size_t)c * compute_type_bytes(type), type, x, n);
    }
}

/* What each segment's sum counts in one softmax over those joined (bits): its weight under their
 * common maximum over the mass of all of them. 0 where nothing is seen. */
static void softmax_shares(const struct job *j, const struct work *w, int r, int joined,
                           float share[SEGMENTS])
{
    float most = -INFINITY, mass = 0;
    joined &= j->used;
    for (int i = 0; i < SEGMENTS; i++)
        if (joined & 1 << i && w->m[i][r] > most) most = w->m[i][r];
    for (int i = 0; i < SEGMENTS; i++) {
        share[i] = 0;
        if (!(joined & 1 << i) || w->m[i][r] == -INFINITY) continue;
        share[i] = w->m[i][r] == most ? 1 : expf(w->m[i][r] - most);
        mass += share[i] * w->l[i][r];
    }
    float inverse = mass > 0 ? 1 / mass : 0;
    for (int i = 0; i < SEGMENTS; i++)
        share[i] *= inverse;
}

/* A text's sum becomes its part of the output: its own share, and that of the shared keys. */
static void part_make(const struct job *j, struct work *w, int r, int text, const float *share)
{
    float *o = w->o[text] + r * j->dp;
    const float *shared = w->o[SHARED] + r * j->dp;
    for (int c = 0; c < j->dp; c += LANES)
        store(o + c, load(o + c) * share[text]);
    for (int c = 0; share[SHARED] > 0 && c < j->dp; c += LANES)
        store(o + c, load(o + c) + load(shared + c) * share[SHARED]);
}

/* Z+ and Z- of a row, docs/guidance.md's table of segments. Z+ is made by the same
 * instructions whether or not there is a negative, so that alpha 0 is none to the bit. */
static void parts_make(const struct job *j, struct work *w, int r)
{
    enum { P = 1 << POSITIVE, N = 1 << NEGATIVE, S = 1 << SHARED };
    enum guidance_method method = j->op->method;
    enum guidance_variant variant = method == GUIDANCE_NAG ? GUIDANCE_JOINT : j->op->variant;
    float share[SEGMENTS];
    softmax_shares(j, w, r, method == GUIDANCE_VSF ? P | N | S : P | S, share);
    part_make(j, w, r, POSITIVE, share);
    if (method == GUIDANCE_NONE) return;
    if (method != GUIDANCE_VSF)
        softmax_shares(j, w, r, variant == GUIDANCE_TEXT ? N : N | S, share);
    if (method == GUIDANCE_VSF || variant != GUIDANCE_JOINT) share[SHARED] = 0;
    part_make(j, w, r, NEGATIVE, share);
}

/* A row's head under the method, into Z+'s place; NAG's waits in zp and zt, where the row is the
 * `at`-th, until all heads are there. */
static void row_combine(const struct job *j, struct work *w, int r, int head, int at)
{
    float *zp = w->o[POSITIVE] + r * j->dp;
    const float *zn = w->o[NEGATIVE] + r * j->dp;
    if (j->op->method == GUIDANCE_NASA || j->op->method == GUIDANCE_VSF) {
        float alpha = j->param[GUIDANCE_ALPHA];
        for (int c = 0; c < j->dp; c += LANES)
            store(zp + c, load(zp + c) - alpha * load(zn + c));
    } else if (j->op->method == GUIDANCE_NAG) {
        float phi = j->param[GUIDANCE_PHI];
        size_t to = ((size_t)at * (size_t)j->heads + (size_t)head) * (size_t)j->d;
        for (int c = 0; c < j->d; c++) {
            w->zp[to + (size_t)c] = zp[c];
            w->zt[to + (size_t)c] = zp[c] + phi * (zp[c] - zn[c]);
        }
    }
}

/* NAG: the 1-norms go over all channels of a token, so they come after the last head. */
static void row_nag(const struct job *j, struct work *w, int r)
{
    const float *param = j->param;
    int channels = j->heads * j->d;
    float *zt = w->zt + r * channels;
    const float *zp = w->zp + r * channels;
    double norm_t = 0, norm_p = 0;
    for (int c = 0; c < channels; c++) {
        norm_t += fabsf(zt[c]);
        norm_p += fabsf(zp[c]);
    }
    double ratio = norm_t / (norm_p + 1e-6), tau = param[GUIDANCE_TAU];
    float shrink = ratio > tau ? (float)(tau / ratio) : 1, beta = param[GUIDANCE_BETA];
    for (int c = 0; c < channels; c++)
        zt[c] = beta * shrink * zt[c] + (1 - beta) * zp[c];
}

/* A block of queries under one head; `at`: where its rows are among those of the unit. */
static void block_attend(const struct job *j, struct work *w, int head, int first, int count,
                         int at)
{
    queries_read(j, head, first, count, w);
    for (int i = 0; i < SEGMENTS; i++)
        if (j->used & 1 << i) segment_sum(j, i, head, first, count, w);
    for (int r = 0; r < count; r++) {
        parts_make(j, w, r);
        row_combine(j, w, r, head, at + r);
        if (j->op->method == GUIDANCE_NAG) continue;
        row_store(j, first + r, head * j->d, w->o[POSITIVE] + r * j->dp, j->d);
        w->stored++;
    }
}

/* What a thread does in one go: rows first .. last - 1 under some heads. */
struct unit {
    int first, last, head, heads;
};

static void unit_attend(const struct job *j, struct work *w, struct unit u)
{
    for (int head = u.head; head < u.head + u.heads; head++)
        for (int row = u.first; row < u.last; row += ROWS) {
            int count = u.last - row < ROWS ? u.last - row : ROWS;
            block_attend(j, w, head, row, count, row - u.first);
        }
    for (int row = u.first; row < u.last && j->op->method == GUIDANCE_NAG; row++) {
        row_nag(j, w, row - u.first);
        row_store(j, row, 0, w->zt + (row - u.first) * j->heads * j->d, j->heads * j->d);
        w->stored += (uint64_t)j->heads;
    }
}

/* A key or value under one head; NULL after the last. */
static const char *row_of(const struct job *j, int tensor, int key, int keys, int head)
{
    return key < keys ? element(j, tensor, key, head * j->d) : NULL;
}

/* LANES elements of a row from its u-th on: f32 of D or pairs of bf16, zeros after the last. */
INLINE v16 elements_load(const struct job *j, const char *row, enum compute_type type, int u)
{
    if (!row) return splat(0);
    if (j->unit == 1) return load_row(row, u, type, j->d);
    uint16_t few[2 * LANES] = {0};
    int left = j->d - 2 * u;
    row += (size_t)u * sizeof(float);
    if (left < 2 * LANES) row = memcpy(few, row, (size_t)left * sizeof *few);
    v16 pairs;
    memcpy(&pairs, row, sizeof pairs);
    return pairs;
}

/* The keys of one tile of one head, transposed. */
static void keys_pack(const struct job *j, int k, float *kt, int head, int tile, int keys)
{
    enum compute_type type = j->p->places[k].type;
    for (int i = 0; i < KEYS; i += LANES) {
        const char *rows[LANES];
        for (int r = 0; r < LANES; r++)
            rows[r] = row_of(j, k, tile * KEYS + i + r, keys, head);
        for (int u = 0; u < j->du; u += LANES) {
            int n = j->du - u < LANES ? j->du - u : LANES;
            v16 x[LANES];
            for (int r = 0; r < LANES; r++)
                x[r] = elements_load(j, rows[r], type, u);
            transpose(x);
            for (int r = 0; r < n; r++)
                store(kt + (size_t)(u + r) * KEYS + i, x[r]);
        }
    }
}

/* The values, their rows padded; in pairs of neighbouring keys where they are bf16. */
static void values_pack(const struct job *j, int v, float *vp, int head, int tile, int keys)
{
    enum compute_type type = j->p->places[v].type;
    for (int i = 0; i < KEYS; i += j->unit) {
        const char *row = row_of(j, v, tile * KEYS + i, keys, head);
        const char *next = j->unit == 2 ? row_of(j, v, tile * KEYS + i + 1, keys, head) : NULL;
        for (int c = 0; c < j->dp; c += LANES) {
            v16 x = row ? load_row(row, c, type, j->d) : splat(0);
            v16 y = next ? load_row(next, c, type, j->d) : splat(0);
            /* A bf16 is the upper half of its f32. */
            if (j->unit == 2) x = (v16)((u16)x >> 16 | (u16)y);
            store(vp, x);
            vp += LANES;
        }
    }
}

/* Dense, f32, with zeros after the last key. */
static void mask_pack(const struct job *j, int mask, float *to, int keys, int padded)
{
    enum compute_type type = j->p->places[mask].type;
    memset(to, 0, (size_t)padded * sizeof *to);
    for (int i = 0; i < keys; i += LANES) {
        int n = keys - i < LANES ? keys - i : LANES;
        store_typed(to + i, TYPE_F32, load_typed(element(j, mask, 0, i), type, n), n);
    }
}

static void segment_pack(const struct job *j, struct segment *g, int in, float **scratch)
{
    int k = j->op->in[in], v = j->op->in[in + 1], mask = j->op->in[in + 2];
    g->keys = keys_count(j->p, j->op, in);
    g->tiles = (g->keys + KEYS - 1) / KEYS;
    size_t padded = (size_t)g->tiles * KEYS;
    float *kt = *scratch + padded, *vp = kt + (size_t)j->heads * padded * (size_t)j->du;
    g->kt = kt;
    g->v = vp;
    if (mask >= 0) {
        mask_pack(j, mask, *scratch, g->keys, (int)padded);
        g->mask = *scratch;
    }
    *scratch += packed_floats(j->heads, g->keys, j->d);
    /* All heads of a tile, then the next: rows are read on where the last head left them. */
#pragma omp parallel for schedule(static)
    for (int i = 0; i < j->heads * g->tiles; i++) {
        int head = i % j->heads, tile = i / j->heads;
        size_t at = (size_t)head * padded + (size_t)tile * KEYS;
        keys_pack(j, k, kt + at * (size_t)j->du, head, tile, g->keys);
        values_pack(j, v, vp + at / (size_t)j->unit * (size_t)j->dp, head, tile, g->keys);
    }
}

/* Whether all that is multiplied is bf16, and the processor has an instruction for it. */
static int pairs(const struct plan *p, const struct op *op)
{
#ifdef __AVX512BF16__
    if (p->places[op->in[0]].type != TYPE_BF16) return 0;
    for (int i = 0; i < (op->kind == OP_ATTENTION ? 1 : SEGMENTS); i++)
        for (int k = segment_in[i]; k < segment_in[i] + 2; k++)
            if (op->in[k] >= 0 && p->places[op->in[k]].type != TYPE_BF16) return 0;
    return 1;
#else
    (void)p, (void)op;
    return 0;
#endif
}

static struct job job_of(const struct plan *p, const struct op *op, int image, float **scratch)
{
    struct job j = {.p = p, .op = op, .image = image, .heads = op->heads, .causal = op->causal};
    j.rows = p->places[op->in[0]].shape.w;
    j.d = p->places[op->in[0]].shape.c / op->heads;
    j.dp = (int)round_up((size_t)j.d, LANES);
    j.scale = (float)op->scale;
    j.unit = pairs(p, op) ? 2 : 1;
    j.du = (j.d + j.unit - 1) / j.unit;
    j.used = 1 << POSITIVE;
    if (op->method != GUIDANCE_NONE) j.used |= 1 << NEGATIVE;
    if (op->kind == OP_GUIDED_ATTENTION && op->in[IN_SHARED] >= 0) j.used |= 1 << SHARED;
    for (int i = 0; i < SEGMENTS; i++)
        if (j.used & 1 << i) segment_pack(&j, j.segment + i, segment_in[i], scratch);
    if (op->kind == OP_ATTENTION && op->in[IN_BIAS] >= 0)
        j.bias = place_image(p, op->in[IN_BIAS], image);
    if (op->method != GUIDANCE_NONE) j.param = place_image(p, op->in[IN_PARAMS], image);
    if (op->method == GUIDANCE_VSF) j.segment[NEGATIVE].offset = -j.param[GUIDANCE_OFFSET];
    return j;
}

/* The parts of the work. Many keys: a head at a time, so that its keys stay in the cache. Two texts
 * alone fit there with all heads, and a query's row is then read in one go. NAG needs all heads of
 * a row; some blocks of rows share what it costs to fetch the keys. */
struct division {
    int heads, rows, units, runs; /* of a unit; units in all, and of one run over the rows */
};

static struct division divide(const struct job *j)
{
    int nag = j->op->method == GUIDANCE_NAG, shared = j->used & 1 << SHARED;
    int blocks = (j->rows + ROWS - 1) / ROWS, each = 1;
    struct division d = {.heads = 1};
    if (nag || (j->op->kind == OP_GUIDED_ATTENTION && !shared)) d.heads = j->heads;
    if (nag) each = blocks / (4 * j->p->compute->threads);
    each = each < 1 ? 1 : each > NAG_BLOCKS ? NAG_BLOCKS : each;
    d.rows = each * ROWS;
    d.runs = (blocks + each - 1) / each;
    d.units = j->heads / d.heads * d.runs;
    return d;
}

int ISA(attention)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    for (int b = 0; b < p->places[op->out].shape.b; b++) {
        float *scratch = (float *)p->scratch;
        struct job j = job_of(p, op, b, &scratch);
        struct division d = divide(&j);
        size_t each = thread_floats(op, j.d);
        uint64_t read = 0, stored = 0, shared = 0;
#pragma omp parallel for schedule(static) reduction(+ : read, stored, shared)
        for (int i = 0; i < d.units; i++) {
            struct work w = work_of(scratch + (size_t)omp_get_thread_num() * each, &j);
            struct unit u = {.first = i % d.runs * d.rows, .heads = d.heads};
            u.last = j.rows - u.first < d.rows ? j.rows : u.first + d.rows;
            u.head = i / d.runs * d.heads;
            unit_attend(&j, &w, u);
            read += w.read, stored += w.stored, shared += w.shared;
            compute_beat(p->compute); /* a large image's attention takes a minute */
        }
        p->counters.q_rows_read += read / (uint64_t)j.heads;
        p->counters.out_rows_stored += stored / (uint64_t)j.heads;
        p->counters.shared_keys_read += shared;
    }
    return 0;
}

#ifdef CPU_ISA_FIRST /* once, not per instruction set */
size_t attention_scratch(const struct plan *p, const struct op *op)
{
    int d = p->tensors[op->in[0]].shape.c / op->heads;
    size_t floats = (size_t)p->compute->threads * thread_floats(op, d);
    for (int i = 0; i < (op->kind == OP_ATTENTION ? 1 : SEGMENTS); i++)
        floats += packed_floats(op->heads, keys_count(p, op, segment_in[i]), d);
    return floats * sizeof(float) + 64;
}
#endif
