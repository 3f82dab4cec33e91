/* weight.h - a parameter as stored, and the forms that plans had it packed into. */
#ifndef KERNELS_WEIGHT_H
#define KERNELS_WEIGHT_H
#include "compute.h"

enum weight_kind { WEIGHT_LINEAR, WEIGHT_CONV, WEIGHT_NORM, WEIGHT_TABLE };
#define WEIGHT_PARTS_MAX 3

/* A packed form, owned by the weight. key tells the backend which form it is. */
struct packed {
    struct packed *next;
    uint64_t key;
    void *data; /* 64-byte aligned */
    size_t bytes;
};

struct weight {
    struct compute *compute;
    enum weight_kind kind;
    int parts;
    struct stored matrix[WEIGHT_PARTS_MAX]; /* kernel, scale or table in [0] */
    struct stored vector[WEIGHT_PARTS_MAX]; /* bias or shift; data NULL: none */
    int part_out[WEIGHT_PARTS_MAX];
    int out, in, size; /* size: of a conv's kernel; norms: in = channels; tables: out = rows */
    struct packed *packed;
};

/* The packed form of that key, or NULL. */
void *weight_packed(const struct weight *w, uint64_t key);
/* Makes room for a form; the bytes are the host's to count. NULL: out of memory. */
void *weight_pack(struct weight *w, uint64_t key, size_t bytes);
/* Forgets a form that nobody points at any more. */
void weight_unpack(struct weight *w, uint64_t key);

/* Keys of the dense forms; backends' keys are hashes of layouts, far above. */
enum { WEIGHT_MATRIX_F32 = 1, WEIGHT_VECTOR_F32 = 2 };
/* All parts' matrices as one dense f32 [out, in * size * size], and biases as f32 [out] (zeros
 * where there is none). Cached under keys of their own. NULL: out of memory. */
const float *weight_matrix_f32(struct weight *w);
const float *weight_vector_f32(struct weight *w);
int weight_has_vector(const struct weight *w);
/* The same matrix in TYPE_F32 or TYPE_BF16, in memory that the next call uses again: what a backend
 * packs from. Lets the file's pages go. NULL: out of memory. */
const void *weight_matrix_staged(struct weight *w, enum compute_type type);
/* Forgets that memory; nothing staged may be used any more. */
void weight_staging_free(struct compute *c);

#endif
