/* model_file.h - a model put together of what people publish apart: a base folder, and what stands
 * in for its parts.
 *
 *     {"base": "../stable-diffusion-v1-5",
 *      "unet": "dmd2-sd15.safetensors",
 *      "loras": [{"file": "style.safetensors", "weight": 0.8}],
 *      "mean_latent": "mean.safetensors",
 *      "recipe": "dmd2-sd15"}
 *
 * Paths are absolute or from the file's own folder. A part is a folder as diffusers saves a
 * component, with its own config.json, or a file of tensors (checkpoint.h), which takes the base's
 * configuration. "single_file" gives every part that has no key of its own. */
#ifndef WORKER_MODEL_FILE_H
#define WORKER_MODEL_FILE_H
#include "checkpoint.h"
#include "limits.h"
#include "lora.h"

#define MODEL_FILE_PATH_BYTES 1024
enum { MODEL_FILE_PARTS = 5, MODEL_FILE_LORAS_MAX = 16 };

struct model_file_part {
    char path[MODEL_FILE_PATH_BYTES]; /* "": the base's own */
    int is_folder;
};

struct model_file {
    char path[MODEL_FILE_PATH_BYTES]; /* its own */
    char base[MODEL_FILE_PATH_BYTES];
    struct model_file_part parts[MODEL_FILE_PARTS], single_file;
    char lora_paths[MODEL_FILE_LORAS_MAX][MODEL_FILE_PATH_BYTES];
    struct lora_option loras[MODEL_FILE_LORAS_MAX]; /* their paths point into lora_paths */
    size_t loras_count;
    char mean_latent[MODEL_FILE_PATH_BYTES]; /* mean_latent.h; "": none */
    char recipe[STEER_NAME_BYTES_MAX + 1];   /* "": the base's */
};

/* 1 for a file, of whatever content, whose name ends in .json. */
int model_file_is(const char *path);
/* The caller frees *ret. STEER_BAD_MODEL or STEER_NOT_FOUND, naming file and key: all that it names
 * is there, as a folder or a file. */
int model_file_load(struct model_file **ret, const char *path,
                    struct steer_error *err) STEER_MUSTCHECK;
/* What stands in for the base's part of that name ("unet"), and what it is called in a checkpoint.
 * NULL: nothing. */
const struct model_file_part *model_file_part(const struct model_file *f, const char *part,
                                              enum checkpoint_part *ret_kind);
/* The name of its i-th part, below MODEL_FILE_PARTS. */
const char *model_file_part_name(size_t i);

#endif
