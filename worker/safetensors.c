// SPDX-License-Identifier: Apache-2.0
#include "safetensors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file.h"
#include "json.h"

#define HEADER_BYTES_MAX JSON_BYTES_MAX
#define SHARDS_MAX       1024

struct mapped {
    char *name, *path; /* name: as the index has it */
    int fd;            /* -1: not open */
    uint8_t *data;
    size_t size;
    struct timespec changed;
};

struct tensors {
    struct mapped *files;
    size_t files_count;
    struct tensor_view *views; /* sorted by name; names are owned */
    size_t count, room;
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8},  {"I64", 8},         {"I32", 4},
              {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}, {"another type", 0}};

const char *tensor_dtype_name(enum tensor_dtype dtype)
{
    return dtypes[dtype].name;
}

/* ---- one file ---- */

static int file_map(struct mapped *ret, const char *path, struct steer_error *err)
{
    struct stat st;
    int code = file_open(&ret->fd, &st, path, err);
    if (code) return code == STEER_NOT_FOUND ? STEER_BAD_MODEL : code;
    if (st.st_size < 8)
        return steer_fail(err, STEER_BAD_MODEL,
                          "tensor file %s has %lld bytes: too short for a header", path,
                          (long long)st.st_size);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, ret->fd, 0);
    if (map == MAP_FAILED)
        return steer_fail(err, STEER_IO, "tensor file %s cannot be mapped: %s", path,
                          strerror(errno));
    ret->data = map;
    ret->size = (size_t)st.st_size;
    ret->changed = st.st_mtim;
    return 0;
}

static int view_add(struct tensors *t, const struct tensor_view *view)
{
    if (t->count == t->room) {
        size_t room = t->room ? 2 * t->room : 512;
        struct tensor_view *more = realloc(t->views, room * sizeof *more);
        if (!more) return STEER_NO_MEMORY;
        t->views = more;
        t->room = room;
    }
    t->views[t->count] = *view;
    if (!(t->views[t->count].name = strdup(view->name))) return STEER_NO_MEMORY;
    t->count++;
    return 0;
}

static int bad(struct steer_error *err, const char *path, const char *name, const char *what)
{
    return steer_fail(err, STEER_BAD_MODEL, "%s: tensor \"%.200s\": %s", path, name, what);
}

/* One entry of the header: {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}. */
static int view_parse(struct tensor_view *v, const char *name, const json_t *entry,
                      const struct mapped *file, size_t start, const char *path,
                      struct steer_error *err)
{
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const json_t *shape = json_object_get(entry, "shape"),
                 *offsets = json_object_get(entry, "data_offsets");
    if (!dtype || !json_is_array(shape) || !json_is_array(offsets) || json_array_size(offsets) != 2)
        return bad(err, path, name, "expected dtype, shape and two data_offsets");
    if (json_array_size(shape) > TENSOR_RANK_MAX) return bad(err, path, name, "over 8 dimensions");
    *v = (struct tensor_view){
        .name = name, .dtype = TENSOR_OTHER, .rank = (int)json_array_size(shape)};
    for (int i = 0; i < TENSOR_OTHER; i++)
        if (strcmp(dtype, dtypes[i].name) == 0) v->dtype = (enum tensor_dtype)i;
    uint64_t bytes = dtypes[v->dtype].bytes;
    for (int i = 0; i < v->rank; i++) {
        const json_t *n = json_array_get(shape, (size_t)i);
        if (!json_is_integer(n) || json_integer_value(n) < 0 ||
            __builtin_mul_overflow(bytes, (uint64_t)json_integer_value(n), &bytes))
            return bad(err, path, name, "a shape that is not possible");
        v->shape[i] = json_integer_value(n);
    }
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    uint64_t data_bytes = file->size - start;
    if (!json_is_integer(first) || !json_is_integer(last) || json_integer_value(first) < 0 ||
        json_integer_value(last) < json_integer_value(first))
        return bad(err, path, name, "data_offsets that are not possible");
    if ((uint64_t)json_integer_value(last) > data_bytes)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: tensor \"%.200s\" ends at byte %lld of its data, but the file has "
                          "only %llu (truncated?)",
                          path, name, (long long)json_integer_value(last),
                          (unsigned long long)data_bytes);
    v->bytes = (size_t)(json_integer_value(last) - json_integer_value(first));
    if (v->dtype != TENSOR_OTHER && v->bytes != bytes)
        return bad(err, path, name, "its data_offsets do not span what its shape needs");
    v->data = file->data + start + (size_t)json_integer_value(first);
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct tensor_view *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* No byte of the data belongs to two tensors or to none: a file where one does is not whole. */
static int places_check(struct tensors *t, size_t first, const struct mapped *file, size_t start,
                        const char *path, struct steer_error *err)
{
    const uint8_t *at = file->data + start;
    qsort(t->views + first, t->count - first, sizeof *t->views, by_place);
    for (size_t i = first; i < t->count; i++) {
        const struct tensor_view *v = t->views + i;
        if ((const uint8_t *)v->data != at)
            return bad(err, path, v->name, "it does not begin where the one before it ends");
        at += v->bytes;
    }
    if (at != file->data + file->size)
        return steer_fail(err, STEER_BAD_MODEL, "%s: %zu bytes after its last tensor", path,
                          (size_t)(file->data + file->size - at));
    return 0;
}

static int header_read(struct tensors *t, struct mapped *file, const char *path,
                       struct steer_error *err)
{
    size_t before = t->count;
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--)
        header = header << 8 | file->data[i];
    if (header > HEADER_BYTES_MAX || header > file->size - 8)
        return steer_fail(
            err, STEER_BAD_MODEL,
            "%s: its header has %llu bytes, but the file only %zu (not safetensors, or truncated)",
            path, (unsigned long long)header, file->size);
    json_t *root = NULL;
    int code = json_bytes_load(&root, (const char *)file->data + 8, (size_t)header, path, err);
    if (code) return code;
    if (!json_is_object(root)) {
        json_decref(root);
        return steer_fail(err, STEER_BAD_MODEL, "%s: its header is not a JSON object", path);
    }
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry)
    {
        struct tensor_view view;
        if (strcmp(name, "__metadata__") == 0) continue;
        code = view_parse(&view, name, entry, file, 8 + (size_t)header, path, err);
        if (!code && (code = view_add(t, &view))) code = steer_fail(err, code, "out of memory");
        if (code) break;
    }
    json_decref(root);
    return code ? code : places_check(t, before, file, 8 + (size_t)header, path, err);
}

/* ---- sets ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor_view *)a)->name, ((const struct tensor_view *)b)->name);
}

static int file_add(struct tensors *t, const char *name, const char *path, struct steer_error *err)
{
    struct mapped *more = realloc(t->files, (t->files_count + 1) * sizeof *more);
    if (!more) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    t->files = more;
    struct mapped *file = t->files + t->files_count;
    *file = (struct mapped){.name = strdup(name), .path = strdup(path), .fd = -1};
    t->files_count++;
    if (!file->name || !file->path) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = file_map(file, path, err);
    return code ? code : header_read(t, file, path, err);
}

static int shards_add(struct tensors *t, const char *index_path, struct steer_error *err)
{
    json_t *root = NULL;
    int code = json_file_load(&root, index_path, err);
    if (code) return code;
    const json_t *map = json_object_get(root, "weight_map");
    const char *slash = strrchr(index_path, '/');
    int dir = slash ? (int)(slash - index_path) : 1;
    if (!json_is_object(map))
        code = steer_fail(err, STEER_BAD_MODEL, "%s: expected a \"weight_map\"", index_path);
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, name, value)
    {
        const char *shard = json_string_value(value);
        if (code) break;
        if (!shard || !*shard || strchr(shard, '/') || shard[0] == '.') {
            code = steer_fail(
                err, STEER_BAD_MODEL,
                "%s: \"%.200s\" is in \"%.200s\": expected a file's name beside the index",
                index_path, name, shard ? shard : "");
            break;
        }
        int known = 0;
        for (size_t i = 0; i < t->files_count && !known; i++)
            known = strcmp(t->files[i].name, shard) == 0;
        if (known) continue;
        if (t->files_count == SHARDS_MAX) {
            code = steer_fail(err, STEER_BAD_MODEL, "%s: over %d shards", index_path, SHARDS_MAX);
            break;
        }
        char path[2048];
        if ((size_t)snprintf(path, sizeof path, "%.*s/%s", dir, slash ? index_path : ".", shard) >=
            sizeof path)
            code = steer_fail(err, STEER_BAD_MODEL, "%s: a shard's path is too long", index_path);
        else
            code = file_add(t, shard, path, err);
    }
    json_decref(root);
    return code;
}

int tensors_open(struct tensors **ret, const char *path, struct steer_error *err)
{
    struct tensors *t = calloc(1, sizeof *t);
    if (!t) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    size_t n = strlen(path);
    int code = n > 5 && strcmp(path + n - 5, ".json") == 0 ? shards_add(t, path, err)
                                                           : file_add(t, path, path, err);
    if (!code && t->count) qsort(t->views, t->count, sizeof *t->views, by_name);
    for (size_t i = 1; i < t->count && !code; i++)
        if (strcmp(t->views[i - 1].name, t->views[i].name) == 0)
            code = bad(err, path, t->views[i].name, "it is there twice");
    if (code) {
        tensors_close(t);
        return code;
    }
    *ret = t;
    return 0;
}

void tensors_close(struct tensors *t)
{
    if (!t) return;
    for (size_t i = 0; i < t->files_count; i++) {
        if (t->files[i].data) munmap(t->files[i].data, t->files[i].size);
        if (t->files[i].fd >= 0) close(t->files[i].fd);
        free(t->files[i].name);
        free(t->files[i].path);
    }
    for (size_t i = 0; i < t->count; i++)
        free((char *)(uintptr_t)t->views[i].name);
    free(t->files);
    free(t->views);
    free(t);
}

size_t tensors_files(const struct tensors *t)
{
    return t->files_count;
}

const char *tensors_file_path(const struct tensors *t, size_t i)
{
    return t->files[i].path;
}

int tensors_check(const struct tensors *t, struct steer_error *err)
{
    for (size_t i = 0; i < t->files_count; i++) {
        const struct mapped *f = t->files + i;
        struct stat st;
        if (fstat(f->fd, &st) || (size_t)st.st_size != f->size ||
            st.st_mtim.tv_sec != f->changed.tv_sec || st.st_mtim.tv_nsec != f->changed.tv_nsec)
            return steer_fail(err, STEER_BAD_MODEL, "tensor file %s was changed while it was open",
                              f->path);
    }
    return 0;
}

size_t tensors_count(const struct tensors *t)
{
    return t->count;
}

const struct tensor_view *tensors_at(const struct tensors *t, size_t i)
{
    return t->views + i;
}

const struct tensor_view *tensors_find(const struct tensors *t, const char *name)
{
    struct tensor_view key = {.name = name};
    return t->count ? bsearch(&key, t->views, t->count, sizeof key, by_name) : NULL;
}

static const char *shape_text(char out[160], int rank, const int64_t *shape)
{
    size_t n = (size_t)snprintf(out, 160, "[");
    for (int i = 0; i < rank && n < 140; i++)
        n += (size_t)snprintf(out + n, 160 - n, i ? ", %lld" : "%lld", (long long)shape[i]);
    snprintf(out + n, 160 - n, "]");
    return out;
}

int tensors_get(const struct tensors *t, const char *name, int rank, const int64_t *shape,
                struct tensor_view *ret, struct steer_error *err)
{
    const struct tensor_view *v = tensors_find(t, name);
    char wanted[160], found[160];
    shape_text(wanted, rank, shape);
    if (!v)
        return steer_fail(err, STEER_BAD_MODEL, "tensor \"%s\" is missing: expected shape %s", name,
                          wanted);
    if (v->rank != rank || memcmp(v->shape, shape, (size_t)rank * sizeof *shape) != 0)
        return steer_fail(err, STEER_BAD_MODEL, "tensor \"%s\" has shape %s: expected %s", name,
                          shape_text(found, v->rank, v->shape), wanted);
    *ret = *v;
    return 0;
}

/* ---- writing ---- */

int tensors_write(const char *path, const struct tensor_out *tensors, size_t count,
                  struct steer_error *err)
{
    json_t *root = json_object();
    size_t at = 0, sizes[64];
    if (count > 64) return steer_fail(err, STEER_INTERNAL, "over 64 tensors to write");
    for (size_t i = 0; i < count; i++) {
        json_t *shape = json_array();
        size_t bytes = dtypes[tensors[i].dtype].bytes;
        for (int k = 0; k < tensors[i].rank; k++) {
            json_array_append_new(shape, json_integer(tensors[i].shape[k]));
            bytes *= (size_t)tensors[i].shape[k];
        }
        json_object_set_new(root, tensors[i].name,
                            json_pack("{s:s, s:o, s:[I, I]}", "dtype",
                                      dtypes[tensors[i].dtype].name, "shape", shape, "data_offsets",
                                      (json_int_t)at, (json_int_t)(at + bytes)));
        sizes[i] = bytes;
        at += bytes;
    }
    char *header = json_dumps(root, JSON_COMPACT), temporary[2048];
    json_decref(root);
    if (!header) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    FILE *f = fopen(temporary, "wbe");
    int failed = !f;
    if (f) {
        /* Padded with spaces, so that the data begins at a multiple of 8. */
        size_t length = strlen(header), padded = (length + 7) & ~(size_t)7;
        uint8_t head[8];
        for (int i = 0; i < 8; i++)
            head[i] = (uint8_t)((uint64_t)padded >> 8 * i);
        failed |= fwrite(head, 1, 8, f) != 8 || fwrite(header, 1, length, f) != length;
        for (size_t i = length; i < padded; i++)
            failed |= fputc(' ', f) == EOF;
        for (size_t i = 0; i < count; i++)
            failed |= fwrite(tensors[i].data, 1, sizes[i], f) != sizes[i];
        failed |= fclose(f) != 0;
    }
    int why = errno;
    free(header);
    if (failed || rename(temporary, path)) {
        why = failed ? why : errno;
        (void)unlink(temporary);
        return steer_fail(err, STEER_IO, "%s cannot be written: %s", path, strerror(why));
    }
    return 0;
}
