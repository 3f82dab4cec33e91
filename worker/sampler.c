// SPDX-License-Identifier: Apache-2.0
#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HISTORY 4
struct sampler {
    const struct schedule *schedule;
    size_t count;
    sampler_normal *normal;
    void *normal_data;
    /* past: the last outputs, newest first (PNDM), or the last x0 (DPM, UniPC). held: the sample
     * that a step began from (PNDM, Heun, UniPC), or fresh noise. mean: of Runge-Kutta's slopes
     * (PNDM), the first slope (Heun), this x0 (DPM, UniPC). */
    float *past[HISTORY], *held, *mean;
    int past_count;
    int order; /* UniPC: of the step before */
};

int sampler_new(struct sampler **ret, const struct schedule *schedule, size_t count,
                sampler_normal *normal, void *data)
{
    struct sampler *s = calloc(1, sizeof *s);
    if (!s) return STEER_NO_MEMORY;
    *s = (struct sampler){
        .schedule = schedule, .count = count, .normal = normal, .normal_data = data};
    size_t bytes;
    int bad = __builtin_mul_overflow(count, sizeof(float), &bytes);
    for (int i = 0; i < HISTORY && !bad; i++)
        bad = !(s->past[i] = malloc(bytes));
    if (bad || !(s->held = malloc(bytes)) || !(s->mean = calloc(1, bytes))) {
        sampler_free(s);
        return STEER_NO_MEMORY;
    }
    *ret = s;
    return 0;
}

void sampler_free(struct sampler *s)
{
    if (!s) return;
    for (int i = 0; i < HISTORY; i++)
        free(s->past[i]);
    free(s->held);
    free(s->mean);
    free(s);
}

/* out becomes past[0]. */
static void remember(struct sampler *s, const float *out)
{
    float *oldest = s->past[HISTORY - 1];
    memmove(s->past + 1, s->past, (HISTORY - 1) * sizeof *s->past);
    s->past[0] = oldest;
    memcpy(oldest, out, s->count * sizeof(float));
    if (s->past_count < HISTORY) s->past_count++;
}

/* x0 = a x + b out at alpha_bar. */
static void x0_factors(enum prediction type, double alpha_bar, double *a, double *b)
{
    double root = sqrt(alpha_bar), noise = sqrt(1 - alpha_bar);
    switch (type) {
    case PREDICTION_EPSILON:
        *a = 1 / root;
        *b = -noise / root;
        break;
    case PREDICTION_V:
        *a = root;
        *b = -noise;
        break;
    case PREDICTION_SAMPLE:
        *a = 0;
        *b = 1;
        break;
    }
}

/* x = a x + b y */
static void blend(float *x, double a, const float *y, double b, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(a * (double)x[i] + b * (double)y[i]);
}

static float clipped(const struct sampler *s, float x0)
{
    const struct sampler_config *c = &s->schedule->config;
    float most = (float)c->clip_sample_range;
    return !c->clip_sample ? x0 : x0 > most ? most : x0 < -most ? -most : x0;
}

/* Fresh noise, in held. */
static void draw(struct sampler *s)
{
    s->normal(s->normal_data, s->held, s->count);
}

/* The model of DDIM between two levels: x' = sqrt(to) x0 + sqrt(1 - to) eps. In f32 and in
 * diffusers' order, as all that follows a table whose ends are nearly 0 or 1. */
static void ddim_step(const struct sampler *s, const float *out, float *x, float from, float to)
{
    enum prediction type = s->schedule->config.prediction_type;
    float root = sqrtf(from), noise = sqrtf(1 - from), root_to = sqrtf(to),
          noise_to = sqrtf(1 - to);
    for (size_t i = 0; i < s->count; i++) {
        float x0 = out[i], eps = out[i];
        switch (type) {
        case PREDICTION_EPSILON: x0 = (x[i] - noise * out[i]) / root; break;
        case PREDICTION_SAMPLE: eps = (x[i] - root * out[i]) / noise; break;
        case PREDICTION_V:
            x0 = root * x[i] - noise * out[i];
            eps = root * out[i] + noise * x[i];
            break;
        }
        x[i] = root_to * clipped(s, x0) + noise_to * eps;
    }
}

static double alpha_bar_or_final(const struct schedule *s, double timestep)
{
    return timestep >= 0 ? schedule_alpha_bar(s, (int)timestep) : schedule_alpha_bar_final(s);
}

static void step_ddim(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    double t = h->timestep[call], next = t - h->config.num_train_timesteps / h->steps;
    if (h->config.timesteps_count) next = call + 1 < h->calls ? h->timestep[call + 1] : -1;
    ddim_step(s, out, x, (float)schedule_alpha_bar(h, (int)t), (float)alpha_bar_or_final(h, next));
}

/* PNDM's formula 9 (arXiv 2202.09778). */
static void pndm_transfer(const struct sampler *s, const float *out, const float *from_x, float *x,
                          double t, double next)
{
    const struct schedule *h = s->schedule;
    float at = (float)schedule_alpha_bar(h, (int)t), to = (float)alpha_bar_or_final(h, next);
    float keep = sqrtf(to / at), change = to - at;
    float below = at * sqrtf(1 - to) + sqrtf(at * (1 - at) * to);
    float root = sqrtf(at), noise = sqrtf(1 - at);
    int v = h->config.prediction_type == PREDICTION_V;
    for (size_t i = 0; i < s->count; i++) {
        float e = v ? root * out[i] + noise * from_x[i] : out[i];
        x[i] = keep * from_x[i] - change * e / below;
    }
}

static void step_prk(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    int half = h->config.num_train_timesteps / h->steps / 2;
    double next = h->timestep[call] - (call % 2 ? 0 : half), t = h->timestep[call / 4 * 4];
    static const double weights[] = {1 / 6., 1 / 3., 1 / 3., 1 / 6.};
    if (call % 4 == 0) {
        remember(s, out);
        memcpy(s->held, x, s->count * sizeof *x);
        memset(s->mean, 0, s->count * sizeof *x);
    }
    blend(s->mean, 1, out, weights[call % 4], s->count);
    pndm_transfer(s, call % 4 == 3 ? s->mean : out, s->held, x, t, next);
}

static void step_plms(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    int ratio = h->config.num_train_timesteps / h->steps;
    double t = h->timestep[call], next = t - ratio;
    /* The second call does the first step again, with the mean of both slopes. */
    int again = h->config.skip_prk_steps && call == 1;
    if (again) {
        next = t;
        t += ratio;
    } else {
        remember(s, out);
    }
    const float *from = x;
    float *e = s->mean;
    if (again) {
        from = s->held;
        for (size_t i = 0; i < s->count; i++)
            e[i] = (out[i] + s->past[0][i]) / 2;
    } else {
        /* Adams and Bashforth's, of as many outputs as there are. */
        static const float weights[5][4] = {{0}, {1}, {3, -1}, {23, -16, 5}, {55, -59, 37, -9}};
        static const float sums[] = {1, 1, 2, 12, 24};
        const float *w = weights[s->past_count];
        for (size_t i = 0; i < s->count; i++) {
            float sum = w[0] * s->past[0][i];
            for (int k = 1; k < s->past_count; k++)
                sum += w[k] * s->past[k][i];
            e[i] = sum / sums[s->past_count];
        }
        if (call == 0) memcpy(s->held, x, s->count * sizeof *x);
    }
    pndm_transfer(s, e, from, x, t, next);
}

/* dx / dsigma at a level, to slope. In f32 and in diffusers' order, as what follows it: with a
 * first sigma of 4096 (zero terminal SNR) its rounding is part of the picture. */
static void euler_slope(const struct sampler *s, float sigma, const float *out, const float *x,
                        float *slope)
{
    enum prediction type = s->schedule->config.prediction_type;
    float square = sigma * sigma + 1, v = -sigma / sqrtf(square);
    for (size_t i = 0; i < s->count; i++) {
        float x0 = out[i];
        if (type == PREDICTION_V) x0 = out[i] * v + x[i] / square;
        if (type == PREDICTION_EPSILON) x0 = x[i] - sigma * out[i];
        slope[i] = (x[i] - clipped(s, x0)) / sigma;
    }
}

static void step_euler(struct sampler *s, int call, const float *out, float *x)
{
    const float *sigma = s->schedule->sigma + call;
    float change = sigma[1] - sigma[0];
    euler_slope(s, sigma[0], out, x, s->mean);
    for (size_t i = 0; i < s->count; i++)
        x[i] = x[i] + s->mean[i] * change;
}

/* Below the next level, and back up to it by fresh noise. */
static void step_ancestral(struct sampler *s, int call, const float *out, float *x)
{
    const float *sigma = s->schedule->sigma + call;
    float from = sigma[0] * sigma[0], to = sigma[1] * sigma[1];
    float up = sqrtf(to * (from - to) / from), change = sqrtf(to - up * up) - sigma[0];
    euler_slope(s, sigma[0], out, x, s->mean);
    draw(s);
    for (size_t i = 0; i < s->count; i++)
        x[i] = x[i] + s->mean[i] * change + s->held[i] * up;
}

/* A step of Euler's, and once more with the mean of both slopes; into the last level the first
 * is all. */
static void step_heun(struct sampler *s, int call, const float *out, float *x)
{
    const float *sigma = s->schedule->sigma + call / 2;
    float change = sigma[1] - sigma[0];
    if (call % 2 == 0) {
        euler_slope(s, sigma[0], out, x, s->mean);
        memcpy(s->held, x, s->count * sizeof *x);
        for (size_t i = 0; i < s->count; i++)
            x[i] = x[i] + s->mean[i] * change;
        return;
    }
    euler_slope(s, sigma[1], out, x, x);
    for (size_t i = 0; i < s->count; i++)
        x[i] = s->held[i] + (s->mean[i] + x[i]) / 2 * change;
}

static void step_flow(const struct sampler *s, int call, const float *out, float *x)
{
    const float *sigma = s->schedule->sigma + call;
    float change = sigma[1] - sigma[0];
    for (size_t i = 0; i < s->count; i++)
        x[i] += change * out[i];
}

static void step_dpm(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    const struct sampler_config *c = &h->config;
    double sigma[4], alpha[4], lambda[4]; /* next, this, last, the one before */
    for (int i = 0; i < 4; i++) {
        int at = call + 1 - i;
        double ratio = at >= 0 ? h->sigma[at] : 1;
        alpha[i] = 1 / sqrt(ratio * ratio + 1);
        sigma[i] = ratio * alpha[i];
        lambda[i] = log(alpha[i]) - log(sigma[i]);
    }
    /* past[0] is this x0, past[1] the one before. */
    double a, b;
    x0_factors(c->prediction_type, alpha[1] * alpha[1], &a, &b);
    float *x0 = s->mean;
    for (size_t i = 0; i < s->count; i++)
        x0[i] = (float)(a * (double)x[i] + b * (double)out[i]);
    remember(s, x0);
    int few = c->lower_order_final && h->calls < 15, order = c->solver_order;
    if (order > s->past_count) order = s->past_count;
    if (call == h->calls - 1 && (c->euler_at_final || !c->final_sigma_min || few)) order = 1;
    if (call == h->calls - 2 && few && order > 2) order = 2;

    /* x' = sigma' / sigma x + w0 D0 + w1 D1 + w2 D2: the differences of arXiv 2211.01095, written
     * as weights of the outputs. */
    double step = lambda[0] - lambda[1], shrink = -expm1(-step); /* 1 - e^-h */
    double w[3] = {alpha[0] * shrink, 0, 0};
    double slope = alpha[0] * (1 - shrink / step);
    if (order == 2) {
        double r = (lambda[1] - lambda[2]) / step;
        double d1 = strcmp(c->solver_type, "heun") == 0 ? slope : .5 * alpha[0] * shrink;
        w[0] += d1 / r;
        w[1] = -d1 / r;
    } else if (order == 3) {
        double r0 = (lambda[1] - lambda[2]) / step, r1 = (lambda[2] - lambda[3]) / step;
        double curve = alpha[0] * (.5 - (step - shrink) / (step * step));
        /* D1 = p + r0 / (r0 + r1) (p - q), D2 = (p - q) / (r0 + r1), with the slopes
         * p = (m0 - m1) / r0 and q = (m1 - m2) / r1. */
        double turn = (slope * r0 + curve) / (r0 + r1), p = slope + turn, q = -turn;
        w[0] += p / r0;
        w[1] = -p / r0 + q / r1;
        w[2] = -q / r1;
    }
    blend(x, sigma[0] / sigma[1], s->past[0], w[0], s->count);
    for (int i = 1; i < order; i++)
        blend(x, 1, s->past[i], w[i], s->count);
}

/* alpha, sigma and log(alpha / sigma) of a step; the last level may be without noise. */
struct level {
    double alpha, sigma, lambda;
};

static struct level level_at(const struct schedule *h, int step)
{
    double ratio = h->sigma[step], alpha = 1 / sqrt(ratio * ratio + 1), sigma = ratio * alpha;
    return (struct level){alpha, sigma, log(alpha) - log(sigma)};
}

/* Gauss's elimination; n is at most 3, and the rows are powers of different numbers. */
static void solve(int n, double a[3][3], double *b)
{
    for (int i = 0; i < n; i++)
        for (int k = i + 1; k < n; k++) {
            double f = a[k][i] / a[i][i];
            for (int j = i; j < n; j++)
                a[k][j] -= f * a[i][j];
            b[k] -= f * b[i];
        }
    for (int i = n - 1; i >= 0; i--) {
        for (int j = i + 1; j < n; j++)
            b[i] -= a[i][j] * b[j];
        b[i] /= a[i][i];
    }
}

/* x of step `to` from that of the step before, with past[0] its x0 and past[1].. the ones before
 * (arXiv 2302.04867): UniP, or UniC, which knows x0 of `to` besides. */
static void unipc_update(const struct sampler *s, int to, int order, const float *x0, float *x)
{
    const struct schedule *h = s->schedule;
    struct level at = level_at(h, to), from = level_at(h, to - 1);
    double step = at.lambda - from.lambda, back = -step, shrink = expm1(back);
    double scale = strcmp(h->config.solver_type, "bh1") == 0 ? back : shrink;
    double places[3], powers[3][3], w[3], rest = shrink / back - 1, factorial = 1;
    for (int j = 0; j < order - 1; j++)
        places[j] = (level_at(h, to - 2 - j).lambda - from.lambda) / step;
    places[order - 1] = 1;
    for (int i = 0; i < order; i++) {
        for (int j = 0; j < order; j++)
            powers[i][j] = pow(places[j], i);
        w[i] = rest * factorial / scale;
        factorial *= i + 2;
        rest = rest / back - 1 / factorial;
    }
    /* Where one difference is known its weight is a half, whatever the equations say. */
    int known = x0 ? order : order - 1;
    if (known == 1)
        w[0] = .5;
    else
        solve(known, powers, w);
    blend(x, at.sigma / from.sigma, s->past[0], -at.alpha * shrink, s->count);
    for (int j = 0; j < known; j++) {
        const float *other = j == order - 1 ? x0 : s->past[j + 1];
        double weight = at.alpha * scale * w[j] / places[j];
        blend(x, 1, s->past[0], weight, s->count);
        blend(x, 1, other, -weight, s->count);
    }
}

/* The output at x corrects the step that led to x before it leads on. */
static void step_unipc(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    const struct sampler_config *c = &h->config;
    double a, b, alpha = level_at(h, call).alpha;
    x0_factors(c->prediction_type, alpha * alpha, &a, &b);
    memcpy(s->mean, x, s->count * sizeof *x);
    blend(s->mean, a, out, b, s->count);
    if (call) {
        unipc_update(s, call, s->order, s->mean, s->held);
        memcpy(x, s->held, s->count * sizeof *x);
    }
    remember(s, s->mean);
    memcpy(s->held, x, s->count * sizeof *x);
    int left = h->calls - call, order = c->solver_order;
    if (c->lower_order_final && order > left) order = left;
    s->order = order < s->past_count ? order : s->past_count;
    unipc_update(s, call + 1, s->order, NULL, x);
}

static void step_lcm(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    double t = h->timestep[call], a, b, at = schedule_alpha_bar(h, (int)t);
    x0_factors(h->config.prediction_type, at, &a, &b);
    double scaled = t * h->config.timestep_scaling, data = .5;
    double skip = data * data / (scaled * scaled + data * data);
    double gain = scaled / sqrt(scaled * scaled + data * data);
    for (size_t i = 0; i < s->count; i++) {
        float x0 = clipped(s, (float)(a * (double)x[i] + b * (double)out[i]));
        x[i] = (float)(gain * (double)x0 + skip * (double)x[i]);
    }
    if (call == h->calls - 1) return;
    double to = schedule_alpha_bar(h, (int)h->timestep[call + 1]);
    draw(s);
    blend(x, sqrt(to), s->held, sqrt(1 - to), s->count);
}

/* To the share 1 - eta of the next time step by DDIM, and from there up to it by fresh noise
 * (arXiv 2402.19159). */
static void step_tcd(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    int last = call == h->calls - 1, next = last ? 0 : (int)h->timestep[call + 1];
    int below = (int)((float)(1 - h->config.eta) * (float)next);
    float from = (float)schedule_alpha_bar(h, (int)h->timestep[call]);
    float to = (float)schedule_alpha_bar(h, below);
    ddim_step(s, out, x, from, to);
    if (last || !(h->config.eta > 0)) return;
    double ratio = schedule_alpha_bar(h, next) / to;
    draw(s);
    blend(x, sqrt(ratio), s->held, sqrt(1 - ratio), s->count);
}

int sampler_step(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    switch (h->config.scheduler) {
    case SCHEDULER_DDIM: step_ddim(s, call, out, x); return 0;
    case SCHEDULER_PNDM:
        if (!h->config.skip_prk_steps && call < 12)
            step_prk(s, call, out, x);
        else
            step_plms(s, call, out, x);
        return 0;
    case SCHEDULER_EULER: step_euler(s, call, out, x); return 0;
    case SCHEDULER_EULER_ANCESTRAL: step_ancestral(s, call, out, x); return 0;
    case SCHEDULER_HEUN: step_heun(s, call, out, x); return 0;
    case SCHEDULER_DPM: step_dpm(s, call, out, x); return 0;
    case SCHEDULER_UNIPC: step_unipc(s, call, out, x); return 0;
    case SCHEDULER_LCM: step_lcm(s, call, out, x); return 0;
    case SCHEDULER_TCD: step_tcd(s, call, out, x); return 0;
    case SCHEDULER_RECTIFIED_FLOW: blend(x, 1, out, 1.0 / h->steps, s->count); return 0;
    case SCHEDULER_FLOW_MATCH: step_flow(s, call, out, x); return 0;
    case SCHEDULER_COUNT: break;
    }
    return STEER_INTERNAL;
}
