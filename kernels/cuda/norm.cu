/* norm.cu - the kernels of norm.cuh and group_norm.cuh by name (norm_8: in pieces of 8 values), and
 * their launchers. */
#include "norm.cuh"

#include "error.h"
#include "group_norm.cuh"

KERNEL(NORM_THREADS_MAX, 1) norm_8(KERNEL_PARAMETER struct norm_launch l)
{
    norm<8>(l);
}

KERNEL(NORM_THREADS_MAX, 1) norm_4(KERNEL_PARAMETER struct norm_launch l)
{
    norm<4>(l);
}

KERNEL(NORM_THREADS_MAX, 1) norm_2(KERNEL_PARAMETER struct norm_launch l)
{
    norm<2>(l);
}

KERNEL(NORM_THREADS_MAX, 1) norm_1(KERNEL_PARAMETER struct norm_launch l)
{
    norm<1>(l);
}

KERNEL(GROUP_THREADS_MAX, 1) group_norm_4(KERNEL_PARAMETER struct group_norm_launch l)
{
    group_norm<4>(l);
}

KERNEL(GROUP_THREADS_MAX, 1) group_norm_1(KERNEL_PARAMETER struct group_norm_launch l)
{
    group_norm<1>(l);
}

KERNEL(FINISH_THREADS, 4) group_norm_finish_1(KERNEL_PARAMETER struct group_norm_launch l)
{
    group_norm_finish(l);
}

KERNEL(GROUP_THREADS_MAX, 1) group_norm_apply_4(KERNEL_PARAMETER struct group_norm_launch l)
{
    group_norm_apply<4>(l);
}

KERNEL(GROUP_THREADS_MAX, 1) group_norm_apply_1(KERNEL_PARAMETER struct group_norm_launch l)
{
    group_norm_apply<1>(l);
}

/* ---- rows ---- */

static bool image_wrong(int batch, int64_t channels, int64_t pixels, const struct cuda_tensor &x,
                        const struct cuda_tensor &out)
{
    int64_t values;
    return batch < 1 || batch > 65535 || channels < 1 || pixels < 1 ||
           __builtin_mul_overflow(channels, pixels, &values) || values > INT32_MAX ||
           !tensor_there(x) || x.type == CUDA_U8 || !out.rows.base || out.rows.table ||
           out.type == CUDA_U8 || (pixels > 1 && out.rows.row_stride < channels);
}

static bool vector_wrong(const struct cuda_tensor &t)
{
    return tensor_there(t) && (t.rows.row_stride || t.type == CUDA_U8);
}

/* Of a head's channels: those of the tensors, and half of them for each half of the angles. */
static int norm_width(const struct cuda_norm *a)
{
    const struct cuda_tensor *all[] = {&a->out, &a->x, &a->scale, &a->shift};
    int w = piece_width(all, 4, a->channels);
    while (tensor_there(a->table) && w > 2 &&
           (!tensor_takes(a->table, w / 2) || a->channels / 2 % (w / 2)))
        w /= 2;
    return w;
}

int cuda_norm(const struct cuda_norm *a, struct CUstream_st *stream)
{
    if (a->heads < 1 || a->channels < 1 || a->channels > INT32_MAX / a->heads ||
        image_wrong(a->batch, (int64_t)a->heads * a->channels, a->pixels, a->x, a->out) ||
        vector_wrong(a->scale) || vector_wrong(a->shift) ||
        (tensor_there(a->shift) && !tensor_there(a->scale)) ||
        (tensor_there(a->table) && (a->channels % 2 || a->table.type != CUDA_F32)))
        return STEER_BAD_VALUE;
    int w = norm_width(a), pieces = a->channels / w;
    if (tensor_there(a->table) && w == 1) return STEER_BAD_VALUE; /* a pair is not aligned */
    if (pieces > NORM_PIECES * NORM_THREADS_MAX) return STEER_UNSUPPORTED;
    struct norm_launch l = {*a, NORM_THREADS, 1};
    /* Eight lanes side by side, as far as there are pieces, read whole lines. */
    while (l.lanes * NORM_PIECES < pieces || (l.lanes < 8 && l.lanes < pieces))
        l.lanes *= 2;
    if (l.lanes > l.threads) l.threads = l.lanes;
    int64_t rows = a->pixels * a->heads, together = l.threads / l.lanes;
    struct grid blocks = {(unsigned)((rows + together - 1) / together), 1, (unsigned)a->batch};
    void (*kernel)(struct norm_launch) = w == 8   ? norm_8
                                         : w == 4 ? norm_4
                                         : w == 2 ? norm_2
                                                  : norm_1;
    return kernel_launch(kernel, blocks, l.threads, 3 * 128, stream, l) ? STEER_RENDER_FAILED : 0;
}

/* ---- groups ---- */

/* Threads of a block that is one of several of an image. */
enum { CHUNK_THREADS = 512 };

/* One block holds its slab's pixels, few groups wide. */
static bool plan_whole(struct group_norm_launch *l, int w)
{
    for (l->slab = 1; l->slab * l->width % w;)
        l->slab *= 2;
    if (l->a.groups % l->slab || l->slab * l->width / w > GROUP_THREADS_MAX) return false;
    l->columns = l->slab * l->width / w;
    /* Four pixels a thread: fewer threads have less to sum across. */
    int64_t threads = (l->a.pixels + 3) / 4 * l->columns, most = GROUP_THREADS_MAX;
    l->threads = (int)((threads < most ? threads : most) + 31) / 32 * 32;
    l->rows = l->threads / l->columns;
    int64_t held = (l->a.pixels + l->rows - 1) / l->rows;
    l->held = (int)(held < HELD + 1 ? held : HELD + 1);
    l->chunks = 1;
    return l->held <= HELD;
}

/* Blocks as wide as they may be, for whole lines of memory. */
static bool plan_chunks(struct group_norm_launch *l, int w)
{
    l->slab = l->a.groups;
    while (l->slab > 1 && (l->a.groups % l->slab || l->slab * l->width % w ||
                           l->slab * l->width / w > CHUNK_THREADS))
        l->slab--;
    l->columns = l->slab * l->width / w;
    if (l->slab * l->width % w || l->columns > CHUNK_THREADS) return false;
    l->rows = CHUNK_THREADS / l->columns;
    l->threads = (l->rows * l->columns + 31) / 32 * 32;
    l->held = HELD;
    int64_t each = (int64_t)l->rows * l->held;
    l->chunks = (int)((l->a.pixels + each - 1) / each);
    return true;
}

/* 0 or an error; *w: values of a piece. An image's plan does not depend on the batch. */
static int group_norm_plan(struct group_norm_launch *l, int *w, const struct cuda_group_norm *a)
{
    *l = (struct group_norm_launch){};
    l->a = *a;
    if (image_wrong(a->batch, a->channels, a->pixels, a->x, a->out) || a->groups < 1 ||
        a->channels % a->groups || !a->scale || !a->shift ||
        (a->act != ACT_NONE && a->act != ACT_SILU))
        return STEER_BAD_VALUE;
    l->width = a->channels / a->groups;
    const struct cuda_tensor *all[] = {&a->x, &a->out};
    bool aligned = ((uintptr_t)a->scale | (uintptr_t)a->shift) % 16 == 0;
    *w = aligned && l->width > 1 && piece_width(all, 2, a->channels) >= 4 ? 4 : 1;
    if (!plan_whole(l, *w) && !plan_chunks(l, *w)) return STEER_UNSUPPORTED;
    l->slabs = a->groups / l->slab;
    for (l->lanes = 32; l->lanes > 1 && l->lanes * l->slab > l->threads;)
        l->lanes /= 2;
    return 0;
}

size_t cuda_group_norm_scratch(const struct cuda_group_norm *a)
{
    struct group_norm_launch l;
    int w;
    if (group_norm_plan(&l, &w, a) || l.chunks == 1) return 0;
    size_t parts = (size_t)a->batch * (size_t)a->groups * PARTS * (size_t)l.chunks;
    return ((parts + 3) / 4 * 4 + (size_t)a->batch * COEFFICIENTS * (size_t)a->channels) *
           sizeof(float);
}

int cuda_group_norm(const struct cuda_group_norm *a, struct CUstream_st *stream)
{
    struct group_norm_launch l;
    int w, code = group_norm_plan(&l, &w, a);
    if (code) return code;
    if (l.chunks > 1 && (!a->scratch || (uintptr_t)a->scratch % 16)) return STEER_BAD_VALUE;
    struct grid blocks = {(unsigned)l.chunks, (unsigned)l.slabs, (unsigned)a->batch};
    struct grid groups = {(unsigned)a->groups, 1, (unsigned)a->batch};
    size_t shared = (size_t)(4 * l.threads + PARTS * l.slab) * 4;
    if (kernel_launch(w == 4 ? group_norm_4 : group_norm_1, blocks, l.threads, shared, stream, l))
        return STEER_RENDER_FAILED;
    if (l.chunks == 1) return 0;
    return kernel_launch(group_norm_finish_1, groups, FINISH_THREADS, 2 * 128, stream, l) ||
                   kernel_launch(w == 4 ? group_norm_apply_4 : group_norm_apply_1, blocks,
                                 l.threads, 0, stream, l)
               ? STEER_RENDER_FAILED
               : 0;
}
