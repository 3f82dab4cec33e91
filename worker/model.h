/* model.h - a model folder as Hugging Face diffusers lays it out, opened on a compute.
 *
 * The Stable Diffusion 1.5 family: CLIPTokenizer, CLIPTextModel, UNet2DConditionModel,
 * AutoencoderKL or AutoencoderTiny, any sizes, read from the folder as it is. Opening checks every
 * tensor's name, type and shape; the weights themselves are packed when the first plan needs them.
 */
#ifndef WORKER_MODEL_H
#define WORKER_MODEL_H
#include <jansson.h>

#include "limits.h"
#include "model/clip.h"
#include "model/unet.h"
#include "model/vae.h"
#include "recipe.h"
#include "text/clip_bpe.h"

struct model {
    char dir[1024];
    char name[STEER_NAME_BYTES_MAX + 1]; /* the folder's name */
    char hash[33];                       /* hex, over names and bytes of the files that are read */
    struct clip_bpe *tokenizer;
    int tokens; /* of a text as the encoder gets it */
    struct clip_config clip;
    struct unet_config unet;
    struct vae_config vae;
    struct params *clip_params, *unet_params, *vae_params;
    struct unet_graph layers; /* of a dry recording: where the cross-attention layers are */
    json_t *scheduler;        /* scheduler_config.json; NULL: none */
    char scheduler_file[1100];
    char default_recipe[STEER_NAME_BYTES_MAX + 1];
    int factor;        /* pixels per latent cell and side */
    int width, height; /* default size, pixels */
    size_t file_bytes; /* of the tensor files */
};

/* STEER_BAD_MODEL, STEER_UNSUPPORTED or STEER_NOT_FOUND: one sentence that names the file, the
 * thing, what was found and what was expected. */
int model_open(struct model **ret, const char *dir, struct compute *c,
               struct steer_error *err) STEER_MUSTCHECK;
/* The same checks for a worker's offer, with no weights kept and nothing on the device. Such a
 * model serves model_recipe and its plain fields alone. */
int model_inspect(struct model **ret, const char *dir, struct steer_error *err) STEER_MUSTCHECK;
void model_close(struct model *m); /* NULL is fine; no plan may use it any more */

/* name NULL: the folder's default recipe. */
int model_recipe(const struct model *m, const char *name, struct recipe *ret,
                 struct steer_error *err) STEER_MUSTCHECK;
/* STEER_BAD_SIZE unless both sides are multiples of 8 pixels within the limits. */
int model_size_check(const struct model *m, int width, int height,
                     struct steer_error *err) STEER_MUSTCHECK;

#endif
