// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "error.h"
#include "text.h"
#include "wire.h"

/* One, two, three and four bytes a character. */
static const char mixed[] = "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x90\xaf"
                            "b\xf0\x9f\x90\xaf\xe2\x82\xac\xc3\xa4";

static void test_cut(void **unused)
{
    (void)unused;
    for (size_t size = 1; size < sizeof mixed + 4; size++) {
        char to[64];
        memset(to, 'x', sizeof to);
        text_copy(to, size, mixed);
        size_t bytes = strlen(to);
        assert_true(bytes < size && bytes + 4 >= (size < sizeof mixed ? size : sizeof mixed));
        assert_true(wire_utf8_valid(to, bytes));
        assert_memory_equal(to, mixed, bytes);
        assert_int_equal(text_cut(mixed, size - 1), bytes);
    }
}

static void test_trim(void **unused)
{
    (void)unused;
    for (size_t size = 0; size < sizeof mixed; size++) {
        char to[64];
        snprintf(to, sizeof to, "%.*s", (int)size, mixed);
        text_trim(to);
        assert_int_equal(strlen(to), text_cut(mixed, size));
    }
}

/* A sentence about a long text is a text itself. */
static void test_error(void **unused)
{
    (void)unused;
    static char many[4001];
    for (int i = 0; i < 4000; i += 2)
        memcpy(many + i, "\xc3\xa4", 2);
    for (int i = 0; i < 4; i++) {
        struct steer_error err;
        (void)steer_fail(&err, STEER_BAD_TEXT, "%.*s%s", i, "xxxx", many);
        assert_true(strlen(err.text) >= sizeof err.text - 3);
        assert_true(wire_utf8_valid(err.text, strlen(err.text)));
        (void)steer_fail_in(&err, STEER_BAD_TEXT, "here%.*s", i, "xxxx");
        assert_true(wire_utf8_valid(err.text, strlen(err.text)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
