/* control.h - what tests ask of the fake libraries; found by dlsym, so that the same program runs
 * on real ones, where they are absent. */
#ifndef GPU_CONTROL_H
#define GPU_CONTROL_H
#include <stddef.h>

#include "ptx.h"

/* As STEER_FAKE_FAIL; "" for none. All classes count from 1 again. -1: not understood. */
int steer_fake_fail(const char *spec);
/* How many calls of a class there were since. */
unsigned long steer_fake_calls(const char *class);
/* The first thing that went wrong in the work of streams, or a call's complaint; "" for nothing. */
const char *steer_fake_fault(void);
/* One line a kind of object that was not freed; how many objects. */
size_t steer_fake_live(char *text, size_t size);
void steer_fake_counts(struct ptx_counts *ret);
#endif
