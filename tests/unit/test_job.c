// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "args.h"
#include "job.h"
#include "job_args.h"

static Steerfarm__Guidance usual = STEERFARM__GUIDANCE__INIT;
static Steerfarm__Recipe recipe = STEERFARM__RECIPE__INIT, *recipes[1] = {&recipe};
static Steerfarm__Model model = STEERFARM__MODEL__INIT;

static int setup(void **unused)
{
    static char name[] = "demo", hash[] = "h";
    (void)unused;
    usual.has_method = usual.has_alpha = usual.has_guidance_scale = 1;
    usual.method = STEERFARM__METHOD__NASA;
    usual.alpha = 0.7;
    usual.guidance_scale = 3;
    recipe.name = name;
    recipe.guidance = &usual;
    recipe.steps = recipe.steps_min = 1;
    recipe.steps_max = 4;
    model.name = name;
    model.hash = hash;
    model.recipes = recipes;
    model.n_recipes = 1;
    model.width = model.height = 96;
    return 0;
}

/* Parses flags as a program would and resolves them. */
static int resolve(struct job_resolved *ret, int argc, const char *const *flags)
{
    static struct job_args a;
    static char name[] = "demo";
    static char words[32][64];
    char *argv[32];
    struct steer_error err = {0};
    int left, help;
    job_args_init(&a);
    const struct args_group groups[] = {
        {"", job_args_image, &a}, {"", job_args_guidance, &a}, {NULL, NULL, NULL}};
    for (int i = 0; i < argc; i++) {
        strcpy(words[i], flags[i]);
        argv[i] = words[i];
    }
    int code = args_parse(groups, argc, argv, &left, &help, &err);
    a.job.model = name;
    return code ? code : job_resolve(ret, &a.job, &model, 5, &err);
}

#define RESOLVE(r, ...)                                                                            \
    resolve(r, (int)(sizeof(const char *[]){__VA_ARGS__} / sizeof(char *)),                        \
            (const char *[]){__VA_ARGS__})

static void test_guidance(void **unused)
{
    (void)unused;
    struct job_resolved r;
    /* Without a negative and without being asked, nothing is steered. */
    assert_int_equal(RESOLVE(&r, "--prompt", "x"), 0);
    assert_int_equal(r.guidance.method, STEERFARM__METHOD__NONE);
    assert_true(r.guidance.guidance_scale == 3);
    /* With one, the recipe's method. */
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--negative", "y"), 0);
    assert_int_equal(r.guidance.method, STEERFARM__METHOD__NASA);
    assert_true(r.guidance.alpha == 0.7);
    /* A named method stands alone, unless CFG is given too. */
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--negative", "y", "--guidance", "vsf"), 0);
    assert_true(r.guidance.guidance_scale == 1);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--guidance", "nag", "--guidance-scale", "2"), 0);
    assert_true(r.guidance.guidance_scale == 2);
    assert_int_equal(r.guidance.method, STEERFARM__METHOD__NAG);
    /* cfg is the recipe's scale, or 7.5 where the recipe has none. */
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--guidance", "cfg"), 0);
    assert_int_equal(r.guidance.method, STEERFARM__METHOD__NONE);
    assert_true(r.guidance.guidance_scale == 3);
    usual.guidance_scale = 1;
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--guidance", "cfg"), 0);
    assert_true(r.guidance.guidance_scale == 7.5);
    usual.guidance_scale = 3;
    /* A negative that would do nothing is refused. */
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--negative", "y", "--guidance", "none"),
                     STEER_BAD_VALUE);
}

static void test_nasa_variant(void **unused)
{
    (void)unused;
    struct job_resolved r;
    static const char *const names[] = {"text", "mass", "joint"};
    /* A model without joint attention has none, and is asked for none. */
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--negative", "y"), 0);
    assert_false(r.guidance.has_nasa_variant);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--negative", "y", "--nasa-variant", "text"),
                     STEER_BAD_VALUE);
    model.joint_attention = 1;
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--negative", "y"), 0);
    assert_true(r.guidance.has_nasa_variant);
    assert_int_equal(r.guidance.nasa_variant, STEERFARM__NASA_VARIANT__TEXT);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(RESOLVE(&r, "--prompt", "x", "--nasa-variant", names[i]), 0);
        assert_int_equal(r.guidance.nasa_variant, i);
    }
    usual.has_nasa_variant = 1;
    usual.nasa_variant = STEERFARM__NASA_VARIANT__MASS;
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--negative", "y"), 0);
    assert_int_equal(r.guidance.nasa_variant, STEERFARM__NASA_VARIANT__MASS);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--nasa-variant", "image"), STEER_BAD_VALUE);
    usual.nasa_variant = 3;
    r.guidance = usual;
    assert_int_equal(job_check(&r.job, NULL), STEER_BAD_VALUE);
    usual.has_nasa_variant = 0;
    model.joint_attention = 0;
}

static void test_resolved_again(void **unused)
{
    (void)unused;
    struct job_resolved r, again;
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--negative", "y", "--images", "3"), 0);
    assert_int_equal(r.job.seed, 5);
    assert_int_equal(job_resolve(&again, &r.job, &model, 99, NULL), 0);
    assert_memory_equal(&r.guidance, &again.guidance, sizeof r.guidance);
    assert_int_equal(again.job.seed, 5);
    assert_int_equal(again.job.width, 96);
}

/* How a text is read: what is asked for, else what it says here. */
static void test_texts(void **unused)
{
    (void)unused;
    struct job_resolved r;
    assert_int_equal(RESOLVE(&r, "--prompt", "x"), 0);
    assert_true(r.job.has_long_prompt && r.job.has_prompt_syntax);
    assert_int_equal(r.job.long_prompt, STEERFARM__LONG_PROMPT__CUT);
    assert_int_equal(r.job.prompt_syntax, STEERFARM__PROMPT_SYNTAX__PLAIN);
    assert_int_equal(
        RESOLVE(&r, "--prompt", "x", "--long-prompt", "chunk", "--prompt-syntax", "a1111"), 0);
    assert_int_equal(r.job.long_prompt, STEERFARM__LONG_PROMPT__CHUNK);
    assert_int_equal(r.job.prompt_syntax, STEERFARM__PROMPT_SYNTAX__A1111);
    r.job.long_prompt = (Steerfarm__LongPrompt)2;
    assert_int_equal(job_check(&r.job, NULL), STEER_BAD_VALUE);
    r.job.long_prompt = STEERFARM__LONG_PROMPT__CHUNK;
    r.job.prompt_syntax = (Steerfarm__PromptSyntax)-1;
    assert_int_equal(job_check(&r.job, NULL), STEER_BAD_VALUE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--long-prompt", "fold"), STEER_BAD_VALUE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--prompt-syntax", "A1111"), STEER_BAD_VALUE);
}

static void test_bad(void **unused)
{
    (void)unused;
    struct job_resolved r;
    assert_int_equal(RESOLVE(&r, "--prompt", ""), STEER_BAD_TEXT);
    assert_int_equal(RESOLVE(&r, "--prompt", "\xff"), STEER_BAD_TEXT);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--size", "0x8"), STEER_BAD_SIZE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--size", "12x8"), STEER_BAD_SIZE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--size", "99999x8"), STEER_BAD_SIZE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--size", "8"), STEER_BAD_SIZE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--alpha", "nan"), STEER_BAD_VALUE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--alpha", "1e9"), STEER_BAD_VALUE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--steps", "5"), STEER_BAD_VALUE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--seed", "-1"), STEER_BAD_VALUE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--seed", "7x"), STEER_BAD_VALUE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--recipe", "other"), STEER_UNKNOWN_RECIPE);
    assert_int_equal(RESOLVE(&r, "--prompt", "x", "--nonsense"), STEER_USAGE);
    assert_int_equal(RESOLVE(&r, "--prompt"), STEER_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_guidance),
                                       cmocka_unit_test(test_nasa_variant),
                                       cmocka_unit_test(test_resolved_again),
                                       cmocka_unit_test(test_texts), cmocka_unit_test(test_bad)};
    return cmocka_run_group_tests(tests, setup, NULL);
}
