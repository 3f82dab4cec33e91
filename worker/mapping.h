/* mapping.h - files mapped for reading that may shrink meanwhile.
 *
 * Reading a page that a shrunk file no longer has is a SIGBUS, which would end the worker. Here it
 * reads zeros, and the mapping tells that it was cut, so that what was made of it is thrown away.
 * What has bytes of a file that is whole again in their place cannot be told from it: once cut is
 * cut. A new mapping sees to it that the process's
 * handler of SIGBUS is ours; faults elsewhere go to the one before. */
#ifndef WORKER_MAPPING_H
#define WORKER_MAPPING_H
#include <stddef.h>

#include "error.h"

struct mapping;

/* Private and read-only. errno tells why it failed. */
int mapping_new(struct mapping **ret, int fd, size_t size) STEER_MUSTCHECK;
void mapping_free(struct mapping *m); /* NULL is fine */
void *mapping_data(const struct mapping *m);
/* 1 when something was read that the file did not have any more. */
int mapping_cut(const struct mapping *m);

#endif
