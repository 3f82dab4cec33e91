/* memory.c - allocations, copies, fills. The pinned memory of the host is known by its ranges,
 * because copies from and to it are what the program must wait for; copies of other host memory
 * return when they are done with it. */
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "gmem.h"

enum { RANGES_MAX = 4096 };

static struct {
    char *p;
    size_t size;
    int is_ours; /* allocated here, not registered */
} ranges[RANGES_MAX];
static size_t n_ranges;

int fake_is_pinned(const void *p, size_t size)
{
    const char *c = p;
    for (size_t i = 0; i < n_ranges; i++)
        if (c >= ranges[i].p && size <= ranges[i].size &&
            (size_t)(c - ranges[i].p) <= ranges[i].size - size)
            return 1;
    return 0;
}

/* Kernels may use only what was registered as mapped: on real devices they could use all of it,
 * slowly. */
static cudaError_t pin(void *p, size_t size, int is_ours, int is_mapped)
{
    if (n_ranges == RANGES_MAX) return cudaErrorMemoryAllocation;
    for (size_t i = 0; i < n_ranges; i++)
        if ((char *)p < ranges[i].p + ranges[i].size && ranges[i].p < (char *)p + size)
            return cudaErrorHostMemoryAlreadyRegistered;
    if (is_mapped && gmem_map(p, size)) return cudaErrorMemoryAllocation;
    ranges[n_ranges].p = p;
    ranges[n_ranges].size = size;
    ranges[n_ranges++].is_ours = is_ours;
    steer_fake_count(FAKE_PINNED, 1);
    return cudaSuccess;
}

static cudaError_t unpin(const void *p, int is_ours, cudaError_t otherwise)
{
    for (size_t i = 0; i < n_ranges; i++) {
        if (ranges[i].p != p || ranges[i].is_ours != is_ours) continue;
        gmem_unmap(p);
        ranges[i] = ranges[--n_ranges];
        steer_fake_count(FAKE_PINNED, -1);
        return cudaSuccess;
    }
    return otherwise;
}

cudaError_t cudaMalloc(void **p, size_t size)
{
    cudaError_t e = steer_fake_enter(FAKE_MALLOC);
    if (!e) e = fake_forbid_capture();
    if (!e && !size) {
        *p = NULL;
    } else if (!e) {
        uint64_t address = gmem_alloc(size, fake_device()->memory);
        if (address)
            *p = (void *)(uintptr_t)address;
        else
            e = cudaErrorMemoryAllocation;
    }
    return steer_fake_leave(e);
}

cudaError_t cudaFree(void *p)
{
    cudaError_t e = steer_fake_enter_plain();
    if (!e && p) e = fake_forbid_capture();
    /* The real one waits for the device, but only by habit: work that still uses the memory is
     * found when it runs. */
    int freed = p && !gmem_free((uint64_t)(uintptr_t)p);
    if (!e && p && !freed) e = cudaErrorInvalidValue;
    return steer_fake_leave(e);
}

cudaError_t cudaMallocHost(void **p, size_t size)
{
    cudaError_t e = steer_fake_enter(FAKE_HOST);
    if (!e) e = fake_forbid_capture();
    if (!e) {
        void *new = aligned_alloc(4096, (size + 4096) / 4096 * 4096);
        e = new ? pin(new, size, 1, 0) : cudaErrorMemoryAllocation;
        if (e)
            free(new);
        else
            *p = new;
    }
    return steer_fake_leave(e);
}

cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags)
{
    return flags & ~(unsigned)(cudaHostAllocPortable | cudaHostAllocWriteCombined)
               ? cudaErrorNotSupported
               : cudaMallocHost(p, size);
}

cudaError_t cudaFreeHost(void *p)
{
    cudaError_t e = steer_fake_enter_plain();
    cudaError_t unpinned = p ? unpin(p, 1, cudaErrorInvalidValue) : cudaSuccess;
    if (!unpinned) free(p);
    return steer_fake_leave(e ? e : unpinned);
}

cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags)
{
    cudaError_t e = steer_fake_enter(FAKE_HOST);
    if (!e) e = fake_forbid_capture();
    if (!e && (!p || !size ||
               flags & ~(unsigned)(cudaHostRegisterPortable | cudaHostRegisterReadOnly |
                                   cudaHostRegisterMapped)))
        e = cudaErrorInvalidValue;
    if (!e) e = pin(p, size, 0, flags & cudaHostRegisterMapped ? 1 : 0);
    return steer_fake_leave(e);
}

cudaError_t cudaHostUnregister(void *p)
{
    cudaError_t e = steer_fake_enter_plain();
    cudaError_t unpinned = unpin(p, 0, cudaErrorHostMemoryNotRegistered);
    return steer_fake_leave(e ? e : unpinned);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    cudaError_t e = steer_fake_enter_plain();
    if (!e) {
        *total = fake_device()->memory;
        *available = *total - gmem_used();
    }
    return steer_fake_leave(e);
}

/* --- copies and fills --- */

struct copy {
    void *to;
    const void *from; /* NULL: the bytes follow */
    size_t size;
    int to_device, from_device, pinned;
    unsigned char bytes[];
};

static cudaError_t copy_run(void *data)
{
    struct copy *c = data;
    void *to = c->to_device ? gmem_at((uint64_t)(uintptr_t)c->to, c->size) : c->to;
    const void *from = c->from_device ? gmem_at((uint64_t)(uintptr_t)c->from, c->size)
                       : c->from      ? c->from
                                      : c->bytes;
    if (!to || !from) {
        steer_fake_complain("a copy of %zu bytes ran after its device memory was freed", c->size);
        return cudaErrorIllegalAddress;
    }
    if (c->pinned && !fake_is_pinned(c->to_device ? c->from : c->to, c->size)) {
        steer_fake_complain("a copy of %zu bytes ran after its pinned memory was freed", c->size);
        return cudaErrorIllegalAddress;
    }
    memmove(to, from, c->size);
    return cudaSuccess;
}

static cudaError_t copy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                        cudaStream_t s, int waits)
{
    int to_device = gmem_is_device((uint64_t)(uintptr_t)to),
        from_device = gmem_is_device((uint64_t)(uintptr_t)from);
    static const enum cudaMemcpyKind kinds[2][2] = {
        {cudaMemcpyHostToHost, cudaMemcpyDeviceToHost},
        {cudaMemcpyHostToDevice, cudaMemcpyDeviceToDevice}};
    if (kind != cudaMemcpyDefault && kind != kinds[to_device][from_device])
        return cudaErrorInvalidValue;
    if (!size) return cudaSuccess;
    if ((to_device && !gmem_at((uint64_t)(uintptr_t)to, size)) ||
        (from_device && !gmem_at((uint64_t)(uintptr_t)from, size))) {
        steer_fake_complain("a copy of %zu bytes is not within an allocation", size);
        return cudaErrorInvalidValue;
    }
    int captures = fake_stream_captures(s), is_host = to_device != from_device;
    int pinned = is_host && fake_is_pinned(to_device ? from : to, size);
    /* What comes from pageable memory is staged before the call returns; a graph reads it when it
     * runs. */
    int staged = is_host && to_device && !pinned && !captures;
    struct fake_work *w = steer_fake_work(copy_run, sizeof(struct copy) + (staged ? size : 0));
    if (!w) return cudaErrorMemoryAllocation;
    struct copy *c = (struct copy *)w->data;
    *c = (struct copy){to, staged ? NULL : from, size, to_device, from_device, pinned};
    if (staged) memcpy(c->bytes, from, size);
    cudaError_t e = steer_fake_enqueue(s, w);
    if (!e && !captures && (waits || (is_host && from_device && !pinned))) e = fake_drain(s);
    return e;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t s)
{
    cudaError_t e = steer_fake_enter(FAKE_COPY);
    return steer_fake_leave(e ? e : copy(to, from, size, kind, s, 0));
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
    cudaError_t e = steer_fake_enter(FAKE_COPY);
    if (!e) e = fake_forbid_capture();
    return steer_fake_leave(e ? e : copy(to, from, size, kind, NULL, 1));
}

struct fill {
    uint64_t to;
    size_t size;
    int value;
};

static cudaError_t fill_run(void *data)
{
    const struct fill *f = data;
    void *p = gmem_at(f->to, f->size);
    if (!p) {
        steer_fake_complain("a fill of %zu bytes ran after its memory was freed", f->size);
        return cudaErrorIllegalAddress;
    }
    memset(p, f->value, f->size);
    return cudaSuccess;
}

static cudaError_t fill(void *p, int value, size_t size, cudaStream_t s)
{
    if (!size) return cudaSuccess;
    if (!gmem_at((uint64_t)(uintptr_t)p, size)) return cudaErrorInvalidValue;
    struct fake_work *w = steer_fake_work(fill_run, sizeof(struct fill));
    if (!w) return cudaErrorMemoryAllocation;
    *(struct fill *)w->data = (struct fill){(uint64_t)(uintptr_t)p, size, value};
    return steer_fake_enqueue(s, w);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t s)
{
    cudaError_t e = steer_fake_enter(FAKE_SET);
    return steer_fake_leave(e ? e : fill(p, value, size, s));
}

cudaError_t cudaMemset(void *p, int value, size_t size)
{
    cudaError_t e = steer_fake_enter(FAKE_SET);
    if (!e) e = fake_forbid_capture();
    return steer_fake_leave(e ? e : fill(p, value, size, NULL));
}
