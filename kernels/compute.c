// SPDX-License-Identifier: Apache-2.0
#include "compute.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "cpu/onednn.h"
#include "plan.h"
#include "weight.h"

/* The cgroup's quota in whole processors, or 0 when there is none. */
static int cgroup_quota(void)
{
    long long quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        if (fscanf(f, "%lld %lld", &quota, &period) != 2) quota = 0;
        fclose(f);
    } else {
        FILE *q = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re");
        FILE *d = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re");
        if (!q || !d || fscanf(q, "%lld", &quota) != 1 || fscanf(d, "%lld", &period) != 1)
            quota = 0;
        if (q) fclose(q);
        if (d) fclose(d);
    }
    if (quota <= 0 || period <= 0) return 0;
    return quota < period ? 1 : (int)(quota / period);
}

static int threads_allowed(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    int quota = cgroup_quota();
    return quota && quota < count ? quota : count;
}

static size_t memory_limit(const char *path)
{
    unsigned long long bytes = 0;
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%llu", &bytes) != 1) bytes = 0; /* "max" */
    if (f) fclose(f);
    return bytes ? (size_t)bytes : SIZE_MAX;
}

size_t compute_memory_allowed(void)
{
    size_t all = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    size_t limits[] = {memory_limit("/sys/fs/cgroup/memory.max"),
                       memory_limit("/sys/fs/cgroup/memory/memory.limit_in_bytes")};
    for (int i = 0; i < 2; i++)
        if (limits[i] < all) all = limits[i];
    return all;
}

static uint32_t text_hash(uint32_t salt, const char *text) /* FNV-1a */
{
    uint32_t hash = 2166136261u ^ salt;
    for (; text && *text; text++)
        hash = (hash ^ (unsigned char)*text) * 16777619u;
    return hash;
}

static int tuning_read(char **ret, const char *file, struct steer_error *err)
{
    FILE *f = fopen(file, "re");
    if (!f) return steer_fail(err, STEER_NOT_FOUND, "%s: cannot be read", file);
    char *text = calloc(1, TUNING_BYTES_MAX + 1);
    size_t size = text ? fread(text, 1, TUNING_BYTES_MAX + 1, f) : 0;
    fclose(f);
    if (text && size <= TUNING_BYTES_MAX) {
        text[size] = 0;
        *ret = text;
        return 0;
    }
    free(text);
    return text ? steer_fail(err, STEER_BAD_VALUE, "%s: over %d bytes", file, TUNING_BYTES_MAX)
                : steer_fail(err, STEER_NO_MEMORY, "out of memory");
}

int compute_open(struct compute **ret, const struct compute_options *options,
                 struct steer_error *err)
{
    const struct backend *backend = strcmp(options->backend, "ref") == 0   ? &backend_ref
                                    : strcmp(options->backend, "cpu") == 0 ? &backend_cpu
                                                                           : NULL;
    if (!backend)
        return steer_fail(err, STEER_UNSUPPORTED, "backend \"%s\": expected cpu or ref",
                          options->backend);
    if (options->precision == PRECISION_BF16 && (backend == &backend_ref || !compute_bf16_native()))
        return steer_fail(err, STEER_UNSUPPORTED,
                          "bf16 on backend \"%s\" needs a processor with AVX-512; use f32",
                          backend->name);
    struct compute *c = calloc(1, sizeof *c);
    if (!c) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = 0;
    c->backend = backend;
    c->host = options->host ? options->host : &c->own_host;
    c->precision = options->precision;
    c->weights = options->weights;
    c->threads = options->threads > 0 ? options->threads : threads_allowed();
    if (options->tuning && (code = tuning_read(&c->tuning, options->tuning, err))) goto fail;
    char precision[16];
    snprintf(precision, sizeof precision, "%s%s", c->precision == PRECISION_BF16 ? "bf16" : "f32",
             c->weights == WEIGHTS_INT8 ? "-int8" : "");
    if (backend == &backend_ref) {
        snprintf(c->numerics, sizeof c->numerics, "ref-%s-steer%s-%08x", precision, STEER_VERSION,
                 text_hash(options->salt, NULL));
    } else {
        if (!(c->kernels = cpu_kernels_find(options->isa))) {
            code = steer_fail(err, STEER_UNSUPPORTED, "this processor has no %s", options->isa);
            goto fail;
        }
        if ((code = onednn_open(c, err))) goto fail;
        snprintf(c->numerics, sizeof c->numerics, "cpu-%s+%s-%s-t%d-%s-steer%s-%08x", onednn_isa(),
                 strchr(c->kernels->name, ':') + 1, precision, c->threads, onednn_version(),
                 STEER_VERSION, text_hash(options->salt, c->tuning));
    }
    *ret = c;
    return 0;
fail:
    compute_close(c);
    return code;
}

void compute_close(struct compute *c)
{
    if (!c) return;
    onednn_close(c);
    weight_staging_free(c);
    free(c->tuning);
    free(c);
}

int compute_bf16_native(void)
{
    return onednn_bf16_native();
}

const char *compute_numerics(const struct compute *c)
{
    return c->numerics;
}

int compute_threads(const struct compute *c)
{
    return c->threads;
}

enum compute_weights compute_weights(const struct compute *c)
{
    return c->weights;
}

struct compute_peak compute_peak(struct compute *c)
{
    return c->backend->peak(c);
}

void compute_beat(struct compute *c)
{
    atomic_fetch_add_explicit(&c->host->beats, 1, memory_order_relaxed);
}

int compute_take(struct compute *c, size_t bytes)
{
    struct compute_host *host = c->host;
    if (host->bytes_max && (bytes > host->bytes_max || host->bytes > host->bytes_max - bytes)) {
        c->refused = bytes;
        return STEER_NO_MEMORY;
    }
    host->bytes += bytes;
    if (host->bytes > host->bytes_most) host->bytes_most = host->bytes;
    return 0;
}

void compute_give(struct compute *c, size_t bytes)
{
    c->host->bytes -= bytes;
}

enum compute_type compute_bound_type(const struct compute *c)
{
    return c->precision == PRECISION_BF16 ? TYPE_BF16 : TYPE_F32;
}
