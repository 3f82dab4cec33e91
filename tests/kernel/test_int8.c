// SPDX-License-Identifier: Apache-2.0
/* How weights are held. As int8, on ref and on backend cpu's instruction sets: against sums in
 * double of the codes and scales that compute.h promises, made here once more; and against the
 * stored matrix, within the bound that rounding to the nearest code has. Tables stay where they are
 * stored. */
#include "rig.h"

/* A linear (size 0) or a convolution. What is multiplied are multiples of 1/64 below 2, which bf16
 * has exactly, so that bf16 is held to the same sums. */
struct layer {
    int h, w, in, out, size, stride, second; /* second: height of a stacked second matrix */
    enum compute_type stored;
    int per_image, rank, plain; /* plain: not weight_hold_int8 */
    const float *x, *matrix, *bias, *vector, *up, *down;
    const void *as_stored;
};
enum { IMAGES = 2 };

static int taps_of(const struct layer *l)
{
    return l->size ? l->size * l->size : 1;
}

static size_t columns_of(const struct layer *l)
{
    return (size_t)l->in * (size_t)taps_of(l);
}

static struct tensor record(struct rig *r, const void *what)
{
    const struct layer *l = what;
    size_t bytes = compute_type_bytes(l->stored);
    static struct low_rank low; /* borrowed until the weight is freed */
    low = (struct low_rank){.up = {.data = l->up, .type = TYPE_F32},
                            .down = {.data = l->down, .type = TYPE_F32},
                            .rank = l->rank,
                            .scale = .5f};
    struct stored matrices[2] = {
        {.data = l->as_stored, .type = l->stored},
        {.data = (const char *)l->as_stored + (size_t)(l->out - l->second) * columns_of(l) * bytes,
         .type = l->stored}};
    struct stored biases[2] = {{.data = l->bias, .type = TYPE_F32},
                               {.data = l->bias + (l->out - l->second), .type = TYPE_F32}};
    int outs[2] = {l->out - l->second, l->second};
    if (l->rank) matrices[0].added = &low;
    struct tensor x = narrow(r, input(r, (struct shape){IMAGES, l->h, l->w, l->in}, l->x));
    struct tensor vector = TENSOR_NONE;
    if (l->size)
        assert_int_equal(weight_conv(r->w, r->c, matrices[0], biases[0], l->out, l->in, l->size),
                         0);
    else
        assert_int_equal(
            weight_linear(r->w, r->c, l->second ? 2 : 1, matrices, biases, outs, l->in), 0);
    r->weights = 1;
    if (!l->plain) weight_hold_int8(r->w[0]);
    if (!l->size) return op_linear(r->g, x, r->w[0], ACT_NONE);
    if (l->per_image) vector = input(r, (struct shape){IMAGES, 1, 1, l->out}, l->vector);
    return op_conv(r->g, x, r->w[0], l->stride, l->size / 2, vector, ACT_NONE);
}

/* ---- what is expected ---- */

static uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* [out, in, taps] with LoRAs in it; codes: as int8 gives it back. bound, when not NULL: half a step
 * of each output. */
static double *matrix_expected(const struct layer *l, int codes, double *bound)
{
    size_t n = columns_of(l);
    double *m = malloc((size_t)l->out * n * sizeof *m);
    assert_non_null(m);
    for (int o = 0; o < l->out; o++) {
        double *row = m + (size_t)o * n, most = 0;
        for (size_t k = 0; k < n; k++) {
            row[k] = l->matrix[(size_t)o * n + k];
            for (int i = 0; i < l->rank; i++)
                row[k] += .5 * l->up[o * l->rank + i] * l->down[(size_t)i * n + k];
            most = fmax(most, fabs(row[k]));
        }
        double scale = (float)most / 127.f;
        if (bound) bound[o] = scale / 2;
        for (size_t k = 0; codes && k < n; k++)
            row[k] = most > 0 ? scale * nearbyint((float)row[k] * (127.f / (float)most)) : 0;
    }
    return m;
}

/* ret[IMAGES, pixels, out]; sums: of |x| below each output pixel, when not NULL. */
static float *layer_expected(const struct layer *l, const double *m, double *sums)
{
    int size = l->size ? l->size : 1, stride = l->size ? l->stride : 1, padding = size / 2;
    int h = (l->h + 2 * padding - size) / stride + 1, w = (l->w + 2 * padding - size) / stride + 1;
    float *y = numbers((size_t)(IMAGES * h * w * l->out), 0);
    for (int i = 0; i < IMAGES * h * w; i++) {
        int b = i / (h * w), top = i % (h * w) / w * stride, left = i % w * stride;
        if (sums) sums[i] = 0;
        for (int o = 0; o < l->out; o++) {
            double sum = l->bias[o] + (l->per_image ? l->vector[b * l->out + o] : 0);
            for (int tap = 0; tap < size * size; tap++) {
                int row = top + tap / size - padding, column = left + tap % size - padding;
                if (row < 0 || row >= l->h || column < 0 || column >= l->w) continue;
                const float *x = l->x + (size_t)((b * l->h + row) * l->w + column) * (size_t)l->in;
                for (int c = 0; c < l->in; c++) {
                    sum += x[c] * m[(size_t)o * columns_of(l) + (size_t)(c * taps_of(l) + tap)];
                    if (sums && !o) sums[i] += fabsf(x[c]);
                }
            }
            y[(size_t)i * (size_t)l->out + (size_t)o] = (float)sum;
        }
    }
    return y;
}

/* ---- random layers ---- */

static float *sixty_fourths(size_t count, int most)
{
    float *x = numbers(count, 1);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(int)(x[i] * (float)most) / 64;
    return x;
}

static void layer_fill(struct layer *l)
{
    size_t count = (size_t)l->out * columns_of(l);
    float *matrix = numbers(count, .1f);
    uint16_t *half = malloc(count * sizeof *half);
    assert_non_null(half);
    for (size_t i = 0; l->rank && i < count; i++)
        matrix[i] = (float)(int)(matrix[i] * 640) / 64; /* sums with LoRAs are exact */
    for (size_t i = 0; i < count; i++) {
        half[i] = to_bf16(matrix[i]);
        uint32_t bits = (uint32_t)half[i] << 16;
        if (l->stored == TYPE_BF16) memcpy(matrix + i, &bits, sizeof bits);
    }
    l->x = sixty_fourths((size_t)(IMAGES * l->h * l->w * l->in), 127);
    l->matrix = matrix;
    l->bias = numbers((size_t)l->out, 1);
    l->vector = numbers((size_t)(IMAGES * l->out), 1);
    l->up = sixty_fourths((size_t)(l->out * (l->rank + 1)), 127);
    l->down = sixty_fourths((size_t)(l->rank + 1) * columns_of(l), 127);
    l->as_stored = l->stored == TYPE_BF16 ? (const void *)half : matrix;
    if (l->stored != TYPE_BF16) free(half);
}

static void layer_free(struct layer *l)
{
    const void *all[] = {l->x, l->matrix, l->bias, l->vector, l->up, l->down};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free((void *)(uintptr_t)all[i]);
    if (l->stored == TYPE_BF16) free((void *)(uintptr_t)l->as_stored);
}

/* Odd counts of pixels and outputs, more channels than a piece has, more pixels than a block,
 * stacked matrices that no panel divides. */
static const struct layer layers[] = {
    {.h = 1, .w = 77, .in = 32, .out = 96},
    {.h = 1, .w = 1, .in = 64, .out = 200, .stored = TYPE_BF16},
    {.h = 3, .w = 5, .in = 2100, .out = 17},
    {.h = 20, .w = 21, .in = 16, .out = 16},
    {.h = 1, .w = 13, .in = 48, .out = 111, .second = 41},
    {.h = 1, .w = 9, .in = 20, .out = 130, .rank = 3},
    {.h = 9, .w = 7, .in = 34, .out = 70, .size = 3, .stride = 1, .per_image = 1},
    {.h = 9, .w = 7, .in = 16, .out = 64, .size = 3, .stride = 2, .stored = TYPE_BF16},
    {.h = 21, .w = 19, .in = 18, .out = 20, .size = 3, .stride = 1, .rank = 2},
    {.h = 4, .w = 4, .in = 66, .out = 30, .size = 1, .stride = 1},
    {.h = 1, .w = 1, .in = 16, .out = 16, .size = 3, .stride = 1},
    {.h = 6, .w = 5, .in = 16, .out = 24, .size = 5, .stride = 1},
};
enum { LAYERS = sizeof layers / sizeof *layers };

/* Calls each with every compute there is and what it makes of l. */
static void everywhere(const struct layer *l,
                       void (*each)(void *data, const char *isa, const float *y, size_t count),
                       void *data)
{
    size_t n;
    for (int i = -1; i < 2 * SETS; i++) {
        struct compute *c = i < 0 ? ref : i < SETS ? sets[i].f32 : sets[i - SETS].bf16;
        if (!c) continue;
        float *y = evaluate(c, record, l, &n);
        each(data, i < 0 ? "ref" : sets[i % SETS].isa, y, n);
        free(y);
    }
}

/* ---- tests ---- */

struct exact {
    const float *want;
    double worst;
};

static void exact_add(void *data, const char *isa, const float *y, size_t count)
{
    struct exact *e = data;
    (void)isa;
    raise_to(&e->worst, distance(y, e->want, count));
}

static void test_exact(void **unused)
{
    (void)unused;
    struct exact e = {NULL, 0};
    for (int i = 0; i < LAYERS; i++) {
        struct layer l = layers[i];
        layer_fill(&l);
        double *m = matrix_expected(&l, 1, NULL);
        float *want = layer_expected(&l, m, NULL);
        e.want = want;
        everywhere(&l, exact_add, &e);
        free(want), free(m);
        layer_free(&l);
    }
    hold("int8, f32 and bf16", e.worst, 2e-7 /* 4.7e-8: sums of 64ths are exact */);
}

struct rounding {
    const struct layer *l;
    const float *want;
    const double *half_step, *sums;
    double worst; /* of what the bound allows */
};

static void rounding_add(void *data, const char *isa, const float *y, size_t count)
{
    struct rounding *r = data;
    size_t out = (size_t)r->l->out;
    for (size_t i = 0; i < count; i++) {
        double bound = r->half_step[i % out] * r->sums[i / out] + 1e-5;
        double share = fabs((double)y[i] - r->want[i]) / bound;
        if (!(share <= 1)) fail_msg("%s: output %zu is off by %g of its bound", isa, i, share);
        if (share > r->worst) r->worst = share;
    }
}

/* A weight is off by half a step at most, so an output by that times the sum of |x|. */
static void test_bound(void **unused)
{
    (void)unused;
    for (int i = 0; i < LAYERS; i++) {
        struct layer l = layers[i];
        layer_fill(&l);
        double *half_step = calloc((size_t)l.out, sizeof *half_step);
        double *sums = calloc((size_t)(IMAGES * l.h * l.w), sizeof *sums);
        assert_true(half_step && sums);
        double *m = matrix_expected(&l, 0, half_step);
        float *want = layer_expected(&l, m, sums);
        struct rounding r = {&l, want, half_step, sums, 0};
        everywhere(&l, rounding_add, &r);
        print_message("%d to %d: %.3f of the bound\n", l.in, l.out, r.worst);
        assert_true(r.worst > .01); /* and it was rounded at all */
        free(want), free(m), free(half_step), free(sums);
        layer_free(&l);
    }
}

static void bias_alone(void *data, const char *isa, const float *y, size_t count)
{
    const struct layer *l = data;
    for (size_t i = 0; i < count; i++) {
        size_t o = i % (size_t)l->out;
        if (o == 1 ? !isnan(y[i]) : y[i] != l->bias[o])
            fail_msg("%s: output %zu is %g", isa, o, y[i]);
    }
}

/* Rows of zeros and of what is smaller than any weight give the bias; one with an infinity gives no
 * number, which the pipeline refuses, rather than a wrong one. */
static void test_extreme_rows(void **unused)
{
    (void)unused;
    struct layer l = {.h = 1, .w = 3, .in = 32, .out = 20};
    layer_fill(&l);
    float *matrix = (float *)(uintptr_t)l.matrix;
    for (size_t i = 0; i < (size_t)(l.in * l.out); i++)
        matrix[i] = i / 32 == 2 ? 1e-42f : 0;
    matrix[32 + 5] = INFINITY;
    everywhere(&l, bias_alone, &l);
    layer_free(&l);
}

/* Too narrow, or odd: what it would be without. */
static void test_left_alone(void **unused)
{
    (void)unused;
    static const struct layer list[] = {
        {.h = 2, .w = 3, .in = 14, .out = 64},
        {.h = 2, .w = 3, .in = 64, .out = 14},
        {.h = 2, .w = 3, .in = 33, .out = 64},
        {.h = 5, .w = 4, .in = 4, .out = 32, .size = 3, .stride = 1}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct layer l = list[i];
        size_t n, m;
        layer_fill(&l);
        float *held = evaluate(cpu, record, &l, &n);
        l.plain = 1;
        float *plain = evaluate(cpu, record, &l, &m);
        assert_int_equal(n, m);
        assert_memory_equal(held, plain, n * sizeof *held);
        free(held), free(plain);
        layer_free(&l);
    }
}

/* A byte a weight, rows in panels of 64, a scale and a bias each: nothing else stays. */
static void test_bytes(void **unused)
{
    (void)unused;
    struct compute_host host = {0};
    struct compute_options o = {
        .backend = "cpu", .threads = 2, .host = &host, .weights = WEIGHTS_INT8};
    struct compute *c = NULL;
    struct plan *p = NULL;
    struct steer_error err = {0};
    if (compute_open(&c, &o, &err)) fail_msg("%s", err.text);
    assert_non_null(strstr(compute_numerics(c), "-f32-int8-t2-"));
    struct layer l = {.h = 3, .w = 3, .in = 96, .out = 200, .size = 3, .stride = 1};
    layer_fill(&l);
    struct rig r = {.c = c, .g = graph_new()};
    assert_non_null(r.g);
    graph_output(r.g, record(&r, &l), "out", 0);
    if (compute_plan(&p, c, r.g, &err)) fail_msg("%s", err.text);
    size_t want = 256 * (96 * 9 + sizeof(float)) + 200 * sizeof(float);
    assert_int_equal(host.bytes - plan_bytes(p), want);
    plan_free(p);
    assert_int_equal(host.bytes, want);
    weight_unpack(r.w[0]);
    assert_int_equal(host.bytes, 0);
    rig_free(&r);
    layer_free(&l);
    compute_close(c);
}

static struct tensor record_table(struct rig *r, const void *what)
{
    static const int32_t ids[] = {6, 0, 3, 6};
    const struct stored *table = what;
    assert_int_equal(weight_table(r->w, r->c, *table, 7, 20), 0);
    r->weights = 1;
    weight_hold_int8(r->w[0]); /* nothing to a table */
    struct tensor x = graph_constant_ids(r->g, "ids", (struct shape){1, 1, 4, 1}, ids);
    return op_embedding(r->g, x, r->w[0], NULL);
}

/* Rows are read where they are stored, of each type, aligned or not: no byte is held of a table. */
static void test_tables(void **unused)
{
    (void)unused;
    static const int rows[] = {6, 0, 3, 6};
    static const uint16_t one[] = {[TYPE_BF16] = 0x3f80, [TYPE_F16] = 0x3c00};
    struct compute_host host = {0};
    struct compute_options o = {.backend = "cpu", .threads = 2, .host = &host};
    struct compute *c = NULL;
    struct steer_error err = {0};
    char bytes[7 * 20 * sizeof(float) + 1];
    if (compute_open(&c, &o, &err)) fail_msg("%s", err.text);
    for (enum compute_type type = TYPE_F32; type <= TYPE_F16; type++) {
        struct stored table = {.data = bytes + 1, .type = type};
        float want[7 * 20];
        for (int i = 0; i < 7 * 20; i++) { /* powers of two: exact in all */
            float value = ldexpf(1, i % 13);
            uint16_t half = (uint16_t)(one[type] + (i % 13 << (type == TYPE_BF16 ? 7 : 10)));
            want[i] = value;
            if (type == TYPE_F32)
                memcpy(bytes + 1 + (size_t)i * sizeof value, &value, sizeof value);
            else
                memcpy(bytes + 1 + (size_t)i * sizeof half, &half, sizeof half);
        }
        struct rig r = {.c = c, .g = graph_new()};
        struct plan *p = NULL;
        assert_non_null(r.g);
        struct tensor y = record_table(&r, &table);
        graph_output(r.g, y, "out", 0);
        if (compute_plan(&p, c, r.g, &err) || plan_run(p, NULL, &err)) fail_msg("%s", err.text);
        assert_int_equal(host.bytes, plan_bytes(p));
        for (int i = 0; i < 4; i++)
            assert_memory_equal((float *)plan_data(p, y) + (size_t)i * 20, want + rows[i] * 20,
                                20 * sizeof(float));
        plan_free(p);
        rig_free(&r);
    }
    compute_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact),        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_extreme_rows), cmocka_unit_test(test_left_alone),
        cmocka_unit_test(test_bytes),        cmocka_unit_test(test_tables),
    };
    return cmocka_run_group_tests(tests, rig_open, rig_close);
}
