/* arithmetic.c - what instructions compute lane by lane: one line an opcode, with all modifiers
 * that it may have, and the types of its operands. A spelling that stands nowhere is not modelled.
 */
#include <math.h>
#include <string.h>

#include "half.h"
#include "ops.h"

/* .ftz: denormals count as zero. */
static inline f32 z(f32 x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

static inline f32 saturate(f32 x)
{
    return x > 0 ? (x < 1 ? x : 1) : 0; /* NaN: 0 */
}

static inline f32 minimum(f32 x, f32 y, int keep_nan)
{
    return keep_nan && (x != x || y != y) ? NAN : fminf(x, y);
}

static inline f32 maximum(f32 x, f32 y, int keep_nan)
{
    return keep_nan && (x != x || y != y) ? NAN : fmaxf(x, y);
}

static inline u32 permute(u32 x, u32 y, u32 selector)
{
    u64 all = (u64)y << 32 | x;
    u32 out = 0;
    for (int i = 0; i < 4; i++) {
        u32 s = selector >> (4 * i) & 15, byte = (u32)(all >> (8 * (s & 7))) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << (8 * i);
    }
    return out;
}

static inline u32 logic3(u32 x, u32 y, u32 w, u32 table)
{
    u32 out = 0;
    for (u32 i = 0; i < 8; i++)
        if (table >> i & 1) out |= (i & 4 ? x : ~x) & (i & 2 ? y : ~y) & (i & 1 ? w : ~w);
    return out;
}

static inline u32 field(u32 x, u32 at, u32 length, int is_signed)
{
    at &= 255;
    length &= 255;
    u32 last = at + length - 1 > 31 ? 31 : at + length - 1;
    u32 sign = is_signed && length && x >> last & 1 ? ~0u : 0;
    u32 v = at < 32 ? x >> at : 0;
    if (at + length > 32) length = at < 32 ? 32 - at : 0;
    u32 keep = length >= 32 ? ~0u : (1u << length) - 1;
    return (v & keep) | (sign & ~keep);
}

static inline u32 inserted(u32 x, u32 y, u32 at, u32 length)
{
    at &= 255;
    length &= 255;
    if (at > 31) return y;
    u32 keep = (length >= 32 ? ~0u : (1u << length) - 1) << at;
    return (x << at & keep) | (y & ~keep);
}

static inline u64 inserted64(u64 x, u64 y, u32 at, u32 length)
{
    at &= 255;
    length &= 255;
    if (at > 63) return y;
    u64 keep = (length >= 64 ? ~(u64)0 : ((u64)1 << length) - 1) << at;
    return (x << at & keep) | (y & ~keep);
}

static inline u32 reversed(u32 x)
{
    u32 out = 0;
    for (int i = 0; i < 32; i++)
        out |= (x >> i & 1) << (31 - i);
    return out;
}

/* Both halves of 32 bits. */
#define PAIR(of, to, expr_lo, expr_hi) ((u32)of(expr_lo) | (u32)of(expr_hi) << 16)
#define F16(f, x, y)                                                                               \
    PAIR(f16_of, , f(f16_to(LO(x)), f16_to(LO(y))), f(f16_to(HI(x)), f16_to(HI(y))))
#define BF16(f, x, y)                                                                              \
    PAIR(bf16_of, , f(bf16_to(LO(x)), bf16_to(LO(y))), f(bf16_to(HI(x)), bf16_to(HI(y))))
#define SUM(x, y)        ((x) + (y))
#define DIFFERENCE(x, y) ((x) - (y))
#define PRODUCT(x, y)    ((x) * (y))
#define LEAST(x, y)      minimum(x, y, 0)
#define MOST(x, y)       maximum(x, y, 0)

/* Rounding the f32 sum, difference or product of two 16-bit values again is rounding once: 24 >= 2
 * * 11 + 2 bits. */
#define HALVES(X, T, n, to, of, F)                                                                 \
    X(add_##n, "add." #n, "hhh", u16, u16, u16, u16, of(to(x) + to(y)))                            \
    X(add_rn_##n, "add.rn." #n, "hhh", u16, u16, u16, u16, of(to(x) + to(y)))                      \
    X(sub_##n, "sub." #n, "hhh", u16, u16, u16, u16, of(to(x) - to(y)))                            \
    X(sub_rn_##n, "sub.rn." #n, "hhh", u16, u16, u16, u16, of(to(x) - to(y)))                      \
    X(mul_##n, "mul." #n, "hhh", u16, u16, u16, u16, of(to(x) * to(y)))                            \
    X(mul_rn_##n, "mul.rn." #n, "hhh", u16, u16, u16, u16, of(to(x) * to(y)))                      \
    X(fma_##n, "fma.rn." #n, "hhhh", u16, u16, u16, u16, of(odd_fma(to(x), to(y), to(w))))         \
    X(min_##n, "min." #n, "hhh", u16, u16, u16, u16, of(LEAST(to(x), to(y))))                      \
    X(max_##n, "max." #n, "hhh", u16, u16, u16, u16, of(MOST(to(x), to(y))))                       \
    X(neg_##n, "neg." #n, "hh", u16, u16, u16, u16, (u16)(x ^ 0x8000))                             \
    X(abs_##n, "abs." #n, "hh", u16, u16, u16, u16, (u16)(x & 0x7fff))                             \
    X(tanh_##n, "tanh.approx." #n, "hh", u16, u16, u16, u16, of(tanhf(to(x))))                     \
    X(add_##n##x2, "add." #n "x2", "www", u32, u32, u32, u32, F(SUM, x, y))                        \
    X(add_rn_##n##x2, "add.rn." #n "x2", "www", u32, u32, u32, u32, F(SUM, x, y))                  \
    X(sub_##n##x2, "sub." #n "x2", "www", u32, u32, u32, u32, F(DIFFERENCE, x, y))                 \
    X(sub_rn_##n##x2, "sub.rn." #n "x2", "www", u32, u32, u32, u32, F(DIFFERENCE, x, y))           \
    X(mul_##n##x2, "mul." #n "x2", "www", u32, u32, u32, u32, F(PRODUCT, x, y))                    \
    X(mul_rn_##n##x2, "mul.rn." #n "x2", "www", u32, u32, u32, u32, F(PRODUCT, x, y))              \
    X(fma_##n##x2, "fma.rn." #n "x2", "wwww", u32, u32, u32, u32,                                  \
      PAIR(of, , odd_fma(to(LO(x)), to(LO(y)), to(LO(w))),                                         \
           odd_fma(to(HI(x)), to(HI(y)), to(HI(w)))))                                              \
    X(min_##n##x2, "min." #n "x2", "www", u32, u32, u32, u32, F(LEAST, x, y))                      \
    X(max_##n##x2, "max." #n "x2", "www", u32, u32, u32, u32, F(MOST, x, y))                       \
    X(neg_##n##x2, "neg." #n "x2", "ww", u32, u32, u32, u32, x ^ 0x80008000u)                      \
    X(abs_##n##x2, "abs." #n "x2", "ww", u32, u32, u32, u32, x & 0x7fff7fffu)                      \
    X(tanh_##n##x2, "tanh.approx." #n "x2", "ww", u32, u32, u32, u32,                              \
      PAIR(of, , tanhf(to(LO(x))), tanhf(to(HI(x)))))                                              \
    X(cvt_##n, "cvt.rn." #n ".f32", "hw", u16, f32, f32, f32, of(x))                               \
    X(cvt_f32_##n, "cvt.f32." #n, "wh", f32, u16, u16, u16, to(x))                                 \
    X(cvt_##n##x2, "cvt.rn." #n "x2.f32", "www", u32, f32, f32, f32, PAIR(of, , y, x))

/* Integers of one width; shifts by more than the width give what remains. */
#define INTEGERS(X, b, c, U, S)                                                                    \
    X(add_u##b, "add.u" #b, c c c, U, U, U, U, (U)(x + y))                                         \
    X(add_s##b, "add.s" #b, c c c, U, U, U, U, (U)(x + y))                                         \
    X(sub_u##b, "sub.u" #b, c c c, U, U, U, U, (U)(x - y))                                         \
    X(sub_s##b, "sub.s" #b, c c c, U, U, U, U, (U)(x - y))                                         \
    X(mul_lo_u##b, "mul.lo.u" #b, c c c, U, U, U, U, (U)((u64)x * y))                              \
    X(mul_lo_s##b, "mul.lo.s" #b, c c c, U, U, U, U, (U)((u64)x * y))                              \
    X(mad_lo_u##b, "mad.lo.u" #b, c c c c, U, U, U, U, (U)((u64)x * y + w))                        \
    X(mad_lo_s##b, "mad.lo.s" #b, c c c c, U, U, U, U, (U)((u64)x * y + w))                        \
    X(div_u##b, "div.u" #b, c c c, U, U, U, U, (U)(y ? x / y : (U)-1))                             \
    X(rem_u##b, "rem.u" #b, c c c, U, U, U, U, (U)(y ? x % y : x))                                 \
    X(div_s##b, "div.s" #b, c c c, S, S, S, S, (S)(y == 0 ? -1 : y == -1 ? (S)(0 - (U)x) : x / y)) \
    X(rem_s##b, "rem.s" #b, c c c, S, S, S, S, (S)(y == 0 ? x : y == -1 ? 0 : x % y))              \
    X(min_u##b, "min.u" #b, c c c, U, U, U, U, x < y ? x : y)                                      \
    X(min_s##b, "min.s" #b, c c c, S, S, S, S, x < y ? x : y)                                      \
    X(max_u##b, "max.u" #b, c c c, U, U, U, U, x > y ? x : y)                                      \
    X(max_s##b, "max.s" #b, c c c, S, S, S, S, x > y ? x : y)                                      \
    X(neg_s##b, "neg.s" #b, c c, U, U, U, U, (U)(0 - x))                                           \
    X(abs_s##b, "abs.s" #b, c c, S, S, S, S, x < 0 ? (S)(0 - (U)x) : x)                            \
    X(and_b##b, "and.b" #b, c c c, U, U, U, U, x &y)                                               \
    X(or_b##b, "or.b" #b, c c c, U, U, U, U, x | y)                                                \
    X(xor_b##b, "xor.b" #b, c c c, U, U, U, U, x ^ y)                                              \
    X(not_b##b, "not.b" #b, c c, U, U, U, U, (U)~x)                                                \
    X(shl_b##b, "shl.b" #b, c c "w", U, U, u32, U, (U)(y < b ? (u64)x << y : 0))                   \
    X(shr_u##b, "shr.u" #b, c c "w", U, U, u32, U, (U)(y < b ? x >> y : 0))                        \
    X(shr_b##b, "shr.b" #b, c c "w", U, U, u32, U, (U)(y < b ? x >> y : 0))                        \
    X(shr_s##b, "shr.s" #b, c c "w", S, S, u32, S, (S)(x >> (y < b ? y : b - 1)))                  \
    X(mov_b##b, "mov.b" #b, c c, U, U, U, U, x)                                                    \
    X(mov_u##b, "mov.u" #b, c c, U, U, U, U, x)                                                    \
    X(mov_s##b, "mov.s" #b, c c, U, U, U, U, x)

/* f32 arithmetic plain and with .ftz; Q is z or nothing, ftz the modifier. */
#define FLOATS(X, n, ftz, Q)                                                                       \
    X(add_f32##n, "add" ftz ".f32", "www", f32, f32, f32, f32, Q(Q(x) + Q(y)))                     \
    X(add_rn_f32##n, "add.rn" ftz ".f32", "www", f32, f32, f32, f32, Q(Q(x) + Q(y)))               \
    X(sub_f32##n, "sub" ftz ".f32", "www", f32, f32, f32, f32, Q(Q(x) - Q(y)))                     \
    X(sub_rn_f32##n, "sub.rn" ftz ".f32", "www", f32, f32, f32, f32, Q(Q(x) - Q(y)))               \
    X(mul_f32##n, "mul" ftz ".f32", "www", f32, f32, f32, f32, Q(Q(x) * Q(y)))                     \
    X(mul_rn_f32##n, "mul.rn" ftz ".f32", "www", f32, f32, f32, f32, Q(Q(x) * Q(y)))               \
    X(fma_f32##n, "fma.rn" ftz ".f32", "wwww", f32, f32, f32, f32, Q(fmaf(Q(x), Q(y), Q(w))))      \
    X(fma_sat_f32##n, "fma.rn" ftz ".sat.f32", "wwww", f32, f32, f32, f32,                         \
      saturate(fmaf(Q(x), Q(y), Q(w))))                                                            \
    X(add_sat_f32##n, "add" ftz ".sat.f32", "www", f32, f32, f32, f32, saturate(Q(x) + Q(y)))      \
    X(min_f32##n, "min" ftz ".f32", "www", f32, f32, f32, f32, minimum(Q(x), Q(y), 0))             \
    X(max_f32##n, "max" ftz ".f32", "www", f32, f32, f32, f32, maximum(Q(x), Q(y), 0))             \
    X(min_nan_f32##n, "min" ftz ".NaN.f32", "www", f32, f32, f32, f32, minimum(Q(x), Q(y), 1))     \
    X(max_nan_f32##n, "max" ftz ".NaN.f32", "www", f32, f32, f32, f32, maximum(Q(x), Q(y), 1))     \
    X(neg_f32##n, "neg" ftz ".f32", "ww", f32, f32, f32, f32, -Q(x))                               \
    X(abs_f32##n, "abs" ftz ".f32", "ww", f32, f32, f32, f32, fabsf(Q(x)))                         \
    X(div_f32##n, "div.rn" ftz ".f32", "www", f32, f32, f32, f32, Q(Q(x) / Q(y)))                  \
    X(div_full_f32##n, "div.full" ftz ".f32", "www", f32, f32, f32, f32, Q(Q(x) / Q(y)))           \
    X(div_approx_f32##n, "div.approx" ftz ".f32", "www", f32, f32, f32, f32, Q(Q(x) / Q(y)))       \
    X(rcp_f32##n, "rcp.rn" ftz ".f32", "ww", f32, f32, f32, f32, Q(1 / Q(x)))                      \
    X(rcp_approx_f32##n, "rcp.approx" ftz ".f32", "ww", f32, f32, f32, f32, Q(1 / Q(x)))           \
    X(sqrt_f32##n, "sqrt.rn" ftz ".f32", "ww", f32, f32, f32, f32, sqrtf(Q(x)))                    \
    X(sqrt_approx_f32##n, "sqrt.approx" ftz ".f32", "ww", f32, f32, f32, f32, sqrtf(Q(x)))         \
    X(rsqrt_f32##n, "rsqrt.approx" ftz ".f32", "ww", f32, f32, f32, f32,                           \
      (f32)(1 / sqrt((f64)Q(x))))                                                                  \
    X(ex2_f32##n, "ex2.approx" ftz ".f32", "ww", f32, f32, f32, f32, Q(exp2f(Q(x))))               \
    X(lg2_f32##n, "lg2.approx" ftz ".f32", "ww", f32, f32, f32, f32, log2f(Q(x)))                  \
    X(sin_f32##n, "sin.approx" ftz ".f32", "ww", f32, f32, f32, f32, sinf(Q(x)))                   \
    X(cos_f32##n, "cos.approx" ftz ".f32", "ww", f32, f32, f32, f32, cosf(Q(x)))

/* X(function, spelling, operands, types of result and of x, y, w, value). Operands: h, w, d: 16,
 * 32, 64 bits. */
#define OPS(X)                                                                                     \
    INTEGERS(X, 16, "h", u16, s16)                                                                 \
    INTEGERS(X, 32, "w", u32, s32)                                                                 \
    INTEGERS(X, 64, "d", u64, s64)                                                                 \
    X(mul_wide_u16, "mul.wide.u16", "whh", u32, u16, u16, u16, (u32)x *y)                          \
    X(mul_wide_s16, "mul.wide.s16", "whh", s32, s16, s16, s16, (s32)x *y)                          \
    X(mul_wide_u32, "mul.wide.u32", "dww", u64, u32, u32, u32, (u64)x *y)                          \
    X(mul_wide_s32, "mul.wide.s32", "dww", s64, s32, s32, s32, (s64)x *y)                          \
    X(mad_wide_u32, "mad.wide.u32", "dwwd", u64, u32, u32, u64, (u64)x *y + w)                     \
    X(mad_wide_s32, "mad.wide.s32", "dwwd", u64, s32, s32, u64, (u64)((s64)x * y) + w)             \
    X(mad_wide_u16, "mad.wide.u16", "whhw", u32, u16, u16, u32, (u32)x *y + w)                     \
    X(mul_hi_u32, "mul.hi.u32", "www", u32, u32, u32, u32, (u32)((u64)x * y >> 32))                \
    X(mul_hi_s32, "mul.hi.s32", "www", s32, s32, s32, s32, (s32)((s64)x * y >> 32))                \
    X(mad_hi_u32, "mad.hi.u32", "wwww", u32, u32, u32, u32, (u32)((u64)x * y >> 32) + w)           \
    X(mul_hi_u64, "mul.hi.u64", "ddd", u64, u64, u64, u64, (u64)((u128)x * y >> 64))               \
    X(mul_hi_s64, "mul.hi.s64", "ddd", s64, s64, s64, s64, (s64)((s128)x * y >> 64))               \
    X(popc_b32, "popc.b32", "ww", u32, u32, u32, u32, (u32)__builtin_popcount(x))                  \
    X(popc_b64, "popc.b64", "wd", u32, u64, u64, u64, (u32)__builtin_popcountll(x))                \
    X(clz_b32, "clz.b32", "ww", u32, u32, u32, u32, x ? (u32)__builtin_clz(x) : 32)                \
    X(clz_b64, "clz.b64", "wd", u32, u64, u64, u64, x ? (u32)__builtin_clzll(x) : 64)              \
    X(brev_b32, "brev.b32", "ww", u32, u32, u32, u32, reversed(x))                                 \
    X(bfe_u32, "bfe.u32", "wwww", u32, u32, u32, u32, field(x, y, w, 0))                           \
    X(bfe_s32, "bfe.s32", "wwww", u32, u32, u32, u32, field(x, y, w, 1))                           \
    X(shf_l_wrap, "shf.l.wrap.b32", "wwww", u32, u32, u32, u32,                                    \
      (u32)(((u64)y << 32 | x) << (w & 31) >> 32))                                                 \
    X(shf_r_wrap, "shf.r.wrap.b32", "wwww", u32, u32, u32, u32,                                    \
      (u32)(((u64)y << 32 | x) >> (w & 31)))                                                       \
    X(shf_l_clamp, "shf.l.clamp.b32", "wwww", u32, u32, u32, u32,                                  \
      (u32)(((u64)y << 32 | x) << (w < 32 ? w : 32) >> 32))                                        \
    X(shf_r_clamp, "shf.r.clamp.b32", "wwww", u32, u32, u32, u32,                                  \
      (u32)(((u64)y << 32 | x) >> (w < 32 ? w : 32)))                                              \
    X(prmt_b32, "prmt.b32", "wwww", u32, u32, u32, u32, permute(x, y, w))                          \
    X(mov_f32, "mov.f32", "ww", u32, u32, u32, u32, x)                                             \
    X(mov_f64, "mov.f64", "dd", u64, u64, u64, u64, x)                                             \
    X(mov_f16, "mov.f16", "hh", u16, u16, u16, u16, x)                                             \
    FLOATS(X, , "", )                                                                              \
    FLOATS(X, _ftz, ".ftz", z)                                                                     \
    X(copysign_f32, "copysign.f32", "www", u32, u32, u32, u32,                                     \
      (y & 0x7fffffffu) | (x & 0x80000000u))                                                       \
    X(tanh_f32, "tanh.approx.f32", "ww", f32, f32, f32, f32, tanhf(x))                             \
    X(fma_rm_f32, "fma.rm.f32", "wwww", f32, f32, f32, f32, fma_toward(x, y, w, -INFINITY))        \
    X(fma_rp_f32, "fma.rp.f32", "wwww", f32, f32, f32, f32, fma_toward(x, y, w, INFINITY))         \
    X(fma_rz_f32, "fma.rz.f32", "wwww", f32, f32, f32, f32, fma_toward(x, y, w, 0))                \
    X(add_f64, "add.f64", "ddd", f64, f64, f64, f64, x + y)                                        \
    X(add_rn_f64, "add.rn.f64", "ddd", f64, f64, f64, f64, x + y)                                  \
    X(sub_f64, "sub.f64", "ddd", f64, f64, f64, f64, x - y)                                        \
    X(mul_f64, "mul.f64", "ddd", f64, f64, f64, f64, x *y)                                         \
    X(fma_f64, "fma.rn.f64", "dddd", f64, f64, f64, f64, fma(x, y, w))                             \
    X(div_f64, "div.rn.f64", "ddd", f64, f64, f64, f64, x / y)                                     \
    X(neg_f64, "neg.f64", "dd", f64, f64, f64, f64, -x)                                            \
    HALVES(X, u16, f16, f16_to, f16_of, F16)                                                       \
    HALVES(X, u16, bf16, bf16_to, bf16_of, BF16)                                                   \
    X(ex2_f16, "ex2.approx.f16", "hh", u16, u16, u16, u16, f16_of(exp2f(f16_to(x))))               \
    X(ex2_f16x2, "ex2.approx.f16x2", "ww", u32, u32, u32, u32,                                     \
      PAIR(f16_of, , exp2f(f16_to(LO(x))), exp2f(f16_to(HI(x)))))                                  \
    X(ex2_bf16, "ex2.approx.ftz.bf16", "hh", u16, u16, u16, u16, bf16_of(z(exp2f(z(bf16_to(x)))))) \
    X(ex2_bf16x2, "ex2.approx.ftz.bf16x2", "ww", u32, u32, u32, u32,                               \
      PAIR(bf16_of, , z(exp2f(z(bf16_to(LO(x))))), z(exp2f(z(bf16_to(HI(x)))))))                   \
    X(cvt_s64_s32, "cvt.s64.s32", "dw", s64, s32, s32, s32, x)                                     \
    X(cvt_u64_u32, "cvt.u64.u32", "dw", u64, u32, u32, u32, x)                                     \
    X(cvt_u32_u64, "cvt.u32.u64", "wd", u32, u64, u64, u64, (u32)x)                                \
    X(cvt_u32_u16, "cvt.u32.u16", "wh", u32, u16, u16, u16, x)                                     \
    X(cvt_u16_u32, "cvt.u16.u32", "hw", u16, u32, u32, u32, (u16)x)                                \
    X(cvt_f32_s32, "cvt.rn.f32.s32", "ww", f32, s32, s32, s32, (f32)x)                             \
    X(cvt_f32_u32, "cvt.rn.f32.u32", "ww", f32, u32, u32, u32, (f32)x)                             \
    X(cvt_sat_f32, "cvt.sat.f32.f32", "ww", f32, f32, f32, f32, saturate(x))                       \
    X(cvt_ftz_sat_f32, "cvt.ftz.sat.f32.f32", "ww", f32, f32, f32, f32, saturate(z(x)))            \
    X(cvta_to_global, "cvta.to.global.u64", "dd", u64, u64, u64, u64, x)                           \
    X(cvta_global, "cvta.global.u64", "dd", u64, u64, u64, u64, x)                                 \
    X(cvta_to_const, "cvta.to.const.u64", "dd", u64, u64, u64, u64, x)                             \
    X(cvta_const, "cvta.const.u64", "dd", u64, u64, u64, u64, x)                                   \
    X(cvta_to_shared, "cvta.to.shared.u64", "dd", u64, u64, u64, u64, x - WINDOW_SHARED)           \
    X(cvta_shared, "cvta.shared.u64", "dd", u64, u64, u64, u64, x + WINDOW_SHARED)                 \
    X(cvta_to_local, "cvta.to.local.u64", "dd", u64, u64, u64, u64, x - WINDOW_LOCAL)              \
    X(cvta_local, "cvta.local.u64", "dd", u64, u64, u64, u64, x + WINDOW_LOCAL)                    \
    X(cvta_to_param, "cvta.to.param.u64", "dd", u64, u64, u64, u64, x - WINDOW_PARAM)              \
    X(cvta_param, "cvta.param.u64", "dd", u64, u64, u64, u64, x + WINDOW_PARAM)

/* fma rounded downward, upward or toward zero: the neighbour where rounding to nearest went the
 * other way. */
static inline f32 fma_toward(f32 x, f32 y, f32 w, f32 toward)
{
    f32 f = fmaf(x, y, w);
    if (!isfinite(f)) return f;
    long double exact = (long double)x * y + w;
    int beyond = toward == 0  ? fabsl((long double)f) > fabsl(exact)
                 : toward > 0 ? f < exact
                              : f > exact;
    return beyond ? nextafterf(f, toward) : f;
}

#define DEFINE(name, spelling, sig, D, A, B, C, value)                                             \
    static void run_##name(struct warp *v, const struct insn *n, uint32_t mask)                    \
    {                                                                                              \
        D *d = place(v, n, 0);                                                                     \
        const A *a = place(v, n, 1);                                                               \
        const B *b = place(v, n, 2);                                                               \
        const C *c = place(v, n, 3);                                                               \
        D out[LANES];                                                                              \
        FOR_LANES                                                                                  \
        {                                                                                          \
            A x = a[i];                                                                            \
            B y = b[i];                                                                            \
            C w = c[i];                                                                            \
            (void)x, (void)y, (void)w;                                                             \
            out[i] = (D)(value);                                                                   \
        }                                                                                          \
        if (mask == ~0u)                                                                           \
            memcpy(d, out, sizeof out);                                                            \
        else                                                                                       \
            ACTIVE d[i] = out[i];                                                                  \
    }
OPS(DEFINE)

static void run_bfi_b32(struct warp *w, const struct insn *n, uint32_t mask)
{
    u32 *d = place(w, n, 0), *a = place(w, n, 1), *b = place(w, n, 2), *c = place(w, n, 3),
        *e = place(w, n, 4);
    ACTIVE d[i] = inserted(a[i], b[i], c[i], e[i]);
}

static void run_bfi_b64(struct warp *w, const struct insn *n, uint32_t mask)
{
    u64 *d = place(w, n, 0), *a = place(w, n, 1), *b = place(w, n, 2);
    u32 *c = place(w, n, 3), *e = place(w, n, 4);
    ACTIVE d[i] = inserted64(a[i], b[i], c[i], e[i]);
}

static void run_lop3(struct warp *w, const struct insn *n, uint32_t mask)
{
    u32 *d = place(w, n, 0), *a = place(w, n, 1), *b = place(w, n, 2), *c = place(w, n, 3),
        *e = place(w, n, 4);
    ACTIVE d[i] = logic3(a[i], b[i], c[i], e[i]);
}

#define ROW(name, spelling, sig, D, A, B, C, value) {spelling, sig, run_##name, CLASS_OTHER, 0},
const struct op arithmetic_ops[] = {OPS(ROW){"bfi.b32", "wwwww", run_bfi_b32, 0, 0},
                                    {"bfi.b64", "dddww", run_bfi_b64, 0, 0},
                                    {"lop3.b32", "wwwww", run_lop3, 0, 0}};
const size_t n_arithmetic_ops = sizeof arithmetic_ops / sizeof *arithmetic_ops;
