#!/usr/bin/env python3
"""One-step images of a model folder by somebody else's program, in a process of its own that gives its memory back.

    python tests/bench/peers.py "torch f32"|"torch bf16"|"openvino bf16" --model DIR --size WxH [--runs 1] [--first 0] [--threads 2]
                                [--dump FILE]

torch is diffusers' own pipeline; openvino (Stable Diffusion 1.5 and 2.1 alone) has static shapes. After one image that is not timed
come `runs`, each of another text and noise. Prints one JSON object: the milliseconds of images, denoiser and decoder; of FILE
(`steer-worker render --dump-tensors`), how far each stage here is from the worker's: norm2(there - here) / norm2(here), given what the
worker's stage before it gave, and the PSNR of the 8-bit pictures.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.utils import logging
from safetensors.torch import load_file

RECIPES = Path(__file__).resolve().parents[2] / "worker" / "recipes"
PROMPT = "a photograph of an astronaut"
PLAIN = {"StableDiffusionPipeline": dict(guidance_scale=1.0), "StableDiffusionXLPipeline": dict(guidance_scale=1.0),
         "PixArtAlphaPipeline": dict(guidance_scale=1.0, use_resolution_binning=False), "FluxPipeline": dict(max_sequence_length=256)}


class Timed:
    """A function that remembers its milliseconds."""

    def __init__(self, f):
        self.f, self.ms = f, []

    def __call__(self, *args, **kwargs):
        begin = time.perf_counter()
        out = self.f(*args, **kwargs)
        self.ms.append(1e3 * (time.perf_counter() - begin))
        return out


class Torch:
    def __init__(self, args, dtype):
        self.dtype, (self.width, self.height) = dtype, args.size
        self.pipe = DiffusionPipeline.from_pretrained(args.model, dtype=dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self.kind = type(self.pipe).__name__
        if self.kind == "PixArtAlphaPipeline":  # whose one step wants a scheduler of DMD's kind
            self.pipe.scheduler = DDPMScheduler.from_config(self.pipe.scheduler.config, clip_sample=False)
        self.model = self.pipe.unet if hasattr(self.pipe, "unet") else self.pipe.transformer
        if dtype == torch.bfloat16:  # faster so; f32 is not
            self.pipe.vae.to(memory_format=torch.channels_last)
            if hasattr(self.pipe, "unet"):
                self.model.to(memory_format=torch.channels_last)
        self.denoiser, self.decoder = Timed(self.model.forward), Timed(self.pipe.vae.decode)
        self.model.forward, self.pipe.vae.decode = self.denoiser, self.decoder

    def image(self, i):
        return self.pipe(f"{PROMPT}, number {i}", num_inference_steps=1, width=self.width, height=self.height,
                         generator=torch.Generator().manual_seed(i), output_type="pil", **PLAIN[self.kind])

    def text(self):
        one_pass = {} if self.kind == "FluxPipeline" else dict(do_classifier_free_guidance=False)
        if self.kind.startswith("StableDiffusion"):
            one_pass.update(device="cpu", num_images_per_prompt=1)
        if self.kind == "FluxPipeline":
            one_pass.update(max_sequence_length=256)
        return self.pipe.encode_prompt(PROMPT, **one_pass)[0]

    def denoise(self, got, t):
        """The denoiser's output for the worker's noise, text and time step."""
        here = lambda name: got[name][None].to(self.dtype)
        x, states, h, w = here("latents.start"), here("text.pos"), self.height, self.width
        if self.kind == "PixArtAlphaPipeline":
            told = self.model.config.sample_size == 128
            sizes = dict(resolution=torch.tensor([[h, w]], dtype=self.dtype) if told else None,
                         aspect_ratio=torch.tensor([[h / w]], dtype=self.dtype) if told else None)
            mask = got["tokens.pos"][None] != self.pipe.tokenizer.pad_token_id
            return self.model(x, states, torch.tensor([t]), sizes, encoder_attention_mask=mask).sample[:, :x.shape[1]]
        if self.kind == "FluxPipeline":
            p, (c, rows, columns) = self.pipe, x.shape[1:]
            ids = p._prepare_latent_image_ids(1, rows // 2, columns // 2, "cpu", self.dtype)
            y = self.model(hidden_states=p._pack_latents(x, 1, c, rows, columns), timestep=torch.tensor([t / 1000], dtype=self.dtype),
                           pooled_projections=here("pooled.pos"), encoder_hidden_states=states,
                           txt_ids=torch.zeros(states.shape[1], 3, dtype=self.dtype), img_ids=ids, return_dict=False)[0]
            return p._unpack_latents(y, h, w, p.vae_scale_factor)
        added = {}
        if self.kind == "StableDiffusionXLPipeline":
            added = dict(text_embeds=here("pooled.pos"), time_ids=torch.tensor([[h, w, 0, 0, h, w]], dtype=self.dtype))
        return self.model(x, torch.tensor(t), states, added_cond_kwargs=added).sample

    def decode(self, latents):
        c = self.pipe.vae.config
        return self.pipe.vae.decode((latents / c.scaling_factor + (c.shift_factor or 0)).to(self.dtype)).sample


class OpenVino:
    def __init__(self, args, dtype):
        import openvino as ov

        core, config = ov.Core(), {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": args.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}

        class Stage(torch.nn.Module):
            def __init__(self, module, call):
                super().__init__()
                self.module, self.call = module, call  # a submodule, so that its weights are no constants of the trace

            def forward(self, *x):
                return self.call(self.module, *x)

        pipe = DiffusionPipeline.from_pretrained(args.model, dtype=torch.float32)
        self.tokenizer, self.scale, self.latents = pipe.tokenizer, pipe.vae.config.scaling_factor, (1, pipe.unet.config.in_channels, args.size[1] // 8, args.size[0] // 8)
        stages = (Stage(pipe.text_encoder, lambda m, ids: m(ids).last_hidden_state),
                  Stage(pipe.unet, lambda m, noise, states: m(noise, torch.tensor(999), states, return_dict=False)[0]),
                  Stage(pipe.vae, lambda m, latents: m.decode(latents, return_dict=False)[0]))
        ids, noise = self.ids(PROMPT), torch.zeros(self.latents)
        states = stages[0](ids)
        self.stages = [core.compile_model(ov.convert_model(m, example_input=e if len(e) > 1 else e[0], input=[tuple(x.shape) for x in e]), "CPU", config)
                       for m, e in zip(stages, ((ids,), (noise, states), (noise,)))]
        self.denoiser = Timed(lambda *x: torch.from_numpy(self.stages[1](x)[0]))
        self.decoder = Timed(lambda x: torch.from_numpy(self.stages[2](x)[0]))

    def ids(self, prompt):
        return self.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def states(self, prompt):
        return self.stages[0](self.ids(prompt).numpy())[0]

    def image(self, i):
        noise = torch.randn(self.latents, generator=torch.Generator().manual_seed(i))
        v = self.denoiser(noise.numpy(), self.states(f"{PROMPT}, number {i}"))
        y = self.decode(0.07 * noise - 0.99 * v)
        return ((y / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    def text(self):
        return torch.from_numpy(self.states(PROMPT))

    def denoise(self, got, t):
        assert t == 999
        return self.denoiser(got["latents.start"][None].numpy(), got["text.pos"][None].numpy())

    def decode(self, latents):
        return self.decoder((latents / self.scale).numpy())


PEERS = {"torch f32": (Torch, torch.float32), "torch bf16": (Torch, torch.bfloat16), "openvino bf16": (OpenVino, None)}


def agreement(peer, got, model):
    recipe = json.loads((RECIPES / (json.loads((model / "steer.json").read_text())["recipe"] + ".json")).read_text())
    distance = lambda a, b: float((a.double() - b.double()).norm() / b.double().norm())
    eight = lambda y: ((y.float() / 2 + 0.5).clamp(0, 1) * 255).round()
    decoded = peer.decode(got["latents.final"][None])[0].float()
    error = float(((eight(decoded) - eight(got["vae.out"])) ** 2).mean())
    return {"text": distance(got["text.pos"], peer.text()[0]), "denoise": distance(got["denoise.out.0"], peer.denoise(got, recipe.get("timesteps", [1000])[0])[0]),
            "decode": distance(got["vae.out"], decoded), "image_psnr_db": 10 * math.log10(255**2 / error) if error else math.inf}


@torch.no_grad()
def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("peer", choices=PEERS)
    a.add_argument("--model", required=True, type=Path)
    a.add_argument("--size", required=True, type=lambda s: tuple(map(int, s.split("x"))))
    a.add_argument("--runs", type=int, default=1)
    a.add_argument("--first", type=int, default=0)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--dump")
    args = a.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    make, dtype = PEERS[args.peer]
    peer = make(args, dtype)
    out, total = {}, Timed(peer.image)
    if args.dump:
        out["agreement"] = agreement(peer, load_file(args.dump), args.model)
    if args.runs:
        peer.image(args.first)
    peer.denoiser.ms, peer.decoder.ms = [], []
    for i in range(args.runs):
        total(args.first + 1 + i)
    print(json.dumps({**out, "image_ms": total.ms, "denoise_ms": peer.denoiser.ms, "decode_ms": peer.decoder.ms}))


if __name__ == "__main__":
    main()
