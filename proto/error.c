// SPDX-License-Identifier: Apache-2.0
#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "text.h"

static const struct {
    int code;
    int exit_code;
    const char *name, *text;
} errors[] = {
#define X(name, exit_code, text) {STEER_##name, exit_code, #name, text},
    STEER_ERROR_LIST(X)
#undef X
};

static int error_index(int code)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) return (int)i;
    return 0;
}

const char *steer_code_name(int code)
{
    return code == 0 ? "OK" : errors[error_index(code)].name;
}

const char *steer_code_text(int code)
{
    return code == 0 ? "no error" : errors[error_index(code)].text;
}

int steer_code_exit(int code)
{
    return code == 0 ? 0 : errors[error_index(code)].exit_code;
}

int steer_code_of(const char *name)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (strcmp(errors[i].name, name) == 0) return errors[i].code;
    return STEER_INTERNAL;
}

int steer_fail(struct steer_error *err, int code, const char *format, ...)
{
    if (!err) return code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    text_trim(err->text);
    err->code = code;
    return code;
}

int steer_fail_in(struct steer_error *err, int code, const char *format, ...)
{
    if (!err) return code;
    char inner[sizeof err->text];
    memcpy(inner, err->text, sizeof inner);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof err->text - 2)
        snprintf(err->text + n, sizeof err->text - (size_t)n, ": %s", inner);
    text_trim(err->text);
    err->code = code;
    return code;
}
