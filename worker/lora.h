/* lora.h - LoRA files over a model: which of its weights they change and by what.
 *
 * Open the files, bind each component of the model, then check that every layer has found its
 * weight: a file for another model is refused, not half applied. What loras_find gives is added
 * when weights are packed (kernels/compute.h: struct low_rank), so nothing is merged on disk and
 * several files, each with its weight, cost no time at all once packed. */
#ifndef WORKER_LORA_H
#define WORKER_LORA_H
#include "compute.h"
#include "error.h"
#include "lora_file.h"

struct loras;

struct lora_option {
    const char *path;
    double weight; /* 1: as its authors meant it */
};

/* STEER_BAD_MODEL, STEER_UNSUPPORTED, STEER_BAD_VALUE for a weight that is no number, or as
 * tensors_open. */
int loras_open(struct loras **ret, const struct lora_option *files, size_t count,
               struct steer_error *err) STEER_MUSTCHECK;
void loras_close(struct loras *l); /* NULL is fine; no weight may use it any more */

/* Finds what the files change of one component; model has its tensors by diffusers' names and
 * outlives l. STEER_BAD_MODEL for a layer of another shape. */
int loras_bind(struct loras *l, enum lora_target target, const struct tensors *model,
               struct steer_error *err) STEER_MUSTCHECK;
/* After all components: STEER_BAD_MODEL when a layer of a file is in none of them. Merging only
 * what fits would give an image that looks nearly right; only layers of zeros, which change
 * nothing, may be left over. */
int loras_check(const struct loras *l, struct steer_error *err) STEER_MUSTCHECK;

/* What is added to the weight of that name; NULL: nothing. Lives as long as l. */
const struct low_rank *loras_find(const struct loras *l, enum lora_target target, const char *name);

/* Whether the files are still what was opened (tensors_check). */
int loras_current(const struct loras *l, struct steer_error *err) STEER_MUSTCHECK;
/* Whether all that was read of them was there (tensors_whole). */
int loras_whole(const struct loras *l, struct steer_error *err) STEER_MUSTCHECK;
/* The files, for who wants their bytes. */
size_t loras_count(const struct loras *l);
const struct tensors *loras_tensors(const struct loras *l, size_t i);

#endif
