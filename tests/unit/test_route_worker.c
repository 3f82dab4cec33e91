// SPDX-License-Identifier: Apache-2.0
/* Leases, verdicts and retries: what the route makes of workers, and of its own restarts. */
#include "route_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- restarts, leases, verdicts ---- */

static void test_adopted_lease(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease l = take_assign("w/1");
    restart();
    hello_client("c");
    hello_worker_with("w/1", 1, "hash1", &l, 1);
    const Steerfarm__Welcome *w = EXPECT("w/1", Welcome, WELCOME);
    assert_true(w->epoch > l.epoch);
    credit("w/1", 4, 1);
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 0); /* it has it already */
    result("w/1", &l, "adopted");
    expect_verdict("w/1", "kept");
    result("w/1", &l, "adopted");
    expect_verdict("w/1", "duplicate");
}

static void test_spooled_survives(void **state)
{
    (void)state;
    struct sent_message *m;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "spooled");
    expect_verdict("w/1", "kept");
    restart();
    hello_client("c");
    fetch("c", id, 1);
    (void)expect_message("c", TYPE(RESULT), &m);
    assert_memory_equal(m->payload, "spooled", 7);
    ack("c", id, 0);
    (void)EXPECT("c", Done, DONE);
}

/* A lease that runs out goes to another; the first valid RESULT wins, whoever sends it. */
static void test_first_result_wins(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease a = take_assign("w/1");
    hello_worker("v/1");
    now_ms += 10001;
    Steerfarm__Pong pong = STEERFARM__PONG__INIT;
    say_worker("w/1", TYPE(PONG), &pong.base); /* both are alive, one engine hangs */
    say_worker("v/1", TYPE(PONG), &pong.base);
    turn();
    now_ms += 2000; /* the back-off */
    struct held_lease b = take_assign("v/1");
    assert_true(a.lease != b.lease);
    result("w/1", &a, "first");
    expect_verdict("w/1", "kept");
    assert_true(count_sent("v/1", TYPE(REVOKE)) == 1);
    result("v/1", &b, "second");
    expect_verdict("v/1", "duplicate");
}

/* A worker whose lease ran out gets nothing new before its engine shows life. */
static void test_stalled_worker(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease a = take_assign("w/1");
    Steerfarm__Pong pong = STEERFARM__PONG__INIT;
    for (int i = 0; i < 10; i++) {
        now_ms += 5000;
        say_worker("w/1", TYPE(PONG), &pong.base);
        credit("w/1", 4, 1);
        settle();
    }
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 1);
    renew("w/1", &a, 1); /* life: what it lost is taken off it, and it may work again */
    const Steerfarm__Revoke *m = EXPECT("w/1", Revoke, REVOKE);
    assert_int_equal(m->leases[0]->lease, a.lease);
    struct held_lease b = take_assign("w/1");
    result("w/1", &b, "x");
    expect_verdict("w/1", "kept");
}

/* A RESULT under the lease of another image, or of another model's hash, leaves no image behind. */
static void test_odd_results(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 2));
    struct held_lease a = take_assign("w/1"), b = take_assign("w/1");
    say_result("w/1", &a, id, b.index, "hash1", "x", wire_crc32("x", 1));
    expect_refused("w/1", "BAD_FRAME");
    say_result("w/1", &a, id, a.index, "other", "x", wire_crc32("x", 1));
    expect_verdict("w/1", "unknown");
    settle();
    now_ms += 20000;
    hello_worker("w/1");
    forget_sent();
    /* Both come again and can be finished. */
    for (int i = 0; i < 2; i++) {
        struct held_lease l = take_assign("w/1");
        result("w/1", &l, "good");
        expect_verdict("w/1", "kept");
    }
    assert_int_equal(ask_job("c", id)->counts->spooled, 2);
}

/* A RESULT on its way to the store may be repeated and its lease renewed: only its VERDICT says
 * that the worker may forget the image. */
static void test_renew_while_stored(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "x");
    renew("w/1", &l, 1);
    result("w/1", &l, "x");
    expect_verdict("w/1", "kept");
    settle();
    assert_int_equal(count_sent("w/1", TYPE(VERDICT)), 1);
    assert_int_equal(count_sent("w/1", TYPE(REVOKE)), 0);
    renew("w/1", &l, 1); /* now it is over */
    assert_int_equal(EXPECT("w/1", Revoke, REVOKE)->leases[0]->lease, l.lease);
}

static void test_renew_of_many(void **state)
{
    (void)state;
    static Steerfarm__LeaseProgress p[STEER_LEASES_MAX + 1], *list[STEER_LEASES_MAX + 1];
    Steerfarm__Renew m = STEERFARM__RENEW__INIT;
    farm();
    for (size_t i = 0; i <= STEER_LEASES_MAX; i++) {
        p[i] = (Steerfarm__LeaseProgress)STEERFARM__LEASE_PROGRESS__INIT;
        p[i].epoch = 99;
        p[i].lease = i;
        list[i] = p + i;
    }
    m.leases = list;
    m.n_leases = STEER_LEASES_MAX + 1;
    say_worker("w/1", TYPE(RENEW), &m.base);
    expect_refused("w/1", "BAD_VALUE");
    m.n_leases = 3;
    say_worker("w/1", TYPE(RENEW), &m.base);
    assert_int_equal(EXPECT("w/1", Revoke, REVOKE)->n_leases, 3); /* in one message */
}

/* A RESULT has to say what it was made with, and a pinned numerics class is looked at. */
static void test_unsaid_results(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease l = take_assign("w/1");
    say_result("w/1", &l, l.job, l.index, NULL, "x", wire_crc32("x", 1));
    expect_verdict("w/1", "unknown");
    settle();
    Steerfarm__Submit s = STEERFARM__SUBMIT__INIT;
    Steerfarm__Job job = STEERFARM__JOB__INIT;
    s.key = text("pinned");
    s.job = &job;
    job.model = text("m");
    job.prompt = text("a cat");
    job.numerics = text("cpu-x");
    job.has_priority = 1;
    job.priority = 1;
    say_client("c", TYPE(SUBMIT), &s.base);
    (void)EXPECT("c", Accepted, ACCEPTED);
    worker_numerics = "cpu-x";
    hello_worker("v/1");
    l = take_assign("v/1");
    result("v/1", &l, "x"); /* without its class */
    expect_verdict("v/1", "unknown");
}

static void test_damaged_results(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    for (int attempt = 0; attempt < STEER_ATTEMPTS_MAX; attempt++) {
        struct held_lease l = take_assign("w/1");
        for (int i = 0; i < 2; i++) {
            say_result("w/1", &l, l.job, l.index, "hash1", "x", 12345);
            expect_verdict("w/1", "retry");
        }
        say_result("w/1", &l, l.job, l.index, "hash1", "x", 12345); /* not for ever */
        expect_verdict("w/1", "unknown");
        now_ms += 60000;
        hello_worker("w/1");
    }
    settle();
    assert_string_equal(ask_job("c", id)->state, "failed");
}

/* A hash as long as limits.h allows is compared whole; a longer one is refused, not cut. */
static void test_long_hash(void **state)
{
    (void)state;
    char hash[STEER_NAME_BYTES_MAX + 2] = {0};
    memset(hash, 'a', STEER_NAME_BYTES_MAX);
    hello_client("c");
    hello_worker_with("w/1", 1, hash, NULL, 0);
    (void)EXPECT("w/1", Welcome, WELCOME);
    credit("w/1", 1, 1);
    submit("c", "k", 1);
    assert_string_equal(EXPECT("w/1", Assign, ASSIGN)->images[0]->job->model_hash, hash);
    hash[STEER_NAME_BYTES_MAX] = 'a';
    hello_worker_with("v/1", 1, hash, NULL, 0);
    expect_refused("v/1", "BAD_VALUE");
}

/* ---- retries ---- */

static void test_attempts(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    for (int attempt = 1; attempt <= 3; attempt++) {
        struct held_lease l = take_assign("w/1");
        fail_lease("w/1", &l, "RENDER_FAILED");
        settle();
        assert_int_equal(ask_job("c", id)->counts->queued, 1);
        now_ms += 9000;
        hello_worker("w/1");
    }
    settle();
    restart(); /* attempts are remembered; the restart itself is none */
    farm();
    for (int attempt = 4; attempt <= 5; attempt++) {
        struct held_lease l = take_assign("w/1");
        fail_lease("w/1", &l, "RENDER_FAILED");
        settle();
        now_ms += 9000;
        hello_worker("w/1");
    }
    const Steerfarm__JobStatus *s = ask_job("c", id);
    assert_string_equal(s->state, "failed");
    assert_int_equal(s->n_failures, 1);
    assert_int_equal(s->failures[0]->attempts, 5);

    /* retry --failed begins anew. */
    Steerfarm__Admin admin = STEERFARM__ADMIN__INIT;
    admin.kind = STEERFARM__ADMIN_KIND__ADMIN_RETRY_FAILED;
    admin.job = id;
    say_client("c", TYPE(ADMIN), &admin.base);
    (void)EXPECT("c", Reply, REPLY);
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "at last");
    expect_verdict("w/1", "kept");
    ack("c", id, 0);
    settle();
    s = ask_job("c", id);
    assert_string_equal(s->state, "done");
    assert_int_equal(s->n_failures, 0);
}

/* A reason that is cut is still a text: a DONE with half a character could not be read. */
static void test_long_reasons(void **state)
{
    (void)state;
    static char reason[3001];
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    for (int shift = 0; shift < 2; shift++) {
        Steerfarm__Fail f = STEERFARM__FAIL__INIT;
        memset(reason, 'x', sizeof reason - 1);
        for (size_t i = (size_t)shift; i + 2 < sizeof reason; i += 2)
            memcpy(reason + i, "\xc3\xa4", 2);
        snprintf(id, sizeof id, "%s", submit("c", shift ? "odd" : "even", 1));
        watch("c", id);
        struct held_lease l = take_assign("w/1");
        Steerfarm__Lease lease = lease_message(&l);
        f.lease = &lease;
        f.code = text("RENDER_FAILED");
        f.text = reason;
        say_worker("w/1", TYPE(FAIL), &f.base);
        const char *shown = EXPECT("c", Done, DONE)->status->failures[0]->text;
        assert_true(wire_utf8_valid(shown, strlen(shown)));
        shown = ask_job("c", id)->failures[0]->text; /* as the store has it */
        assert_true(wire_utf8_valid(shown, strlen(shown)));
    }
}

/* A batch that fails together says nothing about its images: each is tried alone, and that counts.
 */
static void test_failed_batch(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    hello_client("c");
    hello_worker_with("w/1", 1, "hash1", NULL, 0);
    (void)EXPECT("w/1", Welcome, WELCOME);
    credit("w/1", 3, 3);
    snprintf(id, sizeof id, "%s", submit("c", "k", 3));
    const Steerfarm__Assign *a = EXPECT("w/1", Assign, ASSIGN);
    assert_int_equal(a->n_images, 3);
    for (size_t i = 0; i < 3; i++) {
        Steerfarm__Fail f = STEERFARM__FAIL__INIT;
        f.lease = a->images[i]->lease;
        f.code = text("NO_MEMORY");
        f.text = text("too many at once");
        f.retryable = 1;
        say_worker("w/1", TYPE(FAIL), &f.base);
    }
    settle();
    for (int i = 0; i < 3; i++) {
        struct held_lease l = take_assign("w/1"); /* one image each */
        if (!i) {
            fail_lease("w/1", &l, "NO_MEMORY");
        } else {
            result("w/1", &l, "x");
            expect_verdict("w/1", "kept");
        }
    }
    now_ms += 6000;
    hello_worker("w/1");
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "x");
    expect_verdict("w/1", "kept");
    fetch("c", id, 8);
    for (uint32_t i = 0; i < 3; i++) {
        (void)EXPECT("c", Result, RESULT);
        ack("c", id, i);
    }
    (void)EXPECT("c", Done, DONE);
    assert_int_equal(ask_job("c", id)->n_failures, 0); /* of what went well in the end */
}

/* What a drained worker gives back was no attempt. */
static void test_drain_is_no_attempt(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    for (int i = 0; i < 2 * STEER_ATTEMPTS_MAX; i++) {
        struct held_lease l = take_assign("w/1");
        Steerfarm__Drain drain = STEERFARM__DRAIN__INIT;
        say_worker("w/1", TYPE(DRAIN), &drain.base);
        fail_lease("w/1", &l, "CANCELLED");
        int before = count_sent("w/1", TYPE(ASSIGN));
        settle();
        assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), before); /* it is leaving */
        hello_worker("w/1");
    }
    assert_string_equal(ask_job("c", id)->state, "queued");
}

/* An image goes to another worker than the one that failed it; three such and that one is out. */
static void test_quarantine(void **state)
{
    (void)state;
    farm();
    for (int i = 0; i < 3; i++) {
        char key[8];
        snprintf(key, sizeof key, "k%d", i);
        submit("c", key, 1);
        struct held_lease l = take_assign("w/1");
        fail_lease("w/1", &l, "RENDER_FAILED");
        if (!i) hello_worker("v/1");
        credit("w/1", 4, 1);
        credit("v/1", 4, 1);
        settle();
        now_ms += 3000; /* back-off, and patience for the worker that has the model loaded */
        l = take_assign("v/1");
        credit("v/1", 0, 1); /* the next job is the other's again */
        result("v/1", &l, "good");
        expect_verdict("v/1", "kept");
    }
    Steerfarm__Query q = STEERFARM__QUERY__INIT;
    q.kind = STEERFARM__QUERY_KIND__QUERY_WORKERS;
    say_client("c", TYPE(QUERY), &q.base);
    const Steerfarm__Reply *r = EXPECT("c", Reply, REPLY);
    assert_int_equal(r->n_workers, 2);
    for (size_t i = 0; i < 2; i++)
        assert_string_equal(r->workers[i]->state,
                            strcmp(r->workers[i]->worker, "w") ? "ready" : "quarantined");
    submit("c", "more", 1);
    credit("v/1", 4, 1);
    (void)take_assign("v/1");
}

/* A job is for the model's hash it was accepted with. */
static void test_pinned_hash(void **state)
{
    (void)state;
    farm();
    credit("w/1", 0, 1);
    submit("c", "k", 1);
    hello_worker_with("v/1", 1, "hash2", NULL, 0); /* the same name, other bytes */
    (void)EXPECT("v/1", Welcome, WELCOME);
    credit("v/1", 4, 1);
    now_ms += 5000;
    settle();
    assert_int_equal(count_sent("v/1", TYPE(ASSIGN)), 0);
    hello_worker("w/1");
    (void)take_assign("w/1");
}

static void test_replaced(void **state)
{
    (void)state;
    farm();
    hello_worker_with("w/2", 2, "hash1", NULL, 0);
    (void)EXPECT("w/1", Replaced, REPLACED); /* the older one leaves */
    (void)EXPECT("w/2", Welcome, WELCOME);
    hello_worker_with("w/0", 0, "hash1", NULL, 0);
    (void)EXPECT("w/0", Replaced, REPLACED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_adopted_lease),     TEST(test_spooled_survives),
        TEST(test_first_result_wins), TEST(test_stalled_worker),
        TEST(test_odd_results),       TEST(test_renew_while_stored),
        TEST(test_renew_of_many),     TEST(test_unsaid_results),
        TEST(test_damaged_results),   TEST(test_long_hash),
        TEST(test_attempts),          TEST(test_long_reasons),
        TEST(test_failed_batch),      TEST(test_drain_is_no_attempt),
        TEST(test_quarantine),        TEST(test_pinned_hash),
        TEST(test_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
