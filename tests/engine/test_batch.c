// SPDX-License-Identifier: Apache-2.0
/* Four images in one batch are the four that each would be alone, to the byte: every golden folder,
 * so every family; guided, with CFG besides, with texts that two of them share and, where the
 * family reads them, with weights and of different lengths. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "pipeline.h"

enum { COUNT = 4 };

static int reads_chunks(const struct model *m)
{
    int clip = 1;
    for (int i = 0; i < m->encoders_count; i++)
        clip &= tokenizer_clip(m->encoders[i].tokenizer) != NULL;
    return clip;
}

static void images_make(struct render_image *images, const struct model *m, uint8_t *pixels,
                        size_t bytes)
{
    static const char *const texts[COUNT] = {"a cat", "the (red:1.5) dog BREAK a cat", "a cat",
                                             "blue"};
    static const char *const negatives[COUNT] = {"stripes", NULL, "", "the [dog] BREAK (on"};
    for (int i = 0; i < COUNT; i++)
        images[i] = (struct render_image){
            .prompt = texts[i],
            .negative = negatives[i],
            .reading = {reads_chunks(m) ? PROMPT_A1111 : PROMPT_PLAIN, reads_chunks(m)},
            .guidance = {GUIDANCE_NASA, .1 * i, 2, 2.5, .4, 0, 1.5 + i, GUIDANCE_TEXT},
            .seed = (uint64_t)i,
            .pixels = pixels + (size_t)i * bytes,
        };
}

static void render(struct pipeline *p, const struct render_shape *shape,
                   struct render_image *images, int count)
{
    struct steer_error err = {0};
    if (pipeline_render(p, shape, images, count, NULL, NULL, &err)) fail_msg("%s", err.text);
}

static void check(const char *dir, enum compute_precision precision, enum compute_weights weights)
{
    struct compute *c = NULL;
    struct model *m = NULL;
    struct pipeline *p = NULL;
    struct recipe recipe;
    struct steer_error err = {0};
    struct render_image images[COUNT];
    const struct compute_options o = {
        .backend = "cpu", .precision = precision, .weights = weights, .threads = 2};
    if (compute_open(&c, &o, &err) || model_open(&m, dir, c, &err) ||
        model_recipe(m, NULL, &recipe, &err))
        fail_msg("%s: %s", dir, err.text);
    assert_int_equal(pipeline_new(&p, m, c, pipeline_limits_default()), 0);
    int steps = recipe.steps_min > 2 ? recipe.steps_min : recipe.steps_max < 2 ? 1 : 2;
    struct render_shape shape = {&recipe, 3 * m->multiple, 2 * m->multiple, steps, GUIDANCE_NASA,
                                 1,       GUIDANCE_TEXT};
    size_t bytes = (size_t)shape.width * (size_t)shape.height * 3;
    uint8_t *alone = calloc(COUNT, bytes), *together = calloc(COUNT, bytes);
    assert_true(alone && together);
    images_make(images, m, alone, bytes);
    for (int i = 0; i < COUNT; i++)
        render(p, &shape, images + i, 1);
    images_make(images, m, together, bytes);
    render(p, &shape, images, COUNT);
    for (int i = 0; i < COUNT; i++)
        if (memcmp(alone + (size_t)i * bytes, together + (size_t)i * bytes, bytes) != 0)
            fail_msg("%s: image %d is another one in company", dir, i);
    assert_memory_not_equal(alone, alone + bytes, bytes);
    free(alone);
    free(together);
    pipeline_free(p);
    model_close(m);
    compute_close(c);
}

static void check_all(enum compute_precision precision, enum compute_weights weights)
{
    char root[1024], dir[1400];
    int count = 0;
    snprintf(root, sizeof root, "%s/tests/golden/data", getenv("STEER_SOURCE_DIR"));
    DIR *cases = opendir(root);
    assert_non_null(cases);
    for (struct dirent *d; (d = readdir(cases));) {
        snprintf(dir, sizeof dir, "%s/%s/model/model_index.json", root, d->d_name);
        if (access(dir, F_OK)) continue; /* a part alone */
        *strrchr(dir, '/') = 0;
        check(dir, precision, weights);
        count++;
    }
    closedir(cases);
    assert_true(count >= 8);
}

static void test_f32(void **unused)
{
    (void)unused;
    check_all(PRECISION_F32, WEIGHTS_AS_COMPUTED);
}

static void test_bf16(void **unused)
{
    (void)unused;
    if (!compute_bf16_native()) skip();
    check_all(PRECISION_BF16, WEIGHTS_AS_COMPUTED);
}

static void test_int8(void **unused)
{
    (void)unused;
    check_all(compute_bf16_native() ? PRECISION_BF16 : PRECISION_F32, WEIGHTS_INT8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_int8)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
