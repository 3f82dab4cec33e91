/* chars.h - the characters of a UTF-8 text, as every tokenizer sees them. */
#ifndef WORKER_CHARS_H
#define WORKER_CHARS_H
#include <stddef.h>
#include <stdint.h>

/* Unicode's White_Space. */
int is_space(int32_t c);
/* The character at text and its bytes; 0xfffd and 1 where it is not UTF-8. */
size_t char_at(const uint8_t *text, size_t size, int32_t *c);

#endif
