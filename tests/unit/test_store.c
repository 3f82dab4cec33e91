// SPDX-License-Identifier: Apache-2.0
/* The store's directory and its room: everything comes back in the documented order, a directory
 * belongs to one broker, one shard and one schema, and each refusal is one sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sqlite3.h>

#include "store.h"
#include "wire.h"

enum { NOBODY = 65534 };

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "store-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "chmod -R u+w '%s' && rm -rf '%s'", dir, dir);
    return system(command);
}

/* ---- what a load reported, as text, so that a test compares one string */

struct seen {
    char text[2048];
};

static void note(struct seen *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(struct seen *s, const char *format, ...)
{
    size_t used = strlen(s->text);
    va_list list;
    va_start(list, format);
    vsnprintf(s->text + used, sizeof s->text - used, format, list);
    va_end(list);
}

static int see_model(void *context, const char *name, const void *data, size_t bytes)
{
    note(context, "model %s %.*s;", name, (int)bytes, (const char *)data);
    return 0;
}

static int see_counter(void *context, const char *name, uint64_t value)
{
    note(context, "counter %s %llu;", name, (unsigned long long)value);
    return 0;
}

static int see_tombstone(void *context, const struct store_tombstone *t)
{
    note(context, "tombstone %s %s;", t->tenant, t->key);
    return 0;
}

static int see_job(void *context, const struct store_job *j)
{
    note(context, "job %llu %s %.*s;", (unsigned long long)j->id, j->key, (int)j->spec_bytes,
         (const char *)j->spec);
    return 0;
}

static int see_chunk(void *context, const struct store_chunk *c)
{
    note(context, "chunk %u %.*s;", c->number, (int)c->bytes, (const char *)c->data);
    return 0;
}

static int see_failure(void *context, const struct store_failure *f)
{
    note(context, "failure %u %u %s %s;", f->index, f->attempts, steer_code_name(f->code), f->text);
    return 0;
}

static int see_image(void *context, const struct store_image *i, bool usable)
{
    note(context, "image %u %llu %s;", i->index, (unsigned long long)i->bytes,
         usable ? "usable" : "lost");
    return 0;
}

static int try_open(struct store **ret, struct seen *seen, struct store_opened *opened,
                    uint32_t shard, struct steer_error *err)
{
    struct store_options options;
    struct store_load load = {seen,    see_model, see_counter, see_tombstone,
                              see_job, see_chunk, see_failure, see_image};
    store_options_default(&options);
    options.dir = dir;
    options.shard = shard;
    options.free_bytes_min = options.reserve_bytes = 0; /* the test's disk is not the subject */
    memset(seen, 0, sizeof *seen);
    return store_open(ret, &options, &load, opened, err);
}

static struct store *open_store(struct seen *seen, struct store_opened *opened)
{
    struct store *s = NULL;
    struct steer_error err = {0};
    if (try_open(&s, seen, opened, 0, &err)) fail_msg("%s", err.text);
    return s;
}

/* ---- driving */

static struct store_completion next(struct store *s)
{
    struct store_completion c;
    struct pollfd p = {store_fd(s), POLLIN, 0};
    while (!store_next(s, &c))
        assert_true(poll(&p, 1, 20000) == 1);
    return c;
}

static void commit(struct store *s, struct store_batch *b)
{
    store_submit(s, &b, NULL);
    assert_null(b);
    struct store_completion c = next(s);
    if (c.code) fail_msg("%s: %s", steer_code_name(c.code), store_trouble(s));
    store_completion_clear(&c);
}

static void put_job(struct store_batch *b, uint64_t id, const char *key, uint8_t hash)
{
    struct store_label label = {"shot", key};
    struct store_job j = {.id = id,
                          .tenant = "default",
                          .key = key,
                          .spec = "spec",
                          .spec_bytes = 4,
                          .accepted_ms = 1000 + id,
                          .labels = &label,
                          .label_count = 1};
    memset(j.hash, hash, sizeof j.hash);
    assert_int_equal(store_batch_job_put(b, &j), 0);
}

static int released;
static void release(void *owner)
{
    (void)owner;
    released++;
}

static void put_image(struct store_batch *b, uint64_t job, uint32_t index, const char *bytes)
{
    struct store_image i = {job,      index, strlen(bytes), wire_crc32(bytes, strlen(bytes)),
                            "header", 6};
    struct store_payload p = {bytes, strlen(bytes), release, NULL};
    assert_int_equal(store_batch_image_spool(b, &i, &p), 0);
}

static void test_everything_comes_back(void **state)
{
    (void)state;
    struct seen seen;
    struct store_opened opened;
    struct store *s = open_store(&seen, &opened);
    assert_string_equal(seen.text, "");
    assert_int_equal(opened.epoch, 1);
    struct store_batch *b = store_batch_new();
    put_job(b, 7, "seven", 1);
    put_job(b, 9, "nine", 1);
    assert_int_equal(store_batch_model_put(b, "m", "data", 4), 0);
    assert_int_equal(store_batch_counter_put(b, "n", 3), 0);
    assert_int_equal(store_batch_tombstone_put(b, &(struct store_tombstone){"default", "never", 5}),
                     0);
    assert_int_equal(store_batch_chunk_put(b, &(struct store_chunk){7, 0, "old", 3}), 0);
    assert_int_equal(store_batch_chunk_put(b, &(struct store_chunk){7, 0, "new", 3}), 0);
    struct store_failure failure = {7, 2, 3, STEER_RENDER_FAILED, "why"};
    assert_int_equal(store_batch_failure_put(b, &failure), 0);
    put_image(b, 7, 1, "image bytes");
    commit(s, b);
    assert_int_equal(released, 1);
    b = store_batch_new();
    assert_int_equal(store_batch_job_end(b, 9, STORE_DONE, 2000, "sum", 3), 0);
    commit(s, b);
    store_close(s);

    s = open_store(&seen, &opened);
    assert_string_equal(seen.text,
                        "model m data;counter n 3;tombstone default never;job 7 seven spec;"
                        "chunk 0 new;failure 2 3 RENDER_FAILED why;image 1 11 usable;");
    assert_int_equal(opened.epoch, 2); /* it grows with every opening */
    assert_int_equal(opened.job_last, 9);
    assert_int_equal(opened.jobs_open, 1);

    /* A key that is known comes back with its job. */
    b = store_batch_new();
    put_job(b, 10, "seven", 1);
    store_submit(s, &b, NULL);
    struct store_completion c = next(s);
    assert_int_equal(c.known_count, 1);
    assert_int_equal(c.known[0].put, 10);
    assert_int_equal(c.known[0].job, 7);
    store_completion_clear(&c);

    /* 9 has ended: it is only found by asking. */
    struct store_query q = {.tenant = "default", .limit = 10, .details = true};
    assert_int_equal(store_query(s, &q, &q), 0);
    c = next(s);
    assert_ptr_equal(c.cookie, &q);
    assert_int_equal(c.found_count, 2);
    assert_int_equal(c.found[0].job.id, 9); /* newest first */
    assert_int_equal(c.found[0].job.state, STORE_DONE);
    assert_int_equal(c.found[1].failure_count, 1);
    store_completion_clear(&c);
    q = (struct store_query){.label = {"shot", "seven"}, .tenant = "default", .limit = 10};
    assert_int_equal(store_query(s, &q, NULL), 0);
    c = next(s);
    assert_int_equal(c.found_count, 1);
    assert_int_equal(c.found[0].job.id, 7);
    store_completion_clear(&c);
    store_close(s);
}

static void test_images(void **state)
{
    (void)state;
    struct seen seen;
    struct store_opened opened;
    struct store_space space;
    struct store *s = open_store(&seen, &opened);
    struct store_batch *b = store_batch_new();
    put_job(b, 1, "k", 1);
    put_image(b, 1, 0, "zero");
    put_image(b, 1, 1, "one");
    put_image(b, 1, 2, "two more");
    commit(s, b);
    store_space(s, &space);
    assert_int_equal(space.spool_used, 15);
    assert_int_equal(store_read(s, 1, 0, NULL), 0);
    struct store_completion c = next(s);
    assert_int_equal(c.code, 0);
    assert_int_equal(c.image.bytes, 4);
    assert_memory_equal(c.payload, "zero", 4);
    store_completion_clear(&c);

    /* Acknowledged: the record goes, then the file; a second time is fine. */
    for (int twice = 0; twice < 2; twice++) {
        b = store_batch_new();
        assert_int_equal(store_batch_image_drop(b, 1, 0), 0);
        commit(s, b);
    }
    assert_int_equal(store_read(s, 1, 0, NULL), 0);
    c = next(s);
    assert_int_equal(c.code, STEER_NOT_FOUND);
    store_completion_clear(&c);
    store_close(s);

    /* Files that a power cut took or cut short: the records are gone too, the images reported lost.
     */
    char command[256];
    snprintf(command, sizeof command,
             "find '%s/spool' -type f -name '*-00000001-*' -delete && "
             "find '%s/spool' -type f -exec truncate -s 2 {} +",
             dir, dir);
    assert_int_equal(system(command), 0);
    s = open_store(&seen, &opened);
    assert_non_null(strstr(seen.text, "image 1 3 lost;"));
    assert_non_null(strstr(seen.text, "image 2 8 lost;"));
    assert_int_equal(opened.images_lost, 2);
    store_space(s, &space);
    assert_int_equal(space.spool_used, 0);
    store_close(s);
}

static void test_reopened(void **state)
{
    (void)state;
    struct seen seen;
    struct store_opened opened;
    struct store *s = open_store(&seen, &opened);
    struct store_batch *b = store_batch_new();
    for (uint64_t id = 1; id <= 3; id++) {
        char key[8];
        snprintf(key, sizeof key, "k%d", (int)id);
        put_job(b, id, key, 1);
    }
    assert_int_equal(store_batch_job_end(b, 1, STORE_DONE, 100, NULL, 0), 0);
    assert_int_equal(store_batch_job_end(b, 2, STORE_DONE, 300, NULL, 0), 0);
    commit(s, b);
    b = store_batch_new();
    assert_int_equal(store_batch_expire(b, 200, 10), 0);
    store_submit(s, &b, NULL);
    struct store_completion c = next(s);
    assert_int_equal(c.expired, 1);
    store_completion_clear(&c);
    struct store_query q = {.tenant = "default", .limit = 10};
    assert_int_equal(store_query(s, &q, NULL), 0);
    c = next(s);
    assert_int_equal(c.found_count, 2);
    store_completion_clear(&c);
    /* Its number is not used again. */
    store_close(s);
    s = open_store(&seen, &opened);
    assert_int_equal(opened.job_last, 3);

    b = store_batch_new(); /* open again: loaded at the next start */
    assert_int_equal(store_batch_job_reopen(b, 2), 0);
    commit(s, b);
    store_close(s);
    s = open_store(&seen, &opened);
    assert_int_equal(opened.jobs_open, 2);
    store_close(s);
}

static void test_room(void **state)
{
    (void)state;
    struct seen seen;
    struct store_opened opened;
    struct store_options options;
    struct store *s = NULL;
    struct steer_error err = {0};
    store_options_default(&options);
    options.dir = dir;
    options.spool_bytes_max = 100;
    options.free_bytes_min = options.reserve_bytes = 0;
    memset(&seen, 0, sizeof seen);
    assert_int_equal(store_open(&s, &options, NULL, &opened, &err), 0);
    assert_int_equal(store_reserve(s, 60), 0);
    assert_int_equal(store_reserve(s, 60), STEER_DISK_FULL);
    store_release(s, 60);
    assert_int_equal(store_reserve(s, 100), 0);
    store_close(s);
}

/* A reserve that a full disk left without a byte is made when there is room. */
static void test_empty_reserve(void **unused)
{
    (void)unused;
    struct store_opened opened;
    struct store_options options;
    struct store *s = NULL;
    struct steer_error err = {0};
    struct stat st;
    char path[128];
    store_options_default(&options);
    options.dir = dir;
    options.free_bytes_min = 0;
    options.reserve_bytes = 8192;
    snprintf(path, sizeof path, "%s/reserve", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(store_open(&s, &options, NULL, &opened, &err), 0);
    store_close(s);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 8192);
}

/* ---- directories that are not ours to use */

static void refused(uint32_t shard, int code, const char *text)
{
    struct seen seen;
    struct store_opened opened;
    struct store *s = NULL;
    struct steer_error err = {0};
    assert_int_equal(try_open(&s, &seen, &opened, shard, &err), code);
    assert_null(s);
    if (!strstr(err.text, text)) fail_msg("\"%s\" is not in \"%s\"", text, err.text);
}

static void make_and_close(void)
{
    struct seen seen;
    struct store_opened opened;
    store_close(open_store(&seen, &opened));
}

static void test_locked_twice(void **state)
{
    (void)state;
    struct seen seen;
    struct store_opened opened;
    struct store *s = open_store(&seen, &opened);
    refused(0, STEER_STORE, "in use by another steer-broker");
    store_close(s);
    make_and_close();
}

static void test_other_shard(void **state)
{
    (void)state;
    make_and_close();
    refused(3, STEER_STORE, "holds shard 0");
}

static void run_sql(const char *sql)
{
    char path[128];
    sqlite3 *db;
    snprintf(path, sizeof path, "%s/steer.db", dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

static void test_newer_schema(void **state)
{
    (void)state;
    make_and_close();
    run_sql("PRAGMA user_version = 1000");
    refused(0, STEER_STORE, "schema version 1000");
}

static void test_other_programs(void **state)
{
    (void)state;
    run_sql("CREATE TABLE t (x); PRAGMA application_id = 77");
    refused(0, STEER_STORE, "another program");
    char path[128];
    snprintf(path, sizeof path, "%s/steer.db", dir);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/letter.txt", dir);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    refused(0, STEER_STORE, "'letter.txt'");
    assert_int_equal(access(path, F_OK), 0);
}

static void test_not_a_database(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/steer.db", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < 1000; i++)
        fputs("this is no database. ", f);
    fclose(f);
    refused(0, STEER_STORE, "not a database");
}

static void test_read_only(void **state)
{
    (void)state;
    make_and_close();
    assert_int_equal(chmod(dir, 0500), 0);
    char path[128];
    snprintf(path, sizeof path, "%s/steer.db", dir);
    assert_int_equal(chmod(path, 0400), 0);
    snprintf(path, sizeof path, "%s/lock", dir);
    assert_int_equal(chmod(path, 0400), 0);
    /* Root writes whatever the mode says, so it becomes somebody else for a moment. The path is
     * relative: only the directory itself has to let that user in. */
    int root = geteuid() == 0;
    if (root) assert_int_equal(chmod(dir, 0555) | seteuid(NOBODY), 0);
    refused(0, STEER_IO, "cannot be written");
    if (root) assert_int_equal(seteuid(0), 0);
}

static void test_bad_values(void **state)
{
    (void)state;
    struct store_batch *b = store_batch_new();
    struct store_job zero = {.tenant = "default", .key = "k", .spec = "", .spec_bytes = 0};
    assert_int_equal(store_batch_job_put(b, &zero), STEER_BAD_VALUE);
    released = 0;
    struct store_image i = {1, 0, 99, 0, "h", 1};
    struct store_payload short_one = {"x", 1, release, NULL};
    assert_int_equal(store_batch_image_spool(b, &i, &short_one), STEER_BAD_VALUE);
    assert_int_equal(released, 1); /* the call failing included */
    assert_int_equal(store_batch_records(b), 0);
    store_batch_free(b);
    struct store *s = NULL;
    struct store_options options;
    struct store_opened opened;
    struct steer_error err = {0};
    store_options_default(&options);
    assert_int_equal(store_open(&s, &options, NULL, &opened, &err), STEER_BAD_VALUE);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_everything_comes_back),
        TEST(test_images),
        TEST(test_reopened),
        TEST(test_room),
        TEST(test_empty_reserve),
        TEST(test_locked_twice),
        TEST(test_other_shard),
        TEST(test_newer_schema),
        TEST(test_other_programs),
        TEST(test_not_a_database),
        TEST(test_read_only),
        TEST(test_bad_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
