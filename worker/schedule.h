/* schedule.h - how a checkpoint is sampled: noise levels and time steps. docs/models.md; the
 * reference is diffusers 0.42, whose class and parameter names are used
 * (schedulers/scheduling_*.py).
 *
 * A sampler_config is what a recipe and a folder's scheduler_config.json say. A schedule is that
 * for n steps: the calls of the denoiser in order. What happens between two calls is sampler.h's.
 */
#ifndef WORKER_SCHEDULE_H
#define WORKER_SCHEDULE_H
#include "error.h"
#include "limits.h"

enum scheduler {
    SCHEDULER_DDIM,            /* DDIMScheduler */
    SCHEDULER_PNDM,            /* PNDMScheduler */
    SCHEDULER_EULER,           /* EulerDiscreteScheduler */
    SCHEDULER_EULER_ANCESTRAL, /* EulerAncestralDiscreteScheduler */
    SCHEDULER_HEUN,            /* HeunDiscreteScheduler: two calls a step, the last has one */
    SCHEDULER_DPM,             /* DPMSolverMultistepScheduler: dpmsolver++, order 1 to 3 */
    SCHEDULER_UNIPC,           /* UniPCMultistepScheduler: predict_x0, order 1 to 3 */
    SCHEDULER_LCM,             /* LCMScheduler */
    SCHEDULER_TCD,             /* TCDScheduler */
    SCHEDULER_RECTIFIED_FLOW,  /* InstaFlow: x += v / n, at t = 1000 (1 - i / n) */
    SCHEDULER_FLOW_MATCH,      /* FlowMatchEulerDiscreteScheduler, as FluxPipeline asks of it */
    SCHEDULER_COUNT
};
enum prediction { PREDICTION_EPSILON, PREDICTION_V, PREDICTION_SAMPLE };
/* Noise levels other than the table's at the time steps: between the largest and the smallest. */
enum sigma_rule { SIGMA_TABLE, SIGMA_KARRAS, SIGMA_EXPONENTIAL, SIGMA_LU };
enum spacing { SPACING_LEADING, SPACING_LINSPACE, SPACING_TRAILING };

#define SAMPLER_TRAIN_STEPS_MAX 4096
#define SAMPLER_TIMESTEPS_MAX   64

struct sampler_config {
    enum scheduler scheduler;
    enum prediction prediction_type;
    enum spacing timestep_spacing;
    char beta_schedule[32]; /* "linear", "scaled_linear", "squaredcos_cap_v2" */
    double beta_start, beta_end;
    int num_train_timesteps, steps_offset;
    int set_alpha_to_one, skip_prk_steps, rescale_betas_zero_snr;
    int solver_order, lower_order_final, euler_at_final, final_sigma_min;
    char solver_type[16]; /* DPM: "midpoint" or "heun"; UNIPC: "bh1" or "bh2" */
    enum sigma_rule sigma_rule;
    double sigma_min, sigma_max;  /* bounds of sigma_rule; 0: the schedule's own */
    double lambda_min_clipped;    /* DPM: time steps of less are left out */
    int log_linear, continuous;   /* EULER: interpolation_type, timestep_type */
    int original_inference_steps; /* LCM, TCD */
    double timestep_scaling;      /* LCM */
    double eta;                   /* TCD: 0 adds no noise, 1 begins each step anew */
    int clip_sample;              /* DDIM, LCM, HEUN: x0 is kept within +-clip_sample_range */
    double clip_sample_range;
    double shift; /* FLOW_MATCH */
    /* A one-step checkpoint's own rule: explicit time steps (descending) and, when not 0, the
     * alpha_bar that its script uses at each of them. */
    int timesteps[SAMPLER_TIMESTEPS_MAX], timesteps_count;
    double alpha_bar;
};

/* diffusers' defaults of that class. */
void sampler_config_default(struct sampler_config *config, enum scheduler scheduler);
/* The scheduler whose diffusers class that is; -1 for none of ours. */
int sampler_class(const char *class_name);
const char *sampler_class_name(enum scheduler scheduler);

/* Noise levels are kept as torch keeps them: betas and their products rounded to f32, the running
 * product in double (torch's cumprod accumulates so). Read by samplers, never written. */
struct schedule {
    struct sampler_config config;
    int steps, calls;
    double timestep[2 * STEER_STEPS_MAX + 16]; /* of each call */
    float sigma[STEER_STEPS_MAX + 2]; /* where levels are sigmas: of each step, then the last */
    float alpha_bar[SAMPLER_TRAIN_STEPS_MAX];
    double init_scale;
};

/* STEER_BAD_VALUE when the parameters or n are outside what the scheduler can do. */
int schedule_new(struct schedule **ret, const struct sampler_config *config, int steps,
                 struct steer_error *err) STEER_MUSTCHECK;
void schedule_free(struct schedule *s); /* NULL is fine */
int schedule_calls(const struct schedule *s);
double schedule_timestep(const struct schedule *s, int call);
/* What x_T ~ N(0, I) is multiplied by, and what x is multiplied by on its way into call i. */
double schedule_init_scale(const struct schedule *s);
double schedule_input_scale(const struct schedule *s, int call);
/* x_T of a sample x0 that noise is added to, as diffusers' add_noise at the first time step:
 * *ret_sample x0 + *ret_noise noise. It is not multiplied by schedule_init_scale any more. */
void schedule_noising(const struct schedule *s, float *ret_sample, float *ret_noise);
/* alpha_bar at an integer time step, and after the last. */
double schedule_alpha_bar(const struct schedule *s, int timestep);
double schedule_alpha_bar_final(const struct schedule *s);

#endif
