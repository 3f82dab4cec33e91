/* trouble.h - the images of a job that did not go well at first.
 *
 * Most jobs have none; one whose images all fail has as many as images, so they are hashed. Pure.
 */
#ifndef BROKER_TROUBLE_H
#define BROKER_TROUBLE_H
#include <stdint.h>

#include "limits.h"

struct trouble {
    struct trouble *next; /* hash chain */
    uint32_t index, attempts;
    uint64_t not_before_ms;
    int single; /* lost in company: retried alone */
    int code;
    char worker[STEER_NAME_BYTES_MAX + 1]; /* who failed it last */
    char text[256];
};

struct troubles {
    struct trouble **buckets;
    uint32_t size, count;
};

/* The record of an image's trouble, made on first use; NULL: out of memory. */
struct trouble *trouble_get(struct troubles *all, uint32_t index);
struct trouble *trouble_find(const struct troubles *all, uint32_t index); /* or NULL */
void trouble_drop(struct troubles *all, uint32_t index);
void troubles_free(struct troubles *all);

#endif
