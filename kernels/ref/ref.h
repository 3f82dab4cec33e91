/* ref.h - every operation in plain C on dense f32: the reference that other backends are held to.
 *
 * Other backends take single steps from here where speed does not matter; their tensors must then
 * be f32 and NHWC. */
#ifndef KERNELS_REF_H
#define KERNELS_REF_H
#include "../plan.h"

int ref_prepare(struct plan *p, struct step *s, struct steer_error *err) STEER_MUSTCHECK;

#endif
