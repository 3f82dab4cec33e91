/* original_names.h - what parameters are called in the code that models were published with.
 *
 * Single-file checkpoints have these names (CompVis and Stability AI for the U-Net and the VAE,
 * OpenCLIP, Black Forest Labs for FLUX), and many LoRA files, which write '_' for each '.'. Ours
 * are diffusers'. Some tensors hold several of ours, one after another along their rows. */
#ifndef WORKER_ORIGINAL_NAMES_H
#define WORKER_ORIGINAL_NAMES_H
#include "tensors.h"

enum original_code {
    ORIGINAL_NONE, /* the names are ours */
    ORIGINAL_UNET,
    ORIGINAL_VAE,
    ORIGINAL_OPEN_CLIP,
    ORIGINAL_FLUX,
};

/* What a name alone does not tell: U-Nets count all blocks through where ours count levels and
 * layers, VAEs count levels from the other end, and fused matrices are cut by the model's width. */
#define ORIGINAL_LEVELS_MAX 16
struct original_layout {
    enum original_code code;
    int downs, down[ORIGINAL_LEVELS_MAX]; /* input_blocks that are downsamplers */
    int ups, up[ORIGINAL_LEVELS_MAX];     /* output_blocks that end with an upsampler */
    int levels;                           /* of the VAE's decoder */
    int64_t width;                        /* of OpenCLIP and FLUX */
};
/* From a file's own names, which begin with prefix. */
void original_layout_read(struct original_layout *ret, enum original_code code,
                          const struct tensors *t, const char *prefix);
/* From a model in our names, for LoRA files that are to change it. */
void original_layout_of(struct original_layout *ret, enum original_code code,
                        const struct tensors *t);

enum original_form {
    FORM_SAME,
    FORM_FLAT,       /* a 1x1 convolution that is a matrix of ours */
    FORM_TRANSPOSED, /* [in, out] */
    FORM_SWAPPED,    /* shift, scale where ours are scale, shift: halves of the rows */
};

#define ORIGINAL_PARTS_MAX  4
#define ORIGINAL_NAME_BYTES 192
struct original_name {
    enum original_form form;
    int parts; /* each has `width` rows but the last, which has the rest */
    char ours[ORIGINAL_PARTS_MAX][ORIGINAL_NAME_BYTES];
};

/* name without its prefix: of a tensor, or of a module. '_' counts as '.' where ours needs one;
 * what follows the translated part is taken as it is. 0: no name of that code. */
int original_translate(struct original_name *ret, const struct original_layout *layout,
                       const char *name);

#endif
