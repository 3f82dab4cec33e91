// SPDX-License-Identifier: Apache-2.0
/* A prompt in A1111's syntax, chunked or (its first byte odd) cut, on a tokenizer whose words are
 * single bytes. */
#include <math.h>
#include <string.h>

#include "fuzz.h"
#include "limits.h"
#include "text/clip_bpe.h"
#include "text/prompt_chunks.h"

enum { LENGTH = 9 };

static struct tokenizer *tokenizer(void)
{
    static struct tokenizer *t;
    if (t) return t;
    char vocab[4000];
    size_t n = (size_t)snprintf(vocab, sizeof vocab, "{\"<|startoftext|>\":0,\"<|endoftext|>\":1");
    int id = 2;
    for (int c = '!'; c <= '~'; c++)
        if (c != '"' && c != '\\')
            for (int ends = 0; ends < 2; ends++)
                n += (size_t)snprintf(vocab + n, sizeof vocab - n, ",\"%c%s\":%d", c,
                                      ends ? "</w>" : "", id++);
    n += (size_t)snprintf(vocab + n, sizeof vocab - n, "}");
    fuzz_file("vocab.json", (const uint8_t *)vocab, n);
    fuzz_file("merges.txt", (const uint8_t *)"#version: 0.2\n", 14);
    struct steer_error err = {0};
    FUZZ_ASSERT(tokenizer_open(&t, "CLIPTokenizer", ".", &err) == 0);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    FUZZ_ASSERT(text);
    if (size) memcpy(text, data, size);
    text[size] = 0;
    size = strlen(text);
    struct prompt_reading reading = {PROMPT_A1111, size ? data[0] % 2 == 0 : 1};
    struct prompt_chunks c = {0};
    struct steer_error err = {0};
    int code = prompt_chunks_make(&c, tokenizer(), LENGTH, 0, text, reading, &err);
    FUZZ_ASSERT(!code || ((code == STEER_BAD_TEXT || code == STEER_BAD_VALUE) && err.text[0]));
    if (!code) {
        FUZZ_ASSERT(c.count >= 1 && c.count <= (reading.chunked ? STEER_PROMPT_CHUNKS_MAX : 1));
        FUZZ_ASSERT(c.cut < size || c.cut <= 1);
        FUZZ_ASSERT(!reading.chunked || !c.cut);
        for (int i = 0; i < c.count * LENGTH; i++) {
            FUZZ_ASSERT(c.ids[i] >= 0 && c.ids[i] < clip_bpe_vocab(tokenizer_clip(tokenizer())));
            FUZZ_ASSERT(fabsf(c.weights[i]) <= STEER_PROMPT_WEIGHT_MAX);
        }
    }
    prompt_chunks_free(&c);
    free(text);
    return 0;
}
