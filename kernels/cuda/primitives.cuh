/* primitives.cuh - every instruction of a GPU that C++ has no words for, each written once.
 *
 * Kernels touch threads, shared memory and global memory through this header alone. nvcc gets
 * inline PTX (sm_80 and newer); any other C++ compiler gets calls into the SIMT model of
 * tests/gpu/simt, which watches every access, so the very source of a kernel runs on a host.
 *
 * Shared memory is addressed by bytes, as ldmatrix and cp.async want it: shared_base() is where a
 * block's dynamic part begins. All shared accesses are of 4, 8 or 16 bytes, aligned. Predicated
 * accesses take `on`, and all lanes of a warp make the call.
 *
 * Fragments of a warp's lane, with g = lane / 4 and t = lane % 4 (PTX ISA, mma.m16n8k16):
 *   A 16x16: [0] row g, columns 2t 2t+1; [1] row g+8; [2] row g, columns 2t+8 2t+9; [3] row g+8
 *   B 16x8:  [0] rows 2t 2t+1, column g; [1] rows 2t+8 2t+9
 *   C 16x8:  [0] [1] row g, columns 2t 2t+1; [2] [3] row g+8 */
#ifndef KERNELS_CUDA_PRIMITIVES_CUH
#define KERNELS_CUDA_PRIMITIVES_CUH
#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum element { BF16, F16 };

struct words4 {
    uint32_t x[4];
};

struct words2 {
    uint32_t x[2];
};

/* Blocks in x, y, z. */
struct grid {
    unsigned x, y, z;
};

struct CUstream_st; /* what a cudaStream_t points to */

#ifdef __CUDACC__

#define DEVICE      __device__ __forceinline__
#define HOST_DEVICE static inline __host__ __device__
/* A kernel of so many threads; the registers of so many blocks fit a multiprocessor. */
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define KERNEL_PARAMETER        const __grid_constant__

DEVICE int thread_index(void)
{
    return (int)threadIdx.x;
}

DEVICE struct grid block_index(void)
{
    return {blockIdx.x, blockIdx.y, blockIdx.z};
}

DEVICE uint32_t shared_base(void)
{
    extern __shared__ words4 shared_memory[];
    return (uint32_t)__cvta_generic_to_shared(shared_memory);
}

DEVICE void block_sync(void)
{
    __syncthreads();
}

DEVICE void warp_sync(void)
{
    __syncwarp();
}

/* x of the lane whose number differs by the bits of mask. */
DEVICE float shuffle_xor(float x, int mask)
{
    return __shfl_xor_sync(0xffffffffu, x, mask);
}

/* 2^x to 2 units in the last place; subnormal results are 0, 2^-INFINITY is 0. */
DEVICE float exp2_approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1 / x to 1 unit in the last place. */
DEVICE float reciprocal_approx(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* sin(pi x) and cos(pi x) of -1..1, to 2 units in the last place. */
DEVICE float sine_pi(float x)
{
    return sinpif(x);
}

DEVICE float cosine_pi(float x)
{
    return cospif(x);
}

/* a b, rounded: no compiler joins it with a sum. */
DEVICE float product(float a, float b)
{
    return __fmul_rn(a, b);
}

/* Two values rounded to the nearest, ties to even; the first in the low half. */
template <enum element E> DEVICE uint32_t pack(float low, float high)
{
    uint32_t y;
    if (E == BF16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

template <enum element E> DEVICE float unpack(uint32_t pair, int high)
{
    float y;
    if (E == BF16) return __uint_as_float(high ? pair & 0xffff0000u : pair << 16);
    uint16_t half = (uint16_t)(high ? pair >> 16 : pair);
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(half));
    return y;
}

/* c += a b, products exact, sums in f32. */
template <enum element E> DEVICE void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    if (E == BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8x8 matrices of 2-byte values; lane 8i + j names row j of matrix i, 16 bytes. A lane gets
 * row g, columns 2t 2t+1 of each; transposed: rows 2t 2t+1, column g. */
DEVICE void matrix_load_4(uint32_t r[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

DEVICE void matrix_load_4_transposed(uint32_t r[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* Two matrices: the addresses of lanes 16 and up are not used. */
DEVICE void matrix_load_2_transposed(uint32_t r[2], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
}

/* 16 bytes on their way from global to shared memory; not on: 16 bytes of zeros, and `from` is
 * never followed. */
DEVICE void copy_async(uint32_t to, const void *from, bool on)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(on ? 16 : 0)
                 : "memory");
}

/* What this thread has sent so far is one group. */
DEVICE void copy_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All groups of this thread but the last `pending` have landed. */
template <int pending> DEVICE void copy_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

DEVICE void shared_store_4(uint32_t at, uint32_t x)
{
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory");
}

DEVICE uint32_t shared_load_4(uint32_t at)
{
    uint32_t x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
    return x;
}

DEVICE void shared_store_8(uint32_t at, struct words2 x)
{
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(at), "r"(x.x[0]), "r"(x.x[1]) : "memory");
}

DEVICE void shared_store_16(uint32_t at, struct words4 x)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x.x[0]), "r"(x.x[1]),
                 "r"(x.x[2]), "r"(x.x[3])
                 : "memory");
}

DEVICE struct words4 shared_load_16(uint32_t at)
{
    struct words4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x[0]), "=r"(x.x[1]), "=r"(x.x[2]), "=r"(x.x[3])
                 : "r"(at)
                 : "memory");
    return x;
}

/* Zeros where not on. */
DEVICE struct words4 global_load_16(const void *from, bool on)
{
    struct words4 x = {};
    if (on) {
        const uint4 v = *(const uint4 *)from;
        x = {v.x, v.y, v.z, v.w};
    }
    return x;
}

DEVICE struct words2 global_load_8(const void *from, bool on)
{
    struct words2 x = {};
    if (on) {
        const uint2 v = *(const uint2 *)from;
        x = {v.x, v.y};
    }
    return x;
}

DEVICE uint32_t global_load_4(const void *from, bool on)
{
    return on ? *(const uint32_t *)from : 0;
}

DEVICE uint32_t global_load_2(const void *from, bool on)
{
    return on ? *(const uint16_t *)from : 0;
}

DEVICE void global_store_16(void *to, struct words4 x, bool on)
{
    if (on) *(uint4 *)to = {x.x[0], x.x[1], x.x[2], x.x[3]};
}

DEVICE void global_store_8(void *to, struct words2 x, bool on)
{
    if (on) *(uint2 *)to = {x.x[0], x.x[1]};
}

DEVICE void global_store_4(void *to, uint32_t x, bool on)
{
    if (on) *(uint32_t *)to = x;
}

DEVICE void global_store_2(void *to, uint32_t x, bool on)
{
    if (on) *(uint16_t *)to = (uint16_t)x;
}

DEVICE void global_store_1(void *to, uint32_t x, bool on)
{
    if (on) *(uint8_t *)to = (uint8_t)x;
}

DEVICE float global_load_float(const float *from)
{
    return *from;
}

DEVICE const void *global_load_pointer(const void *const *from)
{
    return *from;
}

/* x, as far as the compiler knows made here: what is computed from it is not kept in registers from
 * outside of a loop. */
DEVICE int made_here(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

DEVICE const char *made_here(const char *x)
{
    asm volatile("" : "+l"(x));
    return x;
}

DEVICE uint32_t float_bits(float x)
{
    return __float_as_uint(x);
}

DEVICE float bits_float(uint32_t x)
{
    return __uint_as_float(x);
}

/* Starts kernel(parameter) and does not wait. 0, or the runtime's error. */
template <class P>
static int kernel_launch(void (*kernel)(P), struct grid blocks, int threads, size_t shared_bytes,
                         struct CUstream_st *stream, const P &parameter)
{
    /* Above 48 KiB a kernel must be told; it stays told. */
    cudaError_t e = shared_bytes > 48 * 1024
                        ? cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)shared_bytes)
                        : cudaSuccess;
    if (e == cudaSuccess) {
        kernel<<<dim3(blocks.x, blocks.y, blocks.z), (unsigned)threads, shared_bytes, stream>>>(
            parameter);
        e = cudaPeekAtLastError();
    }
    return (int)e;
}

#else /* the SIMT model */

#include <string.h>

#include "simt.h"

#define DEVICE                  static inline
#define HOST_DEVICE             static inline
#define KERNEL(threads, blocks) static void
#define KERNEL_PARAMETER

DEVICE int thread_index(void)
{
    return simt_thread();
}

DEVICE struct grid block_index(void)
{
    struct grid g;
    simt_block(&g.x, &g.y, &g.z);
    return g;
}

DEVICE uint32_t shared_base(void)
{
    return SIMT_SHARED_BASE;
}

DEVICE void block_sync(void)
{
    simt_block_sync();
}

DEVICE void warp_sync(void)
{
    simt_warp_sync();
}

DEVICE float shuffle_xor(float x, int mask)
{
    return simt_shuffle_xor(x, mask);
}

DEVICE float exp2_approx(float x)
{
    return simt_exp2(x);
}

DEVICE float reciprocal_approx(float x)
{
    return 1 / x;
}

DEVICE float sine_pi(float x)
{
    return (float)sin(x * 3.14159265358979323846);
}

DEVICE float cosine_pi(float x)
{
    return (float)cos(x * 3.14159265358979323846);
}

DEVICE float product(float a, float b)
{
    return a * b;
}

template <enum element E> DEVICE uint32_t pack(float low, float high)
{
    return (uint32_t)simt_round(low, E) | (uint32_t)simt_round(high, E) << 16;
}

template <enum element E> DEVICE float unpack(uint32_t pair, int high)
{
    return simt_widen((uint16_t)(high ? pair >> 16 : pair), E);
}

template <enum element E> DEVICE void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    const uint32_t b[2] = {b0, b1};
    simt_mma(c, a, b, E);
}

DEVICE void matrix_load_4(uint32_t r[4], uint32_t at)
{
    simt_matrix_load(r, at, 4, 0);
}

DEVICE void matrix_load_4_transposed(uint32_t r[4], uint32_t at)
{
    simt_matrix_load(r, at, 4, 1);
}

DEVICE void matrix_load_2_transposed(uint32_t r[2], uint32_t at)
{
    simt_matrix_load(r, at, 2, 1);
}

DEVICE void copy_async(uint32_t to, const void *from, bool on)
{
    simt_copy_async(to, from, on);
}

DEVICE void copy_async_commit(void)
{
    simt_copy_async_commit();
}

template <int pending> DEVICE void copy_async_wait(void)
{
    simt_copy_async_wait(pending);
}

DEVICE void shared_store_4(uint32_t at, uint32_t x)
{
    simt_shared_store(at, &x, 4);
}

DEVICE uint32_t shared_load_4(uint32_t at)
{
    uint32_t x;
    simt_shared_load(&x, at, 4);
    return x;
}

DEVICE void shared_store_8(uint32_t at, struct words2 x)
{
    simt_shared_store(at, x.x, 8);
}

DEVICE void shared_store_16(uint32_t at, struct words4 x)
{
    simt_shared_store(at, x.x, 16);
}

DEVICE struct words4 shared_load_16(uint32_t at)
{
    struct words4 x;
    simt_shared_load(x.x, at, 16);
    return x;
}

DEVICE struct words4 global_load_16(const void *from, bool on)
{
    struct words4 x = {};
    simt_global_load(x.x, from, 16, on);
    return x;
}

DEVICE struct words2 global_load_8(const void *from, bool on)
{
    struct words2 x = {};
    simt_global_load(x.x, from, 8, on);
    return x;
}

DEVICE uint32_t global_load_4(const void *from, bool on)
{
    uint32_t x = 0;
    simt_global_load(&x, from, 4, on);
    return x;
}

DEVICE uint32_t global_load_2(const void *from, bool on)
{
    uint16_t x = 0;
    simt_global_load(&x, from, 2, on);
    return x;
}

DEVICE void global_store_16(void *to, struct words4 x, bool on)
{
    simt_global_store(to, x.x, 16, on);
}

DEVICE void global_store_8(void *to, struct words2 x, bool on)
{
    simt_global_store(to, x.x, 8, on);
}

DEVICE void global_store_4(void *to, uint32_t x, bool on)
{
    simt_global_store(to, &x, 4, on);
}

DEVICE void global_store_2(void *to, uint32_t x, bool on)
{
    simt_global_store(to, &x, 2, on);
}

DEVICE void global_store_1(void *to, uint32_t x, bool on)
{
    simt_global_store(to, &x, 1, on);
}

DEVICE float global_load_float(const float *from)
{
    float x = 0;
    simt_global_load(&x, from, sizeof x, 1);
    return x;
}

DEVICE const void *global_load_pointer(const void *const *from)
{
    const void *x = NULL;
    simt_global_load(&x, from, sizeof x, 1);
    return x;
}

template <class I> DEVICE I made_here(I x)
{
    return x;
}

DEVICE uint32_t float_bits(float x)
{
    uint32_t y;
    memcpy(&y, &x, sizeof y);
    return y;
}

DEVICE float bits_float(uint32_t x)
{
    float y;
    memcpy(&y, &x, sizeof y);
    return y;
}

template <class P> struct kernel_call {
    void (*kernel)(P);
    const P *parameter;
    static void run(void *call)
    {
        struct kernel_call *c = (struct kernel_call *)call;
        c->kernel(*c->parameter);
    }
};

template <class P>
static int kernel_launch(void (*kernel)(P), struct grid blocks, int threads, size_t shared_bytes,
                         struct CUstream_st *, const P &parameter)
{
    struct kernel_call<P> call = {
        kernel, &parameter
    };
    return simt_launch(kernel_call<P>::run, &call, blocks.x, blocks.y, blocks.z, threads,
                       shared_bytes);
}

#endif
#endif
