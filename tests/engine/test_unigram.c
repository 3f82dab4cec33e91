// SPDX-License-Identifier: Apache-2.0
/* T5's tokenizer against transformers' fast one and SentencePiece on awkward text
 * (tests/golden/unigram.py), and the forms its folder comes in (tests/golden/unigram_forms.py). */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "text/unigram.h"

static struct unigram *tokenizer;
static json_t *golden;

static json_t *golden_load(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/data/%s", getenv("STEER_SOURCE_DIR"), name);
    json_t *all = json_load_file(path, JSON_ALLOW_NUL, NULL);
    assert_non_null(all);
    return all;
}

/* 1 when the ids are those of the list, which may be shorter: then padding must follow. */
static int ids_equal(const int32_t *ids, int length, const json_t *want)
{
    int count = (int)json_array_size(want);
    for (int i = 0; i < count; i++)
        if (i >= length || ids[i] != json_integer_value(json_array_get(want, (size_t)i))) return 0;
    for (int i = count; i < length; i++)
        if (ids[i] != 0) return 0;
    return 1;
}

static void complain(const json_t *text, const int32_t *ids, int count, const json_t *want)
{
    char *shown = json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII),
         *expected = json_dumps(want, JSON_COMPACT);
    print_error("%s:", shown);
    for (int i = 0; i < count; i++)
        print_error(" %d", ids[i]);
    print_error("; expected %s\n", expected);
    free(shown);
    free(expected);
}

/* The same tokens as the fast tokenizer; the same as SentencePiece but where the two differ. */
static void test_oracles(void **unused)
{
    (void)unused;
    json_t *rows = json_object_get(golden, "rows"), *row;
    size_t i, wrong = 0, differ = 0;
    json_array_foreach(rows, i, row)
    {
        const json_t *text = json_array_get(row, 0), *want = json_array_get(row, 1),
                     *other = json_array_get(json_array_get(row, 2), 0);
        int32_t ids[256];
        size_t cut = 99;
        int used = 0, count = (int)json_array_size(want);
        struct steer_error err = {0};
        if (unigram_encode(tokenizer, json_string_value(text), json_string_length(text), ids, 256,
                           &used, &cut, &err))
            fail_msg("%s", err.text);
        int right = ids_equal(ids, 256, want) && used == count && cut == 0;
        if (!right) complain(text, ids, used, want);
        wrong += !right;
        differ += other != NULL;
        if (other) assert_false(ids_equal(ids, 256, other) && used == (int)json_array_size(other));
    }
    print_message("%zu of %zu strings differ from the fast tokenizer, %zu from SentencePiece\n",
                  wrong, json_array_size(rows), wrong + differ);
    assert_int_equal(wrong, 0);
    assert_true(json_array_size(rows) > 300 && differ * 4 < json_array_size(rows));
}

static void test_cuts(void **unused)
{
    (void)unused;
    json_t *row;
    size_t i;
    json_array_foreach(json_object_get(golden, "cuts"), i, row)
    {
        const json_t *text = json_array_get(row, 0), *want = json_array_get(row, 2);
        int length = (int)json_integer_value(json_array_get(row, 1)), used = 0;
        int32_t ids[16] = {0};
        size_t cut = 99;
        struct steer_error err = {0};
        if (unigram_encode(tokenizer, json_string_value(text), json_string_length(text), ids,
                           length, &used, &cut, &err))
            fail_msg("%s", err.text);
        if (!ids_equal(ids, length, want)) complain(text, ids, length, want);
        assert_true(ids_equal(ids, length, want));
        assert_int_equal(used, json_integer_value(json_array_get(row, 3)));
    }
}

/* Where a text is cut is said as a byte of it, whatever normalizing has made of what is before. */
static void test_cut_place(void **unused)
{
    (void)unused;
    static const struct {
        const char *text;
        size_t kept; /* bytes of it that must fit, with the least length that they need */
    } rows[] = {{"cat cat cat", 8},
                {"  \xef\xbd\x83\xef\xbd\x81\xef\xbd\x94  cat", 13}, /* fullwidth */
                {"\xe2\x84\xa2 cat", 4},                             /* (TM), two letters */
                {"cat</s>cat", 7},
                {"cat</s>", 3},
                {"cat", 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int32_t ids[64];
        size_t cut = 99;
        int used = 0;
        struct steer_error err = {0};
        const char *text = rows[i].text;
        assert_int_equal(unigram_encode(tokenizer, text, rows[i].kept, ids, 64, &used, &cut, &err),
                         0);
        assert_int_equal(cut, 0);
        assert_int_equal(
            unigram_encode(tokenizer, text, strlen(text), ids, used, &used, &cut, &err), 0);
        assert_int_equal(cut, rows[i].kept ? rows[i].kept : 1);
    }
}

static void test_bad_text(void **unused)
{
    (void)unused;
    int32_t ids[8];
    size_t cut = 0;
    int used = 0;
    struct steer_error err = {0};
    assert_int_equal(unigram_encode(tokenizer, "a\xff", 2, ids, 8, &used, &cut, &err),
                     STEER_BAD_TEXT);
    assert_non_null(strstr(err.text, "byte 1"));
    assert_int_equal(unigram_encode(tokenizer, "a\xe2\x96", 3, ids, 8, &used, &cut, &err),
                     STEER_BAD_TEXT);
    assert_int_equal(unigram_encode(tokenizer, "a", 1, ids, 0, &used, &cut, &err), STEER_INTERNAL);
}

/* files: {name: text or null}, into the folder; spiece.model is hexadecimal. */
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
        const char *data = json_string_value(text);
        unsigned byte;
        if (strcmp(name, "spiece.model") != 0)
            fputs(data, f);
        else
            for (; sscanf(data, "%2x", &byte) == 1; data += 2)
                fputc((int)byte, f);
        fclose(f);
    }
}

/* saved with what changed in it, as a text. */
static json_t *whole_of(const json_t *saved, const json_t *changed)
{
    json_t *whole = json_deep_copy(saved), *parts = json_deep_copy(changed),
           *model = json_deep_copy(json_object_get(saved, "model"));
    json_object_update(model, json_object_get(parts, "model"));
    json_object_set_new(parts, "model", model);
    json_object_update(whole, parts);
    char *text = json_dumps(whole, JSON_COMPACT);
    json_t *ret = json_string(text);
    free(text);
    json_decref(parts);
    json_decref(whole);
    return ret;
}

static size_t rows_check(const struct unigram *t, const json_t *c, int length)
{
    size_t wrong = 0, i;
    json_t *row;
    json_array_foreach(json_object_get(c, "rows"), i, row)
    {
        const json_t *text = json_array_get(row, 0), *want = json_array_get(row, 1);
        int32_t ids[UNIGRAM_TOKENS_MAX];
        size_t cut;
        int used = 0;
        struct steer_error err = {0};
        if (unigram_encode(t, json_string_value(text), json_string_length(text), ids, length, &used,
                           &cut, &err))
            fail_msg("%s", err.text);
        if (ids_equal(ids, length, want)) continue;
        print_error("%s: ", json_string_value(json_object_get(c, "name")));
        complain(text, ids, length, want);
        wrong++;
    }
    return wrong;
}

static void test_folders(void **unused)
{
    (void)unused;
    static const char *const names[] = {"spiece.model", "tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json", "added_tokens.json"};
    char dir[] = "/tmp/steer-unigram-XXXXXX";
    json_t *all = golden_load("unigram_forms.json"), *none = json_object(), *c;
    assert_non_null(mkdtemp(dir));
    int length = (int)json_integer_value(json_object_get(all, "length"));
    size_t wrong = 0, i;
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        json_object_set_new(none, names[k], json_null());
    json_array_foreach(json_object_get(all, "cases"), i, c)
    {
        json_t *files = json_copy(none);
        json_object_update(files, json_object_get(all, "base"));
        json_object_update(files, json_object_get(c, "files"));
        const json_t *whole = json_object_get(files, "tokenizer.json");
        if (json_is_object(whole))
            json_object_set_new(files, "tokenizer.json",
                                whole_of(json_object_get(all, "saved"), whole));
        files_write(dir, files);
        json_decref(files);
        struct unigram *t = NULL;
        struct steer_error err = {0};
        int code = unigram_open(&t, dir, &err), refused = !json_object_get(c, "rows");
        if ((code != 0) != refused) {
            print_error("%s: %s\n", json_string_value(json_object_get(c, "name")),
                        code ? err.text : "opened");
            wrong++;
        } else if (!code) {
            wrong += rows_check(t, c, length);
        } else {
            assert_null(t);
            assert_non_null(strstr(err.text, dir));
        }
        unigram_close(t);
    }
    print_message("%zu forms of folders\n", json_array_size(json_object_get(all, "cases")));
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
    golden = golden_load("unigram.json");
    snprintf(path, sizeof path, "%s/tests/golden/data/t5/model/tokenizer",
             getenv("STEER_SOURCE_DIR"));
    int code = unigram_open(&tokenizer, path, &err);
    if (code) print_error("%s\n", err.text);
    return code;
}

static int teardown(void **unused)
{
    (void)unused;
    unigram_close(tokenizer);
    json_decref(golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_oracles), cmocka_unit_test(test_cuts),
                                       cmocka_unit_test(test_cut_place),
                                       cmocka_unit_test(test_bad_text),
                                       cmocka_unit_test(test_folders)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
