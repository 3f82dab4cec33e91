/* activation.h - functions of one value.
 *
 * Apart from compute.h because CUDA sources, which are C++, read it too. */
#ifndef KERNELS_ACTIVATION_H
#define KERNELS_ACTIVATION_H

enum activation { ACT_NONE, ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU, ACT_RELU, ACT_TANH };

#endif
