// SPDX-License-Identifier: Apache-2.0
/* libsteer against a broker that is only a script: what it sends, and when. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <zmq.h>

#include "steer.h"

enum { /* of steer.proto */
       HELLO = 1,
       WELCOME = 2,
       REFUSED = 3,
       PING = 4,
       PONG = 5,
       SUBMIT = 16,
       WATCH = 18,
       FETCH = 19,
       QUERY = 20,
       RESULT_ACK = 21,
       ACCEPTED = 32,
       PROGRESS = 33,
       RESULT = 34,
       DONE = 35,
       REPLY = 36,
};

/* ---- protobuf by hand: the library lets none of it out ---- */

struct body {
    uint8_t bytes[2048];
    size_t size;
};

static void put_varint(struct body *b, uint64_t value)
{
    for (; value > 127; value >>= 7)
        b->bytes[b->size++] = (uint8_t)(value | 128);
    b->bytes[b->size++] = (uint8_t)value;
}

static void put_number(struct body *b, unsigned field, uint64_t value)
{
    put_varint(b, field << 3);
    put_varint(b, value);
}

static void put_bytes(struct body *b, unsigned field, const void *data, size_t size)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, size);
    memcpy(b->bytes + b->size, data, size);
    b->size += size;
}

static void put_text(struct body *b, unsigned field, const char *text)
{
    put_bytes(b, field, text, strlen(text));
}

static uint32_t crc32_of(const uint8_t *data, size_t size)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

/* ---- the broker ---- */

struct script {
    void *context, *router;
    struct steer_client *c;
    char endpoint[64];
    uint8_t identity[64];
    size_t identity_size;
    int type; /* of the last message */
    struct body body;
};

static int setup(void **state)
{
    static int number;
    struct script *s = calloc(1, sizeof *s);
    assert_non_null(s);
    snprintf(s->endpoint, sizeof s->endpoint, "ipc://client-%d-%d", (int)getpid(), number++);
    s->context = zmq_ctx_new();
    s->router = zmq_socket(s->context, ZMQ_ROUTER);
    assert_int_equal(zmq_bind(s->router, s->endpoint), 0);
    assert_int_equal(steer_open(&s->c, s->endpoint, NULL), 0);
    *state = s;
    return 0;
}

static int teardown(void **state)
{
    struct script *s = *state;
    int none = 0;
    steer_close(s->c);
    zmq_setsockopt(s->router, ZMQ_LINGER, &none, sizeof none);
    zmq_close(s->router);
    zmq_ctx_term(s->context);
    unlink(s->endpoint + strlen("ipc://"));
    free(s);
    return 0;
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* 1: one more message of the client is in s->type and s->body, its sender in s->identity. */
static int hear(struct script *s)
{
    uint8_t head[8];
    int more = 1, got = zmq_recv(s->router, s->identity, sizeof s->identity, ZMQ_DONTWAIT);
    if (got < 0) return 0;
    s->identity_size = (size_t)got;
    assert_int_equal(zmq_recv(s->router, head, sizeof head, 0), 4);
    got = zmq_recv(s->router, s->body.bytes, sizeof s->body.bytes, 0);
    s->body.size = (size_t)got;
    s->type = head[3];
    size_t size = sizeof more;
    zmq_getsockopt(s->router, ZMQ_RCVMORE, &more, &size);
    assert_int_equal(more, 0);
    return 1;
}

/* Lets the client work, showing nothing, until it has sent a message of that type. */
static int hear_type(struct script *s, int type, int ms)
{
    struct steer_event e;
    for (uint64_t end = now_ms() + (uint64_t)ms; now_ms() < end;) {
        assert_int_equal(steer_next(s->c, &e, 10, NULL), 0);
        while (hear(s))
            if (s->type == type) return 1;
    }
    return 0;
}

static void say(struct script *s, int type, const struct body *b, const char *payload)
{
    uint8_t head[4] = {'S', 'F', 1, (uint8_t)type};
    zmq_send(s->router, s->identity, s->identity_size, ZMQ_SNDMORE);
    zmq_send(s->router, head, 4, ZMQ_SNDMORE);
    zmq_send(s->router, b->bytes, b->size, payload ? ZMQ_SNDMORE : 0);
    if (payload) zmq_send(s->router, payload, strlen(payload), 0);
}

static void welcome(struct script *s, uint32_t heartbeat_ms)
{
    struct body b = {0};
    struct steer_event e;
    assert_true(hear_type(s, HELLO, 3000));
    put_number(&b, 1, 1);
    put_number(&b, 2, 7);
    put_number(&b, 3, heartbeat_ms);
    say(s, WELCOME, &b, NULL);
    assert_int_equal(steer_next(s->c, &e, 50, NULL), 0);
}

static void say_done(struct script *s, const char *job, const char *state)
{
    struct body status = {0}, b = {0};
    put_text(&status, 1, job);
    put_text(&status, 2, state);
    put_bytes(&b, 1, status.bytes, status.size);
    say(s, DONE, &b, NULL);
}

static void say_progress(struct script *s, const char *job, uint32_t queued)
{
    struct body counts = {0}, b = {0};
    put_number(&counts, 1, queued);
    put_text(&b, 1, job);
    put_bytes(&b, 2, counts.bytes, counts.size);
    say(s, PROGRESS, &b, NULL);
}

static void say_result(struct script *s, const char *job, uint32_t index, const char *image)
{
    struct body b = {0};
    put_text(&b, 1, job);
    put_number(&b, 2, index);
    put_number(&b, 8, strlen(image));
    put_number(&b, 9, crc32_of((const uint8_t *)image, strlen(image)));
    say(s, RESULT, &b, image);
}

static void say_accepted(struct script *s, const char *job, uint64_t tag)
{
    struct body b = {0};
    put_text(&b, 1, job);
    put_text(&b, 2, "key");
    put_number(&b, 3, 1);
    put_number(&b, 5, tag);
    say(s, ACCEPTED, &b, NULL);
}

static void say_reply(struct script *s, uint64_t tag)
{
    struct body b = {0};
    put_number(&b, 1, tag);
    say(s, REPLY, &b, NULL);
}

/* tag 0, request 0, retry 0: left out */
static void say_refused(struct script *s, const char *code, uint64_t tag, int request,
                        uint32_t retry_ms, const char *job)
{
    struct body b = {0};
    put_text(&b, 1, code);
    put_text(&b, 2, "because");
    if (retry_ms) put_number(&b, 3, retry_ms);
    if (request) put_number(&b, 4, (uint64_t)request);
    if (tag) put_number(&b, 5, tag);
    if (job) put_text(&b, 7, job);
    say(s, REFUSED, &b, NULL);
}

static int readable(const struct script *s, int ms)
{
    struct pollfd p = {steer_fd(s->c), POLLIN, 0};
    return poll(&p, 1, ms) == 1;
}

/* ---- tests ---- */

/* What comes while an answer is waited for is shown afterwards, in its order, and the descriptor
 * says so though the socket has been read empty. */
static void test_waiting_swallows_nothing(void **state)
{
    struct script *s = *state;
    struct steer_event e;
    uint64_t first, second;
    char *json = NULL;
    welcome(s, 1000);
    static const char job[] = "{\"model\": \"m\", \"prompt\": \"p\"}";
    assert_int_equal(steer_watch(s->c, "1-a"), 0);
    assert_int_equal(steer_fetch(s->c, "1-b", 4), 0);
    assert_int_equal(steer_submit_start(s->c, job, NULL, &first, NULL), 0);
    assert_int_equal(steer_submit_start(s->c, job, NULL, &second, NULL), 0);
    say_progress(s, "1-a", 3);
    say_result(s, "1-b", 5, "image");
    say_refused(s, "UNKNOWN_MODEL", first, SUBMIT, 0, NULL);
    say_progress(s, "1-a", 2); /* takes the first one's place */
    say_accepted(s, "1-c", second);
    say_done(s, "1-a", "failed");
    say_reply(s, second + 1);
    assert_int_equal(steer_ask(s->c, STEER_ASK_STATUS, NULL, &json, 3000, NULL), 0);
    free(json);
    assert_true(readable(s, 0));
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 1);
    assert_int_equal(e.kind, STEER_EVENT_RESULT);
    assert_int_equal(e.index, 5);
    assert_memory_equal(e.image, "image", 5);
    assert_true(readable(s, 0));
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 1);
    assert_int_equal(e.kind, STEER_EVENT_REFUSED);
    assert_int_equal(e.tag, first);
    assert_string_equal(e.fault.code, "UNKNOWN_MODEL");
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 1);
    assert_int_equal(e.kind, STEER_EVENT_PROGRESS);
    assert_non_null(strstr(e.json, "\"queued\":2"));
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 1);
    assert_int_equal(e.kind, STEER_EVENT_ACCEPTED);
    assert_int_equal(e.tag, second);
    assert_string_equal(e.job, "1-c");
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 1);
    assert_int_equal(e.kind, STEER_EVENT_DONE);
    assert_string_equal(e.job, "1-a");
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 0);
    assert_false(readable(s, 0));
    say_result(s, "1-b", 6, "other");
    say_result(s, "1-b", 7, "more");
    assert_true(readable(s, 2000));
    usleep(100000); /* both are there: one read must not make the descriptor forget the other */
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 1);
    assert_true(readable(s, 0));
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 1);
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 0);
    assert_false(readable(s, 0));
}

/* The descriptor outlives the connection, and says when the next one speaks. */
static void test_descriptor_is_stable(void **state)
{
    struct script *s = *state;
    struct steer_event e;
    int fd = steer_fd(s->c);
    welcome(s, 100);
    assert_int_equal(steer_watch(s->c, "1-a"), 0);
    uint8_t old[64];
    size_t old_size = s->identity_size;
    memcpy(old, s->identity, sizeof old);
    assert_true(hear_type(s, HELLO, 5000)); /* no PONG: it connects anew */
    assert_true(s->identity_size != old_size || memcmp(old, s->identity, old_size) != 0);
    assert_int_equal(steer_fd(s->c), fd);
    struct body b = {0};
    put_number(&b, 1, 1);
    put_number(&b, 2, 7);
    say(s, WELCOME, &b, NULL);
    assert_true(hear_type(s, WATCH, 2000)); /* and asks again */
    while (steer_next(s->c, &e, 0, NULL) == 1)
        ;
    assert_false(readable(s, 0));
    say_progress(s, "1-a", 1);
    assert_true(readable(s, 2000));
    assert_int_equal(steer_next(s->c, &e, 1000, NULL), 1);
    assert_int_equal(e.kind, STEER_EVENT_PROGRESS);
}

/* A caller that was busy for many heartbeats finds its answers in the socket, or asks first. */
static void test_away_is_not_silent(void **state)
{
    struct script *s = *state;
    struct body none = {0};
    welcome(s, 100);
    assert_true(hear_type(s, PING, 2000));
    say(s, PONG, &none, NULL);
    usleep(1500000); /* the answer waits in the socket */
    assert_false(hear_type(s, HELLO, 50));
    usleep(1500000); /* nothing does */
    assert_true(hear_type(s, PING, 300));
    usleep(1500000); /* nor was that one answered, but we were not there to wait */
    assert_true(hear_type(s, PING, 300));
    say(s, PONG, &none, NULL);
    assert_false(hear_type(s, HELLO, 80));
}

static void test_quiet_jobs_are_asked_for_again(void **state)
{
    struct script *s = *state;
    struct body none = {0};
    int fetches = 0, watches = 0;
    welcome(s, 1000);
    assert_int_equal(steer_watch(s->c, "1-a"), 0);
    assert_int_equal(steer_fetch(s->c, "1-a", 4), 0);
    for (uint64_t end = now_ms() + 6000; now_ms() < end;) {
        struct steer_event e;
        assert_int_equal(steer_next(s->c, &e, 50, NULL), 0);
        while (hear(s)) {
            fetches += s->type == FETCH;
            watches += s->type == WATCH;
            if (s->type == PING) say(s, PONG, &none, NULL);
        }
    }
    /* The first FETCH carries the WATCH along again. */
    assert_int_equal(fetches, 2);
    assert_int_equal(watches, 3);
}

static void test_not_now_is_told(void **state)
{
    struct script *s = *state;
    struct steer_fault fault;
    welcome(s, 1000);
    say_refused(s, "DISK_FULL", 1, QUERY, 60000, NULL);
    assert_true(steer_ask(s->c, STEER_ASK_STATUS, NULL, NULL, 300, &fault) < 0);
    assert_string_equal(fault.code, "DISK_FULL");
    assert_non_null(strstr(fault.text, "DISK_FULL: because"));
    assert_true(steer_ask(s->c, STEER_ASK_STATUS, NULL, NULL, 100, &fault) < 0);
    assert_string_equal(fault.code, "TIMEOUT"); /* that refusal was another request's */
}

/* The broker cannot say the tag of what it could not read, nor before HELLO. */
static void test_untagged_refusal(void **state)
{
    struct script *s = *state;
    struct steer_fault fault;
    uint64_t begun = now_ms();
    assert_true(hear_type(s, HELLO, 3000));
    say_refused(s, "BAD_VALUE", 0, HELLO, 0, NULL);
    assert_true(steer_ask(s->c, STEER_ASK_STATUS, NULL, NULL, 5000, &fault) < 0);
    assert_string_equal(fault.code, "BAD_VALUE");
    assert_true(now_ms() < begun + 3000);
    welcome(s, 1000);
    assert_int_equal(steer_fetch(s->c, "1-a", 1), 0);
    say_refused(s, "REPLACED", 0, FETCH, 0, "1-a"); /* not the question's answer */
    say_reply(s, 2);
    assert_int_equal(steer_ask(s->c, STEER_ASK_STATUS, NULL, NULL, 3000, &fault), 0);
    struct steer_event e;
    assert_int_equal(steer_next(s->c, &e, 0, NULL), 1);
    assert_int_equal(e.kind, STEER_EVENT_REFUSED);
    assert_string_equal(e.job, "1-a");
}

static void test_stop_flag(void **state)
{
    struct script *s = *state;
    struct steer_fault fault;
    volatile sig_atomic_t flag = 1;
    uint64_t begun = now_ms();
    steer_stop_flag(s->c, &flag);
    assert_true(steer_ask(s->c, STEER_ASK_STATUS, NULL, NULL, -1, &fault) < 0);
    assert_string_equal(fault.code, "INTERRUPTED");
    assert_int_equal(fault.exit_code, 130);
    assert_true(now_ms() < begun + 1000);
}

/* DONE may end what a FETCH of some images waited for, while the job goes on. */
static void test_done_of_a_range(void **state)
{
    struct script *s = *state;
    struct steer_event e;
    welcome(s, 1000);
    assert_int_equal(steer_fetch_range(s->c, "1-a", 4, 1, 2), 0);
    say_done(s, "1-a", "running");
    say_done(s, "1-a", "running"); /* the answer to a FETCH sent twice */
    assert_int_equal(steer_next(s->c, &e, 1000, NULL), 1);
    assert_int_equal(e.kind, STEER_EVENT_DONE);
    assert_int_equal(steer_next(s->c, &e, 100, NULL), 0);
    assert_int_equal(steer_fetch_range(s->c, "1-a", 4, 3, 9), 0); /* and on with others */
    say_result(s, "1-a", 3, "image");
    assert_int_equal(steer_next(s->c, &e, 1000, NULL), 1);
    assert_int_equal(e.kind, STEER_EVENT_RESULT);
}

static void test_bad_ids(void **state)
{
    struct script *s = *state;
    static const char longer[] = "1-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    assert_true(steer_watch(s->c, longer) < 0);
    assert_true(steer_fetch(s->c, longer, 1) < 0);
    assert_true(steer_fetch_range(s->c, "1-a", 1, 3, 2) < 0);
}

/* The same job by struct and by JSON is the same message, so that a key names one job. */
static void test_one_job_two_ways(void **state)
{
    struct script *s = *state;
    struct steer_job job = steer_job_default();
    const struct steer_label label = {"shot", "7"};
    struct body by_struct;
    char id[STEER_JOB_ID_SIZE];
    struct steer_fault fault = {0};
    welcome(s, 1000);
    job.model = "m";
    job.prompt = "p";
    job.key = "key";
    job.labels = &label;
    job.labels_count = 1;
    job.long_prompt = "chunk";
    job.prompt_syntax = "a1111";
    say_accepted(s, "1-a", 1);
    assert_int_equal(steer_submit(s->c, &job, id, 3000, &fault), 0);
    assert_string_equal(id, "1-a");
    assert_true(hear_type(s, SUBMIT, 1000));
    by_struct = s->body;
    say_accepted(s, "1-a", 2);
    assert_int_equal(steer_submit_json(s->c,
                                       "{\"labels\": [{\"key\": \"shot\", \"value\": \"7\"}], "
                                       "\"model\": \"m\", \"prompt\": \"p\", "
                                       "\"long_prompt\": \"chunk\", \"prompt_syntax\": \"A1111\"}",
                                       "key", id, 3000, &fault),
                     0);
    assert_true(hear_type(s, SUBMIT, 1000));
    assert_int_equal(s->body.size, by_struct.size);
    assert_memory_equal(s->body.bytes, by_struct.bytes, by_struct.size - 1); /* the tag is last */
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_waiting_swallows_nothing),
        TEST(test_descriptor_is_stable),
        TEST(test_away_is_not_silent),
        TEST(test_quiet_jobs_are_asked_for_again),
        TEST(test_not_now_is_told),
        TEST(test_untagged_refusal),
        TEST(test_stop_flag),
        TEST(test_done_of_a_range),
        TEST(test_bad_ids),
        TEST(test_one_job_two_ways),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
