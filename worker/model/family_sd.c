// SPDX-License-Identifier: Apache-2.0
/* Stable Diffusion 1.5, 2.1 and XL, told apart by what the folder has: a second text encoder is
 * XL's, linear projections around the transformers are 2.1's. */
#include <stdlib.h>
#include <string.h>

#include "../json.h"
#include "../model.h"
#include "family.h"
#include "unet.h"

/* original_size, crops_coords_top_left and target_size of StableDiffusionXLPipeline. */
enum { TIME_IDS = 6 };

static void record_text(const struct model *m, struct text_graph *t, struct net *n)
{
    unet_record_text(t, n, m->denoiser);
}

static void record_denoiser(const struct model *m, struct denoiser_graph *d, struct net *n,
                            const struct denoiser_size *size)
{
    unet_record(d, n, m->denoiser, size);
}

static void time_ids(int width, int height, float *out)
{
    const int ids[TIME_IDS] = {height, width, 0, 0, height, width};
    for (int i = 0; i < TIME_IDS; i++)
        out[i] = (float)ids[i];
}

static const struct family sd15 = {
    .name = "sd15",
    .recipe = "sd15",
    .guidance = {GUIDANCE_NONE, .1, 2, 2.5, .375, 0, 1, GUIDANCE_TEXT},
    .old_scheduler_rules = 1,
    .record_text = record_text,
    .record_denoiser = record_denoiser};
static const struct family sd21 = {
    .name = "sd21",
    .recipe = "sd21",
    .guidance = {GUIDANCE_NONE, .2, 2, 2.5, .375, 0, 1, GUIDANCE_TEXT},
    .old_scheduler_rules = 1,
    .record_text = record_text,
    .record_denoiser = record_denoiser};
static const struct family sdxl = {.name = "sdxl",
                                   .recipe = "sdxl",
                                   .guidance = {GUIDANCE_NONE, .5, 2, 2.5, .5, 0, 1, GUIDANCE_TEXT},
                                   .normed_latents = 1,
                                   .record_text = record_text,
                                   .record_denoiser = record_denoiser,
                                   .sizes = time_ids};

static int encoders_load(struct model *m, int two, struct steer_error *err)
{
    struct text_encoder *e = m->encoders;
    m->encoders_count = two ? 2 : 1;
    if (!two)
        return text_encoder_load(e, &m->folder, 1, "CLIPTextModel", STATES_LAST, POOLED_NONE, err);
    int code =
        text_encoder_load(e, &m->folder, 1, "CLIPTextModel", STATES_PENULTIMATE, POOLED_NONE, err);
    return code ? code
                : text_encoder_load(e + 1, &m->folder, 2, "CLIPTextModelWithProjection",
                                    STATES_PENULTIMATE, POOLED_PROJECTED, err);
}

/* A part of another family beside the others shows here, before a tensor is missed. */
static int parts_fit(const struct model *m, const struct unet_config *c, const char *file,
                     struct steer_error *err)
{
    const struct text_encoder *a = m->encoders, *b = m->encoders + 1;
    int two = m->encoders_count == 2;
    if (two != (c->added_channels > 0))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"addition_embed_type\" is %s: the U-Net is %s Stable Diffusion XL, "
                          "but the folder has %s \"text_encoder_2\"",
                          file, two ? "null" : "\"text_time\"", two ? "not one of" : "one of",
                          two ? "a" : "no");
    if (!two && c->text_channels != a->channels)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: the U-Net's cross_attention_dim is %d and the text encoder's "
                          "hidden_size %d: expected the same",
                          m->folder.dir, c->text_channels, a->channels);
    if (!two) return 0;
    if (c->text_channels != a->channels + b->channels)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: the U-Net's cross_attention_dim is %d and the text encoders' "
                          "hidden_size %d and %d: expected their sum",
                          m->folder.dir, c->text_channels, a->channels, b->channels);
    if (c->added_channels != b->pooled_channels + TIME_IDS * c->added_time_channels)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"projection_class_embeddings_input_dim\" is %d: expected %d, "
                          "projection_dim %d of text_encoder_2 and %d times "
                          "addition_time_embed_dim %d",
                          file, c->added_channels,
                          b->pooled_channels + TIME_IDS * c->added_time_channels,
                          b->pooled_channels, TIME_IDS, c->added_time_channels);
    return 0;
}

/* Keys of model_index.json that change the picture. */
static int index_read(struct model *m, int two, struct steer_error *err)
{
    static const char *const others[] = {"prior", "controlnet"};
    const struct folder *f = &m->folder;
    int score, code;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (folder_class(f, others[i]))
            return steer_fail(err, STEER_UNSUPPORTED,
                              "%s: it has a \"%s\": expected a model of the Stable Diffusion "
                              "family without",
                              f->index_file, others[i]);
    if (!two) return 0;
    if ((code = json_flag(&m->zero_when_absent, f->index, "force_zeros_for_empty_prompt", 1,
                          f->index_file, err)) ||
        (code = json_flag(&score, f->index, "requires_aesthetics_score", 0, f->index_file, err)))
        return code;
    if (score)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"requires_aesthetics_score\" is true: refiners are not read",
                          f->index_file);
    return 0;
}

int family_sd_open(struct model *m, struct steer_error *err)
{
    char path[FOLDER_PATH_BYTES];
    json_t *config = NULL;
    int two = folder_class(&m->folder, "text_encoder_2") || folder_class(&m->folder, "tokenizer_2");
    struct unet_config *c = m->denoiser = calloc(1, sizeof *c);
    if (!c) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = index_read(m, two, err);
    if (!code) code = encoders_load(m, two, err);
    if (!code) code = folder_config(&config, &m->folder, "unet", path, err);
    if (!code) code = unet_config_load(c, config, path, err);
    if (!code) code = parts_fit(m, c, path, err);
    json_decref(config);
    if (code) return code;
    m->family = two ? &sdxl : c->use_linear_projection ? &sd21 : &sd15;
    m->latent_channels = c->in_channels;
    m->guidance_channels = c->guidance_channels;
    m->sizes = two ? TIME_IDS : 0;
    m->sample_width = c->sample_width;
    m->sample_height = c->sample_height;
    return 0;
}
