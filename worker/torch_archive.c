// SPDX-License-Identifier: Apache-2.0
#include "torch_archive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor_file.h"
#include "torch_pickle.h"
#include "zip.h"

/* What an archive of torch before 1.6 begins with: PROTO 2, LONG1 of 10 bytes, torch's number. */
static const uint8_t old_magic[] = {0x80, 2,    0x8a, 10,   0x6c, 0xfc, 0x9c,
                                    0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
static const uint8_t zip_magic[] = {'P', 'K', 3, 4};

static int begins_with(const struct tensor_file *file, const void *magic, size_t n)
{
    return file->size >= n && memcmp(file->data, magic, n) == 0;
}

/* A pickle that lies bare. The first 8 bytes of safetensors are a length, so that of these the last
 * are 0. */
static int is_pickle(const struct tensor_file *file)
{
    static const uint8_t zeros[4];
    return file->size > 8 && file->data[0] == 0x80 && file->data[1] >= 2 && file->data[1] <= 5 &&
           memcmp(file->data + 4, zeros, sizeof zeros) != 0;
}

int torch_archive_is(const struct tensor_file *file)
{
    return begins_with(file, zip_magic, sizeof zip_magic) || is_pickle(file);
}

struct archive {
    struct tensors *tensors;
    const struct tensor_file *file;
    struct zip zip;
    const char *root; /* of the entries: "archive", or another name; with its slash */
    size_t root_bytes;
};

/* The name of an entry below the root; its pickle's when name is "data.pkl". */
static const struct zip_entry *entry_find(const struct archive *a, const char *folder,
                                          const char *name, size_t name_bytes)
{
    char path[512];
    int n = snprintf(path, sizeof path, "%.*s%s%.*s", (int)a->root_bytes, a->root, folder,
                     (int)(name_bytes < sizeof path ? name_bytes : sizeof path), name);
    return n > 0 && (size_t)n < sizeof path ? zip_find(&a->zip, path) : NULL;
}

/* The root is what stands before the one "data.pkl". */
static int root_find(struct archive *a, const struct zip_entry **ret, struct steer_error *err)
{
    static const char pickle[] = "data.pkl";
    size_t n = sizeof pickle - 1;
    *ret = NULL;
    for (size_t i = 0; i < a->zip.count; i++) {
        const struct zip_entry *e = a->zip.entries + i;
        if (e->name_bytes < n || memcmp(e->name + e->name_bytes - n, pickle, n) ||
            (e->name_bytes > n && e->name[e->name_bytes - n - 1] != '/'))
            continue;
        if (*ret) return steer_fail(err, STEER_BAD_MODEL, "%s: it has two data.pkl", a->file->path);
        *ret = e;
        a->root = e->name;
        a->root_bytes = e->name_bytes - n;
    }
    if (!*ret || a->root_bytes > 200)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: a zip archive without data.pkl: expected one of torch.save",
                          a->file->path);
    return 0;
}

/* Archives since torch 2.1 say which way round their bytes are. */
static int order_check(const struct archive *a, struct steer_error *err)
{
    const struct zip_entry *e = entry_find(a, "byteorder", "", 0);
    const uint8_t *text = NULL;
    if (!e) return 0;
    int code = zip_stored(&a->zip, e, &text, err);
    if (!code && (e->size != 6 || memcmp(text, "little", 6)))
        code = steer_fail(err, STEER_UNSUPPORTED, "%s: its byteorder is \"%.*s\": expected little",
                          a->file->path, (int)(e->size < 16 ? e->size : 16), (const char *)text);
    return code;
}

/* The count of elements, and whether they lie in the shape's own order; 0 when the tensor does not
 * lie in its storage. A storage is never smaller than its tensor: what repeats elements by a stride
 * of 0 is no parameter, and could be of any size. */
static int extent(const struct pickled_tensor *p, int64_t *ret_count, int *ret_dense)
{
    int64_t count = 1, last = p->first;
    *ret_dense = 1;
    for (int i = p->rank - 1; i >= 0; i--) {
        int64_t n = p->shape[i], reach;
        if (n != 1 && p->stride[i] != count) *ret_dense = 0;
        if (__builtin_mul_overflow(count, n, &count)) return 0;
        if (n && (__builtin_mul_overflow(n - 1, p->stride[i], &reach) ||
                  __builtin_add_overflow(last, reach, &last)))
            return 0;
    }
    *ret_count = count;
    if (!count) *ret_dense = 1;
    return !count || (last < p->storage_elements && count <= p->storage_elements);
}

/* The elements of a tensor with any strides, in the order of its shape. */
static void strided_copy(uint8_t *out, const uint8_t *in, const struct pickled_tensor *p,
                         size_t element, int64_t count)
{
    int64_t index[TENSOR_RANK_MAX] = {0}, at = p->first;
    for (int64_t k = 0; k < count; k++) {
        memcpy(out + (size_t)k * element, in + (size_t)at * element, element);
        for (int i = p->rank - 1; i >= 0; i--) {
            if (p->shape[i] == 1) continue; /* its stride says nothing and may be anything */
            at += p->stride[i];
            if (++index[i] < p->shape[i]) break;
            at -= p->stride[i] * p->shape[i];
            index[i] = 0;
        }
    }
}

/* The bytes of the storage, as many as its elements need. */
static int storage_find(const struct archive *a, const struct pickled_tensor *p, size_t element,
                        const uint8_t **ret, struct steer_error *err)
{
    const struct zip_entry *e = entry_find(a, "data/", p->storage, p->storage_bytes);
    uint64_t need;
    if (!e)
        return steer_fail(err, STEER_BAD_MODEL, "%s: tensor \"%.*s\": its storage is missing",
                          a->file->path, (int)p->name_bytes, p->name);
    int code = zip_stored(&a->zip, e, ret, err);
    if (code) return code;
    if (__builtin_mul_overflow((uint64_t)p->storage_elements, element, &need) || need > e->size)
        return steer_fail(
            err, STEER_BAD_MODEL,
            "%s: tensor \"%.*s\": its storage has %llu bytes: expected %lld elements of %zu",
            a->file->path, (int)p->name_bytes, p->name, (unsigned long long)e->size,
            (long long)p->storage_elements, element);
    return 0;
}

static int tensor_add(void *arg, const struct pickled_tensor *p, struct steer_error *err)
{
    struct archive *a = arg;
    struct tensor_view v = {.dtype = p->dtype, .rank = p->rank, .mapped = 1};
    char name[512];
    size_t element = tensor_dtype_bytes(p->dtype);
    int64_t count = 0;
    int dense = 0;
    const uint8_t *storage = NULL;
    if (!p->name_bytes || p->name_bytes >= sizeof name || memchr(p->name, 0, p->name_bytes))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: a tensor's name has %zu bytes: expected 1 to %zu, none of them 0",
                          a->file->path, p->name_bytes, sizeof name - 1);
    memcpy(name, p->name, p->name_bytes);
    name[p->name_bytes] = 0;
    v.name = name;
    memcpy(v.shape, p->shape, sizeof v.shape);
    int code = storage_find(a, p, element, &storage, err);
    if (code) return code;
    if (!extent(p, &count, &dense))
        return tensor_bad(err, a->file->path, name, "it does not lie in its storage");
    v.bytes = (size_t)count * element;
    v.data = count ? storage + (size_t)p->first * element : storage;
    if (!dense) {
        void *copy = NULL;
        if ((code = tensors_alloc(a->tensors, &copy, v.bytes, err))) return code;
        strided_copy(copy, storage, p, element, count);
        v.data = copy;
        v.mapped = 0;
    }
    return tensors_add(a->tensors, &v, err);
}

int torch_archive_read(struct tensors *t, const struct tensor_file *file, struct steer_error *err)
{
    struct archive a = {.tensors = t, .file = file};
    const struct zip_entry *pickle = NULL;
    const uint8_t *data = NULL;
    if (!begins_with(file, zip_magic, sizeof zip_magic))
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: %s: expected a zip archive as torch.save writes since 1.6; load and "
                          "save it once with a newer torch, or as safetensors",
                          file->path,
                          begins_with(file, old_magic, sizeof old_magic)
                              ? "written by torch before 1.6"
                              : "a bare pickle");
    int code = zip_open(&a.zip, file->data, file->size, file->path, err);
    if (!code) code = root_find(&a, &pickle, err);
    if (!code) code = order_check(&a, err);
    if (!code) code = zip_stored(&a.zip, pickle, &data, err);
    if (!code)
        code = torch_pickle_read(data, (size_t)pickle->size, file->path, tensor_add, &a, err);
    zip_close(&a.zip);
    return code;
}
