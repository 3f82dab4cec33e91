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
        (code = json_whole(&c.heads, config, "num_attention_heads", 8, 1, 1024, file, err)))
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
                          "%s: \"use_attention_mask\" is true: text encoders of the SD1.5 family "
                          "see their padding",
                          file);
    if (!(c.eps > 0))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"layer_norm_eps\" is %g: expected more than 0", file, c.eps);
    c.act = acts[act];
    *ret = c;
    return 0;
}

void clip_record(struct clip_graph *ret, struct net *n, const struct clip_config *c, int batch,
                 int tokens)
{
    struct graph *g = n->graph;
    /* transformers before 5 wrote every name with "text_model." in front; both are about. */
    const char *root =
        params_has(n->params, "text_model.final_layer_norm.weight") ? "text_model." : "";
    char table[64], positions[64], path[64];
    snprintf(table, sizeof table, "%sembeddings.token_embedding", root);
    snprintf(positions, sizeof positions, "%sembeddings.position_embedding", root);
    double scale = 1 / sqrt((double)c->channels / c->heads);

    ret->ids = graph_input(g, "tokens", (struct shape){batch, 1, tokens, 1}, TYPE_I32);
    struct tensor x =
        net_embedding(n, ret->ids, c->vocab, c->positions, c->channels, table, positions);
    for (int i = 0; i < c->layers; i++) {
        static const char *const names[] = {"q_proj", "k_proj", "v_proj"};
        snprintf(path, sizeof path, "%sencoder.layers.%d", root, i);
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
        x = op_add(g, x, h);
    }
    ret->text = net_layer_norm(n, x, c->eps, "%sfinal_layer_norm", root);
    graph_output(g, ret->text, "text", 0);
}
