// SPDX-License-Identifier: Apache-2.0
/* Names meet in one spelling: diffusers' module path with '_' for '.', as kohya-ss writes it, which
 * cannot be undone but need not be: the model's own names are spelt so too. */
#include "lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "original_names.h"
#include "tensors.h"

#define SPELLING_BYTES ORIGINAL_NAME_BYTES

/* A change with what it owns. */
struct change {
    struct low_rank low; /* first, so that chains of it are chains of these */
    void *copy;          /* up with its halves swapped; NULL: up is the file's */
};

/* The weight of a model that is changed; sorted by target and name. */
struct bound {
    enum lora_target target;
    const char *name; /* of the model's tensor */
    struct low_rank *first;
    size_t file; /* that changed it last */
};

struct loras {
    struct lora_file *files;
    double *weights;
    size_t count;
    struct bound *bounds;
    size_t bounds_count, bounds_room;
};

/* ---- spelling ---- */

static void ending_replace(char *text, const char *old, const char *new)
{
    size_t n = strlen(text), o = strlen(old);
    if (n >= o && strcmp(text + n - o, old) == 0 && n - o + strlen(new) < SPELLING_BYTES)
        memcpy(text + n - o, new, strlen(new) + 1);
}

static void spell(char out[SPELLING_BYTES], enum lora_target target, const char *name)
{
    static const char processor[] = "_processor", text_model[] = "text_model_";
    snprintf(out, SPELLING_BYTES, "%s", name);
    for (char *c = out; *c; c++)
        if (*c == '.') *c = '_';
    /* "attn1.processor.to_q": diffusers once kept LoRAs in attention's processors. */
    char *inner = strstr(out, processor);
    if (inner) memmove(inner, inner + strlen(processor), strlen(inner + strlen(processor)) + 1);
    if (target == LORA_DENOISER) {
        ending_replace(out, "_to_out", "_to_out_0");
        return;
    }
    if (strncmp(out, text_model, strlen(text_model)) == 0)
        memmove(out, out + strlen(text_model), strlen(out + strlen(text_model)) + 1);
    ending_replace(out, "self_attn_to_q", "self_attn_q_proj");
    ending_replace(out, "self_attn_to_k", "self_attn_k_proj");
    ending_replace(out, "self_attn_to_v", "self_attn_v_proj");
    ending_replace(out, "self_attn_to_out", "self_attn_out_proj");
}

/* The matrices and kernels of a component by their spelling. */
struct spelt {
    char name[SPELLING_BYTES];
    const struct tensor_view *view;
};

static int spelt_compare(const void *a, const void *b)
{
    return strcmp(((const struct spelt *)a)->name, ((const struct spelt *)b)->name);
}

static int spelt_make(struct spelt **ret, size_t *ret_count, enum lora_target target,
                      const struct tensors *model, struct steer_error *err)
{
    static const char end[] = ".weight";
    size_t count = 0;
    struct spelt *all = calloc(tensors_count(model) + 1, sizeof *all);
    if (!all) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < tensors_count(model); i++) {
        const struct tensor_view *v = tensors_at(model, i);
        size_t n = strlen(v->name), e = sizeof end - 1;
        char module[SPELLING_BYTES];
        if (v->rank < 2 || n <= e || n - e >= sizeof module || strcmp(v->name + n - e, end) != 0)
            continue;
        snprintf(module, sizeof module, "%.*s", (int)(n - e), v->name);
        spell(all[count].name, target, module);
        all[count++].view = v;
    }
    qsort(all, count, sizeof *all, spelt_compare);
    *ret = all;
    *ret_count = count;
    return 0;
}

/* ---- binding ---- */

static int bound_compare(const struct bound *b, enum lora_target target, const char *name)
{
    return b->target != target ? (b->target < target ? -1 : 1) : strcmp(b->name, name);
}

/* Where that weight is, or would be. */
static size_t bound_place(const struct loras *l, enum lora_target target, const char *name)
{
    size_t low = 0, high = l->bounds_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (bound_compare(l->bounds + middle, target, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The weight of that name for another change by that file. */
static int bound_get(struct bound **ret, struct loras *l, size_t file, enum lora_target target,
                     const char *name, struct steer_error *err)
{
    size_t at = bound_place(l, target, name);
    struct bound *b;
    if (at == l->bounds_count || bound_compare(l->bounds + at, target, name) != 0) {
        if (l->bounds_count == l->bounds_room) {
            size_t room = l->bounds_room ? 2 * l->bounds_room : 512;
            struct bound *more = realloc(l->bounds, room * sizeof *more);
            if (!more) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
            l->bounds = more;
            l->bounds_room = room;
        }
        b = l->bounds + at;
        memmove(b + 1, b, (l->bounds_count - at) * sizeof *b);
        *b = (struct bound){.target = target, .name = name};
        l->bounds_count++;
    } else if ((b = l->bounds + at)->file == file) {
        return steer_fail(err, STEER_BAD_MODEL, "%s: it changes \"%.200s\" twice",
                          l->files[file].path, name);
    }
    b->file = file;
    *ret = b;
    return 0;
}

/* How many elements one row of a matrix or kernel has, for both at once: [rows, in] and
 * [rows, in, 1, 1] are the same. */
static int rows_agree(const struct tensor_view *a, const struct tensor_view *b)
{
    for (int i = 1; i < 4; i++) {
        int64_t x = i < a->rank ? a->shape[i] : 1, y = i < b->rank ? b->shape[i] : 1;
        if (x != y) return 0;
    }
    return 1;
}

/* Adds to the model's tensor v what rows [first, first + its rows) of the layer's up say. */
static int layer_bind(struct loras *l, size_t file, const struct lora_layer *layer,
                      const struct tensor_view *v, int64_t first, int is_swapped,
                      struct steer_error *err)
{
    char up[TENSOR_SHAPE_BYTES], down[TENSOR_SHAPE_BYTES], shape[TENSOR_SHAPE_BYTES];
    int64_t rows = v->shape[0];
    if (v->rank > 4 || !rows_agree(&layer->down, v) || first < 0 ||
        rows > layer->up.shape[0] - first || (is_swapped && rows % 2) || layer->rank > INT32_MAX)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: layer \"%.200s\" has up %s and down %s, but the model's \"%.200s\" "
                          "is %s: a LoRA of another model?",
                          l->files[file].path, layer->name,
                          tensor_shape_text(up, layer->up.rank, layer->up.shape),
                          tensor_shape_text(down, layer->down.rank, layer->down.shape), v->name,
                          tensor_shape_text(shape, v->rank, v->shape));
    struct bound *bound = NULL;
    int code = bound_get(&bound, l, file, layer->target, v->name, err);
    if (code) return code;
    struct change *change = calloc(1, sizeof *change);
    if (!change) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    struct low_rank *low = &change->low;
    low->next = bound->first;
    bound->first = low;
    low->up = tensor_stored(&layer->up);
    low->down = tensor_stored(&layer->down);
    low->rank = (int)layer->rank;
    low->scale = (float)(layer->scale * l->weights[file]);
    size_t row = layer->up.bytes / (size_t)layer->up.shape[0];
    low->up.data = (const char *)low->up.data + (size_t)first * row;
    if (is_swapped) {
        size_t half = (size_t)rows / 2 * row;
        if (!(change->copy = malloc(2 * half)))
            return steer_fail(err, STEER_NO_MEMORY, "out of memory");
        memcpy(change->copy, (const char *)low->up.data + half, half);
        memcpy((char *)change->copy + half, low->up.data, half);
        low->up.data = change->copy;
    }
    return 0;
}

/* Binds one layer to the tensors that it changes: one, or several where the original code holds
 * them as one. Where one of them is missing, nothing is bound. */
static int layer_find(struct loras *l, size_t file, struct lora_layer *layer,
                      const struct original_layout *layout, const struct spelt *all, size_t count,
                      struct steer_error *err)
{
    struct original_name name = {.parts = 1};
    const struct tensor_view *views[ORIGINAL_PARTS_MAX];
    if (layout->code == ORIGINAL_NONE || !original_translate(&name, layout, layer->name)) {
        name = (struct original_name){.parts = 1};
        snprintf(name.ours[0], sizeof name.ours[0], "%s", layer->name);
    }
    for (int i = 0; i < name.parts; i++) {
        struct spelt key;
        spell(key.name, layer->target, name.ours[i]);
        const struct spelt *found = bsearch(&key, all, count, sizeof key, spelt_compare);
        if (!found) return 0;
        views[i] = found->view;
    }
    int64_t first = 0;
    for (int i = 0; i < name.parts; i++) {
        int code = layer_bind(l, file, layer, views[i], first, name.form == FORM_SWAPPED, err);
        if (code) return code;
        first += views[i]->shape[0];
    }
    if (first != layer->up.shape[0])
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: layer \"%.200s\" changes %lld rows, but the model has %lld: a LoRA "
                          "of another model?",
                          l->files[file].path, layer->name, (long long)layer->up.shape[0],
                          (long long)first);
    layer->bound = 1;
    return 0;
}

/* Whose names a LoRA of this component may have besides diffusers'. */
static enum original_code code_of(enum lora_target target, const struct tensors *model)
{
    if (target != LORA_DENOISER) return ORIGINAL_NONE;
    if (tensors_find(model, "down_blocks.0.resnets.0.conv1.weight")) return ORIGINAL_UNET;
    return tensors_find(model, "single_transformer_blocks.0.proj_mlp.weight") ? ORIGINAL_FLUX
                                                                              : ORIGINAL_NONE;
}

int loras_bind(struct loras *l, enum lora_target target, const struct tensors *model,
               struct steer_error *err)
{
    struct original_layout layout;
    struct spelt *all = NULL;
    size_t count = 0;
    original_layout_of(&layout, code_of(target, model), model);
    int code = spelt_make(&all, &count, target, model, err);
    for (size_t i = 0; i < l->count && !code; i++)
        for (size_t k = 0; k < l->files[i].count && !code; k++)
            if (l->files[i].layers[k].target == target)
                code = layer_find(l, i, l->files[i].layers + k, &layout, all, count, err);
    free(all);
    return code;
}

/* ---- the whole ---- */

int loras_check(const struct loras *l, struct steer_error *err)
{
    static const char *const targets[] = {"the denoiser", "the text encoder",
                                          "the second text encoder"};
    for (size_t i = 0; i < l->count; i++) {
        const struct lora_file *f = l->files + i;
        const struct lora_layer *lost[3];
        size_t left = 0;
        for (size_t k = 0; k < f->count; k++) {
            const struct lora_layer *layer = f->layers + k;
            if (layer->bound || tensor_is_zero(&layer->up)) continue;
            if (left < 3) lost[left] = layer;
            left++;
        }
        if (!left) continue;
        char some[700] = "";
        for (size_t k = 0, used = 0; k < (left < 3 ? left : 3); k++)
            used += (size_t)snprintf(some + used, sizeof some - used, "%s%.150s of %s",
                                     k ? ", " : "", lost[k]->name, targets[lost[k]->target]);
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: %zu of its %zu layers are not in this model: %s", f->path, left,
                          f->count, some);
    }
    return 0;
}

int loras_open(struct loras **ret, const struct lora_option *files, size_t count,
               struct steer_error *err)
{
    int code = 0;
    struct loras *l = calloc(1, sizeof *l);
    if (l) l->files = calloc(count + 1, sizeof *l->files);
    if (l) l->weights = calloc(count + 1, sizeof *l->weights);
    if (!l || !l->files || !l->weights) code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < count && !code; i++) {
        if (!isfinite(files[i].weight))
            code = steer_fail(err, STEER_BAD_VALUE, "%s: its weight is %g: expected a number",
                              files[i].path, files[i].weight);
        else
            code = lora_file_open(l->files + l->count++, files[i].path, err);
        l->weights[i] = files[i].weight;
    }
    if (code) {
        loras_close(l);
        return code;
    }
    *ret = l;
    return 0;
}

void loras_close(struct loras *l)
{
    if (!l) return;
    for (size_t i = 0; i < l->bounds_count; i++)
        while (l->bounds[i].first) {
            struct change *change = (struct change *)l->bounds[i].first;
            l->bounds[i].first = (struct low_rank *)(uintptr_t)change->low.next;
            free(change->copy);
            free(change);
        }
    for (size_t i = 0; i < l->count; i++)
        lora_file_close(l->files + i);
    free(l->bounds);
    free(l->files);
    free(l->weights);
    free(l);
}

const struct low_rank *loras_find(const struct loras *l, enum lora_target target, const char *name)
{
    size_t at = bound_place(l, target, name);
    if (at == l->bounds_count || bound_compare(l->bounds + at, target, name) != 0) return NULL;
    return l->bounds[at].first;
}

int loras_current(const struct loras *l, struct steer_error *err)
{
    int code = 0;
    for (size_t i = 0; i < l->count && !code; i++)
        code = tensors_check(l->files[i].tensors, err);
    return code;
}

int loras_whole(const struct loras *l, struct steer_error *err)
{
    int code = 0;
    for (size_t i = 0; i < l->count && !code; i++)
        code = tensors_whole(l->files[i].tensors, err);
    return code;
}

size_t loras_count(const struct loras *l)
{
    return l->count;
}

const struct tensors *loras_tensors(const struct loras *l, size_t i)
{
    return l->files[i].tensors;
}
