// SPDX-License-Identifier: Apache-2.0
#include "pixart.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "../json.h"

enum { TIME_CHANNELS = 256 }; /* of a sinusoid before its embedding */

/* ---- configuration ---- */

/* Keys that change the forward in ways that PixArt does not have; folders from before the class had
 * its name (Transformer2DModel) say them. */
static int refuse_others(const json_t *config, const char *file, struct steer_error *err)
{
    static const char *const norms[] = {"ada_norm_single", NULL}, *const types[] = {"default",
                                                                                    NULL};
    static const char *const flags[] = {"double_self_attention", "only_cross_attention"};
    int which, on, vectors, code;
    if ((code = json_choice(&which, config, "norm_type", 0, norms, file, err)) ||
        (code = json_choice(&which, config, "attention_type", 0, types, file, err)) ||
        (code = json_whole(&vectors, config, "num_vector_embeds", 0, 0, 0, file, err)))
        return code;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        if ((code = json_flag(&on, config, flags[i], 0, file, err))) return code;
        if (on)
            return steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" is true: PixArt has false", file,
                              flags[i]);
    }
    return 0;
}

/* What the numbers must be to each other. */
static int config_check(const struct pixart_config *c, const char *file, struct steer_error *err)
{
    int channels = c->heads * c->head_channels;
    if (c->out_channels != c->in_channels && c->out_channels != 2 * c->in_channels)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"out_channels\" is %d: expected in_channels, %d, or twice as many",
                          file, c->out_channels, c->in_channels);
    if (channels > PIXART_CHANNELS_MAX)
        return steer_fail(err, STEER_UNSUPPORTED, "%s: %d heads of %d channels: over %d channels",
                          file, c->heads, c->head_channels, PIXART_CHANNELS_MAX);
    if (channels % 4 || (c->conditions && channels % 3))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: %d heads of %d channels are %d: expected a multiple of %d, %s", file,
                          c->heads, c->head_channels, channels, c->conditions ? 12 : 4,
                          c->conditions ? "for positions and sizes" : "for positions");
    if (c->caption_channels && c->cross_channels != channels)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"cross_attention_dim\" is %d: expected %d, the channels of all "
                          "heads, to which captions are projected",
                          file, c->cross_channels, channels);
    if (c->patch > c->sample_size)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"patch_size\" is %d: expected at most sample_size %d", file,
                          c->patch, c->sample_size);
    if (!(c->norm_eps > 0) || !(c->interpolation_scale > 0))
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"%s\": expected more than 0", file,
                          c->norm_eps > 0 ? "interpolation_scale" : "norm_eps");
    return 0;
}

int pixart_config_load(struct pixart_config *ret, const json_t *config, const char *file,
                       struct steer_error *err)
{
    static const char *const act_names[] = {"gelu-approximate", "gelu", NULL};
    static const enum activation acts[] = {ACT_GELU_TANH, ACT_GELU};
    struct pixart_config c = {0};
    int act, code;
    if ((code = refuse_others(config, file, err)) ||
        (code = json_whole(&c.heads, config, "num_attention_heads", 16, 1, 1024, file, err)) ||
        (code =
             json_whole(&c.head_channels, config, "attention_head_dim", 72, 1, 1024, file, err)) ||
        (code = json_whole(&c.in_channels, config, "in_channels", 4, 1, 64, file, err)))
        return code;
    /* null means as many as go in, and absent the class's default. */
    int out = json_is_null(json_object_get(config, "out_channels")) ? c.in_channels : 8;
    if ((code = json_whole(&c.out_channels, config, "out_channels", out, 1, 128, file, err)) ||
        (code = json_whole(&c.layers, config, "num_layers", 28, 1, PIXART_LAYERS_MAX, file, err)) ||
        (code = json_whole(&c.cross_channels, config, "cross_attention_dim", 1152, 1, 65536, file,
                           err)) ||
        (code =
             json_whole(&c.caption_channels, config, "caption_channels", 0, 1, 65536, file, err)) ||
        (code = json_whole(&c.sample_size, config, "sample_size", 128, 1, 65536, file, err)) ||
        (code = json_whole(&c.patch, config, "patch_size", 2, 1, 16, file, err)) ||
        (code = json_flag(&c.attention_bias, config, "attention_bias", 1, file, err)) ||
        (code = json_flag(&c.norm_affine, config, "norm_elementwise_affine", 0, file, err)) ||
        (code = json_number(&c.norm_eps, config, "norm_eps", 1e-6, file, err)) ||
        (code = json_choice(&act, config, "activation_fn", 0, act_names, file, err)) ||
        (code = json_number(&c.interpolation_scale, config, "interpolation_scale",
                            c.sample_size >= 128 ? c.sample_size / 64 : 1, file, err)) ||
        (code = json_flag(&c.conditions, config, "use_additional_conditions", c.sample_size == 128,
                          file, err)))
        return code;
    c.act = acts[act];
    if ((code = config_check(&c, file, err))) return code;
    *ret = c;
    return 0;
}

/* ---- forward ---- */

struct forward {
    struct net *n;
    const struct pixart_config *c;
    struct denoiser_graph *out;
    const struct denoiser_size *size;
    int channels;
    struct tensor modulation; /* [B, 1, 1, 6 * channels]; each block adds its own to it */
    struct text_pair mask;    /* of both texts */
};

/* A row of positions: sines, then cosines. The reference has places in f32 and angles in f64. */
static void position_fill(float *out, int channels, int place, int places_trained, int places,
                          double scale)
{
    int half = channels / 2;
    float at = (float)place / (float)((double)places / places_trained) / (float)scale;
    for (int i = 0; i < half; i++) {
        double angle = (double)at / pow(10000, (double)i / half);
        out[i] = (float)sin(angle);
        out[half + i] = (float)cos(angle);
    }
}

/* [1, h, w, channels]: the column in the first half of the channels, the row in the second. Sides
 * other than the trained one are as long as it: their places lie closer or wider. */
static struct tensor positions(struct forward *f, int h, int w)
{
    const struct pixart_config *c = f->c;
    int half = f->channels / 2, trained = c->sample_size / c->patch;
    size_t row = (size_t)f->channels;
    float *data = malloc((size_t)h * (size_t)w * row * sizeof *data);
    for (int y = 0; data && y < h; y++)
        for (int x = 0; x < w; x++) {
            float *at = data + ((size_t)y * (size_t)w + (size_t)x) * row;
            position_fill(at, half, x, trained, w, c->interpolation_scale);
            position_fill(at + half, half, y, trained, h, c->interpolation_scale);
        }
    /* Without memory the graph remembers it. */
    struct tensor t =
        graph_constant(f->n->graph, "positions", (struct shape){1, h, w, f->channels}, data);
    free(data);
    return t;
}

/* TimestepEmbedding over a sinusoid of value [B, 1, 1, 1]. */
static struct tensor embedding(struct forward *f, struct tensor value, int channels,
                               const char *name)
{
    struct net *n = f->n;
    struct tensor t = op_sinusoid(n->graph, value, TIME_CHANNELS, 1, 0);
    t = net_linear(n, t, channels, 1, ACT_SILU, "adaln_single.emb.%s.linear_1", name);
    return net_linear(n, t, channels, 1, ACT_NONE, "adaln_single.emb.%s.linear_2", name);
}

/* Of the time step and the picture's sizes, before any activation. */
static struct tensor conditioning(struct forward *f)
{
    struct graph *g = f->n->graph;
    struct tensor time = embedding(f, f->out->timestep, f->channels, "timestep_embedder"), sizes;
    if (!f->c->conditions) return time;
    for (int i = 0; i < PIXART_SIZES; i++) {
        const char *name = i < 2 ? "resolution_embedder" : "aspect_ratio_embedder";
        struct tensor one =
            embedding(f, op_channels(g, f->out->sizes, i, 1), f->channels / 3, name);
        sizes = i ? op_concat(g, sizes, one) : one;
    }
    return op_add(g, time, sizes);
}

static struct tensor norm(struct forward *f, struct tensor x, const char *path, const char *name)
{
    if (f->c->norm_affine) return net_layer_norm(f->n, x, f->c->norm_eps, "%s.%s", path, name);
    return op_layer_norm(f->n->graph, x, NULL, f->c->norm_eps);
}

static struct tensor self_attention(struct forward *f, struct tensor x, const char *path)
{
    static const char *const names[] = {"to_q", "to_k", "to_v"};
    struct net *n = f->n;
    struct graph *g = n->graph;
    int channels = f->channels;
    struct tensor qkv =
        net_linear_stack(n, x, channels, f->c->attention_bias, 3, names, "%s.attn1", path);
    struct tensor q = op_channels(g, qkv, 0, channels);
    struct tensor k = op_channels(g, qkv, channels, channels);
    struct tensor v = op_channels(g, qkv, 2 * channels, channels);
    double scale = 1 / sqrt(f->c->head_channels);
    x = op_attention(g, q, k, v, f->c->heads, scale, 0, TENSOR_NONE, TENSOR_NONE);
    return net_linear(n, x, channels, 1, ACT_NONE, "%s.attn1.to_out.0", path);
}

/* The next of the text graph's outputs, for both texts where both are read. */
static struct text_pair bound(struct forward *f, struct shape positive, struct shape negative,
                              int as_computed)
{
    if (f->size->method == GUIDANCE_NONE) negative.b = 0;
    return denoiser_graph_bound(f->out, f->n->graph, positive, negative, as_computed);
}

/* Guidance acts here, before the output projection; what goes in is not normalised. */
static struct tensor cross_attention(struct forward *f, struct tensor x, const char *path)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    const struct denoiser_size *s = f->size;
    int channels = f->channels, bias = f->c->attention_bias;
    struct shape rows = {s->batch, 1, s->tokens_positive, channels},
                 rows_negative = {s->batch, 1, s->tokens_negative, channels};
    struct text_pair k = bound(f, rows, rows_negative, 1), v = bound(f, rows, rows_negative, 1);

    struct tensor q = net_linear(n, x, channels, bias, ACT_NONE, "%s.attn2.to_q", path), h;
    double scale = 1 / sqrt(f->c->head_channels);
    if (s->method == GUIDANCE_NONE) {
        h = op_attention(g, q, k.positive, v.positive, f->c->heads, scale, 0, f->mask.positive,
                         TENSOR_NONE);
    } else {
        struct text_keys positive = {k.positive, v.positive, f->mask.positive};
        struct text_keys negative = {k.negative, v.negative, f->mask.negative};
        h = op_guided_attention(g, q, positive, negative, TEXT_KEYS_NONE, f->c->heads, scale,
                                s->method, GUIDANCE_TEXT, f->out->params);
    }
    return net_linear(n, h, channels, 1, ACT_NONE, "%s.attn2.to_out.0", path);
}

/* BasicTransformerBlock with ada_norm_single: the attention to the text has neither norm nor gate.
 */
static struct tensor block(struct forward *f, struct tensor x, int i)
{
    enum { SHIFT, SCALE, GATE, FF_SHIFT, FF_SCALE, FF_GATE, PARTS };
    struct net *n = f->n;
    struct graph *g = n->graph;
    struct tensor part[PARTS];
    char path[48];
    snprintf(path, sizeof path, "transformer_blocks.%d", i);
    struct tensor own = net_constant(n, PARTS, f->channels, "%s.scale_shift_table", path);
    struct tensor all = op_add(g, f->modulation, own);
    for (int k = 0; k < PARTS; k++)
        part[k] = op_channels(g, all, k * f->channels, f->channels);

    struct tensor h = op_modulate(g, norm(f, x, path, "norm1"), part[SHIFT], part[SCALE]);
    x = op_gated_add(g, x, part[GATE], self_attention(f, h, path));
    x = op_add(g, x, cross_attention(f, x, path));
    h = op_modulate(g, norm(f, x, path, "norm2"), part[FF_SHIFT], part[FF_SCALE]);
    h = net_linear(n, h, 4 * f->channels, 1, f->c->act, "%s.ff.net.0.proj", path);
    h = net_linear(n, h, f->channels, 1, ACT_NONE, "%s.ff.net.2", path);
    return op_gated_add(g, x, part[FF_GATE], h);
}

void pixart_record(struct denoiser_graph *d, struct net *n, const struct pixart_config *c,
                   const struct denoiser_size *s)
{
    struct graph *g = n->graph;
    struct forward f = {.n = n, .c = c, .out = d, .size = s};
    int channels = f.channels = c->heads * c->head_channels;
    struct shape mask = {s->batch, 1, 1, s->tokens_positive},
                 mask_negative = {s->batch, 1, 1, s->tokens_negative};
    f.mask = bound(&f, mask, mask_negative, 0);
    struct tensor time = conditioning(&f);
    f.modulation = net_linear(n, op_activation(g, time, ACT_SILU), 6 * channels, 1, ACT_NONE,
                              "adaln_single.linear");

    struct tensor x = net_patches(n, d->latents, channels, c->patch, "pos_embed.proj");
    struct shape p = graph_shape(g, x);
    x = op_add(g, x, positions(&f, p.h, p.w));
    x = op_reshape(g, x, 1, p.h * p.w);
    for (int i = 0; i < c->layers; i++)
        x = block(&f, x, i);

    struct tensor own = net_constant(n, 2, channels, "scale_shift_table");
    struct tensor shift = op_add(g, time, op_channels(g, own, 0, channels));
    struct tensor scale = op_add(g, time, op_channels(g, own, channels, channels));
    x = op_modulate(g, op_layer_norm(g, x, NULL, 1e-6), shift, scale);
    x = net_linear(n, x, c->patch * c->patch * c->out_channels, 1, ACT_NONE, "proj_out");
    x = op_unpatches(g, op_reshape(g, x, p.h, p.w), c->patch, PATCH_CHANNEL_LAST);
    /* The second half is a variance that no sampler here reads. */
    if (c->out_channels != c->in_channels)
        x = op_affine(g, op_channels(g, x, 0, c->in_channels), 1, 0);
    denoiser_graph_end(d, g, x);
}

void pixart_record_text(struct text_graph *t, struct net *n, const struct pixart_config *c)
{
    struct graph *g = n->graph;
    int channels = c->heads * c->head_channels, bias = c->attention_bias;
    struct tensor x = t->states;
    text_graph_bound(t, g, op_affine(g, t->mask, 1, 0), 0);
    if (c->caption_channels) {
        x = net_linear(n, x, channels, 1, ACT_GELU_TANH, "caption_projection.linear_1");
        x = net_linear(n, x, channels, 1, ACT_NONE, "caption_projection.linear_2");
    }
    for (int i = 0; i < c->layers; i++) {
        static const char path[] = "transformer_blocks.%d.attn2.%s";
        text_graph_bound(t, g, net_linear(n, x, channels, bias, ACT_NONE, path, i, "to_k"), 1);
        text_graph_bound(t, g, net_linear(n, x, channels, bias, ACT_NONE, path, i, "to_v"), 1);
    }
}
