/* lora_file.h - the layers that a LoRA file changes, whatever tool wrote it.
 *
 *     kohya-ss    lora_unet_down_blocks_0_..._to_q.lora_down.weight   .lora_up.weight   .alpha
 *     diffusers   unet.down_blocks.0....to_q.lora_A.weight            .lora_B.weight
 *     older       unet.down_blocks.0....to_q.lora.down.weight         .lora.up.weight
 *                 unet.down_blocks.0....processor.to_q_lora.down.weight
 *     peft        base_model.model.down_blocks.0....to_q.lora_A.weight, adapter_config.json beside
 *
 * A layer is W + weight * alpha / rank * up @ down, alpha being the rank where nothing says it.
 * Other methods that such files may hold (DoRA, LoHa, LoKr, ...) are refused by name. */
#ifndef WORKER_LORA_FILE_H
#define WORKER_LORA_FILE_H
#include "tensors.h"

enum lora_target { LORA_DENOISER, LORA_TEXT, LORA_TEXT_2 };
#define LORA_TARGETS 3

struct lora_layer {
    enum lora_target target;
    char *name;                  /* of the module without its target, as the file spells it */
    struct tensor_view down, up; /* [rank, ...] and [out, rank, ...]; F32, F16 or BF16 */
    int64_t rank;
    double scale; /* alpha / rank */
    int bound;    /* for lora.c: the model has it */
};

struct lora_file {
    char *path;
    struct tensors *tensors;
    struct lora_layer *layers;
    size_t count;
};

/* STEER_BAD_MODEL, STEER_UNSUPPORTED or as tensors_open, naming file and key. lora_file_close frees
 * what it made, also after an error. */
int lora_file_open(struct lora_file *f, const char *path, struct steer_error *err) STEER_MUSTCHECK;
void lora_file_close(struct lora_file *f);

#endif
