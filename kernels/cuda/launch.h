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
#include <stddef.h>
#include <stdint.h>

#include "activation.h"
#include "guidance.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

enum cuda_element { CUDA_BF16, CUDA_F16, CUDA_F32, CUDA_U8 }; /* what matrices read comes first */

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
    enum cuda_element type; /* of q, k, v and the outputs: CUDA_BF16 or CUDA_F16 */
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

/* Channels that a convolution's weights are packed by: [ceil(in / 32), size, size, out, 32], that
 * is packed[((block * size * size + tap) * out + o) * 32 + i] = torch[o][block * 32 + i][tap] with
 * zeros for channels from `in` on. */
enum { CUDA_CONV_BLOCK = 32 };
/* Values of the packed form. */
size_t cuda_conv_packed(int out, int in, int size);
/* Packs torch's [out, in, size, size] of bf16 or f16, on the host. */
void cuda_conv_pack(uint16_t *packed, const uint16_t *torch, int out, int in, int size);

/* A 3x3 convolution with padding 1 on an image of nearest-doubled size sees each pixel twice or
 * four times over: to an output of one row and column parity it is a 2x2 convolution on the image
 * as it is, whose weights are sums, in 4/9 of the multiplications. Makes these from torch's [out,
 * in, 3, 3]: four of [out, in, 2, 2], of row parity 0 and columns 0, 1, then of row parity 1. To be
 * rounded and packed one after another (size 2) for `doubled`. */
void cuda_conv_double(float *quarters, const float *torch, int out, int in);

/* The rectangle that a block computes; every one gives the same bytes. `thin` has 16 channels and
 * `small` 64x64, where the input's channels are no multiple of 8 or there are few blocks. */
enum cuda_tile { CUDA_TILE_AUTO, CUDA_TILE_WIDE, CUDA_TILE_SMALL, CUDA_TILE_THIN };

/* op_conv of compute.h with what stands around it:
 *   out = act(conv(up(in)) + bias + per_image + residual)
 * Channels last; a pixel's channels are dense, a row's pixels `stride` values apart, rows dense.
 * What lies outside of the image is zeros, on the far side too: out_h and out_w decide how much.
 *
 * Bands: `in` has the rows in_first .. in_first + in_rows - 1 of the image, and the rows out_first
 * .. out_first + out_rows - 1 of the output are made, the first of them at `out` (`residual` the
 * same). The rows that those need must be there.
 *
 * A matrix product [B, M, in] x [out, in] is a convolution with in_h = out_h = 1, in_w = out_w = M,
 * size 1 and weight_stride = in, so a linear's weights are read as they are.
 *
 * in: any alignment of 2 bytes; multiples of 16 bytes in address, strides and channels are much
 * faster. out and residual: the same with 4 values. weight: 16 bytes. */
struct cuda_conv {
    enum cuda_element type; /* of in, weight, per_image and residual: CUDA_BF16 or CUDA_F16 */
    int batch;
    int in_h, in_w, in_c;
    int up_h, up_w; /* the image is resized so first, op_resize's way; 0: it is not */
    int out_h, out_w, out_c;
    int size, stride, padding;
    int doubled; /* up_h, up_w are twice in_h, in_w, and weight is cuda_conv_double's; bands are
                    even */
    int in_first, in_rows, out_first, out_rows;
    const void *in; /* [B, in_rows, in_w, in_c] */
    int64_t in_stride, in_image_stride;
    const void *weight;    /* packed; or with size 1 [out, in] */
    int64_t weight_stride; /* 0: packed; values between rows, a multiple of 8 */
    const float *bias;     /* [out]; NULL: none */
    const void *per_image; /* [B, out]; NULL: none */
    int64_t per_image_stride;
    const void *residual; /* as out; NULL: none. It may be out where that is of `type`. */
    int64_t residual_stride, residual_image_stride;
    enum activation act;
    enum cuda_element out_type; /* as type, or CUDA_F32 */
    void *out;                  /* [B, out_rows, out_w, out_c] */
    int64_t out_stride, out_image_stride;
    void *workspace; /* cuda_conv_workspace bytes, 16-byte aligned */
    enum cuda_tile tile;
};
/* Small images do not fill a device: their sums are split, by a rule that knows one image alone
 * (not the batch, nor the band), and the parts are added in their order. Bytes for the parts of a
 * struct that cuda_conv would take. */
size_t cuda_conv_workspace(const struct cuda_conv *c);
int cuda_conv(const struct cuda_conv *c, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
