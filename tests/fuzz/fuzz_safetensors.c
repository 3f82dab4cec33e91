// SPDX-License-Identifier: Apache-2.0
/* A tensor file, or (when it begins with '{') an index of shards. Every byte of every view can be
 * read, and lies inside of the file. */
#include "fuzz.h"
#include "safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *path = size && data[0] == '{' ? "fuzz.json" : "fuzz.safetensors";
    fuzz_file(path, data, size);
    struct tensors *t = NULL;
    struct steer_error err = {0};
    int code = tensors_open(&t, path, &err);
    if (code) {
        FUZZ_ASSERT(!t && err.code == code && err.text[0]);
        return 0;
    }
    unsigned sum = 0;
    for (size_t i = 0; i < tensors_count(t); i++) {
        const struct tensor_view *v = tensors_at(t, i);
        FUZZ_ASSERT(v->rank >= 0 && v->rank <= TENSOR_RANK_MAX && tensors_find(t, v->name));
        for (size_t k = 0; k < v->bytes; k++)
            sum += ((const uint8_t *)v->data)[k];
        struct tensor_view same;
        code = tensors_get(t, v->name, v->rank, v->shape, &same, &err);
        FUZZ_ASSERT(!code);
    }
    tensors_close(t);
    return sum == 0x7fffffff;
}
