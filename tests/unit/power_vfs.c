// SPDX-License-Identifier: Apache-2.0
/* Invariants:
 *  1. A file is known by its path and its record outlives its handles.
 *  2. A record's writes are those since its last sync, oldest first. `fresh`: the file was made
 *     since then, so they begin from an empty one. `durable_there`: the folder names it on disk;
 *     with `fresh`, it still names the file of before.
 *  3. The folder is synced with the first sync of a journal or log that was opened to be created,
 *     as the default VFS does (UNIXFILE_DIRSYNC): all names are durable then, and deletions. */
#include "power_vfs.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILES_MAX 8
#define SECTOR    512

struct write {
    struct write *next;
    sqlite3_int64 offset;
    int bytes; /* -1: a truncation to offset */
    uint8_t data[];
};

struct disk_file {
    char path[512];
    bool known, durable_there, there, fresh;
    uint8_t *durable;
    size_t durable_bytes;
    struct write *first, **last;
};

struct handle {
    sqlite3_file base;
    struct disk_file *file;
    bool syncs_folder;  /* with its next sync */
    sqlite3_file *real; /* behind this struct */
};

static sqlite3_vfs vfs, *below;
static struct disk_file files[FILES_MAX];
static bool cut, full; /* see power_vfs.h */
static uint64_t operations, cut_at, syncs, fail_sync_at;

/* Not assert: builds with NDEBUG must notice too. */
static void must(bool what, const char *sentence)
{
    if (what) return;
    fprintf(stderr, "power_vfs: %s\n", sentence);
    abort();
}

/* ---- records */

static struct disk_file *file_of(const char *path)
{
    for (int i = 0; i < FILES_MAX; i++)
        if (files[i].known && strcmp(files[i].path, path) == 0) return &files[i];
    for (int i = 0; i < FILES_MAX; i++)
        if (!files[i].known) {
            snprintf(files[i].path, sizeof files[i].path, "%s", path);
            files[i].known = true;
            files[i].last = &files[i].first;
            return &files[i];
        }
    must(false, "more files than a store has");
    return NULL;
}

static void forget_writes(struct disk_file *f)
{
    while (f->first) {
        struct write *w = f->first;
        f->first = w->next;
        free(w);
    }
    f->last = &f->first;
}

static void note(struct disk_file *f, const void *data, int bytes, sqlite3_int64 offset)
{
    struct write *w = malloc(sizeof *w + (size_t)(bytes > 0 ? bytes : 0));
    must(w != NULL, "out of memory");
    *w = (struct write){.offset = offset, .bytes = bytes};
    if (bytes > 0) memcpy(w->data, data, (size_t)bytes);
    *f->last = w;
    f->last = &w->next;
}

static void resize(struct disk_file *f, size_t bytes)
{
    uint8_t *d = realloc(f->durable, bytes ? bytes : 1);
    must(d != NULL, "out of memory");
    if (bytes > f->durable_bytes) memset(d + f->durable_bytes, 0, bytes - f->durable_bytes);
    f->durable = d;
    f->durable_bytes = bytes;
}

/* Applies the sectors of w for which keep says so; NULL: all. */
static void apply(struct disk_file *f, const struct write *w, bool (*keep)(void))
{
    if (w->bytes < 0) {
        if (!keep || keep()) resize(f, (size_t)w->offset);
        return;
    }
    for (int at = 0; at < w->bytes;) {
        int n = SECTOR - (int)((w->offset + at) % SECTOR);
        if (n > w->bytes - at) n = w->bytes - at;
        if (!keep || keep()) {
            size_t end = (size_t)w->offset + (size_t)(at + n);
            if (end > f->durable_bytes) resize(f, end);
            memcpy(f->durable + w->offset + at, w->data + at, (size_t)n);
        }
        at += n;
    }
}

static void sync_folder(void)
{
    for (int i = 0; i < FILES_MAX; i++) {
        struct disk_file *f = &files[i];
        if (f->there && f->fresh) resize(f, 0);
        f->fresh = false;
        f->durable_there = f->there; /* 3 */
    }
}

/* True where the power has gone, at this operation or before. */
static bool gone(void)
{
    if (!cut && ++operations == cut_at) cut = true;
    return cut;
}

/* ---- files */

static int file_close(sqlite3_file *sf)
{
    struct handle *h = (struct handle *)sf;
    return h->real->pMethods ? h->real->pMethods->xClose(h->real) : SQLITE_OK;
}

static int file_read(sqlite3_file *sf, void *data, int bytes, sqlite3_int64 offset)
{
    struct handle *h = (struct handle *)sf;
    return cut ? SQLITE_IOERR_READ : h->real->pMethods->xRead(h->real, data, bytes, offset);
}

static int file_write(sqlite3_file *sf, const void *data, int bytes, sqlite3_int64 offset)
{
    struct handle *h = (struct handle *)sf;
    bool was = cut;
    if (gone()) {
        if (!was) note(h->file, data, bytes, offset); /* it may have got through, or in part */
        return SQLITE_IOERR_WRITE;
    }
    sqlite3_int64 size;
    if (full && h->real->pMethods->xFileSize(h->real, &size) == SQLITE_OK && offset + bytes > size)
        return SQLITE_FULL;
    note(h->file, data, bytes, offset);
    return h->real->pMethods->xWrite(h->real, data, bytes, offset);
}

static int file_truncate(sqlite3_file *sf, sqlite3_int64 size)
{
    struct handle *h = (struct handle *)sf;
    if (gone()) return SQLITE_IOERR_TRUNCATE;
    note(h->file, NULL, -1, size);
    return h->real->pMethods->xTruncate(h->real, size);
}

static int file_sync(sqlite3_file *sf, int flags)
{
    (void)flags; /* nothing is synced for real: the test's power is not the machine's */
    struct handle *h = (struct handle *)sf;
    if (gone()) return SQLITE_IOERR_FSYNC;
    if (++syncs == fail_sync_at) return SQLITE_IOERR_FSYNC;
    if (h->syncs_folder) sync_folder();
    h->syncs_folder = false;
    struct disk_file *f = h->file;
    if (f->fresh) resize(f, 0);
    for (const struct write *w = f->first; w; w = w->next)
        apply(f, w, NULL);
    forget_writes(f);
    f->fresh = false;
    return SQLITE_OK;
}

static int file_size(sqlite3_file *sf, sqlite3_int64 *ret)
{
    struct handle *h = (struct handle *)sf;
    return cut ? SQLITE_IOERR_FSTAT : h->real->pMethods->xFileSize(h->real, ret);
}

static int file_lock(sqlite3_file *sf, int lock)
{
    struct handle *h = (struct handle *)sf;
    return h->real->pMethods->xLock(h->real, lock);
}

static int file_unlock(sqlite3_file *sf, int lock)
{
    struct handle *h = (struct handle *)sf;
    return h->real->pMethods->xUnlock(h->real, lock);
}

static int file_check_lock(sqlite3_file *sf, int *ret)
{
    struct handle *h = (struct handle *)sf;
    return h->real->pMethods->xCheckReservedLock(h->real, ret);
}

static int file_control(sqlite3_file *sf, int op, void *arg)
{
    struct handle *h = (struct handle *)sf;
    /* SIZE_HINT may allocate blocks past our back. */
    return op == SQLITE_FCNTL_SIZE_HINT ? SQLITE_NOTFOUND
                                        : h->real->pMethods->xFileControl(h->real, op, arg);
}

static int file_sector(sqlite3_file *sf)
{
    struct handle *h = (struct handle *)sf;
    return h->real->pMethods->xSectorSize(h->real);
}

static int file_traits(sqlite3_file *sf)
{
    struct handle *h = (struct handle *)sf;
    return h->real->pMethods->xDeviceCharacteristics(h->real);
}

/* Version 1: no shared memory, which EXCLUSIVE locking does without. */
static const sqlite3_io_methods methods = {1,
                                           file_close,
                                           file_read,
                                           file_write,
                                           file_truncate,
                                           file_sync,
                                           file_size,
                                           file_lock,
                                           file_unlock,
                                           file_check_lock,
                                           file_control,
                                           file_sector,
                                           file_traits,
                                           NULL,
                                           NULL,
                                           NULL,
                                           NULL,
                                           NULL,
                                           NULL};

/* ---- the VFS */

static int vfs_open(sqlite3_vfs *v, const char *name, sqlite3_file *sf, int flags, int *ret_flags)
{
    (void)v;
    struct handle *h = (struct handle *)sf;
    memset(h, 0, (size_t)vfs.szOsFile);
    h->real = (sqlite3_file *)(h + 1);
    if (cut) return SQLITE_CANTOPEN;
    bool was_there = name && access(name, F_OK) == 0;
    int rc = below->xOpen(below, name, h->real, flags, ret_flags);
    if (rc != SQLITE_OK) return rc;
    must(name != NULL, "a temporary file, and temp_store is MEMORY");
    h->file = file_of(name);
    if (!was_there) {
        forget_writes(h->file);
        h->file->fresh = true; /* 2 */
    }
    h->file->there = true;
    h->syncs_folder =
        (flags & SQLITE_OPEN_CREATE) && (flags & (SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_WAL));
    h->base.pMethods = &methods;
    return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *v, const char *name, int with_folder)
{
    (void)v;
    if (gone()) return SQLITE_IOERR_DELETE;
    struct disk_file *f = file_of(name);
    forget_writes(f);
    f->there = f->fresh = false;
    if (with_folder) sync_folder();
    return below->xDelete(below, name, 0);
}

void power_reset(void)
{
    if (!below) {
        below = sqlite3_vfs_find(NULL);
        vfs = *below;
        vfs.zName = POWER_VFS;
        vfs.pNext = NULL;
        vfs.szOsFile = (int)sizeof(struct handle) + below->szOsFile;
        vfs.xOpen = vfs_open;
        vfs.xDelete = vfs_delete;
        must(sqlite3_vfs_register(&vfs, 0) == SQLITE_OK, "cannot be registered");
    }
    for (int i = 0; i < FILES_MAX; i++) {
        forget_writes(&files[i]);
        free(files[i].durable);
        files[i] = (struct disk_file){0};
    }
    cut = full = false;
    operations = cut_at = syncs = fail_sync_at = 0;
}

void power_cut_after(uint64_t n)
{
    cut_at = n ? operations + n : 0;
}

void power_fail_sync(uint64_t nth)
{
    fail_sync_at = nth ? syncs + nth : 0;
}

void power_disk_full(bool is_full)
{
    full = is_full;
}

bool power_is_cut(void)
{
    return cut;
}

uint64_t power_operations(void)
{
    return operations;
}

static uint64_t restore_state;

static bool coin(void)
{
    restore_state = restore_state * 6364136223846793005u + 1442695040888963407u;
    return restore_state >> 63;
}

void power_restore(uint64_t seed)
{
    restore_state = seed;
    for (int i = 0; i < FILES_MAX; i++) {
        struct disk_file *f = &files[i];
        if (!f->known) continue;
        /* What the folder does not know yet it may have written all the same. */
        if ((f->fresh || f->there != f->durable_there) && coin()) {
            if (f->fresh) resize(f, 0);
            f->fresh = false;
            f->durable_there = f->there;
        }
        if (f->there && !f->fresh)
            for (const struct write *w = f->first; w; w = w->next)
                apply(f, w, coin);
        forget_writes(f);
        f->there = f->durable_there;
        f->fresh = false;
        if (!f->there) {
            (void)unlink(f->path);
            f->durable_bytes = 0;
            continue;
        }
        FILE *out = fopen(f->path, "wb");
        must(out != NULL, "a file cannot be restored");
        must(fwrite(f->durable, 1, f->durable_bytes, out) == f->durable_bytes && fclose(out) == 0,
             "a file cannot be restored");
    }
    cut = full = false;
    cut_at = fail_sync_at = 0;
}
