/* lower.h - a prompt as pipelines give it to a text encoder that knows no capitals: Python's
 * str.lower().strip(). A capital sigma at a word's end becomes a final one, U+0130 becomes two
 * characters. */
#ifndef WORKER_LOWER_H
#define WORKER_LOWER_H
#include <stddef.h>

#include "error.h"

/* The caller frees *ret, which has a 0 after its bytes. What is not UTF-8 stays as it is.
 * STEER_NO_MEMORY. */
int text_lower(char **ret, size_t *ret_size, const char *text, size_t size) STEER_MUSTCHECK;
/* The byte of text whose character became byte `at` of the result. */
size_t text_lower_source(const char *text, size_t size, size_t at);

#endif
