// SPDX-License-Identifier: Apache-2.0
/* What must hold of FLUX under every method, whatever the weights (docs/guidance.md); that the
 * numbers are diffusers' is test_golden's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pipeline.h"

enum { WIDTH = 48, HEIGHT = 32, BYTES = WIDTH * HEIGHT * 3, LATENTS = 6 * WIDTH / 8 * HEIGHT / 8 };
#define CAT "a red cat on a blue background"

static struct compute *compute;
static struct model *model;
static struct pipeline *pipeline;
static struct recipe recipe;

static int setup(void **unused)
{
    (void)unused;
    struct steer_error err = {0};
    struct compute_options o = {.backend = "cpu", .threads = 2};
    char dir[1200];
    snprintf(dir, sizeof dir, "%s/tests/golden/data/flux/model", getenv("STEER_SOURCE_DIR"));
    if (compute_open(&compute, &o, &err) || model_open(&model, dir, compute, &err) ||
        model_recipe(model, NULL, &recipe, &err))
        fail_msg("%s", err.text);
    return pipeline_new(&pipeline, model, compute, pipeline_limits_default());
}

static int teardown(void **unused)
{
    (void)unused;
    pipeline_free(pipeline);
    model_close(model);
    compute_close(compute);
    return 0;
}

static struct render_shape shape_of(struct guidance g)
{
    return (struct render_shape){&recipe, WIDTH, HEIGHT, 1, g.method, 0, g.variant};
}

/* The velocity of the first step, as the family's own recipe asks but for g. */
static void velocity(float out[LATENTS], const char *negative, struct guidance g)
{
    static uint8_t pixels[BYTES];
    struct render_shape shape = shape_of(g);
    struct render_image image = {
        .prompt = CAT, .negative = negative, .guidance = g, .seed = 3, .pixels = pixels};
    struct dump dump = {0};
    struct steer_error err = {0};
    if (pipeline_render(pipeline, &shape, &image, 1, &dump, NULL, &err)) fail_msg("%s", err.text);
    int found = 0;
    for (int i = 0; i < dump.count; i++) {
        if (strcmp(dump.tensors[i].name, "denoise.out.0") != 0) continue;
        memcpy(out, dump.tensors[i].data, LATENTS * sizeof *out);
        found = 1;
    }
    assert_true(found);
    dump_free(&dump);
}

static double distance(const float *x, const float *y)
{
    double d = 0, n = 0;
    for (int i = 0; i < LATENTS; i++) {
        d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        n += (double)y[i] * y[i];
    }
    return sqrt(d / n);
}

static struct guidance method(enum guidance_method m)
{
    struct guidance g = recipe.guidance;
    g.method = m;
    return g;
}

static void test_defaults(void **unused)
{
    (void)unused;
    const struct guidance g = recipe.guidance;
    assert_string_equal(recipe.name, "flux-schnell");
    assert_true(g.method == GUIDANCE_NASA && g.variant == GUIDANCE_TEXT && g.alpha == .5);
    assert_true(g.phi == 4 && g.tau == 2.5 && g.beta == .25 && g.scale == 1);
    assert_true(recipe.steps_min == 1 && recipe.steps_max == 4);
    assert_true(model->text.tokens == 256 && model->multiple == 16 && model->width == 1024);
}

/* To the bit: the negative text is there, and changes nothing. */
static void test_alpha_0_is_none(void **unused)
{
    (void)unused;
    float none[LATENTS], zero[LATENTS], half[LATENTS];
    velocity(none, NULL, method(GUIDANCE_NONE));
    for (int v = GUIDANCE_TEXT; v <= GUIDANCE_JOINT; v++) {
        struct guidance g = method(GUIDANCE_NASA);
        g.variant = (enum guidance_variant)v;
        velocity(half, "the lazy dog", g);
        g.alpha = 0;
        velocity(zero, "the lazy dog", g);
        assert_memory_equal(zero, none, sizeof none);
        assert_true(distance(half, none) > .01); /* measured: .23 to .26 */
    }
}

/* The negative stream is the positive one then, through every block and under its pooled state. */
static void test_same_text(void **unused)
{
    (void)unused;
    float none[LATENTS], same[LATENTS], other[LATENTS];
    velocity(none, NULL, method(GUIDANCE_NONE));
    velocity(same, CAT, method(GUIDANCE_NAG));
    velocity(other, "the lazy dog", method(GUIDANCE_NAG));
    assert_true(distance(same, none) < 1e-5); /* measured: 0 */
    assert_true(distance(other, none) > .01); /* measured: .059 */
}

static void test_nag_off(void **unused)
{
    (void)unused;
    float none[LATENTS], off[LATENTS];
    struct guidance beta = method(GUIDANCE_NAG), phi = beta;
    velocity(none, NULL, method(GUIDANCE_NONE));
    beta.beta = 0;
    velocity(off, "the lazy dog", beta);
    assert_true(distance(off, none) < 1e-5); /* measured: 0, twice */
    phi.phi = 0;
    phi.tau = 1.5;
    velocity(off, "the lazy dog", phi);
    assert_true(distance(off, none) < 1e-5);
}

/* Of a method that is told nothing of the variant. */
static void test_variant_is_nasas(void **unused)
{
    (void)unused;
    float text[LATENTS], joint[LATENTS];
    struct guidance g = method(GUIDANCE_VSF);
    velocity(text, "the lazy dog", g);
    g.variant = GUIDANCE_JOINT;
    velocity(joint, "the lazy dog", g);
    assert_memory_equal(text, joint, sizeof text);
}

/* Company changes no byte, whatever the neighbours' texts, numbers and seeds. */
static void test_batch(void **unused)
{
    (void)unused;
    enum { COUNT = 4 };
    static uint8_t together[COUNT][BYTES], alone[BYTES];
    static const char *const prompts[] = {CAT, "two dogs", "a horse", CAT};
    static const char *const negatives[] = {"the lazy dog", NULL, "", "blurry"};
    static const struct guidance ways[] = {{.method = GUIDANCE_NONE, .scale = 1},
                                           {.method = GUIDANCE_NASA, .scale = 1},
                                           {.method = GUIDANCE_NASA, .variant = GUIDANCE_JOINT},
                                           {.method = GUIDANCE_NAG},
                                           {.method = GUIDANCE_VSF}};
    struct steer_error err = {0};
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        struct render_image images[COUNT];
        struct render_shape shape = shape_of(ways[w]);
        for (int i = 0; i < COUNT; i++) {
            images[i] = (struct render_image){.prompt = prompts[i],
                                              .negative = negatives[i],
                                              .guidance = recipe.guidance,
                                              .seed = (uint64_t)i,
                                              .pixels = together[i]};
            images[i].guidance.alpha = .1 * i;
            images[i].guidance.beta = .2 * i;
        }
        if (pipeline_render(pipeline, &shape, images, COUNT, NULL, NULL, &err))
            fail_msg("%s", err.text);
        for (int i = 0; i < COUNT; i++) {
            images[i].pixels = alone;
            if (pipeline_render(pipeline, &shape, images + i, 1, NULL, NULL, &err))
                fail_msg("%s", err.text);
            assert_memory_equal(alone, together[i], BYTES);
        }
    }
}

/* Multiply-adds of a plan's linears, in GFLOP. */
static double linears(struct guidance g)
{
    struct render_shape shape = shape_of(g);
    struct pipeline_plans plans;
    struct steer_error err = {0};
    double sum = 0;
    const struct render_image image = {.prompt = CAT, .negative = "the lazy dog"};
    if (pipeline_plans(pipeline, &shape, &image, 1, &plans, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < plan_operations(plans.denoise); i++) {
        struct op_report r = plan_report(plans.denoise, i);
        if (strcmp(r.op, "linear") == 0) sum += r.gflop;
    }
    return sum;
}

/* The negative costs its own rows, as the positive does, and nothing of the image's; unguided, it
 * costs nothing. */
static void test_cost(void **unused)
{
    (void)unused;
    const int channels = 36, layers = 2, single = 3, rows = 256;
    double square = 2e-9 * channels * channels;
    /* In a double block qkv, out and feed-forward; in a single one qkv, feed-forward and their
     * union to the output, of which the last block needs qkv alone; and its modulations. */
    double own = square * (rows * (12 * layers + 12 * single - 9) + 6 * layers + 3 * single);
    double none = linears(method(GUIDANCE_NONE)), nasa = linears(method(GUIDANCE_NASA));
    assert_true(fabs(nasa - none - own) < 1e-9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_defaults),
                                       cmocka_unit_test(test_alpha_0_is_none),
                                       cmocka_unit_test(test_same_text),
                                       cmocka_unit_test(test_nag_off),
                                       cmocka_unit_test(test_variant_is_nasas),
                                       cmocka_unit_test(test_batch),
                                       cmocka_unit_test(test_cost)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
