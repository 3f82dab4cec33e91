// SPDX-License-Identifier: Apache-2.0
/* T5's encoder against transformers, on small random models (t5_build in tests/golden/make.py), and
 * what its configuration may say. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "json.h"
#include "model/t5.h"
#include "safetensors.h"

static void golden_path(char out[1100], const char *name, const char *file)
{
    snprintf(out, 1100, "%s/tests/golden/data/t5/model/%s/%s", getenv("STEER_SOURCE_DIR"), name,
             file);
}

static void config_of(struct t5_config *ret, const char *name)
{
    char path[1100];
    struct steer_error err = {0};
    json_t *json = NULL;
    golden_path(path, name, "config.json");
    if (json_file_load(&json, path, &err) || t5_config_load(ret, json, path, &err))
        fail_msg("%s", err.text);
    json_decref(json);
}

static struct tensors *files_of(const char *name, const char *file)
{
    char path[1100];
    struct steer_error err = {0};
    struct tensors *files = NULL;
    golden_path(path, name, file);
    if (tensors_open(&files, path, &err)) fail_msg("%s", err.text);
    return files;
}

static double distance(const float *x, const float *y, size_t count)
{
    double d = 0, n = 0;
    for (size_t i = 0; i < count; i++) {
        d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        n += (double)y[i] * y[i];
    }
    return sqrt(d / n);
}

/* The worst of all texts. */
static double error_of(struct compute *c, const char *name, int masked)
{
    struct t5_config config;
    config_of(&config, name);
    struct tensors *files = files_of(name, "model.safetensors"),
                   *expected = files_of(name, "expected.safetensors");
    const struct tensor_view *tokens = tensors_find(expected, "tokens"),
                             *mask = tensors_find(expected, "mask"),
                             *want = tensors_find(expected, masked ? "text.masked" : "text.plain");
    int batch = (int)tokens->shape[0], length = (int)tokens->shape[1];
    struct params *params = NULL;
    struct graph *graph = graph_new();
    struct plan *plan = NULL;
    struct encoder_graph t5 = ENCODER_GRAPH_NONE;
    struct steer_error err = {0};
    assert_int_equal(params_new(&params, c, &files), 0);
    t5_record(&t5, &(struct net){params, graph}, &config, length, masked);
    if (params_error(params, &err) || compute_plan(&plan, c, graph, &err)) fail_msg("%s", err.text);
    double worst = 0;
    size_t floats = want->bytes / sizeof(float) / (size_t)batch;
    for (int b = 0; b < batch; b++) {
        memcpy(plan_data(plan, t5.ids), (const int32_t *)tokens->data + b * length,
               (size_t)length * sizeof(int32_t));
        float *m = masked ? plan_data(plan, t5.mask) : NULL;
        for (int i = 0; m && i < length; i++)
            m[i] = ((const float *)mask->data)[b * length + i] > 0 ? 0 : -INFINITY;
        if (plan_run(plan, NULL, &err)) fail_msg("%s", err.text);
        double error = distance(plan_data(plan, t5.states),
                                (const float *)want->data + (size_t)b * floats, floats);
        if (error > worst) worst = error;
    }
    plan_free(plan);
    graph_free(graph);
    params_free(params);
    tensors_close(expected);
    return worst;
}

static void check_all(const char *backend, enum compute_precision precision, double limit)
{
    static const char *const names[] = {"gated", "relu"};
    struct compute_options options = {.backend = backend, .precision = precision, .threads = 2};
    struct compute *c = NULL;
    struct steer_error err = {0};
    if (compute_open(&c, &options, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < 4; i++) {
        double error = error_of(c, names[i / 2], i % 2);
        print_message("%s %s, %s: %.1e\n", backend, names[i / 2], i % 2 ? "masked" : "no mask",
                      error);
        assert_true(error <= limit);
    }
    compute_close(c);
}

static void test_ref(void **unused)
{
    (void)unused;
    check_all("ref", PRECISION_F32, 1e-5 /* 3.7e-7 */);
}

static void test_cpu_f32(void **unused)
{
    (void)unused;
    check_all("cpu", PRECISION_F32, 1e-5 /* 4.2e-7 */);
}

static void test_cpu_bf16(void **unused)
{
    (void)unused;
    if (!compute_bf16_native()) {
        print_message("skipped: this processor has no native bf16\n");
        skip();
    }
    check_all("cpu", PRECISION_BF16, 2e-2 /* 6.8e-3; torch's own bf16: 1.5e-2 */);
}

/* The reference's table for 32 buckets up to 128, and for the distances where a bucket begins. */
static void test_buckets(void **unused)
{
    (void)unused;
    static const int begins[] = {8, 12, 16, 23, 32, 46, 64, 91};
    struct t5_config c = {.buckets = 32, .distance = 128};
    for (int d = 0; d < 8; d++)
        assert_int_equal(t5_bucket(&c, -d), d);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(t5_bucket(&c, -begins[i]), 8 + i);
        assert_int_equal(t5_bucket(&c, 1 - begins[i]), 7 + i);
        assert_int_equal(t5_bucket(&c, begins[i]), 24 + i);
    }
    assert_int_equal(t5_bucket(&c, -100000), 15);
    assert_int_equal(t5_bucket(&c, 100000), 31);
}

/* Every key is followed or refused. */
static void test_config(void **unused)
{
    (void)unused;
    static const struct {
        const char *json, *says; /* NULL: it loads */
    } rows[] = {
        {"{}", NULL},
        {"{'model_type': 't5', 'is_gated_act': true, 'dense_act_fn': 'gelu_new', "
         "'feed_forward_proj': 'gated-gelu', 'hidden_size': 512, 'tie_word_embeddings': false}",
         NULL},
        {"{'model_type': 'umt5'}", "umt5"},
        {"{'is_decoder': true}", "is_decoder"},
        {"{'feed_forward_proj': 'gated-mish'}", "gated-mish"},
        {"{'feed_forward_proj': 'gated-gelu', 'is_gated_act': false}", "is_gated_act"},
        {"{'feed_forward_proj': 'relu', 'dense_act_fn': 'gelu_new'}", "dense_act_fn"},
        {"{'d_model': 64, 'hidden_size': 512}", "hidden_size"},
        {"{'num_heads': 0}", "num_heads"},
        {"{'num_layers': 1000}", "num_layers"},
        {"{'d_kv': 64.5}", "d_kv"},
        {"{'layer_norm_epsilon': 0}", "layer_norm_epsilon"},
        {"{'relative_attention_num_buckets': 2}", "relative_attention_num_buckets"},
        {"{'relative_attention_max_distance': 8}", "relative_attention_max_distance"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[512];
        snprintf(text, sizeof text, "%s", rows[i].json);
        for (char *c = text; *c; c++)
            if (*c == '\'') *c = '"';
        json_t *json = json_loads(text, 0, NULL);
        assert_non_null(json);
        struct t5_config c = {0};
        struct steer_error err = {0};
        int code = t5_config_load(&c, json, "config.json", &err);
        if ((code != 0) != (rows[i].says != NULL) ||
            (code && (!strstr(err.text, rows[i].says) || !strstr(err.text, "config.json"))))
            fail_msg("%s: %s", text, code ? err.text : "loaded");
        json_decref(json);
    }
}

/* A tensor that is not there is named. */
static void test_missing(void **unused)
{
    (void)unused;
    struct compute_options options = {.backend = "ref", .threads = 1};
    struct compute *c = NULL;
    struct params *params = NULL;
    struct graph *graph = graph_new();
    struct t5_config config;
    struct encoder_graph t5 = ENCODER_GRAPH_NONE;
    struct steer_error err = {0};
    struct tensors *files = files_of("relu", "model.safetensors");
    assert_int_equal(compute_open(&c, &options, &err), 0);
    assert_int_equal(params_new(&params, c, &files), 0);
    config_of(&config, "relu");
    config.gated = 1;
    t5_record(&t5, &(struct net){params, graph}, &config, 4, 1);
    assert_int_equal(params_error(params, &err), STEER_BAD_MODEL);
    assert_non_null(strstr(err.text, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"));
    graph_free(graph);
    params_free(params);
    compute_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref),      cmocka_unit_test(test_cpu_f32),
        cmocka_unit_test(test_cpu_bf16), cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_config),   cmocka_unit_test(test_missing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
