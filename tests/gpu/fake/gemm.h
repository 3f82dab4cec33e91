/* gemm.h - the matrix product that the fake cublasLt computes, in cublasLt's terms: column-major, d
 * = act(alpha op(a) op(b) + beta c + bias). op(a) is [m, k], op(b) [k, n], c and d [m, n], bias
 * [m]. */
#ifndef GPU_GEMM_H
#define GPU_GEMM_H
#include <stdint.h>

enum gemm_type { GEMM_F32, GEMM_F16, GEMM_BF16 };

struct gemm_matrix {
    const void *p;
    enum gemm_type type;
    int transposed; /* a and b */
    int64_t ld;
};

struct gemm {
    int64_t m, n, k;
    float alpha, beta;
    struct gemm_matrix a, b, c, bias;
    void *d;
    enum gemm_type d_type;
    int64_t d_ld;
    int gelu;     /* by tanh */
    int k_chunk;  /* so many products are added by themselves, in f32, then their sums: an
                     algorithm's order */
    int backward; /* the last chunk first */
};

/* 0, or -1 without memory. */
int gemm_run(const struct gemm *g);
#endif
