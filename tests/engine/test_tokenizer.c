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
#include <unistd.h>

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
        int used = 0;
        size_t cut = 0;
        struct steer_error err = {0};
        if (clip_bpe_encode(tokenizer, text, strlen(text), ids, LENGTH, &used, &cut, &err))
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
    int used = 0;
    size_t cut = 99;
    struct steer_error err = {0};
    const char *text = "the cat the dog the cat the dog";
    assert_int_equal(clip_bpe_encode(tokenizer, text, strlen(text), ids, 6, &used, &cut, &err), 0);
    assert_int_equal(used, 6);
    assert_int_equal(cut, strlen("the cat the dog ")); /* where the first lost word begins */
    assert_int_equal(clip_bpe_encode(tokenizer, "the cat", 7, ids, 6, &used, &cut, &err), 0);
    assert_int_equal(used, 4); /* begin, the, cat, end */
    assert_int_equal(cut, 0);
}

/* files: {name: text or null}, into the folder. */
static void files_write(const char *dir, json_t *files)
{
    const char *name;
    json_t *text;
    json_object_foreach(files, name, text)
    {
        char path[1100];
        snprintf(path, sizeof path, "%s/%s", dir, name);
        unlink(path);
        if (!json_is_string(text)) continue;
        FILE *f = fopen(path, "we");
        assert_non_null(f);
        fputs(json_string_value(text), f);
        fclose(f);
    }
}

static size_t rows_check(const struct clip_bpe *t, const json_t *c, int length)
{
    size_t wrong = 0, i;
    json_t *row;
    json_array_foreach(json_object_get(c, "rows"), i, row)
    {
        const char *text = json_string_value(json_array_get(row, 0));
        int32_t ids[CLIP_BPE_TOKENS_MAX];
        int used;
        size_t cut;
        struct steer_error err = {0};
        if (clip_bpe_encode(t, text, strlen(text), ids, length, &used, &cut, &err))
            fail_msg("%s", err.text);
        for (int k = 0; k < length; k++) {
            int want = (int)json_integer_value(json_array_get(json_array_get(row, 1), (size_t)k));
            if (ids[k] == want) continue;
            print_error("%s: %s: token %d is %d, expected %d\n",
                        json_string_value(json_object_get(c, "name")), text, k, ids[k], want);
            wrong++;
            break;
        }
    }
    return wrong;
}

/* The forms that tokenizer folders come in (tests/golden/tokenizer_forms.py). */
static void test_folders(void **unused)
{
    (void)unused;
    char path[1024], dir[] = "/tmp/steer-tokenizer-XXXXXX";
    snprintf(path, sizeof path, "%s/tests/golden/data/tokenizer_forms.json",
             getenv("STEER_SOURCE_DIR"));
    json_t *all = json_load_file(path, 0, NULL), *c;
    assert_non_null(all);
    assert_non_null(mkdtemp(dir));
    int length = (int)json_integer_value(json_object_get(all, "length"));
    size_t wrong = 0, i;
    json_array_foreach(json_object_get(all, "cases"), i, c)
    {
        json_t *files = json_deep_copy(json_object_get(all, "base"));
        for (int k = 0; k < 6; k++) {
            static const char *const names[] = {"vocab.json",        "merges.txt",
                                                "tokenizer.json",    "special_tokens_map.json",
                                                "added_tokens.json", "tokenizer_config.json"};
            if (!json_object_get(files, names[k]))
                json_object_set_new(files, names[k], json_null());
        }
        json_object_update(files, json_object_get(c, "files"));
        files_write(dir, files);
        json_decref(files);
        struct clip_bpe *t = NULL;
        struct steer_error err = {0};
        int code = clip_bpe_open(&t, dir, &err), refused = !json_object_get(c, "rows");
        if ((code != 0) != refused) {
            print_error("%s: %s\n", json_string_value(json_object_get(c, "name")),
                        code ? err.text : "opened");
            wrong++;
        } else if (!code) {
            wrong += rows_check(t, c, length);
        } else {
            assert_true(strlen(err.text) > 20);
        }
        clip_bpe_close(t);
    }
    print_message("%zu forms of folders\n", json_array_size(json_object_get(all, "cases")));
    json_t *none =
        json_pack("{s:n, s:n, s:n, s:n, s:n, s:n}", "vocab.json", "merges.txt", "tokenizer.json",
                  "special_tokens_map.json", "added_tokens.json", "tokenizer_config.json");
    files_write(dir, none);
    rmdir(dir);
    json_decref(none);
    json_decref(all);
    assert_int_equal(wrong, 0);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_oracle), cmocka_unit_test(test_cut),
                                       cmocka_unit_test(test_folders)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
