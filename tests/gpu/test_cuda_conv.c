// SPDX-License-Identifier: Apache-2.0
/* The CUDA convolution kernels' own source on the SIMT model, through their launcher, against a
 * plain loop in double on the same rounded inputs. Every run is watched (simt.h), repeated under
 * another schedule, and made by every tile, in another batch and in bands: all to the bit. The
 * worst value measured stands beside each limit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda/launch.h"
#include "error.h"
#include "simt.h"

static uint32_t state = 1;

static float uniform(void) /* -1..1 */
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1;
}

/* ---- a case ---- */

struct shape {
    int batch, h, w, in, out, size, stride, padding;
    int up_h, up_w; /* 0: not resized */
    int below;      /* rows of zeros more, on the far side alone */
    int gap;        /* values between the channels of one pixel and the next, everywhere */
    int plain;      /* no bias, vector, residual or activation */
    int linear;     /* weights as a linear has them */
    int doubled;    /* weights for the four parities */
    int beside;     /* columns, as `below` */
};

/* Rows [B, pixels, channels], rounded: dense for the reference, and as the device has them. */
struct rows {
    int count, channels, stride;
    float *dense;
    uint16_t *device;
};

struct job {
    struct shape s;
    int f16, out_h, out_w;
    enum activation act;
    struct rows in, residual, vector;
    float *weight, *bias; /* torch's [out, in, size, size] */
    uint16_t *packed;
    size_t packed_values;
};

static void *take(size_t bytes)
{
    void *x = aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
    assert_non_null(x);
    memset(x, 0xff, bytes); /* NaN */
    return x;
}

static struct rows rows_make(int f16, int count, int channels, int gap, float scale)
{
    struct rows r = {count, channels, channels + gap, NULL, NULL};
    r.dense = take((size_t)(count * channels) * sizeof *r.dense);
    r.device = take((size_t)(count * r.stride) * sizeof *r.device);
    for (int i = 0; i < count; i++)
        for (int c = 0; c < channels; c++) {
            uint16_t narrow = simt_round(uniform() * scale, f16);
            r.dense[i * channels + c] = simt_widen(narrow, f16);
            r.device[i * r.stride + c] = narrow;
        }
    return r;
}

static void rows_free(struct rows *r)
{
    free(r->dense);
    free(r->device);
}

static void rows_name(const struct rows *r)
{
    simt_memory(r->device, (size_t)(r->count * r->stride) * 2, 1, 0);
}

static struct job job_make(struct shape s, int f16, enum activation act, float scale)
{
    struct job j = {.s = s, .f16 = f16, .act = act};
    int up_h = s.up_h ? s.up_h : s.h, up_w = s.up_w ? s.up_w : s.w, taps = s.size * s.size;
    j.out_h = (up_h + 2 * s.padding + s.below - s.size) / s.stride + 1;
    j.out_w = (up_w + 2 * s.padding + s.beside - s.size) / s.stride + 1;
    j.in = rows_make(f16, s.batch * s.h * s.w, s.in, s.gap, scale);
    j.residual = rows_make(f16, s.batch * j.out_h * j.out_w, s.out, s.gap, 1);
    j.vector = rows_make(f16, s.batch, s.out, s.gap, 1);
    j.weight = take((size_t)(s.out * s.in * taps) * sizeof *j.weight);
    j.bias = take((size_t)s.out * sizeof *j.bias);
    float spread = 2 / sqrtf((float)(s.in * taps));
    int row = s.linear ? s.in + s.gap : s.in * taps;
    uint16_t *torch = take((size_t)(s.out * row) * sizeof *torch);
    for (int o = 0; o < s.out; o++)
        for (int i = 0; i < s.in * taps; i++) {
            /* Doubled: of 1/64, so that sums of four are exact. */
            float x = s.doubled ? rintf(uniform() * 16) / 64 : uniform() * spread;
            torch[o * row + i] = simt_round(x, f16);
            j.weight[o * s.in * taps + i] = simt_widen(torch[o * row + i], f16);
        }
    for (int o = 0; o < s.out; o++)
        j.bias[o] = uniform();
    j.packed_values = (size_t)(s.out * row);
    j.packed = torch;
    if (s.doubled) {
        size_t count = (size_t)(s.out * s.in) * 4, packed = cuda_conv_packed(s.out, s.in, 2);
        float *quarters = take(4 * count * sizeof *quarters);
        uint16_t *narrow = take(count * sizeof *narrow);
        cuda_conv_double(quarters, j.weight, s.out, s.in);
        j.packed = take(4 * packed * sizeof *j.packed);
        for (size_t q = 0; q < 4; q++) {
            for (size_t i = 0; i < count; i++)
                narrow[i] = simt_round(quarters[q * count + i], f16);
            cuda_conv_pack(j.packed + q * packed, narrow, s.out, s.in, 2);
        }
        j.packed_values = 4 * packed;
        free(quarters);
        free(narrow);
        free(torch);
    } else if (!s.linear) {
        j.packed_values = cuda_conv_packed(s.out, s.in, s.size);
        j.packed = take(j.packed_values * sizeof *j.packed);
        cuda_conv_pack(j.packed, torch, s.out, s.in, s.size);
        free(torch);
    }
    return j;
}

static void job_free(struct job *j)
{
    rows_free(&j->in);
    rows_free(&j->residual);
    rows_free(&j->vector);
    free(j->weight);
    free(j->bias);
    free(j->packed);
}

static double activated(double x, enum activation act)
{
    switch (act) {
    case ACT_NONE: break;
    case ACT_SILU: return x / (1 + exp(-x));
    case ACT_GELU: return 0.5 * x * (1 + erf(x * sqrt(0.5)));
    case ACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACT_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    case ACT_RELU: return x > 0 ? x : 0;
    case ACT_TANH: return tanh(x);
    }
    return x;
}

/* One output, in double. */
static double want_one(const struct job *j, int b, int y, int x, int o)
{
    const struct shape *s = &j->s;
    int up_h = s->up_h ? s->up_h : s->h, up_w = s->up_w ? s->up_w : s->w;
    int pixel = (b * j->out_h + y) * j->out_w + x;
    double sum = s->plain ? 0
                          : (double)j->bias[o] + j->vector.dense[b * s->out + o] +
                                j->residual.dense[pixel * s->out + o];
    for (int r = 0; r < s->size; r++)
        for (int c = 0; c < s->size; c++) {
            int row = y * s->stride - s->padding + r, column = x * s->stride - s->padding + c;
            if (row < 0 || row >= up_h || column < 0 || column >= up_w) continue;
            int from = (b * s->h + row * s->h / up_h) * s->w + column * s->w / up_w;
            for (int i = 0; i < s->in; i++)
                sum += (double)j->in.dense[from * s->in + i] *
                       j->weight[((o * s->in + i) * s->size + r) * s->size + c];
        }
    return s->plain ? sum : activated(sum, j->act);
}

/* ---- the kernels ---- */

/* How one result is made. Images first .. first + images - 1, rows in bands of `rows`. */
struct way {
    enum cuda_tile tile;
    uint64_t seed;
    int f32, first, images, rows, in_place;
};

static struct cuda_conv job_arg(const struct job *j)
{
    const struct shape *s = &j->s;
    return (struct cuda_conv){
        .type = j->f16 ? CUDA_F16 : CUDA_BF16,
        .out_type = j->f16 ? CUDA_F16 : CUDA_BF16,
        .batch = s->batch,
        .in_h = s->h,
        .in_w = s->w,
        .in_c = s->in,
        .up_h = s->up_h,
        .up_w = s->up_w,
        .out_h = j->out_h,
        .out_w = j->out_w,
        .out_c = s->out,
        .size = s->size,
        .stride = s->stride,
        .padding = s->padding,
        .doubled = s->doubled,
        .in_rows = s->h,
        .out_rows = j->out_h,
        .in = j->in.device,
        .in_stride = j->in.stride,
        .in_image_stride = (int64_t)s->h * s->w * j->in.stride,
        .weight = j->packed,
        .weight_stride = s->linear ? s->in + s->gap : 0,
        .bias = s->plain ? NULL : j->bias,
        .per_image = s->plain ? NULL : j->vector.device,
        .per_image_stride = j->vector.stride,
        .residual = s->plain ? NULL : j->residual.device,
        .residual_stride = j->residual.stride,
        .residual_image_stride = (int64_t)j->out_h * j->out_w * j->residual.stride,
        .act = s->plain ? ACT_NONE : j->act,
        .out_stride = j->residual.stride,
        .out_image_stride = (int64_t)j->out_h * j->out_w * j->residual.stride,
    };
}

/* The rows of the input that a band needs, with one value of memory no more. */
static void band_cut(struct cuda_conv *c)
{
    int up = c->up_h ? c->up_h : c->in_h;
    int first = c->out_first * c->stride - c->padding;
    int last = (c->out_first + c->out_rows - 1) * c->stride - c->padding + c->size - 1;
    if (first < 0) first = 0;
    if (first > up - 1) first = up - 1;
    if (last > up - 1) last = up - 1;
    if (last < first) last = first;
    c->in_first = first * c->in_h / up;
    c->in_rows = last * c->in_h / up - c->in_first + 1;
    c->in = (const uint16_t *)c->in + (int64_t)c->in_first * c->in_w * c->in_stride;
}

/* Watched; dense f32 [images, out_h, out_w, out] whatever the type, to be freed. */
static float *job_run(const struct job *j, struct way w)
{
    const struct shape *s = &j->s;
    int pixels = j->out_h * j->out_w, stride = j->residual.stride, width = w.f32 ? 4 : 2;
    size_t values = (size_t)(w.images * pixels * stride), bytes = values * (size_t)width;
    unsigned char *out = take(bytes);
    size_t image = (size_t)w.first;
    memset(out, 0x5a, bytes);
    if (w.in_place) memcpy(out, j->residual.device, bytes);
    for (int row = 0; row < j->out_h; row += w.rows) {
        struct cuda_conv c = job_arg(j);
        c.tile = w.tile;
        c.batch = w.images;
        c.out_first = row;
        c.out_rows = row + w.rows < j->out_h ? w.rows : j->out_h - row;
        c.out_type = w.f32 ? CUDA_F32 : c.type;
        c.in = j->in.device + image * (size_t)c.in_image_stride;
        if (row / w.rows % 2 == 0) band_cut(&c); /* the others see all of the image */
        c.out = out + (size_t)(row * j->out_w * stride * width);
        if (c.residual) {
            c.per_image = j->vector.device + image * (size_t)j->vector.stride;
            c.residual = j->residual.device + image * (size_t)c.residual_image_stride +
                         (size_t)row * (size_t)j->out_w * (size_t)stride;
            if (w.in_place) c.residual = c.out;
        }
        size_t workspace = cuda_conv_workspace(&c);
        c.workspace = take(workspace);
        simt_reset(w.seed);
        for (int b = 0; b < w.images; b++) /* the band's rows alone */
            simt_memory((const uint16_t *)c.in + b * c.in_image_stride,
                        (size_t)(c.in_rows * c.in_w * j->in.stride) * 2, 1, 0);
        rows_name(&j->residual);
        rows_name(&j->vector);
        simt_memory(j->packed, j->packed_values * 2, 1, 0);
        simt_memory(j->bias, (size_t)s->out * sizeof *j->bias, 1, 0);
        simt_memory(c.workspace, workspace, 0, 1);
        simt_memory_bytes(out, bytes, w.in_place, 1);
        assert_int_equal(cuda_conv(&c, NULL), 0);
        if (simt_counts().errors) fail_msg("%s", simt_error());
        free(c.workspace);
    }
    float *dense = take((size_t)(w.images * pixels * s->out) * sizeof *dense);
    for (int i = 0; i < w.images * pixels; i++)
        for (int o = 0; o < stride; o++) {
            size_t at = (size_t)(i * stride + o) * (size_t)width;
            if (o >= s->out) {
                for (int k = 0; k < width && !w.in_place; k++)
                    assert_int_equal(out[at + (size_t)k], 0x5a); /* somebody else's */
            } else if (w.f32) {
                memcpy(dense + i * s->out + o, out + at, 4);
            } else {
                uint16_t x;
                memcpy(&x, out + at, 2);
                dense[i * s->out + o] = simt_widen(x, j->f16);
            }
        }
    free(out);
    return dense;
}

static void same(const struct job *j, const float *whole, struct way w, const char *what)
{
    float *other = job_run(j, w);
    size_t image = (size_t)(j->out_h * j->out_w * j->s.out);
    if (memcmp(whole + (size_t)w.first * image, other, (size_t)w.images * image * sizeof *other))
        fail_msg("%s: other bytes", what);
    free(other);
}

/* norm2(got - want) / norm2(want) in f32, everything else being equal to the bit to that or, in the
 * narrow type, to its rounding. */
static double job_error(const struct job *j)
{
    const struct shape *s = &j->s;
    struct way way = {.tile = CUDA_TILE_SMALL, .seed = 1, .f32 = 1, .images = s->batch};
    way.rows = j->out_h;
    float *got = job_run(j, way);
    double d = 0, n = 0;
    size_t at = 0;
    for (int b = 0; b < s->batch; b++)
        for (int y = 0; y < j->out_h; y++)
            for (int x = 0; x < j->out_w; x++)
                for (int o = 0; o < s->out; o++, at++) {
                    double want = want_one(j, b, y, x, o);
                    d += (got[at] - want) * (got[at] - want);
                    n += want * want;
                }
    struct way wide = way, thin = way, bands = way, alone = way;
    wide.tile = CUDA_TILE_WIDE;
    thin.tile = CUDA_TILE_THIN;
    bands.tile = alone.tile = CUDA_TILE_AUTO;
    wide.seed = 3;
    thin.seed = 4;
    bands.seed = 5;
    same(j, got, wide, "wide");
    same(j, got, thin, "thin");
    bands.rows = (j->out_h + 2) / 3;
    bands.rows += bands.rows % 2 && s->doubled;
    if (j->out_h > 1) same(j, got, bands, "bands");
    alone.images = 1;
    for (alone.first = 0; alone.first < s->batch && s->batch > 1; alone.first++)
        same(j, got, alone, "an image alone");
    for (size_t i = 0; i < at; i++)
        got[i] = simt_widen(simt_round(got[i], j->f16), j->f16);
    way.f32 = 0;
    way.seed = 2;
    same(j, got, way, "rounded");
    way.in_place = !s->plain;
    same(j, got, way, "in place");
    free(got);
    return n > 0 ? sqrt(d / n) : sqrt(d);
}

static void hold(const char *name, double worst, double limit)
{
    print_message("%-28s %.2e (limit %.0e)\n", name, worst, limit);
    if (!(worst <= limit)) fail_msg("%s: %g is over %g", name, worst, limit);
}

/* ---- tests ---- */

static const struct form {
    const char *name;
    struct shape s;
} forms[] = {
    /* batch, h, w, in, out, size, stride */
    {"3x3", {2, 9, 20, 40, 72, 3, 1, .padding = 1}},
    {"3x3 of one pixel", {3, 1, 1, 32, 8, 3, 1, .padding = 1, .gap = 8}},
    {"3x3, 4 to 24 channels", {2, 5, 7, 4, 24, 3, 1, .padding = 1}},
    {"3x3, 3 to 20 channels", {1, 12, 8, 3, 20, 3, 1, .padding = 1, .gap = 1}},
    {"3x3, 24 to 3 channels", {2, 12, 9, 24, 3, 3, 1, .padding = 1}},
    {"3x3, 64 to 4 channels", {1, 6, 18, 64, 4, 3, 1, .padding = 1}},
    {"3x3, 33 to 130 channels", {1, 3, 5, 33, 130, 3, 1, .padding = 1, .gap = 1}},
    {"3x3, stride 2", {2, 11, 16, 32, 40, 3, 2, .padding = 1}},
    {"3x3, stride 2, far zeros", {1, 8, 10, 16, 16, 3, 2, .padding = 0, .below = 1, .beside = 1}},
    {"3x3 without padding", {1, 5, 6, 8, 8, 3, 1, .padding = 0, .gap = 1, .plain = 1}},
    {"5x5, stride 2", {1, 13, 11, 8, 8, 5, 2, .padding = 2}},
    {"7x7", {1, 6, 9, 16, 16, 7, 1, .padding = 3, .gap = 8}},
    {"1x1", {2, 5, 7, 72, 136, 1, 1, .padding = 0, .gap = 16}},
    {"1x1, stride 2, padding 1", {1, 5, 7, 16, 8, 1, 2, .padding = 1}},
    {"1x1, rows below", {1, 5, 8, 16, 8, 1, 1, .padding = 0, .below = 3}},
    {"up 2x", {2, 5, 6, 24, 32, 3, 1, .padding = 1, .up_h = 10, .up_w = 12}},
    {"up to 13x9", {1, 5, 7, 16, 8, 3, 1, .padding = 1, .up_h = 13, .up_w = 9}},
    {"doubled", {2, 5, 11, 40, 24, 3, 1, .padding = 1, .up_h = 10, .up_w = 22, .doubled = 1}},
    {"doubled, wide",
     {1, 9, 16, 8, 136, 3, 1, .padding = 1, .up_h = 18, .up_w = 32, .gap = 8, .doubled = 1}},
    {"doubled, 3 to 3 channels",
     {1, 1, 4, 3, 3, 3, 1, .padding = 1, .up_h = 2, .up_w = 8, .doubled = 1}},
    {"doubled, splits", {2, 3, 4, 512, 20, 3, 1, .padding = 1, .up_h = 6, .up_w = 8, .doubled = 1}},
    {"down to 4x5, 1x1", {1, 9, 7, 16, 8, 1, 1, .padding = 0, .up_h = 4, .up_w = 5}},
    {"splits", {3, 4, 8, 320, 20, 3, 1, .padding = 1, .gap = 4}},
    {"splits, 3 channels", {1, 4, 4, 200, 3, 3, 1, .padding = 1}},
    {"matrix", {3, 1, 77, 72, 136, 1, 1, .padding = 0, .gap = 8, .linear = 1}},
    {"plain matrix", {1, 1, 130, 320, 65, 1, 1, .padding = 0, .plain = 1, .linear = 1}},
};

static void test_forms(void **unused)
{
    (void)unused;
    double worst = 0;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct job j = job_make(forms[i].s, i % 2, (enum activation)(i % (ACT_TANH + 1)), 1);
        double e = job_error(&j);
        print_message("%-28s %.2e\n", forms[i].name, e);
        if (!(e <= worst)) worst = e; /* a NaN stays */
        job_free(&j);
    }
    hold("worst", worst, 5e-7); /* 3.0e-7 */
}

/* Sums near the largest numbers; narrow types that overflow do so as rounding does. */
static void test_extremes(void **unused)
{
    (void)unused;
    static const struct shape shape = {1, 5, 9, 40, 24, 3, 1, .padding = 1};
    double worst = 0;
    for (int act = ACT_NONE; act <= ACT_TANH; act++)
        for (int f16 = 0; f16 < 2; f16++) {
            struct job j = job_make(shape, f16, (enum activation)act, f16 ? 6e4f : 1e36f);
            double e = job_error(&j);
            if (!(e <= worst)) worst = e;
            job_free(&j);
        }
    hold("large", worst, 1e-6);                         /* 3.3e-7 */
    struct job j = job_make(shape, 1, ACT_NONE, 6e-8f); /* f16's least */
    hold("small", job_error(&j), 1e-6);                 /* 3.4e-8 */
    job_free(&j);
}

/* A NaN is in the windows over it and nowhere else: not in padding, nor in a neighbour's tile. */
static void test_window(void **unused)
{
    (void)unused;
    static const struct shape shape = {1, 20, 20, 8, 8, 3, 1, .padding = 1, .plain = 1};
    for (int f16 = 0; f16 < 2; f16++)
        for (int at = 0; at < 400; at += 57) {
            struct job j = job_make(shape, f16, ACT_NONE, 1);
            j.in.device[at * 8 + at % 8] = 0x7fff;
            struct way way = {.tile = CUDA_TILE_SMALL, .seed = 1, .f32 = 1, .images = 1};
            way.rows = 20;
            float *got = job_run(&j, way);
            for (int i = 0; i < 400; i++) {
                int near = abs(i / 20 - at / 20) <= 1 && abs(i % 20 - at % 20) <= 1;
                for (int o = 0; o < 8; o++)
                    assert_int_equal(isnan(got[i * 8 + o]) != 0, near);
            }
            free(got);
            job_free(&j);
        }
}

/* What a decoder's 3x3 convolution costs, counted: 32 x 8 pixels of 64 channels, 128 out. */
static void test_costs(void **unused)
{
    (void)unused;
    static const struct shape shape = {1, 8, 32, 64, 128, 3, 1, .padding = 1};
    struct job j = job_make(shape, 0, ACT_SILU, 1);
    free(job_run(&j, (struct way){.tile = CUDA_TILE_WIDE, .seed = 1, .images = 1, .rows = 8}));
    struct simt_counts n = simt_counts();
    /* Two rectangles of 8 x 16 pixels, patches of 10 x 18, 2 blocks of channels, 9 taps of each. */
    assert_int_equal(n.mma, 2 * 2 * 9 * 4 * 64);
    assert_int_equal(n.copies, 2 * 2 * (10 * 18 + 9 * 128) * 4);
    assert_int_equal(n.barriers, 2 * (1 + 2 * 9 + 2));
    assert_int_equal(n.matrix_waves, n.matrices);
    assert_int_equal(n.matrices, 2 * 2 * 9 * 4 * 2 * 8 * 4);
    assert_int_equal(n.store_bytes, n.store_sectors * 32);
    assert_int_equal(n.store_bytes, 8 * 32 * 128 * 2);
    double waves = (double)n.shared_waves / (double)n.shared_accesses;
    print_message("shared waves per access      %.3f\n", waves);
    assert_true(waves <= 1.02); /* 1.008: taps, of which a warp reads one */
    job_free(&j);
}

/* Parts of a sum follow from the shape of one image: 3 of them here, in any batch and band. */
static void test_splits(void **unused)
{
    (void)unused;
    struct cuda_conv c = {
        .batch = 1, .in_c = 1280, .out_h = 16, .out_w = 16, .out_c = 1280, .size = 3};
    c.out_rows = 16;
    assert_int_equal(cuda_conv_workspace(&c), 3 * 16 * 16 * 1280 * 4);
    c.out_rows = 4;
    assert_int_equal(cuda_conv_workspace(&c), 3 * 4 * 16 * 1280 * 4);
    c.batch = 7;
    assert_int_equal(cuda_conv_workspace(&c), 7 * 3 * 4 * 16 * 1280 * 4);
}

static void test_packing(void **unused)
{
    (void)unused;
    uint16_t torch[2 * 33 * 4], packed[2 * 4 * 2 * CUDA_CONV_BLOCK];
    assert_int_equal(cuda_conv_packed(2, 33, 2), sizeof packed / sizeof *packed);
    for (int i = 0; i < 2 * 33 * 4; i++)
        torch[i] = (uint16_t)(i + 1);
    cuda_conv_pack(packed, torch, 2, 33, 2);
    for (int i = 0; i < 2 * CUDA_CONV_BLOCK; i++)
        for (int tap = 0; tap < 4; tap++)
            for (int o = 0; o < 2; o++) {
                int at = ((i / CUDA_CONV_BLOCK * 4 + tap) * 2 + o) * CUDA_CONV_BLOCK;
                assert_int_equal(packed[at + i % CUDA_CONV_BLOCK],
                                 i < 33 ? (o * 33 + i) * 4 + tap + 1 : 0);
            }
}

/* An odd change to a good call, and what it is answered with. */
static void test_refusals(void **unused)
{
    (void)unused;
    static const struct shape shape = {1, 8, 8, 16, 16, 3, 1, .padding = 1};
    struct job j = job_make(shape, 0, ACT_NONE, 1);
    uint16_t *out = take(8 * 8 * 16 * 2);
    struct cuda_conv good = job_arg(&j);
    good.out = out;
    simt_reset(1);
    simt_memory(j.in.device, 8 * 8 * 16 * 2, 1, 0);
    simt_memory(j.packed, j.packed_values * 2, 1, 0);
    simt_memory(j.bias, 16 * 4, 1, 0);
    rows_name(&j.vector);
    rows_name(&j.residual);
    simt_memory(out, 8 * 8 * 16 * 2, 0, 1);
    assert_int_equal(cuda_conv(&good, NULL), 0);
    uint64_t launches = simt_counts().launches;
    enum { WRONG = 32 };
    for (int i = 0; i <= WRONG; i++) {
        struct cuda_conv c = good;
        int code = STEER_BAD_VALUE;
        switch (i) {
        case 0: c.batch = 0; break;
        case 1: c.batch = 65536; break;
        case 2: c.in_h = 0; break;
        case 3: c.in_w = -1; break;
        case 4: c.in_c = 0; break;
        case 5: c.out_c = 0; break;
        case 6: c.out_h = 0; break;
        case 7: c.out_w = 0; break;
        case 8: c.size = 0; break;
        case 9: c.size = 17; break;
        case 10: c.stride = 0; break;
        case 11: c.padding = -1; break;
        case 12: c.in_first = 1; break; /* more rows than there are */
        case 13: c.in_rows = 7; break;  /* the last window's are not there */
        case 14: c.in_first = 1, c.in_rows = 7; break;
        case 15: c.out_first = 1; break;
        case 16: c.out_rows = 9; break;
        case 17: c.in = NULL; break;
        case 18: c.weight = NULL; break;
        case 19: c.out = NULL; break;
        case 20: c.in_stride = 15; break;
        case 21: c.out_stride = 15; break;
        case 22: c.residual_stride = 15; break;
        case 23: c.weight = j.packed + 4; break;
        case 24: c.weight_stride = 16; break; /* of a 3x3 */
        case 25: c.in_h = c.in_w = 1 << 17; break;
        case 26: c.out_h = c.out_w = 1 << 17; break;
        case 27: c.up_h = 1 << 16; break;
        case 28: c.in_c = 320, c.in_stride = 320; break; /* that splits */
        case 29: c.type = CUDA_F32; break;
        case 30: c.out_type = CUDA_F16; break; /* of bf16 */
        case 31: c.doubled = 1; break;         /* of an image that is not */
        default:                               /* patches that no block has room for */
            c.size = 15, c.stride = 8, c.padding = 7;
            code = STEER_UNSUPPORTED;
        }
        if (cuda_conv(&c, NULL) != code) fail_msg("case %d was taken", i);
    }
    assert_int_equal(simt_counts().launches, launches);
    free(out);
    job_free(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),    cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_window),   cmocka_unit_test(test_costs),
        cmocka_unit_test(test_splits),   cmocka_unit_test(test_packing),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
