/* conv.cuh - convolutions and matrix products as implicit GEMM on mma.sync, channels last.
 *
 * A block computes a rectangle of output pixels for a range of output channels. Rows of A are
 * pixels, columns of B are channels, and the sum runs over blocks of 32 input channels and, within
 * each, over the taps of the kernel. One step is one tap of one block.
 *
 * A is not gathered tap by tap: the patch of the input that the rectangle's windows cover is
 * brought once for each block of channels, and every tap reads it at an offset of its own. A 3x3
 * kernel so moves 1.4 times the pixels it makes instead of 9 times. Zero padding, nearest
 * up-sampling and the rows of a band are a table, made once, of where each place of the patch comes
 * from.
 *
 * Invariants:
 *   1. Copies lead by STAGES - 1 steps. Weights have STAGES tiles in a ring, patches as many as can
 *      be alive then: 1 + (STAGES - 1) / taps, rounded up. The barrier at the head of a step says
 *      that all have read what this step's copies overwrite.
 *   2. A row of 32 values is an odd number of 16-byte pieces long, and a rectangle is a multiple of
 *      8 pixels wide, so that ldmatrix meets each bank once. With a stride, a patch's row holds the
 *      columns 0, s, 2s .. first, then 1, s + 1 ..: neighbours for a tap are neighbours there.
 *   3. The order in which one output is summed depends on the channels and taps alone; where its
 *      tile begins and how large it is does not matter. So images of a batch, bands and tile shapes
 *      agree to the bit. `splits` does change it, and follows from the shape of one image. */
#ifndef KERNELS_CUDA_CONV_CUH
#define KERNELS_CUDA_CONV_CUH
#include "activation.cuh"
#include "launch.h"
#include "primitives.cuh"

enum {
    CONV_THREADS = 128,
    CONV_STAGES = 3,
    CONV_DEPTH = CUDA_CONV_BLOCK, /* channels a step */
    CONV_PIECES = CONV_DEPTH / 8,
    CONV_ROW = (CONV_PIECES | 1) * 16, /* bytes in shared memory */
    CONV_JOIN_THREADS = 256,
};

/* DOWN x ACROSS warps, each with R times 16 pixels and C times 8 channels. */
template <int DOWN_, int ACROSS_, int R_, int C_> struct conv_shape {
    static_assert(32 * DOWN_ * ACROSS_ == CONV_THREADS, "threads");
    static_assert(C_ % 2 == 0, "matrix_load_4 brings two times 8 channels");
    static constexpr int DOWN = DOWN_, ACROSS = ACROSS_, R = R_, C = C_;
    static constexpr int pixels = DOWN * R * 16, channels = ACROSS * C * 8;
    static constexpr int weight_bytes = channels * CONV_ROW; /* of a stage */
    static constexpr int sum_stride =
        channels * 4 + 32; /* bytes; 8-byte stores meet no bank twice */
};

/* What the launcher makes of its struct. Of a doubled image, size is 2 and the grid of pixels is
 * that of one quarter of the output: the pixels of one row and column parity. */
struct conv_plan {
    struct cuda_conv c;
    int tile_bits;                 /* a rectangle is 1 << tile_bits pixels wide */
    int step, first, rows, width;  /* of the grid: outputs between its pixels; its rows, columns */
    int channel_tiles;             /* blocks in x: channel tiles, then rectangles */
    int blocks, splits;            /* of channels; of the sum over them */
    int phase, patch_width, patch; /* places: of columns a stride apart, a row, all */
    int buffers;                   /* patches in shared memory */
    int quads;                     /* four channels are one access */
    uint32_t pixel_bytes;          /* of the input, to the next */
    int64_t weight_row, weight_skip, weight_step, weight_quarter; /* bytes to the next */
};

/* Which part of the sums a block makes, and for which outputs. */
struct conv_part {
    int image, split;
    int top, left; /* of its rectangle in the grid */
    int channel;
    int quarter, down, across; /* which, and the parities that its outputs have */
};

/* Blocks side by side share a rectangle's patch. */
template <class S> DEVICE struct conv_part part_here(const struct conv_plan &p)
{
    struct grid block = block_index();
    unsigned tile = block.x % (unsigned)(p.channel_tiles * p.step * p.step);
    unsigned rectangle = block.x / (unsigned)(p.channel_tiles * p.step * p.step);
    struct conv_part part;
    part.image = (int)block.z / p.splits;
    part.split = (int)block.z % p.splits;
    part.top = p.first + (int)block.y * (S::pixels >> p.tile_bits);
    part.left = (int)rectangle << p.tile_bits;
    part.channel = (int)(tile % (unsigned)p.channel_tiles) * S::channels;
    part.quarter = (int)(tile / (unsigned)p.channel_tiles);
    part.down = part.quarter / 2;
    part.across = part.quarter % 2;
    return part;
}

/* ---- what comes in ---- */

/* Where a thread's share of the next step comes from and goes to. Its pieces of rows are all in one
 * column; in a warp 8 rows lie side by side, whose places in shared memory differ in their banks.
 */
struct conv_feed {
    const char *pixels;  /* its piece of the image's first pixel, of this block of channels */
    const char *weights; /* its piece of its first row, of this step */
    int channels;        /* from that piece on */
    int steps, tap, stage, buffer;
};

/* The places of patches and the offsets of taps, in words. */
struct conv_tables {
    uint32_t places, taps;
};

DEVICE int feed_row(void)
{
    return thread_index() / 32 * 8 + thread_index() % 8;
}

/* Eight values of which `count` are there, whatever their alignment. */
DEVICE struct words4 values_gather(const char *from, int count)
{
    struct words4 x;
#pragma unroll
    for (int i = 0; i < 4; i++)
        x.x[i] = global_load_2(from + i * 4, 2 * i < count) |
                 global_load_2(from + i * 4 + 2, 2 * i + 1 < count) << 16;
    return x;
}

template <bool NARROW>
DEVICE void patch_load(const struct conv_plan &p, const struct conv_feed &f, uint32_t to,
                       uint32_t places)
{
    int row = feed_row();
    to = (uint32_t)made_here((int)(to + row * CONV_ROW + thread_index() / 8 % 4 * 16));
    places += row * 4;
#pragma unroll 4
    for (int i = row; i < p.patch; i += CONV_THREADS / 4) {
        int source = (int)shared_load_4(places);
        int count = source < 0 ? 0 : f.channels;
        const char *from = f.pixels + (uint64_t)(source < 0 ? 0 : source) * p.pixel_bytes;
        if (NARROW)
            shared_store_16(to, values_gather(from, count));
        else
            copy_async(to, from, count > 0);
        to += CONV_THREADS / 4 * CONV_ROW;
        places += CONV_THREADS;
    }
}

template <class S>
DEVICE void weights_load(const struct conv_plan &p, const struct conv_feed &f, uint32_t to,
                         int rows)
{
    const char *from = f.weights;
    int row = feed_row();
    if (f.channels <= 0) rows = 0;
    to += row * CONV_ROW + thread_index() / 8 % 4 * 16;
#pragma unroll
    for (int i = 0; i < S::channels; i += CONV_THREADS / 4) {
        if (S::channels % (CONV_THREADS / 4) == 0 || row + i < S::channels)
            copy_async(to + i * CONV_ROW, from, row + i < rows);
        from = made_here(from + p.weight_skip);
    }
}

/* One step's copies as one group, and on to the next. */
template <class S, bool NARROW>
DEVICE void feed_step(const struct conv_plan &p, struct conv_feed *f, uint32_t patches,
                      uint32_t weights, uint32_t places, int rows)
{
    if (f->steps > 0) {
        if (f->tap == 0)
            patch_load<NARROW>(p, *f, patches + f->buffer * p.patch * CONV_ROW, places);
        weights_load<S>(p, *f, weights + f->stage * S::weight_bytes, rows);
        f->weights += p.weight_step;
        f->stage = f->stage + 1 < CONV_STAGES ? f->stage + 1 : 0;
        f->steps--;
        if (++f->tap == p.c.size * p.c.size) {
            f->tap = 0;
            f->pixels += CONV_DEPTH * 2;
            f->channels -= CONV_DEPTH;
            f->buffer = f->buffer + 1 < p.buffers ? f->buffer + 1 : 0;
        }
    }
    copy_async_commit();
}

/* In pixels from the first that `in` has; -1: zeros. */
DEVICE int place_source(const struct cuda_conv &c, int y, int x)
{
    if (y < 0 || y >= c.up_h || x < 0 || x >= c.up_w) return -1;
    if (c.up_h != c.in_h) y = y * c.in_h / c.up_h;
    if (c.up_w != c.in_w) x = x * c.in_w / c.up_w;
    y -= c.in_first;
    return y < 0 || y >= c.in_rows ? -1 : y * c.in_w + x;
}

DEVICE void tables_write(const struct conv_plan &p, const struct conv_part &part,
                         struct conv_tables t)
{
    const struct cuda_conv &c = p.c;
    for (int i = thread_index(); i < p.patch; i += CONV_THREADS) {
        int row = i / p.patch_width, column = i % p.patch_width;
        int y = part.top * c.stride - c.padding + part.down + row;
        int x =
            (part.left + column % p.phase) * c.stride - c.padding + part.across + column / p.phase;
        shared_store_4(t.places + i * 4, (uint32_t)place_source(c, y, x));
    }
    for (int i = thread_index(); i < c.size * c.size; i += CONV_THREADS) {
        int row = i / c.size, column = i % c.size;
        int place = row * p.patch_width + column % c.stride * p.phase + column / c.stride;
        shared_store_4(t.taps + i * 4, (uint32_t)(place * CONV_ROW));
    }
}

/* ---- what goes out ---- */

/* What a channel's sums get, whatever the pixel. */
template <enum element E>
DEVICE void quad_constant(float add[4], const struct conv_plan &p, int image, int channel)
{
#pragma unroll
    for (int e = 0; e < 4; e++) {
        bool on = channel + e < p.c.out_c;
        add[e] = p.c.bias && on ? global_load_float(p.c.bias + channel + e) : 0;
        if (p.c.per_image)
            add[e] += unpack<E>(global_load_2((const char *)p.c.per_image +
                                                  (image * p.c.per_image_stride + channel + e) * 2,
                                              on),
                                0);
    }
}

template <enum element E>
DEVICE void quad_residual(float x[4], const struct conv_plan &p, int64_t at, int channel)
{
    const char *from = (const char *)p.c.residual + at * 2;
    if (p.quads) {
        struct words2 w = global_load_8(from, channel < p.c.out_c);
#pragma unroll
        for (int e = 0; e < 4; e++)
            x[e] += unpack<E>(w.x[e / 2], e % 2);
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            x[e] += unpack<E>(global_load_2(from + e * 2, channel + e < p.c.out_c), 0);
    }
}

/* Four channels of a pixel: their sums become the output. */
template <enum element E>
DEVICE void quad_finish(const struct conv_plan &p, float x[4], const float add[4], int image,
                        int64_t pixel, int channel)
{
    const struct cuda_conv &c = p.c;
#pragma unroll
    for (int e = 0; e < 4; e++)
        x[e] += add[e];
    if (c.residual)
        quad_residual<E>(
            x, p, image * c.residual_image_stride + pixel * c.residual_stride + channel, channel);
    activate<4>(x, c.act);
    int64_t at = image * c.out_image_stride + pixel * c.out_stride + channel;
    char *to = (char *)c.out + at * (c.out_type == CUDA_F32 ? 4 : 2);
    if (p.quads) {
        bool on = channel < c.out_c;
        if (c.out_type == CUDA_F32)
            global_store_16(
                to, {{float_bits(x[0]), float_bits(x[1]), float_bits(x[2]), float_bits(x[3])}}, on);
        else
            global_store_8(to, {{pack<E>(x[0], x[1]), pack<E>(x[2], x[3])}}, on);
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            bool on = channel + e < c.out_c;
            if (c.out_type == CUDA_F32)
                global_store_4(to + e * 4, float_bits(x[e]), on);
            else
                global_store_2(to + e * 2, pack<E>(x[e], 0), on);
        }
    }
}

/* Where a split leaves the sums of four channels: [splits, B, pixels, channels rounded up to 4]. */
DEVICE char *quad_partial(const struct conv_plan &p, int split, int image, int64_t pixel,
                          int channel)
{
    const struct cuda_conv &c = p.c;
    int64_t pixels = (int64_t)c.out_rows * c.out_w;
    int64_t row = ((int64_t)split * c.batch + image) * pixels + pixel;
    return (char *)c.workspace + (row * ((c.out_c + 3) / 4 * 4) + channel) * 4;
}

/* The block's sums go through shared memory, so that what a warp stores is whole sectors. */
template <enum element E, class S>
DEVICE void sums_store(const struct conv_plan &p, const struct conv_part &part,
                       const float acc[S::R][S::C][4])
{
    constexpr int quads = S::channels / 4;
    int lane = thread_index() % 32, warp = thread_index() / 32;
    uint32_t at = shared_base() + (warp / S::ACROSS * S::R * 16 + lane / 4) * S::sum_stride +
                  (warp % S::ACROSS * S::C * 8 + lane % 4 * 2) * 4;
#pragma unroll
    for (int r = 0; r < S::R; r++)
#pragma unroll
        for (int n = 0; n < S::C; n++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                shared_store_8(at + (r * 16 + h * 8) * S::sum_stride + n * 32,
                               {{float_bits(acc[r][n][2 * h]), float_bits(acc[r][n][2 * h + 1])}});
    block_sync();
    int quad = thread_index() % quads, channel = part.channel + quad * 4;
    float add[4];
    quad_constant<E>(add, p, part.image, channel);
#pragma unroll 2
    for (int i = thread_index() / quads; i < S::pixels; i += CONV_THREADS / quads) {
        struct words4 w = shared_load_16(shared_base() + i * S::sum_stride + quad * 16);
        int y = part.top - p.first + (i >> p.tile_bits);
        int x = part.left + (i & ((1 << p.tile_bits) - 1));
        if (y >= p.rows || x >= p.width || channel >= p.c.out_c) continue;
        int64_t pixel = (int64_t)(y * p.step + part.down) * p.c.out_w + x * p.step + part.across;
        float sum[4];
#pragma unroll
        for (int e = 0; e < 4; e++)
            sum[e] = bits_float(w.x[e]);
        if (p.splits > 1)
            global_store_16(quad_partial(p, part.split, part.image, pixel, channel), w, true);
        else
            quad_finish<E>(p, sum, add, part.image, pixel, channel);
    }
}

/* ---- the kernels ---- */

/* 16 channels of a step. `pixels` are the lane's rows of A; weights its first row of B. */
template <enum element E, class S>
DEVICE void sums_add(float acc[S::R][S::C][4], const uint32_t pixels[S::R], uint32_t tap,
                     uint32_t weights)
{
    uint32_t a[S::R][4];
#pragma unroll
    for (int r = 0; r < S::R; r++)
        matrix_load_4(a[r], pixels[r] + tap);
#pragma unroll
    for (int n = 0; n < S::C; n += 2) {
        uint32_t b[4];
        matrix_load_4(b, weights + n * 8 * CONV_ROW);
#pragma unroll
        for (int r = 0; r < S::R; r++) {
            mma<E>(acc[r][n], a[r], b[0], b[1]);
            mma<E>(acc[r][n + 1], a[r], b[2], b[3]);
        }
    }
}

/* Grid: x channel tiles, then quarters, then rectangles across; y rectangles down; z splits, then
 * images.
 * NARROW: the input's channels come in no pieces of 16 bytes. */
template <enum element E, class S, bool NARROW> DEVICE void conv(const struct conv_plan &p)
{
    const struct cuda_conv &c = p.c;
    const struct conv_part part = part_here<S>(p);
    int lane = thread_index() % 32, warp = thread_index() / 32, taps = c.size * c.size;
    int from = (int)((int64_t)p.blocks * part.split / p.splits);
    int steps = ((int)((int64_t)p.blocks * (part.split + 1) / p.splits) - from) * taps;

    uint32_t patches = shared_base(), weights = patches + p.buffers * p.patch * CONV_ROW;
    struct conv_tables t;
    t.places = weights + CONV_STAGES * S::weight_bytes;
    t.taps = t.places + p.patch * 4;
    tables_write(p, part, t);
    block_sync();

    struct conv_feed f;
    int piece = from * CONV_PIECES + thread_index() / 8 % 4, row = feed_row();
    f.pixels = (const char *)c.in + part.image * c.in_image_stride * 2 + piece * 16;
    f.weights = (const char *)c.weight + part.quarter * p.weight_quarter +
                (int64_t)from * taps * p.weight_step + (part.channel + row) * p.weight_row +
                thread_index() / 8 % 4 * 16;
    f.channels = c.in_c - piece * 8;
    f.steps = steps;
    f.tap = f.stage = f.buffer = 0;
#pragma unroll 1
    for (int i = 0; i < CONV_STAGES - 1; i++)
        feed_step<S, NARROW>(p, &f, patches, weights, t.places, c.out_c - part.channel);

    /* This lane's rows for ldmatrix. */
    uint32_t a[S::R];
#pragma unroll
    for (int r = 0; r < S::R; r++) {
        int i = (warp / S::ACROSS * S::R + r) * 16 + lane % 16;
        int y = i >> p.tile_bits, x = i & ((1 << p.tile_bits) - 1);
        a[r] = patches + (y * c.stride * p.patch_width + x) * CONV_ROW + lane / 16 * 16;
    }
    uint32_t b = weights + (warp % S::ACROSS * S::C * 8 + lane % 8 + lane / 16 * 8) * CONV_ROW +
                 lane / 8 % 2 * 16;

    float acc[S::R][S::C][4];
#pragma unroll
    for (int r = 0; r < S::R; r++)
#pragma unroll
        for (int n = 0; n < S::C; n++)
            acc[r][n][0] = acc[r][n][1] = acc[r][n][2] = acc[r][n][3] = 0;

    uint32_t offset = shared_load_4(t.taps); /* of the tap, in its patch */
    int tap = 0, stage = 0, buffer = 0;
#pragma unroll 1
    for (; steps > 0; steps--) {
        copy_async_wait<CONV_STAGES - 2>();
        block_sync();
        feed_step<S, NARROW>(p, &f, patches, weights, t.places, c.out_c - part.channel);
        uint32_t at = offset;
        if (++tap == taps) {
            tap = 0;
            buffer = buffer + 1 < p.buffers ? buffer + 1 : 0;
        }
        offset = shared_load_4(t.taps + tap * 4) + buffer * p.patch * CONV_ROW;
#pragma unroll
        for (int k = 0; k < CONV_DEPTH / 16; k++)
            sums_add<E, S>(acc, a, at + k * 32, b + stage * S::weight_bytes + k * 32);
        stage = stage + 1 < CONV_STAGES ? stage + 1 : 0;
    }
    copy_async_wait<0>();
    block_sync(); /* all have read: the sums go where patches and weights were */
    sums_store<E, S>(p, part, acc);
}

/* Adds up what the splits left, in their order. Grid: x quads of channels and pixels, z images. */
template <enum element E> DEVICE void conv_join(const struct conv_plan &p)
{
    int quads = (p.c.out_c + 3) / 4, image = (int)block_index().z;
    int64_t i = (int64_t)block_index().x * CONV_JOIN_THREADS + thread_index();
    int64_t pixel = i / quads;
    int channel = (int)(i % quads) * 4;
    if (pixel >= (int64_t)p.c.out_rows * p.c.out_w) return;
    float sum[4] = {0, 0, 0, 0}, add[4];
    for (int s = 0; s < p.splits; s++) {
        struct words4 w = global_load_16(quad_partial(p, s, image, pixel, channel), true);
#pragma unroll
        for (int e = 0; e < 4; e++)
            sum[e] += bits_float(w.x[e]);
    }
    quad_constant<E>(add, p, image, channel);
    quad_finish<E>(p, sum, add, image, pixel, channel);
}

#endif
