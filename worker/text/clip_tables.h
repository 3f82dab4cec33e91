/* clip_tables.h - what a tokenizer folder holds, as clip_bpe.c looks it up. Inside the tokenizer
 * only.
 *
 * The words and the merges by rank, and the tokens that are seen in a text as they are. */
#ifndef WORKER_CLIP_TABLES_H
#define WORKER_CLIP_TABLES_H
#include <stddef.h>
#include <stdint.h>

#include "clip_bpe.h"

#define SPECIALS_MAX 512

struct word {
    char *text; /* NULL: free */
    int32_t id;
};

struct merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    int32_t rank, id;
};

struct special {
    char *name; /* as the folder writes it */
    char *text; /* as it is looked for */
    size_t bytes;
    int32_t id;
    int normalized; /* looked for in the normalized text, else in the text as given */
};

struct clip_bpe {
    struct word *words; /* open addressing, at most half full */
    size_t words_room;
    struct merge *merges;
    size_t merges_room;
    struct special specials[SPECIALS_MAX];
    int specials_count;
    int32_t bos, eos, pad, unk; /* unk -1: none */
    int32_t byte_id[256],
        byte_end_id[256]; /* of one byte; at a word's end. -1: not in the vocabulary */
    int32_t next_id;      /* of the next added token */
    int length, vocab;
};

/* NULL: no such pair. */
const struct merge *merge_find(const struct clip_bpe *t, int32_t left, int32_t right);

/* NFC, then every letter lower by itself (so a final sigma stays one, and U+0130 becomes two). The
 * caller frees it; NULL: out of memory. */
uint8_t *clip_normalize(const uint8_t *text, size_t size, size_t *ret_size);

#endif
