// SPDX-License-Identifier: Apache-2.0
/* Attention and guided attention: backend cpu against ref on random, tiny, odd and extreme inputs,
 * The methods' invariants on both, and joint attention against plain attention over keys put
 * together by hand. The worst value measured on any instruction set stands beside each limit. */
#include "rig.h"

#include "golden.h"

enum { BOUND = 2 }; /* masks may be bound or inputs */

/* Two images. shared > 0 or method: guided attention, otherwise plain. */
struct attend {
    int rows, keys, negatives, shared, heads, d, causal, masked, biased;
    enum guidance_method method;
    enum guidance_variant variant;
    float params[2 * GUIDANCE_PARAMS];
    const float *q, *k, *v, *kn, *vn, *ks, *vs, *mask, *mask_n, *mask_s, *bias;
};

/* keys 0: an empty segment. */
static struct text_keys record_keys(struct rig *r, const struct attend *a, int keys, const float *k,
                                    const float *v, const float *mask)
{
    struct text_keys text = TEXT_KEYS_NONE;
    struct shape s = {2, 1, keys, a->heads * a->d};
    if (!keys) return text;
    text.k = narrow(r, input(r, s, k));
    text.v = narrow(r, input(r, s, v));
    s = (struct shape){2, 1, 1, keys};
    if (a->masked) text.mask = a->masked == BOUND ? bound(r, s, mask) : input(r, s, mask);
    return text;
}

static struct tensor record_attend(struct rig *r, const void *what)
{
    const struct attend *a = what;
    double scale = 1 / sqrt((double)a->d);
    struct tensor bias = TENSOR_NONE, params = TENSOR_NONE;
    struct tensor q = narrow(r, input(r, (struct shape){2, 1, a->rows, a->heads * a->d}, a->q));
    struct text_keys pos = record_keys(r, a, a->keys, a->k, a->v, a->mask);
    struct text_keys neg = TEXT_KEYS_NONE;
    if (a->biased) {
        struct shape s = {1, a->rows, a->keys, a->heads};
        bias = graph_constant(r->g, "bias", s, a->bias);
    }
    if (!a->method && !a->shared)
        return op_attention(r->g, q, pos.k, pos.v, a->heads, scale, a->causal, pos.mask, bias);
    struct text_keys shared = record_keys(r, a, a->shared, a->ks, a->vs, a->mask_s);
    if (a->method) {
        neg = record_keys(r, a, a->negatives, a->kn, a->vn, a->mask_n);
        params = input(r, (struct shape){2, 1, 1, GUIDANCE_PARAMS}, a->params);
    }
    return op_guided_attention(r->g, q, pos, neg, shared, a->heads, scale, a->method, a->variant,
                               params);
}

static float *keys_masked(int keys, int every, int whole_second)
{
    float *mask = numbers(2 * (size_t)keys, 0);
    for (int i = 0; i < 2 * keys; i++)
        mask[i] = i % every && !(whole_second && i >= keys) ? 0 : -INFINITY;
    return mask;
}

static void attend_fill(struct attend *a, float logits)
{
    size_t c = (size_t)(a->heads * a->d) * 2;
    a->q = numbers(c * (size_t)a->rows, logits);
    a->k = numbers(c * (size_t)a->keys, 1);
    a->v = numbers(c * (size_t)a->keys, 1);
    a->kn = numbers(c * (size_t)a->negatives, 1);
    a->vn = numbers(c * (size_t)a->negatives, 1);
    a->ks = numbers(c * (size_t)a->shared, 1);
    a->vs = numbers(c * (size_t)a->shared, 1);
    a->mask = keys_masked(a->keys, 3, 0);
    a->mask_n = keys_masked(a->negatives, 4, 1);
    a->mask_s = keys_masked(a->shared, 5, 0);
    a->bias = numbers((size_t)a->rows * (size_t)a->keys * (size_t)a->heads, logits);
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
    const float *all[] = {a->q,  a->k,    a->v,      a->kn,     a->vn,  a->ks,
                          a->vs, a->mask, a->mask_n, a->mask_s, a->bias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free((void *)(uintptr_t)all[i]);
}

/* How a case of the tables below is named and made. */
struct form {
    const char *name;
    enum guidance_method method;
    enum guidance_variant variant;
    int shared, causal, masked, biased;
};
static const struct form forms[] = {
    {"attention", GUIDANCE_NONE, GUIDANCE_TEXT, 0, 0, 0, 0},
    {"causal", GUIDANCE_NONE, GUIDANCE_TEXT, 0, 1, 0, 0},
    {"bias", GUIDANCE_NONE, GUIDANCE_TEXT, 0, 0, 1, 1},
    {"nasa", GUIDANCE_NASA, GUIDANCE_TEXT, 0, 0, 0, 0},
    {"nag", GUIDANCE_NAG, GUIDANCE_TEXT, 0, 0, 0, 0},
    {"vsf", GUIDANCE_VSF, GUIDANCE_TEXT, 0, 0, 0, 0},
    {"joint none", GUIDANCE_NONE, GUIDANCE_TEXT, 1, 0, 0, 0},
    {"joint nasa text", GUIDANCE_NASA, GUIDANCE_TEXT, 1, 0, 0, 0},
    {"joint nasa mass", GUIDANCE_NASA, GUIDANCE_MASS, 1, 0, 0, 0},
    {"joint nasa joint", GUIDANCE_NASA, GUIDANCE_JOINT, 1, 0, 0, 0},
    {"joint nag", GUIDANCE_NAG, GUIDANCE_TEXT, 1, 0, 0, 0},
    {"joint vsf", GUIDANCE_VSF, GUIDANCE_TEXT, 1, 0, 0, 0},
};
enum { FORMS = sizeof forms / sizeof *forms };

static void test_attention(void **unused)
{
    (void)unused;
    static const int shapes[][6] = {
        /* rows keys negatives shared heads D */
        {1, 1, 1, 1, 1, 8},       {5, 3, 7, 5, 2, 40},       {48, 64, 64, 64, 3, 32},
        {49, 77, 77, 49, 5, 40},  {100, 65, 24, 100, 2, 64}, {117, 129, 77, 30, 2, 160},
        {64, 200, 1, 65, 1, 512}, {30, 77, 120, 200, 4, 17}, {100, 40, 9, 300, 2, 128},
        {1000, 20, 9, 40, 2, 8}, /* so many rows that NAG groups their blocks */
    };
    for (int f = 0; f < FORMS; f++) {
        struct worst worst, sharp; /* sharp: softmaxes that are nearly one-hot */
        worst_begin(&worst), worst_begin(&sharp);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int variant = 0; variant < 3; variant++) {
                const int *s = shapes[i];
                struct attend a = {.rows = s[0], .keys = s[1], .negatives = s[2]};
                a.shared = forms[f].shared ? s[3] : 0;
                a.heads = s[4], a.d = s[5];
                a.causal = forms[f].causal, a.biased = forms[f].biased;
                a.masked = variant == 2 ? BOUND : forms[f].masked;
                a.method = forms[f].method, a.variant = forms[f].variant;
                if (a.causal) a.keys = a.rows;
                attend_fill(&a, variant == 1 ? 60 : 3);
                worst_add(variant == 1 ? &sharp : &worst, record_attend, &a, 1);
                attend_free(&a);
            }
        worst_hold(&worst, forms[f].name, 3e-6 /* 8.7e-7 */, 1e-2 /* 5.0e-3 */);
        /* Rounding logits of 60 to bf16 moves them by 0.2, so bf16 says nothing there. */
        char name[64];
        snprintf(name, sizeof name, "sharp %s", forms[f].name);
        worst_hold(&sharp, name, 1e-5 /* 4.7e-6 */, 0);
    }
}

/* The negative's logits lie 100 below the positive's: normalised by itself it counts in full. */
static void test_far_negative(void **unused)
{
    (void)unused;
    struct attend a = {.rows = 9, .keys = 4, .negatives = 4, .shared = 5, .heads = 1, .d = 16};
    attend_fill(&a, 1);
    float *q = (float *)(uintptr_t)a.q, *k = (float *)(uintptr_t)a.k;
    float *kn = (float *)(uintptr_t)a.kn, *ks = (float *)(uintptr_t)a.ks;
    for (int i = 0; i < 2 * 9 * 16; i++)
        q[i] = 5;
    for (int i = 0; i < 2 * 4 * 16; i++)
        k[i] = 2.5f + 0.1f * k[i], kn[i] = -2.5f + 0.1f * kn[i];
    for (int i = 0; i < 2 * 5 * 16; i++)
        ks[i] = 2.5f + 0.1f * ks[i];
    struct worst worst;
    worst_begin(&worst);
    for (int f = 0; f < FORMS; f++) {
        struct attend b = a;
        if (forms[f].causal || forms[f].biased) continue;
        b.method = forms[f].method, b.variant = forms[f].variant;
        if (!forms[f].shared) b.shared = 0;
        worst_add(&worst, record_attend, &b, 0);
    }
    worst_hold(&worst, "a negative 100 below", 1e-5 /* 2.5e-6 */, 0);

    /* What ref says: the far text counts in full where it is normalised alone, else next to
     * nothing. */
    size_t n;
    struct attend none = a;
    float *plain = evaluate(ref, record_attend, &none, &n);
    a.method = GUIDANCE_NASA;
    for (int variant = GUIDANCE_TEXT; variant <= GUIDANCE_MASS; variant++) {
        a.variant = (enum guidance_variant)variant;
        float *got = evaluate(ref, record_attend, &a, &n);
        double off = distance(got, plain, n);
        assert_true(variant == GUIDANCE_TEXT ? off > 0.1 : off < 1e-6);
        free(got);
    }
    free(plain);
    attend_free(&a);
}

/* ---- the methods' invariants, on both backends ---- */

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
    struct attend a = {.rows = 37, .keys = 21, .negatives = 21, .heads = 3, .d = 24};
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
    struct attend a = {.rows = 37, .keys = 21, .negatives = 13, .heads = 3, .d = 24};
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
static void alpha0_on(struct compute *c, int shared)
{
    size_t n;
    struct attend a = {.rows = 37, .keys = 70, .negatives = 21, .heads = 3, .d = 24};
    a.shared = shared;
    float zero[GUIDANCE_PARAMS] = {0};
    attend_fill(&a, 3);
    float *plain = attend_on(c, &a, GUIDANCE_NONE, NULL, &n);
    for (int variant = GUIDANCE_TEXT; variant <= GUIDANCE_JOINT; variant++) {
        a.variant = (enum guidance_variant)variant;
        float *got = attend_on(c, &a, GUIDANCE_NASA, zero, &n);
        assert_memory_equal(got, plain, n * sizeof *got);
        free(got);
    }
    free(plain);
    attend_free(&a);
}

static void test_invariants(void **unused)
{
    (void)unused;
    invariants_on(ref);
    vsf_on(ref);
    alpha0_on(ref, 100);
    for (int i = 0; i < SETS; i++)
        if (sets[i].f32) {
            invariants_on(sets[i].f32);
            vsf_on(sets[i].f32);
            alpha0_on(sets[i].f32, 100);
            if (sets[i].bf16) alpha0_on(sets[i].bf16, 0), alpha0_on(sets[i].bf16, 100);
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
static void masked_on(struct compute *c, const struct form *f)
{
    enum { TOKENS = 12, MORE = 130, CHANNELS = 32 };
    struct attend a = {.rows = 20, .keys = 9, .negatives = TOKENS, .heads = 2, .d = 16};
    a.masked = 1, a.method = f->method, a.variant = f->variant, a.shared = f->shared ? 33 : 0;
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
        for (int f = 0; sets[i].f32 && f < FORMS; f++) {
            if (!forms[f].method) continue;
            masked_on(sets[i].f32, forms + f);
            if (sets[i].bf16) masked_on(sets[i].bf16, forms + f);
        }
}

/* Attention reads each query once, each of the image's keys once for a query and head, and stores
 * each row once, whatever the method. */
static void one_read_one_store(struct compute *c, const struct form *f)
{
    struct attend a = {.rows = 100, .keys = 77, .negatives = 77, .heads = 4, .d = 40};
    a.method = f->method, a.variant = f->variant, a.shared = f->shared ? 90 : 0;
    attend_fill(&a, 1);
    struct rig r = {.c = c, .g = graph_new()};
    struct plan *p;
    graph_output(r.g, record_attend(&r, &a), "out", 0);
    assert_int_equal(compute_plan(&p, c, r.g, NULL), 0);
    inputs_set(&r, p);
    assert_int_equal(plan_run(p, NULL, NULL), 0);
    assert_int_equal(plan_counters(p).q_rows_read, 200);
    assert_int_equal(plan_counters(p).out_rows_stored, 200);
    assert_int_equal(plan_counters(p).shared_keys_read, 200 * a.shared * a.heads);
    plan_free(p);
    rig_free(&r);
    attend_free(&a);
}

static void test_one_read_one_store(void **unused)
{
    (void)unused;
    for (int f = 0; f < FORMS; f++) {
        one_read_one_store(ref, forms + f);
        for (int i = 0; i < SETS; i++) {
            if (sets[i].f32) one_read_one_store(sets[i].f32, forms + f);
            if (sets[i].bf16) one_read_one_store(sets[i].bf16, forms + f);
        }
    }
}

/* ---- joint attention, against plain attention over keys put together by hand ---- */

enum { POSITIVE, NEGATIVE, SHARED, SEGMENTS };

/* [2][sum of counts][channels]: of each image the segments one after the other, each times its
 * factor; segments with count 0 are left out. */
static float *together(const float *const x[SEGMENTS], const int counts[SEGMENTS],
                       const float factors[SEGMENTS], int channels)
{
    int all = counts[0] + counts[1] + counts[2];
    float *y = numbers((size_t)(2 * all * channels), 0), *to = y;
    for (int b = 0; b < 2; b++)
        for (int s = 0; s < SEGMENTS; s++)
            for (int i = 0; i < counts[s] * channels; i++)
                *to++ = x[s][b * counts[s] * channels + i] * factors[s];
    return y;
}

/* One softmax over the segments named, their values times factors, offset added to the negative's
 * logits. */
static float *over(struct compute *c, const struct attend *a, const int named[SEGMENTS],
                   const float factors[SEGMENTS], float offset, size_t *n)
{
    const int counts[SEGMENTS] = {named[POSITIVE] ? a->keys : 0, named[NEGATIVE] ? a->negatives : 0,
                                  named[SHARED] ? a->shared : 0};
    const float *const k[] = {a->k, a->kn, a->ks}, *const v[] = {a->v, a->vn, a->vs};
    static const float ones[SEGMENTS] = {1, 1, 1};
    const float *const mask[] = {a->mask, a->mask_n, a->mask_s};
    struct attend b = {.rows = a->rows, .heads = a->heads, .d = a->d, .masked = 1, .q = a->q};
    b.keys = counts[0] + counts[1] + counts[2];
    float *masks = together(mask, counts, ones, 1);
    for (int i = 0; i < 2 * b.keys; i++) {
        int at = i % b.keys - counts[POSITIVE];
        if (!a->masked) masks[i] = 0;
        if (at >= 0 && at < counts[NEGATIVE]) masks[i] += offset;
    }
    b.k = together(k, counts, ones, a->heads * a->d);
    b.v = together(v, counts, factors, a->heads * a->d);
    b.mask = masks;
    float *out = evaluate(c, record_attend, &b, n);
    free((void *)(uintptr_t)b.k), free((void *)(uintptr_t)b.v), free(masks);
    return out;
}

/* What docs/guidance.md's table says of a form, from whole softmaxes. */
static float *joint_wanted(struct compute *c, const struct attend *a, size_t *n)
{
    static const int positive[] = {1, 0, 1}, text[] = {0, 1, 0}, negative[] = {0, 1, 1},
                     all[] = {1, 1, 1};
    static const float ones[] = {1, 1, 1}, text_only[] = {0, 1, 0};
    const float *param = a->params;
    float alpha = param[GUIDANCE_ALPHA], phi = param[GUIDANCE_PHI];
    const float signs[] = {1, -alpha, 1};
    if (a->method == GUIDANCE_VSF) return over(c, a, all, signs, -param[GUIDANCE_OFFSET], n);
    float *z = over(c, a, positive, ones, 0, n);
    if (a->method == GUIDANCE_NONE) return z;
    int alone = a->method == GUIDANCE_NASA && a->variant == GUIDANCE_TEXT;
    int mass = a->method == GUIDANCE_NASA && a->variant == GUIDANCE_MASS;
    float *minus = over(c, a, alone ? text : negative, mass ? text_only : ones, 0, n);
    size_t channels = (size_t)(a->heads * a->d);
    for (size_t row = 0; row < *n; row += channels) {
        double norm_t = 0, norm_p = 0;
        for (size_t i = row; i < row + channels; i++) {
            norm_t += fabs(z[i] + (double)phi * (z[i] - minus[i]));
            norm_p += fabs(z[i]);
        }
        double ratio = norm_t / (norm_p + 1e-6), tau = param[GUIDANCE_TAU];
        double shrink = param[GUIDANCE_BETA] * (ratio > tau ? tau / ratio : 1);
        for (size_t i = row; i < row + channels; i++) {
            double zt = z[i] + (double)phi * (z[i] - minus[i]);
            z[i] = a->method == GUIDANCE_NASA
                       ? z[i] - alpha * minus[i]
                       : (float)(shrink * zt + (1 - param[GUIDANCE_BETA]) * z[i]);
        }
    }
    free(minus);
    return z;
}

static void test_joint(void **unused)
{
    (void)unused;
    double worst = 0;
    size_t n, m;
    for (int f = 0; f < FORMS; f++)
        for (int masked = 0; forms[f].shared && masked < 2; masked++) {
            struct attend a = {.rows = 29, .keys = 21, .negatives = 13, .shared = 70};
            a.heads = 3, a.d = 24, a.masked = masked;
            a.method = forms[f].method, a.variant = forms[f].variant;
            attend_fill(&a, 3);
            memcpy(a.params + GUIDANCE_PARAMS, a.params, sizeof a.params / 2);
            for (int i = -1; i < SETS; i++) {
                struct compute *c = i < 0 ? ref : sets[i].f32;
                if (!c) continue;
                float *got = evaluate(c, record_attend, &a, &n), *want = joint_wanted(c, &a, &m);
                assert_int_equal(n, m);
                raise_to(&worst, distance(got, want, n));
                free(got), free(want);
            }
            attend_free(&a);
        }
    hold("joint, by whole softmaxes", worst, 2e-6 /* 3.7e-7 */);
}

/* The same text twice: NASA `joint` gives (1 - alpha) Z+, NAG gives Z+. */
static void joint_same_on(struct compute *c)
{
    size_t n;
    struct attend a = {.rows = 37, .keys = 21, .negatives = 21, .shared = 66, .heads = 3, .d = 24};
    attend_fill(&a, 3);
    struct attend same = a;
    same.kn = a.k, same.vn = a.v, same.variant = GUIDANCE_JOINT;
    float nasa[GUIDANCE_PARAMS] = {0.3f};
    float nag[GUIDANCE_PARAMS] = {[GUIDANCE_PHI] = 3, [GUIDANCE_TAU] = 2, [GUIDANCE_BETA] = .7f};
    float *plain = attend_on(c, &a, GUIDANCE_NONE, NULL, &n);
    float *got = attend_on(c, &same, GUIDANCE_NASA, nasa, &n);
    float *still = attend_on(c, &same, GUIDANCE_NAG, nag, &n);
    assert_true(distance(still, plain, n) < 1e-5);
    for (size_t i = 0; i < n; i++)
        got[i] /= 0.7f;
    assert_true(distance(got, plain, n) < 1e-5);
    free(got), free(still), free(plain);
    attend_free(&a);
}

/* An empty negative takes nothing away, but for the image's own part in `joint`. All keys masked:
 * 0, not NaN. */
static void empty_on(struct compute *c)
{
    size_t n;
    struct attend a = {.rows = 37, .keys = 21, .shared = 66, .heads = 3, .d = 24};
    attend_fill(&a, 3);
    float nasa[GUIDANCE_PARAMS] = {0.3f};
    float *plain = attend_on(c, &a, GUIDANCE_NONE, NULL, &n);
    for (int variant = GUIDANCE_TEXT; variant <= GUIDANCE_MASS; variant++) {
        a.variant = (enum guidance_variant)variant;
        float *got = attend_on(c, &a, GUIDANCE_NASA, nasa, &n);
        assert_memory_equal(got, plain, n * sizeof *got);
        free(got);
    }
    free(plain);
    a.masked = 1;
    for (int i = 0; i < 2 * a.keys; i++)
        ((float *)(uintptr_t)a.mask)[i] = -INFINITY;
    for (int i = 0; i < 2 * a.shared; i++)
        ((float *)(uintptr_t)a.mask_s)[i] = -INFINITY;
    for (int method = GUIDANCE_NONE; method <= GUIDANCE_VSF; method++) {
        a.method = (enum guidance_method)method;
        float *got = evaluate(c, record_attend, &a, &n);
        for (size_t i = 0; i < n; i++)
            assert_true(got[i] == 0);
        free(got);
    }
    attend_free(&a);
}

static void test_joint_invariants(void **unused)
{
    (void)unused;
    joint_same_on(ref);
    empty_on(ref);
    for (int i = 0; i < SETS; i++) {
        if (!sets[i].f32) continue;
        joint_same_on(sets[i].f32);
        empty_on(sets[i].f32);
        if (sets[i].bf16) empty_on(sets[i].bf16);
    }
}

/* ---- a batch ---- */

static const float *swapped(const float *x, int half)
{
    float *y = numbers(2 * (size_t)half, 0);
    memcpy(y, x + half, (size_t)half * sizeof *y);
    memcpy(y + half, x, (size_t)half * sizeof *y);
    return y;
}

/* Two images in the other order give the same bytes in the other order. */
static void company_on(struct compute *c, const struct form *f)
{
    size_t n;
    struct attend a = {.rows = 100, .keys = 21, .negatives = 13, .shared = f->shared ? 70 : 0};
    a.heads = 3, a.d = 40, a.masked = 1, a.biased = f->biased, a.causal = f->causal;
    a.method = f->method, a.variant = f->variant;
    attend_fill(&a, 3);
    int channels = a.heads * a.d;
    struct attend b = a;
    b.q = swapped(a.q, a.rows * channels);
    b.k = swapped(a.k, a.keys * channels), b.v = swapped(a.v, a.keys * channels);
    b.kn = swapped(a.kn, a.negatives * channels), b.vn = swapped(a.vn, a.negatives * channels);
    b.ks = swapped(a.ks, a.shared * channels), b.vs = swapped(a.vs, a.shared * channels);
    b.mask = swapped(a.mask, a.keys), b.mask_n = swapped(a.mask_n, a.negatives);
    b.mask_s = swapped(a.mask_s, a.shared);
    memcpy(b.params, a.params + GUIDANCE_PARAMS, sizeof a.params / 2);
    memcpy(b.params + GUIDANCE_PARAMS, a.params, sizeof a.params / 2);
    float *first = evaluate(c, record_attend, &a, &n), *second = evaluate(c, record_attend, &b, &n);
    assert_memory_equal(first, second + n / 2, n / 2 * sizeof *first);
    assert_memory_equal(first + n / 2, second, n / 2 * sizeof *first);
    free(first), free(second);
    attend_free(&a);
    b.bias = NULL;
    attend_free(&b);
}

static void test_company(void **unused)
{
    (void)unused;
    for (int f = 0; f < FORMS; f++)
        for (int i = 0; i < SETS; i++) {
            if (sets[i].f32) company_on(sets[i].f32, forms + f);
            if (sets[i].bf16) company_on(sets[i].bf16, forms + f);
        }
}

/* ---- values of torch ---- */

/* One image: which 0 is T5's attention with a bias, 1 joint attention, 2 with NASA `text`. */
static struct tensor record_golden(struct rig *r, const void *what)
{
    const int *which = what;
    static float params[GUIDANCE_PARAMS] = {[GUIDANCE_ALPHA] = 0.5f};
    static const int counts[] = {3, 5, 5, 4, 4, 2, 2}; /* q k v shared negative */
    struct tensor t[7];
    for (int i = 0; i < 7; i++) {
        float *x = golden_numbers((size_t)(counts[i] * 12), (size_t)(i < 3 ? i + 1 : i + 2));
        t[i] = graph_constant(r->g, "x", (struct shape){1, 1, counts[i], 12}, x);
        free(x);
    }
    float *x = golden_numbers(30, 4);
    struct tensor bias = graph_constant(r->g, "bias", (struct shape){1, 3, 5, 2}, x);
    free(x);
    if (*which == 0) return op_attention(r->g, t[0], t[1], t[2], 2, 1, 0, TENSOR_NONE, bias);
    struct text_keys positive = {t[1], t[2], TENSOR_NONE}, shared = {t[3], t[4], TENSOR_NONE};
    struct text_keys negative = {t[5], t[6], TENSOR_NONE};
    int guided = *which == 2;
    return op_guided_attention(r->g, t[0], positive, guided ? negative : TEXT_KEYS_NONE, shared, 2,
                               1 / sqrt(6), guided ? GUIDANCE_NASA : GUIDANCE_NONE, GUIDANCE_TEXT,
                               guided ? input(r, (struct shape){1, 1, 1, GUIDANCE_PARAMS}, params)
                                      : TENSOR_NONE);
}

static void test_golden(void **unused)
{
    (void)unused;
    static const float *const want[] = {golden_attention_bias, golden_joint, golden_joint_text};
    static const char *const names[] = {"torch: bias", "torch: joint", "torch: joint, nasa"};
    for (int i = 0; i < 3; i++)
        golden_hold(names[i], record_golden, &i, want[i], 36, 1e-6 /* 1.3e-7 */);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_far_negative),  cmocka_unit_test(test_invariants),
        cmocka_unit_test(test_joint),         cmocka_unit_test(test_joint_invariants),
        cmocka_unit_test(test_masked_tokens), cmocka_unit_test(test_one_read_one_store),
        cmocka_unit_test(test_company),
    };
    return cmocka_run_group_tests(tests, rig_open, rig_close);
}
