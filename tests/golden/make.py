#!/usr/bin/env python3
"""Makes the golden models and tensors of tests/golden: small random weights, and what diffusers 0.42.1,
transformers 5.23 and torch 2.13.0 make of them. Run it in an environment with those versions, and sentencepiece 0.2.3:

    python tests/golden/make.py            what tests/golden/data does not have yet of all cases
    python tests/golden/make.py NAME DIR   one case, elsewhere

Each case is a model folder (model/) and, per run, a file of reference tensors with the names of
`steer-worker render --dump-tensors`, and args.txt: the flags of the run.
"""

import io
import json
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import sentencepiece
import torch
from diffusers import (AutoencoderKL, AutoencoderTiny, DDIMScheduler, DDPMScheduler, DiffusionPipeline,
                       DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler,
                       PixArtTransformer2DModel, PNDMScheduler, StableDiffusionPipeline, TCDScheduler, UNet2DConditionModel)
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2 as spm
from transformers import (CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config,
                          T5EncoderModel, T5Tokenizer)

HERE = Path(__file__).parent


# ---- models ----

def tokenizer_make(folder, length, pad="<|endoftext|>"):
    """Byte-level BPE with a few merges, in CLIP's files."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merges = [("a", "t</w>"), ("c", "at</w>"), ("d", "o"), ("do", "g</w>"), ("t", "h"), ("th", "e</w>"), ("r", "e"),
              ("re", "d</w>"), ("b", "l"), ("bl", "u"), ("blu", "e</w>"), ("o", "n</w>")]
    vocab = {t: i for i, t in enumerate(letters + [l + "</w>" for l in letters] + ["".join(m) for m in merges])}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
               "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}))
    return CLIPTokenizer.from_pretrained(folder)


def charsmap_rules(charsmap):
    """All {source: replacement} of a precompiled normalizer."""
    size, = struct.unpack_from("<I", charsmap)
    units, texts = struct.unpack_from(f"<{size // 4}I", charsmap, 4), charsmap[4 + size:]
    offset = lambda unit: (unit >> 10) << ((unit & 1 << 9) >> 6)
    rules, todo = {}, [(offset(units[0]), b"")]
    while todo:
        at, key = todo.pop()
        for byte in range(1, 256):
            child = at ^ byte
            if child < len(units) and units[child] & (1 << 31 | 255) == byte:
                below = child ^ offset(units[child])
                if units[child] >> 8 & 1:
                    place = units[below] & (1 << 31) - 1
                    rules[(key + bytes([byte])).decode()] = texts[place:texts.index(b"\0", place)].decode()
                todo.append((below, key + bytes([byte])))
    return rules


def spiece_make(texts, kept, **options):
    """A SentencePiece model, its special pieces where T5 has them. Of nmt_nfkc, whose table has 240 kB, the rules that
    kept(source) keeps."""
    def train(**more):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            hard_vocab_limit=False, num_threads=1, minloglevel=2, **options, **more)
        return spm.ModelProto.FromString(model.getvalue())
    rules = charsmap_rules(train().normalizer_spec.precompiled_charsmap)
    codes = lambda text: " ".join(f"{ord(c):x}" for c in text)
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as f:
        f.write("".join(f"{codes(a)}\t{codes(b)}\n" for a, b in sorted(rules.items()) if kept(a)))
        f.flush()
        model = train(normalization_rule_tsv=f.name)
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    return model


CORPUS = ["a red cat on a blue background", "the quick brown dog jumps over the lazy dog", "worst quality, low quality, ugly",
          "a photograph of an astronaut riding a horse", "two cats, one dog and 3 birds!", "caf\u00e9 na\u00efve \u00fcber stra\u00dfe",
          "e.g. 1234567890 (fifty-five) [x] <y>", "a man's best friend isn't a cat", "\u4e2d\u6587 \u65e5\u672c\u8a9e \u041f\u0440\u0438\u0432\u0435\u0442"]


def unigram_make(folder, length):
    """T5's tokenizer in its published files. Of the normalizer's 225,000 rules those are kept that are short and plain, but
    not that U+2581 is a space, which older models do not have."""
    def kept(source):
        plain = all(c < "\u0250" or "\u0300" <= c < "\u0370" or "\u2000" <= c < "\u2600" or "\u3000" <= c < "\u3040" or "\uff00" <= c
                    for c in source)
        return len(source) <= 2 and source != "\u2581" and (plain or source in ("\u1100\u1161", "\u1161\u11a8", "\u0958", "\u1e9b\u0323", "\ufb01"))
    folder.mkdir(parents=True)
    model = spiece_make(CORPUS * 3, kept, vocab_size=200, max_sentencepiece_length=8, user_defined_symbols=["<sks>"])
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "T5Tokenizer", "model_max_length": length, "extra_ids": 100, "eos_token": "</s>", "unk_token": "<unk>",
         "pad_token": "<pad>"}))
    return T5Tokenizer.from_pretrained(folder)


def lively(model, scale=1.0):
    """Random weights that make every branch count: norms away from 1 and 0, biases away from 0."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.3 * scale)
            else:
                p.mul_(1.3 * scale)
    return model.eval()


def text_make(tok, length, width, layers, heads, act, cls=CLIPTextModel, **more):
    return lively(cls(CLIPTextConfig(
        vocab_size=len(tok), hidden_size=width, intermediate_size=2 * width + 8, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=length, hidden_act=act, bos_token_id=tok.bos_token_id,
        pad_token_id=tok.pad_token_id, **{"eos_token_id": tok.eos_token_id, **more})))


CASES = {}


def case(f):
    CASES[f.__name__] = f
    return f


@case
def small(folder):
    """The shape of SD1.5, everything smaller; odd head counts, DDIM."""
    tok = tokenizer_make(folder / "tokenizer", 16)
    return dict(
        tokenizer=tok, text_encoder=text_make(tok, 16, 40, 2, 5, "quick_gelu"),
        unet=lively(UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 24, 32), layers_per_block=2, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=40,
            attention_head_dim=(2, 3, 4))),
        vae=lively(AutoencoderKL(
            block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                                set_alpha_to_one=False, steps_offset=1),
        dtypes=dict(text_encoder=torch.float32, unet=torch.float16, vae=torch.float32))


@case
def odd(folder):
    """Linear projections, two transformers a block, one layer a block, a VAE of 8 channels; v-prediction; PNDM."""
    tok = tokenizer_make(folder / "tokenizer", 13)
    return dict(
        tokenizer=tok, text_encoder=text_make(tok, 13, 24, 3, 3, "gelu"),
        unet=lively(UNet2DConditionModel(
            sample_size=6, block_out_channels=(24, 40), layers_per_block=1, norm_num_groups=4, in_channels=8,
            out_channels=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=24, attention_head_dim=2,
            use_linear_projection=True, transformer_layers_per_block=2, norm_eps=1e-6, flip_sin_to_cos=True)),
        vae=lively(AutoencoderKL(
            block_out_channels=(8, 12, 20, 24), layers_per_block=2, norm_num_groups=4, latent_channels=8,
            scaling_factor=0.31, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4)),
        scheduler=PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
                                set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"),
        dtypes=dict(text_encoder=torch.bfloat16, unet=torch.float16, vae=torch.float32))


@case
def tiny(folder):
    """AutoencoderTiny, LCM, weights in fp16."""
    tok = tokenizer_make(folder / "tokenizer", 20)
    return dict(
        tokenizer=tok, text_encoder=text_make(tok, 20, 32, 2, 4, "quick_gelu"),
        unet=lively(UNet2DConditionModel(
            sample_size=9, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=16,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32,
            attention_head_dim=(1, 2))),
        vae=lively(AutoencoderTiny(encoder_block_out_channels=(16, 16, 16, 16), decoder_block_out_channels=(16, 16, 16, 16),
                                   num_encoder_blocks=(1, 2, 1, 2), num_decoder_blocks=(2, 1, 2, 1)), 0.9),
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                               set_alpha_to_one=True, steps_offset=1, clip_sample=False),
        dtypes=dict(text_encoder=torch.float16, unet=torch.bfloat16, vae=torch.float16))


@case
def consistency(folder):
    """A full LCM checkpoint: the guidance scale is embedded. A tokenizer that is tokenizer.json alone, with a merge that
    begins with #, activations other than SiLU, kernels of 5 and 1, a mid block without attention."""
    tokenizer_make(folder / "made", 18)
    vocab = json.loads((folder / "made" / "vocab.json").read_text())
    vocab["##"] = len(vocab)
    (folder / "made" / "vocab.json").write_text(json.dumps(vocab))
    with open(folder / "made" / "merges.txt", "a") as f:
        f.write("# #\n")
    tok = CLIPTokenizer.from_pretrained(folder / "made")
    shutil.rmtree(folder / "made")
    return dict(
        tokenizer=tok, text_encoder=text_make(tok, 18, 24, 1, 2, "relu"),
        unet=lively(UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 24), layers_per_block=(1, 2), norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24, attention_head_dim=(2, 1), time_cond_proj_dim=20, act_fn="gelu", conv_in_kernel=5,
            conv_out_kernel=1, mid_block_type="UNetMidBlock2D", reverse_transformer_layers_per_block=[2, 1])),
        vae=lively(AutoencoderKL(
            block_out_channels=(8, 8, 8, 12), layers_per_block=1, norm_num_groups=4, latent_channels=4, act_fn="relu",
            use_post_quant_conv=False, use_quant_conv=False, mid_block_add_attention=False,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)),
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                               original_inference_steps=40, steps_offset=1),
        dtypes=dict(text_encoder=torch.float16, unet=torch.float16, vae=torch.bfloat16))


def whisper(model, names, scale):
    """What flows between the named layers is small, so that a norm's epsilon counts."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(n in name for n in names):
                p.mul_(scale)
    return model


@case
def quiet(folder):
    """Activations so small that 1e-6 for 1e-5 in any norm is seen."""
    tok = tokenizer_make(folder / "tokenizer", 16)
    unet = lively(UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 24), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24, attention_head_dim=(2, 3)))
    vae = lively(AutoencoderKL(
        block_out_channels=(8, 8, 8, 12), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4))
    return dict(
        tokenizer=tok, text_encoder=text_make(tok, 16, 24, 1, 2, "quick_gelu"),
        unet=whisper(unet, ("conv_in", "conv1", "conv2", "conv_shortcut", "proj_in", "attn1.to_out", "samplers", "time_emb_proj"), 0.03),
        vae=whisper(vae, ("conv_in", "conv1", "conv2", "conv_shortcut", "to_out", "samplers", "post_quant_conv"), 0.03),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        dtypes=dict(text_encoder=torch.float16, unet=torch.float32, vae=torch.float32))


@case
def second(folder):
    """The shape of SD2.1: padded with "!", gelu, linear projections, head counts that differ, v-prediction."""
    tok = tokenizer_make(folder / "tokenizer", 17, pad="!")
    return dict(
        tokenizer=tok, text_encoder=text_make(tok, 17, 40, 3, 5, "gelu", projection_dim=24),
        unet=lively(UNet2DConditionModel(
            sample_size=12, block_out_channels=(12, 18, 30), layers_per_block=(2, 1, 1), norm_num_groups=6,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=40,
            attention_head_dim=[2, 3, 5], use_linear_projection=True, upcast_attention=True)),
        vae=lively(AutoencoderKL(
            block_out_channels=(8, 8, 12, 12), layers_per_block=1, norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                                set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"),
        dtypes=dict(text_encoder=torch.float16, unet=torch.bfloat16, vae=torch.float16))


def xl_make(folder, length, widths, projection, eos, unet, scheduler, dtype, pad="!"):
    """The shape of SDXL. eos: what text_encoder_2's configuration says, 2 before it was corrected."""
    one = tokenizer_make(folder / "tokenizer", length)
    two = tokenizer_make(folder / "tokenizer_2", length, pad)
    sizes = 6 * unet["addition_time_embed_dim"]
    return dict(
        tokenizer=one, tokenizer_2=two,
        text_encoder=text_make(one, length, widths[0], 3, 3, "quick_gelu", projection_dim=16),
        text_encoder_2=text_make(two, length, widths[1], 2, 4, "gelu", CLIPTextModelWithProjection,
                                 projection_dim=projection, eos_token_id=eos or two.eos_token_id),
        unet=lively(UNet2DConditionModel(
            norm_num_groups=4, cross_attention_dim=sum(widths), addition_embed_type="text_time",
            projection_class_embeddings_input_dim=projection + sizes, use_linear_projection=True, **unet)),
        vae=lively(AutoencoderKL(
            block_out_channels=(8, 8, 8, 12), layers_per_block=1, norm_num_groups=4, latent_channels=4,
            scaling_factor=0.13025, force_upcast=True,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)),
        scheduler=scheduler, dtypes=dict(text_encoder=dtype, text_encoder_2=dtype, unet=dtype, vae=dtype))


EULER_XL = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading")


@case
def xl(folder):
    """SDXL: no attention in the first block, deeper and deeper transformers, the legacy eos_token_id."""
    return xl_make(folder, 14, (24, 32), 20, 2, dict(
        sample_size=8, block_out_channels=(8, 12, 20), layers_per_block=(2, 1, 1), transformer_layers_per_block=[1, 2, 3],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=[2, 3, 5],
        addition_time_embed_dim=8), EulerDiscreteScheduler(**EULER_XL), torch.float16)


@case
def xl_odd(folder):
    """SDXL with zeros for nothing, today's eos_token_id, odd sizes of embeddings, gelu, cosine before sine; no XL default."""
    parts = xl_make(folder, 11, (12, 40), 9, None, dict(
        sample_size=(9, 7), block_out_channels=(12, 20), layers_per_block=1, transformer_layers_per_block=[2, 1],
        reverse_transformer_layers_per_block=[3, 1], down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=[3, 5],
        addition_time_embed_dim=7, flip_sin_to_cos=False, act_fn="gelu", time_embedding_dim=36),
        EulerDiscreteScheduler(**EULER_XL, prediction_type="v_prediction"), torch.bfloat16, pad="<|endoftext|>")
    return dict(parts, index=dict(force_zeros_for_empty_prompt=False))


def pixart_make(folder, dtype, width, transformer, **t5):
    """The shape of PixArt-alpha: T5 and a transformer over patches, with the scheduler of its published folders."""
    tok = unigram_make(folder / "tokenizer", 120)
    config = T5Config(vocab_size=len(tok), d_model=width, num_layers=2, feed_forward_proj="gated-gelu", **t5)
    denoiser = lively(PixArtTransformer2DModel(**transformer), 0.8)
    if denoiser.caption_projection:  # where gelu and its approximation part
        with torch.no_grad():
            denoiser.caption_projection.linear_1.weight.mul_(4)
            denoiser.caption_projection.linear_2.weight.mul_(2)
    return dict(
        tokenizer=tok, text_encoder=lively(T5EncoderModel(config), 0.8), transformer=denoiser,
        vae=lively(AutoencoderKL(
            block_out_channels=(8, 8, 8, 12), layers_per_block=1, norm_num_groups=4, latent_channels=transformer.get("in_channels", 4),
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
        dtypes=dict(text_encoder=dtype, transformer=dtype, vae=dtype), index=dict(_class_name="PixArtAlphaPipeline"))


@case
def pixart(folder):
    """PixArt-alpha 512: not told the picture's size; the transformer under its class's old name."""
    parts = pixart_make(folder, torch.float16, 20, dict(
        num_attention_heads=4, attention_head_dim=9, num_layers=3, cross_attention_dim=36, caption_channels=20, sample_size=10),
        d_kv=5, d_ff=28, num_heads=3)
    return dict(parts, index=dict(parts["index"], transformer=["diffusers", "Transformer2DModel"]))


@case
def pixart_ms(folder):
    """PixArt-alpha 1024: told the picture's sizes, positions two to a whole number."""
    return pixart_make(folder, torch.bfloat16, 24, dict(
        num_attention_heads=2, attention_head_dim=18, num_layers=2, cross_attention_dim=36, caption_channels=24, sample_size=128),
        d_kv=8, d_ff=36, num_heads=4)


@case
def pixart_odd(folder):
    """What no published folder says: patches of 3, no projection of captions, norms with weights, attention without biases,
    gelu, no variance."""
    return pixart_make(folder, torch.float16, 14, dict(
        num_attention_heads=3, attention_head_dim=8, num_layers=1, cross_attention_dim=14, caption_channels=None, sample_size=9,
        patch_size=3, in_channels=5, out_channels=None, norm_elementwise_affine=True, attention_bias=False, activation_fn="gelu",
        interpolation_scale=1.5, norm_eps=1e-3, use_additional_conditions=True), d_kv=6, d_ff=20, num_heads=2)


CLASSES = {c.__name__: c for c in (T5Tokenizer, T5EncoderModel, PixArtTransformer2DModel, DPMSolverMultistepScheduler,
                                   CLIPTokenizer, CLIPTextModel, CLIPTextModelWithProjection, UNet2DConditionModel, AutoencoderKL,
                                   AutoencoderTiny, DDIMScheduler, PNDMScheduler, LCMScheduler, EulerDiscreteScheduler)}
CLASSES["Transformer2DModel"] = PixArtTransformer2DModel  # its name once


def model_load(folder):
    """What model_save left, as the folder's reader would open it."""
    index = json.loads((folder / "model_index.json").read_text())
    parts = {k: CLASSES[v[1]].from_pretrained(folder / k) for k, v in index.items() if isinstance(v, list) and v[1]}
    parts = {k: p.float().eval() if hasattr(p, "float") else p for k, p in parts.items()}
    return dict(parts, index=index)


def model_save(parts, folder):
    for name, dtype in parts["dtypes"].items():
        parts[name].to(dtype).save_pretrained(folder / name)
        parts[name].float()  # the reference computes in f32 with what the file holds
    two = "text_encoder_2" in parts
    index = {"_class_name": "StableDiffusionXLPipeline" if two else "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
             "feature_extractor": [None, None]}
    index.update({"image_encoder": [None, None]} if two else {"requires_safety_checker": False, "safety_checker": [None, None]})
    for name in sorted(parts.keys() - {"dtypes", "index"}):
        if name not in parts["dtypes"] and not isinstance(parts[name], T5Tokenizer):  # its files are there
            parts[name].save_pretrained(folder / name)
        library = "transformers" if name.startswith(("text", "token")) else "diffusers"
        index[name] = [library, type(parts[name]).__name__.removesuffix("Fast")]
    index.update(parts.get("index", {}))
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


# ---- guidance in attention, written from docs/guidance.md independently of the engine ----

class Guided:
    """An attention processor: cross-attention under a method, on diffusers' own modules."""

    def __init__(self, state):
        self.state = state

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        s, x = self.state, hidden_states
        heads = attn.heads
        context = x if encoder_hidden_states is None else encoder_hidden_states
        split = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2)
        q, k, v = (split(f(c)) for f, c in ((attn.to_q, x), (attn.to_k, context), (attn.to_v, context)))
        logits = lambda k, mask: q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + (0 if mask is None else mask)
        z = logits(k, attention_mask).softmax(-1) @ v
        if encoder_hidden_states is not None and s["method"] != "none":
            kn, vn = split(attn.to_k(s["negative"])), split(attn.to_v(s["negative"]))
            mask_n = s["negative_mask"]
            zn = logits(kn, mask_n).softmax(-1) @ vn
            if s["method"] == "nasa":
                z = z - s["alpha"] * zn
            elif s["method"] == "vsf":
                both = torch.cat([logits(k, attention_mask), logits(kn, mask_n) - s["offset"]], -1).softmax(-1)
                z = both @ torch.cat([v, -s["alpha"] * vn], 2)
            elif s["method"] == "nag":
                flat = lambda t: t.transpose(1, 2).flatten(2)
                zp, t = flat(z), flat(z + s["phi"] * (z - zn))
                ratio = t.abs().sum(-1, True) / (zp.abs().sum(-1, True) + 1e-6)
                t = t * torch.where(ratio > s["tau"], s["tau"] / ratio, torch.ones_like(ratio))
                z = split(s["beta"] * t + (1 - s["beta"]) * zp)
        return attn.to_out[0](z.transpose(1, 2).flatten(2))


# ---- texts; long and weighed ones, written from what A1111's web UI does, on explicit pieces ----

BREAK = None


def chunked(tok, pieces, room):
    """Lists of (id, weight), one a chunk. pieces: (text, weight), or BREAK."""
    comma = tok.convert_tokens_to_ids(",</w>")
    chunks, groups = [], [[]]
    for piece in pieces:
        groups.append([]) if piece is BREAK else groups[-1].append(piece)
    for group in groups:
        rest = [(i, weight) for text, weight in group for i in tok(text, add_special_tokens=False).input_ids]
        torn = False  # a comma that did not fit before is not seen as one
        while len(rest) > room:
            commas = [i for i in range(room) if rest[i][0] == comma and not (torn and i == 0)]
            torn = rest[room][0] == comma
            at = commas[-1] + 1 if commas and not torn and room - commas[-1] <= 20 else room
            chunks.append(rest[:at])
            rest = rest[at:]
        chunks.append(rest)
    return chunks


def chunks_of(tok, prompt, pieces, length):
    """(ids, weights) of each chunk. pieces None: the prompt as it is, cut."""
    if pieces is None:
        ids = tok(prompt or "", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return [(ids, torch.ones(length))]
    made = []
    for chunk in chunked(tok, pieces, length - 2):
        padding = length - 2 - len(chunk)
        ids = [tok.bos_token_id] + [i for i, _ in chunk] + [tok.eos_token_id] + [tok.pad_token_id] * padding
        made.append((torch.tensor([ids]), torch.tensor([1.0] + [w for _, w in chunk] + [1.0] * (padding + 1))))
    return made


def weighed(z, weights):
    y = z * weights[None, :, None]
    return y * (z.mean() / y.mean())


def text_sd(parts, prompt, pieces, name, out):
    """SD1.5's and SD2.1's embedding, and what the denoiser is told besides: nothing."""
    tok, text = parts["tokenizer"], parts["text_encoder"]
    chunks = chunks_of(tok, prompt, pieces, min(tok.model_max_length, text.config.max_position_embeddings))
    out[f"tokens.{name}"] = torch.cat([ids[0] for ids, _ in chunks]).int()
    states = torch.cat([weighed(text(ids).last_hidden_state, weights) for ids, weights in chunks], 1)
    out[f"text.{name}"] = states[0]
    return states, None


def text_xl(parts, prompt, pieces, name, out):
    """SDXL's: both encoders' last states but one, and the second's projected pooled state of the first chunk."""
    zeros = prompt is None and parts["index"].get("force_zeros_for_empty_prompt", True)
    states, pooled = [], None
    for suffix in ("", "_2"):
        tok, text = parts["tokenizer" + suffix], parts["text_encoder" + suffix]
        chunks = chunks_of(tok, prompt, pieces, tok.model_max_length)
        if not zeros:
            out[f"tokens{suffix}.{name}"] = torch.cat([ids[0] for ids, _ in chunks]).int()
        got = [text(ids, output_hidden_states=True) for ids, _ in chunks]
        states.append(torch.cat([weighed(g.hidden_states[-2], weights) for g, (_, weights) in zip(got, chunks)], 1))
        pooled = got[0][0]
    states = torch.cat(states, -1)
    if zeros:
        states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
    out[f"text.{name}"], out[f"pooled.{name}"] = states[0], pooled[0]
    return states, pooled


def t5_weighed(tok, encode, pieces, length):
    """Ids and states of a weighed text, as ComfyUI weighs T5's: about what the empty text is at the same place."""
    pad = lambda ids: torch.tensor([ids + [tok.eos_token_id] + [tok.pad_token_id] * (length - 1 - len(ids))])
    tokens = [(i, w) for text, w in pieces for i in tok(text, add_special_tokens=False).input_ids][:length - 1]
    ids, weights = pad([i for i, _ in tokens]), torch.ones(length)
    weights[:len(tokens)] = torch.tensor([w for _, w in tokens])
    z, e = encode(ids), encode(pad([]))
    return ids, e + weights[None, :, None] * (z - e)


def text_pixart(parts, prompt, pieces, name, out):
    """PixArt's, and the mask that T5 and the cross-attention have."""
    tok, text = parts["tokenizer"], parts["text_encoder"]
    encode = lambda ids: text(ids, attention_mask=(ids != tok.pad_token_id).long()).last_hidden_state
    if pieces:
        ids, states = t5_weighed(tok, encode, [(t.lower().strip(), w) for t, w in pieces], 120)
    else:
        (ids, _), = chunks_of(tok, (prompt or "").lower().strip(), None, 120)
        states = encode(ids)
    mask = ids != tok.pad_token_id
    out[f"tokens.{name}"] = ids[0].int()
    out[f"text.{name}"] = states[0]
    return states, torch.where(mask, 0.0, -torch.inf)[:, None]


def reference(parts, run):
    """The tensors of one run. The pipeline's own loop, step by step."""
    pixart = "transformer" in parts
    unet, vae = parts["transformer" if pixart else "unet"], parts["vae"]
    two = "text_encoder_2" in parts
    out = {}
    encode = text_pixart if pixart else text_xl if two else text_sd
    pos, pooled = encode(parts, run["prompt"], run.get("pieces.pos"), "pos", out)
    neg, pooled_neg = encode(parts, run.get("negative"), run.get("pieces.neg"), "neg", out)
    if not run.get("text", True):
        del out["text.pos"], out["text.neg"]
    seen = unet.caption_projection(neg) if pixart and unet.caption_projection else neg
    state = dict(method=run.get("guidance", "none"), negative=seen, negative_mask=pooled_neg[:, None] if pixart else None,
                 alpha=run.get("alpha", 0.1),
                 offset=run.get("offset", 0.0), phi=run.get("phi", 2), tau=run.get("tau", 2.5), beta=run.get("beta", 0.375))
    unet.set_attn_processor(Guided(state))
    scale = run.get("guidance-scale", 1.0)
    w, h = run["size"]
    generator = torch.Generator("cpu").manual_seed(run["seed"])
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn(1, unet.config.in_channels, h // factor, w // factor, generator=generator)
    scheduler = run["scheduler"](parts["scheduler"])
    if "mean" in parts and "steps" in run:  # an informed start
        scheduler.set_timesteps(run["steps"])
        latents = scheduler.add_noise(parts["mean"].expand_as(latents), latents, scheduler.timesteps[:1])
    out["latents.start"] = latents[0].clone()
    condition = None
    if not pixart and unet.config.time_cond_proj_dim:  # as StableDiffusionPipeline: the scale is embedded and there is one pass
        condition = StableDiffusionPipeline.get_guidance_scale_embedding(
            None, torch.tensor([scale - 1]), unet.config.time_cond_proj_dim)

    def call(x, t, text, pooled):
        if pixart:
            added = dict(resolution=torch.tensor([[h, w]], dtype=torch.float32), aspect_ratio=torch.tensor([[h / w]]))
            return unet(x, text, t[None], added, encoder_attention_mask=pooled).sample[:, :unet.config.in_channels]
        added = dict(text_embeds=pooled, time_ids=torch.tensor([[h, w, 0, 0, h, w]], dtype=torch.float32)) if two else None
        return unet(x, t, text, timestep_cond=condition, added_cond_kwargs=added).sample

    def denoise(x, t, first):
        y = call(x, t, pos, pooled)
        if scale != 1.0 and condition is None:
            state.update(method="none")
            minus = call(x, t, neg, pooled_neg)
            state.update(method=run.get("guidance", "none"))
            y = minus + scale * (y - minus)
        if first:
            out["denoise.out.0"] = y[0].clone()
        return y

    if run.get("flow"):
        latents = latents + denoise(latents, torch.tensor(1000.0), True)
    elif run.get("at"):  # the multi-step students' rule: from x0 to the next time step with fresh noise
        for i, t in enumerate(run["at"]):
            abar = torch.tensor(run["abar"]) if "abar" in run else scheduler.alphas_cumprod[t]
            y = denoise(latents, torch.tensor(t), i == 0)
            if scheduler.config.prediction_type == "v_prediction":
                latents = abar**0.5 * latents - (1 - abar) ** 0.5 * y
            else:
                latents = (latents - (1 - abar) ** 0.5 * y) / abar**0.5
            if i + 1 < len(run["at"]):
                to = scheduler.alphas_cumprod[run["at"][i + 1]]
                latents = to**0.5 * latents + (1 - to) ** 0.5 * torch.randn(latents.shape, generator=generator)
    else:
        scheduler.set_timesteps(run["steps"])
        latents = latents * (1.0 if "mean" in parts else scheduler.init_noise_sigma)
        noisy = isinstance(scheduler, (LCMScheduler, TCDScheduler, EulerAncestralDiscreteScheduler))
        kwargs = {"generator": generator} if noisy else {}
        if isinstance(scheduler, TCDScheduler):
            kwargs["eta"] = run.get("eta", 0.0)  # what pipelines say where nobody else does
        for i, t in enumerate(scheduler.timesteps):
            y = denoise(scheduler.scale_model_input(latents, t), t, i == 0)
            step = scheduler.step(y, t, latents, return_dict=False, **kwargs)
            latents = step[0]
    out["latents.final"] = latents[0]
    z = latents / vae.config.scaling_factor
    if vae.config.get("latents_mean"):
        mean, std = (torch.tensor(vae.config[k]).view(1, -1, 1, 1) for k in ("latents_mean", "latents_std"))
        z = z * std + mean
    decoded = vae.decode(z).sample
    out["vae.out"] = decoded[0]
    out["image"] = ((decoded[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).to(torch.uint8)
    return {k: v.contiguous() for k, v in out.items()}


def by_pipeline(folder, run, start, vae):
    """The image of diffusers' own pipeline from the folder with that VAE, given the same latents."""
    pipe = DiffusionPipeline.from_pretrained(folder, vae=vae).to(dtype=torch.float32)
    pipe.scheduler = run["scheduler"](pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    w, h = run["size"]
    more = dict(timesteps=run["at"]) if "at" in run else dict(num_inference_steps=run["steps"])
    negative = run.get("negative")
    if run.get("drawn"):  # schedulers that draw noise go on where the latents' drawing ended
        more["generator"], start = torch.Generator("cpu").manual_seed(run["seed"]), None
    if hasattr(pipe, "transformer"):  # PixArt's negative is never absent
        more["use_resolution_binning"], negative = False, negative or ""
    image = pipe(run["prompt"], negative_prompt=negative, guidance_scale=run.get("guidance-scale", 1.0), width=w, height=h,
                 latents=None if start is None else start[None].clone(), output_type="np", **more).images[0]
    return torch.from_numpy((image * 255).round()).to(torch.uint8).contiguous()


own = lambda s: s
SD = dict(prompt="the red cat on the blue Dog", negative="a dog, blurry", size=(64, 64), seed=7, scheduler=own)
DDIM = lambda s: DDIMScheduler.from_config(s.config, clip_sample=False, steps_offset=1)
DPM = lambda s: DPMSolverMultistepScheduler.from_config(s.config, steps_offset=1, timestep_spacing="linspace")
EULER = lambda s: EulerDiscreteScheduler.from_config(s.config, steps_offset=1, timestep_spacing="leading")
TRAILING = lambda s: EulerDiscreteScheduler.from_config(s.config, timestep_spacing="trailing")

AS_IT_IS = dict(SD, guidance="none", scheduler=own, whole=True)
ZEROED = lambda s: EulerDiscreteScheduler.from_config(s.config, timestep_spacing="trailing", prediction_type="sample")
LCM = lambda s: LCMScheduler.from_config(s.config)
TCD = lambda s: TCDScheduler.from_config(s.config)
ANCESTRAL = lambda s: EulerAncestralDiscreteScheduler.from_config(s.config, steps_offset=1, timestep_spacing="leading")
YOSO = dict(SD, recipe="yoso-sd15", scheduler=LCM, size=(64, 64))
LONG = dict(SD, scheduler=DDIM, **{"long-prompt": "chunk"})
CHUNKED = "the red cat on the blue dog, a cat on the red blue dog the cat the dog the cat, the dog, red on the cat"
DDPM = lambda s: DDPMScheduler.from_config(s.config, clip_sample=False)
DDPM_V = lambda s: DDPMScheduler.from_config(s.config, clip_sample=False, prediction_type="v_prediction")
PHRASE = "the red Cat on the blue dog, "
PIXART = dict(SD, prompt="  The RED cat on \u0391\u03a3 the blue Dog! ", recipe="pixart", text=False)
PIXART_WHOLE = dict(PIXART, guidance="none", whole=True, negative=None)

RUNS = {
    "small": {
        "ddim": dict(SD, recipe="ddim", steps=3, guidance="none", scheduler=DDIM, negative=None),
        "cfg": dict(SD, recipe="ddim", steps=2, guidance="none", scheduler=DDIM, **{"guidance-scale": 4.0}),
        "euler": dict(SD, recipe="euler", steps=4, guidance="nasa", alpha=0.2, scheduler=EULER),
        "dpm": dict(SD, recipe="dpmsolver++", steps=5, guidance="vsf", alpha=0.5, offset=0.3, scheduler=DPM),
        "trailing": dict(SD, recipe="euler-trailing", steps=2, guidance="nag", phi=3, tau=1.2, beta=0.4,
                         scheduler=TRAILING, size=(104, 72)),
        "instaflow": dict(SD, recipe="instaflow", steps=1, flow=True, guidance="nasa", alpha=0.3, seed=2**32 + 5),
        "sbv2": dict(SD, recipe="sbv2-sd15", steps=1, at=[999], guidance="nasa", alpha=0.1, size=(8, 24), seed=3),
        "dpm20": dict(SD, recipe="dpmsolver++", steps=20, guidance="none", scheduler=DPM, negative=None, size=(40, 40)),
        "ancestral": dict(SD, recipe="euler-ancestral", steps=3, guidance="nasa", alpha=0.2, scheduler=ANCESTRAL, size=(40, 24)),
        "yoso-cfg": dict(AS_IT_IS, recipe="yoso-sd15", steps=2, scheduler=LCM, drawn=True, negative=None, size=(40, 24),
                         **{"guidance-scale": 1.5}),
        "euler1": dict(SD, recipe="euler", steps=1, guidance="nasa", alpha=0.2, scheduler=EULER, size=(40, 24)),
        "dmd2": dict(SD, recipe="dmd2-sd15", steps=1, at=[999], abar=0.0047, guidance="nasa", alpha=0.04, size=(40, 24)),
        "nag-cfg": dict(SD, recipe="ddim", steps=2, guidance="nag", phi=2, tau=1.5, beta=0.4, scheduler=DDIM, size=(40, 24),
                        **{"guidance-scale": 3.0}),
        "vsf-cfg": dict(SD, recipe="ddim", steps=2, guidance="vsf", alpha=0.6, offset=0.1, scheduler=DDIM, size=(24, 40),
                        **{"guidance-scale": 3.0}),
        "both": dict(SD, recipe="ddim", steps=2, guidance="nasa", alpha=0.4, scheduler=DDIM, **{"guidance-scale": 3.0}),
        # Three chunks of 14 tokens, the first ended by a comma, the second full; the negative text is one.
        "chunk": dict(LONG, prompt=CHUNKED, recipe="ddim", steps=1, guidance="nasa", alpha=0.3, size=(40, 24),
                      **{"pieces.pos": [(CHUNKED, 1.0)], "pieces.neg": [(SD["negative"], 1.0)]}),
        "a1111": dict(LONG, prompt=r"(the red cat:1.4) on [the blue] \(dog\) BREAK ((a dog (red:0.5))), (cat", recipe="ddim", steps=1,
                      guidance="vsf", alpha=0.5, size=(40, 24), negative="blue (dog:-0.5)", **{
                          "prompt-syntax": "a1111", "pieces.neg": [("blue ", 1.0), ("dog", -0.5)], "pieces.pos": [
                              ("the red cat", 1.4), (" on ", 1.0), ("the blue", 1 / 1.1), (" (dog)", 1.0), BREAK, ("a dog ", 1.21),
                              ("red", 0.605), (", ", 1.0), ("cat", 1.1)]}),
        "long-cfg": dict(LONG, prompt="(a red cat:1.3)", recipe="ddim", steps=2, guidance="nag", phi=2, tau=1.5, beta=0.4,
                         size=(40, 24), negative="a blue dog BREAK the (red) dog", **{
                             "prompt-syntax": "a1111", "guidance-scale": 3.0, "pieces.pos": [("a red cat", 1.3)],
                             "pieces.neg": [("a blue dog", 1.0), BREAK, ("the ", 1.0), ("red", 1.1), (" dog", 1.0)]}),
        "weights": dict(LONG, prompt="(((the cat))) [[on]] (the red:1.2) dog", recipe="ddim", steps=1, guidance="none", negative=None,
                        size=(40, 24), **{"long-prompt": "cut", "prompt-syntax": "a1111", "pieces.pos": [
                            ("the cat", 1.331), (" ", 1.0), ("on", 1 / 1.21), (" ", 1.0), ("the red", 1.2), (" dog", 1.0)],
                            "pieces.neg": [("", 1.0)]}),
    },
    "yoso": {
        "two-cfg": dict(YOSO, steps=2, guidance="nasa", alpha=0.2, told=("recipe", "alpha", "guidance", "guidance-scale", "steps"),
                        **{"guidance-scale": 1.5}),
        "one": dict(YOSO, steps=1, guidance="none", negative=None, **{"guidance-scale": 1.0}),
    },
    "odd": {
        "pndm": dict(SD, recipe="sd15", steps=6, guidance="nasa", alpha=0.2),
        "v-euler": dict(SD, recipe="euler", steps=3, guidance="nasa", alpha=0.2, scheduler=EULER, size=(40, 24)),
        "v-dpm": dict(SD, recipe="dpmsolver++", steps=4, guidance="nasa", alpha=0.2, scheduler=DPM, size=(24, 40)),
        "pndm-cfg": dict(SD, recipe="sd15", steps=4, guidance="none", size=(72, 104), **{"guidance-scale": 7.5}),
    },
    "tiny": {
        "lcm": dict(SD, recipe="lcm", steps=4, guidance="nag", phi=2, tau=2.5, beta=0.375, size=(72, 72)),
        "tcd": dict(SD, recipe="tcd", steps=3, eta=0.3, guidance="nasa", alpha=0.1, scheduler=TCD, size=(24, 40)),
        "lcm1": dict(SD, recipe="lcm", steps=1, guidance="nasa", alpha=0.1, size=(24, 40)),
    },
    "quiet": {
        "ddim": dict(SD, recipe="ddim", steps=1, guidance="nasa", alpha=0.3, scheduler=DDIM, size=(40, 24)),
    },
    "second": {
        "teacher-cfg": dict(AS_IT_IS, recipe="sd21", steps=3, size=(104, 72), **{"guidance-scale": 7.5}),
        "plain": dict(AS_IT_IS, recipe="sd21", steps=2, size=(24, 40), negative=None),
        "sbv2": dict(SD, recipe="sbv2-sd21", steps=1, at=[999], guidance="nasa", alpha=0.3, size=(40, 24), told=("alpha",)),
        "turbo": dict(SD, recipe="euler-trailing", steps=2, guidance="nasa", alpha=0.2, scheduler=TRAILING, size=(40, 40), told=("alpha",)),
        "vsf": dict(SD, recipe="ddim", steps=1, guidance="vsf", alpha=0.4, offset=0.2, scheduler=DDIM, size=(40, 24)),
    },
    "xl": {
        "teacher-cfg": dict(AS_IT_IS, recipe="sdxl", steps=3, size=(104, 72), **{"guidance-scale": 5.0}),
        "absent-cfg": dict(AS_IT_IS, recipe="sdxl", steps=2, size=(40, 24), negative=None, **{"guidance-scale": 5.0}),
        "empty-cfg": dict(AS_IT_IS, recipe="sdxl", steps=2, size=(40, 24), negative="", **{"guidance-scale": 5.0}),
        "plain": dict(AS_IT_IS, recipe="sdxl", steps=1, size=(24, 40), negative=None),
        "dmd2": dict(SD, recipe="dmd2-sdxl-1step", steps=1, at=[399], guidance="nasa", alpha=0.5, size=(40, 56), told=("alpha",)),
        "dmd2-4": dict(SD, recipe="dmd2-sdxl-4step", steps=4, at=[999, 749, 499, 249], guidance="nasa", alpha=0.5, size=(40, 24),
                       told=("alpha",)),
        "dmd2-cfg": dict(AS_IT_IS, recipe="dmd2-sdxl-1step", steps=1, at=[399], size=(24, 24), scheduler=LCM,
                         **{"guidance-scale": 1.5}),
        "lightning": dict(SD, recipe="euler-trailing", steps=2, guidance="nag", phi=2, tau=2.5, beta=0.5, scheduler=TRAILING,
                          size=(24, 56), told=("phi", "tau", "beta")),
        "lightning-1": dict(SD, recipe="sdxl-lightning-1step", steps=1, guidance="nasa", alpha=0.5, scheduler=ZEROED, size=(24, 24),
                            told=("alpha",)),
        "vsf": dict(SD, recipe="sdxl", steps=1, guidance="vsf", alpha=0.5, offset=0.1, size=(40, 40)),
        "both-cfg": dict(SD, recipe="sdxl", steps=2, guidance="nasa", alpha=0.4, size=(24, 24), **{"guidance-scale": 3.0}),
        "chunk-cfg": dict(SD, recipe="sdxl", steps=1, guidance="nasa", alpha=0.4, size=(40, 24), prompt="(red (cat:1.2)) BREAK the [dog]",
                          negative="(blue:0.5)", **{
                              "long-prompt": "chunk", "prompt-syntax": "a1111", "guidance-scale": 3.0, "pieces.neg": [("blue", 0.5)],
                              "pieces.pos": [("red ", 1.1), ("cat", 1.32), BREAK, ("the ", 1.0), ("dog", 1 / 1.1)]}),
    },
    "xl_norm": {
        "plain": dict(AS_IT_IS, recipe="sdxl", steps=1, size=(24, 40), negative=None),
    },
    "xl_odd": {
        "absent-cfg": dict(AS_IT_IS, recipe="sdxl", steps=2, size=(72, 40), negative=None, **{"guidance-scale": 4.0}),
        "long": dict(SD, recipe="sdxl", steps=1, guidance="nasa", alpha=0.5, size=(56, 72),
                     prompt="the red cat on the blue Dog, the red cat on the blue Dog", told=("alpha",)),
    },
    "pixart": {
        "teacher-cfg": dict(PIXART_WHOLE, steps=4, size=(64, 48), negative="A dog, blurry", told=("guidance", "guidance-scale"),
                            text=True, **{"guidance-scale": 4.5}),
        "plain": dict(PIXART_WHOLE, steps=2, size=(32, 48), **{"guidance-scale": 1.0}),
        "yoso": dict(PIXART_WHOLE, recipe="yoso-pixart", steps=1, at=[999], size=(80, 80), scheduler=DDPM_V),
        "dmd": dict(PIXART_WHOLE, recipe="dmd-pixart", steps=1, at=[400], size=(48, 32), scheduler=DDPM),
        "dmd-nasa": dict(PIXART, recipe="dmd-pixart", steps=1, at=[400], guidance="nasa", alpha=0.45, size=(32, 64),
                         told=("alpha",)),
        "sbv2": dict(PIXART, recipe="sbv2-pixart", steps=1, at=[400], guidance="nasa", alpha=0.5, size=(32, 48),
                     told=("alpha", "guidance")),
        "nag": dict(PIXART, recipe="sbv2-pixart", steps=1, at=[400], guidance="nag", phi=4, tau=2.5, beta=0.375, size=(48, 48),
                    told=("phi", "tau", "beta")),
        "vsf": dict(PIXART, recipe="sbv2-pixart", steps=1, at=[400], guidance="vsf", alpha=0.5, offset=0.2, size=(48, 32),
                    negative="a dog, blurry, worst quality, low quality, ugly"),
        "both-cfg": dict(PIXART, steps=2, guidance="nasa", alpha=0.4, size=(48, 48), **{"guidance-scale": 3.0}),
        "weights": dict(PIXART, recipe="dmd-pixart", steps=1, at=[400], guidance="nasa", alpha=0.45, size=(32, 48), text=True,
                        prompt="The (RED Cat:1.5) on [the blue], Dog", negative="((blurry)) dog (ugly:-0.5)", **{
                            "prompt-syntax": "a1111",
                            "pieces.pos": [("The ", 1.0), ("RED Cat", 1.5), (" on ", 1.0), ("the blue", 1 / 1.1), (", Dog", 1.0)],
                            "pieces.neg": [("blurry", 1.21), (" dog ", 1.0), ("ugly", -0.5)]}),
        "weights-long": dict(PIXART, recipe="dmd-pixart", steps=1, at=[400], guidance="none", negative=None, size=(32, 48), text=True,
                             prompt="(" + PHRASE * 4 + ":0.5)(" + PHRASE * 3 + ":1.4)", **{
                                 "prompt-syntax": "a1111", "pieces.pos": [(PHRASE * 4, 0.5), (PHRASE * 3, 1.4)]}),
    },
    "pixart_ms": {
        "teacher-cfg": dict(PIXART_WHOLE, steps=3, size=(48, 80), negative="a dog, blurry", told=("guidance", "guidance-scale"),
                            text=True, **{"guidance-scale": 4.5}),
        "dpm20": dict(PIXART_WHOLE, steps=20, size=(48, 48), **{"guidance-scale": 1.0}),
        "nasa": dict(PIXART, recipe="sbv2-pixart", steps=1, at=[400], guidance="nasa", alpha=0.5, size=(32, 64), told=("alpha",)),
        "long": dict(PIXART, recipe="dmd-pixart", steps=1, at=[400], guidance="nasa", alpha=0.3, size=(64, 32),
                     prompt="the red cat on the blue Dog, " * 7),
    },
    "pixart_odd": {
        "cfg": dict(PIXART, steps=2, guidance="none", size=(72, 48), text=True, **{"guidance-scale": 2.0}),
        "nag": dict(PIXART, recipe="sbv2-pixart", steps=1, at=[400], guidance="nag", phi=3, tau=1.2, beta=0.4, size=(24, 48)),
    },
    "consistency": {
        "told": dict(SD, recipe="lcm", steps=3, guidance="none", negative=None, prompt="a ## red cat ##", **{"guidance-scale": 8.5}),
        "told-nasa": dict(SD, recipe="lcm", steps=1, guidance="nasa", alpha=0.3, size=(40, 24), **{"guidance-scale": 2.0}),
    },
}


def run_write(folder, spec, tensors):
    folder.mkdir()
    save_file(tensors, folder / "expected.safetensors")
    flags = []
    for key in ("prompt", "negative", "prompt-syntax", "long-prompt", "recipe", "guidance", "guidance-scale", "nasa-variant", "alpha", "offset", "phi", "tau", "beta",
                "steps", "seed"):
        if spec.get(key) is not None and key not in spec.get("told", ()):  # told: the recipe's own
            flags += [f"--{key}", str(spec[key])]
    flags += ["--size", "{}x{}".format(*spec["size"])]
    (folder / "args.txt").write_text("\n".join(flags) + "\n")


def yoso_make(folder):
    """A model file over `small` with what YOSO's authors publish and what they say one should have besides: a LoRA in
    kohya-ss's names, a mean latent."""
    unet = model_load(HERE / "data" / "small" / "model")["unet"]
    lora = {}
    for name, module in unet.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and ("attn" in name or "proj_in" in name or "conv1" in name):
            w, key = module.weight, "lora_unet_" + name.replace(".", "_")
            lora[f"{key}.lora_down.weight"] = (torch.randn(3, *w.shape[1:]) * 0.1).half()
            lora[f"{key}.lora_up.weight"] = (torch.randn(w.shape[0], 3, *(1,) * (w.ndim - 2)) * 0.3).half()
            lora[f"{key}.alpha"] = torch.tensor(2.0).half()
    save_file(lora, folder / "lora.safetensors")
    save_file({"mean": torch.randn(4, 8, 8).half()}, folder / "mean.safetensors")
    (folder / "model.json").write_text(json.dumps(
        {"base": "../small/model", "loras": [{"file": "lora.safetensors"}], "mean_latent": "mean.safetensors", "recipe": "yoso-sd15"}) + "\n")


def xl_norm_make(folder):
    """`xl` with a decoder whose latents have a mean and a deviation of their own in each channel."""
    vae = model_load(HERE / "data" / "xl" / "model")["vae"]
    vae.register_to_config(latents_mean=[-1.5, 0.75, 0.25, 2.0], latents_std=[4.5, 0.5, 6.25, 1.125])
    vae.half().save_pretrained(folder / "own.vae")
    (folder / "model.json").write_text(json.dumps({"base": "../xl/model", "vae": "own.vae"}) + "\n")


def xl_norm_load(folder):
    return dict(model_load(HERE / "data" / "xl" / "model"), vae=AutoencoderKL.from_pretrained(folder / "own.vae").float().eval())


def yoso_load(folder):
    parts = model_load(HERE / "data" / "small" / "model")
    lora = load_file(folder / "lora.safetensors")
    with torch.no_grad():
        for name, module in parts["unet"].named_modules():
            key = "lora_unet_" + name.replace(".", "_")
            if f"{key}.alpha" in lora:
                down, up = (lora[f"{key}.lora_{which}.weight"].float().flatten(1) for which in ("down", "up"))
                module.weight.add_((lora[f"{key}.alpha"].float() / down.shape[0] * (up @ down)).view_as(module.weight))
    return dict(parts, mean=load_file(folder / "mean.safetensors")["mean"].float())


MODEL_FILES = {"yoso": (yoso_make, yoso_load, "small"), "xl_norm": (xl_norm_make, xl_norm_load, "xl")}


def build(name, folder):
    """Makes what is not there yet: weights drawn anew would differ with the next torch."""
    torch.manual_seed(sum(map(ord, name)))
    folder = Path(folder)
    if name in MODEL_FILES:
        make, load, base = MODEL_FILES[name]
        if not (folder / "model.json").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
        parts, base = load(folder), HERE / "data" / base / "model"
    else:
        base = folder / "model"
        if not (folder / "model").exists():
            model_save(CASES[name](folder / "model"), folder / "model")
        parts = model_load(folder / "model")
    for run, spec in RUNS[name].items():
        if (folder / run).exists():
            continue
        with torch.no_grad():
            tensors = reference(parts, spec)
            if spec.get("whole"):
                image = by_pipeline(base, spec, tensors["latents.start"], parts["vae"])
                assert (image.int() - tensors["image"].int()).abs().max() <= 1, (name, run)
                tensors["image"] = image
        run_write(folder / run, spec, tensors)


def t5_build(folder):
    """T5's encoder alone: folders with config.json, model.safetensors and expected.safetensors."""
    if not (folder / "tokenizer").exists():
        unigram_make(folder / "tokenizer", 28)
    tok = T5Tokenizer.from_pretrained(folder / "tokenizer")
    batch = tok(["the red cat on the blue dog", "a"], padding="max_length", max_length=28, truncation=True, return_tensors="pt")
    for name, more in {"gated": dict(feed_forward_proj="gated-gelu"),
                       "relu": dict(feed_forward_proj="relu", d_kv=8, num_heads=3, relative_attention_num_buckets=32,
                                    relative_attention_max_distance=128, layer_norm_epsilon=0.02)}.items():
        if (folder / name).exists():
            continue
        torch.manual_seed(sum(map(ord, name)))
        config = T5Config(**dict(vocab_size=len(tok) + 3, d_model=24, d_kv=5, d_ff=40, num_layers=3, num_heads=4,
                                 relative_attention_num_buckets=10, relative_attention_max_distance=17) | more)
        model = lively(T5EncoderModel(config), 0.8)
        with torch.no_grad():
            model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(4)
        model.save_pretrained(folder / name)
        if name == "relu":  # published under either name
            weights = load_file(folder / name / "model.safetensors")
            weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
            save_file(weights, folder / name / "model.safetensors", {"format": "pt"})
        with torch.no_grad():
            out = {"tokens": batch.input_ids.int(), "mask": batch.attention_mask.float(),
                   "text.masked": model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state,
                   "text.plain": model(batch.input_ids).last_hidden_state}
        save_file({k: v.contiguous() for k, v in out.items()}, folder / name / "expected.safetensors")


if __name__ == "__main__":
    import flux  # which imports this file

    if len(sys.argv) == 3 and sys.argv[1] == "flux":
        flux.build(Path(sys.argv[2]))
    elif len(sys.argv) == 3:
        build(sys.argv[1], sys.argv[2])
    else:
        for name in (*CASES, *MODEL_FILES):
            build(name, HERE / "data" / name)
        t5_build(HERE / "data" / "t5" / "model")
        flux.build(HERE / "data" / "flux")
