/* pipeline.h - prompts to pixels: the stages of one batch on one compute.
 *
 *     tokenize -> encode both texts (cache) -> noise from the seed -> denoise under guidance ->
 *     decode -> 8 bits
 *
 * A pipeline belongs to one open model. It keeps plans (per size, batch and guidance) and prompt
 * embeddings with what the denoiser is bound to of them (keys, values), both least-recently-used
 * within bounds. Images
 * of a batch share forward passes and nothing else: each is what it would be alone, to the byte.
 * They share the denoiser's, if their texts have equally many chunks; the decoder, whose
 * activations are by far the largest, takes one image at a time. */
#ifndef WORKER_PIPELINE_H
#define WORKER_PIPELINE_H
#include <stdint.h>

#include "limits.h"
#include "model.h"
#include "recipe.h"
#include "text/prompt_chunks.h"

struct pipeline;

struct pipeline_limits {
    size_t text_bytes_max; /* of cached embeddings, keys and values */
    int plans_max;
    /* Text encoders' plans and packed weights go when a batch's texts are encoded; texts that are
     * not cached pack them again, and where memory is short the rest of the model makes room for
     * that: the encoders and what comes after them are then never held at once. */
    int text_leaves;
    /* Called when a plan does not fit into the compute's memory and this pipeline has none to spare
     * but those of the running batch: 1 when something else was given up. NULL: nothing can be. */
    int (*make_room)(void *data);
    void *data;
};
struct pipeline_limits pipeline_limits_default(void);

/* Borrows m and c. */
int pipeline_new(struct pipeline **ret, struct model *m, struct compute *c,
                 struct pipeline_limits limits) STEER_MUSTCHECK;
void pipeline_free(struct pipeline *p);

/* What the images of a batch share. */
struct render_shape {
    const struct recipe *recipe;
    int width, height, steps;
    enum guidance_method method;
    int cfg; /* a second pass under the negative text */
    enum guidance_variant variant;
};

/* Microseconds. tokenize and text are this image's own; load (plans and packing weights for them),
 * denoise and decode the whole batch's. */
struct render_times {
    uint64_t load_us, tokenize_us, text_us, denoise_us, decode_us;
};

struct render_image {
    const char *prompt, *negative; /* negative "" is a text like any other; NULL: absent */
    struct prompt_reading reading; /* of both */
    struct guidance guidance;      /* method as the shape's; the numbers are this image's own */
    uint64_t seed;
    /* results */
    uint8_t *pixels;          /* the caller's, width * height * 3 */
    size_t cut, cut_negative; /* byte at which the text was cut; 0: it was not */
    int together;             /* images that shared its forward passes */
    struct render_times times;
};

/* Tensors of a batch of one, for people who debug a checkpoint; names as
 * docs/models.md lists them. Channels first (the image [H, W, 3]), no batch axis, freed with
 * dump_free. */
struct dump_tensor {
    char name[24];
    enum compute_type type; /* f32; tokens i32, image u8 */
    int rank;
    int64_t shape[4];
    void *data;
};
#define DUMP_TENSORS_MAX 16
struct dump {
    struct dump_tensor tensors[DUMP_TENSORS_MAX];
    int count;
};
void dump_free(struct dump *d);

struct render_watch {
    /* After each operation; non-zero cancels. step counts denoiser calls from 0. */
    int (*tick)(void *data, int step, int steps);
    void *data;
};

/* Renders count images (1..STEER_BATCH_MAX), those with equally many chunks of text together. dump
 * (NULL: none) wants count 1. */
int pipeline_render(struct pipeline *p, const struct render_shape *shape,
                    struct render_image *images, int count, struct dump *dump,
                    const struct render_watch *watch, struct steer_error *err) STEER_MUSTCHECK;

/* The plans of a shape and of an image's texts, for reports and tuning; they stay until another
 * shape is rendered. STEER_NO_MEMORY when they do not fit together. */
struct pipeline_plans {
    int chunks; /* of the positive text */
    /* Of one chunk: each encoder's (NULL after the last; with text_leaves none, they have gone),
     * and what the denoiser is bound to. */
    struct plan *encoders[TEXT_ENCODERS_MAX + 1], *text;
    struct plan *denoise, *second; /* of a batch; second: CFG's other pass, else NULL */
    struct plan *decode;           /* of one image */
};
int pipeline_plans(struct pipeline *p, const struct render_shape *shape,
                   const struct render_image *image, int batch, struct pipeline_plans *ret,
                   struct steer_error *err) STEER_MUSTCHECK;
/* How often a job of that shape calls the denoiser (twice each with CFG). */
int pipeline_calls(const struct render_shape *shape, int *ret,
                   struct steer_error *err) STEER_MUSTCHECK;

#endif
