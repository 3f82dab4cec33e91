// SPDX-License-Identifier: Apache-2.0
/* The store: its thread, what waits for it, what it has answered, and the directory.
 *
 *     DIR/lock       held with flock while a broker runs; the holder's process id, for people
 *     DIR/steer.db   the database, and beside it steer.db-wal
 *     DIR/reserve    so much space that acks and cancels still fit when the disk is full
 *     DIR/spool/     images (spool.h)
 *
 * Invariants:
 *  1. Spool file, then commit, then completion, then the removal of files whose records went.
 *  2. A file belongs to a committed record or is removed, here or at the next start. It is not
 *     removed while its commit's outcome is unknown.
 *  3. Once dead (a sync failed, the epoch was lost) nothing is written, and all that comes is
 *     answered STEER_STORE.
 *  4. While full, batches with new work are answered before anything is written for them.
 *  5. What the broker's thread and the store's share is under `mutex`, or atomic in spool.c. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "store_db.h"

/* A commit takes this much at most, so that the first in line waits for few behind it. */
#define GROUP_RECORDS_MAX 16384
#define GROUP_BYTES_MAX   (64ull << 20)

struct question {
    struct op op;
    struct arena arena;
    struct store_query query; /* STORE_QUERY */
    uint64_t job;             /* STORE_READ */
    uint32_t index;
};

struct op_list {
    struct op *first, **last;
};

struct store {
    char *dir;
    struct store_options opt;
    int lock_fd;
    int event_fd;
    struct db *db;
    struct spool *spool;
    pthread_t thread;
    bool thread_runs;

    /* the store thread's */
    bool dead;
    bool refused;  /* the database found the disk full, and nothing has changed since */
    bool reserved; /* DIR/reserve is there */
    struct db_drops drops;

    pthread_mutex_t mutex; /* 5: what follows */
    pthread_cond_t work;
    bool closing;
    bool full;
    struct op_list todo, done;
    struct store_figures figures;
    struct steer_error trouble, trouble_shown;
};

void store_options_default(struct store_options *ret_opt)
{
    *ret_opt = (struct store_options){
        .free_bytes_min = 64ull << 20,
        .reserve_bytes = 16ull << 20,
        .wal_bytes_max = 32ull << 20,
        .verify_bytes_max = 1ull << 30,
    };
}

/* ---- lists */

static void list_clear(struct op_list *l)
{
    l->first = NULL;
    l->last = &l->first;
}

static void list_add(struct op_list *l, struct op *op)
{
    op->next = NULL;
    *l->last = op;
    l->last = &op->next;
}

static struct op *list_take(struct op_list *l)
{
    struct op *op = l->first;
    if (!op) return NULL;
    l->first = op->next;
    if (!l->first) l->last = &l->first;
    return op;
}

static void list_move(struct op_list *to, struct op_list *from)
{
    if (!from->first) return;
    *to->last = from->first;
    to->last = from->last;
    list_clear(from);
}

/* ---- the directory */

static int make_dir(const char *dir, struct steer_error *err)
{
    char path[4096];
    if (!dir || !dir[0]) return steer_fail(err, STEER_BAD_VALUE, "no data directory was named");
    if (strlen(dir) >= sizeof path - 32)
        return steer_fail(err, STEER_BAD_VALUE,
                          "the data directory's path has %zu bytes, at most %zu are possible",
                          strlen(dir), sizeof path - 33);
    snprintf(path, sizeof path, "%s", dir);
    /* Each folder on the way, then the last one; whatever is there already is fine. */
    for (char *at = path + 1;; at++) {
        if (*at != '/' && *at != 0) continue;
        char was = *at;
        *at = 0;
        if (mkdir(path, 0700) == 0) {
            /* A new folder is durable when the one that names it is. */
            char *slash = strrchr(path, '/');
            char parent[4096];
            snprintf(parent, sizeof parent, "%.*s", slash > path ? (int)(slash - path) : 1,
                     slash ? path : ".");
            int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (fd >= 0) {
                (void)fsync(fd);
                close(fd);
            }
        } else if (errno != EEXIST && was == 0)
            return steer_fail(err, STEER_IO, "%s: cannot be made: %s", dir, strerror(errno));
        *at = was;
        if (was == 0) return 0;
    }
}

/* A directory without steer.db is taken only if it is empty: whatever lay in a folder named spool
 * would be removed as unknown. */
static int check_dir(const char *dir, struct steer_error *err)
{
    static const char *const ours[] = {
        "lock", "reserve", "steer.db", "steer.db-wal", "steer.db-journal", "lost+found", ".", ".."};
    DIR *d = opendir(dir);
    if (!d) return steer_fail(err, STEER_IO, "%s: cannot be opened: %s", dir, strerror(errno));
    char other[256] = "";
    bool has_db = false;
    const struct dirent *entry;
    while ((entry = readdir(d)) != NULL) {
        bool known = false;
        for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
            known = known || strcmp(entry->d_name, ours[i]) == 0;
        if (strcmp(entry->d_name, "steer.db") == 0) {
            struct stat st;
            has_db = fstatat(dirfd(d), "steer.db", &st, 0) == 0 && st.st_size > 0;
        }
        if (!known) snprintf(other, sizeof other, "%s", entry->d_name);
    }
    closedir(d);
    if (!has_db && other[0])
        return steer_fail(err, STEER_STORE,
                          "%s: holds '%s' but no steer.db, so it is not a broker's data directory; "
                          "name that one or an empty one",
                          dir, other);
    return 0;
}

static int lock_dir(struct store *s, struct steer_error *err)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/lock", s->dir);
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0)
        return steer_fail(err, errno == ENOSPC || errno == EDQUOT ? STEER_DISK_FULL : STEER_IO,
                          "%s: cannot be written (%s); the broker keeps its jobs there", s->dir,
                          strerror(errno));
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        int e = errno;
        char holder[16] = "";
        ssize_t n = pread(s->lock_fd, holder, sizeof holder - 1, 0);
        holder[n > 0 ? n : 0] = 0;
        holder[strspn(holder, "0123456789")] = 0;
        if (e != EWOULDBLOCK)
            return steer_fail(err, STEER_IO, "%s: cannot be locked: %s", path, strerror(e));
        return steer_fail(err, STEER_STORE,
                          "%s: is in use by another steer-broker (process %s); a data directory "
                          "belongs to one broker",
                          s->dir, holder[0] ? holder : "unknown");
    }
    char holder[16];
    int n = snprintf(holder, sizeof holder, "%ld\n", (long)getpid());
    if (ftruncate(s->lock_fd, 0) != 0 || pwrite(s->lock_fd, holder, (size_t)n, 0) != n) {
        /* A full disk: the lock holds without the number. */
    }
    return 0;
}

/* ---- room on disk */

static void note_trouble(struct store *s, const struct steer_error *err)
{
    pthread_mutex_lock(&s->mutex);
    s->trouble = *err;
    pthread_mutex_unlock(&s->mutex);
}

static bool reserve_make(struct store *s)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/reserve", s->dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return false;
    int e = posix_fallocate(fd, 0, (off_t)s->opt.reserve_bytes);
    close(fd);
    if (e != 0) (void)unlink(path);
    s->reserved = e == 0;
    return s->reserved;
}

static bool reserve_give(struct store *s)
{
    if (!s->reserved) return false;
    char path[4096];
    snprintf(path, sizeof path, "%s/reserve", s->dir);
    s->reserved = false;
    return unlink(path) == 0;
}

/* Looks at the disk, and decides whether new work may come. */
static void look_at_disk(struct store *s)
{
    struct statvfs v;
    uint64_t least = s->opt.free_bytes_min, reserve = s->opt.reserve_bytes, left = UINT64_MAX;
    if (statvfs(s->dir, &v) == 0) {
        left = (uint64_t)v.f_bavail * v.f_frsize;
        /* Small disks are not refused for being small. */
        uint64_t sixteenth = (uint64_t)v.f_blocks * v.f_frsize / 16;
        if (least > sixteenth) least = sixteenth;
        if (reserve > sixteenth) s->opt.reserve_bytes = reserve = sixteenth;
    }
    /* Images stop earlier than jobs: whoever cannot render now can still submit. */
    spool_disk_set(s->spool, left, 2 * least);
    bool tight = left < least;
    /* The reserve comes back first: who is full again a moment later needs it. */
    if (!tight && reserve > 0 && !s->reserved && left - least >= reserve) (void)reserve_make(s);
    if (!tight && (reserve == 0 || s->reserved)) s->refused = false;
    bool full = tight || s->refused;

    pthread_mutex_lock(&s->mutex);
    s->full = full;
    if (tight)
        (void)steer_fail(&s->trouble, STEER_DISK_FULL,
                         "%s: the disk has %" PRIu64
                         " bytes left, new work needs at least %" PRIu64,
                         s->dir, left, least);
    pthread_mutex_unlock(&s->mutex);
}

static bool is_full(struct store *s)
{
    pthread_mutex_lock(&s->mutex);
    bool full = s->full;
    pthread_mutex_unlock(&s->mutex);
    return full;
}

/* ---- committing */

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static struct store_batch *batch_of(struct op *op)
{
    return (struct store_batch *)op;
}

static void die(struct store *s, const struct steer_error *err)
{
    s->dead = true; /* 3 */
    db_abandon(s->db);
    note_trouble(s, err);
}

static void mark(struct op_list *group, int code, bool growing_only, bool *ret_any)
{
    for (struct op *op = group->first; op; op = op->next) {
        struct store_batch *b = batch_of(op);
        if (b->code != 0 || (growing_only && !b->grows)) continue;
        b->code = code;
        *ret_any = true;
    }
}

/* Writes a batch's images. Payloads go back to their owners, written or not. */
static void write_images(struct store *s, struct store_batch *b)
{
    for (struct record *r = b->first; r; r = r->next) {
        if (r->type != RECORD_IMAGE_SPOOL) continue;
        if (b->code == 0) {
            r->u.image.file = db_file_number(s->db);
            struct spool_file f = {.job = r->u.image.record.job,
                                   .index = r->u.image.record.index,
                                   .file = r->u.image.file,
                                   .bytes = r->u.image.record.bytes};
            struct steer_error err;
            int code = spool_write(s->spool, &f, r->u.image.payload.data, &err);
            r->u.image.written = code == 0;
            if (code == STEER_DISK_FULL || code == STEER_BUSY) {
                note_trouble(s, &err);
                b->code = code;
            } else if (code != 0) {
                die(s, &err);
                b->code = STEER_STORE;
            }
        }
        payload_release(&r->u.image.payload);
    }
}

/* The images of a batch that was not kept. */
static void forget_images(struct store *s, struct store_batch *b)
{
    for (struct record *r = b->first; r; r = r->next) {
        if (r->type != RECORD_IMAGE_SPOOL) continue;
        struct spool_file f = {.job = r->u.image.record.job,
                               .index = r->u.image.record.index,
                               .file = r->u.image.file,
                               .bytes = r->u.image.record.bytes};
        if (r->u.image.written && !b->outcome_unknown) spool_remove(s->spool, &f); /* 2 */
        spool_count_out(s->spool, r->u.image.record.bytes);
    }
}

/* One transaction for all batches of the group whose code is 0. 0: *ret_bad is NULL. */
static int try_commit(struct store *s, struct op_list *group, uint64_t *ret_sequence,
                      struct store_batch **ret_bad, bool *ret_committing, struct steer_error *err)
{
    *ret_bad = NULL;
    *ret_committing = false;
    s->drops.count = 0;
    int code = db_begin(s->db, err);
    for (struct op *op = group->first; op && code == 0; op = op->next) {
        if (batch_of(op)->code != 0) continue;
        code = db_apply(s->db, batch_of(op), &s->drops, err);
        if (code != 0) *ret_bad = batch_of(op);
    }
    if (code == 0) {
        *ret_committing = true;
        code = db_commit(s->db, ret_sequence, err);
    }
    if (code != 0) db_rollback(s->db);
    return code;
}

/* Commits what can be committed of the group; the rest gets a code. Each turn settles at least one
 * batch or gives the reserve away, so it ends. */
static void commit_group(struct store *s, struct op_list *group)
{
    struct steer_error err = {0};
    uint64_t sequence = 0;
    for (;;) {
        bool any = false, changed = false, committing;
        for (struct op *op = group->first; op; op = op->next)
            any = any || batch_of(op)->code == 0;
        if (!any) {
            s->drops.count = 0;
            return;
        }
        struct store_batch *bad;
        int code = s->dead ? STEER_STORE : try_commit(s, group, &sequence, &bad, &committing, &err);
        if (s->dead) {
            mark(group, STEER_STORE, false, &changed);
            continue;
        }
        if (code == 0) break;
        note_trouble(s, &err);
        if (code == STEER_DISK_FULL) {
            /* New work waits; the rest is tried again, then again with the reserve given up. */
            s->refused = true;
            mark(group, code, true, &changed);
            if (!changed && !reserve_give(s)) mark(group, code, false, &changed);
        } else if (code == STEER_STORE) {
            die(s, &err);
            for (struct op *op = group->first; op; op = op->next)
                if (batch_of(op)->code == 0) batch_of(op)->outcome_unknown = committing;
            mark(group, code, false, &changed);
        } else if (bad)
            bad->code = code;
        else
            mark(group, code, false, &changed);
    }
    for (struct op *op = group->first; op; op = op->next)
        if (batch_of(op)->code == 0) op->c.sequence = sequence;
}

static void publish(struct store *s, struct op_list *ops)
{
    if (!ops->first) return;
    pthread_mutex_lock(&s->mutex);
    list_move(&s->done, ops);
    uint64_t one = 1;
    /* Adding 1 to a counter that is reset at each reading cannot overflow it. */
    if (write(s->event_fd, &one, sizeof one) < 0) {
    }
    pthread_mutex_unlock(&s->mutex);
}

static void checkpoint(struct store *s)
{
    struct steer_error err;
    bool done;
    int code = db_checkpoint(s->db, &done, &err);
    if (code == STEER_DISK_FULL) {
        /* The log goes on growing meanwhile; with the reserve's space it may succeed. */
        s->refused = true;
        note_trouble(s, &err);
        if (reserve_give(s)) code = db_checkpoint(s->db, &done, &err);
    }
    if (code == STEER_STORE) die(s, &err);
    if (done) {
        pthread_mutex_lock(&s->mutex);
        s->figures.checkpoints++;
        pthread_mutex_unlock(&s->mutex);
    }
}

static void do_group(struct store *s, struct op_list *group)
{
    uint64_t began_us = now_us(), batches = 0, records = 0;
    if (!s->dead) look_at_disk(s);
    bool full = is_full(s);
    for (struct op *op = group->first; op; op = op->next) {
        struct store_batch *b = batch_of(op);
        b->code = s->dead ? STEER_STORE : full && b->grows ? STEER_DISK_FULL : 0; /* 4 */
        write_images(s, b);
        batches++;
        records += b->records;
    }
    commit_group(s, group);
    for (struct op *op = group->first; op; op = op->next) {
        struct store_batch *b = batch_of(op);
        op->c.code = b->code;
        if (b->code != 0) {
            forget_images(s, b);
            continue;
        }
        op->c.expired = b->expired;
        op->c.known = b->known;
        op->c.known_count = b->known_count;
    }
    uint64_t took_us = now_us() - began_us;
    pthread_mutex_lock(&s->mutex);
    s->figures.commits++;
    s->figures.batches += batches;
    s->figures.records += records;
    s->figures.commit_us_sum += took_us;
    if (took_us > s->figures.commit_us_max) s->figures.commit_us_max = took_us;
    pthread_mutex_unlock(&s->mutex);
    publish(s, group);

    if (s->dead) return;
    for (size_t i = 0; i < s->drops.count; i++) { /* 1 */
        spool_remove(s->spool, &s->drops.files[i]);
        spool_count_out(s->spool, s->drops.files[i].bytes);
    }
    s->drops.count = 0;
    checkpoint(s);
}

/* ---- answering */

static void answer(struct store *s, struct question *q)
{
    struct store_completion *c = &q->op.c;
    struct steer_error err = {0};
    if (s->dead) {
        c->code = STEER_STORE;
        return;
    }
    if (c->kind == STORE_QUERY) {
        c->code = db_query(s->db, &q->query, &q->arena, c, &err);
    } else {
        struct spool_file f;
        c->code = db_image(s->db, q->job, q->index, &q->arena, c, &f, &err);
        if (c->code == 0) c->code = spool_read(s->spool, &f, &c->payload, &err);
    }
    if (c->code == STEER_STORE) die(s, &err);
}

/* ---- the thread */

static void do_work(struct store *s, struct op_list *work)
{
    while (work->first) {
        struct op_list group, questions;
        list_clear(&group);
        list_clear(&questions);
        uint64_t records = 0, bytes = 0;
        while (work->first && records < GROUP_RECORDS_MAX && bytes < GROUP_BYTES_MAX) {
            struct op *op = list_take(work);
            if (op->c.kind == STORE_BATCH) {
                records += batch_of(op)->records;
                bytes += batch_of(op)->payload_bytes;
                list_add(&group, op);
            } else {
                list_add(&questions, op);
            }
        }
        if (group.first) do_group(s, &group);
        struct op *op;
        while ((op = list_take(&questions)) != NULL) {
            struct op_list one;
            list_clear(&one);
            answer(s, (struct question *)op);
            list_add(&one, op);
            publish(s, &one);
        }
    }
}

static void *run(void *context)
{
    struct store *s = context;
    for (;;) {
        struct op_list work;
        list_clear(&work);
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec++;
        pthread_mutex_lock(&s->mutex);
        int rc = 0;
        while (!s->todo.first && !s->closing && rc == 0)
            rc = pthread_cond_timedwait(&s->work, &s->mutex, &until);
        list_move(&work, &s->todo);
        bool closing = s->closing;
        pthread_mutex_unlock(&s->mutex);
        if (work.first)
            do_work(s, &work);
        else if (closing)
            return NULL;
        else if (!s->dead)
            look_at_disk(s); /* so that being full ends without anybody asking */
    }
}

static int start_thread(struct store *s, struct steer_error *err)
{
    /* Signals are the broker's main thread's. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int e = pthread_create(&s->thread, NULL, run, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (e != 0) return steer_fail(err, STEER_NO_MEMORY, "no thread for the store: %s", strerror(e));
    s->thread_runs = true;
    return 0;
}

/* ---- open and close */

/* Opens the database, or does so with the reserve given up: a broker must start on a full disk, or
 * what is in its way could never be fetched. */
static int open_db(struct store *s, struct store_opened *opened, struct steer_error *err)
{
    int code = db_open(&s->db, &s->opt, opened, err);
    if (code == STEER_DISK_FULL && reserve_give(s)) {
        s->refused = true;
        code = db_open(&s->db, &s->opt, opened, err);
    }
    if (code != 0) return code;
    if ((code = spool_open(&s->spool, s->dir, s->opt.spool_bytes_max, err)) != 0) return code;
    code = db_check_spool(s->db, s->spool, s->opt.verify_bytes_max, opened, err);
    if (code == STEER_DISK_FULL && reserve_give(s)) {
        s->refused = true;
        code = db_check_spool(s->db, s->spool, s->opt.verify_bytes_max, opened, err);
    }
    return code;
}

int store_open(struct store **ret_store, const struct store_options *opt,
               const struct store_load *load, struct store_opened *ret_opened,
               struct steer_error *err)
{
    static const struct store_load nothing;
    struct store_opened opened = {0};
    int code = make_dir(opt->dir, err);
    if (code == 0) code = check_dir(opt->dir, err);
    if (code != 0) return code;

    struct store *s = calloc(1, sizeof *s);
    if (!s) return steer_fail(err, STEER_NO_MEMORY, "out of memory for the store");
    s->lock_fd = s->event_fd = -1;
    list_clear(&s->todo);
    list_clear(&s->done);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->work, &attr);
    pthread_condattr_destroy(&attr);

    code = STEER_NO_MEMORY;
    s->opt = *opt;
    s->opt.dir = s->dir = strdup(opt->dir);
    if (!s->dir) {
        steer_fail(err, code, "out of memory for the store");
        goto fail;
    }
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->event_fd < 0) {
        steer_fail(err, code, "no eventfd for the store: %s", strerror(errno));
        goto fail;
    }
    if ((code = lock_dir(s, err)) != 0) goto fail;
    char reserve[4096];
    snprintf(reserve, sizeof reserve, "%s/reserve", s->dir);
    struct stat st;
    /* One that a full disk left empty is none. */
    s->reserved = stat(reserve, &st) == 0 && st.st_size > 0 && st.st_blocks > 0;
    if ((code = open_db(s, &opened, err)) != 0) goto fail;
    look_at_disk(s);
    if ((code = db_load(s->db, load ? load : &nothing, s->spool, &opened, err)) != 0) goto fail;
    if ((code = start_thread(s, err)) != 0) goto fail;
    *ret_opened = opened;
    *ret_store = s;
    return 0;

fail:
    store_close(s);
    return code;
}

static void op_free(struct op *op)
{
    free(op->c.payload);
    if (op->c.kind == STORE_BATCH) {
        store_batch_free(batch_of(op));
    } else {
        struct question *q = (struct question *)op;
        arena_free(&q->arena);
        free(q);
    }
}

void store_close(struct store *s)
{
    if (!s) return;
    if (s->thread_runs) {
        pthread_mutex_lock(&s->mutex);
        s->closing = true;
        pthread_cond_signal(&s->work);
        pthread_mutex_unlock(&s->mutex);
        pthread_join(s->thread, NULL);
    }
    struct op *op;
    while ((op = list_take(&s->done)) != NULL)
        op_free(op);
    db_close(s->db);
    spool_close(s->spool);
    free(s->drops.files);
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->mutex);
    if (s->event_fd >= 0) close(s->event_fd);
    if (s->lock_fd >= 0) close(s->lock_fd);
    free(s->dir);
    free(s);
}

/* ---- the broker's side */

static void enqueue(struct store *s, struct op *op)
{
    pthread_mutex_lock(&s->mutex);
    bool idle = !s->todo.first;
    list_add(&s->todo, op);
    if (idle) pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->mutex);
}

void store_submit(struct store *s, struct store_batch **b, void *cookie)
{
    struct store_batch *batch = *b;
    *b = NULL;
    batch->op.c = (struct store_completion){.cookie = cookie, .kind = STORE_BATCH};
    for (struct record *r = batch->first; r; r = r->next)
        if (r->type == RECORD_IMAGE_SPOOL) spool_count_in(s->spool, r->u.image.record.bytes);
    enqueue(s, &batch->op);
}

static bool query_text(struct question *q, const char **text)
{
    if (*text) *text = arena_copy(&q->arena, *text, strlen(*text));
    return *text != NULL;
}

int store_query(struct store *s, const struct store_query *query, void *cookie)
{
    struct question *q = calloc(1, sizeof *q);
    if (!q) return STEER_NO_MEMORY;
    q->op.c = (struct store_completion){.cookie = cookie, .kind = STORE_QUERY};
    q->query = *query;
    if ((query->tenant && !query_text(q, &q->query.tenant)) ||
        (query->key && !query_text(q, &q->query.key)) ||
        (query->label.key && !query_text(q, &q->query.label.key)) ||
        (query->label.value && !query_text(q, &q->query.label.value))) {
        op_free(&q->op);
        return STEER_NO_MEMORY;
    }
    enqueue(s, &q->op);
    return 0;
}

int store_read(struct store *s, uint64_t job, uint32_t index, void *cookie)
{
    struct question *q = calloc(1, sizeof *q);
    if (!q) return STEER_NO_MEMORY;
    q->op.c = (struct store_completion){.cookie = cookie, .kind = STORE_READ};
    q->job = job;
    q->index = index;
    enqueue(s, &q->op);
    return 0;
}

int store_fd(const struct store *s)
{
    return s->event_fd;
}

int store_next(struct store *s, struct store_completion *ret_completion)
{
    pthread_mutex_lock(&s->mutex);
    struct op *op = list_take(&s->done);
    if (!s->done.first) {
        uint64_t count;
        if (read(s->event_fd, &count, sizeof count) < 0) {
            /* Nothing had been signalled. */
        }
    }
    pthread_mutex_unlock(&s->mutex);
    if (!op) return 0;
    *ret_completion = op->c;
    ret_completion->owned = op;
    op->c.payload = NULL; /* whoever has the completion has it */
    return 1;
}

void store_completion_clear(struct store_completion *c)
{
    free(c->payload);
    if (c->owned) op_free(c->owned);
    *c = (struct store_completion){0};
}

const char *store_trouble(struct store *s)
{
    pthread_mutex_lock(&s->mutex);
    s->trouble_shown = s->trouble;
    pthread_mutex_unlock(&s->mutex);
    return s->trouble_shown.text;
}

void store_space(struct store *s, struct store_space *ret_space)
{
    struct spool_room room;
    spool_room(s->spool, &room);
    *ret_space = (struct store_space){
        .spool_used = room.used,
        .spool_images = room.images,
        .spool_reserved = room.reserved,
        .spool_max = room.max,
        .disk_free = room.disk_free,
        .full = is_full(s),
    };
}

int store_reserve(struct store *s, uint64_t bytes)
{
    return is_full(s) ? STEER_DISK_FULL : spool_reserve(s->spool, bytes);
}

void store_release(struct store *s, uint64_t bytes)
{
    spool_release(s->spool, bytes);
}

void store_figures(struct store *s, struct store_figures *ret_figures)
{
    pthread_mutex_lock(&s->mutex);
    *ret_figures = s->figures;
    pthread_mutex_unlock(&s->mutex);
}
