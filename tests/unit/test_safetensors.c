// SPDX-License-Identifier: Apache-2.0
/* Tensor files: end to end or refused, and what a file that changes under its mapping does. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "safetensors.h"

static void file_write(const char *header, size_t data)
{
    uint8_t length[8] = {(uint8_t)strlen(header)};
    FILE *f = fopen("x.safetensors", "we");
    assert_non_null(f);
    fwrite(length, 1, sizeof length, f);
    fputs(header, f);
    for (size_t i = 0; i < data; i++)
        putc(1, f);
    fclose(f);
}

static const char two[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                          "\"b\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[8,14]}}";

static void refused(const char *header, size_t data, const char *word)
{
    struct tensors *t = NULL;
    struct steer_error err = {0};
    file_write(header, data);
    assert_int_equal(tensors_open(&t, "x.safetensors", &err), STEER_BAD_MODEL);
    assert_int_equal(err.code, STEER_BAD_MODEL);
    if (!strstr(err.text, word)) fail_msg("\"%s\" is not in: %s", word, err.text);
}

static void test_places(void **unused)
{
    (void)unused;
    struct tensors *t = NULL;
    struct steer_error err = {0};
    file_write(two, 14);
    if (tensors_open(&t, "x.safetensors", &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(t), 2);
    tensors_close(t);
    refused(two, 13, "truncated");
    refused(two, 15, "1 bytes after");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12, "\"a\"");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
            "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
            8, "does not begin where");
}

/* Reading a page of a file that has shrunk is a SIGBUS: it must be told before. */
static void test_change(void **unused)
{
    (void)unused;
    struct tensors *t = NULL;
    struct steer_error err = {0};
    file_write(two, 14);
    if (tensors_open(&t, "x.safetensors", &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_check(t, &err), 0);
    assert_int_equal(truncate("x.safetensors", 20), 0);
    assert_int_equal(tensors_check(t, &err), STEER_BAD_MODEL);
    assert_non_null(strstr(err.text, "x.safetensors was changed"));
    tensors_close(t);

    /* Replaced by another file of that name, the old one is still whole. */
    file_write(two, 14);
    if (tensors_open(&t, "x.safetensors", &err)) fail_msg("%s", err.text);
    assert_int_equal(unlink("x.safetensors"), 0);
    assert_int_equal(tensors_check(t, &err), 0);
    tensors_close(t);
}

/* Between the check and the read: zeros, and it is known that they are wrong. */
static void test_cut(void **unused)
{
    (void)unused;
    enum { COUNT = 1 << 16 };
    char header[128];
    struct tensors *t = NULL, *other = NULL;
    struct steer_error err = {0};
    snprintf(header, sizeof header,
             "{\"a\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[0,%d]}}", COUNT, COUNT);
    file_write(header, COUNT);
    if (tensors_open(&t, "x.safetensors", &err)) fail_msg("%s", err.text);
    if (tensors_open(&other, "x.safetensors", &err)) fail_msg("%s", err.text);
    const struct tensor_view *v = tensors_find(t, "a");
    assert_int_equal(truncate("x.safetensors", 5000), 0);
    assert_int_equal(tensors_whole(t, &err), 0); /* nothing of it was read */
    assert_int_equal(((const char *)v->data)[100], 1);
    assert_int_equal(tensors_whole(t, &err), 0);
    for (int i = 10000; i < COUNT; i += 1000)
        assert_int_equal(((const char *)v->data)[i], 0);
    assert_int_equal(tensors_whole(t, &err), STEER_BAD_MODEL);
    assert_non_null(strstr(err.text, "x.safetensors was cut short"));
    assert_int_equal(tensors_whole(other, &err), 0);
    tensors_close(t);
    tensors_close(other);

    /* Its place in the list is used again, and is whole. */
    file_write(header, COUNT);
    err = (struct steer_error){0};
    if (tensors_open(&t, "x.safetensors", &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_whole(t, &err), 0);
    tensors_close(t);
}

static void on_bus(int number)
{
    (void)number;
    _exit(42);
}

/* A fault that is nobody's mapping goes to whoever had the signal before. */
static void test_bus_error_of_others(void **unused)
{
    (void)unused;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        struct tensors *t = NULL;
        struct steer_error err = {0};
        signal(SIGBUS, on_bus);
        file_write(two, 14);
        int fd = open("x.safetensors", O_RDWR);
        volatile char *mine = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
        if (tensors_open(&t, "x.safetensors", &err) || ftruncate(fd, 0)) _exit(1);
        _exit(mine[0]);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

static void test_no_file(void **unused)
{
    (void)unused;
    struct tensors *t = NULL;
    struct steer_error err = {0};
    (void)unlink("x.safetensors");
    assert_int_equal(tensors_open(&t, "x.safetensors", &err), STEER_BAD_MODEL);
    assert_int_equal(mkfifo("x.safetensors", 0600), 0);
    assert_int_equal(tensors_open(&t, "x.safetensors", &err), STEER_BAD_MODEL);
    assert_non_null(strstr(err.text, "not a file"));
    (void)unlink("x.safetensors");
}

/* What lies in a clone where the file was not downloaded. */
static void test_pointer(void **unused)
{
    (void)unused;
    struct tensors *t = NULL;
    struct steer_error err = {0};
    FILE *f = fopen("x.safetensors", "we");
    assert_non_null(f);
    fputs("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", f);
    fclose(f);
    assert_int_equal(tensors_open(&t, "x.safetensors", &err), STEER_BAD_MODEL);
    assert_non_null(strstr(err.text, "Git LFS"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bus_error_of_others),
                                       cmocka_unit_test(test_places),
                                       cmocka_unit_test(test_change),
                                       cmocka_unit_test(test_cut),
                                       cmocka_unit_test(test_no_file),
                                       cmocka_unit_test(test_pointer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
