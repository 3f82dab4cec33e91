// SPDX-License-Identifier: Apache-2.0
#include "text_encoder.h"

#include <stdio.h>
#include <string.h>

/* A class of encoders as transformers calls it. */
struct encoder_class {
    const char *name;
    const char *tokenizers[3], *tokenizers_expected;
    int (*load)(struct text_encoder *e, const json_t *config, const char *file,
                struct steer_error *err);
    void (*record)(struct encoder_graph *ret, struct net *n, const struct text_encoder *e);
    int (*pooled_row)(const struct text_encoder *e, const int32_t *ids); /* NULL: none is pooled */
};

/* ---- CLIPTextModel, CLIPTextModelWithProjection ---- */

static int clip_load(struct text_encoder *e, const json_t *config, const char *file,
                     struct steer_error *err)
{
    struct clip_config *c = &e->config.clip;
    int code = clip_config_load(c, config, file, err);
    if (code) return code;
    e->vocab = c->vocab;
    e->positions = c->positions;
    e->channels = e->states == STATES_NONE ? 0 : c->channels;
    e->pooled_channels = e->pooled == POOLED_NONE   ? 0
                         : e->pooled == POOLED_LAST ? c->channels
                                                    : c->projection;
    return 0;
}

static void clip_record_as_told(struct encoder_graph *ret, struct net *n,
                                const struct text_encoder *e)
{
    clip_record(ret, n, &e->config.clip, e->tokens, e->states, e->pooled);
}

static int clip_row(const struct text_encoder *e, const int32_t *ids)
{
    return clip_pooled_row(&e->config.clip, ids, e->tokens);
}

/* ---- T5EncoderModel ---- */

static int t5_load(struct text_encoder *e, const json_t *config, const char *file,
                   struct steer_error *err)
{
    struct t5_config *c = &e->config.t5;
    int code = t5_config_load(c, config, file, err);
    if (code) return code;
    e->vocab = c->vocab;
    e->positions = TOKENS_MAX; /* it sees distances only */
    e->channels = c->channels;
    return 0;
}

static void t5_record_as_told(struct encoder_graph *ret, struct net *n,
                              const struct text_encoder *e)
{
    t5_record(ret, n, &e->config.t5, e->tokens, e->masked);
}

/* ---- all ---- */

#define CLIP_TOKENIZERS {"CLIPTokenizer", "CLIPTokenizerFast", NULL}, "CLIPTokenizer"
static const struct encoder_class classes[] = {
    {"CLIPTextModel", CLIP_TOKENIZERS, clip_load, clip_record_as_told, clip_row},
    {"CLIPTextModelWithProjection", CLIP_TOKENIZERS, clip_load, clip_record_as_told, clip_row},
    {"T5EncoderModel",
     {"T5Tokenizer", "T5TokenizerFast", NULL},
     "T5Tokenizer",
     t5_load,
     t5_record_as_told,
     NULL},
};

int text_encoder_load(struct text_encoder *e, const struct folder *f, int number,
                      const char *class_name, enum text_states states, enum text_pooled pooled,
                      struct steer_error *err)
{
    const char *wanted[] = {class_name, NULL}, *suffix = number == 2 ? "_2" : "";
    char path[FOLDER_PATH_BYTES], expected[64];
    json_t *config = NULL;
    int code;
    *e = (struct text_encoder){.states = states, .pooled = pooled};
    snprintf(e->part, sizeof e->part, "text_encoder%s", suffix);
    snprintf(e->tokenizer_part, sizeof e->tokenizer_part, "tokenizer%s", suffix);
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (strcmp(classes[i].name, class_name) == 0) e->class = classes + i;
    snprintf(expected, sizeof expected, "%s for \"%s\"", e->class->tokenizers_expected, e->part);
    if ((code = folder_class_get(&class_name, f, e->part, wanted, class_name, err)) ||
        (code = folder_class_get(&e->tokenizer_class, f, e->tokenizer_part, e->class->tokenizers,
                                 expected, err)) ||
        (code = folder_config(&config, f, e->part, path, err)))
        return code;
    code = e->class->load(e, config, path, err);
    json_decref(config);
    return code;
}

int text_encoder_open(struct text_encoder *e, const struct folder *f, struct compute *c,
                      struct steer_error *err)
{
    char path[FOLDER_PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", f->dir, e->tokenizer_part);
    int code = tokenizer_open(&e->tokenizer, e->tokenizer_class, path, err);
    if (code) return code;
    int most = tokenizer_length(e->tokenizer);
    if (!e->tokens) e->tokens = most > 0 && most < e->positions ? most : e->positions;
    if (e->tokens > TOKENS_MAX) e->tokens = TOKENS_MAX;
    return folder_params(&e->params, f, c, e->part, err);
}

void text_encoder_close(struct text_encoder *e)
{
    params_free(e->params);
    tokenizer_close(e->tokenizer);
    e->params = NULL;
    e->tokenizer = NULL;
}

void text_encoder_record(struct encoder_graph *ret, struct net *n, const struct text_encoder *e)
{
    *ret = ENCODER_GRAPH_NONE;
    e->class->record(ret, n, e);
}

int text_encoder_pooled_row(const struct text_encoder *e, const int32_t *ids)
{
    return e->class->pooled_row(e, ids);
}

int text_encoder_weighs_about(const struct text_encoder *e)
{
    return tokenizer_unigram(e->tokenizer) != NULL;
}
