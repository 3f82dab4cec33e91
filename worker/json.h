/* json.h - configuration files of strangers, through jansson.
 *
 * Size is capped before reading, depth by jansson. Published folders hold what JSON does not allow:
 * bare Infinity, -Infinity and NaN outside of texts are read as null. */
#ifndef WORKER_JSON_H
#define WORKER_JSON_H
#include <jansson.h>
#include <stddef.h>

#include "error.h"

#define JSON_BYTES_MAX ((size_t)64 << 20)

/* The caller owns *ret (json_decref). STEER_NOT_FOUND, STEER_BAD_MODEL with file, line and reason.
 */
int json_file_load(json_t **ret, const char *path, struct steer_error *err) STEER_MUSTCHECK;
/* The same from memory; what names the source in errors. Top level may be any value. */
int json_bytes_load(json_t **ret, const char *data, size_t size, const char *what,
                    struct steer_error *err) STEER_MUSTCHECK;

/* The whole number at key, fallback where the key is absent or null. STEER_BAD_MODEL for anything
 * else than least..most; file names the source. */
int json_whole(int *ret, const json_t *object, const char *key, int fallback, int least, int most,
               const char *file, struct steer_error *err) STEER_MUSTCHECK;

#endif
