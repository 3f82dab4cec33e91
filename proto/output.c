// SPDX-License-Identifier: Apache-2.0
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
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

/* Where the extension of the last part begins, or the end. */
static const char *extension(const char *path)
{
    const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
    return dot && (!slash || dot > slash) ? dot : path + strlen(path);
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
    const char *dot = extension(pattern);
    size_t used = 0;
    to[0] = 0;
    for (const char *p = pattern; *p || (p == dot && !distinct);) {
        if (p == dot && !distinct && images > 1) {
            distinct = 1;
            if (append(to, size, &used, "-", 1, 0) ||
                append(to, size, &used, numbers[0], strlen(numbers[0]), 0))
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

int output_format(int *ret_png, const char *pattern, struct steer_error *err)
{
    const char *dot = extension(pattern);
    int png = strcasecmp(dot, ".png") == 0;
    if (!png && strcasecmp(dot, ".webp") != 0)
        return steer_fail(err, STEER_BAD_VALUE, "%s: expected a name that ends in .webp or .png",
                          pattern);
    *ret_png = png;
    return 0;
}

/* The folder of a file: "." where it names none. */
static int folder_of(char *to, size_t size, const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;
    if (length >= size) return STEER_BAD_VALUE;
    if (slash && !length) length = 1; /* the root */
    snprintf(to, size, "%.*s", slash ? (int)length : 1, slash ? path : ".");
    return 0;
}

int output_check(const char *pattern, struct steer_error *err)
{
    char folder[1200];
    struct stat is;
    if (folder_of(folder, sizeof folder, pattern))
        return steer_fail(err, STEER_BAD_VALUE, "%.60s...: the name is too long", pattern);
    if (strchr(folder, '{')) return 0; /* known only when an image comes */
    if (stat(folder, &is) || !S_ISDIR(is.st_mode))
        return steer_fail(err, STEER_NOT_FOUND, "%s: there is no folder %s", pattern, folder);
    if (access(folder, W_OK | X_OK))
        return steer_fail(err, STEER_IO, "%s: the folder %s cannot be written to: %s", pattern,
                          folder, strerror(errno));
    return 0;
}

int output_same(const char *path, const void *data, size_t size)
{
    char piece[16384];
    size_t at = 0, got;
    struct stat is;
    FILE *f = fopen(path, "rbe");
    if (!f) return 0;
    int same = !fstat(fileno(f), &is) && S_ISREG(is.st_mode) && (uint64_t)is.st_size == size;
    while (same && (got = fread(piece, 1, sizeof piece, f)) > 0) {
        same = got <= size - at && memcmp(piece, (const char *)data + at, got) == 0;
        at += got;
    }
    fclose(f);
    return same && at == size;
}

/* A rename is durable when its folder is. */
static int folder_sync(const char *path)
{
    char folder[1200];
    int fd = folder_of(folder, sizeof folder, path)
                 ? -1
                 : open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    /* Some network file systems cannot, and have made the rename durable by themselves. */
    int bad = fsync(fd) && errno != EINVAL && errno != ENOTSUP;
    close(fd);
    return bad ? -1 : 0;
}

int output_write(const char *path, const void *data, size_t size, int overwrite,
                 struct steer_error *err)
{
    char part[1400];
    if (!overwrite && access(path, F_OK) == 0) {
        if (!output_same(path, data, size))
            return steer_fail(err, STEER_BAD_VALUE, "%s exists; --overwrite replaces it", path);
        /* Written anew all the same: what was there may not be on disk yet. */
    }
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
    if (folder_sync(path))
        return steer_fail(err, STEER_IO, "writing the folder of %s: %s", path, strerror(errno));
    return 0;
}
