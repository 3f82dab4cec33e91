/* device.c - the device that is pretended: what it is, its errors, and the failures that tests
 * order. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "fake.h"
#include "gmem.h"

enum { FAILS_MAX = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_device device;
static int is_read;
static struct {
    enum fake_class class;
    unsigned long at;
    int code;
} fails[FAILS_MAX];
static size_t n_fails;
static unsigned long calls[FAKE_N_CLASSES];
static long objects[FAKE_N_OBJECTS];
static char fault[600];
static _Thread_local cudaError_t last;

#define X(id, name, code) {name, code},
static const struct {
    const char *name;
    int code;
} classes[] = {FAKE_CLASSES(X)};
#undef X
#define X(id, text) text,
static const char *const object_names[] = {FAKE_OBJECTS(X)};
#undef X

int steer_fake_breaks(int code)
{
    switch (code) {
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure: return 1;
    default: return 0;
    }
}

static int fails_read(const char *spec)
{
    n_fails = 0;
    memset(calls, 0, sizeof calls);
    while (*spec) {
        size_t length = strcspn(spec, ":"), i = 0;
        while (i < FAKE_N_CLASSES &&
               (strlen(classes[i].name) != length || strncmp(classes[i].name, spec, length)))
            i++;
        if (i == FAKE_N_CLASSES || spec[length] != ':' || n_fails == FAILS_MAX) return -1;
        char *rest;
        fails[n_fails].class = (enum fake_class)i;
        fails[n_fails].at = strtoul(spec + length + 1, &rest, 10);
        fails[n_fails].code = *rest == ':' ? (int)strtol(rest + 1, &rest, 10) : classes[i].code;
        n_fails++;
        if (*rest && *rest != ',') return -1;
        spec = *rest ? rest + 1 : rest;
    }
    return 0;
}

static long setting(const char *name, long otherwise)
{
    const char *s = getenv(name);
    return s ? strtol(s, NULL, 10) : otherwise;
}

struct fake_device *fake_device(void)
{
    if (is_read) return &device;
    is_read = 1;
    device.count = (int)setting("STEER_FAKE_DEVICES", 1);
    device.sm = (int)setting("STEER_FAKE_SM", 90);
    device.driver = (int)setting("STEER_FAKE_DRIVER", 13000);
    device.memory = (size_t)setting("STEER_FAKE_MEMORY_MIB", 8192) << 20;
    const char *spec = getenv("STEER_FAKE_FAIL");
    if (spec && fails_read(spec)) {
        fprintf(stderr, "steer-fake: STEER_FAKE_FAIL=%s is not class:n[:code],...\n", spec);
        abort();
    }
    return &device;
}

cudaError_t steer_fake_state(void)
{
    const struct fake_device *d = fake_device();
    if (d->driver < 13000) return cudaErrorInsufficientDriver;
    if (!d->count) return cudaErrorNoDevice;
    return d->sticky;
}

cudaError_t steer_fake_enter_plain(void)
{
    pthread_mutex_lock(&lock);
    return steer_fake_state();
}

cudaError_t steer_fake_enter(enum fake_class c)
{
    cudaError_t e = steer_fake_enter_plain();
    if (e) return e;
    calls[c]++;
    for (size_t i = 0; i < n_fails; i++) {
        if (fails[i].class != c || fails[i].at != calls[c]) continue;
        snprintf(fault, sizeof fault, "call %lu of %s fails with %d as ordered", calls[c],
                 classes[c].name, fails[i].code);
        return (cudaError_t)fails[i].code;
    }
    return cudaSuccess;
}

cudaError_t steer_fake_leave(cudaError_t e)
{
    if (e && e != cudaErrorNotReady) last = e;
    if (steer_fake_breaks(e) && !device.sticky) device.sticky = e;
    pthread_mutex_unlock(&lock);
    return e;
}

void steer_fake_count(enum fake_object o, int by)
{
    objects[o] += by;
}

void steer_fake_complain(const char *format, ...)
{
    if (fault[0]) return;
    va_list list;
    va_start(list, format);
    vsnprintf(fault, sizeof fault, format, list);
    va_end(list);
}

/* --- control.h --- */

int steer_fake_fail(const char *spec)
{
    pthread_mutex_lock(&lock);
    fake_device();
    fault[0] = 0;
    int code = fails_read(spec);
    pthread_mutex_unlock(&lock);
    return code;
}

unsigned long steer_fake_calls(const char *class)
{
    for (size_t i = 0; i < FAKE_N_CLASSES; i++)
        if (!strcmp(classes[i].name, class)) return calls[i];
    return 0;
}

const char *steer_fake_fault(void)
{
    return fault;
}

size_t steer_fake_live(char *text, size_t size)
{
    size_t n = 0, at = 0;
    pthread_mutex_lock(&lock);
    text[0] = 0;
    for (size_t i = 0; i <= FAKE_N_OBJECTS; i++) {
        /* The modules' own variables are not the program's to free: they are freed before the
         * process looks. */
        long live = i < FAKE_N_OBJECTS ? objects[i] : (long)(gmem_count() - device.own);
        if (live && at < size)
            at += (size_t)snprintf(text + at, size - at, "%ld %s\n", live,
                                   i < FAKE_N_OBJECTS ? object_names[i] : "device allocations");
        n += (size_t)(live > 0 ? live : -live);
    }
    pthread_mutex_unlock(&lock);
    return n;
}

void steer_fake_counts(struct ptx_counts *ret)
{
    pthread_mutex_lock(&lock);
    *ret = device.counts;
    pthread_mutex_unlock(&lock);
}

static void __attribute__((destructor)) report(void)
{
    char text[1000];
    size_t n = steer_fake_live(text, sizeof text);
    const char *path = getenv("STEER_FAKE_REPORT");
    FILE *f = path ? fopen(path, "a") : n ? stderr : NULL;
    if (!f) return;
    const struct ptx_counts *c = &device.counts;
    if (path)
        fprintf(f, "launches %lu\nmatmuls %lu\ninstructions %llu\nmma %llu\nfault %s\n",
                (unsigned long)c->launches, calls[FAKE_MATMUL], (unsigned long long)c->instructions,
                (unsigned long long)c->mma, fault);
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1)
        fprintf(f, "not freed: %.*s\n", (int)(end - line), line);
    if (path) fclose(f);
}

/* --- the runtime's own calls about devices and errors --- */

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = device.sticky ? device.sticky : last;
    last = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void)
{
    return device.sticky ? device.sticky : last;
}

#define ERRORS(X)                                                                                  \
    X(cudaSuccess, "no error")                                                                     \
    X(cudaErrorInvalidValue, "invalid argument")                                                   \
    X(cudaErrorMemoryAllocation, "out of memory")                                                  \
    X(cudaErrorInitializationError, "initialization error")                                        \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")                             \
    X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version") \
    X(cudaErrorInvalidDeviceFunction, "invalid device function")                                   \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                     \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                                            \
    X(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device") \
    X(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered")                            \
    X(cudaErrorInvalidPtx, "a PTX JIT compilation failed")                                         \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                   \
    X(cudaErrorNotReady, "device not ready")                                                       \
    X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                         \
    X(cudaErrorLaunchOutOfResources, "too many resources requested for launch")                    \
    X(cudaErrorHostMemoryAlreadyRegistered,                                                        \
      "part or all of the requested memory range is already mapped")                               \
    X(cudaErrorHostMemoryNotRegistered,                                                            \
      "pointer does not correspond to a registered memory region")                                 \
    X(cudaErrorMisalignedAddress, "misaligned address")                                            \
    X(cudaErrorLaunchFailure, "unspecified launch failure")                                        \
    X(cudaErrorNotSupported, "operation not supported")                                            \
    X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")       \
    X(cudaErrorStreamCaptureInvalidated,                                                           \
      "operation failed due to a previous error during capture")                                   \
    X(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                        \
    X(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")  \
    X(cudaErrorStreamCaptureImplicit,                                                              \
      "operation would make the legacy stream depend on a capturing blocking stream")              \
    X(cudaErrorStreamCaptureWrongThread,                                                           \
      "attempt to terminate a thread-local capture sequence from another thread")                  \
    X(cudaErrorCapturedEvent,                                                                      \
      "operation not permitted on an event last recorded in a capturing stream")                   \
    X(cudaErrorGraphExecUpdateFailure,                                                             \
      "the graph update was not performed because it included changes which violated constraints " \
      "specific to instantiated graph update")                                                     \
    X(cudaErrorUnknown, "unknown error")

const char *cudaGetErrorString(cudaError_t e)
{
#define X(id, text)                                                                                \
    if (e == id) return text;
    ERRORS(X)
#undef X
    return "unrecognized error code";
}

const char *cudaGetErrorName(cudaError_t e)
{
#define X(id, text)                                                                                \
    if (e == id) return #id;
    ERRORS(X)
#undef X
    return "unrecognized error code";
}

/* Without a driver the real one leaves the count alone. */
cudaError_t cudaGetDeviceCount(int *count)
{
    cudaError_t e = steer_fake_enter_plain();
    if (!e) *count = device.count;
    return steer_fake_leave(e);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    (void)steer_fake_enter_plain();
    *version = device.driver;
    return steer_fake_leave(cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

static cudaError_t ordinal(cudaError_t e, int d)
{
    return !e && (d < 0 || d >= device.count) ? cudaErrorInvalidDevice : e;
}

cudaError_t cudaSetDevice(int d)
{
    return steer_fake_leave(ordinal(steer_fake_enter_plain(), d));
}

cudaError_t cudaGetDevice(int *d)
{
    cudaError_t e = steer_fake_enter_plain();
    if (!e) *d = 0;
    return steer_fake_leave(e);
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int d)
{
    cudaError_t e = ordinal(steer_fake_enter_plain(), d);
    if (!e) {
        switch ((int)attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxRegistersPerMultiprocessor:
        case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrComputeCapabilityMajor: *value = device.sm / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = device.sm % 10; break;
        case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
        case cudaDevAttrClockRate: *value = 1755000; break;
        default: e = cudaErrorNotSupported;
        }
    }
    return steer_fake_leave(e);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d)
{
    cudaError_t e = ordinal(steer_fake_enter_plain(), d);
    if (!e) {
        memset(p, 0, sizeof *p);
        snprintf(p->name, sizeof p->name, "Steerfarm's pretended device, sm_%d", device.sm);
        p->totalGlobalMem = device.memory;
        p->major = device.sm / 10;
        p->minor = device.sm % 10;
        p->multiProcessorCount = 132;
        p->warpSize = 32;
        p->maxThreadsPerBlock = 1024;
        p->sharedMemPerBlock = 48 << 10;
        p->sharedMemPerBlockOptin = 227 << 10;
        p->sharedMemPerMultiprocessor = 228 << 10;
        p->regsPerBlock = p->regsPerMultiprocessor = 65536;
        p->maxThreadsPerMultiProcessor = 2048;
        p->l2CacheSize = 50 << 20;
        p->concurrentKernels = 1;
        p->asyncEngineCount = 3;
    }
    return steer_fake_leave(e);
}
