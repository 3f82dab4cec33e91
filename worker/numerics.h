/* numerics.h - what decides an image's bytes beside the backend, as a hash for its numerics class:
 * the recipes by content (a job only names one, and $STEER_RECIPES may hold others of the same
 * name) and the versions of the libraries that encode. docs/architecture.md has the whole class. */
#ifndef WORKER_NUMERICS_H
#define WORKER_NUMERICS_H
#include <stdint.h>

/* file: a recipe's path besides, NULL for none. */
uint32_t numerics_salt(const char *file);

#endif
