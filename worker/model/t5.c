// SPDX-License-Identifier: Apache-2.0
#include "t5.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../json.h"

/* ---- configuration ---- */

/* A whole number that transformers knows under two names; both must agree. */
static int whole_alias(int *ret, const json_t *config, const char *key, const char *alias,
                       int fallback, int most, const char *file, struct steer_error *err)
{
    int other;
    int code = json_whole(ret, config, key, fallback, 1, most, file, err);
    if (!code) code = json_whole(&other, config, alias, *ret, 1, most, file, err);
    if (!code && other != *ret)
        code = steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" is %d, but \"%s\" is %d", file, key,
                          *ret, alias, other);
    return code;
}

/* What transformers makes of "feed_forward_proj", and that "dense_act_fn" and "is_gated_act", which
 * it writes beside it, say the same. Only "gated-gelu" means another GELU than its name. */
static int feed_forward_read(struct t5_config *c, const json_t *config, const char *file,
                             struct steer_error *err)
{
    static const char *const names[] = {
        "relu",       "gelu",           "gelu_new",   "silu", /* plain */
        "gated-gelu", "gated-gelu_new", "gated-silu", "gated-relu", NULL};
    static const struct {
        enum activation act;
        const char *dense_act_fn;
    } means[] = {{ACT_RELU, "relu"}, {ACT_GELU, "gelu"},          {ACT_GELU_TANH, "gelu_new"},
                 {ACT_SILU, "silu"}, {ACT_GELU_TANH, "gelu_new"}, {ACT_GELU_TANH, "gelu_new"},
                 {ACT_SILU, "silu"}, {ACT_RELU, "relu"}};
    int proj, gated, same, code;
    if ((code = json_choice(&proj, config, "feed_forward_proj", 0, names, file, err))) return code;
    c->gated = strncmp(names[proj], "gated-", 6) == 0;
    c->act = means[proj].act;
    const char *const only[] = {means[proj].dense_act_fn, NULL};
    if ((code = json_choice(&same, config, "dense_act_fn", 0, only, file, err)) ||
        (code = json_flag(&gated, config, "is_gated_act", c->gated, file, err)))
        return code;
    if (gated != c->gated)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"is_gated_act\" is %s, but \"feed_forward_proj\" is %s", file,
                          gated ? "true" : "false", names[proj]);
    return 0;
}

int t5_config_load(struct t5_config *ret, const json_t *config, const char *file,
                   struct steer_error *err)
{
    static const char *const types[] = {"t5", NULL};
    struct t5_config c = {0};
    int type, decoder, code;
    if ((code = json_choice(&type, config, "model_type", 0, types, file, err)) ||
        (code = json_flag(&decoder, config, "is_decoder", 0, file, err)) ||
        (code = json_whole(&c.vocab, config, "vocab_size", 32128, 1, 1 << 24, file, err)) ||
        (code = json_whole(&c.feed_forward, config, "d_ff", 2048, 1, 1 << 20, file, err)) ||
        (code =
             whole_alias(&c.channels, config, "d_model", "hidden_size", 512, 65536, file, err)) ||
        (code = whole_alias(&c.head_channels, config, "d_kv", "head_dim", 64, 1024, file, err)) ||
        (code = whole_alias(&c.layers, config, "num_layers", "num_hidden_layers", 6, T5_LAYERS_MAX,
                            file, err)) ||
        (code = whole_alias(&c.heads, config, "num_heads", "num_attention_heads", 8, 1024, file,
                            err)) ||
        (code = json_whole(&c.buckets, config, "relative_attention_num_buckets", 32, 4, 4096, file,
                           err)) ||
        (code = json_whole(&c.distance, config, "relative_attention_max_distance", 128, 2, 1 << 20,
                           file, err)) ||
        (code = json_number(&c.eps, config, "layer_norm_epsilon", 1e-6, file, err)) ||
        (code = feed_forward_read(&c, config, file, err)))
        return code;
    if (decoder)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"is_decoder\" is true: a text encoder has false", file);
    if (!(c.eps > 0))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"layer_norm_epsilon\" is %g: expected more than 0", file, c.eps);
    if (c.distance <= c.buckets / 4)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"relative_attention_max_distance\" is %d: expected over %d, a "
                          "quarter of \"relative_attention_num_buckets\"",
                          file, c.distance, c.buckets / 4);
    *ret = c;
    return 0;
}

/* ---- forward ---- */

int t5_bucket(const struct t5_config *c, int behind)
{
    int half = c->buckets / 2, exact = half / 2, far = abs(behind);
    int bucket = far;
    if (far >= exact) {
        /* In f32, as the reference: where the logarithm is whole, rounding decides. */
        float steps = logf((float)far / (float)exact) / (float)log((double)c->distance / exact) *
                      (float)(half - exact);
        bucket = exact + (int)steps;
        if (bucket > half - 1) bucket = half - 1;
    }
    return behind > 0 ? half + bucket : bucket;
}

/* [1, tokens, tokens, heads]: what is added to the logit of query h and key w. */
static struct tensor positions_record(struct net *n, const struct t5_config *c, int tokens)
{
    size_t count = (size_t)tokens * (size_t)tokens;
    int32_t *ids = malloc(count * sizeof *ids);
    for (size_t i = 0; ids && i < count; i++)
        ids[i] = t5_bucket(c, (int)(i % (size_t)tokens) - (int)(i / (size_t)tokens));
    /* Without memory the graph remembers it. */
    struct tensor buckets =
        graph_constant_ids(n->graph, "position_buckets", (struct shape){1, tokens, tokens, 1}, ids);
    free(ids);
    return net_embedding(n, buckets, c->buckets, 0, c->heads,
                         "encoder.block.0.layer.0.SelfAttention.relative_attention_bias", NULL);
}

static struct tensor feed_forward(struct net *n, struct tensor x, const struct t5_config *c, int i)
{
    static const char path[] = "encoder.block.%d.layer.1.DenseReluDense.%s";
    struct tensor h =
        net_linear(n, x, c->feed_forward, 0, c->act, path, i, c->gated ? "wi_0" : "wi");
    if (c->gated)
        h = op_multiply(n->graph, h,
                        net_linear(n, x, c->feed_forward, 0, ACT_NONE, path, i, "wi_1"));
    return net_linear(n, h, c->channels, 0, ACT_NONE, path, i, "wo");
}

void t5_record(struct encoder_graph *ret, struct net *n, const struct t5_config *c, int tokens,
               int masked)
{
    struct graph *g = n->graph;
    int inner = c->heads * c->head_channels;
    const char *table = params_has(n->params, "shared.weight") ? "shared" : "encoder.embed_tokens";

    ret->ids = graph_input(g, "tokens", (struct shape){1, 1, tokens, 1}, TYPE_I32);
    if (masked) ret->mask = graph_input(g, "mask", (struct shape){1, 1, 1, tokens}, TYPE_F32);
    struct tensor bias = positions_record(n, c, tokens);
    struct tensor x = net_embedding(n, ret->ids, c->vocab, 0, c->channels, table, NULL);
    for (int i = 0; i < c->layers; i++) {
        static const char *const names[] = {"q", "k", "v"};
        struct tensor h = net_rms_norm(n, x, 1, c->eps, "encoder.block.%d.layer.0.layer_norm", i);
        h = net_linear_stack(n, h, inner, 0, 3, names, "encoder.block.%d.layer.0.SelfAttention", i);
        struct tensor q = op_channels(g, h, 0, inner);
        struct tensor k = op_channels(g, h, inner, inner);
        struct tensor v = op_channels(g, h, 2 * inner, inner);
        h = op_attention(g, q, k, v, c->heads, 1, 0, ret->mask, bias);
        h = net_linear(n, h, c->channels, 0, ACT_NONE, "encoder.block.%d.layer.0.SelfAttention.o",
                       i);
        x = op_add(g, x, h);
        h = net_rms_norm(n, x, 1, c->eps, "encoder.block.%d.layer.1.layer_norm", i);
        x = op_add(g, x, feed_forward(n, h, c, i));
    }
    ret->states = net_rms_norm(n, x, 1, c->eps, "encoder.final_layer_norm");
    graph_output(g, ret->states, "states", 0);
}
