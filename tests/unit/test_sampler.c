// SPDX-License-Identifier: Apache-2.0
/* Every scheduler and key that a folder's scheduler_config.json may have, against diffusers
 * (tests/golden/schedules.py made tests/golden/data/schedules.json). STEER_SCHEDULES names another
 * file of that kind. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "recipe.h"

enum { COUNT = 5 };
#define ERROR_MAX 2e-5 /* norm2(got - want) / norm2(want); measured: at most 4.8e-6 */

/* Time steps that are looked up in a table (Karras and others): torch's square roots and numpy's
 * logarithms are off in the last bit of f32, which flat tables enlarge. */
#define TIME_MAX .02

/* The stand-ins for a denoiser and for noise: the script has the same. */
static float pattern(int call, int times, int add, int span, int i)
{
    return (float)((call * times + i * (times + 6) + add) % span - span / 2) / 8;
}

static void noise(void *data, float *out, size_t count)
{
    int *drawn = data;
    ++*drawn;
    for (size_t i = 0; i < count; i++)
        out[i] = pattern(*drawn, 5, 3, 19, (int)i);
}

static int load(struct recipe *r, const json_t *row, struct steer_error *err)
{
    const struct recipe_folder folder = {.scheduler = json_object_get(row, "config"),
                                         .scheduler_file = "scheduler_config.json",
                                         .old_rules = !json_is_false(json_object_get(row, "old"))};
    int code = recipe_load(r, "sd15", &folder, err);
    /* A recipe's, never a folder's. */
    if (!code) r->sampler.eta = json_number_value(json_object_get(row, "eta"));
    return code;
}

static double numbers_distance(const json_t *list, const double *got, size_t count)
{
    double d = 0, n = 0;
    for (size_t i = 0; i < count; i++) {
        double want = json_number_value(json_array_get(list, i));
        d += (got[i] - want) * (got[i] - want);
        n += want * want;
    }
    return sqrt(d / fmax(n, 1e-30));
}

/* How far off the last x is, or an answer for what is not near at all: 1 and more. */
static double follow(const json_t *row, const struct recipe *r)
{
    struct schedule *s = NULL;
    struct sampler *sampler = NULL;
    struct steer_error err = {0};
    int steps = (int)json_integer_value(json_object_get(row, "steps")), drawn = 0;
    const json_t *times = json_object_get(row, "timesteps");
    if (schedule_new(&s, &r->sampler, steps, &err)) {
        print_error("%s\n", err.text);
        return 1;
    }
    int calls = schedule_calls(s);
    double worst = calls == (int)json_array_size(times) ? 0 : 2, last[COUNT];
    float x[COUNT], out[COUNT];
    double init = json_number_value(json_object_get(row, "init"));
    if (fabs(schedule_init_scale(s) / init - 1) > 1e-6) {
        print_error("begins with %.9g instead of %.9g\n", schedule_init_scale(s), init);
        worst = 4;
    }
    float sample, noised;
    schedule_noising(s, &sample, &noised);
    const double added[] = {sample, noised};
    if (numbers_distance(json_object_get(row, "noised"), added, 2) > 1e-6) {
        print_error("a sample is noised by %.9g and %.9g\n", sample, noised);
        worst = 5;
    }
    for (int i = 0; i < calls && worst == 0; i++)
        if (fabs(schedule_timestep(s, i) - json_number_value(json_array_get(times, (size_t)i))) >
            TIME_MAX) {
            worst = 3;
            print_error("call %d of %d at %.9g instead of %.9g\n", i, calls,
                        schedule_timestep(s, i),
                        json_number_value(json_array_get(times, (size_t)i)));
        }
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)(((i * 3 + 1) % 7 - 3) / 2. * schedule_init_scale(s));
    assert_int_equal(sampler_new(&sampler, s, COUNT, noise, &drawn), 0);
    for (int call = 0; call < calls; call++) {
        for (int i = 0; i < COUNT; i++)
            out[i] = .3f * (float)schedule_input_scale(s, call) * x[i] + pattern(call, 7, 5, 17, i);
        assert_int_equal(sampler_step(sampler, call, out, x), 0);
    }
    for (int i = 0; i < COUNT; i++)
        last[i] = x[i];
    if (worst == 0) worst = numbers_distance(json_object_get(row, "x"), last, COUNT);
    sampler_free(sampler);
    schedule_free(s);
    return worst;
}

static void test_schedules(void **state)
{
    (void)state;
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/data/schedules.json", getenv("STEER_SOURCE_DIR"));
    const char *other = getenv("STEER_SCHEDULES");
    json_t *rows = json_load_file(other ? other : path, 0, NULL);
    assert_non_null(rows);
    size_t wrong = 0, i;
    double worst = 0;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        struct recipe r;
        struct steer_error err = {0};
        int code = load(&r, row, &err), refused = json_is_true(json_object_get(row, "refused"));
        double off = code || refused ? code != 0 && refused ? 0 : 9 : follow(row, &r);
        if (off > worst && off <= ERROR_MAX) worst = off;
        if (off <= ERROR_MAX) continue;
        char *text = json_dumps(json_object_get(row, "config"), JSON_COMPACT);
        print_error("off by %g in %d steps%s%s: %s\n", off,
                    (int)json_integer_value(json_object_get(row, "steps")), code ? ": " : "",
                    code ? err.text : "", text);
        free(text);
        wrong++;
    }
    print_message("%zu of %zu schedules differ; the others by at most %.1e\n", wrong,
                  json_array_size(rows), worst);
    assert_int_equal(wrong, 0);
    assert_true(json_array_size(rows) > 100);
    json_decref(rows);
}

/* Stable Diffusion's levels are torch's f32 to the bit: alphas_cumprod[t] of DDIMScheduler, where
 * linspace rounded twice gives its neighbour. */
static void test_levels(void **state)
{
    (void)state;
    static const struct {
        int t;
        double alpha_bar;
    } wanted[] = {{273, 0x1.458004p-1}, {368, 0x1.e8085cp-2}, {702, 0x1.4d11cap-4}};
    struct recipe r;
    struct schedule *s;
    struct steer_error err = {0};
    json_t *row =
        json_pack("{s:{s:s, s:f, s:f, s:s}}", "config", "_class_name", "DDIMScheduler",
                  "beta_start", .00085, "beta_end", .012, "beta_schedule", "scaled_linear");
    json_object_set_new(json_object_get(row, "config"), "clip_sample", json_false());
    if (load(&r, row, &err) || schedule_new(&s, &r.sampler, 1, &err)) fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        assert_true(schedule_alpha_bar(s, wanted[i].t) == wanted[i].alpha_bar);
    schedule_free(s);
    json_decref(row);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedules),
                                       cmocka_unit_test(test_levels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
