// SPDX-License-Identifier: Apache-2.0
/* LoRA files of every spelling over small models, merged as weights are packed, against what
 * diffusers' fuse_lora and peft's merge make of them; tests/golden/checkpoints.py made all. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compute.h"
#include "lora.h"
#include "model/net.h"
#include "safetensors.h"
#include "weight.h"

#define ERROR_MAX 1e-6 /* norm2(got - want) / norm2(want) of a weight; measured: at most 1.0e-7 */

static char golden[1024];
static const struct compute_options options = {.backend = "ref", .threads = 1};
static const char *const targets[] = {"denoiser", "text", "text_2"};

static const struct tensors *base_of(struct tensors **t, const char *name)
{
    char path[1200];
    struct steer_error err = {0};
    snprintf(path, sizeof path, "%s/lora-base-%s.safetensors", golden, name);
    if (tensors_open(t, path, &err)) fail_msg("%s", err.text);
    return *t;
}

static struct stored stored_of(const struct tensor_view *v, const struct low_rank *added)
{
    enum compute_type type = v->dtype == TENSOR_F16 ? TYPE_F16 : TYPE_F32;
    return (struct stored){.data = v->data, .type = type, .mapped = v->mapped, .added = added};
}

/* The weight as a backend packs it. */
static struct weight *weight_of(struct compute *c, const struct tensor_view *v,
                                const struct low_rank *added)
{
    struct weight *w = NULL;
    int out = (int)v->shape[0], in = (int)v->shape[1];
    struct stored matrix = stored_of(v, added), none = {0};
    int code = v->rank == 4 ? weight_conv(&w, c, matrix, none, out, in, (int)v->shape[2])
                            : weight_linear(&w, c, 1, &matrix, &none, &out, in);
    assert_int_equal(code, 0);
    return w;
}

static double error_of(const float *got, const float *want, size_t count)
{
    double d = 0, n = 0;
    for (size_t i = 0; i < count; i++) {
        d += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        n += (double)want[i] * want[i];
    }
    return sqrt(d / n);
}

static void compare(const char *name, const struct loras *l, struct tensors *const *models,
                    const char *const *names)
{
    char path[1200];
    struct tensors *want = NULL;
    struct steer_error err = {0};
    struct compute *c = NULL;
    size_t changed = 0;
    double worst = 0;
    snprintf(path, sizeof path, "%s/%s.safetensors", golden, name);
    if (tensors_open(&want, path, &err)) fail_msg("%s", err.text);
    if (compute_open(&c, &options, &err)) fail_msg("%s", err.text);
    for (int target = 0; target < LORA_TARGETS; target++)
        for (size_t i = 0; models[target] && i < tensors_count(models[target]); i++) {
            const struct tensor_view *v = tensors_at(models[target], i), *w;
            const struct low_rank *added = loras_find(l, (enum lora_target)target, v->name);
            char key[300];
            snprintf(key, sizeof key, "%s/%s", names[target], v->name);
            w = tensors_find(want, key);
            if (!added != !w) fail_msg("%s: %s is %schanged", name, key, added ? "" : "not ");
            if (!w) continue;
            struct weight *made = weight_of(c, v, added);
            double e = error_of(weight_matrix_f32(made), w->data, w->bytes / sizeof(float));
            if (!(e <= ERROR_MAX)) fail_msg("%s: %s is off by %g", name, key, e);
            if (e > worst) worst = e;
            weight_free(made);
            changed++;
        }
    assert_int_equal(changed, tensors_count(want));
    print_message("%-24s %3zu weights, worst %.1e\n", name, changed, worst);
    compute_close(c);
    tensors_close(want);
}

/* Files over the base of those names; denoiser, text, text_2. */
static void merged_as(const char *name, const struct lora_option *files, size_t count,
                      const char *const *names)
{
    struct tensors *models[LORA_TARGETS] = {NULL};
    struct lora_option at[2];
    char paths[2][1200];
    struct loras *l = NULL;
    struct steer_error err = {0};
    for (size_t i = 0; i < count; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%s", golden, files[i].path);
        at[i] = (struct lora_option){paths[i], files[i].weight};
    }
    if (loras_open(&l, at, count, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < LORA_TARGETS; i++)
        if (names[i] && loras_bind(l, (enum lora_target)i, base_of(&models[i], names[i]), &err))
            fail_msg("%s", err.text);
    if (loras_check(l, &err)) fail_msg("%s", err.text);
    compare(name, l, models, names);
    loras_close(l);
    for (int i = 0; i < LORA_TARGETS; i++)
        tensors_close(models[i]);
}

static void test_as_diffusers(void **unused)
{
    (void)unused;
    static const struct lora_option one[] = {{"kohya.safetensors", 0.7},
                                             {"sgm.safetensors", 1},
                                             {"peft.safetensors", 1},
                                             {"older.safetensors", 1},
                                             {"processor.bin", 1}};
    for (size_t i = 0; i < sizeof one / sizeof *one; i++)
        merged_as(one[i].path, one + i, 1, targets);
    static const struct lora_option two[] = {{"peft.safetensors", 0.5},
                                             {"kohya.safetensors", -0.25}};
    merged_as("two", two, 2, targets);
    static const struct lora_option adapter = {"adapter/adapter_model.safetensors", 1};
    merged_as("adapter", &adapter, 1, targets);
    static const struct lora_option flux[] = {
        {"flux-kohya.safetensors", 1}, {"flux-peft.safetensors", 1}, {"flux-comfy.safetensors", 1}};
    static const char *const flux_names[] = {"flux", NULL, NULL};
    for (size_t i = 0; i < sizeof flux / sizeof *flux; i++)
        merged_as(flux[i].path, flux + i, 1, flux_names);
}

/* Merged in f32 and rounded once, also where the stored matrix and the packed one are halves, and
 * in a stack of several. */
static void test_bf16(void **unused)
{
    (void)unused;
    struct compute *c = NULL;
    assert_int_equal(compute_open(&c, &options, NULL), 0);
    enum { OUT = 70, IN = 1100, RANK = 5 }; /* whole tiles, and what is left of each side */
    static uint16_t bf16[OUT * IN];
    static float up[OUT * RANK], down[RANK * IN];
    for (int i = 0; i < OUT * IN; i++)
        bf16[i] = (uint16_t)(0x3f80 + i % 97);
    for (int i = 0; i < OUT * RANK; i++)
        up[i] = (float)(i % 7) / 8;
    for (int i = 0; i < RANK * IN; i++)
        down[i] = (float)(i % 5) / 512;
    struct low_rank low = {.up = {.data = up}, .down = {.data = down}, .rank = RANK, .scale = 0.5f};
    struct stored parts[2] = {{.data = bf16, .type = TYPE_BF16},
                              {.data = bf16, .type = TYPE_BF16, .added = &low}};
    struct weight *w = NULL;
    assert_int_equal(weight_linear(&w, c, 2, parts, NULL, (int[]){OUT, OUT}, IN), 0);
    const float *exact = weight_matrix_f32(w);
    const uint16_t *got = weight_matrix_staged(w, TYPE_BF16);
    assert_memory_equal(got, bf16, sizeof bf16);
    for (int i = 0; i < OUT * IN; i++) {
        float want, near;
        uint32_t bits = (uint32_t)got[OUT * IN + i] << 16, before = (uint32_t)bf16[i] << 16;
        memcpy(&want, &before, sizeof want);
        for (int k = 0; k < RANK; k++)
            want += 0.5f * up[i / IN * RANK + k] * down[k * IN + i % IN];
        memcpy(&near, &bits, sizeof near);
        assert_true(fabsf(exact[OUT * IN + i] - want) <= 1e-6f * want);
        assert_true(fabsf(near - want) <= want / 256);
    }
    weight_free(w);
    weight_staging_free(c);
    compute_close(c);
}

/* A layer that a forward records: the first column of its matrix, with its bias. */
static void column(float out[16], const struct loras *l)
{
    struct tensors *files = NULL;
    struct compute *c = NULL;
    struct plan *plan = NULL;
    struct net n = {NULL, graph_new()};
    base_of(&files, "denoiser");
    assert_int_equal(compute_open(&c, &options, NULL), 0);
    assert_int_equal(params_new(&n.params, c, &files), 0);
    params_loras(n.params, l, LORA_DENOISER);
    struct tensor x = graph_input(n.graph, "x", (struct shape){1, 1, 1, 16}, TYPE_F32);
    struct tensor y = net_linear(&n, x, 16, 1, ACT_NONE, "time_embedding.linear_2");
    graph_output(n.graph, y, "y", 0);
    assert_int_equal(params_error(n.params, NULL), 0);
    assert_int_equal(compute_plan(&plan, c, n.graph, NULL), 0);
    memcpy(plan_data(plan, x), (float[16]){1}, 16 * sizeof(float));
    assert_int_equal(plan_run(plan, NULL, NULL), 0);
    memcpy(out, plan_data(plan, y), 16 * sizeof *out);
    plan_free(plan);
    graph_free(n.graph);
    params_free(n.params);
    compute_close(c);
}

static void test_forward(void **unused)
{
    (void)unused;
    char path[1200];
    struct tensors *model = NULL, *merged = NULL;
    struct loras *l = NULL;
    snprintf(path, sizeof path, "%s/sgm.safetensors", golden);
    const struct lora_option file = {path, 1};
    assert_int_equal(loras_open(&l, &file, 1, NULL), 0);
    assert_int_equal(loras_bind(l, LORA_DENOISER, base_of(&model, "denoiser"), NULL), 0);
    float without[16], with[16], bias[16];
    column(without, NULL);
    column(with, l);
    strcat(path, ".safetensors");
    assert_int_equal(tensors_open(&merged, path, NULL), 0);
    const float *want = tensors_find(merged, "denoiser/time_embedding.linear_2.weight")->data;
    const struct tensor_view *b = tensors_find(model, "time_embedding.linear_2.bias");
    stored_to_f32(bias, stored_of(b, NULL), 0, 16);
    for (int i = 0; i < 16; i++) {
        assert_true(fabsf(with[i] - bias[i] - want[i * 16]) < 1e-5f);
        assert_true(with[i] != without[i]);
    }
    assert_int_equal(loras_current(l, NULL), 0);
    loras_close(l);
    tensors_close(model);
    tensors_close(merged);
}

/* ---- files that are refused ---- */

static const float values[64] = {1, 1, 1, 1};
static const float zeros[64];

struct made {
    const char *name;
    int64_t rows, columns;
    const float *data;
};

static void refused(const struct made *tensors, size_t count, int code, const char *word)
{
    struct tensor_out out[8];
    struct tensors *model = NULL;
    struct loras *l = NULL;
    struct steer_error err = {0};
    for (size_t i = 0; i < count; i++)
        out[i] = (struct tensor_out){.name = tensors[i].name,
                                     .dtype = TENSOR_F32,
                                     .rank = 2,
                                     .shape = {tensors[i].rows, tensors[i].columns},
                                     .data = tensors[i].data ? tensors[i].data : values};
    assert_int_equal(tensors_write("made.safetensors", out, count, NULL), 0);
    const struct lora_option file = {"made.safetensors", 1};
    int got = loras_open(&l, &file, 1, &err);
    if (!got) got = loras_bind(l, LORA_DENOISER, base_of(&model, "denoiser"), &err);
    if (!got) got = loras_check(l, &err);
    if (got != code || (word && !strstr(err.text, word)))
        fail_msg("%d, and not \"%s\": %s", got, word, err.text);
    loras_close(l);
    tensors_close(model);
}
#define REFUSED(code, word, ...)                                                                   \
    refused((struct made[]){__VA_ARGS__},                                                          \
            sizeof((struct made[]){__VA_ARGS__}) / sizeof(struct made), code, word)
#define DOWN ".lora_down.weight"
#define UP   ".lora_up.weight"
#define TIME "lora_unet_time_embedding_linear_2"

static void test_refused(void **unused)
{
    (void)unused;
    /* 16 channels */
    REFUSED(0, NULL, {TIME DOWN, 2, 16, NULL}, {TIME UP, 16, 2, NULL});
    REFUSED(STEER_UNSUPPORTED, "is DoRA", {TIME DOWN, 2, 16, NULL},
            {TIME ".dora_scale", 1, 1, NULL});
    REFUSED(STEER_UNSUPPORTED, "is LoHa", {TIME ".hada_w1_a", 2, 16, NULL});
    REFUSED(STEER_UNSUPPORTED, "is LoKr", {TIME ".lokr_w1", 2, 16, NULL});
    REFUSED(STEER_UNSUPPORTED, "Tucker", {TIME ".lora_mid.weight", 2, 2, NULL});
    REFUSED(STEER_UNSUPPORTED, "full difference", {TIME ".diff", 2, 16, NULL});
    REFUSED(STEER_UNSUPPORTED, "\"emb_params\" is none that a LoRA file has",
            {"emb_params", 2, 16, NULL});
    REFUSED(STEER_BAD_MODEL, "has no up matrix", {TIME DOWN, 2, 16, NULL});
    REFUSED(STEER_BAD_MODEL, "there is no LoRA in it", {TIME ".diff", 2, 16, zeros});
    REFUSED(STEER_BAD_MODEL, "expected [out, rank]", {TIME DOWN, 2, 16, NULL},
            {TIME UP, 16, 3, NULL});
    REFUSED(STEER_BAD_MODEL, "up [16, 2] and down [2, 15], but the model's",
            {TIME DOWN, 2, 15, NULL}, {TIME UP, 16, 2, NULL});
    REFUSED(STEER_BAD_MODEL, "up [15, 2] and down [2, 16], but the model's",
            {TIME DOWN, 2, 16, NULL}, {TIME UP, 15, 2, NULL});
    REFUSED(STEER_BAD_MODEL, "1 of its 1 layers are not in this model: blocks_7_q of the denoiser",
            {"lora_unet_blocks_7_q" DOWN, 2, 16, NULL}, {"lora_unet_blocks_7_q" UP, 16, 2, NULL});
    REFUSED(STEER_BAD_MODEL, "1 of its 2 layers are not in this model: x of the text encoder",
            {TIME DOWN, 2, 16, NULL}, {TIME UP, 16, 2, NULL}, {"lora_te_x" DOWN, 2, 16, NULL},
            {"lora_te_x" UP, 16, 2, NULL});
    REFUSED(0, NULL, {TIME DOWN, 2, 16, NULL}, {TIME UP, 16, 2, NULL},
            {"lora_te_x" DOWN, 2, 16, NULL}, {"lora_te_x" UP, 16, 2, zeros});
    REFUSED(STEER_BAD_MODEL, "twice", {TIME DOWN, 2, 16, NULL}, {TIME UP, 16, 2, NULL},
            {"unet.time_embedding.linear_2" DOWN, 2, 16, NULL},
            {"unet.time_embedding.linear_2" UP, 16, 2, NULL});
    REFUSED(STEER_BAD_MODEL, "no ./adapter_config.json", {"base_model.model.x" DOWN, 2, 16, NULL},
            {"base_model.model.x" UP, 16, 2, NULL});
    struct loras *l = NULL;
    struct steer_error err = {0};
    const struct lora_option infinite = {"made.safetensors", (double)INFINITY};
    assert_int_equal(loras_open(&l, &infinite, 1, &err), STEER_BAD_VALUE);
    assert_non_null(strstr(err.text, "its weight is inf"));
}

int main(void)
{
    snprintf(golden, sizeof golden, "%s/tests/golden/checkpoints", getenv("STEER_SOURCE_DIR"));
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_as_diffusers),
                                       cmocka_unit_test(test_bf16), cmocka_unit_test(test_forward),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
