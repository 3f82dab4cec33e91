/* fake.h - what the parts of our libcudart and libcublasLt share.
 *
 * They stand in for the real libraries under an unchanged program: device memory is gmem.h's,
 * kernels are run from the program's PTX (ptx.h), and nothing that a stream was given happens
 * before somebody waits for it. One lock guards it all; every entry point begins with
 * steer_fake_enter and ends with steer_fake_leave.
 *
 * Environment, read at the first call:
 *   STEER_FAKE_DEVICES     how many devices (1; 0 to 1)
 *   STEER_FAKE_SM          compute capability (90)
 *   STEER_FAKE_MEMORY_MIB  device memory (8192)
 *   STEER_FAKE_DRIVER      the driver's version (13000); an older one answers
 * cudaErrorInsufficientDriver STEER_FAKE_FAIL        "class:n[:code],...": the n-th call of a
 * class, counted from 1, fails, with the class's usual error or this one. A code that breaks the
 * device (illegal address, ECC and their like) comes when the work runs, and stays.
 *   STEER_FAKE_ALGORITHMS  how many cublasLt's heuristic finds (3; 0: none)
 *   STEER_FAKE_REPORT      a file that gets, at exit, what ran and what was not freed; without it
 * the latter goes to stderr */
#ifndef GPU_FAKE_H
#define GPU_FAKE_H
#include <cuda_runtime_api.h>
#include <stddef.h>

#include "ptx.h"

#define FAKE_CLASSES(X)                                                                            \
    X(MALLOC, "malloc", cudaErrorMemoryAllocation)                                                 \
    X(HOST, "host", cudaErrorMemoryAllocation)                                                     \
    X(COPY, "copy", cudaErrorUnknown)                                                              \
    X(SET, "set", cudaErrorUnknown)                                                                \
    X(LAUNCH, "launch", cudaErrorLaunchOutOfResources)                                             \
    X(STREAM, "stream", cudaErrorMemoryAllocation)                                                 \
    X(EVENT, "event", cudaErrorMemoryAllocation)                                                   \
    X(CAPTURE, "capture", cudaErrorMemoryAllocation)                                               \
    X(GRAPH, "graph", cudaErrorMemoryAllocation)                                                   \
    X(MATMUL, "matmul", 13 /* CUBLAS_STATUS_EXECUTION_FAILED */)                                   \
    X(HEURISTIC, "heuristic", 15 /* CUBLAS_STATUS_NOT_SUPPORTED: it finds none */)                 \
    X(LT, "lt", 3 /* CUBLAS_STATUS_ALLOC_FAILED: handles and descriptors */)
#define X(id, name, code) FAKE_##id,
enum fake_class { FAKE_CLASSES(X) FAKE_N_CLASSES };
#undef X

/* What is counted from its making to its end. */
#define FAKE_OBJECTS(X)                                                                            \
    X(PINNED, "pinned host blocks")                                                                \
    X(STREAMS, "streams")                                                                          \
    X(EVENTS, "events")                                                                            \
    X(GRAPHS, "graphs")                                                                            \
    X(EXECS, "executable graphs")                                                                  \
    X(HANDLES, "cublasLt handles")                                                                 \
    X(DESCRIPTORS, "cublasLt descriptors")
#define X(id, text) FAKE_##id,
enum fake_object { FAKE_OBJECTS(X) FAKE_N_OBJECTS };
#undef X

/* Work that a stream does later, once or, in a graph, many times. data is the work's own. */
struct fake_work {
    cudaError_t (*run)(void *data);
    void (*drop)(void *data); /* or NULL; what data owns */
    const void *kind;         /* its kernel: in a graph's update that must be the same */
    unsigned owners;
    _Alignas(16) unsigned char data[];
};

/* The calls of fake.h itself are for the libraries, those of control.h for tests. */
cudaError_t steer_fake_enter(enum fake_class c); /* takes the lock; the sticky error or the one that
                                                    this call is to fail with */
cudaError_t steer_fake_enter_plain(void);        /* of no class */
cudaError_t steer_fake_state(void); /* under the lock: the sticky error, no device, no driver */
int steer_fake_breaks(int code);    /* whether an error stays for the process */
cudaError_t steer_fake_leave(cudaError_t e); /* e, remembered for cudaGetLastError */
void steer_fake_count(enum fake_object o, int by);
void steer_fake_complain(const char *format, ...)
    __attribute__((format(printf, 1, 2))); /* the text of steer_fake_fault */

/* NULL without memory. */
struct fake_work *steer_fake_work(cudaError_t (*run)(void *data), size_t data_bytes);
/* Gives work to a stream or its capture, which owns it then, even on failure. */
cudaError_t steer_fake_enqueue(cudaStream_t s, struct fake_work *w);

/* Within the libcudart. */
struct fake_device {
    int count, sm, driver;
    size_t memory;
    cudaError_t sticky;
    struct ptx_counts counts;
    size_t own; /* allocations of modules */
};
struct fake_device *fake_device(void); /* under the lock */
int fake_is_pinned(const void *p, size_t size);
void fake_work_drop(struct fake_work *w);
int fake_stream_captures(cudaStream_t s);
cudaError_t fake_drain(cudaStream_t s);
cudaError_t fake_drain_all(void); /* everything that streams were given runs */
/* Calls that may not stand in a capture: of this thread's kind, an error that breaks the capture.
 */
cudaError_t fake_forbid_capture(void);
#endif
