/* family.h - the wall between the pipeline and the model families.
 *
 * Opening a folder finds its family by the denoiser's class and lets it read the configurations:
 * what the family says of itself from then on is plain fields of struct model, and how its graphs
 * are recorded. The pipeline knows no family. */
#ifndef WORKER_FAMILY_H
#define WORKER_FAMILY_H
#include "../recipe.h"
#include "graphs.h"

struct model;

struct family {
    const char *name;   /* as recipes name whom they are for: "sd15" */
    const char *recipe; /* of a folder that names none */
    /* The numbers of each method where a recipe says none (docs/guidance.md). */
    struct guidance guidance;
    int joint_attention; /* the image attends texts and itself at once: NASA has variants */
    /* Its pipeline class sets the scheduler's steps_offset to 1 and clip_sample to false, whatever
     * the folder says. */
    int old_scheduler_rules;
    int normed_latents; /* its pipeline follows the VAE's latents_mean and latents_std */
    /* Records what of a text the denoiser is bound to, in the order of record_denoiser. */
    void (*record_text)(const struct model *m, struct text_graph *t, struct net *n);
    void (*record_denoiser)(const struct model *m, struct denoiser_graph *d, struct net *n,
                            const struct denoiser_size *size);
    /* The model's `sizes` numbers of a picture in pixels; NULL: it is told none. */
    void (*sizes)(int width, int height, float *out);
};

/* Reads every configuration but the VAE's, and fills m's family, its text encoders and what it
 * says of the denoiser. STEER_BAD_MODEL or STEER_UNSUPPORTED with one sentence. */
int family_open(struct model *m, struct steer_error *err) STEER_MUSTCHECK;

/* Stable Diffusion 1.5, 2.1 and XL: a U-Net under one or two CLIP text encoders. */
int family_sd_open(struct model *m, struct steer_error *err) STEER_MUSTCHECK;
/* PixArt-alpha: a transformer under T5. */
int family_pixart_open(struct model *m, struct steer_error *err) STEER_MUSTCHECK;
/* FLUX.1-schnell: a transformer with joint attention under CLIP and T5. */
int family_flux_open(struct model *m, struct steer_error *err) STEER_MUSTCHECK;

#endif
