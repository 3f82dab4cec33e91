/* store_sqlite.h - what the SQLite store's two files share: the connection and its statements.
 *
 * store_sqlite.c opens, commits and closes; store_records.c turns records into rows and back. */
#ifndef BROKER_STORE_SQLITE_H
#define BROKER_STORE_SQLITE_H
#include <sqlite3.h>

#include "store_db.h"

#define DB_BOOT_BYTES 64

/* Prepared once. An upsert keeps the row's place; text and blobs are bound without a copy. */
#define DB_STATEMENT_LIST(X)                                                                       \
    X(BEGIN, "BEGIN IMMEDIATE")                                                                    \
    X(COMMIT, "COMMIT")                                                                            \
    X(META_NEW, "INSERT INTO meta VALUES (1, ?1, 0, 0, 0, ?2, ?3, '')")                            \
    X(META_GET, "SELECT shard, epoch, sequence, job_last, salt0, salt1, boot FROM meta")           \
    X(META_EPOCH, "UPDATE meta SET epoch = ?1")                                                    \
    X(META_BOOT, "UPDATE meta SET boot = ?1")                                                      \
    X(META_MOVE,                                                                                   \
      "UPDATE meta SET sequence = ?1, job_last = ?2 WHERE epoch = ?3 AND sequence = ?4")           \
    X(KEY_FIND, "SELECT id, tenant, key, hash, state FROM job WHERE keyhash = ?1")                 \
    X(JOB_PUT, "INSERT INTO job (id, keyhash, state, accepted_ms, tenant, key, hash, spec)"        \
               " VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6, ?7)")                                          \
    X(LABEL_PUT, "INSERT OR IGNORE INTO label VALUES (?1, ?2, ?3)")                                \
    X(JOB_END, "UPDATE job SET state = ?2, ended_ms = ?3, summary = ?4 WHERE id = ?1")             \
    X(JOB_REOPEN, "UPDATE job SET state = 0, ended_ms = NULL, summary = NULL WHERE id = ?1")       \
    X(CHUNK_PUT, "INSERT INTO chunk VALUES (?1, ?2, ?3)"                                           \
                 " ON CONFLICT DO UPDATE SET data = excluded.data")                                \
    X(FAILURE_PUT, "INSERT INTO failure VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET"     \
                   " attempts = excluded.attempts, code = excluded.code, text = excluded.text")    \
    X(FAILURE_DROP, "DELETE FROM failure WHERE job = ?1 AND idx = ?2")                             \
    X(TOMBSTONE_PUT, "INSERT INTO tombstone VALUES (?1, ?2, ?3)"                                   \
                     " ON CONFLICT DO UPDATE SET made_ms = excluded.made_ms")                      \
    X(TOMBSTONE_DROP, "DELETE FROM tombstone WHERE tenant = ?1 AND key = ?2")                      \
    X(MODEL_PUT, "INSERT INTO model VALUES (?1, ?2)"                                               \
                 " ON CONFLICT DO UPDATE SET data = excluded.data")                                \
    X(COUNTER_PUT, "INSERT INTO counter VALUES (?1, ?2)"                                           \
                   " ON CONFLICT DO UPDATE SET value = excluded.value")                            \
    X(IMAGE_PUT, "INSERT INTO image VALUES (?1, ?2, ?3, ?4, ?5, ?6)")                              \
    X(IMAGE_DROP, "DELETE FROM image WHERE job = ?1 AND idx = ?2 RETURNING idx, file, bytes")      \
    X(IMAGES_DROP, "DELETE FROM image WHERE job = ?1 RETURNING idx, file, bytes")                  \
    X(EXPIRED, "SELECT id FROM job WHERE ended_ms < ?1 ORDER BY ended_ms LIMIT ?2")                \
    X(JOB_FORGET, "DELETE FROM job WHERE id = ?1")                                                 \
    X(CHUNK_FORGET, "DELETE FROM chunk WHERE job = ?1")                                            \
    X(FAILURE_FORGET, "DELETE FROM failure WHERE job = ?1")                                        \
    X(LABEL_FORGET, "DELETE FROM label WHERE job = ?1")                                            \
    X(TOMBSTONE_FORGET, "DELETE FROM tombstone WHERE (tenant, key) IN"                             \
                        " (SELECT tenant, key FROM tombstone WHERE made_ms < ?1 LIMIT ?2)")        \
    X(LOAD_MODELS, "SELECT name, data FROM model ORDER BY name")                                   \
    X(LOAD_COUNTERS, "SELECT name, value FROM counter ORDER BY name")                              \
    X(LOAD_TOMBSTONES, "SELECT tenant, key, made_ms FROM tombstone ORDER BY tenant, key")          \
    X(LOAD_IMAGES, "SELECT job, idx, file, bytes, crc32, EXISTS (SELECT 1 FROM job"                \
                   " WHERE id = image.job AND state = 0) FROM image ORDER BY job, idx")            \
    X(LOAD_JOBS, "SELECT id, state, accepted_ms, ended_ms, tenant, key, hash, summary, spec"       \
                 " FROM job INDEXED BY job_state WHERE state = 0 ORDER BY id")                     \
    X(LOAD_CHUNKS, "SELECT job, number, data FROM chunk WHERE job >= ?1 ORDER BY job, number")     \
    X(LOAD_FAILURES, "SELECT job, idx, attempts, code, text FROM failure WHERE job >= ?1"          \
                     " ORDER BY job, idx")                                                         \
    X(JOB_GET, "SELECT id, state, accepted_ms, ended_ms, tenant, key, hash, summary, spec"         \
               " FROM job WHERE id = ?1")                                                          \
    X(IMAGE_GET, "SELECT file, bytes, crc32, header FROM image WHERE job = ?1 AND idx = ?2")

enum db_statement {
#define X(name, text) DB_##name,
    DB_STATEMENT_LIST(X)
#undef X
        DB_STATEMENTS
};

struct db {
    sqlite3 *sql;
    sqlite3_stmt *statements[DB_STATEMENTS];
    char path[4096];
    char boot[DB_BOOT_BYTES]; /* of the run before */
    uint64_t epoch, sequence, job_last, salt[2];
    uint64_t files_made;
    uint64_t page_bytes, wal_bytes_max;
    int wal_frames;
    struct spool_file *files; /* between db_check_spool and db_load */
    size_t file_count;
};

/* The code of the connection's last error, with a sentence about it. */
int db_fail(struct db *db, const char *what, struct steer_error *err);
/* 1: a row, 0: done, else a code; reset unless it is a row. */
int db_step(struct db *db, enum db_statement which, struct steer_error *err);
int64_t db_key_hash(const struct db *db, const char *tenant, const char *key);
/* 1: *ret is the job of this key, 0: there is none. */
int db_find_key(struct db *db, const char *tenant, const char *key, struct store_known *ret,
                struct steer_error *err) STEER_MUSTCHECK;

#endif
