/* half.h - the 16-bit floating-point types, each result rounded once. */
#ifndef GPU_HALF_H
#define GPU_HALF_H
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float f16_to(uint16_t h)
{
    return _cvtsh_ss(h);
}

static inline float bf16_to(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t f16_of(float f)
{
    return f == f ? _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT) : 0x7fff;
}

static inline uint16_t bf16_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return f == f ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fff;
}

/* To float so that rounding again, to 16 bits, equals rounding once: what is inexact ends in an odd
 * bit. */
static inline float odd_float(double d)
{
    float f = (float)d;
    if ((double)f == d || f != f || isinf(d)) return f;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (!(bits & 1)) bits = fabs((double)f) > fabs(d) ? bits - 1 : bits + 1;
    memcpy(&f, &bits, 4);
    return f;
}

/* a * b + c of 16-bit values: the product is exact in double, the sum ends in an odd bit where it
 * is not. */
static inline float odd_fma(float a, float b, float c)
{
    double p = (double)a * b, s = p + c;
    if (!isfinite(s)) return (float)s;
    double rest = s - p, lost = (p - (s - rest)) + (c - rest);
    if (lost != 0) {
        uint64_t bits;
        memcpy(&bits, &s, 8);
        if (!(bits & 1)) bits += (lost > 0) == (s > 0) ? 1 : -1;
        memcpy(&s, &bits, 8);
    }
    return odd_float(s);
}
#endif
