// SPDX-License-Identifier: Apache-2.0
/* Preloaded into the real broker: once the file that STEER_TEST_FSYNC_FAIL names exists and holds a
 * number n, the n-th fsync or fdatasync from then on fails with EIO, and only that one. As on
 * Linux, a later one succeeds without the bytes of the first being on the disk. */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static int fails(void)
{
    static _Atomic int count;
    const char *path = getenv("STEER_TEST_FSYNC_FAIL");
    FILE *f = path ? fopen(path, "r") : NULL;
    int n = 0;
    if (!f) return 0;
    int got = fscanf(f, "%d", &n);
    fclose(f);
    return got == 1 && atomic_fetch_add(&count, 1) + 1 == n;
}

static int call(const char *name, int fd)
{
    union {
        void *symbol;
        int (*function)(int);
    } real = {.symbol = dlsym(RTLD_NEXT, name)};
    if (!fails()) return real.function(fd);
    errno = EIO;
    return -1;
}

int fsync(int fd)
{
    return call("fsync", fd);
}

int fdatasync(int fd)
{
    return call("fdatasync", fd);
}
