/* simt_cuda.c - simt.h's side for tests by the CUDA runtime: the same tests, on what nvcc made of
 * the same kernels.
 *
 * Arrays stay where they are: registered as mapped, kernels use them at their own addresses. What
 * is watched is the interpreter's to say; counts are its counts, of the same things. */
#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "fake/control.h"
#include "half.h"
#include "simt.h"

enum { ARRAYS_MAX = 256 };

static const void *arrays[ARRAYS_MAX];
static int n_arrays;
static struct ptx_counts before;

void simt_reset(uint64_t seed)
{
    (void)seed; /* blocks and warps have one order here */
    while (n_arrays)
        (void)cudaHostUnregister((void *)arrays[--n_arrays]);
    steer_fake_fail("");
    steer_fake_counts(&before);
}

void simt_memory(const void *base, size_t bytes, int filled, int write)
{
    (void)filled, (void)write;
    for (int i = 0; i < n_arrays; i++)
        if (arrays[i] == base) return; /* named twice */
    if (!bytes) return;
    if (n_arrays == ARRAYS_MAX || cudaHostRegister((void *)base, bytes, cudaHostRegisterMapped))
        abort();
    arrays[n_arrays++] = base;
}

struct simt_counts simt_counts(void)
{
    struct ptx_counts c;
    int failed = cudaDeviceSynchronize() != cudaSuccess;
    steer_fake_counts(&c);
#define SINCE(field) (c.field - before.field)
    return (struct simt_counts){.errors = (uint64_t)failed,
                                .mma = SINCE(mma),
                                .exp2 = SINCE(special),
                                .barriers = SINCE(barriers),
                                .matrices = SINCE(ldmatrix_waves_least),
                                .matrix_waves = SINCE(ldmatrix_waves),
                                .shared_accesses = SINCE(shared_waves_least),
                                .shared_waves = SINCE(shared_waves),
                                .load_bytes = SINCE(read_bytes),
                                .load_sectors = SINCE(read_sectors),
                                .store_bytes = SINCE(written_bytes),
                                .store_sectors = SINCE(written_sectors),
                                .copies = SINCE(copies),
                                .copies_zero = SINCE(copies_nothing),
                                .launches = SINCE(launches)};
}

const char *simt_error(void)
{
    return steer_fake_fault();
}

uint16_t simt_round(float x, int f16)
{
    return f16 ? f16_of(x) : bf16_of(x);
}

float simt_widen(uint16_t x, int f16)
{
    return f16 ? f16_to(x) : bf16_to(x);
}
