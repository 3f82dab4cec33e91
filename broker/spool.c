// SPDX-License-Identifier: Apache-2.0
/* Invariants:
 *  1. A file's name says everything needed to find its record, and nothing else is believed of it:
 *     length and CRC come from the record.
 *  2. A file that could not be written whole does not stay.
 *  3. A small file that is done with waits as a spare for another image, its bytes still in it:
 *     making a file is the most expensive thing that is done with it. Emptying it at once would
 *     make ext4 write the next image out when it is closed. Spares go when the disk has no room to
 *     spare, and at a start.
 *  4. used + reserved never passes the quota through spool_reserve. It may through spool_count_in:
 *     a finished image that turned out bigger than its reservation is kept all the same. */
#include "spool.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "limits.h"
#include "wire.h"

#define FANOUT          256
#define SPARES_MAX      256
#define SPARE_BYTES_MAX (256u << 10)
#define NAME_MAX_BYTES  64

struct spool {
    int dir_fd;
    unsigned spares; /* spare/0 .. spare/<spares - 1> are files */
    uint64_t max;
    _Atomic uint64_t used, images, reserved, disk_free, disk_free_min;
};

int spool_open(struct spool **ret_spool, const char *dir, uint64_t bytes_max,
               struct steer_error *err)
{
    struct spool *s = calloc(1, sizeof *s);
    if (!s) return steer_fail(err, STEER_NO_MEMORY, "out of memory for the spool");
    s->dir_fd = -1;
    s->max = bytes_max ? bytes_max : UINT64_MAX;
    atomic_store(&s->disk_free, UINT64_MAX);

    int code = STEER_IO;
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/spool", dir);
    if (n < 0 || (size_t)n >= sizeof path) {
        steer_fail(err, STEER_BAD_VALUE, "the data directory's path is longer than %zu bytes",
                   sizeof path);
        code = STEER_BAD_VALUE;
        goto fail;
    }
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        steer_fail(err, code, "%s: cannot be made: %s", path, strerror(errno));
        goto fail;
    }
    s->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir_fd < 0) {
        steer_fail(err, code, "%s: cannot be opened: %s", path, strerror(errno));
        goto fail;
    }
    for (unsigned i = 0; i <= FANOUT; i++) {
        char name[8] = "spare";
        if (i < FANOUT) snprintf(name, sizeof name, "%02x", i);
        if (mkdirat(s->dir_fd, name, 0700) != 0 && errno != EEXIST) {
            steer_fail(err, code, "%s/%s: cannot be made: %s", path, name, strerror(errno));
            goto fail;
        }
    }
    *ret_spool = s;
    return 0;

fail:
    spool_close(s);
    return code;
}

void spool_close(struct spool *s)
{
    if (!s) return;
    if (s->dir_fd >= 0) close(s->dir_fd);
    free(s);
}

/* ---- files */

static void file_name(char name[NAME_MAX_BYTES], const struct spool_file *f)
{
    /* The file number's low byte spreads evenly, as numbers are handed out one after another. */
    snprintf(name, NAME_MAX_BYTES, "%02x/%016" PRIx64 "-%08" PRIx32 "-%016" PRIx64,
             (unsigned)(f->file % FANOUT), f->job, f->index, f->file);
}

static void spare_name(char name[NAME_MAX_BYTES], unsigned i)
{
    snprintf(name, NAME_MAX_BYTES, "spare/%02x", i);
}

/* Reads what file_name wrote after the folder; false for anything else. */
static bool file_parse(struct spool_file *ret, unsigned folder, const char *entry)
{
    struct spool_file f = {0};
    char *end;
    if (strlen(entry) != 16 + 1 + 8 + 1 + 16) return false;
    f.job = strtoull(entry, &end, 16);
    if (end != entry + 16) return false;
    f.index = (uint32_t)strtoull(entry + 17, &end, 16);
    if (end != entry + 25) return false;
    f.file = strtoull(entry + 26, &end, 16);
    if (end != entry + 42) return false;
    /* strtoull takes signs and blanks; our own names survive the way back unchanged. */
    char name[NAME_MAX_BYTES];
    file_name(name, &f);
    if (f.file % FANOUT != folder || strcmp(name + 3, entry) != 0) return false;
    *ret = f;
    return true;
}

static int write_all(int fd, const uint8_t *data, uint64_t bytes)
{
    while (bytes > 0) {
        ssize_t n = write(fd, data, bytes > (1u << 30) ? 1u << 30 : (size_t)bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        data += n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

/* What a failed call says about the next one. */
static int code_of(int e)
{
    if (e == ENOSPC || e == EDQUOT) return STEER_DISK_FULL;
    if (e == EMFILE || e == ENFILE || e == ENOMEM) return STEER_BUSY;
    return STEER_IO;
}

/* All spares together are a small part of what the disk has left for images. */
static bool spares_fit(struct spool *s)
{
    uint64_t disk = atomic_load(&s->disk_free), least = atomic_load(&s->disk_free_min);
    return disk > least && disk - least > UINT64_C(16) * SPARES_MAX * SPARE_BYTES_MAX;
}

static void spares_remove(struct spool *s, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char spare[NAME_MAX_BYTES];
        spare_name(spare, i);
        (void)unlinkat(s->dir_fd, spare, 0);
    }
    s->spares = 0;
}

/* A file of that name, opened for writing; a spare one, with its old bytes, when there is one. -1:
 * errno. */
static int file_new(struct spool *s, const char *name)
{
    char spare[NAME_MAX_BYTES];
    if (s->spares > 0) {
        spare_name(spare, s->spares - 1);
        int moved = renameat2(s->dir_fd, spare, s->dir_fd, name, RENAME_NOREPLACE) == 0;
        if (moved || errno != EEXIST) s->spares--;
        if (moved) {
            int fd = openat(s->dir_fd, name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
            int e = errno;
            if (fd < 0) (void)unlinkat(s->dir_fd, name, 0);
            errno = e;
            return fd;
        }
    }
    return openat(s->dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
}

int spool_write(struct spool *s, const struct spool_file *f, const void *data,
                struct steer_error *err)
{
    char name[NAME_MAX_BYTES];
    file_name(name, f);
    int fd = file_new(s, name);
    int e = fd < 0 ? errno : 0;
    if (fd >= 0) {
        if (write_all(fd, data, f->bytes) != 0 || ftruncate(fd, (off_t)f->bytes) != 0) e = errno;
        /* Some file systems say only here that there was no room. */
        if (close(fd) != 0 && e == 0) e = errno;
        if (e != 0) (void)unlinkat(s->dir_fd, name, 0); /* 2 */
    }
    if (e == 0) return 0;
    return steer_fail(err, code_of(e), "spool/%s: %" PRIu64 " bytes cannot be written: %s", name,
                      f->bytes, strerror(e));
}

int spool_read(struct spool *s, const struct spool_file *f, uint8_t **ret_data,
               struct steer_error *err)
{
    char name[NAME_MAX_BYTES];
    file_name(name, f);
    if (f->bytes > STEER_IMAGE_BYTES_MAX)
        return steer_fail(err, STEER_IO, "spool/%s: %" PRIu64 " bytes recorded, at most %u are",
                          name, f->bytes, STEER_IMAGE_BYTES_MAX);
    int fd = openat(s->dir_fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return steer_fail(err, code_of(errno), "spool/%s: %s", name, strerror(errno));

    /* One byte more than expected, so that a file that is too long is seen. */
    uint64_t got = 0;
    int e = 0;
    uint8_t *data = malloc((size_t)f->bytes + 1);
    while (data && got <= f->bytes) {
        ssize_t n = read(fd, data + got, (size_t)(f->bytes + 1 - got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) e = errno;
        if (n <= 0) break;
        got += (uint64_t)n;
    }
    close(fd);

    int code = STEER_IO;
    if (!data)
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory for an image of %" PRIu64 " bytes",
                          f->bytes);
    else if (e != 0)
        steer_fail(err, code, "spool/%s: cannot be read: %s", name, strerror(e));
    else if (got != f->bytes)
        steer_fail(err, code, "spool/%s: %s than the %" PRIu64 " bytes recorded", name,
                   got < f->bytes ? "shorter" : "longer", f->bytes);
    else if (wire_crc32(data, (size_t)got) != f->crc32)
        steer_fail(err, code, "spool/%s: CRC %08" PRIx32 " is not the %08" PRIx32 " recorded", name,
                   wire_crc32(data, (size_t)got), f->crc32);
    else {
        *ret_data = data;
        return 0;
    }
    free(data);
    return code;
}

void spool_remove(struct spool *s, const struct spool_file *f)
{
    char name[NAME_MAX_BYTES];
    file_name(name, f);
    if (f->bytes <= SPARE_BYTES_MAX && s->spares < SPARES_MAX && spares_fit(s)) {
        char spare[NAME_MAX_BYTES];
        spare_name(spare, s->spares);
        if (renameat(s->dir_fd, name, s->dir_fd, spare) == 0) {
            s->spares++;
            return;
        }
    }
    (void)unlinkat(s->dir_fd, name, 0);
}

/* By folder, then number: the order in which folders are walked. */
static int by_folder(const void *a, const void *b)
{
    const struct spool_file *x = a, *y = b;
    uint64_t xf = x->file % FANOUT, yf = y->file % FANOUT;
    if (xf != yf) return xf < yf ? -1 : 1;
    return x->file < y->file ? -1 : x->file > y->file;
}

static int newest_first(const void *a, const void *b)
{
    const struct spool_file *x = a, *y = b;
    return x->file > y->file ? -1 : x->file < y->file;
}

/* Walks one folder: marks those of files (sorted, of this folder) that are there with the right
 * length, removes the others. */
static int check_folder(struct spool *s, unsigned folder, struct spool_file *files, size_t count,
                        uint64_t *removed, struct steer_error *err)
{
    char name[8];
    snprintf(name, sizeof name, "%02x", folder);
    int fd = openat(s->dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int e = errno;
        if (fd >= 0) close(fd);
        return steer_fail(err, STEER_IO, "spool/%s: cannot be read: %s", name, strerror(e));
    }
    const struct dirent *entry;
    while ((errno = 0, entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        struct spool_file key, *found = NULL;
        if (file_parse(&key, folder, entry->d_name) && count > 0)
            found = bsearch(&key, files, count, sizeof *files, by_folder);
        struct stat st;
        if (found && found->job == key.job && found->index == key.index &&
            fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
            (uint64_t)st.st_size == found->bytes) {
            found->usable = true;
            continue;
        }
        if (unlinkat(fd, entry->d_name, 0) == 0) (*removed)++;
    }
    int e = errno;
    closedir(dir);
    if (e != 0) return steer_fail(err, STEER_IO, "spool/%s: cannot be read: %s", name, strerror(e));
    return 0;
}

int spool_check(struct spool *s, struct spool_file *files, size_t count, uint64_t verify_bytes_max,
                uint64_t *ret_removed, struct steer_error *err)
{
    uint64_t removed = 0;
    spares_remove(s, SPARES_MAX);
    for (size_t i = 0; i < count; i++)
        files[i].usable = false;
    if (count > 0) qsort(files, count, sizeof *files, by_folder);
    size_t begin = 0;
    for (unsigned folder = 0; folder < FANOUT; folder++) {
        size_t end = begin;
        while (end < count && files[end].file % FANOUT == folder)
            end++;
        int code =
            check_folder(s, folder, count ? files + begin : NULL, end - begin, &removed, err);
        if (code != 0) return code;
        begin = end;
    }

    /* Those written last are those a power cut may have taken. */
    uint64_t left = verify_bytes_max;
    if (left > 0 && count > 0) qsort(files, count, sizeof *files, newest_first);
    for (size_t i = 0; i < count && left > 0; i++) {
        if (!files[i].usable) continue;
        uint8_t *data;
        int code = spool_read(s, &files[i], &data, err);
        if (code == 0) free(data);
        if (code == STEER_NO_MEMORY) return code;
        if (code != 0) {
            files[i].usable = false;
            spool_remove(s, &files[i]);
            removed++;
        }
        left -= files[i].bytes < left ? files[i].bytes : left;
    }
    *ret_removed = removed;
    return 0;
}

/* ---- room */

int spool_reserve(struct spool *s, uint64_t bytes)
{
    uint64_t used = atomic_load(&s->used), reserved = atomic_load(&s->reserved), want, total;
    if (__builtin_add_overflow(reserved, bytes, &want) ||
        __builtin_add_overflow(want, used, &total) || total > s->max)
        return STEER_DISK_FULL; /* 4 */
    uint64_t disk = atomic_load(&s->disk_free), least = atomic_load(&s->disk_free_min);
    if (disk != UINT64_MAX && (disk < least || disk - least < want)) return STEER_DISK_FULL;
    atomic_fetch_add(&s->reserved, bytes);
    return 0;
}

/* Subtracts, but never below 0: a number given back twice must not open the quota for good. */
static void take_from(_Atomic uint64_t *a, uint64_t bytes)
{
    uint64_t old = atomic_load(a);
    while (!atomic_compare_exchange_weak(a, &old, old > bytes ? old - bytes : 0))
        ;
}

void spool_release(struct spool *s, uint64_t bytes)
{
    take_from(&s->reserved, bytes);
}

void spool_count_in(struct spool *s, uint64_t bytes)
{
    atomic_fetch_add(&s->used, bytes);
    atomic_fetch_add(&s->images, 1);
}

void spool_count_out(struct spool *s, uint64_t bytes)
{
    take_from(&s->used, bytes);
    take_from(&s->images, 1);
}

void spool_disk_set(struct spool *s, uint64_t free_bytes, uint64_t free_bytes_min)
{
    atomic_store(&s->disk_free_min, free_bytes_min);
    atomic_store(&s->disk_free, free_bytes);
    if (s->spares > 0 && !spares_fit(s)) spares_remove(s, s->spares);
}

void spool_room(struct spool *s, struct spool_room *ret_room)
{
    *ret_room = (struct spool_room){
        .used = atomic_load(&s->used),
        .images = atomic_load(&s->images),
        .reserved = atomic_load(&s->reserved),
        .max = s->max,
        .disk_free = atomic_load(&s->disk_free),
    };
}
