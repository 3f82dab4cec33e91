// SPDX-License-Identifier: Apache-2.0
/* Records into rows and rows into records: a batch is applied, a directory loaded, a question
 * answered. Which rows there are and why is written in store_sqlite.c.
 *
 * Invariants:
 *  1. An image's row says which file it has; a file goes only after its row has, durably.
 *  2. Only open jobs have images. What a job that ended left behind is removed at the next start.
 *  3. Loading costs by what is open, not by what is stored: ended jobs' rows are stepped over. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "limits.h"
#include "store_sqlite.h"

/* What a row's list can grow to before it is cut: nobody reads more reasons than that. */
#define FAILURES_SHOWN_MAX STEER_RANGES_MAX
#define QUERY_LIMIT_MAX    10000u

/* ---- binding and reading columns */

static void bind_u64(sqlite3_stmt *st, int at, uint64_t value)
{
    sqlite3_bind_int64(st, at, (int64_t)value);
}

static void bind_text(sqlite3_stmt *st, int at, const char *text)
{
    sqlite3_bind_text(st, at, text, -1, SQLITE_STATIC);
}

static void bind_blob(sqlite3_stmt *st, int at, const void *data, size_t bytes)
{
    sqlite3_bind_blob64(st, at, data, bytes, SQLITE_STATIC);
}

static uint64_t column_u64(sqlite3_stmt *st, int at)
{
    int64_t value = sqlite3_column_int64(st, at);
    return value < 0 ? 0 : (uint64_t)value;
}

static uint32_t column_u32(sqlite3_stmt *st, int at)
{
    return (uint32_t)sqlite3_column_int64(st, at);
}

/* Never NULL: the columns are NOT NULL, but a damaged file may say otherwise. */
static const char *column_text(sqlite3_stmt *st, int at)
{
    const char *text = (const char *)sqlite3_column_text(st, at);
    return text ? text : "";
}

static const void *column_blob(sqlite3_stmt *st, int at, size_t *ret_bytes)
{
    const void *data = sqlite3_column_blob(st, at);
    *ret_bytes = (size_t)sqlite3_column_bytes(st, at);
    return data;
}

/* A row of LOAD_JOBS or JOB_GET; good until the next step. */
static void job_of_row(sqlite3_stmt *st, struct store_job *ret)
{
    *ret = (struct store_job){
        .id = column_u64(st, 0),
        .state = (enum store_state)sqlite3_column_int(st, 1),
        .accepted_ms = column_u64(st, 2),
        .ended_ms = column_u64(st, 3),
        .tenant = column_text(st, 4),
        .key = column_text(st, 5),
    };
    size_t bytes;
    const void *hash = column_blob(st, 6, &bytes);
    if (bytes == STORE_HASH_BYTES) memcpy(ret->hash, hash, STORE_HASH_BYTES);
    ret->summary = column_blob(st, 7, &ret->summary_bytes);
    ret->spec = column_blob(st, 8, &ret->spec_bytes);
}

static void chunk_of_row(sqlite3_stmt *st, struct store_chunk *ret)
{
    *ret = (struct store_chunk){.job = column_u64(st, 0), .number = column_u32(st, 1)};
    ret->data = column_blob(st, 2, &ret->bytes);
}

static void failure_of_row(sqlite3_stmt *st, struct store_failure *ret)
{
    const char *code = column_text(st, 3);
    *ret = (struct store_failure){
        .job = column_u64(st, 0),
        .index = column_u32(st, 1),
        .attempts = column_u32(st, 2),
        .code = strcmp(code, "OK") == 0 ? 0 : steer_code_of(code),
        .text = column_text(st, 4),
    };
}

/* ---- applying a batch */

static int drop_add(struct db_drops *drops, const struct spool_file *f)
{
    if (drops->count == drops->room) {
        size_t room = drops->room ? drops->room * 2 : 64;
        struct spool_file *files = realloc(drops->files, room * sizeof *files);
        if (!files) return STEER_NO_MEMORY;
        drops->files = files;
        drops->room = room;
    }
    drops->files[drops->count++] = *f;
    return 0;
}

/* IMAGE_DROP or IMAGES_DROP, bound: each row that goes is a file to be removed. */
static int drop_rows(struct db *db, enum db_statement which, uint64_t job, struct db_drops *drops,
                     struct steer_error *err)
{
    sqlite3_stmt *st = db->statements[which];
    int code;
    while ((code = db_step(db, which, err)) == 1) {
        struct spool_file f = {.job = job,
                               .index = column_u32(st, 0),
                               .file = column_u64(st, 1),
                               .bytes = column_u64(st, 2)};
        if (drop_add(drops, &f) != 0) {
            sqlite3_reset(st);
            return steer_fail(err, STEER_NO_MEMORY, "out of memory for the store");
        }
    }
    return code;
}

static int drop_image(struct db *db, uint64_t job, uint32_t index, struct db_drops *drops,
                      struct steer_error *err)
{
    sqlite3_stmt *st = db->statements[DB_IMAGE_DROP];
    bind_u64(st, 1, job);
    bind_u64(st, 2, index);
    return drop_rows(db, DB_IMAGE_DROP, job, drops, err);
}

static int drop_images(struct db *db, uint64_t job, struct db_drops *drops, struct steer_error *err)
{
    bind_u64(db->statements[DB_IMAGES_DROP], 1, job);
    return drop_rows(db, DB_IMAGES_DROP, job, drops, err);
}

static int known_add(struct store_batch *b, const struct store_known *k)
{
    if (b->known_count == b->known_room) {
        size_t room = b->known_room ? b->known_room * 2 : 8;
        struct store_known *known = realloc(b->known, room * sizeof *known);
        if (!known) return STEER_NO_MEMORY;
        b->known = known;
        b->known_room = room;
    }
    b->known[b->known_count++] = *k;
    return 0;
}

static int apply_job_put(struct db *db, struct store_batch *b, const struct store_job *j,
                         struct steer_error *err)
{
    struct store_known known;
    int code = db_find_key(db, j->tenant, j->key, &known, err);
    if (code == 1) {
        known.put = j->id;
        if (known_add(b, &known) != 0)
            return steer_fail(err, STEER_NO_MEMORY, "out of memory for the store");
        return 0;
    }
    if (code != 0) return code;
    sqlite3_stmt *st = db->statements[DB_JOB_PUT];
    bind_u64(st, 1, j->id);
    sqlite3_bind_int64(st, 2, db_key_hash(db, j->tenant, j->key));
    bind_u64(st, 3, j->accepted_ms);
    bind_text(st, 4, j->tenant);
    bind_text(st, 5, j->key);
    bind_blob(st, 6, j->hash, STORE_HASH_BYTES);
    bind_blob(st, 7, j->spec, j->spec_bytes);
    if ((code = db_step(db, DB_JOB_PUT, err)) != 0) return code;
    for (size_t i = 0; i < j->label_count; i++) {
        st = db->statements[DB_LABEL_PUT];
        bind_text(st, 1, j->labels[i].key);
        bind_text(st, 2, j->labels[i].value);
        bind_u64(st, 3, j->id);
        if ((code = db_step(db, DB_LABEL_PUT, err)) != 0) return code;
    }
    if (j->id > db->job_last) db->job_last = j->id;
    return 0;
}

static int apply_failure(struct db *db, const struct store_failure *f, struct steer_error *err)
{
    enum db_statement which = f->attempts == 0 && f->code == 0 ? DB_FAILURE_DROP : DB_FAILURE_PUT;
    sqlite3_stmt *st = db->statements[which];
    bind_u64(st, 1, f->job);
    bind_u64(st, 2, f->index);
    if (which == DB_FAILURE_PUT) {
        bind_u64(st, 3, f->attempts);
        bind_text(st, 4, steer_code_name(f->code));
        bind_text(st, 5, f->text);
    }
    return db_step(db, which, err);
}

static int apply_image(struct db *db, const struct store_image *i, uint64_t file,
                       struct db_drops *drops, struct steer_error *err)
{
    /* An image spooled before takes its file along: 1. */
    int code = drop_image(db, i->job, i->index, drops, err);
    if (code != 0) return code;
    sqlite3_stmt *st = db->statements[DB_IMAGE_PUT];
    bind_u64(st, 1, i->job);
    bind_u64(st, 2, i->index);
    bind_u64(st, 3, file);
    bind_u64(st, 4, i->bytes);
    bind_u64(st, 5, i->crc32);
    bind_blob(st, 6, i->header, i->header_bytes);
    return db_step(db, DB_IMAGE_PUT, err);
}

static int apply_expire(struct db *db, struct store_batch *b, uint64_t before_ms, uint32_t limit,
                        struct db_drops *drops, struct steer_error *err)
{
    /* The list first: rows do not go while a statement walks over them. */
    uint64_t *jobs = malloc((limit ? limit : 1) * sizeof *jobs);
    if (!jobs) return steer_fail(err, STEER_NO_MEMORY, "out of memory for the store");
    size_t count = 0;
    sqlite3_stmt *st = db->statements[DB_EXPIRED];
    bind_u64(st, 1, before_ms);
    bind_u64(st, 2, limit);
    int code;
    while ((code = db_step(db, DB_EXPIRED, err)) == 1)
        if (count < limit) jobs[count++] = column_u64(st, 0);

    static const enum db_statement forget[] = {DB_CHUNK_FORGET, DB_FAILURE_FORGET, DB_LABEL_FORGET,
                                               DB_JOB_FORGET};
    for (size_t i = 0; i < count && code == 0; i++) {
        code = drop_images(db, jobs[i], drops, err);
        for (size_t k = 0; k < sizeof forget / sizeof *forget && code == 0; k++) {
            bind_u64(db->statements[forget[k]], 1, jobs[i]);
            code = db_step(db, forget[k], err);
        }
        b->expired++;
    }
    free(jobs);
    if (code != 0) return code;
    st = db->statements[DB_TOMBSTONE_FORGET];
    bind_u64(st, 1, before_ms);
    bind_u64(st, 2, limit);
    if ((code = db_step(db, DB_TOMBSTONE_FORGET, err)) != 0) return code;
    b->expired += (uint64_t)sqlite3_changes(db->sql);
    return 0;
}

static int apply_record(struct db *db, struct store_batch *b, const struct record *r,
                        struct db_drops *drops, struct steer_error *err)
{
    sqlite3_stmt *st;
    switch (r->type) {
    case RECORD_JOB_PUT: return apply_job_put(db, b, &r->u.job, err);
    case RECORD_JOB_END:
        st = db->statements[DB_JOB_END];
        bind_u64(st, 1, r->u.job.id);
        sqlite3_bind_int(st, 2, (int)r->u.job.state);
        bind_u64(st, 3, r->u.job.ended_ms);
        bind_blob(st, 4, r->u.job.summary, r->u.job.summary_bytes);
        return db_step(db, DB_JOB_END, err);
    case RECORD_JOB_REOPEN:
        bind_u64(db->statements[DB_JOB_REOPEN], 1, r->u.job.id);
        return db_step(db, DB_JOB_REOPEN, err);
    case RECORD_CHUNK_PUT:
        st = db->statements[DB_CHUNK_PUT];
        bind_u64(st, 1, r->u.chunk.job);
        bind_u64(st, 2, r->u.chunk.number);
        bind_blob(st, 3, r->u.chunk.data, r->u.chunk.bytes);
        return db_step(db, DB_CHUNK_PUT, err);
    case RECORD_FAILURE_PUT: return apply_failure(db, &r->u.failure, err);
    case RECORD_TOMBSTONE_PUT:
        st = db->statements[DB_TOMBSTONE_PUT];
        bind_text(st, 1, r->u.tombstone.tenant);
        bind_text(st, 2, r->u.tombstone.key);
        bind_u64(st, 3, r->u.tombstone.made_ms);
        return db_step(db, DB_TOMBSTONE_PUT, err);
    case RECORD_TOMBSTONE_DROP:
        st = db->statements[DB_TOMBSTONE_DROP];
        bind_text(st, 1, r->u.tombstone.tenant);
        bind_text(st, 2, r->u.tombstone.key);
        return db_step(db, DB_TOMBSTONE_DROP, err);
    case RECORD_MODEL_PUT:
        st = db->statements[DB_MODEL_PUT];
        bind_text(st, 1, r->u.named.name);
        bind_blob(st, 2, r->u.named.data, r->u.named.bytes);
        return db_step(db, DB_MODEL_PUT, err);
    case RECORD_COUNTER_PUT:
        st = db->statements[DB_COUNTER_PUT];
        bind_text(st, 1, r->u.named.name);
        bind_u64(st, 2, r->u.named.value);
        return db_step(db, DB_COUNTER_PUT, err);
    case RECORD_IMAGE_SPOOL:
        return apply_image(db, &r->u.image.record, r->u.image.file, drops, err);
    case RECORD_IMAGE_DROP:
        return drop_image(db, r->u.image.record.job, r->u.image.record.index, drops, err);
    case RECORD_IMAGES_DROP: return drop_images(db, r->u.image.record.job, drops, err);
    case RECORD_EXPIRE:
        return apply_expire(db, b, r->u.expire.before_ms, r->u.expire.limit, drops, err);
    }
    return steer_fail(err, STEER_INTERNAL, "a record of no known type (%d)", (int)r->type);
}

int db_apply(struct db *db, struct store_batch *b, struct db_drops *drops, struct steer_error *err)
{
    /* It may be applied again after a rollback. */
    b->known_count = 0;
    b->expired = 0;
    int code = 0;
    for (const struct record *r = b->first; r && code == 0; r = r->next)
        code = apply_record(db, b, r, drops, err);
    return code;
}

/* ---- loading */

/* Changes with every start of the machine; empty when the kernel does not say. */
static void read_boot(char boot[DB_BOOT_BYTES])
{
    memset(boot, 0, DB_BOOT_BYTES);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t n = read(fd, boot, DB_BOOT_BYTES - 1);
    close(fd);
    boot[n > 0 ? n : 0] = 0;
    boot[strcspn(boot, "\n")] = 0;
}

/* All image rows, as files; `usable` says for now whether the job is open. */
static int read_images(struct db *db, struct steer_error *err)
{
    free(db->files);
    db->files = NULL;
    db->file_count = 0;
    size_t room = 0;
    sqlite3_stmt *st = db->statements[DB_LOAD_IMAGES];
    int code;
    while ((code = db_step(db, DB_LOAD_IMAGES, err)) == 1) {
        if (db->file_count == room) {
            room = room ? room * 2 : 1024;
            struct spool_file *files = realloc(db->files, room * sizeof *files);
            if (!files) {
                sqlite3_reset(st);
                return steer_fail(err, STEER_NO_MEMORY, "out of memory for %zu spooled images",
                                  room);
            }
            db->files = files;
        }
        db->files[db->file_count++] = (struct spool_file){
            .job = column_u64(st, 0),
            .index = column_u32(st, 1),
            .file = column_u64(st, 2),
            .bytes = column_u64(st, 3),
            .crc32 = column_u32(st, 4),
            .usable = sqlite3_column_int(st, 5) != 0,
        };
    }
    return code;
}

static int by_image(const void *a, const void *b)
{
    const struct spool_file *x = a, *y = b;
    if (x->job != y->job) return x->job < y->job ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

int db_check_spool(struct db *db, struct spool *spool, uint64_t verify_bytes_max,
                   struct store_opened *ret_opened, struct steer_error *err)
{
    char boot[DB_BOOT_BYTES];
    read_boot(boot);
    bool same_boot = boot[0] && strcmp(boot, db->boot) == 0;

    int code = db_begin(db, err);
    if (code != 0) return code;
    if ((code = read_images(db, err)) != 0) goto fail;
    /* 2: rows of jobs that are not open go, and spool_check then finds their files unknown. */
    struct db_drops drops = {0};
    size_t kept = 0;
    for (size_t i = 0; i < db->file_count; i++) {
        struct spool_file *f = &db->files[i];
        if (f->usable)
            db->files[kept++] = *f;
        else if ((code = drop_image(db, f->job, f->index, &drops, err)) != 0)
            goto fail_drops;
    }
    db->file_count = kept;

    uint64_t removed = 0, lost = 0;
    /* A process that was killed leaves its writes with the kernel: only a restart of the machine
     * can have left a file of the right length with the wrong bytes. */
    code = spool_check(spool, db->files, db->file_count, same_boot ? 0 : verify_bytes_max, &removed,
                       err);
    if (code != 0) goto fail_drops;
    if (db->file_count > 0) qsort(db->files, db->file_count, sizeof *db->files, by_image);
    for (size_t i = 0; i < db->file_count; i++) {
        if (db->files[i].usable) continue;
        lost++;
        if ((code = drop_image(db, db->files[i].job, db->files[i].index, &drops, err)) != 0)
            goto fail_drops;
    }
    /* Only now: a broker killed during the check must check again. */
    bind_text(db->statements[DB_META_BOOT], 1, boot);
    if ((code = db_step(db, DB_META_BOOT, err)) != 0) goto fail_drops;
    if ((code = db_commit(db, &(uint64_t){0}, err)) != 0) goto fail_drops;
    free(drops.files);
    ret_opened->images_lost = lost;
    ret_opened->files_removed = removed;
    return 0;

fail_drops:
    free(drops.files);
fail:
    db_rollback(db);
    return code;
}

/* A statement over rows in the order of their jobs, followed beside the jobs. */
struct cursor {
    enum db_statement which;
    bool row;
    uint64_t job;
};

static int cursor_step(struct db *db, struct cursor *c, struct steer_error *err)
{
    int code = db_step(db, c->which, err);
    c->row = code == 1;
    if (c->row) c->job = column_u64(db->statements[c->which], 0);
    return code == 1 ? 0 : code;
}

static int cursor_find(struct db *db, struct cursor *c, uint64_t job, struct steer_error *err)
{
    sqlite3_reset(db->statements[c->which]);
    bind_u64(db->statements[c->which], 1, job);
    return cursor_step(db, c, err);
}

/* Goes on to the first row of this job or a later one: by steps while it is near, else anew. 3 */
static int cursor_seek(struct db *db, struct cursor *c, uint64_t job, struct steer_error *err)
{
    for (int steps = 0; c->row && c->job < job; steps++) {
        int code = steps < 8 ? cursor_step(db, c, err) : cursor_find(db, c, job, err);
        if (code != 0) return code;
    }
    return 0;
}

static int load_names(struct db *db, const struct store_load *load, struct steer_error *err)
{
    int code, told = 0;
    sqlite3_stmt *st = db->statements[DB_LOAD_MODELS];
    while ((code = db_step(db, DB_LOAD_MODELS, err)) == 1) {
        size_t bytes;
        const void *data = column_blob(st, 1, &bytes);
        if (load->model) told = load->model(load->context, column_text(st, 0), data, bytes);
        if (told != 0) return told;
    }
    if (code != 0) return code;
    st = db->statements[DB_LOAD_COUNTERS];
    while ((code = db_step(db, DB_LOAD_COUNTERS, err)) == 1) {
        if (load->counter)
            told = load->counter(load->context, column_text(st, 0), column_u64(st, 1));
        if (told != 0) return told;
    }
    if (code != 0) return code;
    st = db->statements[DB_LOAD_TOMBSTONES];
    while ((code = db_step(db, DB_LOAD_TOMBSTONES, err)) == 1) {
        struct store_tombstone t = {column_text(st, 0), column_text(st, 1), column_u64(st, 2)};
        if (load->tombstone) told = load->tombstone(load->context, &t);
        if (told != 0) return told;
    }
    return code;
}

/* The rows of one job, all cursors being at it or beyond. */
static int load_parts(struct db *db, const struct store_load *load, uint64_t job,
                      struct cursor *chunks, struct cursor *failures, size_t *file,
                      struct steer_error *err)
{
    int code, told = 0;
    if ((code = cursor_seek(db, chunks, job, err)) != 0) return code;
    while (chunks->row && chunks->job == job) {
        struct store_chunk c;
        chunk_of_row(db->statements[chunks->which], &c);
        if (load->chunk) told = load->chunk(load->context, &c);
        if (told != 0) return told;
        if ((code = cursor_step(db, chunks, err)) != 0) return code;
    }
    if ((code = cursor_seek(db, failures, job, err)) != 0) return code;
    while (failures->row && failures->job == job) {
        struct store_failure f;
        failure_of_row(db->statements[failures->which], &f);
        if (load->failure) told = load->failure(load->context, &f);
        if (told != 0) return told;
        if ((code = cursor_step(db, failures, err)) != 0) return code;
    }
    for (; *file < db->file_count && db->files[*file].job <= job; (*file)++) {
        const struct spool_file *f = &db->files[*file];
        struct store_image i = {
            .job = f->job, .index = f->index, .bytes = f->bytes, .crc32 = f->crc32};
        if (load->image) told = load->image(load->context, &i, f->usable);
        if (told != 0) return told;
    }
    return 0;
}

int db_load(struct db *db, const struct store_load *load, struct spool *spool,
            struct store_opened *ret_opened, struct steer_error *err)
{
    for (size_t i = 0; i < db->file_count; i++)
        if (db->files[i].usable) spool_count_in(spool, db->files[i].bytes);

    int code = load_names(db, load, err);
    struct cursor chunks = {.which = DB_LOAD_CHUNKS}, failures = {.which = DB_LOAD_FAILURES};
    size_t file = 0;
    if (code == 0) code = cursor_find(db, &chunks, 0, err);
    if (code == 0) code = cursor_find(db, &failures, 0, err);
    sqlite3_stmt *st = db->statements[DB_LOAD_JOBS];
    while (code == 0 && (code = db_step(db, DB_LOAD_JOBS, err)) == 1) {
        struct store_job j;
        job_of_row(st, &j);
        ret_opened->jobs_open++;
        code = load->job ? load->job(load->context, &j) : 0;
        if (code == 0) code = load_parts(db, load, j.id, &chunks, &failures, &file, err);
        if (code != 0) break;
    }
    /* A call of load that ended it leaves statements open. */
    for (int i = 0; i < DB_STATEMENTS; i++)
        sqlite3_reset(db->statements[i]);
    free(db->files);
    db->files = NULL;
    db->file_count = 0;
    return code;
}

/* ---- questions */

static int out_of_memory(struct steer_error *err)
{
    return steer_fail(err, STEER_NO_MEMORY, "out of memory for the store's answer");
}

/* An array in an arena that doubles as it fills; what it leaves behind goes with the arena. */
static void *array_room(struct arena *a, void *array, size_t count, size_t size)
{
    /* Room was made at 0, 8, 16, 32, ... */
    if (count > 0 && (count < 8 || (count & (count - 1)) != 0)) return array;
    void *bigger = arena_get(a, (count < 8 ? 8 : count * 2) * size);
    if (bigger && count > 0) memcpy(bigger, array, count * size);
    return bigger;
}

/* Copies what a row's pointers point at. */
static bool job_keep(struct arena *a, struct store_job *j)
{
    j->tenant = arena_copy(a, j->tenant, strlen(j->tenant));
    j->key = arena_copy(a, j->key, strlen(j->key));
    j->spec = arena_copy(a, j->spec, j->spec_bytes);
    bool ok = j->tenant && j->key && j->spec;
    if (j->summary) {
        j->summary = arena_copy(a, j->summary, j->summary_bytes);
        ok = ok && j->summary;
    }
    return ok;
}

static int find_details(struct db *db, struct arena *a, struct store_found *f,
                        struct steer_error *err)
{
    struct cursor c = {.which = DB_LOAD_CHUNKS};
    int code = cursor_find(db, &c, f->job.id, err);
    while (code == 0 && c.row && c.job == f->job.id) {
        f->chunks = array_room(a, f->chunks, f->chunk_count, sizeof *f->chunks);
        if (!f->chunks) return out_of_memory(err);
        struct store_chunk *chunk = &f->chunks[f->chunk_count++];
        chunk_of_row(db->statements[c.which], chunk);
        chunk->data = arena_copy(a, chunk->data, chunk->bytes);
        if (!chunk->data) return out_of_memory(err);
        code = cursor_step(db, &c, err);
    }
    sqlite3_reset(db->statements[c.which]);
    if (code != 0) return code;

    c = (struct cursor){.which = DB_LOAD_FAILURES};
    code = cursor_find(db, &c, f->job.id, err);
    while (code == 0 && c.row && c.job == f->job.id && f->failure_count < FAILURES_SHOWN_MAX) {
        f->failures = array_room(a, f->failures, f->failure_count, sizeof *f->failures);
        if (!f->failures) return out_of_memory(err);
        struct store_failure *failure = &f->failures[f->failure_count++];
        failure_of_row(db->statements[c.which], failure);
        failure->text = arena_copy(a, failure->text, strlen(failure->text));
        if (!failure->text) return out_of_memory(err);
        code = cursor_step(db, &c, err);
    }
    sqlite3_reset(db->statements[c.which]);
    return code;
}

/* Adds the job to the answer; one that is not there is left out. */
static int find_job(struct db *db, const struct store_query *q, uint64_t job, struct arena *a,
                    struct store_found *ret, struct steer_error *err)
{
    sqlite3_stmt *st = db->statements[DB_JOB_GET];
    bind_u64(st, 1, job);
    int code = db_step(db, DB_JOB_GET, err);
    if (code != 1) return code;
    *ret = (struct store_found){0};
    job_of_row(st, &ret->job);
    bool kept = job_keep(a, &ret->job);
    sqlite3_reset(st);
    if (!kept) return out_of_memory(err);
    if (q->details && (code = find_details(db, a, ret, err)) != 0) return code;
    return 1;
}

/* The statement that lists ids for a question, newest first: ?1 before, ?2 label key, ?3 label
 * value, ?4 tenant, ?5 limit, ?6 states. Each form walks an index from its end, so that a page of
 * answers costs a page of rows; a union of walks where several states are asked for. */
static void list_text(const struct store_query *q, char *text, size_t room)
{
    const char *tenant = q->tenant ? " AND job.tenant = ?4" : "";
    const uint32_t all = (1u << (STORE_EXPIRED + 1)) - 1;
    uint32_t states = q->states ? q->states & all : all;
    if (q->label.key) {
        snprintf(text, room,
                 "SELECT label.job FROM label CROSS JOIN job ON job.id = label.job"
                 " WHERE label.key = ?2 AND label.value = ?3 AND label.job < ?1"
                 " AND (?6 >> job.state) & 1%s ORDER BY label.job DESC LIMIT ?5",
                 tenant);
        return;
    }
    if (states == all) {
        snprintf(text, room, "SELECT id FROM job WHERE id < ?1%s ORDER BY id DESC LIMIT ?5",
                 tenant);
        return;
    }
    size_t used = 0;
    for (int state = STORE_OPEN; state <= STORE_EXPIRED && used < room; state++) {
        if (!(states >> state & 1)) continue;
        int n = snprintf(text + used, room - used,
                         "%sSELECT id FROM (SELECT id FROM job INDEXED BY job_state"
                         " WHERE state = %d AND id < ?1%s ORDER BY id DESC LIMIT ?5)",
                         used ? " UNION ALL " : "", state, tenant);
        used += n > 0 ? (size_t)n : 0;
    }
    if (used == 0)
        snprintf(text, room, "SELECT id FROM job WHERE 0");
    else if (used < room)
        snprintf(text + used, room - used, " ORDER BY id DESC LIMIT ?5");
}

static int find_list(struct db *db, const struct store_query *q, struct arena *a,
                     struct store_completion *c, struct steer_error *err)
{
    uint32_t limit = q->limit == 0 ? 1 : q->limit < QUERY_LIMIT_MAX ? q->limit : QUERY_LIMIT_MAX;
    uint64_t before = q->before && q->before <= INT64_MAX ? q->before : INT64_MAX;
    char text[2048];
    list_text(q, text, sizeof text);
    sqlite3_stmt *st = NULL;
    if (sqlite3_prepare_v2(db->sql, text, -1, &st, NULL) != SQLITE_OK)
        return db_fail(db, "a question", err);
    bind_u64(st, 1, before);
    if (q->label.key) {
        bind_text(st, 2, q->label.key);
        bind_text(st, 3, q->label.value ? q->label.value : "");
        bind_u64(st, 6, q->states ? q->states : UINT32_MAX);
    }
    if (q->tenant) bind_text(st, 4, q->tenant);
    bind_u64(st, 5, (uint64_t)limit + 1);

    int code = 0, rc;
    struct store_found *found = NULL;
    size_t count = 0;
    while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
        if (count == limit) {
            c->more = true;
            continue;
        }
        found = array_room(a, found, count, sizeof *found);
        code =
            found ? find_job(db, q, column_u64(st, 0), a, &found[count], err) : out_of_memory(err);
        if (code < 0) break;
        count += code == 1;
    }
    if (code >= 0) code = rc == SQLITE_DONE ? 0 : db_fail(db, "a question", err);
    sqlite3_finalize(st);
    if (code != 0) return code;
    c->found = found;
    c->found_count = count;
    return 0;
}

int db_query(struct db *db, const struct store_query *q, struct arena *a,
             struct store_completion *c, struct steer_error *err)
{
    uint64_t job = q->job;
    if (job == 0 && !(q->tenant && q->key)) return find_list(db, q, a, c, err);
    if (job == 0) {
        struct store_known known;
        int code = db_find_key(db, q->tenant, q->key, &known, err);
        if (code != 1) return code;
        job = known.job;
    }
    struct store_found *found = arena_get(a, sizeof *found);
    if (!found) return out_of_memory(err);
    int code = find_job(db, q, job, a, found, err);
    if (code != 1) return code;
    c->found = found;
    c->found_count = 1;
    return 0;
}

int db_image(struct db *db, uint64_t job, uint32_t index, struct arena *a,
             struct store_completion *c, struct spool_file *ret_file, struct steer_error *err)
{
    sqlite3_stmt *st = db->statements[DB_IMAGE_GET];
    bind_u64(st, 1, job);
    bind_u64(st, 2, index);
    int code = db_step(db, DB_IMAGE_GET, err);
    if (code == 0)
        return steer_fail(err, STEER_NOT_FOUND, "image %" PRIu32 " is not in the spool", index);
    if (code != 1) return code;
    *ret_file = (struct spool_file){.job = job,
                                    .index = index,
                                    .file = column_u64(st, 0),
                                    .bytes = column_u64(st, 1),
                                    .crc32 = column_u32(st, 2)};
    c->image = (struct store_image){
        .job = job, .index = index, .bytes = ret_file->bytes, .crc32 = ret_file->crc32};
    const void *header = column_blob(st, 3, &c->image.header_bytes);
    c->image.header = arena_copy(a, header, c->image.header_bytes);
    sqlite3_reset(st);
    return c->image.header ? 0 : out_of_memory(err);
}
