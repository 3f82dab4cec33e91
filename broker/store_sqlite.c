// SPDX-License-Identifier: Apache-2.0
/* The store's database in SQLite: one file, one connection, a write-ahead log.
 *
 * Invariants:
 *  1. One connection, ever: SQLite before 3.51.3 can corrupt a log that two connections reset. The
 *     lock on the directory keeps other brokers out, EXCLUSIVE locking everyone else; it also keeps
 *     the log's index in memory instead of in a third file.
 *  2. synchronous=FULL: COMMIT returns after the log has been synced, so what is answered is
 * durable.
 *  3. Every transaction ends by moving (epoch, sequence) on from what this run wrote last. If that
 *     row is not as we left it, somebody else writes here, and nothing may be committed.
 *  4. After a failed sync the kernel may have dropped the pages while a later sync succeeds, so
 *     nothing is tried again and the connection writes nothing more, a checkpoint at close
 * included.
 *  5. At open the log is moved into the database and synced there before anything is answered from
 *     it: what was read from a log of unknown durability becomes durable by new writes.
 *
 * To change the schema: add a step to schema_steps and the statements that use it; the version is
 * the number of steps. Steps that have been released are never edited. States and record numbers
 * stored are those of enum store_state; error codes are stored by name, as their numbers move. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "limits.h"
#include "store_sqlite.h"

#define APPLICATION_ID 0x53464d51 /* "SFMQ" */

static const char *const schema_steps[] = {
    "CREATE TABLE meta ("
    " one INTEGER PRIMARY KEY CHECK (one = 1),"
    " shard INTEGER NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,"
    " job_last INTEGER NOT NULL, salt0 INTEGER NOT NULL, salt1 INTEGER NOT NULL,"
    " boot TEXT NOT NULL);"
    /* The key is found by its hash: eight bytes an entry instead of two texts. */
    "CREATE TABLE job ("
    " id INTEGER PRIMARY KEY, keyhash INTEGER NOT NULL, state INTEGER NOT NULL,"
    " accepted_ms INTEGER NOT NULL, ended_ms INTEGER, tenant TEXT NOT NULL, key TEXT NOT NULL,"
    " hash BLOB NOT NULL, summary BLOB, spec BLOB NOT NULL);"
    "CREATE INDEX job_key ON job (keyhash);"
    "CREATE INDEX job_state ON job (state);"
    "CREATE INDEX job_ended ON job (ended_ms) WHERE ended_ms IS NOT NULL;"
    "CREATE TABLE label ("
    " key TEXT NOT NULL, value TEXT NOT NULL, job INTEGER NOT NULL,"
    " PRIMARY KEY (key, value, job)) WITHOUT ROWID;"
    "CREATE INDEX label_job ON label (job);"
    "CREATE TABLE chunk ("
    " job INTEGER NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL,"
    " PRIMARY KEY (job, number)) WITHOUT ROWID;"
    "CREATE TABLE failure ("
    " job INTEGER NOT NULL, idx INTEGER NOT NULL, attempts INTEGER NOT NULL, code TEXT NOT NULL,"
    " text TEXT NOT NULL, PRIMARY KEY (job, idx)) WITHOUT ROWID;"
    "CREATE TABLE image ("
    " job INTEGER NOT NULL, idx INTEGER NOT NULL, file INTEGER NOT NULL, bytes INTEGER NOT NULL,"
    " crc32 INTEGER NOT NULL, header BLOB NOT NULL, PRIMARY KEY (job, idx)) WITHOUT ROWID;"
    "CREATE TABLE tombstone ("
    " tenant TEXT NOT NULL, key TEXT NOT NULL, made_ms INTEGER NOT NULL,"
    " PRIMARY KEY (tenant, key)) WITHOUT ROWID;"
    "CREATE INDEX tombstone_made ON tombstone (made_ms);"
    "CREATE TABLE model (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;",
};
#define SCHEMA_VERSION ((int)(sizeof schema_steps / sizeof *schema_steps))

static const char *const statement_texts[DB_STATEMENTS] = {
#define X(name, text) [DB_##name] = text,
    DB_STATEMENT_LIST(X)
#undef X
};

/* ---- errors */

static int code_of(int rc, int system_errno)
{
    if (rc == SQLITE_IOERR_NOMEM) return STEER_NO_MEMORY;
    /* SQLite knows ENOSPC, not EDQUOT. A sync that fails for want of room is a failed sync. */
    if (rc == SQLITE_IOERR_WRITE && (system_errno == ENOSPC || system_errno == EDQUOT))
        return STEER_DISK_FULL;
    switch (rc & 0xff) {
    case SQLITE_FULL: return STEER_DISK_FULL;
    case SQLITE_NOMEM: return STEER_NO_MEMORY;
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
    case SQLITE_TOOBIG: return STEER_INTERNAL;
    default: return STEER_STORE;
    }
}

int db_fail(struct db *db, const char *what, struct steer_error *err)
{
    int rc = sqlite3_extended_errcode(db->sql), e = sqlite3_system_errno(db->sql);
    return steer_fail(err, code_of(rc, e), "%s: %s failed: %s%s%s", db->path, what,
                      sqlite3_errmsg(db->sql), e ? ": " : "", e ? strerror(e) : "");
}

int db_step(struct db *db, enum db_statement which, struct steer_error *err)
{
    sqlite3_stmt *st = db->statements[which];
    int rc = sqlite3_step(st);
    int code = rc == SQLITE_DONE ? 0 : rc == SQLITE_ROW ? 1 : db_fail(db, "a statement", err);
    if (code != 1) {
        /* Bindings go too: they point into a batch that will not live long. */
        sqlite3_reset(st);
        sqlite3_clear_bindings(st);
    }
    return code;
}

static int run_sql(struct db *db, const char *text, struct steer_error *err)
{
    if (sqlite3_exec(db->sql, text, NULL, NULL, NULL) == SQLITE_OK) return 0;
    return db_fail(db, "a statement", err);
}

/* One number out of a PRAGMA or SELECT. */
static int read_number(struct db *db, const char *text, int64_t *ret, struct steer_error *err)
{
    sqlite3_stmt *st = NULL;
    if (sqlite3_prepare_v2(db->sql, text, -1, &st, NULL) != SQLITE_OK)
        return db_fail(db, "a statement", err);
    int code = 0;
    if (sqlite3_step(st) == SQLITE_ROW)
        *ret = sqlite3_column_int64(st, 0);
    else
        code = db_fail(db, "a statement", err);
    sqlite3_finalize(st);
    return code;
}

/* ---- open */

static int on_commit(void *context, sqlite3 *sql, const char *name, int frames)
{
    (void)sql;
    (void)name;
    ((struct db *)context)->wal_frames = frames;
    return SQLITE_OK;
}

static int set_up_connection(struct db *db, struct steer_error *err)
{
    sqlite3_extended_result_codes(db->sql, 1);
    sqlite3_db_config(db->sql, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    int code = run_sql(db,
                       "PRAGMA locking_mode = EXCLUSIVE;" /* 1 */
                       "PRAGMA temp_store = MEMORY;"
                       "PRAGMA trusted_schema = OFF;"
                       "PRAGMA cache_size = -65536;",
                       err);
    if (code != 0) return code;

    /* Ours, or new? Asked before anything is written. */
    int64_t application = 0, version = 0, tables = 0;
    if ((code = read_number(db, "PRAGMA application_id", &application, err)) != 0) return code;
    if ((code = read_number(db, "PRAGMA user_version", &version, err)) != 0) return code;
    if ((code = read_number(db, "SELECT count(*) FROM sqlite_master", &tables, err)) != 0)
        return code;
    bool is_new = application == 0 && version == 0 && tables == 0;
    if (!is_new && application != APPLICATION_ID)
        return steer_fail(err, STEER_STORE,
                          "%s: is a SQLite database of another program (application id %" PRId64
                          ", expected %d)",
                          db->path, application, APPLICATION_ID);
    if (version > SCHEMA_VERSION)
        return steer_fail(err, STEER_STORE,
                          "%s: has schema version %" PRId64
                          ", written by a newer steer-broker; this one knows versions up to %d",
                          db->path, version, SCHEMA_VERSION);

    sqlite3_stmt *st = NULL;
    if (sqlite3_prepare_v2(db->sql, "PRAGMA journal_mode = WAL", -1, &st, NULL) != SQLITE_OK)
        return db_fail(db, "a statement", err);
    bool wal = sqlite3_step(st) == SQLITE_ROW &&
               strcmp((const char *)sqlite3_column_text(st, 0), "wal") == 0;
    code = sqlite3_finalize(st) == SQLITE_OK ? 0 : db_fail(db, "switching to a log", err);
    if (code != 0) return code;
    if (!wal) return steer_fail(err, STEER_STORE, "%s: cannot have a write-ahead log", db->path);
    code = run_sql(db, "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;", err); /* 2 */
    if (code != 0) return code;
    sqlite3_wal_hook(db->sql, on_commit, db);

    /* 5. No room for it is no reason not to start: the log stays, and is read. */
    if (sqlite3_wal_checkpoint_v2(db->sql, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) !=
        SQLITE_OK) {
        code = db_fail(db, "moving the log into the database", err);
        if (code != STEER_DISK_FULL) return code;
    }

    for (int64_t v = version; v < SCHEMA_VERSION; v++) {
        char *text = sqlite3_mprintf("BEGIN IMMEDIATE; %s PRAGMA application_id = %d;"
                                     "PRAGMA user_version = %d; COMMIT",
                                     schema_steps[v], APPLICATION_ID, (int)v + 1);
        if (!text) return steer_fail(err, STEER_NO_MEMORY, "out of memory for the store");
        code = run_sql(db, text, err);
        sqlite3_free(text);
        if (code != 0) {
            db_rollback(db);
            return code;
        }
    }
    return 0;
}

static int prepare_statements(struct db *db, struct steer_error *err)
{
    for (int i = 0; i < DB_STATEMENTS; i++)
        if (sqlite3_prepare_v3(db->sql, statement_texts[i], -1, SQLITE_PREPARE_PERSISTENT,
                               &db->statements[i], NULL) != SQLITE_OK)
            return db_fail(db, "preparing a statement", err);
    return 0;
}

/* The one row of a directory's own facts. */
static int meta_make(struct db *db, uint32_t shard, struct steer_error *err)
{
    int64_t salt[2];
    if (getrandom(salt, sizeof salt, 0) != (ssize_t)sizeof salt)
        return steer_fail(err, STEER_IO, "no random numbers: %s", strerror(errno));
    sqlite3_stmt *st = db->statements[DB_META_NEW];
    sqlite3_bind_int64(st, 1, shard);
    sqlite3_bind_int64(st, 2, salt[0]);
    sqlite3_bind_int64(st, 3, salt[1]);
    return db_step(db, DB_META_NEW, err);
}

/* Reads what the last run left and begins the next epoch, durably. */
static int begin_epoch(struct db *db, uint32_t shard, struct store_opened *opened,
                       struct steer_error *err)
{
    int code = db_begin(db, err);
    if (code != 0) return code;
    sqlite3_stmt *st = db->statements[DB_META_GET];
    code = db_step(db, DB_META_GET, err);
    if (code == 0) { /* new, or its first broker died between the schema and this */
        if ((code = meta_make(db, shard, err)) != 0) goto fail;
        code = db_step(db, DB_META_GET, err);
    }
    if (code != 1) {
        if (code == 0) code = steer_fail(err, STEER_STORE, "%s: has no meta record", db->path);
        goto fail;
    }
    int64_t found = sqlite3_column_int64(st, 0);
    db->epoch = (uint64_t)sqlite3_column_int64(st, 1);
    db->sequence = (uint64_t)sqlite3_column_int64(st, 2);
    db->job_last = (uint64_t)sqlite3_column_int64(st, 3);
    db->salt[0] = (uint64_t)sqlite3_column_int64(st, 4);
    db->salt[1] = (uint64_t)sqlite3_column_int64(st, 5);
    snprintf(db->boot, sizeof db->boot, "%s", (const char *)sqlite3_column_text(st, 6));
    sqlite3_reset(st);
    if (found != shard) {
        code = steer_fail(err, STEER_STORE,
                          "%s: holds shard %" PRId64 " of the farm, this broker is shard %" PRIu32,
                          db->path, found, shard);
        goto fail;
    }
    opened->sequence = db->sequence;
    opened->job_last = db->job_last;
    st = db->statements[DB_META_EPOCH];
    sqlite3_bind_int64(st, 1, (int64_t)db->epoch + 1);
    if ((code = db_step(db, DB_META_EPOCH, err)) != 0) goto fail;
    db->epoch++;
    opened->epoch = db->epoch;
    if ((code = db_commit(db, &(uint64_t){0}, err)) != 0) goto fail;
    return 0;

fail:
    db_rollback(db);
    return code;
}

int db_open(struct db **ret_db, const struct store_options *opt, struct store_opened *ret_opened,
            struct steer_error *err)
{
    struct db *db = calloc(1, sizeof *db);
    if (!db) return steer_fail(err, STEER_NO_MEMORY, "out of memory for the store");
    db->wal_bytes_max = opt->wal_bytes_max;
    int code = STEER_STORE;
    int n = snprintf(db->path, sizeof db->path, "%s/steer.db", opt->dir);
    if (n < 0 || (size_t)n >= sizeof db->path) {
        code = steer_fail(err, STEER_BAD_VALUE,
                          "the data directory's path is longer than %zu bytes", sizeof db->path);
        goto fail;
    }
    if (sqlite3_open_v2(db->path, &db->sql,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                        opt->vfs) != SQLITE_OK) {
        if (db->sql)
            code = db_fail(db, "opening", err);
        else
            code = steer_fail(err, STEER_NO_MEMORY, "out of memory for the store");
        goto fail;
    }
    if (sqlite3_db_readonly(db->sql, "main") == 1) {
        code = steer_fail(err, STEER_STORE, "%s: is read-only; the broker must write it", db->path);
        goto fail;
    }
    if ((code = set_up_connection(db, err)) != 0) goto fail;
    if ((code = prepare_statements(db, err)) != 0) goto fail;
    int64_t page_bytes = 4096;
    if ((code = read_number(db, "PRAGMA page_size", &page_bytes, err)) != 0) goto fail;
    db->page_bytes = (uint64_t)page_bytes;
    if ((code = begin_epoch(db, opt->shard, ret_opened, err)) != 0) goto fail;
    *ret_db = db;
    return 0;

fail:
    if (code == STEER_STORE) db_abandon(db);
    db_close(db);
    return code;
}

void db_abandon(struct db *db)
{
    if (db->sql) sqlite3_db_config(db->sql, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL); /* 4 */
}

void db_close(struct db *db)
{
    if (!db) return;
    for (int i = 0; i < DB_STATEMENTS; i++)
        sqlite3_finalize(db->statements[i]);
    sqlite3_close(db->sql);
    free(db->files);
    free(db);
}

uint64_t db_file_number(struct db *db)
{
    return db->epoch << 40 | ++db->files_made;
}

/* ---- transactions */

int db_begin(struct db *db, struct steer_error *err)
{
    return db_step(db, DB_BEGIN, err);
}

int db_commit(struct db *db, uint64_t *ret_sequence, struct steer_error *err)
{
    sqlite3_stmt *st = db->statements[DB_META_MOVE];
    sqlite3_bind_int64(st, 1, (int64_t)db->sequence + 1);
    sqlite3_bind_int64(st, 2, (int64_t)db->job_last);
    sqlite3_bind_int64(st, 3, (int64_t)db->epoch);
    sqlite3_bind_int64(st, 4, (int64_t)db->sequence);
    int code = db_step(db, DB_META_MOVE, err);
    if (code != 0) return code;
    if (sqlite3_changes(db->sql) != 1) /* 3 */
        return steer_fail(err, STEER_STORE,
                          "%s: another broker has written here since epoch %" PRIu64 " began",
                          db->path, db->epoch);
    code = db_step(db, DB_COMMIT, err);
    if (code != 0) return code;
    *ret_sequence = ++db->sequence;
    return 0;
}

void db_rollback(struct db *db)
{
    /* Some errors have rolled back already. */
    if (!sqlite3_get_autocommit(db->sql)) (void)sqlite3_exec(db->sql, "ROLLBACK", NULL, NULL, NULL);
}

int db_checkpoint(struct db *db, bool *ret_done, struct steer_error *err)
{
    *ret_done = false;
    if ((uint64_t)db->wal_frames * db->page_bytes <= db->wal_bytes_max) return 0;
    if (sqlite3_wal_checkpoint_v2(db->sql, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL) !=
        SQLITE_OK)
        return db_fail(db, "moving the log into the database", err);
    db->wal_frames = 0;
    *ret_done = true;
    return 0;
}

/* ---- keys */

static uint64_t rotl(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[2] += v[3];
    v[1] = rotl(v[1], 13) ^ v[0], v[3] = rotl(v[3], 16) ^ v[2];
    v[0] = rotl(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = rotl(v[1], 17) ^ v[2], v[3] = rotl(v[3], 21) ^ v[0];
    v[2] = rotl(v[2], 32);
}

static void sip_word(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    sip_round(v);
    sip_round(v);
    v[0] ^= word;
}

/* SipHash-2-4 under the database's own salt: clients choose keys, and must not be able to choose
 * ones that meet. The tenant's terminating 0 keeps ("ab", "c") from ("a", "bc"). */
int64_t db_key_hash(const struct db *db, const char *tenant, const char *key)
{
    uint64_t v[4] = {db->salt[0] ^ 0x736f6d6570736575u, db->salt[1] ^ 0x646f72616e646f6du,
                     db->salt[0] ^ 0x6c7967656e657261u, db->salt[1] ^ 0x7465646279746573u};
    uint64_t word = 0;
    size_t length = 0;
    for (int part = 0; part < 2; part++) {
        const char *text = part == 0 ? tenant : key;
        size_t bytes = strlen(text) + (part == 0);
        for (size_t i = 0; i < bytes; i++) {
            word |= (uint64_t)(uint8_t)text[i] << (8 * (length & 7));
            if ((++length & 7) == 0) {
                sip_word(v, word);
                word = 0;
            }
        }
    }
    sip_word(v, word | (uint64_t)length << 56);
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(v);
    return (int64_t)(v[0] ^ v[1] ^ v[2] ^ v[3]);
}

int db_find_key(struct db *db, const char *tenant, const char *key, struct store_known *ret,
                struct steer_error *err)
{
    sqlite3_stmt *st = db->statements[DB_KEY_FIND];
    sqlite3_bind_int64(st, 1, db_key_hash(db, tenant, key));
    int code;
    while ((code = db_step(db, DB_KEY_FIND, err)) == 1) {
        if (strcmp((const char *)sqlite3_column_text(st, 1), tenant) != 0 ||
            strcmp((const char *)sqlite3_column_text(st, 2), key) != 0)
            continue;
        *ret = (struct store_known){.job = (uint64_t)sqlite3_column_int64(st, 0),
                                    .state = (enum store_state)sqlite3_column_int(st, 4)};
        int bytes = sqlite3_column_bytes(st, 3);
        if (bytes == STORE_HASH_BYTES)
            memcpy(ret->hash, sqlite3_column_blob(st, 3), sizeof ret->hash);
        sqlite3_reset(st);
        return 1;
    }
    return code;
}
