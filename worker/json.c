// SPDX-License-Identifier: Apache-2.0
#include "json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Overwrites bare -Infinity, Infinity and NaN by null and spaces, outside of texts. */
static void words_of_python(char *text, size_t size)
{
    static const char *const words[] = {"-Infinity", "Infinity", "NaN"};
    int inside = 0;
    for (size_t i = 0; i < size; i++) {
        if (inside && text[i] == '\\') {
            i++;
        } else if (text[i] == '"') {
            inside = !inside;
        } else if (!inside && (text[i] == '-' || text[i] == 'I' || text[i] == 'N')) {
            for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
                size_t n = strlen(words[w]);
                if (n > size - i || memcmp(text + i, words[w], n) != 0) continue;
                /* NaN has three letters; what follows it is a comma, a bracket or white space, and
                 * "0" is a value as good as null for keys that nobody reads. */
                memset(text + i, ' ', n);
                if (n >= 4)
                    memcpy(text + i, "null", 4);
                else
                    text[i] = '0';
                break;
            }
        }
    }
}

int json_bytes_load(json_t **ret, const char *data, size_t size, const char *what,
                    struct steer_error *err)
{
    if (size > JSON_BYTES_MAX)
        return steer_fail(err, STEER_BAD_MODEL, "%s has %zu bytes: expected at most %zu", what,
                          size, JSON_BYTES_MAX);
    char *copy = malloc(size ? size : 1);
    if (!copy) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    memcpy(copy, data, size);
    words_of_python(copy, size);
    json_error_t error;
    json_t *value = json_loadb(copy, size, JSON_DECODE_ANY, &error);
    free(copy);
    if (!value)
        return steer_fail(err, STEER_BAD_MODEL, "%s, line %d: not JSON: %s", what, error.line,
                          error.text);
    *ret = value;
    return 0;
}

int json_file_load(json_t **ret, const char *path, struct steer_error *err)
{
    FILE *f = fopen(path, "rbe");
    if (!f)
        return steer_fail(err, errno == ENOENT ? STEER_NOT_FOUND : STEER_IO, "%s: %s", path,
                          strerror(errno));
    struct stat st;
    int code = 0;
    char *data = NULL;
    if (fstat(fileno(f), &st) || !S_ISREG(st.st_mode)) {
        code = steer_fail(err, STEER_BAD_MODEL, "%s is not a file", path);
    } else if (st.st_size < 0 || (size_t)st.st_size > JSON_BYTES_MAX) {
        code = steer_fail(err, STEER_BAD_MODEL, "%s has %lld bytes: expected at most %zu", path,
                          (long long)st.st_size, JSON_BYTES_MAX);
    } else if (!(data = malloc((size_t)st.st_size + 1))) {
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    } else {
        size_t got = fread(data, 1, (size_t)st.st_size, f);
        code = json_bytes_load(ret, data, got, path, err);
        if (!code && !json_is_object(*ret)) {
            json_decref(*ret);
            *ret = NULL;
            code = steer_fail(err, STEER_BAD_MODEL, "%s: expected a JSON object", path);
        }
    }
    free(data);
    fclose(f);
    return code;
}

int json_whole(int *ret, const json_t *object, const char *key, int fallback, int least, int most,
               const char *file, struct steer_error *err)
{
    const json_t *value = json_object_get(object, key);
    if (value && !json_is_null(value) &&
        (!json_is_integer(value) || json_integer_value(value) < least ||
         json_integer_value(value) > most))
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"%s\": expected a whole number from %d to %d",
                          file, key, least, most);
    *ret = json_is_integer(value) ? (int)json_integer_value(value) : fallback;
    return 0;
}
