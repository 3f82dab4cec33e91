// SPDX-License-Identifier: Apache-2.0
/* The engine's promises to the link: each image of a batch ends in exactly one done, whatever is
 * wrong with it or its company; memory has a limit that fails jobs, not the worker. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine.h"

static struct engine *engine;
static int wake_fd;

static const char *model_path(void *data, const char *name)
{
    static char path[1200];
    (void)data;
    if (strcmp(name, "small") != 0 && strcmp(name, "tiny") != 0) return NULL;
    snprintf(path, sizeof path, "%s/tests/golden/data/%s/model", getenv("STEER_SOURCE_DIR"), name);
    return path;
}

static void start(size_t memory_bytes)
{
    struct steer_error err = {0};
    struct engine_options o = {.compute = {.backend = "cpu", .threads = 1},
                               .memory_bytes = memory_bytes,
                               .model_path = model_path};
    assert_true((wake_fd = eventfd(0, EFD_NONBLOCK)) >= 0);
    o.wake = wake_fd;
    if (engine_start(&engine, &o, &err)) fail_msg("%s", err.text);
}

static int stop(void **unused)
{
    (void)unused;
    engine_stop(engine);
    engine = NULL;
    close(wake_fd);
    return 0;
}

/* An ASSIGN of count images under leases 1, 2, .. (+ first), as it comes off the wire. */
static void submit(const Steerfarm__Job *jobs, int count, uint64_t first)
{
    static char id[] = "job";
    Steerfarm__Lease leases[STEER_BATCH_MAX];
    Steerfarm__Assignment images[STEER_BATCH_MAX], *list[STEER_BATCH_MAX];
    Steerfarm__Assign assign = STEERFARM__ASSIGN__INIT;
    for (int i = 0; i < count; i++) {
        leases[i] = (Steerfarm__Lease)STEERFARM__LEASE__INIT;
        leases[i].epoch = 1;
        leases[i].lease = first + (uint64_t)i;
        leases[i].job = id;
        images[i] = (Steerfarm__Assignment)STEERFARM__ASSIGNMENT__INIT;
        images[i].lease = leases + i;
        images[i].job = (Steerfarm__Job *)(uintptr_t)(jobs + i);
        list[i] = images + i;
    }
    assign.n_images = (size_t)count;
    assign.images = list;
    uint8_t head[WIRE_HEAD_BYTES], *body;
    size_t size;
    struct wire_message m;
    assert_int_equal(wire_pack(&assign.base, &body, &size), 0);
    wire_head(head, STEERFARM__MESSAGE_TYPE__ASSIGN);
    const struct wire_frame frames[] = {{head, sizeof head}, {body, size}};
    assert_int_equal(wire_parse(&m, frames, 2, NULL), 0);
    free(body);
    assert_int_equal(engine_submit(engine, &m), 0);
    assert_null(m.body);
    wire_free(&m);
}

static Steerfarm__Job job_of(const char *model, uint32_t side, uint64_t seed)
{
    static char prompt[] = "a cat";
    Steerfarm__Job job = STEERFARM__JOB__INIT;
    job.model = (char *)(uintptr_t)model;
    job.prompt = prompt;
    job.has_width = job.has_height = job.has_seed = job.has_steps = 1;
    job.width = job.height = side;
    job.seed = seed;
    job.steps = 2;
    static char recipe[] = "ddim";
    job.recipe = recipe;
    return job;
}

/* The next done within 20 s; the caller frees it. */
static struct done *next(void)
{
    for (int i = 0; i < 2000; i++) {
        struct done *d = engine_take(engine);
        if (d) return d;
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    fail_msg("no image in 20 s");
    return NULL;
}

static void expect(uint64_t lease, int code, const char *word)
{
    struct done *d = next();
    if (d->code != code) fail_msg("lease %d: %s", (int)d->lease, d->error.text);
    assert_int_equal(d->lease, lease);
    if (word && !strstr(d->error.text, word)) fail_msg("\"%s\" lacks %s", d->error.text, word);
    assert_int_equal(!code, d->image != NULL);
    done_free(d);
}

/* Nothing more comes, also after the engine has gone idle. */
static void expect_no_more(void)
{
    struct engine_status s = engine_status(engine);
    for (int i = 0; i < 1000 && (s.running || s.waiting); i++) {
        nanosleep(&(struct timespec){0, 10000000}, NULL);
        s = engine_status(engine);
    }
    assert_int_equal(s.running + s.waiting, 0);
    assert_null(engine_take(engine));
}

static void test_company_of_wrong_ones(void **unused)
{
    (void)unused;
    static char hash[] = "00", numerics[] = "another", path[] = "./lcm.json", lcm[] = "lcm";
    static char tiny[] = "tiny";
    Steerfarm__Job jobs[8];
    for (int i = 0; i < 8; i++)
        jobs[i] = job_of("small", 64, (uint64_t)i);
    jobs[1].model_hash = hash;
    jobs[2].numerics = numerics;
    jobs[3].recipe = path;
    jobs[4].has_precision =
        1; /* AUTO is f32 here; where bf16 is missing it is wrong all the same */
    jobs[4].precision = STEERFARM__PRECISION__BF16;
    jobs[5].recipe = lcm;
    jobs[6].model = tiny;
    start(0);
    submit(jobs, 8, 1);
    expect(2, STEER_UNKNOWN_MODEL, "00");
    expect(3, STEER_UNSUPPORTED, "another");
    expect(4, STEER_UNKNOWN_RECIPE, "lcm.json");
    for (uint64_t lease = 5; lease < 8; lease++)
        expect(lease, STEER_INTERNAL, "share");
    expect(1, 0, NULL);
    expect(8, 0, NULL);
    expect_no_more();
}

/* Texts of other lengths go in passes of their own, and nobody's bytes tell; texts that cannot be
 * read fail alone. */
static void test_texts(void **unused)
{
    (void)unused;
    static char a_long[] = "the red cat on the blue dog, a cat on the red blue dog the cat",
                a_negative[] = "a dog (blue:1.2) BREAK the (cat)", torn[] = "[cat|dog]",
                endless[] = "a BREAK BREAK BREAK BREAK BREAK BREAK BREAK BREAK cat";
    static const uint32_t together[] = {2, 1, 2, 1, 0, 0};
    struct done *in_company[6];
    Steerfarm__Job jobs[6];
    for (int i = 0; i < 6; i++) {
        jobs[i] = job_of("small", 64, (uint64_t)i);
        jobs[i].has_long_prompt = jobs[i].has_prompt_syntax = i > 0;
        jobs[i].long_prompt = STEERFARM__LONG_PROMPT__CHUNK;
        jobs[i].prompt_syntax = STEERFARM__PROMPT_SYNTAX__A1111;
    }
    jobs[1].prompt = jobs[3].prompt = a_long;
    jobs[3].negative_prompt = a_negative;
    jobs[4].prompt = torn;
    jobs[5].negative_prompt = endless;
    start(0);
    submit(jobs, 6, 1);
    expect(5, STEER_BAD_TEXT, "the positive prompt: \"[cat|dog]\"");
    expect(6, STEER_BAD_TEXT, "the negative prompt: it needs more than 8 chunks");
    for (int i = 0; i < 4; i++) {
        in_company[i] = next();
        assert_int_equal(in_company[i]->lease, i + 1);
        assert_int_equal(in_company[i]->header.batch, together[i]);
    }
    for (int i = 0; i < 4; i++) {
        submit(jobs + i, 1, 10);
        struct done *d = next();
        if (d->code) fail_msg("%s", d->error.text);
        assert_int_equal(d->image_bytes, in_company[i]->image_bytes);
        assert_memory_equal(d->image, in_company[i]->image, d->image_bytes);
        done_free(d);
        done_free(in_company[i]);
    }
    expect_no_more();
}

static void test_unknown_model(void **unused)
{
    (void)unused;
    Steerfarm__Job jobs[] = {job_of("nowhere", 64, 1), job_of("nowhere", 64, 2)};
    start(0);
    submit(jobs, 2, 1);
    expect(1, STEER_UNKNOWN_MODEL, "nowhere");
    expect(2, STEER_UNKNOWN_MODEL, "nowhere");
    expect_no_more();
}

static void test_drain(void **unused)
{
    (void)unused;
    Steerfarm__Job jobs[] = {job_of("small", 64, 1), job_of("small", 64, 2)};
    start(0);
    submit(jobs, 1, 1);
    expect(1, 0, NULL);
    engine_drain(engine);
    submit(jobs, 2, 2); /* it crossed the DRAIN */
    expect(2, STEER_CANCELLED, "draining");
    expect(3, STEER_CANCELLED, "draining");
    expect_no_more();
}

static void test_revoked(void **unused)
{
    (void)unused;
    Steerfarm__Job jobs[] = {job_of("small", 256, 1), job_of("small", 64, 1),
                             job_of("small", 64, 2)};
    start(0);
    submit(jobs, 1, 1);
    submit(jobs + 1, 2, 2);
    engine_revoke(engine, 1, 2); /* waits behind the first */
    expect(1, 0, NULL);
    expect(3, 0, NULL);
    expect_no_more();
}

/* Idle for a while, then at work: never silent for longer than it has worked. */
static void test_signs_of_life(void **unused)
{
    (void)unused;
    struct timespec t;
    Steerfarm__Job job = job_of("small", 64, 1);
    start(0);
    nanosleep(&(struct timespec){0, 300000000}, NULL);
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t begun = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
    submit(&job, 1, 1);
    assert_true(engine_status(engine).ticked_ms + 1 >= begun);
    expect(1, 0, NULL);
}

/* A batch that does not fit is rendered image by image; what does not fit alone fails with the
 * numbers; what does is rendered afterwards. The bytes never change. */
static void test_memory(void **unused)
{
    (void)unused;
    static struct done *wanted[4];
    Steerfarm__Job jobs[4], large = job_of("small", 1024, 1);
    for (int i = 0; i < 4; i++)
        jobs[i] = job_of("small", 64, (uint64_t)i);
    start(0);
    submit(jobs, 4, 1);
    for (int i = 0; i < 4; i++)
        wanted[i] = next();
    stop(NULL);
    int least = 0;
    for (size_t mega = 1; mega <= 24 && !least; mega++) { /* the first that one image fits into */
        start(mega << 20);
        submit(jobs, 1, 1);
        struct done *d = next();
        if (!d->code) least = (int)mega;
        if (!least) { /* refused when it is loaded, with the numbers */
            char limit[64];
            snprintf(limit, sizeof limit, "the limit is %.1f MB (--memory)",
                     1e-6 * (double)(mega << 20));
            assert_int_equal(d->code, STEER_NO_MEMORY);
            if (!strstr(d->error.text, limit)) fail_msg("\"%s\" lacks %s", d->error.text, limit);
        }
        done_free(d);
        stop(NULL);
    }
    assert_true(least > 1);
    start((size_t)least << 20);
    submit(&large, 1, 9);
    expect(9, STEER_NO_MEMORY, "MB");
    submit(jobs, 4, 1);
    for (int i = 0; i < 4; i++) {
        struct done *d = next();
        if (d->code) fail_msg("%s", d->error.text);
        assert_int_equal(d->lease, wanted[i]->lease);
        assert_int_equal(d->image_bytes, wanted[i]->image_bytes);
        assert_memory_equal(d->image, wanted[i]->image, d->image_bytes);
        done_free(d);
        done_free(wanted[i]);
    }
    /* Another model takes the first one's place, which is told. */
    Steerfarm__Job other = job_of("tiny", 64, 1);
    submit(&other, 1, 5);
    expect(5, 0, NULL);
    assert_true(engine_has(engine, "tiny"));
    assert_false(engine_has(engine, "small"));
    expect_no_more();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_company_of_wrong_ones, stop),
        cmocka_unit_test_teardown(test_texts, stop),
        cmocka_unit_test_teardown(test_unknown_model, stop),
        cmocka_unit_test_teardown(test_drain, stop),
        cmocka_unit_test_teardown(test_revoked, stop),
        cmocka_unit_test_teardown(test_signs_of_life, stop),
        cmocka_unit_test_teardown(test_memory, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
