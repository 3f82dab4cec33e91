// SPDX-License-Identifier: Apache-2.0
/* The cache of prompt embeddings: its bound, its pins, and who leaves first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pipeline.h"
#include "text_cache.h"

enum { TOKENS = 4, FLOATS = 64, BOUND = 256 };
static const float ones[TOKENS] = {1, 1, 1, 1};

static void add(struct text_cache *c, int32_t id)
{
    int32_t ids[TOKENS] = {id, id + 1, id + 2, id + 3};
    struct text_entry *e;
    assert_int_equal(text_cache_add(c, ids, ones, TOKENS, FLOATS, BOUND, &e), 0);
    assert_int_equal((uintptr_t)e->bound % 64, 0);
    memset(e->bound, id, BOUND); /* what a caller fills; a sanitizer watches the ends */
    memset(e->states, id, FLOATS * sizeof *e->states);
}

static int has(struct text_cache *c, int32_t id)
{
    int32_t ids[TOKENS] = {id, id + 1, id + 2, id + 3};
    const struct text_entry *e = text_cache_find(c, ids, ones, TOKENS);
    if (!e) return 0;
    assert_memory_equal(e->ids, ids, sizeof ids);
    assert_int_equal(e->bound[BOUND - 1], (char)id);
    return 1;
}

static size_t entry_bytes(void)
{
    struct text_cache *c;
    assert_int_equal(text_cache_new(&c, SIZE_MAX), 0);
    add(c, 1);
    size_t bytes = text_cache_bytes(c);
    text_cache_free(c);
    return bytes;
}

static void test_bound_and_order(void **unused)
{
    (void)unused;
    struct text_cache *c;
    size_t each = entry_bytes();
    assert_int_equal(text_cache_new(&c, 3 * each), 0);
    for (int32_t id = 10; id < 13; id++) {
        text_cache_pin(c);
        add(c, id);
        text_cache_unpin(c);
    }
    assert_true(has(c, 10)); /* used last now */
    text_cache_pin(c);
    add(c, 13);
    text_cache_unpin(c);
    assert_int_equal(text_cache_bytes(c), 3 * each);
    assert_false(has(c, 11)); /* the least recently used one left */
    assert_true(has(c, 10) && has(c, 12) && has(c, 13));
    text_cache_free(c);
}

static void test_pinned(void **unused)
{
    (void)unused;
    struct text_cache *c;
    size_t each = entry_bytes();
    assert_int_equal(text_cache_new(&c, each), 0);
    text_cache_pin(c);
    for (int32_t id = 20; id < 28; id++)
        add(c, id);
    for (int32_t id = 20; id < 28; id++) /* the bound waits for the batch */
        assert_true(has(c, id));
    assert_int_equal(text_cache_bytes(c), 8 * each);
    text_cache_unpin(c);
    assert_int_equal(text_cache_bytes(c), each);
    assert_true(has(c, 27));
    text_cache_free(c);
}

/* The same tokens under other weights are another text, and so are fewer of them. */
static void test_key(void **unused)
{
    (void)unused;
    struct text_cache *c;
    struct text_entry *e;
    const int32_t ids[TOKENS] = {7, 8, 9, 10};
    const float weights[TOKENS] = {1, 1, 1.1f, 1};
    assert_int_equal(text_cache_new(&c, SIZE_MAX), 0);
    add(c, 7);
    assert_null(text_cache_find(c, ids, weights, TOKENS));
    assert_null(text_cache_find(c, ids, ones, TOKENS - 1));
    assert_int_equal(text_cache_add(c, ids, weights, TOKENS, FLOATS, BOUND, &e), 0);
    assert_ptr_equal(text_cache_find(c, ids, weights, TOKENS), e);
    assert_ptr_not_equal(text_cache_find(c, ids, ones, TOKENS), e);
    size_t both = text_cache_bytes(c);
    text_cache_remove(c, e);
    assert_true(text_cache_bytes(c) < both);
    assert_null(text_cache_find(c, ids, weights, TOKENS));
    assert_true(has(c, 7));
    text_cache_free(c);
}

static void test_nothing_fits(void **unused)
{
    (void)unused;
    struct text_cache *c;
    assert_int_equal(text_cache_new(&c, 1), 0);
    text_cache_pin(c);
    add(c, 1);
    assert_true(has(c, 1));
    text_cache_unpin(c);
    assert_int_equal(text_cache_bytes(c), 0);
    assert_false(has(c, 1));
    text_cache_free(c);
}

/* Three pictures, the last with both texts of the first again. */
static void render(uint8_t *pixels, struct model *m, struct compute *c, size_t text_bytes_max)
{
    enum { SIDE = 64, BYTES = SIDE * SIDE * 3 };
    static const char *const texts[] = {"a cat", "a dog", "a cat"};
    struct pipeline_limits limits = pipeline_limits_default();
    struct pipeline *p;
    struct recipe recipe;
    struct steer_error err = {0};
    limits.text_bytes_max = text_bytes_max;
    assert_int_equal(pipeline_new(&p, m, c, limits), 0);
    assert_int_equal(model_recipe(m, "ddim", &recipe, &err), 0);
    struct render_shape shape = {&recipe, SIDE, SIDE, 1, GUIDANCE_NASA, 0, GUIDANCE_TEXT};
    for (uint64_t i = 0; i < 3; i++) {
        struct render_image image = {
            .prompt = texts[i],
            .negative = "stripes",
            .guidance = {GUIDANCE_NASA, 0.5, 2, 2.5, 0.4, 0, 1, GUIDANCE_TEXT},
            .seed = i,
            .pixels = pixels + i * BYTES};
        if (pipeline_render(p, &shape, &image, 1, NULL, NULL, &err)) fail_msg("%s", err.text);
    }
    pipeline_free(p);
}

static void test_caching_changes_no_byte(void **unused)
{
    (void)unused;
    static uint8_t cached[3 * 64 * 64 * 3], uncached[sizeof cached];
    struct compute *c = NULL;
    struct model *m = NULL;
    struct steer_error err = {0};
    struct compute_options o = {.backend = "cpu", .threads = 1};
    char dir[1200];
    snprintf(dir, sizeof dir, "%s/tests/golden/data/small/model", getenv("STEER_SOURCE_DIR"));
    if (compute_open(&c, &o, &err) || model_open(&m, dir, c, &err)) fail_msg("%s", err.text);
    render(cached, m, c, (size_t)1 << 28);
    render(uncached, m, c, 1);
    assert_memory_equal(cached, uncached, sizeof cached);
    model_close(m);
    compute_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bound_and_order),
                                       cmocka_unit_test(test_pinned), cmocka_unit_test(test_key),
                                       cmocka_unit_test(test_nothing_fits),
                                       cmocka_unit_test(test_caching_changes_no_byte)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
