/* unigram.h - T5's tokenizer from tokenizer.json, or spiece.model, as transformers 5's T5Tokenizer
 * (the fast one, which diffusers loads) splits: special tokens are seen in the text, the rest goes
 * through the model's own normalizer, white space parts words, each begins with U+2581, and the
 * pieces of a word are those of the greatest sum of scores. What no piece holds is <unk>, a run of
 * it one token.
 *
 * T5Tokenizer brings its own rules and takes from the files only pieces, scores and normalizer.
 * Where SentencePiece itself would split otherwise, this follows T5Tokenizer:
 * - special tokens in the text become their ids; SentencePiece spells them. So do texts that become
 *   one by normalizing, as pieces of the vocabulary ("</s>" in fullwidth letters);
 * - normalizing goes grapheme by grapheme (charsmap.h);
 * - white space that the normalizer leaves, as U+0085, parts words; SentencePiece knows only
 *   U+0020. A U+2581 that it leaves begins a word. */
#ifndef WORKER_UNIGRAM_H
#define WORKER_UNIGRAM_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define UNIGRAM_TOKENS_MAX 1024

struct unigram;

/* Reads DIR/tokenizer.json or else DIR/spiece.model and, where they are there,
 * tokenizer_config.json, special_tokens_map.json and added_tokens.json. */
int unigram_open(struct unigram **ret, const char *dir, struct steer_error *err) STEER_MUSTCHECK;
void unigram_close(struct unigram *t); /* NULL is fine */
/* model_max_length; 0 when the folder sets none. */
int unigram_length(const struct unigram *t);
/* The highest token id, plus 1. */
int unigram_vocab(const struct unigram *t);

/* The tokens of text alone: at most `most` of them are written. *ret_count is most + 1 when there
 * are more; *ret_cut is then the byte where the first word that does not fit begins. STEER_BAD_TEXT
 * when text is not UTF-8. */
int unigram_tokens(const struct unigram *t, const char *text, size_t size, int32_t *ids, int most,
                   int *ret_count, size_t *ret_cut, struct steer_error *err) STEER_MUSTCHECK;
/* Puts </s> and padding behind the used tokens, in all length (at least used + 1) ids. */
void unigram_frame(const struct unigram *t, int32_t *ids, int used, int length);
/* Tokens, </s>, then padding, to exactly length (1..UNIGRAM_TOKENS_MAX) ids. *ret_used counts them
 * without the padding: what a mask lets be seen. *ret_cut is the byte of text (at least 1) where
 * the first word that does not fit begins, 0 when all fits. STEER_BAD_TEXT when text is not UTF-8.
 */
int unigram_encode(const struct unigram *t, const char *text, size_t size, int32_t *ids, int length,
                   int *ret_used, size_t *ret_cut, struct steer_error *err) STEER_MUSTCHECK;

#endif
