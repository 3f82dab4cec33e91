// SPDX-License-Identifier: Apache-2.0
#include "unet.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../json.h"

/* ---- configuration ---- */

static int is_given(const json_t *value)
{
    return value && !json_is_null(value);
}

/* A number, or a list with exactly one for each block. */
static int per_block(int *out, const json_t *config, const char *key, int fallback, int most,
                     int blocks, const char *file, struct steer_error *err)
{
    const json_t *value = json_object_get(config, key);
    char shown[JSON_SHOWN_BYTES];
    if (json_is_array(value) && (int)json_array_size(value) != blocks)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"%s\" has %zu entries: expected one for each of %d blocks", file,
                          key, json_array_size(value), blocks);
    for (int i = 0; i < blocks; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, (size_t)i) : value;
        if (!is_given(value))
            out[i] = fallback;
        else if (json_is_integer(item) && json_integer_value(item) > 0 &&
                 json_integer_value(item) <= most)
            out[i] = (int)json_integer_value(item);
        else
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: \"%s\" is %s: expected a number from 1 to %d, or a list of such",
                              file, key, json_shown(shown, value), most);
    }
    return 0;
}

/* Which of the two kinds of block each entry of a list is. */
static int block_kinds(int *attends, const json_t *config, const char *key,
                       const char *const fallback[4], const char *with, const char *without,
                       int blocks, const char *file, struct steer_error *err)
{
    const json_t *list = json_object_get(config, key);
    if (list && (int)json_array_size(list) != blocks)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"%s\" has %zu entries: expected %d, as block_out_channels", file,
                          key, json_array_size(list), blocks);
    if (!list && blocks != 4)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"%s\" is missing and its default has 4 entries, not %d", file, key,
                          blocks);
    for (int i = 0; i < blocks; i++) {
        const char *kind = list ? json_string_value(json_array_get(list, (size_t)i)) : fallback[i];
        if (kind && strcmp(kind, with) == 0)
            attends[i] = 1;
        else if (kind && strcmp(kind, without) == 0)
            attends[i] = 0;
        else
            return steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" has \"%s\": expected %s or %s",
                              file, key, kind ? kind : "(no text)", with, without);
    }
    return 0;
}

/* Keys that change the forward in ways this family does not have, with the one value that means
 * "no": null, false (or a list of false), 1 or a text. */
static int refuse_others(const json_t *config, const char *file, struct steer_error *err)
{
    static const struct {
        const char *key, *value; /* as JSON; null is always fine */
    } only[] = {{"class_embed_type", "null"},
                {"encoder_hid_dim", "null"},
                {"encoder_hid_dim_type", "null"},
                {"num_class_embeds", "null"},
                {"timestep_post_act", "null"},
                {"time_embedding_act_fn", "null"},
                {"cross_attention_norm", "null"},
                {"num_attention_heads", "null"}, /* diffusers raises: attention_head_dim is it */
                {"center_input_sample", "false"},
                {"dual_cross_attention", "false"},
                {"resnet_skip_time_act", "false"},
                {"class_embeddings_concat", "false"},
                {"only_cross_attention", "false"},
                {"mid_block_only_cross_attention", "false"},
                {"resnet_time_scale_shift", "\"default\""},
                {"time_embedding_type", "\"positional\""},
                {"attention_type", "\"default\""},
                {"downsample_padding", "1"},
                {"mid_block_scale_factor", "1"},
                {"resnet_out_scale_factor", "1"}};
    for (size_t i = 0; i < sizeof only / sizeof *only; i++) {
        const json_t *value = json_object_get(config, only[i].key);
        int list = json_is_array(value) && json_array_size(value);
        for (size_t k = 0; k < (list ? json_array_size(value) : 1); k++) {
            const json_t *item = list ? json_array_get(value, k) : value;
            char shown[JSON_SHOWN_BYTES];
            /* A number counts as its value, so that 1.0 is 1. */
            if (!is_given(item) || strcmp(json_shown(shown, item), only[i].value) == 0 ||
                (json_is_number(item) && json_number_value(item) == 1 && *only[i].value == '1'))
                continue;
            return steer_fail(err, STEER_UNSUPPORTED,
                              "%s: \"%s\" is %s: U-Nets of this family have %s", file, only[i].key,
                              json_shown(shown, value), only[i].value);
        }
    }
    return 0;
}

/* Odd, so that "half of it" pads to the same size. */
static int kernel_size(int *ret, const json_t *config, const char *key, const char *file,
                       struct steer_error *err)
{
    int code = json_whole(ret, config, key, 3, 1, 7, file, err);
    if (!code && *ret % 2 == 0)
        code = steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" is %d: expected an odd number", file,
                          key, *ret);
    return code;
}

/* How many transformers the attentions of each block have, on both ways. */
static int transformers_read(struct unet_config *c, const json_t *config, const char *file,
                             struct steer_error *err)
{
    static const char key[] = "transformer_layers_per_block",
                      up_key[] = "reverse_transformer_layers_per_block";
    int code = per_block(c->transformers, config, key, 1, UNET_LAYERS_MAX, c->blocks, file, err);
    if (code) return code;
    if (is_given(json_object_get(config, up_key)))
        return per_block(c->up_transformers, config, up_key, 1, UNET_LAYERS_MAX, c->blocks, file,
                         err);
    for (int i = 0; i < c->blocks; i++)
        c->up_transformers[i] = c->transformers[c->blocks - 1 - i];
    return 0;
}

/* Lists the layers of `depth` transformers, all for one width of text. */
static int cross_add(struct unet_config *c, const char *path, int level, int depth,
                     const char *file, struct steer_error *err)
{
    if (c->text_channels && c->cross_dim[level] != c->text_channels)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"cross_attention_dim\" has %d and %d where there is "
                          "cross-attention: one text is of one width",
                          file, c->text_channels, c->cross_dim[level]);
    c->text_channels = c->cross_dim[level];
    for (int i = 0; i < depth; i++) {
        if (c->cross_count == UNET_CROSS_MAX)
            return steer_fail(err, STEER_UNSUPPORTED, "%s: over %d cross-attention layers", file,
                              UNET_CROSS_MAX);
        struct unet_cross *cross = c->cross + c->cross_count++;
        snprintf(cross->path, sizeof cross->path, "%s.transformer_blocks.%d.attn2", path, i);
        cross->channels = c->channels[level];
    }
    return 0;
}

/* Every cross-attention layer in the order in which unet_record comes by. */
static int cross_list(struct unet_config *c, const char *file, struct steer_error *err)
{
    int last = c->blocks - 1, code = 0;
    char path[48];
    for (int i = 0; i <= last; i++)
        for (int j = 0; j < c->layers[i] && c->down_attends[i] && !code; j++) {
            snprintf(path, sizeof path, "down_blocks.%d.attentions.%d", i, j);
            code = cross_add(c, path, i, c->transformers[i], file, err);
        }
    if (c->mid == UNET_MID_CROSS && !code)
        code = cross_add(c, "mid_block.attentions.0", last, c->transformers[last], file, err);
    for (int i = 0; i <= last; i++)
        for (int j = 0; j <= c->layers[last - i] && c->up_attends[i] && !code; j++) {
            snprintf(path, sizeof path, "up_blocks.%d.attentions.%d", i, j);
            code = cross_add(c, path, last - i, c->up_transformers[i], file, err);
        }
    if (!code && !c->cross_count)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: no block has cross-attention: a prompt would change nothing", file);
    return code;
}

static int blocks_read(struct unet_config *c, const json_t *config, const char *file,
                       struct steer_error *err)
{
    static const int published[] = {320, 640, 1280, 1280};
    static const char *const down[4] = {"CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                                        "CrossAttnDownBlock2D", "DownBlock2D"};
    static const char *const up[4] = {"UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
                                      "CrossAttnUpBlock2D"};
    static const char *const mids[] = {"UNetMidBlock2D", "UNetMidBlock2DCrossAttn", NULL};
    const json_t *channels = json_object_get(config, "block_out_channels");
    c->blocks = channels ? (int)json_array_size(channels) : 4;
    if (c->blocks < 1 || c->blocks > UNET_BLOCKS_MAX)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"block_out_channels\" has %d entries: expected 1 to %d", file,
                          c->blocks, UNET_BLOCKS_MAX);
    int code = 0, mid = 1;
    memcpy(c->channels, published, sizeof published);
    if (channels)
        code = per_block(c->channels, config, "block_out_channels", 0, 65536, c->blocks, file, err);
    /* attention_head_dim is a count of heads here (diffusers' historical slip, kept for good). */
    if (code ||
        (code = block_kinds(c->down_attends, config, "down_block_types", down,
                            "CrossAttnDownBlock2D", "DownBlock2D", c->blocks, file, err)) ||
        (code = block_kinds(c->up_attends, config, "up_block_types", up, "CrossAttnUpBlock2D",
                            "UpBlock2D", c->blocks, file, err)) ||
        (code = per_block(c->heads, config, "attention_head_dim", 8, 1024, c->blocks, file, err)) ||
        (code = per_block(c->layers, config, "layers_per_block", 2, UNET_LAYERS_MAX, c->blocks,
                          file, err)) ||
        (code = per_block(c->cross_dim, config, "cross_attention_dim", 1280, 65536, c->blocks, file,
                          err)) ||
        (code = transformers_read(c, config, file, err)) ||
        (code = json_choice(&mid, config, "mid_block_type", 1, mids, file, err)))
        return code;
    const json_t *mid_type = json_object_get(config, "mid_block_type");
    c->mid = json_is_null(mid_type) ? UNET_MID_NONE : mid ? UNET_MID_CROSS : UNET_MID_RESNET;

    for (int i = 0; i < c->blocks; i++) {
        int attends = c->down_attends[i] || c->up_attends[c->blocks - 1 - i] ||
                      (i == c->blocks - 1 && c->mid == UNET_MID_CROSS);
        if (attends && c->channels[i] % c->heads[i])
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: %d channels of block %d do not divide into %d heads", file,
                              c->channels[i], i, c->heads[i]);
        if (c->channels[i] % c->groups)
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: %d channels of block %d do not divide into norm_num_groups %d",
                              file, c->channels[i], i, c->groups);
    }
    return cross_list(c, file, err);
}

/* diffusers' old folders say a smaller sample_size than they were trained at; its pipeline makes 64
 * of anything below in folders written before 0.9. */
static int sample_size_read(struct unet_config *c, const json_t *config, const char *file,
                            struct steer_error *err)
{
    const json_t *size = json_object_get(config, "sample_size");
    const char *version = json_string_value(json_object_get(config, "_diffusers_version"));
    int major = 1, minor = 0, code, sides[2] = {0, 0};
    char shown[JSON_SHOWN_BYTES];
    if (version && sscanf(version, "%d.%d", &major, &minor) < 1) major = 1;
    for (size_t i = 0; i < 2 && is_given(size); i++) {
        const json_t *side = json_is_array(size) ? json_array_get(size, i) : size;
        if (!json_is_integer(side) || json_integer_value(side) < 1 ||
            json_integer_value(side) > 65536) {
            code = STEER_BAD_MODEL;
            return steer_fail(err, code, "%s: \"sample_size\" is %s: expected 1 to 65536, or two",
                              file, json_shown(shown, size));
        }
        sides[i] = (int)json_integer_value(side);
    }
    if (json_is_integer(size) && sides[0] < 64 && major == 0 && minor < 9) sides[0] = sides[1] = 64;
    c->sample_height = sides[0];
    c->sample_width = sides[1];
    return 0;
}

/* What is added to the time embedding. */
static int addition_read(struct unet_config *c, const json_t *config, const char *file,
                         struct steer_error *err)
{
    static const char *const types[] = {"text_time", NULL};
    int type, code = json_choice(&type, config, "addition_embed_type", 1, types, file, err);
    if (code || type == 1) return code; /* null or absent: nothing */
    if ((code = json_whole(&c->added_time_channels, config, "addition_time_embed_dim", 0, 2, 65536,
                           file, err)) ||
        (code = json_whole(&c->added_channels, config, "projection_class_embeddings_input_dim", 0,
                           1, 1 << 20, file, err)))
        return code;
    if (!c->added_time_channels || !c->added_channels)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"addition_embed_type\" is \"text_time\": expected "
                          "addition_time_embed_dim and projection_class_embeddings_input_dim too",
                          file);
    if (c->added_time_channels / 2 - c->freq_shift <= 0)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"freq_shift\" is %g: expected less than half of "
                          "addition_time_embed_dim %d",
                          file, c->freq_shift, c->added_time_channels);
    return 0;
}

int unet_config_load(struct unet_config *ret, const json_t *config, const char *file,
                     struct steer_error *err)
{
    static const char *const act_names[] = {"silu", "swish", "gelu", "relu", NULL};
    static const enum activation acts[] = {ACT_SILU, ACT_SILU, ACT_GELU, ACT_RELU};
    struct unet_config c = {0};
    int act, code;
    const json_t *groups = json_object_get(config, "norm_num_groups");
    if (groups && json_is_null(groups))
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"norm_num_groups\" is null: expected a number of groups", file);
    if ((code = refuse_others(config, file, err)) ||
        (code = json_whole(&c.groups, config, "norm_num_groups", 32, 1, 4096, file, err)) ||
        (code = blocks_read(&c, config, file, err)) ||
        (code = sample_size_read(&c, config, file, err)) ||
        (code = json_whole(&c.in_channels, config, "in_channels", 4, 1, 64, file, err)) ||
        (code = json_whole(&c.out_channels, config, "out_channels", 4, 1, 64, file, err)) ||
        (code = kernel_size(&c.conv_in_size, config, "conv_in_kernel", file, err)) ||
        (code = kernel_size(&c.conv_out_size, config, "conv_out_kernel", file, err)) ||
        (code = json_whole(&c.time_channels, config, "time_embedding_dim", 4 * c.channels[0], 1,
                           65536, file, err)) ||
        (code = json_whole(&c.guidance_channels, config, "time_cond_proj_dim", 0, 4, 65536, file,
                           err)) ||
        (code = json_choice(&act, config, "act_fn", 0, act_names, file, err)) ||
        (code = json_number(&c.norm_eps, config, "norm_eps", 1e-5, file, err)) ||
        (code = json_number(&c.freq_shift, config, "freq_shift", 0, file, err)) ||
        (code = json_flag(&c.flip_sin_to_cos, config, "flip_sin_to_cos", 1, file, err)) ||
        (code = json_flag(&c.use_linear_projection, config, "use_linear_projection", 0, file, err)))
        return code;
    if (c.in_channels != c.out_channels)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: %d channels in and %d out: a denoiser of latents has the same "
                          "(in-painting models are not read)",
                          file, c.in_channels, c.out_channels);
    if (!(c.norm_eps > 0))
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"norm_eps\" is %g: expected more than 0",
                          file, c.norm_eps);
    if (c.channels[0] / 2 - c.freq_shift <= 0)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"freq_shift\" is %g: expected less than half of %d channels", file,
                          c.freq_shift, c.channels[0]);
    c.act = acts[act];
    if ((code = addition_read(&c, config, file, err))) return code;
    *ret = c;
    return 0;
}

/* ---- forward ---- */

struct forward {
    struct net *n;
    const struct unet_config *c;
    struct denoiser_graph *out;
    const struct denoiser_size *size;
    struct tensor temb; /* act of the time embedding: every resnet projects it */
};

/* The group norm does SiLU itself; the rare others follow it. */
static struct tensor norm_act(struct forward *f, struct tensor x, const char *path)
{
    struct net *n = f->n;
    int fused = f->c->act == ACT_SILU;
    x = net_group_norm(n, x, f->c->groups, f->c->norm_eps, fused ? ACT_SILU : ACT_NONE, "%s", path);
    return fused ? x : op_activation(n->graph, x, f->c->act);
}

static struct tensor resnet(struct forward *f, struct tensor x, int channels, const char *path)
{
    char norm[96];
    struct net *n = f->n;
    struct tensor t = net_linear(n, f->temb, channels, 1, ACT_NONE, "%s.time_emb_proj", path);
    snprintf(norm, sizeof norm, "%s.norm1", path);
    struct tensor h = norm_act(f, x, norm);
    h = net_conv(n, h, channels, 3, 1, 1, t, ACT_NONE, "%s.conv1", path);
    snprintf(norm, sizeof norm, "%s.norm2", path);
    h = norm_act(f, h, norm);
    h = net_conv(n, h, channels, 3, 1, 1, TENSOR_NONE, ACT_NONE, "%s.conv2", path);
    if (graph_shape(n->graph, x).c != channels)
        x = net_conv(n, x, channels, 1, 1, 1, TENSOR_NONE, ACT_NONE, "%s.conv_shortcut", path);
    return op_add(n->graph, x, h);
}

static struct tensor self_attention(struct forward *f, struct tensor x, int heads, const char *path)
{
    static const char *const names[] = {"to_q", "to_k", "to_v"};
    struct net *n = f->n;
    int channels = graph_shape(n->graph, x).c;
    struct tensor qkv = net_linear_stack(n, x, channels, 0, 3, names, "%s", path);
    struct tensor q = op_channels(n->graph, qkv, 0, channels);
    struct tensor k = op_channels(n->graph, qkv, channels, channels);
    struct tensor v = op_channels(n->graph, qkv, 2 * channels, channels);
    double scale = 1 / sqrt((double)channels / heads);
    struct tensor h = op_attention(n->graph, q, k, v, heads, scale, 0, TENSOR_NONE, TENSOR_NONE);
    return net_linear(n, h, channels, 1, ACT_NONE, "%s.to_out.0", path);
}

/* One text's rows of the width of a layer; b 0 where that text is not read. */
static struct shape text_rows(const struct forward *f, int negative, int channels)
{
    const struct denoiser_size *s = f->size;
    if (negative && s->method == GUIDANCE_NONE) return (struct shape){0, 0, 0, 0};
    return (struct shape){s->batch, 1, negative ? s->tokens_negative : s->tokens_positive,
                          channels};
}

/* Guidance acts here, before the output projection, in every cross-attention layer. */
static struct tensor cross_attention(struct forward *f, struct tensor x, int heads,
                                     const char *path)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    int channels = graph_shape(g, x).c;
    struct shape rows = text_rows(f, 0, channels), rows_negative = text_rows(f, 1, channels);
    struct text_pair k = denoiser_graph_bound(f->out, g, rows, rows_negative, 1);
    struct text_pair v = denoiser_graph_bound(f->out, g, rows, rows_negative, 1);

    struct tensor q = net_linear(n, x, channels, 0, ACT_NONE, "%s.to_q", path), h;
    double scale = 1 / sqrt((double)channels / heads);
    if (f->size->method == GUIDANCE_NONE) {
        h = op_attention(g, q, k.positive, v.positive, heads, scale, 0, TENSOR_NONE, TENSOR_NONE);
    } else {
        struct text_keys positive = {k.positive, v.positive, TENSOR_NONE};
        struct text_keys negative = {k.negative, v.negative, TENSOR_NONE};
        h = op_guided_attention(g, q, positive, negative, TEXT_KEYS_NONE, heads, scale,
                                f->size->method, GUIDANCE_TEXT, f->out->params);
    }
    return net_linear(n, h, channels, 1, ACT_NONE, "%s.to_out.0", path);
}

/* BasicTransformerBlock: self-attention, attention to the text, GEGLU feed-forward. */
static struct tensor transformer_block(struct forward *f, struct tensor x, int heads,
                                       const char *path)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    int channels = graph_shape(g, x).c;
    char inner[128];
    struct tensor h = net_layer_norm(n, x, 1e-5, "%s.norm1", path);
    snprintf(inner, sizeof inner, "%s.attn1", path);
    x = op_add(g, x, self_attention(f, h, heads, inner));
    h = net_layer_norm(n, x, 1e-5, "%s.norm2", path);
    snprintf(inner, sizeof inner, "%s.attn2", path);
    x = op_add(g, x, cross_attention(f, h, heads, inner));
    h = net_layer_norm(n, x, 1e-5, "%s.norm3", path);
    h = net_linear(n, h, 8 * channels, 1, ACT_NONE, "%s.ff.net.0.proj", path);
    h = net_linear(n, op_geglu(g, h), channels, 1, ACT_NONE, "%s.ff.net.2", path);
    return op_add(g, x, h);
}

/* Transformer2DModel over the pixels. Its group norm has 1e-6, the resnets' the config's 1e-5. */
static struct tensor transformer(struct forward *f, struct tensor x, int heads, int depth,
                                 const char *path)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    struct shape s = graph_shape(g, x);
    struct tensor h = net_group_norm(n, x, f->c->groups, 1e-6, ACT_NONE, "%s.norm", path);
    if (f->c->use_linear_projection) {
        h = net_linear(n, op_reshape(g, h, 1, s.h * s.w), s.c, 1, ACT_NONE, "%s.proj_in", path);
    } else {
        h = net_conv(n, h, s.c, 1, 1, 1, TENSOR_NONE, ACT_NONE, "%s.proj_in", path);
        h = op_reshape(g, h, 1, s.h * s.w);
    }
    for (int i = 0; i < depth; i++) {
        char inner[112];
        snprintf(inner, sizeof inner, "%s.transformer_blocks.%d", path, i);
        h = transformer_block(f, h, heads, inner);
    }
    if (f->c->use_linear_projection) {
        h = op_reshape(g, net_linear(n, h, s.c, 1, ACT_NONE, "%s.proj_out", path), s.h, s.w);
    } else {
        h = net_conv(n, op_reshape(g, h, s.h, s.w), s.c, 1, 1, 1, TENSOR_NONE, ACT_NONE,
                     "%s.proj_out", path);
    }
    return op_add(g, x, h);
}

/* The pooled text and the sinusoids of each size, through an embedding of their own. */
static struct tensor added_embedding(struct forward *f)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    const struct unet_config *c = f->c;
    int sizes = f->size->sizes, pooled = c->added_channels - sizes * c->added_time_channels;
    struct shape one = {f->size->batch, 1, 1, pooled}, none = {0, 0, 0, 0};
    struct tensor x = denoiser_graph_bound(f->out, g, one, none, 0).positive;
    for (int i = 0; i < sizes; i++)
        x = op_concat(g, x,
                      op_sinusoid(g, op_channels(g, f->out->sizes, i, 1), c->added_time_channels,
                                  c->flip_sin_to_cos, c->freq_shift));
    /* Its activation is SiLU whatever act_fn says. */
    x = net_linear(n, x, c->time_channels, 1, ACT_SILU, "add_embedding.linear_1");
    return net_linear(n, x, c->time_channels, 1, ACT_NONE, "add_embedding.linear_2");
}

static struct tensor time_embedding(struct forward *f)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    const struct unet_config *c = f->c;
    struct tensor t =
        op_sinusoid(g, f->out->timestep, c->channels[0], c->flip_sin_to_cos, c->freq_shift);
    if (c->guidance_channels) /* a consistency model is told its guidance scale */
        t = op_add(g, t,
                   net_linear(n, f->out->guidance, c->channels[0], 0, ACT_NONE,
                              "time_embedding.cond_proj"));
    t = net_linear(n, t, c->time_channels, 1, c->act, "time_embedding.linear_1");
    if (!c->added_channels)
        return net_linear(n, t, c->time_channels, 1, c->act, "time_embedding.linear_2");
    t = net_linear(n, t, c->time_channels, 1, ACT_NONE, "time_embedding.linear_2");
    return op_activation(g, op_add(g, t, added_embedding(f)), c->act);
}

void unet_record(struct denoiser_graph *d, struct net *n, const struct unet_config *c,
                 const struct denoiser_size *size)
{
    struct graph *g = n->graph;
    struct forward f = {.n = n, .c = c, .out = d, .size = size};
    f.temb = time_embedding(&f);

    /* Everything that the way down makes is kept for the way up. */
    struct tensor skips[UNET_BLOCKS_MAX * (UNET_LAYERS_MAX + 1) + 1];
    int kept = 0;
    char path[64];
    struct tensor x = net_conv(n, d->latents, c->channels[0], c->conv_in_size, 1, 1, TENSOR_NONE,
                               ACT_NONE, "conv_in");
    skips[kept++] = x;
    for (int i = 0; i < c->blocks; i++) {
        for (int j = 0; j < c->layers[i]; j++) {
            snprintf(path, sizeof path, "down_blocks.%d.resnets.%d", i, j);
            x = resnet(&f, x, c->channels[i], path);
            snprintf(path, sizeof path, "down_blocks.%d.attentions.%d", i, j);
            if (c->down_attends[i]) x = transformer(&f, x, c->heads[i], c->transformers[i], path);
            skips[kept++] = x;
        }
        if (i == c->blocks - 1) break;
        x = net_conv(n, x, c->channels[i], 3, 2, 1, TENSOR_NONE, ACT_NONE,
                     "down_blocks.%d.downsamplers.0.conv", i);
        skips[kept++] = x;
    }

    int last = c->blocks - 1;
    if (c->mid != UNET_MID_NONE) x = resnet(&f, x, c->channels[last], "mid_block.resnets.0");
    if (c->mid == UNET_MID_CROSS) {
        x = transformer(&f, x, c->heads[last], c->transformers[last], "mid_block.attentions.0");
        x = resnet(&f, x, c->channels[last], "mid_block.resnets.1");
    }

    for (int i = 0; i < c->blocks; i++) {
        int level = last - i; /* up blocks count from the lowest resolution */
        for (int j = 0; j <= c->layers[level]; j++) {
            snprintf(path, sizeof path, "up_blocks.%d.resnets.%d", i, j);
            x = op_concat(g, x, skips[--kept]);
            x = resnet(&f, x, c->channels[level], path);
            snprintf(path, sizeof path, "up_blocks.%d.attentions.%d", i, j);
            if (c->up_attends[i])
                x = transformer(&f, x, c->heads[level], c->up_transformers[i], path);
        }
        if (i == last) break;
        /* To the size of the skip that comes next: twice, but for latents that are odd. */
        struct shape next = graph_shape(g, skips[kept - 1]);
        x = op_resize(g, x, next.h, next.w);
        x = net_conv(n, x, c->channels[level], 3, 1, 1, TENSOR_NONE, ACT_NONE,
                     "up_blocks.%d.upsamplers.0.conv", i);
    }
    x = norm_act(&f, x, "conv_norm_out");
    x = net_conv(n, x, c->out_channels, c->conv_out_size, 1, 1, TENSOR_NONE, ACT_NONE, "conv_out");
    denoiser_graph_end(d, g, x);
}

void unet_record_text(struct text_graph *t, struct net *n, const struct unet_config *c)
{
    struct graph *g = n->graph;
    if (c->added_channels) text_graph_bound(t, g, op_affine(g, t->pooled, 1, 0), 0);
    for (int i = 0; i < c->cross_count; i++) {
        const struct unet_cross *cross = c->cross + i;
        struct tensor k =
            net_linear(n, t->states, cross->channels, 0, ACT_NONE, "%s.to_k", cross->path);
        struct tensor v =
            net_linear(n, t->states, cross->channels, 0, ACT_NONE, "%s.to_v", cross->path);
        text_graph_bound(t, g, k, 1);
        text_graph_bound(t, g, v, 1);
    }
}
