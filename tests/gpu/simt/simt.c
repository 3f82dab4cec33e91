/* simt.c - fibers, warps and barriers; the watched memory is in memory.c. */
#include "model.h"

#include <math.h>
#include <sanitizer/asan_interface.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct simt simt;

/* ---- fibers ---- */

/* Saves the callee's registers on this stack and goes on where `to` stopped. */
void fiber_switch(void **from, void *to);
__asm__(".text\n"
        ".globl fiber_switch\n"
        ".type fiber_switch, @function\n"
        "fiber_switch:\n"
        "    push %rbp\n    push %rbx\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov %rsi, %rsp\n"
        "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbx\n    pop %rbp\n"
        "    ret\n"
        ".size fiber_switch, .-fiber_switch\n");

static void thread_run(void)
{
    simt.kernel(simt.parameter);
    simt.now->state = THREAD_ENDED;
    simt.live--;
    fiber_switch(&simt.now->stack, simt.scheduler);
    abort(); /* an ended thread is not run again */
}

static void thread_start(struct thread *t, int index)
{
    char *base = simt.stacks + (size_t)index * STACK_BYTES;
    void **top = (void **)(base + STACK_BYTES);
    ASAN_UNPOISON_MEMORY_REGION(base, STACK_BYTES); /* a stuck thread was left where it was */
    t->state = THREAD_READY;
    t->groups = t->copies = 0;
    memset(t->accesses, 0, sizeof t->accesses);
    t->index = index;
    t->warp = &simt.warps[index / 32];
    /* As if thread_run had been called: its return address, then six registers. */
    *--top = NULL;
    *--top = (void *)(uintptr_t)thread_run;
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    t->stack = top;
}

/* Until someone makes this thread ready again. */
static void thread_wait(enum thread_state state)
{
    simt.now->state = state;
    fiber_switch(&simt.now->stack, simt.scheduler);
}

/* ---- what is told ---- */

void simt_fail(const char *format, ...)
{
    va_list list;
    if (!simt.counts.errors++) {
        int n = 0;
        if (simt.now)
            n = snprintf(simt.error, sizeof simt.error, "block %u,%u,%u thread %d: ", simt.block[0],
                         simt.block[1], simt.block[2], simt.now->index);
        va_start(list, format);
        vsnprintf(simt.error + n, sizeof simt.error - (size_t)n, format, list);
        va_end(list);
    }
}

void simt_reset(uint64_t seed)
{
    memory_forget();
    memset(&simt.counts, 0, sizeof simt.counts);
    simt.error[0] = 0;
    simt.random = seed * 2 + 1;
}

struct simt_counts simt_counts(void)
{
    return simt.counts;
}

const char *simt_error(void)
{
    return simt.error;
}

/* Below n; xorshift64*. */
static unsigned draw(unsigned n)
{
    simt.random ^= simt.random >> 12;
    simt.random ^= simt.random << 25;
    simt.random ^= simt.random >> 27;
    return (unsigned)((simt.random * 0x2545f4914f6cdd1dull) >> 33) % n;
}

/* ---- the scheduler ---- */

/* All threads that have not ended are at the barrier. */
static void barrier_release(void)
{
    if (simt.live != simt.threads) simt_fail("a barrier that ended threads do not come to");
    for (int i = 0; i < simt.threads; i++)
        if (simt.thread[i].state == THREAD_AT_BARRIER) simt.thread[i].state = THREAD_READY;
    simt.at_barrier = 0;
    simt.epoch++;
    simt.counts.barriers++;
}

/* Nobody can go on: says who waits where. */
static void stuck(void)
{
    for (int i = 0; i < simt.threads; i++)
        if (simt.thread[i].state == THREAD_IN_COLLECTIVE) {
            simt.now = &simt.thread[i];
            simt_fail("waits in %s, to which %d of 32 lanes came",
                      collective_name(simt.now->collective), simt.now->warp->arrived);
        }
    simt.now = NULL;
    simt_fail("threads wait for each other");
}

static void block_run(void)
{
    int warps = simt.threads / 32;
    simt.live = simt.threads;
    simt.at_barrier = 0;
    simt.epoch++;
    for (int w = 0; w < warps; w++) {
        simt.warps[w].arrived = 0;
        simt.warps[w].epoch = 0;
        memset(simt.warps[w].accesses, 0, sizeof simt.warps[w].accesses);
    }
    for (int i = 0; i < simt.threads; i++)
        thread_start(&simt.thread[i], i);
    shared_start();
    while (simt.live > 0) {
        int ran = 0, first = (int)draw((unsigned)warps);
        /* One warp, or when it cannot go on the next that can. */
        for (int w = 0; w < warps && !ran; w++) {
            struct thread *lanes = &simt.thread[(first + w) % warps * 32];
            unsigned turn = draw(32);
            for (unsigned i = 0; i < 32; i++) {
                struct thread *t = &lanes[i ^ turn];
                if (t->state != THREAD_READY) continue;
                ran = 1;
                simt.now = t;
                fiber_switch(&simt.scheduler, t->stack);
                simt.now = NULL;
            }
        }
        if (simt.at_barrier > 0 && simt.at_barrier == simt.live) {
            barrier_release();
        } else if (!ran) {
            stuck();
            return;
        }
    }
    for (int w = 0; w < warps; w++)
        accesses_count(&simt.warps[w]);
    for (int i = 0; i < simt.threads; i++)
        if (simt.thread[i].copies) {
            simt.now = &simt.thread[i];
            simt_fail("ends with %d copies on their way", simt.now->copies);
        }
    simt.now = NULL;
}

int simt_launch(void (*kernel)(void *), void *parameter, unsigned x, unsigned y, unsigned z,
                int threads, size_t shared_bytes)
{
    if (!x || !y || !z || threads < 32 || threads > THREADS_MAX || threads % 32 ||
        shared_bytes > SHARED_MAX)
        return -1;
    if (!simt.stacks) {
        void *stacks = mmap(NULL, (size_t)THREADS_MAX * STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) return -1;
        simt.stacks = stacks;
    }
    simt.kernel = kernel;
    simt.parameter = parameter;
    simt.threads = threads;
    simt.shared_bytes = shared_bytes;
    simt.counts.launches++;
    simt.launch_block = 0;
    for (simt.block[2] = 0; simt.block[2] < z; simt.block[2]++)
        for (simt.block[1] = 0; simt.block[1] < y; simt.block[1]++)
            for (simt.block[0] = 0; simt.block[0] < x; simt.block[0]++) {
                block_run();
                simt.launch_block++;
            }
    memory_settle();
    return 0;
}

int simt_thread(void)
{
    return simt.now->index;
}

void simt_block(unsigned *x, unsigned *y, unsigned *z)
{
    *x = simt.block[0];
    *y = simt.block[1];
    *z = simt.block[2];
}

void simt_block_sync(void)
{
    simt.at_barrier++;
    thread_wait(THREAD_AT_BARRIER);
}

/* ---- a warp's collectives ---- */

static const char *const collective_names[] = {
    [WARP_SYNC] = "warp_sync",
    [WARP_SHUFFLE] = "shuffle_xor",
    [WARP_MMA] = "mma of bf16",
    [WARP_MMA_F16] = "mma of f16",
    [WARP_LOAD_2] = "ldmatrix.x2",
    [WARP_LOAD_4] = "ldmatrix.x4",
    [WARP_LOAD_2_T] = "ldmatrix.x2.trans",
    [WARP_LOAD_4_T] = "ldmatrix.x4.trans",
};

const char *collective_name(enum collective c)
{
    return collective_names[c];
}

/* Lane l's operands are at warp->lane[l], on its own stack. */
static void shuffle_all(struct warp *w)
{
    float x[32];
    for (int l = 0; l < 32; l++)
        x[l] = ((struct shuffle *)w->lane[l])->x;
    for (int l = 0; l < 32; l++) {
        struct shuffle *s = w->lane[l];
        s->x = x[(l ^ s->mask) & 31];
    }
}

/* primitives.cuh draws the fragments. */
static void mma_all(struct warp *w, int f16)
{
    float a[16][16], b[16][8], c[16][8];
    for (int l = 0; l < 32; l++) {
        const struct mma *m = w->lane[l];
        int g = l / 4, t = l % 4 * 2;
        for (int i = 0; i < 8; i++)
            a[g + i / 2 % 2 * 8][t + i / 4 * 8 + i % 2] =
                simt_widen((uint16_t)(m->a[i / 2] >> i % 2 * 16), f16);
        for (int i = 0; i < 4; i++) {
            b[t + i / 2 * 8 + i % 2][g] = simt_widen((uint16_t)(m->b[i / 2] >> i % 2 * 16), f16);
            c[g + i / 2 * 8][t + i % 2] = m->c[i];
        }
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                c[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < 32; l++) {
        struct mma *m = w->lane[l];
        for (int i = 0; i < 4; i++)
            m->c[i] = c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
    }
    simt.counts.mma++;
}

static void matrices_load(struct warp *w, int matrices, int transposed)
{
    for (int i = 0; i < matrices; i++) {
        uint16_t x[8][8];
        uint32_t at[8];
        for (int row = 0; row < 8; row++) {
            const struct matrix *m = w->lane[8 * i + row];
            at[row] = m->at;
            shared_read(x[row], m->at, 16, &simt.thread[(w - simt.warps) * 32 + 8 * i + row]);
        }
        simt.counts.matrices++;
        simt.counts.matrix_waves += shared_waves(at, 8, 16);
        for (int l = 0; l < 32; l++) {
            int g = l / 4, t = l % 4 * 2;
            uint16_t low = transposed ? x[t][g] : x[g][t];
            uint16_t high = transposed ? x[t + 1][g] : x[g][t + 1];
            ((struct matrix *)w->lane[l])->r[i] = low | (uint32_t)high << 16;
        }
    }
}

static void collective_do(struct warp *w, enum collective what)
{
    switch (what) {
    case WARP_SYNC: w->epoch++; break;
    case WARP_SHUFFLE: shuffle_all(w); break;
    case WARP_MMA: mma_all(w, 0); break;
    case WARP_MMA_F16: mma_all(w, 1); break;
    case WARP_LOAD_2: matrices_load(w, 2, 0); break;
    case WARP_LOAD_4: matrices_load(w, 4, 0); break;
    case WARP_LOAD_2_T: matrices_load(w, 2, 1); break;
    case WARP_LOAD_4_T: matrices_load(w, 4, 1); break;
    }
}

/* The last lane to come does it for all, and goes on at once, ahead of the others. */
static void collective(enum collective what, void *operands)
{
    struct warp *w = simt.now->warp;
    struct thread *lanes = &simt.thread[(w - simt.warps) * 32];
    if (!w->arrived) {
        w->what = what;
        w->mixed = 0;
    } else if (w->what != what) {
        simt_fail("is in %s, another lane in %s", collective_name(what), collective_name(w->what));
        w->mixed = 1;
    }
    w->lane[simt.now->index % 32] = operands;
    simt.now->collective = what;
    if (++w->arrived < 32) {
        thread_wait(THREAD_IN_COLLECTIVE);
        return;
    }
    w->arrived = 0;
    accesses_count(w);
    if (!w->mixed) collective_do(w, what);
    for (int l = 0; l < 32; l++)
        lanes[l].state = THREAD_READY;
}

void simt_warp_sync(void)
{
    collective(WARP_SYNC, NULL);
}

float simt_shuffle_xor(float x, int mask)
{
    struct shuffle s = {x, mask};
    collective(WARP_SHUFFLE, &s);
    return s.x;
}

void simt_mma(float c[4], const uint32_t a[4], const uint32_t b[2], int f16)
{
    struct mma m;
    memcpy(m.a, a, sizeof m.a);
    memcpy(m.b, b, sizeof m.b);
    memcpy(m.c, c, sizeof m.c);
    collective(f16 ? WARP_MMA_F16 : WARP_MMA, &m);
    memcpy(c, m.c, sizeof m.c);
}

void simt_matrix_load(uint32_t *r, uint32_t at, int matrices, int transposed)
{
    struct matrix m = {at, {0}};
    collective(matrices == 2 ? (transposed ? WARP_LOAD_2_T : WARP_LOAD_2)
                             : (transposed ? WARP_LOAD_4_T : WARP_LOAD_4),
               &m);
    memcpy(r, m.r, (size_t)matrices * sizeof *r);
}

/* ---- numbers ---- */

float simt_exp2(float x)
{
    float y = exp2f(x);
    simt.counts.exp2++;
    return y < 0x1p-126f ? 0 : y; /* ex2.approx.ftz */
}

__extension__ typedef _Float16 half;

uint16_t simt_round(float x, int f16)
{
    if (f16) {
        half h = (half)x;
        uint16_t bits;
        memcpy(&bits, &h, sizeof bits);
        return bits;
    }
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (x != x) return 0x7fff;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float simt_widen(uint16_t x, int f16)
{
    static float wide[1 << 16]; /* of every f16: the processor's own way takes a library call */
    uint32_t u = (uint32_t)x << 16;
    float y;
    if (f16 && wide[0x3c00] == 0)
        for (int i = 0; i < 1 << 16; i++) {
            half h;
            uint16_t bits = (uint16_t)i;
            memcpy(&h, &bits, sizeof h);
            wide[i] = (float)h;
        }
    memcpy(&y, &u, sizeof y);
    return f16 ? wide[x] : y;
}
