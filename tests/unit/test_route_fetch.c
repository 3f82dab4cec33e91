// SPDX-License-Identifier: Apache-2.0
/* Fetching, acknowledging and watching: what the route makes of its audience. */
#include "route_rig.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* ---- fetching ---- */

static void test_fetch_credit_and_range(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("k", 6, id);
    fetch_range("c", id, 2, 2, 4);
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 2); /* the credit */
    ack("c", id, 2);
    ack("c", id, 3);
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 3); /* the range */
    hello_client("d");
    fetch("d", id, 8);
    const Steerfarm__Refused *m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "REPLACED");
    assert_string_equal(m->job, id);
    settle();
    assert_int_equal(count_sent("d", TYPE(RESULT)), 4);
}

/* When nothing of what is fetched can come any more, its fetcher is told, though the job goes on.
 */
static void test_fetch_of_a_part(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    credit("w/1", 3, 1);
    snprintf(id, sizeof id, "%s", submit("c", "k", 6));
    fetch_range("c", id, 8, 6, 9);
    expect_refused("c", "BAD_VALUE");
    fetch_range("c", id, 8, 2, 1);
    expect_refused("c", "BAD_VALUE");
    fetch_range("c", id, 8, 0, 2);
    for (uint32_t i = 0; i < 3; i++) {
        struct held_lease l = take_assign("w/1");
        if (i == 2) credit("w/1", 0, 1);
        if (l.index == 1) {
            Steerfarm__Fail f = STEERFARM__FAIL__INIT;
            Steerfarm__Lease lease = lease_message(&l);
            f.lease = &lease;
            f.code = f.text = text("RENDER_FAILED");
            say_worker("w/1", TYPE(FAIL), &f.base);
            continue;
        }
        result("w/1", &l, "x");
        expect_verdict("w/1", "kept");
        (void)EXPECT("c", Result, RESULT);
        settle();
        assert_int_equal(count_sent("c", TYPE(DONE)), 0);
        ack("c", id, l.index);
    }
    const Steerfarm__Done *d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->state, "running");
    assert_int_equal(d->status->counts->acked, 2);
    settle();
    assert_int_equal(count_sent("c", TYPE(DONE)), 1);
    fetch_range("c", id, 8, 0, 0); /* was acknowledged long ago */
    (void)EXPECT("c", Done, DONE);
    fetch_range("c", id, 8, 1, 1); /* has failed */
    (void)EXPECT("c", Done, DONE);
    fetch_range("c", id, 8, 3, 3); /* may come */
    settle();
    assert_int_equal(count_sent("c", TYPE(DONE)), 3);
    cancel("c", id, NULL);
    assert_string_equal(EXPECT("c", Done, DONE)->status->state, "cancelled");
}

/* To a client that says nothing two copies of a RESULT are sent, not nine. */
static void test_silent_client(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    Steerfarm__Ping ping = STEERFARM__PING__INIT;
    farm();
    spool_images("k", 1, id);
    fetch("c", id, 4);
    settle();
    for (int i = 0; i < 20; i++) {
        now_ms += 10000;
        settle();
    }
    assert_int_equal(count_sent("c", TYPE(RESULT)), 2);
    say_client("c", TYPE(PING), &ping.base);
    now_ms += 100;
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 3);
}

/* A RESULT is repeated until it is acknowledged, more and more slowly, and not for ever. */
static void test_client_that_never_reads(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("k", 1, id);
    fetch("c", id, 4);
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 1);
    now_ms += 2500;
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 2);
    for (int i = 0; i < 60; i++) {
        Steerfarm__Ping ping = STEERFARM__PING__INIT;
        now_ms += 10000;
        say_client("c", TYPE(PING), &ping.base); /* alive, but the images are left lying */
        settle();
        forget_sent();
    }
    now_ms += 600000;
    hello_client("settler");
    settle();
    forget_sent();
    now_ms += 600000;
    hello_client("settler");
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 0);
    hello_client("c");
    fetch("c", id, 4); /* it is back */
    (void)EXPECT("c", Result, RESULT);
}

/* A broker out of descriptors keeps its images and its life. */
static void test_no_descriptors(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    struct rlimit before, none;
    farm();
    spool_images("k", 1, id);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    fetch("c", id, 4);
    submit("c", "another", 1);
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "x");
    expect_verdict("w/1", "unknown"); /* it is rendered again */
    settle();
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(ask_job("c", id)->counts->spooled, 1);
    now_ms += 2500;
    (void)EXPECT("c", Result, RESULT);
    l = take_assign("w/1");
    result("w/1", &l, "x");
    expect_verdict("w/1", "kept");
}

/* A client that is gone is not read for at full speed. */
static void test_client_that_is_gone(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("k", 1, id);
    gone = "c";
    fetch("c", id, 4);
    settle();
    int fd_busy = 0;
    for (int i = 0; i < 20; i++) {
        struct pollfd p = {route_fd(route), POLLIN, 0};
        turn();
        fd_busy += poll(&p, 1, 5) > 0;
    }
    assert_true(fd_busy <= 1);
    gone = NULL;
    fetch("c", id, 4);
    now_ms += 5000;
    (void)EXPECT("c", Result, RESULT);
}

static void test_dead_watchers_make_room(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX], name[16];
    farm();
    credit("w/1", 0, 1);
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    for (int i = 0; i < 1024; i++) {
        snprintf(name, sizeof name, "dead%d", i);
        Steerfarm__Hello h = STEERFARM__HELLO__INIT;
        h.version_min = h.version_max = 1;
        h.role = STEERFARM__ROLE__CLIENT;
        gone = name;
        say_client(name, TYPE(HELLO), &h.base);
        watch(name, id);
        now_ms += 300;
        turn(); /* its PROGRESS cannot be delivered */
    }
    gone = NULL;
    watch("c", id);
    now_ms += 300;
    (void)EXPECT("c", Progress, PROGRESS);
}

static void test_progress_steps(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    struct held_lease l = take_assign("w/1");
    watch("c", id);
    renew("w/1", &l, 3);
    now_ms += 300;
    const Steerfarm__Progress *p = EXPECT("c", Progress, PROGRESS);
    assert_int_equal(p->counts->leased, 1);
    assert_int_equal(p->step, 3);
    assert_int_equal(p->steps, 9);
    for (int i = 0; i < 10; i++) { /* at most five a second */
        renew("w/1", &l, 4);
        now_ms += 10;
        turn();
    }
    assert_true(count_sent("c", TYPE(PROGRESS)) <= 2);
}

static void test_many_acks(void **state)
{
    (void)state;
    farm();
    const char *id = submit("c", "k", 1);
    Steerfarm__ResultAck a = STEERFARM__RESULT_ACK__INIT;
    Steerfarm__Range range = STEERFARM__RANGE__INIT;
    static Steerfarm__Range *list[STEER_RANGES_MAX + 1];
    for (int i = 0; i <= STEER_RANGES_MAX; i++)
        list[i] = &range;
    a.job = text(id);
    a.indices = list;
    a.n_indices = STEER_RANGES_MAX + 1;
    say_client("c", TYPE(RESULT_ACK), &a.base);
    expect_refused("c", "BAD_VALUE");
    a.n_indices = 1;
    a.has_tag = 1;
    a.tag = 9;
    say_client("c", TYPE(RESULT_ACK), &a.base); /* with a tag it is answered, once durable */
    assert_int_equal(EXPECT("c", Reply, REPLY)->tag, 9);
}

/* The list comes in pages, none of which is larger than a message may be. */

static void test_ack_ranges(void **state)
{
    (void)state;
    static const uint32_t given[][2] = {{5, 5}, {0, 1}, {1, 2}, {9, 9}, {4, 3}, {0, 0}};
    char id[STEER_JOB_ID_BYTES_MAX];
    Steerfarm__ResultAck a = STEERFARM__RESULT_ACK__INIT;
    Steerfarm__Range ranges[6], *list[6];
    farm();
    spool_images("k", 6, id);
    for (int i = 0; i < 6; i++) {
        ranges[i] = (Steerfarm__Range)STEERFARM__RANGE__INIT;
        ranges[i].first = given[i][0];
        ranges[i].last = given[i][1];
        list[i] = ranges + i;
    }
    a.job = id;
    a.indices = list;
    a.n_indices = 6;
    a.has_tag = 1;
    say_client("c", TYPE(RESULT_ACK), &a.base);
    (void)EXPECT("c", Reply, REPLY);
    assert_int_equal(ask_job("c", id)->counts->acked, 4);
    restart();
    hello_client("c");
    fetch("c", id, 8);
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_fetch_credit_and_range),
        TEST(test_fetch_of_a_part),
        TEST(test_silent_client),
        TEST(test_client_that_never_reads),
        TEST(test_no_descriptors),
        TEST(test_client_that_is_gone),
        TEST(test_dead_watchers_make_room),
        TEST(test_progress_steps),
        TEST(test_many_acks),
        TEST(test_ack_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
