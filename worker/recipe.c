// SPDX-License-Identifier: Apache-2.0
#include "recipe.h"

#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

static const char *const methods[] = {"none", "nasa", "nag", "vsf"};
static const char *const variants[] = {"text", "mass", "joint"};
static const char *const starts[] = {"noise", "mean_latent"};

const char *guidance_method_name(enum guidance_method method)
{
    return methods[method];
}

const char *guidance_variant_name(enum guidance_variant variant)
{
    return variants[variant];
}

/* ---- where recipes lie ---- */

/* ../share/steerfarm/recipes beside the program, in the build tree as where it is installed. */
static int shipped_dir(char *out, size_t size)
{
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0) return -1;
    exe[n] = 0;
    char *slash = strrchr(exe, '/');
    if (!slash) return -1;
    *slash = 0;
    return snprintf(out, size, "%s/../share/steerfarm/recipes", exe) < (int)size ? 0 : -1;
}

static int readable(const char *path)
{
    return access(path, R_OK) == 0;
}

int recipe_is_file(const char *name)
{
    size_t length = strlen(name);
    return strchr(name, '/') || (length > 5 && strcmp(name + length - 5, ".json") == 0);
}

int recipe_path(char *out, size_t size, const char *name, struct steer_error *err)
{
    if (recipe_is_file(name)) {
        if ((size_t)snprintf(out, size, "%s", name) < size && readable(out)) return 0;
        return steer_fail(err, STEER_UNKNOWN_RECIPE, "recipe file %s cannot be read", name);
    }
    char shipped[PATH_MAX];
    const char *dirs[] = {getenv("STEER_RECIPES"),
                          shipped_dir(shipped, sizeof shipped) ? NULL : shipped};
    for (int i = 0; i < 2; i++)
        if (dirs[i] && (size_t)snprintf(out, size, "%s/%s.json", dirs[i], name) < size &&
            readable(out))
            return 0;
    return steer_fail(err, STEER_UNKNOWN_RECIPE,
                      "recipe \"%s\" is unknown: expected a file's path or one of those in "
                      "share/steerfarm/recipes",
                      name);
}

static int is_recipe(const struct dirent *d)
{
    size_t n = strlen(d->d_name);
    return n > 5 && n < STEER_NAME_BYTES_MAX && strcmp(d->d_name + n - 5, ".json") == 0;
}

void recipe_list(void (*each)(void *data, const char *name), void *data)
{
    char shipped[PATH_MAX];
    const char *dirs[] = {getenv("STEER_RECIPES"),
                          shipped_dir(shipped, sizeof shipped) ? NULL : shipped};
    for (int i = 0; i < 2; i++) {
        struct dirent **found;
        int count = dirs[i] ? scandir(dirs[i], &found, is_recipe, alphasort) : -1;
        for (int k = 0; k < count; k++) {
            found[k]->d_name[strlen(found[k]->d_name) - 5] = 0;
            each(data, found[k]->d_name);
            free(found[k]);
        }
        if (count >= 0) free(found);
    }
}

/* ---- reading ---- */

struct reader {
    const json_t *recipe, *folder; /* folder: NULL when its values do not apply */
    const char *recipe_file, *folder_file;
    const char *file; /* of the value found last */
    int old_rules, code;
    struct steer_error *err;
};

/* The recipe's value, else the folder's. own: only the scheduler's own class may lend it. */
static const json_t *value_of(struct reader *r, const char *key, int lend)
{
    const json_t *value = json_object_get(r->recipe, key);
    r->file = r->recipe_file;
    if ((!value || json_is_null(value)) && lend && r->folder) {
        value = json_object_get(r->folder, key);
        r->file = r->folder_file;
    }
    return json_is_null(value) ? NULL : value;
}

static void wrong(struct reader *r, const char *key, const char *expected)
{
    if (!r->code)
        r->code =
            steer_fail(r->err, STEER_BAD_MODEL, "%s: \"%s\": expected %s", r->file, key, expected);
}

static void read_int(struct reader *r, const char *key, int lend, int least, int most, int *out)
{
    const json_t *v = value_of(r, key, lend);
    char expected[64];
    snprintf(expected, sizeof expected, "a whole number from %d to %d", least, most);
    if (!v) return;
    if (!json_is_integer(v) || json_integer_value(v) < least || json_integer_value(v) > most)
        wrong(r, key, expected);
    else
        *out = (int)json_integer_value(v);
}

static void read_real(struct reader *r, const char *key, int lend, double *out)
{
    const json_t *v = value_of(r, key, lend);
    if (!v) return;
    if (!json_is_number(v) || !isfinite(json_number_value(v)))
        wrong(r, key, "a number");
    else
        *out = json_number_value(v);
}

static void read_flag(struct reader *r, const char *key, int lend, int *out)
{
    const json_t *v = value_of(r, key, lend);
    if (!v) return;
    if (!json_is_boolean(v))
        wrong(r, key, "true or false");
    else
        *out = json_is_true(v);
}

static void read_text(struct reader *r, const char *key, int lend, char *out, size_t size)
{
    const json_t *v = value_of(r, key, lend);
    if (!v) return;
    if (!json_is_string(v) || json_string_length(v) >= size)
        wrong(r, key, "a short text");
    else
        snprintf(out, size, "%s", json_string_value(v));
}

/* A text that is one of a list; *out is its place. */
static void read_choice(struct reader *r, const char *key, int lend, const char *const *choices,
                        int count, int *out)
{
    char text[64] = "", expected[256] = "one of";
    const json_t *v = value_of(r, key, lend);
    if (!v) return;
    read_text(r, key, lend, text, sizeof text);
    for (int i = 0; i < count; i++) {
        if (strcmp(text, choices[i]) == 0) {
            *out = i;
            return;
        }
        size_t n = strlen(expected);
        snprintf(expected + n, sizeof expected - n, " %s", choices[i]);
    }
    wrong(r, key, expected);
}

static void refuse(struct reader *r, const char *key, int lend)
{
    const json_t *v = value_of(r, key, lend);
    if (v && !json_is_false(v)) wrong(r, key, "null or false");
}

/* Where noise levels lie between the largest and the smallest; keys that one class alone has are
 * looked for with that class. */
static void read_sigma_rule(struct reader *r, struct sampler_config *c, int same_class)
{
    static const struct {
        const char *key;
        enum sigma_rule rule;
    } rules[] = {{"use_karras_sigmas", SIGMA_KARRAS},
                 {"use_exponential_sigmas", SIGMA_EXPONENTIAL},
                 {"use_lu_lambdas", SIGMA_LU}};
    static const char *const interpolations[] = {"linear", "log_linear"}, *const types[] = {
                                                                              "discrete",
                                                                              "continuous"};
    static const char *const finals[] = {"zero", "sigma_min"};
    int dpm = c->scheduler == SCHEDULER_DPM;
    if (!dpm && c->scheduler != SCHEDULER_EULER && c->scheduler != SCHEDULER_HEUN &&
        c->scheduler != SCHEDULER_UNIPC)
        return;
    for (int i = 0; i < (dpm ? 3 : 2); i++) {
        int wanted = 0;
        read_flag(r, rules[i].key, same_class, &wanted);
        if (wanted && c->sigma_rule) wrong(r, rules[i].key, "one rule for the noise levels");
        if (wanted) c->sigma_rule = rules[i].rule;
    }
    read_real(r, "sigma_min", same_class, &c->sigma_min);
    read_real(r, "sigma_max", same_class, &c->sigma_max);
    if (c->scheduler != SCHEDULER_HEUN)
        read_choice(r, "final_sigmas_type", same_class, finals, 2, &c->final_sigma_min);
    if (c->sigma_min < 0 || c->sigma_max < 0) wrong(r, "sigma_min", "more than 0, as sigma_max");
    if (c->scheduler == SCHEDULER_EULER) {
        read_choice(r, "interpolation_type", same_class, interpolations, 2, &c->log_linear);
        read_choice(r, "timestep_type", same_class, types, 2, &c->continuous);
    } else if (dpm) {
        read_real(r, "lambda_min_clipped", same_class, &c->lambda_min_clipped);
    }
}

/* Whether x0 is kept within bounds: the folder's wish is for its own scheduler, and old pipelines
 * pass over it. Other classes have the key and do nothing with it. */
static void read_clip(struct reader *r, struct sampler_config *c)
{
    int lend = !r->old_rules && !json_object_get(r->recipe, "scheduler");
    if (c->scheduler != SCHEDULER_DDIM && c->scheduler != SCHEDULER_LCM &&
        c->scheduler != SCHEDULER_HEUN)
        return;
    c->clip_sample = lend && c->scheduler == SCHEDULER_DDIM; /* diffusers' default */
    read_flag(r, "clip_sample", lend, &c->clip_sample);
    read_real(r, "clip_sample_range", lend, &c->clip_sample_range);
    if (!(c->clip_sample_range > 0)) wrong(r, "clip_sample_range", "more than 0");
}

/* What only a multistep solver says of itself. */
static void read_solver(struct reader *r, struct sampler_config *c, int same_class)
{
    /* diffusers takes the other solvers' names for its own nearest. */
    static const char *const types[] = {"dpmsolver++", "deis"}, *const solvers[] = {"midpoint",
                                                                                    "logrho", "bh1",
                                                                                    "bh2", "heun"};
    int type = 0, solver = 0, predict_x0 = 1;
    if (c->scheduler == SCHEDULER_DPM) {
        read_choice(r, "algorithm_type", same_class, types, 2, &type);
        read_choice(r, "solver_type", same_class, solvers, 5, &solver);
        strcpy(c->solver_type, solver == 4 ? "heun" : "midpoint");
    }
    if (c->scheduler == SCHEDULER_UNIPC) {
        read_choice(r, "solver_type", same_class, solvers, 5, &solver);
        strcpy(c->solver_type, solver == 2 ? "bh1" : "bh2");
        read_flag(r, "predict_x0", same_class, &predict_x0);
        if (!predict_x0) wrong(r, "predict_x0", "true");
        if (json_array_size(value_of(r, "disable_corrector", same_class)))
            wrong(r, "disable_corrector", "an empty list");
    }
}

static void read_sampler(struct reader *r, struct sampler_config *c, int same_class)
{
    static const char *const predictions[] = {"epsilon", "v_prediction", "sample"};
    static const char *const spacings[] = {"leading", "linspace", "trailing"};
    int prediction = c->prediction_type, spacing = c->timestep_spacing;
    read_choice(r, "prediction_type", 1, predictions, 3, &prediction);
    read_choice(r, "timestep_spacing", same_class, spacings, 3, &spacing);
    c->prediction_type = (enum prediction)prediction;
    c->timestep_spacing = (enum spacing)spacing;
    read_text(r, "beta_schedule", 1, c->beta_schedule, sizeof c->beta_schedule);
    read_real(r, "beta_start", 1, &c->beta_start);
    read_real(r, "beta_end", 1, &c->beta_end);
    read_int(r, "num_train_timesteps", 1, 2, SAMPLER_TRAIN_STEPS_MAX, &c->num_train_timesteps);
    c->steps_offset = r->old_rules;
    read_int(r, "steps_offset", !r->old_rules, 0, 1000, &c->steps_offset);
    read_clip(r, c);
    read_flag(r, "set_alpha_to_one", same_class, &c->set_alpha_to_one);
    read_flag(r, "skip_prk_steps", same_class, &c->skip_prk_steps);
    /* The model's own table, whoever samples it, unless the recipe brings another; PNDM and Heun
     * have none. */
    if (c->scheduler != SCHEDULER_PNDM && c->scheduler != SCHEDULER_HEUN)
        read_flag(r, "rescale_betas_zero_snr", !json_object_get(r->recipe, "beta_schedule"),
                  &c->rescale_betas_zero_snr);
    read_int(r, "solver_order", same_class, 1, 3, &c->solver_order);
    read_flag(r, "lower_order_final", same_class, &c->lower_order_final);
    read_flag(r, "euler_at_final", same_class, &c->euler_at_final);
    read_sigma_rule(r, c, same_class);
    read_int(r, "original_inference_steps", same_class, 1, SAMPLER_TRAIN_STEPS_MAX,
             &c->original_inference_steps);
    read_real(r, "timestep_scaling", same_class, &c->timestep_scaling);
    read_real(r, "eta", 0, &c->eta); /* the pipelines' argument, in no folder */
    if (c->eta < 0 || c->eta > 1) wrong(r, "eta", "a number from 0 to 1");
    read_real(r, "shift", same_class, &c->shift);
    if (!(c->shift > 0)) wrong(r, "shift", "more than 0");
    read_real(r, "alpha_bar", 0, &c->alpha_bar);

    const json_t *list = value_of(r, "timesteps", 0);
    size_t count = json_array_size(list);
    if (list && c->scheduler == SCHEDULER_FLOW_MATCH)
        wrong(r, "timesteps", "none, as FlowMatchEulerDiscreteScheduler spaces its own");
    if (list && (!json_is_array(list) || count < 1 || count > SAMPLER_TIMESTEPS_MAX)) {
        wrong(r, "timesteps", "a list of 1 to 64 time steps");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *t = json_array_get(list, i);
        if (!json_is_integer(t) || json_integer_value(t) < 0 ||
            json_integer_value(t) >= c->num_train_timesteps ||
            (i && json_integer_value(t) >= c->timesteps[i - 1])) {
            wrong(r, "timesteps", "whole numbers that descend, below num_train_timesteps");
            return;
        }
        c->timesteps[i] = (int)json_integer_value(t);
    }
    c->timesteps_count = (int)count;

    read_solver(r, c, same_class);
    if (c->prediction_type == PREDICTION_SAMPLE &&
        (c->scheduler == SCHEDULER_PNDM || c->scheduler == SCHEDULER_EULER_ANCESTRAL))
        wrong(r, "prediction_type",
              "epsilon or v_prediction, as PNDMScheduler and EulerAncestralDiscreteScheduler have "
              "them");
    /* What changes the picture and is not here. A folder's file may hold keys of the class that it
     * was made from; those of another class mean nothing. */
    enum {
        FLOW = 1 << SCHEDULER_FLOW_MATCH,
        DPM = 1 << SCHEDULER_DPM,
        UNIPC = 1 << SCHEDULER_UNIPC,
        HEUN = 1 << SCHEDULER_HEUN,
        EULER = 1 << SCHEDULER_EULER
    };
    static const struct {
        const char *key;
        unsigned classes;
    } refused[] = {{"thresholding", 1 << SCHEDULER_DDIM | DPM | UNIPC | 1 << SCHEDULER_LCM},
                   {"use_beta_sigmas", EULER | HEUN | DPM | UNIPC | FLOW},
                   {"use_flow_sigmas", DPM | UNIPC},
                   {"use_dynamic_shifting", DPM | UNIPC | FLOW},
                   {"shift_terminal", UNIPC | FLOW},
                   {"solver_p", UNIPC},
                   {"invert_sigmas", FLOW},
                   {"use_karras_sigmas", FLOW},
                   {"use_exponential_sigmas", FLOW},
                   {"stochastic_sampling", FLOW}};
    refuse(r, "trained_betas", 1); /* of the model, whoever samples it */
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (refused[i].classes >> c->scheduler & 1) refuse(r, refused[i].key, same_class);
    const char *variance = json_string_value(value_of(r, "variance_type", same_class));
    if (c->scheduler == SCHEDULER_DPM && variance && strncmp(variance, "learned", 7) == 0)
        wrong(r, "variance_type", "a variance that the model does not predict");
}

static void read_guidance(struct reader *r, struct recipe *out, int joint_attention)
{
    struct reader inner = *r;
    inner.recipe = json_object_get(r->recipe, "guidance");
    inner.folder = NULL;
    int method = GUIDANCE_NONE, variant = GUIDANCE_TEXT;
    read_choice(&inner, "method", 0, methods, 4, &method);
    out->guidance.method = (enum guidance_method)method;
    read_choice(&inner, "nasa_variant", 0, variants, 3, &variant);
    if (!joint_attention && value_of(&inner, "nasa_variant", 0))
        wrong(&inner, "nasa_variant", "none, for a model without joint attention");
    out->guidance.variant = (enum guidance_variant)variant;
    read_real(&inner, "alpha", 0, &out->guidance.alpha);
    read_real(&inner, "phi", 0, &out->guidance.phi);
    read_real(&inner, "tau", 0, &out->guidance.tau);
    read_real(&inner, "beta", 0, &out->guidance.beta);
    read_real(&inner, "offset", 0, &out->guidance.offset);
    read_real(&inner, "guidance_scale", 0, &out->guidance.scale);
    if (inner.code && !r->code) r->code = inner.code;
}

static int class_unknown(const char *path, const char *class_name, struct steer_error *err)
{
    char known[512] = "";
    for (int i = 0; i < SCHEDULER_COUNT; i++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s",
                 !i                         ? ""
                 : i == SCHEDULER_COUNT - 1 ? " or "
                                            : ", ",
                 sampler_class_name((enum scheduler)i));
    }
    return steer_fail(err, STEER_UNSUPPORTED,
                      "%s: scheduler \"%s\": expected %s (choose a recipe that names one, with "
                      "--recipe or in the folder's steer.json)",
                      path, class_name ? class_name : "(none)", known);
}

/* "family": a name or a list of names; a recipe without fits any. */
static int family_check(const json_t *family, const char *path, const char *wanted,
                        struct steer_error *err)
{
    char named[128] = "";
    size_t count = json_is_array(family) ? json_array_size(family) : family != NULL;
    for (size_t i = 0; i < count; i++) {
        const char *name =
            json_string_value(json_is_array(family) ? json_array_get(family, i) : family);
        if (!name)
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: \"family\": expected a family's name or a list of such", path);
        if (!wanted || strcmp(name, wanted) == 0) return 0;
        size_t n = strlen(named);
        snprintf(named + n, sizeof named - n, "%s%s", i ? ", " : "", name);
    }
    if (!count || !wanted) return 0;
    return steer_fail(err, STEER_UNSUPPORTED,
                      "%s: the recipe is for models of the family %s, and this one is of %s", path,
                      named, wanted);
}

int recipe_load(struct recipe *ret, const char *name, const struct recipe_folder *folder,
                struct steer_error *err)
{
    const json_t *scheduler = folder->scheduler;
    const char *scheduler_file = scheduler ? folder->scheduler_file : NULL;
    char path[PATH_MAX];
    json_t *root = NULL;
    int code = recipe_path(path, sizeof path, name, err);
    if (code || (code = json_file_load(&root, path, err))) return code;

    struct reader r = {root, scheduler, path, scheduler_file, path, folder->old_rules, 0, err};
    struct recipe out = {.steps = 1, .guidance = folder->guidance};
    out.guidance.method = GUIDANCE_NONE;
    out.guidance.scale = 1;
    if ((code = family_check(json_object_get(root, "family"), path, folder->family, err)))
        goto done;
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    snprintf(
        out.name, sizeof out.name, "%.*s",
        (int)(strlen(base) - 5 < STEER_NAME_BYTES_MAX ? strlen(base) - 5 : STEER_NAME_BYTES_MAX),
        base);

    const char *lent =
        scheduler ? json_string_value(json_object_get(scheduler, "_class_name")) : NULL;
    const char *named = json_string_value(json_object_get(root, "scheduler"));
    const char *class_name = named ? named : lent;
    int kind = class_name ? sampler_class(class_name) : -1;
    if (kind < 0) {
        code = class_unknown(named || !scheduler_file ? path : scheduler_file, class_name, err);
        goto done;
    }
    sampler_config_default(&out.sampler, (enum scheduler)kind);
    read_sampler(&r, &out.sampler, lent && strcmp(lent, class_name) == 0);

    int count = out.sampler.timesteps_count;
    out.steps = count ? count : 20;
    read_int(&r, "steps", 0, 1, STEER_STEPS_MAX, &out.steps);
    out.steps_min = count ? count : 1;
    out.steps_max = count ? count
                    : out.sampler.num_train_timesteps < STEER_STEPS_MAX
                        ? out.sampler.num_train_timesteps
                        : STEER_STEPS_MAX;
    if ((kind == SCHEDULER_LCM || kind == SCHEDULER_TCD) && !count)
        out.steps_max = out.sampler.original_inference_steps;
    read_int(&r, "steps_min", 0, 1, STEER_STEPS_MAX, &out.steps_min);
    read_int(&r, "steps_max", 0, 1, STEER_STEPS_MAX, &out.steps_max);
    if (out.steps < out.steps_min || out.steps > out.steps_max)
        wrong(&r, "steps", "a number within steps_min and steps_max");
    read_choice(&r, "start", 0, starts, 2, &out.from_mean);
    read_guidance(&r, &out, folder->joint_attention);
    read_text(&r, "negative_prompt", 0, out.negative_prompt, sizeof out.negative_prompt);
    code = r.code;
    /* What the numbers make together is tried now, and not at the first image. */
    struct schedule *trial = NULL;
    struct steer_error why = {0};
    if (!code && (code = schedule_new(&trial, &out.sampler, out.steps, &why)))
        code = steer_fail(err, STEER_BAD_MODEL, "%s: %s",
                          scheduler_file && !named ? scheduler_file : path, why.text);
    schedule_free(trial);
    if (!code) *ret = out;
done:
    json_decref(root);
    return code;
}
