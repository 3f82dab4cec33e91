/* job.h - a resolved wire job as the pipeline wants it.
 *
 * The broker resolves every default before a job reaches a worker; job_resolve does the same from
 * an open model for `steer-worker render`, which has no broker. */
#ifndef WORKER_JOB_H
#define WORKER_JOB_H
#include "encode.h"
#include "pipeline.h"
#include "steer.pb-c.h"

struct job_plan {
    struct recipe recipe;
    struct render_shape
        shape; /* shape.recipe: the caller points it at the recipe, once it stays put */
    struct render_image image; /* texts borrow from the job */
};

/* Image `index` of job. One sentence for what this model cannot do. */
int job_plan_make(struct job_plan *ret, const struct model *m, const Steerfarm__Job *job,
                  uint32_t index, struct steer_error *err) STEER_MUSTCHECK;
/* 1 when images of both may share a forward pass. */
int job_plans_share(const struct job_plan *a, const struct job_plan *b);

/* What is written into the image; one block, freed with free. NULL: out of memory. */
struct image_meta_owned {
    struct image_meta meta;
    char texts[]; /* what meta points at */
};
struct image_meta_owned *job_meta(const Steerfarm__Job *job, uint32_t index,
                                  const struct job_plan *plan, const char *model_hash,
                                  const char *numerics);

#endif
