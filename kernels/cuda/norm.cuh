/* norm.cuh - layer norm and RMS norm with what follows them, and the rotation of queries and keys:
 * rows (a pixel, or a head of one) held in registers, so that each value is read once.
 *
 * A row of n pieces has `lanes` threads, a power of two of at most 1024; each holds up to
 * NORM_PIECES pieces, `lanes` apart. The mean's rounding is taken out again (`rest`), so a mean far
 * above the deviation costs no digits. */
#ifndef KERNELS_CUDA_NORM_CUH
#define KERNELS_CUDA_NORM_CUH
#include "values.cuh"

enum { NORM_PIECES = 4, NORM_THREADS_MAX = 1024, NORM_THREADS = 128 };

struct norm_launch {
    struct cuda_norm a;
    int threads, lanes; /* of a block, of a row */
};

/* x summed over the `lanes` threads of a row, in one order for all of them. at: a word a warp of
 * shared memory that no other sum uses. */
DEVICE float lanes_sum(float x, int lanes, uint32_t at)
{
    int warp = thread_index() / 32, warps = lanes / 32;
    for (int mask = 1; mask < 32 && mask < lanes; mask *= 2)
        x += shuffle_xor(x, mask);
    if (warps <= 1) return x;
    if (thread_index() % 32 == 0) shared_store_4(at + warp * 4, float_bits(x));
    block_sync();
    x = 0;
    for (int i = warp / warps * warps, end = i + warps; i < end; i++)
        x += bits_float(shared_load_4(at + i * 4));
    return x;
}

/* v less what is left of the mean, times `inverse`, times scale plus shift: four channels at a
 * time, so that few of their numbers are in registers. */
template <int W>
DEVICE void row_scale(float v[W], const struct cuda_norm &a, int image, int channel, float rest,
                      float inverse, bool on)
{
    constexpr int part = W < 4 ? W : 4;
#pragma unroll
    for (int first = 0; first < W; first += part) {
        float scale[part], shift[part] = {};
        int c = channel + first;
#pragma unroll
        for (int i = 0; i < part; i++)
            v[first + i] = (v[first + i] - rest) * inverse;
        if (!tensor_there(a.scale)) continue;
        values_load<part>(scale, tensor_at(a.scale, image, 0, c), a.scale.type, on);
        if (tensor_there(a.shift))
            values_load<part>(shift, tensor_at(a.shift, image, 0, c), a.shift.type, on);
#pragma unroll
        for (int i = 0; i < part; i++)
            v[first + i] = fmaf(v[first + i], a.more + scale[i], shift[i]);
    }
}

/* Pairs of channels turned by their angles: D / 2 cosines, then the sines. */
template <int W>
DEVICE void row_turn(float v[W], const struct cuda_norm &a, int image, uint32_t pixel, int channel,
                     bool on)
{
    constexpr int pairs = W / 2;
    float cosine[pairs], sine[pairs];
    const char *angles = tensor_at(a.table, image, pixel, channel / 2);
    values_load<pairs>(cosine, angles, CUDA_F32, on);
    values_load<pairs>(sine, angles + a.channels / 2 * 4, CUDA_F32, on);
#pragma unroll
    for (int i = 0; i < pairs; i++) {
        float even = v[2 * i], odd = v[2 * i + 1];
        v[2 * i] = fmaf(even, cosine[i], -(odd * sine[i]));
        v[2 * i + 1] = fmaf(odd, cosine[i], even * sine[i]);
    }
}

/* Grid: x blocks of rows, z images. */
template <int W> DEVICE void norm(const struct norm_launch &l)
{
    const struct cuda_norm &a = l.a;
    int lane = thread_index() % l.lanes, image = (int)block_index().z, pieces = a.channels / W;
    uint32_t row =
        block_index().x * (uint32_t)(l.threads / l.lanes) + (uint32_t)(thread_index() / l.lanes);
    uint32_t pixel = row / (uint32_t)a.heads;
    int first = (int)(row % (uint32_t)a.heads) * a.channels; /* channel of the pixel */
    bool there = pixel < a.pixels;
    const char *x = tensor_at(a.x, image, pixel, first);
    char *y = (char *)tensor_at(a.out, image, pixel, first);
    struct piece<W> raw[NORM_PIECES];
    float v[NORM_PIECES][W], sum = 0, square = 0, rest = 0, inverse = 1;
#pragma unroll
    for (int i = 0; i < NORM_PIECES; i++) {
        int p = lane + i * l.lanes;
        raw[i] = piece_load<W>(x + p * W * element_bytes(a.x.type), a.x.type, there && p < pieces);
    }
    pieces_values<W, NORM_PIECES>(v, raw, a.x.type); /* zeros past the row's end */
#pragma unroll
    for (int i = 0; i < NORM_PIECES * W; i++)
        sum += v[i / W][i % W];
    if (a.kind != CUDA_NORM_NONE) {
        bool centred = a.kind == CUDA_NORM_LAYER;
        float mean = centred ? lanes_sum(sum, l.lanes, shared_base()) / (float)a.channels : 0;
#pragma unroll
        for (int i = 0; i < NORM_PIECES; i++)
#pragma unroll
            for (int k = 0; k < W; k++) {
                v[i][k] = lane + i * l.lanes < pieces ? v[i][k] - mean : 0;
                rest += v[i][k];
                square = fmaf(v[i][k], v[i][k], square);
            }
        square = lanes_sum(square, l.lanes, shared_base() + 128) / (float)a.channels;
        rest = centred ? lanes_sum(rest, l.lanes, shared_base() + 256) / (float)a.channels : 0;
        inverse = 1 / sqrtf(fmaxf(square - rest * rest, 0) + a.eps);
    }
#pragma unroll
    for (int i = 0; i < NORM_PIECES; i++) {
        int p = lane + i * l.lanes;
        bool on = there && p < pieces;
        if (i * l.lanes >= pieces) break;
        row_scale<W>(v[i], a, image, p * W, rest, inverse, on);
        if constexpr (W > 1)
            if (tensor_there(a.table)) row_turn<W>(v[i], a, image, pixel, p * W, on);
        values_store<W>(y + p * W * element_bytes(a.out.type), a.out.type, v[i], on);
    }
}

#endif
