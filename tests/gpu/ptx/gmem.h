/* gmem.h - the memory of the device that tests pretend to have.
 *
 * An allocation has an address that only kernels and copies may use: the host's access to it dies,
 * because nothing may be read or written there. Its bytes stand elsewhere and are found by gmem_at,
 * which knows every allocation's bounds. Addresses are never given twice, so a stale one is always
 * noticed. Fresh bytes are 0xff: NaN in every floating-point type. One device a process; callers
 * hold one lock. */
#ifndef GPU_GMEM_H
#define GPU_GMEM_H
#include <stddef.h>
#include <stdint.h>

/* An address of `size` bytes, aligned to 256, or 0 where the device's `most` bytes would be passed.
 */
uint64_t gmem_alloc(size_t size, size_t most);
/* 0, or -1 where no allocation begins at address. */
int gmem_free(uint64_t address);
/* The bytes that stand for [address, address + size), or NULL unless one allocation holds them all.
 */
void *gmem_at(uint64_t address, size_t size);
/* Host memory that kernels may use too, at its own address: 0, or -1 without memory for it. Its
 * owner keeps it until gmem_unmap. */
int gmem_map(void *p, size_t size);
void gmem_unmap(const void *p);
/* Whether the address is the device's at all, allocated or not. */
int gmem_is_device(uint64_t address);
size_t gmem_used(void);
/* How many allocations there are. */
size_t gmem_count(void);
#endif
