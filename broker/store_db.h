/* store_db.h - inside the store: what its three files know of each other.
 *
 * store_batch.c collects records, store.c owns the thread, the spool and the completions,
 * store_sqlite.c is the database; another database would fill the same functions. Everything here
 * is the store thread's, but for batches, which are the caller's until they are submitted. */
#ifndef BROKER_STORE_DB_H
#define BROKER_STORE_DB_H
#include "spool.h"
#include "store.h"

/* ---- memory that goes in one piece */

struct arena_block;
struct arena {
    struct arena_block *blocks;
};
/* NULL when out of memory; aligned for anything; not cleared. */
void *arena_get(struct arena *a, size_t bytes);
/* A copy with a 0 byte behind it. */
void *arena_copy(struct arena *a, const void *data, size_t bytes);
void arena_free(struct arena *a);

/* ---- records */

enum record_type {
    RECORD_JOB_PUT,
    RECORD_JOB_END,
    RECORD_JOB_REOPEN,
    RECORD_CHUNK_PUT,
    RECORD_FAILURE_PUT,
    RECORD_TOMBSTONE_PUT,
    RECORD_TOMBSTONE_DROP,
    RECORD_MODEL_PUT,
    RECORD_COUNTER_PUT,
    RECORD_IMAGE_SPOOL,
    RECORD_IMAGE_DROP,
    RECORD_IMAGES_DROP,
    RECORD_EXPIRE,
};

struct record {
    struct record *next;
    enum record_type type;
    union {
        struct store_job job; /* JOB_END and JOB_REOPEN use some of it */
        struct store_chunk chunk;
        struct store_failure failure;
        struct store_tombstone tombstone;
        struct {
            const char *name;
            const void *data;
            size_t bytes;
            uint64_t value;
        } named; /* MODEL_PUT, COUNTER_PUT */
        struct {
            struct store_image record;
            struct store_payload payload;
            uint64_t file;
            bool written;
        } image; /* IMAGE_DROP and IMAGES_DROP use record only */
        struct {
            uint64_t before_ms;
            uint32_t limit;
        } expire;
    } u;
};

/* What waits to be done and then to be read; the head of a batch and of a question, so that a
 * submission cannot fail for want of memory. */
struct op {
    struct op *next;
    struct store_completion c;
};

struct store_batch {
    struct op op;
    struct arena arena;
    struct record *first, **last;
    size_t records;
    uint64_t payload_bytes;
    bool grows; /* has new work: answered DISK_FULL when there is no room */
    /* out */
    int code;
    bool outcome_unknown; /* its commit may have happened */
    uint64_t expired;
    struct store_known *known;
    size_t known_count, known_room;
};

/* Gives the payload back to whoever owns it; does nothing the second time. */
void payload_release(struct store_payload *p);

/* ---- the database */

struct db;

/* Files whose records are gone, to be removed once that is durable. */
struct db_drops {
    struct spool_file *files;
    size_t count, room;
};

/* Opens dir/steer.db, checks that it is ours, begins a new epoch. Fills epoch, sequence, job_last.
 * STEER_DISK_FULL: make room and call again. */
int db_open(struct db **ret_db, const struct store_options *opt, struct store_opened *ret_opened,
            struct steer_error *err) STEER_MUSTCHECK;
void db_close(struct db *db); /* NULL is fine */
/* After a failure: the file is left as it is, not even a checkpoint at close. */
void db_abandon(struct db *db);
/* Compares the spool with its records, CRCs too if the machine has been started anew since the
 * store was last opened, and drops the records without a good file. Fills images_lost,
 * files_removed. STEER_DISK_FULL: make room and call again. */
int db_check_spool(struct db *db, struct spool *spool, uint64_t verify_bytes_max,
                   struct store_opened *ret_opened, struct steer_error *err) STEER_MUSTCHECK;
/* Then, once: calls load, counts what is in the spool. Fills jobs_open. */
int db_load(struct db *db, const struct store_load *load, struct spool *spool,
            struct store_opened *ret_opened, struct steer_error *err) STEER_MUSTCHECK;
/* A number for a spool file, greater than all before. */
uint64_t db_file_number(struct db *db);

/* A transaction. STEER_DISK_FULL or STEER_INTERNAL (the batch makes no sense to the database, e.g.
 * a job id put twice): roll back and go on. STEER_NO_MEMORY: the same. STEER_STORE: nothing may be
 * done any more but db_abandon and db_close. */
int db_begin(struct db *db, struct steer_error *err) STEER_MUSTCHECK;
int db_apply(struct db *db, struct store_batch *b, struct db_drops *drops,
             struct steer_error *err) STEER_MUSTCHECK;
int db_commit(struct db *db, uint64_t *ret_sequence, struct steer_error *err) STEER_MUSTCHECK;
void db_rollback(struct db *db);
/* Moves the log into the database where it has grown enough. DISK_FULL or STORE as above. */
int db_checkpoint(struct db *db, bool *ret_done, struct steer_error *err) STEER_MUSTCHECK;

/* Answers into c->found, in memory of *a. */
int db_query(struct db *db, const struct store_query *q, struct arena *a,
             struct store_completion *c, struct steer_error *err) STEER_MUSTCHECK;
/* Answers into c->image and *ret_file. STEER_NOT_FOUND: no such record. */
int db_image(struct db *db, uint64_t job, uint32_t index, struct arena *a,
             struct store_completion *c, struct spool_file *ret_file,
             struct steer_error *err) STEER_MUSTCHECK;

#endif
