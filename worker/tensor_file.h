/* tensor_file.h - what the readers of tensor files fill (tensors.c, safetensors.c, torch_archive.c,
 * checkpoint.c); nobody else looks into a set. */
#ifndef WORKER_TENSOR_FILE_H
#define WORKER_TENSOR_FILE_H
#include <jansson.h>
#include <time.h>

#include "tensors.h"

struct tensor_file {
    char *name, *path; /* name: as the index has it */
    int fd;            /* -1: not open */
    struct mapping *mapping;
    uint8_t *data; /* the mapping's */
    size_t size;
    struct timespec changed;
};

struct tensors {
    struct tensor_file *files;
    size_t files_count;
    struct tensor_view *views; /* sorted by name once open; names are owned */
    size_t count, room;
    json_t *metadata; /* an object of texts; NULL: none */
    struct tensor_copy *copies;
    size_t copied_bytes;
};

/* Takes a copy of the view and of its name. STEER_NO_MEMORY. */
int tensors_add(struct tensors *t, const struct tensor_view *view,
                struct steer_error *err) STEER_MUSTCHECK;
/* Memory that lives as long as the set, for values that do not lie in a file in the order of a
 * view. A file's tensors may ask for twice its size and no more: strides let a small file describe
 * huge tensors. STEER_BAD_MODEL or STEER_NO_MEMORY. */
int tensors_alloc(struct tensors *t, void **ret, size_t bytes,
                  struct steer_error *err) STEER_MUSTCHECK;
/* Sorts; no name may be there twice. path names the set in errors. */
int tensors_sort(struct tensors *t, const char *path, struct steer_error *err) STEER_MUSTCHECK;
/* STEER_BAD_MODEL with `path: tensor "name": what`. */
int tensor_bad(struct steer_error *err, const char *path, const char *name, const char *what);

#endif
