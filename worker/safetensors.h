/* safetensors.h - tensor files of strangers, mapped and bound by name and exact shape.
 *
 * A file is [u64 header bytes][JSON header][data]; the format is Hugging Face's safetensors. A set
 * is one file, or the shards that an index file ("weight_map") names. Header length, offsets and
 * shapes come from the file: each is checked against its size, without overflow, before anything is
 * read, and its tensors lie end to end as in the reference implementation. The mapping is private
 * and read-only; views point into it and live until tensors_close. */
#ifndef WORKER_SAFETENSORS_H
#define WORKER_SAFETENSORS_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "error.h"

enum tensor_dtype {
    TENSOR_F32,
    TENSOR_F16,
    TENSOR_BF16,
    TENSOR_F64,
    TENSOR_I64,
    TENSOR_I32,
    TENSOR_I16,
    TENSOR_I8,
    TENSOR_U8,
    TENSOR_BOOL,
    TENSOR_OTHER, /* listed, never read */
};
const char *tensor_dtype_name(enum tensor_dtype dtype); /* "F32" */

#define TENSOR_RANK_MAX 8

struct tensor_view {
    const char *name;
    enum tensor_dtype dtype;
    int rank;
    int64_t shape[TENSOR_RANK_MAX];
    const void *data;
    size_t bytes;
};

struct tensors;

/* path ends in .safetensors, or in .json for an index of shards beside it. STEER_BAD_MODEL,
 * STEER_IO or STEER_NO_MEMORY, naming the file and what is wrong with it. */
int tensors_open(struct tensors **ret, const char *path, struct steer_error *err) STEER_MUSTCHECK;
void tensors_close(struct tensors *t); /* NULL is fine */
/* The files of the set, for who wants their bytes. */
size_t tensors_files(const struct tensors *t);
const char *tensors_file_path(const struct tensors *t, size_t i);
/* Whether the files are still what was mapped: reading where one has shrunk would be a SIGBUS. */
int tensors_check(const struct tensors *t, struct steer_error *err) STEER_MUSTCHECK;
size_t tensors_count(const struct tensors *t);
/* By place, in order of name. */
const struct tensor_view *tensors_at(const struct tensors *t, size_t i);
/* NULL: no such tensor. */
const struct tensor_view *tensors_find(const struct tensors *t, const char *name);
/* Exactly that shape, or an error that names the tensor, its shape and the one expected. */
int tensors_get(const struct tensors *t, const char *name, int rank, const int64_t *shape,
                struct tensor_view *ret, struct steer_error *err) STEER_MUSTCHECK;

/* One tensor to write; data in the machine's order, which is the file's. */
struct tensor_out {
    const char *name;
    enum tensor_dtype dtype;
    int rank;
    int64_t shape[TENSOR_RANK_MAX];
    const void *data;
};
/* Writes path whole or not at all (a temporary name, renamed). */
int tensors_write(const char *path, const struct tensor_out *tensors, size_t count,
                  struct steer_error *err) STEER_MUSTCHECK;

#endif
