/* json.h - configuration files of strangers, through jansson.
 *
 * Size is capped before reading, depth by jansson. Published folders hold what JSON does not allow:
 * bare Infinity and -Infinity outside of texts are read as null, NaN as "". */
#ifndef WORKER_JSON_H
#define WORKER_JSON_H
#include <jansson.h>
#include <stddef.h>

#include "error.h"

/* As the header of a tensor file in the reference implementation. */
#define JSON_BYTES_MAX ((size_t)100 << 20)

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
/* The same for a finite number, for true or false, and for a text that is one of choices (NULL ends
 * them; *ret is its place). A choice that is not there is STEER_UNSUPPORTED: it may well exist
 * elsewhere. */
int json_number(double *ret, const json_t *object, const char *key, double fallback,
                const char *file, struct steer_error *err) STEER_MUSTCHECK;
int json_flag(int *ret, const json_t *object, const char *key, int fallback, const char *file,
              struct steer_error *err) STEER_MUSTCHECK;
int json_choice(int *ret, const json_t *object, const char *key, int fallback,
                const char *const *choices, const char *file,
                struct steer_error *err) STEER_MUSTCHECK;
/* A value as a person would write it, for errors: short, one line. */
#define JSON_SHOWN_BYTES 64
const char *json_shown(char out[JSON_SHOWN_BYTES], const json_t *value);

#endif
