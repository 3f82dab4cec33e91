// SPDX-License-Identifier: Apache-2.0
#include "catalog.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

enum { CATALOG_MAX = 4096 };

struct catalog {
    Steerfarm__Model **models;
    size_t count;
};

struct catalog *catalog_new(void)
{
    struct catalog *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    if ((c->models = calloc(CATALOG_MAX, sizeof(Steerfarm__Model *)))) return c;
    free(c);
    return NULL;
}

void catalog_free(struct catalog *c)
{
    if (!c) return;
    for (size_t i = 0; i < c->count; i++)
        steerfarm__model__free_unpacked(c->models[i], NULL);
    free(c->models);
    free(c);
}

/* The same entry but for what changes from hour to hour. */
static int same(const Steerfarm__Model *a, const void *data, size_t bytes)
{
    size_t size = steerfarm__model__get_packed_size(a);
    uint8_t *packed = size == bytes ? malloc(size) : NULL;
    if (!packed) return 0;
    steerfarm__model__pack(a, packed);
    int equal = memcmp(packed, data, size) == 0;
    free(packed);
    return equal;
}

int catalog_put(struct catalog *c, const void *data, size_t bytes)
{
    Steerfarm__Model *m = steerfarm__model__unpack(NULL, bytes, data);
    if (!m) return STEER_BAD_FRAME;
    for (size_t i = 0; i < c->count; i++) {
        if (strcmp(c->models[i]->name, m->name) != 0) continue;
        if (same(c->models[i], data, bytes)) {
            steerfarm__model__free_unpacked(m, NULL);
            return 0;
        }
        steerfarm__model__free_unpacked(c->models[i], NULL);
        c->models[i] = m;
        return 1;
    }
    if (c->count == CATALOG_MAX) {
        steerfarm__model__free_unpacked(m, NULL);
        return STEER_BUSY;
    }
    c->models[c->count++] = m;
    return 1;
}

const Steerfarm__Model *catalog_find(const struct catalog *c, const char *name)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->models[i]->name, name) == 0) return c->models[i];
    return NULL;
}

size_t catalog_count(const struct catalog *c)
{
    return c->count;
}

Steerfarm__Model **catalog_all(const struct catalog *c)
{
    return c->models;
}

void catalog_names(const struct catalog *c, char *to, size_t size)
{
    size_t used = 0;
    text_copy(to, size, "none yet");
    for (size_t i = 0; i < c->count && used < size; i++)
        used += (size_t)snprintf(to + used, size - used, "%s%s", i ? ", " : "", c->models[i]->name);
    if (used >= size) text_trim(to);
}
