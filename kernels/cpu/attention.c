// SPDX-License-Identifier: Apache-2.0
/* Attention in tiles (FlashAttention's order): 48 queries against 64 keys at a time, a running
 * maximum and sum per row, everything accumulated in f32.
 *
 * Guided attention is the same loop over two segments of keys under one read of the queries; each
 * segment keeps its own maximum, sum and values, and they meet only in the last line, so a negative
 * whose logits lie far below the positive's is still normalised by itself (METHOD.md section 1).
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

static size_t round_up(size_t x, size_t to)
{
    return (x + to - 1) / to * to;
}

/* Floats that one segment of keys takes when packed. */
static size_t packed_floats(int heads, int keys, int d)
{
    size_t padded = round_up((size_t)keys, KEYS);
    return (size_t)heads * padded * ((size_t)d + round_up((size_t)d, LANES));
}

/* Floats that one thread works in. */
static size_t thread_floats(int heads, int d)
{
    size_t dp = round_up((size_t)d, LANES);
    size_t tile = ROWS * ((size_t)d + KEYS + 2 * dp + 4 + LANES);
    return round_up(tile + 2 * ROWS * (size_t)heads * (size_t)d, LANES);
}

struct segment {
    int keys, tiles;
    const float *kt, *v; /* packed */
    const float *mask;   /* NULL: none */
    double bias;         /* added to every logit */
};

/* Shapes and places of one image's attention. */
struct job {
    const struct plan *p;
    const struct op *op;
    int image, heads, d, dp, rows, causal;
    int unit; /* values in an element: 2 for pairs of bf16 */
    int du;   /* elements in D */
    float scale;
    struct segment positive, negative;
};

/* A thread's workspace. */
struct work {
    float *q, *s, *o[2], *m[2], *l[2], *lanes, *zt, *zp; /* lanes: l before its lanes are added */
};

static struct work work_of(float *base, const struct job *j)
{
    struct work w;
    w.q = base;
    w.s = w.q + ROWS * j->d;
    w.o[0] = w.s + ROWS * KEYS;
    w.o[1] = w.o[0] + ROWS * j->dp;
    w.m[0] = w.o[1] + ROWS * j->dp;
    w.m[1] = w.m[0] + ROWS;
    w.l[0] = w.m[1] + ROWS;
    w.l[1] = w.l[0] + ROWS;
    w.lanes = w.l[1] + ROWS;
    w.zt = w.lanes + ROWS * LANES;
    w.zp = w.zt + ROWS * j->heads * j->d;
    return w;
}

INLINE v16 multiply_add(v16 sum, v16 x, v16 y, const int unit)
{
#ifdef __AVX512BF16__
    if (unit == 2) return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#endif
    (void)unit;
    return sum + x * y;
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

/* Lanes of vector i that are below n keys. */
INLINE int lanes_below(int n, int i)
{
    n -= i * LANES;
    return n < 0 ? 0 : n > LANES ? LANES : n;
}

/* Turns a row's products of one tile into weights under the running maximum; what was summed before
 * is scaled down to it. valid: keys of this tile that the row sees, all in the first `vectors`. */
INLINE void row_softmax(float *s, float *o, float *m, float *l, int dp, int valid, float scale,
                        const float *mask, float bias, const int vectors, const int unit)
{
    v16 x[KEYS / LANES] = {{0}}, most = splat(-INFINITY);
    v16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int i = 0; i < vectors; i++) {
        x[i] = load(s + i * LANES) * scale + bias;
        if (mask) x[i] += load_part(mask + i * LANES, TYPE_F32, lanes_below(valid, i));
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

INLINE void rows_softmax(const struct job *j, const struct segment *g, struct work *w, int which,
                         int tile, int first, int count, int seen, const int vectors,
                         const int unit)
{
    for (int r = 0; r < count; r++) {
        int valid = seen, sees = first + r + 1 - tile * KEYS;
        if (j->causal && sees < valid) valid = sees < 0 ? 0 : sees;
        row_softmax(w->s + r * KEYS, w->o[which] + r * j->dp, w->m[which] + r, w->lanes + r * LANES,
                    j->dp, valid, j->scale, g->mask ? g->mask + tile * KEYS : NULL, (float)g->bias,
                    vectors, unit);
    }
}

/* Adds up one head's segment for the queries in w->q. */
INLINE void segment_add(const struct job *j, const struct segment *g, int head, int first,
                        int count, struct work *w, int which, const int unit)
{
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
        if (vectors == KEYS / LANES)
            rows_softmax(j, g, w, which, t, first, count, seen, KEYS / LANES, unit);
        else
            rows_softmax(j, g, w, which, t, first, count, seen, vectors, unit);
        values_add(o, w->s, v + (size_t)t * (size_t)(KEYS / unit) * (size_t)j->dp, j->dp,
                   (seen + unit - 1) / unit, unit);
    }
    for (int r = 0; r < ROWS; r++)
        l[r] = sum_lanes(load(w->lanes + r * LANES));
}

static void segment_sum(const struct job *j, const struct segment *g, int head, int first,
                        int count, struct work *w, int which)
{
    if (j->unit == 2)
        segment_add(j, g, head, first, count, w, which, 2);
    else
        segment_add(j, g, head, first, count, w, which, 1);
}

static const char *element(const struct job *j, int tensor, int row, int channel)
{
    const struct place *at = j->p->places + tensor;
    return (const char *)place_image(j->p, tensor, j->image) +
           ((size_t)row * (size_t)at->pitch + (size_t)channel) * compute_type_bytes(at->type);
}

/* Queries first.. of one head; rows beyond count, and what an odd D leaves of a pair, are zeros. */
static void queries_read(const struct job *j, int head, int first, int count, float *q)
{
    enum compute_type type = j->p->places[j->op->in[0]].type;
    memset(q, 0, (size_t)(ROWS * j->du) * sizeof *q);
    for (int r = 0; r < count; r++) {
        const char *from = element(j, j->op->in[0], first + r, head * j->d);
        float *to = q + r * j->du;
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

static float inverse(float l)
{
    return l > 0 ? 1 / l : 0;
}

/* The row of this head under the method; NAG's waits in zt and zp until all heads are there. */
static void row_combine(const struct job *j, struct work *w, int r, int head, const float *param)
{
    float *a = w->o[0] + r * j->dp;
    const float *n = w->o[1] + r * j->dp;
    float lp = w->l[0][r], ln = w->l[1][r], alpha = param[GUIDANCE_ALPHA];
    if (j->op->method == GUIDANCE_NASA) {
        float ip = inverse(lp), in = inverse(ln);
        for (int c = 0; c < j->dp; c += LANES)
            store(a + c, load(a + c) * ip - alpha * (load(n + c) * in));
    } else if (j->op->method == GUIDANCE_VSF) {
        float mp = w->m[0][r], mn = w->m[1][r], most = mp > mn ? mp : mn;
        float wp = mp == -INFINITY ? 0 : expf(mp - most),
              wn = mn == -INFINITY ? 0 : expf(mn - most);
        float all = inverse(lp * wp + ln * wn);
        for (int c = 0; c < j->dp; c += LANES)
            store(a + c, (load(a + c) * wp - alpha * wn * load(n + c)) * all);
    } else {
        float ip = inverse(lp), in = inverse(ln), phi = param[GUIDANCE_PHI];
        size_t at = ((size_t)r * (size_t)j->heads + (size_t)head) * (size_t)j->d;
        for (int c = 0; c < j->d; c++) {
            float zp = a[c] * ip;
            w->zp[at + (size_t)c] = zp;
            w->zt[at + (size_t)c] = zp + phi * (zp - n[c] * in);
        }
    }
}

/* NAG: the 1-norms go over all channels of a token, so they come after the last head. */
static void row_nag(const struct job *j, struct work *w, int r, const float *param)
{
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

static void block_plain(const struct job *j, struct work *w, int head, int first, int count)
{
    queries_read(j, head, first, count, w->q);
    segment_sum(j, &j->positive, head, first, count, w, 0);
    for (int r = 0; r < count; r++) {
        float *o = w->o[0] + r * j->dp, scale = inverse(w->l[0][r]);
        for (int c = 0; c < j->dp; c += LANES)
            store(o + c, load(o + c) * scale);
        row_store(j, first + r, head * j->d, o, j->d);
    }
}

static void block_guided(const struct job *j, struct work *w, int first, int count)
{
    const float *param = place_image(j->p, j->op->in[IN_PARAMS], j->image);
    int nag = j->op->method == GUIDANCE_NAG;
    for (int head = 0; head < j->heads; head++) {
        queries_read(j, head, first, count, w->q);
        segment_sum(j, &j->positive, head, first, count, w, 0);
        segment_sum(j, &j->negative, head, first, count, w, 1);
        for (int r = 0; r < count; r++) {
            row_combine(j, w, r, head, param);
            if (!nag) row_store(j, first + r, head * j->d, w->o[0] + r * j->dp, j->d);
        }
    }
    for (int r = 0; nag && r < count; r++) {
        row_nag(j, w, r, param);
        row_store(j, first + r, 0, w->zt + r * j->heads * j->d, j->heads * j->d);
    }
}

/* One tile of one head: keys transposed, values with their rows padded; zeros after the last. */
static void tile_pack(const struct job *j, int k, int v, float *kt, float *vp, int head, int tile,
                      int keys)
{
    enum compute_type type = j->p->places[k].type;
    size_t bytes = compute_type_bytes(type);
    for (int i = 0; i < KEYS; i++) {
        int key = tile * KEYS + i;
        const char *from = key < keys ? element(j, k, key, head * j->d) : NULL;
        const char *value = key < keys ? element(j, v, key, head * j->d) : NULL;
        for (int c = 0; c < j->d; c += LANES) {
            int n = j->d - c < LANES ? j->d - c : LANES;
            float lanes[LANES];
            store(lanes, from ? load_typed(from + (size_t)c * bytes, type, n) : splat(0));
            for (int x = 0; x < n; x++)
                kt[(size_t)(c + x) * KEYS + (size_t)i] = lanes[x];
            store(vp + (size_t)i * (size_t)j->dp + (size_t)c,
                  value ? load_typed(value + (size_t)c * bytes, type, n) : splat(0));
        }
    }
}

/* The same in pairs of bf16. */
static void tile_pack_pairs(const struct job *j, int k, int v, float *kt, float *vp, int head,
                            int tile, int keys)
{
    uint16_t half[ATTENTION_HEAD_MAX + 1] = {0};
    memset(vp, 0, (size_t)(KEYS / 2 * j->dp) * sizeof *vp);
    for (int i = 0; i < KEYS; i++) {
        int key = tile * KEYS + i;
        if (key < keys)
            memcpy(half, element(j, k, key, head * j->d), (size_t)j->d * sizeof *half);
        else
            memset(half, 0, (size_t)j->d * sizeof *half);
        for (int u = 0; u < j->du; u++)
            memcpy(kt + (size_t)u * KEYS + i, half + 2 * u, sizeof *kt);
        if (key >= keys) continue;
        memcpy(half, element(j, v, key, head * j->d), (size_t)j->d * sizeof *half);
        uint16_t *to = (uint16_t *)(void *)(vp + (size_t)(i / 2) * (size_t)j->dp) + i % 2;
        for (int c = 0; c < j->d; c++)
            to[2 * c] = half[c];
        half[j->d] = 0; /* an odd D's last pair */
    }
}

static void segment_pack(const struct job *j, struct segment *g, int k, int v, int mask,
                         float **scratch)
{
    g->keys = j->p->places[k].shape.w;
    g->tiles = (g->keys + KEYS - 1) / KEYS;
    g->mask = mask >= 0 ? place_image(j->p, mask, j->image) : NULL;
    size_t padded = (size_t)g->tiles * KEYS;
    float *kt = *scratch, *vp = kt + (size_t)j->heads * padded * (size_t)j->du;
    *scratch += packed_floats(j->heads, g->keys, j->d);
    g->kt = kt;
    g->v = vp;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < j->heads * g->tiles; i++) {
        size_t head = (size_t)(i / g->tiles), at = (size_t)(i % g->tiles) * KEYS;
        float *keys = kt + (head * padded + at) * (size_t)j->du;
        float *values = vp + (head * padded + at) / (size_t)j->unit * (size_t)j->dp;
        if (j->unit == 2)
            tile_pack_pairs(j, k, v, keys, values, (int)head, i % g->tiles, g->keys);
        else
            tile_pack(j, k, v, keys, values, (int)head, i % g->tiles, g->keys);
    }
}

/* Whether all that is multiplied is bf16, and the processor has an instruction for it. */
static int pairs(const struct plan *p, const struct op *op)
{
#ifdef __AVX512BF16__
    int guided = op->kind == OP_GUIDED_ATTENTION;
    const int read[] = {op->in[0], op->in[1], op->in[2], op->in[guided ? 4 : 1],
                        op->in[guided ? 5 : 2]};
    for (size_t i = 0; i < sizeof read / sizeof *read; i++)
        if (p->places[read[i]].type != TYPE_BF16) return 0;
    return 1;
#else
    (void)p, (void)op;
    return 0;
#endif
}

static struct job job_of(const struct plan *p, const struct op *op, int image)
{
    struct job j = {.p = p, .op = op, .image = image, .heads = op->heads, .causal = op->causal};
    j.rows = p->places[op->in[0]].shape.w;
    j.d = p->places[op->in[0]].shape.c / op->heads;
    j.dp = (int)round_up((size_t)j.d, LANES);
    j.scale = (float)op->scale;
    j.unit = pairs(p, op) ? 2 : 1;
    j.du = (j.d + j.unit - 1) / j.unit;
    return j;
}

int ISA(attention)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    for (int b = 0; b < p->places[op->out].shape.b; b++) {
        struct job j = job_of(p, op, b);
        float *scratch = (float *)p->scratch;
        segment_pack(&j, &j.positive, op->in[1], op->in[2], op->in[3], &scratch);
        size_t each = thread_floats(j.heads, j.d);
        int blocks = (j.rows + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(static)
        for (int i = 0; i < j.heads * blocks; i++) {
            struct work w = work_of(scratch + (size_t)omp_get_thread_num() * each, &j);
            int first = i % blocks * ROWS, left = j.rows - first;
            block_plain(&j, &w, i / blocks, first, left < ROWS ? left : ROWS);
            compute_beat(p->compute); /* a large image's attention takes a minute */
        }
        p->counters.q_rows_read += (uint64_t)j.rows;
        p->counters.out_rows_stored += (uint64_t)j.rows;
    }
    return 0;
}

int ISA(guided_attention)(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    for (int b = 0; b < p->places[op->out].shape.b; b++) {
        struct job j = job_of(p, op, b);
        float *scratch = (float *)p->scratch;
        segment_pack(&j, &j.positive, op->in[1], op->in[2], op->in[3], &scratch);
        segment_pack(&j, &j.negative, op->in[4], op->in[5], op->in[6], &scratch);
        const float *param = place_image(p, op->in[IN_PARAMS], b);
        if (op->method == GUIDANCE_VSF) j.negative.bias = -(double)param[GUIDANCE_OFFSET];
        size_t each = thread_floats(j.heads, j.d);
        int blocks = (j.rows + ROWS - 1) / ROWS;
        uint64_t rows = 0;
#pragma omp parallel for schedule(static) reduction(+ : rows)
        for (int i = 0; i < blocks; i++) {
            struct work w = work_of(scratch + (size_t)omp_get_thread_num() * each, &j);
            int left = j.rows - i * ROWS, count = left < ROWS ? left : ROWS;
            block_guided(&j, &w, i * ROWS, count);
            compute_beat(p->compute);
            rows += (uint64_t)count;
        }
        p->counters.q_rows_read += rows;
        p->counters.out_rows_stored += rows;
    }
    return 0;
}

#ifdef CPU_ISA_FIRST /* once, not per instruction set */
size_t attention_scratch(const struct plan *p, const struct op *op)
{
    int d = p->tensors[op->in[0]].shape.c / op->heads;
    size_t floats = packed_floats(op->heads, p->tensors[op->in[1]].shape.w, d) +
                    (size_t)p->compute->threads * thread_floats(op->heads, d);
    if (op->kind == OP_GUIDED_ATTENTION)
        floats += packed_floats(op->heads, p->tensors[op->in[4]].shape.w, d);
    return floats * sizeof(float) + 64;
}
#endif
