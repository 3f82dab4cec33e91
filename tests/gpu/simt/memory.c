/* memory.c - shared and global memory of the SIMT model: a shadow beside each word of 4 bytes. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

/* ---- shared memory ---- */

/* Who touched a word last. Two accesses of which one writes are in order when a barrier lies
 * between (epoch), or within a warp a warp_sync (warp_epoch). */
struct touch {
    uint32_t epoch, warp_epoch;
    int thread; /* SEVERAL: of one warp; ALL: of more */
    int warp;
};
enum { SEVERAL = -1, ALL = -2 };

struct word {
    int written;
    int coming; /* copies on their way */
    struct touch write, read;
};

static unsigned char shared[SHARED_MAX];
static struct word words[SHARED_MAX / 4];

void shared_start(void)
{
    memset(words, 0, (simt.shared_bytes + 3) / 4 * sizeof *words);
    memset(shared, 0xff, simt.shared_bytes); /* NaN of every type */
}

/* Where `at` is, or NULL after a failure. */
static struct word *shared_word(uint32_t at, int bytes, const char *what)
{
    uint32_t offset = at - SIMT_SHARED_BASE;
    if (offset > simt.shared_bytes || simt.shared_bytes - offset < (size_t)bytes) {
        simt_fail("%s at %d of %zu bytes of shared memory", what, (int)offset, simt.shared_bytes);
        return NULL;
    }
    if (at % (uint32_t)bytes) {
        simt_fail("%s of %d bytes at shared %u: not aligned", what, bytes, offset);
        return NULL;
    }
    return &words[offset / 4];
}

/* 1 when t's access may come in either order with an earlier one. */
static int races(const struct touch *earlier, const struct thread *t)
{
    if (earlier->epoch != simt.epoch || earlier->thread == t->index) return 0;
    return earlier->thread == ALL || earlier->warp != t->index / 32 ||
           earlier->warp_epoch == t->warp->epoch;
}

static void word_read(struct word *w, uint32_t offset, const struct thread *t)
{
    if (w->coming)
        simt_fail("thread %d reads shared %u while a copy is on its way", t->index, offset);
    else if (!w->written)
        simt_fail("thread %d reads shared %u, which nobody wrote", t->index, offset);
    if (races(&w->write, t))
        simt_fail("race: thread %d reads shared %u, which thread %d writes", t->index, offset,
                  w->write.thread);
    struct touch *r = &w->read;
    int warp = t->index / 32;
    if (r->epoch != simt.epoch) {
        *r = (struct touch){simt.epoch, t->warp->epoch, t->index, warp};
    } else if (r->thread != t->index) {
        r->thread = r->thread == ALL || r->warp != warp ? ALL : SEVERAL;
        r->warp_epoch = t->warp->epoch;
    } else {
        r->warp_epoch = t->warp->epoch;
    }
}

static void word_write(struct word *w, uint32_t offset, const struct thread *t)
{
    if (races(&w->write, t))
        simt_fail("race: thread %d writes shared %u, which thread %d writes", t->index, offset,
                  w->write.thread);
    if (races(&w->read, t))
        simt_fail("race: thread %d writes shared %u, which another reads", t->index, offset);
    w->written = 1;
    w->write = (struct touch){simt.epoch, t->warp->epoch, t->index, t->index / 32};
}

void shared_read(void *x, uint32_t at, int bytes, const struct thread *t)
{
    struct word *w = shared_word(at, bytes, "a load");
    memset(x, 0xff, (size_t)bytes);
    if (!w) return;
    for (int i = 0; i < bytes / 4; i++)
        word_read(w + i, at - SIMT_SHARED_BASE + i * 4, t);
    memcpy(x, shared + (at - SIMT_SHARED_BASE), (size_t)bytes);
}

/* A lane's n-th access since the last collective goes with the n-th of the others. */
static void access_note(enum access_kind kind, uint64_t at, int bytes, int on)
{
    struct thread *t = simt.now;
    int n = t->accesses[kind]++;
    if (n >= ACCESSES_MAX) {
        simt_fail("more than %d accesses between two collectives", ACCESSES_MAX);
        return;
    }
    struct warp *w = t->warp;
    struct access *a = &w->access[kind][n];
    for (; w->accesses[kind] <= n; w->accesses[kind]++)
        w->access[kind][w->accesses[kind]].lanes = 0;
    a->bytes = bytes;
    a->at[t->index % 32] = at;
    if (on) a->lanes |= 1u << t->index % 32;
}

void simt_shared_load(void *x, uint32_t at, int bytes)
{
    access_note(SHARED_ACCESS, at, bytes, 1);
    shared_read(x, at, bytes, simt.now);
}

void simt_shared_store(uint32_t at, const void *x, int bytes)
{
    access_note(SHARED_ACCESS, at, bytes, 1);
    struct word *w = shared_word(at, bytes, "a store");
    if (!w) return;
    for (int i = 0; i < bytes / 4; i++) {
        if (w[i].coming)
            simt_fail("writes shared %u while a copy is on its way", at - SIMT_SHARED_BASE);
        word_write(w + i, at - SIMT_SHARED_BASE + i * 4, simt.now);
    }
    memcpy(shared + (at - SIMT_SHARED_BASE), x, (size_t)bytes);
}

/* ---- copies from global to shared memory ---- */

void simt_copy_async(uint32_t to, const void *from, int on)
{
    struct thread *t = simt.now;
    struct word *w = shared_word(to, 16, "a copy");
    if (!w) return;
    if (t->copies == COPIES_MAX) {
        simt_fail("has more than %d copies on their way", COPIES_MAX);
        return;
    }
    simt.counts.copies++;
    simt.counts.copies_zero += !on;
    for (int i = 0; i < 4; i++) {
        if (w[i].coming) simt_fail("sends two copies to shared %u", to - SIMT_SHARED_BASE);
        word_write(w + i, to - SIMT_SHARED_BASE + i * 4, t); /* it may land from now on */
        w[i].coming++;
    }
    t->copy[t->copies++] = (struct copy){to, on ? from : NULL, t->groups};
}

void simt_copy_async_commit(void)
{
    simt.now->groups++;
}

static void global_read(void *x, const void *from, int bytes);

/* All but the last `pending` groups land now, and not before. What was never committed stays. */
void simt_copy_async_wait(int pending)
{
    struct thread *t = simt.now;
    int kept = 0;
    for (int i = 0; i < t->copies; i++) {
        struct copy c = t->copy[i];
        if (c.group >= t->groups - pending) {
            t->copy[kept++] = c;
            continue;
        }
        unsigned char x[16] = {0};
        struct word *w = &words[(c.to - SIMT_SHARED_BASE) / 4];
        if (c.from) global_read(x, c.from, 16);
        for (int j = 0; j < 4; j++) {
            w[j].coming--;
            word_write(w + j, c.to - SIMT_SHARED_BASE + j * 4, t);
        }
        memcpy(shared + (c.to - SIMT_SHARED_BASE), x, 16);
    }
    t->copies = kept;
}

/* ---- global memory ---- */

/* Beside each word, or byte: who wrote it. */
enum { WORD_NEVER, WORD_DATA, WORD_WRITTEN }; /* then block * THREADS_MAX + thread */
struct array {
    const char *base;
    size_t bytes;
    int write, unit; /* bytes that share a shadow */
    uint32_t *words;
};
enum { ARRAYS_MAX = 64 };
static struct array arrays[ARRAYS_MAX];
static int array_count;

void memory_forget(void)
{
    while (array_count)
        free(arrays[--array_count].words);
}

static void array_add(const void *base, size_t bytes, int filled, int write, int unit)
{
    size_t count = bytes / (size_t)unit + 1;
    uint32_t *shadow = array_count < ARRAYS_MAX ? malloc(count * sizeof *shadow) : NULL;
    if (!shadow) abort();
    for (size_t i = 0; i < count; i++)
        shadow[i] = filled ? WORD_DATA : WORD_NEVER;
    arrays[array_count++] = (struct array){base, bytes, write, unit, shadow};
}

void simt_memory(const void *base, size_t bytes, int filled, int write)
{
    array_add(base, bytes, filled, write, 4);
}

void simt_memory_bytes(const void *base, size_t bytes, int filled, int write)
{
    array_add(base, bytes, filled, write, 1);
}

void memory_settle(void)
{
    for (int i = 0; i < array_count; i++)
        for (size_t j = 0; arrays[i].write && j <= arrays[i].bytes / (size_t)arrays[i].unit; j++)
            if (arrays[i].words[j] > WORD_DATA) arrays[i].words[j] = WORD_DATA;
}

/* The `count` shadows of what is at p, or NULL after a failure. */
static uint32_t *global_words(const void *p, int bytes, int write, int *count)
{
    static int last; /* accesses come in runs */
    uintptr_t at = (uintptr_t)p;
    for (int i = 0; i < array_count; i++) {
        int n = (last + i) % array_count;
        const struct array *a = &arrays[n];
        uintptr_t base = (uintptr_t)a->base;
        if (at < base || at - base > a->bytes || a->bytes - (at - base) < (size_t)bytes) continue;
        last = n;
        if (write && !a->write) {
            simt_fail("writes an array that is only read, at byte %zu", (size_t)(at - base));
            return NULL;
        }
        if (at % (uintptr_t)bytes) {
            simt_fail("%d bytes of global memory: not aligned", bytes);
            return NULL;
        }
        *count = (bytes + a->unit - 1) / a->unit;
        return a->words + (at - base) / (size_t)a->unit;
    }
    simt_fail("%s global memory outside of every array", write ? "writes" : "reads");
    return NULL;
}

static uint32_t writer(void)
{
    return WORD_WRITTEN + simt.launch_block * THREADS_MAX + (uint32_t)simt.now->index;
}

static void global_read(void *x, const void *from, int bytes)
{
    int count;
    const uint32_t *w = global_words(from, bytes, 0, &count);
    if (!w) return;
    for (int i = 0; i < count; i++) {
        if (w[i] == WORD_NEVER) simt_fail("reads global memory that nobody wrote");
        if (w[i] > WORD_DATA && w[i] != writer())
            simt_fail("reads global memory that another thread of the launch writes");
    }
    memcpy(x, from, (size_t)bytes);
}

void simt_global_load(void *x, const void *from, int bytes, int on)
{
    access_note(GLOBAL_LOAD, (uintptr_t)from, bytes, on);
    if (on) global_read(x, from, bytes);
}

void simt_global_store(void *to, const void *x, int bytes, int on)
{
    access_note(GLOBAL_STORE, (uintptr_t)to, bytes, on);
    int count;
    uint32_t *w = on ? global_words(to, bytes, 1, &count) : NULL;
    if (!w) return;
    for (int i = 0; i < count; i++) {
        if (w[i] > WORD_DATA && w[i] != writer())
            simt_fail("writes global memory that another thread of the launch writes");
        w[i] = writer();
    }
    memcpy(to, x, (size_t)bytes);
}

/* ---- what accesses cost ---- */

/* Lanes of 16 bytes are served eight at a time, of 8 bytes sixteen. */
unsigned shared_waves(const uint32_t *at, int lanes, int bytes)
{
    unsigned waves = 0;
    int together = bytes == 4 ? 32 : 128 / bytes;
    for (int first = 0; first < lanes; first += together) {
        uint32_t seen[32][32];
        unsigned count[32] = {0}, most = 0;
        for (int l = first; l < lanes && l < first + together; l++)
            for (int i = 0; i < bytes / 4; i++) {
                uint32_t word = at[l] / 4 + (uint32_t)i, bank = word % 32;
                unsigned n = 0;
                while (n < count[bank] && seen[bank][n] != word)
                    n++;
                if (n == count[bank]) seen[bank][count[bank]++] = word;
                if (count[bank] > most) most = count[bank];
            }
        waves += most;
    }
    return waves;
}

/* Sectors of 32 bytes that an instruction touches. */
static unsigned sectors(const struct access *a)
{
    uint64_t seen[64];
    unsigned n = 0;
    for (int l = 0; l < 32; l++)
        for (int half = 0; a->lanes >> l & 1 && half < 2; half++) {
            uint64_t s = (a->at[l] + (uint64_t)(half * (a->bytes - 1))) / 32;
            unsigned i = 0;
            while (i < n && seen[i] != s)
                i++;
            if (i == n) seen[n++] = s;
        }
    return n;
}

void accesses_count(struct warp *w)
{
    for (int kind = 0; kind < ACCESS_KINDS; kind++) {
        for (int n = 0; n < w->accesses[kind]; n++) {
            const struct access *a = &w->access[kind][n];
            uint64_t bytes = (uint64_t)a->bytes * (uint64_t)__builtin_popcount(a->lanes);
            if (kind == SHARED_ACCESS) {
                uint32_t at[32];
                int lanes = 0;
                for (int l = 0; l < 32; l++)
                    if (a->lanes >> l & 1) at[lanes++] = (uint32_t)a->at[l];
                simt.counts.shared_accesses += (bytes + 127) / 128;
                simt.counts.shared_waves += shared_waves(at, lanes, a->bytes);
            } else if (kind == GLOBAL_LOAD) {
                simt.counts.load_bytes += bytes;
                simt.counts.load_sectors += sectors(a);
            } else {
                simt.counts.store_bytes += bytes;
                simt.counts.store_sectors += sectors(a);
            }
        }
        w->accesses[kind] = 0;
    }
    for (int l = 0; l < 32; l++)
        memset(simt.thread[(w - simt.warps) * 32 + l].accesses, 0, sizeof simt.now->accesses);
}
