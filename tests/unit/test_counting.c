// SPDX-License-Identifier: Apache-2.0
/* Plans that are only counted take the same bytes as those that run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "pipeline.h"

/* All plans of an image, with what they took in ret. */
static void plans_make(struct compute_host *ret, const char *folder, enum compute_weights weights,
                       int counting)
{
    *ret = (struct compute_host){.counting = counting};
    struct compute_options o = {.backend = "cpu", .threads = 1, .weights = weights, .host = ret};
    struct compute *c = NULL;
    struct model *m = NULL;
    struct pipeline *p = NULL;
    struct pipeline_plans plans;
    struct recipe recipe;
    struct steer_error err = {0};
    char dir[1200];
    snprintf(dir, sizeof dir, "%s/tests/golden/data/%s/model", getenv("STEER_SOURCE_DIR"), folder);
    if (compute_open(&c, &o, &err) || model_open(&m, dir, c, &err) ||
        model_recipe(m, "ddim", &recipe, &err))
        fail_msg("%s", err.text);
    assert_int_equal(pipeline_new(&p, m, c, pipeline_limits_default()), 0);
    struct render_shape shape = {.recipe = &recipe,
                                 .width = 64,
                                 .height = 72,
                                 .steps = 1,
                                 .method = GUIDANCE_NASA,
                                 .cfg = 1};
    struct render_image image = {.prompt = "a cat", .negative = "stripes"};
    if (pipeline_plans(p, &shape, &image, 1, &plans, &err)) fail_msg("%s", err.text);
    size_t bytes = ret->bytes;
    pipeline_free(p);
    model_close(m);
    compute_close(c);
    assert_int_equal(ret->bytes, 0);
    ret->bytes = bytes;
}

static void test_same_bytes(void **unused)
{
    (void)unused;
    static const char *const folders[] = {"tiny", "small"};
    for (int i = 0; i < 4; i++) {
        struct compute_host real, counted;
        enum compute_weights weights = i < 2 ? WEIGHTS_AS_COMPUTED : WEIGHTS_INT8;
        plans_make(&real, folders[i % 2], weights, 0);
        plans_make(&counted, folders[i % 2], weights, 1);
        assert_true(real.bytes > 1000000);
        assert_int_equal(counted.bytes, real.bytes);
        assert_int_equal(counted.bytes_most, real.bytes_most);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
