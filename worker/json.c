// SPDX-License-Identifier: Apache-2.0
#include "json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"

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
                /* NaN has three letters, one too few for null: an empty text, which no key that
                 * wants a number takes. */
                memset(text + i, ' ', n);
                memcpy(text + i, n >= 4 ? "null" : "\"\"", n >= 4 ? 4 : 2);
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
    char *data = NULL;
    size_t size = 0;
    int code = file_read(&data, &size, path, JSON_BYTES_MAX, err);
    if (code) return code;
    code = json_bytes_load(ret, data, size, path, err);
    if (!code && !json_is_object(*ret)) {
        json_decref(*ret);
        *ret = NULL;
        code = steer_fail(err, STEER_BAD_MODEL, "%s: expected a JSON object", path);
    }
    free(data);
    return code;
}

const char *json_shown(char out[JSON_SHOWN_BYTES], const json_t *value)
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    int whole = text && strlen(text) < JSON_SHOWN_BYTES;
    snprintf(out, JSON_SHOWN_BYTES, "%.*s%s", JSON_SHOWN_BYTES - 4, text ? text : "absent",
             !text || whole ? "" : "...");
    free(text);
    return out;
}

/* The value at key; NULL where it is absent or null. */
static const json_t *given(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static int unexpected(const char *file, const char *key, const json_t *value, const char *expected,
                      int code, struct steer_error *err)
{
    char shown[JSON_SHOWN_BYTES];
    return steer_fail(err, code, "%s: \"%s\" is %s: expected %s", file, key,
                      json_shown(shown, value), expected);
}

int json_whole(int *ret, const json_t *object, const char *key, int fallback, int least, int most,
               const char *file, struct steer_error *err)
{
    const json_t *value = given(object, key);
    if (value && (!json_is_integer(value) || json_integer_value(value) < least ||
                  json_integer_value(value) > most)) {
        char expected[64];
        snprintf(expected, sizeof expected, "a whole number from %d to %d", least, most);
        return unexpected(file, key, value, expected, STEER_BAD_MODEL, err);
    }
    *ret = value ? (int)json_integer_value(value) : fallback;
    return 0;
}

int json_number(double *ret, const json_t *object, const char *key, double fallback,
                const char *file, struct steer_error *err)
{
    const json_t *value = given(object, key);
    if (value && (!json_is_number(value) || !isfinite(json_number_value(value))))
        return unexpected(file, key, value, "a number", STEER_BAD_MODEL, err);
    *ret = value ? json_number_value(value) : fallback;
    return 0;
}

int json_flag(int *ret, const json_t *object, const char *key, int fallback, const char *file,
              struct steer_error *err)
{
    const json_t *value = given(object, key);
    if (value && !json_is_boolean(value))
        return unexpected(file, key, value, "true or false", STEER_BAD_MODEL, err);
    *ret = value ? json_is_true(value) : fallback;
    return 0;
}

int json_choice(int *ret, const json_t *object, const char *key, int fallback,
                const char *const *choices, const char *file, struct steer_error *err)
{
    const json_t *value = given(object, key);
    const char *text = json_string_value(value);
    char expected[256] = "";
    *ret = fallback;
    if (!value) return 0;
    for (int i = 0; choices[i]; i++) {
        if (text && strcmp(text, choices[i]) == 0) {
            *ret = i;
            return 0;
        }
        size_t n = strlen(expected);
        snprintf(expected + n, sizeof expected - n, "%s%s",
                 !i               ? ""
                 : choices[i + 1] ? ", "
                                  : " or ",
                 choices[i]);
    }
    return unexpected(file, key, value, expected, STEER_UNSUPPORTED, err);
}
