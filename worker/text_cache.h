/* text_cache.h - prompt embeddings and what the denoiser is bound to of them, least recently used
 * first out, within a bound on bytes. A text is known by its tokens and their weights.
 *
 * Between text_cache_pin and text_cache_unpin nothing is evicted, so that a batch can hold what it
 * looked up; the bound is kept again at unpin. */
#ifndef WORKER_TEXT_CACHE_H
#define WORKER_TEXT_CACHE_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct text_entry {
    struct text_entry *newer, *older; /* the cache's */
    int32_t *ids;                     /* of all encoders in order; none: an absent text */
    float *weights;                   /* of each of these tokens */
    int count;
    int chunks;    /* for the caller to fill, like what follows */
    float *states; /* [chunks * tokens, channels], then the pooled state */
    char *bound;   /* the text graph's outputs in order, dense, each in its type */
    size_t bytes;
};

struct text_cache;
int text_cache_new(struct text_cache **ret, size_t bytes_max) STEER_MUSTCHECK;
void text_cache_free(struct text_cache *c); /* NULL is fine */
/* NULL: not there. Borrowed until the next unpin. */
const struct text_entry *text_cache_find(struct text_cache *c, const int32_t *ids,
                                         const float *weights, int count);
/* A new entry for the caller to fill; one block of memory. */
int text_cache_add(struct text_cache *c, const int32_t *ids, const float *weights, int count,
                   size_t states_floats, size_t bound_bytes,
                   struct text_entry **ret) STEER_MUSTCHECK;
/* Takes back an entry that could not be filled. */
void text_cache_remove(struct text_cache *c, struct text_entry *e);
void text_cache_pin(struct text_cache *c);
void text_cache_unpin(struct text_cache *c);
size_t text_cache_bytes(const struct text_cache *c);

#endif
