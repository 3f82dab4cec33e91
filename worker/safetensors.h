/* safetensors.h - Hugging Face's tensor files.
 *
 * A file is [u64 header bytes][JSON header][data]. Header length, offsets and shapes come from the
 * file: each is checked against its size, without overflow, before anything is read, and its
 * tensors lie end to end as in the reference implementation. */
#ifndef WORKER_SAFETENSORS_H
#define WORKER_SAFETENSORS_H
#include "tensors.h"

struct tensor_file;

/* Adds the views of a mapped file to t. STEER_BAD_MODEL or STEER_NO_MEMORY. */
int safetensors_read(struct tensors *t, const struct tensor_file *file,
                     struct steer_error *err) STEER_MUSTCHECK;

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
