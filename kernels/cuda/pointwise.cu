/* pointwise.cu - the kernels of pointwise.cuh by name (map_8: in pieces of 8 values), and their
 * launchers. */
#include "pointwise.cuh"

#include "error.h"

KERNEL(POINT_THREADS, 4) map_8(KERNEL_PARAMETER struct cuda_map a)
{
    map<8>(a);
}

KERNEL(POINT_THREADS, 4) map_4(KERNEL_PARAMETER struct cuda_map a)
{
    map<4>(a);
}

KERNEL(POINT_THREADS, 4) map_1(KERNEL_PARAMETER struct cuda_map a)
{
    map<1>(a);
}

KERNEL(POINT_THREADS, 4) gather_8(KERNEL_PARAMETER struct cuda_gather a)
{
    gather<8>(a);
}

KERNEL(POINT_THREADS, 4) gather_4(KERNEL_PARAMETER struct cuda_gather a)
{
    gather<4>(a);
}

KERNEL(POINT_THREADS, 4) gather_1(KERNEL_PARAMETER struct cuda_gather a)
{
    gather<1>(a);
}

KERNEL(POINT_THREADS, 4) embedding_8(KERNEL_PARAMETER struct cuda_embedding a)
{
    embedding<8>(a);
}

KERNEL(POINT_THREADS, 4) embedding_4(KERNEL_PARAMETER struct cuda_embedding a)
{
    embedding<4>(a);
}

KERNEL(POINT_THREADS, 4) embedding_1(KERNEL_PARAMETER struct cuda_embedding a)
{
    embedding<1>(a);
}

KERNEL(POINT_THREADS, 4) sinusoid_1(KERNEL_PARAMETER struct cuda_sinusoid a)
{
    sinusoid(a);
}

KERNEL(POINT_THREADS, 4) sample_1(KERNEL_PARAMETER struct cuda_sample a)
{
    sample(a);
}

/* Launches the kernel for pieces of w values, or of the next smaller size there is. */
template <class P>
static int point_launch(void (*const kernels[3])(P), int w, int batch, int64_t channels,
                        int64_t pixels, struct CUstream_st *stream, const P &a)
{
    int width = w >= 8 ? 8 : w >= 4 ? 4 : 1;
    int64_t threads = channels / width * pixels;
    struct grid blocks = {(unsigned)((threads + POINT_THREADS - 1) / POINT_THREADS), 1,
                          (unsigned)batch};
    return kernel_launch(kernels[width / 4], blocks, POINT_THREADS, 0, stream, a)
               ? STEER_RENDER_FAILED
               : 0;
}

/* An image of so many values, or a batch, that the kernels cannot count. */
static bool size_wrong(int batch, int64_t channels, int64_t pixels)
{
    int64_t values;
    return batch < 1 || batch > 65535 || channels < 1 || pixels < 1 ||
           __builtin_mul_overflow(channels, pixels, &values) || values > INT32_MAX;
}

static bool input_wrong(const struct cuda_tensor &t)
{
    return !tensor_there(t) || t.type == CUDA_U8;
}

static bool output_wrong(const struct cuda_tensor &t, int64_t channels, int64_t pixels)
{
    return !t.rows.base || t.rows.table || (pixels > 1 && t.rows.row_stride < channels);
}

/* Whether an image of t is one run of values. */
static bool tensor_dense(const struct cuda_tensor &t, const struct cuda_map &a)
{
    return !tensor_there(t) || t.rows.row_stride == a.channels;
}

int cuda_map(const struct cuda_map *given, struct CUstream_st *stream)
{
    static void (*const kernels[])(struct cuda_map) = {map_1, map_4, map_8};
    struct cuda_map a = *given;
    int inputs = a.op >= CUDA_MODULATE ? 3 : a.op >= CUDA_ADD ? 2 : 1;
    bool wrong = size_wrong(a.batch, a.channels, a.pixels) ||
                 output_wrong(a.out, a.channels, a.pixels) ||
                 (a.op == CUDA_TO_U8) != (a.out.type == CUDA_U8);
    bool dense = tensor_dense(a.out, a);
    for (int k = 0; k < 3; k++) {
        if (k >= inputs) a.in[k] = {};
        wrong = wrong || (k < inputs && input_wrong(a.in[k]));
        dense = dense && tensor_dense(a.in[k], a);
    }
    if (wrong) return STEER_BAD_VALUE;
    if (dense) { /* odd channels do not matter then */
        a.channels = (int)(a.channels * a.pixels);
        a.pixels = 1;
        for (int k = 0; k < inputs; k++)
            a.in[k].rows.row_stride = a.channels;
        a.out.rows.row_stride = a.channels;
    }
    const struct cuda_tensor *all[] = {&a.out, &a.in[0], &a.in[1], &a.in[2]};
    return point_launch(kernels, piece_width(all, 4, a.channels), a.batch, a.channels, a.pixels,
                        stream, a);
}

/* What a piece may not straddle: it stays together between in and out. */
static int gather_unit(const struct cuda_gather *a)
{
    if (a->op == CUDA_RESIZE) return a->c;
    if (a->op == CUDA_CONCAT) return a->first % 8 ? a->first & -a->first : a->c;
    if (a->channel_first && a->patch > 1) return 1;
    return a->op == CUDA_UNPATCHES ? a->c : a->c / (a->patch * a->patch);
}

static bool gather_wrong(const struct cuda_gather *a)
{
    const int side_max = 32767;
    if (size_wrong(a->batch, a->c, (int64_t)a->h * a->w) || a->h < 1 || a->w < 1 ||
        input_wrong(a->in[0]) || a->out.type == CUDA_U8 ||
        output_wrong(a->out, a->c, (int64_t)a->h * a->w))
        return true;
    switch (a->op) {
    case CUDA_CONCAT: return a->first < 1 || a->first >= a->c || input_wrong(a->in[1]);
    case CUDA_RESIZE:
        return a->in_h < 1 || a->in_w < 1 || a->in_h > side_max || a->in_w > side_max ||
               a->h > side_max || a->w > side_max;
    case CUDA_PATCHES:
        return a->patch < 1 || a->patch > side_max || a->c % (a->patch * a->patch) != 0;
    case CUDA_UNPATCHES: return a->patch < 1 || a->h % a->patch != 0 || a->w % a->patch != 0;
    }
    return true;
}

int cuda_gather(const struct cuda_gather *a, struct CUstream_st *stream)
{
    static void (*const kernels[])(struct cuda_gather) = {gather_1, gather_4, gather_8};
    if (gather_wrong(a)) return STEER_BAD_VALUE;
    int inputs = a->op == CUDA_CONCAT ? 2 : 1;
    const struct cuda_tensor *all[] = {&a->out, &a->in[0], &a->in[1]};
    int w = piece_width(all, 1 + inputs, gather_unit(a));
    while (a->c % w)
        w /= 2;
    return point_launch(kernels, w, a->batch, a->c, (int64_t)a->h * a->w, stream, *a);
}

int cuda_embedding(const struct cuda_embedding *a, struct CUstream_st *stream)
{
    static void (*const kernels[])(struct cuda_embedding) = {embedding_1, embedding_4, embedding_8};
    if (size_wrong(a->batch, a->channels, a->tokens) || !a->ids || input_wrong(a->table) ||
        a->added.type == CUDA_U8 || a->out.type == CUDA_U8 ||
        output_wrong(a->out, a->channels, a->tokens))
        return STEER_BAD_VALUE;
    const struct cuda_tensor *all[] = {&a->out, &a->table, &a->added};
    return point_launch(kernels, piece_width(all, 3, a->channels), a->batch, a->channels, a->tokens,
                        stream, *a);
}

int cuda_sinusoid(const struct cuda_sinusoid *a, struct CUstream_st *stream)
{
    static void (*const kernels[])(struct cuda_sinusoid) = {sinusoid_1, sinusoid_1, sinusoid_1};
    if (size_wrong(a->batch, a->channels, 1) || a->channels < 2 || !tensor_there(a->t) ||
        a->t.type != CUDA_F32 || a->out.type == CUDA_U8 || output_wrong(a->out, a->channels, 1))
        return STEER_BAD_VALUE;
    return point_launch(kernels, 1, a->batch, a->channels, 1, stream, *a);
}

int cuda_sample(const struct cuda_sample *given, struct CUstream_st *stream)
{
    static void (*const kernels[])(struct cuda_sample) = {sample_1, sample_1, sample_1};
    struct cuda_sample a = *given;
    if (a.form != CUDA_SAMPLE_BLEND) a.terms = 2;
    if (size_wrong(a.batch, 1, a.count) || a.terms < 1 || a.terms > CUDA_SAMPLE_TERMS ||
        !a.params || !a.out)
        return STEER_BAD_VALUE;
    for (int k = 0; k < a.terms; k++)
        if (!a.x[k]) return STEER_BAD_VALUE;
    return point_launch(kernels, 1, a.batch, a.count, 1, stream, a);
}
