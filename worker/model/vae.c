// SPDX-License-Identifier: Apache-2.0
#include "vae.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../json.h"

#define VAE_EPS 1e-6

static int list(int *out, int *ret_count, const json_t *config, const char *key,
                const int *fallback, int fallback_count, const char *file, struct steer_error *err)
{
    const json_t *value = json_object_get(config, key);
    int count = value ? (int)json_array_size(value) : fallback_count;
    if (count < 1 || count > VAE_BLOCKS_MAX)
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"%s\" has %d entries: expected 1 to %d", file,
                          key, count, VAE_BLOCKS_MAX);
    *ret_count = count;
    for (int i = 0; i < count; i++) {
        const json_t *item = json_array_get(value, (size_t)i);
        if (value && (!json_is_integer(item) || json_integer_value(item) < 1 ||
                      json_integer_value(item) > 65536))
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: \"%s\": expected whole numbers from 1 to 65536", file, key);
        out[i] = value ? (int)json_integer_value(item) : fallback[i];
    }
    return 0;
}

static int tiny_config_load(struct vae_config *c, const json_t *config, const char *file,
                            struct steer_error *err)
{
    static const int wide[] = {64, 64, 64, 64}, deep[] = {3, 3, 3, 1};
    int count, code;
    if ((code = list(c->channels, &c->blocks, config, "decoder_block_out_channels", wide, 4, file,
                     err)) ||
        (code = list(c->block_layers, &count, config, "num_decoder_blocks", deep, 4, file, err)))
        return code;
    if (count != c->blocks)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"num_decoder_blocks\" has %d entries: expected %d", file, count,
                          c->blocks);
    for (int i = 1; i < c->blocks; i++)
        if (c->channels[i] != c->channels[0])
            return steer_fail(
                err, STEER_UNSUPPORTED,
                "%s: \"decoder_block_out_channels\" differ (%d, %d): AutoencoderTiny has one width",
                file, c->channels[0], c->channels[i]);
    static const char *const upsamples[] = {"nearest", NULL};
    static const char *const act_names[] = {"relu", "silu", "swish", "gelu", NULL};
    static const enum activation acts[] = {ACT_RELU, ACT_SILU, ACT_SILU, ACT_GELU};
    int factor, upsample, act;
    if ((code = json_whole(&factor, config, "upsampling_scaling_factor", 2, 2, 2, file, err)) ||
        (code = json_choice(&upsample, config, "upsample_fn", 0, upsamples, file, err)) ||
        (code = json_choice(&act, config, "act_fn", 0, act_names, file, err)))
        return code;
    c->act = acts[act];
    return 0;
}

static int kl_config_load(struct vae_config *c, const json_t *config, const char *file,
                          struct steer_error *err)
{
    static const int narrow[] = {64};
    int code;
    if ((code =
             list(c->channels, &c->blocks, config, "block_out_channels", narrow, 1, file, err)) ||
        (code = json_whole(&c->layers, config, "layers_per_block", 1, 1, 16, file, err)) ||
        (code = json_whole(&c->groups, config, "norm_num_groups", 32, 1, 4096, file, err)))
        return code;
    for (int i = 0; i < c->blocks; i++)
        if (c->channels[i] % c->groups)
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: %d channels do not divide into norm_num_groups %d", file,
                              c->channels[i], c->groups);
    const json_t *up = json_object_get(config, "up_block_types");
    size_t ups = up ? json_array_size(up) : 1;
    if (ups != (size_t)c->blocks)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"up_block_types\" has %zu entries: expected %d, as "
                          "block_out_channels",
                          file, ups, c->blocks);
    for (size_t i = 0; i < json_array_size(up); i++) {
        const char *kind = json_string_value(json_array_get(up, i));
        if (!kind || strcmp(kind, "UpDecoderBlock2D"))
            return steer_fail(err, STEER_UNSUPPORTED,
                              "%s: \"up_block_types\" has \"%s\": expected UpDecoderBlock2D", file,
                              kind ? kind : "(no text)");
    }
    static const char *const act_names[] = {"silu", "swish", "gelu", "relu", NULL};
    static const enum activation acts[] = {ACT_SILU, ACT_SILU, ACT_GELU, ACT_RELU};
    int act;
    if ((code = json_choice(&act, config, "act_fn", 0, act_names, file, err)) ||
        (code = json_flag(&c->mid_attention, config, "mid_block_add_attention", 1, file, err)) ||
        (code = json_flag(&c->post_quant_conv, config, "use_post_quant_conv", 1, file, err)))
        return code;
    c->act = acts[act];
    return 0;
}

/* A number a channel; *ret_said 0 where the file says none. */
static int channel_numbers(float *out, int *ret_said, const json_t *config, const char *key,
                           int channels, const char *file, struct steer_error *err)
{
    const json_t *list = json_object_get(config, key);
    *ret_said = list && !json_is_null(list);
    if (!*ret_said) return 0;
    int good = json_array_size(list) == (size_t)channels;
    for (int i = 0; i < channels && good; i++) {
        out[i] = (float)json_number_value(json_array_get(list, (size_t)i));
        good = json_is_number(json_array_get(list, (size_t)i)) && isfinite(out[i]);
    }
    return good ? 0
                : steer_fail(err, STEER_BAD_MODEL, "%s: \"%s\": expected %d numbers", file, key,
                             channels);
}

/* StableDiffusionXLPipeline norms latents where it finds both lists, and passes over one alone. */
static int norm_load(struct vae_config *c, const json_t *config, const char *file,
                     struct steer_error *err)
{
    int mean, std,
        code = channel_numbers(c->latents_mean, &mean, config, "latents_mean", c->latent_channels,
                               file, err);
    if (!code)
        code = channel_numbers(c->latents_std, &std, config, "latents_std", c->latent_channels,
                               file, err);
    if (!code) c->normed = mean && std;
    return code;
}

int vae_config_load(struct vae_config *ret, const json_t *config, const char *class_name,
                    const char *file, struct steer_error *err)
{
    struct vae_config c = {0};
    int code;
    c.tiny = strcmp(class_name, "AutoencoderTiny") == 0;
    if (!c.tiny && strcmp(class_name, "AutoencoderKL") != 0)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: class \"%s\": expected AutoencoderKL or AutoencoderTiny", file,
                          class_name);
    if ((code = c.tiny ? tiny_config_load(&c, config, file, err)
                       : kl_config_load(&c, config, file, err)) ||
        (code = json_whole(&c.latent_channels, config, "latent_channels", 4, 1, VAE_CHANNELS_MAX,
                           file, err)) ||
        (code = json_whole(&c.out_channels, config, "out_channels", 3, 1, 64, file, err)))
        return code;
    if (c.out_channels != 3)
        return steer_fail(err, STEER_UNSUPPORTED, "%s: %d channels out: an image has 3", file,
                          c.out_channels);
    if ((code = json_number(&c.scaling_factor, config, "scaling_factor", c.tiny ? 1 : .18215, file,
                            err)) ||
        (code = json_number(&c.shift_factor, config, "shift_factor", 0, file, err)) ||
        (code = norm_load(&c, config, file, err)))
        return code;
    if (!(c.scaling_factor > 0))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"scaling_factor\" is %g: expected more than 0", file,
                          c.scaling_factor);
    *ret = c;
    return 0;
}

int vae_factor(const struct vae_config *c)
{
    return 1 << (c->blocks - 1);
}

void vae_denorm(const struct vae_config *c, float *z, size_t cells)
{
    float scale = (float)c->scaling_factor; /* the graph divides by it */
    size_t channels = (size_t)c->latent_channels;
    for (size_t i = 0; c->normed && i < cells; i++)
        for (size_t k = 0; k < channels; k++)
            z[i * channels + k] =
                z[i * channels + k] * c->latents_std[k] + c->latents_mean[k] * scale;
}

/* ---- AutoencoderKL ---- */

/* The group norm does SiLU itself; the rare others follow it. */
static struct tensor norm_act(struct net *n, const struct vae_config *c, struct tensor x,
                              const char *path, const char *name)
{
    int fused = c->act == ACT_SILU;
    x = net_group_norm(n, x, c->groups, VAE_EPS, fused ? ACT_SILU : ACT_NONE, "%s.%s", path, name);
    return fused ? x : op_activation(n->graph, x, c->act);
}

static struct tensor resnet(struct net *n, const struct vae_config *c, struct tensor x,
                            int channels, const char *path)
{
    struct tensor h = norm_act(n, c, x, path, "norm1");
    h = net_conv(n, h, channels, 3, 1, 1, TENSOR_NONE, ACT_NONE, "%s.conv1", path);
    h = norm_act(n, c, h, path, "norm2");
    h = net_conv(n, h, channels, 3, 1, 1, TENSOR_NONE, ACT_NONE, "%s.conv2", path);
    if (graph_shape(n->graph, x).c != channels)
        x = net_conv(n, x, channels, 1, 1, 1, TENSOR_NONE, ACT_NONE, "%s.conv_shortcut", path);
    return op_add(n->graph, x, h);
}

/* One head over all pixels. Old folders name its parts query, key, value and proj_attn. */
static struct tensor mid_attention(struct net *n, const struct vae_config *c, struct tensor x)
{
    static const char *const today[] = {"to_q", "to_k", "to_v"};
    static const char *const before[] = {"query", "key", "value"};
    const char *path = "decoder.mid_block.attentions.0";
    struct graph *g = n->graph;
    struct shape s = graph_shape(g, x);
    int old = !params_has(n->params, "%s.to_q.weight", path) &&
              params_has(n->params, "%s.query.weight", path);
    struct tensor h = net_group_norm(n, x, c->groups, VAE_EPS, ACT_NONE, "%s.group_norm", path);
    h = op_reshape(g, h, 1, s.h * s.w);
    h = net_linear_stack(n, h, s.c, 1, 3, old ? before : today, "%s", path);
    struct tensor q = op_channels(g, h, 0, s.c), k = op_channels(g, h, s.c, s.c);
    struct tensor v = op_channels(g, h, 2 * s.c, s.c);
    h = op_attention(g, q, k, v, 1, 1 / sqrt((double)s.c), 0, TENSOR_NONE, TENSOR_NONE);
    h = net_linear(n, h, s.c, 1, ACT_NONE, "%s.%s", path, old ? "proj_attn" : "to_out.0");
    return op_add(g, x, op_reshape(g, h, s.h, s.w));
}

static struct tensor decode_kl(struct net *n, const struct vae_config *c, struct tensor z)
{
    struct graph *g = n->graph;
    int last = c->blocks - 1;
    char path[64];
    if (c->post_quant_conv)
        z = net_conv(n, z, c->latent_channels, 1, 1, 1, TENSOR_NONE, ACT_NONE, "post_quant_conv");
    struct tensor x =
        net_conv(n, z, c->channels[last], 3, 1, 1, TENSOR_NONE, ACT_NONE, "decoder.conv_in");
    x = resnet(n, c, x, c->channels[last], "decoder.mid_block.resnets.0");
    if (c->mid_attention) x = mid_attention(n, c, x);
    x = resnet(n, c, x, c->channels[last], "decoder.mid_block.resnets.1");
    for (int i = 0; i < c->blocks; i++) {
        int channels = c->channels[last - i];
        for (int j = 0; j <= c->layers; j++) {
            snprintf(path, sizeof path, "decoder.up_blocks.%d.resnets.%d", i, j);
            x = resnet(n, c, x, channels, path);
        }
        if (i == last) break;
        struct shape s = graph_shape(g, x);
        x = op_resize(g, x, 2 * s.h, 2 * s.w);
        x = net_conv(n, x, channels, 3, 1, 1, TENSOR_NONE, ACT_NONE,
                     "decoder.up_blocks.%d.upsamplers.0.conv", i);
    }
    /* The last activation is SiLU whatever act_fn says. */
    x = net_group_norm(n, x, c->groups, VAE_EPS, ACT_SILU, "decoder.conv_norm_out");
    return net_conv(n, x, c->out_channels, 3, 1, 1, TENSOR_NONE, ACT_NONE, "decoder.conv_out");
}

/* ---- AutoencoderTiny: one nn.Sequential, so layers are counted ---- */

static struct tensor decode_tiny(struct net *n, const struct vae_config *c, struct tensor z)
{
    struct graph *g = n->graph;
    int layer = 0;
    struct tensor x = op_soft_clamp(g, z);
    x = net_conv(n, x, c->channels[0], 3, 1, 1, TENSOR_NONE, c->act, "decoder.layers.%d", layer);
    layer += 2; /* the activation is a layer of its own there */
    for (int i = 0; i < c->blocks; i++) {
        int final = i == c->blocks - 1;
        for (int j = 0; j < c->block_layers[i]; j++, layer++) {
            struct tensor h = x;
            for (int k = 0; k < 3; k++)
                h = net_conv(n, h, c->channels[i], 3, 1, 1, TENSOR_NONE, k < 2 ? c->act : ACT_NONE,
                             "decoder.layers.%d.conv.%d", layer, 2 * k);
            /* The block's last activation is ReLU whatever act_fn says. */
            x = op_activation(g, op_add(g, h, x), ACT_RELU);
        }
        if (!final) {
            struct shape s = graph_shape(g, x);
            x = op_resize(g, x, 2 * s.h, 2 * s.w);
            layer++;
        }
        x = net_conv(n, x, final ? c->out_channels : c->channels[i], 3, 1, final, TENSOR_NONE,
                     ACT_NONE, "decoder.layers.%d", layer++);
    }
    return op_affine(g, x, 2, -1);
}

void vae_record(struct vae_graph *ret, struct net *n, const struct vae_config *c, struct shape size)
{
    struct graph *g = n->graph;
    ret->latents = graph_input(
        g, "latents", (struct shape){size.b, size.h, size.w, c->latent_channels}, TYPE_F32);
    struct tensor z = op_affine(g, ret->latents, 1 / c->scaling_factor, c->shift_factor);
    ret->out = c->tiny ? decode_tiny(n, c, z) : decode_kl(n, c, z);
    graph_output(g, ret->out, "vae.out", 0);
    ret->image = op_to_u8(g, ret->out);
    graph_output(g, ret->image, "image", 0);
}
