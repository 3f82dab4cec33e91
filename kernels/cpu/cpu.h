/* cpu.h - our own kernels of the cpu backend, one table per instruction set.
 *
 * attention.c, int8.c, norm.c, elementwise.c and peak.c are written on 16-lane vectors (vector.h)
 * and compiled for AVX-512 with and without bf16, AVX2 + FMA and plain x86-64; the processor
 * decides at start. */
#ifndef KERNELS_CPU_H
#define KERNELS_CPU_H
#include "../plan.h"

typedef int (*step_run)(struct plan *p, struct step *s);

struct cpu_kernels {
    const char *name, *int8_name; /* "ours:avx512" */
    step_run attention, int8, group_norm, layer_norm, rms_norm, elementwise, geglu, concat, resize;
    double (*fma_peak)(int threads); /* GFLOP/s, f32 */
};
extern const struct cpu_kernels cpu_kernels_avx512_bf16, cpu_kernels_avx512, cpu_kernels_avx2,
    cpu_kernels_sse2;
/* The best that this processor has, or those of that instruction set; NULL: it has none such. */
const struct cpu_kernels *cpu_kernels_find(const char *isa);

/* Bytes of plan scratch that a step needs. */
size_t attention_scratch(const struct plan *p, const struct op *op);
size_t group_norm_scratch(const struct plan *p, const struct op *op);
size_t int8_scratch(const struct plan *p);

/* The table's word on a 3x3 convolution of that shape, or `otherwise` where it is silent. */
int tuning_winograd(const struct compute *c, int in, int out, int h, int w, int otherwise);

#endif
