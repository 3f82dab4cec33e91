/* attention.cu - the attention kernels by name, and their launchers.
 *
 * attention_bf16_d64_long and attention_bf16_d64_text are two shapes of one source, for every head
 * size and both types. `text` has tiles that hold all keys of a text (77, or PixArt's 120), so that
 * each branch's softmax ends in registers; `long` has two row tiles a warp where registers allow
 * it, so that what is loaded of K and V serves twice as many multiplications. */
#include "attention.cuh"
#include "error.h"
#include "nag.cuh"

/* head size, name, slices, row tiles a warp, keys a tile, blocks whose registers fit */
#define ATTENTION_LIST(X)                                                                          \
    X(40, text, 1, 1, 80, 2)                                                                       \
    X(40, long, 1, 2, 64, 2)                                                                       \
    X(64, text, 1, 1, 80, 2)                                                                       \
    X(64, long, 1, 2, 64, 2)                                                                       \
    X(72, text, 1, 1, 128, 2)                                                                      \
    X(72, long, 1, 2, 48, 2)                                                                       \
    X(80, text, 1, 1, 80, 2)                                                                       \
    X(80, long, 1, 2, 48, 2)                                                                       \
    X(128, long, 1, 1, 64, 2)                                                                      \
    X(160, long, 1, 1, 64, 2)                                                                      \
    X(512, long, 4, 1, 32, 1)

#define X(D, name, slices, r, n, blocks)                                                           \
    KERNEL((tile_shape<D, slices, r, n>::threads), blocks)                                         \
    attention_bf16_d##D##_##name(KERNEL_PARAMETER struct cuda_attention a)                         \
    {                                                                                              \
        attention<BF16, tile_shape<D, slices, r, n>>(a);                                           \
    }                                                                                              \
    KERNEL((tile_shape<D, slices, r, n>::threads), blocks)                                         \
    attention_f16_d##D##_##name(KERNEL_PARAMETER struct cuda_attention a)                          \
    {                                                                                              \
        attention<F16, tile_shape<D, slices, r, n>>(a);                                            \
    }
ATTENTION_LIST(X)
#undef X

KERNEL(NAG_THREADS, 8) nag_bf16(KERNEL_PARAMETER struct cuda_nag a)
{
    nag<BF16>(a);
}

KERNEL(NAG_THREADS, 8) nag_f16(KERNEL_PARAMETER struct cuda_nag a)
{
    nag<F16>(a);
}

static const struct attention_kernel {
    int head_size, keys; /* of a tile */
    int text;            /* taken when shared and positive keys fit a tile each */
    int rows, threads;
    int shared_bytes[2];                      /* without and with what is kept */
    void (*kernel[2])(struct cuda_attention); /* by enum cuda_element */
} kernels[] = {
#define SHAPE(D, slices, r, n) tile_shape<D, slices, r, n>
#define X(D, name, slices, r, n, blocks)                                                           \
    {D,                                                                                            \
     n,                                                                                            \
     #name[0] == 't',                                                                              \
     SHAPE(D, slices, r, n)::rows,                                                                 \
     SHAPE(D, slices, r, n)::threads,                                                              \
     {SHAPE(D, slices, r, n)::shared_bytes, SHAPE(D, slices, r, n)::shared_bytes_kept},            \
     {attention_bf16_d##D##_##name, attention_f16_d##D##_##name}},
    ATTENTION_LIST(X)
#undef X
#undef SHAPE
};

static const struct attention_kernel *kernel_find(const struct cuda_attention *a)
{
    const struct attention_kernel *found = NULL;
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        /* The negative is not asked: with alpha = 0 the bits are those of no guidance. */
        int fits = a->segment[CUDA_SHARED].keys <= kernels[i].keys &&
                   a->segment[CUDA_POSITIVE].keys <= kernels[i].keys;
        if (kernels[i].head_size == a->head_size && (!kernels[i].text || fits) && !found)
            found = &kernels[i]; /* text stands first */
    }
    return found;
}

static int rows_wrong(const struct cuda_rows *r, const struct cuda_attention *a)
{
    int64_t width = (int64_t)a->heads * a->head_size;
    return (!r->base && !r->table) || (uintptr_t)r->base % 16 || r->image_stride % 8 ||
           r->row_stride % 8 || r->row_stride < width;
}

static int attention_wrong(const struct cuda_attention *a)
{
    if (a->type > CUDA_F16 || a->batch < 1 || a->batch > 65535 || a->heads < 1 ||
        a->heads > 65535 || a->queries < 1 || !(a->scale > 0) || rows_wrong(&a->q, a) || !a->out ||
        (uintptr_t)a->out % 16)
        return 1;
    for (int s = 0; s < CUDA_SEGMENTS; s++) {
        const struct cuda_keys *k = &a->segment[s];
        if (k->keys < 0 || (k->keys > 0 && (rows_wrong(&k->k, a) || rows_wrong(&k->v, a))))
            return 1;
    }
    if (a->bias && (int64_t)a->queries * a->segment[CUDA_POSITIVE].keys * a->heads > INT32_MAX)
        return 1;
    if (a->method == GUIDANCE_NONE) return a->segment[CUDA_NEGATIVE].keys > 0;
    return !a->params || a->causal || a->bias ||
           (a->method == GUIDANCE_NAG && (!a->difference || (uintptr_t)a->difference % 16));
}

int cuda_attention(const struct cuda_attention *a, struct CUstream_st *stream)
{
    const struct attention_kernel *k = kernel_find(a);
    if (!k) return STEER_UNSUPPORTED;
    if (attention_wrong(a)) return STEER_BAD_VALUE;
    int keeps = negative_plan(*a, k->keys).keeps;
    struct grid blocks = {(unsigned)(a->queries + k->rows - 1) / (unsigned)k->rows,
                          (unsigned)a->heads, (unsigned)a->batch};
    return kernel_launch(k->kernel[a->type], blocks, k->threads, (size_t)k->shared_bytes[keeps],
                         stream, *a)
               ? STEER_RENDER_FAILED
               : 0;
}

int cuda_nag(const struct cuda_nag *a, struct CUstream_st *stream)
{
    if (a->type > CUDA_F16 || a->batch < 1 || a->batch > 65535 || a->queries < 1 ||
        a->channels < 1 || a->channels % 8 ||
        ((uintptr_t)a->plus | (uintptr_t)a->difference | (uintptr_t)a->out) % 16)
        return STEER_BAD_VALUE;
    struct grid blocks = {(unsigned)(a->queries + NAG_TOKENS - 1) / NAG_TOKENS, 1,
                          (unsigned)a->batch};
    return kernel_launch(a->type == CUDA_BF16 ? nag_bf16 : nag_f16, blocks, NAG_THREADS, 0, stream,
                         *a)
               ? STEER_RENDER_FAILED
               : 0;
}
