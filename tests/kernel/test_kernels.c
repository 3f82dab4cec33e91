// SPDX-License-Identifier: Apache-2.0
/* Backend cpu against ref, operation by operation, on random, tiny, odd and extreme inputs, with
 * our kernels for each instruction set that this processor has, in f32 and (where it is native)
 * bf16. Limits are relative errors norm2(got - ref) / norm2(ref); the worst value measured on any
 * of them stands beside each. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compute.h"

static struct compute *ref, *cpu; /* cpu: the best instruction set, f32 */

/* f32 NULL: not on this processor; bf16 NULL: not native. */
static struct set {
    const char *isa;
    struct compute *f32, *bf16;
} sets[] = {{"avx512_bf16", NULL, NULL},
            {"avx512", NULL, NULL},
            {"avx2", NULL, NULL},
            {"sse2", NULL, NULL}};
enum { SETS = 4 };
static uint32_t state = 1;

static float uniform(void) /* -1..1 */
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1;
}

static float *numbers(size_t count, float scale)
{
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < count; i++)
        x[i] = uniform() * scale;
    return x;
}

/* One operation under test: records it on a graph; its weights are made for the compute given. */
struct rig {
    struct compute *c;
    struct graph *g;
    struct tensor in[8];
    const float *data[8];
    int inputs;
    struct weight *w[2];
    int weights;
};

static struct tensor input(struct rig *r, struct shape s, const float *data)
{
    char name[16];
    snprintf(name, sizeof name, "in%d", r->inputs);
    r->in[r->inputs] = graph_input(r->g, name, s, TYPE_F32);
    r->data[r->inputs] = data;
    return r->in[r->inputs++];
}

typedef struct tensor (*recipe)(struct rig *r, const void *what);

/* Runs the operation on c and returns its output, dense f32. */
static float *evaluate(struct compute *c, recipe make, const void *what, size_t *ret_count)
{
    struct rig r = {.c = c, .g = graph_new()};
    struct steer_error err = {0};
    struct plan *p = NULL;
    assert_non_null(r.g);
    struct tensor out = make(&r, what);
    graph_output(r.g, out, "out", 0);
    int code = compute_plan(&p, c, r.g, &err);
    if (code) fail_msg("%s", err.text);
    for (int i = 0; i < r.inputs; i++) {
        struct shape s = graph_shape(r.g, r.in[i]);
        memcpy(plan_data(p, r.in[i]), r.data[i],
               (size_t)s.b * (size_t)s.h * (size_t)s.w * (size_t)s.c * sizeof(float));
    }
    code = plan_run(p, NULL, &err);
    if (code) fail_msg("%s", err.text);
    struct shape s = graph_shape(r.g, out);
    *ret_count = (size_t)s.b * (size_t)s.h * (size_t)s.w * (size_t)s.c;
    float *copy = malloc(*ret_count * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, plan_data(p, out), *ret_count * sizeof *copy);
    plan_free(p);
    graph_free(r.g);
    for (int i = 0; i < r.weights; i++)
        weight_free(r.w[i]);
    return copy;
}

static double distance(const float *got, const float *want, size_t count)
{
    double d = 0, n = 0;
    for (size_t i = 0; i < count; i++) {
        d += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        n += (double)want[i] * want[i];
    }
    return n > 0 ? sqrt(d / n) : sqrt(d);
}

/* Prints the worst of a list, and holds it to its limit. */
static void hold(const char *name, double worst, double limit)
{
    print_message("%-28s %.2e (limit %.0e)\n", name, worst, limit);
    if (!(worst <= limit)) fail_msg("%s: %g is over %g", name, worst, limit);
}

/* The worst error of each set and precision over a table; -1: not run. */
struct worst {
    double f32[SETS], bf16[SETS];
};

static void worst_begin(struct worst *w)
{
    for (int i = 0; i < SETS; i++)
        w->f32[i] = sets[i].f32 ? 0 : -1, w->bf16[i] = sets[i].bf16 ? 0 : -1;
}

static void raise_to(double *worst, double e)
{
    if (!(e <= *worst)) *worst = e; /* a NaN stays */
}

/* make against ref on every set; bf16 too when `narrow`. */
static void worst_add(struct worst *w, recipe make, const void *what, int narrow)
{
    size_t n, m;
    float *want = evaluate(ref, make, what, &n);
    for (int i = 0; i < 2 * SETS; i++) {
        struct compute *c = i < SETS ? sets[i].f32 : narrow ? sets[i - SETS].bf16 : NULL;
        if (!c) continue;
        float *got = evaluate(c, make, what, &m);
        assert_int_equal(n, m);
        raise_to(i < SETS ? w->f32 + i : w->bf16 + (i - SETS), distance(got, want, n));
        free(got);
    }
    free(want);
}

static void worst_hold(const struct worst *w, const char *name, double f32, double bf16)
{
    char line[64];
    for (int i = 0; i < 2 * SETS; i++) {
        double e = i < SETS ? w->f32[i] : w->bf16[i - SETS];
        if (e < 0 || (i >= SETS && bf16 == 0)) continue;
        snprintf(line, sizeof line, "%s %s %s", name, sets[i % SETS].isa,
                 i < SETS ? "f32" : "bf16");
        hold(line, e, i < SETS ? f32 : bf16);
    }
}

/* ---- linear and conv, between group norms so that layouts and bf16 come into play ---- */

struct layer {
    int h, w, in, out, size, stride;
    enum activation act;
    int per_image;
    const float *x, *scale, *shift, *matrix, *bias, *vector;
};

static struct tensor record_layer(struct rig *r, const void *what)
{
    const struct layer *l = what;
    struct stored scale = {.data = l->scale, .type = TYPE_F32},
                  shift = {.data = l->shift, .type = TYPE_F32};
    struct stored matrix = {.data = l->matrix, .type = TYPE_F32},
                  bias = {.data = l->bias, .type = TYPE_F32};
    assert_int_equal(weight_norm(r->w, r->c, scale, shift, l->in), 0);
    struct tensor x = input(r, (struct shape){2, l->h, l->w, l->in}, l->x);
    r->weights = 2;
    x = op_group_norm(r->g, x, r->w[0], l->in % 4 ? 1 : 4, 1e-5, ACT_SILU);
    if (!l->size) {
        assert_int_equal(weight_linear(r->w + 1, r->c, 1, &matrix, &bias, &l->out, l->in), 0);
        return op_linear(r->g, x, r->w[1], l->act);
    }
    assert_int_equal(weight_conv(r->w + 1, r->c, matrix, bias, l->out, l->in, l->size), 0);
    struct tensor vector = TENSOR_NONE;
    if (l->per_image) vector = input(r, (struct shape){2, 1, 1, l->out}, l->vector);
    x = op_conv(r->g, x, r->w[1], l->stride, l->size / 2, vector, l->act);
    return op_add(r->g, op_activation(r->g, x, ACT_RELU), x);
}

static void test_layers(void **unused)
{
    (void)unused;
    static const struct layer list[] = {
        {1, 77, 32, 96, 0, 1, ACT_NONE, 0, 0, 0, 0, 0, 0, 0},
        {3, 5, 17, 23, 0, 1, ACT_SILU, 0, 0, 0, 0, 0, 0, 0},
        {1, 1, 64, 64, 0, 1, ACT_GELU, 0, 0, 0, 0, 0, 0, 0},
        {7, 9, 64, 48, 0, 1, ACT_QUICK_GELU, 0, 0, 0, 0, 0, 0, 0},
        {4, 4, 16, 16, 0, 1, ACT_GELU_TANH, 0, 0, 0, 0, 0, 0, 0},
        {13, 9, 4, 20, 3, 1, ACT_NONE, 0, 0, 0, 0, 0, 0, 0},
        {13, 9, 20, 4, 3, 1, ACT_NONE, 1, 0, 0, 0, 0, 0, 0},
        {12, 12, 64, 96, 3, 1, ACT_NONE, 1, 0, 0, 0, 0, 0, 0},
        {17, 19, 64, 64, 3, 1, ACT_RELU, 1, 0, 0, 0, 0, 0, 0},
        {13, 9, 32, 32, 3, 2, ACT_NONE, 0, 0, 0, 0, 0, 0, 0},
        {12, 8, 48, 32, 3, 2, ACT_SILU, 0, 0, 0, 0, 0, 0, 0},
        {6, 6, 96, 160, 1, 1, ACT_NONE, 0, 0, 0, 0, 0, 0, 0},
        {5, 3, 7, 9, 5, 1, ACT_TANH, 0, 0, 0, 0, 0, 0, 0},
        {1, 1, 16, 16, 3, 1, ACT_NONE, 0, 0, 0, 0, 0, 0, 0},
    };
    struct worst worst;
    worst_begin(&worst);
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct layer l = list[i];
        size_t taps = l.size ? (size_t)(l.size * l.size) : 1;
        float *x = numbers((size_t)(2 * l.h * l.w * l.in), 3), *scale = numbers((size_t)l.in, 1);
        float *shift = numbers((size_t)l.in, 1), *bias = numbers((size_t)l.out, 1);
        float *matrix = numbers((size_t)(l.out * l.in) * taps, 0.1f);
        float *vector = numbers((size_t)(2 * l.out), 1);
        l.x = x, l.scale = scale, l.shift = shift, l.matrix = matrix, l.bias = bias;
        l.vector = vector;
        worst_add(&worst, record_layer, &l, 1);
        free(x), free(scale), free(shift), free(bias), free(matrix), free(vector);
    }
    worst_hold(&worst, "linear, conv", 2e-6 /* 2.4e-7 */, 6e-3 /* 1.7e-3 */);
}

/* ---- norms with a large mean, resize, concat, geglu ---- */

struct shaped {
    int kind, h, w, c;
    const float *x, *y, *scale, *shift;
};

/* Where the backend is narrow, x in bf16: a resize to its own size writes what its readers want. */
static struct tensor narrow(struct rig *r, struct tensor x)
{
    struct shape s = graph_shape(r->g, x);
    return op_resize(r->g, x, s.h, s.w);
}

static struct tensor record_shaped(struct rig *r, const void *what)
{
    const struct shaped *s = what;
    struct stored scale = {.data = s->scale, .type = TYPE_F32},
                  shift = {.data = s->shift, .type = TYPE_F32};
    struct tensor x = input(r, (struct shape){2, s->h, s->w, s->c}, s->x), y;
    switch (s->kind) {
    case 0:
        assert_int_equal(weight_norm(r->w, r->c, scale, shift, s->c), 0);
        r->weights = 1;
        /* GEGLU reads bf16, so the norm writes it. */
        return op_geglu(r->g, op_layer_norm(r->g, x, r->w[0], 1e-5));
    case 1:
        assert_int_equal(weight_norm(r->w, r->c, scale, shift, s->c), 0);
        r->weights = 1;
        return op_geglu(r->g, op_group_norm(r->g, x, r->w[0], 2, 1e-6, ACT_NONE));
    case 2:
        y = input(r, (struct shape){2, s->h, s->w, s->c}, s->y);
        return op_concat(r->g, op_add(r->g, x, y), op_activation(r->g, y, ACT_SILU));
    case 3: return op_resize(r->g, op_activation(r->g, x, ACT_TANH), 2 * s->h - 1, 2 * s->w + 1);
    case 4: return op_geglu(r->g, narrow(r, x));
    case 5: return op_soft_clamp(r->g, op_affine(r->g, x, 1.7, -0.3));
    default: return op_activation(r->g, op_activation(r->g, x, ACT_GELU), ACT_GELU_TANH);
    }
}

static void test_shaped(void **unused)
{
    (void)unused;
    static const char *const names[] = {"layer norm, geglu",
                                        "group norm, geglu",
                                        "add, concat",
                                        "resize",
                                        "geglu",
                                        "affine, clamp",
                                        "gelu"};
    static const double limits[7][2] = {{1e-6 /* 1.5e-7 */, 1e-2 /* 3.0e-3 */},
                                        {1e-6 /* 1.3e-7 */, 1e-2 /* 2.8e-3 */},
                                        {1e-7 /* 4.6e-9 */, 0},
                                        {1e-6 /* 6.1e-8 */, 0},
                                        {6e-6 /* 1.5e-6 */, 1e-2 /* 2.4e-3 */},
                                        {1e-7 /* 0 */, 0},
                                        {1e-6 /* 8.8e-8 */, 0}};
    for (int kind = 0; kind < 7; kind++) {
        struct worst worst;
        worst_begin(&worst);
        for (int i = 0; i < 6; i++) {
            static const int sizes[6][3] = {{1, 1, 2},   {3, 5, 14},  {7, 2, 48},
                                            {16, 9, 32}, {1, 77, 96}, {33, 31, 18}};
            struct shaped s = {kind, sizes[i][0], sizes[i][1], sizes[i][2], 0, 0, 0, 0};
            size_t count = (size_t)(2 * s.h * s.w * s.c);
            float *x = numbers(count, 4), *y = numbers(count, 4);
            float *scale = numbers((size_t)s.c, 1), *shift = numbers((size_t)s.c, 1);
            for (size_t k = 0; kind < 2 && k < count; k++)
                x[k] += 50; /* a mean far above the deviation */
            s.x = x, s.y = y, s.scale = scale, s.shift = shift;
            worst_add(&worst, record_shaped, &s, limits[kind][1] > 0);
            free(x), free(y), free(scale), free(shift);
        }
        worst_hold(&worst, names[kind], limits[kind][0], limits[kind][1]);
    }
}

/* ---- attention ---- */

struct attend {
    int rows, keys, negatives, heads, d, causal, masked;
    enum guidance_method method;
    float params[2 * GUIDANCE_PARAMS];
    const float *q, *k, *v, *kn, *vn, *mask, *mask_n;
};

static struct tensor record_attend(struct rig *r, const void *what)
{
    const struct attend *a = what;
    int c = a->heads * a->d;
    double scale = 1 / sqrt((double)a->d);
    struct tensor q = narrow(r, input(r, (struct shape){2, 1, a->rows, c}, a->q));
    struct text_keys pos = {.mask = TENSOR_NONE}, neg = {.mask = TENSOR_NONE};
    pos.k = narrow(r, input(r, (struct shape){2, 1, a->keys, c}, a->k));
    pos.v = narrow(r, input(r, (struct shape){2, 1, a->keys, c}, a->v));
    if (a->masked) pos.mask = input(r, (struct shape){2, 1, 1, a->keys}, a->mask);
    if (a->method == GUIDANCE_NONE)
        return op_attention(r->g, q, pos.k, pos.v, a->heads, scale, a->causal, pos.mask,
                            TENSOR_NONE);
    neg.k = narrow(r, input(r, (struct shape){2, 1, a->negatives, c}, a->kn));
    neg.v = narrow(r, input(r, (struct shape){2, 1, a->negatives, c}, a->vn));
    if (a->masked) neg.mask = input(r, (struct shape){2, 1, 1, a->negatives}, a->mask_n);
    struct tensor params = input(r, (struct shape){2, 1, 1, GUIDANCE_PARAMS}, a->params);
    return op_guided_attention(r->g, q, pos, neg, TEXT_KEYS_NONE, a->heads, scale, a->method,
                               GUIDANCE_TEXT, params);
}

static void attend_fill(struct attend *a, float logits)
{
    size_t c = (size_t)(a->heads * a->d) * 2;
    a->q = numbers(c * (size_t)a->rows, logits);
    a->k = numbers(c * (size_t)a->keys, 1);
    a->v = numbers(c * (size_t)a->keys, 1);
    a->kn = numbers(c * (size_t)a->negatives, 1);
    a->vn = numbers(c * (size_t)a->negatives, 1);
    float *mask = numbers(2 * (size_t)a->keys, 0), *mask_n = numbers(2 * (size_t)a->negatives, 0);
    for (int i = 0; i < 2 * a->keys; i++)
        mask[i] = i % 3 ? 0 : -INFINITY;
    for (int i = 0; i < 2 * a->negatives; i++) /* the second image's negative is fully masked */
        mask_n[i] = i % 4 && i < a->negatives ? 0 : -INFINITY;
    a->mask = mask;
    a->mask_n = mask_n;
    static const float params[GUIDANCE_PARAMS] = {[GUIDANCE_ALPHA] = 0.7f,
                                                  [GUIDANCE_OFFSET] = 0.5f,
                                                  [GUIDANCE_PHI] = 4,
                                                  [GUIDANCE_TAU] = 1.2f,
                                                  [GUIDANCE_BETA] = 0.4f};
    for (int i = 0; i < 2 * GUIDANCE_PARAMS; i++)
        a->params[i] = params[i % GUIDANCE_PARAMS] * (i < GUIDANCE_PARAMS ? 1 : 0.5f);
}

static void attend_free(struct attend *a)
{
    const float *all[] = {a->q, a->k, a->v, a->kn, a->vn, a->mask, a->mask_n};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free((void *)(uintptr_t)all[i]);
}

static void test_attention(void **unused)
{
    (void)unused;
    static const int shapes[][5] = {
        /* rows keys negatives heads D */
        {1, 1, 1, 1, 8},      {5, 3, 7, 2, 40},       {48, 64, 64, 3, 32},  {49, 77, 77, 5, 40},
        {100, 65, 24, 2, 64}, {117, 129, 77, 2, 160}, {64, 200, 1, 1, 512}, {30, 77, 120, 4, 17}};
    struct worst worst[4], sharp[4]; /* sharp: softmaxes that are nearly one-hot */
    for (int i = 0; i < 4; i++) {
        worst_begin(worst + i);
        worst_begin(sharp + i);
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int method = GUIDANCE_NONE; method <= GUIDANCE_VSF; method++)
            for (int variant = 0; variant < 3; variant++) {
                struct attend a = {shapes[i][0],
                                   shapes[i][1],
                                   shapes[i][2],
                                   shapes[i][3],
                                   shapes[i][4],
                                   variant == 1 && method == GUIDANCE_NONE,
                                   variant == 2,
                                   (enum guidance_method)method,
                                   {0},
                                   0,
                                   0,
                                   0,
                                   0,
                                   0,
                                   0,
                                   0};
                if (a.causal) a.keys = a.rows;
                attend_fill(&a, variant == 1 ? 60 : 3);
                worst_add((variant == 1 ? sharp : worst) + method, record_attend, &a, 1);
                attend_free(&a);
            }
    static const char *const names[] = {"attention", "nasa", "nag", "vsf"};
    static const char *const sharps[] = {"sharp attention", "sharp nasa", "sharp nag", "sharp vsf"};
    for (int i = 0; i < 4; i++) {
        worst_hold(worst + i, names[i], 3e-6 /* 8.0e-7 */, 1e-2 /* 3.1e-3 */);
        /* Rounding logits of 60 to bf16 moves them by 0.2, so bf16 says nothing there. */
        worst_hold(sharp + i, sharps[i], 1e-5 /* 3.8e-6 */, 0);
    }
}

/* The negative's logits lie 100 below the positive's: normalised by itself it counts in full. */
static void test_far_negative(void **unused)
{
    (void)unused;
    struct attend a = {9, 4, 4, 1, 16, 0, 0, GUIDANCE_NASA, {0}, 0, 0, 0, 0, 0, 0, 0};
    attend_fill(&a, 1);
    float *q = (float *)(uintptr_t)a.q, *k = (float *)(uintptr_t)a.k;
    float *kn = (float *)(uintptr_t)a.kn;
    for (int i = 0; i < 2 * 9 * 16; i++)
        q[i] = 5;
    for (int i = 0; i < 2 * 4 * 16; i++)
        k[i] = 2.5f + 0.1f * k[i], kn[i] = -2.5f + 0.1f * kn[i];
    struct worst worst;
    worst_begin(&worst);
    worst_add(&worst, record_attend, &a, 0);
    worst_hold(&worst, "a negative 100 below", 1e-5 /* 2.5e-6 */, 0);
    attend_free(&a);
}

/* ---- METHOD.md's invariants, on both backends ---- */

static float *attend_on(struct compute *c, const struct attend *a, enum guidance_method method,
                        const float *params, size_t *n)
{
    struct attend b = *a;
    b.method = method;
    if (params)
        for (int i = 0; i < 2 * GUIDANCE_PARAMS; i++)
            b.params[i] = params[i % GUIDANCE_PARAMS];
    return evaluate(c, record_attend, &b, n);
}

static void invariants_on(struct compute *c)
{
    size_t n;
    struct attend a = {37, 21, 21, 3, 24, 0, 0, GUIDANCE_NASA, {0}, 0, 0, 0, 0, 0, 0, 0};
    attend_fill(&a, 3);
    float *plain = attend_on(c, &a, GUIDANCE_NONE, NULL, &n);

    float zero[GUIDANCE_PARAMS] = {0};
    float *got = attend_on(c, &a, GUIDANCE_NASA, zero, &n);
    assert_memory_equal(got, plain, n * sizeof *got); /* alpha 0 is none, to the bit */
    free(got);

    /* Affine in alpha: Z(0.25) lies a quarter of the way from Z(0) to Z(1). */
    float one[GUIDANCE_PARAMS] = {[GUIDANCE_ALPHA] = 1}, part[GUIDANCE_PARAMS] = {0.25f};
    float *z1 = attend_on(c, &a, GUIDANCE_NASA, one, &n);
    float *zq = attend_on(c, &a, GUIDANCE_NASA, part, &n);
    double off = 0;
    for (size_t i = 0; i < n; i++)
        off = fmax(off, fabs(zq[i] - (plain[i] + 0.25 * (z1[i] - plain[i]))));
    assert_true(off < 1e-5);
    free(zq);

    /* NASA(alpha) is NAG's Zt / (1 + phi) for alpha = phi / (1 + phi): tau huge, beta 1, phi 3. */
    float nag[GUIDANCE_PARAMS] = {[GUIDANCE_PHI] = 3, [GUIDANCE_TAU] = 1e9f, [GUIDANCE_BETA] = 1};
    float three[GUIDANCE_PARAMS] = {0.75f};
    float *zt = attend_on(c, &a, GUIDANCE_NAG, nag, &n);
    float *zn = attend_on(c, &a, GUIDANCE_NASA, three, &n);
    for (size_t i = 0; i < n; i++)
        zt[i] /= 4;
    assert_true(distance(zt, zn, n) < 1e-5);
    free(zt), free(zn);

    /* NAG is none with beta 0, and with phi 0 and tau >= 1. */
    float beta0[GUIDANCE_PARAMS] = {[GUIDANCE_PHI] = 3, [GUIDANCE_TAU] = 2};
    float phi0[GUIDANCE_PARAMS] = {[GUIDANCE_TAU] = 1, [GUIDANCE_BETA] = 0.5f};
    got = attend_on(c, &a, GUIDANCE_NAG, beta0, &n);
    assert_true(distance(got, plain, n) < 1e-6);
    free(got);
    got = attend_on(c, &a, GUIDANCE_NAG, phi0, &n);
    assert_true(distance(got, plain, n) < 1e-6);
    free(got);

    /* NAG: the 1-norm never grows beyond tau times the positive's. */
    float grow[GUIDANCE_PARAMS] = {[GUIDANCE_PHI] = 8, [GUIDANCE_TAU] = 1.5f, [GUIDANCE_BETA] = 1};
    got = attend_on(c, &a, GUIDANCE_NAG, grow, &n);
    size_t channels = (size_t)(a.heads * a.d);
    for (size_t row = 0; row < n / channels; row++) {
        double t = 0, p = 0;
        for (size_t i = 0; i < channels; i++)
            t += fabs(got[row * channels + i]), p += fabs(plain[row * channels + i]);
        assert_true(t <= 1.5 * p * (1 + 1e-5));
    }
    free(got);

    /* The same text twice. */
    struct attend same = a;
    same.kn = a.k, same.vn = a.v;
    float nasa3[GUIDANCE_PARAMS] = {0.3f};
    got = attend_on(c, &same, GUIDANCE_NASA, nasa3, &n);
    float *vsf = attend_on(c, &same, GUIDANCE_VSF, nasa3, &n);
    float *still = attend_on(c, &same, GUIDANCE_NAG, grow, &n);
    assert_true(distance(still, plain, n) < 1e-5);
    for (size_t i = 0; i < n; i++)
        got[i] /= 0.7f, vsf[i] /= 0.35f; /* (1 - a) Z+ and (1 - a)/2 Z+ */
    assert_true(distance(got, plain, n) < 1e-5);
    assert_true(distance(vsf, plain, n) < 1e-5);
    free(got), free(vsf), free(still), free(z1), free(plain);
    attend_free(&a);
}

/* VSF is one softmax over both texts, split: with W the share of the positive's weights (here from
 * the queries and keys themselves), W Z+ - alpha (1 - W) Z-, each Z attention by itself. */
static void vsf_on(struct compute *c)
{
    size_t n;
    struct attend a = {37, 21, 13, 3, 24, 0, 0, GUIDANCE_VSF, {0}, 0, 0, 0, 0, 0, 0, 0};
    attend_fill(&a, 3);
    struct attend other = a; /* the negative text alone */
    other.k = a.kn, other.v = a.vn, other.keys = a.negatives;
    float *zp = attend_on(c, &a, GUIDANCE_NONE, NULL, &n);
    float *zn = attend_on(c, &other, GUIDANCE_NONE, NULL, &n);
    for (int variant = 0; variant < 3; variant++) {
        float params[GUIDANCE_PARAMS] = {
            [GUIDANCE_ALPHA] = variant ? 0.6f : 0, [GUIDANCE_OFFSET] = variant == 2 ? 1.5f : 0};
        float *got = attend_on(c, &a, GUIDANCE_VSF, params, &n), *want = malloc(n * sizeof *want);
        assert_non_null(want);
        size_t channels = (size_t)(a.heads * a.d);
        for (size_t row = 0; row < n / channels; row++)
            for (int h = 0; h < a.heads; h++) {
                size_t image = row / (size_t)a.rows, at = row * channels + (size_t)(h * a.d);
                double sums[2] = {0};
                for (int text = 0; text < 2; text++)
                    for (int key = 0; key < (text ? a.negatives : a.keys); key++) {
                        size_t keys = (size_t)(text ? a.negatives : a.keys);
                        const float *k =
                            (text ? a.kn : a.k) + (image * keys + (size_t)key) * channels + h * a.d;
                        double logit = text ? -params[GUIDANCE_OFFSET] : 0;
                        for (int i = 0; i < a.d; i++)
                            logit += a.q[at + (size_t)i] * k[i] / sqrt(a.d);
                        sums[text] += exp(logit);
                    }
                double w = sums[0] / (sums[0] + sums[1]);
                for (size_t i = at; i < at + (size_t)a.d; i++)
                    want[i] = (float)(w * zp[i] - params[GUIDANCE_ALPHA] * (1 - w) * zn[i]);
            }
        hold("vsf by its weights", distance(got, want, n), 1e-6 /* 8.7e-8 */);
        free(got), free(want);
    }
    free(zp), free(zn);
    attend_free(&a);
}

/* alpha 0 is none, to the bit, in bf16 too. */
static void alpha0_on(struct compute *c)
{
    size_t n;
    struct attend a = {37, 70, 21, 3, 24, 0, 0, GUIDANCE_NASA, {0}, 0, 0, 0, 0, 0, 0, 0};
    float zero[GUIDANCE_PARAMS] = {0};
    attend_fill(&a, 3);
    float *plain = attend_on(c, &a, GUIDANCE_NONE, NULL, &n);
    float *got = attend_on(c, &a, GUIDANCE_NASA, zero, &n);
    assert_memory_equal(got, plain, n * sizeof *got);
    free(got), free(plain);
    attend_free(&a);
}

static void test_invariants(void **unused)
{
    (void)unused;
    invariants_on(ref);
    vsf_on(ref);
    for (int i = 0; i < SETS; i++)
        if (sets[i].f32) {
            invariants_on(sets[i].f32);
            vsf_on(sets[i].f32);
            if (sets[i].bf16) alpha0_on(sets[i].bf16);
        }
}

/* [2][tokens][channels] as [2][more][channels], the rest filled with noise. */
static float *lengthen(const float *x, int tokens, int more, int channels)
{
    float *y = numbers((size_t)(2 * more * channels), 7);
    for (int b = 0; b < 2; b++)
        memcpy(y + b * more * channels, x + b * tokens * channels,
               (size_t)(tokens * channels) * sizeof *x);
    return y;
}

/* Masked negative tokens change nothing, to the bit: when they are others, when they change places,
 * and when more of them follow, into another tile of keys. */
static void masked_on(struct compute *c, enum guidance_method method)
{
    enum { TOKENS = 12, MORE = 130, CHANNELS = 32 };
    struct attend a = {20, 9, TOKENS, 2, 16, 0, 1, method, {0}, 0, 0, 0, 0, 0, 0, 0};
    size_t n;
    attend_fill(&a, 3);
    float *before = evaluate(c, record_attend, &a, &n);
    float *kn = (float *)(uintptr_t)a.kn, *vn = (float *)(uintptr_t)a.vn;
    for (int j = 0; j < 2 * TOKENS; j++)
        for (int i = 0; a.mask_n[j] < 0 && i < CHANNELS; i++)
            kn[j * CHANNELS + i] = 7 * uniform(), vn[j * CHANNELS + i] = 7 * uniform();
    float *after = evaluate(c, record_attend, &a, &n);
    assert_memory_equal(before, after, n * sizeof *before);
    free(after);

    assert_true(a.mask_n[0] < 0 && a.mask_n[4] < 0);
    for (int i = 0; i < CHANNELS; i++) {
        float *pairs[] = {kn + i, vn + i};
        for (int k = 0; k < 2; k++) {
            float first = pairs[k][0];
            pairs[k][0] = pairs[k][4 * CHANNELS];
            pairs[k][4 * CHANNELS] = first;
        }
    }
    after = evaluate(c, record_attend, &a, &n);
    assert_memory_equal(before, after, n * sizeof *before);
    free(after);

    struct attend longer = a;
    float *mask = lengthen(a.mask_n, TOKENS, MORE, 1);
    longer.negatives = MORE;
    longer.kn = lengthen(a.kn, TOKENS, MORE, CHANNELS);
    longer.vn = lengthen(a.vn, TOKENS, MORE, CHANNELS);
    longer.mask_n = mask;
    for (int i = 0; i < 2 * MORE; i++)
        if (i % MORE >= TOKENS) mask[i] = -INFINITY;
    after = evaluate(c, record_attend, &longer, &n);
    assert_memory_equal(before, after, n * sizeof *before);
    free(after), free(before), free(mask);
    free((void *)(uintptr_t)longer.kn), free((void *)(uintptr_t)longer.vn);
    attend_free(&a);
}

static void test_masked_tokens(void **unused)
{
    (void)unused;
    for (int i = 0; i < SETS; i++)
        for (int method = GUIDANCE_NASA; sets[i].f32 && method <= GUIDANCE_VSF; method++) {
            masked_on(sets[i].f32, (enum guidance_method)method);
            if (sets[i].bf16) masked_on(sets[i].bf16, (enum guidance_method)method);
        }
}

/* Attention reads each query once and stores each row once, whatever the method. */
static void one_read_one_store(struct compute *c, enum guidance_method method)
{
    struct attend a = {100, 77, 77, 4, 40, 0, 0, method, {0}, 0, 0, 0, 0, 0, 0, 0};
    attend_fill(&a, 1);
    struct rig r = {.c = c, .g = graph_new()};
    struct plan *p;
    graph_output(r.g, record_attend(&r, &a), "out", 0);
    assert_int_equal(compute_plan(&p, c, r.g, NULL), 0);
    for (int i = 0; i < r.inputs; i++) {
        struct shape s = graph_shape(r.g, r.in[i]);
        memcpy(plan_data(p, r.in[i]), r.data[i], (size_t)(s.b * s.w * s.c) * sizeof(float));
    }
    assert_int_equal(plan_run(p, NULL, NULL), 0);
    assert_int_equal(plan_counters(p).q_rows_read, 200);
    assert_int_equal(plan_counters(p).out_rows_stored, 200);
    plan_free(p);
    graph_free(r.g);
    attend_free(&a);
}

static void test_one_read_one_store(void **unused)
{
    (void)unused;
    for (int i = 0; i < SETS; i++)
        for (int method = GUIDANCE_NONE; sets[i].f32 && method <= GUIDANCE_VSF; method++) {
            one_read_one_store(sets[i].f32, (enum guidance_method)method);
            if (sets[i].bf16) one_read_one_store(sets[i].bf16, (enum guidance_method)method);
        }
}

/* A batch of images gives each the bytes it has alone. */
static void test_company(void **unused)
{
    (void)unused;
    struct layer l = {16, 16, 64, 64, 3, 1, ACT_SILU, 1, 0, 0, 0, 0, 0, 0};
    size_t half = (size_t)(l.h * l.w * l.in), n;
    float *x = numbers(2 * half, 3), *scale = numbers(64, 1), *shift = numbers(64, 1);
    float *bias = numbers(64, 1), *matrix = numbers(64 * 64 * 9, 0.1f), *vector = numbers(128, 1);
    l.x = x, l.scale = scale, l.shift = shift, l.matrix = matrix, l.bias = bias, l.vector = vector;
    float *first = evaluate(cpu, record_layer, &l, &n);
    float *turned = malloc(2 * half * sizeof *turned), turned_vector[128];
    assert_non_null(turned);
    memcpy(turned, x + half, half * sizeof *x), memcpy(turned + half, x, half * sizeof *x);
    memcpy(turned_vector, vector + 64, 256), memcpy(turned_vector + 64, vector, 256);
    l.x = turned, l.vector = turned_vector;
    float *second = evaluate(cpu, record_layer, &l, &n);
    assert_memory_equal(first, second + n / 2, n / 2 * sizeof *first);
    assert_memory_equal(first + n / 2, second, n / 2 * sizeof *first);
    free(x), free(scale), free(shift), free(bias), free(matrix), free(vector), free(turned);
    free(first), free(second);
}

/* A convolution that Winograd does in bands of rows, beside the direct one that a table asks for.
 */
static void test_bands(void **unused)
{
    (void)unused;
    struct layer l = {256, 256, 256, 256, 3, 1, ACT_NONE, 1, 0, 0, 0, 0, 0, 0};
    size_t count = (size_t)2 * 256 * 256 * 256, n, m;
    float *x = numbers(count, 3), *scale = numbers(256, 1), *shift = numbers(256, 1);
    float *bias = numbers(256, 1), *matrix = numbers(256 * 256 * 9, 0.1f);
    float *vector = numbers(512, 1);
    l.x = x, l.scale = scale, l.shift = shift, l.matrix = matrix, l.bias = bias, l.vector = vector;
    FILE *f = fopen("tuning.txt", "w");
    assert_true(f && fputs("conv3 256 256 256x256 direct\n", f) > 0 && fclose(f) == 0);
    struct compute *direct = NULL;
    struct compute_options o = {.backend = "cpu", .threads = 2, .tuning = "tuning.txt"};
    assert_int_equal(compute_open(&direct, &o, NULL), 0);
    float *want = evaluate(direct, record_layer, &l, &m),
          *got = evaluate(cpu, record_layer, &l, &n);
    assert_int_equal(n, m);
    hold("winograd in bands", distance(got, want, n), 5e-6 /* 5.1e-7 */);
    compute_close(direct);
    free(x), free(scale), free(shift), free(bias), free(matrix), free(vector);
    free(want), free(got);
}

/* Plans are refused before anything of them is allocated, and weights of theirs with them. */
static void test_memory_limit(void **unused)
{
    (void)unused;
    struct compute_host host = {.bytes_max = 1 << 19};
    struct compute_options o = {.backend = "cpu", .threads = 2, .host = &host};
    struct compute *c = NULL;
    struct steer_error err = {0};
    assert_int_equal(compute_open(&c, &o, &err), 0);
    for (int side = 8; side <= 512; side *= 8) { /* 16 KiB, 1 MiB and 64 MiB of activations */
        struct graph *g = graph_new();
        struct tensor x = graph_input(g, "x", (struct shape){1, side, side, 32}, TYPE_F32);
        struct plan *p = NULL;
        graph_output(g, op_affine(g, x, 2, 0), "y", 0);
        int code = compute_plan(&p, c, g, &err);
        assert_int_equal(code, side == 8 ? 0 : STEER_NO_MEMORY);
        if (code) assert_non_null(strstr(err.text, "MB"));
        assert_int_equal(host.bytes, p ? plan_bytes(p) : 0);
        uint64_t beats = host.beats;
        if (p) assert_int_equal(plan_run(p, NULL, &err), 0);
        assert_true(!p || host.beats > beats);
        plan_free(p);
        graph_free(g);
        assert_int_equal(host.bytes, 0);
    }
    compute_close(c);
}

static int setup(void **unused)
{
    (void)unused;
    struct steer_error err = {0};
    struct compute_options o = {.backend = "ref", .threads = 2};
    if (compute_open(&ref, &o, &err)) return -1;
    o.backend = "cpu";
    if (compute_open(&cpu, &o, &err)) return -1;
    for (int i = 0; i < SETS; i++) {
        o.isa = sets[i].isa;
        o.precision = PRECISION_F32;
        if (compute_open(&sets[i].f32, &o, &err)) {
            print_message("skipped: %s\n", err.text);
            continue;
        }
        o.precision = PRECISION_BF16;
        if (!compute_bf16_native())
            print_message("skipped: bf16 with %s, not native here\n", sets[i].isa);
        else if (compute_open(&sets[i].bf16, &o, &err))
            return -1;
    }
    return 0;
}

static int teardown(void **unused)
{
    (void)unused;
    compute_close(ref);
    compute_close(cpu);
    for (int i = 0; i < SETS; i++) {
        compute_close(sets[i].f32);
        compute_close(sets[i].bf16);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_shaped),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_far_negative),
        cmocka_unit_test(test_invariants),
        cmocka_unit_test(test_masked_tokens),
        cmocka_unit_test(test_one_read_one_store),
        cmocka_unit_test(test_company),
        cmocka_unit_test(test_bands),
        cmocka_unit_test(test_memory_limit),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
