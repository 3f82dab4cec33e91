/* test_cuda.h - what test_cuda.c and test_cublaslt.c share: a CUDA program's usual steps, checked;
 * children for what breaks a device. */
#ifndef GPU_TEST_CUDA_H
#define GPU_TEST_CUDA_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>

#include "fake/control.h"

#define CHECK(call) check((int)(call), #call, __LINE__)
void check(int code, const char *call, int line);
/* A call that must fail so; what the runtime remembers of it is forgotten. */
#define REFUSES(error, call) (assert_int_equal(call, error), (void)cudaGetLastError())

/* control.h's calls in the library that is loaded; NULL members where that is a real one. */
struct control {
    int (*order)(const char *spec);
    unsigned long (*calls)(const char *class);
    const char *(*fault)(void);
    size_t (*live)(char *text, size_t size);
    void (*counts)(struct ptx_counts *ret);
};
extern struct control control;

float uniform(void); /* -1 to 1, the same sequence in every run */
uint16_t bf16_of(float v);
float bf16_to(uint16_t v);

/* The status of a child process that runs f: its exit code, or minus its signal. */
int child(int (*f)(void *arg), void *arg);

int cublaslt_tests(void);
/* One product and its graph, with everything made and freed; a code where a call fails. */
int cublaslt_job(cudaStream_t stream);
#endif
