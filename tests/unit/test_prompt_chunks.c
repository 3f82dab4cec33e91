// SPDX-License-Identifier: Apache-2.0
/* Where a long prompt is parted or cut, and which weight each of its tokens gets. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "limits.h"
#include "text/prompt_chunks.h"

enum { LENGTH = 77, ROOM = LENGTH - 2 };

static struct tokenizer *tokenizer;
static int32_t begin, end, cat, dog, comma;

static int setup(void **unused)
{
    (void)unused;
    char path[1024];
    struct steer_error err = {0};
    int32_t ids[5];
    struct tokenized how;
    snprintf(path, sizeof path, "%s/tests/golden/data/small/model/tokenizer",
             getenv("STEER_SOURCE_DIR"));
    if (tokenizer_open(&tokenizer, "CLIPTokenizer", path, &err) ||
        tokenizer_encode(tokenizer, "cat dog,", 8, ids, 5, &how, &err))
        return -1;
    begin = ids[0];
    cat = ids[1];
    dog = ids[2];
    comma = ids[3];
    end = ids[4];
    return 0;
}

static int teardown(void **unused)
{
    (void)unused;
    tokenizer_close(tokenizer);
    return 0;
}

static struct prompt_chunks make(const char *text, enum prompt_syntax syntax, int chunked)
{
    struct prompt_chunks c = {0};
    struct steer_error err = {0};
    struct prompt_reading reading = {syntax, chunked};
    if (prompt_chunks_make(&c, tokenizer, LENGTH, 0, text, reading, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < c.count; i++)
        assert_int_equal(c.ids[i * LENGTH], begin);
    return c;
}

/* How many tokens the text has in chunk i; begin, end and padding (which is end here) surround
 * them, and nothing weighs those. */
static int used(const struct prompt_chunks *c, int i)
{
    const int32_t *ids = c->ids + i * LENGTH;
    const float *weights = c->weights + i * LENGTH;
    int n = 0;
    while (ids[1 + n] != end)
        n++;
    for (int k = 1 + n; k < LENGTH; k++)
        assert_true(ids[k] == end && weights[k] == 1);
    assert_true(weights[0] == 1);
    return n;
}

/* count words; commas at the places listed (from 0, up to -1). */
static char *words(int count, const int *commas)
{
    static char text[STEER_PROMPT_BYTES_MAX];
    size_t size = 0;
    for (int i = 0; i < count; i++) {
        int is_comma = *commas == i;
        commas += is_comma;
        size += (size_t)snprintf(text + size, sizeof text - size, "%s", is_comma ? ", " : "cat ");
    }
    return text;
}

#define COMMAS(...) ((const int[]){__VA_ARGS__, -1})
static const int no_commas[] = {-1};

static void test_lengths(void **unused)
{
    (void)unused;
    const struct {
        int words;
        const int *commas;
        int used[4]; /* up to the first 0 */
    } list[] = {
        {1, no_commas, {1}},
        {ROOM, no_commas, {ROOM}},
        {ROOM + 1, no_commas, {ROOM, 1}},
        {2 * ROOM + 3, no_commas, {ROOM, ROOM, 3}},
        /* A comma among the last 20 of a full chunk takes along what follows it. */
        {ROOM, COMMAS(60), {ROOM}},
        {ROOM + 1, COMMAS(60), {61, 15}},
        {ROOM + 1, COMMAS(55), {56, 20}},
        {ROOM + 1, COMMAS(54), {ROOM, 1}},
        {ROOM + 1, COMMAS(60, 70), {71, 5}},
        {ROOM + 1, COMMAS(10, 54), {ROOM, 1}},
        {ROOM + 1, COMMAS(ROOM - 1), {ROOM, 1}},
        /* A comma that itself does not fit moves nothing and does not count in its new chunk. */
        {ROOM + 1, COMMAS(ROOM), {ROOM, 1}},
        {ROOM + 1, COMMAS(60, ROOM), {ROOM, 1}},
        {2 * ROOM + 1, COMMAS(60), {61, ROOM, 15}},
        {200, COMMAS(70, 140), {71, 70, 59}},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct prompt_chunks c = make(words(list[i].words, list[i].commas), PROMPT_PLAIN, 1);
        int count = 0, all = 0;
        while (count < 4 && list[i].used[count])
            count++;
        if (c.count != count) fail_msg("row %zu: %d chunks", i, c.count);
        for (int k = 0; k < count; k++) {
            int n = used(&c, k);
            if (n != list[i].used[k]) fail_msg("row %zu: %d tokens in chunk %d", i, n, k);
            all += n;
        }
        assert_int_equal(all, list[i].words);
        assert_int_equal(c.cut, 0);
        prompt_chunks_free(&c);
    }
}

static void test_breaks(void **unused)
{
    (void)unused;
    const struct {
        const char *text;
        int used[4]; /* up to the first -1 */
    } list[] = {
        {"", {0, -1}},
        {"cat BREAK dog", {1, 1, -1}},
        {"cat BREAK", {1, -1}},
        {"cat BREAK ( )", {1, -1}},
        {"BREAK cat", {0, 1, -1}},
        {"cat BREAK BREAK dog", {1, 0, 1, -1}},
        {"cat BREAK BREAK", {1, 0, -1}},
        {"(cat dog BREAK cat:1.2) dog", {2, 2, -1}},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct prompt_chunks c = make(list[i].text, PROMPT_A1111, 1);
        int count = 0;
        while (list[i].used[count] >= 0)
            count++;
        if (c.count != count) fail_msg("\"%s\": %d chunks", list[i].text, c.count);
        for (int k = 0; k < count; k++)
            assert_int_equal(used(&c, k), list[i].used[k]);
        prompt_chunks_free(&c);
    }
    struct prompt_chunks c = make("BREAK (cat:2)", PROMPT_PLAIN, 1); /* letters, in one chunk */
    assert_int_equal(c.count, 1);
    prompt_chunks_free(&c);
}

/* Each token has its piece's weight, also after it has moved to the next chunk. */
static void test_weights(void **unused)
{
    (void)unused;
    char text[STEER_PROMPT_BYTES_MAX + 64];
    struct prompt_chunks c = make("cat (dog:1.5), [cat] (dog", PROMPT_A1111, 0);
    static const double want[] = {1, 1, 1.5, 1, 1 / 1.1, 1.1, 1};
    const int32_t ids[] = {begin, cat, dog, comma, cat, dog, end};
    for (int i = 0; i < 7; i++) {
        assert_int_equal(c.ids[i], ids[i]);
        assert_true(c.weights[i] == (float)want[i]);
    }
    prompt_chunks_free(&c);

    snprintf(text, sizeof text, "%s, (dog:2) [cat]", words(ROOM - 2, no_commas));
    c = make(text, PROMPT_A1111, 1);
    assert_int_equal(c.count, 2);
    assert_int_equal(used(&c, 0), ROOM - 1); /* up to the comma */
    assert_int_equal(used(&c, 1), 2);
    assert_true(c.ids[LENGTH + 1] == dog && c.weights[LENGTH + 1] == 2);
    assert_true(c.ids[LENGTH + 2] == cat && c.weights[LENGTH + 2] == (float)(1 / 1.1));
    prompt_chunks_free(&c);
}

static void test_bound(void **unused)
{
    (void)unused;
    struct prompt_chunks c =
        make(words(STEER_PROMPT_CHUNKS_MAX * ROOM, no_commas), PROMPT_PLAIN, 1);
    struct prompt_reading chunked = {PROMPT_A1111, 1};
    struct steer_error err = {0};
    assert_int_equal(c.count, STEER_PROMPT_CHUNKS_MAX);
    prompt_chunks_free(&c);
    const char *list[] = {words(STEER_PROMPT_CHUNKS_MAX * ROOM + 1, no_commas),
                          "a BREAK BREAK BREAK BREAK BREAK BREAK BREAK BREAK b"};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(prompt_chunks_make(&c, tokenizer, LENGTH, 0, list[i], chunked, &err),
                         STEER_BAD_TEXT);
        assert_non_null(strstr(err.text, "more than 8 chunks of 75 tokens"));
        assert_null(c.ids);
    }
    /* Room for begin and end alone. */
    assert_int_equal(prompt_chunks_make(&c, tokenizer, 2, 0, "a", chunked, &err), STEER_BAD_TEXT);
}

/* The first chunk is what the tokenizer makes of the text, and the cut is told in bytes of it. */
static void test_cut(void **unused)
{
    (void)unused;
    char text[STEER_PROMPT_BYTES_MAX + 64];
    int32_t ids[LENGTH];
    struct tokenized how;
    struct steer_error err = {0};
    const char *long_text = words(ROOM + 20, COMMAS(60));
    struct prompt_chunks c = make(long_text, PROMPT_PLAIN, 0);
    assert_int_equal(
        tokenizer_encode(tokenizer, long_text, strlen(long_text), ids, LENGTH, &how, &err), 0);
    assert_memory_equal(c.ids, ids, sizeof ids);
    assert_true(c.count == 1 && c.cut == how.cut && c.cut == strlen(words(ROOM, COMMAS(60))));
    prompt_chunks_free(&c);

    snprintf(text, sizeof text, "%s(\\(dog:1.5) (cat:2)", words(ROOM - 2, no_commas));
    c = make(text, PROMPT_A1111, 0); /* "(" and "dog" are the last that fit */
    assert_string_equal(text + c.cut, "cat:2)");
    assert_true(c.weights[ROOM] == 1.5f);
    prompt_chunks_free(&c);

    c = make("(cat) BREAK (dog)", PROMPT_A1111, 0);
    assert_int_equal(used(&c, 0), 1);
    assert_int_equal(c.cut, strlen("(cat) BREAK ("));
    prompt_chunks_free(&c);
    c = make("cat BREAK BREAK dog", PROMPT_A1111, 0);
    assert_true(c.count == 1 && c.cut == strlen("cat BREAK BREAK "));
    prompt_chunks_free(&c);
    c = make("(cat) BREAK ( )", PROMPT_A1111, 0);
    assert_int_equal(c.cut, 0);
    prompt_chunks_free(&c);
    c = make("BREAK", PROMPT_A1111, 0);
    assert_int_equal(c.cut, 0);
    prompt_chunks_free(&c);
}

static void test_weigh(void **unused)
{
    (void)unused;
    /* The sum is 10, weighed 1 + 2 + 2 * (3 + 4) = 17. */
    float z[] = {1, 2, 3, 4};
    const float weights[] = {1, 2}, ones[] = {1, 1}, zeros[] = {0, 0};
    const double want[] = {1 * 10 / 17., 2 * 10 / 17., 6 * 10 / 17., 8 * 10 / 17.};
    prompt_weigh(z, weights, 2, 2);
    for (int i = 0; i < 4; i++)
        assert_true(fabs(z[i] - want[i]) < 1e-6);
    float same[] = {0.1f, 1e-30f, -3, 7}, before[4];
    memcpy(before, same, sizeof same);
    prompt_weigh(same, ones, 2, 2);
    assert_memory_equal(same, before, sizeof same);
    prompt_weigh(same, zeros, 2, 2); /* no mean to go by */
    for (int i = 0; i < 4; i++)
        assert_true(same[i] == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths), cmocka_unit_test(test_breaks),
        cmocka_unit_test(test_weights), cmocka_unit_test(test_bound),
        cmocka_unit_test(test_cut),     cmocka_unit_test(test_weigh)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
