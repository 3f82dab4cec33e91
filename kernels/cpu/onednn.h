/* onednn.h - linear layers and convolutions by oneDNN 2.6; no other file knows its API.
 *
 * A primitive is made for one image and executed per image, so that a batch changes no byte.
 * Weights are packed once into the layout that the primitive asks for, and shared by all plans that
 * ask for the same. Scratch memory is the plan's. */
#ifndef KERNELS_CPU_ONEDNN_H
#define KERNELS_CPU_ONEDNN_H
#include "../plan.h"

int onednn_open(struct compute *c, struct steer_error *err) STEER_MUSTCHECK;
void onednn_close(struct compute *c);
const char *onednn_isa(void);     /* "avx512_core_bf16" */
const char *onednn_version(void); /* "onednn2.6.3" */
int onednn_bf16_native(void);

int onednn_linear(struct plan *p, struct step *s, struct steer_error *err) STEER_MUSTCHECK;
/* winograd: try it before the direct algorithm. */
int onednn_conv(struct plan *p, struct step *s, int winograd,
                struct steer_error *err) STEER_MUSTCHECK;

/* GFLOP/s of a 2048^3 matrix product, best of `runs`; 0 where it cannot run. */
double onednn_peak(struct compute *c, enum compute_type type, int runs);

#endif
