// SPDX-License-Identifier: Apache-2.0
#include "text_cache.h"

#include <stdlib.h>
#include <string.h>

struct text_cache {
    struct text_entry *newest, *oldest;
    size_t bytes, bytes_max;
    int pinned;
};

int text_cache_new(struct text_cache **ret, size_t bytes_max)
{
    struct text_cache *c = calloc(1, sizeof *c);
    if (!c) return STEER_NO_MEMORY;
    c->bytes_max = bytes_max;
    *ret = c;
    return 0;
}

static void unlink_entry(struct text_cache *c, struct text_entry *e)
{
    *(e->newer ? &e->newer->older : &c->newest) = e->older;
    *(e->older ? &e->older->newer : &c->oldest) = e->newer;
}

static void push_newest(struct text_cache *c, struct text_entry *e)
{
    e->newer = NULL;
    e->older = c->newest;
    *(c->newest ? &c->newest->newer : &c->oldest) = e;
    c->newest = e;
}

void text_cache_remove(struct text_cache *c, struct text_entry *e)
{
    unlink_entry(c, e);
    c->bytes -= e->bytes;
    free(e);
}

static void shrink(struct text_cache *c)
{
    while (!c->pinned && c->bytes > c->bytes_max && c->oldest)
        text_cache_remove(c, c->oldest);
}

static int is_text(const struct text_entry *e, const int32_t *ids, const float *weights, int count)
{
    return e->count == count &&
           (!count || (memcmp(e->ids, ids, (size_t)count * sizeof *ids) == 0 &&
                       memcmp(e->weights, weights, (size_t)count * sizeof *weights) == 0));
}

void text_cache_free(struct text_cache *c)
{
    if (!c) return;
    c->pinned = 0;
    c->bytes_max = 0;
    shrink(c);
    free(c);
}

const struct text_entry *text_cache_find(struct text_cache *c, const int32_t *ids,
                                         const float *weights, int count)
{
    /* A list walk: a few hundred entries at most, each told apart by its first tokens. */
    for (struct text_entry *e = c->newest; e; e = e->older) {
        if (!is_text(e, ids, weights, count)) continue;
        unlink_entry(c, e);
        push_newest(c, e);
        return e;
    }
    return NULL;
}

int text_cache_add(struct text_cache *c, const int32_t *ids, const float *weights, int count,
                   size_t states_floats, size_t bound_bytes, struct text_entry **ret)
{
    /* Keys and values first: vector loads like them aligned. */
    size_t head = (sizeof(struct text_entry) + 63) & ~(size_t)63;
    size_t bound = (bound_bytes + 63) & ~(size_t)63, states = states_floats * sizeof(float);
    size_t id_bytes = (size_t)count * sizeof *ids, weight_bytes = (size_t)count * sizeof *weights;
    size_t bytes = (head + bound + states + id_bytes + weight_bytes + 63) & ~(size_t)63;
    struct text_entry *e = aligned_alloc(64, bytes);
    if (!e) return STEER_NO_MEMORY;
    char *at = (char *)e;
    *e = (struct text_entry){.count = count, .bytes = bytes};
    e->bound = at + head;
    e->states = (float *)(void *)(at + head + bound);
    e->ids = (int32_t *)(void *)(at + head + bound + states);
    e->weights = (float *)(void *)(at + head + bound + states + id_bytes);
    if (count) memcpy(e->ids, ids, id_bytes);
    if (count) memcpy(e->weights, weights, weight_bytes);
    push_newest(c, e);
    c->bytes += bytes;
    *ret = e;
    return 0;
}

void text_cache_pin(struct text_cache *c)
{
    c->pinned = 1;
}

void text_cache_unpin(struct text_cache *c)
{
    c->pinned = 0;
    shrink(c);
}

size_t text_cache_bytes(const struct text_cache *c)
{
    return c->bytes;
}
