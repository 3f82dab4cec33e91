/* store.h - the broker's durable job store: what was accepted survives a crash.
 *
 * The queue owns the jobs; the store keeps their records, and the spool the images nobody has
 * acknowledged yet. One broker thread uses a store; inside, one store thread does all SQLite and
 * all file work, so that no call below waits for a disk, save store_open and store_close.
 *
 * Changes travel in batches. A batch handed to store_submit is the store's until its completion
 * is read: wait for store_fd to be readable, then call store_next until it returns 0. A batch is
 * all or nothing. Everything submitted while one commit runs forms the next, which is one
 * transaction and one fsync. Completions come in the order of submission, kind by kind; a query or
 * read sees every batch submitted before it.
 *
 * A completion's code is 0, or
 *   STEER_DISK_FULL  nothing of this batch was kept. Batches that add nothing (acks, cancels, ends)
 *                    still go through, in space kept for them, so put what must not fail with new
 *                    work into a batch of its own. New work (job_put, image_spool, and what
 *                    store_batch_grows marks) is answered so until there is room again.
 *   STEER_BUSY       out of descriptors or memory for an image; nothing of this batch was kept.
 *   STEER_STORE      an fsync failed, or another broker took the directory over: the outcome is
 *                    unknown, the store does nothing more, the broker says so and exits; the next
 *                    store_open finds out. store_trouble has the sentence.
 *
 * Ended jobs live only in the store: they are not loaded at start, and are asked for by
 * store_query. */
#ifndef BROKER_STORE_H
#define BROKER_STORE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define STORE_HASH_BYTES 32

struct store;
struct store_batch;

struct store_options {
    const char *dir;          /* created if missing; locked while open */
    uint32_t shard;           /* must be the one the directory was made with */
    uint64_t spool_bytes_max; /* quota of images waiting to be fetched; 0: the disk's size */
    uint64_t free_bytes_min;  /* new work and spooling stop when the disk has less than this left */
    uint64_t reserve_bytes;   /* a file given up when the disk is full, for acks and cancels */
    uint64_t wal_bytes_max;   /* a checkpoint after the commit that passes it */
    uint64_t verify_bytes_max; /* after a reboot, check the CRC of this much spool at start; what is
                                  left over is checked when it is read, as always */
    const char *vfs;           /* a SQLite VFS by name; NULL: the default */
};
/* dir NULL, shard 0, no quota, 64 MiB free, 16 MiB reserve, 32 MiB WAL, 1 GiB verified. */
void store_options_default(struct store_options *ret_opt);

/* A job's state as the store knows it: what is open is the queue's business. */
enum store_state {
    STORE_OPEN,
    STORE_DONE,
    STORE_FAILED,
    STORE_CANCELLED,
    STORE_EXPIRED,
};

struct store_label {
    const char *key, *value;
};

struct store_job {
    uint64_t id; /* 1..2^63-1, never used twice */
    const char *tenant, *key;
    uint8_t hash[STORE_HASH_BYTES]; /* the idempotency hash */
    const void *spec;               /* the resolved Job, packed */
    size_t spec_bytes;
    uint64_t accepted_ms; /* UTC */
    enum store_state state;
    uint64_t ended_ms;   /* UTC; 0 while open */
    const void *summary; /* as given to store_batch_job_end, e.g. packed Counts; else NULL */
    size_t summary_bytes;
    const struct store_label *labels; /* for job_put; empty in what the store returns */
    size_t label_count;
};

/* A part of a job's interval sets. What a number stands for and what the bytes say is the queue's
 * own affair; the store keeps the latest bytes of each (job, number). A job with none has all its
 * images queued, but for those reported as images or failures. */
struct store_chunk {
    uint64_t job;
    uint32_t number;
    const void *data;
    size_t bytes;
};

/* An image that has been tried in vain; also kept for ended jobs, where people ask for reasons. */
struct store_failure {
    uint64_t job;
    uint32_t index;
    uint32_t attempts; /* 0 together with code 0 removes the record */
    int code;          /* of the last cause; 0: it did not count */
    const char *text;
};

/* An image in the spool. */
struct store_image {
    uint64_t job;
    uint32_t index;
    uint64_t bytes;
    uint32_t crc32;     /* IEEE, as in RESULT */
    const void *header; /* the RESULT without its payload, packed */
    size_t header_bytes;
};

struct store_tombstone {
    const char *tenant, *key;
    uint64_t made_ms; /* UTC */
};

/* What store_open found, one call a record, in this order: models, counters, tombstones, then job
 * by job in the order of their ids: the job, its chunks, its failures, its images. Pointers are
 * good during the call. A call that returns other than 0 ends store_open with that code. A NULL
 * function is left out. */
struct store_load {
    void *context;
    int (*model)(void *context, const char *name, const void *data, size_t bytes);
    int (*counter)(void *context, const char *name, uint64_t value);
    int (*tombstone)(void *context, const struct store_tombstone *t);
    int (*job)(void *context, const struct store_job *j); /* open ones only */
    int (*chunk)(void *context, const struct store_chunk *c);
    int (*failure)(void *context, const struct store_failure *f);
    /* usable: its spool file is there and has the right length (and CRC, where it was checked).
     * If not, the record is already gone and the image must be queued again. */
    int (*image)(void *context, const struct store_image *i, bool usable);
};

struct store_opened {
    uint64_t epoch;     /* this run's, greater than all before; durable before store_open returns */
    uint64_t sequence;  /* of the last commit of the run before */
    uint64_t job_last;  /* the greatest job id ever put, ended and expired jobs included; 0: none */
    uint64_t jobs_open; /* loaded */
    uint64_t images_lost;   /* reported as not usable */
    uint64_t files_removed; /* spool files that nobody knew */
};

/* Creates and locks the directory, checks that it is ours, loads. On failure *ret_store is
 * untouched and *err is one sentence: who holds the lock, which schema version was found, what in
 * the directory is not ours, what cannot be written. */
int store_open(struct store **ret_store, const struct store_options *opt,
               const struct store_load *load, struct store_opened *ret_opened,
               struct steer_error *err) STEER_MUSTCHECK;
/* Finishes what was submitted, then closes. Completions not read are lost. NULL is fine. */
void store_close(struct store *s);

/* ---- batches. Everything given is copied, payloads aside. These fail only with STEER_NO_MEMORY
 * or, for a value out of its range, STEER_BAD_VALUE; the batch is then as it was before the call.
 */

struct store_batch *store_batch_new(void); /* NULL: out of memory */
void store_batch_free(struct store_batch *b);
size_t store_batch_records(const struct store_batch *b);
/* Counts as new work whatever is in it: answered DISK_FULL, so that it cannot eat the space kept
 * for acks, cancels and ends. */
void store_batch_grows(struct store_batch *b);

/* A new open job. If the store knows its (tenant, key), the record is left out, the rest of the
 * batch goes on, and the completion tells which job has the key (see store_known). */
int store_batch_job_put(struct store_batch *b, const struct store_job *j) STEER_MUSTCHECK;
/* The job has ended. Its chunks and failures stay until it is expired. */
int store_batch_job_end(struct store_batch *b, uint64_t job, enum store_state state,
                        uint64_t ended_ms, const void *summary,
                        size_t summary_bytes) STEER_MUSTCHECK;
/* An ended job is open again (retry --failed). */
int store_batch_job_reopen(struct store_batch *b, uint64_t job) STEER_MUSTCHECK;
int store_batch_chunk_put(struct store_batch *b, const struct store_chunk *c) STEER_MUSTCHECK;
int store_batch_failure_put(struct store_batch *b, const struct store_failure *f) STEER_MUSTCHECK;
int store_batch_tombstone_put(struct store_batch *b,
                              const struct store_tombstone *t) STEER_MUSTCHECK;
int store_batch_tombstone_drop(struct store_batch *b, const char *tenant,
                               const char *key) STEER_MUSTCHECK;
int store_batch_model_put(struct store_batch *b, const char *name, const void *data,
                          size_t bytes) STEER_MUSTCHECK;
int store_batch_counter_put(struct store_batch *b, const char *name,
                            uint64_t value) STEER_MUSTCHECK;
/* Image bytes that belong to someone else, e.g. a zmq_msg_t. release is called once, by any
 * thread, when they are no longer needed (the call failing included); NULL is fine. */
struct store_payload {
    const void *data;
    size_t bytes; /* must be the image's */
    void (*release)(void *owner);
    void *owner;
};
/* Writes the payload into the spool, then the record. The file is not fsynced: if a power cut takes
 * it, the next start finds so and the image is rendered again. */
int store_batch_image_spool(struct store_batch *b, const struct store_image *i,
                            const struct store_payload *payload) STEER_MUSTCHECK;
/* The record goes first, and when that is durable, the file: acked, or the job was cancelled, or
 * it expired. An image that is not there is fine. */
int store_batch_image_drop(struct store_batch *b, uint64_t job, uint32_t index) STEER_MUSTCHECK;
/* The same for all images of the job. */
int store_batch_images_drop(struct store_batch *b, uint64_t job) STEER_MUSTCHECK;
/* Forgets jobs that ended, and tombstones made, before this time; at most `limit` of each, and the
 * completion's `expired` says how many, so that the broker's other work is not held up. */
int store_batch_expire(struct store_batch *b, uint64_t before_ms, uint32_t limit) STEER_MUSTCHECK;

/* Takes *b and nulls it; never fails: what goes wrong is in the completion. cookie comes back. */
void store_submit(struct store *s, struct store_batch **b, void *cookie);

/* ---- questions */

struct store_query {
    uint64_t job;             /* this job; 0: not by id */
    const char *tenant;       /* with key: the job of this key; alone: jobs of this tenant */
    const char *key;          /* NULL: not by key */
    uint32_t states;          /* bits 1 << enum store_state; 0: all */
    struct store_label label; /* key NULL: any */
    uint64_t before;          /* only ids below it, for the next page; 0: from the newest */
    uint32_t limit;           /* at most this many, newest first; 0 is 1 */
    bool details;             /* also chunks and failures */
};

struct store_found {
    struct store_job job;
    struct store_chunk *chunks; /* with details */
    size_t chunk_count;
    struct store_failure *failures; /* with details */
    size_t failure_count;
};

/* Answered by a completion with `found`. Copies q. STEER_NO_MEMORY if even that fails. */
int store_query(struct store *s, const struct store_query *q, void *cookie) STEER_MUSTCHECK;
/* The image's bytes and header from the spool, checked against length and CRC; answered by a
 * completion with `image` and `payload`. Code STEER_NOT_FOUND: no such record. Code STEER_IO: the
 * file is missing or not what was written; drop the image and queue it again. Other codes say
 * nothing about the image: ask again later. */
int store_read(struct store *s, uint64_t job, uint32_t index, void *cookie) STEER_MUSTCHECK;

/* ---- completions */

enum store_kind {
    STORE_BATCH,
    STORE_QUERY,
    STORE_READ,
};

/* A job_put that was left out because its key is known. */
struct store_known {
    uint64_t put; /* the id that was to be put */
    uint64_t job; /* the job that has the key */
    uint8_t hash[STORE_HASH_BYTES];
    enum store_state state;
};

struct store_completion {
    void *cookie;
    enum store_kind kind;
    int code;
    uint64_t sequence;               /* batch: of the commit */
    uint64_t expired;                /* batch: jobs and tombstones forgotten */
    const struct store_known *known; /* batch */
    size_t known_count;
    const struct store_found *found; /* query, newest first */
    size_t found_count;
    bool more;                /* query: the limit cut the list */
    struct store_image image; /* read */
    uint8_t *payload;         /* read: malloc'ed; take it by setting it to NULL */
    void *owned;              /* what the pointers above point into */
};

/* Readable while there are completions. */
int store_fd(const struct store *s);
/* 1 and a completion, or 0. */
int store_next(struct store *s, struct store_completion *ret_completion);
void store_completion_clear(struct store_completion *c);
/* The sentence of the last DISK_FULL or STORE. Good until the next store_next. */
const char *store_trouble(struct store *s);

/* ---- room. Numbers of the broker's thread, exact at once: a spooled image counts from the
 * call of store_submit on, a dropped one until its file is gone. */

struct store_space {
    uint64_t spool_used;     /* bytes of images spooled or on their way */
    uint64_t spool_images;   /* how many */
    uint64_t spool_reserved; /* promised to assigned work */
    uint64_t spool_max;      /* the quota; UINT64_MAX: none */
    uint64_t disk_free;      /* as of the last second */
    bool full;               /* new work would be answered DISK_FULL */
};
void store_space(struct store *s, struct store_space *ret_space);
/* Sets room aside for an image that is to be rendered: 0, or STEER_DISK_FULL, and then nothing may
 * be assigned. Give the same number back when the result is submitted, or will not come. */
int store_reserve(struct store *s, uint64_t bytes) STEER_MUSTCHECK;
void store_release(struct store *s, uint64_t bytes);

/* Figures for the admin's questions. */
struct store_figures {
    uint64_t commits, batches, records, checkpoints;
    uint64_t commit_us_max, commit_us_sum; /* fsync included */
};
void store_figures(struct store *s, struct store_figures *ret_figures);
#endif
