/* warp.c - what a warp's lanes do together: shuffles, votes, reductions, products of matrices. */
#include <string.h>

#include "half.h"
#include "ops.h"

/* The mask operand names the lanes that take part: all of them, and no others, must be here. */
static int members(struct warp *w, const struct insn *n, int operand, uint32_t mask)
{
    const u32 *m = place(w, n, operand);
    ACTIVE if ((m[i] & w->live) != mask)
    {
        fault_set(w, (unsigned)i, PTX_UNSOUND,
                  "its mask names lanes %08x, but lanes %08x of the warp are here", m[i] & w->live,
                  mask);
        return -1;
    }
    return 0;
}

enum { SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_BFLY, SHUFFLE_IDX };

void run_shfl(struct warp *w, const struct insn *n, uint32_t mask)
{
    u32 *d = place(w, n, 0), *a = place(w, n, 2), *b = place(w, n, 3), *c = place(w, n, 4),
        out[LANES], p = 0;
    if (members(w, n, 5, mask)) return;
    ACTIVE
    {
        int by = b[i] & 31, clamp = c[i] & 31, segment = c[i] >> 8 & 31;
        int first = i & segment, last = first | (clamp & ~segment), j = 0, inside = 0;
        switch (n->mode) {
        case SHUFFLE_UP: j = i - by, inside = j >= last; break;
        case SHUFFLE_DOWN: j = i + by, inside = j <= last; break;
        case SHUFFLE_BFLY: j = i ^ by, inside = j <= last; break;
        case SHUFFLE_IDX: j = first | (by & ~segment), inside = j <= last; break;
        }
        if (!inside) j = i;
        if (!(mask >> j & 1)) {
            fault_set(w, (unsigned)i, PTX_UNSOUND, "it reads lane %d, which is not here", j);
            return;
        }
        out[i] = a[j];
        p |= (u32)inside << i;
    }
    ACTIVE d[i] = out[i];
    set_predicate(w, n, 1, p, mask);
}

enum { VOTE_ALL, VOTE_ANY, VOTE_UNI, VOTE_BALLOT };

static void run_vote(struct warp *w, const struct insn *n, uint32_t mask)
{
    if (members(w, n, 2, mask)) return;
    u32 v = predicate(w, n, 1) & mask;
    if (n->mode == VOTE_BALLOT) {
        u32 *d = place(w, n, 0);
        ACTIVE d[i] = v;
        return;
    }
    int yes = n->mode == VOTE_ALL ? v == mask : n->mode == VOTE_ANY ? v != 0 : v == mask || !v;
    set_predicate(w, n, 0, yes ? ~0u : 0, mask);
}

enum {
    REDUCE_ADD,
    REDUCE_MIN_U,
    REDUCE_MAX_U,
    REDUCE_MIN_S,
    REDUCE_MAX_S,
    REDUCE_AND,
    REDUCE_OR,
    REDUCE_XOR
};

static void run_redux(struct warp *w, const struct insn *n, uint32_t mask)
{
    u32 *d = place(w, n, 0), *a = place(w, n, 1), r = 0;
    if (members(w, n, 2, mask)) return;
    int first = 1;
    ACTIVE
    {
        u32 x = a[i];
        if (first)
            r = x;
        else
            switch (n->mode) {
            case REDUCE_ADD: r += x; break;
            case REDUCE_MIN_U: r = x < r ? x : r; break;
            case REDUCE_MAX_U: r = x > r ? x : r; break;
            case REDUCE_MIN_S: r = (s32)x < (s32)r ? x : r; break;
            case REDUCE_MAX_S: r = (s32)x > (s32)r ? x : r; break;
            case REDUCE_AND: r &= x; break;
            case REDUCE_OR: r |= x; break;
            case REDUCE_XOR: r ^= x; break;
            }
        first = 0;
    }
    ACTIVE d[i] = r;
}

static void run_warp_sync(struct warp *w, const struct insn *n, uint32_t mask)
{
    if (!members(w, n, 0, mask)) w->sync++;
}

static void run_activemask(struct warp *w, const struct insn *n, uint32_t mask)
{
    u32 *d = place(w, n, 0);
    ACTIVE d[i] = mask;
}

static void run_nothing(struct warp *w, const struct insn *n, uint32_t mask)
{
    (void)w, (void)n, (void)mask;
}

/* --- mma.sync.aligned.m16n8k16.row.col: d[16, 8] = a[16, 16] b[16, 8] + c[16, 8] --- */

static void run_mma(struct warp *w, const struct insn *n, uint32_t mask)
{
    if (mask != ~0u) {
        fault_set(w, 0, PTX_UNSOUND, "only lanes %08x of the warp are here", mask);
        return;
    }
    f32 a[16][16], b[16][8], d[16][8];
    int is_bf16 = n->mode;
#define UNPACK(to)                                                                                 \
    FOR_LANES for (int r = 0; r < 4; r++)                                                          \
    {                                                                                              \
        u32 v = ((const u32 *)place(w, n, 4 + r))[i];                                              \
        int row = i / 4 + r % 2 * 8, col = i % 4 * 2 + r / 2 * 8;                                  \
        a[row][col] = to(LO(v));                                                                   \
        a[row][col + 1] = to(HI(v));                                                               \
    }                                                                                              \
    FOR_LANES for (int r = 0; r < 2; r++)                                                          \
    {                                                                                              \
        u32 v = ((const u32 *)place(w, n, 8 + r))[i];                                              \
        int row = i % 4 * 2 + r * 8, col = i / 4;                                                  \
        b[row][col] = to(LO(v));                                                                   \
        b[row + 1][col] = to(HI(v));                                                               \
    }
    if (is_bf16) {
        UNPACK(bf16_to)
    } else {
        UNPACK(f16_to)
    }
    for (int r = 0; r < 4; r++) {
        const f32 *c = place(w, n, 10 + r);
        FOR_LANES d[i / 4 + r / 2 * 8][i % 4 * 2 + r % 2] = c[i];
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int col = 0; col < 8; col++)
                d[row][col] += a[row][k] * b[k][col];
    for (int r = 0; r < 4; r++) {
        f32 *o = place(w, n, r);
        FOR_LANES o[i] = d[i / 4 + r / 2 * 8][i % 4 * 2 + r % 2];
    }
}

const struct op warp_ops[] = {
    {"shfl.sync.up.b32", "wpwwww", run_shfl, 0, SHUFFLE_UP},
    {"shfl.sync.down.b32", "wpwwww", run_shfl, 0, SHUFFLE_DOWN},
    {"shfl.sync.bfly.b32", "wpwwww", run_shfl, 0, SHUFFLE_BFLY},
    {"shfl.sync.idx.b32", "wpwwww", run_shfl, 0, SHUFFLE_IDX},
    {"vote.sync.all.pred", "ppw", run_vote, 0, VOTE_ALL},
    {"vote.sync.any.pred", "ppw", run_vote, 0, VOTE_ANY},
    {"vote.sync.uni.pred", "ppw", run_vote, 0, VOTE_UNI},
    {"vote.sync.ballot.b32", "wpw", run_vote, 0, VOTE_BALLOT},
    {"redux.sync.add.s32", "www", run_redux, 0, REDUCE_ADD},
    {"redux.sync.add.u32", "www", run_redux, 0, REDUCE_ADD},
    {"redux.sync.min.u32", "www", run_redux, 0, REDUCE_MIN_U},
    {"redux.sync.max.u32", "www", run_redux, 0, REDUCE_MAX_U},
    {"redux.sync.min.s32", "www", run_redux, 0, REDUCE_MIN_S},
    {"redux.sync.max.s32", "www", run_redux, 0, REDUCE_MAX_S},
    {"redux.sync.and.b32", "www", run_redux, 0, REDUCE_AND},
    {"redux.sync.or.b32", "www", run_redux, 0, REDUCE_OR},
    {"redux.sync.xor.b32", "www", run_redux, 0, REDUCE_XOR},
    {"bar.warp.sync", "W", run_warp_sync, CLASS_BARRIER, 0},
    {"activemask.b32", "w", run_activemask, 0, 0},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "wwwwwwwwwwwwww", run_mma, CLASS_MMA,
     1},
    {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "wwwwwwwwwwwwww", run_mma, CLASS_MMA, 0},
    /* Memory is one and in order here, so fences have nothing to do; races are told from barriers
       alone. */
    {"membar.cta", "", run_nothing, 0, 0},
    {"membar.gl", "", run_nothing, 0, 0},
    {"fence.acq_rel.cta", "", run_nothing, 0, 0},
    {"fence.acq_rel.gpu", "", run_nothing, 0, 0}};
const size_t n_warp_ops = sizeof warp_ops / sizeof *warp_ops;
