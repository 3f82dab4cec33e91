/* launch.h - the CUDA kernels as C sees them.
 *
 * A launcher takes a struct that says all, and a stream (a cudaStream_t). It allocates nothing,
 * does not synchronise and may be captured in a graph. It returns 0, STEER_UNSUPPORTED for a head
 * size without a kernel, STEER_BAD_VALUE for what a kernel cannot take (each struct says what it
 * wants), or STEER_RENDER_FAILED when the runtime refuses the launch; the reason is then the
 * runtime's last error. What differs by job stands in device memory: guidance parameters, masks,
 * and the addresses of keys and values, so that a captured graph serves every job of its shape. */
#ifndef KERNELS_CUDA_LAUNCH_H
#define KERNELS_CUDA_LAUNCH_H
#include <stdint.h>

#include "guidance.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

enum cuda_element { CUDA_BF16, CUDA_F16 };

/* Rows of heads * D values in device memory, [B, S, heads * D], or of one value: a mask, [B, S]
 * f32. Image b begins at table[b], or where table is NULL at base + b * image_stride. */
struct cuda_rows {
    const void *base;
    const void *const *table; /* [B], itself in device memory */
    int64_t image_stride;     /* in values; 0: all images read the same */
    int64_t row_stride;       /* in values; a view of a wider tensor has more than heads * D */
};

/* One segment of keys. keys 0: empty, and nothing else is read. */
struct cuda_keys {
    struct cuda_rows k, v;
    struct cuda_rows mask; /* added to the logits; base and table NULL: none */
    int keys;
};

enum { CUDA_SHARED, CUDA_POSITIVE, CUDA_NEGATIVE, CUDA_SEGMENTS };

/* op_attention and op_guided_attention of compute.h in one. Plain attention: method GUIDANCE_NONE
 * and the positive segment alone; GUIDANCE_NONE with shared keys: one softmax over both.
 * NAG leaves Z+ in out and Z+ - Z- in difference, for cuda_nag: the difference of two numbers that
 * were rounded first would be mostly rounding, and phi multiplies it.
 * D is 40, 64, 72, 80, 128, 160 or 512. All addresses and row strides are multiples of 16 bytes
 * (masks, bias: of a float); scale is above 0. */
struct cuda_attention {
    enum cuda_element type; /* of q, k, v and the outputs */
    int batch, heads, head_size, queries;
    float scale;
    int causal;         /* query i sees the positive keys 0..i */
    struct cuda_rows q; /* [B, L, heads * D] */
    struct cuda_keys segment[CUDA_SEGMENTS];
    const float *bias;         /* [B or 1, L, keys, heads] on the positive keys; NULL: none */
    int64_t bias_image_stride; /* in values; 0: all images read the same */
    enum guidance_method method;
    enum guidance_variant variant;
    const float *params; /* [B, GUIDANCE_PARAMS]; not read by GUIDANCE_NONE */
    void *out;           /* dense [B, L, heads * D] */
    void *difference;    /* the same, written by GUIDANCE_NAG alone */
};
int cuda_attention(const struct cuda_attention *a, struct CUstream_st *stream);

/* NAG's end: out = beta min(R, tau) / R Zt + (1 - beta) Z+ with Zt = Z+ + phi (Z+ - Z-) and
 * R = norm1(Zt) / (norm1(Z+) + 1e-6), norms over the C channels of a token. All [B, L, C], dense;
 * C is a multiple of 8. out may be plus. */
struct cuda_nag {
    enum cuda_element type;
    int batch, queries, channels;
    const void *plus, *difference;
    const float *params; /* [B, GUIDANCE_PARAMS] */
    void *out;
};
int cuda_nag(const struct cuda_nag *a, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
