/* cublaslt.c - the part of cublasLt that the plugin may use, strict where the real one is lenient.
 *
 * 1. Column order, f32 compute and scale, alpha and beta on the host; f32, f16 and bf16 matrices, d
 * of a's type or f32; epilogues none, BIAS, GELU and GELU_BIAS. Whatever else is asked is
 * CUBLAS_STATUS_NOT_SUPPORTED, with the reason in steer_fake_fault.
 * 2. Shapes must agree, a leading dimension must reach over its rows, pointers must be multiples of
 * 16 bytes, matrices, bias and workspace must each lie within one allocation, the workspace must be
 * as large as its algorithm asks.
 * 3. An algorithm is for the shape that it was found for. The order of its sums depends on itself,
 * the shape and the batch count, so equal results of different calls are luck. */
#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "gemm.h"
#include "gmem.h"

enum { ALGORITHMS_MAX = 8, SPLIT_WAYS = 4 };
#define ALGORITHM_MAGIC 0x53544545524c5421u

struct desc {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int32_t trans[2], pointer_mode;
    uint32_t epilogue;
    const void *bias;
    int32_t bias_type; /* -1: d's */
};

struct layout {
    uint32_t type;
    int32_t order;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch;
    int64_t stride; /* in elements */
};

struct preference {
    uint64_t workspace_max;
    uint32_t alignment[4];
};

static cublasStatus_t no(cublasStatus_t status, const char *why)
{
    steer_fake_complain("cublasLt: %s", why);
    return status;
}

/* The status for what steer_fake_enter said of a call. */
static cublasStatus_t status_of(cudaError_t e)
{
    if (!e) return CUBLAS_STATUS_SUCCESS;
    if (e != steer_fake_state()) return (cublasStatus_t)e;
    return e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice
               ? CUBLAS_STATUS_NOT_INITIALIZED
               : CUBLAS_STATUS_EXECUTION_FAILED;
}

static cublasStatus_t leave(cublasStatus_t status)
{
    (void)steer_fake_leave(cudaSuccess);
    return status;
}

/* --- handles, descriptors --- */

static cublasStatus_t make(void **ret, const void *value, size_t size, enum fake_object kind)
{
    cublasStatus_t status = status_of(steer_fake_enter(FAKE_LT));
    void *p = status ? NULL : malloc(size);
    if (!status && !p) status = CUBLAS_STATUS_ALLOC_FAILED;
    if (!status) {
        memcpy(p, value, size);
        *ret = p;
        steer_fake_count(kind, 1);
    }
    return leave(status);
}

static cublasStatus_t destroy(void *p, enum fake_object kind)
{
    (void)steer_fake_enter_plain();
    if (p) steer_fake_count(kind, -1);
    free(p);
    return leave(p ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE);
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *ret)
{
    void *p = NULL;
    cublasStatus_t status = make(&p, "handle", 7, FAKE_HANDLES);
    if (!status) *ret = p;
    return status;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    return destroy(h, FAKE_HANDLES);
}

size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_INTERNAL_ERROR";
    }
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *ret, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    void *p = NULL;
    const struct desc d = {
        .compute = compute, .scale = scale, .epilogue = CUBLASLT_EPILOGUE_DEFAULT, .bias_type = -1};
    cublasStatus_t status = make(&p, &d, sizeof d, FAKE_DESCRIPTORS);
    if (!status) *ret = p;
    return status;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    return destroy(d, FAKE_DESCRIPTORS);
}

/* One attribute: into its field when the size is right. */
static cublasStatus_t set(void *field, size_t size, const void *value, size_t value_size)
{
    if (!field) return no(CUBLAS_STATUS_NOT_SUPPORTED, "an attribute that is not modelled");
    if (!value || size != value_size)
        return no(CUBLAS_STATUS_INVALID_VALUE, "an attribute of another size");
    memcpy(field, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

#define FIELD(f)                                                                                   \
    field = &(f);                                                                                  \
    size = sizeof(f);                                                                              \
    break

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t value_size)
{
    struct desc *d = (struct desc *)desc;
    void *field = NULL;
    size_t size = 0;
    switch ((int)attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: FIELD(d->compute);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: FIELD(d->scale);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: FIELD(d->pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA: FIELD(d->trans[0]);
    case CUBLASLT_MATMUL_DESC_TRANSB: FIELD(d->trans[1]);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: FIELD(d->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: FIELD(d->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: FIELD(d->bias_type);
    default: break;
    }
    return set(field, size, value, value_size);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *ret, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    void *p = NULL;
    const struct layout l = {.type = (uint32_t)type,
                             .order = CUBLASLT_ORDER_COL,
                             .rows = rows,
                             .cols = cols,
                             .ld = ld,
                             .batch = 1};
    cublasStatus_t status = make(&p, &l, sizeof l, FAKE_DESCRIPTORS);
    if (!status) *ret = p;
    return status;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    return destroy(l, FAKE_DESCRIPTORS);
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t value_size)
{
    struct layout *l = (struct layout *)layout;
    void *field = NULL;
    size_t size = 0;
    switch ((int)attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE: FIELD(l->type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER: FIELD(l->order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS: FIELD(l->rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS: FIELD(l->cols);
    case CUBLASLT_MATRIX_LAYOUT_LD: FIELD(l->ld);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: FIELD(l->batch);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: FIELD(l->stride);
    default: break;
    }
    return set(field, size, value, value_size);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *ret)
{
    void *p = NULL;
    const struct preference f = {0, {256, 256, 256, 256}};
    cublasStatus_t status = make(&p, &f, sizeof f, FAKE_DESCRIPTORS);
    if (!status) *ret = p;
    return status;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t f)
{
    return destroy(f, FAKE_DESCRIPTORS);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t value_size)
{
    struct preference *f = (struct preference *)preference;
    void *field = NULL;
    size_t size = 0;
    switch ((int)attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: FIELD(f->workspace_max);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: FIELD(f->alignment[0]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: FIELD(f->alignment[1]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: FIELD(f->alignment[2]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: FIELD(f->alignment[3]);
    default: break;
    }
    return set(field, size, value, value_size);
}

/* --- shapes --- */

enum { A, B, C, D };

struct call {
    struct desc desc;
    struct layout l[4];
    uint64_t m, n, k;
};

static int type_of(uint32_t type, enum gemm_type *ret)
{
    if (type == CUDA_R_32F)
        *ret = GEMM_F32;
    else if (type == CUDA_R_16F)
        *ret = GEMM_F16;
    else if (type == CUDA_R_16BF)
        *ret = GEMM_BF16;
    else
        return -1;
    return 0;
}

static size_t type_bytes(uint32_t type)
{
    return type == CUDA_R_32F ? 4 : 2;
}

static cublasStatus_t shape(struct call *c, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                            cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t out_c,
                            cublasLtMatrixLayout_t out_d)
{
    if (!desc || !a || !b || !out_c || !out_d)
        return no(CUBLAS_STATUS_INVALID_VALUE, "a descriptor is NULL");
    memcpy(&c->desc, desc, sizeof c->desc);
    const cublasLtMatrixLayout_t layouts[4] = {a, b, out_c, out_d};
    enum gemm_type type;
    for (int i = 0; i < 4; i++) {
        struct layout *l = &c->l[i];
        memcpy(l, layouts[i], sizeof *l);
        if (l->order != CUBLASLT_ORDER_COL)
            return no(CUBLAS_STATUS_NOT_SUPPORTED, "an order other than columns");
        if (type_of(l->type, &type))
            return no(CUBLAS_STATUS_NOT_SUPPORTED, "a type other than f32, f16, bf16");
        if (!l->rows || !l->cols || l->ld < (int64_t)l->rows)
            return no(CUBLAS_STATUS_INVALID_VALUE,
                      "a leading dimension below the rows, or an empty matrix");
        if (l->batch < 1 || l->batch != c->l[A].batch)
            return no(CUBLAS_STATUS_INVALID_VALUE, "batch counts differ");
    }
    const struct desc *d = &c->desc;
    if (d->compute != CUBLAS_COMPUTE_32F || d->scale != CUDA_R_32F ||
        d->pointer_mode != CUBLASLT_POINTER_MODE_HOST)
        return no(CUBLAS_STATUS_NOT_SUPPORTED,
                  "computing other than in f32 by scalars of the host");
    if (c->l[A].type != c->l[B].type || c->l[C].type != c->l[D].type ||
        (c->l[D].type != c->l[A].type && c->l[D].type != CUDA_R_32F))
        return no(CUBLAS_STATUS_NOT_SUPPORTED, "these types together");
    if ((d->trans[0] != CUBLAS_OP_N && d->trans[0] != CUBLAS_OP_T) ||
        (d->trans[1] != CUBLAS_OP_N && d->trans[1] != CUBLAS_OP_T))
        return no(CUBLAS_STATUS_NOT_SUPPORTED, "an operation other than N and T");
    if (d->epilogue != CUBLASLT_EPILOGUE_DEFAULT && d->epilogue != CUBLASLT_EPILOGUE_BIAS &&
        d->epilogue != CUBLASLT_EPILOGUE_GELU && d->epilogue != CUBLASLT_EPILOGUE_GELU_BIAS)
        return no(CUBLAS_STATUS_NOT_SUPPORTED, "an epilogue that is not modelled");
    c->m = d->trans[0] ? c->l[A].cols : c->l[A].rows;
    c->k = d->trans[0] ? c->l[A].rows : c->l[A].cols;
    c->n = d->trans[1] ? c->l[B].rows : c->l[B].cols;
    if (c->k != (d->trans[1] ? c->l[B].cols : c->l[B].rows))
        return no(CUBLAS_STATUS_INVALID_VALUE, "the inner dimensions of a and b differ");
    for (int i = C; i <= D; i++)
        if (c->l[i].rows != c->m || c->l[i].cols != c->n)
            return no(CUBLAS_STATUS_INVALID_VALUE,
                      "the shape of c or d is not that of the product");
    return CUBLAS_STATUS_SUCCESS;
}

/* Of everything but pointers. */
static uint64_t hash(const struct call *c)
{
    uint64_t values[32] = {(uint64_t)c->desc.trans[0], (uint64_t)c->desc.trans[1], c->desc.epilogue,
                           (uint64_t)c->l[A].batch},
             h = 14695981039346656037u;
    size_t n = 4;
    for (int i = 0; i < 4; i++) {
        const struct layout *l = &c->l[i];
        const uint64_t of[] = {l->type, l->rows, l->cols, (uint64_t)l->ld, (uint64_t)l->stride};
        memcpy(values + n, of, sizeof of);
        n += sizeof of / sizeof *of;
    }
    for (size_t i = 0; i < n; i++) {
        h = (h ^ values[i]) * 1099511628211u;
        h ^= h >> 29;
    }
    return h;
}

/* The odd algorithms split k and keep the parts in the workspace. */
static size_t workspace_of(const struct call *c, unsigned algorithm)
{
    return algorithm % 2 ? SPLIT_WAYS * c->m * c->n * 4 : 0;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *found)
{
    struct call call;
    cublasStatus_t status = status_of(steer_fake_enter(FAKE_HEURISTIC));
    if (!status && (!h || !preference || wanted < 1 || !results || !found))
        status = CUBLAS_STATUS_INVALID_VALUE;
    if (!status) status = shape(&call, desc, a, b, c, d);
    if (status) return leave(status);
    const struct preference *f = (const struct preference *)preference;
    const char *setting = getenv("STEER_FAKE_ALGORITHMS");
    unsigned n = setting ? (unsigned)strtoul(setting, NULL, 10) : 3;
    uint64_t key = hash(&call);
    *found = 0;
    for (unsigned i = 0; i < n && i < ALGORITHMS_MAX && *found < wanted; i++) {
        /* Which is best differs from shape to shape. */
        unsigned algorithm = (unsigned)((key + i) % ALGORITHMS_MAX);
        if (workspace_of(&call, algorithm) > f->workspace_max) continue;
        cublasLtMatmulHeuristicResult_t *r = &results[(*found)++];
        memset(r, 0, sizeof *r);
        r->algo.data[0] = ALGORITHM_MAGIC;
        r->algo.data[1] = algorithm;
        r->algo.data[2] = key;
        r->workspaceSize = workspace_of(&call, algorithm);
        r->wavesCount = 1;
    }
    return leave(*found ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED);
}

/* --- the product --- */

struct work {
    struct call call;
    float alpha, beta;
    uint64_t p[4]; /* a, b, c, d */
    unsigned algorithm;
    cudaError_t ordered;
};

/* The bytes of a matrix with all its batches; NULL where they are not within one allocation. */
static unsigned char *matrix_at(uint64_t p, const struct layout *l)
{
    uint64_t last = (l->cols - 1) * (uint64_t)l->ld + l->rows,
             strides = (uint64_t)(l->batch - 1) * (uint64_t)l->stride, elements;
    if (l->stride < 0 || __builtin_add_overflow(last, strides, &elements) ||
        elements > UINT64_MAX / 4)
        return NULL;
    return gmem_at(p, elements * type_bytes(l->type));
}

static const void *bias_of(const struct call *c)
{
    int has = c->desc.epilogue == CUBLASLT_EPILOGUE_BIAS ||
              c->desc.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
    return has ? c->desc.bias : NULL;
}

static uint32_t bias_type(const struct call *c)
{
    return c->desc.bias_type < 0 ? c->l[D].type : (uint32_t)c->desc.bias_type;
}

/* One of eight orders of summing: another one for each count of batches from 1 to 8, and for
 * another algorithm. */
static unsigned order_of(const struct call *c, unsigned algorithm)
{
    struct call single = *c;
    for (int i = A; i <= D; i++)
        single.l[i].batch = 1, single.l[i].stride = 0;
    return (unsigned)(hash(&single) + (uint64_t)c->l[A].batch + 3 * algorithm) % 8;
}

static cudaError_t matmul_run(void *data)
{
    const struct work *w = data;
    const struct call *c = &w->call;
    if (w->ordered) return w->ordered;
    unsigned char *p[4];
    for (int i = 0; i < 4; i++) {
        p[i] = matrix_at(w->p[i], &c->l[i]);
        if (!p[i] && (i != C || w->beta != 0)) {
            steer_fake_complain("cublasLt: matrix %c was freed before its product ran", "abcd"[i]);
            return cudaErrorIllegalAddress;
        }
    }
    const void *bias =
        bias_of(c) ? gmem_at((uint64_t)(uintptr_t)bias_of(c), c->m * type_bytes(bias_type(c)))
                   : NULL;
    if (bias_of(c) && !bias) {
        steer_fake_complain("cublasLt: the bias was freed before its product ran");
        return cudaErrorIllegalAddress;
    }
    unsigned order = order_of(c, w->algorithm);
    struct gemm g = {.m = (int64_t)c->m,
                     .n = (int64_t)c->n,
                     .k = (int64_t)c->k,
                     .alpha = w->alpha,
                     .beta = w->beta,
                     .d_ld = c->l[D].ld,
                     .k_chunk = 16 << order % 4,
                     .backward = (int)(order / 4)};
    g.gelu = c->desc.epilogue == CUBLASLT_EPILOGUE_GELU ||
             c->desc.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
    struct gemm_matrix *const of[3] = {&g.a, &g.b, &g.c};
    for (int i = A; i <= C; i++) {
        (void)type_of(c->l[i].type, &of[i]->type);
        of[i]->ld = c->l[i].ld;
        of[i]->transposed = i <= B && c->desc.trans[i] == CUBLAS_OP_T;
    }
    g.bias.p = bias;
    (void)type_of(bias_type(c), &g.bias.type);
    (void)type_of(c->l[D].type, &g.d_type);
    for (int32_t batch = 0; batch < c->l[A].batch; batch++) {
        for (int i = A; i <= C; i++)
            of[i]->p = p[i] + (size_t)(batch * c->l[i].stride) * type_bytes(c->l[i].type);
        g.d = p[D] + (size_t)(batch * c->l[D].stride) * type_bytes(c->l[D].type);
        if (gemm_run(&g)) return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}

static cublasStatus_t check(struct work *w, const cublasLtMatmulAlgo_t *algo, void *workspace,
                            size_t workspace_bytes)
{
    const struct call *c = &w->call;
    for (int i = 0; i < 4; i++) {
        if (i == C && w->beta == 0) continue;
        if (w->p[i] % 16)
            return no(CUBLAS_STATUS_INVALID_VALUE, "a matrix at no multiple of 16 bytes");
        if (!matrix_at(w->p[i], &c->l[i]))
            return no(CUBLAS_STATUS_INVALID_VALUE, "a matrix that is not within one allocation");
    }
    int wants_bias = c->desc.epilogue == CUBLASLT_EPILOGUE_BIAS ||
                     c->desc.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
    enum gemm_type type;
    if (wants_bias && !c->desc.bias)
        return no(CUBLAS_STATUS_INVALID_VALUE, "an epilogue with bias without its pointer");
    if (wants_bias &&
        (type_of(bias_type(c), &type) || (uintptr_t)c->desc.bias % 16 ||
         !gmem_at((uint64_t)(uintptr_t)c->desc.bias, c->m * type_bytes(bias_type(c)))))
        return no(CUBLAS_STATUS_INVALID_VALUE,
                  "a bias at no multiple of 16 bytes, or not within one allocation");
    for (int i = A; i <= D; i++)
        if (c->l[i].batch > 1 && i == D &&
            (uint64_t)c->l[i].stride < (c->n - 1) * (uint64_t)c->l[i].ld + c->m)
            return no(CUBLAS_STATUS_INVALID_VALUE, "batches of d that overlap");
    if (!algo) return no(CUBLAS_STATUS_INVALID_VALUE, "no algorithm: ask the heuristic");
    if (algo->data[0] != ALGORITHM_MAGIC || algo->data[2] != hash(c))
        return no(CUBLAS_STATUS_INVALID_VALUE, "an algorithm that was found for another shape");
    w->algorithm = (unsigned)algo->data[1];
    size_t needed = workspace_of(c, w->algorithm);
    if (workspace_bytes < needed || (needed && ((uintptr_t)workspace % 256 ||
                                                !gmem_at((uint64_t)(uintptr_t)workspace, needed))))
        return no(
            CUBLAS_STATUS_INVALID_VALUE,
            "a workspace too small, at no multiple of 256 bytes, or not within one allocation");
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t s)
{
    struct work w = {.p = {(uint64_t)(uintptr_t)a, (uint64_t)(uintptr_t)b, (uint64_t)(uintptr_t)c,
                           (uint64_t)(uintptr_t)d}};
    cudaError_t e = steer_fake_enter(FAKE_MATMUL);
    if (steer_fake_breaks(e) && e != steer_fake_state()) w.ordered = e, e = cudaSuccess;
    cublasStatus_t status = status_of(e);
    if (!status && (!h || !alpha || !beta))
        status = no(CUBLAS_STATUS_INVALID_VALUE, "a handle or scalar is NULL");
    if (!status) status = shape(&w.call, desc, a_layout, b_layout, c_layout, d_layout);
    if (!status) {
        memcpy(&w.alpha, alpha, sizeof w.alpha);
        memcpy(&w.beta, beta, sizeof w.beta);
        status = check(&w, algo, workspace, workspace_bytes);
    }
    struct fake_work *work = status ? NULL : steer_fake_work(matmul_run, sizeof w);
    if (!status && !work) status = CUBLAS_STATUS_ALLOC_FAILED;
    if (!status) {
        memcpy(work->data, &w, sizeof w);
        if (steer_fake_enqueue(s, work)) status = CUBLAS_STATUS_EXECUTION_FAILED;
    }
    return leave(status);
}
