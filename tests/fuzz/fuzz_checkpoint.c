// SPDX-License-Identifier: Apache-2.0
/* A tensor file as a checkpoint of each part, and as a LoRA over what it is itself: every byte of
 * every view, and of every change, can be read. */
#include "checkpoint.h"
#include "fuzz.h"
#include "lora.h"

static unsigned sum_of(const void *data, size_t bytes)
{
    unsigned sum = 0;
    for (size_t i = 0; i < bytes; i++)
        sum += ((const uint8_t *)data)[i];
    return sum;
}

static unsigned changes_read(const struct loras *l, enum lora_target target,
                             const struct tensors *model)
{
    unsigned sum = 0;
    for (size_t i = 0; i < tensors_count(model); i++) {
        const struct tensor_view *v = tensors_at(model, i);
        const struct low_rank *added = loras_find(l, target, v->name);
        for (; added; added = added->next) {
            size_t rows = (size_t)v->shape[0], columns = 1, rank = (size_t)added->rank;
            for (int k = 1; k < v->rank; k++)
                columns *= (size_t)v->shape[k];
            sum += sum_of(added->up.data, rows * rank * compute_type_bytes(added->up.type));
            sum += sum_of(added->down.data, rank * columns * compute_type_bytes(added->down.type));
        }
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const enum lora_target targets[] = {LORA_DENOISER, LORA_DENOISER, LORA_TEXT, LORA_TEXT,
                                               LORA_TEXT_2};
    static const struct lora_option file = {"fuzz.safetensors", 0.5};
    struct loras *l = NULL;
    struct steer_error err = {0};
    unsigned sum = 0;
    fuzz_file(file.path, data, size);
    int none = loras_open(&l, &file, 1, &err);
    FUZZ_ASSERT(!none || err.text[0]);
    for (int part = CHECKPOINT_UNET; part <= CHECKPOINT_TEXT_2; part++) {
        struct tensors *t = NULL;
        int code = checkpoint_open(&t, file.path, (enum checkpoint_part)part, &err);
        FUZZ_ASSERT(!code || (!t && err.text[0]));
        for (size_t i = 0; !code && i < tensors_count(t); i++)
            sum += sum_of(tensors_at(t, i)->data, tensors_at(t, i)->bytes);
        struct loras *own = NULL; /* names that a set owns die with it */
        if (!code && !none && !loras_open(&own, &file, 1, NULL) &&
            !loras_bind(own, targets[part], t, &err))
            sum += changes_read(own, targets[part], t);
        loras_close(own);
        tensors_close(t);
    }
    loras_close(l);
    return sum == 0x7fffffff;
}
