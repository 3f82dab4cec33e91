/* sched.h - the workers, what they may hold, and the leases under which they hold it.
 *
 * Pure, as queue.h. A lease is named by (epoch, number): after a restart of the broker a worker's
 * HELLO lists what it holds under the old epoch and the lease is adopted as it was. Credit is
 * absolute: images and bytes that a worker can hold in all. */
#ifndef BROKER_SCHED_H
#define BROKER_SCHED_H
#include "limits.h"
#include "queue.h"

#define SCHED_IDENTITY_MAX 255

#define SCHED_BLAMED_MAX 3

enum worker_state { WORKER_READY, WORKER_DRAINING, WORKER_QUARANTINED };

struct lease {
    struct lease *next_token, *next_image; /* hash chains */
    struct lease *next, **at;              /* list of its worker, and what points here */
    uint64_t epoch, number, job, expires_ms, bytes;
    uint32_t index;
    int company;           /* images of its batch */
    int damaged;           /* RESULTs whose bytes were not what they said */
    struct worker *worker; /* NULL: its RESULT is being stored, the token is all that is left */
};

struct worker_model {
    char name[STEER_NAME_BYTES_MAX + 1], hash[STEER_NAME_BYTES_MAX + 1];
    int loaded;
    uint64_t memory_bytes, used; /* when in the order of leases */
};

struct worker {
    struct worker *next;
    uint8_t identity[SCHED_IDENTITY_MAX];
    size_t identity_size;
    char id[STEER_NAME_BYTES_MAX + 1], numerics[STEER_NAME_BYTES_MAX + 1];
    char device_kind[32], device_name[64];
    uint64_t incarnation, heard_ms, pinged_ms, device_memory;
    enum worker_state state;
    uint32_t credit_images, batch_max;
    uint64_t credit_bytes;
    struct worker_model *models;
    size_t models_count;
    struct lease *leases;
    uint32_t leased;
    uint64_t leased_bytes, done, failed;
    uint64_t blamed[SCHED_BLAMED_MAX]; /* jobs that it failed and another rendered */
    uint32_t blamed_count, praised;    /* images rendered since the last of them */
    int stalled; /* a lease ran out: nothing new before its engine shows life */
};

struct sched;

struct sched *sched_new(uint64_t epoch); /* NULL: out of memory */
void sched_free(struct sched *s);

struct worker *sched_worker(const struct sched *s, const uint8_t *identity, size_t size);
struct worker *sched_worker_id(const struct sched *s, const char *id);
struct worker *sched_first(const struct sched *s);
/* A worker of that identity from its HELLO; an earlier one of the identity is reset. NULL: out of
 * memory. */
struct worker *sched_hello(struct sched *s, const uint8_t *identity, size_t size,
                           const Steerfarm__Hello *h, uint64_t now_ms);
/* Its leases must be gone. */
void sched_remove(struct sched *s, struct worker *w);

/* epoch 0: a new lease of this run. NULL: out of memory. */
struct lease *sched_lease(struct sched *s, struct worker *w, uint64_t epoch, uint64_t number,
                          const struct job *j, uint32_t index, uint64_t expires_ms, int company);
/* Remembers the token of a RESULT that is being stored, so that a RENEW which names it is not told
 * to throw the image away. */
int sched_storing(struct sched *s, uint64_t epoch, uint64_t number) STEER_MUSTCHECK;
struct lease *sched_lease_find(const struct sched *s, uint64_t epoch, uint64_t number);
/* The lease under which an image is held, or NULL. */
struct lease *sched_lease_of(const struct sched *s, uint64_t job, uint32_t index);
void sched_release(struct sched *s, struct lease *l);

/* Takes a batch that w may render now: it offers the model, has credit and is ready; while another
 * worker with credit has the model loaded, an unloaded one waits AFFINITY_MS from `free_ms`. */
int sched_take(struct sched *s, struct queue *q, struct worker *w, uint64_t now_ms,
               struct taken *ret, int room);

/* Blames w for failing an image of that job, which another worker has rendered. 1: it was one job
 * too many, and w is quarantined now. */
int sched_blame(struct worker *w, uint64_t job);
/* w has rendered an image: many of them in a row and what it was blamed for is forgotten. */
void sched_praise(struct worker *w);

#endif
