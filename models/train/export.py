"""Stage 3: the trained parts as an ordinary diffusers folder in fp16."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from transformers import CLIPTokenizer

import autoencoder
import student
import tokenizer
from run_state import Stage


def load(state):
    """(tokenizer, text encoder, U-Net, autoencoder) of a training state."""
    vae = autoencoder.build()
    vae.load_state_dict(Stage(state, "autoencoder").load()["model"])
    vae = autoencoder.whiten(vae)
    tokenizer.make(f"{state}/tokenizer")
    tok = CLIPTokenizer.from_pretrained(f"{state}/tokenizer")
    text, unet = student.build(tok)
    torch.nn.ModuleDict({"text": text, "unet": unet}).load_state_dict(Stage(state, "student").load()["averaged"])
    return tok, text.eval(), unet.eval(), vae.eval()


def export(state, folder):
    tok, text, unet, vae = load(state)
    folder = Path(folder)
    for part in ("tokenizer", "text_encoder", "unet", "vae", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)
    text.half().save_pretrained(folder / "text_encoder")
    unet.half().save_pretrained(folder / "unet")
    vae.half().save_pretrained(folder / "vae")
    shutil.copytree(f"{state}/tokenizer", folder / "tokenizer")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
                  timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
             "requires_safety_checker": False, "safety_checker": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "steer.json").write_text('{"recipe": "demo"}\n')


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--state", required=True)
    a.add_argument("--to", required=True)
    args = a.parse_args()
    export(args.state, args.to)
