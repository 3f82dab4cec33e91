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

static int linear(struct plan *p, struct step *s)
{
    struct weight *w = s->op.w;
    const float *matrix = weight_matrix_f32(w), *bias = weight_vector_f32(w);
    struct shape out = p->places[s->op.out].shape;
    if (!matrix || !bias) return STEER_NO_MEMORY;
    for (int b = 0; b < out.b; b++)
#pragma omp parallel for schedule(static)
        for (int i = 0; i < out.h * out.w; i++) {
            const float *x = pixel(p, s->op.in[0], b, i);
            float *y = pixel(p, s->op.out, b, i);
            for (int o = 0; o < out.c; o++) {
                double sum = bias[o];
                for (int k = 0; k < w->in; k++)
                    sum += (double)x[k] * matrix[(size_t)o * (size_t)w->in + (size_t)k];
                y[o] = activate((float)sum, s->op.act);
            }
        }
    return 0;
}

static int conv(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct weight *w = op->w;
    const float *kernel = weight_matrix_f32(w), *bias = weight_vector_f32(w);
    struct shape in = p->places[op->in[0]].shape, out = p->places[op->out].shape;
    if (!kernel || !bias) return STEER_NO_MEMORY;
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
                        for (int q = 0; q < in.c; q++) /* kernel [out, in, k, k] */
                            sum += (double)x[q] *
                                   kernel[(((size_t)o * (size_t)in.c + (size_t)q) * (size_t)k +
                                           (size_t)r) *
                                              (size_t)k +
                                          (size_t)c];
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
    const float *scale = weight_matrix_f32(op->w), *shift = weight_vector_f32(op->w);
    struct shape shape = p->places[op->out].shape;
    if (!scale || !shift) return STEER_NO_MEMORY;
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
            for (int c = 0; c < shape.c; c++)
                y[c] = (float)((x[c] - mean) * inverse * scale[c] + shift[c]);
        }
    return 0;
}

/* ---- attention ---- */

/* One softmax's parts for one query and head: max m, A = sum e^(s-m) v, l = sum e^(s-m).
 * METHOD.md's segment; an empty or fully masked one has l = 0. */
struct segment {
    double m, l;
    double *a; /* [D] */
};

static void segment_add(struct segment *g, const struct plan *p, int k, int v, int mask, int b,
                        int head, const float *q, int d, double scale, double bias, int keys)
{
    double *logits = malloc((size_t)keys * sizeof *logits);
    g->m = -INFINITY;
    g->l = 0;
    memset(g->a, 0, (size_t)d * sizeof *g->a);
    if (!logits) return;
    for (int j = 0; j < keys; j++) {
        const float *key = pixel(p, k, b, j) + head * d;
        double dot = 0;
        for (int c = 0; c < d; c++)
            dot += (double)q[c] * key[c];
        logits[j] = dot * scale + bias + (mask >= 0 ? pixel(p, mask, b, 0)[j] : 0);
        if (logits[j] > g->m) g->m = logits[j];
    }
    for (int j = 0; j < keys && g->m > -INFINITY; j++) {
        double weight = exp(logits[j] - g->m);
        const float *value = pixel(p, v, b, j) + head * d;
        g->l += weight;
        for (int c = 0; c < d; c++)
            g->a[c] += weight * value[c];
    }
    free(logits);
}

static double normalised(const struct segment *g, int c)
{
    return g->l > 0 ? g->a[c] / g->l : 0;
}

static int attention(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct shape q = p->places[op->in[0]].shape;
    int d = q.c / op->heads, keys = p->places[op->in[1]].shape.w;
    for (int b = 0; b < q.b; b++)
#pragma omp parallel for schedule(static)
        for (int i = 0; i < q.w; i++) {
            double a[ATTENTION_HEAD_MAX];
            struct segment g = {.a = a};
            for (int h = 0; h < op->heads; h++) {
                segment_add(&g, p, op->in[1], op->in[2], op->in[3], b, h,
                            pixel(p, op->in[0], b, i) + h * d, d, op->scale, 0,
                            op->causal && i + 1 < keys ? i + 1 : keys);
                for (int c = 0; c < d; c++)
                    pixel(p, op->out, b, i)[h * d + c] = (float)normalised(&g, c);
            }
        }
    p->counters.q_rows_read += (uint64_t)q.b * (uint64_t)q.w;
    p->counters.out_rows_stored += (uint64_t)q.b * (uint64_t)q.w;
    return 0;
}

/* VSF: one softmax over both texts, the negative's values taken with -alpha. */
static double vsf(const struct segment *pos, const struct segment *neg, double alpha, int c)
{
    double m = pos->m > neg->m ? pos->m : neg->m;
    if (m == -INFINITY) return 0;
    double wp = exp(pos->m - m), wn = exp(neg->m - m);
    return (pos->a[c] * wp - alpha * neg->a[c] * wn) / (pos->l * wp + neg->l * wn);
}

static int guided_attention(struct plan *p, struct step *s)
{
    const struct op *op = &s->op;
    struct shape q = p->places[op->in[0]].shape;
    int d = q.c / op->heads;
    int keys = p->places[op->in[1]].shape.w, negatives = p->places[op->in[4]].shape.w;
    for (int b = 0; b < q.b; b++) {
        const float *param = pixel(p, op->in[7], b, 0);
        double alpha = param[GUIDANCE_ALPHA], phi = param[GUIDANCE_PHI];
        double tau = param[GUIDANCE_TAU], beta = param[GUIDANCE_BETA];
        double offset = op->method == GUIDANCE_VSF ? -(double)param[GUIDANCE_OFFSET] : 0;
#pragma omp parallel for schedule(static)
        for (int i = 0; i < q.w; i++) {
            double ap[ATTENTION_HEAD_MAX], an[ATTENTION_HEAD_MAX];
            struct segment pos = {.a = ap}, neg = {.a = an};
            double norm_t = 0, norm_p = 0; /* NAG: 1-norms over all channels of the token */
            float *out = pixel(p, op->out, b, i);
            double *zt = op->method == GUIDANCE_NAG ? calloc((size_t)q.c, 2 * sizeof *zt) : NULL;
            if (op->method == GUIDANCE_NAG && !zt) continue;
            for (int h = 0; h < op->heads; h++) {
                const float *query = pixel(p, op->in[0], b, i) + h * d;
                segment_add(&pos, p, op->in[1], op->in[2], op->in[3], b, h, query, d, op->scale, 0,
                            keys);
                segment_add(&neg, p, op->in[4], op->in[5], op->in[6], b, h, query, d, op->scale,
                            offset, negatives);
                for (int c = 0; c < d; c++) {
                    double zp = normalised(&pos, c), zn = normalised(&neg, c);
                    if (op->method == GUIDANCE_NASA) out[h * d + c] = (float)(zp - alpha * zn);
                    if (op->method == GUIDANCE_VSF)
                        out[h * d + c] = (float)vsf(&pos, &neg, alpha, c);
                    if (op->method != GUIDANCE_NAG) continue;
                    double t = zp + phi * (zp - zn);
                    zt[h * d + c] = t;
                    zt[q.c + h * d + c] = zp;
                    norm_t += fabs(t);
                    norm_p += fabs(zp);
                }
            }
            for (int c = 0; zt && c < q.c; c++) {
                double ratio = norm_t / (norm_p + 1e-6);
                double shrink = ratio > tau ? tau / ratio : 1;
                out[c] = (float)(beta * shrink * zt[c] + (1 - beta) * zt[q.c + c]);
            }
            free(zt);
        }
    }
    p->counters.q_rows_read += (uint64_t)q.b * (uint64_t)q.w;
    p->counters.out_rows_stored += (uint64_t)q.b * (uint64_t)q.w;
    return 0;
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

static int embedding(struct plan *p, struct step *s)
{
    struct weight *table = s->op.w, *positions = s->op.positions;
    struct shape out = p->places[s->op.out].shape;
    size_t c = (size_t)out.c;
    float *position = malloc(c * sizeof *position);
    if (!position) return STEER_NO_MEMORY;
    for (int b = 0; b < out.b; b++) {
        const int32_t *ids = place_image(p, s->op.in[0], b);
        for (int i = 0; i < out.w; i++) {
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
        [OP_LINEAR] = linear,          [OP_CONV] = conv,
        [OP_GROUP_NORM] = group_norm,  [OP_LAYER_NORM] = layer_norm,
        [OP_ATTENTION] = attention,    [OP_GUIDED_ATTENTION] = guided_attention,
        [OP_ACTIVATION] = elementwise, [OP_ADD] = elementwise,
        [OP_AFFINE] = elementwise,     [OP_GEGLU] = elementwise,
        [OP_CONCAT] = concat,          [OP_RESIZE] = resize,
        [OP_EMBEDDING] = embedding,    [OP_SINUSOID] = sinusoid,
        [OP_SOFT_CLAMP] = elementwise, [OP_TO_U8] = to_u8};
    int attends = s->op.kind == OP_ATTENTION || s->op.kind == OP_GUIDED_ATTENTION;
    if (attends && p->places[s->op.out].shape.c / s->op.heads > ATTENTION_HEAD_MAX)
        return steer_fail(err, STEER_UNSUPPORTED, "a head of %d: expected at most %d",
                          p->places[s->op.out].shape.c / s->op.heads, ATTENTION_HEAD_MAX);
    s->run = functions[s->op.kind];
    s->primitive = "ref";
    return 0;
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
