/* output.h - where images go on disk: names from a pattern, files whole or not at all. */
#ifndef PROTO_OUTPUT_H
#define PROTO_OUTPUT_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* pattern with {index} {seed} {job} {model} filled in; without {index} and {seed}, several images
 * become name-0007.webp. STEER_BAD_VALUE: it does not fit. */
int output_name(char *to, size_t size, const char *pattern, uint32_t images, uint32_t index,
                uint64_t seed, const char *job, const char *model) STEER_MUSTCHECK;
/* *ret_png: 1 for a name that ends in .png, 0 for .webp; other names are STEER_BAD_VALUE. */
int output_format(int *ret_png, const char *pattern, struct steer_error *err) STEER_MUSTCHECK;
/* That the pattern's folder is there and can be written to, before anything is rendered. */
int output_check(const char *pattern, struct steer_error *err) STEER_MUSTCHECK;
/* 1: the file holds just these bytes. */
int output_same(const char *path, const void *data, size_t size);
/* On disk under a temporary name in the same folder, then renamed, and the folder synced, so that
 * what is acknowledged afterwards survives a power cut. STEER_IO; without overwrite an existing
 * file with other bytes is STEER_BAD_VALUE. */
int output_write(const char *path, const void *data, size_t size, int overwrite,
                 struct steer_error *err) STEER_MUSTCHECK;

#endif
