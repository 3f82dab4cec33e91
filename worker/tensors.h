/* tensors.h - the tensors of strangers' files, mapped and bound by name and exact shape.
 *
 * A set is one file, or the shards that an index file ("weight_map") names. What kind a file is
 * tells its content: safetensors (safetensors.h) or an archive of torch.save (torch_archive.h); who
 * uses a set sees no difference. The mapping is private and read-only; views point into it and live
 * until tensors_close. */
#ifndef WORKER_TENSORS_H
#define WORKER_TENSORS_H
#include <stddef.h>
#include <stdint.h>

#include "compute.h"
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
size_t tensor_dtype_bytes(enum tensor_dtype dtype);     /* 0 for TENSOR_OTHER */

#define TENSOR_RANK_MAX 8

struct tensor_view {
    const char *name;
    enum tensor_dtype dtype;
    int rank;
    int64_t shape[TENSOR_RANK_MAX];
    const void *data; /* values in order, the last dimension fastest; may be unaligned */
    size_t bytes;
    int mapped; /* data lies in an untouched mapping, so that pages that were read may be dropped */
};

/* As weights take it; data NULL: of a type that none takes, all but F32, F16 and BF16. */
struct stored tensor_stored(const struct tensor_view *v);
int tensor_is_zero(const struct tensor_view *v);

struct tensors;

/* A file of tensors, or an index of shards beside it when path ends in .json. STEER_BAD_MODEL,
 * STEER_IO or STEER_NO_MEMORY, naming the file and what is wrong with it. */
int tensors_open(struct tensors **ret, const char *path, struct steer_error *err) STEER_MUSTCHECK;
void tensors_close(struct tensors *t); /* NULL is fine */
/* The files of the set, for who wants their bytes. */
size_t tensors_files(const struct tensors *t);
const char *tensors_file_path(const struct tensors *t, size_t i);
/* Whether all that was read of the files so far was there (mapping.h): what was made of one that
 * was cut short meanwhile is wrong. */
int tensors_whole(const struct tensors *t, struct steer_error *err) STEER_MUSTCHECK;
/* That, and whether the files are still what was mapped. */
int tensors_check(const struct tensors *t, struct steer_error *err) STEER_MUSTCHECK;
size_t tensors_count(const struct tensors *t);
/* By place, in order of name. */
const struct tensor_view *tensors_at(const struct tensors *t, size_t i);
/* NULL: no such tensor. */
const struct tensor_view *tensors_find(const struct tensors *t, const char *name);
/* Exactly that shape, or an error that names the tensor, its shape and the one expected. */
int tensors_get(const struct tensors *t, const char *name, int rank, const int64_t *shape,
                struct tensor_view *ret, struct steer_error *err) STEER_MUSTCHECK;
/* What the first file that has it says under that key of its "__metadata__"; NULL: nothing. */
const char *tensors_metadata(const struct tensors *t, const char *key);

#define TENSOR_SHAPE_BYTES 160
/* "[2, 3]", for errors. */
const char *tensor_shape_text(char out[TENSOR_SHAPE_BYTES], int rank, const int64_t *shape);

#endif
