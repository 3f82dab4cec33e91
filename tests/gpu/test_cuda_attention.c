// SPDX-License-Identifier: Apache-2.0
/* The CUDA attention kernels' own source on the SIMT model, through their launchers, against `ref`
 * on the same rounded inputs: forms, shapes, both types, extremes; the methods' invariants; what
 * the kernels cost. Every run is watched (simt.h) and repeated under another schedule, to the bit.
 * The worst value measured stands beside each limit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compute.h"
#include "cuda/launch.h"
#include "simt.h"

static struct compute *ref;
static uint32_t state = 1;

static float uniform(void) /* -1..1 */
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1;
}

/* ---- inputs: what ref reads, and the same in "device" memory ---- */

enum { IMAGES = 2, PIECES_MAX = 64 };

/* Everything that one case allocates. */
struct pool {
    void *piece[PIECES_MAX];
    int count;
};

static void *take(struct pool *p, size_t bytes)
{
    assert_true(p->count < PIECES_MAX);
    void *x = aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
    assert_non_null(x);
    memset(x, 0xff, bytes); /* NaN */
    return p->piece[p->count++] = x;
}

static void pool_free(struct pool *p)
{
    while (p->count)
        free(p->piece[--p->count]);
}

/* Rows of numbers: dense for ref; for the device with NaN between the rows of `stride` values, or
 * each image at an address of its own. */
struct rows {
    float *dense; /* [IMAGES, count, width] */
    char *device;
    const void **table; /* NULL: one array */
    size_t image_bytes;
    struct cuda_rows arg;
};

static struct rows rows_make(struct pool *p, int f16, int count, int width, float scale, int apart)
{
    int stride = width + (apart ? 0 : 8);
    struct rows r = {.image_bytes = (size_t)count * (size_t)stride * 2};
    r.dense = take(p, (size_t)(IMAGES * count * width + 1) * sizeof(float));
    r.device = take(p, IMAGES * r.image_bytes + 2);
    for (int i = 0; i < IMAGES * count; i++)
        for (int c = 0; c < width; c++) {
            uint16_t narrow = simt_round(uniform() * scale, f16);
            r.dense[i * width + c] = simt_widen(narrow, f16);
            ((uint16_t *)(void *)r.device)[i * stride + c] = narrow;
        }
    r.arg.row_stride = stride;
    if (apart) {
        r.table = take(p, IMAGES * sizeof *r.table);
        for (int b = 0; b < IMAGES; b++) /* the images change places */
            r.table[b] = r.device + (size_t)b * r.image_bytes;
        r.arg.table = r.table;
    } else {
        r.arg.base = r.device;
        r.arg.image_stride = (int64_t)count * stride;
    }
    return r;
}

static void rows_name(const struct rows *r)
{
    if (r->image_bytes) simt_memory(r->device, IMAGES * r->image_bytes, 1, 0);
    if (r->table) simt_memory(r->table, IMAGES * sizeof *r->table, 1, 0);
}

/* ---- a case ---- */

enum { S, P, N };
struct attend {
    int rows, keys[3], heads, d, f16, causal, masked, biased, apart; /* keys: shared, P, N */
    enum guidance_method method;
    enum guidance_variant variant;
    float logits; /* of the queries; 1: soft */
    float params[IMAGES * GUIDANCE_PARAMS];
    struct rows q, k[3], v[3];
    float *mask[3], *bias;
    struct pool pool;
};

static const float usual[GUIDANCE_PARAMS] = {[GUIDANCE_ALPHA] = 0.7f,
                                             [GUIDANCE_OFFSET] = 0.5f,
                                             [GUIDANCE_PHI] = 4,
                                             [GUIDANCE_TAU] = 1.2f,
                                             [GUIDANCE_BETA] = 0.4f};

static void attend_fill(struct attend *a)
{
    int width = a->heads * a->d;
    a->q = rows_make(&a->pool, a->f16, a->rows, width, a->logits, 0);
    for (int s = 0; s < 3; s++) {
        a->k[s] = rows_make(&a->pool, a->f16, a->keys[s], width, 1, a->apart);
        a->v[s] = rows_make(&a->pool, a->f16, a->keys[s], width, 1, a->apart);
        a->mask[s] = take(&a->pool, (size_t)(IMAGES * a->keys[s] + 1) * sizeof(float));
        for (int i = 0; i < IMAGES * a->keys[s]; i++)
            a->mask[s][i] = i % (3 + s) ? uniform() : -INFINITY;
    }
    size_t biases = (size_t)(a->rows * a->keys[P] * a->heads);
    a->bias = a->biased ? take(&a->pool, biases * sizeof(float)) : NULL;
    for (size_t i = 0; a->biased && i < biases; i++)
        a->bias[i] = uniform();
    for (int i = 0; i < IMAGES * GUIDANCE_PARAMS; i++)
        a->params[i] = usual[i % GUIDANCE_PARAMS] * (i < GUIDANCE_PARAMS ? 1 : 0.5f);
}

/* ---- ref ---- */

struct feed {
    struct graph *g;
    struct tensor t[16];
    const float *data[16];
    int count;
};

static struct tensor feed(struct feed *f, struct shape s, const float *data)
{
    char name[8];
    snprintf(name, sizeof name, "%d", f->count);
    f->data[f->count] = data;
    return f->t[f->count++] = graph_input(f->g, name, s, TYPE_F32);
}

static struct text_keys feed_keys(struct feed *f, const struct attend *a, int s)
{
    struct text_keys t = TEXT_KEYS_NONE;
    struct shape shape = {IMAGES, 1, a->keys[s], a->heads * a->d};
    if (!a->keys[s]) return t;
    t.k = feed(f, shape, a->k[s].dense);
    t.v = feed(f, shape, a->v[s].dense);
    if (a->masked) t.mask = feed(f, (struct shape){IMAGES, 1, 1, a->keys[s]}, a->mask[s]);
    return t;
}

static float *attend_ref(const struct attend *a, enum guidance_method method)
{
    struct feed f = {.g = graph_new()};
    struct plan *p = NULL;
    struct steer_error err = {0};
    double scale = 1 / sqrt((double)a->d);
    struct tensor none = TENSOR_NONE, out;
    struct shape shape = {IMAGES, 1, a->rows, a->heads * a->d};
    struct tensor q = feed(&f, shape, a->q.dense);
    struct text_keys pos = feed_keys(&f, a, P);
    if (method == GUIDANCE_NONE && !a->keys[S]) {
        struct shape b = {1, a->rows, a->keys[P], a->heads};
        struct tensor bias = a->biased ? graph_constant(f.g, "bias", b, a->bias) : none;
        out = op_attention(f.g, q, pos.k, pos.v, a->heads, scale, a->causal, pos.mask, bias);
    } else {
        struct text_keys neg = method ? feed_keys(&f, a, N) : TEXT_KEYS_NONE;
        struct text_keys shared = feed_keys(&f, a, S);
        struct shape b = {IMAGES, 1, 1, GUIDANCE_PARAMS};
        out = op_guided_attention(f.g, q, pos, neg, shared, a->heads, scale, method, a->variant,
                                  method ? feed(&f, b, a->params) : none);
    }
    graph_output(f.g, out, "out", 0);
    if (compute_plan(&p, ref, f.g, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < f.count; i++) {
        struct shape s = graph_shape(f.g, f.t[i]);
        memcpy(plan_data(p, f.t[i]), f.data[i],
               (size_t)s.b * (size_t)s.h * (size_t)s.w * (size_t)s.c * sizeof(float));
    }
    if (plan_run(p, NULL, &err)) fail_msg("%s", err.text);
    size_t bytes = (size_t)(IMAGES * shape.w * shape.c) * sizeof(float);
    float *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, plan_data(p, out), bytes);
    plan_free(p);
    graph_free(f.g);
    return copy;
}

/* ---- the kernels ---- */

static size_t out_count(const struct attend *a)
{
    return (size_t)(IMAGES * a->rows * a->heads * a->d);
}

static struct cuda_attention attend_arg(const struct attend *a, void *out, void *difference)
{
    struct cuda_attention c = {.type = a->f16 ? CUDA_F16 : CUDA_BF16,
                               .batch = IMAGES,
                               .heads = a->heads,
                               .head_size = a->d,
                               .queries = a->rows,
                               .scale = (float)(1 / sqrt((double)a->d)),
                               .causal = a->causal,
                               .q = a->q.arg,
                               .bias = a->bias,
                               .method = a->method,
                               .variant = a->variant,
                               .params = a->params,
                               .out = out,
                               .difference = difference};
    for (int s = 0; s < 3; s++) {
        if (s == N && !a->method) continue;
        c.segment[s] = (struct cuda_keys){.k = a->k[s].arg, .v = a->v[s].arg, .keys = a->keys[s]};
        if (a->masked && a->keys[s])
            c.segment[s].mask = (struct cuda_rows){.base = a->mask[s], .image_stride = a->keys[s]};
    }
    return c;
}

/* One watched run with `batch` images, IMAGES or 1; out is [IMAGES, L, heads * D] of the type. */
static void attend_run(const struct attend *a, uint64_t seed, int batch, uint16_t *out)
{
    size_t bytes = out_count(a) * 2;
    uint16_t *difference = aligned_alloc(256, (bytes + 255) / 256 * 256);
    uint16_t *plus = aligned_alloc(256, (bytes + 255) / 256 * 256);
    assert_non_null(difference);
    assert_non_null(plus);
    simt_reset(seed);
    rows_name(&a->q);
    for (int s = 0; s < 3; s++) {
        rows_name(&a->k[s]);
        rows_name(&a->v[s]);
        simt_memory(a->mask[s], (size_t)(IMAGES * a->keys[s]) * sizeof(float), 1, 0);
    }
    if (a->bias)
        simt_memory(a->bias, (size_t)(a->rows * a->keys[P] * a->heads) * sizeof(float), 1, 0);
    simt_memory(a->params, sizeof a->params, 1, 0);
    simt_memory(plus, bytes, 0, 1);
    simt_memory(out, bytes, 0, 1);
    simt_memory(difference, bytes, 0, 1);
    struct cuda_attention c = attend_arg(a, a->method == GUIDANCE_NAG ? plus : out, difference);
    c.batch = batch;
    assert_int_equal(cuda_attention(&c, NULL), 0);
    if (a->method == GUIDANCE_NAG) {
        struct cuda_nag n = {.type = c.type,
                             .batch = batch,
                             .queries = a->rows,
                             .channels = a->heads * a->d,
                             .plus = plus,
                             .difference = difference,
                             .params = a->params,
                             .out = out};
        assert_int_equal(cuda_nag(&n, NULL), 0);
    }
    if (simt_counts().errors) fail_msg("%s", simt_error());
    free(plus);
    free(difference);
}

static uint16_t *attend_cuda(const struct attend *a)
{
    size_t bytes = out_count(a) * 2;
    uint16_t *out = aligned_alloc(256, (bytes + 255) / 256 * 256);
    uint16_t *again = aligned_alloc(256, (bytes + 255) / 256 * 256);
    assert_non_null(out);
    assert_non_null(again);
    attend_run(a, 1, IMAGES, out);
    attend_run(a, 2, IMAGES, again);
    assert_memory_equal(out, again, bytes);
    free(again);
    return out;
}

/* norm2(got - want) / norm2(want). */
static double distance(const struct attend *a, const uint16_t *got, const float *want)
{
    double d = 0, n = 0;
    for (size_t i = 0; i < out_count(a); i++) {
        double x = simt_widen(got[i], a->f16);
        d += (x - want[i]) * (x - want[i]);
        n += (double)want[i] * want[i];
    }
    return n > 0 ? sqrt(d / n) : sqrt(d);
}

static double attend_error(const struct attend *a)
{
    float *want = attend_ref(a, a->method);
    uint16_t *got = attend_cuda(a);
    double e = distance(a, got, want);
    free(want);
    free(got);
    return e;
}

static void hold(const char *name, double worst, double limit)
{
    print_message("%-28s %.2e (limit %.0e)\n", name, worst, limit);
    if (!(worst <= limit)) fail_msg("%s: %g is over %g", name, worst, limit);
}

static void raise_to(double *worst, double e)
{
    if (!(e <= *worst)) *worst = e; /* a NaN stays */
}

/* ---- tests ---- */

static const struct form {
    const char *name;
    enum guidance_method method;
    enum guidance_variant variant;
    int shared, causal, masked, biased;
} forms[] = {
    {"attention", GUIDANCE_NONE, GUIDANCE_TEXT, 0, 0, 0, 0},
    {"masked", GUIDANCE_NONE, GUIDANCE_TEXT, 0, 0, 1, 0},
    {"causal", GUIDANCE_NONE, GUIDANCE_TEXT, 0, 1, 0, 0},
    {"bias", GUIDANCE_NONE, GUIDANCE_TEXT, 0, 0, 1, 1},
    {"nasa", GUIDANCE_NASA, GUIDANCE_TEXT, 0, 0, 0, 0},
    {"nasa masked", GUIDANCE_NASA, GUIDANCE_TEXT, 0, 0, 1, 0},
    {"nag", GUIDANCE_NAG, GUIDANCE_TEXT, 0, 0, 0, 0},
    {"vsf", GUIDANCE_VSF, GUIDANCE_TEXT, 0, 0, 1, 0},
    {"joint none", GUIDANCE_NONE, GUIDANCE_TEXT, 1, 0, 0, 0},
    {"joint nasa text", GUIDANCE_NASA, GUIDANCE_TEXT, 1, 0, 0, 0},
    {"joint nasa mass", GUIDANCE_NASA, GUIDANCE_MASS, 1, 0, 1, 0},
    {"joint nasa joint", GUIDANCE_NASA, GUIDANCE_JOINT, 1, 0, 0, 0},
    {"joint nag", GUIDANCE_NAG, GUIDANCE_TEXT, 1, 0, 0, 0},
    {"joint vsf", GUIDANCE_VSF, GUIDANCE_TEXT, 1, 0, 0, 0},
};

static void test_forms(void **unused)
{
    (void)unused;
    static const int shapes[][6] = {
        /* rows, shared, positive, negative keys, heads, D; both tile shapes of every head size */
        {1, 1, 1, 1, 1, 40},       {65, 64, 77, 77, 2, 40},    {130, 70, 256, 90, 1, 40},
        {49, 49, 77, 77, 2, 64},   {129, 65, 200, 130, 1, 64}, {33, 20, 120, 120, 1, 72},
        {40, 64, 129, 1, 2, 72},   {64, 16, 80, 3, 1, 80},     {131, 100, 81, 96, 1, 80},
        {70, 70, 77, 120, 2, 128}, {17, 64, 77, 80, 1, 160},   {66, 30, 100, 200, 1, 160},
        {33, 40, 65, 31, 1, 512},
    };
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        double worst[2] = {0, 0};
        for (size_t i = 0; i < 2 * sizeof shapes / sizeof *shapes; i++) {
            const int *s = shapes[i / 2];
            struct attend a = {.rows = s[0],
                               .keys = {forms[f].shared ? s[1] : 0, s[2], s[3]},
                               .heads = s[4],
                               .d = s[5],
                               .f16 = i % 2,
                               .causal = forms[f].causal,
                               .masked = forms[f].masked,
                               .biased = forms[f].biased,
                               .apart = i % 3 == 0,
                               .method = forms[f].method,
                               .variant = forms[f].variant,
                               .logits = i % 4 < 2 ? 2 : 12};
            attend_fill(&a);
            raise_to(&worst[a.f16], attend_error(&a));
            pool_free(&a.pool);
        }
        char line[64];
        snprintf(line, sizeof line, "%s bf16", forms[f].name);
        hold(line, worst[0], 4e-3);
        snprintf(line, sizeof line, "%s f16", forms[f].name);
        hold(line, worst[1], 5e-4);
    }
}

static int setup(void **unused)
{
    (void)unused;
    struct compute_options o = {.backend = "ref", .threads = 1};
    return compute_open(&ref, &o, NULL);
}

static int teardown(void **unused)
{
    (void)unused;
    compute_close(ref);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
