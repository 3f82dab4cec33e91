// SPDX-License-Identifier: Apache-2.0
/* What stays in memory between texts and images: text encoders that leave and come back change no
 * byte and make do with less; a file that shrinks while it is mapped fails an image, not us. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "pipeline.h"
#include "tensors.h"

struct opened {
    struct compute_host host;
    struct compute *compute;
    struct model *model;
    struct pipeline *pipeline;
    struct recipe recipe;
    struct render_shape shape;
};

static void open_model(struct opened *o, const char *dir, int leaves)
{
    struct compute_options options = {.backend = "cpu", .threads = 1, .host = &o->host};
    struct pipeline_limits limits = pipeline_limits_default();
    struct steer_error err = {0};
    limits.text_leaves = leaves;
    if (compute_open(&o->compute, &options, &err) || model_open(&o->model, dir, o->compute, &err) ||
        model_recipe(o->model, NULL, &o->recipe, &err))
        fail_msg("%s", err.text);
    assert_int_equal(pipeline_new(&o->pipeline, o->model, o->compute, limits), 0);
    o->shape = (struct render_shape){.recipe = &o->recipe,
                                     .width = 4 * o->model->multiple,
                                     .height = 4 * o->model->multiple,
                                     .steps = o->recipe.steps_min,
                                     .method = GUIDANCE_NASA};
}

static void close_model(struct opened *o)
{
    pipeline_free(o->pipeline);
    model_close(o->model);
    compute_close(o->compute);
    assert_int_equal(o->host.bytes, 0);
}

static struct render_image image_of(const char *prompt)
{
    return (struct render_image){.prompt = prompt,
                                 .negative = "stripes",
                                 .guidance = {GUIDANCE_NASA, .1, 2, 2.5, .4, 0, 1, GUIDANCE_TEXT},
                                 .seed = 3};
}

static int render(struct opened *o, const char *prompt, uint8_t **ret, struct steer_error *err)
{
    struct render_image image = image_of(prompt);
    *ret = image.pixels = calloc((size_t)(o->shape.width * o->shape.height), 3);
    assert_non_null(image.pixels);
    return pipeline_render(o->pipeline, &o->shape, &image, 1, NULL, NULL, err);
}

/* The most that an image takes. */
static size_t counted(const char *dir, int leaves)
{
    struct opened o = {.host = {.counting = 1}};
    struct render_image image = image_of("a cat");
    struct pipeline_plans plans;
    struct steer_error err = {0};
    open_model(&o, dir, leaves);
    if (pipeline_plans(o.pipeline, &o.shape, &image, 1, &plans, &err)) fail_msg("%s", err.text);
    size_t most = o.host.bytes_most;
    close_model(&o);
    return most;
}

static const char *data_dir(char out[1200], const char *name)
{
    snprintf(out, 1200, "%s/tests/golden/data/%s/model", getenv("STEER_SOURCE_DIR"), name);
    return out;
}

/* 1 when the first image of a model fits into that. */
static int fits(const char *dir, int leaves, size_t bytes_max, struct steer_error *err)
{
    struct opened o = {.host = {.bytes_max = bytes_max}};
    uint8_t *pixels;
    open_model(&o, dir, leaves);
    int code = render(&o, "a cat", &pixels, err);
    assert_true(!code || code == STEER_NO_MEMORY);
    free(pixels);
    close_model(&o);
    return !code;
}

/* The least that does, plans making room for one another, to 16 KiB. */
static size_t least(const char *dir, int leaves)
{
    size_t low = 0, high = counted(dir, leaves);
    struct steer_error err = {0};
    assert_true(fits(dir, leaves, high, &err));
    while (high - low > 1 << 14) {
        size_t middle = low + (high - low) / 2;
        if (fits(dir, leaves, middle, &err))
            high = middle;
        else
            low = middle;
    }
    return high;
}

/* In memory that holds either side of a model but not both: new texts, one that is known, and new
 * ones again, each to the byte what it is where all stays. */
static void check_leaves(const char *name)
{
    static const char *const prompts[] = {"a cat", "a red dog", "a cat", "the blue cat"};
    char dir[1200];
    struct steer_error err = {0};
    struct opened all = {0}, tight = {0};
    size_t with = least(data_dir(dir, name), 0), without = least(dir, 1);
    print_message("%s: %zu bytes, %zu where texts leave\n", name, with, without);
    assert_true(counted(dir, 1) < counted(dir, 0));
    assert_false(fits(dir, 0, without, &err));
    assert_non_null(strstr(err.text, "MB (--memory)"));
    open_model(&all, dir, 0);
    tight.host.bytes_max = without;
    open_model(&tight, dir, 1);
    for (int i = 0; i < 4; i++) {
        uint8_t *want = NULL, *got = NULL;
        if (render(&all, prompts[i], &want, &err) || render(&tight, prompts[i], &got, &err))
            fail_msg("%s: image %d: %s", name, i, err.text);
        assert_memory_equal(got, want, (size_t)(all.shape.width * all.shape.height) * 3);
        free(want), free(got);
    }
    close_model(&all);
    close_model(&tight);
}

static void test_text_leaves(void **unused)
{
    (void)unused;
    check_leaves("xl");
    check_leaves("pixart");
    check_leaves("flux");
}

/* The least that an encoder's matrices take packed in f32; tables are not packed. */
static size_t matrix_bytes(const struct text_encoder *e)
{
    const struct tensors *t = params_files(e->params);
    size_t sum = 0;
    for (size_t i = 0; i < tensors_count(t); i++) {
        const struct tensor_view *v = tensors_at(t, i);
        int table = strstr(v->name, "shared") || strstr(v->name, "relative_attention_bias");
        if (v->rank == 2 && !table) sum += v->bytes / tensor_dtype_bytes(v->dtype) * sizeof(float);
    }
    assert_true(sum > 0);
    return sum;
}

/* Packed weights are gone between two texts: what is held is the denoiser's and the decoder's. */
static void test_given_back(void **unused)
{
    (void)unused;
    char dir[1200];
    struct steer_error err = {0};
    struct opened stays = {0}, leaves = {0};
    uint8_t *pixels;
    open_model(&stays, data_dir(dir, "pixart"), 0);
    open_model(&leaves, dir, 1);
    assert_int_equal(render(&stays, "a cat", &pixels, &err), 0);
    free(pixels);
    assert_int_equal(render(&leaves, "a cat", &pixels, &err), 0);
    free(pixels);
    size_t held = leaves.host.bytes;
    struct render_image image = image_of("a cat");
    struct pipeline_plans plans;
    assert_int_equal(pipeline_plans(stays.pipeline, &stays.shape, &image, 1, &plans, &err), 0);
    size_t gone = plan_bytes(plans.encoders[0]) + matrix_bytes(stays.model->encoders);
    assert_true(held + gone <= stays.host.bytes);
    assert_int_equal(render(&leaves, "a dog", &pixels, &err), 0);
    free(pixels);
    assert_int_equal(leaves.host.bytes, held);
    close_model(&stays);
    close_model(&leaves);
}

/* A new text reads its rows of the table from the mapped file. */
static void test_file_shrinks(void **unused)
{
    (void)unused;
    char dir[1200], command[3000];
    struct steer_error err = {0};
    struct opened o = {0};
    uint8_t *pixels;
    snprintf(command, sizeof command, "rm -rf model && cp -r '%s' model", data_dir(dir, "tiny"));
    assert_int_equal(system(command), 0);
    open_model(&o, "model", 0);
    assert_int_equal(render(&o, "a cat", &pixels, &err), 0);
    free(pixels);
    assert_int_equal(truncate("model/text_encoder/model.safetensors", 4096), 0);
    assert_int_equal(render(&o, "a dog", &pixels, &err), STEER_BAD_MODEL);
    assert_non_null(strstr(err.text, "was changed while it was open"));
    free(pixels);
    assert_int_equal(render(&o, "a cat", &pixels, &err), 0); /* it was encoded before */
    free(pixels);
    close_model(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text_leaves),
                                       cmocka_unit_test(test_given_back),
                                       cmocka_unit_test(test_file_shrinks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
