/* gmem.c - two equal ranges of addresses are reserved: the device's, which stays without access,
 * and the one that holds the bytes, opened page by page as allocations come. An allocation at
 * device + x has its bytes at bytes + x. */
#include "gmem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define RANGE ((size_t)1 << 40)
#define PAGE  ((size_t)4096)

struct allocation {
    uint64_t address;
    size_t size; /* 0: freed */
};

static struct {
    uint8_t *device, *bytes;
    size_t next;            /* where the range is still unused */
    struct allocation *all; /* by address, which only grows */
    size_t n, live, used;
    size_t last; /* found by the last search */
    struct mapped {
        uint8_t *p;
        size_t size;
    } * mapped;
    size_t n_mapped;
} g;

static void *reserve(void)
{
    void *p = mmap(NULL, RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

uint64_t gmem_alloc(size_t size, size_t most)
{
    if (!g.device && (!(g.bytes = reserve()) || !(g.device = reserve()))) return 0;
    /* A page between two allocations keeps neighbours apart. */
    if (!size || size > most || g.used > most - size || size > RANGE - g.next - 2 * PAGE) return 0;
    size_t pages = (size + PAGE - 1) / PAGE * PAGE;
    struct allocation *all = realloc(g.all, (g.n + 1) * sizeof *all);
    if (!all) return 0;
    g.all = all;
    if (mprotect(g.bytes + g.next, pages, PROT_READ | PROT_WRITE)) return 0;
    memset(g.bytes + g.next, 0xff, size);
    uint64_t address = (uint64_t)(uintptr_t)(g.device + g.next);
    g.all[g.n++] = (struct allocation){address, size};
    g.next += pages + PAGE;
    g.live++;
    g.used += size;
    return address;
}

/* The allocation at or below address, freed ones too; g.n where there is none. */
static size_t find(uint64_t address)
{
    if (g.last < g.n && address >= g.all[g.last].address &&
        (g.last + 1 == g.n || address < g.all[g.last + 1].address))
        return g.last;
    size_t low = 0, high = g.n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (g.all[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low) return g.n;
    return g.last = low - 1;
}

int gmem_free(uint64_t address)
{
    size_t i = find(address);
    if (i == g.n || g.all[i].address != address || !g.all[i].size) return -1;
    size_t pages = (g.all[i].size + PAGE - 1) / PAGE * PAGE;
    uint8_t *bytes = g.bytes + (address - (uint64_t)(uintptr_t)g.device);
    madvise(bytes, pages, MADV_DONTNEED);
    mprotect(bytes, pages, PROT_NONE);
    g.used -= g.all[i].size;
    g.all[i].size = 0;
    g.live--;
    return 0;
}

int gmem_map(void *p, size_t size)
{
    struct mapped *mapped = realloc(g.mapped, (g.n_mapped + 1) * sizeof *mapped);
    if (!mapped) return -1;
    g.mapped = mapped;
    g.mapped[g.n_mapped++] = (struct mapped){p, size};
    return 0;
}

void gmem_unmap(const void *p)
{
    for (size_t i = 0; i < g.n_mapped; i++)
        if (g.mapped[i].p == p) g.mapped[i--] = g.mapped[--g.n_mapped];
}

static void *mapped_at(uint64_t address, size_t size)
{
    for (size_t i = 0; i < g.n_mapped; i++) {
        uint64_t offset = address - (uint64_t)(uintptr_t)g.mapped[i].p;
        if (offset <= g.mapped[i].size && size <= g.mapped[i].size - offset)
            return g.mapped[i].p + offset;
    }
    return NULL;
}

void *gmem_at(uint64_t address, size_t size)
{
    if (!gmem_is_device(address)) return mapped_at(address, size);
    size_t i = find(address);
    if (i == g.n) return NULL;
    uint64_t offset = address - g.all[i].address;
    if (offset > g.all[i].size || size > g.all[i].size - offset) return NULL;
    return g.bytes + (address - (uint64_t)(uintptr_t)g.device);
}

int gmem_is_device(uint64_t address)
{
    return g.device && address - (uint64_t)(uintptr_t)g.device < RANGE;
}

size_t gmem_used(void)
{
    return g.used;
}

size_t gmem_count(void)
{
    return g.live;
}
