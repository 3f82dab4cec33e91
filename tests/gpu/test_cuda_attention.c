// SPDX-License-Identifier: Apache-2.0
/* The CUDA attention kernels' own source on the SIMT model, through their launchers, against `ref`
 * on the same rounded inputs: forms, shapes, both types, extremes; the methods' invariants; what
 * the kernels cost. Every run is watched (simt.h), and
 * every fourth case is run again under another schedule, to the bit. The worst value measured
 * stands beside each limit. */
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

/* The same to the bit under two schedules, now and then. */
static uint16_t *attend_cuda(const struct attend *a)
{
    static int turn;
    size_t bytes = out_count(a) * 2;
    uint16_t *out = aligned_alloc(256, (bytes + 255) / 256 * 256);
    uint16_t *again = aligned_alloc(256, (bytes + 255) / 256 * 256);
    assert_non_null(out);
    assert_non_null(again);
    attend_run(a, 1, IMAGES, out);
    if (turn++ % 4 == 0) {
        attend_run(a, 2, IMAGES, again);
        assert_memory_equal(out, again, bytes);
    }
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
        {49, 49, 77, 77, 2, 64},   {129, 65, 100, 130, 1, 64}, {33, 20, 120, 120, 1, 72},
        {40, 64, 129, 1, 1, 72},   {64, 16, 80, 3, 1, 80},     {50, 100, 81, 96, 1, 80},
        {70, 70, 77, 120, 1, 128}, {17, 64, 77, 80, 1, 160},   {33, 30, 100, 70, 1, 160},
        {33, 40, 33, 31, 1, 512},
    };
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        double worst[2] = {0, 0};
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const int *s = shapes[i];
            struct attend a = {.rows = s[0],
                               .keys = {forms[f].shared ? s[1] : 0, s[2], s[3]},
                               .heads = s[4],
                               .d = s[5],
                               .f16 = (f + i) % 2,
                               .causal = forms[f].causal,
                               .masked = forms[f].masked,
                               .biased = forms[f].biased,
                               .apart = i % 3 == 0,
                               .method = forms[f].method,
                               .variant = forms[f].variant,
                               .logits = i % 4 < 2 ? 2 : 12}; /* soft, sharp */
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

/* Sets channel 0 of every head: with q * k = sqrt(D) * shift there, all logits move by shift. */
static void rows_channel(struct rows *r, int f16, int count, int heads, int d, float x)
{
    uint16_t narrow = simt_round(x, f16), *device = (uint16_t *)(void *)r->device;
    for (int i = 0; i < IMAGES * count; i++)
        for (int h = 0; h < heads; h++) {
            r->dense[(i * heads + h) * d] = simt_widen(narrow, f16);
            device[i * r->arg.row_stride + h * d] = narrow;
        }
}

static void mask_all(struct attend *a, int s)
{
    for (int i = 0; i < IMAGES * a->keys[s]; i++)
        a->mask[s][i] = -INFINITY;
}

/* Every form with a negative: logits far apart, masked to the last key, no keys at all. */
static void test_extremes(void **unused)
{
    (void)unused;
    static const int keys[][3] = {{0, 77, 77}, {0, 30, 150}, {65, 100, 9}, {64, 20, 130}};
    double apart = 0, masked = 0, empty = 0;
    for (size_t i = 0; i < 4 * sizeof forms / sizeof *forms; i++) {
        const struct form *f = &forms[i / 4];
        const int *k = keys[i % 4];
        if (!f->method || f->shared != (k[0] > 0)) continue;
        struct attend a = {.rows = 20, .keys = {k[0], k[1], k[2]}, .heads = 1, .d = 64};
        a.method = f->method, a.variant = f->variant, a.logits = 2;
        for (int low = 0; low < 3; low++) { /* each segment's logits lie 100 below the others' */
            attend_fill(&a);
            rows_channel(&a.q, 0, a.rows, a.heads, a.d, 8);
            for (int s = 0; s < 3; s++)
                rows_channel(&a.k[s], 0, a.keys[s], a.heads, a.d, s == low ? -100 : 0);
            raise_to(&apart, attend_error(&a));
            pool_free(&a.pool);
        }
        a.masked = 1;
        for (int which = 2; which < 8; which++) { /* whole segments masked, all of them at last */
            attend_fill(&a);
            for (int s = 0; s < 3; s++)
                if (which >> s & 1) mask_all(&a, s);
            raise_to(&masked, attend_error(&a));
            pool_free(&a.pool);
        }
        a.keys[N] = 0;
        attend_fill(&a);
        raise_to(&empty, attend_error(&a));
        pool_free(&a.pool);
    }
    hold("a segment 100 below", apart, 4e-3);
    hold("segments masked", masked, 4e-3);
    hold("segments empty", empty, 4e-3);
    struct attend one = {.rows = 65, .keys = {0, 513, 0}, .heads = 1, .d = 64, .logits = 3e3f};
    attend_fill(&one); /* all weight on one key, logits in the thousands */
    hold("one-hot over 513 keys", attend_error(&one), 4e-3);
    pool_free(&one.pool);
}

static void equal(const struct attend *a, const uint16_t *x, const struct attend *b)
{
    uint16_t *y = attend_cuda(b);
    assert_memory_equal(x, y, out_count(a) * 2);
    free(y);
}

/* What must hold to the bit (docs/guidance.md). */
static void test_invariants(void **unused)
{
    (void)unused;
    static const int keys[][3] = {{0, 77, 77}, {0, 100, 150}, {70, 65, 9}, {64, 20, 130}};
    for (int i = 0; i < 4; i++) {
        const int *k = keys[i];
        struct attend a = {.rows = 70, .keys = {k[0], k[1], k[2]}, .heads = 2, .d = 80};
        a.logits = 2;
        attend_fill(&a);
        uint16_t *none = attend_cuda(&a);
        for (int image = 0; image < IMAGES; image++)
            a.params[image * GUIDANCE_PARAMS + GUIDANCE_ALPHA] =
                a.params[image * GUIDANCE_PARAMS + GUIDANCE_BETA] = 0;
        a.method = GUIDANCE_NASA; /* alpha 0 */
        for (int v = GUIDANCE_TEXT; v <= GUIDANCE_JOINT; v++) {
            a.variant = (enum guidance_variant)v;
            equal(&a, none, &a);
        }
        a.method = GUIDANCE_NAG; /* beta 0 */
        equal(&a, none, &a);
        free(none);
        pool_free(&a.pool);
    }
    /* An image is the same alone; a negative of 77 keys is the same with masked ones behind it. */
    struct attend a = {.rows = 70, .keys = {0, 77, 77}, .heads = 2, .d = 40, .masked = 1};
    a.method = GUIDANCE_NASA, a.logits = 2;
    attend_fill(&a);
    uint16_t *both = attend_cuda(&a),
             *alone = aligned_alloc(256, (out_count(&a) * 2 + 255) / 256 * 256);
    assert_non_null(alone);
    attend_run(&a, 3, 1, alone);
    assert_memory_equal(both, alone, out_count(&a));
    free(alone);
    for (int image = 0; image < IMAGES; image++)
        for (int j = 70; j < 77; j++)
            a.mask[N][image * 77 + j] = -INFINITY;
    uint16_t *long_one = attend_cuda(&a);
    float shorter[IMAGES * 70];
    for (int image = 0; image < IMAGES; image++)
        memcpy(shorter + image * 70, a.mask[N] + image * 77, 70 * sizeof(float));
    memcpy(a.mask[N], shorter, sizeof shorter);
    a.keys[N] = 70; /* image 1 begins where it did: its rows have their own stride */
    equal(&a, long_one, &a);
    free(long_one);
    free(both);
    pool_free(&a.pool);
    /* The negative is the positive: NAG is none, NASA (1 - alpha) of it. */
    struct attend same = {.rows = 40, .keys = {64, 100, 100}, .heads = 1, .d = 128, .logits = 2};
    attend_fill(&same);
    same.k[N] = same.k[P];
    same.v[N] = same.v[P];
    float *none = attend_ref(&same, GUIDANCE_NONE);
    same.method = GUIDANCE_NAG;
    same.params[GUIDANCE_PARAMS + GUIDANCE_TAU] = 1.2f; /* 1 or more */
    uint16_t *nag = attend_cuda(&same);
    hold("nag, c- = c+", distance(&same, nag, none), 3e-3);
    same.method = GUIDANCE_NASA, same.variant = GUIDANCE_JOINT;
    uint16_t *nasa = attend_cuda(&same);
    for (size_t i = 0; i < out_count(&same); i++)
        none[i] *= i < out_count(&same) / IMAGES ? 1 - 0.7f : 1 - 0.35f;
    hold("nasa joint, c- = c+", distance(&same, nasa, none), 4e-3);
    free(nag);
    free(nasa);
    free(none);
    pool_free(&same.pool);
}

/* ---- what it costs ---- */

/* Runs a, all of whose tiles are full, and returns the counts. */
static struct simt_counts attend_counts(struct attend *a)
{
    attend_fill(a);
    uint16_t *out = attend_cuda(a);
    free(out);
    pool_free(&a->pool);
    return simt_counts();
}

static void test_figures(void **unused)
{
    (void)unused;
    /* head size, rows and keys of two blocks and three tiles; stored bytes over sectors touched */
    static const struct {
        int d, rows, keys, tile, store_percent;
    } sizes[] = {{40, 128, 64, 64, 80},  {64, 128, 64, 64, 100}, {72, 128, 48, 48, 80},
                 {80, 128, 48, 48, 100}, {128, 64, 64, 64, 100}, {160, 64, 64, 64, 100},
                 {512, 32, 32, 32, 100}};
    print_message("D     mma/useful  ldmatrix/mma  waves  others  stores  exp2/logit\n");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int d = sizes[i].d, rows = 2 * sizes[i].rows, keys = 3 * sizes[i].keys;
        struct attend a = {.rows = rows, .keys = {0, keys, 0}, .heads = 2, .d = d, .logits = 2};
        struct simt_counts c = attend_counts(&a);
        double problems = IMAGES * 2, logits = problems * rows * keys;
        double useful = logits * d * 2 / 2048;
        int slices =
            d == 512 ? 4 : 1; /* warps that each take the exponentials of the same logits */
        print_message("%-5d %.3f       %.3f         %.2f   %.2f    %3.0f %%   %.3f\n", d,
                      (double)c.mma / useful, (double)c.matrices / 4 / (double)c.mma,
                      (double)c.matrix_waves / (double)c.matrices,
                      (double)c.shared_waves / (double)c.shared_accesses,
                      (double)c.store_bytes / (double)c.store_sectors / 0.32,
                      (double)c.exp2 / logits / slices);
        assert_int_equal(c.launches, 1);
        assert_int_equal(c.matrix_waves, c.matrices);
        /* Rows of 5, 9 or 10 pieces meet in the banks when they leave; measured 1.43 for 40. */
        if (d % 64 == 0) assert_int_equal(c.shared_waves, c.shared_accesses);
        assert_true((double)c.shared_waves <= 1.45 * (double)c.shared_accesses);
        assert_int_equal(c.store_bytes, out_count(&a) * 2); /* one store of each row */
        assert_true((double)c.store_bytes / (double)c.store_sectors / 0.32 >=
                    sizes[i].store_percent);
        /* One read of Q, and a block reads every key and value once: pieces of 16 bytes. */
        assert_int_equal(c.copies, (uint64_t)(problems * d / 8 * (rows + 2 * 2 * keys)));
        assert_int_equal(c.copies_zero, 0);
        /* A k step of 16 beyond D is the one thing that is multiplied in vain. */
        int padded = (d + 15) / 16 * 16;
        assert_int_equal(c.mma, (uint64_t)(logits * (d + padded) / 2048));
    }
    /* NASA beside none: the negative's tile alone, and no other read or store. */
    struct attend a = {.rows = 128, .keys = {0, 77, 0}, .heads = 2, .d = 64, .logits = 2};
    struct simt_counts none = attend_counts(&a);
    a.method = GUIDANCE_NASA, a.keys[N] = 77;
    struct simt_counts nasa = attend_counts(&a);
    uint64_t blocks = IMAGES * 2 * 2, tile = 80 * 64 / 8;
    assert_int_equal(nasa.mma, 2 * none.mma);
    assert_int_equal(nasa.copies - none.copies, blocks * 2 * tile);
    assert_int_equal(nasa.store_bytes, none.store_bytes);
    assert_int_equal(nasa.launches, 1);
}

/* What the launchers refuse, before anything runs. */
static void test_refused(void **unused)
{
    (void)unused;
    struct attend good = {.rows = 5, .keys = {0, 7, 3}, .heads = 2, .d = 64, .logits = 2};
    attend_fill(&good);
    uint16_t *out = aligned_alloc(256, 4096);
    assert_non_null(out);
    for (int i = 0; i < 16; i++) {
        good.method = i < 13 ? GUIDANCE_NASA : GUIDANCE_NAG;
        struct cuda_attention c = attend_arg(&good, out, out);
        switch (i) {
        case 0: c.head_size = 48; break;
        case 1: c.batch = 0; break;
        case 2: c.queries = 0; break;
        case 3: c.heads = 70000; break;
        case 4: c.scale = 0; break;
        case 5: c.scale = NAN; break;
        case 6: c.q.base = NULL; break;
        case 7: c.segment[P].k.row_stride = 127; break;
        case 8: c.segment[N].v.base = (const char *)c.segment[N].v.base + 2; break;
        case 9: c.segment[S].keys = -1; break;
        case 10: c.method = GUIDANCE_NONE; break; /* with negative keys */
        case 11: c.params = NULL; break;
        case 12: c.causal = 1; break;
        case 13: c.difference = NULL; break;
        case 14: c.out = (char *)c.out + 4; break;
        default: c.segment[P].k.row_stride = 64; break; /* less than a row */
        }
        assert_int_equal(cuda_attention(&c, NULL), i ? STEER_BAD_VALUE : STEER_UNSUPPORTED);
    }
    struct cuda_nag n = {.batch = 1, .queries = 1, .channels = 12, .plus = out, .difference = out};
    assert_int_equal(cuda_nag(&n, NULL), STEER_BAD_VALUE);
    free(out);
    pool_free(&good.pool);
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
        cmocka_unit_test(test_forms),      cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_invariants), cmocka_unit_test(test_figures),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
