/* attention.cuh - attention over up to three segments of keys, plain or guided: one read of Q and
 * of every key, one store of a row.
 *
 * A block has `rows` queries of one head and walks over tiles of N keys, segment after segment:
 * shared, positive, negative (docs/guidance.md). It is FlashAttention-2 with one addition. A
 * softmax keeps under a row its maximum m, its mass l and the sum acc; its LAST tile closes it: the
 * weights that this tile's values get, and the factor that acc gets anyway for the new maximum, are
 * divided by l. So a softmax of one tile ends in registers, and acc afterwards holds a result:
 *
 *   none, VSF   one softmax over all segments; VSF gives the negative values the weight -alpha
 *   NASA        Z+ closes with the last positive tile. Negative keys of one tile are then weighed
 *               by -alpha / l and added to it. More tiles, or A_S in both softmaxes (`joint`), need
 *               acc: Z+ waits in shared memory and is added at the end.
 *   NAG         is NASA `joint` with alpha = 1, and stores Z+ too.
 *
 * Invariants:
 *   1. K and V have a tile each. V lands while Q K^T is multiplied, the next K during P V; before a
 *      tile is written, a barrier says that all have read it.
 *   2. A row of a tile in shared memory is an odd number of 16-byte pieces long, so that the eight
 *      rows of an 8x8 matrix lie in different banks, and every address in a tile is one register
 *      plus a constant.
 *   3. Rows past the end of a segment are zeros in V (0 times what was left there may be NaN), and
 *      their logits are -INFINITY.
 *   4. A positive or negative segment without keys is one tile of such rows, so every softmax has
 *      a last tile. A softmax without mass has weights 0.
 *   5. Logits, m and l are in powers of 2: exp2 is the instruction there is. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH
#include "launch.h"
#include "primitives.cuh"

#define LOG2_E 1.4426950408889634f

/* D: head size. SLICES: warps that share rows, each with D / SLICES columns of Q, K and V; their
 * parts of a logit are summed through shared memory. R: each warp has 16 R rows. N: keys a tile. */
template <int D_, int SLICES_, int R_, int N_> struct tile_shape {
    static_assert(D_ % (8 * SLICES_) == 0 && N_ % 16 == 0 && 16 * R_ % SLICES_ == 0, "shape");
    static constexpr int D = D_, SLICES = SLICES_, R = R_, N = N_;
    static constexpr int groups = SLICES == 1 ? 4 : 2; /* of rows */
    static constexpr int threads = 32 * groups * SLICES;
    static constexpr int rows = 16 * R * groups;
    static constexpr int columns = D / SLICES; /* a warp's */
    static constexpr int depth = (columns + 15) / 16;
    static constexpr int chunks = D / 8; /* 16-byte pieces of a row */
    static constexpr int stride = ((depth * 2 * SLICES) | 1) * 16;
    static constexpr int q_bytes = rows * stride, tile_bytes = N * stride;
    static constexpr int kept_bytes = (R * columns / 2 + 4 * R) * threads * 4; /* acc, m and l */
    /* Shared memory: K and V, and over them the rows that leave; Q, and over it what is kept. */
    static constexpr int keys_bytes = 2 * tile_bytes > q_bytes ? 2 * tile_bytes : q_bytes;
    static constexpr int kept_at = SLICES == 1 ? 0 : q_bytes; /* slices_sum needs Q's place */
    static constexpr int shared_bytes = keys_bytes + q_bytes;
    static constexpr int shared_bytes_kept =
        keys_bytes + (kept_at + kept_bytes > q_bytes ? kept_at + kept_bytes : q_bytes);
    /* What a block has on sm_86, 89 and 120. */
    static_assert((SLICES == 1 ? shared_bytes_kept : shared_bytes) <= 99 * 1024, "shared memory");
};

/* What a thread keeps of its rows: 16r + g and 16r + g + 8 are [r][0] and [r][1]. */
template <class S> struct rows_state {
    float acc[S::R][S::columns / 8][4]; /* C fragments */
    float m[S::R][2];                   /* the row's maximum */
    float l[S::R][2];                   /* this lane's part of the row's mass */
};

DEVICE const char *rows_begin(const struct cuda_rows &r, int image, int value_bytes)
{
    const char *at = r.table ? (const char *)global_load_pointer(r.table + image)
                             : (const char *)r.base + image * r.image_stride * value_bytes;
    return at;
}

/* How a block's threads share the pieces of rows: `lanes` of them side by side in a row. */
template <class S> struct row_threads {
    static constexpr int lanes = S::chunks % 8 == 0 ? 8 : 4;
    static constexpr int step = S::threads / lanes; /* rows at a time */
};

/* Of a segment, as far as this block sees it. */
template <class S> DEVICE int keys_seen(const struct cuda_attention &a, int segment)
{
    int keys = a.segment[segment].keys, past = ((int)block_index().x + 1) * S::rows;
    return a.causal && segment == CUDA_POSITIVE && past < keys ? past : keys;
}

/* This thread's first piece of a segment's K or V. Without keys it is never followed, so anything
 * but NULL, to which nothing may be added. */
template <class S>
DEVICE const char *keys_begin(const struct cuda_attention &a, const struct cuda_rows &r, int keys)
{
    int row = thread_index() / row_threads<S>::lanes,
        chunk = thread_index() % row_threads<S>::lanes;
    if (!keys) return (const char *)a.out;
    return rows_begin(r, (int)block_index().z, 2) + row * r.row_stride * 2 +
           ((int)block_index().y * S::chunks + chunk) * 16;
}

/* Sends `count` rows on their way, from `from` on, of which `left` are there. */
template <class S, int count>
DEVICE void rows_load(uint32_t to, const char *from, int64_t row_bytes, int left)
{
    constexpr int lanes = row_threads<S>::lanes, step = row_threads<S>::step;
    int row = thread_index() / lanes, chunk = thread_index() % lanes;
    to += row * S::stride + chunk * 16;
#pragma unroll
    for (int i = 0; i < count; i += step) {
#pragma unroll
        for (int c = 0; c < S::chunks; c += lanes)
            if ((count % step == 0 || row + i < count) &&
                (S::chunks % lanes == 0 || chunk + c < S::chunks))
                copy_async(to + i * S::stride + c * 16, from + c * 16, row + i < left);
        from = made_here(from + step * row_bytes);
    }
}

/* Columns between D and the next 16, where D is no multiple of it: read by Q K^T, so zeros. */
template <class S> DEVICE void rows_pad(uint32_t at, int count)
{
    if (S::columns % 16 == 0) return;
    for (int row = thread_index(); row < count; row += S::threads)
        shared_store_16(at + row * S::stride + S::chunks * 16, {{0, 0, 0, 0}});
}

/* What lies between the block and a segment's logits. */
struct logit_terms {
    const float *mask; /* NULL: none; the same for bias */
    const float *bias; /* [L, keys, heads] of this head */
    float scale;
    int key, keys; /* of the tile's first key; in the segment */
    int row, rows; /* this lane's first row; all queries */
    int heads, causal;
};

/* Scales the logits of a tile, adds what is added, and hides keys that are not there. */
template <class S> DEVICE void logits_mask(float s[S::R][S::N / 8][4], const struct logit_terms &t)
{
    int column = made_here(thread_index()) % 4 * 2, first = made_here(t.row);
#pragma unroll
    for (int n = 0; n < S::N / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int j = t.key + n * 8 + column + e;
            float more = t.mask && j < t.keys ? global_load_float(t.mask + j) : 0;
#pragma unroll
            for (int r = 0; r < S::R; r++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int row = first + 16 * r + 8 * h;
                    float x = s[r][n][2 * h + e] * t.scale + more;
                    if (t.bias && j < t.keys && row < t.rows)
                        x += global_load_float(t.bias + (row * t.keys + j) * t.heads);
                    bool hidden = j >= t.keys || (t.causal && j > row);
                    s[r][n][2 * h + e] = hidden ? -INFINITY : x * LOG2_E;
                }
        }
}

/* How a tile's softmax weighs what it adds. */
struct weighing {
    float scale, offset; /* the logit is s * scale + offset */
    float values;        /* the weight of this segment's values: -alpha in VSF */
    float result;        /* of the whole softmax when it closes: -alpha in NASA */
    int closes, apart;   /* apart: acc is another softmax's result and stays as it is */
};

/* Logits become weights; m, l and acc follow. */
template <class S>
DEVICE void softmax_tile(struct rows_state<S> *z, float s[S::R][S::N / 8][4],
                         const struct weighing &w)
{
#pragma unroll
    for (int r = 0; r < S::R; r++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = s[r][0][2 * h];
#pragma unroll
            for (int n = 0; n < S::N / 8; n++)
                most = fmaxf(most, fmaxf(s[r][n][2 * h], s[r][n][2 * h + 1]));
            most = fmaxf(most, shuffle_xor(most, 1));
            most = fmaxf(most, shuffle_xor(most, 2));
            float m = fmaxf(z->m[r][h], fmaf(most, w.scale, w.offset));
            float base = m == -INFINITY ? 0 : m; /* -INFINITY - -INFINITY is NaN */
            float shrink = exp2_approx(z->m[r][h] - base), mass = 0, shift = w.offset - base;
            z->m[r][h] = m;
#pragma unroll
            for (int n = 0; n < S::N / 8; n++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    s[r][n][e] = exp2_approx(fmaf(s[r][n][e], w.scale, shift));
                    mass += s[r][n][e];
                }
            z->l[r][h] = fmaf(z->l[r][h], shrink, mass);
            float weight = w.values;
            if (w.closes) {
                float l = z->l[r][h];
                l += shuffle_xor(l, 1);
                l += shuffle_xor(l, 2);
                float share = l > 0 ? w.result * reciprocal_approx(l) : 0;
                shrink = w.apart ? 1 : shrink * share;
                weight *= share;
            }
            if (w.closes || w.values != 1)
#pragma unroll
                for (int n = 0; n < S::N / 8; n++) {
                    s[r][n][2 * h] *= weight;
                    s[r][n][2 * h + 1] *= weight;
                }
#pragma unroll
            for (int n = 0; n < S::columns / 8; n++) {
                z->acc[r][n][2 * h] *= shrink;
                z->acc[r][n][2 * h + 1] *= shrink;
            }
        }
}

/* s = Q K^T, in this warp's columns. at: this lane's address for ldmatrix. */
template <enum element E, class S>
DEVICE void multiply_keys(float s[S::R][S::N / 8][4], const uint32_t q[S::R][S::depth][4],
                          uint32_t at)
{
#pragma unroll
    for (int r = 0; r < S::R; r++)
#pragma unroll
        for (int n = 0; n < S::N / 8; n++)
            s[r][n][0] = s[r][n][1] = s[r][n][2] = s[r][n][3] = 0;
#pragma unroll
    for (int k = 0; k < S::depth; k++)
#pragma unroll
        for (int n = 0; n < S::N / 16; n++) {
            uint32_t b[4];
            matrix_load_4(b, at + n * 16 * S::stride + k * 32);
#pragma unroll
            for (int r = 0; r < S::R; r++) {
                mma<E>(s[r][2 * n], q[r][k], b[0], b[1]);
                mma<E>(s[r][2 * n + 1], q[r][k], b[2], b[3]);
            }
        }
}

/* acc += P V: two C fragments of logits side by side are one A fragment. */
template <enum element E, class S>
DEVICE void multiply_values(struct rows_state<S> *z, const float p[S::R][S::N / 8][4], uint32_t at)
{
#pragma unroll
    for (int k = 0; k < S::N / 16; k++) {
        uint32_t a[S::R][4];
#pragma unroll
        for (int r = 0; r < S::R; r++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *c = p[r][2 * k + i / 2] + i % 2 * 2;
                a[r][i] = pack<E>(c[0], c[1]);
            }
#pragma unroll
        for (int n = 0; n < S::columns / 16; n++) {
            uint32_t b[4];
            matrix_load_4_transposed(b, at + k * 16 * S::stride + n * 32);
#pragma unroll
            for (int r = 0; r < S::R; r++) {
                mma<E>(z->acc[r][2 * n], a[r], b[0], b[1]);
                mma<E>(z->acc[r][2 * n + 1], a[r], b[2], b[3]);
            }
        }
        if (S::columns % 16) {
            uint32_t b[2];
            matrix_load_2_transposed(b, at + k * 16 * S::stride + S::columns / 16 * 32);
#pragma unroll
            for (int r = 0; r < S::R; r++)
                mma<E>(z->acc[r][S::columns / 8 - 1], a[r], b[0], b[1]);
        }
    }
}

/* Sums the slices' parts of the logits, in one order for all. at: Q's place, which has been read.
 */
template <class S> DEVICE void slices_sum(float s[S::R][S::N / 8][4], uint32_t at)
{
    constexpr int words = S::R * S::N / 2;
    static_assert(S::SLICES == 1 || words * 4 * S::threads <= S::q_bytes, "room");
    int warp = thread_index() / 32, lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < words; i++)
        shared_store_4(at + ((warp * words + i) * 32 + lane) * 4,
                       float_bits(s[i / (S::N / 2)][i / 4 % (S::N / 8)][i % 4]));
    block_sync();
#pragma unroll
    for (int i = 0; i < words; i++) {
        float sum = 0;
#pragma unroll
        for (int part = 0; part < S::SLICES; part++) {
            int of = warp / S::SLICES * S::SLICES + part;
            sum += bits_float(shared_load_4(at + ((of * words + i) * 32 + lane) * 4));
        }
        s[i / (S::N / 2)][i / 4 % (S::N / 8)][i % 4] = sum;
    }
}

/* All that share rows are here. */
template <class S> DEVICE void rows_sync(void)
{
    if (S::SLICES == 1)
        warp_sync();
    else
        block_sync();
}

/* acc to [L, heads * D] at `out`, through shared memory (the tiles' place): whole rows of a head
 * leave side by side.
 */
template <enum element E, class S>
DEVICE void rows_store(const struct rows_state<S> &z, uint32_t at, const struct cuda_attention &a,
                       void *out)
{
    constexpr int mine = 16 * S::R / S::SLICES; /* rows that this warp stores */
    int thread = made_here(thread_index()), warp = thread / 32, lane = thread % 32;
    int group = warp / S::SLICES, slice = warp % S::SLICES;
    uint32_t to =
        at + (group * 16 * S::R + lane / 4) * S::stride + slice * S::columns * 2 + lane % 4 * 4;
    block_sync(); /* what was here has been read */
#pragma unroll
    for (int r = 0; r < S::R; r++)
#pragma unroll
        for (int n = 0; n < S::columns / 8; n++) {
            const float *c = z.acc[r][n];
            shared_store_4(to + r * 16 * S::stride + n * 16, pack<E>(c[0], c[1]));
            shared_store_4(to + (r * 16 + 8) * S::stride + n * 16, pack<E>(c[2], c[3]));
        }
    rows_sync<S>();
    int first = group * 16 * S::R + slice * mine, row_block = (int)block_index().x * S::rows;
    char *rows = (char *)out +
                 ((int64_t)block_index().z * a.queries * a.heads + (int)block_index().y) * S::D * 2;
#pragma unroll
    for (int i = 0; i < mine * S::chunks; i += 32) {
        int piece = i + lane, row = first + piece / S::chunks, chunk = piece % S::chunks;
        bool on = row_block + row < a.queries;
        if (mine * S::chunks % 32) on = on && piece < mine * S::chunks;
        if (mine * S::chunks % 32 && piece >= mine * S::chunks) row = first;
        global_store_16(rows + (int64_t)(row_block + row) * a.heads * S::D * 2 + chunk * 16,
                        shared_load_16(at + row * S::stride + chunk * 16), on);
    }
}

/* A thread's acc, m and l in shared memory, a word of each thread side by side. */
enum keeping { KEEP, SWAP, ADD };
template <class S> DEVICE void acc_keep(struct rows_state<S> *z, uint32_t at, enum keeping what)
{
#pragma unroll
    for (int i = 0; i < S::R * S::columns / 2; i++) {
        float *x = &z->acc[i / (S::columns / 2)][i / 4 % (S::columns / 8)][i % 4];
        uint32_t place = at + i * S::threads * 4, old = 0;
        if (what != KEEP) old = shared_load_4(place);
        if (what != ADD) shared_store_4(place, float_bits(*x));
        if (what == SWAP) *x = bits_float(old);
        if (what == ADD) *x += bits_float(old);
    }
}

template <class S> DEVICE void mass_keep(struct rows_state<S> *z, uint32_t at, int back)
{
    at += S::R * S::columns / 2 * S::threads * 4;
#pragma unroll
    for (int i = 0; i < 4 * S::R; i++) {
        float *x = i < 2 * S::R ? &z->m[i / 2][i % 2] : &z->l[i / 2 - S::R][i % 2];
        if (back)
            *x = bits_float(shared_load_4(at + i * S::threads * 4));
        else
            shared_store_4(at + i * S::threads * 4, float_bits(*x));
    }
}

/* How the negative's softmax stands to the shared keys', known before the launch. */
struct negative_plan {
    int own;   /* it has a softmax of its own: NASA and NAG */
    int joint; /* A_S is in it */
    int mass;  /* l_S is in it */
    int apart; /* it is one tile, added to Z+ from registers */
    int keeps; /* shared memory keeps acc meanwhile, or what the shared keys left */
};

HOST_DEVICE struct negative_plan negative_plan(const struct cuda_attention &a, int tile_keys)
{
    int shared = a.segment[CUDA_SHARED].keys > 0;
    struct negative_plan n;
    n.own = a.method == GUIDANCE_NASA || a.method == GUIDANCE_NAG;
    n.joint = n.own && shared && (a.method == GUIDANCE_NAG || a.variant == GUIDANCE_JOINT);
    n.mass = n.joint || (n.own && shared && a.variant == GUIDANCE_MASS);
    n.apart = a.method == GUIDANCE_NASA && !n.joint && a.segment[CUDA_NEGATIVE].keys <= tile_keys;
    n.keeps = n.mass || (n.own && !n.apart);
    return n;
}

template <class S> DEVICE void state_clear(struct rows_state<S> *z, int acc)
{
#pragma unroll
    for (int r = 0; r < S::R; r++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            z->m[r][h] = -INFINITY;
            z->l[r][h] = 0;
        }
        if (acc)
#pragma unroll
            for (int n = 0; n < S::columns / 8; n++)
                z->acc[r][n][0] = z->acc[r][n][1] = z->acc[r][n][2] = z->acc[r][n][3] = 0;
    }
}

DEVICE struct weighing segment_weighing(const struct cuda_attention &a,
                                        const struct negative_plan &plan, int segment, float alpha)
{
    int offset_at = (int)block_index().z * GUIDANCE_PARAMS + GUIDANCE_OFFSET;
    int negative = segment == CUDA_NEGATIVE, vsf = negative && a.method == GUIDANCE_VSF;
    struct weighing w = {};
    w.values = vsf ? -alpha : 1;
    w.result = negative && plan.own ? -alpha : 1;
    w.apart = negative && plan.apart;
    w.offset = vsf ? -global_load_float(a.params + offset_at) * LOG2_E : 0;
    return w;
}

DEVICE struct logit_terms segment_terms(const struct cuda_attention &a, int segment, int key,
                                        int row)
{
    int image = (int)block_index().z, head = (int)block_index().y;
    const struct cuda_rows &mask = a.segment[segment].mask;
    struct logit_terms t = {};
    if (mask.base || mask.table) t.mask = (const float *)rows_begin(mask, image, sizeof(float));
    if (segment == CUDA_POSITIVE) {
        if (a.bias) t.bias = a.bias + image * a.bias_image_stride + head;
        t.causal = a.causal;
    }
    t.key = key;
    t.keys = a.segment[segment].keys;
    t.scale = a.scale;
    t.row = row;
    t.rows = a.queries;
    t.heads = a.heads;
    return t;
}

/* What the next segment begins with. */
template <class S>
DEVICE void segment_end(struct rows_state<S> *z, uint32_t kept_at, const struct negative_plan &plan,
                        int segment)
{
    if (segment == CUDA_SHARED && plan.mass) {
        mass_keep<S>(z, kept_at, 0);
        if (plan.joint) acc_keep<S>(z, kept_at, KEEP);
    }
    if (segment == CUDA_POSITIVE && plan.own) { /* acc is Z+ */
        if (!plan.apart) acc_keep<S>(z, kept_at, plan.joint ? SWAP : KEEP);
        state_clear<S>(z, !plan.apart && !plan.joint);
        if (plan.mass) mass_keep<S>(z, kept_at, 1);
    }
}

/* Grid: x blocks of rows, y heads, z images. */
template <enum element E, class S> DEVICE void attention(const struct cuda_attention &a)
{
    int lane = thread_index() % 32, warp = thread_index() / 32;
    int group = warp / S::SLICES, slice = warp % S::SLICES;
    int image = (int)block_index().z, head = (int)block_index().y;
    int first = (int)block_index().x * S::rows; /* query */
    const struct negative_plan plan = negative_plan(a, S::N);
    uint32_t k_at = shared_base(), v_at = k_at + S::tile_bytes, q_at = k_at + S::keys_bytes;
    uint32_t kept_at = q_at + S::kept_at + thread_index() * 4;
    float alpha = 1; /* NAG's */
    if (a.method == GUIDANCE_NASA || a.method == GUIDANCE_VSF)
        alpha = global_load_float(a.params + image * GUIDANCE_PARAMS + GUIDANCE_ALPHA);
    int begin = a.segment[CUDA_SHARED].keys ? CUDA_SHARED : CUDA_POSITIVE;
    int end = a.method == GUIDANCE_NONE ? CUDA_NEGATIVE : CUDA_SEGMENTS;

    const char *from_k = keys_begin<S>(a, a.segment[begin].k, keys_seen<S>(a, begin));
    rows_pad<S>(q_at, S::rows);
    rows_pad<S>(k_at, S::N);
    {
        int row = first + thread_index() / row_threads<S>::lanes;
        int chunk = head * S::chunks + thread_index() % row_threads<S>::lanes;
        int64_t row_bytes = a.q.row_stride * 2;
        rows_load<S, S::rows>(q_at, rows_begin(a.q, image, 2) + row * row_bytes + chunk * 16,
                              row_bytes, a.queries - first);
    }
    rows_load<S, S::N>(k_at, from_k, a.segment[begin].k.row_stride * 2, keys_seen<S>(a, begin));
    copy_async_commit();
    copy_async_wait<0>();
    block_sync();

    /* This lane's addresses for ldmatrix: of A and of V transposed, and of K. */
    uint32_t down = (lane % 16) * S::stride + lane / 16 * 16;
    uint32_t across = (lane % 8 + lane / 16 * 8) * S::stride + lane / 8 % 2 * 16;
    uint32_t q[S::R][S::depth][4];
#pragma unroll
    for (int r = 0; r < S::R; r++)
#pragma unroll
        for (int k = 0; k < S::depth; k++)
            matrix_load_4(q[r][k], q_at + (group * S::R + r) * 16 * S::stride +
                                       slice * S::columns * 2 + k * 32 + down);

    struct rows_state<S> z;
    state_clear<S>(&z, 1);
    for (int segment = begin; segment < end; segment++) {
        struct weighing w = segment_weighing(a, plan, segment, alpha);
        const struct cuda_rows &mask = a.segment[segment].mask;
        bool causal = segment == CUDA_POSITIVE && a.causal;
        bool masked = mask.base || mask.table || (segment == CUDA_POSITIVE && a.bias);
        int key = 0, keys = keys_seen<S>(a, segment);
        const char *from_v = keys_begin<S>(a, a.segment[segment].v, keys);
        int64_t v_row = a.segment[segment].v.row_stride * 2;
        do {
            bool last = key + S::N >= keys;
            if (segment != begin || key) { /* the first K came with Q */
                copy_async_wait<0>();
                block_sync();
            } else if (S::SLICES > 1) {
                block_sync(); /* all have Q: its place serves slices_sum */
            }
            rows_load<S, S::N>(v_at, from_v, v_row, keys - key);
            copy_async_commit();
            from_v += S::N * v_row;
            float s[S::R][S::N / 8][4];
            multiply_keys<E, S>(s, q, k_at + slice * S::columns * 2 + across);
            if (S::SLICES > 1) slices_sum<S>(s, q_at);
            w.scale = a.scale * LOG2_E;
            if (masked || key + S::N > keys || (causal && key + S::N > first)) {
                int row = first + group * 16 * S::R + lane / 4;
                logits_mask<S>(s, segment_terms(a, segment, key, row));
                w.scale = 1;
            }
            w.closes = last && (segment + 1 == end ||
                                (segment == CUDA_POSITIVE && a.method != GUIDANCE_VSF));
            softmax_tile<S>(&z, s, w);
            copy_async_wait<0>();
            block_sync();
            int next = last ? segment + 1 : segment; /* the next K's */
            if (next < end) {
                int left = last ? keys_seen<S>(a, next) : keys - key - S::N;
                int64_t k_row = a.segment[next].k.row_stride * 2;
                from_k = last ? keys_begin<S>(a, a.segment[next].k, left) : from_k + S::N * k_row;
                rows_load<S, S::N>(k_at, from_k, k_row, left);
                copy_async_commit();
            }
            multiply_values<E, S>(&z, s, v_at + slice * S::columns * 2 + down);
            key += S::N;
        } while (key < keys);

        segment_end<S>(&z, kept_at, plan, segment);
    }
    /* Kept is Z+, acc what is added to it. NAG wants both. */
    for (int more = a.method == GUIDANCE_NAG; more >= 0; more--) {
        if (plan.own && !plan.apart) acc_keep<S>(&z, kept_at, more ? SWAP : ADD);
        rows_store<E, S>(z, k_at, a, a.method == GUIDANCE_NAG && !more ? a.difference : a.out);
    }
}

#endif
