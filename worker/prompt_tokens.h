/* prompt_tokens.h - one prompt as all text encoders of a model get it. */
#ifndef WORKER_PROMPT_TOKENS_H
#define WORKER_PROMPT_TOKENS_H
#include "model.h"
#include "text/prompt_chunks.h"

struct prompt_tokens {
    int chunks;     /* of each encoder; an absent text is one, of zeros */
    int count;      /* ids of all encoders together; 0: an absent text */
    int32_t *ids;   /* [chunks, tokens] of one encoder after the other */
    float *weights; /* of each of them */
    int used[TEXT_ENCODERS_MAX][STEER_PROMPT_CHUNKS_MAX]; /* before the padding */
    size_t cut; /* the first byte at which the text of an encoder with states was cut; 0: none */
};

/* text NULL: absent, which is "" to models that know no zeros for it. What prompt_chunks_make
 * refuses, and STEER_BAD_MODEL for a token that an encoder's table does not have. The caller frees
 * it with prompt_tokens_free. */
int prompt_tokens_read(struct prompt_tokens *ret, const struct model *m, const char *text,
                       struct prompt_reading reading, struct steer_error *err) STEER_MUSTCHECK;
void prompt_tokens_free(struct prompt_tokens *t); /* of a zeroed one too */

#endif
