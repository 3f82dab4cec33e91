// SPDX-License-Identifier: Apache-2.0
#include "session.h"

#include <string.h>

#include "numerics.h"
#include "offer.h"

int session_open(struct session *s, const char *dir, const struct machine_args *m,
                 struct job_args *j, uint64_t seed, struct steer_error *err)
{
    static char name[] = "model"; /* until the folder has told its own */
    if (j->job.recipe && recipe_is_file(j->job.recipe)) {
        s->file = j->job.recipe;
        j->job.recipe = NULL; /* a path may be longer than a name */
    }
    j->job.model = name;
    int code = job_check(&j->job, err);
    if (code) return code;
    s->host.bytes_max = m->memory_bytes ? m->memory_bytes : compute_memory_allowed();
    struct compute_options o = {.backend = m->backend,
                                .precision = precision_of(m, j->job.precision),
                                .weights = m->weights,
                                .threads = m->threads,
                                .tuning = m->tuning,
                                .host = &s->host,
                                .salt = numerics_salt(s->file)};
    struct pipeline_limits limits = pipeline_limits_default();
    limits.text_leaves = m->text_leaves;
    if ((code = compute_open(&s->compute, &o, err)) ||
        (code = model_open(&s->model, dir, s->compute, err)))
        return code;
    /* By path, by name, or the folder's own; read here, where its sentence can be told. */
    if ((code = model_recipe(s->model, s->file ? s->file : j->job.recipe, &s->own, err)))
        return code;
    if (!(s->offer = offer_make_one(s->model, &s->own)) ||
        pipeline_new(&s->pipeline, s->model, s->compute, limits))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    j->job.model = s->model->name;
    j->job.recipe = s->own.name;
    return job_resolve(&s->resolved, &j->job, s->offer, seed, err);
}

int session_plan(struct session *s, uint32_t index, struct job_plan *ret, struct steer_error *err)
{
    int code = job_plan_make(ret, s->model, &s->own, &s->resolved.job, index, err);
    if (!code) ret->shape.recipe = &ret->recipe;
    return code;
}

void session_close(struct session *s)
{
    pipeline_free(s->pipeline);
    offer_free(s->offer);
    model_close(s->model);
    compute_close(s->compute);
}
