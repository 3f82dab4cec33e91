// SPDX-License-Identifier: Apache-2.0
#include "states.h"

#include <stdlib.h>
#include <string.h>

#define FEW 16

static uint8_t *halves(const struct states *s)
{
    return s->many ? s->many : (uint8_t *)(uintptr_t)s->few;
}

int states_init(struct states *s, uint32_t images)
{
    *s = (struct states){.images = images};
    s->counts[IMAGE_QUEUED] = images;
    if (images <= FEW) return 0;
    s->many = calloc((images + 1) / 2, 1);
    return s->many ? 0 : STEER_NO_MEMORY;
}

void states_free(struct states *s)
{
    free(s->many);
    s->many = NULL;
}

enum image_state states_get(const struct states *s, uint32_t i)
{
    return (enum image_state)(halves(s)[i / 2] >> (i % 2 * 4) & 15);
}

void states_set(struct states *s, uint32_t i, enum image_state to)
{
    uint8_t *half = halves(s) + i / 2;
    s->counts[states_get(s, i)]--;
    s->counts[to]++;
    *half = (uint8_t)((*half & ~(15 << (i % 2 * 4))) | (int)to << (i % 2 * 4));
}

uint32_t states_find_to(const struct states *s, uint32_t from, uint32_t end, enum image_state state)
{
    if (!s->counts[state]) return end;
    const uint8_t *all = halves(s);
    uint8_t two = (uint8_t)(state | state << 4);
    for (uint32_t i = from; i < end; i++) {
        /* Runs of other equal pairs are passed over eight bytes at a time. */
        while (i % 2 == 0 && i + 16 <= end && two != all[i / 2]) {
            uint64_t word;
            memcpy(&word, all + i / 2, sizeof word);
            if (word != all[i / 2] * UINT64_C(0x0101010101010101) ||
                (word & 15) == (uint64_t)state || (word >> 4 & 15) == (uint64_t)state)
                break;
            i += 16;
        }
        if (i < end && states_get(s, i) == state) return i;
    }
    return end;
}

uint32_t states_find(const struct states *s, uint32_t from, enum image_state state)
{
    return states_find_to(s, from, s->images, state);
}

uint32_t states_find_open(const struct states *s, uint32_t from, uint32_t end)
{
    while (from < end && states_get(s, from) >= IMAGE_ACKED)
        from++;
    return from < end ? from : end;
}

static uint32_t chunk_images(const struct states *s, uint32_t chunk)
{
    uint32_t first = chunk * STATES_CHUNK;
    return s->images - first < STATES_CHUNK ? s->images - first : STATES_CHUNK;
}

static int final(enum image_state state)
{
    return state >= IMAGE_ACKED && state < IMAGE_STATES;
}

size_t states_pack(const struct states *s, uint32_t chunk, uint8_t *ret)
{
    uint32_t first = chunk * STATES_CHUNK, count = chunk_images(s, chunk);
    memset(ret, 0, (count + 1) / 2);
    for (uint32_t i = 0; i < count; i++) {
        enum image_state state = states_get(s, first + i);
        if (final(state)) ret[i / 2] = (uint8_t)(ret[i / 2] | (int)state << (i % 2 * 4));
    }
    return (count + 1) / 2;
}

int states_unpack(struct states *s, uint32_t chunk, const uint8_t *data, size_t bytes)
{
    if ((uint64_t)chunk * STATES_CHUNK >= s->images) return STEER_STORE;
    uint32_t first = chunk * STATES_CHUNK, count = chunk_images(s, chunk);
    if (bytes != (count + 1) / 2) return STEER_STORE;
    for (uint32_t i = 0; i < count; i++) {
        enum image_state state = (enum image_state)(data[i / 2] >> (i % 2 * 4) & 15);
        if (state != IMAGE_QUEUED && !final(state)) return STEER_STORE;
        states_set(s, first + i, state);
    }
    return 0;
}
