/* rig.h - what tests of operations share: numbers, one operation as a plan of its own, and backend
 * cpu against ref on all instruction sets that this processor has, in f32 and (where it is native)
 * bf16. Errors are norm2(got - ref) / norm2(ref). */
#ifndef TEST_RIG_H
#define TEST_RIG_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compute.h"

static struct compute *ref, *cpu; /* cpu: the best instruction set, f32 */

/* f32 NULL: not on this processor; bf16 NULL: not native. */
static struct set {
    const char *isa;
    struct compute *f32, *bf16;
} sets[] = {{"avx512_bf16", NULL, NULL},
            {"avx512", NULL, NULL},
            {"avx2", NULL, NULL},
            {"sse2", NULL, NULL}};
enum { SETS = 4 };
static uint32_t state = 1;

static inline float uniform(void) /* -1..1 */
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1;
}

static inline float *numbers(size_t count, float scale)
{
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < count; i++)
        x[i] = uniform() * scale;
    return x;
}

enum { INPUTS_MAX = 12 };

/* One operation under test: records it on a graph; its weights are made for the compute given. */
struct rig {
    struct compute *c;
    struct graph *g;
    struct tensor in[INPUTS_MAX];
    const float *data[INPUTS_MAX];
    void *bound[INPUTS_MAX]; /* the data as plans read what is bound; NULL: an input of the plan */
    int inputs;
    struct weight *w[2];
    int weights;
};

static inline struct tensor input(struct rig *r, struct shape s, const float *data)
{
    char name[16];
    assert_true(r->inputs < INPUTS_MAX);
    snprintf(name, sizeof name, "in%d", r->inputs);
    r->in[r->inputs] = graph_input(r->g, name, s, TYPE_F32);
    r->data[r->inputs] = data;
    return r->in[r->inputs++];
}

/* The same, at an address of its own, in bf16 where c is. */
static inline struct tensor bound(struct rig *r, struct shape s, const float *data)
{
    size_t count = (size_t)s.b * (size_t)s.h * (size_t)s.w * (size_t)s.c;
    uint16_t *narrow = malloc(count * sizeof(float));
    assert_non_null(narrow);
    memcpy(narrow, data, count * sizeof(float));
    for (size_t i = 0; compute_bound_type(r->c) == TYPE_BF16 && i < count; i++) {
        uint32_t bits;
        memcpy(&bits, data + i, sizeof bits);
        narrow[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    r->bound[r->inputs] = narrow;
    r->in[r->inputs] = graph_bound(r->g, "bound", s, 1);
    return r->in[r->inputs++];
}

/* Fills the inputs of a plan of r. */
static inline void inputs_set(struct rig *r, struct plan *p)
{
    for (int i = 0; i < r->inputs; i++) {
        struct shape s = graph_shape(r->g, r->in[i]);
        size_t count = (size_t)s.h * (size_t)s.w * (size_t)s.c;
        size_t bytes = count * compute_type_bytes(plan_type(p, r->in[i]));
        for (int b = 0; r->bound[i] && b < s.b; b++)
            plan_bind(p, r->in[i], b, (char *)r->bound[i] + (size_t)b * bytes);
        if (!r->bound[i]) memcpy(plan_data(p, r->in[i]), r->data[i], (size_t)s.b * bytes);
    }
}

static inline void rig_free(struct rig *r)
{
    graph_free(r->g);
    for (int i = 0; i < r->weights; i++)
        weight_free(r->w[i]);
    for (int i = 0; i < r->inputs; i++)
        free(r->bound[i]);
}

typedef struct tensor (*recipe)(struct rig *r, const void *what);

/* Runs the operation on c and returns its output, dense f32. */
static inline float *evaluate(struct compute *c, recipe make, const void *what, size_t *ret_count)
{
    struct rig r = {.c = c, .g = graph_new()};
    struct steer_error err = {0};
    struct plan *p = NULL;
    assert_non_null(r.g);
    struct tensor out = make(&r, what);
    graph_output(r.g, out, "out", 0);
    int code = compute_plan(&p, c, r.g, &err);
    if (code) fail_msg("%s", err.text);
    inputs_set(&r, p);
    code = plan_run(p, NULL, &err);
    if (code) fail_msg("%s", err.text);
    struct shape s = graph_shape(r.g, out);
    *ret_count = (size_t)s.b * (size_t)s.h * (size_t)s.w * (size_t)s.c;
    float *copy = malloc(*ret_count * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, plan_data(p, out), *ret_count * sizeof *copy);
    plan_free(p);
    rig_free(&r);
    return copy;
}

static inline double distance(const float *got, const float *want, size_t count)
{
    double d = 0, n = 0;
    for (size_t i = 0; i < count; i++) {
        d += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        n += (double)want[i] * want[i];
    }
    return n > 0 ? sqrt(d / n) : sqrt(d);
}

/* Prints the worst of a list, and holds it to its limit. */
static inline void hold(const char *name, double worst, double limit)
{
    print_message("%-28s %.2e (limit %.0e)\n", name, worst, limit);
    if (!(worst <= limit)) fail_msg("%s: %g is over %g", name, worst, limit);
}

/* Inputs of golden.h's values, as golden.py makes them. */
static inline float *golden_numbers(size_t count, size_t seed)
{
    float *x = numbers(count, 0);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)((double)((i * 37 + seed * 11) % 101) / 50 - 1);
    return x;
}

/* make on ref and on every set in f32, against values from elsewhere. */
static inline void golden_hold(const char *name, recipe make, const void *what, const float *want,
                               size_t count, double limit)
{
    double worst = 0;
    size_t n;
    for (int i = -1; i < SETS; i++) {
        struct compute *c = i < 0 ? ref : sets[i].f32;
        if (!c) continue;
        float *got = evaluate(c, make, what, &n);
        assert_int_equal(n, count);
        double e = distance(got, want, n);
        if (!(e <= worst)) worst = e;
        free(got);
    }
    hold(name, worst, limit);
}

/* The worst error of each set and precision over a table; -1: not run. */
struct worst {
    double f32[SETS], bf16[SETS];
};

static inline void worst_begin(struct worst *w)
{
    for (int i = 0; i < SETS; i++)
        w->f32[i] = sets[i].f32 ? 0 : -1, w->bf16[i] = sets[i].bf16 ? 0 : -1;
}

static inline void raise_to(double *worst, double e)
{
    if (!(e <= *worst)) *worst = e; /* a NaN stays */
}

/* make against ref on every set; bf16 too when `narrow`. */
static inline void worst_add(struct worst *w, recipe make, const void *what, int narrow)
{
    size_t n, m;
    float *want = evaluate(ref, make, what, &n);
    for (int i = 0; i < 2 * SETS; i++) {
        struct compute *c = i < SETS ? sets[i].f32 : narrow ? sets[i - SETS].bf16 : NULL;
        if (!c) continue;
        float *got = evaluate(c, make, what, &m);
        assert_int_equal(n, m);
        raise_to(i < SETS ? w->f32 + i : w->bf16 + (i - SETS), distance(got, want, n));
        free(got);
    }
    free(want);
}

static inline void worst_hold(const struct worst *w, const char *name, double f32, double bf16)
{
    char line[96];
    for (int i = 0; i < 2 * SETS; i++) {
        double e = i < SETS ? w->f32[i] : w->bf16[i - SETS];
        if (e < 0 || (i >= SETS && bf16 == 0)) continue;
        snprintf(line, sizeof line, "%s %s %s", name, sets[i % SETS].isa,
                 i < SETS ? "f32" : "bf16");
        hold(line, e, i < SETS ? f32 : bf16);
    }
}

/* Where the backend is narrow, x in bf16: a resize to its own size writes what its readers want. */
static inline struct tensor narrow(struct rig *r, struct tensor x)
{
    struct shape s = graph_shape(r->g, x);
    return op_resize(r->g, x, s.h, s.w);
}

static inline int rig_open(void **unused)
{
    (void)unused;
    struct steer_error err = {0};
    struct compute_options o = {.backend = "ref", .threads = 2};
    if (compute_open(&ref, &o, &err)) return -1;
    o.backend = "cpu";
    if (compute_open(&cpu, &o, &err)) return -1;
    for (int i = 0; i < SETS; i++) {
        o.isa = sets[i].isa;
        o.precision = PRECISION_F32;
        if (compute_open(&sets[i].f32, &o, &err)) {
            print_message("skipped: %s\n", err.text);
            continue;
        }
        o.precision = PRECISION_BF16;
        if (!compute_bf16_native())
            print_message("skipped: bf16 with %s, not native here\n", sets[i].isa);
        else if (compute_open(&sets[i].bf16, &o, &err))
            return -1;
    }
    return 0;
}

static inline int rig_close(void **unused)
{
    (void)unused;
    compute_close(ref);
    compute_close(cpu);
    for (int i = 0; i < SETS; i++) {
        compute_close(sets[i].f32);
        compute_close(sets[i].bf16);
    }
    return 0;
}

#endif
