// SPDX-License-Identifier: Apache-2.0
/* CLIP's byte-level BPE against the Hugging Face fast tokenizer on awkward text
 * (tests/golden/tokens.py made tests/golden/data/tokens.json). */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text/clip_bpe.h"

enum { LENGTH = 40 };

static struct clip_bpe *tokenizer;

static void test_oracle(void **unused)
{
    (void)unused;
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/data/tokens.json", getenv("STEER_SOURCE_DIR"));
    json_t *rows = json_load_file(path, JSON_ALLOW_NUL, NULL);
    assert_non_null(rows);
    size_t wrong = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i), *want = json_array_get(row, 1);
        const char *text = json_string_value(json_array_get(row, 0));
        int32_t ids[LENGTH];
        size_t cut = 0;
        struct steer_error err = {0};
        if (clip_bpe_encode(tokenizer, text, strlen(text), ids, LENGTH, &cut, &err))
            fail_msg("%s", err.text);
        for (size_t k = 0; k < LENGTH; k++) {
            if (ids[k] == json_integer_value(json_array_get(want, k))) continue;
            char *shown = json_dumps(json_array_get(row, 0), JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
            print_error("%s: token %zu is %d, expected %d\n", shown, k, ids[k],
                        (int)json_integer_value(json_array_get(want, k)));
            free(shown);
            wrong++;
            break;
        }
    }
    print_message("%zu of %zu strings differ\n", wrong, json_array_size(rows));
    assert_int_equal(wrong, 0);
    json_decref(rows);
}

/* Where a text is cut is said as a byte of it. */
static void test_cut(void **unused)
{
    (void)unused;
    int32_t ids[6];
    size_t cut = 99;
    struct steer_error err = {0};
    const char *text = "the cat the dog the cat the dog";
    assert_int_equal(clip_bpe_encode(tokenizer, text, strlen(text), ids, 6, &cut, &err), 0);
    assert_int_equal(cut, strlen("the cat the dog ")); /* where the first lost word begins */
    assert_int_equal(clip_bpe_encode(tokenizer, "the cat", 7, ids, 6, &cut, &err), 0);
    assert_int_equal(cut, 0);
}

static int setup(void **unused)
{
    (void)unused;
    char path[1024];
    struct steer_error err = {0};
    snprintf(path, sizeof path, "%s/tests/golden/data/small/model/tokenizer",
             getenv("STEER_SOURCE_DIR"));
    int code = clip_bpe_open(&tokenizer, path, &err);
    if (code) print_error("%s\n", err.text);
    return code;
}

static int teardown(void **unused)
{
    (void)unused;
    clip_bpe_close(tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_oracle), cmocka_unit_test(test_cut)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
