#!/usr/bin/env python3
"""Makes a model folder of a family's true size with random weights in bf16.

    python tests/bench/true_size.py FAMILY DIR [--text true|small] [--blocks 19,38]

FAMILY is one of the table below; the configurations are the published ones. `--text small` makes T5 one narrow layer of the
true width, so that a transformer can be timed without 9.5 GB of encoder; `--blocks` says how many double and single blocks FLUX
has. Whoever times such a folder says so. Beside DIR stands DIR-tiny.json, the same model with a small decoder, where only the
denoiser is of interest.

Wants torch, diffusers and transformers (tests/bench/requirements.txt). No module is ever in memory: shapes come from modules on
torch's meta device, numbers from one block of normal ones, tensors go to the file one by one. Weights are scaled by their
inputs' number, so that activations stay near 1.
"""

import argparse
import json
import math
import shutil
import struct
from pathlib import Path

import torch
from diffusers import (AutoencoderKL, AutoencoderTiny, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler,
                       FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "data"
BLOCK = 16777213  # a prime, so that rows of a large matrix are not alike

CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, projection_dim=512, hidden_act="gelu")
CLIP_BIG_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280, hidden_act="gelu")
T5_XXL = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128, feed_forward_proj="gated-gelu")
T5_SMALL = dict(T5_XXL, d_ff=64, num_layers=1, num_heads=1, vocab_size=1000)
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def clip(cls=CLIPTextModel, **sizes):
    return cls(CLIPTextConfig(vocab_size=49408, bos_token_id=0, eos_token_id=2, **sizes))


def t5(text):
    return T5EncoderModel(T5Config(**(T5_XXL if text == "true" else T5_SMALL)))


def vae(**more):
    return AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
                         up_block_types=("UpDecoderBlock2D",) * 4, **more)


def scheduler(cls, **config):
    with torch.device("cpu"):  # of modules alone there is no need of numbers
        return cls(**config)


def sd15(args):
    return dict(pipeline="StableDiffusionPipeline", recipe="sbv2-sd15", tokenizer=("small", 77), text_encoder=clip(**CLIP_L),
                unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8), vae=vae(sample_size=512),
                scheduler=scheduler(DDIMScheduler, **SD, clip_sample=False, set_alpha_to_one=False))


def sd21(args, side=64, **v):
    return dict(pipeline="StableDiffusionPipeline", recipe="sbv2-sd21", tokenizer=("second", 77), text_encoder=clip(**CLIP_H),
                unet=UNet2DConditionModel(sample_size=side, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20],
                                          use_linear_projection=True), vae=vae(sample_size=8 * side),
                scheduler=scheduler(DDIMScheduler, **SD, clip_sample=False, set_alpha_to_one=False, **v))


def sdxl(args):
    return dict(pipeline="StableDiffusionXLPipeline", recipe="dmd2-sdxl-1step", tokenizer=("xl", 77), tokenizer_2=("xl", 77),
                text_encoder=clip(**CLIP_L), text_encoder_2=clip(CLIPTextModelWithProjection, **CLIP_BIG_G),
                unet=UNet2DConditionModel(
                    sample_size=128, block_out_channels=(320, 640, 1280), attention_head_dim=[5, 10, 20], transformer_layers_per_block=[1, 2, 10],
                    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=2048, use_linear_projection=True,
                    addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816),
                vae=vae(sample_size=1024, scaling_factor=0.13025, force_upcast=True), scheduler=scheduler(EulerDiscreteScheduler, **SD, timestep_spacing="leading"))


def pixart(args, side=64):
    return dict(pipeline="PixArtAlphaPipeline", recipe="dmd-pixart", tokenizer=("pixart", 120), text_encoder=t5(args.text),
                transformer=PixArtTransformer2DModel(
                    num_attention_heads=16, attention_head_dim=72, num_layers=28, in_channels=4, out_channels=8, cross_attention_dim=1152,
                    caption_channels=4096, sample_size=side, patch_size=2), vae=vae(sample_size=8 * side),
                scheduler=scheduler(DPMSolverMultistepScheduler, beta_start=0.0001, beta_end=0.02, beta_schedule="linear"))


def flux(args):
    double, single = map(int, args.blocks.split(","))
    return dict(pipeline="FluxPipeline", recipe="flux-schnell", tokenizer=("small", 77), tokenizer_2=("flux", 512), text_encoder=clip(**CLIP_L),
                text_encoder_2=t5(args.text),
                transformer=FluxTransformer2DModel(
                    in_channels=64, num_layers=double, num_single_layers=single, attention_head_dim=128, num_attention_heads=24,
                    joint_attention_dim=4096, pooled_projection_dim=768, axes_dims_rope=(16, 56, 56)),
                vae=vae(sample_size=1024, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                        use_post_quant_conv=False, force_upcast=True), scheduler=scheduler(FlowMatchEulerDiscreteScheduler, shift=1.0))


FAMILIES = {"sd15": sd15, "sd21": sd21, "sd21-v": lambda args: sd21(args, 96, prediction_type="v_prediction"), "sdxl": sdxl,
            "pixart-512": pixart, "pixart-1024": lambda args: pixart(args, 128), "flux": flux}


class Numbers:
    """bf16 bytes of normal numbers, from one block over and over."""

    def __init__(self):
        torch.manual_seed(0)
        self.block, self.at = torch.randn(BLOCK), 0

    def write(self, file, count, scale, middle):
        while count:
            n = min(count, BLOCK - self.at)
            part = (self.block[self.at:self.at + n] * scale + middle).bfloat16()
            file.write(memoryview(part.view(torch.int16).numpy()))
            self.at, count = (self.at + n) % BLOCK, count - n


def spread(name, shape):
    """The scale and the middle of a tensor's numbers."""
    if len(shape) < 2:
        return (0.1, 1) if name.endswith("weight") else (0.02, 0)  # a norm's scale; a bias
    scale = 1 / math.sqrt(math.prod(shape[1:]))
    # T5 does not divide its logits by the root of a head's width: its queries are that much smaller.
    return (scale / 8, 0) if name.endswith("SelfAttention.q.weight") else (scale, 0)


def component_write(folder, module, numbers):
    """Its configuration and its tensors; how many numbers these have."""
    folder.mkdir()
    if hasattr(module, "save_config"):
        module.save_config(folder)
    else:
        module.config.save_pretrained(folder)
    shapes = {k: tuple(v.shape) for k, v in module.state_dict().items() if k != "encoder.embed_tokens.weight"}  # T5's second name
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * math.prod(shape)]}
        at += 2 * math.prod(shape)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    base = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    with open(folder / f"{base}.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            numbers.write(f, math.prod(shape), *spread(name, shape))
    return at // 2


def tokenizer_take(folder, case, length):
    """A golden one; its few tokens are in any table."""
    shutil.copytree(GOLDEN / case / "model" / ("tokenizer_2" if case == "flux" else "tokenizer"), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), model_max_length=length)))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("family", choices=FAMILIES)
    a.add_argument("folder", type=Path)
    a.add_argument("--text", default="true", choices=("true", "small"))
    a.add_argument("--blocks", default="19,38")
    args = a.parse_args()
    with torch.device("meta"):
        parts = FAMILIES[args.family](args)
        channels = parts["vae"].config.latent_channels
        tiny = AutoencoderTiny(latent_channels=channels)
    pipeline, recipe, folder, numbers = parts.pop("pipeline"), parts.pop("recipe"), args.folder, Numbers()
    folder.mkdir(parents=True)
    index = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    for name, part in parts.items():
        library = "transformers" if name.startswith(("text", "token")) else "diffusers"
        if isinstance(part, tuple):
            tokenizer_take(folder / name, *part)
            index[name] = [library, "T5Tokenizer" if part[0] in ("pixart", "flux") else "CLIPTokenizer"]
            continue
        index[name] = [library, type(part).__name__]
        if name == "scheduler":
            part.save_pretrained(folder / name)
        else:
            print(f"{name}: {component_write(folder / name, part, numbers) / 1e6:.1f} M parameters", flush=True)
    if pipeline == "StableDiffusionPipeline":
        index.update(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    (folder / "steer.json").write_text(json.dumps({"recipe": recipe}))
    component_write(folder / "vae_tiny", tiny, numbers)
    (folder.parent / f"{folder.name}-tiny.json").write_text(json.dumps({"base": folder.name, "vae": f"{folder.name}/vae_tiny", "recipe": recipe}))


if __name__ == "__main__":
    main()
