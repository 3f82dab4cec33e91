/* ptx.h - runs PTX as nvcc wrote it, on the CPU, and refuses what hardware would let pass.
 *
 * A module is parsed once. A launch runs its blocks one after another, a warp's 32 lanes an
 * instruction; where lanes part, those at the lowest instruction go first. What is noticed: an
 * access outside of allocations (gmem.h) or shared memory, a misaligned one, two threads at one
 * place of shared memory without a barrier between, a read of shared memory that nobody wrote or
 * that cp.async has not landed in (copies land as late as their wait allows), barriers and
 * collectives that not all threads reach. An opcode, modifier or operand that is not modelled is an
 * error with its name.
 *
 * Approximate instructions (ex2, rcp, rsqrt, lg2, tanh, sin, cos .approx) answer with libm's value,
 * mma.sync adds in f32, one product after another: results are near the hardware's, not its bits.
 * Shared memory is watched in units of two bytes. */
#ifndef GPU_PTX_H
#define GPU_PTX_H
#include <stddef.h>
#include <stdint.h>

enum ptx_fault_kind {
    PTX_FINE,
    PTX_UNKNOWN, /* an opcode that is not modelled; nothing has run */
    PTX_ADDRESS, /* outside of memory */
    PTX_MISALIGNED,
    PTX_UNSOUND, /* race, unwritten or in-flight read, barrier or collective without all its threads
                  */
    PTX_NO_MEMORY,
};

struct ptx_fault {
    enum ptx_fault_kind kind;
    char text[512]; /* one sentence: kernel, line, opcode, block, thread, what is wrong */
};

/* What launches did. Instructions are a warp's: one for 32 lanes. */
struct ptx_counts {
    uint64_t launches;
    uint64_t instructions, mma, ldmatrix, barriers;
    uint64_t global, shared, local; /* ld, st, atom and red of each space */
    uint64_t branches, conversions;
    uint64_t special;        /* of a thread: ex2, rcp, sqrt and their like */
    uint64_t copies;         /* of a thread: cp.async */
    uint64_t copies_nothing; /* those that read no byte: zeros */
    /* Of global memory, a sector is 32 bytes; cp.async's apart. */
    uint64_t read_sectors, read_bytes, written_sectors, written_bytes, copied_sectors, copied_bytes;
    /* Passes over the 32 banks, and without conflicts: of ld.shared and st.shared, of ldmatrix. */
    uint64_t shared_waves, shared_waves_least;
    uint64_t ldmatrix_waves, ldmatrix_waves_least;
};

struct ptx_variable {
    char *name;
    uint64_t address; /* in gmem.h's device */
    size_t size;
};

struct ptx_kernel {
    char *name;
    size_t param_bytes;
    size_t params;
    const size_t *param_offsets, *param_sizes;
    size_t shared_bytes, local_bytes; /* as declared: without the launch's dynamic part; a thread */
    size_t threads_max;               /* of a block */
    const char *unknown;              /* what is not modelled in it, or NULL */
};

struct ptx_module {
    struct ptx_kernel **kernels;
    size_t n_kernels;
    struct ptx_variable
        *variables; /* .global and .const; allocated on the device and initialised */
    size_t n_variables;
};

struct ptx_launch {
    unsigned grid[3], block[3];
    size_t dynamic_shared_bytes;
    const void *params; /* param_bytes, each at its offset */
};

/* 0, or -1 with a sentence in error. most: the device's bytes (gmem_alloc). */
int ptx_parse(struct ptx_module **ret_module, const char *text, size_t size, size_t most,
              char *error, size_t error_size);
void ptx_free(struct ptx_module *m); /* NULL is fine; frees its variables */
const struct ptx_kernel *ptx_kernel_find(const struct ptx_module *m, const char *name);

/* Runs all blocks. 0 with counts added to *counts, or -1 with *fault. */
int ptx_run(const struct ptx_kernel *k, const struct ptx_launch *l, struct ptx_counts *counts,
            struct ptx_fault *fault);
#endif
