#!/usr/bin/env python3
"""Whole images, ours beside diffusers on torch and OpenVINO, alternating in one run.

    python tests/bench/engine.py --model DIR [--size 96x96] [--pairs 5] [--runs 1] [--threads 2] [--precision auto|f32|bf16] [--peers torch,openvino]

Needs torch 2.13.0, diffusers 0.42.1, transformers and openvino. Every side gets the same noise and text once, and the pictures are compared (PSNR).
Prints one JSON object: medians, minima and ratios. torch runs in the better of f32 and bf16, OpenVINO with static shapes in bf16.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

BIN = Path(os.environ.get("STEER_BIN_DIR", Path(__file__).resolve().parents[2] / "build" / "bin"))
PROMPT, SEED, T = "a photograph of an astronaut", 7, 999


def ours(args):
    out = subprocess.run([BIN / "steer-worker", "bench", "--model", args.model, "--size", args.size, "--runs", str(args.runs), "--threads",
                          str(args.threads), "--precision", args.precision, "--json"], capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    return json.loads(out.stdout)


def our_picture(args, folder):
    """The picture of the prompt, and the noise and latents that peers are given and compared with."""
    from safetensors.torch import load_file

    subprocess.run([BIN / "steer-worker", "render", "--model", args.model, "--size", args.size, "--prompt", PROMPT, "--seed", str(SEED), "--threads",
                    str(args.threads), "--precision", args.precision, "--guidance", "none", "--output", f"{folder}/x.png", "--dump-tensors",
                    f"{folder}/x.safetensors"], check=True, stdout=subprocess.DEVNULL)
    return load_file(f"{folder}/x.safetensors")


class Parts:
    """The modules as one function of (ids, noise): one step's denoiser output, then the decoder."""

    def __init__(self, args):
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
        self.tokenizer, self.text, self.unet, self.vae = pipe.tokenizer, pipe.text_encoder, pipe.unet, pipe.vae
        self.size = [int(n) // 8 for n in args.size.split("x")][::-1]

    def ids(self):
        return self.tokenizer(PROMPT, padding="max_length", truncation=True, return_tensors="pt").input_ids


class Torch:
    def __init__(self, parts, dtype):
        import copy

        # The caller owns one set of f32 modules; bf16 is a copy of it.
        self.dtype, self.text, self.unet, self.vae = dtype, *(copy.deepcopy(m).to(dtype) for m in (parts.text, parts.unet, parts.vae))
        if dtype == torch.bfloat16:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def denoise(self, ids, noise):
        return self.unet(noise.to(self.dtype), torch.tensor(T), self.text(ids).last_hidden_state).sample

    @torch.no_grad()
    def decode(self, latents):
        return self.vae.decode(latents.to(self.dtype)).sample.float()


class OpenVino:
    def __init__(self, parts, threads):
        import openvino as ov

        core, config = ov.Core(), {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}

        class Stage(torch.nn.Module):
            def __init__(self, module, call):
                super().__init__()
                self.module, self.call = module, call  # a submodule, so that its weights are no constants of the trace

            def forward(self, *x):
                return self.call(self.module, *x)

        stages = (Stage(parts.text, lambda m, ids: m(ids).last_hidden_state),
                  Stage(parts.unet, lambda m, noise, states: m(noise, torch.tensor(T), states, return_dict=False)[0]),
                  Stage(parts.vae, lambda m, latents: m.decode(latents, return_dict=False)[0]))
        ids, noise = parts.ids(), torch.zeros(1, parts.unet.config.in_channels, *parts.size)
        with torch.no_grad():
            states = parts.text(ids).last_hidden_state
            self.parts = [core.compile_model(ov.convert_model(m, example_input=e if len(e) > 1 else e[0], input=[tuple(x.shape) for x in e]), "CPU", config)
                          for m, e in zip(stages, ((ids,), (noise, states), (noise,)))]

    def denoise(self, ids, noise):
        states = self.parts[0](ids.numpy())[0]
        return torch.from_numpy(self.parts[1]([noise.numpy(), states])[0])

    def decode(self, latents):
        return torch.from_numpy(self.parts[2](latents.float().numpy())[0])


def image(peer, parts, i):
    """A whole image as ours makes it: another text and noise each time, 8-bit pixels at the end."""
    ids = parts.tokenizer(f"{PROMPT}, number {i}", padding="max_length", truncation=True, return_tensors="pt").input_ids
    noise = torch.randn(1, parts.unet.config.in_channels, *parts.size, generator=torch.Generator().manual_seed(i))
    v = peer.denoise(ids, noise).float()
    y = peer.decode((0.07 * noise - 0.99 * v) / parts.vae.config.scaling_factor)
    return ((y / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def psnr(a, b):
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", required=True)
    a.add_argument("--size", default="96x96")
    a.add_argument("--pairs", type=int, default=5)
    a.add_argument("--runs", type=int, default=1)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--precision", default="auto")
    a.add_argument("--peers", default="torch,openvino")
    args = a.parse_args()
    torch.set_num_threads(args.threads)
    parts, peers = Parts(args), {}
    if "torch" in args.peers:
        both = {"torch f32": Torch(parts, torch.float32), "torch bf16": Torch(parts, torch.bfloat16)}
        seconds = {}
        for name, peer in both.items():
            image(peer, parts, 0)
            begin = time.perf_counter()
            image(peer, parts, 1)
            seconds[name] = time.perf_counter() - begin
        best = min(seconds, key=seconds.get)
        peers[best] = both[best]
        del both
    if "openvino" in args.peers:
        peers["openvino bf16"] = OpenVino(parts, args.threads)
        image(peers["openvino bf16"], parts, 0)
    close = {}
    with tempfile.TemporaryDirectory() as folder:
        got = our_picture(args, folder)
        noise, latents = got["latents.start"][None], got["latents.final"][None]
        want = ((got["vae.out"] / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
        for name, peer in peers.items():
            v = peer.denoise(parts.ids(), noise).float()[0]
            y = peer.decode(latents / parts.vae.config.scaling_factor)[0]
            close[name] = {"denoiser_error": float((v - got["denoise.out.0"]).norm() / got["denoise.out.0"].norm()),
                           "image_psnr_db": psnr(((y / 2 + 0.5).clamp(0, 1) * 255).round().numpy(), want)}
    times, last = {"ours": [], **{n: [] for n in peers}}, None
    for pair in range(args.pairs):
        last = ours(args)
        times["ours"].append(last["total"]["median_ms"])
        for name, peer in peers.items():
            runs = []
            for i in range(args.runs):
                begin = time.perf_counter()
                image(peer, parts, 10 + pair * args.runs + i)
                runs.append(1e3 * (time.perf_counter() - begin))
            times[name].append(statistics.median(runs))
    print(json.dumps({
        "median_ms": {n: round(statistics.median(t), 1) for n, t in times.items()}, "min_ms": {n: round(min(t), 1) for n, t in times.items()},
        "times_ours": {n: round(statistics.median([p / o for p, o in zip(times[n], times["ours"])]), 2) for n in peers}, "agreement": close,
        "ours": {k: last[k] for k in ("numerics", "first_image_ms", "peak_rss_bytes", "peak_gflops")},
        "stages_ms": {k: v["median_ms"] for k, v in last["stages"].items()}}, indent=2))


if __name__ == "__main__":
    main()
