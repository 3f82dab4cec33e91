/* A CUDA program as the plugin will be one, made by nvcc and the real headers, on our own libcudart
 * and libcublasLt: that they run what is right, to values that the host works out, and find what is
 * wrong. Where LD_LIBRARY_PATH names real libraries instead, the tests of the first kind hold too.
 */
#include "test_cuda.h"

#include <dlfcn.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels.h"

struct control control;

static int is_child; /* where cmocka cannot tell of a failure */

void check(int code, const char *call, int line)
{
    if (code && is_child) {
        fprintf(stderr, "line %d: %s: %s; %s\n", line, call, cudaGetErrorString((cudaError_t)code),
                control.fault());
        _exit(100);
    }
    if (code)
        fail_msg("line %d: %s: %s; %s", line, call, cudaGetErrorString((cudaError_t)code),
                 control.fault ? control.fault() : "");
}

float uniform(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1;
}

uint16_t bf16_of(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float bf16_to(uint16_t v)
{
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

int child(int (*f)(void *arg), void *arg)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        signal(SIGSEGV, SIG_DFL);
        is_child = 1;
        _exit(f(arg));
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static float *device(size_t n, const float *values)
{
    float *p;
    CHECK(cudaMalloc((void **)&p, n * sizeof *p));
    if (values) CHECK(cudaMemcpy(p, values, n * sizeof *p, cudaMemcpyHostToDevice));
    return p;
}

static int fake_only(void)
{
    if (!control.order) skip();
    return 0;
}

/* --- what is right --- */

static void addition(void **state)
{
    (void)state;
    enum { N = 1000 };
    float *host, *a = device(N, NULL), *b = device(N, NULL), *out = device(N, NULL);
    cudaStream_t s[2];
    cudaEvent_t copied, start, end;
    CHECK(cudaMallocHost((void **)&host, 3 * N * sizeof *host));
    for (int i = 0; i < 2; i++)
        CHECK(cudaStreamCreateWithFlags(&s[i], cudaStreamNonBlocking));
    CHECK(cudaEventCreateWithFlags(&copied, cudaEventDisableTiming));
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    for (int i = 0; i < 2 * N; i++)
        host[i] = uniform();
    /* Copies on one stream, the kernel on the other. */
    CHECK(cudaMemcpyAsync(a, host, N * sizeof *host, cudaMemcpyHostToDevice, s[0]));
    CHECK(cudaMemcpyAsync(b, host + N, N * sizeof *host, cudaMemcpyHostToDevice, s[0]));
    CHECK(cudaEventRecord(copied, s[0]));
    CHECK(cudaStreamWaitEvent(s[1], copied, 0));
    CHECK(cudaEventRecord(start, s[1]));
    CHECK(launch_add(out, a, b, N, s[1]));
    CHECK(cudaEventRecord(end, s[1]));
    CHECK(cudaMemcpyAsync(host + 2 * N, out, N * sizeof *host, cudaMemcpyDeviceToHost, s[1]));
    CHECK(cudaStreamSynchronize(s[1]));
    static const float table[4] = {1, -2, 3, -4}, other[4] = {0, 0, 0, 1};
    for (int i = 0; i < N; i++)
        assert_true(host[2 * N + i] == fmaf(host[N + i], table[i % 4], host[i]));
    float ms = -1;
    CHECK(cudaEventElapsedTime(&ms, start, end));
    assert_true(ms >= 0);
    CHECK(set_table(other));
    CHECK(launch_add(out, a, b, N, NULL));
    CHECK(cudaMemcpy(host + 2 * N, out, N * sizeof *host, cudaMemcpyDeviceToHost));
    assert_true(host[2 * N + 8] == host[8] && host[2 * N + 7] == host[N + 7] + host[7]);
    CHECK(set_table(table));
    for (int i = 0; i < 2; i++)
        CHECK(cudaStreamDestroy(s[i]));
    CHECK(cudaEventDestroy(copied));
    CHECK(cudaEventDestroy(start));
    CHECK(cudaEventDestroy(end));
    CHECK(cudaFreeHost(host));
    CHECK(cudaFree(a));
    CHECK(cudaFree(b));
    CHECK(cudaFree(out));
}

static void sums(void **state)
{
    (void)state;
    enum { N = 1234 };
    float x[N], got[4], before[4], after[4], *dx, *out = device(4, NULL);
    for (int i = 0; i < N; i++)
        x[i] = uniform();
    dx = device(N, x);
    CHECK(get_tally(before));
    CHECK(launch_sum(out, dx, N, NULL));
    CHECK(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
    CHECK(get_tally(after));
    for (int b = 0; b < 4; b++) {
        double want = 0;
        for (int i = 0; i < N - b; i++)
            want += x[i] > 0 ? x[i] : -2.0 * x[i];
        assert_float_equal(got[b], want, 1e-3); /* of 920; measured 4e-5 */
        assert_true(after[b] == before[b] + got[b]);
    }
    CHECK(cudaFree(dx));
    CHECK(cudaFree(out));
}

static void arithmetic(void **state)
{
    (void)state;
    enum { N = 128, TERMS = 16 };
    static float x[N], got[N][TERMS];
    uint16_t half[N], brain[N];
    double worst = 0;
    for (int i = 0; i < N; i++) {
        x[i] = uniform() * 4;
        half[i] = (uint16_t)(0x3c00 + i * 8 % 0x400); /* 1 + i * 8 / 1024 */
        brain[i] = bf16_of(1 + (float)(i % 64) / 64);
    }
    float *dx = device(N, x), *out = device(N * TERMS, NULL);
    void *dh = device(N / 2, NULL), *db = device(N / 2, NULL);
    CHECK(cudaMemcpy(dh, half, sizeof half, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(db, brain, sizeof brain, cudaMemcpyHostToDevice));
    CHECK(launch_arithmetic(out, dx, dh, db, N, NULL));
    CHECK(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
    for (int i = 0; i < N; i++) {
        double v = x[i], h = 1 + i * 8 % 0x400 / 1024.0, b = bf16_to(brain[i]);
        int k = (int)nearbyint(x[i] * 100.0f), d = i % 7 + 1, bits = 0, zeros = 0;
        for (int j = 0; j < 32; j++)
            bits += (uint32_t)k >> j & 1;
        while (zeros < 32 && !((uint32_t)(k | 1) >> (31 - zeros) & 1))
            zeros++;
        uint32_t ballot = 0, any = 0;
        for (int j = 0; j < 32; j++) {
            ballot |= (uint32_t)(x[i / 32 * 32 + j] > 0) << j;
            any |= x[i / 32 * 32 + j] > 3;
        }
        int at = (int)(fabsf(x[i]) * 5) & 15;
        double want[TERMS] = {exp2(v),
                              exp(v),
                              log(fabs(v) + 1),
                              1 / sqrt(v * v + 1),
                              fabs(v),
                              1 / (1 + v * v),
                              tanh(v),
                              erf(v),
                              (double)x[(i + at) % N] * at,
                              h * v + 1 + h * 2 + v,
                              b * v - b * 3,
                              sin(v) + cos(v),
                              k / d + k % d + bits + zeros,
                              (double)(float)((unsigned long long)(k * k) * 12345678901ull >> 32),
                              (double)ballot + (any ? 0.5 : 0),
                              fmax(fmin(v, 0.5), -0.5) + trunc(v) + rint(v) + floor(v)};
        for (int j = 0; j < TERMS; j++) {
            /* Terms 9 and 10 were rounded to 11 and 8 bits on their way. */
            double limit = j == 9    ? 2e-2
                           : j == 10 ? 1e-1
                                     : 1e-6 * fmax(1, fabs(want[j])),
                   error = fabs(got[i][j] - want[j]);
            if (!(error <= limit))
                fail_msg("term %d of %g: %g, expected %g", j, v, (double)got[i][j], want[j]);
            if (j != 9 && j != 10) worst = fmax(worst, error / fmax(1, fabs(want[j])));
        }
    }
    print_message("arithmetic: worst error %.1e\n", worst); /* 1.2e-7 */
    CHECK(cudaFree(dx));
    CHECK(cudaFree(out));
    CHECK(cudaFree(dh));
    CHECK(cudaFree(db));
}

static uint16_t f16_small(float v) /* of multiples of 1/16 below 2 */
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return v == 0 ? 0
                  : (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) |
                               (bits >> 13 & 0x3ff));
}

struct product {
    int m, n, k, is_f16, fault;
    float *out;
    void *a, *b;
    float *host_a, *host_b;
};

static void product_make(struct product *p)
{
    uint16_t *a = malloc((size_t)(p->m * p->k) * 2), *b = malloc((size_t)(p->n * p->k) * 2);
    p->host_a = malloc((size_t)(p->m * p->k) * sizeof(float));
    p->host_b = malloc((size_t)(p->n * p->k) * sizeof(float));
    for (int i = 0; i < p->m * p->k; i++) {
        p->host_a[i] = rintf(uniform() * 16) / 16;
        a[i] = p->is_f16 ? f16_small(p->host_a[i]) : bf16_of(p->host_a[i]);
    }
    for (int i = 0; i < p->n * p->k; i++) {
        p->host_b[i] = rintf(uniform() * 16) / 16;
        b[i] = p->is_f16 ? f16_small(p->host_b[i]) : bf16_of(p->host_b[i]);
    }
    p->out = device((size_t)(p->m * p->n), NULL);
    CHECK(cudaMalloc(&p->a, (size_t)(p->m * p->k) * 2));
    CHECK(cudaMalloc(&p->b, (size_t)(p->n * p->k) * 2));
    CHECK(cudaMemcpy(p->a, a, (size_t)(p->m * p->k) * 2, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(p->b, b, (size_t)(p->n * p->k) * 2, cudaMemcpyHostToDevice));
    free(a);
    free(b);
}

static void product_free(struct product *p)
{
    CHECK(cudaFree(p->a));
    CHECK(cudaFree(p->b));
    CHECK(cudaFree(p->out));
    free(p->host_a);
    free(p->host_b);
}

static void products(void **state)
{
    (void)state;
    static const int shapes[][3] = {{64, 32, 32}, {65, 40, 64}, {130, 72, 96}, {1, 8, 32}};
    for (int i = 0; i < 8; i++) {
        struct product p = {
            .m = shapes[i / 2][0], .n = shapes[i / 2][1], .k = shapes[i / 2][2], .is_f16 = i % 2};
        product_make(&p);
        CHECK(launch_gemm(p.is_f16, FAULT_NONE, p.out, p.a, p.b, p.m, p.n, p.k, NULL));
        float *got = malloc((size_t)(p.m * p.n) * sizeof *got);
        CHECK(cudaMemcpy(got, p.out, (size_t)(p.m * p.n) * sizeof *got, cudaMemcpyDeviceToHost));
        /* Multiples of 1/256 below 2^16: sums are exact. */
        for (int r = 0; r < p.m; r++)
            for (int c = 0; c < p.n; c++) {
                float want = 0;
                for (int k = 0; k < p.k; k++)
                    want += p.host_a[r * p.k + k] * p.host_b[k * p.n + c];
                if (got[r * p.n + c] != want)
                    fail_msg("%d x %d x %d at %d, %d: %g, expected %g", p.m, p.n, p.k, r, c,
                             (double)got[r * p.n + c], (double)want);
            }
        free(got);
        product_free(&p);
    }
}

static void dynamic_memory(void **state)
{
    (void)state;
    enum { BYTES = 96 << 10 };
    float *out = device(BYTES / 4, NULL), got;
    assert_int_equal(launch_dynamic(out, BYTES, 0, NULL), cudaErrorInvalidValue);
    CHECK(launch_dynamic(out, BYTES, BYTES, NULL));
    CHECK(cudaMemcpy(&got, out + BYTES / 4 - 1, 4, cudaMemcpyDeviceToHost));
    assert_true(got == BYTES / 4 - 1);
    assert_int_equal(launch_dynamic(out, 512 << 10, 512 << 10, NULL), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    CHECK(cudaFree(out));
}

/* Memory of the host that is registered for it: kernels have it at its own address. */
static void mapped_memory(void **state)
{
    (void)state;
    static float x[64], out[64];
    for (int i = 0; i < 64; i++)
        x[i] = uniform();
    CHECK(cudaHostRegister(x, sizeof x, cudaHostRegisterMapped));
    CHECK(cudaHostRegister(out, sizeof out, cudaHostRegisterMapped));
    REFUSES(cudaErrorHostMemoryAlreadyRegistered,
            cudaHostRegister(x + 8, 32, cudaHostRegisterMapped));
    CHECK(launch_add(out, x, x, 64, NULL));
    CHECK(cudaDeviceSynchronize());
    assert_true(out[4] == x[4] * 2 && out[5] == -x[5]);
    CHECK(cudaHostUnregister(x));
    CHECK(cudaHostUnregister(out));
    REFUSES(cudaErrorHostMemoryNotRegistered, cudaHostUnregister(x));
}

/* --- graphs --- */

struct fork {
    enum { N = 256 } n;
    float *a, *b, *x, *y, *out;
    cudaStream_t s[2];
    cudaEvent_t forked, joined;
};

/* x = a + b t on one stream, y = b + a t on the other, out = x + y t. */
static int fork_record(struct fork *f, int joins)
{
    int code = (int)cudaEventRecord(f->forked, f->s[0]);
    if (!code) code = (int)cudaStreamWaitEvent(f->s[1], f->forked, 0);
    if (!code) code = launch_add(f->x, f->a, f->b, N, f->s[0]);
    if (!code) code = launch_add(f->y, f->b, f->a, N, f->s[1]);
    if (!code) code = (int)cudaEventRecord(f->joined, f->s[1]);
    if (!code && joins) code = (int)cudaStreamWaitEvent(f->s[0], f->joined, 0);
    return code ? code : launch_add(f->out, f->x, f->y, N, f->s[0]);
}

static void fork_make(struct fork *f, const float *values)
{
    f->a = device(N, values);
    f->b = device(N, values + N);
    f->x = device(N, NULL);
    f->y = device(N, NULL);
    f->out = device(N, NULL);
    for (int i = 0; i < 2; i++)
        CHECK(cudaStreamCreateWithFlags(&f->s[i], cudaStreamNonBlocking));
    CHECK(cudaEventCreateWithFlags(&f->forked, cudaEventDisableTiming));
    CHECK(cudaEventCreateWithFlags(&f->joined, cudaEventDisableTiming));
}

static void fork_free(struct fork *f)
{
    float *const all[] = {f->a, f->b, f->x, f->y, f->out};
    for (int i = 0; i < 5; i++)
        CHECK(cudaFree(all[i]));
    for (int i = 0; i < 2; i++)
        CHECK(cudaStreamDestroy(f->s[i]));
    CHECK(cudaEventDestroy(f->forked));
    CHECK(cudaEventDestroy(f->joined));
}

static int fork_right(struct fork *f, const float *values)
{
    static const float t[4] = {1, -2, 3, -4};
    float got[N];
    int right = 1;
    CHECK(cudaStreamSynchronize(f->s[0]));
    CHECK(cudaMemcpy(got, f->out, sizeof got, cudaMemcpyDeviceToHost));
    for (int i = 0; i < N; i++) {
        float x = fmaf(values[N + i], t[i % 4], values[i]),
              y = fmaf(values[i], t[i % 4], values[N + i]);
        right &= got[i] == fmaf(y, t[i % 4], x);
    }
    return right;
}

static void graphs(void **state)
{
    (void)state;
    float values[2 * N];
    for (int i = 0; i < 2 * N; i++)
        values[i] = uniform();
    struct fork f;
    fork_make(&f, values);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    size_t nodes;
    CHECK(cudaStreamBeginCapture(f.s[0], cudaStreamCaptureModeThreadLocal));
    CHECK(fork_record(&f, 1));
    CHECK(cudaStreamEndCapture(f.s[0], &graph));
    CHECK(cudaGraphGetNodes(graph, NULL, &nodes));
    assert_int_equal(nodes, 3);
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaGraphDestroy(graph));
    for (int turn = 0; turn < 3; turn++) {
        /* What the capture recorded are addresses: their contents may change. */
        for (int i = 0; i < 2 * N; i++)
            values[i] = uniform();
        CHECK(cudaMemcpy(f.a, values, N * sizeof(float), cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(f.b, values + N, N * sizeof(float), cudaMemcpyHostToDevice));
        CHECK(cudaMemset(f.out, 0xff, N * sizeof(float)));
        CHECK(cudaDeviceSynchronize());
        CHECK(cudaGraphLaunch(exec, f.s[0]));
        assert_true(fork_right(&f, values));
    }
    /* The same graph of other memory, by an update; another graph is refused. */
    float *other = device(N, values);
    CHECK(cudaFree(f.a));
    f.a = other;
    CHECK(cudaStreamBeginCapture(f.s[0], cudaStreamCaptureModeThreadLocal));
    CHECK(fork_record(&f, 1));
    CHECK(cudaStreamEndCapture(f.s[0], &graph));
    CHECK(cudaGraphExecUpdate(exec, graph, NULL));
    CHECK(cudaGraphDestroy(graph));
    CHECK(cudaGraphLaunch(exec, f.s[0]));
    assert_true(fork_right(&f, values));
    CHECK(cudaStreamBeginCapture(f.s[0], cudaStreamCaptureModeThreadLocal));
    CHECK(launch_add(f.x, f.a, f.b, N, f.s[0]));
    CHECK(cudaStreamEndCapture(f.s[0], &graph));
    cudaGraphExecUpdateResultInfo info;
    assert_int_equal(cudaGraphExecUpdate(exec, graph, &info), cudaErrorGraphExecUpdateFailure);
    (void)cudaGetLastError();
    CHECK(cudaGraphDestroy(graph));
    CHECK(cudaGraphExecDestroy(exec));
    fork_free(&f);
}

static void bad_captures(void **state)
{
    (void)state;
    float values[2 * N] = {0};
    struct fork f;
    fork_make(&f, values);
    cudaGraph_t graph;
    void *p;
    /* Work of another stream that nobody waits for. */
    CHECK(cudaStreamBeginCapture(f.s[0], cudaStreamCaptureModeThreadLocal));
    CHECK(fork_record(&f, 0));
    REFUSES(cudaErrorStreamCaptureUnjoined, cudaStreamEndCapture(f.s[0], &graph));
    /* What a capture must not see. */
    for (int i = 0; i < 4; i++) {
        CHECK(cudaStreamBeginCapture(f.s[0], cudaStreamCaptureModeGlobal));
        CHECK(launch_add(f.x, f.a, f.b, N, f.s[0]));
        cudaError_t e = i == 0   ? cudaMalloc(&p, 16)
                        : i == 1 ? cudaStreamSynchronize(f.s[0])
                        : i == 2 ? cudaDeviceSynchronize()
                                 : cudaMemcpy(f.x, values, 16, cudaMemcpyHostToDevice);
        REFUSES(cudaErrorStreamCaptureUnsupported, e);
        REFUSES(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(f.s[0], &graph));
    }
    CHECK(cudaEventRecord(f.forked, f.s[1]));
    CHECK(cudaStreamBeginCapture(f.s[0], cudaStreamCaptureModeGlobal));
    REFUSES(cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(f.s[0], f.forked, 0));
    REFUSES(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(f.s[0], &graph));
    CHECK(launch_add(f.x, f.a, f.b, N, f.s[0]));
    CHECK(cudaStreamSynchronize(f.s[0]));
    fork_free(&f);
}

/* A blocking stream and the legacy one keep the order of calls by themselves. */
static void legacy_order(void **state)
{
    (void)state;
    float values[2 * N], got[N];
    for (int i = 0; i < 2 * N; i++)
        values[i] = uniform();
    struct fork f;
    cudaStream_t blocking;
    fork_make(&f, values);
    CHECK(cudaStreamCreate(&blocking));
    CHECK(launch_add(f.out, f.a, f.b, N, blocking));
    CHECK(cudaMemcpy(got, f.out, sizeof got, cudaMemcpyDeviceToHost));
    assert_true(got[0] == values[0] + values[N]);
    CHECK(cudaMemsetAsync(f.a, 0, N * sizeof(float), NULL));
    CHECK(launch_add(f.out, f.a, f.b, N, blocking));
    CHECK(cudaStreamSynchronize(blocking));
    CHECK(cudaMemcpy(got, f.out, sizeof got, cudaMemcpyDeviceToHost));
    assert_true(got[0] == values[N]);
    CHECK(cudaStreamDestroy(blocking));
    fork_free(&f);
}

/* --- what is wrong must show; these hold for the fakes alone --- */

static void missing_waits(void **state)
{
    (void)state;
    if (fake_only()) return;
    float values[2 * N];
    for (int i = 0; i < 2 * N; i++)
        values[i] = 1 + uniform() / 2;
    struct fork f;
    fork_make(&f, values);
    /* The result before it was waited for. */
    float *pinned;
    CHECK(cudaMallocHost((void **)&pinned, N * sizeof *pinned));
    pinned[0] = 123;
    CHECK(launch_add(f.out, f.a, f.b, N, f.s[0]));
    CHECK(cudaMemcpyAsync(pinned, f.out, N * sizeof *pinned, cudaMemcpyDeviceToHost, f.s[0]));
    assert_true(pinned[0] == 123);
    CHECK(cudaStreamSynchronize(f.s[0]));
    assert_true(pinned[0] == values[0] + values[N]);
    /* Pinned memory that is written over before its copy was waited for. */
    CHECK(cudaMemcpyAsync(f.a, pinned, N * sizeof *pinned, cudaMemcpyHostToDevice, f.s[0]));
    pinned[0] = 77;
    CHECK(cudaMemcpy(values + N, f.a, 4,
                     cudaMemcpyDeviceToHost)); /* not this stream's: they do not block each other */
    assert_true(values[N] != 77);
    CHECK(cudaStreamSynchronize(f.s[0]));
    CHECK(cudaMemcpy(values + N, f.a, 4, cudaMemcpyDeviceToHost));
    assert_true(values[N] == 77);
    /* The other stream's work without an event: y is not there yet. */
    CHECK(cudaMemset(f.y, 0xff, N * sizeof(float)));
    CHECK(launch_add(f.y, f.b, f.a, N, f.s[1]));
    CHECK(launch_add(f.out, f.x, f.y, N, f.s[0]));
    CHECK(cudaMemcpyAsync(pinned, f.out, N * sizeof *pinned, cudaMemcpyDeviceToHost, f.s[0]));
    CHECK(cudaStreamSynchronize(f.s[0]));
    assert_true(isnan(pinned[0]));
    /* The same in a graph, where the other stream is joined too late. */
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemset(f.y, 0xff, N * sizeof(float)));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaStreamBeginCapture(f.s[0], cudaStreamCaptureModeThreadLocal));
    CHECK(fork_record(&f, 0));
    CHECK(cudaStreamWaitEvent(f.s[0], f.joined, 0));
    CHECK(cudaStreamEndCapture(f.s[0], &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaGraphLaunch(exec, f.s[0]));
    CHECK(cudaMemcpyAsync(pinned, f.out, N * sizeof *pinned, cudaMemcpyDeviceToHost, f.s[0]));
    CHECK(cudaStreamSynchronize(f.s[0]));
    assert_true(isnan(pinned[0]));
    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    /* Polling gets there. */
    CHECK(launch_add(f.y, f.b, f.a, N, f.s[1]));
    CHECK(cudaEventRecord(f.joined, f.s[1]));
    int turns = 0;
    while (cudaEventQuery(f.joined) == cudaErrorNotReady)
        turns++;
    assert_int_equal(turns, 1);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFreeHost(pinned));
    fork_free(&f);
}

struct wrong {
    int fault;
    cudaError_t error;
    const char *text;
};

/* 0 where the fault was found as it should be, and the device stays broken. */
static int wrong_run(void *arg)
{
    const struct wrong *w = arg;
    float *out = NULL;
    cudaError_t e;
    if (w->fault < FAULT_RACE_WRITE) {
        struct product p = {.m = 64, .n = 32, .k = 96};
        product_make(&p);
        if (launch_gemm(0, w->fault, p.out, p.a, p.b, p.m, p.n, p.k, NULL)) return 2;
    } else {
        if (cudaMalloc((void **)&out, 128 * sizeof *out) ||
            launch_unsound(out, 128, w->fault, NULL))
            return 2;
    }
    /* Nobody knows until somebody waits. */
    if (cudaGetLastError()) return 3;
    e = cudaDeviceSynchronize();
    if (e != w->error || !strstr(control.fault(), w->text)) {
        fprintf(stderr, "fault %d: %s; %s\n", w->fault, cudaGetErrorName(e), control.fault());
        return 4;
    }
    void *p;
    return cudaMalloc(&p, 16) == w->error && cudaGetLastError() == w->error &&
                   launch_add(out, out, out, 8, NULL) == (int)w->error
               ? 0
               : 5;
}

static void wrong_kernels(void **state)
{
    (void)state;
    if (fake_only()) return;
    static const struct wrong all[] = {
        {FAULT_WAIT, cudaErrorLaunchFailure, "in flight"},
        {FAULT_FIRST_BARRIER, cudaErrorLaunchFailure, "race"},
        {FAULT_LAST_BARRIER, cudaErrorLaunchFailure, "race"},
        {FAULT_RACE_WRITE, cudaErrorLaunchFailure, "race"},
        {FAULT_RACE_READ, cudaErrorLaunchFailure, "race"},
        {FAULT_RACE_LANES, cudaErrorLaunchFailure, "race"},
        {FAULT_UNWRITTEN, cudaErrorLaunchFailure, "nobody has written"},
        {FAULT_BEYOND, cudaErrorIllegalAddress, "not within an allocation"},
        {FAULT_BEFORE, cudaErrorIllegalAddress, "not within an allocation"},
        {FAULT_MISALIGNED, cudaErrorMisalignedAddress, "no multiple"},
        {FAULT_SHARED_BEYOND, cudaErrorIllegalAddress, "shared address"},
        {FAULT_DIVERGED_BARRIER, cudaErrorLaunchFailure, "at the barrier"},
        {FAULT_ABSENT_AT_BARRIER, cudaErrorLaunchFailure, "wait at a barrier"},
        {FAULT_DIVERGED_SHUFFLE, cudaErrorLaunchFailure, "its mask names lanes"},
    };
    assert_int_equal(sizeof all / sizeof *all, FAULTS - 1);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        assert_int_equal(child(wrong_run, (void *)&all[i]), 0);
    float *out = device(32, NULL);
    assert_int_equal(launch_unknown(out, NULL), cudaErrorInvalidPtx);
    assert_non_null(strstr(control.fault(), "%clock64"));
    CHECK(launch_unsound(out, 32, FAULT_NONE, NULL));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFree(out));
    assert_int_equal(control.order(""), 0);
}

static int host_reads(void *arg)
{
    (void)arg;
    float *p;
    return cudaMalloc((void **)&p, 64) ? 1 : (int)*(volatile float *)p;
}

static int host_writes(void *arg)
{
    (void)arg;
    float *p;
    if (cudaMalloc((void **)&p, 64)) return 1;
    *(volatile float *)p = 1;
    return 0;
}

static int freed_early(void *arg)
{
    float *p;
    if (cudaMalloc((void **)&p, 512) || launch_add(p, p, p, 64, NULL) || cudaFree(p)) return 1;
    (void)arg;
    return cudaDeviceSynchronize() == cudaErrorIllegalAddress ? 0 : 2;
}

/* Pinned memory in a kernel works on real devices, at the bus's speed: nobody means it. */
static int kernel_reads_host(void *arg)
{
    float *p, *out;
    (void)arg;
    if (cudaMallocHost((void **)&p, 512) || cudaMalloc((void **)&out, 512)) return 1;
    if (launch_add(out, p, p, 64, NULL)) return 2;
    return cudaDeviceSynchronize() == cudaErrorIllegalAddress ? 0 : 3;
}

static void wrong_hosts(void **state)
{
    (void)state;
    if (fake_only()) return;
    assert_int_equal(child(host_reads, NULL), -SIGSEGV);
    assert_int_equal(child(host_writes, NULL), -SIGSEGV);
    assert_int_equal(child(freed_early, NULL), 0);
    assert_int_equal(child(kernel_reads_host, NULL), 0);
    float *p = device(16, NULL), host[32];
    assert_int_equal(cudaMemcpy(host, p, sizeof host, cudaMemcpyDeviceToHost),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(host, p, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(p + 1), cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, p, 64, cudaMemcpyDeviceToHost));
    assert_true(isnan(host[0]) && isnan(host[15])); /* fresh memory */
    CHECK(cudaFree(p));
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue);
    (void)cudaGetLastError();
    assert_int_equal(control.order(""), 0);
}

/* --- devices of other kinds, each in a program of its own: this one, told what to try --- */

static int probe(const char *what)
{
    int count = 77, version = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    (void)cudaDriverGetVersion(&version);
    float *p;
    if (!strcmp(what, "old driver"))
        return !(e == cudaErrorInsufficientDriver && count == 77 && version == 11080 &&
                 cudaMalloc((void **)&p, 4) == e);
    if (!strcmp(what, "none")) return !(e == cudaErrorNoDevice && count == 77);
    if (!strcmp(what, "old device")) {
        struct cudaDeviceProp props;
        int major = 0;
        if (cudaGetDeviceProperties(&props, 0) ||
            cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0))
            return 2;
        if (props.major != 7 || props.minor != 5 || major != 7 || cudaMalloc((void **)&p, 4096))
            return 3;
        return launch_add(p, p, p, 8, NULL) != (int)cudaErrorNoKernelImageForDevice;
    }
    if (!strcmp(what, "small")) {
        size_t available, total;
        if (cudaMemGetInfo(&available, &total) || total != 4 << 20 || available != total) return 2;
        if (cudaMalloc((void **)&p, 3 << 20) || cudaMemGetInfo(&available, &total) ||
            available != 1 << 20)
            return 3;
        return cudaMalloc((void **)&p, 2 << 20) != cudaErrorMemoryAllocation;
    }
    if (!strcmp(what, "fails"))
        return !(cudaMalloc((void **)&p, 4) == cudaSuccess &&
                 cudaMalloc((void **)&p, 4) == cudaErrorMemoryAllocation &&
                 cudaGetLastError() == cudaErrorMemoryAllocation &&
                 cudaMalloc((void **)&p, 4) == cudaSuccess);
    if (!strcmp(what, "ecc")) {
        if (cudaMalloc((void **)&p, 4096) || launch_add(p, p, p, 8, NULL)) return 2;
        return cudaDeviceSynchronize() != cudaErrorECCUncorrectable ||
               cudaFree(p) != cudaErrorECCUncorrectable;
    }
    return 99;
}

static void devices(void **state)
{
    if (fake_only()) return;
    static const char *const probes[][3] = {
        {"old driver", "STEER_FAKE_DRIVER", "11080"}, {"none", "STEER_FAKE_DEVICES", "0"},
        {"old device", "STEER_FAKE_SM", "75"},        {"small", "STEER_FAKE_MEMORY_MIB", "4"},
        {"fails", "STEER_FAKE_FAIL", "malloc:2"},     {"ecc", "STEER_FAKE_FAIL", "launch:1:214"}};
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
        char command[4096];
        snprintf(command, sizeof command, "%s=%s '%s' --probe '%s' 2>/dev/null", probes[i][1],
                 probes[i][2], (const char *)*state, probes[i][0]);
        if (system(command)) fail_msg("%s", probes[i][0]);
    }
    /* What is not freed is told at the end. */
    char command[4096], line[256] = "";
    snprintf(command, sizeof command, "STEER_FAKE_FAIL=malloc:2 '%s' --probe fails 2>&1",
             (const char *)*state);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    assert_int_equal(pclose(f), 0);
    assert_string_equal(line, "not freed: 2 device allocations\n");
}

/* --- each call fails in turn --- */

/* What one job does; it frees all that it made, whatever fails. */
static int job(void)
{
    enum { BYTES = N * sizeof(float) };
    float *host = NULL, *a = NULL, *out = NULL;
    cudaStream_t s = NULL;
    cudaEvent_t v = NULL;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    int code = (int)cudaMallocHost((void **)&host, BYTES);
    if (!code) code = (int)cudaMalloc((void **)&a, BYTES);
    if (!code) code = (int)cudaMalloc((void **)&out, BYTES);
    if (!code) code = (int)cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    if (!code) code = (int)cudaEventCreate(&v);
    if (!code) {
        for (int i = 0; i < N; i++)
            host[i] = (float)i;
        code = (int)cudaMemcpyAsync(a, host, BYTES, cudaMemcpyHostToDevice, s);
    }
    if (!code) code = (int)cudaMemsetAsync(out, 0, BYTES, s);
    if (!code) code = (int)cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
    if (!code) {
        code = launch_add(out, a, a, N, s);
        int end = (int)cudaStreamEndCapture(s, &graph);
        code = code ? code : end;
    }
    if (!code) code = (int)cudaGraphInstantiate(&exec, graph, 0);
    if (!code) code = (int)cudaGraphLaunch(exec, s);
    if (!code) code = cublaslt_job(s);
    if (!code) code = (int)cudaMemcpyAsync(host, out, BYTES, cudaMemcpyDeviceToHost, s);
    if (!code) code = (int)cudaEventRecord(v, s);
    if (!code) code = (int)cudaEventSynchronize(v);
    if (!code && (host[4] != 8 || host[5] != -5)) code = -1;
    if (exec) (void)cudaGraphExecDestroy(exec);
    if (graph) (void)cudaGraphDestroy(graph);
    if (v) (void)cudaEventDestroy(v);
    if (s) (void)cudaStreamDestroy(s);
    (void)cudaFree(a);
    (void)cudaFree(out);
    if (host) (void)cudaFreeHost(host);
    return code;
}

static void failures(void **state)
{
    (void)state;
    if (fake_only()) return;
    static const char *const classes[] = {"malloc", "host",   "copy",      "set",
                                          "launch", "stream", "event",     "capture",
                                          "graph",  "matmul", "heuristic", "lt"};
    char text[500];
    int n_failed = 0;
    assert_int_equal(control.order(""), 0);
    assert_int_equal(job(), 0);
    unsigned long calls[sizeof classes / sizeof *classes];
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        assert_true((calls[i] = control.calls(classes[i])) > 0);
    assert_int_equal(control.live(text, sizeof text), 0);
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        for (unsigned long n = 1; n <= calls[i]; n++) {
            char spec[64];
            snprintf(spec, sizeof spec, "%s:%lu", classes[i], n);
            assert_int_equal(control.order(spec), 0);
            int code = job();
            if (code <= 0) fail_msg("%s: the job answers %d", spec, code);
            if (!strstr(control.fault(), classes[i])) fail_msg("%s: %s", spec, control.fault());
            if (control.live(text, sizeof text)) fail_msg("%s: not freed: %s", spec, text);
            (void)cudaGetLastError();
            if (job()) fail_msg("%s: the next job fails", spec);
            n_failed++;
        }
    assert_int_equal(control.order("nothing:1"), -1);
    assert_int_equal(control.order(""), 0);
    print_message("failures: %d, each with its error, nothing lost, the next job fine\n", n_failed);
}

static void counted(void **state)
{
    (void)state;
    if (fake_only()) return;
    struct ptx_counts before, after;
    struct product p = {.m = 128, .n = 64, .k = 64};
    product_make(&p);
    control.counts(&before);
    CHECK(launch_gemm(0, FAULT_NONE, p.out, p.a, p.b, p.m, p.n, p.k, NULL));
    CHECK(cudaDeviceSynchronize());
    control.counts(&after);
    /* Each mma is 16 x 8 x 16 products. */
    assert_int_equal(after.mma - before.mma, 128 * 64 * 64 / (16 * 8 * 16));
    /* Of a, a warp's fragment of 16 x 16 for its row; of b, two of 16 x 8 at a time. */
    assert_int_equal(after.ldmatrix - before.ldmatrix, (after.mma - before.mma) / 4 * 3);
    assert_int_equal(after.ldmatrix_waves - before.ldmatrix_waves,
                     after.ldmatrix_waves_least - before.ldmatrix_waves_least);
    /* a for each of two columns of blocks, b for each of two rows. */
    assert_int_equal(after.copied_bytes - before.copied_bytes, 2 * 128 * 64 * 2 + 2 * 64 * 64 * 2);
    assert_int_equal(after.written_bytes - before.written_bytes, 128 * 64 * 4);
    assert_int_equal(after.written_sectors - before.written_sectors, 128 * 64 * 4 / 32);
    product_free(&p);
}

static void nothing_left(void **state)
{
    (void)state;
    if (fake_only()) return;
    char text[500];
    if (control.live(text, sizeof text)) fail_msg("not freed: %s", text);
}

static void control_find(void)
{
    /* dlsym's answer is data to C. */
    *(void **)&control.order = dlsym(RTLD_DEFAULT, "steer_fake_fail");
    *(void **)&control.calls = dlsym(RTLD_DEFAULT, "steer_fake_calls");
    *(void **)&control.fault = dlsym(RTLD_DEFAULT, "steer_fake_fault");
    *(void **)&control.live = dlsym(RTLD_DEFAULT, "steer_fake_live");
    *(void **)&control.counts = dlsym(RTLD_DEFAULT, "steer_fake_counts");
}

int main(int argc, char **argv)
{
    control_find();
    if (argc == 3 && !strcmp(argv[1], "--probe")) return probe(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addition),
        cmocka_unit_test(sums),
        cmocka_unit_test(arithmetic),
        cmocka_unit_test(products),
        cmocka_unit_test(dynamic_memory),
        cmocka_unit_test(mapped_memory),
        cmocka_unit_test(graphs),
        cmocka_unit_test(bad_captures),
        cmocka_unit_test(legacy_order),
        cmocka_unit_test(missing_waits),
        cmocka_unit_test(wrong_kernels),
        cmocka_unit_test(wrong_hosts),
        cmocka_unit_test_prestate(devices, argv[0]),
        cmocka_unit_test(failures),
        cmocka_unit_test(counted),
        cmocka_unit_test(nothing_left),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + cublaslt_tests();
}
