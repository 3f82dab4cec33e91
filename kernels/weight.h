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
    int int8;          /* the matrix is held as int8: weight_matrix_int8 alone packs it */
    struct packed *packed;
};

/* The packed form of that key, or NULL. */
void *weight_packed(const struct weight *w, uint64_t key);
/* Makes room for a form; the bytes are the host's to count. NULL: out of memory. */
void *weight_pack(struct weight *w, uint64_t key, size_t bytes);
/* Forgets a form that nobody points at any more. */
void weight_forget(struct weight *w, uint64_t key);

/* Keys of the dense forms; backends' keys are hashes of layouts, far above. */
enum { WEIGHT_MATRIX_F32 = 1, WEIGHT_VECTOR_F32 = 2, WEIGHT_MATRIX_INT8 = 3 };
/* All parts' matrices as one dense f32 [out, in * size * size], and biases as f32 [out] (zeros
 * where there is none). Cached under keys of their own. NULL: out of memory. */
const float *weight_matrix_f32(struct weight *w);
const float *weight_vector_f32(struct weight *w);
int weight_has_vector(const struct weight *w);
/* Packs both, the matrix as int8 when it is held so. */
int weight_ready(struct weight *w, struct steer_error *err) STEER_MUSTCHECK;
/* All parts' matrices as int8: the value of output o is codes[int8_place(w, o, tap, channel)] *
 * scales[o]. Codes of INT8_PANEL outputs lie side by side, two channels of each together, so that a
 * backend widens a piece for all of them with loads in a row; what the last panel has too many is
 * zeros. */
enum { INT8_PANEL = 64 };
struct weight_int8 {
    const float *scales; /* [panels * INT8_PANEL] */
    const int8_t *codes; /* [panels][size * size][in / 2][INT8_PANEL][2] */
};
/* STEER_NO_MEMORY. */
int weight_matrix_int8(struct weight *w, struct weight_int8 *ret) STEER_MUSTCHECK;
static inline size_t int8_place(const struct weight *w, int o, int tap, int channel)
{
    size_t pairs = (size_t)w->in / 2, taps = (size_t)(w->size * w->size);
    size_t pair = ((size_t)(o / INT8_PANEL) * taps + (size_t)tap) * pairs + (size_t)channel / 2;
    return (pair * INT8_PANEL + (size_t)(o % INT8_PANEL)) * 2 + (size_t)channel % 2;
}
/* The same matrix in TYPE_F32 or TYPE_BF16, in memory that the next call uses again: what a backend
 * packs from. Lets the file's pages go. NULL: out of memory. */
const void *weight_matrix_staged(struct weight *w, enum compute_type type);
/* Forgets that memory; nothing staged may be used any more. */
void weight_staging_free(struct compute *c);

#endif
