/* clip.h - CLIPTextModel (transformers 5, models/clip/modeling_clip.py): last_hidden_state after
 * the final layer norm. */
#ifndef WORKER_CLIP_H
#define WORKER_CLIP_H
#include <jansson.h>

#include "net.h"

#define CLIP_LAYERS_MAX 64

struct clip_config {
    int vocab, positions, channels, feed_forward, layers, heads;
    double eps;
    enum activation act;
};

int clip_config_load(struct clip_config *ret, const json_t *config, const char *file,
                     struct steer_error *err) STEER_MUSTCHECK;

struct clip_graph {
    struct tensor ids;  /* input [B, 1, tokens, 1] i32 */
    struct tensor text; /* output [B, 1, tokens, channels] f32 */
};
void clip_record(struct clip_graph *ret, struct net *n, const struct clip_config *config, int batch,
                 int tokens);

#endif
