// SPDX-License-Identifier: Apache-2.0
#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "limits.h"

/* Noise levels are kept as torch keeps them: betas and their products rounded to f32, the running
 * product in double (torch's cumprod accumulates so). */
struct schedule {
    struct sampler_config config;
    int steps, calls;
    double timestep[2 * STEER_STEPS_MAX + 16]; /* of each call */
    float sigma[STEER_STEPS_MAX + 2]; /* EULER, DPM, FLOW_MATCH: of each step, then the last */
    float alpha_bar[SAMPLER_TRAIN_STEPS_MAX];
    double init_scale;
};

static const char *const class_names[] = {
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "LCMScheduler",
    "RectifiedFlow",
    "FlowMatchEulerDiscreteScheduler",
};

int sampler_class(const char *class_name)
{
    for (int i = 0; i < (int)(sizeof class_names / sizeof *class_names); i++)
        if (strcmp(class_name, class_names[i]) == 0) return i;
    return -1;
}

const char *sampler_class_name(enum scheduler scheduler)
{
    return class_names[scheduler];
}

void sampler_config_default(struct sampler_config *config, enum scheduler scheduler)
{
    int lcm = scheduler == SCHEDULER_LCM;
    *config = (struct sampler_config){
        .scheduler = scheduler,
        .beta_start = lcm ? .00085 : .0001,
        .beta_end = lcm ? .012 : .02,
        .num_train_timesteps = 1000,
        .set_alpha_to_one = scheduler != SCHEDULER_PNDM,
        .solver_order = 2,
        .lower_order_final = 1,
        .original_inference_steps = 50,
        .timestep_scaling = 10,
        .shift = 1,
        .timestep_spacing = scheduler == SCHEDULER_EULER || scheduler == SCHEDULER_DPM
                                ? SPACING_LINSPACE
                                : SPACING_LEADING,
        .beta_schedule = "linear",
        .solver_type = "midpoint",
        .lambda_min_clipped = -INFINITY,
    };
    if (lcm) strcpy(config->beta_schedule, "scaled_linear");
}

/* ---- noise levels ---- */

/* torch.linspace in f32: from both ends towards the middle, rounded once as its AVX2 code does. */
static float linspace(float start, float end, int n, int i)
{
    float step = (end - start) / (float)(n - 1);
    return i < n / 2 ? fmaf(step, (float)i, start) : fmaf(-step, (float)(n - 1 - i), end);
}

/* arXiv 2305.08891, algorithm 1: sqrt(alpha_bar) is shifted and scaled to end at 0. In f32 at each
 * step, as torch does it: near the end little is left but rounding. */
static void rescale_zero_terminal_snr(float *beta, int n)
{
    static _Thread_local float root[SAMPLER_TRAIN_STEPS_MAX];
    double product = 1;
    for (int i = 0; i < n; i++) {
        product *= 1.0f - beta[i];
        root[i] = sqrtf((float)product);
    }
    float last = root[n - 1], scale = root[0] / (root[0] - last), before = 1;
    for (int i = 0; i < n; i++) {
        float moved = (root[i] - last) * scale, bar = moved * moved;
        beta[i] = 1 - bar / before;
        before = bar;
    }
}

static int noise_levels(struct schedule *s, struct steer_error *err)
{
    const struct sampler_config *c = &s->config;
    int n = c->num_train_timesteps;
    static _Thread_local float beta[SAMPLER_TRAIN_STEPS_MAX];
    if (strcmp(c->beta_schedule, "linear") == 0) {
        for (int i = 0; i < n; i++)
            beta[i] = linspace((float)c->beta_start, (float)c->beta_end, n, i);
    } else if (strcmp(c->beta_schedule, "scaled_linear") == 0) {
        for (int i = 0; i < n; i++) {
            float root = linspace((float)sqrt(c->beta_start), (float)sqrt(c->beta_end), n, i);
            beta[i] = root * root;
        }
    } else if (strcmp(c->beta_schedule, "squaredcos_cap_v2") == 0) {
        for (int i = 0; i < n; i++) {
            double a = cos((i / (double)n + .008) / 1.008 * M_PI / 2);
            double b = cos(((i + 1) / (double)n + .008) / 1.008 * M_PI / 2);
            beta[i] = (float)fmin(1 - b * b / (a * a), .999);
        }
    } else {
        return steer_fail(
            err, STEER_BAD_VALUE,
            "beta_schedule \"%s\": expected linear, scaled_linear or squaredcos_cap_v2",
            c->beta_schedule);
    }
    if (c->rescale_betas_zero_snr) rescale_zero_terminal_snr(beta, n);
    double product = 1;
    for (int i = 0; i < n; i++) {
        product *= 1.0f - beta[i];
        s->alpha_bar[i] = (float)product;
    }
    if (c->rescale_betas_zero_snr &&
        (c->scheduler == SCHEDULER_EULER || c->scheduler == SCHEDULER_DPM))
        s->alpha_bar[n - 1] = 0x1p-24f; /* as diffusers: a first sigma that is not infinite */
    return 0;
}

double schedule_alpha_bar(const struct schedule *s, int timestep)
{
    if (s->config.alpha_bar != 0) return s->config.alpha_bar;
    return s->alpha_bar[timestep];
}

/* The level after the last step. */
static double alpha_bar_final(const struct schedule *s)
{
    return s->config.set_alpha_to_one ? 1 : s->alpha_bar[0];
}

/* The table's, as torch and numpy have it: f32 at whole time steps, double between. */
static float sigma_of(const struct schedule *s, int timestep)
{
    float a = s->alpha_bar[timestep];
    if (a == 0x1p-24f) return 4096; /* torch's square root of 2^24 - 1 */
    return sqrtf((1 - a) / a);
}

/* numpy's logarithm of f32 to the bit (its SIMD loops: a quotient of polynomials between sqrt(.5)
 * and sqrt(2)): time steps that are looked up by it are rounded, and DPM cuts some at whole
 * numbers. */
static float log_of(const struct schedule *s, int timestep)
{
    static const float p[] = {2.589979117907922693523e-2f, 3.808837741388407920751e-1f,
                              1.480000633576506585156f,    2.112677543073053063722f,
                              9.999999999999998702752e-1f, 0},
                       q[] = {5.875095403124574342950e-3f, 1.546476374983906719538e-1f,
                              9.864942958519418960339e-1f, 2.453006071784736363091f,
                              2.612677543073109236779f,    1};
    int exponent;
    float x = frexpf(sigma_of(s, timestep), &exponent);
    if (x <= .707106781186547524f) {
        x += x;
        exponent--;
    }
    x -= 1;
    float above = p[0], below = q[0];
    for (int i = 1; i < 6; i++) {
        above = fmaf(above, x, p[i]);
        below = fmaf(below, x, q[i]);
    }
    return fmaf((float)exponent, .693147180559945309f, above / below);
}

static double sigma_at(const struct schedule *s, double timestep)
{
    int n = s->config.num_train_timesteps;
    if (timestep <= 0) return sigma_of(s, 0);
    if (timestep >= n - 1) return sigma_of(s, n - 1);
    int low = (int)floor(timestep);
    double x = sigma_of(s, low), y = sigma_of(s, low + 1);
    return x + (timestep - low) * (y - x);
}

/* ---- time steps ---- */

/* round(arange(first, 0, -train / steps)) - 1. numpy adds the step that is left of it after one
 * addition, which decides ties; rint rounds them to even, as numpy does. */
static double step_trailing(int first, int train, int steps, int i)
{
    double step = (first - (double)train / steps) - first;
    return rint(first + i * step) - 1;
}

/* Descending, one per step, as DDIM, PNDM and Euler space them. Euler keeps fractions of linspace.
 */
static void spaced(struct schedule *s, int steps)
{
    const struct sampler_config *c = &s->config;
    int train = c->num_train_timesteps, ratio = train / steps;
    for (int i = 0; i < steps; i++) {
        double t = 0;
        switch (c->timestep_spacing) {
        case SPACING_LEADING: t = (steps - 1 - i) * ratio + c->steps_offset; break;
        case SPACING_TRAILING: t = step_trailing(train, train, steps, i); break;
        case SPACING_LINSPACE:
            t = steps == 1 ? 0 : (double)(train - 1) / (steps - 1) * (steps - 1 - i);
            t = c->scheduler == SCHEDULER_EULER ? (double)(float)t : rint(t);
            break;
        }
        s->timestep[i] = t;
    }
    s->calls = steps;
}

/* DPM-Solver spaces n + 1 points and leaves the last. Below lambda_min_clipped it does not begin,
 * so trailing steps may become fewer. */
static void spaced_dpm(struct schedule *s, int steps)
{
    const struct sampler_config *c = &s->config;
    int train = c->num_train_timesteps, last = train;
    for (int t = 0; t < train; t++) {
        float a = s->alpha_bar[t];
        last -= logf(sqrtf(a)) - logf(sqrtf(1 - a)) < (float)c->lambda_min_clipped;
    }
    int ratio = last / (steps + 1);
    if (last < 1) last = 1;
    s->calls = steps;
    for (int i = 0; i < steps; i++) {
        switch (c->timestep_spacing) {
        case SPACING_LEADING: s->timestep[i] = (steps - i) * ratio + c->steps_offset; break;
        case SPACING_TRAILING:
            if (last < train && last - i * ((double)train / steps) <= 0) {
                s->calls = i;
                return;
            }
            s->timestep[i] = step_trailing(last, train, steps, i);
            break;
        case SPACING_LINSPACE:
            s->timestep[i] = rint((double)(last - 1) / steps * (steps - i));
            break;
        }
    }
}

/* Where the table has that noise level, between two time steps; logarithms in f32 as numpy's. */
static double timestep_of(const struct schedule *s, double sigma)
{
    int train = s->config.num_train_timesteps, low = train - 1;
    double wanted = log(fmax(sigma, 1e-10));
    /* The last that is not above: a table with zero terminal SNR falls at its end. */
    while (low && wanted < (double)log_of(s, low))
        low--;
    if (low > train - 2) low = train - 2;
    float a = log_of(s, low), b = log_of(s, low + 1);
    double w = ((double)a - wanted) / (double)(a - b);
    w = fmin(fmax(w, 0), 1);
    return (1 - w) * low + w * (low + 1);
}

/* sigma[0..steps-1] by rule between two levels, and the time steps of those. */
static void sigmas_spread(struct schedule *s, int steps, double most, double least)
{
    const struct sampler_config *c = &s->config;
    if (c->sigma_max > 0 && c->sigma_rule != SIGMA_LU) most = c->sigma_max;
    if (c->sigma_min > 0 && c->sigma_rule != SIGMA_LU) least = c->sigma_min;
    int karras = c->sigma_rule == SIGMA_KARRAS; /* arXiv 2206.00364 equation 5, rho 7 */
    double from = karras ? pow(most, 1 / 7.) : log(most);
    double to = karras ? pow(least, 1 / 7.) : log(least);
    if (c->sigma_rule == SIGMA_LU) { /* whose bounds are the table's own logarithms */
        from = log_of(s, c->num_train_timesteps - 1);
        to = log_of(s, 0);
    }
    for (int i = 0; i < steps; i++) {
        double at = from + (steps == 1 ? 0 : (double)i / (steps - 1)) * (to - from);
        double sigma = karras ? pow(at, 7) : exp(at), t = timestep_of(s, sigma);
        s->sigma[i] = (float)sigma;
        if (c->scheduler == SCHEDULER_EULER) {
            s->timestep[i] = (double)(float)t;
            continue;
        }
        /* DPM's are whole: rounded, but for the cosine table and exponential levels cut off. */
        int rounds = c->sigma_rule != SIGMA_EXPONENTIAL &&
                     strcmp(c->beta_schedule, "squaredcos_cap_v2") != 0;
        s->timestep[i] = rounds ? rint(t) : floor(t);
    }
}

/* The noise levels of EULER and DPM, once the time steps are there. */
static void sigmas_fill(struct schedule *s)
{
    const struct sampler_config *c = &s->config;
    int train = c->num_train_timesteps, n = s->calls, euler = c->scheduler == SCHEDULER_EULER;
    for (int i = 0; i < n; i++)
        s->sigma[i] = (float)sigma_at(s, s->timestep[i]);
    s->sigma[n] = c->final_sigma_min ? sigma_of(s, 0) : 0;
    /* Euler's rules go between the levels that its time steps chose, DPM's over the whole table. */
    double most = euler ? sigma_at(s, s->timestep[0]) : sigma_of(s, train - 1);
    double least = euler ? sigma_at(s, s->timestep[n - 1]) : sigma_of(s, 0);
    if (c->log_linear) {
        float from = log_of(s, train - 1), to = log_of(s, 0);
        most = expf(from);
        least = expf(to);
        /* n + 1 levels: the last is where the steps end, whatever final_sigmas_type says. */
        for (int i = 0; i <= n && c->sigma_rule == SIGMA_TABLE; i++)
            s->sigma[i] = expf(linspace(from, to, n + 1, i));
        /* Continuous time steps are of every level, so there is one more. */
        if (c->sigma_rule == SIGMA_TABLE && c->continuous && c->prediction_type == PREDICTION_V) {
            s->calls = ++n;
            s->sigma[n] = c->final_sigma_min ? sigma_of(s, 0) : 0;
        }
    }
    if (c->sigma_rule != SIGMA_TABLE) sigmas_spread(s, n, most, least);
    for (int i = 0; i < n && c->continuous && c->prediction_type == PREDICTION_V; i++)
        s->timestep[i] = .25f * logf(s->sigma[i]);
}

/* PNDM repeats the second time step (PLMS), or begins with Runge-Kutta's twelve calls. */
static int spaced_pndm(struct schedule *s, int steps, struct steer_error *err)
{
    double up[STEER_STEPS_MAX];
    spaced(s, steps);
    for (int i = 0; i < steps; i++)
        up[i] = s->timestep[steps - 1 - i];
    int calls = 0;
    if (s->config.skip_prk_steps) {
        if (steps == 1) { /* diffusers repeats nothing then */
            s->calls = 1;
            return 0;
        }
        s->timestep[calls++] = up[steps - 1];
        s->timestep[calls++] = up[steps - 2];
        for (int i = steps - 2; i >= 0; i--)
            s->timestep[calls++] = up[i];
    } else {
        if (steps < 4)
            return steer_fail(err, STEER_BAD_VALUE,
                              "%d steps: PNDMScheduler without skip_prk_steps needs at least 4",
                              steps);
        int half = s->config.num_train_timesteps / steps / 2;
        double pairs[8], twice[16];
        for (int i = 0; i < 4; i++) {
            pairs[2 * i] = up[steps - 4 + i];
            pairs[2 * i + 1] = up[steps - 4 + i] + half;
        }
        for (int i = 0; i < 14; i++)
            twice[i] = pairs[i / 2];
        for (int i = 12; i >= 1; i--)
            s->timestep[calls++] = twice[i];
        for (int i = steps - 4; i >= 0; i--)
            s->timestep[calls++] = up[i];
    }
    s->calls = calls;
    return 0;
}

static int spaced_lcm(struct schedule *s, int steps, struct steer_error *err)
{
    int origin = s->config.original_inference_steps, train = s->config.num_train_timesteps;
    if (origin < 1 || origin > train || steps > origin)
        return steer_fail(err, STEER_BAD_VALUE,
                          "%d steps: LCM has original_inference_steps %d of %d", steps, origin,
                          train);
    int k = train / origin;
    for (int i = 0; i < steps; i++) {
        int at = (int)floor(i * ((double)origin / steps));
        s->timestep[i] = (origin - at) * k - 1;
    }
    s->calls = steps;
    return 0;
}

/* Noise levels from 1 towards 0 in equal steps, shifted. */
static void spaced_flow(struct schedule *s, int steps)
{
    float shift = (float)s->config.shift, more = (float)(s->config.shift - 1);
    double step = steps == 1 ? 0 : (1.0 / steps - 1) / (steps - 1);
    for (int i = 0; i < steps; i++) {
        float even = (float)(i && i == steps - 1 ? 1.0 / steps : 1 + i * step);
        s->sigma[i] = shift * even / (1 + more * even);
        /* The pipeline divides by 1000 and the model multiplies again, in f32. */
        s->timestep[i] = s->sigma[i] * (float)s->config.num_train_timesteps / 1000 * 1000;
    }
    s->sigma[steps] = 0;
    s->calls = steps;
}

/* Noise is mixed in along a straight line: there are no betas. */
static int is_flow(enum scheduler scheduler)
{
    return scheduler == SCHEDULER_RECTIFIED_FLOW || scheduler == SCHEDULER_FLOW_MATCH;
}

int schedule_new(struct schedule **ret, const struct sampler_config *config, int steps,
                 struct steer_error *err)
{
    int train = config->num_train_timesteps;
    if (train < 2 || train > SAMPLER_TRAIN_STEPS_MAX)
        return steer_fail(err, STEER_BAD_VALUE, "num_train_timesteps %d: expected 2 to %d", train,
                          SAMPLER_TRAIN_STEPS_MAX);
    if (steps < 1 || steps > STEER_STEPS_MAX || steps > train)
        return steer_fail(err, STEER_BAD_VALUE, "%d steps: expected 1 to %d", steps,
                          train < STEER_STEPS_MAX ? train : STEER_STEPS_MAX);
    if (config->timesteps_count && steps != config->timesteps_count)
        return steer_fail(err, STEER_BAD_VALUE, "%d steps: the recipe has exactly %d", steps,
                          config->timesteps_count);
    if (config->alpha_bar < 0 || config->alpha_bar >= 1 ||
        !(config->alpha_bar == config->alpha_bar))
        return steer_fail(err, STEER_BAD_VALUE, "alpha_bar %g: expected 0 < alpha_bar < 1",
                          config->alpha_bar);
    struct schedule *s = calloc(1, sizeof *s);
    if (!s) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    s->config = *config;
    s->steps = steps;
    s->init_scale = 1;
    int code = 0;
    if (!is_flow(config->scheduler)) code = noise_levels(s, err);
    if (code) goto fail;

    if (config->timesteps_count) {
        for (int i = 0; i < steps; i++)
            s->timestep[i] = config->timesteps[i];
        s->calls = steps;
    } else {
        switch (config->scheduler) {
        case SCHEDULER_DDIM:
        case SCHEDULER_EULER: spaced(s, steps); break;
        case SCHEDULER_PNDM: code = spaced_pndm(s, steps, err); break;
        case SCHEDULER_DPM: spaced_dpm(s, steps); break;
        case SCHEDULER_LCM: code = spaced_lcm(s, steps, err); break;
        case SCHEDULER_RECTIFIED_FLOW:
            for (int i = 0; i < steps; i++)
                s->timestep[i] = 1000.0 * (1 - (double)i / steps);
            s->calls = steps;
            break;
        case SCHEDULER_FLOW_MATCH: spaced_flow(s, steps); break;
        }
        if (code) goto fail;
    }
    int sigmas = config->scheduler == SCHEDULER_EULER || config->scheduler == SCHEDULER_DPM;
    if (sigmas) sigmas_fill(s);
    /* The others look their noise levels up at the time step. */
    for (int i = 0; i < s->calls && !sigmas && !is_flow(config->scheduler); i++) {
        if (s->timestep[i] < 0 || s->timestep[i] > train - 1) {
            code = steer_fail(err, STEER_BAD_VALUE, "time step %g of %d steps: expected 0 to %d",
                              s->timestep[i], steps, train - 1);
            goto fail;
        }
    }
    if (config->scheduler == SCHEDULER_EULER) {
        double most = 0;
        for (int i = 0; i <= s->calls; i++)
            most = fmax(most, s->sigma[i]);
        s->init_scale = config->timestep_spacing == SPACING_LEADING ? sqrt(most * most + 1) : most;
    }
    *ret = s;
    return 0;
fail:
    schedule_free(s);
    return code;
}

void schedule_free(struct schedule *s)
{
    free(s);
}

int schedule_calls(const struct schedule *s)
{
    return s->calls;
}

double schedule_timestep(const struct schedule *s, int call)
{
    return s->timestep[call];
}

double schedule_init_scale(const struct schedule *s)
{
    return s->init_scale;
}

double schedule_input_scale(const struct schedule *s, int call)
{
    if (s->config.scheduler != SCHEDULER_EULER) return 1;
    double sigma = s->sigma[call];
    return 1 / sqrt(sigma * sigma + 1);
}

/* ---- one image's way ---- */

#define HISTORY 4
struct sampler {
    const struct schedule *schedule;
    size_t count;
    sampler_normal *normal;
    void *normal_data;
    /* PNDM: the last outputs, newest first, the sample a step began from and the running mean of
     * Runge-Kutta. DPM: the last x0. LCM: fresh noise. */
    float *past[HISTORY], *held, *mean;
    int past_count;
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
        x[i] = root_to * x0 + noise_to * eps;
    }
}

static double alpha_bar_or_final(const struct schedule *s, double timestep)
{
    return timestep >= 0 ? schedule_alpha_bar(s, (int)timestep) : alpha_bar_final(s);
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

/* In f32 and in diffusers' order: with a first sigma of 4096 (zero terminal SNR) its rounding is
 * part of the picture. */
static void step_euler(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    float sigma = h->sigma[call], change = h->sigma[call + 1] - sigma;
    float square = sigma * sigma + 1, v = -sigma / sqrtf(square);
    for (size_t i = 0; i < s->count; i++) {
        float x0 = out[i];
        if (h->config.prediction_type == PREDICTION_V) x0 = out[i] * v + x[i] / square;
        if (h->config.prediction_type == PREDICTION_EPSILON) x0 = x[i] - sigma * out[i];
        x[i] = x[i] + (x[i] - x0) / sigma * change;
    }
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

static void step_lcm(struct sampler *s, int call, const float *out, float *x)
{
    const struct schedule *h = s->schedule;
    double t = h->timestep[call], a, b, at = schedule_alpha_bar(h, (int)t);
    x0_factors(h->config.prediction_type, at, &a, &b);
    double scaled = t * h->config.timestep_scaling, data = .5;
    double skip = data * data / (scaled * scaled + data * data);
    double gain = scaled / sqrt(scaled * scaled + data * data);
    blend(x, gain * a + skip, out, gain * b, s->count);
    if (call == h->calls - 1) return;
    double to = schedule_alpha_bar(h, (int)h->timestep[call + 1]);
    s->normal(s->normal_data, s->held, s->count);
    blend(x, sqrt(to), s->held, sqrt(1 - to), s->count);
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
    case SCHEDULER_DPM: step_dpm(s, call, out, x); return 0;
    case SCHEDULER_LCM: step_lcm(s, call, out, x); return 0;
    case SCHEDULER_RECTIFIED_FLOW: blend(x, 1, out, 1.0 / h->steps, s->count); return 0;
    case SCHEDULER_FLOW_MATCH: step_flow(s, call, out, x); return 0;
    }
    return STEER_INTERNAL;
}
