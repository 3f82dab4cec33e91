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
#include "model_file.h"
#include "tensors.h"

/* ---- the hash ---- */

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

static int file_hash(XXH128_hash_t *ret, const char *path, struct steer_error *err)
{
    enum { WINDOW = 1 << 20 };
    struct stat st;
    int fd, code = file_open(&fd, &st, path, err);
    if (code) return code;
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

struct hashing {
    const struct model *m;
    XXH3_state_t *state;
    int code;
    struct steer_error *err;
};

/* name: what it is to the model, wherever it lies. */
static void hash_add(struct hashing *h, const char *name, const char *path)
{
    XXH128_hash_t hash;
    if (h->code || (h->code = file_hash(&hash, path, h->err))) return;
    XXH3_128bits_update(h->state, name, strlen(name) + 1);
    XXH3_128bits_update(h->state, &hash, sizeof hash);
}

static void hash_config(struct hashing *h, const char *part, const char *name)
{
    char path[FOLDER_PATH_BYTES], as[FOLDER_PATH_BYTES];
    folder_path(path, &h->m->folder, part, name);
    snprintf(as, sizeof as, "%s%s%s", part, *part ? "/" : "", name);
    if (access(path, F_OK) == 0) hash_add(h, as, path);
}

static void hash_tensors(struct hashing *h, const char *part, const struct tensors *files)
{
    char as[FOLDER_PATH_BYTES];
    for (size_t i = 0; i < tensors_files(files); i++) {
        const char *file = tensors_file_path(files, i), *slash = strrchr(file, '/');
        snprintf(as, sizeof as, "/%s/%s", part, slash ? slash + 1 : file);
        hash_add(h, as, file);
    }
}

/* What a model file says, and what it names besides the parts. */
static void hash_model_file(struct hashing *h)
{
    hash_add(h, "model file", h->m->folder.file->path);
    for (size_t i = 0; h->m->loras && i < loras_count(h->m->loras); i++)
        hash_tensors(h, "loras", loras_tensors(h->m->loras, i));
    if (h->m->mean) hash_add(h, "mean_latent", h->m->folder.file->mean_latent);
}

/* Over the names and bytes of what the loader reads, and of nothing that lies beside it. */
static int model_hash(struct model *m, struct steer_error *err)
{
    struct hashing h = {.m = m, .state = XXH3_createState(), .err = err};
    if (!h.state) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    XXH3_128bits_reset(h.state);
    hash_config(&h, "", "model_index.json");
    hash_config(&h, "", "steer.json");
    hash_config(&h, "scheduler", "scheduler_config.json");
    for (int i = 0; i < m->encoders_count; i++)
        hash_config(&h, m->encoders[i].part, "config.json");
    hash_config(&h, m->denoiser_part, "config.json");
    hash_config(&h, "vae", "config.json");
    for (int i = 0; i < m->encoders_count; i++)
        for (const char *const *file = tokenizer_files(m->encoders[i].tokenizer); *file; file++)
            hash_config(&h, m->encoders[i].tokenizer_part, *file);
    for (int i = 0; i < m->encoders_count; i++)
        hash_tensors(&h, m->encoders[i].part, params_files(m->encoders[i].params));
    hash_tensors(&h, m->denoiser_part, params_files(m->denoiser_params));
    hash_tensors(&h, "vae", params_files(m->vae_params));
    if (m->folder.file) hash_model_file(&h);
    XXH128_hash_t hash = XXH3_128bits_digest(h.state);
    XXH3_freeState(h.state);
    snprintf(m->hash, sizeof m->hash, "%016llx%016llx", (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
    return h.code;
}

/* ---- graphs ---- */

void model_record_text(const struct model *m, struct text_graph *ret, struct net *n)
{
    text_graph_begin(ret, n->graph, &m->text);
    m->family->record_text(m, ret, n);
}

void model_record_denoiser(const struct model *m, struct denoiser_graph *ret, struct net *n,
                           struct shape size, struct text_chunks texts, enum guidance_method method,
                           enum guidance_variant variant)
{
    struct denoiser_size s = {.batch = size.b,
                              .height = size.h,
                              .width = size.w,
                              .tokens_positive = texts.positive * m->text.tokens,
                              .tokens_negative = texts.negative * m->text.tokens,
                              .method = method,
                              .variant = variant,
                              .channels = m->latent_channels,
                              .guidance_channels = m->guidance_channels,
                              .sizes = m->sizes};
    denoiser_graph_begin(ret, n->graph, &s);
    m->family->record_denoiser(m, ret, n, &s);
}

/* ---- parts ---- */

enum dry_part { DRY_ENCODER, DRY_DENOISER, DRY_TEXT, DRY_VAE };

/* Records one part once, at the default size, so that a missing tensor or a wrong shape is told now
 * and not at the first image. */
static int dry_record(const struct model *m, enum dry_part part, const struct text_encoder *e,
                      struct params *params, const char *name, struct steer_error *err)
{
    struct shape size = {1, m->height / m->factor, m->width / m->factor, 0};
    struct text_chunks one = {1, 1};
    struct net n = {params, graph_new()};
    struct encoder_graph encoder;
    struct denoiser_graph denoiser;
    struct text_graph text;
    struct vae_graph vae;
    if (!n.graph) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    switch (part) {
    case DRY_ENCODER: text_encoder_record(&encoder, &n, e); break;
    case DRY_DENOISER:
        model_record_denoiser(m, &denoiser, &n, size, one, GUIDANCE_NASA, GUIDANCE_TEXT);
        break;
    case DRY_TEXT: model_record_text(m, &text, &n); break;
    case DRY_VAE: vae_record(&vae, &n, &m->vae, size); break;
    }
    int code = params_error(params, err);
    char source[2 * FOLDER_PATH_BYTES];
    graph_free(n.graph);
    folder_source(source, &m->folder, name);
    return code ? steer_fail_in(err, code, "%s", source) : 0;
}

static int dry_run(const struct model *m, struct steer_error *err)
{
    int code = 0;
    for (int i = 0; i < m->encoders_count && !code; i++) {
        const struct text_encoder *e = m->encoders + i;
        code = dry_record(m, DRY_ENCODER, e, e->params, e->part, err);
    }
    if (!code) code = dry_record(m, DRY_DENOISER, NULL, m->denoiser_params, m->denoiser_part, err);
    if (!code) code = dry_record(m, DRY_TEXT, NULL, m->denoiser_params, m->denoiser_part, err);
    return code ? code : dry_record(m, DRY_VAE, NULL, m->vae_params, "vae", err);
}

/* What the encoders together give: states side by side, rows of the same texts. */
static int text_size_read(struct model *m, struct steer_error *err)
{
    const struct text_encoder *first = NULL;
    m->text = (struct text_size){0};
    for (int i = 0; i < m->encoders_count; i++) {
        const struct text_encoder *e = m->encoders + i;
        if (e->pooled != POOLED_NONE) m->text.pooled_channels = e->pooled_channels;
        if (e->states == STATES_NONE) continue;
        m->text.channels += e->channels;
        m->text.tokens = e->tokens;
        m->text.masked = e->masked;
        if (first && first->tokens != e->tokens)
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: %s takes %d tokens and %s %d: expected the same", m->folder.dir,
                              first->part, first->tokens, e->part, e->tokens);
        first = e;
    }
    return 0;
}

/* A model file's LoRAs, over all parts that they may change. */
static int loras_apply(struct model *m, struct steer_error *err)
{
    const struct model_file *file = m->folder.file;
    if (!file || !file->loras_count) return 0;
    int code = loras_open(&m->loras, file->loras, file->loras_count, err);
    if (code) return code;
    struct params *params[LORA_TARGETS] = {m->denoiser_params};
    for (int i = 0; i < m->encoders_count; i++)
        params[LORA_TEXT + i] = m->encoders[i].params;
    for (int i = 0; i < LORA_TARGETS; i++) {
        if (!params[i]) continue;
        if ((code = loras_bind(m->loras, (enum lora_target)i, params_files(params[i]), err)))
            return code;
        params_loras(params[i], m->loras, i);
    }
    return loras_check(m->loras, err);
}

static int mean_open(struct model *m, struct steer_error *err)
{
    const struct model_file *file = m->folder.file;
    if (!file || !*file->mean_latent) return 0;
    return mean_latent_open(&m->mean, file->mean_latent, m->latent_channels, err);
}

static size_t params_bytes(const struct params *p)
{
    size_t sum = 0;
    for (size_t i = 0; i < tensors_count(params_files(p)); i++)
        sum += tensors_at(params_files(p), i)->bytes;
    return sum;
}

/* Text encoders and the denoiser. The decoder has a hundredth to a twentieth of the weights, most
 * of its time is Winograd's, and its errors are seen as they are. */
static void parts_hold_int8(struct model *m)
{
    for (int i = 0; i < m->encoders_count; i++)
        params_hold_int8(m->encoders[i].params);
    params_hold_int8(m->denoiser_params);
}

static int parts_open(struct model *m, struct compute *c, struct steer_error *err)
{
    int code = 0;
    for (int i = 0; i < m->encoders_count && !code; i++)
        code = text_encoder_open(m->encoders + i, &m->folder, c, err);
    if (code || (code = text_size_read(m, err)) ||
        (code = folder_params(&m->denoiser_params, &m->folder, c, m->denoiser_part, err)) ||
        (code = folder_params(&m->vae_params, &m->folder, c, "vae", err)) ||
        (code = loras_apply(m, err)) || (code = mean_open(m, err)))
        return code;
    if (c && compute_weights(c) == WEIGHTS_INT8) parts_hold_int8(m);
    for (int i = 0; i < m->encoders_count; i++)
        m->tensor_bytes += params_bytes(m->encoders[i].params);
    m->tensor_bytes += params_bytes(m->denoiser_params) + params_bytes(m->vae_params);
    return 0;
}

/* In pixels; 64 cells where the denoiser does not say, 512 pixels where it says too many. */
static int side_default(int cells, int factor, int multiple)
{
    int side = (cells ? cells : 64) * factor;
    if (side > STEER_SIDE_MAX || (uint64_t)side * (uint64_t)side > STEER_PIXELS_MAX) side = 512;
    return side < multiple ? multiple : side / multiple * multiple;
}

static int vae_read(struct model *m, struct steer_error *err)
{
    static const char *const classes[] = {"AutoencoderKL", "AutoencoderTiny", NULL};
    char path[FOLDER_PATH_BYTES];
    const char *class_name;
    json_t *config = NULL;
    int code = folder_class_get(&class_name, &m->folder, "vae", classes,
                                "AutoencoderKL or AutoencoderTiny", err);
    if (!code) code = folder_config(&config, &m->folder, "vae", path, err);
    if (!code) code = vae_config_load(&m->vae, config, class_name, path, err);
    json_decref(config);
    if (code) return code;
    if (m->vae.latent_channels != m->latent_channels)
        return steer_fail(err, STEER_BAD_MODEL, "%s: the %s has %d latent channels and the VAE %d",
                          m->folder.dir, m->denoiser_part, m->latent_channels,
                          m->vae.latent_channels);
    if (m->vae.normed && (m->vae.tiny || !m->family->normed_latents))
        return steer_fail(
            err, STEER_UNSUPPORTED,
            "%s: \"latents_mean\" and \"latents_std\" are set: expected null, as they "
            "are followed for AutoencoderKL of the family sdxl alone",
            path);
    m->factor = vae_factor(&m->vae);
    m->multiple = (m->factor > 8 ? m->factor : 8) * (m->patch ? m->patch : 1);
    m->width = side_default(m->sample_width, m->factor, m->multiple);
    m->height = side_default(m->sample_height, m->factor, m->multiple);
    return 0;
}

static int scheduler_read(struct model *m, struct steer_error *err)
{
    snprintf(m->scheduler_file, sizeof m->scheduler_file, "%s/scheduler/scheduler_config.json",
             m->folder.dir);
    if (access(m->scheduler_file, F_OK)) return 0;
    int code = json_file_load(&m->scheduler, m->scheduler_file, err);
    /* diffusers makes the class that the index names, of whatever keys the file has. */
    const char *class_name = folder_class(&m->folder, "scheduler");
    if (!code && class_name &&
        json_object_set_new(m->scheduler, "_class_name", json_string(class_name)))
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    return code;
}

/* A model file or a folder may say which recipe it wants; otherwise its family and the scheduler's
 * class tell. */
static int default_recipe_read(struct model *m, struct steer_error *err)
{
    char path[FOLDER_PATH_BYTES];
    const char *scheduler = json_string_value(json_object_get(m->scheduler, "_class_name"));
    int lcm = scheduler && strcmp(scheduler, "LCMScheduler") == 0;
    snprintf(m->default_recipe, sizeof m->default_recipe, "%s",
             !lcm                   ? m->family->recipe
             : m->guidance_channels ? "lcm-full"
                                    : "lcm");
    if (m->folder.file && *m->folder.file->recipe) {
        snprintf(m->default_recipe, sizeof m->default_recipe, "%s", m->folder.file->recipe);
        return 0;
    }
    snprintf(path, sizeof path, "%s/steer.json", m->folder.dir);
    if (access(path, F_OK)) return 0;
    json_t *hint = NULL;
    int code = json_file_load(&hint, path, err);
    const char *wanted = json_string_value(json_object_get(hint, "recipe"));
    if (!code && (!wanted || strlen(wanted) > STEER_NAME_BYTES_MAX))
        code = steer_fail(err, STEER_BAD_MODEL, "%s: \"recipe\": expected a recipe's name", path);
    if (!code) snprintf(m->default_recipe, sizeof m->default_recipe, "%s", wanted);
    json_decref(hint);
    return code;
}

/* The name that people see in the folder, which for a link is the link's own. */
static void model_name(struct model *m)
{
    const char *path = m->folder.file ? m->folder.file->path : m->folder.dir;
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *real = *base && strcmp(base, ".") && strcmp(base, "..") ? NULL : realpath(path, NULL);
    if (real) base = strrchr(real, '/') + 1;
    int length = (int)strlen(base) - (m->folder.file ? (int)strlen(".json") : 0);
    if (length > STEER_NAME_BYTES_MAX) length = STEER_NAME_BYTES_MAX;
    snprintf(m->name, sizeof m->name, "%.*s", length, base);
    if (!*m->name) strcpy(m->name, "model");
    free(real);
}

int model_open(struct model **ret, const char *path, struct compute *c, struct steer_error *err)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = folder_open(&m->folder, path, err);
    if (code) goto fail;
    model_name(m);
    if ((code = family_open(m, err)) || (code = vae_read(m, err)) ||
        (code = scheduler_read(m, err)) || (code = default_recipe_read(m, err)) ||
        (code = parts_open(m, c, err)) || (code = dry_run(m, err)) || (code = model_hash(m, err)))
        goto fail;
    *ret = m;
    return 0;
fail:
    model_close(m);
    return code;
}

static void parts_close(struct model *m)
{
    for (int i = 0; i < TEXT_ENCODERS_MAX; i++)
        text_encoder_close(m->encoders + i);
    params_free(m->denoiser_params);
    params_free(m->vae_params);
    loras_close(m->loras);
    mean_latent_close(m->mean);
    m->denoiser_params = m->vae_params = NULL;
    m->loras = NULL;
    m->mean = NULL;
}

int model_inspect(struct model **ret, const char *path, struct steer_error *err)
{
    int code = model_open(ret, path, NULL, err);
    if (!code) parts_close(*ret);
    return code;
}

void model_close(struct model *m)
{
    if (!m) return;
    parts_close(m);
    folder_close(&m->folder);
    json_decref(m->scheduler);
    free(m->denoiser);
    free(m);
}

int model_whole(const struct model *m, struct steer_error *err)
{
    int code = tensors_whole(params_files(m->denoiser_params), err);
    if (!code) code = tensors_whole(params_files(m->vae_params), err);
    for (int i = 0; i < m->encoders_count && !code; i++)
        code = tensors_whole(params_files(m->encoders[i].params), err);
    return code || !m->loras ? code : loras_whole(m->loras, err);
}

int model_recipe(const struct model *m, const char *name, struct recipe *ret,
                 struct steer_error *err)
{
    const struct recipe_folder folder = {.scheduler = m->scheduler,
                                         .scheduler_file = m->scheduler_file,
                                         .family = m->family->name,
                                         .guidance = m->family->guidance,
                                         .joint_attention = m->family->joint_attention,
                                         .old_rules = m->family->old_scheduler_rules};
    return recipe_load(ret, name && *name ? name : m->default_recipe, &folder, err);
}

int model_size_check(const struct model *m, int width, int height, struct steer_error *err)
{
    int multiple = m->multiple;
    if (width < multiple || height < multiple || width > STEER_SIDE_MAX ||
        height > STEER_SIDE_MAX || width % multiple || height % multiple)
        return steer_fail(err, STEER_BAD_SIZE, "size %dx%d: expected multiples of %d from %d to %d",
                          width, height, multiple, multiple, STEER_SIDE_MAX);
    if ((uint64_t)width * (uint64_t)height > STEER_PIXELS_MAX)
        return steer_fail(err, STEER_BAD_SIZE, "size %dx%d: expected at most %llu pixels", width,
                          height, STEER_PIXELS_MAX);
    return 0;
}

int model_start_check(const struct model *m, const struct recipe *recipe, int width, int height,
                      struct steer_error *err)
{
    if (!recipe->from_mean || !m->mean) return 0;
    return mean_latent_check(m->mean, height / m->factor, width / m->factor, err);
}
