// SPDX-License-Identifier: Apache-2.0
/* A T5 tokenizer's files and a text: the size of the first file (u32, little end first), that file,
 * tokenizer_config.json, a form feed, the text. The first file is tokenizer.json when it begins
 * with {, else spiece.model. */
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "text/unigram.h"

enum { LENGTH = 32 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4) return 0;
    size_t part = data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16 | (size_t)data[3] << 24;
    data += 4;
    size -= 4;
    if (part > size) part = size;
    int whole = part && data[0] == '{';
    (void)unlink(whole ? "spiece.model" : "tokenizer.json");
    fuzz_file(whole ? "tokenizer.json" : "spiece.model", data, part);
    data += part;
    size -= part;
    const uint8_t *end = size ? memchr(data, '\f', size) : NULL;
    part = end ? (size_t)(end - data) : size;
    fuzz_file("tokenizer_config.json", data, part);
    data += part + (end != NULL);
    size -= part + (end != NULL);

    struct unigram *t = NULL;
    struct steer_error err = {0};
    int code = unigram_open(&t, ".", &err);
    if (code) {
        FUZZ_ASSERT(!t && err.text[0]);
        return 0;
    }
    int32_t ids[LENGTH];
    size_t cut = 0;
    int used = 0;
    code = unigram_encode(t, (const char *)data, size, ids, LENGTH, &used, &cut, &err);
    FUZZ_ASSERT(!code || err.code == STEER_BAD_TEXT || err.code == STEER_BAD_MODEL);
    for (int i = 0; i < LENGTH && !code; i++)
        FUZZ_ASSERT(ids[i] >= 0 && ids[i] < unigram_vocab(t));
    FUZZ_ASSERT(code || (used >= 1 && used <= LENGTH && cut <= size));
    unigram_close(t);
    return 0;
}
