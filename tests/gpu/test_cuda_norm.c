// SPDX-License-Identifier: Apache-2.0
/* The CUDA norms on the SIMT model, through their launchers, against `ref` on the same rounded
 * inputs: layer norm with a weight, a modulation or neither, RMS norm and rotation, group norm in
 * one launch and in three; means far above the deviation; bytes moved. */
#include "field.h"

/* Of bf16, f16 and f32; half a unit of the first two is 3.9e-3 and 4.9e-4 at most. */
static const double usual[] = {4e-3, 5e-4, 1e-6};

static enum cuda_element type_drawn(int i)
{
    static const enum cuda_element types[] = {CUDA_F32, CUDA_BF16, CUDA_F16};
    return types[(unsigned)i % 3];
}

/* ---- rows ---- */

enum form { LAYER, LAYER_WEIGHT, LAYER_MODULATED, RMS, RMS_TURNED, TURNED, FORMS };

struct normed {
    enum form form;
    int heads;
    float eps;
};

enum { X, SCALE, SHIFT, TABLE };

/* A weight's vectors are its stored ones. */
static struct weight *weight_of(struct rig *r, const struct cuda_case *k, int shifted)
{
    struct stored scale = {.data = k->in[SCALE].dense, .type = TYPE_F32};
    struct stored shift = {.data = shifted ? k->in[SHIFT].dense : NULL, .type = TYPE_F32};
    assert_int_equal(weight_norm(r->w, r->c, scale, shift, k->in[SCALE].s.c), 0);
    r->weights = 1;
    return r->w[0];
}

static struct tensor record_norm(struct rig *r, const void *what)
{
    struct cuda_case *k = (struct cuda_case *)(uintptr_t)what;
    const struct normed *n = k->what;
    struct tensor x = case_input(r, k, X);
    switch (n->form) {
    case LAYER: return op_layer_norm(r->g, x, NULL, (double)n->eps);
    case LAYER_WEIGHT: return op_layer_norm(r->g, x, weight_of(r, k, 1), (double)n->eps);
    case LAYER_MODULATED:
        x = op_layer_norm(r->g, x, NULL, (double)n->eps);
        return op_modulate(r->g, x, case_input(r, k, SHIFT), case_input(r, k, SCALE));
    case RMS:
    case RMS_TURNED:
        x = op_rms_norm(r->g, x, weight_of(r, k, 0), n->heads, (double)n->eps);
        return n->form == RMS ? x : op_rope(r->g, x, case_input(r, k, TABLE), n->heads);
    default: return op_rope(r->g, x, case_input(r, k, TABLE), n->heads);
    }
}

static int launch_norm(struct cuda_case *k, int batch)
{
    static const enum cuda_norm_kind kinds[] = {CUDA_NORM_LAYER, CUDA_NORM_LAYER, CUDA_NORM_LAYER,
                                                CUDA_NORM_RMS,   CUDA_NORM_RMS,   CUDA_NORM_NONE};
    const struct normed *n = k->what;
    struct shape s = k->out.s;
    struct cuda_norm a = {.kind = kinds[n->form],
                          .batch = batch,
                          .heads = n->heads,
                          .channels = s.c / n->heads,
                          .pixels = s.h * s.w,
                          .eps = n->eps,
                          .more = n->form == LAYER_MODULATED,
                          .x = k->in[X].arg,
                          .out = k->out.arg};
    if (n->form != LAYER && n->form != TURNED) a.scale = k->in[SCALE].arg;
    if (n->form == LAYER_WEIGHT || n->form == LAYER_MODULATED) a.shift = k->in[SHIFT].arg;
    if (n->form >= RMS_TURNED) a.table = k->in[TABLE].arg;
    return cuda_norm(&a, NULL);
}

static struct cuda_case norm_case(const struct normed *n, struct shape s, int i, float offset)
{
    static const enum lie lies[] = {DENSE, PITCHED, ODD, APART};
    int d = s.c / n->heads, modulated = n->form == LAYER_MODULATED;
    struct cuda_case k = {.launch = launch_norm, .what = n, .inputs = 4};
    /* A pair of values that is turned must be aligned; a table of angles by 8 bytes at least. */
    enum lie lie = n->form >= RMS_TURNED && i % 4 == 2 ? DENSE : lies[i % 4];
    k.in[X] = field_random(s, type_drawn(i), lie, 1, offset);
    enum cuda_element vector = modulated ? type_drawn(i / 2) : CUDA_F32;
    k.in[SCALE] = field_vector(modulated && i % 2 ? s.b : 1, d, vector, 1, 0.5f);
    k.in[SHIFT] = field_vector(modulated && i % 3 ? s.b : 1, d, vector, 1, 0);
    k.in[TABLE] = field_random((struct shape){i % 2 + 1, s.h, s.w, d}, CUDA_F32, DENSE, 1, 0);
    k.out = field_new(s, type_drawn(i + i / 3 + n->form), lie == APART ? DENSE : lie);
    return k;
}

static void test_rows(void **unused)
{
    (void)unused;
    /* [pixels, channels] and heads: one thread a row to several warps, odd channels, heads that
     * share a warp */
    static const int sizes[][4] = {
        {1, 1, 4, 1},    {3, 5, 64, 1}, {2, 3, 320, 1}, {1, 3, 1280, 1}, {1, 2, 3072, 1},
        {1, 1, 4096, 1}, {1, 5, 6, 1},  {1, 2, 7, 1},   {1, 3, 1153, 1}, {1, 9, 2048, 16},
        {2, 3, 768, 12}, {1, 4, 36, 3}, {1, 2, 20, 2},  {1, 1, 3, 1}};
    static const char *const names[] = {"layer norm", "layer norm, weight", "layer norm, modulated",
                                        "rms norm",   "rms norm, turned",   "turned"};
    for (int form = 0; form < FORMS; form++) {
        struct by_type worst = {{0}};
        for (int i = 0; i < 42; i++) {
            const int *z = sizes[i % 14];
            struct shape s = {2, z[0], z[1], z[2]};
            struct normed n = {(enum form)form, form >= RMS ? z[3] : 1, i % 2 ? 1e-5f : 1e-6f};
            if (form >= RMS_TURNED && z[2] / z[3] % 2) continue;
            struct cuda_case k = norm_case(&n, s, i + i / 14, 0);
            raise_to(worst.worst + k.out.arg.type, case_error(&k, record_norm));
            case_free(&k);
        }
        by_type_hold(&worst, names[form], usual);
    }
}

/* What f32 inputs of that mean can hold: ref sees the same numbers. */
static void test_rows_far(void **unused)
{
    (void)unused;
    double worst = 0, flat = 0;
    for (int i = 0; i < 12; i++) {
        struct normed n = {LAYER_WEIGHT, 1, 1e-5f};
        struct shape s = {2, 1, 3, i % 2 ? 320 : 3072};
        struct cuda_case k = norm_case(&n, s, 0, i % 3 == 2 ? -1e5f : i % 3 ? 1e4f : 300);
        field_free(&k.out);
        k.out = field_new(s, CUDA_F32, DENSE);
        raise_to(&worst, case_error(&k, record_norm));
        case_free(&k);
    }
    hold("mean 1e5 times the deviation", worst, 1e-6);
    struct normed n = {LAYER, 1, 1e-5f};
    struct cuda_case k = norm_case(&n, (struct shape){2, 1, 2, 64}, 0, 0);
    for (size_t i = 0; i < field_count(&k.in[X]); i++) { /* no deviation at all */
        k.in[X].dense[i] = 0.1f;
        put(field_at(&k.in[X], i), CUDA_F32, 0.1f);
    }
    field_free(&k.out);
    k.out = field_new(k.in[X].s, CUDA_F32, DENSE);
    raise_to(&flat, case_error(&k, record_norm));
    hold("rows of one number", flat, 1e-5);
    case_free(&k);
}

/* ---- groups ---- */

struct grouped {
    int groups;
    enum activation act;
    float eps;
};

static struct tensor record_group(struct rig *r, const void *what)
{
    struct cuda_case *k = (struct cuda_case *)(uintptr_t)what;
    const struct grouped *n = k->what;
    struct tensor x = case_input(r, k, X);
    return op_group_norm(r->g, x, weight_of(r, k, 1), n->groups, (double)n->eps, n->act);
}

static struct cuda_group_norm group_arg(const struct cuda_case *k, int batch)
{
    const struct grouped *n = k->what;
    struct shape s = k->out.s;
    return (struct cuda_group_norm){.batch = batch,
                                    .channels = s.c,
                                    .groups = n->groups,
                                    .pixels = s.h * s.w,
                                    .eps = n->eps,
                                    .act = n->act,
                                    .x = k->in[X].arg,
                                    .out = k->out.arg,
                                    .scale = k->in[SCALE].arg.rows.base,
                                    .shift = k->in[SHIFT].arg.rows.base,
                                    .scratch = k->scratch};
}

static int launch_group(struct cuda_case *k, int batch)
{
    struct cuda_group_norm a = group_arg(k, batch);
    return cuda_group_norm(&a, NULL);
}

static struct cuda_case group_case(const struct grouped *n, struct shape s, int i, float scale,
                                   float offset)
{
    static const enum lie lies[] = {DENSE, PITCHED, ODD, APART};
    struct cuda_case k = {.launch = launch_group, .what = n, .inputs = 3};
    k.in[X] = field_random(s, type_drawn(i), lies[i % 4], scale, offset);
    k.in[SCALE] = field_vector(1, s.c, CUDA_F32, 1, 0.5f);
    k.in[SHIFT] = field_vector(1, s.c, CUDA_F32, 1, 0);
    k.out = field_new(s, type_drawn(i + i / 3), lies[i % 3]);
    struct cuda_group_norm a = group_arg(&k, s.b);
    k.scratch_bytes = cuda_group_norm_scratch(&a);
    if (k.scratch_bytes) k.scratch = aligned_alloc(16, (k.scratch_bytes + 15) / 16 * 16);
    return k;
}

static void test_groups(void **unused)
{
    (void)unused;
    /* [H, W, C] and groups; those past the blank line need more than a block can hold */
    static const int sizes[][4] = {
        {1, 1, 32, 32},  {1, 1, 4, 1},    {3, 5, 64, 32},  {4, 4, 320, 32},  {8, 8, 40, 4},
        {5, 7, 3, 1},    {3, 3, 15, 5},   {7, 3, 12, 2},   {2, 2, 1280, 32}, {5, 5, 6, 2},
        {16, 16, 20, 2}, {9, 7, 128, 32},

        {41, 39, 32, 2}, {46, 46, 12, 1}, {23, 40, 96, 3}, {75, 29, 3, 1},   {36, 36, 40, 4},
    };
    struct by_type worst = {{0}};
    int whole = 0, parts = 0;
    for (int i = 0; i < 34; i++) {
        const int *z = sizes[i % 17];
        struct grouped n = {z[3], i % 2 ? ACT_SILU : ACT_NONE, i % 3 ? 1e-5f : 1e-6f};
        struct cuda_case k =
            group_case(&n, (struct shape){2, z[0], z[1], z[2]}, i + i / 17, 1, 0.3f);
        raise_to(worst.worst + k.out.arg.type, case_error(&k, record_group));
        k.scratch_bytes ? parts++ : whole++;
        case_free(&k);
    }
    print_message("%d in one launch, %d in three\n", whole, parts);
    assert_true(whole > 0 && parts > 0);
    by_type_hold(&worst, "group norm", usual);
}

/* Large means, an outlier as the first pixel, no deviation; in one launch and in three. */
static void test_groups_far(void **unused)
{
    (void)unused;
    double far = 0, outlier = 0, flat = 0;
    for (int i = 0; i < 8; i++) {
        struct grouped n = {1, ACT_NONE, 1e-5f};
        struct shape s = {2, i % 2 ? 40 : 9, i % 2 ? 40 : 9, 16};
        struct cuda_case k = group_case(&n, s, 0, i == 6 || i == 7 ? 0 : 1,
                                        i < 4   ? 1e4f
                                        : i < 6 ? 0
                                                : 0.1f);
        float first = i < 2 ? k.in[X].dense[0] : 1e3f; /* of every channel of pixel 0 */
        for (size_t c = 0; c < 16 && i >= 2 && i < 6; c++)
            for (size_t b = 0, at; b < 2; b++) {
                at = b * field_count(&k.in[X]) / 2 + c;
                k.in[X].dense[at] = first;
                put(field_at(&k.in[X], at), CUDA_F32, first);
            }
        field_free(&k.out);
        k.out = field_new(s, CUDA_F32, DENSE);
        raise_to(i < 2 ? &far : i < 6 ? &outlier : &flat, case_error(&k, record_group));
        case_free(&k);
    }
    hold("mean 1e4 times the deviation", far, 1e-6);
    hold("an outlier first", outlier, 1e-6);
    hold("groups of one number", flat, 1e-5);
}

/* ---- what it costs ---- */

static double moved(const struct cuda_case *k, struct simt_counts c)
{
    return (double)(c.load_bytes + c.store_bytes) / (field_least(&k->in[X]) + field_least(&k->out));
}

static void test_figures(void **unused)
{
    (void)unused;
    print_message(
        "                     types       launches  moved/least  stores (bytes of sectors)\n");
    static const enum cuda_element types[][2] = {{CUDA_F32, CUDA_BF16}, {CUDA_BF16, CUDA_BF16}};
    for (int t = 0; t < 2; t++) {
        struct normed layer = {LAYER, 1, 1e-5f};
        struct cuda_case k = norm_case(&layer, (struct shape){1, 4, 8, 640}, 0, 0);
        field_free(&k.in[X]);
        field_free(&k.out);
        k.in[X] = field_random((struct shape){1, 4, 8, 640}, types[t][0], DENSE, 1, 0);
        k.out = field_new(k.in[X].s, types[t][1], DENSE);
        case_run(&k, 1, 1);
        struct simt_counts c = simt_counts();
        print_message("layer norm 640       %4s>%-5s  %d         %.3f        %3.0f %%\n",
                      type_names[types[t][0]], type_names[types[t][1]], (int)c.launches,
                      moved(&k, c), store_percent(c));
        assert_int_equal(c.load_bytes + c.store_bytes,
                         (uint64_t)(field_least(&k.in[X]) + field_least(&k.out)));
        assert_int_equal(c.store_bytes, 32 * c.store_sectors);
        case_free(&k);
    }
    /* H, W, C, groups, launches. The least has x and y once; a thread's six pixels read the numbers
     * of their channels too (from L1), and three launches read x twice (1.667). A slab of 40 or 20
     * channels in bf16 ends within a sector. Measured 1.333, 80 %; 1.333, 60 %; 2.022, 97 %. */
    static const struct {
        int h, w, c, groups, launches;
        double moved, stores;
    } sizes[] = {{8, 8, 1280, 32, 1, 1.34, 79},
                 {16, 16, 640, 32, 1, 1.34, 59},
                 {32, 64, 80, 8, 3, 2.03, 96}};
    for (int i = 0; i < 3; i++) {
        struct grouped n = {sizes[i].groups, ACT_SILU, 1e-5f};
        struct shape s = {1, sizes[i].h, sizes[i].w, sizes[i].c};
        struct cuda_case k = group_case(&n, s, 0, 1, 0); /* f32 > f32 */
        field_free(&k.out);
        k.out = field_new(s, CUDA_BF16, DENSE);
        case_run(&k, 1, 1);
        struct simt_counts c = simt_counts();
        print_message("group norm %4dx%-4d  f32>bf16   %d         %.3f        %3.0f %%\n",
                      s.h * s.w, s.c, (int)c.launches, moved(&k, c), store_percent(c));
        assert_int_equal(c.launches, sizes[i].launches);
        assert_true(moved(&k, c) <= sizes[i].moved);
        assert_true(store_percent(c) >= sizes[i].stores);
        case_free(&k);
    }
}

static void test_refused(void **unused)
{
    (void)unused;
    struct normed n = {RMS_TURNED, 2, 1e-5f};
    struct cuda_case k = norm_case(&n, (struct shape){2, 1, 3, 16}, 0, 0);
    for (int i = 0; i < 9; i++) {
        struct cuda_norm a = {.kind = CUDA_NORM_RMS,
                              .batch = 2,
                              .heads = 2,
                              .channels = 8,
                              .pixels = 3,
                              .eps = 1e-5f,
                              .x = k.in[X].arg,
                              .out = k.out.arg,
                              .scale = k.in[SCALE].arg,
                              .table = k.in[TABLE].arg};
        switch (i) {
        case 0: a.batch = 0; break;
        case 1: a.heads = 0; break;
        case 2: a.channels = 7; break;
        case 3: a.pixels = INT64_MAX; break;
        case 4: a.x = (struct cuda_tensor){0}; break;
        case 5: a.scale.rows.row_stride = 8; break;
        case 6: a.shift = a.scale, a.scale = (struct cuda_tensor){0}; break;
        case 7: a.table.type = CUDA_BF16; break;
        default: /* rows of more pieces than threads can hold */
            a.heads = 1, a.channels = 4098, a.out.rows.row_stride = 4099;
            a.table = (struct cuda_tensor){0};
        }
        if (i == 8) a.channels = 4099;
        assert_int_equal(cuda_norm(&a, NULL), i == 8 ? STEER_UNSUPPORTED : STEER_BAD_VALUE);
    }
    case_free(&k);
    struct grouped g = {1, ACT_SILU, 1e-5f};
    k = group_case(&g, (struct shape){2, 40, 40, 16}, 0, 1, 0);
    for (int i = 0; i < 6; i++) {
        struct cuda_group_norm a = group_arg(&k, 2);
        switch (i) {
        case 0: a.groups = 3; break;
        case 1: a.scale = NULL; break;
        case 2: a.act = ACT_GELU; break;
        case 3: a.scratch = NULL; break;
        case 4: a.scratch++; break;
        default: a.out.rows.base = NULL; break;
        }
        assert_int_equal(cuda_group_norm(&a, NULL), STEER_BAD_VALUE);
    }
    case_free(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),    cmocka_unit_test(test_rows_far),
        cmocka_unit_test(test_groups),  cmocka_unit_test(test_groups_far),
        cmocka_unit_test(test_figures), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, ref_open, ref_close);
}
