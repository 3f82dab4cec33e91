/* vae.h - the decoders of AutoencoderKL (diffusers 0.42, models/autoencoders/autoencoder_kl.py) and
 * AutoencoderTiny (autoencoder_tiny.py): latents to pixels. Encoders are not read. */
#ifndef WORKER_VAE_H
#define WORKER_VAE_H
#include <jansson.h>

#include "net.h"

#define VAE_BLOCKS_MAX   8
#define VAE_CHANNELS_MAX 64

struct vae_config {
    int tiny;
    int latent_channels, out_channels, blocks, channels[VAE_BLOCKS_MAX];
    double scaling_factor, shift_factor; /* image = decode(z / scaling_factor + shift_factor) */
    /* latents_mean and latents_std, where both are said: decode(z std / scaling_factor + mean). */
    int normed;
    float latents_mean[VAE_CHANNELS_MAX], latents_std[VAE_CHANNELS_MAX];
    /* AutoencoderKL */
    int layers, groups, mid_attention, post_quant_conv;
    /* AutoencoderTiny */
    int block_layers[VAE_BLOCKS_MAX];
    /* both */
    enum activation act;
};

/* class_name as in model_index.json or the config's _class_name. */
int vae_config_load(struct vae_config *ret, const json_t *config, const char *class_name,
                    const char *file, struct steer_error *err) STEER_MUSTCHECK;
/* Pixels per latent cell and side. */
int vae_factor(const struct vae_config *config);

/* Latents z [cells, latent_channels] of a normed VAE as vae_graph.latents takes them; others stay
 * as they are. */
void vae_denorm(const struct vae_config *config, float *z, size_t cells);

struct vae_graph {
    struct tensor latents; /* input [B, h, w, latent_channels], what the denoiser made, denormed */
    struct tensor out;     /* output [B, H, W, 3] f32, before clamping */
    struct tensor image;   /* output [B, H, W, 3] u8 */
};
/* size: {batch, latent height, latent width}. */
void vae_record(struct vae_graph *ret, struct net *n, const struct vae_config *config,
                struct shape size);

#endif
