// SPDX-License-Identifier: Apache-2.0
/* An archive of torch.save: the file itself when it begins with 'P', else its pickle, which is put
 * into an archive beside two storages. Every byte of every view can be read. */
#include <string.h>

#include "fuzz.h"
#include "tensors.h"

static uint8_t archive[1 << 20];
static size_t used;

static void put(uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++, value >>= 8)
        archive[used++] = (uint8_t)value;
}

static void header(const char *name, size_t size, int central, size_t offset)
{
    put(central ? 0x02014b50 : 0x04034b50, 4);
    put(20, central ? 4 : 2);
    put(0, 12);
    put(size, 4);
    put(size, 4);
    put(strlen(name), 2);
    put(0, 2);
    if (central) {
        put(0, 10);
        put(offset, 4);
    }
    memcpy(archive + used, name, strlen(name));
    used += strlen(name);
}

static void archive_make(const uint8_t *pickle, size_t size)
{
    static const uint8_t values[64];
    const struct {
        const char *name;
        const uint8_t *data;
        size_t size;
    } entries[] = {{"a/data.pkl", pickle, size}, {"a/data/0", values, 64}, {"a/data/1", values, 3}};
    size_t at[3];
    used = 0;
    for (int i = 0; i < 3; i++) {
        at[i] = used;
        header(entries[i].name, entries[i].size, 0, 0);
        memcpy(archive + used, entries[i].data, entries[i].size);
        used += entries[i].size;
    }
    size_t first = used;
    for (int i = 0; i < 3; i++)
        header(entries[i].name, entries[i].size, 1, at[i]);
    size_t bytes = used - first;
    put(0x06054b50, 4);
    put(0, 4);
    put(3, 2);
    put(3, 2);
    put(bytes, 4);
    put(first, 4);
    put(0, 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > sizeof archive / 2) return 0;
    if (size && data[0] == 'P') {
        fuzz_file("fuzz.pt", data, size);
    } else {
        archive_make(data, size);
        fuzz_file("fuzz.pt", archive, used);
    }
    struct tensors *t = NULL;
    struct steer_error err = {0};
    int code = tensors_open(&t, "fuzz.pt", &err);
    if (code) {
        FUZZ_ASSERT(!t && err.code == code && err.text[0]);
        return 0;
    }
    unsigned sum = 0;
    for (size_t i = 0; i < tensors_count(t); i++) {
        const struct tensor_view *v = tensors_at(t, i);
        size_t bytes = tensor_dtype_bytes(v->dtype);
        FUZZ_ASSERT(v->rank >= 0 && v->rank <= TENSOR_RANK_MAX && tensors_find(t, v->name));
        for (int k = 0; k < v->rank; k++)
            bytes *= (size_t)v->shape[k];
        FUZZ_ASSERT(v->bytes == bytes);
        for (size_t k = 0; k < v->bytes; k++)
            sum += ((const uint8_t *)v->data)[k];
    }
    tensors_close(t);
    return sum == 0x7fffffff;
}
