// SPDX-License-Identifier: Apache-2.0
#include "text.h"

#include <string.h>

static int continues(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80;
}

size_t text_cut(const char *text, size_t bytes_max)
{
    size_t size = strnlen(text, bytes_max + 1);
    if (size <= bytes_max) return size;
    size = bytes_max;
    while (size && continues(text[size]))
        size--;
    return size;
}

void text_copy(char *to, size_t size, const char *from)
{
    if (!size) return;
    size_t bytes = text_cut(from, size - 1);
    memcpy(to, from, bytes);
    to[bytes] = 0;
}

void text_trim(char *text)
{
    size_t size = strlen(text), more = 0;
    while (more < size && more < 3 && continues(text[size - 1 - more]))
        more++;
    if (more == size) return;
    unsigned char first = (unsigned char)text[size - 1 - more];
    size_t wanted = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : 0;
    if (wanted > more) text[size - 1 - more] = 0;
}
