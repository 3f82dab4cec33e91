// SPDX-License-Identifier: Apache-2.0
/* The ceiling: what the multiply-add units of all threads do when nothing else is in their way. */
#include <time.h>

#include "cpu.h"
#include "vector.h"

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Twelve sums that do not wait for one another hide the latency of a multiply-add; each depends on
 * itself and begins elsewhere, so that the compiler can neither leave one out nor make two one. */
INLINE float burst(int loops)
{
    v16 sum[12], a = splat(0.5f), b = splat(1e-9f);
    for (int k = 0; k < 12; k++)
        sum[k] = splat((float)k);
    for (int i = 0; i < loops; i++)
        for (int k = 0; k < 12; k++)
            sum[k] = sum[k] * a + b;
    for (int k = 1; k < 12; k++)
        sum[0] += sum[k];
    return sum_lanes(sum[0]);
}

double ISA(fma_peak)(int threads)
{
    enum { LOOPS = 4000000 };
    float total = 0;
    double begin = now_s();
#pragma omp parallel num_threads(threads) reduction(+ : total)
    total += burst(LOOPS);
    double seconds = now_s() - begin;
    return total > 0 ? 2e-9 * 12 * LANES * (double)LOOPS * threads / seconds : 0;
}
