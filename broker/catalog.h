/* catalog.h - the models that workers have ever offered: names, hashes, defaults, limits.
 *
 * Stored, so that jobs are accepted and resolved while no worker is up. Unknown means never seen.
 */
#ifndef BROKER_CATALOG_H
#define BROKER_CATALOG_H
#include "error.h"
#include "steer.pb-c.h"

struct catalog;

struct catalog *catalog_new(void); /* NULL: out of memory */
void catalog_free(struct catalog *c);
/* Takes a packed Model. 1: it is new or differs from what was known (store it), 0: known, or a
 * negative code. */
int catalog_put(struct catalog *c, const void *data, size_t bytes);
const Steerfarm__Model *catalog_find(const struct catalog *c, const char *name);
size_t catalog_count(const struct catalog *c);
Steerfarm__Model **catalog_all(const struct catalog *c);
/* "a, b, c" for a sentence, cut to size. */
void catalog_names(const struct catalog *c, char *to, size_t size);

#endif
