/* queue.h - the jobs that have not ended, in turn order, and what became of their images.
 *
 * Pure: no socket, disk or clock; time comes in as now_ms (monotonic). Jobs of one priority and
 * model form a lane; lanes of one priority take turns, and in a lane jobs take turns by image, so
 * that a million-image job starves nobody. Attempts are kept only for images that failed or were
 * lost. */
#ifndef BROKER_QUEUE_H
#define BROKER_QUEUE_H
#include <stdint.h>

#include "states.h"
#include "steer.pb-c.h"
#include "trouble.h"

#define QUEUE_HASH_BYTES 32
#define QUEUE_ID_BYTES   24 /* "0-" and base 32, with the NUL */

/* Jobs of one priority, model and numerics class, in the order of their turns. */
struct lane {
    struct lane *next;
    int32_t priority;
    struct job *head;       /* whose turn it is */
    uint64_t cold_since_ms; /* since when a worker without the model waits for one that has it */
    char model[STEER_NAME_BYTES_MAX + 1], model_hash[STEER_NAME_BYTES_MAX + 1],
        numerics[STEER_NAME_BYTES_MAX + 1];
};

struct job {
    struct job *next_id, *next_key; /* hash chains */
    struct job *before, *after;     /* ring of its lane */
    struct lane *lane;
    uint64_t id;
    uint8_t hash[QUEUE_HASH_BYTES];
    uint64_t accepted_ms; /* UTC */
    uint64_t deadline_ms; /* UTC; 0: none */
    uint64_t batch;       /* images of equal batch may share a forward pass */
    uint64_t image_bytes; /* spool room to reserve for an image */
    struct states states;
    uint32_t cursor;      /* no queued image before it */
    uint32_t deadline_at; /* place in the heap of deadlines; 0: none */
    struct troubles troubles;
    uint32_t reasons;          /* of them, of images that have failed for good */
    int committed;             /* the store has it; before that nothing is assigned */
    int ending;                /* its end is on its way to the store */
    struct audience *audience; /* who watches and fetches; route's */
    int32_t priority;
    uint32_t spec_bytes;
    uint64_t touched_ms;     /* UTC: when an image was last made or asked for */
    uint64_t touched_put_ms; /* what the store knows of that */
    const char *key, *model, *model_hash, *numerics; /* into texts */
    uint8_t *spec; /* the resolved Job, packed; behind the texts */
    char texts[];
};

struct queue;

/* The salt keeps clients from choosing keys that all fall together. NULL: out of memory. */
struct queue *queue_new(uint64_t salt);
void queue_free(struct queue *q);

/* Adds a job of that resolved spec, all images queued. NULL: out of memory or not a Job. */
struct job *queue_add(struct queue *q, uint64_t id, const char *key,
                      const uint8_t hash[QUEUE_HASH_BYTES], const uint8_t *spec, size_t spec_bytes,
                      uint64_t accepted_ms);
void queue_remove(struct queue *q, struct job *j);
struct job *queue_find(const struct queue *q, uint64_t id);
struct job *queue_find_key(const struct queue *q, const char *key);
uint32_t queue_jobs(const struct queue *q);
uint64_t queue_bytes(const struct queue *q); /* what the jobs take, about */
/* Lanes are searched one after the other: there is a limit to them, and this job would pass it. */
int queue_lanes_full(const struct queue *q, const Steerfarm__Job *job);
/* Images of all jobs by state; kept, not counted. */
const uint64_t *queue_images(const struct queue *q);
/* Takes over a chunk of the job's states, as states_unpack. */
int queue_chunk_load(struct queue *q, struct job *j, uint32_t chunk, const uint8_t *data,
                     size_t bytes) STEER_MUSTCHECK;
/* Calls each for all jobs; each may remove the job it is given. */
void queue_each(struct queue *q, void (*each)(void *data, struct job *j), void *data);

/* What a worker can take. */
struct taker {
    int (*takes)(void *data, struct lane *l);
    /* 1 when another worker could take an image of that model now. An image that `worker` failed is
     * left to it for a while. NULL: there is none. */
    int (*others)(void *data, const char *model, const char *hash, const char *numerics);
    void *data;
    const char *worker;
    uint32_t images_max;
    uint64_t bytes_max;
    int empty; /* holds nothing: it may take one image of any size */
};
struct taken {
    struct job *job;
    uint32_t index;
    int single;
};
/* Takes up to images_max (at most room) queued images that may share a pass, marks them leased and
 * returns how many. */
int queue_take(struct queue *q, const struct taker *t, uint64_t now_ms, struct taken *ret,
               int room);
/* Puts a leased image back, or to its end; a queued one is found again by queue_take. */
void queue_move(struct queue *q, struct job *j, uint32_t index, enum image_state to);

/* All images have ended. */
int job_over(const struct job *j);
/* A fresh message of the job's spec, freed by steerfarm__job__free_unpacked. */
Steerfarm__Job *job_spec(const struct job *j);

/* Spool room to reserve for an image of that resolved job. */
uint64_t queue_image_bytes(const Steerfarm__Job *job);

void job_id_write(char to[QUEUE_ID_BYTES], uint64_t id);
uint64_t job_id_read(const char *text); /* 0: none */
/* Over everything but deadline and traceparent. */
void job_hash(uint8_t ret[QUEUE_HASH_BYTES], const Steerfarm__Job *job);

#endif
