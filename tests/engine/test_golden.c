// SPDX-License-Identifier: Apache-2.0
/* Every stage of `steer-worker render` against diffusers and transformers, on small random models.
 *
 * tests/golden/make.py made tests/golden/data: CASE/model is a folder, CASE/RUN/args.txt the flags
 * and CASE/RUN/expected.safetensors the reference's tensors. A run that has a model.json of its own
 * renders that. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "compute.h"
#include "safetensors.h"

#define ERROR_MAX 1e-4 /* norm2(got - want) / norm2(want); measured: at most 6e-6 */

static char data_dir[1024], worker[1024];

/* Runs the worker with the flags of args.txt; its output goes to files in the test's folder. */
static void render(const char *model, const char *run_dir, const char *const *more)
{
    char path[1300], line[64][256];
    const char *argv[80] = {worker,    "render",         "--model",         model,       "--output",
                            "out.png", "--dump-tensors", "got.safetensors", "--threads", "2"};
    int count = 10, lines = 0;
    while (*more)
        argv[count++] = *more++;
    snprintf(path, sizeof path, "%s/args.txt", run_dir);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    while (lines < 60 && fgets(line[lines], sizeof line[lines], f)) {
        line[lines][strcspn(line[lines], "\n")] = 0;
        argv[count++] = line[lines++];
    }
    fclose(f);
    argv[count] = NULL;
    unlink("got.safetensors");
    pid_t pid = fork();
    if (!pid) {
        execv(worker, (char **)(uintptr_t)argv);
        _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) fail_msg("%s: render failed", run_dir);
}

static double distance(const struct tensor_view *got, const struct tensor_view *want)
{
    double d = 0, n = 0;
    const float *x = got->data, *y = want->data;
    for (size_t i = 0; i < want->bytes / sizeof *x; i++) {
        d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        n += (double)y[i] * y[i];
    }
    return n > 0 ? sqrt(d / n) : sqrt(d); /* the zeros of an absent text */
}

/* 8-bit images may differ by 1 where the float lies on the edge; hardly anywhere. */
static void compare_image(const char *run, const struct tensor_view *got,
                          const struct tensor_view *want)
{
    const uint8_t *x = got->data, *y = want->data;
    size_t differ = 0;
    for (size_t i = 0; i < want->bytes; i++) {
        if (abs(x[i] - y[i]) > 1) fail_msg("%s: image: %d instead of %d", run, x[i], y[i]);
        differ += x[i] != y[i];
    }
    if (differ * 500 > want->bytes) fail_msg("%s: image: %zu values differ", run, differ);
}

/* The worst stage's error; every tensor of the reference must be there in its shape. */
static double compare(const char *run, const struct tensors *got, const struct tensors *want,
                      double limit)
{
    double worst = 0;
    for (size_t i = 0; i < tensors_count(want); i++) {
        const struct tensor_view *w = tensors_at(want, i), *g = tensors_find(got, w->name);
        if (!g) fail_msg("%s: no tensor %s", run, w->name);
        if (g->rank != w->rank || memcmp(g->shape, w->shape, (size_t)g->rank * sizeof *g->shape))
            fail_msg("%s: %s has another shape", run, w->name);
        if (g->dtype != w->dtype) fail_msg("%s: %s has another type", run, w->name);
        if (w->dtype == TENSOR_I32) {
            assert_memory_equal(g->data, w->data, w->bytes);
        } else if (w->dtype == TENSOR_U8) {
            if (limit <= ERROR_MAX) compare_image(run, g, w);
        } else if (strcmp(w->name, "latents.start") == 0) {
            assert_memory_equal(g->data, w->data, w->bytes); /* torch's noise, bit for bit */
        } else {
            double e = distance(g, w);
            if (!(e <= limit)) fail_msg("%s: %s is off by %g", run, w->name, e);
            if (e > worst) worst = e;
        }
    }
    return worst;
}

static double check_run(const char *name, const char *run, const char *const *flags, double limit)
{
    char model[1200], dir[1200], path[1300];
    struct steer_error err = {0};
    struct tensors *got = NULL, *want = NULL;
    snprintf(dir, sizeof dir, "%s/%s/%s", data_dir, name, run);
    snprintf(model, sizeof model, "%.1100s/model.json", dir);
    if (access(model, F_OK)) snprintf(model, sizeof model, "%s/%s/model", data_dir, name);
    snprintf(path, sizeof path, "%s/expected.safetensors", dir);
    render(model, dir, flags);
    if (tensors_open(&want, path, &err) || tensors_open(&got, "got.safetensors", &err))
        fail_msg("%s", err.text);
    double worst = compare(run, got, want, limit);
    print_message("%-8s %-12s %-14s worst stage %.1e\n", name, run, flags[1], worst);
    tensors_close(got);
    tensors_close(want);
    return worst;
}

/* amplified: the limit where rounding is amplified, by CFG's scale, by PixArt's LoRA, which is as
 * large as what it changes, or by the norms of `quiet`, which divide by almost nothing. The least
 * error of a run. */
static double check_all(const char *const *flags, double limit, double amplified)
{
    double least = INFINITY;
    DIR *cases = opendir(data_dir);
    assert_non_null(cases);
    int runs = 0;
    for (struct dirent *c; (c = readdir(cases));) {
        char path[1300];
        snprintf(path, sizeof path, "%s/%s", data_dir, c->d_name);
        DIR *d = c->d_name[0] == '.' ? NULL : opendir(path);
        for (struct dirent *r; d && (r = readdir(d));) {
            if (r->d_name[0] == '.' || strcmp(r->d_name, "model") == 0) continue;
            int amplifies = strstr(r->d_name, "cfg") || strcmp(r->d_name, "lora") == 0 ||
                            strcmp(c->d_name, "quiet") == 0;
            double e = check_run(c->d_name, r->d_name, flags, amplifies ? amplified : limit);
            if (e < least) least = e;
            runs++;
        }
        if (d) closedir(d);
    }
    closedir(cases);
    assert_true(runs >= 10);
    return least;
}

static void test_cpu_f32(void **unused)
{
    (void)unused;
    static const char *const flags[] = {"--precision", "f32", NULL};
    (void)check_all(flags, ERROR_MAX, ERROR_MAX);
}

/* Each stage of random weights within 2e-2 in bf16. */
static void test_cpu_bf16(void **unused)
{
    (void)unused;
    static const char *const flags[] = {"--precision", "bf16", NULL};
    if (!compute_bf16_native()) {
        print_message("skipped: this processor has no native bf16\n");
        skip();
    }
    (void)check_all(flags, 2e-2 /* 1.5e-2 */, 5e-2 /* 3.3e-2, SD2.1 and CFG 7.5; quiet 3.7e-2 */);
}

/* Text encoders and denoisers of every family from int8 weights, which show in each. */
static void test_int8(void **unused)
{
    (void)unused;
    static const char *const f32[] = {"--weights", "int8", "--precision", "f32", NULL};
    static const char *const bf16[] = {"--weights", "int8", "--precision", "bf16", NULL};
    double least = check_all(f32, 2e-2 /* 1.4e-2 */, 3e-2 /* 2.4e-2, the LoRA */);
    assert_true(least > 1e-3); /* 3.8e-3 */
    if (compute_bf16_native())
        (void)check_all(bf16, 2e-2 /* 1.6e-2 */, 5e-2 /* 3.2e-2, the LoRA */);
}

/* Both backends hold the same codes, so that nothing but the order of sums is between them. */
static void test_int8_ref(void **unused)
{
    (void)unused;
    static const char *const runs[][2] = {{"small", "ddim"},
                                          {"second", "vsf"},
                                          {"xl", "lightning"},
                                          {"pixart_ms", "nasa"},
                                          {"flux", "joint"}};
    static const char *const cpu[] = {"--weights", "int8", "--precision", "f32", NULL};
    static const char *const ref[] = {"--weights", "int8", "--backend", "ref", NULL};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char model[1200], dir[1200];
        struct steer_error err = {0};
        struct tensors *got = NULL, *want = NULL;
        snprintf(model, sizeof model, "%s/%s/model", data_dir, runs[i][0]);
        snprintf(dir, sizeof dir, "%s/%s/%s", data_dir, runs[i][0], runs[i][1]);
        render(model, dir, ref);
        assert_int_equal(rename("got.safetensors", "want.safetensors"), 0);
        render(model, dir, cpu);
        if (tensors_open(&want, "want.safetensors", &err) ||
            tensors_open(&got, "got.safetensors", &err))
            fail_msg("%s", err.text);
        double worst = compare(runs[i][1], got, want, ERROR_MAX);
        print_message("%-8s %-12s int8 beside ref %.1e\n", runs[i][0], runs[i][1], worst);
        tensors_close(got);
        tensors_close(want);
    }
}

static void test_ref(void **unused)
{
    (void)unused;
    static const char *const flags[] = {"--backend", "ref", NULL};
    (void)check_run("small", "ddim", flags, ERROR_MAX);
    (void)check_run("tiny", "lcm", flags, ERROR_MAX);
    (void)check_run("second", "vsf", flags, ERROR_MAX);
    (void)check_run("xl", "lightning", flags, ERROR_MAX);
    (void)check_run("xl_odd", "absent-cfg", flags, ERROR_MAX);
    (void)check_run("pixart_ms", "nasa", flags, ERROR_MAX);
    (void)check_run("pixart_odd", "nag", flags, ERROR_MAX);
    (void)check_run("flux", "joint", flags, ERROR_MAX);
}

int main(void)
{
    snprintf(data_dir, sizeof data_dir, "%s/tests/golden/data", getenv("STEER_SOURCE_DIR"));
    snprintf(worker, sizeof worker, "%s/steer-worker", getenv("STEER_BIN_DIR"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_f32), cmocka_unit_test(test_cpu_bf16), cmocka_unit_test(test_ref),
        cmocka_unit_test(test_int8), cmocka_unit_test(test_int8_ref)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
