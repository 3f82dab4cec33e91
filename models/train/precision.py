"""bf16 where the processor multiplies it, f32 for everything else: weights, sums, norms, what lies between layers.

oneDNN's backward passes of convolutions gain little in bf16 (autocast was slower than f32). But the gradient to the input of a convolution with
stride 1 is a convolution too, by the turned kernel, and as such it runs at the forward pass's speed.
"""

import os
import types

import torch
import torch.nn.functional as F

BF16 = torch.bfloat16
NATIVE = torch.cpu._is_avx512_bf16_supported() and not os.environ.get("F32")  # F32=1: bench.py says whether to


class Convolution(torch.autograd.Function):
    """Stride 1, odd kernel, the same size out as in. x [B, C, H, W] f32, w [O, C, k, k] f32."""

    @staticmethod
    def forward(ctx, x, w):
        x, w = x.to(BF16, memory_format=torch.channels_last), w.to(BF16)
        ctx.save_for_backward(x, w)
        return F.conv2d(x, w, padding=w.shape[2] // 2).float()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        g = g.to(BF16, memory_format=torch.channels_last)
        pad = w.shape[2] // 2
        to_x = F.conv2d(g, w.flip(2, 3).transpose(0, 1).contiguous(), padding=pad).float() if ctx.needs_input_grad[0] else None
        to_w = None
        if ctx.needs_input_grad[1]:
            to_w = torch.ops.aten.convolution_backward(g, x, w, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, [False, True, False])[1].float()
        return to_x, to_w


def convolution(self, x):
    y = Convolution.apply(x, self.weight)
    return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)


def linear(self, x):
    y = F.linear(x.to(BF16), self.weight.to(BF16)).float()
    return y if self.bias is None else y + self.bias


def quicken(module):
    """Its linear layers and convolutions multiply in bf16 from now on, if that is quicker here. Returns it."""
    for layer in module.modules() if NATIVE else ():
        if isinstance(layer, torch.nn.Linear):
            layer.forward = types.MethodType(linear, layer)
        elif isinstance(layer, torch.nn.Conv2d) and layer.stride == (1, 1) and layer.kernel_size[0] == layer.kernel_size[1] and min(layer.weight.shape[:2]) > 8:
            layer.forward = types.MethodType(convolution, layer)
    return module
