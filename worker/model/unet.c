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
                {"addition_embed_type", "null"},
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
                              "%s: \"%s\" is %s: U-Nets of the SD1.5 family have %s", file,
                              only[i].key, json_shown(shown, value), only[i].value);
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

/* Counts what unet_record will make: no more than its tables hold, all for one width of text. */
static int cross_check(const struct unet_config *c, const char *file, struct steer_error *err)
{
    int count = 0, width = 0, last = c->blocks - 1;
    for (int i = 0; i <= last + 1; i++) { /* the mid block is one more of the last level */
        int level = i > last ? last : i, up = last - level, here = 0;
        if (i > last)
            here = c->mid == UNET_MID_CROSS ? c->transformers[last] : 0;
        else
            here = c->down_attends[i] * c->layers[i] * c->transformers[i] +
                   c->up_attends[up] * (c->layers[i] + 1) * c->up_transformers[up];
        count += here;
        if (!here) continue;
        if (width && c->cross_dim[level] != width)
            return steer_fail(err, STEER_UNSUPPORTED,
                              "%s: \"cross_attention_dim\" has %d and %d where there is "
                              "cross-attention: one text is of one width",
                              file, width, c->cross_dim[level]);
        width = c->cross_dim[level];
    }
    if (!count)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: no block has cross-attention: a prompt would change nothing", file);
    if (count > UNET_CROSS_MAX)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: %d cross-attention layers: expected at most %d", file, count,
                          UNET_CROSS_MAX);
    return 0;
}

int unet_text_channels(const struct unet_config *c)
{
    for (int i = 0; i < c->blocks; i++)
        if (c->down_attends[i] || c->up_attends[c->blocks - 1 - i]) return c->cross_dim[i];
    return c->cross_dim[c->blocks - 1];
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
    return cross_check(c, file, err);
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
    *ret = c;
    return 0;
}

/* ---- forward ---- */

struct forward {
    struct net *n;
    const struct unet_config *c;
    struct unet_graph *out;
    struct tensor temb; /* act of the time embedding: every resnet projects it */
    int tokens_positive, tokens_negative;
    enum guidance_method method;
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

static struct text_keys keys_bound(struct forward *f, int tokens, int channels, const char *which)
{
    struct shape s = {graph_shape(f->n->graph, f->out->latents).b, 1, tokens, channels};
    char name[48];
    struct text_keys keys = {.mask = TENSOR_NONE};
    snprintf(name, sizeof name, "k%s.%d", which, f->out->cross_count);
    keys.k = graph_bound(f->n->graph, name, s);
    snprintf(name, sizeof name, "v%s.%d", which, f->out->cross_count);
    keys.v = graph_bound(f->n->graph, name, s);
    return keys;
}

/* Guidance acts here, before the output projection, in every cross-attention layer. */
static struct tensor cross_attention(struct forward *f, struct tensor x, int heads,
                                     int text_channels, const char *path)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    if (f->out->cross_count == UNET_CROSS_MAX) return TENSOR_NONE; /* cross_check keeps below it */
    struct unet_cross *cross = f->out->cross + f->out->cross_count;
    int channels = graph_shape(g, x).c;
    snprintf(cross->path, sizeof cross->path, "%s", path);
    cross->channels = channels;
    cross->text_channels = text_channels;
    cross->positive = keys_bound(f, f->tokens_positive, channels, "+");
    cross->negative = TEXT_KEYS_NONE;

    struct tensor q = net_linear(n, x, channels, 0, ACT_NONE, "%s.to_q", path), h;
    double scale = 1 / sqrt((double)channels / heads);
    if (f->method == GUIDANCE_NONE) {
        h = op_attention(g, q, cross->positive.k, cross->positive.v, heads, scale, 0, TENSOR_NONE,
                         TENSOR_NONE);
    } else {
        cross->negative = keys_bound(f, f->tokens_negative, channels, "-");
        h = op_guided_attention(g, q, cross->positive, cross->negative, TEXT_KEYS_NONE, heads,
                                scale, f->method, GUIDANCE_TEXT, f->out->params);
    }
    f->out->cross_count++;
    return net_linear(n, h, channels, 1, ACT_NONE, "%s.to_out.0", path);
}

/* BasicTransformerBlock: self-attention, attention to the text, GEGLU feed-forward. */
static struct tensor transformer_block(struct forward *f, struct tensor x, int heads,
                                       int text_channels, const char *path)
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
    x = op_add(g, x, cross_attention(f, h, heads, text_channels, inner));
    h = net_layer_norm(n, x, 1e-5, "%s.norm3", path);
    h = net_linear(n, h, 8 * channels, 1, ACT_NONE, "%s.ff.net.0.proj", path);
    h = net_linear(n, op_geglu(g, h), channels, 1, ACT_NONE, "%s.ff.net.2", path);
    return op_add(g, x, h);
}

/* Transformer2DModel over the pixels. Its group norm has 1e-6, the resnets' the config's 1e-5. */
static struct tensor transformer(struct forward *f, struct tensor x, int heads, int depth,
                                 int text_channels, const char *path)
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
        h = transformer_block(f, h, heads, text_channels, inner);
    }
    if (f->c->use_linear_projection) {
        h = op_reshape(g, net_linear(n, h, s.c, 1, ACT_NONE, "%s.proj_out", path), s.h, s.w);
    } else {
        h = net_conv(n, op_reshape(g, h, s.h, s.w), s.c, 1, 1, 1, TENSOR_NONE, ACT_NONE,
                     "%s.proj_out", path);
    }
    return op_add(g, x, h);
}

void unet_record(struct unet_graph *ret, struct net *n, const struct unet_config *c,
                 struct shape size, int tokens_positive, int tokens_negative,
                 enum guidance_method method)
{
    struct graph *g = n->graph;
    struct forward f = {.n = n, .c = c, .out = ret, .method = method};
    f.tokens_positive = tokens_positive;
    f.tokens_negative = tokens_negative;
    memset(ret, 0, sizeof *ret);
    ret->latents =
        graph_input(g, "latents", (struct shape){size.b, size.h, size.w, c->in_channels}, TYPE_F32);
    ret->timestep = graph_input(g, "timestep", (struct shape){size.b, 1, 1, 1}, TYPE_F32);
    ret->params = TENSOR_NONE;
    if (method != GUIDANCE_NONE)
        ret->params =
            graph_input(g, "guidance", (struct shape){size.b, 1, 1, GUIDANCE_PARAMS}, TYPE_F32);

    struct tensor t =
        op_sinusoid(g, ret->timestep, c->channels[0], c->flip_sin_to_cos, c->freq_shift);
    ret->guidance = TENSOR_NONE;
    if (c->guidance_channels) {
        /* A consistency model is told its guidance scale instead of running twice. */
        struct shape wide = {size.b, 1, 1, c->guidance_channels};
        ret->guidance = graph_input(g, "guidance.scale", wide, TYPE_F32);
        struct tensor w =
            net_linear(n, ret->guidance, c->channels[0], 0, ACT_NONE, "time_embedding.cond_proj");
        t = op_add(g, t, w);
    }
    t = net_linear(n, t, c->time_channels, 1, c->act, "time_embedding.linear_1");
    f.temb = net_linear(n, t, c->time_channels, 1, c->act, "time_embedding.linear_2");

    /* Everything that the way down makes is kept for the way up. */
    struct tensor skips[UNET_BLOCKS_MAX * (UNET_LAYERS_MAX + 1) + 1];
    int kept = 0;
    char path[64];
    struct tensor x = net_conv(n, ret->latents, c->channels[0], c->conv_in_size, 1, 1, TENSOR_NONE,
                               ACT_NONE, "conv_in");
    skips[kept++] = x;
    for (int i = 0; i < c->blocks; i++) {
        for (int j = 0; j < c->layers[i]; j++) {
            snprintf(path, sizeof path, "down_blocks.%d.resnets.%d", i, j);
            x = resnet(&f, x, c->channels[i], path);
            snprintf(path, sizeof path, "down_blocks.%d.attentions.%d", i, j);
            if (c->down_attends[i])
                x = transformer(&f, x, c->heads[i], c->transformers[i], c->cross_dim[i], path);
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
        x = transformer(&f, x, c->heads[last], c->transformers[last], c->cross_dim[last],
                        "mid_block.attentions.0");
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
                x = transformer(&f, x, c->heads[level], c->up_transformers[i], c->cross_dim[level],
                                path);
        }
        if (i == last) break;
        /* To the size of the skip that comes next: twice, but for latents that are odd. */
        struct shape next = graph_shape(g, skips[kept - 1]);
        x = op_resize(g, x, next.h, next.w);
        x = net_conv(n, x, c->channels[level], 3, 1, 1, TENSOR_NONE, ACT_NONE,
                     "up_blocks.%d.upsamplers.0.conv", i);
    }
    x = norm_act(&f, x, "conv_norm_out");
    ret->out =
        net_conv(n, x, c->out_channels, c->conv_out_size, 1, 1, TENSOR_NONE, ACT_NONE, "conv_out");
    graph_output(g, ret->out, "denoise.out", 0);
}

void unet_record_text(struct unet_text_graph *ret, struct net *n, const struct unet_graph *layers,
                      int tokens)
{
    int text_channels = layers->cross[0].text_channels; /* cross_check: there is one */
    ret->text =
        graph_input(n->graph, "text", (struct shape){1, 1, tokens, text_channels}, TYPE_F32);
    for (int i = 0; i < layers->cross_count; i++) {
        const struct unet_cross *cross = layers->cross + i;
        ret->k[i] = net_linear(n, ret->text, cross->channels, 0, ACT_NONE, "%s.to_k", cross->path);
        ret->v[i] = net_linear(n, ret->text, cross->channels, 0, ACT_NONE, "%s.to_v", cross->path);
        char name[48];
        snprintf(name, sizeof name, "k.%d", i);
        graph_output(n->graph, ret->k[i], name, 1);
        snprintf(name, sizeof name, "v.%d", i);
        graph_output(n->graph, ret->v[i], name, 1);
    }
}
