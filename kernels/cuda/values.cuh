/* values.cuh - W values side by side of a tensor of any type (pointwise.h), as floats.
 *
 * A kernel works on pieces of W values of a pixel: 8 where all but what every pixel reads alike is
 * 16-bit, so that an access is of 16 bytes; 4 where one is f32 (16 bytes, and 8 of the others: a
 * warp's are side by side either way, in whole sectors); 2 and 1 where addresses, strides or
 * channels are no multiple of those. Types are the same for all threads, so asking for them costs a
 * branch a piece, where a piece's time on its way from memory is worth a hundred instructions. */
#ifndef KERNELS_CUDA_VALUES_CUH
#define KERNELS_CUDA_VALUES_CUH
#include "activation.cuh"
#include "pointwise.h"

HOST_DEVICE int element_bytes(enum cuda_element type)
{
    return type == CUDA_F32 ? 4 : type == CUDA_U8 ? 1 : 2;
}

HOST_DEVICE bool tensor_there(const struct cuda_tensor &t)
{
    return t.rows.base || t.rows.table;
}

/* Channel 0 of pixel 0 of an image. */
DEVICE const char *tensor_image(const struct cuda_tensor &t, int image)
{
    return t.rows.table
               ? (const char *)global_load_pointer(t.rows.table + image)
               : (const char *)t.rows.base + image * t.rows.image_stride * element_bytes(t.type);
}

DEVICE const char *tensor_at(const struct cuda_tensor &t, int image, int64_t pixel, int channel)
{
    return tensor_image(t, image) + (pixel * t.rows.row_stride + channel) * element_bytes(t.type);
}

/* A piece as it lies in memory: two values to a word, or one. */
template <int W> struct piece {
    uint32_t x[W];
};

template <int W>
DEVICE struct piece<W> piece_load(const char *at, enum cuda_element type, bool on) {
    struct piece<W> p = {
    };
    bool wide = type == CUDA_F32;
    if constexpr (W == 8) {
        struct words4 w = global_load_16(at, on), more = {};
        if (wide) more = global_load_16(at + 16, on);
        p = {{w.x[0], w.x[1], w.x[2], w.x[3], more.x[0], more.x[1], more.x[2], more.x[3]}};
    } else if constexpr (W == 4) {
        if (wide) {
            struct words4 w = global_load_16(at, on);
            p = {{w.x[0], w.x[1], w.x[2], w.x[3]}};
        } else {
            struct words2 w = global_load_8(at, on);
            p = {{w.x[0], w.x[1]}};
        }
    } else if constexpr (W == 2) {
        if (wide) {
            struct words2 w = global_load_8(at, on);
            p = {{w.x[0], w.x[1]}};
        } else {
            p = {{global_load_4(at, on)}};
        }
    } else {
        p.x[0] = wide ? global_load_4(at, on) : global_load_2(at, on);
    }
    return p;
}

/* N pieces of one tensor. */
template <int W, int N>
DEVICE void pieces_values(float v[N][W], const struct piece<W> p[N], enum cuda_element type)
{
    constexpr int all = N * W;
    if (type == CUDA_F32)
#pragma unroll
        for (int i = 0; i < all; i++)
            v[i / W][i % W] = bits_float(p[i / W].x[i % W]);
    else if (type == CUDA_BF16)
#pragma unroll
        for (int i = 0; i < all; i++)
            v[i / W][i % W] = unpack<BF16>(p[i / W].x[i % W / 2], i % W % 2);
    else
#pragma unroll
        for (int i = 0; i < all; i++)
            v[i / W][i % W] = unpack<F16>(p[i / W].x[i % W / 2], i % W % 2);
}

template <int W>
DEVICE void values_load(float v[W], const char *at, enum cuda_element type, bool on)
{
    struct piece<W> raw = piece_load<W>(at, type, on);
    pieces_values<W, 1>((float(*)[W])v, &raw, type);
}

template <enum element E, int W> DEVICE void narrow_store(char *at, const float v[W], bool on)
{
    uint32_t x[W < 2 ? 1 : W / 2];
#pragma unroll
    for (int i = 0; i < W; i += 2)
        x[i / 2] = pack<E>(v[i], v[i + 1 < W ? i + 1 : i]);
    if constexpr (W == 8)
        global_store_16(at, {{x[0], x[1], x[2], x[3]}}, on);
    else if constexpr (W == 4)
        global_store_8(at, {{x[0], x[1]}}, on);
    else if constexpr (W == 2)
        global_store_4(at, x[0], on);
    else
        global_store_2(at, x[0], on);
}

template <int W> DEVICE void floats_store(char *at, const float v[W], bool on)
{
    if constexpr (W >= 4)
#pragma unroll
        for (int i = 0; i < W; i += 4)
            global_store_16(at + 4 * i,
                            {{float_bits(v[i]), float_bits(v[i + 1]), float_bits(v[i + 2]),
                              float_bits(v[i + 3])}},
                            on);
    else if constexpr (W == 2)
        global_store_8(at, {{float_bits(v[0]), float_bits(v[1])}}, on);
    else
        global_store_4(at, float_bits(v[0]), on);
}

/* Values of 0 to 255, ties to even. */
template <int W> DEVICE void bytes_store(char *at, const float v[W], bool on)
{
    uint32_t x[W < 4 ? 1 : W / 4] = {};
#pragma unroll
    for (int i = 0; i < W; i++)
        x[i / 4] |= (uint32_t)(int)rintf(v[i]) << i % 4 * 8;
    if constexpr (W == 8)
        global_store_8(at, {{x[0], x[1]}}, on);
    else if constexpr (W == 4)
        global_store_4(at, x[0], on);
    else if constexpr (W == 2)
        global_store_2(at, x[0], on);
    else
        global_store_1(at, x[0], on);
}

/* To f32, bf16 or f16. */
template <int W>
DEVICE void values_store(char *at, enum cuda_element type, const float v[W], bool on)
{
    if (type == CUDA_BF16)
        narrow_store<BF16, W>(at, v, on);
    else if (type == CUDA_F16)
        narrow_store<F16, W>(at, v, on);
    else
        floats_store<W>(at, v, on);
}

/* ---- for launchers ---- */

/* Of a piece of w values: what its address is a multiple of. */
HOST_DEVICE int access_bytes(int w, enum cuda_element type)
{
    int bytes = w * element_bytes(type);
    return bytes < 16 ? bytes : 16;
}

/* Whether pieces of w values of t are aligned. */
HOST_DEVICE bool tensor_takes(const struct cuda_tensor &t, int w)
{
    return !tensor_there(t) || ((uintptr_t)t.rows.base % (unsigned)access_bytes(w, t.type) == 0 &&
                                t.rows.image_stride % w == 0 && t.rows.row_stride % w == 0);
}

/* The largest w of 8, 4, 2, 1 that divides `channels` and that all tensors take. */
HOST_DEVICE int piece_width(const struct cuda_tensor *const *t, int count, int64_t channels)
{
    int w = 8;
    for (int i = 0; i < count; i++)
        if (tensor_there(*t[i]) && t[i]->type == CUDA_F32 && t[i]->rows.row_stride) w = 4;
    for (; w > 1; w /= 2) {
        bool fits = channels % w == 0;
        for (int i = 0; i < count; i++)
            fits = fits && tensor_takes(*t[i], w);
        if (fits) break;
    }
    return w;
}

#endif
