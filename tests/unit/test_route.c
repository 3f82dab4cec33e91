// SPDX-License-Identifier: Apache-2.0
/* The straight way: keys, refusals, cancels, a full disk. */
#include "route_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the straight way ---- */

static void test_whole_life(void **state)
{
    (void)state;
    struct sent_message *m;
    farm();
    const char *job = submit("c", "k", 2);
    watch("c", job);
    fetch("c", job, 8);
    for (int i = 0; i < 2; i++) {
        struct held_lease l = take_assign("w/1");
        char image[16];
        snprintf(image, sizeof image, "image %u", l.index);
        result("w/1", &l, image);
        expect_verdict("w/1", "kept");
    }
    for (int i = 0; i < 2; i++) {
        const Steerfarm__Result *r = expect_message("c", TYPE(RESULT), &m);
        char image[16];
        snprintf(image, sizeof image, "image %u", r->index);
        assert_int_equal(m->payload_bytes, strlen(image));
        assert_memory_equal(m->payload, image, strlen(image));
        assert_null(r->lease); /* a matter between broker and worker */
        ack("c", job, r->index);
    }
    const Steerfarm__Done *d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->state, "done");
    assert_int_equal(d->status->counts->acked, 2);
    assert_true(count_sent("c", TYPE(PROGRESS)) >= 1);
    /* It has ended: asked again, the store answers at once. */
    fetch("c", job, 8);
    d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->job, job);
    watch("c", job);
    (void)EXPECT("c", Done, DONE);
}

static void test_keys(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    assert_true(id[0] == '0' && id[1] == '-');       /* the shard goes first */
    say_submit("c", "k", "a cat", 1, 5000000000000); /* the deadline is not part of the hash */
    const Steerfarm__Accepted *a = EXPECT("c", Accepted, ACCEPTED);
    assert_string_equal(a->job, id);
    assert_true(a->again);
    say_submit("c", "k", "a dog", 1, 0);
    expect_refused("c", "KEY_CONFLICT");
    /* The same after the job's end and a restart, when only the store knows. */
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "x");
    expect_verdict("w/1", "kept");
    ack("c", id, 0);
    settle();
    restart();
    farm();
    assert_string_equal(submit("c", "k", 1), id);
    say_submit("c", "k", "a dog", 1, 0);
    expect_refused("c", "KEY_CONFLICT");
}

static void test_refusals(void **state)
{
    (void)state;
    watch("stranger", "0-1");
    expect_refused("stranger", "HELLO_REQUIRED");
    hello_client("c");
    say_submit("c", "k", "a cat", 1, 0);
    const Steerfarm__Refused *m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "UNKNOWN_MODEL");
    assert_int_equal(m->tag, 77);
    assert_string_equal(m->key, "k");
    hello_worker("w/1");
    cancel("c", NULL, NULL);
    m = EXPECT("c", Refused, REFUSED);
    assert_int_equal(m->request, TYPE(CANCEL)); /* what was refused is named */
    fetch("c", "nonsense", 1);
    m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "UNKNOWN_JOB");
    assert_int_equal(m->request, TYPE(FETCH));
    fetch("c", "0-77", 1); /* asked of the store */
    m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "UNKNOWN_JOB");
    assert_int_equal(m->request, TYPE(FETCH));
    Steerfarm__Admin admin = STEERFARM__ADMIN__INIT;
    admin.kind = STEERFARM__ADMIN_KIND__ADMIN_RETRY_FAILED;
    say_client("c", TYPE(ADMIN), &admin.base);
    m = EXPECT("c", Refused, REFUSED);
    assert_int_equal(m->request, TYPE(ADMIN));
}

static void test_bad_frames(void **state)
{
    (void)state;
    farm();
    uint8_t ping[4] = {'S', 'F', 1, TYPE(PING)}, newer[4] = {'S', 'F', 9, TYPE(PING)};
    uint8_t result_head[4] = {'S', 'F', 1, TYPE(RESULT)};
    const struct wire_frame short_head[] = {{"SF", 2}, {"", 0}};
    const struct wire_frame one[] = {{ping, 4}};
    const struct wire_frame many[] = {{ping, 4}, {"", 0}, {"", 0}};
    const struct wire_frame version[] = {{newer, 4}, {"", 0}};
    const struct wire_frame junk[] = {{ping, 4}, {"\xff\xff\xff", 3}};
    const struct wire_frame bare[] = {{result_head, 4}, {"", 0}};
    say_raw(SIDE_CLIENTS, "c", short_head, 2);
    expect_refused("c", "BAD_FRAME");
    say_raw(SIDE_CLIENTS, "c", one, 1);
    expect_refused("c", "BAD_FRAME");
    say_raw(SIDE_CLIENTS, "c", many, 3);
    expect_refused("c", "BAD_FRAME");
    say_raw(SIDE_CLIENTS, "c", version, 2);
    expect_refused("c", "BAD_VERSION");
    say_raw(SIDE_CLIENTS, "c", junk, 2);
    const Steerfarm__Refused *m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "BAD_FRAME");
    assert_int_equal(m->request, TYPE(PING)); /* what it was said to be */
    say_raw(SIDE_WORKERS, "w/1", bare, 2);
    expect_refused("w/1", "BAD_FRAME");
    say_raw(SIDE_CLIENTS, "c", NULL, 0);
    expect_refused("c", "BAD_FRAME");
    submit("c", "after nonsense", 1); /* everything goes on */
    (void)take_assign("w/1");
}

static void test_cancel(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    cancel("c", NULL, "never");
    assert_int_equal(EXPECT("c", Reply, REPLY)->tag, 5);
    say_submit("c", "never", "a cat", 1, 0);
    expect_refused("c", "CANCELLED");
    restart(); /* the tombstone is durable */
    farm();
    say_submit("c", "never", "a cat", 1, 0);
    expect_refused("c", "CANCELLED");

    snprintf(id, sizeof id, "%s", submit("c", "k", 3));
    struct held_lease l = take_assign("w/1");
    watch("c", id);
    cancel("c", id, NULL);
    (void)EXPECT("w/1", Revoke, REVOKE);
    const Steerfarm__Done *d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->state, "cancelled");
    assert_int_equal(d->status->counts->cancelled, 3);
    result("w/1", &l, "late");
    const char *verdict = EXPECT("w/1", Verdict, VERDICT)->verdict;
    assert_true(!strcmp(verdict, "cancelled") || !strcmp(verdict, "unknown"));

    /* The key of a job that has ended is known: no tombstone, the job answers. */
    forget_sent();
    cancel("c", NULL, "k");
    const Steerfarm__Reply *r = EXPECT("c", Reply, REPLY);
    assert_int_equal(r->n_jobs, 1);
    assert_string_equal(r->jobs[0]->job, id);
    say_submit("c", "k", "a cat", 3, 0);
    assert_string_equal(EXPECT("c", Accepted, ACCEPTED)->job, id);
}

/* CANCEL right behind its SUBMIT, in the same turn. */
static void test_cancel_at_once(void **state)
{
    (void)state;
    farm();
    say_submit("c", "k", "a cat", 1, 0);
    cancel("c", NULL, "k");
    (void)EXPECT("c", Accepted, ACCEPTED);
    const Steerfarm__Reply *r = EXPECT("c", Reply, REPLY);
    assert_int_equal(r->tag, 5);
    settle();
    assert_string_equal(ask_job("c", "0-1")->state, "cancelled");
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 0);
}

/* What was cancelled while its image was on its way to the store is cancelled once that is said. */
static void test_cancel_while_stored(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "too late");
    snapshot_type = TYPE(REPLY);
    cancel("c", id, NULL);
    turn();
    (void)usleep(200000); /* both batches are durable before their answers are read */
    expect_verdict("w/1", "cancelled");
    (void)EXPECT("c", Reply, REPLY);
    restart_from_snapshot();
    farm();
    assert_string_equal(ask_job("c", id)->state, "cancelled");
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 0);
}

/* A full disk refuses the job and, for the key's sake, its CANCEL: neither is lost in silence. */
static void test_cancel_on_full_disk(void **state)
{
    (void)state;
    farm();
    submit("c", "older", 2);
    disk_full = 1;
    say_submit("c", "k", "a cat", 1, 0);
    cancel("c", NULL, "k");
    say_submit("c", "older", "a cat", 2,
               0); /* is durable already, whatever happens to the others */
    for (int i = 0; i < 2; i++) {
        const Steerfarm__Refused *m = EXPECT("c", Refused, REFUSED);
        assert_string_equal(m->code, "DISK_FULL");
        assert_string_equal(m->key, "k");
        assert_int_equal(m->request, i ? TYPE(CANCEL) : TYPE(SUBMIT));
        assert_true(m->retry_after_ms > 0);
    }
    const Steerfarm__Accepted *a = EXPECT("c", Accepted, ACCEPTED);
    assert_true(a->again);
    assert_int_equal(ask_job("c", a->job)->counts->queued + ask_job("c", a->job)->counts->leased,
                     2);
    for (int i = 0; i < 10; i++) { /* no number of keys eats the space kept for acks */
        char key[8];
        snprintf(key, sizeof key, "n%d", i);
        cancel("c", NULL, key);
        expect_refused("c", "DISK_FULL");
    }
    disk_full = 0;
    (void)usleep(1200000); /* the store looks again every second */
    cancel("c", NULL, "k");
    (void)EXPECT("c", Reply, REPLY);
    restart();
    farm();
    say_submit("c", "k", "a cat", 1, 0);
    expect_refused("c", "CANCELLED");
    submit("c", "n1", 1);
}

/* A model met while the disk is full is stored later. */
static void test_model_on_full_disk(void **state)
{
    (void)state;
    disk_full = 1;
    settle();
    farm();
    settle();
    disk_full = 0;
    (void)usleep(1200000);
    now_ms += 1000;
    settle();
    restart();
    hello_client("c");
    submit("c", "k", 1); /* no worker has come yet */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_whole_life),
        TEST(test_keys),
        TEST(test_refusals),
        TEST(test_bad_frames),
        TEST(test_cancel),
        TEST(test_cancel_at_once),
        TEST(test_cancel_while_stored),
        TEST(test_cancel_on_full_disk),
        TEST(test_model_on_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
