/* conv.cu - the convolution kernels by name, and their launcher.
 *
 * wide has the fewest loads for a multiplication, small serves images that would not fill a device
 * with wide's, thin the last convolution of a decoder with its 3 or 4 channels, and `any` inputs
 * whose channels come in no pieces of 16 bytes. */
#include <string.h>

#include "conv.cuh"
#include "error.h"

/* name, tile, warps down and across, 16 pixels and 8 channels a warp, narrow, blocks whose
 * registers fit */
#define CONV_LIST(X)                                                                               \
    X(wide, CUDA_TILE_WIDE, 2, 2, 4, 8, 0, 2)                                                      \
    X(small, CUDA_TILE_SMALL, 2, 2, 2, 4, 0, 4)                                                    \
    X(thin, CUDA_TILE_THIN, 4, 1, 2, 2, 0, 4)                                                      \
    X(any, CUDA_TILE_SMALL, 2, 2, 2, 4, 1, 4)

#define X(name, tile, down, across, r, n, narrow, blocks)                                          \
    KERNEL(CONV_THREADS, blocks)                                                                   \
    conv_bf16_##name(KERNEL_PARAMETER struct conv_plan p)                                          \
    {                                                                                              \
        conv<BF16, conv_shape<down, across, r, n>, narrow>(p);                                     \
    }                                                                                              \
    KERNEL(CONV_THREADS, blocks)                                                                   \
    conv_f16_##name(KERNEL_PARAMETER struct conv_plan p)                                           \
    {                                                                                              \
        conv<F16, conv_shape<down, across, r, n>, narrow>(p);                                      \
    }
CONV_LIST(X)
#undef X

KERNEL(CONV_JOIN_THREADS, 4) conv_bf16_join(KERNEL_PARAMETER struct conv_plan p)
{
    conv_join<BF16>(p);
}

KERNEL(CONV_JOIN_THREADS, 4) conv_f16_join(KERNEL_PARAMETER struct conv_plan p)
{
    conv_join<F16>(p);
}

static const struct conv_kernel {
    enum cuda_tile tile;
    int narrow, pixels, channels, weight_bytes, sum_stride;
    void (*kernel[2])(struct conv_plan); /* by enum cuda_element */
} kernels[] = {
#define X(name, tile, down, across, r, n, narrow, blocks)                                          \
    {tile,                                                                                         \
     narrow,                                                                                       \
     conv_shape<down, across, r, n>::pixels,                                                       \
     conv_shape<down, across, r, n>::channels,                                                     \
     conv_shape<down, across, r, n>::weight_bytes,                                                 \
     conv_shape<down, across, r, n>::sum_stride,                                                   \
     {conv_bf16_##name, conv_f16_##name}},
    CONV_LIST(X)
#undef X
};

/* Dimensions fit what the kernels compute with ints. */
enum {
    KERNEL_SIZE_MAX = 15,
    STRIDE_MAX = 8,
    SIDE_MAX = 1 << 15,           /* of an image that is resized: row * height fits */
    SHARED_BYTES_MAX = 99 * 1024, /* of a block, on the devices that have least */
    SPLIT_TILES = 256,            /* about as many blocks as fit a device at once */
    SPLITS_MAX = 8,
    SPLIT_STEPS = 24, /* the least for a split */
    WIDE_TILES = 128,
};

static int64_t ceil_div(int64_t x, int64_t y)
{
    return (x + y - 1) / y;
}

static int blocks_of(int channels)
{
    return (int)ceil_div(channels, CUDA_CONV_BLOCK);
}

size_t cuda_conv_packed(int out, int in, int size)
{
    return (size_t)blocks_of(in) * (size_t)(size * size) * (size_t)out * CUDA_CONV_BLOCK;
}

void cuda_conv_pack(uint16_t *packed, const uint16_t *torch, int out, int in, int size)
{
    size_t taps = (size_t)(size * size), at = 0;
    for (int block = 0; block < blocks_of(in); block++)
        for (size_t tap = 0; tap < taps; tap++)
            for (int o = 0; o < out; o++)
                for (int i = block * CUDA_CONV_BLOCK; i < (block + 1) * CUDA_CONV_BLOCK; i++)
                    packed[at++] =
                        i < in ? torch[((size_t)o * (size_t)in + (size_t)i) * taps + tap] : 0;
}

void cuda_conv_double(float *quarters, const float *torch, int out, int in)
{
    /* The doubled rows that each of a quarter's two rows stands for, of parity 0 and 1. */
    static const int row_of[2][3] = {{0, 1, 1}, {0, 0, 1}};
    size_t count = (size_t)out * (size_t)in;
    memset(quarters, 0, 16 * count * sizeof *quarters);
    for (int quarter = 0; quarter < 4; quarter++)
        for (size_t i = 0; i < count; i++)
            for (int tap = 0; tap < 9; tap++) {
                int row = row_of[quarter / 2][tap / 3], column = row_of[quarter % 2][tap % 3];
                quarters[((size_t)quarter * count + i) * 4 + (size_t)(row * 2 + column)] +=
                    torch[i * 9 + (size_t)tap];
            }
}

/* From one image's shape, so that its bytes are the same in every batch and band. */
static int splits_of(const struct cuda_conv *c)
{
    int64_t tiles = ceil_div((int64_t)c->out_h * c->out_w, 64) * ceil_div(c->out_c, 64);
    int64_t taps = c->doubled ? 4 : c->size * c->size, steps = blocks_of(c->in_c) * taps;
    int64_t splits = SPLIT_TILES / tiles;
    if (splits > SPLITS_MAX) splits = SPLITS_MAX;
    if (splits > steps / SPLIT_STEPS) splits = steps / SPLIT_STEPS;
    if (splits > blocks_of(c->in_c)) splits = blocks_of(c->in_c);
    return splits < 1 ? 1 : (int)splits;
}

size_t cuda_conv_workspace(const struct cuda_conv *c)
{
    int splits = splits_of(c);
    size_t row = (size_t)ceil_div(c->out_c, 4) * 16;
    return splits == 1
               ? 0
               : (size_t)splits * (size_t)c->batch * (size_t)c->out_rows * (size_t)c->out_w * row;
}

/* The last row or column that a window at `at` of the output touches in an image of `up` that was
 * `in`, and the first. */
static int source_of(int64_t at, int up, int in)
{
    if (at < 0) at = 0;
    if (at > up - 1) at = up - 1;
    return (int)(at * in / up);
}

static int rows_missing(const struct cuda_conv *c)
{
    int64_t first = (int64_t)c->out_first * c->stride - c->padding;
    int64_t last = (int64_t)(c->out_first + c->out_rows - 1) * c->stride - c->padding + c->size - 1;
    return first < c->up_h && last >= 0 &&
           (source_of(first, c->up_h, c->in_h) < c->in_first ||
            source_of(last, c->up_h, c->in_h) >= c->in_first + c->in_rows);
}

static int conv_wrong(const struct cuda_conv *c)
{
    const int64_t area = INT32_MAX / 2;
    int resized = c->up_h != c->in_h || c->up_w != c->in_w;
    int side = resized ? SIDE_MAX : INT32_MAX / STRIDE_MAX / 2;
    if (c->type > CUDA_F16 || (c->out_type != c->type && c->out_type != CUDA_F32) || c->batch < 1 ||
        c->batch > 65535 / SPLITS_MAX || c->in_h < 1 || c->in_w < 1 || c->in_c < 1 || c->up_h < 1 ||
        c->up_w < 1 || c->out_h < 1 || c->out_w < 1 || c->out_c < 1)
        return 1;
    if (c->size < 1 || c->size > KERNEL_SIZE_MAX || c->stride < 1 || c->stride > STRIDE_MAX ||
        c->padding < 0 || c->padding > SIDE_MAX)
        return 1;
    if (c->in_h > side || c->in_w > side || c->up_h > side || c->up_w > side || c->out_h > side ||
        c->out_w > side || c->in_c > area / 64 || c->out_c > area / 64 ||
        (int64_t)c->in_h * c->in_w > area || (int64_t)c->out_h * c->out_w > area)
        return 1;
    if (c->doubled &&
        (c->size != 3 || c->stride != 1 || c->padding != 1 || c->weight_stride ||
         c->up_h != 2 * (int64_t)c->in_h || c->up_w != 2 * (int64_t)c->in_w ||
         c->out_h != c->up_h || c->out_w != c->up_w || c->out_first % 2 || c->out_rows % 2))
        return 1;
    if (c->in_first < 0 || c->in_rows < 1 || c->in_rows > c->in_h - c->in_first ||
        c->out_first < 0 || c->out_rows < 1 || c->out_rows > c->out_h - c->out_first ||
        rows_missing(c))
        return 1;
    if (!c->in || !c->weight || !c->out || c->in_stride < c->in_c || c->in_stride > area ||
        c->out_stride < c->out_c || (c->residual && c->residual_stride < c->out_c) ||
        (uintptr_t)c->weight % 16 ||
        (c->weight_stride &&
         (c->size > 1 || c->weight_stride < c->in_c || c->weight_stride % 8 || c->in_c % 8)))
        return 1;
    return splits_of(c) > 1 && (!c->workspace || (uintptr_t)c->workspace % 16);
}

/* A 1x1 convolution sees pixels, not rows: one row serves it, whatever the image's shape. */
static void rows_flatten(struct cuda_conv *c)
{
    if (c->size > 1 || c->stride > 1 || c->padding || c->up_h != c->in_h || c->up_w != c->in_w ||
        c->out_w != c->in_w || c->out_first + c->out_rows > c->in_h)
        return;
    c->in =
        (const char *)c->in + (int64_t)(c->out_first - c->in_first) * c->in_w * c->in_stride * 2;
    c->in_w = c->up_w = c->out_w = c->out_w * c->out_rows;
    c->in_h = c->up_h = c->out_h = c->in_rows = c->out_rows = 1;
    c->in_first = c->out_first = 0;
}

static int input_narrow(const struct cuda_conv *c)
{
    return (uintptr_t)c->in % 16 || c->in_stride % 8 || c->in_image_stride % 8 || c->in_c % 8;
}

static int output_quads(const struct cuda_conv *c)
{
    return c->out_c % 4 == 0 && (uintptr_t)c->out % (c->out_type == CUDA_F32 ? 16 : 8) == 0 &&
           c->out_stride % 4 == 0 && c->out_image_stride % 4 == 0 &&
           (!c->residual || ((uintptr_t)c->residual % 8 == 0 && c->residual_stride % 4 == 0 &&
                             c->residual_image_stride % 4 == 0));
}

static size_t shared_bytes(const struct conv_plan *p, const struct conv_kernel *k)
{
    size_t patches = (size_t)p->buffers * (size_t)p->patch * CONV_ROW;
    size_t weights = (size_t)(CONV_STAGES * k->weight_bytes);
    size_t tables = (size_t)(p->patch + p->c.size * p->c.size) * 4;
    size_t sums = (size_t)(k->pixels * k->sum_stride), feeds = patches + weights + tables;
    return feeds > sums ? feeds : sums;
}

/* The rectangle of k's pixels with the fewest blocks, and among those the smallest patch. */
static void rectangle_find(struct conv_plan *p, const struct conv_kernel *k)
{
    const struct cuda_conv *c = &p->c;
    int phases = c->size < c->stride ? c->size : c->stride;
    int64_t least = INT64_MAX;
    for (int bits = 3; 1 << bits <= k->pixels; bits++) {
        int w = 1 << bits, h = k->pixels / w;
        int phase = w + (c->size - 1) / c->stride;
        int64_t patch = (int64_t)phases * phase * ((h - 1) * c->stride + c->size);
        int64_t tiles = ceil_div(p->width, w) * ceil_div(p->rows, h);
        if (tiles * (1 << 20) + patch >= least) continue;
        least = tiles * (1 << 20) + patch;
        p->tile_bits = bits;
        p->phase = phase;
        p->patch_width = phases * phase;
        p->patch = (int)patch;
    }
}

static int plan_make(struct conv_plan *p, const struct conv_kernel *k)
{
    int taps = p->c.size * p->c.size;
    rectangle_find(p, k);
    p->channel_tiles = (int)ceil_div(p->c.out_c, k->channels);
    p->buffers = 1 + (int)ceil_div(CONV_STAGES - 1, taps);
    return shared_bytes(p, k) <= SHARED_BYTES_MAX;
}

static enum cuda_tile tile_of(const struct conv_plan *p)
{
    const struct cuda_conv *c = &p->c;
    int64_t wide = ceil_div((int64_t)c->out_w * c->out_rows, 128) * ceil_div(c->out_c, 128);
    if (input_narrow(c)) return CUDA_TILE_SMALL;
    if (c->tile != CUDA_TILE_AUTO) return c->tile;
    if (c->out_c <= 16) return CUDA_TILE_THIN;
    return wide * c->batch * p->splits >= WIDE_TILES ? CUDA_TILE_WIDE : CUDA_TILE_SMALL;
}

/* Completes the plan; NULL when a block has not got so much shared memory. */
static const struct conv_kernel *kernel_find(struct conv_plan *p, enum cuda_tile tile)
{
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
        if (kernels[i].tile == tile && kernels[i].narrow == input_narrow(&p->c) &&
            plan_make(p, &kernels[i]))
            return &kernels[i];
    return NULL;
}

int cuda_conv(const struct cuda_conv *given, struct CUstream_st *stream)
{
    struct conv_plan p = {};
    p.c = *given;
    struct cuda_conv *c = &p.c;
    if (!c->up_h) c->up_h = c->in_h;
    if (!c->up_w) c->up_w = c->in_w;
    if (conv_wrong(c)) return STEER_BAD_VALUE;
    p.splits = splits_of(c);
    rows_flatten(c);
    p.step = c->doubled ? 2 : 1;
    p.first = c->out_first / p.step;
    p.rows = c->out_rows / p.step;
    p.width = c->out_w / p.step;
    if (c->doubled) {
        c->size = 2; /* of each quarter, on the image as it is */
        c->up_h = c->in_h;
        c->up_w = c->in_w;
    }
    p.blocks = blocks_of(c->in_c);
    p.quads = output_quads(c);
    p.pixel_bytes = (uint32_t)c->in_stride * 2;
    p.weight_row = (c->weight_stride ? c->weight_stride : (int64_t)CUDA_CONV_BLOCK) * 2;
    p.weight_skip = p.weight_row * (CONV_THREADS / 4);
    p.weight_step = (c->weight_stride ? 1 : c->out_c) * (int64_t)CUDA_CONV_BLOCK * 2;
    p.weight_quarter = p.weight_step * p.blocks * c->size * c->size;
    const struct conv_kernel *k = kernel_find(&p, tile_of(&p));
    if (!k) k = kernel_find(&p, CUDA_TILE_SMALL); /* with a stride, patches are large */
    if (!k) return STEER_UNSUPPORTED;
    int across = 1 << p.tile_bits, down = k->pixels / across;
    int64_t x = ceil_div(p.width, across) * p.channel_tiles * p.step * p.step;
    int64_t y = ceil_div(p.rows, down);
    int64_t quads = (int64_t)c->out_rows * c->out_w * ceil_div(c->out_c, 4);
    if (x > INT32_MAX || y > 65535) return STEER_BAD_VALUE;
    struct grid blocks = {(unsigned)x, (unsigned)y, (unsigned)(c->batch * p.splits)};
    if (kernel_launch(k->kernel[c->type], blocks, CONV_THREADS, shared_bytes(&p, k), stream, p))
        return STEER_RENDER_FAILED;
    if (p.splits == 1) return 0;
    blocks = {(unsigned)ceil_div(quads, CONV_JOIN_THREADS), 1, (unsigned)c->batch};
    return kernel_launch(c->type == CUDA_BF16 ? conv_bf16_join : conv_f16_join, blocks,
                         CONV_JOIN_THREADS, 0, stream, p)
               ? STEER_RENDER_FAILED
               : 0;
}
