// SPDX-License-Identifier: Apache-2.0
/* Archives of torch.save: what torch wrote is read as torch reads it, and what nobody should have
 * written is refused with a sentence. tests/golden/checkpoints.py made the files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tensors.h"

static char golden[1024];

static void path_of(char path[1200], const char *name)
{
    snprintf(path, 1200, "%s/%s", golden, name);
}

static void same_as_torch(const char *name)
{
    char path[1200];
    struct tensors *got = NULL, *want = NULL;
    struct steer_error err = {0};
    path_of(path, name);
    if (tensors_open(&got, path, &err)) fail_msg("%s", err.text);
    strcat(path, ".safetensors");
    if (tensors_open(&want, path, &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(got), tensors_count(want));
    for (size_t i = 0; i < tensors_count(want); i++) {
        const struct tensor_view *w = tensors_at(want, i), *g = tensors_at(got, i);
        assert_string_equal(g->name, w->name);
        assert_string_equal(tensor_dtype_name(g->dtype), tensor_dtype_name(w->dtype));
        assert_int_equal(g->rank, w->rank);
        assert_memory_equal(g->shape, w->shape, sizeof w->shape);
        assert_int_equal(g->bytes, w->bytes);
        if (memcmp(g->data, w->data, w->bytes)) fail_msg("%s: %s differs", name, w->name);
    }
    assert_int_equal(tensors_check(got, &err), 0);
    tensors_close(got);
    tensors_close(want);
}

static void test_as_torch(void **unused)
{
    (void)unused;
    same_as_torch("plain.pt");
    same_as_torch("strided.pt");
    same_as_torch("training.ckpt");
    same_as_torch("protocol4.pt");
    same_as_torch("typed.pt"); /* tensors with attributes, as DMD2's SDXL files in f32 */
}

/* Views where the order is the file's, so that pages are mapped once; copies where it is not. */
static void test_mapped(void **unused)
{
    (void)unused;
    char path[1200];
    struct tensors *t = NULL;
    path_of(path, "strided.pt");
    assert_int_equal(tensors_open(&t, path, NULL), 0);
    static const char *const mapped[] = {"base", "row", "q", "k", "one"}, *const copied[] = {
                                                                              "t", "columns", "v",
                                                                              "conv"};
    for (size_t i = 0; i < 5; i++)
        assert_true(tensors_find(t, mapped[i])->mapped);
    for (size_t i = 0; i < 4; i++)
        assert_false(tensors_find(t, copied[i])->mapped);
    const float *base = tensors_find(t, "base")->data, *row = tensors_find(t, "row")->data;
    assert_ptr_equal(row, base + 12);
    tensors_close(t);
}

static void refused_file(const char *path, int code, const char *word)
{
    struct tensors *t = NULL;
    struct steer_error err = {0};
    int got = tensors_open(&t, path, &err);
    if (got != code || !strstr(err.text, word))
        fail_msg("%s: %d, and not \"%s\": %s", path, got, word, err.text);
    assert_null(t);
}

static void test_forbidden(void **unused)
{
    (void)unused;
    char path[1200];
    path_of(path, "evil.pt");
    refused_file(path, STEER_UNSUPPORTED, "forbidden global \"posix.system\" at byte ");
    path_of(path, "module.pt");
    refused_file(path, STEER_UNSUPPORTED,
                 "forbidden global \"torch.nn.modules.container.Sequential\"");
    path_of(path, "old.pt");
    refused_file(path, STEER_UNSUPPORTED, "written by torch before 1.6");
}

/* Cut anywhere, an archive is refused and never read past its end. */
static void test_truncated(void **unused)
{
    (void)unused;
    char path[1200];
    static uint8_t bytes[1 << 16];
    path_of(path, "strided.pt");
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    size_t size = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    assert_true(size > 100 && size < sizeof bytes);
    for (size_t cut = 8; cut < size; cut += 1 + cut % 7) {
        f = fopen("cut.pt", "we");
        assert_non_null(f);
        fwrite(bytes, 1, cut, f);
        fclose(f);
        refused_file("cut.pt", STEER_BAD_MODEL, "truncated?");
    }
}

/* ---- archives made by hand ---- */

struct entry {
    const char *name;
    const void *data;
    size_t size;
    unsigned method, flags;
    uint32_t claimed; /* the size that the directory claims; 0: the true one */
};

static void put(FILE *f, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++, value >>= 8)
        fputc((int)(value & 255), f);
}

static void header_put(FILE *f, const struct entry *e, int central, long offset)
{
    uint32_t size = e->claimed ? e->claimed : (uint32_t)e->size;
    put(f, central ? 0x02014b50 : 0x04034b50, 4);
    put(f, 20, central ? 4 : 2);
    put(f, e->flags, 2);
    put(f, e->method, 2);
    put(f, 0, 8); /* time, date, CRC */
    put(f, size, 4);
    put(f, size, 4);
    put(f, strlen(e->name), 2);
    put(f, 0, 2);
    if (central) {
        put(f, 0, 10);
        put(f, (uint64_t)offset, 4);
    }
    fputs(e->name, f);
}

/* zip64: the end's numbers stand in zip64's records, shifted by `off`. */
static void zip_write(const struct entry *entries, size_t count, int zip64, uint64_t off)
{
    long at[8];
    FILE *f = fopen("made.pt", "we");
    assert_non_null(f);
    for (size_t i = 0; i < count; i++) {
        at[i] = ftell(f);
        header_put(f, entries + i, 0, 0);
        fwrite(entries[i].data, 1, entries[i].size, f);
    }
    long first = ftell(f);
    for (size_t i = 0; i < count; i++)
        header_put(f, entries + i, 1, at[i]);
    long end = ftell(f);
    if (zip64) {
        put(f, 0x06064b50, 4);
        put(f, 44, 8);
        put(f, 0, 12);
        put(f, count, 8);
        put(f, count + off, 8);
        put(f, (uint64_t)(end - first), 8);
        put(f, (uint64_t)first + off, 8);
        put(f, 0x07064b50, 4);
        put(f, 0, 4);
        put(f, (uint64_t)end, 8);
        put(f, 1, 4);
    }
    put(f, 0x06054b50, 4);
    put(f, 0, 4);
    put(f, count, 2);
    put(f, zip64 ? 0xffff : count, 2);
    put(f, zip64 ? 0xffffffff : (uint64_t)(end - first), 4);
    put(f, zip64 ? 0xffffffff : (uint64_t)first, 4);
    put(f, 0, 2);
    fclose(f);
}

/* A dictionary of one tensor "x" in f32 of a storage "0" that has `elements` of them; the parts in
 * between are opcodes: the place, the shape and the strides. */
#define TENSOR(elements, place, shape, strides)                                                    \
    "\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"                 \
    "ctorch\nFloatStorage\nX\x01\0\0\0"                                                            \
    "0X\x03\0\0\0cpu" elements "tQ" place shape strides "\x89)tRs."
#define FLOATS_8 "01234567012345670123456701234567"

static void made(const char *pickle, size_t size)
{
    const struct entry entries[] = {{.name = "a/data.pkl", .data = pickle, .size = size},
                                    {.name = "a/data/0", .data = FLOATS_8, .size = 32}};
    zip_write(entries, 2, 0, 0);
}
#define REFUSED(pickle, code, word)                                                                \
    (made(pickle, sizeof(pickle) - 1), refused_file("made.pt", code, word))

static void test_tensors_by_hand(void **unused)
{
    (void)unused;
    static const char good[] = TENSOR("K\x08", "K\x02", "K\x03\x85", "K\x02\x85");
    struct tensors *t = NULL;
    struct steer_error err = {0};
    made(good, sizeof good - 1);
    if (tensors_open(&t, "made.pt", &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_find(t, "x")->shape[0], 3);
    assert_memory_equal(tensors_find(t, "x")->data, "012301230123", 12);
    tensors_close(t);

#define BIG "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f" /* 2^63 - 1 */
    REFUSED(TENSOR("K\x09", "K\0", "K\x03\x85", "K\x01\x85"), STEER_BAD_MODEL, "9 elements of 4");
    REFUSED(TENSOR(BIG, "K\0", "K\x03\x85", "K\x01\x85"), STEER_BAD_MODEL, "storage has 32 bytes");
    REFUSED(TENSOR("J\xff\xff\xff\xff", "K\0", "K\x03\x85", "K\x01\x85"), STEER_BAD_MODEL,
            "no storage");
    REFUSED(TENSOR("K\x08", "K\x06", "K\x03\x85", "K\x01\x85"), STEER_BAD_MODEL,
            "does not lie in its storage");
    REFUSED(TENSOR("K\x08", BIG, "K\x03\x85", "K\x01\x85"), STEER_BAD_MODEL,
            "does not lie in its storage");
    REFUSED(TENSOR("K\x08", "K\0", "K\x03\x85", BIG "\x85"), STEER_BAD_MODEL,
            "does not lie in its storage");
    REFUSED(TENSOR("K\x08", "K\0", BIG BIG "\x86", "K\0K\0\x86"), STEER_BAD_MODEL,
            "does not lie in its storage");
    REFUSED(TENSOR("K\x08", "K\0", "K\x09\x85", "K\0\x85"), STEER_BAD_MODEL,
            "does not lie in its storage"); /* more elements than stored, by a stride of 0 */
    REFUSED(TENSOR("K\x08", "K\0", "J\xff\xff\xff\xff\x85", "K\x01\x85"), STEER_BAD_MODEL,
            "not possible");
    REFUSED(TENSOR("K\x08", "J\xff\xff\xff\xff", "K\x01\x85", "K\x01\x85"), STEER_BAD_MODEL,
            "not possible");
    REFUSED(TENSOR("K\x08", "K\0", "K\x01K\x01\x86", "K\x01\x85"), STEER_BAD_MODEL, "not possible");
    REFUSED(
        TENSOR("K\x08", "K\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"),
        STEER_BAD_MODEL, "over 8 dimensions");
}

static void test_pickles_by_hand(void **unused)
{
    (void)unused;
    REFUSED("\x80\x02", STEER_BAD_MODEL, "truncated?");
    REFUSED("\x80\x02X\xff\xff\xff\xffx.", STEER_BAD_MODEL, "truncated?");
    REFUSED("\x80\x02"
            "cos\nsystem",
            STEER_BAD_MODEL, "truncated?");
    REFUSED("\x80\x02"
            "cos\nsystem\nX\x02\0\0\0ls\x85R.",
            STEER_UNSUPPORTED, "forbidden global \"os.system\" at byte 2");
    REFUSED("\x80\x04\x8c\x02os\x8c\x06system\x93.", STEER_UNSUPPORTED,
            "forbidden global \"os.system\" at byte 14");
    REFUSED("\x80\x02(X\x02\0\0\0lsios\nsystem\n.", STEER_UNSUPPORTED, "forbidden opcode INST");
    REFUSED("\x80\x02)\x81.", STEER_UNSUPPORTED, "forbidden opcode NEWOBJ at byte 3");
    REFUSED("\x80\x02\x82\x01.", STEER_UNSUPPORTED, "forbidden opcode EXT1");
    REFUSED("\x80\x02Z.", STEER_UNSUPPORTED, "forbidden opcode 0x5a at byte 2");
    REFUSED(".", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("(.", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("\x86.", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("N(\x86.", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("0", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("a", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("Q", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("NR", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("Nb", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("t", STEER_BAD_MODEL, "no mark");
    REFUSED("h\x07.", STEER_BAD_MODEL, "was not put");
    REFUSED("j\xff\xff\xff\xff.", STEER_BAD_MODEL, "was not put");
    REFUSED("Nr\xff\xff\xff\xff.", STEER_BAD_MODEL, "not possible");
    REFUSED("NNs.", STEER_BAD_MODEL, "its stack is empty");
    REFUSED("K\1NNs.", STEER_BAD_MODEL, "no dictionary");
    REFUSED("}(Nu.", STEER_BAD_MODEL, "a key without a value");
    REFUSED("K\1K\1Q.", STEER_BAD_MODEL, "no storage");
    REFUSED("NNR.", STEER_BAD_MODEL, "no global");
    REFUSED("ctorch\nFloatStorage\n)R.", STEER_BAD_MODEL, "a storage that is called");
    REFUSED("ctorch._utils\n_rebuild_tensor_v2\n)R.", STEER_BAD_MODEL, "without a storage");
    REFUSED("ctorch._utils\n_rebuild_parameter\n)R.", STEER_BAD_MODEL, "that is no tensor");
    REFUSED("ctorch._tensor\n_rebuild_from_type_v2\n)R.", STEER_BAD_MODEL,
            "attributes that is none");
    REFUSED("ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nctorch\nTensor\n)}tR.",
            STEER_BAD_MODEL, "attributes that is none");
    REFUSED("N.", STEER_BAD_MODEL, "it has no dictionary");
    REFUSED("}.", STEER_BAD_MODEL, "it has nothing in it");
    REFUSED("}X\x01\0\0\0aK\1sX\x01\0\0\0bK\1s.", STEER_BAD_MODEL, "it has a, b");
    /* A dictionary in itself, put and got again, is no endless walk. */
    REFUSED("}q\0X\x0a\0\0\0state_dicth\0s.", STEER_BAD_MODEL, "it has state_dict");
}

static void test_zips_by_hand(void **unused)
{
    (void)unused;
    static const char pickle[] = TENSOR("K\x08", "K\0", "K\x03\x85", "K\x01\x85");
    struct entry entries[] = {{.name = "a/data.pkl", .data = pickle, .size = sizeof pickle - 1},
                              {.name = "a/data/0", .data = FLOATS_8, .size = 32},
                              {.name = "a/byteorder", .data = "little", .size = 6}};
    struct tensors *t = NULL;
    struct steer_error err = {0};
    zip_write(entries, 3, 0, 0);
    if (tensors_open(&t, "made.pt", &err)) fail_msg("%s", err.text);
    tensors_close(t);
    zip_write(entries, 3, 1, 0);
    if (tensors_open(&t, "made.pt", &err)) fail_msg("%s", err.text);
    tensors_close(t);
    zip_write(entries, 3, 1, UINT64_MAX / 2);
    refused_file("made.pt", STEER_BAD_MODEL, "directory is not inside");
    zip_write(entries, 2, 1, 1);
    refused_file("made.pt", STEER_BAD_MODEL, "directory is");
    zip_write(entries, 1, 0, 0);
    refused_file("made.pt", STEER_BAD_MODEL, "\"x\": its storage is missing");
    zip_write(entries + 1, 2, 0, 0);
    refused_file("made.pt", STEER_BAD_MODEL, "without data.pkl");
    zip_write((struct entry[]){entries[0], entries[0]}, 2, 0, 0);
    refused_file("made.pt", STEER_BAD_MODEL, "an entry twice");
    entries[2].data = "big", entries[2].size = 3;
    zip_write(entries, 3, 0, 0);
    refused_file("made.pt", STEER_UNSUPPORTED, "byteorder is \"big\"");
    entries[1].claimed = 1 << 20;
    zip_write(entries, 2, 0, 0);
    refused_file("made.pt", STEER_BAD_MODEL, "\"a/data/0\": it ends after the archive");
    entries[1].claimed = UINT32_MAX; /* zip64 says so, but has no field */
    zip_write(entries, 2, 0, 0);
    refused_file("made.pt", STEER_BAD_MODEL, "\"a/data/0\": it ends after the archive");
    entries[1].claimed = 0, entries[1].method = 8;
    zip_write(entries, 2, 0, 0);
    refused_file("made.pt", STEER_BAD_MODEL, "\"a/data/0\": it is compressed");
    entries[1].method = 0, entries[1].flags = 1;
    zip_write(entries, 2, 0, 0);
    refused_file("made.pt", STEER_BAD_MODEL, "\"a/data/0\": it is encrypted");
}

int main(void)
{
    snprintf(golden, sizeof golden, "%s/tests/golden/checkpoints", getenv("STEER_SOURCE_DIR"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_torch),        cmocka_unit_test(test_mapped),
        cmocka_unit_test(test_forbidden),       cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_tensors_by_hand), cmocka_unit_test(test_pickles_by_hand),
        cmocka_unit_test(test_zips_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
