/* unet.h - UNet2DConditionModel (diffusers 0.42, models/unets/unet_2d_condition.py): the denoiser
 * of Stable Diffusion 1.5, 2.1 and XL.
 *
 * Of a text it is bound to the keys and values of every cross-attention layer and, where the time
 * embedding takes it (addition_embed_type "text_time"), to the pooled state, which comes first. */
#ifndef WORKER_UNET_H
#define WORKER_UNET_H
#include <jansson.h>

#include "graphs.h"

#define UNET_BLOCKS_MAX 8
#define UNET_LAYERS_MAX 16
#define UNET_CROSS_MAX  256

enum unet_mid { UNET_MID_NONE, UNET_MID_RESNET, UNET_MID_CROSS };

/* A cross-attention layer: where its to_q, to_k, to_v and to_out are, and how wide. */
struct unet_cross {
    char path[128];
    int channels;
};

struct unet_config {
    int in_channels, out_channels, sample_width, sample_height; /* 0: not said */
    int blocks, channels[UNET_BLOCKS_MAX], layers[UNET_BLOCKS_MAX];
    int heads[UNET_BLOCKS_MAX], transformers[UNET_BLOCKS_MAX], cross_dim[UNET_BLOCKS_MAX];
    int up_transformers[UNET_BLOCKS_MAX]; /* of up block i */
    int down_attends[UNET_BLOCKS_MAX], up_attends[UNET_BLOCKS_MAX];
    enum unet_mid mid;
    int groups, flip_sin_to_cos, use_linear_projection, time_channels;
    int guidance_channels; /* of a guidance scale's embedding (consistency models); 0: none */
    /* "text_time": the pooled text and the picture's sizes are embedded too. added_time_channels of
     * each size (0: it has none of this), added_channels of all together with the text. */
    int added_time_channels, added_channels;
    int conv_in_size, conv_out_size;
    enum activation act;
    double norm_eps, freq_shift;
    struct unet_cross cross[UNET_CROSS_MAX]; /* in forward order */
    int cross_count, text_channels;          /* all take a text of the same width */
};

/* STEER_BAD_MODEL or STEER_UNSUPPORTED names the key, its value and what was expected. */
int unet_config_load(struct unet_config *ret, const json_t *config, const char *file,
                     struct steer_error *err) STEER_MUSTCHECK;

/* Mistakes are in the graph and the params. */
void unet_record(struct denoiser_graph *d, struct net *n, const struct unet_config *config,
                 const struct denoiser_size *size);
void unet_record_text(struct text_graph *t, struct net *n, const struct unet_config *config);

#endif
