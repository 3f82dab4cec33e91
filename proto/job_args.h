/* job_args.h - the flags that say what to render, the same for every program. */
#ifndef PROTO_JOB_ARGS_H
#define PROTO_JOB_ARGS_H
#include "args.h"
#include "limits.h"
#include "steer.pb-c.h"

/* Zeroed, then job_args_init. The job borrows from argv and the environment. */
struct job_args {
    Steerfarm__Job job; /* model and prompt are NULL until given */
    Steerfarm__Guidance guidance;
    Steerfarm__Output output;
    Steerfarm__Label labels[STEER_LABELS_MAX], *label_list[STEER_LABELS_MAX];
    char label_keys[STEER_LABELS_MAX][STEER_NAME_BYTES_MAX + 1];
};
void job_args_init(struct job_args *a);
/* STEER_BAD_TEXT where text is not UTF-8. */
int job_args_text(const char *text, struct steer_error *err) STEER_MUSTCHECK;

/* Groups for args_parse, target struct job_args. */
extern const struct args_option
    job_args_image[]; /* --prompt --negative --size --steps --seed ... */
extern const struct args_option job_args_guidance[]; /* --guidance --alpha --offset --phi ... */
extern const struct args_option job_args_farm[]; /* --priority --deadline --label --traceparent */

#endif
