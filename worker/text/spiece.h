/* spiece.h - SentencePiece's model file, spiece.model: the pieces of a unigram model, their scores,
 * and the normalizer.
 *
 * It is a protobuf (sentencepiece_model.proto), of which a tokenizer needs a dozen fields; they are
 * read here, in place and without recursion. Fields that train a model, decode a text or are
 * unknown are passed over. A setting that makes other tokens of a text than T5's tokenizer makes is
 * refused by name. */
#ifndef WORKER_SPIECE_H
#define WORKER_SPIECE_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define SPIECE_BYTES_MAX  ((size_t)64 << 20)
#define SPIECE_PIECES_MAX (1 << 20)
#define SPIECE_UNK        2 /* T5Tokenizer has <unk> there, whatever a file says */

enum spiece_type {
    SPIECE_NORMAL = 1,
    SPIECE_UNKNOWN,
    SPIECE_CONTROL,
    SPIECE_USER_DEFINED,
    SPIECE_UNUSED,
    SPIECE_BYTE
};

struct spiece_piece {
    const char *text;
    size_t bytes;
    float score; /* any number */
    enum spiece_type type;
};

struct spiece {
    struct spiece_piece *pieces;
    size_t count;
    const char *charsmap; /* charsmap.h; NULL: there is none */
    size_t charsmap_size;
};

/* Points into data. STEER_BAD_MODEL or STEER_UNSUPPORTED, naming the file. */
int spiece_parse(struct spiece *ret, const char *data, size_t size, const char *file,
                 struct steer_error *err) STEER_MUSTCHECK;
void spiece_free(struct spiece *s);

#endif
