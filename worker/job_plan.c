// SPDX-License-Identifier: Apache-2.0
#include "job_plan.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "../proto/job.h"
#include "prompt_tokens.h"

static const enum guidance_method methods[] = {
    [STEERFARM__METHOD__NONE] = GUIDANCE_NONE,
    [STEERFARM__METHOD__NASA] = GUIDANCE_NASA,
    [STEERFARM__METHOD__NAG] = GUIDANCE_NAG,
    [STEERFARM__METHOD__VSF] = GUIDANCE_VSF,
};

static void guidance_read(struct guidance *g, const Steerfarm__Guidance *from)
{
    if (!from) return;
    if (from->has_method && from->method != STEERFARM__METHOD__CFG)
        g->method = methods[from->method];
    if (from->has_alpha) g->alpha = from->alpha;
    if (from->has_phi) g->phi = from->phi;
    if (from->has_tau) g->tau = from->tau;
    if (from->has_beta) g->beta = from->beta;
    if (from->has_offset) g->offset = from->offset;
    if (from->has_guidance_scale) g->scale = from->guidance_scale;
    if (from->has_nasa_variant) g->variant = (enum guidance_variant)from->nasa_variant;
}

static int recipe_of(struct recipe *ret, const struct model *m, const Steerfarm__Job *job,
                     struct steer_error *err)
{
    if (job->recipe && recipe_is_file(job->recipe))
        return steer_fail(err, STEER_UNKNOWN_RECIPE,
                          "recipe \"%s\": expected a name; a farm's jobs cannot name files",
                          job->recipe);
    return model_recipe(m, job->recipe, ret, err);
}

static struct prompt_reading reading_of(const Steerfarm__Job *job)
{
    return (struct prompt_reading){
        .syntax = job->has_prompt_syntax && job->prompt_syntax == STEERFARM__PROMPT_SYNTAX__A1111
                      ? PROMPT_A1111
                      : PROMPT_PLAIN,
        .chunked = job->has_long_prompt && job->long_prompt == STEERFARM__LONG_PROMPT__CHUNK};
}

/* Read and forgotten: what is wrong with one image's text must not fail its company later. */
static int prompt_check(const struct model *m, const struct render_image *image, int negative,
                        struct steer_error *err)
{
    struct prompt_tokens tokens = {0};
    int code = prompt_tokens_read(&tokens, m, negative ? image->negative : image->prompt,
                                  image->reading, err);
    prompt_tokens_free(&tokens);
    return code ? steer_fail_in(err, code, "the %s prompt", negative ? "negative" : "positive") : 0;
}

int job_plan_make(struct job_plan *ret, const struct model *m, const struct recipe *own,
                  const Steerfarm__Job *job, uint32_t index, struct steer_error *err)
{
    struct job_plan p = {0};
    int code = job_check(job, err);
    if (!code && !own) code = recipe_of(&p.recipe, m, job, err);
    if (code) return code;
    if (own) p.recipe = *own;
    p.image.guidance = p.recipe.guidance;
    guidance_read(&p.image.guidance, job->guidance);
    p.shape = (struct render_shape){
        .width = job->has_width ? (int)job->width : m->width,
        .height = job->has_height ? (int)job->height : m->height,
        .steps = job->has_steps ? (int)job->steps : p.recipe.steps,
        .method = p.image.guidance.method,
        .cfg = p.image.guidance.scale != 1,
        .variant = p.image.guidance.variant,
    };
    if ((code = model_size_check(m, p.shape.width, p.shape.height, err)) ||
        (code = model_start_check(m, &p.recipe, p.shape.width, p.shape.height, err)))
        return code;
    if (p.shape.steps < p.recipe.steps_min || p.shape.steps > p.recipe.steps_max)
        return steer_fail(err, STEER_BAD_VALUE, "%d steps: recipe \"%s\" expects %d to %d",
                          p.shape.steps, p.recipe.name, p.recipe.steps_min, p.recipe.steps_max);
    p.image.prompt = job->prompt;
    p.image.negative = job->negative_prompt;
    p.image.reading = reading_of(job);
    p.image.seed = (job->has_seed ? job->seed : 0) + index;
    if ((code = prompt_check(m, &p.image, 0, err)) || (code = prompt_check(m, &p.image, 1, err)))
        return code;
    *ret = p;
    return 0;
}

int job_plans_share(const struct job_plan *a, const struct job_plan *b)
{
    return a->shape.width == b->shape.width && a->shape.height == b->shape.height &&
           a->shape.steps == b->shape.steps && a->shape.method == b->shape.method &&
           a->shape.cfg == b->shape.cfg && a->shape.variant == b->shape.variant &&
           strcmp(a->recipe.name, b->recipe.name) == 0;
}

/* ---- what the image says of itself ---- */

void job_cut_text(char *to, size_t size, const struct render_image *image, int tokens)
{
    const size_t cuts[] = {image->cut, image->cut_negative};
    size_t n = 0;
    *to = 0;
    for (int i = 0; i < 2; i++)
        if (cuts[i] && n < size)
            n += (size_t)snprintf(to + n, size - n,
                                  "%sthe %s prompt does not fit into %d tokens and was cut at "
                                  "byte %zu",
                                  n ? "; " : "", i ? "negative" : "positive", tokens, cuts[i]);
}

/* Jansson's integers end at 2^63 - 1; beyond it digits in a text, which `--from` reads too. */
json_t *job_seed_json(uint64_t seed)
{
    char digits[24];
    if (seed <= INT64_MAX) return json_integer((json_int_t)seed);
    snprintf(digits, sizeof digits, "%" PRIu64, seed);
    return json_string(digits);
}

/* Field names are those of message Job, so that `steer render --from` reads them back. */
static char *job_json(const Steerfarm__Job *job, const struct job_plan *p, const char *model_hash,
                      const char *numerics)
{
    static const char *const formats[] = {"webp", "lossless", "png"};
    const struct guidance *g = &p->image.guidance;
    int joint = job->guidance && job->guidance->has_nasa_variant;
    int format = job->output && job->output->has_format ? (int)job->output->format : 0;
    int quality = job->output && job->output->has_quality ? (int)job->output->quality : 90;
    json_t *json = json_pack(
        "{s:s, s:s, s:s*, s:s, s:s, s:s, s:{s:s, s:s*, s:f, s:f, s:f, s:f, s:f, s:f}, s:i, s:i, "
        "s:i, s:o, s:s, s:s*, s:{s:s, s:i}, s:s, s:s}",
        "model", job->model, "prompt", p->image.prompt, "negative_prompt", p->image.negative,
        "prompt_syntax", job_prompt_syntax_name((int)job->prompt_syntax), "long_prompt",
        job_long_prompt_name((int)job->long_prompt), "recipe", p->recipe.name, "guidance", "method",
        guidance_method_name(g->method), "nasa_variant",
        joint ? guidance_variant_name(g->variant) : NULL, "alpha", g->alpha, "phi", g->phi, "tau",
        g->tau, "beta", g->beta, "offset", g->offset, "guidance_scale", g->scale, "width",
        p->shape.width, "height", p->shape.height, "steps", p->shape.steps, "seed",
        job_seed_json(p->image.seed), "precision", strstr(numerics, "-bf16-") ? "bf16" : "f32",
        "weights", strstr(numerics, "-int8-") ? "int8" : NULL, "output", "format",
        formats[format >= 0 && format < 3 ? format : 0], "quality", quality, "model_hash",
        model_hash, "numerics", numerics);
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    return text;
}

/* As A1111's web UI writes it, which many image tools read. */
static char *job_parameters(const Steerfarm__Job *job, const struct job_plan *p,
                            const char *model_hash)
{
    const struct guidance *g = &p->image.guidance;
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f) return NULL;
    fprintf(f, "%s\n", p->image.prompt);
    if (p->image.negative && *p->image.negative)
        fprintf(f, "Negative prompt: %s\n", p->image.negative);
    fprintf(f, "Steps: %d, Sampler: %s, CFG scale: %g, Seed: %" PRIu64 ", Size: %dx%d, ",
            p->shape.steps, p->recipe.name, g->scale, p->image.seed, p->shape.width,
            p->shape.height);
    fprintf(f, "Model hash: %.10s, Model: %s, Guidance: %s", model_hash, job->model,
            guidance_method_name(g->method));
    /* Its word for brackets that weigh nothing. */
    if (p->image.reading.syntax == PROMPT_PLAIN &&
        (strpbrk(p->image.prompt, "([") || (p->image.negative && strpbrk(p->image.negative, "(["))))
        fprintf(f, ", Emphasis: None");
    if (g->method == GUIDANCE_NASA || g->method == GUIDANCE_VSF)
        fprintf(f, ", Alpha: %g", g->alpha);
    if (g->method == GUIDANCE_NASA && job->guidance && job->guidance->has_nasa_variant)
        fprintf(f, ", NASA variant: %s", guidance_variant_name(g->variant));
    if (g->method == GUIDANCE_VSF) fprintf(f, ", Offset: %g", g->offset);
    if (g->method == GUIDANCE_NAG)
        fprintf(f, ", Phi: %g, Tau: %g, Beta: %g", g->phi, g->tau, g->beta);
    fprintf(f, ", Version: steerfarm %s", STEER_VERSION);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

struct image_meta *job_meta(const Steerfarm__Job *job, const struct job_plan *plan,
                            const char *model_hash, const char *numerics)
{
    struct image_meta *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->width = plan->shape.width;
    m->height = plan->shape.height;
    m->quality = job->output && job->output->has_quality ? (int)job->output->quality : 90;
    m->format = job->output && job->output->has_format ? (enum image_format)job->output->format
                                                       : IMAGE_WEBP_LOSSY;
    m->json = job_json(job, plan, model_hash, numerics);
    m->parameters = job_parameters(job, plan, model_hash);
    if (m->json && m->parameters) return m;
    job_meta_free(m);
    return NULL;
}

void job_meta_free(struct image_meta *m)
{
    if (!m) return;
    free((void *)(uintptr_t)m->json);
    free((void *)(uintptr_t)m->parameters);
    free(m);
}
