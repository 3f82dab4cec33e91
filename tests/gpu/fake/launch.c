/* launch.c - modules and kernels: what nvcc's registration code says at the program's start, and
 * launches.
 *
 * nvcc's fat binary: a header of 16 bytes (magic, version, its size, size of the rest), then
 * entries: kind (1 is PTX, 2 is machine code) and version in 2 bytes each, the header's size in 4,
 * the payload's in 8, and at byte 28 the architecture. Build with
 * --no-compress and a compute_ target. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "gmem.h"

struct module {
    const unsigned char *fat;
    struct ptx_module *ptx; /* parsed at the first use */
    cudaError_t error;
};

struct function {
    struct function *next;
    struct module *module;
    const void *host;
    char *name;
    size_t dynamic_most; /* of shared memory, as allowed */
};

struct variable {
    struct variable *next;
    struct module *module;
    const void *host;
    char *name;
};

static struct function *functions;
static struct variable *variables;

/* --- what nvcc's code calls; declared in its host_runtime.h, for C++ only --- */

struct wrapper {
    int magic, version;
    const unsigned char *data;
    void *more;
};

void **__cudaRegisterFatBinary(void *fat);
void __cudaRegisterFatBinaryEnd(void **handle);
void __cudaUnregisterFatBinary(void **handle);
char __cudaInitModule(void **handle);
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name,
                            int limit, void *tid, void *bid, void *block, void *grid, int *warp);
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext,
                       size_t size, int constant, int global);
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *s);
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *s);
cudaError_t __cudaGetKernel(cudaKernel_t *ret, const void *host);
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args,
                               size_t shared, cudaStream_t s);

void **__cudaRegisterFatBinary(void *fat)
{
    struct module *m = calloc(1, sizeof *m);
    if (!m) abort();
    m->fat = ((const struct wrapper *)fat)->data;
    return (void **)m;
}

void __cudaRegisterFatBinaryEnd(void **handle)
{
    (void)handle;
}

char __cudaInitModule(void **handle)
{
    (void)handle;
    return 1;
}

void __cudaUnregisterFatBinary(void **handle)
{
    struct module *m = (struct module *)handle;
    for (struct function **i = &functions; *i;) {
        struct function *f = *i;
        if (f->module == m) {
            *i = f->next;
            free(f->name);
            free(f);
        } else {
            i = &f->next;
        }
    }
    for (struct variable **i = &variables; *i;) {
        struct variable *v = *i;
        if (v->module == m) {
            *i = v->next;
            free(v->name);
            free(v);
        } else {
            i = &v->next;
        }
    }
    if (m->ptx) fake_device()->own -= m->ptx->n_variables;
    ptx_free(m->ptx);
    free(m);
}

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name,
                            int limit, void *tid, void *bid, void *block, void *grid, int *warp)
{
    (void)device, (void)limit, (void)tid, (void)bid, (void)block, (void)grid, (void)warp;
    struct function *f = calloc(1, sizeof *f);
    if (!f || !(f->name = strdup(name))) abort();
    f->module = (struct module *)handle;
    f->host = host;
    f->dynamic_most = 48 << 10;
    f->next = functions;
    functions = f;
}

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext,
                       size_t size, int constant, int global)
{
    (void)device, (void)ext, (void)size, (void)constant, (void)global;
    struct variable *v = calloc(1, sizeof *v);
    if (!v || !(v->name = strdup(name))) abort();
    v->module = (struct module *)handle;
    v->host = host;
    v->next = variables;
    variables = v;
}

/* --- modules --- */

/* The PTX of the highest architecture that the device has; NULL where there is none. */
static const char *ptx_find(const unsigned char *fat, size_t *ret_size, int sm)
{
    uint32_t magic, header, arch, best = 0;
    uint16_t kind, own;
    uint64_t rest, size, at = 0;
    const char *found = NULL;
    memcpy(&magic, fat, 4);
    memcpy(&own, fat + 6, 2);
    memcpy(&rest, fat + 8, 8);
    if (magic != 0xba55ed50u) return NULL;
    for (fat += own; at < rest; at += header + size) {
        memcpy(&kind, fat + at, 2);
        memcpy(&header, fat + at + 4, 4);
        memcpy(&size, fat + at + 8, 8);
        memcpy(&arch, fat + at + 28, 4);
        if (kind != 1 || arch > (uint32_t)sm || arch < best) continue;
        best = arch;
        found = (const char *)fat + at + header;
        *ret_size = strnlen(found, size);
    }
    return found;
}

static cudaError_t module_load(struct module *m)
{
    char error[512];
    size_t size = 0;
    if (m->ptx || m->error) return m->error;
    const char *text = ptx_find(m->fat, &size, fake_device()->sm);
    if (!text) {
        steer_fake_complain("no PTX for sm_%d in the program", fake_device()->sm);
        m->error = cudaErrorNoKernelImageForDevice;
    } else if (strncmp(text + strspn(text, "\n"), "//", 2) &&
               strncmp(text + strspn(text, "\n"), ".version", 8)) {
        steer_fake_complain("the program's PTX is compressed: build it with --no-compress");
        m->error = cudaErrorInvalidPtx;
    } else if (ptx_parse(&m->ptx, text, size, fake_device()->memory, error, sizeof error)) {
        steer_fake_complain("%s", error);
        m->error = cudaErrorInvalidPtx;
    } else {
        fake_device()->own += m->ptx->n_variables;
    }
    return m->error;
}

static struct function *function_of(const void *host)
{
    struct function *f = functions;
    while (f && f->host != host && f != host)
        f = f->next;
    return f;
}

/* --- launches --- */

struct launch {
    const struct ptx_kernel *kernel;
    struct ptx_launch shape;
    cudaError_t ordered; /* the error that a test asked for */
    unsigned char params[];
};

static cudaError_t launch_run(void *data)
{
    static const cudaError_t errors[] = {[PTX_UNKNOWN] = cudaErrorIllegalInstruction,
                                         [PTX_ADDRESS] = cudaErrorIllegalAddress,
                                         [PTX_MISALIGNED] = cudaErrorMisalignedAddress,
                                         [PTX_UNSOUND] = cudaErrorLaunchFailure,
                                         [PTX_NO_MEMORY] = cudaErrorLaunchFailure};
    struct launch *l = data;
    struct ptx_fault fault;
    if (l->ordered) return l->ordered;
    l->shape.params = l->params;
    if (!ptx_run(l->kernel, &l->shape, &fake_device()->counts, &fault)) return cudaSuccess;
    steer_fake_complain("%s", fault.text);
    return errors[fault.kind];
}

static cudaError_t check(const struct function *f, const struct ptx_kernel *k, dim3 grid,
                         dim3 block, size_t shared)
{
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (!threads || !grid.x || !grid.y || !grid.z) return cudaErrorInvalidConfiguration;
    if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > 1024 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (threads > k->threads_max) return cudaErrorLaunchOutOfResources;
    if (shared > f->dynamic_most || shared + k->shared_bytes > 227 << 10 ||
        (shared > 0 && f->dynamic_most <= 48 << 10 && shared + k->shared_bytes > 48 << 10))
        return cudaErrorInvalidValue;
    if (k->unknown) {
        steer_fake_complain("kernel %s: %s", k->name, k->unknown);
        return cudaErrorInvalidPtx;
    }
    return cudaSuccess;
}

static cudaError_t launch(struct function *f, dim3 grid, dim3 block, void **args, size_t shared,
                          cudaStream_t s, cudaError_t ordered)
{
    if (!f) return cudaErrorInvalidDeviceFunction;
    cudaError_t e = module_load(f->module);
    if (e) return e;
    const struct ptx_kernel *k = ptx_kernel_find(f->module->ptx, f->name);
    if (!k) return cudaErrorInvalidDeviceFunction;
    e = check(f, k, grid, block, shared);
    if (e) return e;
    struct fake_work *w = steer_fake_work(launch_run, sizeof(struct launch) + k->param_bytes);
    if (!w) return cudaErrorMemoryAllocation;
    w->kind = k;
    struct launch *l = (struct launch *)w->data;
    *l = (struct launch){
        k, {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, NULL}, ordered};
    for (size_t i = 0; i < k->params; i++)
        memcpy(l->params + k->param_offsets[i], args[i], k->param_sizes[i]);
    return steer_fake_enqueue(s, w);
}

static cudaError_t launch_call(const void *f, dim3 grid, dim3 block, void **args, size_t shared,
                               cudaStream_t s)
{
    cudaError_t e = steer_fake_enter(FAKE_LAUNCH), ordered = cudaSuccess;
    /* What breaks the device is told where the kernel has run. */
    if (steer_fake_breaks(e) && !fake_device()->sticky) ordered = e, e = cudaSuccess;
    return steer_fake_leave(e ? e : launch(function_of(f), grid, block, args, shared, s, ordered));
}

cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared,
                             cudaStream_t s)
{
    return launch_call(f, grid, block, args, shared, s);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 grid, dim3 block, void **args, size_t shared,
                               cudaStream_t s)
{
    return launch_call((const void *)f, grid, block, args, shared, s);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args)
{
    return c->numAttrs
               ? cudaErrorNotSupported
               : launch_call(f, c->gridDim, c->blockDim, args, c->dynamicSmemBytes, c->stream);
}

cudaError_t __cudaGetKernel(cudaKernel_t *ret, const void *host)
{
    struct function *f = function_of(host);
    if (f) *ret = (cudaKernel_t)f;
    return f ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

/* <<<...>>>'s numbers wait here for the stub that launches. */
static _Thread_local struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *s)
{
    pushed.grid = grid;
    pushed.block = block;
    pushed.shared = shared;
    pushed.stream = s;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *s)
{
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *(cudaStream_t *)s = pushed.stream;
    return cudaSuccess;
}

/* --- what is asked of kernels and variables --- */

cudaError_t cudaFuncSetAttribute(const void *host, enum cudaFuncAttribute attribute, int value)
{
    cudaError_t e = steer_fake_enter_plain();
    struct function *f = function_of(host);
    if (!e && !f) e = cudaErrorInvalidDeviceFunction;
    if (!e && attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || value > 227 << 10)
            e = cudaErrorInvalidValue;
        else
            f->dynamic_most = (size_t)value;
    } else if (!e && attribute != cudaFuncAttributePreferredSharedMemoryCarveout) {
        e = cudaErrorNotSupported;
    }
    return steer_fake_leave(e);
}

/* By threads and shared memory; registers are ptxas's secret, so the real answer may be lower. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *host,
                                                                   int threads, size_t shared,
                                                                   unsigned flags)
{
    cudaError_t e = steer_fake_enter_plain();
    struct function *f = function_of(host);
    if (!e && !f) e = cudaErrorInvalidDeviceFunction;
    if (!e && (threads <= 0 || threads > 1024 || flags)) e = cudaErrorInvalidValue;
    if (!e) e = module_load(f->module);
    const struct ptx_kernel *k = e ? NULL : ptx_kernel_find(f->module->ptx, f->name);
    if (!e && !k) e = cudaErrorInvalidDeviceFunction;
    if (!e) {
        /* Each block has 1 KiB of the system's own. */
        size_t by_shared = (228 << 10) / (shared + k->shared_bytes + 1024),
               by_threads = 2048 / (size_t)((threads + 31) / 32 * 32);
        size_t most = by_shared < by_threads ? by_shared : by_threads;
        *blocks = (int)(most > 32 ? 32 : most);
    }
    return steer_fake_leave(e);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *host,
                                                          int threads, size_t shared)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, host, threads, shared, 0);
}

static cudaError_t symbol_at(const void *host, size_t offset, size_t size, void **ret)
{
    struct variable *v = variables;
    while (v && v->host != host)
        v = v->next;
    if (!v) return cudaErrorInvalidSymbol;
    cudaError_t e = module_load(v->module);
    for (size_t i = 0; !e && i < v->module->ptx->n_variables; i++) {
        const struct ptx_variable *p = &v->module->ptx->variables[i];
        if (strcmp(p->name, v->name)) continue;
        if (offset > p->size || size > p->size - offset) return cudaErrorInvalidValue;
        *ret = (void *)(uintptr_t)(p->address + offset);
        return cudaSuccess;
    }
    return e ? e : cudaErrorInvalidSymbol;
}

cudaError_t cudaMemcpyToSymbol(const void *host, const void *from, size_t size, size_t offset,
                               enum cudaMemcpyKind kind)
{
    void *to;
    cudaError_t e = steer_fake_enter_plain();
    if (!e) e = symbol_at(host, offset, size, &to);
    (void)steer_fake_leave(e);
    return e ? e : cudaMemcpy(to, from, size, kind);
}

cudaError_t cudaMemcpyFromSymbol(void *to, const void *host, size_t size, size_t offset,
                                 enum cudaMemcpyKind kind)
{
    void *from;
    cudaError_t e = steer_fake_enter_plain();
    if (!e) e = symbol_at(host, offset, size, &from);
    (void)steer_fake_leave(e);
    return e ? e : cudaMemcpy(to, from, size, kind);
}
