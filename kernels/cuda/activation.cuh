/* activation.cuh - enum activation on the device. */
#ifndef KERNELS_CUDA_ACTIVATION_CUH
#define KERNELS_CUDA_ACTIVATION_CUH
#include "activation.h"
#include "primitives.cuh"

#define LOG2_E 1.4426950408889634f

/* 1 / (1 + e^-x) */
DEVICE float sigmoid(float x)
{
    return reciprocal_approx(1 + exp2_approx(-LOG2_E * x));
}

/* Where 1 - 2 / (e^2x + 1) would lose x's digits, its series. */
DEVICE float hyperbolic_tangent(float x)
{
    float s = x * x, near = fmaf(x * s, fmaf(s, 2.f / 15, -1.f / 3), x);
    return s < 0.0025f ? near : fmaf(-2, sigmoid(-2 * x), 1);
}

/* x Phi(x). By Abramowitz and Stegun 7.1.26 (to 1.5e-7), erfc(a) = P(t) e^(-a^2) of a = |x| /
 * sqrt(2); as h = x erfc(a) / 2 nothing cancels where x is below 0. */
DEVICE float gelu(float x)
{
    float a = fabsf(x) * 0.70710678f, t = reciprocal_approx(fmaf(0.3275911f, a, 1));
    float y = fmaf(1.061405429f, t, -1.453152027f);
    y = fmaf(y, t, 1.421413741f);
    y = fmaf(y, t, -0.284496736f);
    y = fmaf(y, t, 0.254829592f);
    float h = 0.5f * x * y * t * exp2_approx(-LOG2_E * a * a);
    return x < 0 ? h : x - h;
}

template <int W> DEVICE void activate(float v[W], enum activation act)
{
#pragma unroll
    for (int i = 0; i < W; i++) {
        float x = v[i];
        switch (act) {
        case ACT_NONE: break;
        case ACT_SILU: v[i] = x * sigmoid(x); break;
        case ACT_GELU: v[i] = gelu(x); break;
        case ACT_GELU_TANH: /* 1 + tanh(u) is 2 sigmoid(2u) */
            v[i] = x * sigmoid(1.5957691f * fmaf(0.044715f * x * x, x, x));
            break;
        case ACT_QUICK_GELU: v[i] = x * sigmoid(1.702f * x); break;
        case ACT_RELU: v[i] = x > 0 ? x : 0; break;
        case ACT_TANH: v[i] = hyperbolic_tangent(x); break;
        }
    }
}

#endif
