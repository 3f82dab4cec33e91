/* graphs.h - the graphs that a model of any family is made of, beside its decoder:
 *
 *     encoder graph    one for each text encoder: a prompt's ids to hidden states
 *     text graph       what the denoiser needs of one text and that depends on neither noise nor
 *                      time (keys and values of its cross-attention layers): cached per prompt
 *     denoiser graph   runs once per step; the text graph's outputs are bound to it
 *
 * Inputs are made here, so that the pipeline fills them alike for every family (family.h). */
#ifndef WORKER_GRAPHS_H
#define WORKER_GRAPHS_H
#include "net.h"

#define TEXT_BOUND_MAX 520
#define SIZES_MAX      6

/* ---- texts ---- */

/* Which hidden states of an encoder are taken, and which pooled state. */
enum text_states { STATES_NONE, STATES_LAST /* after the final norm */, STATES_PENULTIMATE };
enum text_pooled { POOLED_NONE, POOLED_LAST /* of the final norm */, POOLED_PROJECTED };

struct encoder_graph {
    struct tensor ids;    /* input [1, 1, tokens, 1] i32 */
    struct tensor mask;   /* input [1, 1, 1, tokens], 0 or -inf; TENSOR_NONE: padding is seen */
    struct tensor states; /* output [1, 1, tokens, channels] f32; TENSOR_NONE */
    struct tensor pooled; /* output [1, 1, tokens, channels] f32, of which one row counts */
};
/* As recording finds it: an encoder fills in what it has. */
#define ENCODER_GRAPH_NONE                                                                         \
    ((struct encoder_graph){TENSOR_NONE, TENSOR_NONE, TENSOR_NONE, TENSOR_NONE})

/* One text: what all encoders together give. */
struct text_size {
    int tokens, channels;
    int pooled_channels; /* 0: no pooled state */
    int masked;          /* padding is masked */
};

struct text_graph {
    struct tensor states;                /* input [1, 1, tokens, channels] */
    struct tensor pooled;                /* input [1, 1, 1, pooled_channels]; TENSOR_NONE */
    struct tensor mask;                  /* input [1, 1, 1, tokens]; TENSOR_NONE */
    struct tensor bound[TEXT_BOUND_MAX]; /* outputs */
    int bound_count;
};
/* The inputs; then the family's own outputs, each by text_graph_bound, in the order and with the
 * as_computed of denoiser_graph_bound: 1 for what is multiplied (keys, values), 0 for f32. */
void text_graph_begin(struct text_graph *ret, struct graph *g, const struct text_size *size);
void text_graph_bound(struct text_graph *t, struct graph *g, struct tensor output, int as_computed);

/* ---- denoiser ---- */

struct denoiser_size {
    int batch, height, width;             /* latent cells */
    int tokens_positive, tokens_negative; /* rows of each text */
    enum guidance_method method;
    enum guidance_variant variant; /* of NASA, where attention is joint */
    int channels;                  /* of the latents */
    int guidance_channels;         /* of the guidance scale's embedding; 0: the model is not told */
    int sizes; /* numbers of the picture's size that the model is told; 0: none */
};

/* The same output of the text graph for both texts. */
struct text_pair {
    struct tensor positive, negative; /* bound; negative TENSOR_NONE: not read */
};

struct denoiser_graph {
    struct tensor latents;  /* input [B, h, w, channels] */
    struct tensor timestep; /* input [B, 1, 1, 1] */
    struct tensor guidance; /* input [B, 1, 1, guidance_channels]; TENSOR_NONE */
    struct tensor params;   /* input [B, 1, 1, GUIDANCE_PARAMS]; TENSOR_NONE for GUIDANCE_NONE */
    struct tensor sizes;    /* input [B, 1, 1, sizes]; TENSOR_NONE */
    struct tensor out;      /* output [B, h, w, channels] f32: the family's, the last it records */
    struct text_pair bound[TEXT_BOUND_MAX]; /* in the text graph's order */
    int bound_count;
};
/* The inputs; then the family's forward, which ends with denoiser_graph_end. */
void denoiser_graph_begin(struct denoiser_graph *ret, struct graph *g,
                          const struct denoiser_size *size);
/* negative.b 0: this output of the negative text is not read. */
struct text_pair denoiser_graph_bound(struct denoiser_graph *d, struct graph *g,
                                      struct shape positive, struct shape negative,
                                      int as_computed);
void denoiser_graph_end(struct denoiser_graph *d, struct graph *g, struct tensor out);

#endif
