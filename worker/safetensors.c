// SPDX-License-Identifier: Apache-2.0
#include "safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "file.h"
#include "json.h"
#include "tensor_file.h"

#define HEADER_BYTES_MAX JSON_BYTES_MAX

/* One entry of the header: {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}. */
static int view_parse(struct tensor_view *v, const char *name, const json_t *entry,
                      const struct tensor_file *file, size_t start, struct steer_error *err)
{
    const char *path = file->path;
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const json_t *shape = json_object_get(entry, "shape"),
                 *offsets = json_object_get(entry, "data_offsets");
    if (!dtype || !json_is_array(shape) || !json_is_array(offsets) || json_array_size(offsets) != 2)
        return tensor_bad(err, path, name, "expected dtype, shape and two data_offsets");
    if (json_array_size(shape) > TENSOR_RANK_MAX)
        return tensor_bad(err, path, name, "over 8 dimensions");
    *v = (struct tensor_view){
        .name = name, .dtype = TENSOR_OTHER, .rank = (int)json_array_size(shape), .mapped = 1};
    for (int i = 0; i < TENSOR_OTHER; i++)
        if (strcmp(dtype, tensor_dtype_name((enum tensor_dtype)i)) == 0)
            v->dtype = (enum tensor_dtype)i;
    uint64_t bytes = tensor_dtype_bytes(v->dtype);
    for (int i = 0; i < v->rank; i++) {
        const json_t *n = json_array_get(shape, (size_t)i);
        if (!json_is_integer(n) || json_integer_value(n) < 0 ||
            __builtin_mul_overflow(bytes, (uint64_t)json_integer_value(n), &bytes))
            return tensor_bad(err, path, name, "a shape that is not possible");
        v->shape[i] = json_integer_value(n);
    }
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    uint64_t data_bytes = file->size - start;
    if (!json_is_integer(first) || !json_is_integer(last) || json_integer_value(first) < 0 ||
        json_integer_value(last) < json_integer_value(first))
        return tensor_bad(err, path, name, "data_offsets that are not possible");
    if ((uint64_t)json_integer_value(last) > data_bytes)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: tensor \"%.200s\" ends at byte %lld of its data, but the file has "
                          "only %llu (truncated?)",
                          path, name, (long long)json_integer_value(last),
                          (unsigned long long)data_bytes);
    v->bytes = (size_t)(json_integer_value(last) - json_integer_value(first));
    if (v->dtype != TENSOR_OTHER && v->bytes != bytes)
        return tensor_bad(err, path, name, "its data_offsets do not span what its shape needs");
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
static int places_check(struct tensors *t, size_t first, const struct tensor_file *file,
                        size_t start, struct steer_error *err)
{
    const char *path = file->path;
    const uint8_t *at = file->data + start;
    if (t->count > first) qsort(t->views + first, t->count - first, sizeof *t->views, by_place);
    for (size_t i = first; i < t->count; i++) {
        const struct tensor_view *v = t->views + i;
        if ((const uint8_t *)v->data != at)
            return tensor_bad(err, path, v->name, "it does not begin where the one before it ends");
        at += v->bytes;
    }
    if (at != file->data + file->size)
        return steer_fail(err, STEER_BAD_MODEL, "%s: %zu bytes after its last tensor", path,
                          (size_t)(file->data + file->size - at));
    return 0;
}

int safetensors_read(struct tensors *t, const struct tensor_file *file, struct steer_error *err)
{
    const char *path = file->path;
    size_t before = t->count;
    uint64_t header = little_endian(file->data, 8);
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
        if (strcmp(name, "__metadata__") == 0) {
            if (!t->metadata) t->metadata = json_incref(entry);
            continue;
        }
        if ((code = view_parse(&view, name, entry, file, 8 + (size_t)header, err)) ||
            (code = tensors_add(t, &view, err)))
            break;
    }
    json_decref(root);
    return code ? code : places_check(t, before, file, 8 + (size_t)header, err);
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
        size_t bytes = tensor_dtype_bytes(tensors[i].dtype);
        for (int k = 0; k < tensors[i].rank; k++) {
            json_array_append_new(shape, json_integer(tensors[i].shape[k]));
            bytes *= (size_t)tensors[i].shape[k];
        }
        json_object_set_new(root, tensors[i].name,
                            json_pack("{s:s, s:o, s:[I, I]}", "dtype",
                                      tensor_dtype_name(tensors[i].dtype), "shape", shape,
                                      "data_offsets", (json_int_t)at, (json_int_t)(at + bytes)));
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
