/* group_norm.cuh - group norm with SiLU, over groups of channels and all pixels of an image.
 *
 * A block has a slab: `rows` rows of threads, a row of them `columns` pieces of W channels, some
 * whole groups wide; a thread holds up to HELD pixels of its piece. Sums go from threads to groups
 * through shared memory, always in the same order.
 *
 * Where a block's threads can hold all pixels (`chunks` is 1), group_norm reads, sums and writes at
 * once. Otherwise it leaves each chunk's mean, the mean's rounding (`rest`) and squares about the
 * mean in scratch; group_norm_finish joins them to three numbers a channel; group_norm_apply reads
 * x again. Squares are always taken about a mean, and means of chunks joined by their differences,
 * so that a mean far above the deviation costs no digits.
 *
 * Scratch: [B][groups][PARTS][chunks], then [B][COEFFICIENTS][channels]. */
#ifndef KERNELS_CUDA_GROUP_NORM_CUH
#define KERNELS_CUDA_GROUP_NORM_CUH
#include "norm.cuh"

enum { HELD = 6, GROUP_THREADS_MAX = 1024, FINISH_THREADS = 256 };
enum { PART_MEAN, PART_REST, PART_SQUARE, PARTS };
enum { CENTRE, FACTOR, SUMMAND, COEFFICIENTS }; /* (x - CENTRE) FACTOR + SUMMAND */

struct group_norm_launch {
    struct cuda_group_norm a;
    int threads, columns, rows, held; /* held: pixels of a thread */
    int slab, slabs;                  /* groups of a block; blocks side by side */
    int chunks, lanes;                /* lanes: threads that sum a group, a power of two */
    int width;                        /* channels of a group */
};

/* This thread's piece. */
struct slab_place {
    int column, row, channel, image; /* channel of the image */
    int group,
        split;      /* of the slab: the piece's first group; its channels in that, then the next */
    uint32_t pixel; /* the first; the next are `rows` further */
    bool on;
};

template <int W> DEVICE struct slab_place slab_here(const struct group_norm_launch &l)
{
    struct slab_place p;
    p.column = thread_index() % l.columns;
    p.row = thread_index() / l.columns;
    p.channel = (int)block_index().y * l.slab * l.width + p.column * W;
    p.image = (int)block_index().z;
    p.group = p.column * W / l.width;
    p.split = (p.group + 1) * l.width - p.column * W;
    p.pixel = block_index().x * (uint32_t)(l.rows * l.held) + (uint32_t)p.row;
    p.on = p.row < l.rows;
    return p;
}

DEVICE bool pixel_on(const struct group_norm_launch &l, const struct slab_place &p, int i)
{
    return p.on && i < l.held && p.pixel + (uint32_t)(i * l.rows) < l.a.pixels;
}

template <int W>
DEVICE void slab_load(float v[HELD][W], const struct group_norm_launch &l,
                      const struct slab_place &p)
{
    struct piece<W> raw[HELD];
    const char *x = tensor_at(l.a.x, p.image, p.pixel, p.channel);
    int64_t step = l.rows * l.a.x.rows.row_stride * element_bytes(l.a.x.type);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        raw[i] = piece_load<W>(x + i * step, l.a.x.type, pixel_on(l, p, i));
    pieces_values<W, HELD>(v, raw, l.a.x.type);
}

template <int W>
DEVICE void slab_store(float v[HELD][W], const struct group_norm_launch &l,
                       const struct slab_place &p)
{
    char *y = (char *)tensor_at(l.a.out, p.image, p.pixel, p.channel);
    int64_t step = l.rows * l.a.out.rows.row_stride * element_bytes(l.a.out.type);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        if (i >= l.held) break;
        if (l.a.act)
#pragma unroll
            for (int k = 0; k < W; k++)
                v[i][k] *= sigmoid(v[i][k]);
        values_store<W>(y + i * step, l.a.out.type, v[i], pixel_on(l, p, i));
    }
}

/* A word of shared memory for each thread and `which`. */
DEVICE uint32_t thread_word(const struct group_norm_launch &l, int which, int thread)
{
    return shared_base() + (uint32_t)(which * l.threads + thread) * 4;
}

/* A word for each group of the slab and `which`, behind those. */
DEVICE uint32_t group_word(const struct group_norm_launch &l, int which, int group)
{
    return thread_word(l, 4, 0) + (uint32_t)(which * l.slab + group) * 4;
}

/* The sum over the slab of what threads left for group thread / lanes, whose channels begin a piece
 * (words of `first`) or end one (`second`); in all its lanes. */
template <int W> DEVICE float group_sum(const struct group_norm_launch &l, int first, int second)
{
    int group = thread_index() / l.lanes, lane = thread_index() % l.lanes;
    int begin = group * l.width, end = begin + l.width;
    float sum = 0;
    for (int p = begin / W; group < l.slab && p * W < end; p++)
        for (int row = lane; row < l.rows; row += l.lanes)
            sum += bits_float(
                shared_load_4(thread_word(l, p * W < begin ? second : first, row * l.columns + p)));
    for (int mask = 1; mask < l.lanes; mask *= 2)
        sum += shuffle_xor(sum, mask);
    return sum;
}

/* Grid: x chunks of pixels, y slabs, z images. */
template <int W> DEVICE void group_norm(const struct group_norm_launch &l)
{
    struct slab_place p = slab_here<W>(l);
    /* Of the piece's first group, and of the next. */
    float v[HELD][W], sum = 0, sum_next = 0, rest = 0, rest_next = 0, square = 0, square_next = 0;
    slab_load<W>(v, l, p);
#pragma unroll
    for (int i = 0; i < HELD; i++)
#pragma unroll
        for (int k = 0; k < W; k++) { /* zeros where there is no pixel */
            sum += k < p.split ? v[i][k] : 0;
            sum_next += k < p.split ? 0 : v[i][k];
        }
    shared_store_4(thread_word(l, 0, thread_index()), float_bits(sum));
    shared_store_4(thread_word(l, 1, thread_index()), float_bits(sum_next));
    block_sync();

    uint32_t pixels = (uint32_t)(l.rows * l.held), begun = block_index().x * pixels;
    if (l.a.pixels - begun < pixels) pixels = (uint32_t)l.a.pixels - begun;
    float count = (float)pixels * (float)l.width;
    int group = thread_index() / l.lanes;
    bool tells = group < l.slab && thread_index() % l.lanes == 0;
    float mean = group_sum<W>(l, 0, 1) / count;
    if (tells) shared_store_4(group_word(l, PART_MEAN, group), float_bits(mean));
    block_sync();

    int next = p.group + 1 < l.slab ? p.group + 1 : p.group;
    float mine = 0, mine_next = 0;
    if (p.on) {
        mine = bits_float(shared_load_4(group_word(l, PART_MEAN, p.group)));
        mine_next = bits_float(shared_load_4(group_word(l, PART_MEAN, next)));
    }
#pragma unroll
    for (int i = 0; i < HELD; i++)
#pragma unroll
        for (int k = 0; k < W; k++) {
            float d = pixel_on(l, p, i) ? v[i][k] - (k < p.split ? mine : mine_next) : 0;
            v[i][k] = d;
            rest += k < p.split ? d : 0;
            rest_next += k < p.split ? 0 : d;
            square = fmaf(d, k < p.split ? d : 0, square);
            square_next = fmaf(d, k < p.split ? 0 : d, square_next);
        }
    shared_store_4(thread_word(l, 0, thread_index()), float_bits(rest));
    shared_store_4(thread_word(l, 1, thread_index()), float_bits(rest_next));
    shared_store_4(thread_word(l, 2, thread_index()), float_bits(square));
    shared_store_4(thread_word(l, 3, thread_index()), float_bits(square_next));
    block_sync();
    float left = group_sum<W>(l, 0, 1) / count, squares = group_sum<W>(l, 2, 3);
    squares = fmaxf(fmaf(-left * left, count, squares), 0);
    if (l.chunks > 1) {
        int64_t at = ((int64_t)p.image * l.a.groups + block_index().y * l.slab + group) * PARTS;
        float *to = l.a.scratch + at * l.chunks + block_index().x;
        global_store_4(to + PART_MEAN * l.chunks, float_bits(mean), tells);
        global_store_4(to + PART_REST * l.chunks, float_bits(left), tells);
        global_store_4(to + PART_SQUARE * l.chunks, float_bits(squares), tells);
        return;
    }

    if (tells) {
        float inverse = 1 / sqrtf(squares / count + l.a.eps);
        shared_store_4(group_word(l, PART_REST, group), float_bits(left));
        shared_store_4(group_word(l, PART_SQUARE, group), float_bits(inverse));
    }
    block_sync();
    if (p.on) {
        float scale[W], shift[W];
        values_load<W>(scale, (const char *)(l.a.scale + p.channel), CUDA_F32, true);
        values_load<W>(shift, (const char *)(l.a.shift + p.channel), CUDA_F32, true);
#pragma unroll
        for (int k = 0; k < W; k++) {
            int g = k >= p.split ? next : p.group;
            float off = bits_float(shared_load_4(group_word(l, PART_REST, g)));
            float factor = bits_float(shared_load_4(group_word(l, PART_SQUARE, g))) * scale[k];
#pragma unroll
            for (int i = 0; i < HELD; i++)
                v[i][k] = fmaf(v[i][k] - off, factor, shift[k]);
        }
    }
    slab_store<W>(v, l, p);
}

/* Values of a chunk in one group. */
DEVICE float chunk_count(const struct group_norm_launch &l, int chunk)
{
    int64_t each = l.rows * l.held, left = l.a.pixels - chunk * each;
    return (float)(left < each ? left : each) * (float)l.width;
}

/* Grid: x groups, z images. */
DEVICE void group_norm_finish(const struct group_norm_launch &l)
{
    int group = (int)block_index().x, image = (int)block_index().z;
    const float *part = l.a.scratch + ((int64_t)image * l.a.groups + group) * PARTS * l.chunks;
    float centre = global_load_float(part), count = (float)l.a.pixels * (float)l.width;
    float off = 0, square = 0;
    for (int i = thread_index(); i < l.chunks; i += FINISH_THREADS)
        off += chunk_count(l, i) * (global_load_float(part + i) - centre +
                                    global_load_float(part + PART_REST * l.chunks + i));
    off = lanes_sum(off, FINISH_THREADS, shared_base()) / count; /* of the mean from centre */
    for (int i = thread_index(); i < l.chunks; i += FINISH_THREADS) {
        float d = global_load_float(part + i) - centre +
                  global_load_float(part + PART_REST * l.chunks + i) - off;
        square +=
            fmaf(chunk_count(l, i) * d, d, global_load_float(part + PART_SQUARE * l.chunks + i));
    }
    square = lanes_sum(square, FINISH_THREADS, shared_base() + 128);
    float inverse = 1 / sqrtf(square / count + l.a.eps);
    int64_t parts = (int64_t)l.a.batch * l.a.groups * PARTS * l.chunks;
    float *to = l.a.scratch + (parts + 3) / 4 * 4 + (int64_t)image * COEFFICIENTS * l.a.channels;
    for (int k = thread_index(); k < l.width; k += FINISH_THREADS) {
        int c = group * l.width + k;
        float factor = inverse * global_load_float(l.a.scale + c);
        float summand = fmaf(-off, factor, global_load_float(l.a.shift + c));
        global_store_4(to + CENTRE * l.a.channels + c, float_bits(centre), true);
        global_store_4(to + FACTOR * l.a.channels + c, float_bits(factor), true);
        global_store_4(to + SUMMAND * l.a.channels + c, float_bits(summand), true);
    }
}

/* Grid: as group_norm's. */
template <int W> DEVICE void group_norm_apply(const struct group_norm_launch &l)
{
    struct slab_place p = slab_here<W>(l);
    int64_t parts = (int64_t)l.a.batch * l.a.groups * PARTS * l.chunks;
    const float *from = l.a.scratch + (parts + 3) / 4 * 4 +
                        (int64_t)p.image * COEFFICIENTS * l.a.channels + p.channel;
    float v[HELD][W], coefficient[COEFFICIENTS][W];
    slab_load<W>(v, l, p);
#pragma unroll
    for (int c = 0; c < COEFFICIENTS; c++)
        values_load<W>(coefficient[c], (const char *)(from + c * l.a.channels), CUDA_F32, p.on);
#pragma unroll
    for (int i = 0; i < HELD; i++)
#pragma unroll
        for (int k = 0; k < W; k++)
            v[i][k] = fmaf(v[i][k] - coefficient[CENTRE][k], coefficient[FACTOR][k],
                           coefficient[SUMMAND][k]);
    slab_store<W>(v, l, p);
}

#endif
