/* unigram_tables.h - what a T5 tokenizer's folder holds, as unigram.c looks it up. Inside the
 * tokenizer only.
 *
 * The pieces in order of their bytes, so that those that begin alike are a range, which narrows
 * with each byte of the text; and the tokens that are seen in a text as they are. */
#ifndef WORKER_UNIGRAM_TABLES_H
#define WORKER_UNIGRAM_TABLES_H
#include <stddef.h>
#include <stdint.h>

#include "charsmap.h"
#include "spiece.h"
#include "unigram.h"

#define UNIGRAM_ADDED_MAX 1024

struct piece {
    uint32_t at, bytes; /* in the text of all pieces */
    double score;
    int32_t id;
    int special; /* control or user-defined in spiece.model */
};

struct added_token {
    char *name; /* as the folder writes it */
    char *text; /* as it is looked for */
    size_t bytes;
    int32_t id;
    int normalized;     /* looked for in the normalized text, else in the text as given */
    int lstrip, rstrip; /* swallows white space before or behind it */
};

struct unigram {
    char *texts; /* of all pieces, end to end */
    size_t texts_size, texts_room;
    struct piece *pieces; /* sorted, each text once */
    size_t count, room;
    double unk_score;
    struct charsmap *charsmap; /* NULL: none */
    struct added_token added[UNIGRAM_ADDED_MAX];
    int added_count;
    int32_t next_id; /* of the next added token */
    int32_t eos, pad;
    int length, vocab;
};

/* Pieces that begin with the same bytes: first .. end - 1. */
struct piece_range {
    size_t first, end;
};
struct piece_range piece_range_all(const struct unigram *t);
/* Those of r, all alike in depth bytes, that go on with byte. */
struct piece_range piece_range_narrow(const struct unigram *t, struct piece_range r, size_t depth,
                                      uint8_t byte);
/* The piece that is exactly that text; NULL: none. */
const struct piece *piece_find(const struct unigram *t, const char *text, size_t bytes);

#endif
