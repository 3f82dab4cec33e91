// SPDX-License-Identifier: Apache-2.0
#include "checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "original_names.h"
#include "tensor_file.h"

/* Where a component is in a file, and a tensor that tells that it is there. The first that is there
 * is taken: diffusers' own names stand before the original ones. */
static const struct place {
    enum checkpoint_part part;
    const char *prefix;
    enum original_code code;
    const char *sign;
} places[] = {
    {CHECKPOINT_UNET, "", ORIGINAL_NONE, "down_blocks.0.resnets.0.conv1.weight"},
    {CHECKPOINT_UNET, "model.diffusion_model.", ORIGINAL_UNET, "input_blocks.0.0.weight"},
    {CHECKPOINT_UNET, "", ORIGINAL_UNET, "input_blocks.0.0.weight"},
    {CHECKPOINT_TRANSFORMER, "", ORIGINAL_NONE, "transformer_blocks.0.attn.to_q.weight"},
    {CHECKPOINT_TRANSFORMER, "", ORIGINAL_NONE, "transformer_blocks.0.attn1.to_q.weight"},
    {CHECKPOINT_TRANSFORMER, "model.diffusion_model.", ORIGINAL_FLUX, "img_in.weight"},
    {CHECKPOINT_TRANSFORMER, "", ORIGINAL_FLUX, "img_in.weight"},
    {CHECKPOINT_VAE, "", ORIGINAL_NONE, "decoder.mid_block.resnets.0.norm1.weight"},
    {CHECKPOINT_VAE, "", ORIGINAL_NONE, "decoder.layers.0.weight"},
    {CHECKPOINT_VAE, "first_stage_model.", ORIGINAL_VAE, "decoder.mid.block_1.norm1.weight"},
    {CHECKPOINT_VAE, "vae.", ORIGINAL_VAE, "decoder.mid.block_1.norm1.weight"},
    {CHECKPOINT_VAE, "", ORIGINAL_VAE, "decoder.mid.block_1.norm1.weight"},
#define CLIP_SIGN "text_model.final_layer_norm.weight"
    {CHECKPOINT_TEXT, "", ORIGINAL_NONE, CLIP_SIGN},
    {CHECKPOINT_TEXT, "", ORIGINAL_NONE, "embeddings.token_embedding.weight"},
    {CHECKPOINT_TEXT, "", ORIGINAL_NONE, "encoder.final_layer_norm.weight"}, /* T5 */
    {CHECKPOINT_TEXT, "cond_stage_model.transformer.", ORIGINAL_NONE, CLIP_SIGN},
    {CHECKPOINT_TEXT, "cond_stage_model.transformer.", ORIGINAL_NONE,
     "embeddings.token_embedding.weight"},
    {CHECKPOINT_TEXT, "cond_stage_model.model.", ORIGINAL_OPEN_CLIP, "ln_final.weight"},
    {CHECKPOINT_TEXT, "conditioner.embedders.0.transformer.", ORIGINAL_NONE, CLIP_SIGN},
    {CHECKPOINT_TEXT, "text_encoders.clip_l.transformer.", ORIGINAL_NONE, CLIP_SIGN},
    {CHECKPOINT_TEXT_2, "", ORIGINAL_NONE, CLIP_SIGN},
    {CHECKPOINT_TEXT_2, "", ORIGINAL_NONE, "encoder.final_layer_norm.weight"},
    {CHECKPOINT_TEXT_2, "conditioner.embedders.1.model.", ORIGINAL_OPEN_CLIP, "ln_final.weight"},
    {CHECKPOINT_TEXT_2, "text_encoders.t5xxl.transformer.", ORIGINAL_NONE,
     "encoder.final_layer_norm.weight"},
};
static const char *const part_names[] = {"U-Net", "transformer", "VAE", "text encoder",
                                         "second text encoder"};

static const struct place *place_find(const struct tensors *t, enum checkpoint_part part)
{
    char name[160];
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(name, sizeof name, "%s%s", places[i].prefix, places[i].sign);
        if (places[i].part == part && tensors_find(t, name)) return places + i;
    }
    return NULL;
}

static int missing(const struct tensors *t, const char *path, enum checkpoint_part part,
                   struct steer_error *err)
{
    char some[320] = "nothing";
    size_t used = 0, step = t->count / 4 + 1;
    for (size_t i = 0; i < t->count && used < sizeof some - 1; i += step) {
        int n = snprintf(some + used, sizeof some - used, "%s%.70s", used ? ", " : "",
                         t->views[i].name);
        used += n > 0 ? (size_t)n : 0;
    }
    return steer_fail(err, STEER_BAD_MODEL,
                      "%s: there is no %s in it by diffusers' names nor by the original ones; it "
                      "has %zu tensors, among them: %s",
                      path, part_names[part], t->count, some);
}

/* ---- a stored tensor as ours ---- */

/* Rows [first, first + count) of v; all of them have the same bytes. */
static void rows_take(struct tensor_view *v, int64_t first, int64_t count)
{
    size_t row = v->bytes / (size_t)v->shape[0];
    v->data = (const char *)v->data + (size_t)first * row;
    v->bytes = (size_t)count * row;
    v->shape[0] = count;
}

static int transposed(struct tensors *t, struct tensor_view *v, struct steer_error *err)
{
    size_t element = tensor_dtype_bytes(v->dtype);
    size_t rows = (size_t)v->shape[0], columns = (size_t)v->shape[1];
    void *copy = NULL;
    int code = tensors_alloc(t, &copy, v->bytes, err);
    if (code) return code;
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < columns; k++)
            memcpy((char *)copy + (k * rows + i) * element,
                   (const char *)v->data + (i * columns + k) * element, element);
    v->shape[0] = (int64_t)columns;
    v->shape[1] = (int64_t)rows;
    v->data = copy;
    v->mapped = 0;
    return 0;
}

static int swapped(struct tensors *t, struct tensor_view *v, struct steer_error *err)
{
    void *copy = NULL;
    size_t half = v->bytes / 2;
    int code = tensors_alloc(t, &copy, v->bytes, err);
    if (code) return code;
    memcpy(copy, (const char *)v->data + half, half);
    memcpy((char *)copy + half, v->data, half);
    v->data = copy;
    v->mapped = 0;
    return 0;
}

/* Adds what the stored tensor v is in our names. */
static int translated_add(struct tensors *t, const struct original_layout *layout,
                          const struct original_name *name, const struct tensor_view *stored,
                          struct steer_error *err)
{
    struct tensor_view v = *stored;
    int64_t rows = v.rank ? v.shape[0] : 0, width = layout->width;
    int code = 0;
    if ((name->parts > 1 && (width < 1 || width > (rows - 1) / (name->parts - 1))) ||
        (name->form == FORM_TRANSPOSED && v.rank != 2) ||
        (name->form == FORM_SWAPPED && (!rows || rows % 2)))
        return tensor_bad(err, t->files[0].path, v.name, "a shape that its name does not have");
    while (name->form == FORM_FLAT && v.rank > 2 && v.shape[v.rank - 1] == 1)
        v.rank--;
    if (name->form == FORM_TRANSPOSED) code = transposed(t, &v, err);
    if (name->form == FORM_SWAPPED) code = swapped(t, &v, err);
    for (int i = 0; i < name->parts && !code; i++) {
        struct tensor_view part = v;
        part.name = name->ours[i];
        if (name->parts > 1)
            rows_take(&part, i * width, i < name->parts - 1 ? width : rows - i * width);
        code = tensors_add(t, &part, err);
    }
    return code;
}

/* Replaces the views of t by those of one component. What has no name of ours is left out: other
 * components, averages of training, buffers. */
static int translate(struct tensors *t, const struct place *place, const char *path,
                     struct steer_error *err)
{
    struct original_layout layout = {0};
    if (place->code != ORIGINAL_NONE) original_layout_read(&layout, place->code, t, place->prefix);
    struct tensor_view *stored = t->views;
    size_t count = t->count, prefix = strlen(place->prefix);
    int code = 0;
    t->views = NULL;
    t->count = t->room = 0;
    for (size_t i = 0; i < count && !code; i++) {
        struct original_name name = {.parts = 1};
        const char *rest = stored[i].name + prefix;
        if (strncmp(stored[i].name, place->prefix, prefix) != 0) continue;
        if (place->code != ORIGINAL_NONE) {
            if (original_translate(&name, &layout, rest))
                code = translated_add(t, &layout, &name, stored + i, err);
        } else {
            struct tensor_view v = stored[i];
            v.name = rest;
            code = tensors_add(t, &v, err);
        }
    }
    for (size_t i = 0; i < count; i++)
        free((char *)(uintptr_t)stored[i].name);
    free(stored);
    return code ? code : tensors_sort(t, path, err);
}

int checkpoint_open(struct tensors **ret, const char *path, enum checkpoint_part part,
                    struct steer_error *err)
{
    struct tensors *t = NULL;
    int code = tensors_open(&t, path, err);
    if (code) return code;
    const struct place *place = place_find(t, part);
    if (!place)
        code = missing(t, path, part, err);
    else if (place->code != ORIGINAL_NONE || *place->prefix)
        code = translate(t, place, path, err);
    if (code) {
        tensors_close(t);
        return code;
    }
    *ret = t;
    return 0;
}
