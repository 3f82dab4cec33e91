/* tokenizer.h - a text encoder's tokenizer, whichever it is: texts to ids. */
#ifndef WORKER_TOKENIZER_H
#define WORKER_TOKENIZER_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define TOKENS_MAX 1024

struct tokenizer;
struct clip_bpe;
struct unigram;

/* class_name as transformers calls it ("CLIPTokenizer"); dir: the folder with its files.
 * STEER_UNSUPPORTED for a class that is none of ours. */
int tokenizer_open(struct tokenizer **ret, const char *class_name, const char *dir,
                   struct steer_error *err) STEER_MUSTCHECK;
void tokenizer_close(struct tokenizer *t); /* NULL is fine */
/* model_max_length; 0 when the folder sets none. */
int tokenizer_length(const struct tokenizer *t);
/* Names of all files that opening looks at in the folder; NULL ends them. */
const char *const *tokenizer_files(const struct tokenizer *t);

/* CLIP's or T5's, for texts that are encoded piece by piece (prompt_chunks.h); NULL: it is another.
 */
const struct clip_bpe *tokenizer_clip(const struct tokenizer *t);
const struct unigram *tokenizer_unigram(const struct tokenizer *t);

struct tokenized {
    int used;   /* ids before the padding */
    size_t cut; /* the byte of text where the first word that does not fit begins; 0: all fits */
};
/* Exactly length (2..TOKENS_MAX) ids, padded. STEER_BAD_TEXT when text is not UTF-8. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, int32_t *ids,
                     int length, struct tokenized *ret, struct steer_error *err) STEER_MUSTCHECK;

#endif
