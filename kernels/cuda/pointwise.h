/* pointwise.h - launchers (launch.h) of what is bound by memory: operations value by value, copies
 * between places, norms, and the arithmetic between two calls of the denoiser.
 *
 * Any tensor may be f32, bf16 or f16, whatever the others are: types are told at run time. Sums and
 * all arithmetic are f32. A tensor is fastest when its address and strides are multiples of 16
 * bytes; others are taken in smaller pieces. What is read by every pixel alike, [B or 1, 1, 1, C],
 * has a row_stride of 0. Sizes of an image: below 2^31 values. */
#ifndef KERNELS_CUDA_POINTWISE_H
#define KERNELS_CUDA_POINTWISE_H
#include <stddef.h>
#include <stdint.h>

#include "activation.h"
#include "launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* [B, H, W, C]: its rows are pixels. One that is written has no table. Images at the addresses of a
 * table begin at multiples of 16 bytes. */
struct cuda_tensor {
    struct cuda_rows rows; /* base and table NULL: there is none */
    enum cuda_element type;
};

enum cuda_map_op {
    CUDA_ACTIVATE,   /* act(x); with ACT_NONE a conversion, or a view made dense */
    CUDA_AFFINE,     /* x scale + shift */
    CUDA_SOFT_CLAMP, /* 3 tanh(x / 3) */
    CUDA_TO_U8,      /* round(clamp(x / 2 + 1/2, 0, 1) 255), NaN is 0; out is CUDA_U8 */
    CUDA_ADD,        /* x + y */
    CUDA_MULTIPLY,   /* x act(y): GEGLU's halves are two views of one tensor */
    CUDA_MODULATE,   /* x (1 + z) + y, as op_modulate's inputs stand */
    CUDA_GATED_ADD   /* x + y z */
};
/* out = op(x, y, z), pixel by pixel. out may be an input of its own type and strides. */
struct cuda_map {
    enum cuda_map_op op;
    enum activation act; /* of ACTIVATE and MULTIPLY */
    float scale, shift;  /* of AFFINE */
    int batch, channels;
    int64_t pixels;
    struct cuda_tensor in[3], out;
};
int cuda_map(const struct cuda_map *a, struct CUstream_st *stream);

enum cuda_gather_op { CUDA_CONCAT, CUDA_RESIZE, CUDA_PATCHES, CUDA_UNPATCHES };
/* Values at other places: op_concat, op_resize, op_patches and op_unpatches of compute.h. */
struct cuda_gather {
    enum cuda_gather_op op;
    int batch;
    int h, w, c;              /* of out */
    int in_h, in_w;           /* RESIZE's input: at most 32767, like h and w */
    int first;                /* CONCAT: channels of in[0], the rest are in[1]'s */
    int patch, channel_first; /* PATCHES, UNPATCHES: the side; PATCH_CHANNEL_FIRST */
    struct cuda_tensor in[2], out;
};
int cuda_gather(const struct cuda_gather *a, struct CUstream_st *stream);

/* table[id] + positions[0 .. tokens - 1]. An id outside of the table is the caller's mistake. */
struct cuda_embedding {
    int batch, tokens, channels;
    const int32_t *ids;       /* [B, tokens] */
    struct cuda_tensor table; /* [rows, channels] */
    struct cuda_tensor added; /* positions [tokens, channels]; base NULL: none */
    struct cuda_tensor out;   /* [B, tokens, channels] */
};
int cuda_embedding(const struct cuda_embedding *a, struct CUstream_st *stream);

/* op_sinusoid: t [B, 1, 1, 1] f32 -> [B, 1, 1, channels]. */
struct cuda_sinusoid {
    int batch, channels, flip;
    float shift;
    struct cuda_tensor t, out;
};
int cuda_sinusoid(const struct cuda_sinusoid *a, struct CUstream_st *stream);

/* ---- norms ---- */

enum cuda_norm_kind { CUDA_NORM_NONE, CUDA_NORM_LAYER, CUDA_NORM_RMS };
/* Over the channels of each pixel, or of each of its heads: normalised, times (more + scale) plus
 * shift, then turned by the angles of a table as op_rope does. Layer norm has a weight's scale and
 * shift (more 0), those of a modulation (more 1), or none; CUDA_NORM_NONE with a table is op_rope.
 * A row of `channels` has at most 4096 pieces of the widest size that its tensors allow (2 to 16
 * bytes), else STEER_UNSUPPORTED. out may be x, in its type and strides; so may group norm's. */
struct cuda_norm {
    enum cuda_norm_kind kind;
    int batch, heads, channels; /* channels of a head */
    int64_t pixels;
    float eps, more;
    struct cuda_tensor x, out;       /* [B, pixels, heads * channels] */
    struct cuda_tensor scale, shift; /* [B or 1, 1, channels]; shift only with scale */
    struct cuda_tensor table;        /* [B or 1, pixels, channels] f32: cosines, then sines */
};
int cuda_norm(const struct cuda_norm *a, struct CUstream_st *stream);

/* op_group_norm. Images that a block of threads can hold are read once, in one launch; larger ones
 * twice, in three. Images of a batch do not meet. */
struct cuda_group_norm {
    int batch, channels, groups;
    int64_t pixels;
    float eps;
    enum activation act; /* ACT_NONE or ACT_SILU */
    struct cuda_tensor x, out;
    const float *scale, *shift; /* [channels] */
    float *scratch;             /* of cuda_group_norm_scratch bytes; 16-byte aligned */
};
int cuda_group_norm(const struct cuda_group_norm *a, struct CUstream_st *stream);
size_t cuda_group_norm_scratch(const struct cuda_group_norm *a);

/* ---- between two calls of the denoiser ---- */

/* What each does with x[0], x[1] and so on and an image's own numbers p, in f32 and in this order
 * of roundings: worker/sampler.c's steps. */
enum cuda_sample_form {
    CUDA_SAMPLE_BLEND, /* p0 x0 + p1 x1 + ..: `terms` of them, in order */
    /* x: sample, output; p: sqrt(a), sqrt(1 - a), the same of the next level. x' = p2 X + p3 E with
     */
    CUDA_SAMPLE_DDIM_EPSILON, /* X = (x0 - p1 x1) / p0, E = x1 */
    CUDA_SAMPLE_DDIM_V,       /* X = p0 x0 - p1 x1, E = p0 x1 + p1 x0 */
    CUDA_SAMPLE_DDIM_SAMPLE,  /* X = x1, E = (x0 - p0 x1) / p1 */
    /* p: sigma, its change, sigma^2 + 1, -sigma / sqrt(p2). x' = x0 + (x0 - X) / p0 p1 with */
    CUDA_SAMPLE_EULER_EPSILON, /* X = x0 - p0 x1 */
    CUDA_SAMPLE_EULER_V,       /* X = x1 p3 + x0 / p2 */
    CUDA_SAMPLE_EULER_SAMPLE,  /* X = x1 */
    /* The slope (x0 - X) / p0 alone, for steps that use it twice or add noise. */
    CUDA_SAMPLE_SLOPE_EPSILON,
    CUDA_SAMPLE_SLOPE_V,
    CUDA_SAMPLE_SLOPE_SAMPLE,
    /* PNDM's formula 9. x' = p0 x0 - p1 E / p2 with */
    CUDA_SAMPLE_PNDM_EPSILON, /* E = x1 */
    CUDA_SAMPLE_PNDM_V        /* E = p3 x1 + p4 x0 */
};
enum { CUDA_SAMPLE_TERMS = 5 };
struct cuda_sample {
    enum cuda_sample_form form;
    float clip; /* X is kept within -clip .. clip; 0: as it is */
    int batch, terms;
    int64_t count;                     /* values of an image */
    const float *x[CUDA_SAMPLE_TERMS]; /* [B, count] each */
    const float *params;               /* [B, CUDA_SAMPLE_TERMS] */
    float *out;                        /* [B, count]; may be an x */
};
int cuda_sample(const struct cuda_sample *a, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif
#endif
