/* checkpoint.h - one component's tensors out of any published file, by diffusers' names.
 *
 * A file may be a component as diffusers saves it, a single-file checkpoint in the original naming
 * that holds several (SD1.5, SD2.1, SDXL), a bare FLUX transformer or VAE, or one of those packed
 * together for ComfyUI; as safetensors or as an archive of torch.save. A file has no configuration:
 * that comes from a base folder. */
#ifndef WORKER_CHECKPOINT_H
#define WORKER_CHECKPOINT_H
#include "tensors.h"

enum checkpoint_part {
    CHECKPOINT_UNET,
    CHECKPOINT_TRANSFORMER,
    CHECKPOINT_VAE,
    CHECKPOINT_TEXT,
    CHECKPOINT_TEXT_2,
};

/* Views that keep to the file, but for the few that are stored the other way round. STEER_BAD_MODEL
 * when the part is not in it; else as tensors_open. */
int checkpoint_open(struct tensors **ret, const char *path, enum checkpoint_part part,
                    struct steer_error *err) STEER_MUSTCHECK;

#endif
