/* deadline.h - jobs by deadline, the next one first: a heap, so that a million deadlines cost
 * nothing until they pass. Pure. */
#ifndef BROKER_DEADLINE_H
#define BROKER_DEADLINE_H
#include <stdint.h>

#include "error.h"
#include "queue.h"

struct deadlines {
    struct job **jobs;
    uint32_t count, room;
};

/* Watches the job; one that has no deadline or is watched is left as it is. */
int deadline_watch(struct deadlines *d, struct job *j) STEER_MUSTCHECK;
void deadline_drop(struct deadlines *d, struct job *j); /* not watching is fine */
/* Takes out a job whose deadline has passed; NULL: there is none. */
struct job *deadline_passed(struct deadlines *d, uint64_t utc_ms);

#endif
