/* model.h - what simt.c (threads) and memory.c (what they touch) share. */
#ifndef TESTS_GPU_SIMT_MODEL_H
#define TESTS_GPU_SIMT_MODEL_H
#include "simt.h"

enum {
    THREADS_MAX = 1024,
    STACK_BYTES = 64 * 1024,
    SHARED_MAX = 227 * 1024, /* of a block on sm_90 */
    COPIES_MAX = 128,        /* of a thread, on their way */
    ACCESSES_MAX = 512,      /* of a lane between two collectives */
};

enum thread_state { THREAD_READY, THREAD_IN_COLLECTIVE, THREAD_AT_BARRIER, THREAD_ENDED };

enum collective {
    WARP_SYNC,
    WARP_SHUFFLE,
    WARP_MMA,
    WARP_MMA_F16,
    WARP_LOAD_2,
    WARP_LOAD_4,
    WARP_LOAD_2_T,
    WARP_LOAD_4_T
};
const char *collective_name(enum collective c);

/* Operands, and results in their place. */
struct shuffle {
    float x;
    int mask;
};
struct mma {
    uint32_t a[4], b[2];
    float c[4];
};
struct matrix {
    uint32_t at, r[4];
};

/* The n-th plain accesses of a warp's lanes since its last collective are one instruction. */
enum access_kind { SHARED_ACCESS, GLOBAL_LOAD, GLOBAL_STORE, ACCESS_KINDS };
struct access {
    uint64_t at[32];
    uint32_t lanes; /* that have one */
    int bytes;
};

struct warp {
    void *lane[32];     /* operands of those that have arrived */
    int arrived, mixed; /* mixed: lanes came to different ones, nothing is done */
    enum collective what;
    uint32_t epoch; /* warp_syncs so far */
    int accesses[ACCESS_KINDS];
    struct access access[ACCESS_KINDS][ACCESSES_MAX];
};

struct copy {
    uint32_t to;
    const void *from; /* NULL: zeros */
    int group;
};

struct thread {
    void *stack; /* where it stopped */
    struct warp *warp;
    int index;
    enum thread_state state;
    enum collective collective;
    int accesses[ACCESS_KINDS]; /* since the last collective of its warp */
    int groups, copies;         /* committed; on their way */
    struct copy copy[COPIES_MAX];
};

extern struct simt {
    void (*kernel)(void *);
    void *parameter;
    int threads, live, at_barrier;
    unsigned block[3];
    uint32_t launch_block; /* blocks of this launch before this one */
    uint32_t epoch;        /* barriers so far, of all blocks */
    size_t shared_bytes;
    struct thread thread[THREADS_MAX], *now;
    struct warp warps[THREADS_MAX / 32];
    void *scheduler;
    char *stacks;
    uint64_t random;
    struct simt_counts counts;
    char error[256];
} simt;

void simt_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A block begins: nothing in shared memory is written. */
void shared_start(void);
void shared_read(void *x, uint32_t at, int bytes, const struct thread *t);
/* Turns that shared memory takes: in one, each of its 32 banks gives one word of 4 bytes. */
unsigned shared_waves(const uint32_t *at, int lanes, int bytes);
/* Counts what a warp's lanes touched since its last collective. */
void accesses_count(struct warp *w);
/* A launch has ended: what it wrote is data. */
void memory_settle(void);
void memory_forget(void);

#endif
