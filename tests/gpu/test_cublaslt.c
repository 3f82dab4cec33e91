/* The fake cublasLt: its products against f64 on the host, and everything that it must refuse. */
#include <cublasLt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test_cuda.h"

enum { WORKSPACE = 1 << 20 };

/* d[m, n] = act(alpha op(a) op(b) + beta c + bias), batches apart by whole matrices, the usual way
 * round: op(a) = a^T. */
struct matmul {
    int m, n, k, batch, type, d_type; /* cudaDataType_t */
    int trans_a, trans_b, ld_more;    /* ld_more: beyond the rows */
    cublasLtEpilogue_t epilogue;
    float alpha, beta;
    int skip_heuristic;
    size_t workspace;
    int shift; /* of a's address, in bytes */
};

struct operands {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulPreference_t preference;
    void *pa, *pb, *pd, *bias, *workspace;
    cublasLtMatmulHeuristicResult_t found[8];
    int n_found;
};

static size_t bytes_of(int type)
{
    return type == CUDA_R_32F ? 4 : 2;
}

static int layout(cublasLtMatrixLayout_t *ret, const struct matmul *m, int type, int rows, int cols)
{
    int64_t ld = rows + m->ld_more, stride = ld * cols;
    int code = (int)cublasLtMatrixLayoutCreate(ret, (cudaDataType_t)type, (uint64_t)rows,
                                               (uint64_t)cols, ld);
    if (!code && m->batch > 1)
        code = (int)cublasLtMatrixLayoutSetAttribute(*ret, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                     &m->batch, sizeof m->batch);
    if (!code && m->batch > 1)
        code = (int)cublasLtMatrixLayoutSetAttribute(
            *ret, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride);
    return code;
}

static int descriptors(struct operands *o, const struct matmul *m)
{
    int code = (int)cublasLtCreate(&o->handle);
    if (!code) code = (int)cublasLtMatmulDescCreate(&o->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t ops[2] = {m->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                                      m->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N};
    if (!code)
        code = (int)cublasLtMatmulDescSetAttribute(o->desc, CUBLASLT_MATMUL_DESC_TRANSA, &ops[0],
                                                   sizeof ops[0]);
    if (!code)
        code = (int)cublasLtMatmulDescSetAttribute(o->desc, CUBLASLT_MATMUL_DESC_TRANSB, &ops[1],
                                                   sizeof ops[1]);
    if (!code)
        code = (int)cublasLtMatmulDescSetAttribute(o->desc, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                                   &m->epilogue, sizeof m->epilogue);
    if (!code && o->bias)
        code = (int)cublasLtMatmulDescSetAttribute(o->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                   &o->bias, sizeof o->bias);
    if (!code) code = layout(&o->a, m, m->type, m->trans_a ? m->k : m->m, m->trans_a ? m->m : m->k);
    if (!code) code = layout(&o->b, m, m->type, m->trans_b ? m->n : m->k, m->trans_b ? m->k : m->n);
    if (!code) code = layout(&o->d, m, m->d_type, m->m, m->n);
    if (!code) code = (int)cublasLtMatmulPreferenceCreate(&o->preference);
    const uint64_t most = WORKSPACE;
    if (!code)
        code = (int)cublasLtMatmulPreferenceSetAttribute(
            o->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
    return code;
}

static void operands_free(struct operands *o)
{
    if (o->preference) (void)cublasLtMatmulPreferenceDestroy(o->preference);
    if (o->a) (void)cublasLtMatrixLayoutDestroy(o->a);
    if (o->b) (void)cublasLtMatrixLayoutDestroy(o->b);
    if (o->d) (void)cublasLtMatrixLayoutDestroy(o->d);
    if (o->desc) (void)cublasLtMatmulDescDestroy(o->desc);
    if (o->handle) (void)cublasLtDestroy(o->handle);
    void *const all[] = {o->pa, o->pb, o->pd, o->bias, o->workspace};
    for (int i = 0; i < 5; i++)
        (void)cudaFree(all[i]);
}

static int product(struct operands *o, const struct matmul *m, int algorithm, size_t workspace,
                   cudaStream_t s)
{
    return (int)cublasLtMatmul(o->handle, o->desc, &m->alpha, (char *)o->pa + m->shift, o->a, o->pb,
                               o->b, &m->beta, o->pd, o->d, o->pd, o->d,
                               algorithm < 0 ? NULL : &o->found[algorithm].algo, o->workspace,
                               workspace, s);
}

int cublaslt_job(cudaStream_t s)
{
    const struct matmul m = {.m = 16,
                             .n = 8,
                             .k = 32,
                             .batch = 1,
                             .type = CUDA_R_16BF,
                             .d_type = CUDA_R_16BF,
                             .trans_a = 1,
                             .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
                             .alpha = 1};
    struct operands o = {0};
    int code = (int)cudaMalloc(&o.pa, 1024);
    if (!code) code = (int)cudaMalloc(&o.pb, 512);
    if (!code) code = (int)cudaMalloc(&o.pd, 256);
    if (!code) code = (int)cudaMalloc(&o.workspace, WORKSPACE);
    if (!code) code = (int)cudaMemsetAsync(o.pa, 0, 1024, s);
    if (!code) code = (int)cudaMemsetAsync(o.pb, 0, 512, s);
    if (!code) code = descriptors(&o, &m);
    if (!code)
        code = (int)cublasLtMatmulAlgoGetHeuristic(o.handle, o.desc, o.a, o.b, o.d, o.d,
                                                   o.preference, 8, o.found, &o.n_found);
    if (!code) code = product(&o, &m, 0, WORKSPACE, s);
    /* Before anything is freed, whatever failed. */
    int waited = (int)cudaStreamSynchronize(s);
    operands_free(&o);
    return code ? code : waited;
}

/* --- values --- */

static uint16_t to_f16(float v) /* multiples of 1/64 below 2: exact */
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return v == 0 ? 0
                  : (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) |
                               (bits >> 13 & 0x3ff));
}

static double read_value(const void *p, size_t i, int type)
{
    uint16_t h;
    float f;
    if (type == CUDA_R_32F) {
        memcpy(&f, (const char *)p + 4 * i, 4);
        return f;
    }
    memcpy(&h, (const char *)p + 2 * i, 2);
    if (type == CUDA_R_16BF) return bf16_to(h);
    int e = h >> 10 & 31;
    double v = e ? ldexp(1024 + (h & 1023), e - 25) : ldexp(h & 1023, -24);
    return h >> 15 ? -v : v;
}

static void *filled(size_t n, int type, void **ret_device)
{
    char *p = malloc(n * bytes_of(type));
    for (size_t i = 0; i < n; i++) {
        float v = type == CUDA_R_32F ? uniform() : rintf(uniform() * 64) / 64;
        uint16_t h = type == CUDA_R_16F ? to_f16(v) : bf16_of(v);
        if (type == CUDA_R_32F)
            memcpy(p + 4 * i, &v, 4);
        else
            memcpy(p + 2 * i, &h, 2);
    }
    CHECK(cudaMalloc(ret_device, n * bytes_of(type) + 64));
    CHECK(cudaMemcpy(*ret_device, p, n * bytes_of(type), cudaMemcpyHostToDevice));
    return p;
}

static int has_bias(const struct matmul *m)
{
    return m->epilogue == CUBLASLT_EPILOGUE_BIAS || m->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
}

static void operands_make(struct operands *o, const struct matmul *m, void **ha, void **hb,
                          void **hd, void **hbias)
{
    memset(o, 0, sizeof *o);
    size_t batch = (size_t)m->batch;
    *ha = filled(batch * (size_t)((m->trans_a ? m->k : m->m) + m->ld_more) *
                     (size_t)(m->trans_a ? m->m : m->k),
                 m->type, &o->pa);
    *hb = filled(batch * (size_t)((m->trans_b ? m->n : m->k) + m->ld_more) *
                     (size_t)(m->trans_b ? m->k : m->n),
                 m->type, &o->pb);
    *hd = filled(batch * (size_t)(m->m + m->ld_more) * (size_t)m->n, m->d_type, &o->pd);
    *hbias = has_bias(m) ? filled((size_t)m->m, m->d_type, &o->bias) : NULL;
    CHECK(cudaMalloc(&o->workspace, WORKSPACE));
    CHECK(descriptors(o, m));
}

/* The worst error over all algorithms, of values of order 1. */
static double error_of(const struct matmul *m)
{
    struct operands o;
    void *a, *b, *d, *bias;
    operands_make(&o, m, &a, &b, &d, &bias);
    CHECK(cublasLtMatmulAlgoGetHeuristic(o.handle, o.desc, o.a, o.b, o.d, o.d, o.preference, 8,
                                         o.found, &o.n_found));
    assert_true(o.n_found > 0);
    size_t lda = (size_t)((m->trans_a ? m->k : m->m) + m->ld_more),
           ldb = (size_t)((m->trans_b ? m->n : m->k) + m->ld_more),
           ldd = (size_t)(m->m + m->ld_more);
    size_t bytes = (size_t)m->batch * ldd * (size_t)m->n * bytes_of(m->d_type);
    char *got = malloc(bytes);
    double worst = 0;
    for (int algorithm = 0; algorithm < o.n_found; algorithm++) {
        CHECK(cudaMemcpy(o.pd, d, bytes, cudaMemcpyHostToDevice));
        CHECK(product(&o, m, algorithm, o.found[algorithm].workspaceSize, NULL));
        CHECK(cudaMemcpy(got, o.pd, bytes, cudaMemcpyDeviceToHost));
        for (size_t z = 0; z < (size_t)m->batch; z++)
            for (size_t j = 0; j < (size_t)m->n; j++)
                for (size_t i = 0; i < ldd; i++) {
                    size_t at = (z * (size_t)m->n + j) * ldd + i;
                    double want = read_value(d, at, m->d_type);
                    /* Beyond the rows nothing is written. */
                    if (i < (size_t)m->m) {
                        want *= m->beta;
                        for (size_t k = 0; k < (size_t)m->k; k++) {
                            double x = read_value(a,
                                                  m->trans_a ? (z * (size_t)m->m + i) * lda + k
                                                             : (z * (size_t)m->k + k) * lda + i,
                                                  m->type);
                            want += m->alpha * x *
                                    read_value(b,
                                               m->trans_b ? (z * (size_t)m->k + k) * ldb + j
                                                          : (z * (size_t)m->n + j) * ldb + k,
                                               m->type);
                        }
                        if (bias) want += read_value(bias, i, m->d_type);
                        if (m->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS)
                            want *=
                                0.5 *
                                (1 + tanh(sqrt(2 / M_PI) * (want + 0.044715 * want * want * want)));
                    }
                    worst = fmax(worst,
                                 fabs(read_value(got, at, m->d_type) - want) / fmax(1, fabs(want)));
                }
    }
    free(a);
    free(b);
    free(d);
    free(bias);
    free(got);
    operands_free(&o);
    return worst;
}

static void values(void **state)
{
    (void)state;
    /* 2^-8 and 2^-11: half a step of bf16 and f16; f32 measured 2.4e-6 at k = 200. */
    static const struct {
        struct matmul m;
        double limit;
    } all[] = {
        {{.m = 40,
          .n = 17,
          .k = 64,
          .batch = 1,
          .type = CUDA_R_16BF,
          .d_type = CUDA_R_16BF,
          .trans_a = 1,
          .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
          .alpha = 1},
         0x1p-8},
        {{.m = 40,
          .n = 17,
          .k = 64,
          .batch = 3,
          .type = CUDA_R_16BF,
          .d_type = CUDA_R_16BF,
          .trans_a = 1,
          .epilogue = CUBLASLT_EPILOGUE_BIAS,
          .alpha = 0.5f},
         0x1p-8},
        {{.m = 40,
          .n = 17,
          .k = 64,
          .batch = 1,
          .type = CUDA_R_16F,
          .d_type = CUDA_R_16F,
          .trans_a = 1,
          .epilogue = CUBLASLT_EPILOGUE_GELU_BIAS,
          .alpha = 0.25f},
         0x1p-11},
        {{.m = 33,
          .n = 7,
          .k = 200,
          .batch = 2,
          .type = CUDA_R_32F,
          .d_type = CUDA_R_32F,
          .ld_more = 4,
          .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
          .alpha = 1,
          .beta = -2},
         4e-6},
        {{.m = 16,
          .n = 24,
          .k = 40,
          .batch = 1,
          .type = CUDA_R_16BF,
          .d_type = CUDA_R_32F,
          .trans_a = 1,
          .trans_b = 1,
          .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
          .alpha = 1},
         4e-6},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        double worst = error_of(&all[i].m);
        print_message("matmul %zu: worst error %.1e of %.1e\n", i, worst, all[i].limit);
        assert_true(worst <= all[i].limit);
    }
}

/* An image alone and the same one of a batch differ in bits, so nobody may rely on their being
 * equal. */
static void batches(void **state)
{
    (void)state;
    if (!control.order) skip();
    struct matmul m = {.m = 64,
                       .n = 32,
                       .k = 256,
                       .batch = 2,
                       .type = CUDA_R_32F,
                       .d_type = CUDA_R_32F,
                       .trans_a = 1,
                       .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
                       .alpha = 1};
    float *both = malloc(2 * 64 * 32 * 4), *one = malloc(64 * 32 * 4);
    struct operands o, single;
    void *a, *b, *d, *bias;
    operands_make(&o, &m, &a, &b, &d, &bias);
    CHECK(cublasLtMatmulAlgoGetHeuristic(o.handle, o.desc, o.a, o.b, o.d, o.d, o.preference, 1,
                                         o.found, &o.n_found));
    CHECK(product(&o, &m, 0, WORKSPACE, NULL));
    CHECK(cudaMemcpy(both, o.pd, 2 * 64 * 32 * 4, cudaMemcpyDeviceToHost));
    m.batch = 1;
    memset(&single, 0, sizeof single);
    CHECK(descriptors(&single, &m));
    CHECK(cublasLtMatmulAlgoGetHeuristic(single.handle, single.desc, single.a, single.b, single.d,
                                         single.d, single.preference, 1, single.found,
                                         &single.n_found));
    /* The batch's algorithm is not for the single one. */
    const cublasLtMatmulAlgo_t *wrong = &o.found[0].algo, *right = &single.found[0].algo;
    assert_int_equal(cublasLtMatmul(single.handle, single.desc, &m.alpha, o.pa, single.a, o.pb,
                                    single.b, &m.beta, o.pd, single.d, o.pd, single.d, wrong,
                                    o.workspace, WORKSPACE, NULL),
                     CUBLAS_STATUS_INVALID_VALUE);
    CHECK(cublasLtMatmul(single.handle, single.desc, &m.alpha, o.pa, single.a, o.pb, single.b,
                         &m.beta, o.pd, single.d, o.pd, single.d, right, o.workspace, WORKSPACE,
                         NULL));
    CHECK(cudaMemcpy(one, o.pd, 64 * 32 * 4, cudaMemcpyDeviceToHost));
    int differ = 0;
    for (int i = 0; i < 64 * 32; i++) {
        differ += one[i] != both[i];
        assert_float_equal(one[i], both[i], 1e-4);
    }
    assert_true(differ > 0);
    free(a);
    free(b);
    free(d);
    free(both);
    free(one);
    operands_free(&single);
    operands_free(&o);
    assert_int_equal(control.order(""), 0);
}

/* One thing wrong at a time. */
static void refusals(void **state)
{
    (void)state;
    if (!control.order) skip();
    static const struct matmul good = {.m = 16,
                                       .n = 8,
                                       .k = 32,
                                       .batch = 1,
                                       .type = CUDA_R_16BF,
                                       .d_type = CUDA_R_16BF,
                                       .trans_a = 1,
                                       .epilogue = CUBLASLT_EPILOGUE_BIAS,
                                       .alpha = 1};
    struct matmul m = good;
    struct operands o, changed;
    void *a, *b, *d, *bias;
    cublasLtMatrixLayout_t other;
    operands_make(&o, &m, &a, &b, &d, &bias);
    CHECK(cublasLtMatmulAlgoGetHeuristic(o.handle, o.desc, o.a, o.b, o.d, o.d, o.preference, 8,
                                         o.found, &o.n_found));
    assert_int_equal(o.n_found, 3);
    int split = o.found[0].workspaceSize ? 0 : 1;
    assert_true(o.found[split].workspaceSize > 0);
    assert_int_equal(product(&o, &m, 0, WORKSPACE, NULL), 0);
#define REFUSED(reason, status, call)                                                              \
    do {                                                                                           \
        assert_int_equal(control.order(""), 0);                                                    \
        changed = o;                                                                               \
        m = good;                                                                                  \
        assert_int_equal(call, status);                                                            \
        if (!strstr(control.fault(), reason)) fail_msg("%s: %s", reason, control.fault());         \
    } while (0)
    REFUSED("workspace", CUBLAS_STATUS_INVALID_VALUE,
            product(&changed, &m, split, o.found[split].workspaceSize - 1, NULL));
    REFUSED("workspace", CUBLAS_STATUS_INVALID_VALUE,
            (changed.workspace = (char *)o.workspace + 16,
             product(&changed, &m, split, WORKSPACE, NULL)));
    REFUSED("workspace", CUBLAS_STATUS_INVALID_VALUE,
            (changed.workspace = a, product(&changed, &m, split, WORKSPACE, NULL)));
    REFUSED("16 bytes", CUBLAS_STATUS_INVALID_VALUE,
            (m.shift = 2, product(&changed, &m, 0, WORKSPACE, NULL)));
    REFUSED("one allocation", CUBLAS_STATUS_INVALID_VALUE,
            (m.shift = 1040, product(&changed, &m, 0, WORKSPACE, NULL)));
    REFUSED("one allocation", CUBLAS_STATUS_INVALID_VALUE,
            (changed.pb = b, product(&changed, &m, 0, WORKSPACE, NULL)));
    REFUSED("no algorithm", CUBLAS_STATUS_INVALID_VALUE,
            product(&changed, &m, -1, WORKSPACE, NULL));
    REFUSED("another shape", CUBLAS_STATUS_INVALID_VALUE,
            (changed.found[0].algo.data[2]++, product(&changed, &m, 0, WORKSPACE, NULL)));
    REFUSED("inner dimensions", CUBLAS_STATUS_INVALID_VALUE,
            (changed.b = o.d, product(&changed, &m, 0, WORKSPACE, NULL)));
    REFUSED("shape of c or d", CUBLAS_STATUS_INVALID_VALUE,
            (changed.d = o.b, product(&changed, &m, 0, WORKSPACE, NULL)));
    REFUSED("attribute of another size", CUBLAS_STATUS_INVALID_VALUE,
            (int)cublasLtMatmulDescSetAttribute(o.desc, CUBLASLT_MATMUL_DESC_TRANSA, &m, 8));
    REFUSED("not modelled", CUBLAS_STATUS_NOT_SUPPORTED,
            (int)cublasLtMatmulDescSetAttribute(o.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &m, 1));
    CHECK(cublasLtMatrixLayoutCreate(&other, CUDA_R_16BF, 32, 16, 31));
    REFUSED("leading dimension", CUBLAS_STATUS_INVALID_VALUE,
            (changed.a = other, product(&changed, &m, 0, WORKSPACE, NULL)));
    CHECK(cublasLtMatrixLayoutDestroy(other));
    CHECK(cublasLtMatrixLayoutCreate(&other, CUDA_R_16F, 32, 16, 32));
    REFUSED("types", CUBLAS_STATUS_NOT_SUPPORTED,
            (changed.a = other, product(&changed, &m, 0, WORKSPACE, NULL)));
    const int32_t two = 2;
    CHECK(cublasLtMatrixLayoutSetAttribute(other, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &two,
                                           sizeof two));
    REFUSED("batch counts", CUBLAS_STATUS_INVALID_VALUE,
            (changed.a = other, product(&changed, &m, 0, WORKSPACE, NULL)));
    CHECK(cublasLtMatrixLayoutDestroy(other));
    const void *odd = (char *)o.bias + 2, *none = NULL;
    CHECK(cublasLtMatmulDescSetAttribute(o.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &odd,
                                         sizeof odd));
    REFUSED("a bias at", CUBLAS_STATUS_INVALID_VALUE, product(&changed, &m, 0, WORKSPACE, NULL));
    CHECK(cublasLtMatmulDescSetAttribute(o.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &none,
                                         sizeof none));
    REFUSED("without its pointer", CUBLAS_STATUS_INVALID_VALUE,
            product(&changed, &m, 0, WORKSPACE, NULL));
    /* Small workspaces leave the algorithms that need none. */
    const uint64_t little = 0;
    CHECK(cublasLtMatmulPreferenceSetAttribute(
        o.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &little, sizeof little));
    CHECK(cublasLtMatmulAlgoGetHeuristic(o.handle, o.desc, o.a, o.b, o.d, o.d, o.preference, 8,
                                         o.found, &o.n_found));
    assert_in_range(o.n_found, 1, 2);
    for (int i = 0; i < o.n_found; i++)
        assert_int_equal(o.found[i].workspaceSize, 0);
    /* None at all, as for shapes that the real one does not do. */
    setenv("STEER_FAKE_ALGORITHMS", "0", 1);
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(o.handle, o.desc, o.a, o.b, o.d, o.d,
                                                    o.preference, 8, o.found, &o.n_found),
                     CUBLAS_STATUS_NOT_SUPPORTED);
    unsetenv("STEER_FAKE_ALGORITHMS");
    assert_int_equal(o.n_found, 0);
    free(a);
    free(b);
    free(d);
    free(bias);
    operands_free(&o);
    assert_int_equal(control.order(""), 0);
}

static void nothing_left(void **state)
{
    (void)state;
    char text[500];
    if (control.live && control.live(text, sizeof text)) fail_msg("not freed: %s", text);
}

int cublaslt_tests(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(values), cmocka_unit_test(batches),
                                       cmocka_unit_test(refusals), cmocka_unit_test(nothing_left)};
    return cmocka_run_group_tests_name("cublaslt", tests, NULL, NULL);
}
