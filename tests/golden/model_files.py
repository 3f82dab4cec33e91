"""Runs whose model is a model file over a golden folder: each function writes FOLDER/model.json and what it names, and returns the
parts that diffusers would have of it. LoRAs are merged here by hand, W + weight * alpha / rank * up @ down, in f32."""

import copy
import json

import torch
from safetensors.torch import save_file

import checkpoints

BASE = "../model"  # of a run's folder


def model_file(folder, **keys):
    (folder / "model.json").write_text(json.dumps({"base": BASE, **keys}, indent=2) + "\n")


def redrawn(model):
    """Another of the same configuration, its weights those of the first in another order."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(p.flatten()[torch.randperm(p.numel())].view_as(p))
    return other


def loaded(model, state):
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other.eval()


def half(pairs):
    """As the file holds them."""
    return {k: tuple(t.half().float() for t in pair) for k, pair in pairs.items()}


def flux_lora_kohya(folder, parts):
    """Every matrix of the blocks, under the original names: fused layers have one pair of matrices."""
    model = parts["transformer"]
    state = checkpoints.flux_original(model)
    layers = [k.removesuffix(".weight") for k, v in state.items() if k.endswith(".weight") and v.ndim == 2 and "_blocks" in k]
    pairs = half({k: (torch.randn(2, state[f"{k}.weight"].shape[1]) * 0.3, torch.randn(state[f"{k}.weight"].shape[0], 2) * 0.3) for k in layers})
    save_file(checkpoints.kohya("lora_unet_", pairs, 1.0), folder / "lora.safetensors")
    model_file(folder, loras=[{"file": "lora.safetensors", "weight": 0.8}])
    for k, (down, up) in pairs.items():
        state[f"{k}.weight"] = state[f"{k}.weight"] + 0.8 * 1.0 / 2 * up @ down
    return dict(parts, transformer=loaded(model, checkpoints.flux_convert(state, model.config.num_attention_heads * model.config.attention_head_dim)))


def merged(model, pairs, weight):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for k, (down, up) in pairs.items():
        state[f"{k}.weight"] += weight * up @ down
    return loaded(model, state)


def lora_diffusers(folder, parts, layers):
    """diffusers' names, without an alpha."""
    pairs = half(checkpoints.lora_draw(parts["transformer"], layers, 3))
    save_file(checkpoints.spelt("transformer.", pairs, ".lora_A.weight", ".lora_B.weight", torch.float16), folder / "lora.safetensors")
    model_file(folder, loras=[{"file": "lora.safetensors", "weight": 0.7}])
    return dict(parts, transformer=merged(parts["transformer"], pairs, 0.7))


def flux_lora_diffusers(folder, parts):
    return lora_diffusers(folder, parts, [r"attn\.to_[qkv]$", r"attn\.add_[qkv]_proj", r"to_(add_)?out", r"ff\.net", r"proj_mlp", r"proj_out$"])


def pixart_lora(folder, parts):
    return lora_diffusers(folder, parts, [r"attn[12]\.to_[qkv]$", r"to_out\.0", r"ff\.net", r"caption_projection", r"adaln_single\.linear"])


def flux_single(folder, parts):
    """Another transformer as its authors publish one: a file in the original naming. diffusers' own converter reads it back."""
    model = redrawn(parts["transformer"])
    state = {k: v.bfloat16().contiguous() for k, v in checkpoints.flux_original(model).items()}
    save_file(state, folder / "flux.safetensors")
    model_file(folder, transformer="flux.safetensors")
    width = model.config.num_attention_heads * model.config.attention_head_dim
    return dict(parts, transformer=loaded(model, {k: v.float() for k, v in checkpoints.flux_convert(state, width).items()}))


def pixart_transformer(folder, parts):
    """A student's transformer over its teacher's folder, as YOSO and DMD are published."""
    model = redrawn(parts["transformer"]).half()
    model.save_pretrained(folder / "transformer")
    model_file(folder, transformer="transformer", recipe="yoso-pixart")
    return dict(parts, transformer=model.float())


def yoso(folder, parts):
    """What YOSO's authors publish and what they say one should have besides: a LoRA in kohya-ss's names, a mean latent."""
    pairs = half(checkpoints.lora_draw(parts["unet"], [r"attn2\.to_[qkv]$", r"proj_in$"], 2))
    save_file(checkpoints.kohya("lora_unet_", pairs, 1.0), folder / "lora.safetensors")
    mean = torch.randn(4, 8, 8).half()
    save_file({"mean": mean}, folder / "mean.safetensors")
    model_file(folder, loras=[{"file": "lora.safetensors"}], mean_latent="mean.safetensors", recipe="yoso-sd15")
    state = {k: v.clone() for k, v in parts["unet"].state_dict().items()}
    for k, (down, up) in pairs.items():
        state[f"{k}.weight"] += (1.0 / 2 * up.flatten(1) @ down.flatten(1)).view_as(state[f"{k}.weight"])
    return dict(parts, unet=loaded(parts["unet"], state), mean=mean.float())


def vae_normed(folder, parts):
    """A decoder whose latents have a mean and a deviation of their own in each channel."""
    vae = redrawn(parts["vae"])
    vae.register_to_config(latents_mean=[-1.5, 0.75, 0.25, 2.0], latents_std=[4.5, 0.5, 6.25, 1.125])
    vae.half().save_pretrained(folder / "vae")
    model_file(folder, vae="vae")
    return dict(parts, vae=vae.float().eval())
