#!/usr/bin/env python3
"""Whole images, ours beside diffusers on torch, alternating in one run.

    python tests/bench/engine.py --model DIR [--size 96x96] [--pairs 5] [--threads 2] [--precision f32|bf16]

Needs torch 2.13.0, diffusers 0.42.1 and transformers. Prints one JSON object: medians and the ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

BIN = Path(os.environ.get("STEER_BIN_DIR", Path(__file__).resolve().parents[2] / "build" / "bin"))


def ours(args):
    out = subprocess.run([BIN / "steer-worker", "bench", "--model", args.model, "--size", args.size, "--runs", str(args.runs), "--threads",
                          str(args.threads), "--precision", args.precision, "--json"], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


class Torch:
    def __init__(self, args):
        import torch
        from diffusers import StableDiffusionPipeline

        torch.set_num_threads(args.threads)
        self.torch, (self.w, self.h) = torch, map(int, args.size.split("x"))
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        pipe = StableDiffusionPipeline.from_pretrained(args.model, torch_dtype=dtype)
        self.tok, self.text, self.unet, self.vae = pipe.tokenizer, pipe.text_encoder, pipe.unet, pipe.vae
        self.dtype = dtype
        if args.precision == "bf16":
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)

    def image(self, i):
        torch = self.torch
        with torch.no_grad():
            ids = self.tok(f"a photograph of an astronaut, number {i}", padding="max_length", truncation=True, return_tensors="pt").input_ids
            states = self.text(ids).last_hidden_state
            x = torch.randn(1, self.unet.config.in_channels, self.h // 8, self.w // 8, dtype=self.dtype)
            v = self.unet(x, torch.tensor(999), states).sample
            y = self.vae.decode((0.07 * x - 0.99 * v) / self.vae.config.scaling_factor).sample
            return ((y.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", required=True)
    a.add_argument("--size", default="96x96")
    a.add_argument("--pairs", type=int, default=5)
    a.add_argument("--runs", type=int, default=5)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--precision", default="f32")
    args = a.parse_args()
    peer = Torch(args)
    peer.image(-1)
    mine, theirs, last = [], [], None
    for pair in range(args.pairs):
        last = ours(args)
        mine.append(last["total"]["median_ms"])
        times = []
        for i in range(args.runs):
            begin = time.perf_counter()
            peer.image(pair * args.runs + i)
            times.append(1e3 * (time.perf_counter() - begin))
        theirs.append(statistics.median(times))
    ratios = [t / m for m, t in zip(mine, theirs)]
    print(json.dumps({"ours_ms": statistics.median(mine), "diffusers_ms": statistics.median(theirs), "ratio": statistics.median(ratios),
                      "ratios": [round(r, 2) for r in ratios], "numerics": last["numerics"], "peak_rss_bytes": last["peak_rss_bytes"],
                      "stages": {k: v["median_ms"] for k, v in last["stages"].items()}, "peak_gflops": last["peak_gflops"]}, indent=2))


if __name__ == "__main__":
    main()
