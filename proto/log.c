// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const level_names[] = {"debug", "info", "warn", "error"};
static atomic_int level_least = LOG_INFO;

void log_init(enum log_level least)
{
    atomic_store(&level_least, (int)least);
}

int log_level_of(const char *name)
{
    for (int i = 0; i < 4; i++)
        if (strcmp(name, level_names[i]) == 0) return i;
    return -1;
}

void log_event(enum log_level level, const char *event, const char *fields, ...)
{
    if ((int)level < atomic_load(&level_least)) return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    char line[4096];
    size_t n = strftime(line, sizeof line, "ts=%Y-%m-%dT%H:%M:%S", &utc);
    int more = snprintf(line + n, sizeof line - n, ".%03dZ level=%s ev=%s ",
                        (int)(now.tv_nsec / 1000000), level_names[level], event);
    n += more > 0 ? (size_t)more : 0;
    va_list args;
    va_start(args, fields);
    more = vsnprintf(line + n, sizeof line - n - 1, fields, args);
    va_end(args);
    if (more > 0) n += (size_t)more;
    if (n > sizeof line - 2) n = sizeof line - 2;
    line[n++] = '\n';
    /* One write a line, so that lines of several threads do not mix. */
    ssize_t wrote = write(STDERR_FILENO, line, n);
    (void)wrote;
}

const char *log_quote(const char *text)
{
    static _Thread_local char buffers[8][1100];
    static _Thread_local unsigned turn;
    char *out = buffers[turn++ % 8];
    size_t n = 0, size = sizeof buffers[0];
    out[n++] = '"';
    for (const char *c = text ? text : ""; *c && n < size - 4; c++) {
        if (*c == '"' || *c == '\\') out[n++] = '\\';
        out[n++] = (unsigned char)*c < 0x20 ? ' ' : *c;
    }
    out[n++] = '"';
    out[n] = 0;
    return out;
}
