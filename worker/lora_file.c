// SPDX-License-Identifier: Apache-2.0
#include "lora_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

enum role { ROLE_DOWN, ROLE_UP, ROLE_ALPHA, ROLES };

/* What a key ends with, and what that tensor is. */
static const struct {
    const char *end;
    enum role role;
} ends[] = {
    {".lora_linear_layer.down.weight", ROLE_DOWN},
    {".lora_linear_layer.up.weight", ROLE_UP},
    {".lora_A.default.weight", ROLE_DOWN},
    {".lora_B.default.weight", ROLE_UP},
    {".lora_A.weight", ROLE_DOWN},
    {".lora_B.weight", ROLE_UP},
    {".lora_down.weight", ROLE_DOWN},
    {".lora_up.weight", ROLE_UP},
    {".lora.down.weight", ROLE_DOWN},
    {".lora.up.weight", ROLE_UP},
    {"_lora.down.weight", ROLE_DOWN},
    {"_lora.up.weight", ROLE_UP},
    {".alpha", ROLE_ALPHA},
};

/* What a key begins with, which part of the model it means and what peft's configuration calls that
 * part. Without any of them it is the denoiser: files of early trainings. */
#define PEFT_PREFIX "base_model.model."
static const struct {
    const char *prefix;
    enum lora_target target;
    const char *part;
} prefixes[] = {
    {"lora_unet_", LORA_DENOISER, "unet"},
    {"lora_transformer_", LORA_DENOISER, "transformer"},
    {"lora_te1_", LORA_TEXT, "text_encoder"},
    {"lora_te2_", LORA_TEXT_2, "text_encoder_2"},
    {"lora_te_", LORA_TEXT, "text_encoder"},
    {"unet.", LORA_DENOISER, "unet"},
    {"transformer.", LORA_DENOISER, "transformer"},
    {"text_encoder.", LORA_TEXT, "text_encoder"},
    {"text_encoder_2.", LORA_TEXT_2, "text_encoder_2"},
    {"text_encoders.clip_l.transformer.", LORA_TEXT, "text_encoder"},
    {"model.diffusion_model.", LORA_DENOISER, "transformer"},
    {"diffusion_model.", LORA_DENOISER, "transformer"},
    {PEFT_PREFIX, LORA_DENOISER, ""},
    {"", LORA_DENOISER, "unet"},
};

/* Parts of keys that mean something else than W + up @ down. */
static const struct {
    const char *part, *method;
} others[] = {
    {".dora_scale", "DoRA"},
    {".lora_magnitude_vector", "DoRA"},
    {".hada_w", "LoHa"},
    {".lokr_w", "LoKr"},
    {".oft_", "OFT"},
    {".lora_mid", "LoCon with a Tucker decomposition"},
    {".lora_embedding_", "a change of an embedding"},
    {".vera_lambda", "VeRA"},
    {".on_input", "IA3"},
    {".diff_b", "a change of a bias"},
    {".diff", "a full difference"},
    {".w_norm", "a change of a norm"},
    {".b_norm", "a change of a norm"},
    {".lora_B.bias", "a change of a bias"},
    {".lora_up.bias", "a change of a bias"},
};

/* peft's configuration, from a file's metadata or from adapter_config.json beside it. */
struct config {
    json_t *root; /* NULL: there is none */
    int by_part;  /* its keys begin with the part: "unet.lora_alpha" */
    char path[1200];
};

/* ---- numbers in tensors ---- */

/* The one number of a tensor; NAN when it is none, or of a type that alpha never has. */
static double number(const struct tensor_view *v)
{
    if (v->bytes != tensor_dtype_bytes(v->dtype)) return NAN;
    double f64;
    float f32;
    int64_t i64;
    switch (v->dtype) {
    case TENSOR_F64: memcpy(&f64, v->data, sizeof f64); return f64;
    case TENSOR_I64: memcpy(&i64, v->data, sizeof i64); return (double)i64;
    case TENSOR_F32:
    case TENSOR_F16:
    case TENSOR_BF16: stored_to_f32(&f32, tensor_stored(v), 0, 1); return (double)f32;
    default: return NAN;
    }
}

/* ---- keys ---- */

/* A key without what it ends with; entries are sorted by it, so that a layer's stand together. */
struct entry {
    char *name;
    enum role role;
    const struct tensor_view *view;
};

static int entry_compare(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static int entry_make(struct entry *ret, const struct lora_file *f, const struct tensor_view *v,
                      struct steer_error *err)
{
    size_t n = strlen(v->name);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strstr(v->name, others[i].part))
            return steer_fail(err, STEER_UNSUPPORTED,
                              "%s: key \"%.200s\" is %s: only LoRA (up and down matrices) is read",
                              f->path, v->name, others[i].method);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t end = strlen(ends[i].end);
        if (n <= end || strcmp(v->name + n - end, ends[i].end) != 0) continue;
        *ret = (struct entry){.name = strndup(v->name, n - end), .role = ends[i].role, .view = v};
        return ret->name ? 0 : steer_fail(err, STEER_NO_MEMORY, "out of memory");
    }
    return steer_fail(err, STEER_UNSUPPORTED,
                      "%s: key \"%.200s\" is none that a LoRA file has (.lora_down.weight, "
                      ".lora_A.weight, ...)",
                      f->path, v->name);
}

/* ---- peft's configuration ---- */

static int config_read(struct config *c, const struct lora_file *f, struct steer_error *err)
{
    static const char key[] = "lora_adapter_metadata";
    const char *text = tensors_metadata(f->tensors, key);
    if (text) {
        c->by_part = 1;
        snprintf(c->path, sizeof c->path, "%.1100s: \"%s\"", f->path, key);
        return json_bytes_load(&c->root, text, strlen(text), c->path, err);
    }
    size_t prefix = strlen(PEFT_PREFIX);
    if (!tensors_count(f->tensors) ||
        strncmp(tensors_at(f->tensors, 0)->name, PEFT_PREFIX, prefix) != 0)
        return 0;
    const char *slash = strrchr(f->path, '/');
    snprintf(c->path, sizeof c->path, "%.*s/adapter_config.json",
             slash ? (int)(slash - f->path) : 1, slash ? f->path : ".");
    if (access(c->path, F_OK))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: an adapter of peft, but there is no %s to say its lora_alpha",
                          f->path, c->path);
    return json_file_load(&c->root, c->path, err);
}

static const json_t *config_get(const struct config *c, const char *part, const char *key)
{
    char full[96];
    snprintf(full, sizeof full, "%s%s%s", c->by_part ? part : "", c->by_part ? "." : "", key);
    return json_object_get(c->root, full);
}

/* Whether name is key or ends with ".key". */
static int name_ends(const char *name, const char *key)
{
    size_t n = strlen(name), k = strlen(key);
    return n >= k && strcmp(name + n - k, key) == 0 && (n == k || name[n - k - 1] == '.');
}

/* alpha / rank as the configuration says it. */
static int config_scale(const struct config *c, const char *part, struct lora_layer *layer,
                        struct steer_error *err)
{
    static const char *const refused[] = {"use_dora", "lora_bias", "fan_in_fan_out"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (json_is_true(config_get(c, part, refused[i])))
            return steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" is true: expected false", c->path,
                              refused[i]);
    const char *bias = json_string_value(config_get(c, part, "bias"));
    if (bias && strcmp(bias, "none") != 0)
        return steer_fail(err, STEER_UNSUPPORTED, "%s: \"bias\" is \"%.40s\": expected none",
                          c->path, bias);
    const json_t *alpha = config_get(c, part, "lora_alpha");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)config_get(c, part, "alpha_pattern"), key, value)
    {
        if (strpbrk(key, "^$\\*+?()[]{}|"))
            return steer_fail(err, STEER_UNSUPPORTED,
                              "%s: \"alpha_pattern\" has \"%.100s\": expected names of layers",
                              c->path, key);
        if (name_ends(layer->name, key)) alpha = value;
    }
    if (!alpha) return 0;
    if (!json_is_number(alpha))
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"lora_alpha\": expected a number", c->path);
    double rank = (double)layer->rank;
    layer->scale = json_number_value(alpha) /
                   (json_is_true(config_get(c, part, "use_rslora")) ? sqrt(rank) : rank);
    return 0;
}

/* ---- layers ---- */

static int matrix_check(const struct lora_file *f, const struct tensor_view *v, int64_t rank,
                        struct steer_error *err)
{
    char shape[TENSOR_SHAPE_BYTES];
    if (!tensor_stored(v).data)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: tensor \"%.200s\" has dtype %s: expected F32, F16 or BF16", f->path,
                          v->name, tensor_dtype_name(v->dtype));
    int is_up = rank > 0;
    if ((v->rank != 2 && v->rank != 4) || !v->bytes || (is_up && v->shape[1] != rank) ||
        (is_up && v->rank == 4 && v->shape[2] * v->shape[3] != 1))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: tensor \"%.200s\" has shape %s: expected %s for a rank of %lld",
                          f->path, v->name, tensor_shape_text(shape, v->rank, v->shape),
                          is_up ? "[out, rank] or [out, rank, 1, 1]" : "[rank, in] or a kernel's",
                          (long long)rank);
    return 0;
}

/* Makes a layer of the entries of one name. */
static int layer_make(struct lora_layer *ret, const struct lora_file *f, const struct config *c,
                      const char *name, const struct tensor_view *const views[ROLES],
                      struct steer_error *err)
{
    size_t i = 0;
    while (strncmp(name, prefixes[i].prefix, strlen(prefixes[i].prefix)) != 0)
        i++; /* the last matches all */
    if (!views[ROLE_DOWN] || !views[ROLE_UP])
        return steer_fail(err, STEER_BAD_MODEL, "%s: layer \"%.200s\" has no %s matrix", f->path,
                          name, views[ROLE_DOWN] ? "up" : "down");
    struct lora_layer layer = {.target = prefixes[i].target,
                               .name = strdup(name + strlen(prefixes[i].prefix)),
                               .down = *views[ROLE_DOWN],
                               .up = *views[ROLE_UP]};
    *ret = layer;
    if (!layer.name) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = matrix_check(f, &layer.down, 0, err);
    ret->rank = layer.down.shape[0];
    ret->scale = 1;
    if (code || (code = matrix_check(f, &layer.up, ret->rank, err))) return code;
    if (views[ROLE_ALPHA])
        ret->scale = number(views[ROLE_ALPHA]) / (double)ret->rank;
    else if (c->root && (code = config_scale(c, prefixes[i].part, ret, err)))
        return code;
    if (!isfinite(ret->scale))
        return steer_fail(err, STEER_BAD_MODEL, "%s: layer \"%.200s\": its alpha is no number",
                          f->path, name);
    return 0;
}

static int layers_make(struct lora_file *f, const struct config *c, const struct entry *entries,
                       size_t count, struct steer_error *err)
{
    for (size_t i = 0; i < count;) {
        const struct tensor_view *views[ROLES] = {NULL};
        size_t first = i;
        for (; i < count && strcmp(entries[i].name, entries[first].name) == 0; i++) {
            if (views[entries[i].role])
                return steer_fail(err, STEER_BAD_MODEL, "%s: layer \"%.200s\" is there twice",
                                  f->path, entries[i].name);
            views[entries[i].role] = entries[i].view;
        }
        int code = layer_make(f->layers + f->count++, f, c, entries[first].name, views, err);
        if (code) return code;
    }
    return 0;
}

int lora_file_open(struct lora_file *f, const char *path, struct steer_error *err)
{
    *f = (struct lora_file){.path = strdup(path)};
    if (!f->path) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    struct config config = {0};
    int code = tensors_open(&f->tensors, path, err);
    if (code || (code = config_read(&config, f, err))) return code;
    size_t count = tensors_count(f->tensors), used = 0;
    struct entry *entries = calloc(count + 1, sizeof *entries);
    f->layers = calloc(count + 1, sizeof *f->layers);
    if (!entries || !f->layers) code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < count && !code; i++) {
        const struct tensor_view *v = tensors_at(f->tensors, i);
        /* Tools write differences that training has not touched: they change nothing. */
        if (strstr(v->name, ".diff") && tensor_is_zero(v)) continue;
        if (!(code = entry_make(entries + used, f, v, err))) used++;
    }
    if (!code) qsort(entries, used, sizeof *entries, entry_compare);
    if (!code) code = layers_make(f, &config, entries, used, err);
    if (!code && !f->count)
        code = steer_fail(err, STEER_BAD_MODEL, "%s: there is no LoRA in it", path);
    for (size_t i = 0; i < used; i++)
        free(entries[i].name);
    free(entries);
    json_decref(config.root);
    return code;
}

void lora_file_close(struct lora_file *f)
{
    for (size_t i = 0; i < f->count; i++)
        free(f->layers[i].name);
    free(f->layers);
    free(f->path);
    tensors_close(f->tensors);
}
