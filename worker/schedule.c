// SPDX-License-Identifier: Apache-2.0
#include "schedule.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const class_names[SCHEDULER_COUNT] = {
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "RectifiedFlow",
    "FlowMatchEulerDiscreteScheduler",
};

int sampler_class(const char *class_name)
{
    for (int i = 0; i < SCHEDULER_COUNT; i++)
        if (strcmp(class_name, class_names[i]) == 0) return i;
    return -1;
}

const char *sampler_class_name(enum scheduler scheduler)
{
    return class_names[scheduler];
}

/* x is noise of standard deviation sigma over the sample, and scaled on its way in. */
static int is_euler(enum scheduler scheduler)
{
    return scheduler == SCHEDULER_EULER || scheduler == SCHEDULER_EULER_ANCESTRAL ||
           scheduler == SCHEDULER_HEUN;
}

/* Solvers between levels of log(alpha / sigma), at whole time steps. */
static int is_multistep(enum scheduler scheduler)
{
    return scheduler == SCHEDULER_DPM || scheduler == SCHEDULER_UNIPC;
}

/* Noise is mixed in along a straight line: there are no betas. */
static int is_flow(enum scheduler scheduler)
{
    return scheduler == SCHEDULER_RECTIFIED_FLOW || scheduler == SCHEDULER_FLOW_MATCH;
}

void sampler_config_default(struct sampler_config *config, enum scheduler scheduler)
{
    int consistency = scheduler == SCHEDULER_LCM || scheduler == SCHEDULER_TCD;
    int narrow = consistency || scheduler == SCHEDULER_HEUN;
    *config = (struct sampler_config){
        .scheduler = scheduler,
        .beta_start = narrow ? .00085 : .0001,
        .beta_end = narrow ? .012 : .02,
        .num_train_timesteps = 1000,
        .set_alpha_to_one = scheduler != SCHEDULER_PNDM,
        .solver_order = 2,
        .lower_order_final = 1,
        .original_inference_steps = 50,
        .timestep_scaling = 10,
        .clip_sample_range = 1,
        .shift = 1,
        .timestep_spacing =
            is_euler(scheduler) || is_multistep(scheduler) ? SPACING_LINSPACE : SPACING_LEADING,
        .beta_schedule = "linear",
        .solver_type = "midpoint",
        .lambda_min_clipped = -INFINITY,
    };
    if (consistency) strcpy(config->beta_schedule, "scaled_linear");
    if (scheduler == SCHEDULER_UNIPC) strcpy(config->solver_type, "bh2");
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
    if (c->rescale_betas_zero_snr && (is_euler(c->scheduler) || is_multistep(c->scheduler)))
        s->alpha_bar[n - 1] = 0x1p-24f; /* as diffusers: a first sigma that is not infinite */
    return 0;
}

double schedule_alpha_bar(const struct schedule *s, int timestep)
{
    if (s->config.alpha_bar != 0) return s->config.alpha_bar;
    return s->alpha_bar[timestep];
}

double schedule_alpha_bar_final(const struct schedule *s)
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

/* Descending, one per step, as DDIM, PNDM and Euler's space them. Euler's keep fractions of
 * linspace. */
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
            t = is_euler(c->scheduler) ? (double)(float)t : rint(t);
            break;
        }
        s->timestep[i] = t;
    }
    s->calls = steps;
}

/* Multistep solvers space n + 1 points and leave the last. Below lambda_min_clipped DPM does not
 * begin, so trailing steps may become fewer. */
static void spaced_multistep(struct schedule *s, int steps)
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
        if (is_euler(c->scheduler)) {
            s->timestep[i] = (double)(float)t;
            continue;
        }
        /* Multistep solvers' are whole: rounded, but for exponential levels, and DPM's of the
         * cosine table, cut off. */
        int cosine = strcmp(c->beta_schedule, "squaredcos_cap_v2") == 0;
        int rounds =
            c->sigma_rule != SIGMA_EXPONENTIAL && (c->scheduler == SCHEDULER_UNIPC || !cosine);
        s->timestep[i] = rounds ? rint(t) : floor(t);
    }
}

/* The noise levels of Euler's and of multistep solvers, once the time steps are there. */
static void sigmas_fill(struct schedule *s)
{
    const struct sampler_config *c = &s->config;
    int train = c->num_train_timesteps, n = s->calls, euler = is_euler(c->scheduler);
    for (int i = 0; i < n; i++)
        s->sigma[i] = (float)sigma_at(s, s->timestep[i]);
    s->sigma[n] = c->final_sigma_min ? sigma_of(s, 0) : 0;
    /* Euler's rules go between the levels that the time steps chose, others over the whole table.
     */
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
    if (c->sigma_rule != SIGMA_TABLE) {
        sigmas_spread(s, n, most, least);
        if (c->scheduler == SCHEDULER_UNIPC && c->final_sigma_min) s->sigma[n] = s->sigma[n - 1];
    }
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

/* Heun's second call of a step is at the next one's time. */
static void heun_double(struct schedule *s)
{
    for (int call = 2 * s->calls - 2; call > 0; call--)
        s->timestep[call] = s->timestep[(call + 1) / 2];
    s->calls = 2 * s->calls - 1;
}

static int spaced_consistency(struct schedule *s, int steps, struct steer_error *err)
{
    int origin = s->config.original_inference_steps, train = s->config.num_train_timesteps;
    if (origin < 1 || origin > train || steps > origin)
        return steer_fail(err, STEER_BAD_VALUE,
                          "%d steps: %s has original_inference_steps %d of %d", steps,
                          sampler_class_name(s->config.scheduler), origin, train);
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
        case SCHEDULER_EULER:
        case SCHEDULER_EULER_ANCESTRAL:
        case SCHEDULER_HEUN: spaced(s, steps); break;
        case SCHEDULER_PNDM: code = spaced_pndm(s, steps, err); break;
        case SCHEDULER_DPM:
        case SCHEDULER_UNIPC: spaced_multistep(s, steps); break;
        case SCHEDULER_LCM:
        case SCHEDULER_TCD: code = spaced_consistency(s, steps, err); break;
        case SCHEDULER_RECTIFIED_FLOW:
            for (int i = 0; i < steps; i++)
                s->timestep[i] = 1000.0 * (1 - (double)i / steps);
            s->calls = steps;
            break;
        case SCHEDULER_FLOW_MATCH: spaced_flow(s, steps); break;
        case SCHEDULER_COUNT: break;
        }
        if (code) goto fail;
    }
    int sigmas = is_euler(config->scheduler) || is_multistep(config->scheduler);
    if (sigmas) sigmas_fill(s);
    /* The others look their noise levels up at the time step. */
    for (int i = 0; i < s->calls && !sigmas && !is_flow(config->scheduler); i++) {
        if (s->timestep[i] < 0 || s->timestep[i] > train - 1) {
            code = steer_fail(err, STEER_BAD_VALUE, "time step %g of %d steps: expected 0 to %d",
                              s->timestep[i], steps, train - 1);
            goto fail;
        }
    }
    if (is_euler(config->scheduler)) {
        double most = 0;
        for (int i = 0; i <= s->calls; i++)
            most = fmax(most, s->sigma[i]);
        s->init_scale = config->timestep_spacing == SPACING_LEADING ? sqrt(most * most + 1) : most;
    }
    if (config->scheduler == SCHEDULER_HEUN) heun_double(s);
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
    if (!is_euler(s->config.scheduler)) return 1;
    double sigma = s->sigma[s->config.scheduler == SCHEDULER_HEUN ? (call + 1) / 2 : call];
    return 1 / sqrt(sigma * sigma + 1);
}

void schedule_noising(const struct schedule *s, float *ret_sample, float *ret_noise)
{
    enum scheduler scheduler = s->config.scheduler;
    if (is_euler(scheduler)) {
        *ret_sample = 1;
        *ret_noise = s->sigma[0];
    } else if (is_multistep(scheduler)) {
        *ret_sample = 1 / sqrtf(s->sigma[0] * s->sigma[0] + 1);
        *ret_noise = s->sigma[0] * *ret_sample;
    } else if (is_flow(scheduler)) {
        *ret_noise = scheduler == SCHEDULER_FLOW_MATCH ? s->sigma[0] : (float)s->timestep[0] / 1000;
        *ret_sample = 1 - *ret_noise;
    } else {
        float a = (float)schedule_alpha_bar(s, (int)s->timestep[0]);
        *ret_sample = sqrtf(a);
        *ret_noise = sqrtf(1 - a);
    }
}
