// SPDX-License-Identifier: Apache-2.0
/* The CUDA kernels of pointwise.cuh on the SIMT model, through their launchers, against `ref` on
 * the same rounded inputs: every operation, type, shape and way to lie in memory; bytes moved. */
#include "field.h"

/* Of bf16, f16 and f32; half a unit of the first two is 3.9e-3 and 4.9e-4 at most. */
static const double usual[] = {4e-3, 5e-4, 3e-7};

static enum cuda_element type_drawn(int i)
{
    /* f32 and one narrow type, as a plan has them; and any two. */
    static const enum cuda_element types[] = {CUDA_F32, CUDA_BF16, CUDA_BF16, CUDA_F16, CUDA_F16};
    return types[(unsigned)i % 5];
}

/* ---- value by value ---- */

enum formula { ACTIVATE, AFFINE, SOFT_CLAMP, TO_U8, ADD, MULTIPLY, MODULATE, GATED_ADD, GEGLU };

struct mapped {
    const char *name;
    enum formula formula;
    enum activation act;
    float scale, offset; /* of the inputs */
};

static struct tensor record_map(struct rig *r, const void *what)
{
    struct cuda_case *k = (struct cuda_case *)(uintptr_t)what;
    const struct mapped *m = k->what;
    struct tensor t[3];
    for (int i = 0; i < k->inputs; i++)
        t[i] = case_input(r, k, i);
    switch (m->formula) {
    case ACTIVATE: return op_activation(r->g, t[0], m->act);
    case AFFINE: return op_affine(r->g, t[0], 0.18215, -0.75);
    case SOFT_CLAMP: return op_soft_clamp(r->g, t[0]);
    case TO_U8: return op_activation(r->g, t[0], ACT_NONE); /* compared apart */
    case ADD: return op_add(r->g, t[0], t[1]);
    case MULTIPLY: return op_multiply(r->g, t[0], op_activation(r->g, t[1], m->act));
    case MODULATE: return op_modulate(r->g, t[0], t[1], t[2]);
    case GATED_ADD: return op_gated_add(r->g, t[0], t[1], t[2]);
    case GEGLU: return op_geglu(r->g, t[0]);
    }
    return TENSOR_NONE;
}

static int launch_map(struct cuda_case *k, int batch)
{
    static const enum cuda_map_op ops[] = {CUDA_ACTIVATE, CUDA_AFFINE,    CUDA_SOFT_CLAMP,
                                           CUDA_TO_U8,    CUDA_ADD,       CUDA_MULTIPLY,
                                           CUDA_MODULATE, CUDA_GATED_ADD, CUDA_MULTIPLY};
    const struct mapped *m = k->what;
    struct shape s = k->out.s;
    struct cuda_map a = {.op = ops[m->formula],
                         .act = m->formula == GEGLU ? ACT_GELU : m->act,
                         .scale = 0.18215f,
                         .shift = -0.75f,
                         .batch = batch,
                         .channels = s.c,
                         .pixels = s.h * s.w,
                         .out = k->out.arg};
    for (int i = 0; i < k->inputs; i++)
        a.in[i] = k->in[i].arg;
    if (m->formula == GEGLU) { /* its halves are views */
        a.in[1] = a.in[0];
        a.in[1].rows.base = (const char *)a.in[0].rows.base + s.c * bytes_of(a.in[0].type);
    }
    return cuda_map(&a, NULL);
}

static struct cuda_case map_case(const struct mapped *m, struct shape s, int i)
{
    struct cuda_case k = {.launch = launch_map, .what = m, .inputs = 1};
    enum lie lies[] = {DENSE, PITCHED, DENSE, ODD, APART};
    enum lie lie = lies[i / 3 % 5];
    struct shape wide = {s.b, s.h, s.w, m->formula == GEGLU ? 2 * s.c : s.c};
    if (m->formula == GEGLU && lie == APART) lie = PITCHED; /* one address for both halves */
    k.in[0] = field_random(wide, type_drawn(i), lie, m->scale, m->offset);
    if (m->formula >= ADD && m->formula <= GATED_ADD) {
        int whole = m->formula == ADD || m->formula == MULTIPLY;
        k.inputs = whole ? 2 : 3;
        struct shape one = {i % 2 ? 1 : s.b, s.h, s.w, s.c};
        k.in[1] = whole ? field_random(one, type_drawn(i + i / 5), lies[i % 3], m->scale, 0)
                        : field_vector(one.b, s.c, type_drawn(i / 2), 1, 0);
        if (m->formula == MODULATE) k.in[2] = field_vector(s.b, s.c, type_drawn(i / 2), 1, 0);
        if (m->formula == GATED_ADD)
            k.in[2] = field_random(s, type_drawn(i + 1), lies[i % 4], m->scale, 0);
    }
    k.out = field_new(s, type_drawn(i / 2 + i), lies[i % 4]);
    return k;
}

static const struct shape shapes[] = {{2, 1, 1, 1},  {2, 3, 5, 3},    {2, 1, 7, 20}, {2, 4, 5, 64},
                                      {2, 5, 7, 33}, {2, 1, 3, 1280}, {2, 9, 8, 4},  {2, 1, 1, 6}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void test_map(void **unused)
{
    (void)unused;
    static const struct mapped list[] = {
        {"convert", ACTIVATE, ACT_NONE, 300, 0},
        {"silu", ACTIVATE, ACT_SILU, 12, 0},
        {"gelu", ACTIVATE, ACT_GELU, 6, 0},
        {"gelu_tanh", ACTIVATE, ACT_GELU_TANH, 6, 0},
        {"quick_gelu", ACTIVATE, ACT_QUICK_GELU, 9, 0},
        {"relu", ACTIVATE, ACT_RELU, 2, 0},
        {"tanh", ACTIVATE, ACT_TANH, 3, 0},
        {"tanh near 0", ACTIVATE, ACT_TANH, 1e-2f, 0},
        {"silu far", ACTIVATE, ACT_SILU, 300, 0},
        {"gelu far", ACTIVATE, ACT_GELU, 300, 0},
        {"gelu below", ACTIVATE, ACT_GELU, 1, -3},
        {"affine", AFFINE, ACT_NONE, 4, 0},
        {"soft clamp", SOFT_CLAMP, ACT_NONE, 9, 0},
        {"add", ADD, ACT_NONE, 2, 0},
        {"multiply", MULTIPLY, ACT_NONE, 2, 0},
        {"gated gelu", MULTIPLY, ACT_GELU_TANH, 3, 0},
        {"modulate", MODULATE, ACT_NONE, 2, 0},
        {"gated add", GATED_ADD, ACT_NONE, 2, 0},
        {"geglu", GEGLU, ACT_NONE, 3, 0},
    };
    for (size_t l = 0; l < sizeof list / sizeof *list; l++) {
        struct by_type worst = {{0}};
        for (int i = 0; i < 4 * SHAPES; i++) {
            struct cuda_case k = map_case(list + l, shapes[i % SHAPES], i + (int)l);
            raise_to(worst.worst + k.out.arg.type, case_error(&k, record_map));
            case_free(&k);
        }
        static const double tail[] = {4e-3, 5e-4, 1e-4}; /* one value near -4: 3.5e-5 in f32 */
        int below = strcmp(list[l].name, "gelu below") == 0;
        by_type_hold(&worst, list[l].name, below ? tail : usual);
    }
}

/* Every f16 and bf16 number there and back, and f32 halfway between two of them. */
static void test_convert(void **unused)
{
    (void)unused;
    static const struct mapped convert = {"convert", ACTIVATE, ACT_NONE, 1, 0};
    for (int t = CUDA_BF16; t <= CUDA_F16; t++) {
        enum cuda_element type = (enum cuda_element)t;
        struct cuda_case k = {.launch = launch_map, .what = &convert, .inputs = 1};
        k.in[0] = field_new((struct shape){1, 1, 1 << 8, 1 << 8}, CUDA_F32, DENSE);
        k.out = field_new(k.in[0].s, type, DENSE);
        for (uint32_t i = 0; i < 1 << 16; i++) {
            float x = simt_widen((uint16_t)i, t), next = simt_widen((uint16_t)(i + 1), t);
            put(field_at(k.in + 0, i), CUDA_F32, i % 3 || !isfinite(next) ? x : (x + next) / 2);
        }
        case_run(&k, 1, 1);
        for (uint32_t i = 0; i < 1 << 16; i++) {
            float x = get(field_at(k.in + 0, i), CUDA_F32);
            uint16_t got, want = simt_round(x, t);
            memcpy(&got, field_at(&k.out, i), sizeof got);
            if (isnan(x) ? !isnan(simt_widen(got, t)) : got != want)
                fail_msg("%s of %g is %04x", type_names[t], (double)x, got);
        }
        case_free(&k);
    }
}

/* To 8 bits, exactly as ref: all halves, what lies beyond, NaN. */
static void test_to_u8(void **unused)
{
    (void)unused;
    static const struct mapped bytes = {"to_u8", TO_U8, ACT_NONE, 1, 0};
    static const struct shape sizes[] = {{2, 1, 1, 1}, {2, 3, 5, 3}, {2, 16, 24, 3}, {2, 5, 8, 4}};
    for (int i = 0; i < 12; i++) {
        struct shape s = sizes[i % 4];
        struct cuda_case k = {.launch = launch_map, .what = &bytes, .inputs = 1};
        k.in[0] = field_random(s, i % 3 ? CUDA_F32 : CUDA_BF16, i % 2 ? ODD : DENSE, 1.1f, 0);
        for (size_t j = 0; j < field_count(k.in + 0); j++) {
            float special[] = {NAN, INFINITY, -INFINITY, -0.0f, 1, -1};
            float x = k.in[0].dense[j];
            if (j % 3 == 1) x = ((float)(j * 7 % 256) + 0.5f) / 127.5f - 1; /* ties */
            if (j % 11 == 5) x = special[j % 6];
            char *at = field_at(k.in + 0, j);
            put(at, k.in[0].arg.type, x);
            k.in[0].dense[j] = get(at, k.in[0].arg.type);
        }
        k.out = field_new(s, CUDA_U8, DENSE);
        case_run(&k, 1, s.b);
        struct graph *g = graph_new();
        struct plan *p = NULL;
        struct tensor x = graph_input(g, "x", s, TYPE_F32), y = op_to_u8(g, x);
        graph_output(g, y, "y", 0);
        assert_int_equal(compute_plan(&p, ref, g, NULL), 0);
        memcpy(plan_data(p, x), k.in[0].dense, field_count(k.in + 0) * sizeof(float));
        assert_int_equal(plan_run(p, NULL, NULL), 0);
        assert_memory_equal(plan_data(p, y), k.out.device, field_count(&k.out));
        plan_free(p);
        graph_free(g);
        case_free(&k);
    }
}

/* ---- values at other places ---- */

struct moved {
    enum cuda_gather_op op;
    struct shape in;
    int second; /* CONCAT: channels of the other */
    int h, w;   /* RESIZE */
    int patch;
    enum patch_order order;
};

static struct tensor record_gather(struct rig *r, const void *what)
{
    struct cuda_case *k = (struct cuda_case *)(uintptr_t)what;
    const struct moved *m = k->what;
    struct tensor x = case_input(r, k, 0);
    switch (m->op) {
    case CUDA_CONCAT: return op_concat(r->g, x, case_input(r, k, 1));
    case CUDA_RESIZE: return op_resize(r->g, x, m->h, m->w);
    case CUDA_PATCHES: return op_patches(r->g, x, m->patch, m->order);
    case CUDA_UNPATCHES: return op_unpatches(r->g, x, m->patch, m->order);
    }
    return TENSOR_NONE;
}

static int launch_gather(struct cuda_case *k, int batch)
{
    const struct moved *m = k->what;
    struct cuda_gather a = {.op = m->op,
                            .batch = batch,
                            .h = k->out.s.h,
                            .w = k->out.s.w,
                            .c = k->out.s.c,
                            .in_h = m->in.h,
                            .in_w = m->in.w,
                            .first = m->in.c,
                            .patch = m->patch,
                            .channel_first = m->order == PATCH_CHANNEL_FIRST,
                            .in = {k->in[0].arg, k->in[1].arg},
                            .out = k->out.arg};
    return cuda_gather(&a, NULL);
}

static struct cuda_case gather_case(const struct moved *m, int i)
{
    enum lie lies[] = {DENSE, PITCHED, ODD, APART};
    struct cuda_case k = {.launch = launch_gather, .what = m, .inputs = 1 + (m->op == CUDA_CONCAT)};
    struct shape out = m->in;
    k.in[0] = field_random(m->in, type_drawn(i), lies[i % 4], 2, 0);
    if (m->op == CUDA_CONCAT) {
        struct shape other = {m->in.b, m->in.h, m->in.w, m->second};
        k.in[1] = field_random(other, type_drawn(i / 2), lies[i / 2 % 4], 2, 0);
        out.c += m->second;
    }
    if (m->op == CUDA_RESIZE) out.h = m->h, out.w = m->w;
    if (m->op == CUDA_PATCHES) out.h /= m->patch, out.w /= m->patch, out.c *= m->patch * m->patch;
    if (m->op == CUDA_UNPATCHES) out.h *= m->patch, out.w *= m->patch, out.c /= m->patch * m->patch;
    k.out = field_new(out, type_drawn(i + i / 3), lies[i % 3]);
    return k;
}

static void test_gather(void **unused)
{
    (void)unused;
    const enum patch_order first = PATCH_CHANNEL_FIRST, last = PATCH_CHANNEL_LAST;
    const struct moved list[] = {
        {CUDA_CONCAT, {2, 3, 4, 32}, 64, 0, 0, 0, first},
        {CUDA_CONCAT, {2, 2, 3, 5}, 3, 0, 0, 0, first},
        {CUDA_CONCAT, {2, 1, 3, 12}, 20, 0, 0, 0, first},
        {CUDA_CONCAT, {2, 1, 1, 1}, 1, 0, 0, 0, first},
        {CUDA_CONCAT, {2, 2, 2, 16}, 4, 0, 0, 0, first},
        {CUDA_RESIZE, {2, 3, 5, 16}, 0, 6, 10, 0, first},
        {CUDA_RESIZE, {2, 7, 5, 3}, 0, 4, 9, 0, first},
        {CUDA_RESIZE, {2, 1, 1, 8}, 0, 3, 2, 0, first},
        {CUDA_RESIZE, {2, 9, 13, 4}, 0, 18, 26, 0, first},
        {CUDA_PATCHES, {2, 6, 4, 16}, 0, 0, 0, 2, first},
        {CUDA_PATCHES, {2, 6, 9, 5}, 0, 0, 0, 3, first},
        {CUDA_PATCHES, {2, 4, 4, 8}, 0, 0, 0, 2, last},
        {CUDA_PATCHES, {2, 2, 6, 3}, 0, 0, 0, 1, first},
        {CUDA_UNPATCHES, {2, 3, 2, 64}, 0, 0, 0, 2, first},
        {CUDA_UNPATCHES, {2, 2, 2, 27}, 0, 0, 0, 3, first},
        {CUDA_UNPATCHES, {2, 3, 3, 32}, 0, 0, 0, 2, last},
        {CUDA_PATCHES, {2, 4, 4, 3}, 0, 0, 0, 2, last},
        {CUDA_PATCHES, {2, 2, 4, 12}, 0, 0, 0, 2, last},
        {CUDA_UNPATCHES, {2, 2, 1, 54}, 0, 0, 0, 3, last},
        {CUDA_UNPATCHES, {2, 1, 2, 12}, 0, 0, 0, 2, last},
    };
    static const double limit[] = {4e-3, 5e-4, 0}; /* f32 is moved, not changed */
    struct by_type worst = {{0}};
    for (size_t l = 0; l < sizeof list / sizeof *list; l++)
        for (int i = 0; i < 12; i++) {
            struct cuda_case k = gather_case(list + l, i);
            raise_to(worst.worst + k.out.arg.type, case_error(&k, record_gather));
            case_free(&k);
        }
    by_type_hold(&worst, "gather", limit);
}

/* ---- embeddings ---- */

struct embedded {
    int tokens, rows, channels, positions;
    int32_t ids[2 * 80];
    struct stored table, added;
};

static struct tensor record_embedding(struct rig *r, const void *what)
{
    const struct cuda_case *k = what;
    const struct embedded *e = k->what;
    assert_int_equal(weight_table(r->w, r->c, e->table, e->rows, e->channels), 0);
    r->weights = 1;
    if (e->positions) {
        assert_int_equal(weight_table(r->w + 1, r->c, e->added, e->positions, e->channels), 0);
        r->weights = 2;
    }
    struct tensor ids = graph_constant_ids(r->g, "ids", (struct shape){2, 1, e->tokens, 1}, e->ids);
    return op_embedding(r->g, ids, r->w[0], e->positions ? r->w[1] : NULL);
}

static int launch_embedding(struct cuda_case *k, int batch)
{
    const struct embedded *e = k->what;
    simt_memory(e->ids, sizeof e->ids, 1, 0);
    struct cuda_embedding a = {.batch = batch,
                               .tokens = e->tokens,
                               .channels = e->channels,
                               .ids = e->ids,
                               .table = k->in[0].arg,
                               .out = k->out.arg};
    if (e->positions) a.added = k->in[1].arg;
    return cuda_embedding(&a, NULL);
}

static void test_embedding(void **unused)
{
    (void)unused;
    static const enum compute_type stored[] = {TYPE_BF16, TYPE_F16, TYPE_F32};
    static const int sizes[][4] = {{77, 50, 64, 77}, {5, 9, 12, 0}, {1, 1, 3, 1}, {16, 30, 20, 80}};
    struct by_type worst = {{0}};
    for (int i = 0; i < 18; i++) {
        const int *s = sizes[i % 4];
        enum cuda_element type = type_drawn(i), other = type_drawn(i / 2);
        struct embedded e = {.tokens = s[0], .rows = s[1], .channels = s[2], .positions = s[3]};
        struct cuda_case k = {.launch = launch_embedding, .what = &e, .inputs = s[3] ? 2 : 1};
        for (int j = 0; j < 2 * e.tokens; j++)
            e.ids[j] = j * 7 % e.rows;
        e.ids[0] = e.rows - 1;
        k.in[0] = field_random((struct shape){1, 1, s[1], s[2]}, type, DENSE, 1, 0);
        e.table = (struct stored){.data = k.in[0].device, .type = stored[type]};
        if (s[3]) {
            k.in[1] = field_random((struct shape){1, 1, s[3], s[2]}, other, DENSE, 1, 0);
            e.added = (struct stored){.data = k.in[1].device, .type = stored[other]};
        }
        k.out = field_new((struct shape){2, 1, s[0], s[2]}, type_drawn(i / 3), i % 2 ? ODD : DENSE);
        raise_to(worst.worst + k.out.arg.type, case_error(&k, record_embedding));
        case_free(&k);
    }
    static const double limit[] = {4e-3, 5e-4, 0};
    by_type_hold(&worst, "embedding", limit);
}

struct timed {
    int channels, flip;
    float shift;
};

static struct tensor record_sinusoid(struct rig *r, const void *what)
{
    struct cuda_case *k = (struct cuda_case *)(uintptr_t)what;
    const struct timed *t = k->what;
    return op_sinusoid(r->g, case_input(r, k, 0), t->channels, t->flip, (double)t->shift);
}

static int launch_sinusoid(struct cuda_case *k, int batch)
{
    const struct timed *t = k->what;
    struct cuda_sinusoid a = {.batch = batch,
                              .channels = t->channels,
                              .flip = t->flip,
                              .shift = t->shift,
                              .t = k->in[0].arg,
                              .out = k->out.arg};
    return cuda_sinusoid(&a, NULL);
}

static void test_sinusoid(void **unused)
{
    (void)unused;
    static const struct timed list[] = {{320, 1, 0}, {256, 0, 1}, {7, 0, 1}, {2, 1, 0}, {33, 1, 0}};
    static const float times[] = {999, 0, 1024, 399, 1000, 0.5f, 1e5f, 28.25f};
    static const double limit[] = {4e-3, 5e-4, 3e-7};
    struct by_type worst = {{0}};
    for (int i = 0; i < 40; i++) {
        const struct timed *t = list + i % 5;
        struct cuda_case k = {.launch = launch_sinusoid, .what = t, .inputs = 1};
        k.in[0] = field_new((struct shape){2, 1, 1, 1}, CUDA_F32, DENSE);
        for (int b = 0; b < 2; b++) {
            k.in[0].dense[b] = times[(i / 5 + b) % 8];
            put(field_at(k.in + 0, (size_t)b), CUDA_F32, k.in[0].dense[b]);
        }
        k.out = field_new((struct shape){2, 1, 1, t->channels}, type_drawn(i), DENSE);
        raise_to(worst.worst + k.out.arg.type, case_error(&k, record_sinusoid));
        case_free(&k);
    }
    by_type_hold(&worst, "sinusoid", limit);
}

/* ---- between two calls of the denoiser ---- */

/* worker/sampler.c's own lines, with x, the output y and the numbers p. */
static float clipped(float x0, float most)
{
    return most == 0 ? x0 : x0 > most ? most : x0 < -most ? -most : x0;
}

static float sample_want(const struct cuda_sample *a, float x, float y, const float *p)
{
    float x0 = y, eps = y, slope;
    switch (a->form) {
    case CUDA_SAMPLE_DDIM_EPSILON: x0 = (x - p[1] * y) / p[0]; break;
    case CUDA_SAMPLE_DDIM_SAMPLE: eps = (x - p[0] * y) / p[1]; break;
    case CUDA_SAMPLE_DDIM_V:
        x0 = p[0] * x - p[1] * y;
        eps = p[0] * y + p[1] * x;
        break;
    case CUDA_SAMPLE_EULER_V:
    case CUDA_SAMPLE_SLOPE_V: x0 = y * p[3] + x / p[2]; break;
    case CUDA_SAMPLE_EULER_EPSILON:
    case CUDA_SAMPLE_SLOPE_EPSILON: x0 = x - p[0] * y; break;
    case CUDA_SAMPLE_PNDM_V: eps = p[3] * y + p[4] * x; break;
    default: break;
    }
    slope = (x - clipped(x0, a->clip)) / p[0];
    switch (a->form) {
    case CUDA_SAMPLE_DDIM_EPSILON:
    case CUDA_SAMPLE_DDIM_SAMPLE:
    case CUDA_SAMPLE_DDIM_V: return p[2] * clipped(x0, a->clip) + p[3] * eps;
    case CUDA_SAMPLE_EULER_V:
    case CUDA_SAMPLE_EULER_EPSILON:
    case CUDA_SAMPLE_EULER_SAMPLE: return x + slope * p[1];
    case CUDA_SAMPLE_SLOPE_V:
    case CUDA_SAMPLE_SLOPE_EPSILON:
    case CUDA_SAMPLE_SLOPE_SAMPLE: return slope;
    default: return p[0] * x - p[1] * eps / p[2];
    }
}

static void sample_run(const struct cuda_sample *a, uint64_t seed)
{
    size_t bytes = (size_t)(a->batch * a->count) * sizeof(float);
    simt_reset(seed);
    for (int k = 0; k < a->terms; k++)
        if (a->x[k] != a->out) simt_memory(a->x[k], bytes, 1, 0);
    simt_memory(a->params, (size_t)a->batch * CUDA_SAMPLE_TERMS * sizeof(float), 1, 0);
    simt_memory(a->out, bytes, a->x[0] == a->out, 1);
    assert_int_equal(cuda_sample(a, NULL), 0);
    if (simt_counts().errors) fail_msg("%s", simt_error());
}

static void test_sample(void **unused)
{
    (void)unused;
    enum { COUNT = 4 * 9 * 13 };
    float *x[CUDA_SAMPLE_TERMS], *out = numbers(2 * COUNT, 0), params[2 * CUDA_SAMPLE_TERMS];
    struct cuda_sample a = {.batch = 2, .count = COUNT, .params = params, .out = out};
    for (int k = 0; k < CUDA_SAMPLE_TERMS; k++)
        a.x[k] = x[k] = numbers(2 * COUNT, k ? 1 : 30);
    for (int round = 0; round < 3; round++) /* the last: zero terminal SNR's 4096 */
        for (int f = CUDA_SAMPLE_DDIM_EPSILON; f <= CUDA_SAMPLE_PNDM_V; f++) {
            a.form = (enum cuda_sample_form)f;
            a.terms = 2;
            a.clip = round == 1 ? 0.5f : 0;
            for (int i = 0; i < 2 * CUDA_SAMPLE_TERMS; i++)
                params[i] = round == 2 && i % 5 == 0 ? 4096 : 0.1f + fabsf(uniform());
            sample_run(&a, (uint64_t)f);
            for (int i = 0; i < 2 * COUNT; i++) {
                const float *p = params + i / COUNT * CUDA_SAMPLE_TERMS;
                float want = sample_want(&a, x[0][i], x[1][i], p);
                assert_memory_equal(&want, out + i, sizeof want);
            }
        }
    a.form = CUDA_SAMPLE_BLEND;
    for (a.terms = 1; a.terms <= CUDA_SAMPLE_TERMS; a.terms++) {
        sample_run(&a, 1);
        for (int i = 0; i < 2 * COUNT; i++) {
            const float *p = params + i / COUNT * CUDA_SAMPLE_TERMS;
            float want = p[0] * x[0][i];
            for (int k = 1; k < a.terms; k++)
                want = want + p[k] * x[k][i];
            assert_memory_equal(&want, out + i, sizeof want);
        }
    }
    a.form = CUDA_SAMPLE_DDIM_V, a.terms = 2; /* in its own place */
    sample_run(&a, 2);
    memcpy(x[2], out, 2 * COUNT * sizeof *out);
    a.out = x[0];
    sample_run(&a, 3);
    assert_memory_equal(x[0], x[2], 2 * COUNT * sizeof *out);
    for (int k = 0; k < CUDA_SAMPLE_TERMS; k++)
        free(x[k]);
    free(out);
}

/* ---- what it costs ---- */

/* Each input and the output once, in whole sectors; a launch each. */
static void test_figures(void **unused)
{
    (void)unused;
    static const struct mapped maps[] = {{"silu", ACTIVATE, ACT_SILU, 1, 0},
                                         {"add", ADD, ACT_NONE, 1, 0},
                                         {"geglu", GEGLU, ACT_NONE, 1, 0}};
    static const enum cuda_element types[][2] = {
        {CUDA_F32, CUDA_F32}, {CUDA_F32, CUDA_BF16}, {CUDA_BF16, CUDA_F32}, {CUDA_F16, CUDA_F16}};
    struct shape s = {1, 8, 8, 320}, half = {1, 8, 8, 160};
    print_message("               types       moved/least  loads    stores (bytes of sectors)\n");
    for (int l = 0; l < 3; l++)
        for (int t = 0; t < 4; t++) {
            struct cuda_case k = {.launch = launch_map, .what = maps + l, .inputs = 1 + (l == 1)};
            for (int i = 0; i < k.inputs; i++)
                k.in[i] = field_random(s, types[t][0], DENSE, 1, 0);
            k.out = field_new(l == 2 ? half : s, types[t][1], DENSE);
            case_run(&k, 1, 1);
            struct simt_counts c = simt_counts();
            double least = field_least(&k.out);
            for (int i = 0; i < k.inputs; i++)
                least += field_least(k.in + i);
            print_message("%-12s %4s>%-5s   %.3f        %3.0f %%    %3.0f %%\n", maps[l].name,
                          type_names[types[t][0]], type_names[types[t][1]],
                          (double)(c.load_bytes + c.store_bytes) / least,
                          100 * (double)c.load_bytes / (32 * (double)c.load_sectors),
                          store_percent(c));
            assert_int_equal(c.load_bytes + c.store_bytes, (uint64_t)least);
            assert_int_equal(c.load_bytes, 32 * c.load_sectors);
            assert_int_equal(c.store_bytes, 32 * c.store_sectors);
            assert_int_equal(c.launches, 1);
            case_free(&k);
        }
}

/* What the launchers refuse, before anything runs. */
static void test_refused(void **unused)
{
    (void)unused;
    struct field f = field_new((struct shape){1, 2, 2, 8}, CUDA_F32, DENSE);
    const struct cuda_tensor t = f.arg, none = {0};
    const struct cuda_map good = {.op = CUDA_ADD, .batch = 1, .channels = 8, .pixels = 4};
    for (int i = 0; i < 10; i++) {
        struct cuda_map a = good;
        a.in[0] = a.in[1] = a.out = t;
        switch (i) {
        case 0: a.batch = 0; break;
        case 1: a.batch = 65536; break;
        case 2: a.channels = 0; break;
        case 3: a.pixels = INT64_MAX; break;
        case 4: a.pixels = 1 << 28; break;
        case 5: a.in[1] = none; break;
        case 6: a.in[0].type = CUDA_U8; break;
        case 7: a.out.type = CUDA_U8; break;
        case 8: a.out.rows.row_stride = 7; break;
        default: a.op = CUDA_TO_U8; break;
        }
        assert_int_equal(cuda_map(&a, NULL), STEER_BAD_VALUE);
    }
    const struct cuda_gather move = {.op = CUDA_PATCHES,
                                     .batch = 1,
                                     .h = 2,
                                     .w = 2,
                                     .c = 8,
                                     .in_h = 4,
                                     .in_w = 4,
                                     .patch = 2,
                                     .in = {t, t},
                                     .out = t};
    for (int i = 0; i < 7; i++) {
        struct cuda_gather a = move;
        switch (i) {
        case 0: a.patch = 3; break;
        case 1: a.patch = 0; break;
        case 2: a.op = CUDA_UNPATCHES, a.patch = 4; break;
        case 3: a.op = CUDA_RESIZE, a.in_h = 40000; break;
        case 4: a.op = CUDA_CONCAT, a.first = 8; break;
        case 5: a.in[0] = none; break;
        default: a.out = none; break;
        }
        assert_int_equal(cuda_gather(&a, NULL), STEER_BAD_VALUE);
    }
    int32_t ids[4] = {0};
    for (int i = 0; i < 5; i++) {
        struct cuda_embedding e = {.batch = 1, .tokens = 4, .channels = 8, .ids = ids};
        e.table = e.added = e.out = t;
        switch (i) {
        case 0: e.ids = NULL; break;
        case 1: e.table = none; break;
        case 2: e.added.type = CUDA_U8; break;
        case 3: e.out.type = CUDA_U8; break;
        default: e.out.rows.row_stride = 7; break;
        }
        assert_int_equal(cuda_embedding(&e, NULL), STEER_BAD_VALUE);
    }
    for (int i = 0; i < 5; i++) {
        struct cuda_sinusoid a = {.batch = 1, .channels = 8, .t = t, .out = t};
        switch (i) {
        case 0: a.channels = 1; break;
        case 1: a.t = none; break;
        case 2: a.t.type = CUDA_F16; break;
        case 3: a.out.type = CUDA_U8; break;
        default: a.out = none; break;
        }
        assert_int_equal(cuda_sinusoid(&a, NULL), STEER_BAD_VALUE);
    }
    for (int i = 0; i < 6; i++) {
        struct cuda_sample a = {.batch = 1, .terms = 2, .count = 4, .params = f.dense};
        a.x[0] = a.x[1] = a.out = f.dense;
        switch (i) {
        case 0: a.terms = CUDA_SAMPLE_TERMS + 1; break;
        case 1: a.terms = 0; break;
        case 2: a.x[1] = NULL; break;
        case 3: a.params = NULL; break;
        case 4: a.out = NULL; break;
        default: a.count = 0; break;
        }
        assert_int_equal(cuda_sample(&a, NULL), STEER_BAD_VALUE);
    }
    field_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_map),       cmocka_unit_test(test_convert),
        cmocka_unit_test(test_to_u8),     cmocka_unit_test(test_gather),
        cmocka_unit_test(test_embedding), cmocka_unit_test(test_sinusoid),
        cmocka_unit_test(test_sample),    cmocka_unit_test(test_figures),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, ref_open, ref_close);
}
