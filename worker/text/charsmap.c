// SPDX-License-Identifier: Apache-2.0
#include "charsmap.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "chars.h"

#define CHARSMAP_BYTES_MAX ((size_t)64 << 20)
#define GRAPHEME_BYTES     6 /* from here on character by character */

struct charsmap {
    uint32_t *units;
    size_t units_count;
    char *texts; /* the last byte is a 0 */
    size_t texts_size;
};

/* ---- the double array ---- */

/* A unit leads to the block that its children's units lie in, each at its label. */
static size_t unit_offset(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6);
}

static int unit_has_value(uint32_t unit)
{
    return unit >> 8 & 1;
}

/* A unit that holds a value has its highest bit set, and so is no byte's label. */
static uint32_t unit_label(uint32_t unit)
{
    return unit & (1u << 31 | 0xff);
}

static uint32_t unit_value(uint32_t unit)
{
    return unit & ~(1u << 31);
}

/* The text for the shortest entry that bytes begin with; NULL: there is none. */
static const char *entry_find(const struct charsmap *m, const char *bytes, size_t size)
{
    size_t at = unit_offset(m->units[0]);
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)bytes[i];
        at ^= byte;
        if (!byte || at >= m->units_count || unit_label(m->units[at]) != byte) return NULL;
        uint32_t unit = m->units[at];
        at ^= unit_offset(unit);
        if (!unit_has_value(unit)) continue;
        size_t place = at < m->units_count ? unit_value(m->units[at]) : m->texts_size;
        /* Never half a character, so that the result is UTF-8. */
        int inside = place < m->texts_size && (m->texts[place] & 0xc0) != 0x80;
        return inside ? m->texts + place : NULL;
    }
    return NULL;
}

int charsmap_open(struct charsmap **ret, const void *bytes, size_t size, const char *file,
                  struct steer_error *err)
{
    const uint8_t *data = bytes;
    uint32_t array = 0;
    if (size > CHARSMAP_BYTES_MAX)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: the normalizer has %zu bytes: expected at most %zu", file, size,
                          CHARSMAP_BYTES_MAX);
    for (size_t i = 0; i < 4 && size > 4; i++)
        array |= (uint32_t)data[i] << 8 * i;
    if (!array || array % 4 || array > size - 4 || (size > 4 + (size_t)array && data[size - 1]))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: the normalizer's array has %u bytes of %zu: expected its size, the "
                          "array and texts that end with a 0",
                          file, array, size);
    struct charsmap *m = calloc(1, sizeof *m);
    if (!m) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    m->units_count = array / 4;
    m->texts_size = size - 4 - array;
    m->units = malloc(array);
    m->texts = malloc(m->texts_size + 1);
    int code = 0;
    if (!m->units || !m->texts) {
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    } else {
        memcpy(m->units, data + 4, array); /* in the machine's order, as the file is */
        memcpy(m->texts, data + 4 + array, m->texts_size);
        m->texts[m->texts_size] = 0;
    }
    int32_t c;
    for (size_t i = 0; !code && i < m->texts_size;) {
        size_t n = char_at((const uint8_t *)m->texts + i, m->texts_size - i, &c);
        if (c == 0xfffd && n == 1)
            code = steer_fail(err, STEER_BAD_MODEL,
                              "%s: the normalizer's texts are not UTF-8 at byte %zu", file, i);
        i += n;
    }
    if (code)
        charsmap_close(m);
    else
        *ret = m;
    return code;
}

void charsmap_close(struct charsmap *m)
{
    if (!m) return;
    free(m->units);
    free(m->texts);
    free(m);
}

/* ---- normalizing ---- */

static int normalized_add(struct normalized *n, size_t *room, const char *text, size_t size,
                          size_t from)
{
    if (size > NORMALIZED_BYTES_MAX - n->size) return STEER_BAD_MODEL;
    if (size > *room - n->size) {
        size_t more = 2 * (n->size + size);
        char *bytes = realloc(n->text, more);
        if (bytes) n->text = bytes;
        uint32_t *origins = realloc(n->from, more * sizeof *origins);
        if (origins) n->from = origins;
        if (!bytes || !origins) return STEER_NO_MEMORY;
        *room = more;
    }
    for (size_t i = 0; i < size; i++) {
        n->text[n->size] = text[i];
        n->from[n->size++] = (uint32_t)from;
    }
    return 0;
}

/* The bytes of the grapheme at text; *state is utf8proc's, which wants to see every boundary. */
static size_t grapheme_bytes(const char *text, size_t size, int32_t *state)
{
    int32_t before, c;
    size_t end = char_at((const uint8_t *)text, size, &before);
    while (end < size) {
        size_t n = char_at((const uint8_t *)text + end, size - end, &c);
        if (utf8proc_grapheme_break_stateful(before, c, state)) break;
        before = c;
        end += n;
    }
    return end;
}

int charsmap_normalize(const struct charsmap *m, const char *text, size_t size,
                       struct normalized *ret, struct steer_error *err)
{
    struct normalized n = {.text = malloc(2 * size + 1),
                           .from = malloc((2 * size + 1) * sizeof *n.from)};
    size_t room = 2 * size + 1, i = 0;
    int32_t state = 0, c;
    int code = n.text && n.from ? 0 : STEER_NO_MEMORY;
    while (i < size && !code) {
        size_t end = i + grapheme_bytes(text + i, size - i, &state);
        const char *whole = m && end - i < GRAPHEME_BYTES ? entry_find(m, text + i, end - i) : NULL;
        if (whole) {
            code = normalized_add(&n, &room, whole, strlen(whole), i);
            i = end;
        }
        while (i < end && !code) {
            size_t bytes = char_at((const uint8_t *)text + i, end - i, &c);
            const char *entry = m ? entry_find(m, text + i, bytes) : NULL;
            code = entry ? normalized_add(&n, &room, entry, strlen(entry), i)
                         : normalized_add(&n, &room, text + i, bytes, i);
            i += bytes;
        }
    }
    if (code) {
        normalized_free(&n);
        return code == STEER_NO_MEMORY
                   ? steer_fail(err, code, "out of memory")
                   : steer_fail(err, code,
                                "the tokenizer's normalizer makes over %zu bytes of the prompt's "
                                "%zu",
                                NORMALIZED_BYTES_MAX, size);
    }
    *ret = n;
    return 0;
}

void normalized_free(struct normalized *n)
{
    free(n->text);
    free(n->from);
    *n = (struct normalized){0};
}
