// SPDX-License-Identifier: Apache-2.0
#include "flux.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "../json.h"

#define EPS 1e-6 /* of every norm */

/* ---- configuration ---- */

static int axes_read(struct flux_config *c, const json_t *config, const char *file,
                     struct steer_error *err)
{
    static const int usual[FLUX_AXES] = {16, 56, 56};
    const json_t *list = json_object_get(config, "axes_dims_rope");
    char shown[JSON_SHOWN_BYTES];
    int sum = 0, fits = !list || json_array_size(list) == FLUX_AXES;
    for (int i = 0; i < FLUX_AXES && fits; i++) {
        const json_t *item = json_array_get(list, (size_t)i);
        json_int_t axis = list ? json_integer_value(item) : usual[i];
        fits = axis > 0 && axis <= c->head_channels && axis % 2 == 0;
        c->axes[i] = (int)axis;
        sum += c->axes[i];
    }
    if (fits && sum == c->head_channels) return 0;
    return steer_fail(err, STEER_BAD_MODEL,
                      "%s: \"axes_dims_rope\" is %s: expected %d even numbers whose sum is "
                      "attention_head_dim %d",
                      file, list ? json_shown(shown, list) : "[16, 56, 56] where it is left out",
                      FLUX_AXES, c->head_channels);
}

int flux_config_load(struct flux_config *ret, const json_t *config, const char *file,
                     struct steer_error *err)
{
    struct flux_config c = {0};
    int patch, in, out, told, code;
    if ((code = json_whole(&patch, config, "patch_size", 1, 1, 1, file, err)) ||
        (code = json_whole(&in, config, "in_channels", 64, 1, 4096, file, err)) ||
        (code = json_whole(&out, config, "out_channels", in, 1, 4096, file, err)) ||
        (code = json_whole(&c.layers, config, "num_layers", 19, 1, 1024, file, err)) ||
        (code =
             json_whole(&c.single_layers, config, "num_single_layers", 38, 1, 1024, file, err)) ||
        (code =
             json_whole(&c.head_channels, config, "attention_head_dim", 128, 2, 1024, file, err)) ||
        (code = json_whole(&c.heads, config, "num_attention_heads", 24, 1, 1024, file, err)) ||
        (code = json_whole(&c.text_channels, config, "joint_attention_dim", 4096, 1, 65536, file,
                           err)) ||
        (code = json_whole(&c.pooled_channels, config, "pooled_projection_dim", 768, 1, 65536, file,
                           err)) ||
        (code = json_flag(&told, config, "guidance_embeds", 0, file, err)) ||
        (code = axes_read(&c, config, file, err)))
        return code;
    if (told)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"guidance_embeds\" is true: models that are told their guidance "
                          "scale (FLUX.1-dev) are not read, expected false (FLUX.1-schnell)",
                          file);
    if (in != out || in % (FLUX_PATCH * FLUX_PATCH))
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"in_channels\" is %d and \"out_channels\" %d: expected the same, "
                          "%d of each latent channel",
                          file, in, out, FLUX_PATCH * FLUX_PATCH);
    c.latent_channels = in / (FLUX_PATCH * FLUX_PATCH);
    c.channels = c.heads * c.head_channels;
    *ret = c;
    return 0;
}

/* ---- forward ---- */

/* Where a block keeps what it does to one kind of rows. */
struct stream_names {
    const char *norm, *qkv[3], *norm_q, *norm_k, *out, *feed_forward;
};
static const struct stream_names image_names = {
    "norm1", {"to_q", "to_k", "to_v"}, "norm_q", "norm_k", "to_out.0", "ff"};
static const struct stream_names text_names = {
    "norm1_context", {"add_q_proj", "add_k_proj", "add_v_proj"},
    "norm_added_q",  "norm_added_k",
    "to_add_out",    "ff_context"};
static const struct stream_names single_names = {
    "norm", {"to_q", "to_k", "to_v"}, "norm_q", "norm_k", NULL, NULL};

enum { IMAGE, POSITIVE, NEGATIVE, STREAMS };

/* Rows that share a modulation. */
struct stream {
    struct tensor x;    /* [B, 1, rows, channels] */
    struct tensor vec;  /* [B, 1, 1, channels]: what every modulation is projected from */
    struct tensor rope; /* TENSOR_NONE for texts, which all stand at 0 */
};

struct forward {
    struct net *n;
    const struct flux_config *c;
    struct denoiser_graph *out;
    enum guidance_method method;
    enum guidance_variant variant;
    struct stream stream[STREAMS];
    int streams; /* without guidance there is no negative one */
};

/* What a block computes of one stream on its way to attention. */
struct projected {
    struct tensor modulation, q, k, v;
};

/* Part i of a modulation. */
static struct tensor part(const struct forward *f, struct tensor modulation, int i)
{
    return op_channels(f->n->graph, modulation, i * f->c->channels, f->c->channels);
}

/* The norm of x under the shift and the scale that begin at part i. */
static struct tensor modulated(const struct forward *f, struct tensor x, struct tensor modulation,
                               int i)
{
    struct graph *g = f->n->graph;
    return op_modulate(g, op_layer_norm(g, x, NULL, EPS), part(f, modulation, i),
                       part(f, modulation, i + 1));
}

/* Queries or keys: normalised head by head, then turned by their place. */
static struct tensor placed(const struct forward *f, const struct stream *s, struct tensor x,
                            const char *norm, const char *path)
{
    x = net_rms_norm(f->n, x, f->c->heads, EPS, "%s.attn.%s", path, norm);
    return s->rope.id < 0 ? x : op_rope(f->n->graph, x, s->rope, f->c->heads);
}

/* h: the stream's rows as modulated. */
static void project(const struct forward *f, struct projected *ret, const struct stream *s,
                    struct tensor h, const struct stream_names *names, const char *path)
{
    h = net_linear_stack(f->n, h, f->c->channels, 1, 3, names->qkv, "%s.attn", path);
    ret->q = placed(f, s, part(f, h, 0), names->norm_q, path);
    ret->k = placed(f, s, part(f, h, 1), names->norm_k, path);
    ret->v = part(f, h, 2);
}

/* Attention of stream i: a text sees itself and the image, the image what the method makes of both
 * texts and itself. */
static struct tensor attend(const struct forward *f, const struct projected *p, int i)
{
    struct text_keys own[STREAMS] = {TEXT_KEYS_NONE, TEXT_KEYS_NONE, TEXT_KEYS_NONE};
    for (int k = 0; k < f->streams; k++)
        own[k] = (struct text_keys){p[k].k, p[k].v, TENSOR_NONE};
    double scale = 1 / sqrt((double)f->c->head_channels);
    if (i == IMAGE && f->method != GUIDANCE_NONE)
        return op_guided_attention(f->n->graph, p[i].q, own[POSITIVE], own[NEGATIVE], own[IMAGE],
                                   f->c->heads, scale, f->method, f->variant, f->out->params);
    return op_guided_attention(f->n->graph, p[i].q, own[i == NEGATIVE ? NEGATIVE : POSITIVE],
                               TEXT_KEYS_NONE, own[IMAGE], f->c->heads, scale, GUIDANCE_NONE,
                               GUIDANCE_TEXT, TENSOR_NONE);
}

/* Modulation parts: shift, scale and gate of the attention, then those of the feed-forward. */
static void double_block(struct forward *f, const char *path)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    int channels = f->c->channels;
    struct projected p[STREAMS];
    for (int i = 0; i < f->streams; i++) {
        const struct stream_names *names = i == IMAGE ? &image_names : &text_names;
        const struct stream *s = f->stream + i;
        p[i].modulation =
            net_linear(n, s->vec, 6 * channels, 1, ACT_NONE, "%s.%s.linear", path, names->norm);
        project(f, p + i, s, modulated(f, s->x, p[i].modulation, 0), names, path);
    }
    for (int i = 0; i < f->streams; i++) {
        const struct stream_names *names = i == IMAGE ? &image_names : &text_names;
        struct tensor *x = &f->stream[i].x, h = attend(f, p, i);
        h = net_linear(n, h, channels, 1, ACT_NONE, "%s.attn.%s", path, names->out);
        *x = op_gated_add(g, *x, part(f, p[i].modulation, 2), h);
        h = modulated(f, *x, p[i].modulation, 3);
        h = net_linear(n, h, 4 * channels, 1, ACT_GELU_TANH, "%s.%s.net.0.proj", path,
                       names->feed_forward);
        h = net_linear(n, h, channels, 1, ACT_NONE, "%s.%s.net.2", path, names->feed_forward);
        *x = op_gated_add(g, *x, part(f, p[i].modulation, 5), h);
    }
}

/* Modulation parts: shift, scale and gate. After the last block nobody reads the texts' rows. */
static void single_block(struct forward *f, const char *path, int last)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    int channels = f->c->channels;
    struct projected p[STREAMS];
    struct tensor rows[STREAMS];
    for (int i = 0; i < f->streams; i++) {
        const struct stream *s = f->stream + i;
        /* The positive text's is the image's: one weight for all streams, and they share `vec`. */
        p[i].modulation = i == POSITIVE ? p[IMAGE].modulation
                                        : net_linear(n, s->vec, 3 * channels, 1, ACT_NONE,
                                                     "%s.norm.linear", path);
        rows[i] = modulated(f, s->x, p[i].modulation, 0);
        project(f, p + i, s, rows[i], &single_names, path);
    }
    for (int i = 0; i < (last ? 1 : f->streams); i++) {
        struct tensor *x = &f->stream[i].x;
        struct tensor h =
            net_linear(n, rows[i], 4 * channels, 1, ACT_GELU_TANH, "%s.proj_mlp", path);
        h = op_concat(g, attend(f, p, i), h);
        h = net_linear(n, h, channels, 1, ACT_NONE, "%s.proj_out", path);
        *x = op_gated_add(g, *x, part(f, p[i].modulation, 2), h);
    }
}

/* [1, 1, h * w, head_channels]: of each patch the cosines, then the sines of its place. */
static struct tensor rope_table(struct graph *g, const struct flux_config *c, int h, int w)
{
    int half = c->head_channels / 2;
    float *table = malloc((size_t)h * (size_t)w * (size_t)c->head_channels * sizeof *table);
    for (int at = 0; table && at < h * w; at++) {
        const int place[FLUX_AXES] = {0, at / w, at % w};
        float *row = table + (size_t)at * (size_t)c->head_channels;
        for (int axis = 0; axis < FLUX_AXES; axis++)
            for (int i = 0; i < c->axes[axis]; i += 2, row++) {
                double angle = place[axis] / pow(10000, (double)i / c->axes[axis]);
                row[0] = (float)cos(angle);
                row[half] = (float)sin(angle);
            }
    }
    /* Without memory the graph remembers it. */
    struct tensor t =
        graph_constant(g, "rope", (struct shape){1, 1, h * w, c->head_channels}, table);
    free(table);
    return t;
}

/* What is projected to all modulations of a stream's rows: time and the pooled state. */
static struct tensor conditions(struct forward *f, struct tensor time, struct tensor pooled)
{
    struct graph *g = f->n->graph;
    return op_activation(g, op_add(g, time, pooled), ACT_SILU);
}

static void streams_begin(struct forward *f, const struct denoiser_size *size)
{
    struct net *n = f->n;
    struct graph *g = n->graph;
    int b = size->batch, channels = f->c->channels, guided = f->method != GUIDANCE_NONE;
    struct shape none = {0, 0, 0, 0}, one = {b, 1, 1, channels};
    struct shape rows = {b, 1, size->tokens_positive, channels};
    struct shape rows_negative = {b, 1, size->tokens_negative, channels};
    struct text_pair text = denoiser_graph_bound(f->out, g, rows, guided ? rows_negative : none, 0);
    struct text_pair pooled = denoiser_graph_bound(f->out, g, one, guided ? one : none, 0);

    struct tensor time = op_sinusoid(g, f->out->timestep, 256, 1, 0);
    time = net_linear(n, time, channels, 1, ACT_SILU, "time_text_embed.timestep_embedder.linear_1");
    time = net_linear(n, time, channels, 1, ACT_NONE, "time_text_embed.timestep_embedder.linear_2");

    struct tensor x = op_patches(g, f->out->latents, FLUX_PATCH, PATCH_CHANNEL_FIRST);
    struct shape s = graph_shape(g, x);
    x = net_linear(n, op_reshape(g, x, 1, s.h * s.w), channels, 1, ACT_NONE, "x_embedder");
    struct tensor vec = conditions(f, time, pooled.positive);
    f->stream[IMAGE] = (struct stream){x, vec, rope_table(g, f->c, s.h, s.w)};
    f->stream[POSITIVE] = (struct stream){text.positive, vec, TENSOR_NONE};
    f->streams = guided ? STREAMS : NEGATIVE;
    if (!guided) return;
    vec = conditions(f, time, pooled.negative);
    f->stream[NEGATIVE] = (struct stream){text.negative, vec, TENSOR_NONE};
}

void flux_record(struct denoiser_graph *d, struct net *n, const struct flux_config *c,
                 const struct denoiser_size *size)
{
    struct graph *g = n->graph;
    struct forward f = {.n = n, .c = c, .out = d, .method = size->method, .variant = size->variant};
    char path[48];
    streams_begin(&f, size);
    for (int i = 0; i < c->layers; i++) {
        snprintf(path, sizeof path, "transformer_blocks.%d", i);
        double_block(&f, path);
    }
    for (int i = 0; i < c->single_layers; i++) {
        snprintf(path, sizeof path, "single_transformer_blocks.%d", i);
        single_block(&f, path, i == c->single_layers - 1);
    }
    /* Here alone the scale comes before the shift. */
    const struct stream *image = f.stream + IMAGE;
    struct tensor m = net_linear(n, image->vec, 2 * c->channels, 1, ACT_NONE, "norm_out.linear");
    struct tensor x = op_layer_norm(g, image->x, NULL, EPS);
    x = op_modulate(g, x, part(&f, m, 1), part(&f, m, 0));
    x = net_linear(n, x, c->latent_channels * FLUX_PATCH * FLUX_PATCH, 1, ACT_NONE, "proj_out");
    x = op_reshape(g, x, size->height / FLUX_PATCH, size->width / FLUX_PATCH);
    denoiser_graph_end(d, g, op_unpatches(g, x, FLUX_PATCH, PATCH_CHANNEL_FIRST));
}

void flux_record_text(struct text_graph *t, struct net *n, const struct flux_config *c)
{
    static const char embedder[] = "time_text_embed.text_embedder.%s";
    struct graph *g = n->graph;
    text_graph_bound(t, g, net_linear(n, t->states, c->channels, 1, ACT_NONE, "context_embedder"),
                     0);
    struct tensor x = net_linear(n, t->pooled, c->channels, 1, ACT_SILU, embedder, "linear_1");
    text_graph_bound(t, g, net_linear(n, x, c->channels, 1, ACT_NONE, embedder, "linear_2"), 0);
}
