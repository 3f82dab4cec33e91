/* pixart.h - PixArtTransformer2DModel (diffusers 0.42,
 * models/transformers/pixart_transformer_2d.py): the denoiser of PixArt-alpha.
 *
 * A transformer over patches of the latents. One embedding of the time step (and, where the model
 * was trained at many sizes, of the picture's) gives shift, scale and gate of every block; each
 * block adds a table of its own to it. Of a text it is bound to the mask first, then to the keys
 * and values of every block's cross-attention. */
#ifndef WORKER_PIXART_H
#define WORKER_PIXART_H
#include <jansson.h>

#include "graphs.h"

#define PIXART_LAYERS_MAX   256
#define PIXART_CHANNELS_MAX 16384

/* height and width in pixels, and height / width. */
enum { PIXART_SIZES = 3 };

struct pixart_config {
    int in_channels,
        out_channels; /* out: as many, or twice as many, of which the first half counts */
    int heads, head_channels, layers, patch;
    int sample_size;      /* latent cells a side: where positions are a whole number apart */
    int caption_channels; /* of the text before its projection; 0: there is none */
    int cross_channels;   /* of the text as the blocks take it */
    int attention_bias, norm_affine;
    int conditions; /* it is told the picture's sizes */
    enum activation act;
    double norm_eps, interpolation_scale;
};

/* STEER_BAD_MODEL or STEER_UNSUPPORTED names the key, its value and what was expected. */
int pixart_config_load(struct pixart_config *ret, const json_t *config, const char *file,
                       struct steer_error *err) STEER_MUSTCHECK;

/* Mistakes are in the graph and the params. */
void pixart_record(struct denoiser_graph *d, struct net *n, const struct pixart_config *config,
                   const struct denoiser_size *size);
void pixart_record_text(struct text_graph *t, struct net *n, const struct pixart_config *config);

#endif
