// SPDX-License-Identifier: Apache-2.0
#include "job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const enum guidance_method methods[] = {
    [STEERFARM__METHOD__NONE] = GUIDANCE_NONE,
    [STEERFARM__METHOD__NASA] = GUIDANCE_NASA,
    [STEERFARM__METHOD__NAG] = GUIDANCE_NAG,
    [STEERFARM__METHOD__VSF] = GUIDANCE_VSF,
};

static int number_check(const char *what, double value, double least, double most,
                        struct steer_error *err)
{
    if (value >= least && value <= most) return 0; /* NaN is neither */
    return steer_fail(err, STEER_BAD_VALUE, "%s %g: expected %g to %g", what, value, least, most);
}

static int guidance_read(struct guidance *g, const Steerfarm__Guidance *from,
                         struct steer_error *err)
{
    if (!from) return 0;
    if (from->has_method) {
        if ((unsigned)from->method >= sizeof methods / sizeof *methods)
            return steer_fail(err, STEER_BAD_VALUE,
                              "guidance method %d: expected 0 (none) to 3 (vsf)",
                              (int)from->method);
        g->method = methods[from->method];
    }
    if (from->has_alpha) g->alpha = from->alpha;
    if (from->has_phi) g->phi = from->phi;
    if (from->has_tau) g->tau = from->tau;
    if (from->has_beta) g->beta = from->beta;
    if (from->has_offset) g->offset = from->offset;
    if (from->has_guidance_scale) g->scale = from->guidance_scale;
    int code;
    if ((code = number_check("alpha", g->alpha, -100, 100, err)) ||
        (code = number_check("phi", g->phi, -100, 100, err)) ||
        (code = number_check("tau", g->tau, 0, 1000, err)) ||
        (code = number_check("beta", g->beta, 0, 1, err)) ||
        (code = number_check("offset", g->offset, -1000, 1000, err)))
        return code;
    return number_check("guidance scale", g->scale, 0, 100, err);
}

int job_plan_make(struct job_plan *ret, const struct model *m, const Steerfarm__Job *job,
                  uint32_t index, struct steer_error *err)
{
    struct job_plan p = {0};
    int code = model_recipe(m, job->recipe, &p.recipe, err);
    if (code) return code;
    p.image.guidance = p.recipe.guidance;
    if ((code = guidance_read(&p.image.guidance, job->guidance, err))) return code;
    p.shape = (struct render_shape){
        .width = job->has_width ? (int)job->width : m->width,
        .height = job->has_height ? (int)job->height : m->height,
        .steps = job->has_steps ? (int)job->steps : p.recipe.steps,
        .method = p.image.guidance.method,
        .cfg = p.image.guidance.scale != 1,
    };
    if ((job->has_width && job->width > STEER_SIDE_MAX) ||
        (job->has_height && job->height > STEER_SIDE_MAX))
        return steer_fail(err, STEER_BAD_SIZE, "size %ux%u: expected at most %d pixels a side",
                          job->width, job->height, STEER_SIDE_MAX);
    if ((code = model_size_check(m, p.shape.width, p.shape.height, err))) return code;
    if (p.shape.steps < p.recipe.steps_min || p.shape.steps > p.recipe.steps_max)
        return steer_fail(err, STEER_BAD_VALUE, "%d steps: recipe \"%s\" expects %d to %d",
                          p.shape.steps, p.recipe.name, p.recipe.steps_min, p.recipe.steps_max);
    if (!*job->prompt) return steer_fail(err, STEER_BAD_TEXT, "the prompt is empty");
    if (strlen(job->prompt) > STEER_PROMPT_BYTES_MAX ||
        (job->negative_prompt && strlen(job->negative_prompt) > STEER_PROMPT_BYTES_MAX))
        return steer_fail(err, STEER_BAD_TEXT, "a prompt is longer than %d bytes",
                          STEER_PROMPT_BYTES_MAX);
    p.image.prompt = job->prompt;
    p.image.negative = job->negative_prompt ? job->negative_prompt : "";
    if (*p.image.negative && p.shape.method == GUIDANCE_NONE && !p.shape.cfg)
        return steer_fail(
            err, STEER_BAD_VALUE,
            "a negative prompt does nothing with guidance none: choose nasa, nag, vsf or cfg");
    p.image.seed = (job->has_seed ? job->seed : 0) + index;
    *ret = p;
    return 0;
}

int job_plans_share(const struct job_plan *a, const struct job_plan *b)
{
    return a->shape.width == b->shape.width && a->shape.height == b->shape.height &&
           a->shape.steps == b->shape.steps && a->shape.method == b->shape.method &&
           a->shape.cfg == b->shape.cfg && strcmp(a->recipe.name, b->recipe.name) == 0;
}
