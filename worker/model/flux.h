/* flux.h - FluxTransformer2DModel (diffusers 0.42, models/transformers/transformer_flux.py): the
 * denoiser of FLUX.1-schnell.
 *
 * Joint attention: the rows of a text and those of the image are streams of their own, which meet
 * only in attention. Double blocks have weights for each of the two, single blocks share them.
 *
 * Under guidance the negative text is a third stream, advanced through every block: its queries
 * attend itself and the image, its modulations are made of its own pooled state. The image's
 * queries meet both texts under the method and are modulated by the positive one's. Without
 * guidance it does not exist.
 *
 * Of a text the denoiser is bound to its embedded states, then to its embedded pooled state. */
#ifndef WORKER_FLUX_H
#define WORKER_FLUX_H
#include <jansson.h>

#include "graphs.h"

enum { FLUX_AXES = 3, FLUX_PATCH = 2 };

struct flux_config {
    int latent_channels;
    int layers, single_layers; /* double and single blocks */
    int heads, head_channels, channels;
    int text_channels, pooled_channels;
    int axes[FLUX_AXES]; /* of a head's channels, turned by 0, by the row and by the column */
};

/* STEER_BAD_MODEL or STEER_UNSUPPORTED names the key, its value and what was expected. */
int flux_config_load(struct flux_config *ret, const json_t *config, const char *file,
                     struct steer_error *err) STEER_MUSTCHECK;

/* Mistakes are in the graph and the params. */
void flux_record(struct denoiser_graph *d, struct net *n, const struct flux_config *config,
                 const struct denoiser_size *size);
void flux_record_text(struct text_graph *t, struct net *n, const struct flux_config *config);

#endif
