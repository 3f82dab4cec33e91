// SPDX-License-Identifier: Apache-2.0
#include "ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../weight.h"

/* Sums are taken in double: this backend says what is right, not what is fast. */

static float activate(float x, enum activation act)
{
    switch (act) {
    case ACT_NONE: return x;
    case ACT_SILU: return x / (1 + expf(-x));
    case ACT_GELU: return 0.5f * x * (1 + erff(x * 0.70710678f));
    case ACT_GELU_TANH: return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case ACT_QUICK_GELU: return x / (1 + expf(-1.702f * x));
    case ACT_RELU: return x > 0 ? x : 0;
    case ACT_TANH: return tanhf(x);
    }
    return x;
}

/* Pixel i of image b: its channels. */
static float *pixel(const struct plan *p, int t, int b, int i)
{
    return (float *)place_image(p, t, b) + (size_t)i * (size_t)p->places[t].pitch;
}

/* A matrix or kernel as it is held. */
struct held {
    const struct weight *w;
    const float *matrix; /* [out, in, size * size]; NULL: int8 */
    struct weight_int8 int8;
};

static int held_get(struct held *ret, struct weight *w)
{
    *ret = (struct held){.w = w};
    if (w->int8) return weight_matrix_int8(w, &ret->int8);
    return (ret->matrix = weight_matrix_f32(w)) ? 0 : STEER_NO_MEMORY;
}

static double held_at(const struct held *h, int o, int channel, int tap)
{
    size_t taps = (size_t)(h->w->size * h->w->size);
    if (h->matrix)
        return h->matrix[((size_t)o * (size_t)h->w->in + (size_t)channel) * taps + (size_t)tap];
    return (double)h->int8.codes[int8_place(h->w, o, tap, channel)] * h->int8.scales[o];
}

static int linear(struct plan *p, struct step *s)
{
    struct weight *w = s->op.w;
    struct held matrix;
    const float *bias = weight_vector_f32(w);
    struct shape out = p->places[s->op.out].shape;
    if (held_get(&matrix, w) || !bias) return STEER_NO_MEMORY;
    for (int b = 0; b < out.b; b++)
#pragma omp parallel for schedule(static)
        for (int i = 0; i < out.h * out.w; i++) {
            const float *x = pixel(p, s->op.in[0], b, i);
            float *y = pixel(p, s->op.out, b, i);
            for (int o = 0; o < out.c; o++) {
                double sum = bias[o];
                for (int k = 0; k < w->in; k++)
                    sum += x[k] * held_at(&matrix, o, k, 0);
                y[o] = activate((float)sum, s->op.act);
            }
        }
    return 0;
}

static int conv(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct weight *w = op->w;
    struct held kernel;
    const float *bias = weight_vector_f32(w);
    struct shape in = p->places[op->in[0]].shape, out = p->places[op->out].shape;
    if (held_get(&kernel, w) || !bias) return STEER_NO_MEMORY;
    int k = w->size;
    for (int b = 0; b < out.b; b++)
#pragma omp parallel for schedule(static)
        for (int i = 0; i < out.h * out.w; i++) {
            float *y = pixel(p, op->out, b, i);
            int top = i / out.w * op->stride - op->padding;
            int left = i % out.w * op->stride - op->padding;
            for (int o = 0; o < out.c; o++) {
                double sum = bias[o];
                if (op->in[1] >= 0) sum += pixel(p, op->in[1], b, 0)[o];
                for (int r = 0; r < k; r++)
                    for (int c = 0; c < k; c++) {
                        int row = top + r, column = left + c;
                        if (row < 0 || row >= in.h || column < 0 || column >= in.w) continue;
                        const float *x = pixel(p, op->in[0], b, row * in.w + column);
                        for (int q = 0; q < in.c; q++)
                            sum += x[q] * held_at(&kernel, o, q, r * k + c);
                    }
                y[o] = activate((float)sum, op->act);
            }
        }
    return 0;
}

static int group_norm(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    const float *scale = weight_matrix_f32(op->w), *shift = weight_vector_f32(op->w);
    struct shape x = p->places[op->out].shape;
    if (!scale || !shift) return STEER_NO_MEMORY;
    int pixels = x.h * x.w, width = x.c / op->groups;
    for (int b = 0; b < x.b; b++)
#pragma omp parallel for schedule(static)
        for (int g = 0; g < op->groups; g++) {
            double sum = 0, square = 0, count = (double)pixels * width;
            for (int i = 0; i < pixels; i++)
                for (int c = g * width; c < (g + 1) * width; c++)
                    sum += pixel(p, op->in[0], b, i)[c];
            double mean = sum / count;
            for (int i = 0; i < pixels; i++)
                for (int c = g * width; c < (g + 1) * width; c++) {
                    double d = pixel(p, op->in[0], b, i)[c] - mean;
                    square += d * d;
                }
            double inverse = 1 / sqrt(square / count + op->eps);
            for (int i = 0; i < pixels; i++)
                for (int c = g * width; c < (g + 1) * width; c++) {
                    double v = (pixel(p, op->in[0], b, i)[c] - mean) * inverse;
                    pixel(p, op->out, b, i)[c] =
                        activate((float)(v * scale[c] + shift[c]), op->act);
                }
        }
    return 0;
}

static int layer_norm(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    const float *scale = op->w ? weight_matrix_f32(op->w) : NULL;
    const float *shift = op->w ? weight_vector_f32(op->w) : NULL;
    struct shape shape = p->places[op->out].shape;
    if (op->w && (!scale || !shift)) return STEER_NO_MEMORY;
    for (int b = 0; b < shape.b; b++)
        for (int i = 0; i < shape.h * shape.w; i++) {
            const float *x = pixel(p, op->in[0], b, i);
            float *y = pixel(p, op->out, b, i);
            double sum = 0, square = 0;
            for (int c = 0; c < shape.c; c++)
                sum += x[c];
            double mean = sum / shape.c;
            for (int c = 0; c < shape.c; c++)
                square += (x[c] - mean) * (x[c] - mean);
            double inverse = 1 / sqrt(square / shape.c + op->eps);
            for (int c = 0; c < shape.c; c++) {
                double v = (x[c] - mean) * inverse;
                y[c] = (float)(op->w ? v * scale[c] + shift[c] : v);
            }
        }
    return 0;
}

static int rms_norm(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    const float *scale = weight_matrix_f32(op->w);
    struct shape shape = p->places[op->out].shape;
    int d = shape.c / op->heads;
    if (!scale) return STEER_NO_MEMORY;
    for (int b = 0; b < shape.b; b++)
        for (int i = 0; i < shape.h * shape.w * op->heads; i++) {
            const float *x = pixel(p, op->in[0], b, i / op->heads) + i % op->heads * d;
            float *y = pixel(p, op->out, b, i / op->heads) + i % op->heads * d;
            double square = 0;
            for (int c = 0; c < d; c++)
                square += (double)x[c] * x[c];
            double inverse = 1 / sqrt(square / d + op->eps);
            for (int c = 0; c < d; c++)
                y[c] = (float)(x[c] * inverse * scale[c]);
        }
    return 0;
}

static int rope(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct shape shape = p->places[op->out].shape;
    int half = shape.c / op->heads / 2; /* pairs in a head */
    for (int b = 0; b < shape.b; b++)
        for (int i = 0; i < shape.h * shape.w; i++) {
            const float *x = pixel(p, op->in[0], b, i), *cosines = pixel(p, op->in[1], b, i);
            const float *sines = cosines + half;
            float *y = pixel(p, op->out, b, i);
            for (int k = 0; k < op->heads * half; k++) {
                float even = x[2 * k], odd = x[2 * k + 1];
                y[2 * k] = even * cosines[k % half] - odd * sines[k % half];
                y[2 * k + 1] = odd * cosines[k % half] + even * sines[k % half];
            }
        }
    return 0;
}

/* ---- attention ---- */

/* One softmax's parts for one query and head: max m, A = sum e^(s-m) v, l = sum e^(s-m).
 * docs/guidance.md's segment; an empty or fully masked one has m = -INFINITY, l = 0 and A = 0. */
struct segment {
    double m, l, a[ATTENTION_HEAD_MAX];
};

/* A query of one image and head. */
struct query {
    const struct plan *p;
    const struct op *op;
    int image, row, head, d;
};

/* Adds key j: its logit below the running maximum weighs less, above it shrinks what was summed. */
static void key_add(struct segment *g, double logit, const float *value, int d)
{
    if (logit == -INFINITY) return;
    if (logit > g->m) {
        double shrink = exp(g->m - logit);
        g->m = logit;
        g->l *= shrink;
        for (int c = 0; c < d; c++)
            g->a[c] *= shrink;
    }
    double weight = exp(logit - g->m);
    g->l += weight;
    for (int c = 0; c < d; c++)
        g->a[c] += weight * value[c];
}

/* The first `keys` of the segment that begins at op->in[at]; offset is added to every logit. */
static void segment_sum(struct segment *g, const struct query *q, int at, int keys, double offset)
{
    const struct op *op = q->op;
    int k = op->in[at], v = op->in[at + 1], mask = op->in[at + 2];
    int bias = op->kind == OP_ATTENTION ? op->in[IN_BIAS] : -1;
    const float *query = pixel(q->p, op->in[0], q->image, q->row) + q->head * q->d;
    g->m = -INFINITY;
    g->l = 0;
    memset(g->a, 0, (size_t)q->d * sizeof *g->a);
    for (int j = 0; j < keys; j++) {
        const float *key = pixel(q->p, k, q->image, j) + q->head * q->d;
        double dot = 0;
        for (int c = 0; c < q->d; c++)
            dot += (double)query[c] * key[c];
        double logit = dot * op->scale + offset;
        if (mask >= 0) logit += pixel(q->p, mask, q->image, 0)[j];
        if (bias >= 0)
            logit += pixel(q->p, bias, q->image, q->row * q->p->places[k].shape.w + j)[q->head];
        key_add(g, logit, pixel(q->p, v, q->image, j) + q->head * q->d, q->d);
    }
}

static void attention_count(struct plan *p, const struct op *op)
{
    struct shape q = p->places[op->in[0]].shape;
    uint64_t rows = (uint64_t)q.b * (uint64_t)q.w;
    p->counters.q_rows_read += rows;
    p->counters.out_rows_stored += rows;
    if (op->kind == OP_GUIDED_ATTENTION)
        p->counters.shared_keys_read +=
            rows * (uint64_t)op->heads * (uint64_t)keys_count(p, op, IN_SHARED);
}

static int attention(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct shape q = p->places[op->in[0]].shape;
    int d = q.c / op->heads, keys = keys_count(p, op, IN_POSITIVE);
    for (int b = 0; b < q.b; b++)
#pragma omp parallel for schedule(static)
        for (int i = 0; i < q.w * op->heads; i++) {
            struct segment g;
            struct query query = {p, op, b, i / op->heads, i % op->heads, d};
            int seen = op->causal && query.row + 1 < keys ? query.row + 1 : keys;
            segment_sum(&g, &query, IN_POSITIVE, seen, 0);
            for (int c = 0; c < d; c++)
                pixel(p, op->out, b, query.row)[query.head * d + c] =
                    (float)(g.l > 0 ? g.a[c] / g.l : 0);
        }
    attention_count(p, op);
    return 0;
}

enum { POSITIVE, NEGATIVE, SHARED, SEGMENTS };

/* What each segment's A counts in a sum of them: one softmax over those named, normalised by the
 * mass of all of them under their common maximum. */
static void softmax_shares(const struct segment *g, int first, int second, int third,
                           double share[SEGMENTS])
{
    const int joined[SEGMENTS] = {[POSITIVE] = first, [NEGATIVE] = second, [SHARED] = third};
    double most = -INFINITY, mass = 0;
    for (int i = 0; i < SEGMENTS; i++)
        if (joined[i] && g[i].m > most) most = g[i].m;
    for (int i = 0; i < SEGMENTS; i++) {
        share[i] = joined[i] && g[i].m > -INFINITY ? exp(g[i].m - most) : 0;
        mass += share[i] * g[i].l;
    }
    for (int i = 0; i < SEGMENTS; i++)
        share[i] = mass > 0 ? share[i] / mass : 0;
}

/* docs/guidance.md's table of segments: Z+ and Z- of one head's query, from what its
 * segments count in each. */
static void guided_parts(const struct op *op, const struct segment *g, int d, double *plus,
                         double *minus)
{
    double up[SEGMENTS], down[SEGMENTS];
    int alone = op->method == GUIDANCE_NASA && op->variant == GUIDANCE_TEXT;
    int whole = op->method == GUIDANCE_NAG || op->variant == GUIDANCE_JOINT;
    if (op->method == GUIDANCE_VSF) { /* one softmax over all */
        softmax_shares(g, 1, 1, 1, up);
        down[NEGATIVE] = up[NEGATIVE];
        down[SHARED] = 0;
    } else {
        softmax_shares(g, 1, 0, 1, up);
        softmax_shares(g, 0, 1, !alone, down);
        if (!whole) down[SHARED] = 0;
    }
    for (int c = 0; c < d; c++) {
        plus[c] = up[POSITIVE] * g[POSITIVE].a[c] + up[SHARED] * g[SHARED].a[c];
        minus[c] = down[NEGATIVE] * g[NEGATIVE].a[c] + down[SHARED] * g[SHARED].a[c];
    }
}

/* A token's row under the method, from Z+ and Z- of all its heads. */
static void guided_row(const struct op *op, const float *param, const double *plus,
                       const double *minus, int channels, float *out)
{
    if (op->method == GUIDANCE_NONE) {
        for (int c = 0; c < channels; c++)
            out[c] = (float)plus[c];
    } else if (op->method != GUIDANCE_NAG) {
        for (int c = 0; c < channels; c++)
            out[c] = (float)(plus[c] - param[GUIDANCE_ALPHA] * minus[c]);
    } else {
        double phi = param[GUIDANCE_PHI], tau = param[GUIDANCE_TAU], beta = param[GUIDANCE_BETA];
        double norm_t = 0, norm_p = 0; /* 1-norms over all channels of the token */
        for (int c = 0; c < channels; c++) {
            norm_t += fabs(plus[c] + phi * (plus[c] - minus[c]));
            norm_p += fabs(plus[c]);
        }
        double ratio = norm_t / (norm_p + 1e-6), shrink = ratio > tau ? tau / ratio : 1;
        for (int c = 0; c < channels; c++)
            out[c] = (float)(beta * shrink * (plus[c] + phi * (plus[c] - minus[c])) +
                             (1 - beta) * plus[c]);
    }
}

static int guided_attention(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct shape q = p->places[op->in[0]].shape;
    int d = q.c / op->heads, failed = 0;
    for (int b = 0; b < q.b; b++) {
        const float *param = op->method ? pixel(p, op->in[IN_PARAMS], b, 0) : NULL;
        double offset = op->method == GUIDANCE_VSF ? -(double)param[GUIDANCE_OFFSET] : 0;
#pragma omp parallel for schedule(static) reduction(| : failed)
        for (int i = 0; i < q.w; i++) {
            struct segment *g = malloc(SEGMENTS * sizeof *g);
            double *plus = malloc((size_t)q.c * sizeof *plus);
            double *minus = malloc((size_t)q.c * sizeof *minus);
            int short_of_memory = !g || !plus || !minus;
            failed |= short_of_memory;
            for (int h = 0; !short_of_memory && h < op->heads; h++) {
                struct query query = {p, op, b, i, h, d};
                segment_sum(g + POSITIVE, &query, IN_POSITIVE, keys_count(p, op, IN_POSITIVE), 0);
                segment_sum(g + NEGATIVE, &query, IN_NEGATIVE, keys_count(p, op, IN_NEGATIVE),
                            offset);
                segment_sum(g + SHARED, &query, IN_SHARED, keys_count(p, op, IN_SHARED), 0);
                guided_parts(op, g, d, plus + h * d, minus + h * d);
            }
            if (!short_of_memory) guided_row(op, param, plus, minus, q.c, pixel(p, op->out, b, i));
            free(g), free(plus), free(minus);
        }
    }
    attention_count(p, op);
    return failed ? STEER_NO_MEMORY : 0;
}

/* ---- what is done value by value ---- */

static int elementwise(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct shape shape = p->places[op->out].shape;
    for (int b = 0; b < shape.b; b++)
#pragma omp parallel for schedule(static)
        for (int i = 0; i < shape.h * shape.w; i++) {
            const float *x = pixel(p, op->in[0], b, i);
            float *y = pixel(p, op->out, b, i);
            for (int c = 0; c < shape.c; c++)
                switch (op->kind) {
                case OP_ACTIVATION: y[c] = activate(x[c], op->act); break;
                case OP_ADD: y[c] = x[c] + pixel(p, op->in[1], b, i)[c]; break;
                case OP_MULTIPLY: y[c] = x[c] * pixel(p, op->in[1], b, i)[c]; break;
                case OP_MODULATE:
                    y[c] = x[c] * (1 + pixel(p, op->in[2], b, 0)[c]) + pixel(p, op->in[1], b, 0)[c];
                    break;
                case OP_GATED_ADD:
                    y[c] = x[c] + pixel(p, op->in[1], b, 0)[c] * pixel(p, op->in[2], b, i)[c];
                    break;
                case OP_AFFINE: y[c] = (float)(x[c] * op->scale + op->shift); break;
                case OP_GEGLU: y[c] = x[c] * activate(x[shape.c + c], ACT_GELU); break;
                case OP_SOFT_CLAMP: y[c] = 3 * tanhf(x[c] / 3); break;
                default: break;
                }
        }
    return 0;
}

static int concat(struct plan *p, struct step *s)
{
    int x = s->op.in[0], y = s->op.in[1];
    struct shape shape = p->places[s->op.out].shape;
    size_t first = (size_t)p->places[x].shape.c, second = (size_t)p->places[y].shape.c;
    for (int b = 0; b < shape.b; b++)
        for (int i = 0; i < shape.h * shape.w; i++) {
            float *to = pixel(p, s->op.out, b, i);
            memcpy(to, pixel(p, x, b, i), first * sizeof *to);
            memcpy(to + first, pixel(p, y, b, i), second * sizeof *to);
        }
    return 0;
}

static int resize(struct plan *p, struct step *s)
{
    struct shape in = p->places[s->op.in[0]].shape, out = p->places[s->op.out].shape;
    for (int b = 0; b < out.b; b++)
        for (int i = 0; i < out.h * out.w; i++) {
            int row = (int)((int64_t)(i / out.w) * in.h / out.h);
            int column = (int)((int64_t)(i % out.w) * in.w / out.w);
            memcpy(pixel(p, s->op.out, b, i), pixel(p, s->op.in[0], b, row * in.w + column),
                   (size_t)out.c * sizeof(float));
        }
    return 0;
}

/* Every value of the image between its place among patches [h, w, p * p * C] and among pixels. */
static int patches(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    int packs = op->kind == OP_PATCHES, side = op->patch;
    struct shape pixels = p->places[packs ? op->in[0] : op->out].shape;
    for (int b = 0; b < pixels.b; b++)
        for (int i = 0; i < pixels.h * pixels.w; i++) {
            int row = i / pixels.w, column = i % pixels.w;
            int patch = row / side * (pixels.w / side) + column / side;
            int inside = row % side * side + column % side;
            for (int c = 0; c < pixels.c; c++) {
                int channel = op->order == PATCH_CHANNEL_FIRST ? c * side * side + inside
                                                               : inside * pixels.c + c;
                if (packs)
                    pixel(p, op->out, b, patch)[channel] = pixel(p, op->in[0], b, i)[c];
                else
                    pixel(p, op->out, b, i)[c] = pixel(p, op->in[0], b, patch)[channel];
            }
        }
    return 0;
}

static int embedding(struct plan *p, struct step *s)
{
    struct weight *table = s->op.w, *positions = s->op.positions;
    struct shape out = p->places[s->op.out].shape;
    size_t c = (size_t)out.c;
    float *position = malloc(c * sizeof *position);
    if (!position) return STEER_NO_MEMORY;
    for (int b = 0; b < out.b; b++) {
        const int32_t *ids = place_image(p, s->op.in[0], b);
        for (int i = 0; i < out.h * out.w; i++) {
            float *y = pixel(p, s->op.out, b, i);
            stored_to_f32(y, table->matrix[0], (size_t)ids[i] * c, c);
            if (!positions) continue;
            stored_to_f32(position, positions->matrix[0], (size_t)i * c, c);
            for (size_t k = 0; k < c; k++)
                y[k] += position[k];
        }
    }
    free(position);
    return 0;
}

static int sinusoid(struct plan *p, struct step *s)
{
    struct shape out = p->places[s->op.out].shape;
    int half = out.c / 2;
    for (int b = 0; b < out.b; b++) {
        float t = pixel(p, s->op.in[0], b, 0)[0], *y = pixel(p, s->op.out, b, 0);
        for (int i = 0; i < half; i++) {
            /* In f32 as torch does it: at t near 1000 the product's rounding is what both see. */
            float exponent = -9.210340371976184f * (float)i / ((float)half - (float)s->op.shift);
            float angle = t * expf(exponent);
            y[s->op.flip ? half + i : i] = sinf(angle);
            y[s->op.flip ? i : half + i] = cosf(angle);
        }
        if (out.c % 2) y[out.c - 1] = 0;
    }
    return 0;
}

static int to_u8(struct plan *p, struct step *s)
{
    struct shape shape = p->places[s->op.out].shape;
    for (int b = 0; b < shape.b; b++) {
        uint8_t *y = place_image(p, s->op.out, b);
#pragma omp parallel for schedule(static)
        for (int i = 0; i < shape.h * shape.w; i++)
            for (int c = 0; c < shape.c; c++) {
                float v = pixel(p, s->op.in[0], b, i)[c] / 2 + 0.5f;
                v = !(v > 0) ? 0 : v > 1 ? 1 : v; /* NaN is black */
                y[(size_t)i * (size_t)shape.c + (size_t)c] = (uint8_t)nearbyintf(v * 255);
            }
    }
    return 0;
}

int ref_prepare(struct plan *p, struct step *s, struct steer_error *err)
{
    static int (*const functions[OP_KINDS])(struct plan *, struct step *) = {
        [OP_LINEAR] = linear,
        [OP_CONV] = conv,
        [OP_GROUP_NORM] = group_norm,
        [OP_LAYER_NORM] = layer_norm,
        [OP_RMS_NORM] = rms_norm,
        [OP_MODULATE] = elementwise,
        [OP_GATED_ADD] = elementwise,
        [OP_ROPE] = rope,
        [OP_ATTENTION] = attention,
        [OP_GUIDED_ATTENTION] = guided_attention,
        [OP_ACTIVATION] = elementwise,
        [OP_ADD] = elementwise,
        [OP_MULTIPLY] = elementwise,
        [OP_AFFINE] = elementwise,
        [OP_GEGLU] = elementwise,
        [OP_CONCAT] = concat,
        [OP_RESIZE] = resize,
        [OP_PATCHES] = patches,
        [OP_UNPATCHES] = patches,
        [OP_EMBEDDING] = embedding,
        [OP_SINUSOID] = sinusoid,
        [OP_SOFT_CLAMP] = elementwise,
        [OP_TO_U8] = to_u8,
    };
    int attends = s->op.kind == OP_ATTENTION || s->op.kind == OP_GUIDED_ATTENTION;
    if (attends && p->places[s->op.out].shape.c / s->op.heads > ATTENTION_HEAD_MAX)
        return steer_fail(err, STEER_UNSUPPORTED, "a head of %d: expected at most %d",
                          p->places[s->op.out].shape.c / s->op.heads, ATTENTION_HEAD_MAX);
    for (int k = 0; k < OP_INPUTS_MAX; k++)
        if (s->op.in[k] >= 0 && p->places[s->op.in[k]].type == TYPE_BF16)
            return steer_fail(err, STEER_INTERNAL, "it would read bf16 as f32");
    if (p->places[s->op.out].type == TYPE_BF16)
        return steer_fail(err, STEER_INTERNAL, "it would write f32 as bf16");
    s->run = functions[s->op.kind];
    s->primitive = "ref";
    /* Tables are read where they are stored. */
    int packs = s->op.w && s->op.kind != OP_EMBEDDING;
    return packs ? weight_ready(s->op.w, err) : 0;
}

/* All f32, all dense: nothing to choose. */
static void choose(struct plan *p)
{
    (void)p;
}

static struct compute_peak peak(struct compute *c)
{
    (void)c;
    return (struct compute_peak){0};
}

const struct backend backend_ref = {"ref", choose, ref_prepare, peak};
