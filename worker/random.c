// SPDX-License-Identifier: Apache-2.0
#include "random.h"

#include <math.h>
#include <string.h>

/* ---- mt19937 (Matsumoto and Nishimura 1998) ---- */

void random_seed(struct random *r, uint64_t seed)
{
    r->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ r->state[i - 1] >> 30) + i;
    r->at = 624;
    r->has_next = 0;
    r->next = 0;
}

uint32_t random_u32(struct random *r)
{
    uint32_t *s = r->state;
    if (r->at == 624) {
        for (int i = 0; i < 624; i++) {
            uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % 624] & 0x7fffffffu);
            s[i] = s[(i + 397) % 624] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
        }
        r->at = 0;
    }
    uint32_t y = s[r->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static float uniform_f32(struct random *r)
{
    return (float)(random_u32(r) & 0xffffffu) * 0x1p-24f;
}

static double uniform_f64(struct random *r)
{
    uint64_t high = random_u32(r), both = high << 32 | random_u32(r);
    return (double)(both & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

/* ---- the functions of the blocks: Cephes' single-precision polynomials ---- */

static float bits_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t float_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* torch's build fuses these multiply-adds; fmaf rounds the same with and without the instruction.
 */
static float mul_add(float a, float b, float c)
{
    return fmaf(a, b, c);
}

static float log_block(float x)
{
    static const float p[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                              -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                              2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    if (x < 0x1p-126f) x = 0x1p-126f;
    float e = (float)((int)(float_bits(x) >> 23) - 0x7f) + 1;
    x = bits_float((float_bits(x) & 0x807fffffu) | 0x3f000000u);
    if (x < .707106781186547524f) {
        e -= 1;
        x = (x - 1) + x;
    } else {
        x -= 1;
    }
    float z = x * x, y = p[0];
    for (int i = 1; i < 9; i++)
        y = mul_add(y, x, p[i]);
    y = y * x;
    y = mul_add(y, z, e * -2.12194440e-4f);
    y = mul_add(-z, .5f, y);
    return mul_add(e, .693359375f, x + y);
}

static void sincos_block(float x, float *sine, float *cosine)
{
    int j = ((int)(x * 1.27323954473516f) + 1) & ~1;
    float y = (float)j;
    uint32_t sine_sign = (uint32_t)(j & 4) << 29, cosine_sign = (uint32_t)(~(j - 2) & 4) << 29;
    x = mul_add(y, -.78515625f, x);
    x = mul_add(y, -2.4187564849853515625e-4f, x);
    x = mul_add(y, -3.77489497744594108e-8f, x);
    float z = x * x;
    float c = 2.443315711809948e-5f;
    c = mul_add(c, z, -1.388731625493765e-3f);
    c = mul_add(c, z, 4.166664568298827e-2f);
    c = c * z;
    c = mul_add(c, z, -(z * .5f));
    c = c + 1;
    float s = -1.9515295891e-4f;
    s = mul_add(s, z, 8.3321608736e-3f);
    s = mul_add(s, z, -1.6666654611e-1f);
    s = s * z;
    s = mul_add(s, x, x);
    int swap = j & 2;
    *sine = bits_float(float_bits(swap ? c : s) ^ sine_sign);
    *cosine = bits_float(float_bits(swap ? s : c) ^ cosine_sign);
}

/* 16 uniform numbers in place to 16 normal ones: 8 radii, 8 angles. */
static void normal_block(float *x)
{
    for (int i = 0; i < 8; i++) {
        float radius = sqrtf(-2 * log_block(1 - x[i])), sine, cosine;
        sincos_block(6.283185307179586f * x[i + 8], &sine, &cosine);
        x[i] = radius * cosine;
        x[i + 8] = radius * sine;
    }
}

void random_normal(struct random *r, float *out, size_t count)
{
    if (count >= 16) {
        for (size_t i = 0; i < count; i++)
            out[i] = uniform_f32(r);
        for (size_t i = 0; i + 16 <= count; i += 16)
            normal_block(out + i);
        if (count % 16) { /* the last 16 are drawn anew */
            for (size_t i = count - 16; i < count; i++)
                out[i] = uniform_f32(r);
            normal_block(out + count - 16);
        }
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (r->has_next) {
            r->has_next = 0;
            out[i] = (float)r->next;
            continue;
        }
        double angle = 2 * M_PI * uniform_f64(r), radius = sqrt(-2 * log1p(-uniform_f64(r)));
        r->next = radius * sin(angle);
        r->has_next = 1;
        out[i] = (float)(radius * cos(angle));
    }
}
