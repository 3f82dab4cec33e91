/* unet.h - UNet2DConditionModel (diffusers 0.42, models/unets/unet_2d_condition.py): the denoiser
 * of the Stable Diffusion 1.5 family.
 *
 * Two graphs make a call. The text graph projects one prompt's embedding to the keys and values of
 * every cross-attention layer; it depends on neither noise nor time, so its result is cached and
 * bound to the denoiser graph, which runs once per step. */
#ifndef WORKER_UNET_H
#define WORKER_UNET_H
#include <jansson.h>

#include "net.h"

#define UNET_BLOCKS_MAX 8
#define UNET_LAYERS_MAX 16
#define UNET_CROSS_MAX  256

enum unet_mid { UNET_MID_NONE, UNET_MID_RESNET, UNET_MID_CROSS };

struct unet_config {
    int in_channels, out_channels, sample_width, sample_height; /* 0: not said */
    int blocks, channels[UNET_BLOCKS_MAX], layers[UNET_BLOCKS_MAX];
    int heads[UNET_BLOCKS_MAX], transformers[UNET_BLOCKS_MAX], cross_dim[UNET_BLOCKS_MAX];
    int up_transformers[UNET_BLOCKS_MAX]; /* of up block i */
    int down_attends[UNET_BLOCKS_MAX], up_attends[UNET_BLOCKS_MAX];
    enum unet_mid mid;
    int groups, flip_sin_to_cos, use_linear_projection, time_channels;
    int guidance_channels; /* of a guidance scale's embedding (consistency models); 0: none */
    int conv_in_size, conv_out_size;
    enum activation act;
    double norm_eps, freq_shift;
};

/* STEER_BAD_MODEL or STEER_UNSUPPORTED names the key, its value and what was expected. */
int unet_config_load(struct unet_config *ret, const json_t *config, const char *file,
                     struct steer_error *err) STEER_MUSTCHECK;

/* How wide a text the cross-attention layers take; all take the same. */
int unet_text_channels(const struct unet_config *config);

/* A cross-attention layer in forward order: where its to_k and to_v are, and how wide. */
struct unet_cross {
    char path[128];
    int channels, text_channels;
    struct text_keys positive, negative; /* bound tensors of the denoiser graph */
};

struct unet_graph {
    struct tensor latents;  /* input [B, h, w, in_channels] */
    struct tensor timestep; /* input [B, 1, 1, 1] */
    struct tensor guidance; /* input [B, 1, 1, guidance_channels]; TENSOR_NONE where it has none */
    struct tensor params;   /* input [B, 1, 1, GUIDANCE_PARAMS]; TENSOR_NONE for GUIDANCE_NONE */
    struct tensor out;      /* output [B, h, w, out_channels], f32 */
    struct unet_cross cross[UNET_CROSS_MAX];
    int cross_count;
};

/* size: {batch, latent height, latent width}. tokens: rows of each text. Mistakes are in the graph
 * and the params. */
void unet_record(struct unet_graph *ret, struct net *n, const struct unet_config *config,
                 struct shape size, int tokens_positive, int tokens_negative,
                 enum guidance_method method);

struct unet_text_graph {
    struct tensor text;              /* input [1, 1, tokens, text channels] */
    struct tensor k[UNET_CROSS_MAX]; /* outputs, as computed */
    struct tensor v[UNET_CROSS_MAX];
};
void unet_record_text(struct unet_text_graph *ret, struct net *n, const struct unet_graph *layers,
                      int tokens);

#endif
