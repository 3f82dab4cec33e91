// SPDX-License-Identifier: Apache-2.0
/* Backend cpu against ref, operation by operation, on random, tiny, odd and extreme inputs, and
 * both against values made by torch (golden.py). The worst value measured on any instruction set
 * stands beside each limit. Attention is in test_attention.c. */
#include "rig.h"

#include "golden.h"

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

/* ---- norms, and what is done value by value ---- */

enum kind {
    LAYER_NORM,
    GROUP_NORM,
    CONCAT,
    RESIZE,
    GEGLU,
    CLAMP,
    GELU,
    NORM_MODULATE,
    MODULATE,
    GATED_ADD,
    RMS_NORM,
    NORM_ROPE,
    ROPE,
    MULTIPLY,
    CONCAT_NARROW,
    ONE_FOR_ALL,
    KINDS
};

struct shaped {
    enum kind kind;
    int h, w, c, heads;
    const float *x, *y, *scale, *shift, *vectors, *table;
};

/* t times 1: read in bf16 where that is native, so that what makes t writes it. */
static struct tensor read_narrow(struct rig *r, struct tensor t)
{
    struct shape s = graph_shape(r->g, t);
    s.b = 1;
    size_t count = (size_t)s.h * (size_t)s.w * (size_t)s.c;
    float *ones = numbers(count, 0);
    for (size_t i = 0; i < count; i++)
        ones[i] = 1;
    t = op_multiply(r->g, t, graph_constant(r->g, "ones", s, ones));
    free(ones);
    return t;
}

/* y as a view into [x, y]. */
static struct tensor second_half(struct rig *r, struct tensor x, struct tensor y)
{
    int c = graph_shape(r->g, x).c;
    return op_channels(r->g, op_concat(r->g, x, y), c, c);
}

static struct tensor record_norm(struct rig *r, const struct shaped *s, struct tensor x,
                                 struct tensor y)
{
    struct stored scale = {.data = s->scale, .type = TYPE_F32}, none = {.data = NULL};
    int d = s->c / s->heads;
    struct tensor table = graph_constant(r->g, "table", (struct shape){1, s->h, s->w, d}, s->table);
    if (s->kind == ROPE) return read_narrow(r, op_rope(r->g, narrow(r, x), table, s->heads));
    assert_int_equal(weight_norm(r->w, r->c, scale, none, d), 0);
    r->weights = 1;
    x = op_rms_norm(r->g, second_half(r, y, x), r->w[0], s->heads, 1e-6);
    return read_narrow(r, s->kind == RMS_NORM ? x : op_rope(r->g, x, table, s->heads));
}

static struct tensor record_shaped(struct rig *r, const void *what)
{
    const struct shaped *s = what;
    struct stored scale = {.data = s->scale, .type = TYPE_F32},
                  shift = {.data = s->shift, .type = TYPE_F32};
    struct shape shape = {2, s->h, s->w, s->c}, one = {1, 1, 1, s->c};
    struct tensor x = input(r, shape, s->x), y = input(r, shape, s->y);
    struct tensor vectors = input(r, (struct shape){2, 1, 1, 2 * s->c}, s->vectors);
    struct tensor first = op_channels(r->g, vectors, 0, s->c);
    struct tensor second = op_channels(r->g, vectors, s->c, s->c);
    switch (s->kind) {
    case LAYER_NORM:
    case GROUP_NORM:
        assert_int_equal(weight_norm(r->w, r->c, scale, shift, s->c), 0);
        r->weights = 1;
        if (s->kind == LAYER_NORM) return read_narrow(r, op_layer_norm(r->g, x, r->w[0], 1e-5));
        return read_narrow(r, op_group_norm(r->g, x, r->w[0], 2, 1e-6, ACT_NONE));
    case CONCAT: return op_concat(r->g, op_add(r->g, x, y), op_activation(r->g, y, ACT_SILU));
    case RESIZE:
        return op_resize(r->g, op_activation(r->g, x, ACT_TANH), 2 * s->h - 1, 2 * s->w + 1);
    case GEGLU: return op_geglu(r->g, narrow(r, x));
    case CLAMP: return op_soft_clamp(r->g, op_affine(r->g, x, 1.7, -0.3));
    case NORM_MODULATE:
        x = op_layer_norm(r->g, bound(r, shape, s->x), NULL, 1e-6);
        return read_narrow(r, op_modulate(r->g, x, first, second));
    case MODULATE: return read_narrow(r, op_modulate(r->g, x, second, first));
    case GATED_ADD: return op_gated_add(r->g, bound(r, shape, s->x), second, narrow(r, y));
    case RMS_NORM:
    case NORM_ROPE:
    case ROPE: return record_norm(r, s, x, y);
    case MULTIPLY: return read_narrow(r, op_multiply(r->g, narrow(r, x), y));
    case CONCAT_NARROW: return read_narrow(r, op_concat(r->g, narrow(r, x), y));
    case ONE_FOR_ALL:
        y = op_modulate(r->g, y, graph_constant(r->g, "shift", one, s->shift), first);
        y = op_gated_add(r->g, y, graph_constant(r->g, "gate", one, s->scale), x);
        return op_add(r->g, y,
                      graph_constant(r->g, "x", (struct shape){1, s->h, s->w, s->c}, s->x));
    default: return op_activation(r->g, op_activation(r->g, x, ACT_GELU), ACT_GELU_TANH);
    }
}

static void test_shaped(void **unused)
{
    (void)unused;
    static const struct {
        const char *name;
        double f32, bf16; /* bf16 0: not held to anything, as nothing becomes narrow */
    } rows[KINDS] = {
        [LAYER_NORM] = {"layer norm", 1e-6 /* 5.4e-8 */, 1e-2 /* 1.6e-3 */},
        [GROUP_NORM] = {"group norm", 1e-6 /* 5.1e-8 */, 1e-2 /* 1.7e-3 */},
        [CONCAT] = {"add, concat", 1e-7 /* 4.4e-9 */, 0},
        [RESIZE] = {"resize", 1e-6 /* 1.0e-7 */, 0},
        [GEGLU] = {"geglu", 6e-6 /* 1.5e-6 */, 1e-2 /* 2.4e-3 */},
        [CLAMP] = {"affine, clamp", 1e-7 /* 0 */, 0},
        [GELU] = {"gelu", 1e-6 /* 1.9e-7 */, 0},
        [NORM_MODULATE] = {"layer norm, modulate", 1e-6 /* 6.5e-8 */, 1e-2 /* 2.1e-3 */},
        [MODULATE] = {"modulate", 1e-6 /* 0 */, 1e-2 /* 1.8e-3 */},
        [GATED_ADD] = {"gated add", 1e-6 /* 3.4e-8 */, 1e-2 /* 1.9e-3 */},
        [RMS_NORM] = {"rms norm", 1e-6 /* 8.1e-8 */, 1e-2 /* 2.3e-3 */},
        [NORM_ROPE] = {"rms norm, rope", 1e-6 /* 8.0e-8 */, 1e-2 /* 2.4e-3 */},
        [ROPE] = {"rope", 1e-6 /* 4.7e-8 */, 1e-2 /* 3.2e-3 */},
        [MULTIPLY] = {"multiply", 1e-6 /* 0 */, 1e-2 /* 2.3e-3 */},
        [CONCAT_NARROW] = {"concat, narrow", 1e-6 /* 0 */, 1e-2 /* 1.5e-3 */},
        [ONE_FOR_ALL] = {"one for all images", 1e-6 /* 3.0e-8 */, 0},
    };
    for (enum kind kind = 0; kind < KINDS; kind++) {
        struct worst worst;
        worst_begin(&worst);
        for (int i = 0; i < 6; i++) {
            static const int sizes[6][4] = {{1, 1, 2, 1},   {3, 5, 14, 1},  {7, 2, 48, 2},
                                            {16, 9, 32, 2}, {1, 77, 96, 3}, {33, 31, 18, 3}};
            struct shaped s = {.kind = kind, .h = sizes[i][0], .w = sizes[i][1]};
            s.c = sizes[i][2], s.heads = sizes[i][3];
            size_t count = (size_t)(2 * s.h * s.w * s.c), c = (size_t)s.c;
            float *x = numbers(count, 4), *y = numbers(count, 4);
            float *scale = numbers(c, 1), *shift = numbers(c, 1);
            float *vectors = numbers(4 * c, 1), *table = numbers(count, 1);
            for (size_t k = 0; kind <= GROUP_NORM && k < count; k++)
                x[k] += 50; /* a mean far above the deviation */
            s.x = x, s.y = y, s.scale = scale, s.shift = shift, s.vectors = vectors;
            s.table = table;
            worst_add(&worst, record_shaped, &s, rows[kind].bf16 > 0);
            free(x), free(y), free(scale), free(shift), free(vectors), free(table);
        }
        worst_hold(&worst, rows[kind].name, rows[kind].f32, rows[kind].bf16);
    }
}

/* ---- values of torch ---- */

/* x, and vectors or tensors beside it, by golden.py's seeds. */
static struct tensor golden_input(struct rig *r, size_t seed, int rows)
{
    float *x = golden_numbers((size_t)(rows * 12), seed);
    struct tensor t = graph_constant(r->g, "golden", (struct shape){1, 1, rows, 12}, x);
    free(x);
    return t;
}

static struct tensor golden_image(struct rig *r, struct shape s)
{
    float counting[72];
    for (int i = 0; i < 72; i++)
        counting[i] = (float)i;
    return graph_constant(r->g, "counting", s, counting);
}

static struct tensor golden_rms_norm_record(struct rig *r, const void *what)
{
    struct stored scale = {.data = what, .type = TYPE_F32}, none = {.data = NULL};
    assert_int_equal(weight_norm(r->w, r->c, scale, none, 6), 0);
    r->weights = 1;
    return op_rms_norm(r->g, golden_input(r, 1, 3), r->w[0], 2, 1e-6);
}

static struct tensor golden_rope_record(struct rig *r, const void *what)
{
    struct tensor table = graph_constant(r->g, "table", (struct shape){1, 1, 3, 6}, what);
    return op_rope(r->g, golden_input(r, 1, 3), table, 2);
}

static struct tensor golden_layer_norm_record(struct rig *r, const void *what)
{
    (void)what;
    return op_layer_norm(r->g, golden_input(r, 1, 3), NULL, 1e-6);
}

static struct tensor golden_modulate_record(struct rig *r, const void *what)
{
    struct tensor x = golden_layer_norm_record(r, what);
    return op_modulate(r->g, x, golden_input(r, 3, 1), golden_input(r, 4, 1));
}

static struct tensor golden_gated_add_record(struct rig *r, const void *what)
{
    (void)what;
    return op_gated_add(r->g, golden_input(r, 1, 3), golden_input(r, 3, 1), golden_input(r, 5, 3));
}

static struct tensor golden_patches_record(struct rig *r, const void *what)
{
    (void)what;
    return op_patches(r->g, golden_image(r, (struct shape){1, 4, 6, 3}), 2, PATCH_CHANNEL_FIRST);
}

static struct tensor golden_unpatches_record(struct rig *r, const void *what)
{
    (void)what;
    return op_unpatches(r->g, golden_image(r, (struct shape){1, 2, 3, 12}), 2, PATCH_CHANNEL_LAST);
}

static void test_golden(void **unused)
{
    (void)unused;
    float *scale = golden_numbers(6, 2);
    const struct {
        const char *name;
        recipe make;
        const void *what;
        const float *want;
        size_t count;
        double limit;
    } list[] = {
        {"torch: rms norm", golden_rms_norm_record, scale, golden_rms_norm, 36, 1e-6 /* 7.9e-8 */},
        {"torch: rope", golden_rope_record, golden_rope_table, golden_rope, 36, 1e-6 /* 2.8e-8 */},
        {"torch: layer norm", golden_layer_norm_record, NULL, golden_layer_norm, 36,
         1e-6 /* 9.7e-8 */},
        {"torch: modulate", golden_modulate_record, NULL, golden_modulate, 36, 1e-6 /* 6.5e-8 */},
        {"torch: gated add", golden_gated_add_record, NULL, golden_gated_add, 36,
         1e-6 /* 1.3e-8 */},
        {"torch: patches", golden_patches_record, NULL, golden_patches_first, 72, 0},
        {"torch: unpatches", golden_unpatches_record, NULL, golden_unpatches_last, 72, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        golden_hold(list[i].name, list[i].make, list[i].what, list[i].want, list[i].count,
                    list[i].limit);
    free(scale);
}

struct patched {
    int side, h, w, c;
    enum patch_order order;
    const float *x;
};

static struct tensor record_there_and_back(struct rig *r, const void *what)
{
    const struct patched *s = what;
    struct tensor x = input(r, (struct shape){2, s->h, s->w, s->c}, s->x);
    return op_unpatches(r->g, op_patches(r->g, x, s->side, s->order), s->side, s->order);
}

/* Either order of a patch's channels, undone by its inverse, to the byte. */
static void test_patches(void **unused)
{
    (void)unused;
    for (int side = 1; side <= 3; side++)
        for (enum patch_order order = PATCH_CHANNEL_FIRST; order <= PATCH_CHANNEL_LAST; order++) {
            struct patched s = {side, 2 * side, 5 * side, 7, order, NULL};
            size_t n, count = (size_t)(2 * s.h * s.w * s.c);
            float *x = numbers(count, 4);
            s.x = x;
            float *got = evaluate(cpu, record_there_and_back, &s, &n);
            assert_int_equal(n, count);
            assert_memory_equal(got, x, n * sizeof *x);
            free(x), free(got);
        }
}

/* Ids and table rows: a bias by bucket, [1, L, S, heads], as T5 looks its own up. */
static struct tensor record_buckets(struct rig *r, const void *what)
{
    static const int32_t ids[6] = {4, 0, 1, 3, 3, 2}; /* [2, 3] */
    struct stored table = {.data = what, .type = TYPE_F32};
    assert_int_equal(weight_table(r->w, r->c, table, 5, 2), 0);
    r->weights = 1;
    struct tensor t = graph_constant_ids(r->g, "buckets", (struct shape){1, 2, 3, 1}, ids);
    return op_embedding(r->g, t, r->w[0], NULL);
}

static void test_buckets(void **unused)
{
    (void)unused;
    static const float table[10] = {0, 1, 10, 11, 20, 21, 30, 31, 40, 41};
    static const float want[12] = {40, 41, 0, 1, 10, 11, 30, 31, 30, 31, 20, 21};
    golden_hold("buckets", record_buckets, table, want, 12, 0);
}

/* A constant outlives its graph and what it was copied from, and is there again in every run. */
static void test_constant(void **unused)
{
    (void)unused;
    struct compute *both[] = {ref, cpu};
    for (int i = 0; i < 2; i++) {
        struct graph *g = graph_new();
        float data[4] = {1, 2, 3, 4};
        struct shape s = {1, 1, 1, 4};
        struct tensor x = graph_input(g, "x", (struct shape){2, 1, 1, 4}, TYPE_F32);
        struct tensor y = op_add(g, x, graph_constant(g, "c", s, data));
        struct plan *p;
        y = op_affine(g, y, 2, 0);
        graph_output(g, y, "y", 0);
        assert_int_equal(compute_plan(&p, both[i], g, NULL), 0);
        graph_free(g);
        memset(data, 0, sizeof data);
        for (int run = 0; run < 2; run++) {
            for (int k = 0; k < 8; k++)
                ((float *)plan_data(p, x))[k] = (float)(run + k / 4);
            assert_int_equal(plan_run(p, NULL, NULL), 0);
            for (int k = 0; k < 8; k++)
                assert_true(((float *)plan_data(p, y))[k] ==
                            (float)(2 * (run + k / 4 + k % 4 + 1)));
        }
        plan_free(p);
    }
}

/* What does not fit is told when the plan is made, not computed. */
static void test_refused(void **unused)
{
    (void)unused;
    static const float zeros[96];
    struct stored data = {.data = zeros, .type = TYPE_F32}, none = {.data = NULL};
    struct weight *shifted, *six;
    assert_int_equal(weight_norm(&shifted, ref, data, data, 6), 0);
    assert_int_equal(weight_norm(&six, ref, data, none, 6), 0);
    for (int i = 0; i < 12; i++) {
        struct graph *g = graph_new();
        struct tensor x = graph_input(g, "x", (struct shape){2, 3, 4, 12}, TYPE_F32);
        struct tensor v = graph_constant(g, "v", (struct shape){1, 1, 1, 12}, zeros);
        struct tensor two = graph_constant(g, "w", (struct shape){2, 1, 1, 11}, zeros);
        struct tensor q = op_reshape(g, x, 1, 12), wrong = TENSOR_NONE;
        struct tensor bias = graph_constant(g, "b", (struct shape){1, 2, 12, 4}, zeros);
        struct text_keys keys = {q, q, TENSOR_NONE};
        switch (i) {
        case 0: op_rms_norm(g, x, shifted, 2, 1e-6); break;
        case 1: op_rms_norm(g, x, six, 1, 1e-6); break;
        case 2: op_modulate(g, x, v, two); break;
        case 3: op_gated_add(g, x, two, x); break;
        case 4: op_rope(g, x, v, 1); break;
        case 5: op_patches(g, x, 2, PATCH_CHANNEL_FIRST); break;
        case 6: op_unpatches(g, x, 5, PATCH_CHANNEL_LAST); break;
        case 7: op_multiply(g, v, x); break;
        case 8: op_attention(g, q, q, q, 4, 1, 0, TENSOR_NONE, bias); break;
        case 9: /* without shared keys it is op_attention */
            op_guided_attention(g, q, keys, TEXT_KEYS_NONE, TEXT_KEYS_NONE, 2, 1, GUIDANCE_NONE,
                                GUIDANCE_TEXT, wrong);
            break;
        case 10: /* no method takes no negative */
            op_guided_attention(g, q, keys, keys, keys, 2, 1, GUIDANCE_NONE, GUIDANCE_TEXT, wrong);
            break;
        default: /* a method needs its parameters */
            op_guided_attention(g, q, keys, keys, keys, 2, 1, GUIDANCE_NASA, GUIDANCE_TEXT, wrong);
        }
        struct plan *p = NULL;
        struct steer_error err = {0};
        assert_int_equal(compute_plan(&p, ref, g, &err), STEER_INTERNAL);
        assert_non_null(strstr(err.text, "recording operation"));
        graph_free(g);
    }
    weight_free(shifted);
    weight_free(six);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers),  cmocka_unit_test(test_golden),
        cmocka_unit_test(test_shaped),  cmocka_unit_test(test_patches),
        cmocka_unit_test(test_buckets), cmocka_unit_test(test_constant),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_company),
        cmocka_unit_test(test_bands),   cmocka_unit_test(test_memory_limit),
    };
    return cmocka_run_group_tests(tests, rig_open, rig_close);
}
