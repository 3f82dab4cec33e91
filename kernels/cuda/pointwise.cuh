/* pointwise.cuh - what is done value by value, or only moves values: one pass over memory, a piece
 * (values.cuh) a thread. Grid: x blocks of pieces, z images. */
#ifndef KERNELS_CUDA_POINTWISE_CUH
#define KERNELS_CUDA_POINTWISE_CUH
#include "values.cuh"

enum { POINT_THREADS = 256 };

/* This thread's piece of an image of `channels` a pixel. */
struct point {
    uint32_t pixel;
    int channel, image;
    bool on; /* it is there */
};

template <int W> DEVICE struct point point_here(int channels, int64_t pixels)
{
    uint32_t pieces = (uint32_t)channels / W;
    uint32_t i = block_index().x * POINT_THREADS + (uint32_t)thread_index();
    struct point p;
    p.pixel = i / pieces;
    p.channel = (int)(i % pieces) * W;
    p.image = (int)block_index().z;
    p.on = p.pixel < pixels;
    return p;
}

/* ---- value by value ---- */

/* NaN is 0, as op_to_u8's black. */
DEVICE float byte_of(float x)
{
    return 255 * fminf(fmaxf(fmaf(x, 0.5f, 0.5f), 0), 1);
}

template <int W>
DEVICE void map_values(float x[W], const float y[W], const float z[W], const struct cuda_map &a)
{
#pragma unroll
    for (int i = 0; i < W; i++)
        switch (a.op) {
        case CUDA_ACTIVATE: break;
        case CUDA_AFFINE: x[i] = fmaf(x[i], a.scale, a.shift); break;
        case CUDA_SOFT_CLAMP: x[i] = 3 * hyperbolic_tangent(x[i] / 3); break;
        case CUDA_TO_U8: x[i] = byte_of(x[i]); break;
        case CUDA_ADD: x[i] += y[i]; break;
        case CUDA_MULTIPLY: x[i] *= y[i]; break;
        case CUDA_MODULATE: x[i] = fmaf(x[i], 1 + z[i], y[i]); break;
        case CUDA_GATED_ADD: x[i] = fmaf(y[i], z[i], x[i]); break;
        }
}

template <int W> DEVICE void map(const struct cuda_map &a)
{
    struct point p = point_here<W>(a.channels, a.pixels);
    struct piece<W> raw[3] = {
    };
    float v[3][W];
#pragma unroll
    for (int k = 0; k < 3; k++) /* all are on their way before the first is waited for */
        if (tensor_there(a.in[k]))
            raw[k] =
                piece_load<W>(tensor_at(a.in[k], p.image, p.pixel, p.channel), a.in[k].type, p.on);
#pragma unroll
    for (int k = 0; k < 3; k++)
        pieces_values<W, 1>(v + k, raw + k, a.in[k].type);
    if (a.op == CUDA_ACTIVATE) activate<W>(v[0], a.act);
    if (a.op == CUDA_MULTIPLY) activate<W>(v[1], a.act);
    map_values<W>(v[0], v[1], v[2], a);
    char *to = (char *)tensor_at(a.out, p.image, p.pixel, p.channel);
    if (a.op == CUDA_TO_U8)
        bytes_store<W>(to, v[0], p.on);
    else
        values_store<W>(to, a.out.type, v[0], p.on);
}

/* ---- values at other places ---- */

struct source {
    int pixel, channel, which; /* which: of the two inputs */
};

DEVICE struct source source_of(const struct cuda_gather &a, uint32_t pixel, int channel)
{
    uint32_t y = pixel / (uint32_t)a.w, x = pixel % (uint32_t)a.w, side = (uint32_t)a.patch;
    int squared = a.patch * a.patch, inside;
    struct source s = {(int)pixel, channel, 0};
    switch (a.op) {
    case CUDA_CONCAT:
        s.which = channel >= a.first;
        s.channel -= s.which ? a.first : 0;
        break;
    case CUDA_RESIZE:
        s.pixel = (int)(y * (uint32_t)a.in_h / (uint32_t)a.h * (uint32_t)a.in_w +
                        x * (uint32_t)a.in_w / (uint32_t)a.w);
        break;
    case CUDA_PATCHES: /* from (y, x) in patches to pixels */
        inside = a.channel_first ? channel % squared : channel / (a.c / squared);
        s.channel = a.channel_first ? channel / squared : channel % (a.c / squared);
        s.pixel = (int)((y * side + (uint32_t)inside / side) * (uint32_t)a.w * side + x * side +
                        (uint32_t)inside % side);
        break;
    case CUDA_UNPATCHES:
        inside = (int)(y % side * side + x % side);
        s.channel = a.channel_first ? channel * squared + inside : inside * a.c + channel;
        s.pixel = (int)(y / side * ((uint32_t)a.w / side) + x / side);
        break;
    }
    return s;
}

template <int W> DEVICE void gather(const struct cuda_gather &a)
{
    struct point p = point_here<W>(a.c, (int64_t)a.h * a.w);
    struct source s = source_of(a, p.pixel, p.channel);
    const struct cuda_tensor &in = s.which ? a.in[1] : a.in[0];
    float v[W];
    values_load<W>(v, tensor_at(in, p.image, s.pixel, s.channel), in.type, p.on);
    values_store<W>((char *)tensor_at(a.out, p.image, p.pixel, p.channel), a.out.type, v, p.on);
}

template <int W> DEVICE void embedding(const struct cuda_embedding &a)
{
    struct point p = point_here<W>(a.channels, a.tokens);
    uint32_t id = global_load_4(a.ids + (int64_t)p.image * a.tokens + p.pixel, p.on);
    float v[W], added[W];
    values_load<W>(v, tensor_at(a.table, 0, id, p.channel), a.table.type, p.on);
    if (tensor_there(a.added)) {
        values_load<W>(added, tensor_at(a.added, 0, p.pixel, p.channel), a.added.type, p.on);
#pragma unroll
        for (int i = 0; i < W; i++)
            v[i] += added[i];
    }
    values_store<W>((char *)tensor_at(a.out, p.image, p.pixel, p.channel), a.out.type, v, p.on);
}

/* The angle is rounded to f32 as torch's is: at t near 1000 that is part of the embedding. Whole
 * turns leave it in double, so that none of it is lost on the way to the sine. */
DEVICE void sinusoid(const struct cuda_sinusoid &a)
{
    struct point p = point_here<1>(a.channels, 1);
    int half = a.channels / 2, i = p.channel % half, second = p.channel / half;
    float t = bits_float(global_load_4(tensor_image(a.t, p.image), p.on));
    float exponent = product(-9.210340371976184f, (float)i) / ((float)half - a.shift);
    float angle = product(t, (float)exp((double)exponent));
    double turns = angle * 0.15915494309189535; /* 1 / (2 pi) */
    float part = (float)(2 * (turns - rint(turns)));
    float v = second == 2 ? 0 : second != a.flip ? cosine_pi(part) : sine_pi(part);
    values_store<1>((char *)tensor_at(a.out, p.image, 0, p.channel), a.out.type, &v, p.on);
}

/* ---- between two calls of the denoiser ---- */

/* Every product is rounded before it is summed, as the host's are. */
DEVICE float sample_next(const struct cuda_sample &a, float x, float y, const float p[5])
{
    float clean = y, noise = y; /* what the output says of x0 and of eps */
    switch (a.form) {
    case CUDA_SAMPLE_DDIM_EPSILON: clean = (x - product(p[1], y)) / p[0]; break;
    case CUDA_SAMPLE_DDIM_SAMPLE: noise = (x - product(p[0], y)) / p[1]; break;
    case CUDA_SAMPLE_DDIM_V:
        clean = product(p[0], x) - product(p[1], y);
        noise = product(p[0], y) + product(p[1], x);
        break;
    case CUDA_SAMPLE_EULER_V:
    case CUDA_SAMPLE_SLOPE_V: clean = product(y, p[3]) + x / p[2]; break;
    case CUDA_SAMPLE_EULER_EPSILON:
    case CUDA_SAMPLE_SLOPE_EPSILON: clean = x - product(p[0], y); break;
    case CUDA_SAMPLE_PNDM_V: noise = product(p[3], y) + product(p[4], x); break;
    default: break; /* the output is what is asked for */
    }
    if (a.clip > 0) clean = fminf(fmaxf(clean, -a.clip), a.clip);
    if (a.form <= CUDA_SAMPLE_DDIM_SAMPLE) return product(p[2], clean) + product(p[3], noise);
    if (a.form <= CUDA_SAMPLE_EULER_SAMPLE) return x + product((x - clean) / p[0], p[1]);
    if (a.form <= CUDA_SAMPLE_SLOPE_SAMPLE) return (x - clean) / p[0];
    return product(p[0], x) - product(p[1], noise) / p[2];
}

/* Latents are few: a value a thread. */
DEVICE void sample(const struct cuda_sample &a)
{
    struct point p = point_here<1>((int)a.count, 1);
    int64_t at = (int64_t)p.image * a.count + p.channel;
    float param[CUDA_SAMPLE_TERMS], x[CUDA_SAMPLE_TERMS] = {}, sum = 0;
#pragma unroll
    for (int k = 0; k < CUDA_SAMPLE_TERMS; k++) {
        param[k] = global_load_float(a.params + p.image * CUDA_SAMPLE_TERMS + k);
        if (k < a.terms) x[k] = bits_float(global_load_4(a.x[k] + at, p.on));
        if (k < a.terms) sum = k ? sum + product(param[k], x[k]) : product(param[k], x[k]);
    }
    if (a.form != CUDA_SAMPLE_BLEND) sum = sample_next(a, x[0], x[1], param);
    global_store_4(a.out + at, float_bits(sum), p.on);
}

#endif
