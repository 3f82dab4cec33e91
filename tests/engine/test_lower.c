// SPDX-License-Identifier: Apache-2.0
/* Prompts in lower case and stripped, against Python 3.11's str.lower().strip(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text/lower.h"

static const struct {
    const char *text, *lower;
} rows[] = {
    {"", ""},
    {" \t\n ", ""},
    {"  The RED Cat ", "the red cat"},
    {"\u2003\x1fX\xc2\x85", "x"},
    {"\u00c4\u1e9e\u01c5", "\u00e4\u00df\u01c6"},
    {"\u0130I", "i\u0307i"},
    {"\u023a\u023a\u023a\u023a", "\u2c65\u2c65\u2c65\u2c65"}, /* grows by a half */
    {"\U00010400\ufffd\u00c9", "\U00010428\ufffd\u00e9"},
    /* A sigma is final after a letter and before none; what letters carry is looked over. */
    {"\u0391\u03a3 \u03a3\u0391\u03a3. \u03a3", "\u03b1\u03c2 \u03c3\u03b1\u03c2. \u03c3"},
    {"\u0391.\u03a3'\u0392 \u0391\u03a3'", "\u03b1.\u03c3'\u03b2 \u03b1\u03c2'"},
    {"\u0391\u03a3\u00ad \u0391\u03a3\u0301\u0391", "\u03b1\u03c2\u00ad \u03b1\u03c3\u0301\u03b1"},
    {"1\u03a3 a\u03a31", "1\u03c3 a\u03c21"},
    {"A\xff B\xc3", "a\xff b\xc3"}, /* no UTF-8: the tokenizer says so */
};

static void test_lower(void **unused)
{
    (void)unused;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *lower = NULL;
        size_t size = 0;
        assert_int_equal(text_lower(&lower, &size, rows[i].text, strlen(rows[i].text)), 0);
        assert_string_equal(lower, rows[i].lower);
        assert_int_equal(size, strlen(rows[i].lower));
        free(lower);
    }
}

/* A byte of the result leads back to its character. */
static void test_source(void **unused)
{
    (void)unused;
    static const char text[] = " \u0130x\u023a Y ";
    static const size_t from[] = {1, 1, 1, 3, 4, 4, 4, 6, 7, 8};
    for (size_t i = 0; i < sizeof from / sizeof *from; i++)
        assert_int_equal(text_lower_source(text, strlen(text), i), from[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_lower), cmocka_unit_test(test_source)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
