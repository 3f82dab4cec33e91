// SPDX-License-Identifier: Apache-2.0
#include "graphs.h"

#include <stdio.h>

static struct tensor input_or_none(struct graph *g, const char *name, struct shape shape)
{
    return shape.c ? graph_input(g, name, shape, TYPE_F32) : TENSOR_NONE;
}

void text_graph_begin(struct text_graph *ret, struct graph *g, const struct text_size *s)
{
    *ret = (struct text_graph){.bound_count = 0};
    ret->states = input_or_none(g, "states", (struct shape){1, 1, s->tokens, s->channels});
    ret->pooled = input_or_none(g, "pooled", (struct shape){1, 1, 1, s->pooled_channels});
    ret->mask = input_or_none(g, "mask", (struct shape){1, 1, 1, s->masked ? s->tokens : 0});
}

void text_graph_bound(struct text_graph *t, struct graph *g, struct tensor output, int as_computed)
{
    char name[24];
    if (t->bound_count == TEXT_BOUND_MAX) return; /* the denoiser graph fails */
    snprintf(name, sizeof name, "text.%d", t->bound_count);
    graph_output(g, output, name, as_computed);
    t->bound[t->bound_count++] = output;
}

void denoiser_graph_begin(struct denoiser_graph *ret, struct graph *g,
                          const struct denoiser_size *s)
{
    int b = s->batch, params = s->method == GUIDANCE_NONE ? 0 : GUIDANCE_PARAMS;
    *ret = (struct denoiser_graph){.out = TENSOR_NONE};
    ret->latents = input_or_none(g, "latents", (struct shape){b, s->height, s->width, s->channels});
    ret->timestep = input_or_none(g, "timestep", (struct shape){b, 1, 1, 1});
    ret->guidance =
        input_or_none(g, "guidance.scale", (struct shape){b, 1, 1, s->guidance_channels});
    ret->params = input_or_none(g, "guidance", (struct shape){b, 1, 1, params});
    ret->sizes = input_or_none(g, "sizes", (struct shape){b, 1, 1, s->sizes});
}

struct text_pair denoiser_graph_bound(struct denoiser_graph *d, struct graph *g,
                                      struct shape positive, struct shape negative, int as_computed)
{
    struct text_pair pair = {TENSOR_NONE, TENSOR_NONE};
    char name[24];
    if (d->bound_count == TEXT_BOUND_MAX) return pair; /* whoever reads it fails */
    snprintf(name, sizeof name, "text+.%d", d->bound_count);
    pair.positive = graph_bound(g, name, positive, as_computed);
    snprintf(name, sizeof name, "text-.%d", d->bound_count);
    if (negative.b) pair.negative = graph_bound(g, name, negative, as_computed);
    d->bound[d->bound_count++] = pair;
    return pair;
}

void denoiser_graph_end(struct denoiser_graph *d, struct graph *g, struct tensor out)
{
    d->out = out;
    graph_output(g, out, "denoise.out", 0);
}
