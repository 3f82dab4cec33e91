/* charsmap.h - the normalizer inside a SentencePiece model: which characters become which text.
 *
 * The bytes ("precompiled_charsmap") are [u32 size][double array of u32 units][texts, each ended by
 * a 0]; the array is darts-clone's, its values are places in the texts. They come from a file:
 * nothing in them is followed before it is checked.
 *
 * It is used as the tokenizers library uses it, which is not how SentencePiece does: grapheme by
 * grapheme, and the first, shortest entry that a grapheme of less than 6 bytes begins with stands
 * for all of it. A longer grapheme is taken character by character. So a mark that no entry knows
 * vanishes with what it stands on, and Hangul jamo stay apart. What a grapheme is, utf8proc knows
 * as of Unicode 15, the library as of 17: 28 marks (U+0897, U+1ACF..1AEB) are newer. */
#ifndef WORKER_CHARSMAP_H
#define WORKER_CHARSMAP_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct charsmap;

/* Copies bytes. STEER_BAD_MODEL, naming the file. */
int charsmap_open(struct charsmap **ret, const void *bytes, size_t size, const char *file,
                  struct steer_error *err) STEER_MUSTCHECK;
void charsmap_close(struct charsmap *m); /* NULL is fine */

struct normalized {
    char *text;     /* NULL: not made yet, or freed */
    uint32_t *from; /* for each byte of text, the byte of the source that it was made of */
    size_t size;
};

#define NORMALIZED_BYTES_MAX ((size_t)1 << 20)

/* text is UTF-8, and so is what becomes of it. m NULL: it stays as it is. STEER_NO_MEMORY, or
 * STEER_BAD_MODEL when it becomes more than NORMALIZED_BYTES_MAX. */
int charsmap_normalize(const struct charsmap *m, const char *text, size_t size,
                       struct normalized *ret, struct steer_error *err) STEER_MUSTCHECK;
void normalized_free(struct normalized *n);

#endif
