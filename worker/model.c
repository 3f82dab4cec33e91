// SPDX-License-Identifier: Apache-2.0
#include "model.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "file.h"
#include "json.h"
#include "safetensors.h"

#define PATH_BYTES 1400

/* ---- the folder's hash ---- */

/* Hashes of tensor files by what tells that a file is still the same: a worker that looks at its
 * folders again does not read gigabytes again. */
struct known {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec changed;
    XXH128_hash_t hash;
};
#define KNOWN_MAX 256
static struct known known[KNOWN_MAX];
static size_t known_count;
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;

/* 1 and *hash filled when it is there; else adds *hash when add says so. */
static int known_hash(const struct stat *st, XXH128_hash_t *hash, int add)
{
    int found = 0;
    pthread_mutex_lock(&known_lock);
    for (size_t i = 0; i < known_count && !found; i++) {
        const struct known *k = known + i;
        found = k->device == st->st_dev && k->inode == st->st_ino && k->size == st->st_size &&
                k->changed.tv_sec == st->st_mtim.tv_sec &&
                k->changed.tv_nsec == st->st_mtim.tv_nsec;
        if (found) *hash = k->hash;
    }
    if (!found && add && known_count < KNOWN_MAX)
        known[known_count++] =
            (struct known){st->st_dev, st->st_ino, st->st_size, st->st_mtim, *hash};
    pthread_mutex_unlock(&known_lock);
    return found;
}

static int file_hash(XXH128_hash_t *ret, size_t *bytes, const char *path, struct steer_error *err)
{
    enum { WINDOW = 1 << 20 };
    struct stat st;
    int fd, code = file_open(&fd, &st, path, err);
    if (code) return code;
    *bytes += (size_t)st.st_size;
    if (known_hash(&st, ret, 0)) {
        close(fd);
        return 0;
    }
    XXH3_state_t *state = XXH3_createState();
    char *window = malloc(WINDOW);
    if (!state || !window) code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if (state) XXH3_128bits_reset(state);
    for (ssize_t n = 1; !code && n;) {
        n = read(fd, window, WINDOW);
        if (n > 0) XXH3_128bits_update(state, window, (size_t)n);
        if (n < 0 && errno != EINTR)
            code = steer_fail(err, STEER_IO, "%s: %s", path, strerror(errno));
    }
    if (!code) {
        *ret = XXH3_128bits_digest(state);
        known_hash(&st, ret, 1);
    }
    XXH3_freeState(state);
    free(window);
    close(fd);
    return code;
}

static int hash_add(XXH3_state_t *state, const char *name, const char *path, size_t *bytes,
                    struct steer_error *err)
{
    XXH128_hash_t hash;
    int code = file_hash(&hash, bytes, path, err);
    if (code) return code;
    XXH3_128bits_update(state, name, strlen(name) + 1);
    XXH3_128bits_update(state, &hash, sizeof hash);
    return 0;
}

/* Over the names and bytes of what the loader reads, and of nothing that lies beside it. */
static int model_hash(struct model *m, struct steer_error *err)
{
    static const char *const configs[] = {"model_index.json",
                                          "steer.json",
                                          "scheduler/scheduler_config.json",
                                          "text_encoder/config.json",
                                          "unet/config.json",
                                          "vae/config.json",
                                          "tokenizer/tokenizer.json",
                                          "tokenizer/vocab.json",
                                          "tokenizer/merges.txt",
                                          "tokenizer/tokenizer_config.json",
                                          "tokenizer/special_tokens_map.json",
                                          "tokenizer/added_tokens.json"};
    const struct params *params[] = {m->clip_params, m->unet_params, m->vae_params};
    XXH3_state_t *state = XXH3_createState();
    if (!state) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    XXH3_128bits_reset(state);
    int code = 0;
    size_t small = 0;
    char path[PATH_BYTES];
    for (size_t i = 0; i < sizeof configs / sizeof *configs && !code; i++) {
        snprintf(path, sizeof path, "%s/%s", m->dir, configs[i]);
        if (access(path, F_OK) == 0) code = hash_add(state, configs[i], path, &small, err);
    }
    for (int part = 0; part < 3; part++) {
        const struct tensors *files = params_files(params[part]);
        for (size_t i = 0; i < tensors_files(files) && !code; i++) {
            const char *file = tensors_file_path(files, i);
            code = hash_add(state, file + strlen(m->dir), file, &m->file_bytes, err);
        }
    }
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    snprintf(m->hash, sizeof m->hash, "%016llx%016llx", (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
    return code;
}

/* ---- model_index.json ---- */

/* The class of a component, or NULL when the index leaves it out ([null, null], null, absent). */
static const char *component(const json_t *index, const char *name)
{
    const json_t *pair = json_object_get(index, name);
    return json_is_array(pair) ? json_string_value(json_array_get(pair, 1)) : NULL;
}

static int component_is(const json_t *index, const char *file, const char *name,
                        const char *const *classes, const char *expected, const char **ret,
                        struct steer_error *err)
{
    const char *class_name = component(index, name);
    if (!class_name)
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"%s\" is missing: expected %s", file, name,
                          expected);
    for (int i = 0; classes[i]; i++) {
        if (strcmp(class_name, classes[i]) != 0) continue;
        if (ret) *ret = classes[i];
        return 0;
    }
    return steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" is a %s: expected %s", file, name,
                      class_name, expected);
}

static int index_check(const json_t *index, const char *file, const char **ret_vae,
                       struct steer_error *err)
{
    static const char *const tokenizers[] = {"CLIPTokenizer", "CLIPTokenizerFast", NULL};
    static const char *const encoders[] = {"CLIPTextModel", NULL};
    static const char *const unets[] = {"UNet2DConditionModel", NULL};
    static const char *const vaes[] = {"AutoencoderKL", "AutoencoderTiny", NULL};
    static const char *const others[] = {"transformer", "text_encoder_2", "prior", "controlnet"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (component(index, others[i]))
            return steer_fail(
                err, STEER_UNSUPPORTED,
                "%s: it has a \"%s\": expected a model of the Stable Diffusion 1.5 family", file,
                others[i]);
    int code;
    if ((code = component_is(index, file, "unet", unets, "UNet2DConditionModel", NULL, err)) ||
        (code = component_is(index, file, "text_encoder", encoders, "CLIPTextModel", NULL, err)) ||
        (code = component_is(index, file, "tokenizer", tokenizers, "CLIPTokenizer", NULL, err)))
        return code;
    return component_is(index, file, "vae", vaes, "AutoencoderKL or AutoencoderTiny", ret_vae, err);
}

/* ---- components ---- */

static int config_load(json_t **ret, const struct model *m, const char *part, char path[PATH_BYTES],
                       struct steer_error *err)
{
    snprintf(path, PATH_BYTES, "%s/%s/config.json", m->dir, part);
    return json_file_load(ret, path, err);
}

/* The plain weights win over any variant beside them; a folder that has only fp16 files is read.
 * Where there are shards and a single file, diffusers takes the shards and transformers the file.
 */
static int weights_open(struct tensors **ret, const struct model *m, const char *part,
                        const char *base, struct steer_error *err)
{
    static const char *const file_first[] = {".safetensors", ".safetensors.index.json",
                                             ".fp16.safetensors", ".safetensors.index.fp16.json"},
                             *const shards_first[] = {".safetensors.index.json", ".safetensors",
                                                      ".safetensors.index.fp16.json",
                                                      ".fp16.safetensors"};
    const char *const *endings = strcmp(base, "model") == 0 ? file_first : shards_first;
    char path[PATH_BYTES];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s/%s%s", m->dir, part, base, endings[i]);
        if (access(path, F_OK) == 0) return tensors_open(ret, path, err);
    }
    return steer_fail(err, STEER_BAD_MODEL,
                      "%s/%s: there is no %s.safetensors (nor .safetensors.index.json)", m->dir,
                      part, base);
}

static int params_open(struct params **ret, const struct model *m, struct compute *c,
                       const char *part, const char *base, struct steer_error *err)
{
    struct tensors *files = NULL;
    int code = weights_open(&files, m, part, base, err);
    if (code) return code;
    code = params_new(ret, c, &files);
    if (code) {
        tensors_close(files);
        return steer_fail(err, code, "out of memory");
    }
    return 0;
}

/* Records every component once, at the default size, so that a missing tensor or a wrong shape is
 * told now and not at the first image. */
static int dry_run(struct model *m, struct steer_error *err)
{
    struct shape size = {1, m->height / m->factor, m->width / m->factor, 0};
    for (int part = 0; part < 3; part++) {
        struct params *params[] = {m->clip_params, m->unet_params, m->vae_params};
        static const char *const names[] = {"text_encoder", "unet", "vae"};
        struct net n = {params[part], graph_new()};
        if (!n.graph) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
        struct clip_graph clip;
        struct vae_graph vae;
        if (part == 0) clip_record(&clip, &n, &m->clip, 1, m->tokens);
        if (part == 1)
            unet_record(&m->layers, &n, &m->unet, size, m->tokens, m->tokens, GUIDANCE_NASA);
        if (part == 2) vae_record(&vae, &n, &m->vae, size);
        int code = params_error(n.params, err);
        if (!code && part == 1) {
            struct unet_text_graph text;
            struct net projections = {params[part], graph_new()};
            if (projections.graph) unet_record_text(&text, &projections, &m->layers, m->tokens);
            graph_free(projections.graph);
            code = params_error(n.params, err);
        }
        graph_free(n.graph);
        if (code) return steer_fail_in(err, code, "%s/%s", m->dir, names[part]);
    }
    return 0;
}

static int tokenizer_open(struct model *m, struct steer_error *err)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/tokenizer", m->dir);
    int code = clip_bpe_open(&m->tokenizer, path, err);
    if (code) return code;
    int most = clip_bpe_length(m->tokenizer);
    m->tokens = most > 0 && most < m->clip.positions ? most : m->clip.positions;
    if (m->tokens > CLIP_BPE_TOKENS_MAX) m->tokens = CLIP_BPE_TOKENS_MAX;
    return 0;
}

/* In pixels; 64 cells where the U-Net does not say, 512 pixels where it says too many. */
static int side_default(int cells, int factor)
{
    int multiple = factor > 8 ? factor : 8, side = (cells ? cells : 64) * factor;
    if (side > STEER_SIDE_MAX || (uint64_t)side * (uint64_t)side > STEER_PIXELS_MAX) side = 512;
    return side < multiple ? multiple : side / multiple * multiple;
}

static int configs_read(struct model *m, struct steer_error *err)
{
    char path[PATH_BYTES];
    json_t *index = NULL, *clip = NULL, *unet = NULL, *vae = NULL, *hint = NULL;
    const char *vae_class = NULL;
    struct stat st;
    if (stat(m->dir, &st) || !S_ISDIR(st.st_mode))
        return steer_fail(err, STEER_NOT_FOUND, "model folder %s does not exist", m->dir);
    snprintf(path, sizeof path, "%s/model_index.json", m->dir);
    if (access(path, F_OK))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: there is no model_index.json: expected a diffusers folder", m->dir);
    int code;
    if ((code = json_file_load(&index, path, err)) ||
        (code = index_check(index, path, &vae_class, err)) ||
        (code = config_load(&clip, m, "text_encoder", path, err)) ||
        (code = clip_config_load(&m->clip, clip, path, err)) ||
        (code = config_load(&unet, m, "unet", path, err)) ||
        (code = unet_config_load(&m->unet, unet, path, err)) ||
        (code = config_load(&vae, m, "vae", path, err)) ||
        (code = vae_config_load(&m->vae, vae, vae_class, path, err)))
        goto done;
    if (m->vae.latent_channels != m->unet.in_channels) {
        code =
            steer_fail(err, STEER_BAD_MODEL, "%s: the U-Net has %d latent channels and the VAE %d",
                       m->dir, m->unet.in_channels, m->vae.latent_channels);
        goto done;
    }
    if (unet_text_channels(&m->unet) != m->clip.channels) {
        code = steer_fail(err, STEER_BAD_MODEL,
                          "%s: the U-Net's cross_attention_dim is %d and the text encoder's "
                          "hidden_size %d: expected the same",
                          m->dir, unet_text_channels(&m->unet), m->clip.channels);
        goto done;
    }
    snprintf(m->scheduler_file, sizeof m->scheduler_file, "%s/scheduler/scheduler_config.json",
             m->dir);
    if (access(m->scheduler_file, F_OK) == 0 &&
        (code = json_file_load(&m->scheduler, m->scheduler_file, err)))
        goto done;
    /* diffusers makes the class that the index names, of whatever keys the file has. */
    const char *scheduler = component(index, "scheduler");
    if (m->scheduler && scheduler &&
        json_object_set_new(m->scheduler, "_class_name", json_string(scheduler))) {
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
        goto done;
    }

    m->factor = vae_factor(&m->vae);
    m->width = side_default(m->unet.sample_width, m->factor);
    m->height = side_default(m->unet.sample_height, m->factor);

    /* A folder may say which recipe it wants; otherwise the scheduler's class tells. */
    scheduler = json_string_value(json_object_get(m->scheduler, "_class_name"));
    int lcm = scheduler && strcmp(scheduler, "LCMScheduler") == 0;
    const char *recipe = !lcm ? "sd15" : m->unet.guidance_channels ? "lcm-full" : "lcm";
    snprintf(path, sizeof path, "%s/steer.json", m->dir);
    if (access(path, F_OK) == 0) {
        if ((code = json_file_load(&hint, path, err))) goto done;
        const char *wanted = json_string_value(json_object_get(hint, "recipe"));
        if (!wanted || strlen(wanted) > STEER_NAME_BYTES_MAX) {
            code =
                steer_fail(err, STEER_BAD_MODEL, "%s: \"recipe\": expected a recipe's name", path);
            goto done;
        }
        snprintf(m->default_recipe, sizeof m->default_recipe, "%s", wanted);
    } else {
        snprintf(m->default_recipe, sizeof m->default_recipe, "%s", recipe);
    }
done:
    json_decref(index);
    json_decref(clip);
    json_decref(unet);
    json_decref(vae);
    json_decref(hint);
    return code;
}

int model_open(struct model **ret, const char *dir, struct compute *c, struct steer_error *err)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = 0;
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (!n || n >= sizeof m->dir) {
        code = steer_fail(err, STEER_BAD_MODEL,
                          "a model folder's path has %zu bytes: expected 1 to %zu", n,
                          sizeof m->dir - 1);
        goto fail;
    }
    memcpy(m->dir, dir, n);
    /* The name that people see in the folder, which for a link is the link's own. */
    char full[sizeof m->dir];
    size_t length = (size_t)snprintf(full, sizeof full, "%s", m->dir);
    while (length > 1 && full[length - 1] == '/')
        full[--length] = 0;
    const char *slash = strrchr(full, '/'), *base = slash ? slash + 1 : full;
    char *real = *base && strcmp(base, ".") && strcmp(base, "..") ? NULL : realpath(full, NULL);
    if (real) base = strrchr(real, '/') + 1;
    snprintf(m->name, sizeof m->name, "%.*s", STEER_NAME_BYTES_MAX, *base ? base : "model");
    free(real);
    if ((code = configs_read(m, err)) || (code = tokenizer_open(m, err)) ||
        (code = params_open(&m->clip_params, m, c, "text_encoder", "model", err)) ||
        (code = params_open(&m->unet_params, m, c, "unet", "diffusion_pytorch_model", err)) ||
        (code = params_open(&m->vae_params, m, c, "vae", "diffusion_pytorch_model", err)) ||
        (code = dry_run(m, err)) || (code = model_hash(m, err)))
        goto fail;
    *ret = m;
    return 0;
fail:
    model_close(m);
    return code;
}

static void params_close(struct model *m)
{
    params_free(m->clip_params);
    params_free(m->unet_params);
    params_free(m->vae_params);
    m->clip_params = m->unet_params = m->vae_params = NULL;
}

int model_inspect(struct model **ret, const char *dir, struct steer_error *err)
{
    int code = model_open(ret, dir, NULL, err);
    if (!code) params_close(*ret);
    return code;
}

void model_close(struct model *m)
{
    if (!m) return;
    params_close(m);
    clip_bpe_close(m->tokenizer);
    json_decref(m->scheduler);
    free(m);
}

int model_recipe(const struct model *m, const char *name, struct recipe *ret,
                 struct steer_error *err)
{
    return recipe_load(ret, name && *name ? name : m->default_recipe, m->scheduler,
                       m->scheduler ? m->scheduler_file : NULL, err);
}

int model_size_check(const struct model *m, int width, int height, struct steer_error *err)
{
    int multiple = m->factor > 8 ? m->factor : 8;
    if (width < multiple || height < multiple || width > STEER_SIDE_MAX ||
        height > STEER_SIDE_MAX || width % multiple || height % multiple)
        return steer_fail(err, STEER_BAD_SIZE, "size %dx%d: expected multiples of %d from %d to %d",
                          width, height, multiple, multiple, STEER_SIDE_MAX);
    if ((uint64_t)width * (uint64_t)height > STEER_PIXELS_MAX)
        return steer_fail(err, STEER_BAD_SIZE, "size %dx%d: expected at most %llu pixels", width,
                          height, STEER_PIXELS_MAX);
    return 0;
}
