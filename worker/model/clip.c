// SPDX-License-Identifier: Apache-2.0
#include "clip.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../json.h"

int clip_config_load(struct clip_config *ret, const json_t *config, const char *file,
                     struct steer_error *err)
{
    /* Saved from a whole CLIPModel, the text's part is one level down. */
    const json_t *text = json_object_get(config, "text_config");
    const char *type = json_string_value(json_object_get(config, "model_type"));
    if (json_is_object(text) && (!type || strcmp(type, "clip") == 0)) config = text;
    struct clip_config c = {0};
    int code;
    if ((code = json_whole(&c.vocab, config, "vocab_size", 49408, 1, 1 << 24, file, err)) ||
        (code =
             json_whole(&c.positions, config, "max_position_embeddings", 77, 2, 4096, file, err)) ||
        (code = json_whole(&c.channels, config, "hidden_size", 512, 1, 65536, file, err)) ||
        (code = json_whole(&c.feed_forward, config, "intermediate_size", 2048, 1, 1 << 20, file,
                           err)) ||
        (code = json_whole(&c.layers, config, "num_hidden_layers", 12, 1, CLIP_LAYERS_MAX, file,
                           err)) ||
        (code = json_whole(&c.heads, config, "num_attention_heads", 8, 1, 1024, file, err)) ||
        (code = json_whole(&c.eos, config, "eos_token_id", 49407, 0, 1 << 24, file, err)) ||
        (code = json_whole(&c.projection, config, "projection_dim", 512, 1, 65536, file, err)))
        return code;
    if (c.channels % c.heads)
        return steer_fail(err, STEER_BAD_MODEL, "%s: hidden_size %d does not divide into %d heads",
                          file, c.channels, c.heads);
    static const char *const names[] = {"quick_gelu", "gelu",  "gelu_new", "gelu_pytorch_tanh",
                                        "silu",       "swish", "relu",     NULL};
    static const enum activation acts[] = {ACT_QUICK_GELU, ACT_GELU, ACT_GELU_TANH, ACT_GELU_TANH,
                                           ACT_SILU,       ACT_SILU, ACT_RELU};
    int act, masked;
    if ((code = json_choice(&act, config, "hidden_act", 0, names, file, err)) ||
        (code = json_number(&c.eps, config, "layer_norm_eps", 1e-5, file, err)) ||
        (code = json_flag(&masked, config, "use_attention_mask", 0, file, err)))
        return code;
    if (masked)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"use_attention_mask\" is true: text encoders of this family see "
                          "their padding",
                          file);
    if (!(c.eps > 0))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"layer_norm_eps\" is %g: expected more than 0", file, c.eps);
    c.act = acts[act];
    *ret = c;
    return 0;
}

/* CLIPEncoderLayer. */
static struct tensor layer(struct net *n, const struct clip_config *c, struct tensor x,
                           const char *path)
{
    static const char *const names[] = {"q_proj", "k_proj", "v_proj"};
    struct graph *g = n->graph;
    double scale = 1 / sqrt((double)c->channels / c->heads);
    struct tensor h = net_layer_norm(n, x, c->eps, "%s.layer_norm1", path);
    h = net_linear_stack(n, h, c->channels, 1, 3, names, "%s.self_attn", path);
    struct tensor q = op_channels(g, h, 0, c->channels);
    struct tensor k = op_channels(g, h, c->channels, c->channels);
    struct tensor v = op_channels(g, h, 2 * c->channels, c->channels);
    h = op_attention(g, q, k, v, c->heads, scale, 1, TENSOR_NONE, TENSOR_NONE);
    h = net_linear(n, h, c->channels, 1, ACT_NONE, "%s.self_attn.out_proj", path);
    x = op_add(g, x, h);
    h = net_layer_norm(n, x, c->eps, "%s.layer_norm2", path);
    h = net_linear(n, h, c->feed_forward, 1, c->act, "%s.mlp.fc1", path);
    h = net_linear(n, h, c->channels, 1, ACT_NONE, "%s.mlp.fc2", path);
    return op_add(g, x, h);
}

void clip_record(struct encoder_graph *ret, struct net *n, const struct clip_config *c, int tokens,
                 enum text_states states, enum text_pooled pooled)
{
    struct graph *g = n->graph;
    /* transformers before 5 wrote every name with "text_model." in front; both are about. */
    const char *root =
        params_has(n->params, "text_model.embeddings.token_embedding.weight") ? "text_model." : "";
    char table[64], positions[64], path[64];
    snprintf(table, sizeof table, "%sembeddings.token_embedding", root);
    snprintf(positions, sizeof positions, "%sembeddings.position_embedding", root);

    ret->ids = graph_input(g, "tokens", (struct shape){1, 1, tokens, 1}, TYPE_I32);
    struct tensor x =
        net_embedding(n, ret->ids, c->vocab, c->positions, c->channels, table, positions);
    for (int i = 0; i < c->layers; i++) {
        if (i == c->layers - 1 && states == STATES_PENULTIMATE) {
            ret->states = x;
            graph_output(g, x, "states", 0);
            if (pooled == POOLED_NONE) return;
        }
        snprintf(path, sizeof path, "%sencoder.layers.%d", root, i);
        x = layer(n, c, x, path);
    }
    x = net_layer_norm(n, x, c->eps, "%sfinal_layer_norm", root);
    if (states == STATES_LAST) ret->states = x;
    if (states == STATES_LAST) graph_output(g, x, "states", 0);
    if (pooled == POOLED_NONE) return;
    if (pooled == POOLED_PROJECTED)
        x = net_linear(n, x, c->projection, 0, ACT_NONE, "text_projection");
    ret->pooled = x;
    graph_output(g, x, "pooled", 0);
}

int clip_pooled_row(const struct clip_config *c, const int32_t *ids, int tokens)
{
    int row = 0;
    if (c->eos == 2) {
        for (int i = 1; i < tokens; i++)
            if (ids[i] > ids[row]) row = i;
        return row;
    }
    while (row < tokens - 1 && ids[row] != c->eos)
        row++;
    return ids[row] == c->eos ? row : 0;
}
