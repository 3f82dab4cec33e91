/* text_encoder.h - one text encoder of a model with its tokenizer, whichever classes they are. */
#ifndef WORKER_TEXT_ENCODER_H
#define WORKER_TEXT_ENCODER_H
#include "../folder.h"
#include "../text/tokenizer.h"
#include "clip.h"
#include "t5.h"

#define TEXT_ENCODERS_MAX 2

struct encoder_class; /* text_encoder.c */

struct text_encoder {
    char part[24], tokenizer_part[24]; /* their folders: "text_encoder_2", "tokenizer_2" */
    const struct encoder_class *class;
    const char *tokenizer_class;
    union {
        struct clip_config clip;
        struct t5_config t5;
    } config;
    enum text_states states; /* what of it the family takes */
    enum text_pooled pooled;
    int channels, pooled_channels;
    int vocab, positions;
    int tokens; /* of a text as it gets it; 0 until opening asks tokenizer and encoder for it */
    int masked; /* padding is not seen */
    int lower;  /* texts are put in lower case and stripped first (text/lower.h) */
    /* Set by text_encoder_open. */
    struct tokenizer *tokenizer;
    struct params *params;
};

/* Reads the classes and the configuration of encoder `number` (1, or 2: "text_encoder_2"), which
 * must be of class class_name. A family that wants a number of tokens or a mask sets that now. */
int text_encoder_load(struct text_encoder *ret, const struct folder *f, int number,
                      const char *class_name, enum text_states states, enum text_pooled pooled,
                      struct steer_error *err) STEER_MUSTCHECK;
/* Opens tokenizer and tensor files. */
int text_encoder_open(struct text_encoder *e, const struct folder *f, struct compute *c,
                      struct steer_error *err) STEER_MUSTCHECK;
void text_encoder_close(struct text_encoder *e); /* of a zeroed or half-opened one too */

void text_encoder_record(struct encoder_graph *ret, struct net *n, const struct text_encoder *e);
/* 1: weights of tokens are about what it makes of the empty text (prompt_chunks.h). */
int text_encoder_weighs_about(const struct text_encoder *e);
/* The row of encoder_graph.pooled that is the text's. */
int text_encoder_pooled_row(const struct text_encoder *e, const int32_t *ids);

#endif
