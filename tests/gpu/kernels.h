/* kernels.h - launchers of the tests' kernels; each returns the runtime's code. */
#ifndef GPU_KERNELS_H
#define GPU_KERNELS_H
#include <cuda_runtime_api.h>

/* What is wrong in a kernel. */
enum fault {
    FAULT_NONE,
    /* of launch_gemm */
    FAULT_WAIT,          /* it reads what cp.async has not landed */
    FAULT_FIRST_BARRIER, /* and what other threads copied */
    FAULT_LAST_BARRIER,  /* the next copy overtakes a reader */
    /* of launch_unsound */
    FAULT_RACE_WRITE,
    FAULT_RACE_READ,
    FAULT_RACE_LANES, /* within a warp */
    FAULT_UNWRITTEN,
    FAULT_BEYOND,
    FAULT_BEFORE,
    FAULT_MISALIGNED,
    FAULT_SHARED_BEYOND,
    FAULT_DIVERGED_BARRIER,
    FAULT_ABSENT_AT_BARRIER,
    FAULT_DIVERGED_SHUFFLE,
    FAULTS,
};

#ifdef __cplusplus
extern "C" {
#endif
/* out[n] = a[n] + b[n] * table[i % 4], where table is 1, -2, 3, -4 until it is set */
int launch_add(float *out, const float *a, const float *b, int n, cudaStream_t stream);
int set_table(const float table[4]);
/* out[4]: block b's sum over the first n - b of x, negative values counting -2 times; tally[b]
 * grows by it */
int launch_sum(float *out, const float *x, int n, cudaStream_t stream);
int get_tally(float tally[4]);
/* out[n][16]: see kernels.cu; n a multiple of 64 */
int launch_arithmetic(float *out, const float *x, const void *half, const void *bf16, int n,
                      cudaStream_t stream);
/* out[M, N] = a[M, K] b[K, N]; bf16, or f16; K a multiple of 32, N of 8 */
int launch_gemm(int is_f16, int fault, float *out, const void *a, const void *b, int M, int N,
                int K, cudaStream_t stream);
/* out[n], n at most 128 */
int launch_unsound(float *out, int n, int fault, cudaStream_t stream);
/* Has an opcode that is not modelled. */
int launch_unknown(float *out, cudaStream_t stream);
/* Dynamic shared memory: out[i] = (float)i, i below bytes / 4 */
int launch_dynamic(float *out, int bytes, int allowed, cudaStream_t stream);
#ifdef __cplusplus
}
#endif
#endif
