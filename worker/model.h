/* model.h - a model folder as Hugging Face diffusers lays it out, or a model file over one
 * (folder.h), opened on a compute.
 *
 * A denoiser of one of the families (model/family.h) with its text encoders, and AutoencoderKL or
 * AutoencoderTiny; any sizes, read from the folder as it is. Opening checks every tensor's name,
 * type and shape; the weights themselves are packed when the first plan needs them.
 */
#ifndef WORKER_MODEL_H
#define WORKER_MODEL_H
#include <jansson.h>

#include "folder.h"
#include "limits.h"
#include "mean_latent.h"
#include "model/family.h"
#include "model/text_encoder.h"
#include "model/vae.h"
#include "recipe.h"

struct model {
    struct folder folder;
    char name[STEER_NAME_BYTES_MAX + 1]; /* the folder's name, or the file's without .json */
    char hash[33];                       /* hex, over names and bytes of the files that are read */
    const struct family *family;
    /* Texts: the states of all encoders that give some, side by side, and the one pooled state. */
    struct text_encoder encoders[TEXT_ENCODERS_MAX];
    int encoders_count;
    struct text_size text;
    int zero_when_absent; /* an absent negative is zeros, not the encoding of "" */
    /* The denoiser: its part and class of the index, the family's own configuration (freed with
     * free), and what that says to others. */
    const char *denoiser_part;
    void *denoiser;
    int latent_channels;
    int guidance_channels;           /* of the guidance scale's embedding; 0: it is not told */
    int sizes;                       /* numbers of a picture's size that it is told */
    int sample_width, sample_height; /* latent cells it was trained at; 0: not said */
    int patch;                       /* latent cells a side that sizes must be multiples of */
    struct params *denoiser_params;
    /* The decoder. */
    struct vae_config vae;
    struct params *vae_params;

    json_t *scheduler; /* scheduler_config.json; NULL: none */
    char scheduler_file[1100];
    char default_recipe[STEER_NAME_BYTES_MAX + 1];
    int factor;          /* pixels per latent cell and side */
    int multiple;        /* sizes in pixels are multiples of it */
    int width, height;   /* default size, pixels */
    struct loras *loras; /* of a model file; NULL: none */
    struct mean_latent *mean;
    size_t tensor_bytes; /* of all parts, as they are stored */
};

/* STEER_BAD_MODEL, STEER_UNSUPPORTED or STEER_NOT_FOUND: one sentence that names the file, the
 * thing, what was found and what was expected. */
int model_open(struct model **ret, const char *path, struct compute *c,
               struct steer_error *err) STEER_MUSTCHECK;
/* The same checks for a worker's offer, with no weights kept and nothing on the device. Such a
 * model serves model_recipe and its plain fields alone. */
int model_inspect(struct model **ret, const char *path, struct steer_error *err) STEER_MUSTCHECK;
void model_close(struct model *m); /* NULL is fine; no plan may use it any more */

/* STEER_BAD_MODEL when a file was cut short while its weights were read: what was rendered since is
 * wrong, and the model is to be closed. */
int model_whole(const struct model *m, struct steer_error *err) STEER_MUSTCHECK;

/* name NULL: the folder's default recipe. */
int model_recipe(const struct model *m, const char *name, struct recipe *ret,
                 struct steer_error *err) STEER_MUSTCHECK;
/* STEER_BAD_SIZE unless both sides are multiples of the model's pixels within the limits. */
int model_size_check(const struct model *m, int width, int height,
                     struct steer_error *err) STEER_MUSTCHECK;

/* STEER_BAD_SIZE when the recipe starts from a mean latent that the model has in another size. */
int model_start_check(const struct model *m, const struct recipe *recipe, int width, int height,
                      struct steer_error *err) STEER_MUSTCHECK;

/* The graphs (model/graphs.h), whose mistakes are in n's graph and params. size: latent cells. */
void model_record_text(const struct model *m, struct text_graph *ret, struct net *n);
/* texts: how many chunks each has. */
struct text_chunks {
    int positive, negative;
};
void model_record_denoiser(const struct model *m, struct denoiser_graph *ret, struct net *n,
                           struct shape size, struct text_chunks texts, enum guidance_method method,
                           enum guidance_variant variant);

#endif
