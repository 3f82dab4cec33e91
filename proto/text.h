/* text.h - texts put where there is less room than they need, without cutting a character: half of
 * one is not UTF-8, and a message with it cannot be read. */
#ifndef PROTO_TEXT_H
#define PROTO_TEXT_H
#include <stddef.h>

/* The bytes of the longest beginning of text that has at most bytes_max of them and ends with a
 * whole character. */
size_t text_cut(const char *text, size_t bytes_max);
/* As much of from as to (of size bytes, NUL included) has room for. */
void text_copy(char *to, size_t size, const char *from);
/* Takes off the end of text what is left of a character after something else has cut it. */
void text_trim(char *text);

#endif
