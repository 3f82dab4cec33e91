"""Stage `export`: what a stage trained as an ordinary diffusers folder in fp16.

    export.py --state DIR --stage nasa --to models/demo
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler

import autoencoder
import model
from run_state import Stage

RECIPES = {"teacher": "demo-teacher"}  # the others are one-step students
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
    "requires_safety_checker": False, "safety_checker": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}


def load(state, stage, painter=None, vae=None):
    """(painter, autoencoder) of a training state, ready to draw; given ones, of other sizes, are filled."""
    painter = painter or model.Painter(model.load_tokenizer(state))
    weights = Stage(state, stage).need()["averaged"]
    if any(k.startswith("student.") for k in weights):  # of variational score distillation
        weights = {k.removeprefix("student."): v for k, v in weights.items() if k.startswith("student.")}
    painter.load_state_dict(weights)
    return painter.eval(), vae or autoencoder.load(state)


def export(state, stage, folder, painter=None, vae=None):
    painter, vae = load(state, stage, painter, vae)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("tokenizer", "text_encoder", "unet", "vae", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)
    painter.text.half().save_pretrained(folder / "text_encoder")
    painter.unet.half().save_pretrained(folder / "unet")
    vae.half().save_pretrained(folder / "vae")
    shutil.copytree(f"{state}/tokenizer", folder / "tokenizer")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
                  timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    made = Stage(state, stage).need()
    (folder / "training.json").write_text(json.dumps({"stage": stage, "samples": made["done"], "begin": made["begin"]}) + "\n")  # for resume.py
    (folder / "steer.json").write_text(json.dumps({"recipe": RECIPES.get(stage, "demo")}) + "\n")


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--state", required=True)
    a.add_argument("--stage", required=True)
    a.add_argument("--to", required=True)
    args = a.parse_args()
    with torch.no_grad():
        export(args.state, args.stage, args.to)
