// SPDX-License-Identifier: Apache-2.0
/* FLUX.1-schnell: CLIP gives the pooled state, T5 the text's rows. */
#include <stdlib.h>

#include "../model.h"
#include "family.h"
#include "flux.h"

enum {
    TEXT_TOKENS = 256,  /* FluxPipeline's max_sequence_length for schnell; no padding is masked */
    SAMPLE_CELLS = 128, /* FluxPipeline's default_sample_size: the configuration does not say */
};

static void record_text(const struct model *m, struct text_graph *t, struct net *n)
{
    flux_record_text(t, n, m->denoiser);
}

static void record_denoiser(const struct model *m, struct denoiser_graph *d, struct net *n,
                            const struct denoiser_size *size)
{
    flux_record(d, n, m->denoiser, size);
}

static const struct family flux = {
    .name = "flux",
    .recipe = "flux-schnell",
    .guidance = {GUIDANCE_NONE, .5, 4, 2.5, .25, 0, 1, GUIDANCE_TEXT},
    .joint_attention = 1,
    .record_text = record_text,
    .record_denoiser = record_denoiser};

static int parts_fit(const struct model *m, const struct flux_config *c, struct steer_error *err)
{
    int pooled = m->encoders[0].pooled_channels, text = m->encoders[1].channels;
    if (c->pooled_channels != pooled)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: the transformer's pooled_projection_dim is %d and hidden_size of "
                          "text_encoder %d: expected the same",
                          m->folder.dir, c->pooled_channels, pooled);
    if (c->text_channels != text)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: the transformer's joint_attention_dim is %d and d_model of "
                          "text_encoder_2 %d: expected the same",
                          m->folder.dir, c->text_channels, text);
    return 0;
}

int family_flux_open(struct model *m, struct steer_error *err)
{
    char path[FOLDER_PATH_BYTES];
    json_t *config = NULL;
    struct text_encoder *e = m->encoders;
    struct flux_config *c = m->denoiser = calloc(1, sizeof *c);
    if (!c) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    m->encoders_count = 2;
    int code = text_encoder_load(e, &m->folder, 1, "CLIPTextModel", STATES_NONE, POOLED_LAST, err);
    if (!code)
        code = text_encoder_load(e + 1, &m->folder, 2, "T5EncoderModel", STATES_LAST, POOLED_NONE,
                                 err);
    if (!code) code = folder_config(&config, &m->folder, "transformer", path, err);
    if (!code) code = flux_config_load(c, config, path, err);
    if (!code) code = parts_fit(m, c, err);
    json_decref(config);
    if (code) return code;
    e[1].tokens = TEXT_TOKENS;
    m->family = &flux;
    m->latent_channels = c->latent_channels;
    m->patch = FLUX_PATCH;
    m->sample_width = m->sample_height = SAMPLE_CELLS;
    return 0;
}
