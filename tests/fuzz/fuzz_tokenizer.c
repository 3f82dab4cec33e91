// SPDX-License-Identifier: Apache-2.0
/* A tokenizer's three files and a text, parted by form feeds: vocab.json \f merges.txt \f
 * tokenizer_config.json \f text. A first part with a "model" is tokenizer.json, which stands for
 * the first two. */
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "text/clip_bpe.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"vocab.json", "merges.txt", "tokenizer_config.json"};
    (void)unlink("tokenizer.json");
    for (int i = 0; i < 3; i++) {
        const uint8_t *end = size ? memchr(data, '\f', size) : NULL;
        size_t part = end ? (size_t)(end - data) : size;
        int whole = !i && memmem(data, part, "\"model\"", 7);
        fuzz_file(whole ? "tokenizer.json" : names[i], data, part);
        data += part + (end != NULL);
        size -= part + (end != NULL);
    }
    struct clip_bpe *t = NULL;
    struct steer_error err = {0};
    int code = clip_bpe_open(&t, ".", &err);
    if (code) {
        FUZZ_ASSERT(!t && err.text[0]);
        return 0;
    }
    int32_t ids[32];
    int used = 0;
    size_t cut = 0;
    code = clip_bpe_encode(t, (const char *)data, size, ids, 32, &used, &cut, &err);
    FUZZ_ASSERT(!code || err.code == STEER_BAD_TEXT);
    for (int i = 0; i < 32 && !code; i++)
        FUZZ_ASSERT(ids[i] >= 0 && ids[i] < clip_bpe_vocab(t));
    FUZZ_ASSERT(code || (cut <= size && used >= 2 && used <= 32));
    clip_bpe_close(t);
    return 0;
}
