// SPDX-License-Identifier: Apache-2.0
/* The SIMT model itself: small kernels that are right, and the same with one mistake each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "simt.h"

enum { THREADS = 64, BASE = SIMT_SHARED_BASE };
static uint32_t input[THREADS * 4], output[THREADS];

/* Runs kernel on a block and expects an error that says `what`; NULL: none. */
static void expect(void (*kernel)(void *), const char *what)
{
    simt_reset(7);
    for (int i = 0; i < THREADS * 4; i++)
        input[i] = (uint32_t)i;
    simt_memory(input, sizeof input, 1, 0);
    simt_memory(output, sizeof output, 0, 1);
    assert_int_equal(simt_launch(kernel, NULL, 1, 1, 1, THREADS, 4096), 0);
    if (!what && simt_counts().errors) fail_msg("%s", simt_error());
    if (what && !strstr(simt_error(), what)) fail_msg("\"%s\", not \"%s\"", simt_error(), what);
}

static uint32_t word(int thread)
{
    return BASE + 4 * (uint32_t)thread;
}

static void put(int thread, uint32_t x)
{
    simt_shared_store(word(thread), &x, 4);
}

static uint32_t get(int thread)
{
    uint32_t x;
    simt_shared_load(&x, word(thread), 4);
    return x;
}

/* ---- accesses of less than a word ---- */

static void halves(void *unused)
{
    (void)unused;
    uint16_t x = (uint16_t)simt_thread();
    simt_global_store((uint16_t *)(void *)output + simt_thread(), &x, 2, 1);
}

static void test_halves(void **unused)
{
    (void)unused;
    expect(halves, "another thread of the launch writes"); /* the word */
    simt_reset(7);
    simt_memory_bytes(output, sizeof output, 0, 1);
    assert_int_equal(simt_launch(halves, NULL, 1, 1, 1, THREADS, 0), 0);
    assert_int_equal(simt_counts().errors, 0);
}

/* ---- barriers and races ---- */

static void reverse(void *unused)
{
    (void)unused;
    int t = simt_thread();
    put(t, (uint32_t)t);
    simt_block_sync();
    uint32_t x = get(THREADS - 1 - t);
    simt_global_store(output + t, &x, 4, 1);
}

static void store_after_read(void *unused)
{
    reverse(unused);
    put(simt_thread(), 1);
}

static void neighbour(void *unused)
{
    (void)unused;
    put(simt_thread(), 1);
    simt_warp_sync();
    get(simt_thread() ^ 1);
}

static void neighbour_without_sync(void *unused)
{
    (void)unused;
    put(simt_thread(), 1);
    simt_block_sync();
    put(simt_thread(), 2);
    get(simt_thread() ^ 1);
}

static void other_warp_with_warp_sync(void *unused)
{
    (void)unused;
    put(simt_thread(), 1);
    simt_block_sync();
    put(simt_thread(), 2);
    simt_warp_sync();
    get(simt_thread() ^ 32);
}

static void barrier_of_some(void *unused)
{
    (void)unused;
    if (simt_thread() < 40) simt_block_sync();
}

static void test_barriers(void **unused)
{
    (void)unused;
    expect(reverse, NULL);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(output[i], THREADS - 1 - i);
    expect(store_after_read, "race");
    expect(neighbour, NULL);
    expect(neighbour_without_sync, "race");
    expect(other_warp_with_warp_sync, "race");
    expect(barrier_of_some, "a barrier that ended threads do not come to");
}

/* ---- collectives ---- */

static void shuffle(void *unused)
{
    (void)unused;
    float x = simt_shuffle_xor((float)simt_thread(), 3);
    uint32_t y = (uint32_t)x;
    simt_global_store(output + simt_thread(), &y, 4, 1);
}

static void shuffle_of_some(void *unused)
{
    (void)unused;
    if (simt_thread() % 2) simt_shuffle_xor(1, 1);
}

static void shuffle_beside_sync(void *unused)
{
    (void)unused;
    if (simt_thread() % 2)
        simt_shuffle_xor(1, 1);
    else
        simt_warp_sync();
}

/* C = A B with A[i][k] = i + 16 k and B = the first 8 columns of 1, as primitives.cuh draws them.
 */
static void multiply(void *unused)
{
    (void)unused;
    int l = simt_thread() % 32, g = l / 4, t = l % 4 * 2;
    uint32_t a[4] = {0}, b[2] = {0};
    float c[4] = {0, 0, 0, 1};
    for (int i = 0; i < 8; i++) {
        int row = g + (i / 2 % 2) * 8, k = t + i / 4 * 8 + i % 2;
        a[i / 2] |= (uint32_t)simt_round((float)(row + 16 * k), 0) << i % 2 * 16;
    }
    for (int i = 0; i < 4; i++)
        b[i / 2] |= (uint32_t)simt_round(t + i / 2 * 8 + i % 2 == g, 0) << i % 2 * 16;
    simt_mma(c, a, b, 0);
    uint32_t ok = c[0] == (float)(g + 16 * t) && c[1] == (float)(g + 16 * (t + 1)) &&
                  c[2] == (float)(g + 8 + 16 * t) && c[3] == (float)(g + 8 + 16 * (t + 1) + 1);
    simt_global_store(output + simt_thread(), &ok, 4, 1);
}

static void test_collectives(void **unused)
{
    (void)unused;
    expect(shuffle, NULL);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(output[i], i ^ 3);
    expect(shuffle_of_some, "shuffle_xor, to which");
    expect(shuffle_beside_sync, "another lane in");
    expect(multiply, NULL);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(output[i], 1);
}

/* ---- ldmatrix and banks ---- */

static uint32_t stride; /* of a matrix' rows */

/* Row r, column c holds 16 r + c; both warps read the same four matrices, side by side. */
static void matrices(void *unused)
{
    (void)unused;
    int t = simt_thread(), l = t % 32;
    if (t < 32) { /* 8 rows of 64 bytes */
        uint32_t x[4];
        for (int i = 0; i < 4; i++) {
            uint32_t row = (uint32_t)t / 4, column = (uint32_t)t % 4 * 8 + 2 * (uint32_t)i;
            x[i] = (row * 32 + column) | (row * 32 + column + 1) << 16;
        }
        simt_shared_store(BASE + (uint32_t)t / 4 * stride + (uint32_t)t % 4 * 16, x, 16);
    }
    simt_block_sync();
    uint32_t r[4], q[2], ok = 1;
    simt_matrix_load(r, BASE + (uint32_t)(l % 8) * stride + (uint32_t)(l / 8) * 16, 4, 0);
    simt_matrix_load(q, BASE + (uint32_t)(l % 8) * stride + (uint32_t)(l / 8 % 2) * 16, 2, 1);
    int g = l / 4, p = l % 4 * 2;
    for (int i = 0; i < 4; i++)
        ok &=
            (r[i] & 0xffff) == (uint32_t)(g * 32 + i * 8 + p) && r[i] >> 16 == (r[i] & 0xffff) + 1;
    for (int i = 0; i < 2; i++)
        ok &= (q[i] & 0xffff) == (uint32_t)(p * 32 + i * 8 + g) &&
              q[i] >> 16 == (uint32_t)((p + 1) * 32 + i * 8 + g);
    simt_global_store(output + t, &ok, 4, 1);
}

static void store_apart(void *unused)
{
    (void)unused;
    put(simt_thread() * 16 % 1024, 1); /* two banks a warp */
}

static void store_pairs(void *unused)
{
    (void)unused;
    uint32_t x[2] = {1, 2}; /* of 32 lanes: 256 bytes side by side */
    simt_shared_store(BASE + 8 * (uint32_t)simt_thread(), x, 8);
}

static void test_banks(void **unused)
{
    (void)unused;
    stride = 144; /* an odd number of 16 bytes */
    expect(matrices, NULL);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(output[i], 1);
    assert_int_equal(simt_counts().matrices, 12);
    assert_int_equal(simt_counts().matrix_waves, 12);
    stride = 128; /* all rows in the same banks */
    expect(matrices, NULL);
    assert_int_equal(simt_counts().matrix_waves, 8 * 12);
    expect(store_apart, NULL);
    assert_int_equal(simt_counts().shared_accesses, 2);
    assert_int_equal(simt_counts().shared_waves, 2 * 16);
    expect(store_pairs, NULL);
    assert_int_equal(simt_counts().shared_accesses, 4);
    assert_int_equal(simt_counts().shared_waves, 4);
}

/* ---- copies ---- */

static int groups, pending; /* sent, and left at the wait */
static int landed_too_late, sent_twice;

static void copies(void *unused)
{
    (void)unused;
    int t = simt_thread();
    for (int i = 0; i < groups; i++) {
        simt_copy_async(BASE + (uint32_t)(i * THREADS + t) * 16, input + 4 * t, 1);
        if (sent_twice) simt_copy_async(BASE + (uint32_t)(i * THREADS + t) * 16, input + 4 * t, 0);
        simt_copy_async_commit();
    }
    simt_copy_async_wait(pending);
    simt_block_sync();
    uint32_t x[4];
    simt_shared_load(x, BASE + (uint32_t)((THREADS - 1 - t) * 16), 16); /* of the first group */
    uint32_t ok = x[3] == (uint32_t)(4 * (THREADS - 1 - t) + 3);
    simt_global_store(output + t, &ok, 4, 1);
    if (landed_too_late)
        simt_shared_load(x, BASE + (uint32_t)((groups - 1) * THREADS + t) * 16, 16);
    simt_copy_async_wait(0);
}

static void copy_left(void *unused)
{
    (void)unused;
    simt_copy_async(BASE + (uint32_t)simt_thread() * 16, input, 1);
}

static void copy_without_barrier(void *unused)
{
    (void)unused;
    uint32_t x[4] = {0};
    simt_shared_store(BASE + (uint32_t)simt_thread() * 16, x, 16);
    simt_block_sync();
    simt_copy_async(BASE + (uint32_t)simt_thread() * 16, input, 1);
    simt_copy_async_commit();
    simt_copy_async_wait(0);
    simt_shared_load(x, BASE + (uint32_t)(THREADS - 1 - simt_thread()) * 16, 16);
}

static void copy_over_what_is_read(void *unused)
{
    (void)unused;
    put(simt_thread(), 1);
    simt_block_sync();
    get(simt_thread());
    if (simt_thread() < 16) simt_copy_async(BASE + (uint32_t)simt_thread() * 16, input, 1);
    simt_copy_async_commit();
    simt_copy_async_wait(0);
}

static void test_copies(void **unused)
{
    (void)unused;
    groups = 1, pending = 0;
    expect(copies, NULL);
    groups = 3, pending = 2;
    expect(copies, NULL);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(output[i], 1);
    landed_too_late = 1;
    expect(copies, "while a copy is on its way");
    landed_too_late = 0, sent_twice = 1;
    expect(copies, "sends two copies");
    sent_twice = 0;
    expect(copy_left, "copies on their way");
    expect(copy_without_barrier, "race");
    expect(copy_over_what_is_read, "race");
}

/* ---- bounds, alignment, what nobody wrote ---- */

static uint32_t at;
static const char *from;
static int bytes;

static void load_shared(void *unused)
{
    (void)unused;
    uint32_t x[4];
    put(simt_thread(), 1);
    simt_shared_load(x, simt_thread() ? word(simt_thread()) : at, simt_thread() ? 4 : bytes);
}

static void load_global(void *unused)
{
    (void)unused;
    char x[16];
    simt_global_load(x, from, bytes, simt_thread() == 5);
}

static void store_input(void *unused)
{
    (void)unused;
    uint32_t x = 1;
    simt_global_store(input + simt_thread(), &x, 4, 1);
}

static void store_same(void *unused)
{
    (void)unused;
    uint32_t x = 1;
    simt_global_store(output + simt_thread() / 2, &x, 4, 1);
}

static void store_halves(void *unused)
{
    (void)unused;
    uint32_t x = 1;
    int t = simt_thread();
    simt_global_store(output + t % 32 * 2 + t / 32, &x, 4, 1); /* every second word */
}

static void test_bounds(void **unused)
{
    (void)unused;
    bytes = 4;
    at = BASE + 4096;
    expect(load_shared, "a load at 4096 of 4096 bytes");
    at = BASE - 4;
    expect(load_shared, "a load at -4");
    at = BASE + 2048;
    expect(load_shared, "which nobody wrote");
    at = BASE + 2;
    expect(load_shared, "not aligned");
    from = (char *)input + sizeof input - 4;
    expect(load_global, NULL);
    bytes = 16;
    expect(load_global, "outside of every array");
    from = (char *)input + 4;
    bytes = 8;
    expect(load_global, (uintptr_t)from % 8 ? "not aligned" : NULL);
    from = (char *)output;
    bytes = 4;
    expect(load_global, "that nobody wrote");
    expect(store_input, "only read");
    expect(store_same, "writes global memory that another thread");
    expect(store_halves, NULL);
    assert_int_equal(simt_counts().store_bytes, 256);
    assert_true(simt_counts().store_sectors == 16 || simt_counts().store_sectors == 18);
    assert_int_equal(simt_launch(store_input, NULL, 1, 1, 1, 33, 0), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_halves),      cmocka_unit_test(test_barriers),
        cmocka_unit_test(test_collectives), cmocka_unit_test(test_banks),
        cmocka_unit_test(test_copies),      cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
