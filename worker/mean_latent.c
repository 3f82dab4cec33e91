// SPDX-License-Identifier: Apache-2.0
#include "mean_latent.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "limits.h"
#include "tensors.h"

struct mean_latent {
    int channels, h, w;
    float values[]; /* [channels, h, w] */
};

/* The file's only tensor as [channels, h, w]. */
static int view_check(const struct tensors *t, const char *path, int channels, int64_t shape[3],
                      struct steer_error *err)
{
    char text[TENSOR_SHAPE_BYTES];
    if (tensors_count(t) != 1)
        return steer_fail(err, STEER_BAD_MODEL, "%s: it has %zu tensors: expected one, the mean",
                          path, tensors_count(t));
    const struct tensor_view *v = tensors_at(t, 0);
    int first = v->rank == 4 && v->shape[0] == 1;
    if (v->rank != 3 + first || v->shape[first] != channels || v->shape[first + 1] < 1 ||
        v->shape[first + 2] < 1 || v->shape[first + 1] > STEER_SIDE_MAX ||
        v->shape[first + 2] > STEER_SIDE_MAX)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: tensor \"%s\" is %s: expected [%d, h, w] or [%d, 1, 1]", path,
                          v->name, tensor_shape_text(text, v->rank, v->shape), channels, channels);
    if (!tensor_stored(v).data)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: tensor \"%s\" is %s: expected F32, F16 or BF16", path, v->name,
                          tensor_dtype_name(v->dtype));
    memcpy(shape, v->shape + first, 3 * sizeof *shape);
    return 0;
}

int mean_latent_open(struct mean_latent **ret, const char *path, int channels,
                     struct steer_error *err)
{
    struct tensors *t = NULL;
    struct mean_latent *m = NULL;
    int64_t shape[3];
    int code = tensors_open(&t, path, err);
    if (code || (code = view_check(t, path, channels, shape, err))) goto done;
    size_t count = (size_t)channels * (size_t)shape[1] * (size_t)shape[2]; /* <= the file's */
    if (!(m = malloc(sizeof *m + count * sizeof *m->values))) {
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
        goto done;
    }
    *m = (struct mean_latent){channels, (int)shape[1], (int)shape[2]};
    stored_to_f32(m->values, tensor_stored(tensors_at(t, 0)), 0, count);
    for (size_t i = 0; i < count && !code; i++)
        if (!isfinite(m->values[i]))
            code =
                steer_fail(err, STEER_BAD_MODEL, "%s: value %zu is not a finite number", path, i);
    if (!code && !(code = tensors_check(t, err))) {
        *ret = m;
        m = NULL;
    }
done:
    free(m);
    tensors_close(t);
    return code;
}

void mean_latent_close(struct mean_latent *m)
{
    free(m);
}

static int fits_all(const struct mean_latent *m)
{
    return m->h == 1 && m->w == 1;
}

int mean_latent_check(const struct mean_latent *m, int h, int w, struct steer_error *err)
{
    if (fits_all(m) || (m->h == h && m->w == w)) return 0;
    return steer_fail(
        err, STEER_BAD_SIZE,
        "the picture has %dx%d latents and the model's mean_latent %dx%d: expected the "
        "same, or a mean of each channel",
        w, h, m->w, m->h);
}

void mean_latent_noise(const struct mean_latent *m, int h, int w, float sample, float noise,
                       float *x)
{
    size_t cells = (size_t)h * (size_t)w, count = (size_t)m->channels * cells;
    for (size_t i = 0; i < count; i++)
        x[i] = sample * m->values[fits_all(m) ? i / cells : i] + noise * x[i];
}
