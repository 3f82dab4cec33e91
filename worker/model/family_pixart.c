// SPDX-License-Identifier: Apache-2.0
/* PixArt-alpha: its transformer under T5, which sees 120 tokens of a prompt in lower case. */
#include <stdlib.h>
#include <string.h>

#include "../json.h"
#include "../model.h"
#include "family.h"
#include "pixart.h"

enum { TOKENS = 120 }; /* max_sequence_length of PixArtAlphaPipeline */

static void record_text(const struct model *m, struct text_graph *t, struct net *n)
{
    pixart_record_text(t, n, m->denoiser);
}

static void record_denoiser(const struct model *m, struct denoiser_graph *d, struct net *n,
                            const struct denoiser_size *size)
{
    pixart_record(d, n, m->denoiser, size);
}

static void sizes(int width, int height, float *out)
{
    out[0] = (float)height;
    out[1] = (float)width;
    out[2] = (float)((double)height / width);
}

static const struct family pixart = {
    .name = "pixart",
    .recipe = "pixart",
    .guidance = {GUIDANCE_NONE, .5, 4, 2.5, .375, 0, 1, GUIDANCE_TEXT},
    .record_text = record_text,
    .record_denoiser = record_denoiser,
    .sizes = sizes};

static int parts_fit(const struct model *m, const struct pixart_config *c, const char *file,
                     struct steer_error *err)
{
    int wanted = c->caption_channels ? c->caption_channels : c->cross_channels;
    if (wanted == m->encoders[0].channels) return 0;
    return steer_fail(err, STEER_BAD_MODEL,
                      "%s: \"%s\" is %d and the text encoder's d_model %d: expected the same", file,
                      c->caption_channels ? "caption_channels" : "cross_attention_dim", wanted,
                      m->encoders[0].channels);
}

int family_pixart_open(struct model *m, struct steer_error *err)
{
    static const char *const pipelines[] = {"PixArtAlphaPipeline", NULL};
    char path[FOLDER_PATH_BYTES];
    json_t *config = NULL;
    struct text_encoder *e = m->encoders;
    struct pixart_config *c = m->denoiser = calloc(1, sizeof *c);
    int which;
    if (!c) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    /* PixArtSigmaPipeline has the same parts and other numbers. */
    int code = json_choice(&which, m->folder.index, "_class_name", 0, pipelines,
                           m->folder.index_file, err);
    if (!code)
        code = text_encoder_load(e, &m->folder, 1, "T5EncoderModel", STATES_LAST, POOLED_NONE, err);
    if (!code) code = folder_config(&config, &m->folder, m->denoiser_part, path, err);
    if (!code) code = pixart_config_load(c, config, path, err);
    if (!code) code = parts_fit(m, c, path, err);
    json_decref(config);
    if (code) return code;
    e->tokens = TOKENS;
    e->masked = 1;
    e->lower = 1;
    m->encoders_count = 1;
    m->family = &pixart;
    m->latent_channels = c->in_channels;
    m->sizes = c->conditions ? PIXART_SIZES : 0;
    m->sample_width = m->sample_height = c->sample_size;
    m->patch = c->patch;
    return 0;
}
