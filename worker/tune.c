// SPDX-License-Identifier: Apache-2.0
/* steer-worker tune: which 3x3 convolutions of a model are faster by Winograd on this machine.
 *
 * Both ways are timed operation by operation inside whole forwards, and the table says which won.
 * The table is read at start (--tuning); nothing is timed then, so bytes stay repeatable. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "session.h"

enum { RUNS = 3, SHAPES_MAX = 512 };

struct tune_args {
    const char *model, *output;
};

static int set_model(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct tune_args *)target)->model = value;
    return 0;
}

static int set_output(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct tune_args *)target)->output = value;
    return 0;
}

static const struct args_option options[] = {
    {"model", "DIR|FILE", "a diffusers model folder, or a model file (.json)", set_model},
    {"output", "FILE", "where the table is written", set_output},
    {NULL, NULL, NULL, NULL},
};

/* A 3x3 convolution's shape and its time: [0] direct, [1] Winograd; 0: not measured. */
struct shape_time {
    int in, out, h, w;
    double ms[2];
};

struct table {
    struct shape_time shapes[SHAPES_MAX];
    int count;
};

static struct shape_time *table_find(struct table *t, int in, struct shape out)
{
    for (int i = 0; i < t->count; i++) {
        struct shape_time *s = t->shapes + i;
        if (s->in == in && s->out == out.c && s->h == out.h && s->w == out.w) return s;
    }
    if (t->count == SHAPES_MAX) return NULL;
    struct shape_time *s = t->shapes + t->count++;
    *s = (struct shape_time){.in = in, .out = out.c, .h = out.h, .w = out.w};
    return s;
}

/* The convolutions of a profiled plan; only 3x3 ones with both widths in blocks of 16 matter. */
static void plan_read(struct table *t, const struct plan *p, int way)
{
    for (int i = 0; i < plan_operations(p); i++) {
        struct op_report r = plan_report(p, i);
        double taps = r.gflop * 1e9 / (2.0 * r.out.b * r.out.h * r.out.w * r.out.c);
        int in = (int)(taps / 9 + 0.5);
        if (strcmp(r.op, "conv") != 0 || in % 16 || r.out.c % 16 || in * 9 != (int)(taps + 0.5))
            continue;
        struct shape_time *s = table_find(t, in, r.out);
        if (s && (s->ms[way] == 0 || r.ms < s->ms[way])) s->ms[way] = r.ms;
    }
}

/* way: 0 direct, 1 Winograd, -1 the winner. */
static int table_write(const struct table *t, const char *path, int way, struct steer_error *err)
{
    FILE *f = fopen(path, "we");
    if (!f) return steer_fail(err, STEER_IO, "%s: cannot be written", path);
    fprintf(f, "# steer-worker tune: conv3 IN OUT HxW algorithm\n");
    for (int i = 0; i < t->count; i++) {
        const struct shape_time *s = t->shapes + i;
        int winner = way >= 0 ? way : s->ms[1] > 0 && s->ms[1] < s->ms[0];
        fprintf(f, "conv3 %d %d %dx%d %s\n", s->in, s->out, s->h, s->w, winner ? "wino" : "direct");
    }
    return fclose(f) ? steer_fail(err, STEER_IO, "%s: writing failed", path) : 0;
}

/* Renders with the table at path and reads the convolutions' times. */
static int measure(struct table *t, int way, const struct tune_args *a,
                   const struct machine_args *m, const struct job_args *given, const char *path,
                   struct steer_error *err)
{
    struct session s = {0};
    struct machine_args machine = *m;
    struct job_args j = *given; /* a session writes into it */
    struct job_plan p = {0};
    struct pipeline_plans plans;
    machine.tuning = path;
    machine.backend = "cpu";
    int code = session_open(&s, a->model, &machine, &j, 1, err);
    if (!code) code = session_plan(&s, 0, &p, err);
    if (!code) code = pipeline_plans(s.pipeline, &p.shape, &p.image, 1, &plans, err);
    if (!code && !(p.image.pixels = malloc((size_t)p.shape.width * (size_t)p.shape.height * 3)))
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    for (int run = 0; run <= RUNS && !code; run++) {
        if (run == 1) { /* the first warms up */
            plan_profile(plans.denoise, 1);
            plan_profile(plans.decode, 1);
        }
        code = pipeline_render(s.pipeline, &p.shape, &p.image, 1, NULL, NULL, err);
    }
    if (!code) {
        plan_read(t, plans.denoise, way);
        plan_read(t, plans.decode, way);
    }
    free(p.image.pixels);
    session_close(&s);
    return code;
}

/* Measures under candidate tables at `work`, which holds the winner's at the end. The first pass
 * under an empty table finds the shapes. */
static int tune(struct table *t, const struct tune_args *a, const struct machine_args *m,
                const struct job_args *j, const char *work, struct steer_error *err)
{
    int code = table_write(t, work, 0, err);
    if (!code) code = measure(t, 0, a, m, j, work, err);
    for (int way = 0; way < 2 && !code; way++) {
        for (int i = 0; i < t->count; i++)
            t->shapes[i].ms[way] = 0;
        code = table_write(t, work, way, err);
        if (!code) code = measure(t, way, a, m, j, work, err);
    }
    return code ? code : table_write(t, work, -1, err);
}

int command_tune(int argc, char **argv, struct steer_error *err)
{
    static struct table table;
    struct tune_args a = {0};
    struct machine_args m;
    struct job_args j;
    int words, help;
    machine_args_init(&m);
    job_args_init(&j);
    const struct args_group groups[] = {{"Tune", options, &a},
                                        {"Image", job_args_image, &j},
                                        {"Machine", machine_args_options, &m},
                                        {NULL, NULL, NULL}};
    int code = args_parse(groups, argc, argv, &words, &help, err);
    if (code) return code;
    if (help) {
        printf("steer-worker tune --model DIR --output FILE [--size WxH] [options]\n");
        args_help(stdout, groups);
        args_help_exits(stdout);
        return 0;
    }
    if (!a.model || !a.output || words)
        return steer_fail(err, STEER_USAGE,
                          "--model DIR and --output FILE are needed (see --help)");
    static char prompt[] = "a photograph";
    if (!j.job.prompt) j.job.prompt = prompt;
    /* A table in use is replaced whole or not at all. */
    char work[1100];
    if ((size_t)snprintf(work, sizeof work, "%s.%d.part", a.output, (int)getpid()) >= sizeof work)
        return steer_fail(err, STEER_BAD_VALUE, "--output %s: the name is too long", a.output);
    code = tune(&table, &a, &m, &j, work, err);
    if (!code && rename(work, a.output))
        code = steer_fail(err, STEER_IO, "%s: cannot be written", a.output);
    if (code) {
        unlink(work);
        return code;
    }
    for (int i = 0; i < table.count; i++)
        printf("conv3 %4d %4d %4dx%-4d  direct %8.3f ms  winograd %8.3f ms\n", table.shapes[i].in,
               table.shapes[i].out, table.shapes[i].h, table.shapes[i].w, table.shapes[i].ms[0],
               table.shapes[i].ms[1]);
    return 0;
}
