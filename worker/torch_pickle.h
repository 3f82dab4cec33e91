/* torch_pickle.h - the pickle of a torch archive as a list of named tensors.
 *
 * Nothing in it is trusted, and nothing of it runs: see torch_archive.h. */
#ifndef WORKER_TORCH_PICKLE_H
#define WORKER_TORCH_PICKLE_H
#include "tensors.h"

/* A tensor of the dictionary: where it lies in which storage, as the pickle says and unchecked but
 * for signs and counts. */
struct pickled_tensor {
    const char *name; /* name_bytes of it, not ended by 0 */
    size_t name_bytes;
    enum tensor_dtype dtype;
    const char *storage; /* the storage's key; as name */
    size_t storage_bytes;
    int64_t storage_elements, first; /* all >= 0, in elements */
    int rank;
    int64_t shape[TENSOR_RANK_MAX], stride[TENSOR_RANK_MAX];
};

/* Calls add for each tensor, until it fails; texts live as long as data. path names the archive in
 * errors. STEER_BAD_MODEL, STEER_UNSUPPORTED, STEER_NO_MEMORY or what add gave. */
int torch_pickle_read(const uint8_t *data, size_t size, const char *path,
                      int (*add)(void *arg, const struct pickled_tensor *tensor,
                                 struct steer_error *err),
                      void *arg, struct steer_error *err) STEER_MUSTCHECK;

#endif
