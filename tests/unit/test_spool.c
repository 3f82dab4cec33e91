// SPDX-License-Identifier: Apache-2.0
/* The spool alone: what is written is read back or refused, what nobody knows is removed, and the
 * quota holds. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "spool.h"
#include "wire.h"

/* write() is replaced: when armed, it takes this many bytes more, then fails. */
static int write_errno;
static size_t write_left;
ssize_t __real_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size)
{
    if (write_errno == 0) return __real_write(fd, data, size);
    if (write_left == 0) {
        errno = write_errno;
        return -1;
    }
    size_t n = size < write_left ? size : write_left;
    write_left -= n;
    return __real_write(fd, data, n);
}

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "spool-XXXXXX");
    write_errno = 0;
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static struct spool *open_spool(uint64_t max)
{
    struct spool *s = NULL;
    struct steer_error err = {0};
    if (spool_open(&s, dir, max, &err) != 0) fail_msg("%s", err.text);
    return s;
}

static struct spool_file file_of(uint64_t number, const void *data, size_t bytes)
{
    return (struct spool_file){.job = 1000 + number,
                               .index = (uint32_t)number % 7,
                               .file = number,
                               .bytes = bytes,
                               .crc32 = wire_crc32(data, bytes)};
}

static void path_of(char path[256], const struct spool_file *f)
{
    snprintf(path, 256, "%s/spool/%02x/%016llx-%08x-%016llx", dir, (unsigned)(f->file & 255),
             (unsigned long long)f->job, f->index, (unsigned long long)f->file);
}

static bool exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

static void put_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(__real_write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct spool *s = open_spool(0);
    uint8_t image[5000];
    for (size_t i = 0; i < sizeof image; i++)
        image[i] = (uint8_t)(i * 31);
    for (uint64_t n = 0; n < 300; n++) {
        size_t bytes = (size_t)n * 16; /* 0 as well */
        struct spool_file f = file_of(n, image, bytes);
        assert_int_equal(spool_write(s, &f, image, NULL), 0);
        uint8_t *data = NULL;
        assert_int_equal(spool_read(s, &f, &data, NULL), 0);
        assert_memory_equal(data, image, bytes);
        free(data);
    }
    /* The same number again is a bug, not a file written over. */
    struct spool_file f = file_of(5, "x", 1);
    assert_int_equal(spool_write(s, &f, "x", NULL), STEER_IO);
    f = file_of(5, image, 80);
    spool_remove(s, &f);
    uint8_t *data = NULL;
    struct steer_error err;
    assert_int_equal(spool_read(s, &f, &data, &err), STEER_IO);
    assert_null(data);
    assert_non_null(strstr(err.text, "No such file"));
    spool_remove(s, &f);
    spool_close(s);
}

/* A file that is done with is used again, and nothing of its old image is in the new one. */
static void test_files_are_used_again(void **state)
{
    (void)state;
    static const char *const images[] = {"the first and longest image", "short", "",
                                         "longer again"};
    struct spool *s = open_spool(0);
    char path[256];
    struct stat before, after;
    for (uint64_t n = 0; n < 4; n++) {
        struct spool_file f = file_of(n, images[n], strlen(images[n]));
        assert_int_equal(spool_write(s, &f, images[n], NULL), 0);
        uint8_t *data = NULL;
        assert_int_equal(spool_read(s, &f, &data, NULL), 0);
        assert_memory_equal(data, images[n], strlen(images[n]));
        free(data);
        path_of(path, &f);
        assert_int_equal(stat(path, n ? &after : &before), 0);
        if (n) assert_int_equal(after.st_ino, before.st_ino);
        spool_remove(s, &f);
        assert_false(exists(path));
    }
    /* A number that is there is not written over, whatever is spare. */
    struct spool_file f = file_of(9, "nine", 4);
    assert_int_equal(spool_write(s, &f, "nine", NULL), 0);
    struct spool_file other = file_of(10, "ten", 3);
    assert_int_equal(spool_write(s, &other, "ten", NULL), 0);
    spool_remove(s, &other);
    assert_int_equal(spool_write(s, &f, "new!", NULL), STEER_IO);
    uint8_t *data = NULL;
    assert_int_equal(spool_read(s, &f, &data, NULL), 0);
    free(data);

    /* What cannot wait is removed. */
    assert_int_equal(spool_write(s, &other, "ten", NULL), 0);
    snprintf(path, sizeof path, "rm -r '%s/spool/spare'", dir);
    assert_int_equal(system(path), 0);
    spool_remove(s, &other);
    path_of(path, &other);
    assert_false(exists(path));
    snprintf(path, sizeof path, "%s/spool/spare", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(spool_write(s, &other, "ten", NULL), 0);
    spool_remove(s, &other);

    /* A start knows no spares: they go. So they do when the disk gets short of room, and no more
     * are kept. */
    snprintf(path, sizeof path, "test -z \"$(find '%s/spool/spare' -type f)\"", dir);
    assert_int_not_equal(system(path), 0);
    spool_disk_set(s, 500 << 20, 100 << 20);
    assert_int_equal(system(path), 0);
    assert_int_equal(spool_write(s, &other, "ten", NULL), 0);
    spool_remove(s, &other);
    assert_int_equal(system(path), 0);
    spool_disk_set(s, UINT64_MAX, 0);
    assert_int_equal(spool_write(s, &other, "ten", NULL), 0);
    spool_remove(s, &other);
    assert_int_not_equal(system(path), 0);
    spool_close(s);
    s = open_spool(0);
    uint64_t removed;
    assert_int_equal(spool_check(s, &f, 1, 0, &removed, NULL), 0);
    assert_true(f.usable);
    assert_int_equal(system(path), 0);
    spool_close(s);
}

static void test_damage_is_seen_when_read(void **state)
{
    (void)state;
    struct spool *s = open_spool(0);
    struct spool_file f = file_of(9, "nine bytes", 10);
    char path[256];
    struct steer_error err;
    uint8_t *data;
    path_of(path, &f);
    assert_int_equal(spool_write(s, &f, "nine bytes", NULL), 0);
    put_file(path, "nine bytez");
    assert_int_equal(spool_read(s, &f, &data, &err), STEER_IO);
    assert_non_null(strstr(err.text, "CRC"));
    put_file(path, "nine bytes more");
    assert_int_equal(spool_read(s, &f, &data, &err), STEER_IO);
    assert_non_null(strstr(err.text, "longer than the 10"));
    put_file(path, "nine");
    assert_int_equal(spool_read(s, &f, &data, &err), STEER_IO);
    assert_non_null(strstr(err.text, "shorter than the 10"));
    spool_close(s);
}

static void test_full_disk_leaves_nothing(void **state)
{
    (void)state;
    struct spool *s = open_spool(0);
    char image[100] = "image";
    struct spool_file f = file_of(3, image, sizeof image);
    char path[256];
    path_of(path, &f);
    struct steer_error err;
    const int errors[] = {ENOSPC, EDQUOT, EIO};
    for (size_t i = 0; i < 3; i++) {
        write_errno = errors[i];
        write_left = 60;
        assert_int_equal(spool_write(s, &f, image, &err), i < 2 ? STEER_DISK_FULL : STEER_IO);
        assert_non_null(strstr(err.text, strerror(errors[i])));
        assert_false(exists(path));
    }
    write_errno = 0;
    assert_int_equal(spool_write(s, &f, image, NULL), 0);
    spool_close(s);
}

/* Without a descriptor an image can be neither written nor read, and is none the worse for it. */
static void test_no_descriptors(void **unused)
{
    (void)unused;
    struct spool *s = open_spool(0);
    struct spool_file f = {.job = 1, .file = 1, .bytes = 5, .crc32 = wire_crc32("hello", 5)};
    struct steer_error err;
    struct rlimit before, none;
    uint8_t *data = NULL;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 3; /* all that is open is over it */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(spool_write(s, &f, "hello", &err), STEER_BUSY);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(spool_write(s, &f, "hello", &err), 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(spool_read(s, &f, &data, &err), STEER_BUSY);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(spool_read(s, &f, &data, &err), 0);
    free(data);
    spool_close(s);
}

static void test_check(void **state)
{
    (void)state;
    enum { N = 600 };
    struct spool *s = open_spool(0);
    struct spool_file files[N];
    char path[256];
    for (uint64_t n = 0; n < N; n++) {
        char text[32];
        snprintf(text, sizeof text, "image number %3u", (unsigned)n);
        files[n] = file_of(n, text, strlen(text));
        assert_int_equal(spool_write(s, &files[n], text, NULL), 0);
    }
    path_of(path, &files[10]);
    assert_int_equal(unlink(path), 0);
    path_of(path, &files[11]);
    put_file(path, "short");
    path_of(path, &files[12]);
    put_file(path, "image number 12!");
    /* Recorded for another image under the same file number. */
    files[13].index++;
    /* Rubbish: no record, a name that is none of ours, a name in the wrong folder. */
    struct spool_file orphan = file_of(5000, "orphan", 6);
    assert_int_equal(spool_write(s, &orphan, "orphan", NULL), 0);
    snprintf(path, sizeof path, "%s/spool/00/core", dir);
    put_file(path, "?");
    snprintf(path, sizeof path, "%s/spool/01/%016x-%08x-%016x", dir, 1000, 0, 0);
    put_file(path, "?");
    snprintf(path, sizeof path, "%s/spool/00/-00000000000003e8-00000000-000000000000000", dir);
    put_file(path, "?");

    uint64_t removed = 0;
    assert_int_equal(spool_check(s, files, N, 0, &removed, NULL), 0);
    /* 11 and 13 were removed with the four that nobody knows; 12 has the right length. */
    assert_int_equal(removed, 6);
    size_t lost = 0;
    for (size_t i = 0; i < N; i++) {
        bool bad = files[i].file == 10 || files[i].file == 11 || files[i].file == 13;
        assert_int_equal(files[i].usable, !bad);
        lost += !files[i].usable;
    }
    assert_int_equal(lost, 3);
    /* Newest first, and not beyond what is allowed: 12 is far from the newest. */
    assert_int_equal(spool_check(s, files, N, 1600, &removed, NULL), 0);
    assert_int_equal(removed, 0);
    assert_int_equal(spool_check(s, files, N, UINT64_MAX, &removed, NULL), 0);
    assert_int_equal(removed, 1);
    for (size_t i = 0; i < N; i++)
        assert_int_equal(files[i].usable, (files[i].file < 10 || files[i].file > 13));
    spool_close(s);

    /* All of it is rubbish to a store without records. */
    s = open_spool(0);
    assert_int_equal(spool_check(s, NULL, 0, UINT64_MAX, &removed, NULL), 0);
    assert_int_equal(removed, N - 4);
    spool_close(s);
}

static void test_quota(void **state)
{
    (void)state;
    struct spool *s = open_spool(1000);
    struct spool_room room;
    assert_int_equal(spool_reserve(s, 400), 0);
    assert_int_equal(spool_reserve(s, 601), STEER_DISK_FULL);
    assert_int_equal(spool_reserve(s, UINT64_MAX), STEER_DISK_FULL);
    assert_int_equal(spool_reserve(s, 600), 0);
    assert_int_equal(spool_reserve(s, 1), STEER_DISK_FULL);
    /* A result that is bigger than promised is kept, and nothing more is promised. */
    spool_release(s, 600);
    spool_count_in(s, 900);
    assert_int_equal(spool_reserve(s, 1), STEER_DISK_FULL);
    spool_count_out(s, 900);
    spool_room(s, &room);
    assert_int_equal(room.used, 0);
    assert_int_equal(room.images, 0);
    assert_int_equal(room.reserved, 400);
    assert_int_equal(room.max, 1000);
    spool_release(s, 500);
    spool_room(s, &room);
    assert_int_equal(room.reserved, 0);
    /* The disk has less than the quota. */
    spool_disk_set(s, 300, 100);
    assert_int_equal(spool_reserve(s, 201), STEER_DISK_FULL);
    assert_int_equal(spool_reserve(s, 200), 0);
    spool_disk_set(s, 50, 100);
    assert_int_equal(spool_reserve(s, 0), STEER_DISK_FULL);
    spool_close(s);
}

static void test_cannot_be_made(void **state)
{
    (void)state;
    char path[128];
    struct steer_error err = {0};
    struct spool *s = NULL;
    snprintf(path, sizeof path, "%s/spool", dir);
    put_file(path, "a file where a folder belongs");
    assert_int_equal(spool_open(&s, dir, 0, &err), STEER_IO);
    assert_null(s);
    assert_non_null(strstr(err.text, path));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_files_are_used_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damage_is_seen_when_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full_disk_leaves_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_no_descriptors, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_check, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_quota, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_cannot_be_made, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
