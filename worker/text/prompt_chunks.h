/* prompt_chunks.h - a prompt as the text encoder gets it: chunks of its length, a weight a token.
 *
 * As A1111's web UI does it (stable-diffusion-webui 1.10, modules/sd_hijack_clip.py and
 * sd_emphasis.py). The encoder reads `length` tokens: begin, length - 2 of the text (75 of CLIP's
 * 77), end and padding. A longer text
 *
 * - is cut, as diffusers does, or
 * - fills one chunk after the other. Where a chunk is full and one of its last 20 tokens is a comma
 *   (comma_padding_backtrack), what follows the last comma moves on to the next chunk, so that a
 *   phrase is not torn in two. BREAK ends a chunk too. Each chunk is encoded by itself, and their
 *   embeddings stand one behind the other along the tokens.
 *
 * Weights do what the web UI's emphasis "Original" does, chunk by chunk: with z [length, channels]
 * what the encoder makes of the chunk and w[t] the weight of token t (1 for begin, end, padding),
 *
 *     y[t] = w[t] z[t]        z'[t] = y[t] mean(z) / mean(y)
 *
 * both means over all that the chunk has.
 *
 * T5 reads a text in one, of `length` tokens: text, end, padding; there are no chunks, and no
 * BREAK. Its last norm only scales, so that nothing keeps the mean away from 0, where restoring it
 * would be noise: weights do what ComfyUI does (comfy/sd1_clip.py), with e what the encoder makes
 * of the empty text,
 *
 *     z'[t] = e[t] + w[t] (z[t] - e[t])
 *
 * Both tokenize each piece of one weight by itself. */
#ifndef WORKER_PROMPT_CHUNKS_H
#define WORKER_PROMPT_CHUNKS_H
#include "limits.h"
#include "prompt_syntax.h"
#include "tokenizer.h"

struct prompt_chunks {
    int count, length;
    int32_t *ids;                      /* [count, length] */
    float *weights;                    /* [count, length] */
    int used[STEER_PROMPT_CHUNKS_MAX]; /* ids of each chunk before its padding */
    size_t cut; /* the byte of the prompt at which it was cut; 0: it was not */
};

struct prompt_reading {
    enum prompt_syntax syntax;
    int chunked; /* 0: cut after the first chunk */
};

/* lower: the text is put in lower case first, and stripped (lower.h). BAD_TEXT or BAD_VALUE as
 * prompt_parse, BAD_TEXT for more than STEER_PROMPT_CHUNKS_MAX chunks, for BREAK to T5, and
 * BAD_VALUE for chunks to T5. The caller frees it with prompt_chunks_free. */
int prompt_chunks_make(struct prompt_chunks *ret, const struct tokenizer *t, int length, int lower,
                       const char *text, struct prompt_reading reading,
                       struct steer_error *err) STEER_MUSTCHECK;
/* Empty chunks behind the others, up to count of them; c was made chunked, or has as many. */
void prompt_chunks_extend(struct prompt_chunks *c, const struct tokenizer *t, int count);
void prompt_chunks_free(struct prompt_chunks *c); /* of a zeroed one too */

/* z to z' in place: CLIP's, where z' is y if mean(y) is 0, and T5's. */
void prompt_weigh(float *z, const float *weights, int length, int channels);
void prompt_weigh_about(float *z, const float *empty, const float *weights, int length,
                        int channels);

#endif
