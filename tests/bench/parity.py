#!/usr/bin/env python3
"""Folders that nobody has seen: random models of SD1.5, SD2.1 and SDXL, each stage compared with diffusers and transformers.

    python tests/bench/parity.py [--folders 40] [--seed 1] [--backend cpu|ref] [--precision f32|bf16] [--family sd|sdxl] [--keep DIR]

Wants tests/golden/make.py's versions of torch, diffusers and transformers, and build/bin/steer-worker (or
STEER_BIN_DIR). Each folder comes from its seed alone: widths, depths, heads, block types, activations, odd latent
sizes, storage types, shards, forms of the tokenizer, scheduler classes with any of their keys, methods of guidance.

Errors are norm2(got - want) / norm2(want). A stage is judged on what the worker's stage before it gave, so that one
stage's rounding is not counted again; `latents` and `chain` are the whole way from the seed and may be off by ten
times as much: weights like these enlarge rounding at each step. With --precision bf16 each stage may be off by a few per cent and the last two are not judged.
"""

import argparse
import json
import os
import random
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
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import make
import schedules

BIN = Path(os.environ.get("STEER_BIN_DIR", HERE.parents[2] / "build" / "bin"))
LIMITS = {"f32": 1e-4, "bf16": 5e-2}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def tokenizer(r, folder, length):
    """One of the forms that folders hold; the vocabulary stays within the text encoder's table."""
    tok = make.tokenizer_make(folder, length)
    form = r.choice(["files", "saved", "both", "decoder", "pad"])
    if form in ("saved", "both"):
        if form == "saved":
            shutil.rmtree(folder)
        tok.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if form == "decoder":
        config["added_tokens_decoder"] = {str(len(tok)): dict(content="<sks>", lstrip=False, rstrip=False, normalized=False,
                                                              single_word=False, special=False)}
    if form == "pad":
        config["pad_token"] = "!"
        (folder / "special_tokens_map.json").unlink()
    if r.random() < 0.2:
        config["model_max_length"] = 10**30
    path.write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder), form


def text_encoder(r, tok, length, cls=CLIPTextModel):
    heads = r.choice([1, 2, 3, 5])
    width = heads * r.choice([6, 8, 12, 20])
    return make.lively(cls(CLIPTextConfig(
        vocab_size=len(tok) + r.choice([0, 1, 7]), hidden_size=width, intermediate_size=r.choice([width, 3 * width + 5]),
        num_hidden_layers=r.choice([1, 2, 3]), num_attention_heads=heads, max_position_embeddings=length,
        hidden_act=r.choice(["quick_gelu", "gelu", "gelu_new", "relu", "silu"]), layer_norm_eps=r.choice([1e-5, 1e-6, 1e-3]),
        projection_dim=r.choice([16, 64]), bos_token_id=tok.bos_token_id, eos_token_id=r.choice([2, tok.eos_token_id]))))


def unet(r, channels, text_width, pooled=0):
    blocks = r.choice([1, 2, 3, 4])
    groups = r.choice([1, 2, 4, 8])
    heads = [r.choice([1, 2, 3]) for _ in range(blocks)]
    widths = [groups * h * r.choice([1, 2, 3]) * 2 for h in heads]
    attends = [r.random() < 0.6 for _ in range(blocks)]
    rises = [r.random() < 0.6 for _ in range(blocks)]
    mid = r.choice(["UNetMidBlock2DCrossAttn"] * 4 + ["UNetMidBlock2D", None])
    if mid != "UNetMidBlock2DCrossAttn" and not any(attends + rises):
        attends[0] = True
    more = {}
    if r.random() < 0.2:
        more["time_cond_proj_dim"] = r.choice([16, 33])
    if r.random() < 0.3:
        more["time_embedding_dim"] = r.choice([24, 40])
    if r.random() < 0.2:
        more["reverse_transformer_layers_per_block"] = [r.choice([1, 2]) for _ in range(blocks)]
    if r.random() < 0.3:
        more.update(conv_in_kernel=r.choice([1, 5]), conv_out_kernel=r.choice([1, 5]))
    if r.random() < 0.2:
        more.update(upcast_attention=True, dropout=0.1)
    if pooled:
        sizes = r.choice([4, 7, 16])
        more.update(addition_embed_type="text_time", addition_time_embed_dim=sizes, projection_class_embeddings_input_dim=pooled + 6 * sizes)
    listed = lambda values: list(values) if len(set(values)) > 1 or r.random() < 0.5 else values[0]
    model = UNet2DConditionModel(
        sample_size=r.choice([8, 9, None, (7, 9)]), in_channels=channels, out_channels=channels, block_out_channels=widths,
        layers_per_block=listed([r.choice([1, 2]) for _ in range(blocks)]), norm_num_groups=groups,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in rises], mid_block_type=mid,
        cross_attention_dim=listed([text_width] * blocks), attention_head_dim=listed(heads),
        transformer_layers_per_block=listed([r.choice([1, 1, 2]) for _ in range(blocks)]),
        use_linear_projection=r.random() < 0.5, act_fn=r.choice(["silu", "silu", "swish", "gelu", "relu"]),
        norm_eps=r.choice([1e-5, 1e-6]), flip_sin_to_cos=r.random() < 0.7, freq_shift=r.choice([0, 0, 1]) if widths[0] > 2 else 0,
        **more)
    return make.lively(model)


def vae(r, channels):
    blocks = r.choice([1, 2, 3, 4, 4])
    if r.random() < 0.3:
        width = r.choice([8, 12])
        return make.lively(AutoencoderTiny(
            latent_channels=channels, encoder_block_out_channels=[width] * blocks, decoder_block_out_channels=[width] * blocks,
            num_encoder_blocks=[1] * blocks, num_decoder_blocks=[r.choice([1, 2]) for _ in range(blocks)],
            act_fn=r.choice(["relu", "relu", "silu", "gelu"]), scaling_factor=r.choice([1.0, 0.7])), 0.8)
    groups = r.choice([1, 2, 4])
    return make.lively(AutoencoderKL(
        latent_channels=channels, block_out_channels=[groups * r.choice([2, 3, 4]) for _ in range(blocks)],
        layers_per_block=r.choice([1, 2]), norm_num_groups=groups, down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks, act_fn=r.choice(["silu", "silu", "swish", "gelu", "relu"]),
        scaling_factor=r.choice([0.18215, 0.31, 1.0]), mid_block_add_attention=r.random() < 0.7,
        use_post_quant_conv=r.random() < 0.7, use_quant_conv=r.random() < 0.7, force_upcast=r.random() < 0.5))


def scheduler(r):
    """A class with random keys and a number of steps that diffusers itself can do."""
    while True:
        config, steps = schedules.some(r)
        config["num_train_timesteps"] = 1000
        steps = min(steps, 7)
        # The cosine table begins where rounding is multiplied by 20000; test_sampler has it.
        if config["beta_schedule"] == "squaredcos_cap_v2" or not schedules.follow(config, steps):
            continue
        # These two cut time steps at whole numbers where the last bit of numpy's logarithm decides.
        if config["_class_name"].startswith("DPM") and {"use_exponential_sigmas", "use_lu_lambdas"} & config.keys():
            continue
        cls = schedules.CLASSES[config["_class_name"]]
        return cls.from_config({k: v for k, v in config.items() if k != "_class_name"}), config, steps


def as_pipeline(s):
    """What StableDiffusionPipeline changes in a scheduler of a folder."""
    changed = {k: v for k, v in (("steps_offset", 1), ("clip_sample", False)) if k in s.config}
    return type(s).from_config(s.config, **changed)


def as_pipeline_xl(s):
    """StableDiffusionXLPipeline changes nothing; the folder's file says false, for true is refused."""
    return type(s).from_config(s.config, **({"clip_sample": False} if "clip_sample" in s.config else {}))


def save(r, parts, folder):
    two = "text_encoder_2" in parts
    names = dict(text_encoder="model", unet="diffusion_pytorch_model", vae="diffusion_pytorch_model", **({"text_encoder_2": "model"} if two else {}))
    for name, base in names.items():
        dtype = r.choice(DTYPES)
        parts[name].to(dtype)
        shards = dict(max_shard_size="40KB") if r.random() < 0.3 else {}
        parts[name].save_pretrained(folder / name, **shards)
        parts[name].float()
        whole = folder / name / f"{base}.safetensors"
        if name == "text_encoder" and not two and whole.exists() and r.random() < 0.5:
            other = {("text_model." + k if not k.startswith("text_model.") else k[11:]): v for k, v in load_file(whole).items()}
            save_file(other, whole, metadata={"format": "pt"})
        if whole.exists() and r.random() < 0.2:
            whole.rename(whole.with_name(f"{base}.fp16.safetensors"))
    index = {**parts["index"], "_class_name": "StableDiffusionXLPipeline" if two else "StableDiffusionPipeline", "scheduler": ["diffusers", type(parts["scheduler"]).__name__],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", type(parts["vae"]).__name__],
             "safety_checker": r.choice([[None, None], ["stable_diffusion", "StableDiffusionSafetyChecker"]]),
             "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": r.random() < 0.5}
    if two:
        index.update(text_encoder_2=["transformers", "CLIPTextModelWithProjection"], tokenizer_2=["transformers", "CLIPTokenizer"])
    (folder / "model_index.json").write_text(json.dumps(index))


def make_folder(seed, folder, family):
    r = random.Random(seed)
    torch.manual_seed(seed)
    length = r.choice([8, 13, 24, 77])
    tok, form = tokenizer(r, folder / "tokenizer", length)
    channels = r.choice([4, 4, 3, 8])
    text = text_encoder(r, tok, length)
    sched, config, steps = scheduler(r)
    if family == "sdxl":
        tok_2, _ = tokenizer(r, folder / "tokenizer_2", length)
        for t in (tok, tok_2):  # the pipeline pads to what each says, and both must be the same
            t.model_max_length = length
        for name in ("tokenizer", "tokenizer_2"):
            path = folder / name / "tokenizer_config.json"
            path.write_text(json.dumps(dict(json.loads(path.read_text()), model_max_length=length)))
        text_2 = text_encoder(r, tok_2, length, CLIPTextModelWithProjection)
        parts = dict(tokenizer=tok, tokenizer_2=tok_2, text_encoder=text, text_encoder_2=text_2, vae=vae(r, channels), scheduler=sched,
                     unet=unet(r, channels, text.config.hidden_size + text_2.config.hidden_size, text_2.config.projection_dim),
                     index=dict(force_zeros_for_empty_prompt=r.random() < 0.5))
    else:
        parts = dict(tokenizer=tok, text_encoder=text, unet=unet(r, channels, text.config.hidden_size), vae=vae(r, channels), scheduler=sched,
                     index={})
    save(r, parts, folder)
    (folder / "scheduler").mkdir()
    if family == "sdxl":
        config = dict(config, clip_sample=False)
    if r.random() < 0.3:  # the index names the class; a config from another one is common
        config = dict(config, _class_name="DDIMScheduler")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    multiple = max(8, 2 ** (len(parts["vae"].config.block_out_channels) - 1))
    guidance = r.choice(["none", "none", "nasa", "nag", "vsf"])
    run = dict(prompt=r.choice(["the red cat on a blue Dog!", "a <sks> Cat, 3 dogs \u00e9", "x " * 90]), steps=steps, seed=r.choice([0, 7, 2**32 + 5]),
               size=(multiple * r.choice([1, 3, 5]), multiple * r.choice([1, 2, 4])), guidance=guidance, scheduler=as_pipeline if family == "sd" else as_pipeline_xl,
               alpha=0.3, offset=0.2 if guidance == "vsf" else 0.0, phi=2.5, tau=1.5, beta=0.4,
               **{"guidance-scale": r.choice([1.0, 1.0, 4.5])})
    if guidance != "none" or run["guidance-scale"] != 1.0:
        run["negative"] = "a dog, blurry"
    return parts, run, f"{form}, {type(sched).__name__}, {steps} steps, {guidance}, scale {run['guidance-scale']}"


def render(folder, run, args, out):
    flags = ["--model", folder, "--prompt", run["prompt"], "--negative", run.get("negative", ""), "--guidance", run["guidance"],
             "--guidance-scale", run["guidance-scale"], "--alpha", run["alpha"], "--offset", run["offset"], "--phi", run["phi"],
             "--tau", run["tau"], "--beta", run["beta"], "--steps", run["steps"], "--seed", run["seed"], "--size", "{}x{}".format(*run["size"]),
             "--precision", args.precision, "--threads", "1", "--backend", args.backend, "--output", out.with_suffix(".png"), "--dump-tensors", out]
    if not run.get("negative"):
        flags[4:6] = []
    return subprocess.run([BIN / "steer-worker", "render", *map(str, flags)], capture_output=True, text=True)


def distance(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def compare(parts, run, got):
    """The error of each stage, or a reason why diffusers gives nothing to compare with."""
    want = make.reference(parts, run)
    if not all(torch.isfinite(v).all() for v in want.values() if v.is_floating_point()):
        return None
    errors = {}
    for name in [k for k in want if k.startswith("tokens")]:
        errors["tokens"] = max(errors.get("tokens", 0.0), float(not torch.equal(got[name], want[name])))
    for name in want.keys() & {"text.pos", "text.neg", "pooled.pos", "pooled.neg"}:
        errors["text"] = max(errors.get("text", 0), distance(got[name], want[name]))
    errors["noise"] = float(not torch.equal(got["latents.start"], want["latents.start"]))
    errors["denoise"] = distance(got["denoise.out.0"], want["denoise.out.0"])
    errors["latents"] = distance(got["latents.final"], want["latents.final"])
    v = parts["vae"]
    decoded = v.decode(got["latents.final"][None] / v.config.scaling_factor).sample[0]
    errors["decode"] = distance(got["vae.out"], decoded)
    errors["chain"] = distance(got["vae.out"], want["vae.out"])
    image = ((got["vae.out"] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0)
    errors["image"] = float((image - got["image"]).abs().max() > 0)
    return errors


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folders", type=int, default=40)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--backend", default="cpu")
    p.add_argument("--family", default="sd", choices=("sd", "sdxl"))
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
            errors = compare(parts, run, load_file(out)) if done.returncode == 0 else {"render": 1.0}
            if errors is None:
                print(f"seed {seed}: diffusers has no finite picture ({what})")
                continue
            compared += 1
            judged = errors.keys() - ({"latents", "chain"} if args.precision == "bf16" else set())
            limit = {k: LIMITS[args.precision] * (10 if k in ("latents", "chain") else 1) for k in judged}
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
