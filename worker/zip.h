/* zip.h - the entries of a mapped zip archive that are stored as they are (torch.save stores all).
 *
 * Only the central directory is believed, zip64 included, and each place in it is checked against
 * the archive's size without overflow. No library in Debian says where an entry's bytes lie, and
 * they are to be mapped, not copied. */
#ifndef WORKER_ZIP_H
#define WORKER_ZIP_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct zip_entry {
    const char *name; /* in the mapping; not ended by 0 */
    size_t name_bytes;
    unsigned flags, method;
    uint64_t offset, size; /* of its local header; of its bytes */
};

struct zip {
    const uint8_t *data; /* borrowed */
    size_t size;
    const char *path;          /* borrowed; names the archive in errors */
    struct zip_entry *entries; /* sorted by name */
    size_t count;
};

/* STEER_BAD_MODEL or STEER_NO_MEMORY; zip_close frees what it made, also after an error. */
int zip_open(struct zip *z, const uint8_t *data, size_t size, const char *path,
             struct steer_error *err) STEER_MUSTCHECK;
void zip_close(struct zip *z);
/* NULL: no such entry. */
const struct zip_entry *zip_find(const struct zip *z, const char *name);
/* The bytes of an entry, e->size of them. STEER_BAD_MODEL when they are compressed, encrypted or
 * not in the archive. */
int zip_stored(const struct zip *z, const struct zip_entry *e, const uint8_t **ret,
               struct steer_error *err) STEER_MUSTCHECK;

#endif
