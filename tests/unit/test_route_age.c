// SPDX-License-Identifier: Apache-2.0
/* Deadlines, age and room; lists of what there is. */
#include "route_rig.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- age ---- */

static void test_deadline(void **state)
{
    (void)state;
    farm();
    credit("w/1", 0, 1);
    say_submit("c", "k", "a cat", 2, UINT64_C(1700000000000) + now_ms + 5000);
    (void)EXPECT("c", Accepted, ACCEPTED);
    watch("c", "0-1");
    now_ms += 4000;
    settle();
    assert_int_equal(count_sent("c", TYPE(DONE)), 0);
    now_ms += 2000;
    const Steerfarm__Done *d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->state, "expired");
    assert_int_equal(d->status->counts->expired, 2);
}

/* A deadline outlives restarts and holds for what retry --failed queues again. */
static void test_deadline_after_retry(void **state)
{
    (void)state;
    uint64_t deadline_ms = UINT64_C(1700000000000) + now_ms + 60000;
    farm();
    for (int i = 0; i < 2; i++) {
        say_submit("c", i ? "retried" : "other", "a cat", 1, deadline_ms);
        (void)EXPECT("c", Accepted, ACCEPTED);
        struct held_lease l = take_assign("w/1");
        Steerfarm__Fail f = STEERFARM__FAIL__INIT;
        Steerfarm__Lease lease = lease_message(&l);
        f.lease = &lease;
        f.code = f.text = text("RENDER_FAILED");
        say_worker("w/1", TYPE(FAIL), &f.base);
    }
    settle();
    credit("w/1", 0, 1);
    Steerfarm__Admin admin = STEERFARM__ADMIN__INIT;
    admin.kind = STEERFARM__ADMIN_KIND__ADMIN_RETRY_FAILED;
    admin.job = text("0-2");
    say_client("c", TYPE(ADMIN), &admin.base);
    (void)EXPECT("c", Reply, REPLY);
    restart();
    hello_client("c");
    assert_string_equal(ask_job("c", "0-2")->state, "queued");
    now_ms += 70000;
    settle();
    assert_string_equal(ask_job("c", "0-2")->state, "expired");
    assert_string_equal(ask_job("c", "0-1")->state, "failed");
}

/* Images that nobody fetches for --keep end as expired; so do tombstones, and ended jobs. */
static void test_age(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("k", 2, id);
    cancel("c", NULL, "never");
    (void)EXPECT("c", Reply, REPLY);
    now_ms += KEEP_MS / 2;
    hello_client("settler");
    hello_client("c");
    settle();
    assert_int_equal(ask_job("c", id)->counts->spooled, 2);
    now_ms += KEEP_MS / 2 + 120000;
    hello_client("settler");
    hello_client("c");
    settle();
    assert_string_equal(ask_job("c", id)->state, "expired");
    hello_worker("w/1");
    submit("c", "never", 1); /* its tombstone has gone */
    now_ms += KEEP_MS + 120000;
    hello_client("settler");
    hello_client("c");
    settle();
    forget_sent();
    watch("c", id);
    expect_refused("c", "UNKNOWN_JOB");
}

/* However many jobs have passed their age, they go in seconds, a batch at a time. */
static void test_age_of_many(void **state)
{
    (void)state;
    enum { JOBS = 25000 };
    struct store_options o;
    struct store_opened opened;
    struct store_completion c;
    struct steer_error err;
    struct store *s;
    struct store_batch *b = store_batch_new();
    route_close(route);
    forget_sent();
    store_options_default(&o);
    o.dir = dir;
    assert_int_equal(store_open(&s, &o, NULL, &opened, &err), 0);
    for (uint64_t id = 1; id <= JOBS; id++) {
        char key[32];
        snprintf(key, sizeof key, "k%d", (int)id);
        struct store_job j = {.id = id,
                              .tenant = "default",
                              .key = key,
                              .spec = "",
                              .accepted_ms = UINT64_C(1700000000000)};
        assert_int_equal(store_batch_job_put(b, &j), 0);
        assert_int_equal(
            store_batch_job_end(b, id, STORE_DONE, UINT64_C(1700000000000) + id, NULL, 0), 0);
    }
    store_submit(s, &b, NULL);
    struct pollfd p = {store_fd(s), POLLIN, 0};
    while (store_next(s, &c) != 1)
        (void)poll(&p, 1, 100);
    assert_int_equal(c.code, 0);
    store_completion_clear(&c);
    store_close(s);
    now_ms += KEEP_MS + 60000;
    open_route();
    hello_client("c");
    for (int i = 0; i < 6; i++) {
        settle();
        now_ms += 500;
    }
    forget_sent();
    watch("c", "0-rd8"); /* the last of them */
    expect_refused("c", "UNKNOWN_JOB");
}

/* A large job that nobody fetches fills the spool, and after --keep makes room for others. */
static void test_abandoned_job(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    route_close(route);
    forget_sent();
    spool_max = 77850; /* one image of 64x64 at the worst */
    open_route();
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "abandoned", 1000));
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "taking up the room of all others");
    expect_verdict("w/1", "kept");
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 1);
    now_ms += KEEP_MS + 120000;
    hello_client("settler");
    hello_client("c");
    hello_worker("w/1");
    settle();
    const Steerfarm__JobStatus *s = ask_job("c", id);
    assert_string_equal(s->state, "expired");
    assert_int_equal(s->counts->expired, 1000);
    submit("c", "next", 1);
    (void)take_assign("w/1");
}

/* A restart is no sign of interest; a FETCH is one, and outlives it. */
static void test_age_over_restarts(void **state)
{
    (void)state;
    char old[STEER_JOB_ID_BYTES_MAX], asked[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("old", 1, old);
    spool_images("asked", 1, asked);
    now_ms += KEEP_MS / 2;
    hello_client("settler");
    hello_client("c");
    fetch("c", asked, 1);
    (void)EXPECT("c", Result, RESULT);
    settle();
    restart();
    now_ms += KEEP_MS / 2 + KEEP_MS / 8;
    hello_client("settler");
    hello_client("c");
    settle();
    assert_string_equal(ask_job("c", old)->state, "expired");
    assert_int_equal(ask_job("c", asked)->counts->spooled, 1);
}

static void test_too_big_for_the_spool(void **state)
{
    (void)state;
    route_close(route);
    forget_sent();
    spool_max = 50000; /* less than an image of 64x64 may need */
    open_route();
    farm();
    say_submit("c", "k", "a cat", 1, 0);
    expect_refused("c", "BAD_SIZE");
}

/* A batch that does not fit the spool whole goes out as far as it fits. */
static void test_batch_and_small_spool(void **state)
{
    (void)state;
    route_close(route);
    forget_sent();
    spool_max = 200000; /* two images of 64x64 at the worst, not four */
    open_route();
    hello_client("c");
    hello_worker_with("w/1", 1, "hash1", NULL, 0);
    (void)EXPECT("w/1", Welcome, WELCOME);
    credit("w/1", 4, 4);
    submit("c", "k", 4);
    const Steerfarm__Assign *a = EXPECT("w/1", Assign, ASSIGN);
    assert_int_equal(a->n_images, 2);
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 1);
    struct held_lease l = {.epoch = a->images[0]->lease->epoch,
                           .lease = a->images[0]->lease->lease,
                           .index = a->images[0]->lease->index};
    snprintf(l.job, sizeof l.job, "%s", a->images[0]->lease->job);
    result("w/1", &l, "small"); /* takes less than was set aside: there is room again */
    expect_verdict("w/1", "kept");
    a = EXPECT("w/1", Assign, ASSIGN);
    assert_int_equal(a->n_images, 1);
}

/* Room given back by an image counts only together with the room that the image takes. */
static void test_spool_is_not_overcommitted(void **state)
{
    (void)state;
    static char big[70001];
    memset(big, 'x', sizeof big - 1);
    route_close(route);
    forget_sent();
    spool_max = 200000; /* two images of 64x64 at the worst */
    open_route();
    farm();
    submit("c", "k", 4);
    struct held_lease l = take_assign("w/1");
    (void)take_assign("w/1");
    result("w/1", &l, big);
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 2);
}

static void test_pages(void **state)
{
    (void)state;
    static char prompt[STEER_PROMPT_BYTES_MAX + 1];
    char before[STEER_JOB_ID_BYTES_MAX] = "";
    enum { JOBS = 300 };
    farm();
    credit("w/1", 0, 1);
    memset(prompt, 'x', sizeof prompt - 1);
    for (int i = 0; i < JOBS; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i);
        say_submit("c", key, prompt, 1, 0);
        if (i % 50 < 49) continue; /* fifty in one commit */
        for (int k = 0; k < 50; k++)
            (void)EXPECT("c", Accepted, ACCEPTED);
        forget_sent();
    }
    size_t seen = 0, pages = 0;
    for (int more = 1; more; pages++) {
        Steerfarm__Query q = STEERFARM__QUERY__INIT;
        q.kind = STEERFARM__QUERY_KIND__QUERY_JOBS;
        q.has_limit = 1;
        q.limit = 1000;
        q.before = *before ? before : NULL;
        say_client("c", TYPE(QUERY), &q.base);
        const Steerfarm__Reply *m = EXPECT("c", Reply, REPLY);
        assert_true(steerfarm__reply__get_packed_size(m) < STEER_BODY_BYTES_MAX);
        seen += m->n_jobs;
        more = m->more;
        assert_true(!more == !m->next);
        if (more) snprintf(before, sizeof before, "%s", m->next);
    }
    assert_int_equal(seen, JOBS);
    assert_int_equal(pages, 3);
}

/* What a newer release adds to a job is kept, as far as there is an end to it. */
static void test_large_job(void **state)
{
    (void)state;
    static uint8_t unknown[STEER_SPEC_BYTES_MAX];
    Steerfarm__Submit s = STEERFARM__SUBMIT__INIT;
    Steerfarm__Job job = STEERFARM__JOB__INIT;
    ProtobufCMessageUnknownField field = {100, PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED, sizeof unknown,
                                          unknown};
    farm();
    unknown[0] = 0xfd, unknown[1] = 0xff, unknown[2] = 0x03; /* 65533 bytes follow */
    s.key = text("k");
    s.job = &job;
    job.model = text("m");
    job.prompt = text("a cat");
    job.base.n_unknown_fields = 1;
    job.base.unknown_fields = &field;
    say_client("c", TYPE(SUBMIT), &s.base);
    expect_refused("c", "BAD_VALUE");
    field.len = 3;
    unknown[0] = 2;
    say_client("c", TYPE(SUBMIT), &s.base);
    (void)EXPECT("c", Accepted, ACCEPTED);
}

/* Ranges come in any order, overlap, and may name what is not there. */

static void test_jobs_by_state(void **state)
{
    (void)state;
    farm();
    credit("w/1", 1, 1);
    submit("c", "running", 1);
    (void)take_assign("w/1");
    submit("c", "waiting", 1);
    const char *const states[] = {"running", "queued"}, *const keys[] = {"running", "waiting"};
    for (int i = 0; i < 2; i++) {
        Steerfarm__Query q = STEERFARM__QUERY__INIT;
        q.kind = STEERFARM__QUERY_KIND__QUERY_JOBS;
        q.state = text(states[i]);
        say_client("c", TYPE(QUERY), &q.base);
        const Steerfarm__Reply *r = EXPECT("c", Reply, REPLY);
        assert_int_equal(r->n_jobs, 1);
        assert_string_equal(r->jobs[0]->key, keys[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_deadline),
        TEST(test_deadline_after_retry),
        TEST(test_age),
        TEST(test_age_of_many),
        TEST(test_abandoned_job),
        TEST(test_age_over_restarts),
        TEST(test_too_big_for_the_spool),
        TEST(test_batch_and_small_spool),
        TEST(test_spool_is_not_overcommitted),
        TEST(test_pages),
        TEST(test_large_job),
        TEST(test_jobs_by_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
