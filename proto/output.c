// SPDX-License-Identifier: Apache-2.0
#include "output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Appends text; names from the farm lose their slashes, so that a file stays in its folder. */
static int append(char *to, size_t size, size_t *used, const char *text, size_t length, int tame)
{
    if (*used + length >= size) return -1;
    for (size_t i = 0; i < length; i++)
        to[(*used)++] = tame && (text[i] == '/' || (unsigned char)text[i] < 0x20) ? '_' : text[i];
    to[*used] = 0;
    return 0;
}

int output_name(char *to, size_t size, const char *pattern, uint32_t images, uint32_t index,
                uint64_t seed, const char *job, const char *model)
{
    char numbers[2][32];
    snprintf(numbers[0], sizeof numbers[0], "%04u", index);
    snprintf(numbers[1], sizeof numbers[1], "%" PRIu64, seed);
    const struct {
        const char *name, *value;
    } fields[] = {
        {"{index}", numbers[0]}, {"{seed}", numbers[1]}, {"{job}", job}, {"{model}", model}};
    int distinct = strstr(pattern, "{index}") || strstr(pattern, "{seed}");
    const char *slash = strrchr(pattern, '/'), *dot = strrchr(pattern, '.');
    if (!dot || (slash && dot < slash)) dot = pattern + strlen(pattern);
    size_t used = 0;
    to[0] = 0;
    for (const char *p = pattern; *p || (p == dot && !distinct);) {
        if (p == dot && !distinct && images > 1) {
            distinct = 1;
            if (append(to, size, &used, "-", 1, 0) || append(to, size, &used, numbers[0], 4, 0))
                return STEER_BAD_VALUE;
            continue;
        }
        if (!*p) break;
        size_t i = 0;
        while (i < 4 && strncmp(p, fields[i].name, strlen(fields[i].name)) != 0)
            i++;
        if (i < 4 ? append(to, size, &used, fields[i].value, strlen(fields[i].value), 1)
                  : append(to, size, &used, p, 1, 0))
            return STEER_BAD_VALUE;
        p += i < 4 ? strlen(fields[i].name) : 1;
    }
    return 0;
}

int output_write(const char *path, const void *data, size_t size, int overwrite,
                 struct steer_error *err)
{
    char part[1400];
    if (!overwrite && access(path, F_OK) == 0)
        return steer_fail(err, STEER_BAD_VALUE, "%s exists; --overwrite replaces it", path);
    snprintf(part, sizeof part, "%s.%d.part", path, (int)getpid());
    FILE *f = fopen(part, "wbe");
    if (!f) return steer_fail(err, STEER_IO, "%s: %s", part, strerror(errno));
    int bad = fwrite(data, 1, size, f) != size;
    bad |= fflush(f) || fsync(fileno(f));
    bad |= fclose(f);
    if (bad || rename(part, path)) {
        int code = steer_fail(err, STEER_IO, "writing %s: %s", path, strerror(errno));
        unlink(part);
        return code;
    }
    return 0;
}
