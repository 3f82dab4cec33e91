// SPDX-License-Identifier: Apache-2.0
#include "job.h"

#include <string.h>

#include "limits.h"
#include "wire.h"

#define CFG_SCALE_DEFAULT 7.5 /* diffusers' StableDiffusionPipeline */

static const char *const method_names[] = {
    [STEERFARM__METHOD__NONE] = "none", [STEERFARM__METHOD__NASA] = "nasa",
    [STEERFARM__METHOD__NAG] = "nag",   [STEERFARM__METHOD__VSF] = "vsf",
    [STEERFARM__METHOD__CFG] = "cfg",
};
#define METHODS ((int)(sizeof method_names / sizeof *method_names))
static const char *const long_prompt_names[] = {
    [STEERFARM__LONG_PROMPT__CUT] = "cut", [STEERFARM__LONG_PROMPT__CHUNK] = "chunk"};
static const char *const syntax_names[] = {
    [STEERFARM__PROMPT_SYNTAX__PLAIN] = "plain", [STEERFARM__PROMPT_SYNTAX__A1111] = "a1111"};

static const char *name_at(const char *const *names, int count, int i)
{
    return i >= 0 && i < count ? names[i] : "?";
}

static int name_find(const char *const *names, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

int job_method_of(const char *name)
{
    return name_find(method_names, METHODS, name);
}

const char *job_long_prompt_name(int long_prompt)
{
    return name_at(long_prompt_names, 2, long_prompt);
}

int job_long_prompt_of(const char *name)
{
    return name_find(long_prompt_names, 2, name);
}

const char *job_prompt_syntax_name(int syntax)
{
    return name_at(syntax_names, 2, syntax);
}

int job_prompt_syntax_of(const char *name)
{
    return name_find(syntax_names, 2, name);
}

int job_variant_of(const char *name)
{
    static const char *const names[] = {"text", "mass", "joint"};
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

static int text_check(const char *what, const char *text, size_t bytes_max, struct steer_error *err)
{
    if (!text) return 0;
    size_t size = strlen(text);
    if (size > bytes_max)
        return steer_fail(err, STEER_BAD_TEXT, "the %s has %zu bytes: expected at most %zu", what,
                          size, bytes_max);
    if (!wire_utf8_valid(text, size))
        return steer_fail(err, STEER_BAD_TEXT, "the %s is not UTF-8", what);
    return 0;
}

static int name_check(const char *what, const char *text, struct steer_error *err)
{
    if (text && !*text) return steer_fail(err, STEER_BAD_TEXT, "the %s is empty", what);
    return text_check(what, text, STEER_NAME_BYTES_MAX, err);
}

static int number_check(const char *what, int given, double value, double least, double most,
                        struct steer_error *err)
{
    if (!given || (value >= least && value <= most)) return 0; /* NaN is neither */
    return steer_fail(err, STEER_BAD_VALUE, "%s %g: expected %g to %g", what, value, least, most);
}

static int guidance_check(const Steerfarm__Guidance *g, struct steer_error *err)
{
    int code;
    if (!g) return 0;
    if (g->has_method && ((int)g->method < 0 || (int)g->method >= METHODS))
        return steer_fail(err, STEER_BAD_VALUE, "guidance method %d: expected 0 (none) to 4 (cfg)",
                          (int)g->method);
    if (g->has_nasa_variant && (unsigned)g->nasa_variant > STEERFARM__NASA_VARIANT__JOINT)
        return steer_fail(err, STEER_BAD_VALUE,
                          "NASA variant %d: expected 0 (text), 1 (mass) or 2 (joint)",
                          (int)g->nasa_variant);
    if ((code = number_check("alpha", g->has_alpha, g->alpha, -100, 100, err)) ||
        (code = number_check("phi", g->has_phi, g->phi, -100, 100, err)) ||
        (code = number_check("tau", g->has_tau, g->tau, 0, 1000, err)) ||
        (code = number_check("beta", g->has_beta, g->beta, 0, 1, err)) ||
        (code = number_check("offset", g->has_offset, g->offset, -1000, 1000, err)))
        return code;
    return number_check("guidance scale", g->has_guidance_scale, g->guidance_scale, 0, 100, err);
}

static int prompt_blank(const char *text)
{
    return text[strspn(text, " \t\r\n\v\f")] == 0;
}

int job_check(const Steerfarm__Job *job, struct steer_error *err)
{
    int code;
    if ((code = name_check("model name", job->model, err)) ||
        (code = text_check("prompt", job->prompt, STEER_PROMPT_BYTES_MAX, err)) ||
        (code = text_check("negative prompt", job->negative_prompt, STEER_PROMPT_BYTES_MAX, err)) ||
        (code = name_check("recipe name", job->recipe, err)) ||
        (code = text_check("traceparent", job->traceparent, STEER_NAME_BYTES_MAX, err)) ||
        (code = name_check("numerics class", job->numerics, err)) ||
        (code = name_check("model hash", job->model_hash, err)) ||
        (code = guidance_check(job->guidance, err)))
        return code;
    if (prompt_blank(job->prompt)) return steer_fail(err, STEER_BAD_TEXT, "the prompt is empty");
    if ((job->has_width && job->width > STEER_SIDE_MAX) ||
        (job->has_height && job->height > STEER_SIDE_MAX) || (job->has_width && !job->width) ||
        (job->has_height && !job->height))
        return steer_fail(err, STEER_BAD_SIZE, "size %ux%u: expected %d to %d pixels a side",
                          job->width, job->height, STEER_SIDE_MIN, STEER_SIDE_MAX);
    if (job->has_steps && (job->steps < 1 || job->steps > STEER_STEPS_MAX))
        return steer_fail(err, STEER_BAD_VALUE, "%u steps: expected 1 to %d", job->steps,
                          STEER_STEPS_MAX);
    if (job->has_images && (job->images < 1 || job->images > STEER_IMAGES_MAX))
        return steer_fail(err, STEER_BAD_VALUE, "%u images: expected 1 to %d", job->images,
                          STEER_IMAGES_MAX);
    if (job->has_precision && (unsigned)job->precision > STEERFARM__PRECISION__BF16)
        return steer_fail(err, STEER_BAD_VALUE,
                          "precision %d: expected 0 (auto), 1 (f32) or 2 (bf16)",
                          (int)job->precision);
    if (job->has_long_prompt && (unsigned)job->long_prompt > STEERFARM__LONG_PROMPT__CHUNK)
        return steer_fail(err, STEER_BAD_VALUE, "long prompt %d: expected 0 (cut) or 1 (chunk)",
                          (int)job->long_prompt);
    if (job->has_prompt_syntax && (unsigned)job->prompt_syntax > STEERFARM__PROMPT_SYNTAX__A1111)
        return steer_fail(err, STEER_BAD_VALUE, "prompt syntax %d: expected 0 (plain) or 1 (a1111)",
                          (int)job->prompt_syntax);
    if (job->output) {
        if (job->output->has_format && (unsigned)job->output->format > STEERFARM__FORMAT__PNG)
            return steer_fail(err, STEER_BAD_VALUE,
                              "output format %d: expected 0 (webp), 1 (lossless webp) or 2 (png)",
                              (int)job->output->format);
        if (job->output->has_quality && job->output->quality > 100)
            return steer_fail(err, STEER_BAD_VALUE, "quality %u: expected 0 to 100",
                              job->output->quality);
    }
    if (job->n_labels > STEER_LABELS_MAX)
        return steer_fail(err, STEER_BAD_VALUE, "%zu labels: expected at most %d", job->n_labels,
                          STEER_LABELS_MAX);
    for (size_t i = 0; i < job->n_labels; i++)
        if ((code = name_check("label key", job->labels[i]->key, err)) ||
            (code = text_check("label value", job->labels[i]->value, STEER_LABEL_VALUE_BYTES_MAX,
                               err)))
            return code;
    return 0;
}

static const Steerfarm__Recipe *recipe_find(const Steerfarm__Model *m, const char *name)
{
    for (size_t i = 0; i < m->n_recipes; i++)
        if (!name || strcmp(m->recipes[i]->name, name) == 0) return m->recipes[i];
    return NULL;
}

/* A field of the job's guidance, else the recipe's, else what it says here. */
#define GUIDANCE_FIELD(field, otherwise)                                                           \
    do {                                                                                           \
        to->has_##field = 1;                                                                       \
        to->field = asked && asked->has_##field   ? asked->field                                   \
                    : usual && usual->has_##field ? usual->field                                   \
                                                  : (otherwise);                                   \
    } while (0)

static void guidance_resolve(Steerfarm__Guidance *to, const Steerfarm__Guidance *asked,
                             const Steerfarm__Guidance *usual, int negative, int joint)
{
    GUIDANCE_FIELD(method, STEERFARM__METHOD__NONE);
    GUIDANCE_FIELD(alpha, 0.1);
    GUIDANCE_FIELD(phi, 2);
    GUIDANCE_FIELD(tau, 2.5);
    GUIDANCE_FIELD(beta, 0.375);
    GUIDANCE_FIELD(offset, 0);
    GUIDANCE_FIELD(guidance_scale, 1);
    if (joint) GUIDANCE_FIELD(nasa_variant, STEERFARM__NASA_VARIANT__TEXT);
    int named = asked && asked->has_method;
    int scale_given = asked && asked->has_guidance_scale;
    if (to->method == STEERFARM__METHOD__CFG) {
        to->method = STEERFARM__METHOD__NONE;
        if (!scale_given && to->guidance_scale == 1) to->guidance_scale = CFG_SCALE_DEFAULT;
    } else if (named && !scale_given) {
        to->guidance_scale = 1;
    }
    /* Nothing to steer away from, and nobody asked: the plain picture, at no cost. */
    if (!named && !negative) to->method = STEERFARM__METHOD__NONE;
}

static int size_resolve(Steerfarm__Job *job, const Steerfarm__Model *m, struct steer_error *err)
{
    if (!job->has_width) job->width = m->width;
    if (!job->has_height) job->height = m->height;
    job->has_width = job->has_height = 1;
    uint32_t multiple = m->size_multiple ? m->size_multiple : 8;
    uint32_t side_max = m->side_max ? m->side_max : STEER_SIDE_MAX;
    uint64_t pixels_max = m->pixels_max ? m->pixels_max : STEER_PIXELS_MAX;
    if (!job->width || !job->height || job->width % multiple || job->height % multiple)
        return steer_fail(err, STEER_BAD_SIZE,
                          "size %ux%u: model \"%s\" expects multiples of %u pixels", job->width,
                          job->height, m->name, multiple);
    if (job->width > side_max || job->height > side_max ||
        (uint64_t)job->width * job->height > pixels_max)
        return steer_fail(
            err, STEER_BAD_SIZE,
            "size %ux%u: model \"%s\" expects at most %u pixels a side and %llu in all", job->width,
            job->height, m->name, side_max, (unsigned long long)pixels_max);
    return 0;
}

static int steps_resolve(Steerfarm__Job *job, const Steerfarm__Recipe *r, struct steer_error *err)
{
    if (!job->has_steps) job->steps = r->steps ? r->steps : 1;
    job->has_steps = 1;
    uint32_t least = r->steps_min ? r->steps_min : 1;
    uint32_t most = r->steps_max ? r->steps_max : STEER_STEPS_MAX;
    if (job->steps >= least && job->steps <= most) return 0;
    if (least == most)
        return steer_fail(err, STEER_BAD_VALUE, "%u steps: recipe \"%s\" expects %u", job->steps,
                          r->name, least);
    return steer_fail(err, STEER_BAD_VALUE, "%u steps: recipe \"%s\" expects %u to %u", job->steps,
                      r->name, least, most);
}

int job_resolve(struct job_resolved *ret, const Steerfarm__Job *job, const Steerfarm__Model *model,
                uint64_t seed, struct steer_error *err)
{
    int code = job_check(job, err);
    if (code) return code;
    const Steerfarm__Recipe *recipe = recipe_find(model, job->recipe);
    if (!recipe)
        return steer_fail(err, STEER_UNKNOWN_RECIPE, "model \"%s\" has no recipe \"%s\"",
                          model->name, job->recipe ? job->recipe : "");
    ret->job = *job;
    ret->guidance = (Steerfarm__Guidance)STEERFARM__GUIDANCE__INIT;
    ret->output = (Steerfarm__Output)STEERFARM__OUTPUT__INIT;
    Steerfarm__Job *to = &ret->job;
    to->recipe = recipe->name;
    if (!to->negative_prompt) to->negative_prompt = recipe->negative_prompt;
    int negative = to->negative_prompt && !prompt_blank(to->negative_prompt);
    if (job->guidance && job->guidance->has_nasa_variant && !model->joint_attention)
        return steer_fail(err, STEER_BAD_VALUE,
                          "a NASA variant is for models with joint attention (FLUX), and \"%s\" "
                          "has none: leave it out",
                          model->name);
    guidance_resolve(&ret->guidance, job->guidance, recipe->guidance, negative,
                     model->joint_attention);
    to->guidance = &ret->guidance;
    if (negative && job->negative_prompt && ret->guidance.method == STEERFARM__METHOD__NONE &&
        ret->guidance.guidance_scale == 1)
        return steer_fail(
            err, STEER_BAD_VALUE,
            "a negative prompt does nothing with guidance none: choose nasa, nag, vsf "
            "or cfg, or leave it out");
    if ((code = size_resolve(to, model, err)) || (code = steps_resolve(to, recipe, err)))
        return code;
    if (!to->has_seed) to->seed = seed;
    if (!to->has_images) to->images = 1;
    if (!to->has_precision) to->precision = STEERFARM__PRECISION__AUTO;
    if (!to->has_priority) to->priority = 0;
    if (!to->has_long_prompt) to->long_prompt = STEERFARM__LONG_PROMPT__CUT;
    if (!to->has_prompt_syntax) to->prompt_syntax = STEERFARM__PROMPT_SYNTAX__PLAIN;
    to->has_seed = to->has_images = to->has_precision = to->has_priority = 1;
    to->has_long_prompt = to->has_prompt_syntax = 1;
    to->model_hash = model->hash;
    if (job->output) ret->output = *job->output;
    if (!ret->output.has_format) ret->output.format = STEERFARM__FORMAT__WEBP_LOSSY;
    if (!ret->output.has_quality) ret->output.quality = 90;
    ret->output.has_format = ret->output.has_quality = 1;
    to->output = &ret->output;
    return 0;
}
