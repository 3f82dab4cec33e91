/* session.h - a model opened on this machine for a command without a broker (render, bench, tune),
 * and a job resolved against it as a broker would. */
#ifndef WORKER_SESSION_H
#define WORKER_SESSION_H
#include "../proto/job.h"
#include "commands.h"
#include "job_args.h"
#include "job_plan.h"

struct session {
    struct compute_host host;
    struct compute *compute;
    struct model *model;
    struct pipeline *pipeline;
    Steerfarm__Model *offer;
    struct recipe own; /* the one that the job is sampled by */
    const char *file;  /* --recipe by path; NULL: by name, or the folder's own */
    struct job_resolved resolved;
};

/* Opens the folder `dir` and resolves the job of j, whose model becomes the folder's. Must be
 * closed after a failure too. s must stay where it is. */
int session_open(struct session *s, const char *dir, const struct machine_args *m,
                 struct job_args *j, uint64_t seed, struct steer_error *err) STEER_MUSTCHECK;
/* Image `index` of the job; ret must stay where it is. */
int session_plan(struct session *s, uint32_t index, struct job_plan *ret,
                 struct steer_error *err) STEER_MUSTCHECK;
void session_close(struct session *s); /* of a zeroed or half-opened one too */

#endif
