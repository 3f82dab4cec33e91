/* guidance.h - how two texts act on an attention, and where a job's numbers for it stand.
 *
 * Apart from compute.h because CUDA sources, which are C++, read it too. docs/guidance.md has the
 * formulas. */
#ifndef KERNELS_GUIDANCE_H
#define KERNELS_GUIDANCE_H

enum guidance_method { GUIDANCE_NONE, GUIDANCE_NASA, GUIDANCE_NAG, GUIDANCE_VSF };
/* What NASA subtracts where there are shared keys: attention over the negative text alone; the same
 * with the mass that it has in the joint softmax; the whole joint attention. Without shared keys
 * all three are one. */
enum guidance_variant { GUIDANCE_TEXT, GUIDANCE_MASS, GUIDANCE_JOINT };
/* Places in params [B, 1, 1, GUIDANCE_PARAMS], f32. */
enum {
    GUIDANCE_ALPHA,
    GUIDANCE_OFFSET,
    GUIDANCE_PHI,
    GUIDANCE_TAU,
    GUIDANCE_BETA,
    GUIDANCE_PARAMS
};

#endif
