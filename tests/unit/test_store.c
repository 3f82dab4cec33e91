// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <setjmp.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "store.h"
#include "wire.h"

struct seen {
    int jobs, chunks, failures, images, tombstones, models;
    uint64_t last_job;
};

static int see_job(void *c, const struct store_job *j)
{
    ((struct seen *)c)->jobs++;
    ((struct seen *)c)->last_job = j->id;
    return 0;
}
static int see_chunk(void *c, const struct store_chunk *k)
{
    assert_memory_equal(k->data, "chunk", 5);
    ((struct seen *)c)->chunks++;
    return 0;
}
static int see_failure(void *c, const struct store_failure *f)
{
    assert_string_equal(f->text, "why");
    ((struct seen *)c)->failures++;
    return 0;
}
static int see_image(void *c, const struct store_image *i, bool usable)
{
    (void)i;
    ((struct seen *)c)->images += usable;
    return 0;
}
static int see_tombstone(void *c, const struct store_tombstone *t)
{
    (void)t;
    ((struct seen *)c)->tombstones++;
    return 0;
}
static int see_model(void *c, const char *name, const void *data, size_t bytes)
{
    (void)name, (void)data, (void)bytes;
    ((struct seen *)c)->models++;
    return 0;
}

static char dir[64];

static int open_store(struct store **s, struct seen *seen, struct store_opened *opened,
                      struct steer_error *err)
{
    struct store_options o;
    struct store_load load = {seen,    see_model, NULL,        see_tombstone,
                              see_job, see_chunk, see_failure, see_image};
    store_options_default(&o);
    o.dir = dir;
    memset(seen, 0, sizeof *seen);
    return store_open(s, &o, &load, opened, err);
}

static void next(struct store *s, struct store_completion *c)
{
    struct pollfd p = {store_fd(s), POLLIN, 0};
    while (store_next(s, c) == 0)
        assert_true(poll(&p, 1, 10000) > 0);
}

static void submit(struct store *s, struct store_batch *b)
{
    struct store_completion c;
    store_submit(s, &b, NULL);
    assert_null(b);
    next(s, &c);
    assert_int_equal(c.code, 0);
    store_completion_clear(&c);
}

static void put(struct store_batch *b, uint64_t id, const char *key)
{
    struct store_job j = {
        .id = id, .tenant = "default", .key = key, .spec = "spec", .spec_bytes = 4};
    j.hash[0] = (uint8_t)id;
    assert_int_equal(store_batch_job_put(b, &j), 0);
}

static int released;
static void release(void *owner)
{
    (void)owner;
    released++;
}

static void test_life(void **unused)
{
    (void)unused;
    struct store *s;
    struct seen seen;
    struct store_opened opened;
    struct steer_error err = {0};
    struct store_completion c;
    if (open_store(&s, &seen, &opened, &err)) fail_msg("%s", err.text);
    assert_int_equal(opened.epoch, 1);

    struct store_batch *b = store_batch_new();
    put(b, 1, "one");
    put(b, 2, "two");
    struct store_chunk chunk = {1, 0, "chunk", 5};
    struct store_failure failure = {1, 3, 2, STEER_RENDER_FAILED, "why"};
    struct store_image image = {1, 7, 5, wire_crc32("image", 5), "head", 4};
    struct store_payload payload = {"image", 5, release, NULL};
    struct store_tombstone stone = {"default", "gone", 1};
    assert_int_equal(store_batch_chunk_put(b, &chunk), 0);
    assert_int_equal(store_batch_failure_put(b, &failure), 0);
    assert_int_equal(store_batch_image_spool(b, &image, &payload), 0);
    assert_int_equal(store_batch_tombstone_put(b, &stone), 0);
    assert_int_equal(store_batch_model_put(b, "m", "model", 5), 0);
    submit(s, b);
    assert_int_equal(released, 1);

    /* A key that is known comes back with its job. */
    b = store_batch_new();
    put(b, 3, "one");
    store_submit(s, &b, NULL);
    next(s, &c);
    assert_int_equal(c.known_count, 1);
    assert_int_equal(c.known[0].put, 3);
    assert_int_equal(c.known[0].job, 1);
    store_completion_clear(&c);

    assert_int_equal(store_read(s, 1, 7, NULL), 0);
    next(s, &c);
    assert_int_equal(c.code, 0);
    assert_memory_equal(c.payload, "image", 5);
    assert_memory_equal(c.image.header, "head", 4);
    store_completion_clear(&c);

    b = store_batch_new();
    assert_int_equal(store_batch_job_end(b, 2, STORE_DONE, 50, "sum", 3), 0);
    submit(s, b);
    store_close(s);

    /* What was committed is there again, ended jobs apart. */
    if (open_store(&s, &seen, &opened, &err)) fail_msg("%s", err.text);
    assert_int_equal(opened.epoch, 2);
    assert_int_equal(seen.jobs, 1);
    assert_int_equal(seen.last_job, 1);
    assert_int_equal(opened.job_last, 2);
    assert_int_equal(seen.chunks + seen.failures + seen.images + seen.tombstones + seen.models, 5);

    /* Ended jobs answer questions until they expire. */
    struct store_query q = {.job = 2, .limit = 1};
    assert_int_equal(store_query(s, &q, NULL), 0);
    next(s, &c);
    assert_int_equal(c.found_count, 1);
    assert_int_equal(c.found[0].job.state, STORE_DONE);
    store_completion_clear(&c);
    b = store_batch_new();
    assert_int_equal(store_batch_expire(b, 100, 10), 0);
    assert_int_equal(store_batch_image_drop(b, 1, 7), 0);
    submit(s, b);
    assert_int_equal(store_query(s, &q, NULL), 0);
    next(s, &c);
    assert_int_equal(c.found_count, 0);
    store_completion_clear(&c);
    assert_int_equal(store_read(s, 1, 7, NULL), 0);
    next(s, &c);
    assert_int_equal(c.code, STEER_NOT_FOUND);
    store_completion_clear(&c);
    store_close(s);
}

/* A spooled file that a power cut took, or changed, is reported and forgotten. */
static void test_lost_file(void **unused)
{
    (void)unused;
    struct store *s;
    struct seen seen;
    struct store_opened opened;
    struct steer_error err = {0};
    char command[200];
    if (open_store(&s, &seen, &opened, &err)) fail_msg("%s", err.text);
    struct store_batch *b = store_batch_new();
    put(b, 11, "eleven");
    struct store_image image = {11, 0, 5, wire_crc32("image", 5), "head", 4};
    struct store_payload payload = {"image", 5, NULL, NULL};
    assert_int_equal(store_batch_image_spool(b, &image, &payload), 0);
    submit(s, b);
    store_close(s);
    snprintf(command, sizeof command, "find %s/spool -type f -exec truncate -s 2 {} +", dir);
    assert_int_equal(system(command), 0);
    if (open_store(&s, &seen, &opened, &err)) fail_msg("%s", err.text);
    assert_int_equal(opened.images_lost, 1);
    assert_int_equal(seen.images, 0);
    store_close(s);
}

static void test_refusals(void **unused)
{
    (void)unused;
    struct store *s, *other;
    struct seen seen;
    struct store_opened opened;
    struct steer_error err = {0};
    if (open_store(&s, &seen, &opened, &err)) fail_msg("%s", err.text);
    assert_int_not_equal(open_store(&other, &seen, &opened, &err), 0);
    assert_non_null(strstr(err.text, "in use"));
    store_close(s);

    sqlite3 *db;
    char path[128];
    snprintf(path, sizeof path, "%s/steer.db", dir);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(sqlite3_open(path, &db), 0);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version = 999", NULL, NULL, NULL), 0);
    sqlite3_close(db);
    memset(&err, 0, sizeof err);
    assert_int_not_equal(open_store(&s, &seen, &opened, &err), 0);
    print_message("newer schema: %s\n", err.text);
    assert_non_null(strstr(err.text, "999"));
}

int main(void)
{
    snprintf(dir, sizeof dir, "/tmp/steerfarm-store-XXXXXX");
    if (!mkdtemp(dir)) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_life),
                                       cmocka_unit_test(test_lost_file),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
