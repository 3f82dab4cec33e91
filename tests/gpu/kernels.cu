/* kernels.cu - kernels of the tests' own, which the interpreter and the fake libraries are held to.
 *
 * The sound ones use what the plugin's kernels use: divergence, barriers, shuffles, votes, stack
 * frames, cp.async, ldmatrix, mma.sync, half types. Each unsound one breaks one rule that hardware
 * does not check. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels.h"

namespace
{
__constant__ float table[4] = {1, -2, 3, -4};
__device__ float tally[4];

__global__ void add(float *out, const float *a, const float *b, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i] * table[i & 3];
}

/* One sum a block: lanes take different numbers of turns, then shared memory and shuffles. */
__global__ void sum(float *out, const float *x, int n)
{
    __shared__ float part[8];
    float s = 0;
    for (int i = threadIdx.x; i < n - (int)blockIdx.x; i += blockDim.x)
        if (x[i] > 0)
            s += x[i];
        else
            s -= 2 * x[i];
    for (int step = 16; step; step /= 2)
        s += __shfl_xor_sync(~0u, s, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x < 32) {
        s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
        for (int step = 4; step; step /= 2)
            s += __shfl_down_sync(~0u, s, step);
        if (threadIdx.x == 0) {
            out[blockIdx.x] = s;
            atomicAdd(&tally[blockIdx.x & 3], s);
        }
    }
}

/* What a row goes through between matrix products: halves, exponentials, roots, an array on the
 * stack. */
__global__ void arithmetic(float *out, const float *x, const __half *h, const __nv_bfloat16 *b,
                           int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float stack[16];
    for (int j = 0; j < 16; j++)
        stack[j] = x[(i + j) % n] * j;
    float v = x[i];
    __half2 hh = __hfma2(__half2half2(h[i]), __floats2half2_rn(v, 2), __floats2half2_rn(1, v));
    __nv_bfloat162 bb = __hmul2(__bfloat162bfloat162(b[i]), __floats2bfloat162_rn(v, 3));
    float terms[12] = {exp2f(v),
                       expf(v),
                       logf(fabsf(v) + 1),
                       rsqrtf(v * v + 1),
                       sqrtf(v * v),
                       1 / (1 + v * v),
                       tanhf(v),
                       erff(v),
                       stack[(int)(fabsf(v) * 5) & 15],
                       __low2float(hh) + __high2float(hh),
                       __low2float(bb) - __high2float(bb),
                       sinf(v) + cosf(v)};
    int k = __float2int_rn(v * 100), d = i % 7 + 1;
    for (int j = 0; j < 12; j++)
        out[i * 16 + j] = terms[j];
    out[i * 16 + 12] = (float)(k / d) + (float)(k % d) + (float)__popc(k) + (float)__clz(k | 1);
    out[i * 16 + 13] = (float)((unsigned long long)(k * k) * 12345678901ull >> 32);
    out[i * 16 + 14] = (float)__ballot_sync(~0u, v > 0) + (__any_sync(~0u, v > 3) ? 0.5f : 0);
    out[i * 16 + 15] = fmaxf(fminf(v, 0.5f), -0.5f) + truncf(v) + rintf(v) + floorf(v);
}

__device__ void copy16(uint32_t to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0));
}

template <typename T> __device__ void mma(float *c, const uint32_t *a, const uint32_t *b);
template <> __device__ void mma<__nv_bfloat16>(float *c, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> __device__ void mma<__half>(float *c, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* out[M, N] f32 = a[M, K] b[K, N], K a multiple of 32, N of 8; blocks of 64 x 32, four warps of 16
 * rows, two stages. FAULT is what is wrong. */
template <typename T, int FAULT>
__global__ void gemm(float *out, const T *a, const T *b, int M, int N, int K)
{
    __shared__ __align__(16) T sa[2][64][40], sb[2][32][40];
    int t = threadIdx.x, warp = t / 32, lane = t % 32, row0 = blockIdx.y * 64,
        col0 = blockIdx.x * 32;
    float c[4][4] = {};
    auto load = [&](int stage, int k) {
        for (int i = t; i < 64 * 4; i += 128) {
            int r = i / 4, x = i % 4 * 8;
            bool there = row0 + r < M;
            copy16((uint32_t)__cvta_generic_to_shared(&sa[stage][r][x]),
                   a + (size_t)(there ? row0 + r : 0) * K + k + x, there);
        }
        int r = t / 4, x = t % 4 * 8;
        bool there = col0 + x < N;
        copy16((uint32_t)__cvta_generic_to_shared(&sb[stage][r][x]),
               b + (size_t)(k + r) * N + (there ? col0 + x : 0), there);
        asm volatile("cp.async.commit_group;");
    };
    load(0, 0);
    for (int k = 0, stage = 0; k < K; k += 32, stage ^= 1) {
        if (k + 32 < K) {
            load(stage ^ 1, k + 32);
            if (FAULT == FAULT_WAIT)
                asm volatile("cp.async.wait_group 2;");
            else
                asm volatile("cp.async.wait_group 1;");
        } else {
            asm volatile("cp.async.wait_group 0;");
        }
        if (FAULT != FAULT_FIRST_BARRIER) __syncthreads();
        for (int kk = 0; kk < 32; kk += 16) {
            uint32_t fa[4], fb[4];
            uint32_t at = (uint32_t)__cvta_generic_to_shared(
                &sa[stage][warp * 16 + lane % 16][kk + lane / 16 * 8]);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                         : "r"(at));
            for (int n = 0; n < 4; n += 2) {
                at = (uint32_t)__cvta_generic_to_shared(
                    &sb[stage][kk + lane % 16][n * 8 + lane / 16 * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                             : "=r"(fb[0]), "=r"(fb[1]), "=r"(fb[2]), "=r"(fb[3])
                             : "r"(at));
                mma<T>(c[n], fa, fb);
                mma<T>(c[n + 1], fa, fb + 2);
            }
        }
        if (FAULT != FAULT_LAST_BARRIER) __syncthreads();
    }
    for (int n = 0; n < 4; n++)
        for (int half = 0; half < 2; half++) {
            int r = row0 + warp * 16 + lane / 4 + half * 8, col = col0 + n * 8 + lane % 4 * 2;
            if (r < M && col < N)
                *(float2 *)(out + (size_t)r * N + col) =
                    make_float2(c[n][half * 2], c[n][half * 2 + 1]);
        }
}

/* What hardware lets pass or punishes late. */
__global__ void unsound(float *out, int n, int fault)
{
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t] = 1;
    __syncthreads();
    switch (fault) {
    case FAULT_RACE_WRITE: s[t / 2] = (float)t; break;
    case FAULT_RACE_READ: s[t] = s[t ^ 32]; break;
    case FAULT_RACE_LANES: s[t] = s[t ^ 1]; break;
    case FAULT_UNWRITTEN: s[t] = s[128 + t % 128]; break;
    case FAULT_BEYOND: out[n + t] = 1; break;
    case FAULT_BEFORE: out[t] = out[-1 - t]; break;
    case FAULT_MISALIGNED: *(float2 *)(out + 1) = make_float2(1, 2); break;
    case FAULT_SHARED_BEYOND: s[t + n * 1000] = 1; break;
    case FAULT_DIVERGED_BARRIER:
        if (t % 2) __syncthreads();
        break;
    case FAULT_ABSENT_AT_BARRIER:
        if (t >= 32) __syncthreads();
        break;
    case FAULT_DIVERGED_SHUFFLE:
        if (t % 2) s[t] = __shfl_xor_sync(~0u, s[t], 2);
        break;
    }
    if (out && t < n) out[t] = s[t];
}

__global__ void unknown(float *out)
{
    out[threadIdx.x] = (float)(clock64() & 3);
}

__global__ void dynamic(float *out, int n)
{
    extern __shared__ float all[];
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        all[n - 1 - i] = (float)i;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        out[i] = all[n - 1 - i];
}
} // namespace
extern "C" int launch_add(float *out, const float *a, const float *b, int n, cudaStream_t stream)
{
    add<<<(n + 127) / 128, 128, 0, stream>>>(out, a, b, n);
    return (int)cudaGetLastError();
}
extern "C" int launch_sum(float *out, const float *x, int n, cudaStream_t stream)
{
    sum<<<4, 256, 0, stream>>>(out, x, n);
    return (int)cudaGetLastError();
}
extern "C" int launch_arithmetic(float *out, const float *x, const void *h, const void *b, int n,
                                 cudaStream_t stream)
{
    arithmetic<<<n / 64, 64, 0, stream>>>(out, x, (const __half *)h, (const __nv_bfloat16 *)b, n);
    return (int)cudaGetLastError();
}
extern "C" int launch_gemm(int half, int fault, float *out, const void *a, const void *b, int M,
                           int N, int K, cudaStream_t stream)
{
    dim3 grid((N + 31) / 32, (M + 63) / 64);
    const __nv_bfloat16 *x = (const __nv_bfloat16 *)a, *y = (const __nv_bfloat16 *)b;
    if (half)
        gemm<__half, FAULT_NONE>
            <<<grid, 128, 0, stream>>>(out, (const __half *)a, (const __half *)b, M, N, K);
    else if (fault == FAULT_WAIT)
        gemm<__nv_bfloat16, FAULT_WAIT><<<grid, 128, 0, stream>>>(out, x, y, M, N, K);
    else if (fault == FAULT_FIRST_BARRIER)
        gemm<__nv_bfloat16, FAULT_FIRST_BARRIER><<<grid, 128, 0, stream>>>(out, x, y, M, N, K);
    else if (fault == FAULT_LAST_BARRIER)
        gemm<__nv_bfloat16, FAULT_LAST_BARRIER><<<grid, 128, 0, stream>>>(out, x, y, M, N, K);
    else
        gemm<__nv_bfloat16, FAULT_NONE><<<grid, 128, 0, stream>>>(out, x, y, M, N, K);
    return (int)cudaGetLastError();
}
extern "C" int launch_unsound(float *out, int n, int fault, cudaStream_t stream)
{
    unsound<<<1, 128, 0, stream>>>(out, n, fault);
    return (int)cudaGetLastError();
}

extern "C" int launch_unknown(float *out, cudaStream_t stream)
{
    unknown<<<1, 32, 0, stream>>>(out);
    return (int)cudaGetLastError();
}

extern "C" int launch_dynamic(float *out, int bytes, int allowed, cudaStream_t stream)
{
    cudaError_t e =
        allowed
            ? cudaFuncSetAttribute(dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed)
            : cudaSuccess;
    int blocks = 0;
    if (!e) e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, dynamic, 64, (size_t)bytes);
    if (!e && blocks < 1) e = cudaErrorUnknown;
    if (!e) dynamic<<<1, 64, (size_t)bytes, stream>>>(out, bytes / 4);
    return e ? (int)e : (int)cudaGetLastError();
}

extern "C" int set_table(const float values[4])
{
    return (int)cudaMemcpyToSymbol(table, values, sizeof table);
}

extern "C" int get_tally(float values[4])
{
    return (int)cudaMemcpyFromSymbol(values, tally, sizeof tally);
}
