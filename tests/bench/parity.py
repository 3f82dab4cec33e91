#!/usr/bin/env python3
"""Folders that nobody has seen: random models of every family, each stage and the whole pipeline compared with diffusers and transformers.

    python tests/bench/parity.py [--folders 40] [--seed 1] [--backend cpu|ref] [--precision f32|bf16] [--family sd|sdxl|pixart|flux] [--keep DIR]

Wants tests/golden/make.py's versions of torch, diffusers and transformers, and build/bin/steer-worker (or
STEER_BIN_DIR). Each folder comes from its seed alone: widths, depths, heads, block types, activations, odd latent
sizes, storage types, shards, forms of the tokenizer, scheduler classes with any of their keys, methods of guidance.

Errors are norm2(got - want) / norm2(want). A stage is judged on what the worker's stage before it gave, so that one
stage's rounding is not counted again; `latents` and `chain` are the whole way from the seed and may be off by ten
times as much: weights like these enlarge rounding at each step. Without guidance in attention the image of diffusers' own pipeline,
given the same noise, may differ by 1 of 255. With --precision bf16 each stage may be off by a few per cent and the chain is not judged.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "golden"))

import torch
from diffusers import FluxPipeline, PixArtAlphaPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils import logging
from safetensors.torch import load_file

import flux
import make
from random_folders import FAMILIES, make_folder

BIN = Path(os.environ.get("STEER_BIN_DIR", HERE.parents[2] / "build" / "bin"))
LIMITS = {"f32": 1e-4, "bf16": 5e-2}
PIPELINES = {"sd": lambda parts, index: StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False),
             "sdxl": lambda parts, index: StableDiffusionXLPipeline(**parts, **index, add_watermarker=False),
             "pixart": lambda parts, index: PixArtAlphaPipeline(**parts)}


def render(folder, run, args, out):
    keys = ("prompt", "negative", "guidance", "guidance-scale", "nasa-variant", "alpha", "offset", "phi", "tau", "beta", "steps", "seed")
    flags = [f for k in keys if run.get(k) is not None for f in (f"--{k}", run[k])]
    flags += ["--model", folder, "--size", "{}x{}".format(*run["size"]), "--precision", args.precision, "--threads", "1", "--backend", args.backend,
              "--output", out.with_suffix(".png"), "--dump-tensors", out]
    return subprocess.run([BIN / "steer-worker", "render", *map(str, flags)], capture_output=True, text=True)


def distance(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def pipeline_image(parts, run, family, start):
    """The image of diffusers' own pipeline, or None where it cannot be asked."""
    config = getattr(parts.get("transformer"), "config", {})
    if run["guidance"] != "none" or (family == "pixart" and parts["transformer"].use_additional_conditions and config["sample_size"] != 128):
        return None  # PixArtAlphaPipeline tells sizes by sample_size alone
    if family == "sd":  # which pads to what the tokenizer says, were it 10**30
        tok, text = parts["tokenizer"], parts["text_encoder"]
        tok.model_max_length = min(tok.model_max_length, text.config.max_position_embeddings)
    (parts.get("unet") or parts["transformer"]).set_attn_processor(AttnProcessor2_0())
    modules = {k: v for k, v in parts.items() if k != "index"}
    return make.by_pipeline(PIPELINES[family](modules, parts["index"]), run, start)


def compare(parts, run, family, got):
    """The error of each stage, or None where diffusers gives nothing to compare with."""
    want = flux.reference(parts, run) if family == "flux" else make.reference(parts, run)
    if not all(torch.isfinite(v).all() for v in want.values() if v.is_floating_point()):
        return None
    errors = {}
    for name in [k for k in want if k.startswith("tokens")]:
        errors["tokens"] = max(errors.get("tokens", 0.0), float(not torch.equal(got[name], want[name])))
    for name in want.keys() & {"text.pos", "text.neg", "pooled.pos", "pooled.neg"} & got.keys():
        errors["text"] = max(errors.get("text", 0), distance(got[name], want[name]))
    errors["noise"] = float(not torch.equal(got["latents.start"], want["latents.start"]))
    errors["denoise"] = distance(got["denoise.out.0"], want["denoise.out.0"])
    errors["latents"] = distance(got["latents.final"], want["latents.final"])
    v = parts["vae"]
    decoded = v.decode(got["latents.final"][None] / v.config.scaling_factor + (getattr(v.config, "shift_factor", None) or 0)).sample[0]
    errors["decode"] = distance(got["vae.out"], decoded)
    errors["chain"] = distance(got["vae.out"], want["vae.out"])
    image = ((got["vae.out"] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0)
    errors["image"] = float((image - got["image"]).abs().max() > 0)
    whole = want["image"] if family == "flux" else pipeline_image(parts, run, family, want["latents.start"])
    if whole is not None:
        errors["pipeline"] = float((whole.int() - got["image"].int()).abs().max())
    return errors


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folders", type=int, default=40)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--backend", default="cpu")
    p.add_argument("--family", default="sd", choices=FAMILIES)
    p.add_argument("--precision", default="f32", choices=LIMITS)
    p.add_argument("--keep", help="where the folders that fail are left")
    args = p.parse_args()
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    worst, failing, compared = {}, [], 0
    for seed in range(args.seed, args.seed + args.folders):
        with tempfile.TemporaryDirectory() as tmp, torch.no_grad():
            folder, out = Path(tmp) / "model", Path(tmp) / "got.safetensors"
            folder.mkdir()
            parts, run, what = make_folder(seed, folder, args.family)
            done = render(folder, run, args, out)
            errors = compare(parts, run, args.family, load_file(out)) if done.returncode == 0 else {"render": 1.0}
            if errors is None:
                print(f"seed {seed}: diffusers has no finite picture ({what})")
                continue
            compared += 1
            judged = errors.keys() - ({"latents", "chain", "pipeline"} if args.precision == "bf16" else set())
            limit = {k: LIMITS[args.precision] * (10 if k in ("latents", "chain") else 1) for k in judged}
            limit["pipeline"] = 1
            bad = {k: errors[k] for k in judged if not errors[k] <= limit[k]}
            for k, e in errors.items():
                worst[k] = max(worst.get(k, (0.0, 0)), (e, seed))
            if bad:
                failing.append(seed)
                print(f"seed {seed}: {', '.join(f'{k} {e:.2g}' for k, e in bad.items())} ({what}) {done.stderr.strip()}", flush=True)
                if args.keep:
                    shutil.copytree(tmp, Path(args.keep) / str(seed), dirs_exist_ok=True)
    print(f"{compared} folders compared, worst error of each stage (its seed):")
    for k, (e, seed) in worst.items():
        print(f"    {k:8} {e:.1e} ({seed})")
    print("failing seeds:", *failing or ["none"])
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
