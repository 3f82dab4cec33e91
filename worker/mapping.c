// SPDX-License-Identifier: Apache-2.0
#include "mapping.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* In a list that the handler walks, so its members are never freed but used again. */
struct mapping {
    struct mapping *next;
    _Atomic uintptr_t first, last; /* 0: free */
    atomic_int cut;
};

static struct mapping *_Atomic mappings;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before;
static uintptr_t page_bytes;

/* Runs on the thread that reads, in the midst of it: atomics and system calls only. */
static void on_bus_error(int number, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    for (struct mapping *m = mappings; m; m = m->next) {
        uintptr_t first = m->first, last = m->last;
        if (at < first || at >= last) continue;
        atomic_store(&m->cut, 1);
        uintptr_t page = at & ~(page_bytes - 1);
        if (mmap((void *)page, last - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                 0) != MAP_FAILED)
            return; /* and the read is tried again */
    }
    (void)number;
    (void)context;
    sigaction(SIGBUS, &before, NULL); /* not ours: it comes again, to whom it came before */
}

/* Whoever else took the signal since is the one it came before to. */
static void handler_install(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction now;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, NULL, &now) || now.sa_sigaction == on_bus_error) return;
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    before = now;
    sigaction(SIGBUS, &action, NULL);
}

static struct mapping *mapping_take(void)
{
    for (struct mapping *m = mappings; m; m = m->next)
        if (!m->first) return m;
    struct mapping *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->next = mappings;
    mappings = m;
    return m;
}

int mapping_new(struct mapping **ret, int fd, size_t size)
{
    void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return STEER_IO;
    pthread_mutex_lock(&lock);
    handler_install();
    struct mapping *m = mapping_take();
    if (m) {
        m->cut = 0;
        m->last = (uintptr_t)data + size;
        m->first = (uintptr_t)data;
    }
    pthread_mutex_unlock(&lock);
    if (!m) {
        munmap(data, size);
        errno = ENOMEM;
        return STEER_NO_MEMORY;
    }
    *ret = m;
    return 0;
}

void mapping_free(struct mapping *m)
{
    if (!m) return;
    pthread_mutex_lock(&lock);
    munmap((void *)m->first, m->last - m->first);
    m->first = m->last = 0;
    pthread_mutex_unlock(&lock);
}

void *mapping_data(const struct mapping *m)
{
    return (void *)m->first;
}

int mapping_cut(const struct mapping *m)
{
    return m->cut;
}
