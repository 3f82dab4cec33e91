// SPDX-License-Identifier: Apache-2.0
#include "chars.h"

#include <utf8proc.h>

int is_space(int32_t c)
{
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

size_t char_at(const uint8_t *text, size_t size, int32_t *c)
{
    utf8proc_ssize_t n = utf8proc_iterate(text, (utf8proc_ssize_t)size, c);
    if (n > 0) return (size_t)n;
    *c = 0xfffd;
    return 1;
}
