/* nag.cuh - NAG's end (launch.h): a warp a token, which is read twice and summed in one order. */
#ifndef KERNELS_CUDA_NAG_CUH
#define KERNELS_CUDA_NAG_CUH
#include "launch.h"
#include "primitives.cuh"

enum { NAG_THREADS = 128, NAG_TOKENS = NAG_THREADS / 32 };

/* Eight channels of Z+ and of Zt. */
template <enum element E>
DEVICE void nag_channels(const struct cuda_nag &a, int64_t at, bool on, float phi, float plus[8],
                         float extrapolated[8])
{
    struct words4 p = global_load_16((const char *)a.plus + at * 2, on);
    struct words4 d = global_load_16((const char *)a.difference + at * 2, on);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        plus[i] = unpack<E>(p.x[i / 2], i % 2);
        extrapolated[i] = fmaf(phi, unpack<E>(d.x[i / 2], i % 2), plus[i]);
    }
}

/* Grid: x blocks of tokens, z images. */
template <enum element E> DEVICE void nag(const struct cuda_nag &a)
{
    int lane = thread_index() % 32, image = (int)block_index().z;
    int token = (int)block_index().x * NAG_TOKENS + thread_index() / 32;
    const float *params = a.params + image * GUIDANCE_PARAMS;
    float phi = global_load_float(params + GUIDANCE_PHI);
    float tau = global_load_float(params + GUIDANCE_TAU);
    float beta = global_load_float(params + GUIDANCE_BETA);
    int64_t row = ((int64_t)image * a.queries + token) * a.channels;
    float norm_t = 0, norm_p = 0, plus[8], extrapolated[8];
    for (int c = 0; c < a.channels; c += 256) {
        bool on = token < a.queries && c + lane * 8 < a.channels;
        nag_channels<E>(a, row + c + lane * 8, on, phi, plus, extrapolated);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            norm_t += fabsf(extrapolated[i]);
            norm_p += fabsf(plus[i]);
        }
    }
    for (int mask = 1; mask < 32; mask *= 2) {
        norm_t += shuffle_xor(norm_t, mask);
        norm_p += shuffle_xor(norm_p, mask);
    }
    float ratio = norm_t / (norm_p + 1e-6f);
    float t = beta * (ratio > tau ? tau / ratio : 1), p = 1 - beta;
    for (int c = 0; c < a.channels; c += 256) {
        bool on = token < a.queries && c + lane * 8 < a.channels;
        nag_channels<E>(a, row + c + lane * 8, on, phi, plus, extrapolated);
        struct words4 y;
#pragma unroll
        for (int i = 0; i < 4; i++)
            y.x[i] = pack<E>(fmaf(t, extrapolated[2 * i], p * plus[2 * i]),
                             fmaf(t, extrapolated[2 * i + 1], p * plus[2 * i + 1]));
        global_store_16((char *)a.out + (row + c + lane * 8) * 2, y, on);
    }
}

#endif
