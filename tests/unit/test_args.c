// SPDX-License-Identifier: Apache-2.0
/* Command lines and the files that come of them. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "args.h"
#include "job_args.h"
#include "output.h"

struct seen {
    int count;
    const char *last;
};

static int set_seen(void *target, const char *value, struct steer_error *err)
{
    struct seen *s = target;
    (void)err;
    s->count++;
    s->last = value;
    return 0;
}

static const struct args_option seen_options[] = {
    {"models", "DIR", "", set_seen}, {"json", NULL, "", set_seen}, {NULL, NULL, NULL, NULL}};

static int parse(struct seen *s, int argc, char **argv)
{
    const struct args_group groups[] = {{"", seen_options, s}, {NULL, NULL, NULL}};
    struct steer_error err = {0};
    int words, help;
    *s = (struct seen){0};
    return args_parse(groups, argc, argv, &words, &help, &err);
}

static void test_flag_wins(void **state)
{
    char first[] = "--models", a[] = "a", b[] = "--models=b";
    char *flags[] = {first, a, b};
    struct seen s;
    (void)state;
    setenv("STEER_MODELS", "variable", 1);
    assert_int_equal(parse(&s, 3, flags), 0); /* flags may repeat; the variable is not added */
    assert_int_equal(s.count, 2);
    assert_string_equal(s.last, "b");
    assert_int_equal(parse(&s, 0, flags), 0);
    assert_int_equal(s.count, 1);
    assert_string_equal(s.last, "variable");
    setenv("STEER_JSON", "yes", 1);
    assert_int_equal(parse(&s, 0, flags), STEER_USAGE);
    unsetenv("STEER_JSON");
    unsetenv("STEER_MODELS");
}

static void test_not_utf8(void **state)
{
    static const char *const flags[] = {"--prompt", "--negative", "--recipe", "--numerics"};
    char bad[] = "\xff\xfe", label[] = "--label", pair[] = "k=\xc3";
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        struct job_args j;
        struct steer_error err = {0};
        int words, help;
        job_args_init(&j);
        const struct args_group groups[] = {
            {"", job_args_image, &j}, {"", job_args_farm, &j}, {NULL, NULL, NULL}};
        char *argv[] = {i < 4 ? (char *)(uintptr_t)flags[i] : label, i < 4 ? bad : pair};
        assert_int_equal(args_parse(groups, 2, argv, &words, &help, &err), STEER_BAD_TEXT);
        assert_non_null(strstr(err.text, argv[0]));
    }
}

/* Every image of the largest job has a file of its own. */
static void test_names(void **state)
{
    char a[100], b[100];
    int png;
    (void)state;
    assert_int_equal(output_name(a, sizeof a, "x.webp", 20000, 1000, 1, "1-a", "m"), 0);
    assert_int_equal(output_name(b, sizeof b, "x.webp", 20000, 10000, 1, "1-a", "m"), 0);
    assert_string_equal(a, "x-1000.webp");
    assert_string_equal(b, "x-10000.webp");
    assert_int_equal(output_name(a, sizeof a, "d.d/{model}-{seed}", 2, 0, UINT64_MAX, "j", "a/b"),
                     0);
    assert_string_equal(a, "d.d/a_b-18446744073709551615");
    assert_int_equal(output_name(a, 8, "too-long.webp", 1, 0, 1, "j", "m"), STEER_BAD_VALUE);
    assert_int_equal(output_format(&png, "a/b.PNG", NULL), 0);
    assert_int_equal(png, 1);
    assert_int_equal(output_format(&png, "b.webp", NULL), 0);
    assert_int_equal(png, 0);
    assert_int_equal(output_format(&png, "b.jpg", NULL), STEER_BAD_VALUE);
    assert_int_equal(output_format(&png, "a.png/b", NULL), STEER_BAD_VALUE);
}

static void test_folders(void **state)
{
    struct steer_error err = {0};
    (void)state;
    assert_int_equal(output_check("x.webp", &err), 0);
    assert_int_equal(output_check("/tmp/{job}.webp", &err), 0);
    assert_int_equal(output_check("{model}/x.webp", &err), 0);
    assert_int_equal(output_check("nowhere/x.webp", &err), STEER_NOT_FOUND);
    assert_non_null(strstr(err.text, "nowhere"));
}

static void test_write(void **state)
{
    struct steer_error err = {0};
    (void)state;
    unlink("w.webp");
    assert_int_equal(output_write("w.webp", "abc", 3, 0, &err), 0);
    assert_int_equal(output_write("w.webp", "abc", 3, 0, &err), 0); /* the same: it counts */
    assert_int_equal(output_write("w.webp", "abd", 3, 0, &err), STEER_BAD_VALUE);
    assert_non_null(strstr(err.text, "--overwrite"));
    assert_int_equal(output_write("w.webp", "abcd", 4, 0, &err), STEER_BAD_VALUE);
    assert_int_equal(output_same("w.webp", "abc", 3), 1);
    assert_int_equal(output_write("w.webp", "abcd", 4, 1, &err), 0);
    assert_int_equal(output_same("w.webp", "abcd", 4), 1);
    assert_int_equal(output_write("nowhere/w.webp", "abc", 3, 0, &err), STEER_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flag_wins), cmocka_unit_test(test_not_utf8),
        cmocka_unit_test(test_names),     cmocka_unit_test(test_folders),
        cmocka_unit_test(test_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
