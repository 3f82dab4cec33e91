// SPDX-License-Identifier: Apache-2.0
#include "tensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file.h"
#include "json.h"
#include "mapping.h"
#include "safetensors.h"
#include "tensor_file.h"
#include "torch_archive.h"

#define SHARDS_MAX 1024

struct tensor_copy {
    struct tensor_copy *next;
    max_align_t data[];
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

size_t tensor_dtype_bytes(enum tensor_dtype dtype)
{
    return dtypes[dtype].bytes;
}

struct stored tensor_stored(const struct tensor_view *v)
{
    struct stored s = {.data = v->data, .mapped = v->mapped};
    switch (v->dtype) {
    case TENSOR_F32: s.type = TYPE_F32; return s;
    case TENSOR_F16: s.type = TYPE_F16; return s;
    case TENSOR_BF16: s.type = TYPE_BF16; return s;
    default: return (struct stored){.data = NULL};
    }
}

int tensor_is_zero(const struct tensor_view *v)
{
    const char *bytes = v->data;
    for (size_t i = 0; i < v->bytes; i++)
        if (bytes[i]) return 0;
    return 1;
}

/* ---- for the readers of files ---- */

int tensor_bad(struct steer_error *err, const char *path, const char *name, const char *what)
{
    return steer_fail(err, STEER_BAD_MODEL, "%s: tensor \"%.200s\": %s", path, name, what);
}

int tensors_add(struct tensors *t, const struct tensor_view *view, struct steer_error *err)
{
    if (t->count == t->room) {
        size_t room = t->room ? 2 * t->room : 512;
        struct tensor_view *more = realloc(t->views, room * sizeof *more);
        if (!more) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
        t->views = more;
        t->room = room;
    }
    struct tensor_view *v = t->views + t->count;
    *v = *view;
    if (!(v->name = strdup(view->name))) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    t->count++;
    return 0;
}

int tensors_alloc(struct tensors *t, void **ret, size_t bytes, struct steer_error *err)
{
    size_t allowed = 0;
    for (size_t i = 0; i < t->files_count; i++)
        allowed += 2 * t->files[i].size;
    if (bytes > allowed - t->copied_bytes)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: its tensors with strides would take over %zu bytes, twice its size",
                          t->files[0].path, allowed);
    struct tensor_copy *copy = malloc(sizeof *copy + bytes);
    if (!copy) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    copy->next = t->copies;
    t->copies = copy;
    t->copied_bytes += bytes;
    *ret = copy->data;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor_view *)a)->name, ((const struct tensor_view *)b)->name);
}

int tensors_sort(struct tensors *t, const char *path, struct steer_error *err)
{
    if (t->count) qsort(t->views, t->count, sizeof *t->views, by_name);
    for (size_t i = 1; i < t->count; i++)
        if (strcmp(t->views[i - 1].name, t->views[i].name) == 0)
            return tensor_bad(err, path, t->views[i].name, "it is there twice");
    return 0;
}

/* ---- files ---- */

static int file_map(struct tensor_file *ret, const char *path, struct steer_error *err)
{
    struct stat st;
    int code = file_open(&ret->fd, &st, path, err);
    if (code == STEER_NOT_FOUND)
        return steer_fail(err, STEER_BAD_MODEL, "tensor file %s does not exist", path);
    if (code) return code;
    if (st.st_size < 8)
        return steer_fail(err, STEER_BAD_MODEL,
                          "tensor file %s has %lld bytes: too short for a header", path,
                          (long long)st.st_size);
    if (mapping_new(&ret->mapping, ret->fd, (size_t)st.st_size))
        return steer_fail(err, STEER_IO, "tensor file %s cannot be mapped: %s", path,
                          strerror(errno));
    ret->data = mapping_data(ret->mapping);
    ret->size = (size_t)st.st_size;
    ret->changed = st.st_mtim;
    /* What a clone of a model's repository has without `git lfs pull`. */
    static const char pointer[] = "version https://git-lfs.github.com/";
    if (ret->size >= sizeof pointer && memcmp(ret->data, pointer, sizeof pointer - 1) == 0)
        return steer_fail(err, STEER_BAD_MODEL,
                          "tensor file %s is a pointer of Git LFS: the file itself is yet to be "
                          "downloaded (git lfs pull)",
                          path);
    return 0;
}

static int file_add(struct tensors *t, const char *name, const char *path, struct steer_error *err)
{
    struct tensor_file *more = realloc(t->files, (t->files_count + 1) * sizeof *more);
    if (!more) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    t->files = more;
    struct tensor_file *file = t->files + t->files_count;
    *file = (struct tensor_file){.name = strdup(name), .path = strdup(path), .fd = -1};
    t->files_count++;
    if (!file->name || !file->path) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = file_map(file, path, err);
    if (code) return code;
    return torch_archive_is(file) ? torch_archive_read(t, file, err)
                                  : safetensors_read(t, file, err);
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
    if (!code) code = tensors_sort(t, path, err);
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
        mapping_free(t->files[i].mapping);
        if (t->files[i].fd >= 0) close(t->files[i].fd);
        free(t->files[i].name);
        free(t->files[i].path);
    }
    for (size_t i = 0; i < t->count; i++)
        free((char *)(uintptr_t)t->views[i].name);
    while (t->copies) {
        struct tensor_copy *copy = t->copies;
        t->copies = copy->next;
        free(copy);
    }
    json_decref(t->metadata);
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

int tensors_whole(const struct tensors *t, struct steer_error *err)
{
    for (size_t i = 0; i < t->files_count; i++)
        if (mapping_cut(t->files[i].mapping))
            return steer_fail(err, STEER_BAD_MODEL,
                              "tensor file %s was cut short while it was read", t->files[i].path);
    return 0;
}

int tensors_check(const struct tensors *t, struct steer_error *err)
{
    int code = tensors_whole(t, err);
    if (code) return code;
    for (size_t i = 0; i < t->files_count; i++) {
        const struct tensor_file *f = t->files + i;
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

const char *tensors_metadata(const struct tensors *t, const char *key)
{
    return json_string_value(json_object_get(t->metadata, key));
}

const char *tensor_shape_text(char out[TENSOR_SHAPE_BYTES], int rank, const int64_t *shape)
{
    size_t n = (size_t)snprintf(out, TENSOR_SHAPE_BYTES, "[");
    for (int i = 0; i < rank && n < TENSOR_SHAPE_BYTES - 20; i++)
        n += (size_t)snprintf(out + n, TENSOR_SHAPE_BYTES - n, i ? ", %lld" : "%lld",
                              (long long)shape[i]);
    snprintf(out + n, TENSOR_SHAPE_BYTES - n, "]");
    return out;
}

int tensors_get(const struct tensors *t, const char *name, int rank, const int64_t *shape,
                struct tensor_view *ret, struct steer_error *err)
{
    const struct tensor_view *v = tensors_find(t, name);
    char wanted[TENSOR_SHAPE_BYTES], found[TENSOR_SHAPE_BYTES];
    tensor_shape_text(wanted, rank, shape);
    if (!v)
        return steer_fail(err, STEER_BAD_MODEL, "tensor \"%s\" is missing: expected shape %s", name,
                          wanted);
    if (v->rank != rank || memcmp(v->shape, shape, (size_t)rank * sizeof *shape) != 0)
        return steer_fail(err, STEER_BAD_MODEL, "tensor \"%s\" has shape %s: expected %s", name,
                          tensor_shape_text(found, v->rank, v->shape), wanted);
    *ret = *v;
    return 0;
}
