// SPDX-License-Identifier: Apache-2.0
#include "unet.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../json.h"

/* ---- configuration ---- */

/* A number, or a list with one for each block. */
static int per_block(int *out, const json_t *config, const char *key, int fallback, int blocks,
                     const char *file, struct steer_error *err)
{
    const json_t *value = json_object_get(config, key);
    for (int i = 0; i < blocks; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, (size_t)i) : value;
        if (!item || json_is_null(item)) {
            if (json_is_array(value))
                return steer_fail(err, STEER_BAD_MODEL,
                                  "%s: \"%s\" has %zu entries: expected one for each of %d blocks",
                                  file, key, json_array_size(value), blocks);
            out[i] = fallback;
        } else if (json_is_integer(item) && json_integer_value(item) > 0 &&
                   json_integer_value(item) <= 65536) {
            out[i] = (int)json_integer_value(item);
        } else {
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: \"%s\": expected a number from 1 to 65536, or a list of such",
                              file, key);
        }
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

/* Keys that change the forward in ways this family does not have. */
static int refuse_others(const json_t *config, const char *file, struct steer_error *err)
{
    static const char *const absent[] = {
        "class_embed_type",     "addition_embed_type",
        "encoder_hid_dim",      "encoder_hid_dim_type",
        "num_class_embeds",     "time_cond_proj_dim",
        "timestep_post_act",    "time_embedding_act_fn",
        "cross_attention_norm", "reverse_transformer_layers_per_block"};
    static const char *const off[] = {"center_input_sample", "dual_cross_attention",
                                      "resnet_skip_time_act", "class_embeddings_concat",
                                      "mid_block_only_cross_attention"};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        const json_t *value = json_object_get(config, absent[i]);
        if (value && !json_is_null(value))
            return steer_fail(err, STEER_UNSUPPORTED,
                              "%s: \"%s\" is set: U-Nets of the SD1.5 family leave it null", file,
                              absent[i]);
    }
    for (size_t i = 0; i < sizeof off / sizeof *off; i++)
        if (json_is_true(json_object_get(config, off[i])))
            return steer_fail(err, STEER_UNSUPPORTED,
                              "%s: \"%s\" is true: U-Nets of the SD1.5 family have it false", file,
                              off[i]);
    const json_t *only = json_object_get(config, "only_cross_attention");
    for (size_t i = 0; i == 0 || (json_is_array(only) && i < json_array_size(only)); i++)
        if (json_is_true(json_is_array(only) ? json_array_get(only, i) : only))
            return steer_fail(
                err, STEER_UNSUPPORTED,
                "%s: \"only_cross_attention\" is true: U-Nets of the SD1.5 family have it false",
                file);
    static const struct {
        const char *key, *expected, *also;
    } texts[] = {{"act_fn", "silu", "swish"},
                 {"resnet_time_scale_shift", "default", "default"},
                 {"time_embedding_type", "positional", "positional"},
                 {"attention_type", "default", "default"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const json_t *value = json_object_get(config, texts[i].key);
        const char *text = json_string_value(value);
        if (value && !json_is_null(value) &&
            (!text || (strcmp(text, texts[i].expected) && strcmp(text, texts[i].also))))
            return steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" is \"%s\": expected \"%s\"", file,
                              texts[i].key, text ? text : "(no text)", texts[i].expected);
    }
    static const struct {
        const char *key;
        double expected;
    } numbers[] = {
        {"downsample_padding", 1}, {"mid_block_scale_factor", 1}, {"resnet_out_scale_factor", 1}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const json_t *value = json_object_get(config, numbers[i].key);
        if (json_is_number(value) && json_number_value(value) != numbers[i].expected)
            return steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" is %g: expected %g", file,
                              numbers[i].key, json_number_value(value), numbers[i].expected);
    }
    return 0;
}

static double real(const json_t *config, const char *key, double fallback)
{
    const json_t *value = json_object_get(config, key);
    return json_is_number(value) ? json_number_value(value) : fallback;
}

static int flag(const json_t *config, const char *key, int fallback)
{
    const json_t *value = json_object_get(config, key);
    return json_is_boolean(value) ? json_is_true(value) : fallback;
}

int unet_config_load(struct unet_config *ret, const json_t *config, const char *file,
                     struct steer_error *err)
{
    struct unet_config c = {0};
    int code = refuse_others(config, file, err);
    if (code) return code;

    const json_t *channels = json_object_get(config, "block_out_channels");
    c.blocks = channels ? (int)json_array_size(channels) : 4;
    if (c.blocks < 1 || c.blocks > UNET_BLOCKS_MAX)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"block_out_channels\" has %d entries: expected 1 to %d", file,
                          c.blocks, UNET_BLOCKS_MAX);
    static const int published[] = {320, 640, 1280, 1280};
    if (channels)
        code = per_block(c.channels, config, "block_out_channels", 0, c.blocks, file, err);
    else
        memcpy(c.channels, published, sizeof published);
    if (code) return code;

    static const char *const down[4] = {"CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                                        "CrossAttnDownBlock2D", "DownBlock2D"};
    static const char *const up[4] = {"UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
                                      "CrossAttnUpBlock2D"};
    if ((code = block_kinds(c.down_attends, config, "down_block_types", down,
                            "CrossAttnDownBlock2D", "DownBlock2D", c.blocks, file, err)) ||
        (code = block_kinds(c.up_attends, config, "up_block_types", up, "CrossAttnUpBlock2D",
                            "UpBlock2D", c.blocks, file, err)))
        return code;

    /* attention_head_dim is a count of heads here (diffusers' historical slip, kept for good);
     * num_attention_heads wins where a config has it. */
    int given[UNET_BLOCKS_MAX];
    if ((code = per_block(given, config, "attention_head_dim", 8, c.blocks, file, err)) ||
        (code = per_block(c.layers, config, "layers_per_block", 2, c.blocks, file, err)) ||
        (code = per_block(c.transformers, config, "transformer_layers_per_block", 1, c.blocks, file,
                          err)) ||
        (code = per_block(c.cross_dim, config, "cross_attention_dim", 1280, c.blocks, file, err)))
        return code;
    const json_t *heads = json_object_get(config, "num_attention_heads");
    if (heads && !json_is_null(heads)) {
        if ((code = per_block(given, config, "num_attention_heads", 8, c.blocks, file, err)))
            return code;
    }
    memcpy(c.heads, given, sizeof given);
    for (int i = 0; i < c.blocks; i++) {
        if (c.layers[i] > UNET_LAYERS_MAX || c.transformers[i] > UNET_LAYERS_MAX)
            return steer_fail(err, STEER_BAD_MODEL, "%s: over %d layers in block %d", file,
                              UNET_LAYERS_MAX, i);
        if (c.channels[i] % c.heads[i])
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: %d channels of block %d do not divide into %d heads", file,
                              c.channels[i], i, c.heads[i]);
        c.up_transformers[i] = c.transformers[c.blocks - 1 - i];
    }

    const json_t *mid = json_object_get(config, "mid_block_type");
    const char *mid_name = mid ? json_string_value(mid) : "UNetMidBlock2DCrossAttn";
    c.has_mid = mid_name != NULL;
    if (mid_name && strcmp(mid_name, "UNetMidBlock2DCrossAttn") != 0)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"mid_block_type\" is \"%s\": expected UNetMidBlock2DCrossAttn",
                          file, mid_name);

    const json_t *sample = json_object_get(config, "sample_size");
    if (json_is_array(sample)) sample = json_array_get(sample, 0);
    c.sample_size = json_is_integer(sample) ? (int)json_integer_value(sample) : 0;
    if (c.sample_size < 0 || c.sample_size > 4096) c.sample_size = 0;
    if ((code = json_whole(&c.in_channels, config, "in_channels", 4, 1, 64, file, err)) ||
        (code = json_whole(&c.out_channels, config, "out_channels", 4, 1, 64, file, err)) ||
        (code = json_whole(&c.groups, config, "norm_num_groups", 32, 1, 4096, file, err)) ||
        (code = json_whole(&c.conv_in_size, config, "conv_in_kernel", 3, 1, 7, file, err)) ||
        (code = json_whole(&c.conv_out_size, config, "conv_out_kernel", 3, 1, 7, file, err)) ||
        (code = json_whole(&c.time_channels, config, "time_embedding_dim", 4 * c.channels[0], 1,
                           65536, file, err)))
        return code;
    if (c.in_channels != c.out_channels)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: %d channels in and %d out: a denoiser of latents has the same "
                          "(in-painting models are not read)",
                          file, c.in_channels, c.out_channels);
    for (int i = 0; i < c.blocks; i++)
        if (c.channels[i] % c.groups)
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: %d channels of block %d do not divide into norm_num_groups %d",
                              file, c.channels[i], i, c.groups);
    c.norm_eps = real(config, "norm_eps", 1e-5);
    c.freq_shift = real(config, "freq_shift", 0);
    c.flip_sin_to_cos = flag(config, "flip_sin_to_cos", 1);
    c.use_linear_projection = flag(config, "use_linear_projection", 0);
    *ret = c;
    return 0;
}

/* ---- forward ---- */

struct forward {
    struct net *n;
    const struct unet_config *c;
    struct unet_graph *out;
    struct tensor temb; /* silu of the time embedding: every resnet projects it */
    int tokens_positive, tokens_negative;
    enum guidance_method method;
};

static struct tensor resnet(struct forward *f, struct tensor x, int channels, const char *path)
{
    struct net *n = f->n;
    double eps = f->c->norm_eps;
    struct tensor t = net_linear(n, f->temb, channels, 1, ACT_NONE, "%s.time_emb_proj", path);
    struct tensor h = net_group_norm(n, x, f->c->groups, eps, ACT_SILU, "%s.norm1", path);
    h = net_conv(n, h, channels, 3, 1, 1, t, ACT_NONE, "%s.conv1", path);
    h = net_group_norm(n, h, f->c->groups, eps, ACT_SILU, "%s.norm2", path);
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
    struct tensor h = op_attention(n->graph, q, k, v, heads, scale, 0, TENSOR_NONE);
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
    if (f->out->cross_count == UNET_CROSS_MAX) return x; /* the config's limits keep below it */
    struct unet_cross *cross = f->out->cross + f->out->cross_count;
    int channels = graph_shape(g, x).c;
    snprintf(cross->path, sizeof cross->path, "%s", path);
    cross->channels = channels;
    cross->text_channels = text_channels;
    cross->positive = keys_bound(f, f->tokens_positive, channels, "+");
    cross->negative = (struct text_keys){TENSOR_NONE, TENSOR_NONE, TENSOR_NONE};

    struct tensor q = net_linear(n, x, channels, 0, ACT_NONE, "%s.to_q", path), h;
    double scale = 1 / sqrt((double)channels / heads);
    if (f->method == GUIDANCE_NONE) {
        h = op_attention(g, q, cross->positive.k, cross->positive.v, heads, scale, 0, TENSOR_NONE);
    } else {
        cross->negative = keys_bound(f, f->tokens_negative, channels, "-");
        h = op_guided_attention(g, q, cross->positive, cross->negative, heads, scale, f->method,
                                f->out->params);
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
    t = net_linear(n, t, c->time_channels, 1, ACT_SILU, "time_embedding.linear_1");
    f.temb = net_linear(n, t, c->time_channels, 1, ACT_SILU, "time_embedding.linear_2");

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
    if (c->has_mid) {
        x = resnet(&f, x, c->channels[last], "mid_block.resnets.0");
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
    x = net_group_norm(n, x, c->groups, c->norm_eps, ACT_SILU, "conv_norm_out");
    ret->out =
        net_conv(n, x, c->out_channels, c->conv_out_size, 1, 1, TENSOR_NONE, ACT_NONE, "conv_out");
    graph_output(g, ret->out, "denoise.out", 0);
}

void unet_record_text(struct unet_text_graph *ret, struct net *n, const struct unet_graph *layers,
                      int tokens)
{
    int text_channels = layers->cross_count ? layers->cross[0].text_channels : 1;
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
