/* sampler.h - one image's way through a schedule (schedule.h): the arithmetic between two calls of
 * the denoiser. It holds that image's earlier outputs. All arrays are f32 [C, H, W], as torch lays
 * them out. */
#ifndef WORKER_SAMPLER_H
#define WORKER_SAMPLER_H
#include <stddef.h>

#include "schedule.h"

struct sampler;
/* normal(data, out, n) draws from the image's generator, for schedulers that add fresh noise. */
typedef void sampler_normal(void *data, float *out, size_t count);
/* Borrows s and data. */
int sampler_new(struct sampler **ret, const struct schedule *s, size_t count,
                sampler_normal *normal, void *data) STEER_MUSTCHECK;
void sampler_free(struct sampler *s); /* NULL is fine */
/* x (unscaled) after call i, whose output was `out`; x is replaced. Calls come in order. */
int sampler_step(struct sampler *s, int call, const float *out, float *x) STEER_MUSTCHECK;

#endif
