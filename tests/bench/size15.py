#!/usr/bin/env python3
"""Makes a model folder of Stable Diffusion 1.5's true size with random weights in f16 (2.1 GB): tests/bench/size15.py DIR"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "golden"))
import make  # noqa: E402

folder = Path(sys.argv[1])
torch.manual_seed(0)
tok = make.tokenizer_make(folder / "tokenizer", 77)
text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408,
                                    bos_token_id=49406, eos_token_id=49407))
text.half().save_pretrained(folder / "text_encoder")
del text
UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half().save_pretrained(folder / "unet")
AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512, down_block_types=("DownEncoderBlock2D",) * 4,
              up_block_types=("UpDecoderBlock2D",) * 4).half().save_pretrained(folder / "vae")
DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1).save_pretrained(folder / "scheduler")
(folder / "model_index.json").write_text(json.dumps({
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [None, None],
    "feature_extractor": [None, None], "requires_safety_checker": False}))
(folder / "steer.json").write_text('{"recipe": "sbv2-sd15"}\n')
