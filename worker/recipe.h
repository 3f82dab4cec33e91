/* recipe.h - how a checkpoint is sampled, as data: a small JSON file (docs/models.md has its keys).
 *
 * A key that a recipe leaves out is taken from the model folder's scheduler_config.json, and what
 * that leaves out from diffusers' default. A new checkpoint needs a new file, never a new branch.
 */
#ifndef WORKER_RECIPE_H
#define WORKER_RECIPE_H
#include <jansson.h>

#include "compute.h"
#include "limits.h"
#include "sampler.h"

struct guidance {
    enum guidance_method method;
    double alpha, phi, tau, beta, offset;
    double scale; /* of CFG; 1: off */
    enum guidance_variant variant;
};

struct recipe {
    char name[STEER_NAME_BYTES_MAX + 1];
    struct sampler_config sampler;
    int steps, steps_min, steps_max;
    int from_mean; /* it starts at the model's mean latent where it has one (mean_latent.h) */
    struct guidance guidance;
    char negative_prompt[1024];
};

/* "none", "nasa", "nag", "vsf" */
const char *guidance_method_name(enum guidance_method method);
const char *guidance_variant_name(enum guidance_variant variant); /* "text", "mass", "joint" */

/* 1 when name is a file's path (it has a '/' or ends in .json). Jobs from a farm may not name
 * files of this machine: job_plan_make refuses them. */
int recipe_is_file(const char *name);
/* The file of that name or path. STEER_UNKNOWN_RECIPE. */
int recipe_path(char *out, size_t size, const char *name, struct steer_error *err) STEER_MUSTCHECK;

/* What a model folder lends to a recipe. */
struct recipe_folder {
    const json_t *scheduler; /* scheduler_config.json; NULL: it has none */
    const char *scheduler_file;
    const char *family;       /* a recipe for others is refused; NULL: none is */
    struct guidance guidance; /* the numbers that the recipe does not say */
    int joint_attention;      /* guidance may name a variant of NASA */
    int old_rules;            /* steps_offset counts as 1 and clip_sample as false */
};

/* name is one of the shipped recipes or of $STEER_RECIPES, or a path with a '/' or ending in .json.
 * STEER_UNKNOWN_RECIPE, STEER_BAD_MODEL or STEER_UNSUPPORTED with one sentence. */
int recipe_load(struct recipe *ret, const char *name, const struct recipe_folder *folder,
                struct steer_error *err) STEER_MUSTCHECK;

/* Calls each for every recipe file that ships or lies in $STEER_RECIPES, in order of name, without
 * the ".json". */
void recipe_list(void (*each)(void *data, const char *name), void *data);

#endif
