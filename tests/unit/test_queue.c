// SPDX-License-Identifier: Apache-2.0
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "deadline.h"
#include "queue.h"
#include "sched.h"
#include "wire.h"

static uint64_t random_state = 7;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static struct job *job_add_guided(struct queue *q, uint64_t id, const char *model, uint32_t images,
                                  int32_t priority, uint32_t steps, Steerfarm__Guidance *guidance)
{
    Steerfarm__Job spec = STEERFARM__JOB__INIT;
    char key[32];
    uint8_t hash[QUEUE_HASH_BYTES] = {0}, *data;
    size_t size;
    spec.guidance = guidance;
    spec.model = (char *)(uintptr_t)model;
    spec.prompt = (char *)(uintptr_t) "x";
    spec.has_images = spec.has_priority = spec.has_steps = spec.has_width = spec.has_height = 1;
    spec.images = images;
    spec.priority = priority;
    spec.steps = steps;
    spec.width = spec.height = 64;
    snprintf(key, sizeof key, "key%llu", (unsigned long long)id);
    assert_int_equal(wire_pack(&spec.base, &data, &size), 0);
    struct job *j = queue_add(q, id, key, hash, data, size, 0);
    free(data);
    assert_non_null(j);
    j->committed = 1;
    queue_move(q, j, 0, IMAGE_QUEUED);
    return j;
}

static struct job *job_add(struct queue *q, uint64_t id, const char *model, uint32_t images,
                           int32_t priority, uint32_t steps)
{
    return job_add_guided(q, id, model, images, priority, steps, NULL);
}

/* ---- states ---- */

static void test_states(void **unused)
{
    (void)unused;
    enum { IMAGES = 10007 };
    static uint8_t model[IMAGES];
    struct states s, back;
    uint8_t chunk[STATES_CHUNK / 2];
    assert_int_equal(states_init(&s, IMAGES), 0);
    for (int i = 0; i < 50000; i++) {
        uint32_t at = random_below(IMAGES);
        model[at] = (uint8_t)random_below(IMAGE_STATES);
        states_set(&s, at, (enum image_state)model[at]);
        if (i % 1000) continue;
        enum image_state wanted = (enum image_state)random_below(IMAGE_STATES);
        uint32_t from = random_below(IMAGES), slow = from;
        while (slow < IMAGES && model[slow] != wanted)
            slow++;
        assert_int_equal(states_find(&s, from, wanted), slow);
        uint32_t end = from + random_below(IMAGES - from + 1);
        assert_int_equal(states_find_to(&s, from, end, wanted), slow < end ? slow : end);
        for (slow = from; slow < end && model[slow] >= IMAGE_ACKED;)
            slow++;
        assert_int_equal(states_find_open(&s, from, end), slow);
    }
    uint32_t counts[IMAGE_STATES] = {0};
    for (int i = 0; i < IMAGES; i++)
        counts[model[i]]++;
    assert_memory_equal(counts, s.counts, sizeof counts);
    /* What is stored comes back: ends as they are, all else queued. */
    assert_int_equal(states_init(&back, IMAGES), 0);
    for (uint32_t c = 0; c * STATES_CHUNK < IMAGES; c++) {
        size_t size = states_pack(&s, c, chunk);
        assert_int_equal(states_unpack(&back, c, chunk, size), 0);
        assert_int_not_equal(states_unpack(&back, c, chunk, size + 1), 0);
    }
    for (uint32_t i = 0; i < IMAGES; i++)
        assert_int_equal(states_get(&back, i), model[i] >= IMAGE_ACKED ? model[i] : IMAGE_QUEUED);
    states_free(&s);
    states_free(&back);
}

/* ---- turns ---- */

static int takes_all(void *data, struct lane *l)
{
    return !data || strcmp(data, l->model) == 0;
}

static int take(struct queue *q, const char *model, uint64_t now_ms, struct taken *ret, int room)
{
    struct taker t = {.takes = takes_all,
                      .data = (void *)(uintptr_t)model,
                      .images_max = 16,
                      .bytes_max = UINT64_MAX};
    return queue_take(q, &t, now_ms, ret, room);
}

/* What is recorded into a plan parts batches, the numbers do not. */
static void test_guidance_parts_batches(void **unused)
{
    (void)unused;
    struct queue *q = queue_new(7);
    struct job *jobs[4];
    Steerfarm__Guidance g = STEERFARM__GUIDANCE__INIT;
    g.has_method = g.has_alpha = g.has_nasa_variant = 1;
    g.method = STEERFARM__METHOD__NASA;
    for (int i = 0; i < 4; i++) {
        g.alpha = i;
        g.nasa_variant = i / 2 ? STEERFARM__NASA_VARIANT__JOINT : STEERFARM__NASA_VARIANT__TEXT;
        jobs[i] = job_add_guided(q, (uint64_t)i + 1, "a", 1, 0, 1, &g);
    }
    assert_true(jobs[0]->batch == jobs[1]->batch && jobs[2]->batch == jobs[3]->batch);
    assert_true(jobs[0]->batch != jobs[2]->batch);
    queue_free(q);
}

static void test_turns(void **unused)
{
    (void)unused;
    struct queue *q = queue_new(7);
    struct taken taken[16];
    struct job *big = job_add(q, 1, "a", 1000000, 0, 1);
    struct job *small = job_add(q, 2, "a", 2, 0, 1);
    struct job *urgent = job_add(q, 3, "a", 1, 5, 9);
    struct job *other = job_add(q, 4, "b", 1, 0, 1);
    assert_int_equal(take(q, NULL, 0, taken, 1), 1);
    assert_ptr_equal(taken[0].job, urgent);
    /* A million-image job starves nobody: its neighbours have their turn. */
    assert_int_equal(take(q, "a", 0, taken, 4), 4);
    int from_small = 0;
    for (int i = 0; i < 4; i++)
        from_small += taken[i].job == small;
    assert_int_equal(from_small, 2);
    assert_int_equal(take(q, "b", 0, taken, 4), 1);
    assert_ptr_equal(taken[0].job, other);
    assert_int_equal(take(q, "b", 0, taken, 4), 0);
    /* Different steps do not share a pass. */
    job_add(q, 5, "a", 8, 0, 30);
    int count = take(q, "a", 0, taken, 8);
    for (int i = 1; i < count; i++)
        assert_int_equal(taken[i].job->batch, taken[0].job->batch);
    /* A back-off is waited for; a lost image goes alone. */
    struct trouble *t = trouble_get(&small->troubles, 0);
    t->not_before_ms = 500;
    t->single = 1;
    queue_move(q, big, 0, IMAGE_QUEUED);
    queue_move(q, small, 0, IMAGE_QUEUED);
    for (int i = 0; i < 20; i++) {
        count = take(q, "a", 400, taken, 4);
        for (int k = 0; k < count; k++)
            assert_ptr_not_equal(taken[k].job, small);
    }
    for (int i = 0, seen = 0; !seen; i++) {
        assert_true(i < 20);
        count = take(q, "a", 600, taken, 4);
        for (int k = 0; k < count; k++)
            if (taken[k].job == small) {
                seen = 1;
                assert_int_equal(count, 1);
            }
    }
    queue_free(q);
}

/* Models of one priority take turns, whatever one of them has queued; a higher one goes first. */
static void test_lanes_take_turns(void **unused)
{
    (void)unused;
    struct queue *q = queue_new(7);
    struct taken taken[4];
    struct job *jobs[3] = {job_add(q, 1, "a", 1000000, 0, 1), job_add(q, 2, "b", 1000, 0, 1),
                           job_add(q, 3, "c", 1000, 0, 1)};
    struct job *low = job_add(q, 4, "d", 1000, -1, 1);
    int from[3] = {0};
    for (int i = 0; i < 30; i++) {
        assert_int_equal(take(q, NULL, 0, taken, 1), 1);
        assert_ptr_not_equal(taken[0].job, low);
        for (int k = 0; k < 3; k++)
            from[k] += taken[0].job == jobs[k];
    }
    for (int k = 0; k < 3; k++)
        assert_int_equal(from[k], 10);
    assert_int_equal(take(q, "a", 0, taken, 4), 4); /* a batch is one turn */
    assert_int_equal(take(q, NULL, 0, taken, 1), 1);
    assert_ptr_not_equal(taken[0].job, jobs[0]);
    queue_free(q);
}

static void test_ids(void **unused)
{
    (void)unused;
    char text[QUEUE_ID_BYTES];
    for (int i = 0; i < 1000; i++) {
        uint64_t id =
            ((uint64_t)random_below(1u << 30) << 28 | random_below(1u << 28)) >> random_below(50);
        job_id_write(text, id);
        assert_int_equal(job_id_read(text), id);
    }
    const char *const bad[] = {"",  "0",   "0-", "1-5", "0-i", "0-U", "0-zzzzzzzzzzzzzzzzzz",
                               "x", "0-5 "};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(job_id_read(bad[i]), 0);
}

static size_t allocated(void)
{
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

/* What the queue takes of the heap: a job of a million images with every second one done, and a
 * queued job of one. (Sanitizers' heaps say 0 to both.) */
static void test_memory(void **unused)
{
    (void)unused;
    struct queue *q = queue_new(1);
    assert_non_null(q);
    (void)job_add(q, 1, "m", 1, 0, 1);
    size_t before = allocated();
    struct job *j = job_add(q, 2, "m", 1000000, 0, 1);
    for (uint32_t i = 0; i < 1000000; i += 2)
        queue_move(q, j, i, IMAGE_ACKED);
    size_t large = allocated() - before;
    assert_int_equal(j->states.counts[IMAGE_ACKED], 500000);
    before = allocated();
    for (uint64_t id = 3; id < 10003; id++)
        (void)job_add(q, id, "m", 1, 0, 1);
    size_t small = (allocated() - before) / 10000;
    print_message("a million images, half done: %zu bytes; a queued job: %zu\n", large, small);
    assert_true(large <= 1 << 20);
    assert_true(small <= 1024);
    queue_free(q);
}

/* ---- deadlines ---- */

static void test_deadlines(void **unused)
{
    (void)unused;
    enum { JOBS = 2000 };
    static struct job *jobs[JOBS];
    struct deadlines d = {0};
    uint32_t left = JOBS;
    for (int i = 0; i < JOBS; i++) {
        assert_non_null(jobs[i] = calloc(1, sizeof *jobs[i]));
        jobs[i]->id = (uint64_t)i;
        jobs[i]->deadline_ms = 1 + random_below(500);
        assert_int_equal(deadline_watch(&d, jobs[i]), 0);
        assert_int_equal(deadline_watch(&d, jobs[i]), 0); /* twice is once */
    }
    for (int i = 0; i < JOBS; i += 3, left--)
        deadline_drop(&d, jobs[i]);
    deadline_drop(&d, jobs[0]);
    for (uint64_t now = 0; now <= 500; now++)
        for (struct job *j; (j = deadline_passed(&d, now)); left--) {
            assert_int_equal(j->deadline_ms, now);
            assert_int_not_equal(j->id % 3, 0);
        }
    assert_int_equal(left, 0);
    for (int i = 0; i < JOBS; i++)
        free(jobs[i]);
    free(d.jobs);
}

/* ---- trouble ---- */

/* As many as images, found at once: a list would take hours here. */
static void test_trouble(void **unused)
{
    (void)unused;
    enum { IMAGES = 300000 };
    struct troubles all = {0};
    assert_null(trouble_find(&all, 5));
    for (uint32_t i = 0; i < IMAGES; i++)
        trouble_get(&all, i * 7)->attempts = i;
    assert_int_equal(all.count, IMAGES);
    for (uint32_t i = 0; i < IMAGES; i++)
        assert_int_equal(trouble_get(&all, i * 7)->attempts, i);
    assert_null(trouble_find(&all, 1));
    for (uint32_t i = 0; i < IMAGES; i += 2)
        trouble_drop(&all, i * 7);
    assert_int_equal(all.count, IMAGES / 2);
    assert_null(trouble_find(&all, 0));
    assert_non_null(trouble_find(&all, 7));
    troubles_free(&all);
    assert_null(trouble_find(&all, 7));
}

/* ---- workers ---- */

static struct worker *worker_add(struct sched *s, int number);

/* A worker without the model takes what the one that has it does not, after a while, whatever that
 * one takes meanwhile. */
static void test_cold_worker(void **unused)
{
    (void)unused;
    struct sched *s = sched_new(1);
    struct queue *q = queue_new(7);
    struct worker *warm = worker_add(s, 2), *cold = worker_add(s, 4);
    struct taken taken[4];
    struct job *j = job_add(q, 1, "a", 100, 0, 1);
    warm->models[0].loaded = 1;
    struct trouble *t = trouble_get(&j->troubles, 0); /* failed by the warm one */
    strcpy(t->worker, warm->id);
    int count = 0;
    for (uint64_t now = 0; now <= 4000 && !count; now += 100) {
        count = sched_take(s, q, cold, now, taken, 1);
        if (count) assert_int_equal(taken[0].index, 0);
        if (count) assert_true(now >= 2000);
        struct taken other[1];
        assert_int_equal(sched_take(s, q, warm, now, other, 1), 1);
        assert_int_not_equal(other[0].index, 0);
    }
    assert_int_equal(count, 1);
    sched_free(s);
    queue_free(q);
}

/* Models that a worker has had to throw out do not count as loaded. */
static void test_loaded(void **unused)
{
    (void)unused;
    struct sched *s = sched_new(1);
    struct queue *q = queue_new(7);
    struct worker *w = worker_add(s, 1); /* offers a and b */
    w->device_memory = 10;
    w->models[0].memory_bytes = w->models[1].memory_bytes = 6;
    assert_non_null(sched_lease(s, w, 0, 0, job_add(q, 1, "a", 1, 0, 1), 0, 0, 1));
    assert_true(w->models[0].loaded);
    assert_non_null(sched_lease(s, w, 0, 0, job_add(q, 2, "b", 1, 0, 1), 0, 0, 1));
    assert_true(!w->models[0].loaded && w->models[1].loaded);
    sched_free(s);
    queue_free(q);
}

/* An image larger than the worker's byte credit goes when it holds nothing else. */
static void test_large_image(void **unused)
{
    (void)unused;
    struct sched *s = sched_new(1);
    struct queue *q = queue_new(7);
    struct worker *w = worker_add(s, 2);
    struct taken taken[4];
    struct job *j = job_add(q, 1, "a", 4, 0, 1);
    w->credit_bytes = 1000;
    assert_true(j->image_bytes > w->credit_bytes);
    assert_int_equal(sched_take(s, q, w, 0, taken, 4), 1);
    assert_non_null(sched_lease(s, w, 0, 0, j, taken[0].index, 0, 1));
    assert_int_equal(sched_take(s, q, w, 0, taken, 4), 0);
    sched_free(s);
    queue_free(q);
}

static void test_many_lanes(void **unused)
{
    (void)unused;
    struct queue *q = queue_new(7);
    Steerfarm__Job spec = STEERFARM__JOB__INIT;
    char model[] = "a";
    spec.model = model;
    for (int i = 0; i < 1024; i++) {
        assert_false(queue_lanes_full(q, &spec));
        job_add(q, (uint64_t)i + 1, "a", 1, i, 1);
    }
    assert_false(queue_lanes_full(q, &spec)); /* there is one for it */
    spec.priority = 5000;
    assert_true(queue_lanes_full(q, &spec));
    queue_free(q);
}

static void test_blame(void **unused)
{
    (void)unused;
    struct sched *s = sched_new(1);
    struct worker *w = worker_add(s, 1);
    for (int i = 0; i < 10; i++)
        assert_int_equal(sched_blame(w, 7), 0); /* one job, whatever its images */
    assert_int_equal(sched_blame(w, 8), 0);
    for (int i = 0; i < 100; i++)
        sched_praise(w);
    assert_int_equal(sched_blame(w, 9), 0); /* long ago */
    assert_int_equal(sched_blame(w, 10), 0);
    for (int i = 0; i < 50; i++)
        sched_praise(w);
    assert_int_equal(sched_blame(w, 11), 1);
    assert_int_equal(w->state, WORKER_QUARANTINED);
    sched_free(s);
}

/* ---- the core under a random farm ---- */

static struct worker *worker_add(struct sched *s, int number)
{
    char name[16], a[] = "a", b[] = "b", hash[] = "h";
    Steerfarm__Hello h = STEERFARM__HELLO__INIT;
    Steerfarm__Model models[2] = {STEERFARM__MODEL__INIT, STEERFARM__MODEL__INIT}, *list[2];
    Steerfarm__Device device = STEERFARM__DEVICE__INIT;
    snprintf(name, sizeof name, "w%d", number);
    models[0].name = a, models[1].name = b, models[0].hash = models[1].hash = hash;
    list[0] = models, list[1] = models + 1;
    h.worker = name;
    h.models = list;
    h.n_models = 1 + (size_t)(number % 2);
    h.device = &device;
    struct worker *w = sched_hello(s, (const uint8_t *)name, strlen(name), &h, 0);
    assert_non_null(w);
    w->credit_images = 8;
    w->credit_bytes = UINT64_MAX;
    return w;
}

/* Workers come, render, fail and die at random; every image ends exactly once. */
static void test_simulation(void **unused)
{
    (void)unused;
    enum { JOBS = 40, WORKERS = 4 };
    for (int seed = 1; seed <= 20; seed++) {
        random_state = (uint64_t)seed;
        struct queue *q = queue_new(7);
        struct sched *s = sched_new(1);
        struct job *jobs[JOBS];
        uint32_t images = 0, ended = 0;
        for (int i = 0; i < JOBS; i++) {
            jobs[i] = job_add(q, (uint64_t)i + 1, random_below(2) ? "a" : "b", 1 + random_below(40),
                              (int32_t)random_below(3), 1 + random_below(2));
            images += jobs[i]->states.images;
        }
        for (int i = 0; i < WORKERS; i++)
            worker_add(s, i);
        for (uint64_t now = 0; ended < images; now += 10) {
            assert_true(now < 10000000);
            for (struct worker *w = sched_first(s); w; w = w->next) {
                struct taken taken[8];
                int count = sched_take(s, q, w, now, taken, 8);
                for (int i = 0; i < count; i++) {
                    assert_int_equal(states_get(&taken[i].job->states, taken[i].index),
                                     IMAGE_LEASED);
                    assert_null(sched_lease_of(s, taken[i].job->id, taken[i].index));
                    assert_non_null(sched_lease(s, w, 0, 0, taken[i].job, taken[i].index, now, 1));
                }
                assert_true(w->leased <= w->credit_images);
            }
            struct worker *w = sched_first(s);
            for (uint32_t skip = random_below(WORKERS); skip; skip--)
                w = w->next;
            int dies = !random_below(30);
            while (w->leases && (dies || random_below(3))) {
                struct lease *l = w->leases;
                struct job *j = queue_find(q, l->job);
                uint32_t index = l->index;
                sched_release(s, l);
                int done = !dies && random_below(10);
                queue_move(q, j, index, done ? IMAGE_ACKED : IMAGE_QUEUED);
                ended += done;
            }
        }
        assert_int_equal(queue_images(q)[IMAGE_ACKED], images);
        assert_int_equal(queue_images(q)[IMAGE_QUEUED] + queue_images(q)[IMAGE_LEASED], 0);
        for (int i = 0; i < JOBS; i++) {
            assert_true(job_over(jobs[i]));
            assert_int_equal(jobs[i]->states.counts[IMAGE_ACKED], jobs[i]->states.images);
        }
        sched_free(s);
        queue_free(q);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_states),      cmocka_unit_test(test_guidance_parts_batches),
        cmocka_unit_test(test_turns),       cmocka_unit_test(test_lanes_take_turns),
        cmocka_unit_test(test_ids),         cmocka_unit_test(test_memory),
        cmocka_unit_test(test_deadlines),   cmocka_unit_test(test_trouble),
        cmocka_unit_test(test_cold_worker), cmocka_unit_test(test_loaded),
        cmocka_unit_test(test_large_image), cmocka_unit_test(test_many_lanes),
        cmocka_unit_test(test_blame),       cmocka_unit_test(test_simulation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
