/* vector.h - 16 floats at a time, by the compiler's vector types, for whatever instruction set the
 * file is compiled for. Included by kernels only. */
#ifndef KERNELS_CPU_VECTOR_H
#define KERNELS_CPU_VECTOR_H
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "../plan.h"
#include "cpu.h"

#define LANES 16
/* One name per instruction set: ISA(norm) is norm_avx512. */
#define ISA_JOIN(a, b) a##_##b
#define ISA_NAME(a, b) ISA_JOIN(a, b)
#define ISA(name)      ISA_NAME(name, CPU_ISA)
#define ISA_TEXT_OF(x) #x
#define ISA_TEXT_IN(x) ISA_TEXT_OF(x)
#define ISA_TEXT       ISA_TEXT_IN(CPU_ISA)
#define INLINE         static inline __attribute__((always_inline, unused))

typedef float v16 __attribute__((vector_size(64)));
typedef float v16_any __attribute__((vector_size(64), aligned(4), may_alias));
typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32), aligned(2), may_alias));

int ISA(attention)(struct plan *p, struct step *s);
int ISA(int8)(struct plan *p, struct step *s);
int ISA(group_norm)(struct plan *p, struct step *s);
int ISA(layer_norm)(struct plan *p, struct step *s);
int ISA(rms_norm)(struct plan *p, struct step *s);
int ISA(elementwise)(struct plan *p, struct step *s);
int ISA(geglu)(struct plan *p, struct step *s);
int ISA(concat)(struct plan *p, struct step *s);
int ISA(resize)(struct plan *p, struct step *s);
double ISA(fma_peak)(int threads);

/* Where 16 channels (or the last few) of a pixel begin, in either layout; elements. */
INLINE size_t block_at(const struct place *at, int block, size_t pixel)
{
    size_t pixels = (size_t)at->shape.h * (size_t)at->shape.w;
    if (at->layout == LAYOUT_BLOCKED) return ((size_t)block * pixels + pixel) * LANES;
    return pixel * (size_t)at->pitch + (size_t)block * LANES;
}

INLINE v16 splat(float x)
{
    return x - (v16){0};
}

/* The same four bytes in each lane, whatever they mean. */
INLINE v16 splat_bits(const float *p)
{
    uint32_t bits;
    memcpy(&bits, p, sizeof bits);
    return (v16)(bits + (u16){0});
}

INLINE v16 load(const float *p)
{
    return *(const v16_any *)p;
}

INLINE void store(float *p, v16 x)
{
    *(v16_any *)p = x;
}

INLINE v16 load_bf16(const uint16_t *p)
{
    u16 wide = __builtin_convertvector(*(const h16 *)p, u16) << 16;
    return (v16)wide;
}

/* To nearest, ties to even; NaN stays NaN. */
INLINE void store_bf16(uint16_t *p, v16 x)
{
    u16 bits = (u16)x;
    u16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    u16 nan = (u16)(x != x);
    rounded = (rounded & ~nan) | (nan & 0x7fc0);
    *(h16 *)p = __builtin_convertvector(rounded, h16);
}

/* count < LANES values, zeros after them. */
INLINE v16 load_part(const void *p, enum compute_type type, int count)
{
    float f[LANES] = {0};
    if (type == TYPE_BF16) {
        uint16_t h[LANES] = {0};
        memcpy(h, p, (size_t)count * sizeof *h);
        return load_bf16(h);
    }
    memcpy(f, p, (size_t)count * sizeof *f);
    return load(f);
}

INLINE void store_part(void *p, enum compute_type type, v16 x, int count)
{
    if (type == TYPE_BF16) {
        uint16_t h[LANES];
        store_bf16(h, x);
        memcpy(p, h, (size_t)count * sizeof *h);
    } else {
        float f[LANES];
        store(f, x);
        memcpy(p, f, (size_t)count * sizeof *f);
    }
}

INLINE v16 load_typed(const void *p, enum compute_type type, int count)
{
    if (count < LANES) return load_part(p, type, count);
    return type == TYPE_BF16 ? load_bf16(p) : load(p);
}

INLINE void store_typed(void *p, enum compute_type type, v16 x, int count)
{
    if (count < LANES)
        store_part(p, type, x, count);
    else if (type == TYPE_BF16)
        store_bf16(p, x);
    else
        store(p, x);
}

INLINE size_t bytes_of(enum compute_type type)
{
    return type == TYPE_BF16 ? sizeof(uint16_t) : sizeof(float);
}

/* 16 values of a row from its i-th on, or as many as are left of its length. */
INLINE v16 load_row(const char *row, int i, enum compute_type type, int length)
{
    int n = length - i < LANES ? length - i : LANES;
    return load_typed(row + (size_t)i * bytes_of(type), type, n);
}

INLINE void store_row(char *row, int i, enum compute_type type, v16 x, int length)
{
    int n = length - i < LANES ? length - i : LANES;
    store_typed(row + (size_t)i * bytes_of(type), type, x, n);
}

/* 8 values (or count, when fewer), each of them twice. */
INLINE v16 load_pairs(const float *p, int count)
{
    float few[LANES / 2] = {0};
    if (count < LANES / 2) {
        memcpy(few, p, (size_t)count * sizeof *few);
        p = few;
    }
    v8 x = *(const v8 *)p;
    return __builtin_shufflevector(x, x, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
}

INLINE v16 pick(i16 mask, v16 yes, v16 no)
{
    return (v16)(((i16)yes & mask) | ((i16)no & ~mask));
}

INLINE v16 vmax(v16 a, v16 b)
{
#ifdef __AVX512F__
    return (v16)_mm512_max_ps((__m512)a, (__m512)b); /* the same, in one instruction */
#else
    return pick(a > b, a, b);
#endif
}

INLINE v16 vmin(v16 a, v16 b)
{
    return pick(a < b, a, b);
}

/* Lanes exchanged with those 8, 4, 2 or 1 away: what a reduction is made of. */
INLINE v16 lanes_8(v16 x)
{
    return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}
INLINE v16 lanes_4(v16 x)
{
    return __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
}
INLINE v16 lanes_2(v16 x)
{
    return __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}
INLINE v16 lanes_1(v16 x)
{
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

/* 16 x 16 elements of four bytes: squares of 8, 4, 2 and 1 lanes of two rows change places. */
INLINE void transpose(v16 x[LANES])
{
    for (int i = 0; i < 8; i++) {
        v16 a = x[i], b = x[i + 8];
        x[i] =
            __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        x[i + 8] = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28,
                                           29, 30, 31);
    }
    for (int k = 0; k < 8; k++) {
        int i = k / 4 * 8 + k % 4;
        v16 a = x[i], b = x[i + 4];
        x[i] =
            __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
        x[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29,
                                           30, 31);
    }
    for (int k = 0; k < 8; k++) {
        int i = k / 2 * 4 + k % 2;
        v16 a = x[i], b = x[i + 2];
        x[i] =
            __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
        x[i + 2] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15,
                                           30, 31);
    }
    for (int i = 0; i < LANES; i += 2) {
        v16 a = x[i], b = x[i + 1];
        x[i] = __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14,
                                       30);
        x[i + 1] = __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29,
                                           15, 31);
    }
}

INLINE float sum_lanes(v16 x)
{
    x += lanes_8(x);
    x += lanes_4(x);
    x += lanes_2(x);
    x += lanes_1(x);
    return x[0];
}

INLINE float max_lanes(v16 x)
{
    x = vmax(x, lanes_8(x));
    x = vmax(x, lanes_4(x));
    x = vmax(x, lanes_2(x));
    x = vmax(x, lanes_1(x));
    return x[0];
}

/* e^x to 2 units in the last place: x = n ln 2 + r, a polynomial for e^r (Cephes' coefficients),
 * 2^n by the exponent bits. 0 below -87.3, so that a masked logit weighs nothing. */
INLINE v16 vexp(v16 x)
{
    v16 low = splat(-87.33654f), high = splat(88.37626f);
    i16 tiny = x < low;
    v16 clamped = vmin(vmax(x, low), high);
    v16 magic = splat(12582912.f); /* 1.5 * 2^23: adding it rounds to an integer */
    v16 n = (clamped * 1.44269504f + magic) - magic;
    v16 r = clamped - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    v16 y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.f;
    i16 exponent = (__builtin_convertvector(n, i16) + 127) << 23;
    y = y * (v16)exponent;
    return pick(tiny, splat(0), y);
}

#ifdef __AVX512F__
/* e^x to 4e-6 (a fit of 2^r by Chebyshev polynomials), for what is rounded to bf16 next: a third of
 * vexp's instructions. 0 for -INFINITY. */
INLINE v16 vexp_near(v16 x)
{
    __m512 t = _mm512_mul_ps((__m512)x, _mm512_set1_ps(1.44269504f));
    t = _mm512_max_ps(t, _mm512_set1_ps(-150)); /* 2^-150 is 0, and -INFINITY has no remainder */
    __m512 n = _mm512_roundscale_ps(t, 8);      /* to nearest, silently */
    v16 r = (v16)_mm512_sub_ps(t, n);
    v16 y = splat(0.00956051021f);
    y = y * r + 0.0559170392f;
    y = y * r + 0.240249811f;
    y = y * r + 0.693121968f;
    y = y * r + 0.999999191f;
    return (v16)_mm512_scalef_ps((__m512)y, n);
}
#endif

INLINE v16 vsilu(v16 x)
{
    return x / (vexp(-x) + 1.f);
}

/* Abramowitz and Stegun 7.1.26, to 1.5e-7. */
INLINE v16 verf(v16 x)
{
    i16 negative = x < splat(0);
    v16 a = pick(negative, -x, x);
    v16 t = 1.f / (a * 0.3275911f + 1.f);
    v16 y = splat(1.061405429f);
    y = y * t - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    y = 1.f - y * t * vexp(-(a * a));
    return pick(negative, -y, y);
}

INLINE v16 vgelu(v16 x)
{
    return x * 0.5f * (verf(x * 0.70710678f) + 1.f);
}

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

/* unit 2: of pairs of bf16, both products to the same sum. */
INLINE v16 multiply_add(v16 sum, v16 x, v16 y, const int unit)
{
#ifdef __AVX512BF16__
    if (unit == 2) return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#endif
    (void)unit;
    return sum + x * y;
}

#endif
