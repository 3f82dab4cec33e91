/* job.h - what a job may say, and what it says once every default is filled in.
 *
 * One place for the rules that the client (before sending), the broker (when accepting) and the
 * worker (before rendering) share. docs/guidance.md explains them to people. */
#ifndef PROTO_JOB_H
#define PROTO_JOB_H
#include "error.h"
#include "steer.pb-c.h"

/* What can be checked without knowing the model: texts, numbers, counts, labels. One sentence that
 * names the thing, the value and what was expected. */
int job_check(const Steerfarm__Job *job, struct steer_error *err) STEER_MUSTCHECK;

/* A job that says everything. It borrows all texts from the job and the model it was made of. */
struct job_resolved {
    Steerfarm__Job job; /* its guidance and output point at the two below */
    Steerfarm__Guidance guidance;
    Steerfarm__Output output;
};

/* job_check, then fills what is left out from the model's entry: recipe, guidance, negative prompt,
 * size, steps, one image, lossy WebP of quality 90, AUTO precision, priority 0; the seed is
 * `seed`. What the model cannot do is STEER_UNKNOWN_RECIPE, STEER_BAD_SIZE or STEER_BAD_VALUE.
 * Resolving what is resolved changes nothing. *ret must stay where it is. */
int job_resolve(struct job_resolved *ret, const Steerfarm__Job *job, const Steerfarm__Model *model,
                uint64_t seed, struct steer_error *err) STEER_MUSTCHECK;

/* "none" "nasa" "nag" "vsf" "cfg"; -1 for other names. */
int job_method_of(const char *name);
/* "text" "mass" "joint"; -1 for other names. */
int job_variant_of(const char *name);
/* "cut" "chunk" */
const char *job_long_prompt_name(int long_prompt);
int job_long_prompt_of(const char *name);
/* "plain" "a1111" */
const char *job_prompt_syntax_name(int syntax);
int job_prompt_syntax_of(const char *name);

#endif
