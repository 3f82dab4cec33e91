// SPDX-License-Identifier: Apache-2.0
#include "trouble.h"

#include <stdlib.h>

enum { SIZE_FIRST = 8 };

/* Neighbours fail together and lie in buckets side by side. */
static struct trouble **bucket(const struct troubles *all, uint32_t index)
{
    return all->buckets + (index & (all->size - 1));
}

/* Twice the buckets; staying small is no error, having none is. */
static void grow(struct troubles *all)
{
    struct troubles bigger = {.size = all->size ? 2 * all->size : SIZE_FIRST, .count = all->count};
    bigger.buckets = calloc(bigger.size, sizeof *bigger.buckets);
    if (!bigger.buckets) return;
    for (uint32_t i = 0; i < all->size; i++)
        while (all->buckets[i]) {
            struct trouble *t = all->buckets[i], **at = bucket(&bigger, t->index);
            all->buckets[i] = t->next;
            t->next = *at;
            *at = t;
        }
    free(all->buckets);
    *all = bigger;
}

struct trouble *trouble_find(const struct troubles *all, uint32_t index)
{
    struct trouble *t = all->count ? *bucket(all, index) : NULL;
    while (t && t->index != index)
        t = t->next;
    return t;
}

struct trouble *trouble_get(struct troubles *all, uint32_t index)
{
    struct trouble *t = trouble_find(all, index);
    if (t) return t;
    if (all->count >= all->size) grow(all);
    if (!all->buckets || !(t = calloc(1, sizeof *t))) return NULL;
    t->index = index;
    t->next = *bucket(all, index);
    *bucket(all, index) = t;
    all->count++;
    return t;
}

void trouble_drop(struct troubles *all, uint32_t index)
{
    for (struct trouble **at = all->count ? bucket(all, index) : NULL; at && *at;
         at = &(*at)->next) {
        struct trouble *t = *at;
        if (t->index != index) continue;
        *at = t->next;
        free(t);
        if (--all->count == 0) troubles_free(all);
        return;
    }
}

void troubles_free(struct troubles *all)
{
    for (uint32_t i = 0; i < all->size; i++)
        while (all->buckets[i]) {
            struct trouble *t = all->buckets[i];
            all->buckets[i] = t->next;
            free(t);
        }
    free(all->buckets);
    *all = (struct troubles){0};
}
