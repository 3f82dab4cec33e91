/* t5.h - T5EncoderModel (transformers 5, models/t5/modeling_t5.py): last_hidden_state.
 *
 * Positions are only seen as distances: a bucket of a distance has a number for each head, which is
 * added to the logits, in every block the same. Logits are not divided by anything, no layer has a
 * bias, norms are RMS norms. */
#ifndef WORKER_T5_H
#define WORKER_T5_H
#include <jansson.h>

#include "graphs.h"

#define T5_LAYERS_MAX 64

struct t5_config {
    int vocab, channels, head_channels, feed_forward, layers, heads;
    int buckets, distance; /* of positions; from distance on all are one bucket */
    double eps;
    enum activation act;
    int gated; /* act(x W0) * (x W1) for act(x W) */
};

int t5_config_load(struct t5_config *ret, const json_t *config, const char *file,
                   struct steer_error *err) STEER_MUSTCHECK;

/* The bucket of a key that far behind the query (negative: before it). */
int t5_bucket(const struct t5_config *c, int behind);

/* masked: padding is not seen; otherwise it is a text like any other. */
void t5_record(struct encoder_graph *ret, struct net *n, const struct t5_config *config, int tokens,
               int masked);

#endif
