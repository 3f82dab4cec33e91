#!/usr/bin/env python3
"""Values of torch and diffusers for test_kernels.c and test_attention.c, on inputs that both sides compute.

    tests/kernel/golden.py > tests/kernel/golden.h      needs torch and diffusers (tests/bench/requirements.txt)
"""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from diffusers.models.normalization import RMSNorm
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline


def numbers(seed, *shape):
    """golden_numbers of golden.h."""
    count = torch.Size(shape).numel()
    return torch.tensor([((i * 37 + seed * 11) % 101) / 50 - 1 for i in range(count)], dtype=torch.float32).reshape(shape)


def heads(x, count):
    """[B, S, heads * D] -> [B, heads, S, D], and back."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).flatten(2)


def show(name, x, what):
    values = [f"{float(v):.9g}" for v in x.detach().flatten()]
    values = [v + "f" if "." in v or "e" in v else v for v in values]
    print(f"/* {what} */\nstatic const float golden_{name}[] = {{")
    for i in range(0, len(values), 8):
        print("    " + ", ".join(values[i : i + 8]) + ",")
    print("};")


def main():
    print("/* golden.h - what torch and diffusers say; made by golden.py. */")
    print("/* clang-format off */\n#ifndef TEST_GOLDEN_H\n#define TEST_GOLDEN_H")
    norm = RMSNorm(6, eps=1e-6)
    norm.weight.data = numbers(2, 6)
    x = numbers(1, 1, 3, 12)
    show("rms_norm", merged(norm(heads(x, 2))), "RMSNorm of two heads of 6; x: seed 1 [3, 12], weight: seed 2")

    cosines, sines = get_1d_rotary_pos_embed(6, torch.tensor([0.0, 3.0, 7.0]), repeat_interleave_real=True, use_real=True)
    show("rope_table", torch.cat([cosines[:, ::2], sines[:, ::2]], -1), "positions 0, 3, 7 of a head of 6: cosines, sines")
    show("rope", merged(apply_rotary_emb(heads(x, 2), (cosines, sines))), "apply_rotary_emb of seed 1 [3, 12], two heads")

    y = F.layer_norm(x, (12,), eps=1e-6)
    show("layer_norm", y, "without scale and shift; seed 1 [3, 12], eps 1e-6")
    show("modulate", y * (1 + numbers(4, 12)) + numbers(3, 12), "that, times 1 + seed 4, plus seed 3")
    show("gated_add", x + numbers(3, 12) * numbers(5, 3, 12), "seed 1 + gate seed 3 * seed 5")

    image = torch.arange(72.0).reshape(1, 4, 6, 3)  # [B, H, W, C]
    packed = FluxPipeline._pack_latents(image.permute(0, 3, 1, 2), 1, 3, 4, 6)
    show("patches_first", packed, "FluxPipeline._pack_latents of [4, 6, 3] = 0, 1, 2 ..")
    tokens = image.reshape(1, 2, 3, 2, 2, 3)
    show("unpatches_last", torch.einsum("nhwpqc->nhpwqc", tokens), "the reshape at the end of PixArtTransformer2DModel, of [2, 3, 12] = 0, 1, 2 ..")

    q, k, v = (heads(numbers(s, 1, n, 12), 2) for s, n in ((1, 3), (2, 5), (3, 5)))
    bias = numbers(4, 1, 3, 5, 2).permute(0, 3, 1, 2)
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    show("attention_bias", merged(z), "q seed 1 [3], k, v seeds 2, 3 [5], two heads of 6, scale 1, bias seed 4 [3, 5, 2]")
    ks, vs, kn, vn = (heads(numbers(s, 1, n, 12), 2) for s, n in ((5, 4), (6, 4), (7, 2), (8, 2)))
    z = F.scaled_dot_product_attention(q, torch.cat([k, ks], 2), torch.cat([v, vs], 2))
    show("joint", merged(z), "with shared seeds 5, 6 [4], scale 1 / sqrt(6)")
    minus = F.scaled_dot_product_attention(q, kn, vn)
    show("joint_text", merged(z - 0.5 * minus), "NASA `text`, alpha 0.5, negative seeds 7, 8 [2]")
    print("#endif")


if __name__ == "__main__":
    main()
