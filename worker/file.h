/* file.h - files of strangers' folders, opened so that what only looks like a file cannot hurt. */
#ifndef WORKER_FILE_H
#define WORKER_FILE_H
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "error.h"

/* A descriptor for reading and its fstat. Nothing but a regular file is opened: a FIFO would block
 * for ever, a device may act on being read. STEER_NOT_FOUND, STEER_IO or STEER_BAD_MODEL. */
int file_open(int *ret_fd, struct stat *ret, const char *path,
              struct steer_error *err) STEER_MUSTCHECK;
/* The whole file, ended by a 0 that *ret_size does not count; the caller frees *ret. */
int file_read(char **ret, size_t *ret_size, const char *path, size_t bytes_max,
              struct steer_error *err) STEER_MUSTCHECK;

/* The number that n bytes are, the lowest first. */
static inline uint64_t little_endian(const uint8_t *bytes, size_t n)
{
    uint64_t value = 0;
    for (size_t i = n; i > 0; i--)
        value = value << 8 | bytes[i - 1];
    return value;
}

#endif
