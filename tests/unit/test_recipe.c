// SPDX-License-Identifier: Apache-2.0
/* What the shipped recipes say: the facts of the checkpoints' own scripts, which no folder tells.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "recipe.h"

static struct recipe load(const char *name)
{
    struct recipe r;
    struct steer_error err = {0};
    json_t *scheduler =
        json_pack("{s:s}", "_class_name", "EulerDiscreteScheduler"); /* sd15 takes the folder's */
    if (recipe_load(&r, name, &(struct recipe_folder){.scheduler = scheduler}, &err))
        fail_msg("%s: %s", name, err.text);
    json_decref(scheduler);
    return r;
}

/* The time step of the first call and the alpha_bar that is used there. */
static void first_call(const char *name, double timestep, double alpha_bar)
{
    struct recipe r = load(name);
    struct schedule *s = NULL;
    struct steer_error err = {0};
    assert_int_equal(schedule_new(&s, &r.sampler, r.steps_min, &err), 0);
    assert_true(schedule_timestep(s, 0) == timestep);
    if (alpha_bar > 0)
        assert_true(fabs(schedule_alpha_bar(s, (int)timestep) / alpha_bar - 1) < 1e-5);
    schedule_free(s);
}

static void test_one_step_checkpoints(void **state)
{
    (void)state;
    first_call("instaflow", 1000, 0);         /* 1000, not 999: rectified flow's time 1 */
    first_call("dmd2-sd15", 999, 0.0047);     /* the constant of its authors' script */
    first_call("sbv2-sd15", 999, 0.00466009); /* diffusers' table, scaled_linear, at 999 */
    first_call("demo", 999, 0.00466009);
    first_call("sbv2-sd21", 999, 0.00466009);
    first_call("dmd2-sdxl-1step", 399, 0.426086364);
    first_call("dmd2-sdxl-4step", 999, 0.00466009);
    first_call("hyper-sdxl-1step", 800, 0);
    first_call("yoso-sd15", 999, 0.00466009);
    assert_true(load("yoso-sd15").from_mean && !load("lcm").from_mean);
    first_call("yoso-pixart", 999, 4.03582977e-05); /* linear betas */
    first_call("dmd-pixart", 400, 0.19357201);
    first_call("sbv2-pixart", 400, 0.19357201);
}

static void each(void *data, const char *name)
{
    struct recipe r = load(name);
    assert_true(r.steps >= r.steps_min && r.steps <= r.steps_max);
    assert_true(isfinite(r.guidance.alpha) && isfinite(r.guidance.scale));
    ++*(int *)data;
}

static void test_all_load(void **state)
{
    int count = 0;
    (void)state;
    recipe_list(each, &count);
    assert_true(count >= 20);
}

static void test_unknown(void **state)
{
    (void)state;
    struct recipe r;
    struct steer_error err = {0};
    const struct recipe_folder none = {.scheduler = NULL};
    assert_int_equal(recipe_load(&r, "nonsense", &none, &err), STEER_UNKNOWN_RECIPE);
    assert_non_null(strstr(err.text, "nonsense"));
    assert_int_not_equal(recipe_load(&r, "../../etc/passwd", &none, &err), 0);
}

/* A recipe's numbers win over the family's, which stand for what it leaves out. */
static void test_family(void **state)
{
    (void)state;
    struct recipe r;
    struct steer_error err = {0};
    json_t *scheduler = json_pack("{s:s}", "_class_name", "EulerDiscreteScheduler");
    struct recipe_folder folder = {
        .scheduler = scheduler,
        .scheduler_file = "folder",
        .family = "sdxl",
        .guidance = {GUIDANCE_VSF, .5, 3, 2.25, .25, .125, 4, GUIDANCE_TEXT}};
    assert_int_equal(recipe_load(&r, "euler-trailing", &folder, &err), 0);
    assert_int_equal(r.guidance.method, GUIDANCE_NASA);
    assert_true(r.guidance.alpha == .5 && r.guidance.phi == 3 && r.guidance.tau == 2.25);
    assert_true(r.guidance.beta == .25 && r.guidance.offset == .125 && r.guidance.scale == 1);
    assert_int_equal(recipe_load(&r, "sdxl", &folder, &err), 0);
    assert_int_equal(r.guidance.method, GUIDANCE_NONE);
    assert_true(r.guidance.scale == 5);
    assert_int_equal(recipe_load(&r, "sbv2-sd21", &folder, &err), STEER_UNSUPPORTED);
    assert_non_null(strstr(err.text, "sd21"));
    folder.family = "sd21";
    assert_int_equal(recipe_load(&r, "sbv2-sd21", &folder, &err), 0);
    assert_true(r.guidance.alpha == .3);
    json_decref(scheduler);
}

/* The sentence names what was found and all that would do. */
static void test_unknown_scheduler(void **state)
{
    (void)state;
    struct recipe r;
    struct steer_error err = {0};
    json_t *scheduler = json_pack("{s:s}", "_class_name", "DPMSolverSinglestepScheduler");
    const struct recipe_folder folder = {.scheduler = scheduler, .scheduler_file = "folder"};
    assert_int_equal(recipe_load(&r, "sd15", &folder, &err), STEER_UNSUPPORTED);
    assert_non_null(strstr(err.text, "folder: scheduler \"DPMSolverSinglestepScheduler\""));
    for (int i = 0; i < SCHEDULER_COUNT; i++)
        assert_non_null(strstr(err.text, sampler_class_name((enum scheduler)i)));
    json_decref(scheduler);
}

/* What is the model's own and not its scheduler's goes to every recipe that has no table itself. */
static void test_lent(void **state)
{
    (void)state;
    struct recipe r;
    struct steer_error err = {0};
    json_t *scheduler = json_pack("{s:s, s:b, s:s}", "_class_name", "DDIMScheduler",
                                  "rescale_betas_zero_snr", 1, "timestep_spacing", "trailing");
    const struct recipe_folder folder = {
        .scheduler = scheduler, .scheduler_file = "folder", .old_rules = 1};
    assert_int_equal(recipe_load(&r, "euler", &folder, &err), 0);
    assert_true(r.sampler.rescale_betas_zero_snr);
    assert_int_equal(r.sampler.timestep_spacing, SPACING_LEADING);
    assert_int_equal(recipe_load(&r, "sbv2-sd15", &folder, &err), 0);
    assert_false(r.sampler.rescale_betas_zero_snr);
    /* That x0 is clipped is the scheduler's own wish, which a recipe that brings one replaces. */
    const struct recipe_folder xl = {.scheduler = scheduler, .scheduler_file = "folder"};
    assert_int_equal(recipe_load(&r, "sdxl", &xl, &err), 0);
    assert_true(r.sampler.clip_sample && r.sampler.clip_sample_range == 1);
    assert_int_equal(recipe_load(&r, "dmd-pixart", &xl, &err), 0);
    assert_false(r.sampler.clip_sample);
    json_object_set_new(scheduler, "trained_betas", json_pack("[f]", .1));
    assert_int_equal(recipe_load(&r, "euler", &folder, &err), STEER_BAD_MODEL);
    assert_non_null(strstr(err.text, "trained_betas"));
    json_decref(scheduler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_step_checkpoints),
                                       cmocka_unit_test(test_all_load),
                                       cmocka_unit_test(test_unknown),
                                       cmocka_unit_test(test_unknown_scheduler),
                                       cmocka_unit_test(test_family),
                                       cmocka_unit_test(test_lent)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
