/* simt.h - a small model of a GPU that runs a kernel's own source on the host and watches it.
 *
 * kernels/cuda/primitives.cuh calls it where nvcc would emit PTX. A thread is a fiber; a warp's
 * collectives (mma, ldmatrix, shuffles, warp_sync) wait for all 32 lanes, barriers for the block.
 * The order of warps, and of lanes in a warp, is drawn from a seed. Blocks run one after another.
 *
 * What is an error, told by simt_error:
 *   - a lane that does not come to its warp's collective, a thread that misses a barrier;
 *   - two threads at one word of shared memory, one of them writing, with no barrier between
 * (within a warp: no warp_sync); two threads of a launch at one word of global memory the same way;
 *   - reading what nobody wrote, shared or global; an address outside of the block's shared memory
 *     or of every array that simt_memory named; an address that is not aligned;
 *   - touching a place to which a copy_async is on its way. Copies land as late as they may: at the
 *     wait that says so, counted, so that two to one place are two.
 *
 * Not thread-safe. */
#ifndef TESTS_GPU_SIMT_H
#define TESTS_GPU_SIMT_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- for tests ---- */

/* Forgets arrays, errors and counts. */
void simt_reset(uint64_t seed);
/* An array that kernels may read and, with `write`, write. What was not `filled` by the host may
 * not be read before a kernel wrote it. */
void simt_memory(const void *base, size_t bytes, int filled, int write);
/* The same, watched byte by byte: for arrays of which threads write less than a word. */
void simt_memory_bytes(const void *base, size_t bytes, int filled, int write);

struct simt_counts {
    uint64_t errors;
    uint64_t mma, exp2, barriers; /* warp instructions; exp2: of a thread; barriers: of a block */
    uint64_t matrices, matrix_waves; /* 8x8 matrices, and turns that shared memory took for them */
    uint64_t shared_accesses, shared_waves; /* of 128 bytes: the least they could take; they took */
    uint64_t load_bytes, load_sectors;      /* of global memory, without copy_async; 32 bytes */
    uint64_t store_bytes, store_sectors;
    uint64_t copies, copies_zero; /* of 16 bytes; not from memory */
    uint64_t launches;
};
struct simt_counts simt_counts(void);
/* The first error; "" if there was none. */
const char *simt_error(void);

/* ---- for primitives.cuh ---- */

#define SIMT_SHARED_BASE 1024u /* not 0, so that an offset alone is no address */

/* Runs kernel(parameter) in each thread. 0, or -1: the launch itself is impossible. */
int simt_launch(void (*kernel)(void *), void *parameter, unsigned x, unsigned y, unsigned z,
                int threads, size_t shared_bytes);
int simt_thread(void);
void simt_block(unsigned *x, unsigned *y, unsigned *z);
void simt_block_sync(void);
void simt_warp_sync(void);
float simt_shuffle_xor(float x, int mask);
float simt_exp2(float x);
uint16_t simt_round(float x, int f16); /* to bf16 or f16, ties to even */
float simt_widen(uint16_t x, int f16);
void simt_mma(float c[4], const uint32_t a[4], const uint32_t b[2], int f16);
void simt_matrix_load(uint32_t *r, uint32_t at, int matrices, int transposed);
void simt_copy_async(uint32_t to, const void *from, int on);
void simt_copy_async_commit(void);
void simt_copy_async_wait(int pending);
void simt_shared_store(uint32_t at, const void *x, int bytes);
void simt_shared_load(void *x, uint32_t at, int bytes);
void simt_global_load(void *x, const void *from, int bytes, int on);
void simt_global_store(void *to, const void *x, int bytes, int on);

#ifdef __cplusplus
}
#endif
#endif
