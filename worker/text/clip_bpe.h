/* clip_bpe.h - CLIP's tokenizer from tokenizer.json, or vocab.json and merges.txt, as transformers
 * 5's CLIPTokenizer (the fast one) splits: NFC, white space folded, lower case letter by letter,
 * words and signs apart, byte-level pairs merged by rank, "</w>" at the end of a word. Special
 * tokens are seen in the text. */
#ifndef WORKER_CLIP_BPE_H
#define WORKER_CLIP_BPE_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define CLIP_BPE_TOKENS_MAX 1024

struct clip_bpe;

/* Reads DIR/tokenizer.json or else DIR/vocab.json and DIR/merges.txt and, where they are there,
 * tokenizer_config.json, special_tokens_map.json and added_tokens.json. */
int clip_bpe_open(struct clip_bpe **ret, const char *dir, struct steer_error *err) STEER_MUSTCHECK;
void clip_bpe_close(struct clip_bpe *t); /* NULL is fine */
/* model_max_length; 0 when the folder sets none. */
int clip_bpe_length(const struct clip_bpe *t);
/* The highest token id, plus 1. */
int clip_bpe_vocab(const struct clip_bpe *t);

/* The token of a comma that ends a word; -1: none. */
int32_t clip_bpe_comma(const struct clip_bpe *t);

/* The tokens of text alone: at most `most` of them are written. *ret_count is most + 1 when there
 * are more; *ret_cut is then the byte where the first word that does not fit begins. */
int clip_bpe_tokens(const struct clip_bpe *t, const char *text, size_t size, int32_t *ids, int most,
                    int *ret_count, size_t *ret_cut, struct steer_error *err) STEER_MUSTCHECK;
/* Puts begin before and end and padding behind the used tokens at ids[1..used], in all length
 * (at least used + 2) ids. */
void clip_bpe_frame(const struct clip_bpe *t, int32_t *ids, int used, int length);
/* Begin, tokens, end (*ret_used ids), then padding, to exactly length (2..CLIP_BPE_TOKENS_MAX).
 * *ret_cut is the byte of text where the first word that does not fit begins, 0 when all fits.
 * STEER_BAD_TEXT when text is not UTF-8. */
int clip_bpe_encode(const struct clip_bpe *t, const char *text, size_t size, int32_t *ids,
                    int length, int *ret_used, size_t *ret_cut,
                    struct steer_error *err) STEER_MUSTCHECK;

#endif
