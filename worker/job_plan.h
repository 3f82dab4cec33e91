/* job_plan.h - a resolved wire job as the pipeline wants it, and what its image says of itself.
 *
 * Whoever accepts a job (the broker, or `steer-worker render`) has resolved every default by
 * job_resolve (proto/job.h). Here only what the model itself knows is checked once more: bytes that
 * came by the network are hostile. */
#ifndef WORKER_JOB_PLAN_H
#define WORKER_JOB_PLAN_H
#include <jansson.h>

#include "encode.h"
#include "pipeline.h"
#include "steer.pb-c.h"

struct job_plan {
    struct recipe recipe;
    struct render_shape
        shape; /* shape.recipe: the caller points it at the recipe, once it stays put */
    struct render_image image; /* texts borrow from the job */
};

/* Image `index` of job. own: the recipe, where it is a file that this machine's user named; NULL:
 * the job's, which must be a name. One sentence for what this model cannot do. */
int job_plan_make(struct job_plan *ret, const struct model *m, const struct recipe *own,
                  const Steerfarm__Job *job, uint32_t index,
                  struct steer_error *err) STEER_MUSTCHECK;
/* 1 when images of both may share a forward pass. */
int job_plans_share(const struct job_plan *a, const struct job_plan *b);

/* "the positive prompt ... was cut at byte 310", and the negative one, of an image that was
 * rendered by a model that reads so many tokens; empty when neither was cut. */
void job_cut_text(char *to, size_t size, const struct render_image *image, int tokens);

/* A seed as JSON: digits in a text beyond 2^63 - 1, where jansson's integers end, as protobuf's
 * JSON has it. NULL: out of memory. */
json_t *job_seed_json(uint64_t seed);

/* What is written into the image (its own seed, so that it is rendered again as image 0); freed
 * with job_meta_free. NULL: out of memory. */
struct image_meta *job_meta(const Steerfarm__Job *job, const struct job_plan *plan,
                            const char *model_hash, const char *numerics);
void job_meta_free(struct image_meta *m); /* NULL is fine */

#endif
