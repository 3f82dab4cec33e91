/* clip.h - CLIPTextModel and CLIPTextModelWithProjection (transformers 5,
 * models/clip/modeling_clip.py). */
#ifndef WORKER_CLIP_H
#define WORKER_CLIP_H
#include <jansson.h>

#include "graphs.h"

#define CLIP_LAYERS_MAX 64

struct clip_config {
    int vocab, positions, channels, feed_forward, layers, heads;
    int eos, projection; /* eos_token_id; channels of the projected pooled state */
    double eps;
    enum activation act;
};

int clip_config_load(struct clip_config *ret, const json_t *config, const char *file,
                     struct steer_error *err) STEER_MUSTCHECK;

/* Only what is taken of it is computed and looked for in the files. Every row is pooled: which one
 * counts is the ids' matter. */
void clip_record(struct encoder_graph *ret, struct net *n, const struct clip_config *config,
                 int tokens, enum text_states states, enum text_pooled pooled);
/* Where transformers finds the end of the text: the first eos_token_id, or, where a config from
 * before its correction says 2, the first of the highest id. */
int clip_pooled_row(const struct clip_config *config, const int32_t *ids, int tokens);

#endif
