/* mean_latent.h - the mean of a model's latents, from which an informed start begins: x_T is the
 * mean noised to the first time step instead of noise alone (YOSO, arXiv 2403.12931: the tensor is
 * the mean over the latents of many pictures, encoded ones or the model's own).
 *
 * A recipe asks for it ("start": "mean_latent"), a model file brings it ("mean_latent": FILE). */
#ifndef WORKER_MEAN_LATENT_H
#define WORKER_MEAN_LATENT_H
#include "error.h"

struct mean_latent;

/* path: a file of one tensor, f32, f16 or bf16, [channels, h, w] for pictures of that size or
 * [channels, 1, 1] for all; a leading 1 may stand before either. As the denoiser has latents, so
 * multiplied by the VAE's scaling_factor. STEER_BAD_MODEL names the file, what was found and what
 * was expected. */
int mean_latent_open(struct mean_latent **ret, const char *path, int channels,
                     struct steer_error *err) STEER_MUSTCHECK;
void mean_latent_close(struct mean_latent *m); /* NULL is fine */

/* STEER_BAD_SIZE for pictures whose latents have another size. */
int mean_latent_check(const struct mean_latent *m, int h, int w,
                      struct steer_error *err) STEER_MUSTCHECK;
/* x [channels, h, w], which is noise, to sample * mean + noise * x; the size was checked. */
void mean_latent_noise(const struct mean_latent *m, int h, int w, float sample, float noise,
                       float *x);

#endif
