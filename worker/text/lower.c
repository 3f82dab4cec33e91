// SPDX-License-Identifier: Apache-2.0
#include "lower.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "chars.h"

enum { SIGMA = 0x3a3, FINAL_SIGMA = 0x3c2, I_WITH_DOT = 0x130, DOT_ABOVE = 0x307 };

/* Unicode's Cased, as far as a sigma's neighbours need it. */
static int is_cased(int32_t c)
{
    return utf8proc_islower(c) || utf8proc_isupper(c) ||
           utf8proc_category(c) == UTF8PROC_CATEGORY_LT;
}

/* Unicode's Case_Ignorable. */
static int is_ignorable(int32_t c)
{
    static const int32_t within_words[] = {0x27,   0x2e,   0x3a,   0xb7,   0x387,  0x55f,
                                           0x5f4,  0x2018, 0x2019, 0x2024, 0x2027, 0xfe13,
                                           0xfe52, 0xfe55, 0xff07, 0xff0e, 0xff1a};
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK: return 1;
    default: break;
    }
    for (size_t i = 0; i < sizeof within_words / sizeof *within_words; i++)
        if (c == within_words[i]) return 1;
    return 0;
}

/* White_Space and the separators that Python counts with it. */
static int is_stripped(int32_t c)
{
    return is_space(c) || (c >= 0x1c && c <= 0x1f);
}

/* 1 when the sigma at byte i, of n bytes, ends a word: a letter before it and none after it. */
static int ends_word(const uint8_t *text, size_t size, size_t i, size_t n)
{
    int32_t c = 0;
    size_t k = i, before = 0;
    while (k) {
        do
            k--;
        while (k && (text[k] & 0xc0) == 0x80);
        char_at(text + k, i - k, &c);
        if (is_ignorable(c)) continue;
        before = is_cased(c);
        break;
    }
    if (!before) return 0;
    for (k = i + n; k < size;) {
        k += char_at(text + k, size - k, &c);
        if (!is_ignorable(c)) return !is_cased(c);
    }
    return 1;
}

/* The character at byte i in lower case, in at most 4 bytes; returns how many it has in text. */
static size_t lower_at(const uint8_t *text, size_t size, size_t i, uint8_t out[4], size_t *ret_out)
{
    int32_t c;
    size_t n = char_at(text + i, size - i, &c);
    if (c == 0xfffd) { /* it, or a byte that is no character */
        memcpy(out, text + i, *ret_out = n);
        return n;
    }
    int32_t lower = c == I_WITH_DOT                             ? 'i'
                    : c == SIGMA && ends_word(text, size, i, n) ? FINAL_SIGMA
                                                                : 0;
    *ret_out = (size_t)utf8proc_encode_char(lower ? lower : utf8proc_tolower(c), out);
    if (c == I_WITH_DOT) *ret_out += (size_t)utf8proc_encode_char(DOT_ABOVE, out + *ret_out);
    return n;
}

/* The bytes of white space at the beginning, and where that at the end begins. */
static void strip(const uint8_t *text, size_t size, size_t *ret_begin, size_t *ret_end)
{
    *ret_begin = *ret_end = size;
    for (size_t i = 0; i < size;) {
        int32_t c;
        size_t n = char_at(text + i, size - i, &c);
        if (!is_stripped(c)) {
            if (*ret_begin == size) *ret_begin = i;
            *ret_end = i + n;
        }
        i += n;
    }
}

int text_lower(char **ret, size_t *ret_size, const char *text, size_t size)
{
    const uint8_t *from = (const uint8_t *)text;
    size_t begin, end, count = 0, n;
    /* A lower letter is at most one and a half times as long. */
    uint8_t *out = malloc(2 * size + 4);
    if (!out) return STEER_NO_MEMORY;
    strip(from, size, &begin, &end);
    for (size_t i = begin; i < end; count += n)
        i += lower_at(from, size, i, out + count, &n);
    out[count] = 0;
    *ret = (char *)out;
    *ret_size = count;
    return 0;
}

size_t text_lower_source(const char *text, size_t size, size_t at)
{
    const uint8_t *from = (const uint8_t *)text;
    size_t begin, end, count = 0, n;
    uint8_t out[4];
    strip(from, size, &begin, &end);
    for (size_t i = begin; i < end; count += n) {
        size_t bytes = lower_at(from, size, i, out, &n);
        if (at < count + n) return i;
        i += bytes;
    }
    return end;
}
