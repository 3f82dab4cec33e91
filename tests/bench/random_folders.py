"""Random model folders of every family, each from its seed alone; tests/bench/parity.py renders them.

`FAMILIES` has a function a family: (r, folder) -> (parts, run, what), where parts are diffusers' and transformers' modules as
they were saved, run is what tests/golden's `reference` takes, and what says in words what is particular.
"""

import json
import random
import shutil
import sys
from pathlib import Path
from unittest import mock

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

import numpy as np
import torch
from diffusers import (AutoencoderKL, AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel,
                       PixArtTransformer2DModel, UNet2DConditionModel)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

import make
import schedules

DIFFUSION = [n for n in schedules.CLASSES if not n.startswith("FlowMatch")]
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
        config, steps = schedules.some(r, DIFFUSION)
        config["num_train_timesteps"] = 1000
        steps = min(steps, 7)
        # The cosine table begins where rounding is multiplied by 20000; test_sampler has it.
        if config["beta_schedule"] == "squaredcos_cap_v2" or not schedules.follow(config, steps):
            continue
        # These cut time steps at whole numbers where the last bit of numpy's logarithm decides.
        if config["_class_name"].startswith(("DPM", "UniPC")) and {"use_exponential_sigmas", "use_lu_lambdas"} & config.keys():
            continue
        cls = schedules.CLASSES[config["_class_name"]]
        return cls.from_config({k: v for k, v in config.items() if k != "_class_name"}), config, steps


def remade(s, **changes):
    """Another of the same class. Its square roots are right to the last bit: torch's own (MKL's) are not, and where levels are
    rescaled to zero SNR and time steps looked up by them that bit counts ten thousand times (1.4e-3 of one folder's latents)."""
    with mock.patch.object(torch.Tensor, "sqrt", lambda x: torch.from_numpy(np.sqrt(x.numpy()))):
        return type(s).from_config(s.config, **changes)


def as_pipeline(s):
    """What StableDiffusionPipeline changes in a scheduler of a folder."""
    return remade(s, **{k: v for k, v in (("steps_offset", 1), ("clip_sample", False)) if k in s.config})


def as_it_is(s):
    """Other pipelines change nothing."""
    return remade(s)


def t5(r, folder, length):
    """T5's tokenizer, whose golden files are taken in one of their forms, and an encoder."""
    shutil.copytree(GOLDEN / "data" / "pixart" / "model" / "tokenizer", folder / "tokenizer")
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), model_max_length=length)))
    tok = T5Tokenizer.from_pretrained(folder / "tokenizer")
    if r.random() < 0.5:
        tok.save_pretrained(folder / "tokenizer")
    width = r.choice([12, 17, 20, 36])
    config = T5Config(vocab_size=len(tok) + r.choice([0, 3]), d_model=width, d_kv=r.choice([4, 5, 8]), d_ff=r.choice([width, 2 * width + 7]),
                      num_layers=r.choice([1, 2, 3]), num_heads=r.choice([1, 2, 3, 5]), layer_norm_epsilon=r.choice([1e-6, 1e-5]),
                      relative_attention_num_buckets=r.choice([8, 32]), relative_attention_max_distance=r.choice([20, 128]),
                      feed_forward_proj=r.choice(["gated-gelu", "gated-gelu", "gated-silu", "relu", "gelu_new"]))
    return tok, make.lively(T5EncoderModel(config), 0.8)


def pixart_transformer(r, channels, text_width):
    heads, head = r.choice([(1, 12), (2, 18), (3, 8), (4, 9), (5, 12)])
    caption = r.random() < 0.8 or heads * head == text_width
    more = {}
    if r.random() < 0.3:
        more["interpolation_scale"] = r.choice([1, 1.5, 2])
    if r.random() < 0.5:
        more["use_additional_conditions"] = r.random() < 0.5
    patch = r.choice([1, 2, 2, 3])
    return make.lively(PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=head, num_layers=r.choice([1, 2, 3]), in_channels=channels, patch_size=patch,
        out_channels=r.choice([2 * channels, channels]), cross_attention_dim=heads * head if caption else text_width,
        caption_channels=text_width if caption else None, sample_size=r.choice([6, 9, 12, 64, 128]), attention_bias=r.random() < 0.8,
        activation_fn=r.choice(["gelu-approximate", "gelu-approximate", "gelu"]), norm_elementwise_affine=r.random() < 0.2,
        norm_eps=r.choice([1e-6, 1e-6, 1e-4]), **more), 0.8)


def flux_transformer(r, channels, text_width, pooled_width):
    axes = r.choice([(2, 4, 6), (4, 2, 2), (2, 6, 2), (8, 4, 4)])
    return make.lively(FluxTransformer2DModel(
        in_channels=4 * channels, num_layers=r.choice([1, 2, 3]), num_single_layers=r.choice([1, 2, 4]), attention_head_dim=sum(axes),
        num_attention_heads=r.choice([1, 2, 3]), joint_attention_dim=text_width, pooled_projection_dim=pooled_width, axes_dims_rope=axes))


def save(r, parts, folder, pipeline):
    """The folder's tensors and its index. Configurations of schedulers and tokenizers are there."""
    names = dict(text_encoder="model", unet="diffusion_pytorch_model", vae="diffusion_pytorch_model", text_encoder_2="model",
                 transformer="diffusion_pytorch_model")
    for name, base in names.items():
        if name not in parts:
            continue
        dtype = r.choice(DTYPES)
        computed = {k: b.clone() for k, b in parts[name].named_buffers()}  # PixArt's positions are in no file: f32 whatever it has
        parts[name].to(dtype)
        shards = dict(max_shard_size="40KB") if r.random() < 0.3 else {}
        parts[name].save_pretrained(folder / name, **shards)
        parts[name].float()
        for k, b in parts[name].named_buffers():
            b.copy_(computed[k])
        whole = folder / name / f"{base}.safetensors"
        if name == "text_encoder" and pipeline == "StableDiffusionPipeline" and whole.exists() and r.random() < 0.5:
            other = {("text_model." + k if not k.startswith("text_model.") else k[11:]): v for k, v in load_file(whole).items()}
            save_file(other, whole, metadata={"format": "pt"})
        if whole.exists() and r.random() < 0.2:
            whole.rename(whole.with_name(f"{base}.fp16.safetensors"))
    library = lambda name: "transformers" if name.startswith(("text", "token")) else "diffusers"
    index = {**parts["index"], "_class_name": pipeline,
             **{k: [library(k), type(v).__name__.removesuffix("Fast")] for k, v in parts.items() if k != "index"},
             "safety_checker": r.choice([[None, None], ["stable_diffusion", "StableDiffusionSafetyChecker"]]),
             "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": r.random() < 0.5}
    (folder / "model_index.json").write_text(json.dumps(index))


def scheduler_save(r, config, folder):
    (folder / "scheduler").mkdir()
    if r.random() < 0.3:  # the index names the class; a config from another one is common
        config = dict(config, _class_name="DDIMScheduler")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


def job(r, parts, steps, side, adapt):
    guidance = r.choice(["none", "none", "nasa", "nag", "vsf"])
    run = dict(prompt=r.choice(["the red cat on a blue Dog!", "a <sks> Cat, 3 dogs \u00e9", "x " * 90]), steps=steps, seed=r.choice([0, 7, 2**32 + 5]),
               size=(side * r.choice([1, 3, 5]), side * r.choice([1, 2, 4])), guidance=guidance, scheduler=adapt,
               alpha=0.3, offset=0.2 if guidance == "vsf" else 0.0, phi=2.5, tau=1.5, beta=0.4,
               **{"guidance-scale": r.choice([1.0, 1.0, 4.5])})
    if guidance != "none" or run["guidance-scale"] != 1.0:
        run["negative"] = "a dog, blurry"
    return run, f"{type(parts['scheduler']).__name__}, {steps} steps, {guidance}, scale {run['guidance-scale']}"


def multiple(parts, patch=1):
    """What the sides of a picture are multiples of: the decoder's pixels a latent, eight at least, times the denoiser's patch."""
    return max(8, 2 ** (len(parts["vae"].config.block_out_channels) - 1)) * patch


def sd(r, folder):
    length = r.choice([8, 13, 24, 77])
    tok, form = tokenizer(r, folder / "tokenizer", length)
    channels = r.choice([4, 4, 3, 8])
    text = text_encoder(r, tok, length)
    sched, config, steps = scheduler(r)
    parts = dict(tokenizer=tok, text_encoder=text, unet=unet(r, channels, text.config.hidden_size), vae=vae(r, channels), scheduler=sched,
                 index={})
    save(r, parts, folder, "StableDiffusionPipeline")
    scheduler_save(r, config, folder)
    run, what = job(r, parts, steps, multiple(parts), as_pipeline)
    return parts, run, f"{form}, {what}"


def sdxl(r, folder):
    length = r.choice([8, 13, 24, 77])
    tok, form = tokenizer(r, folder / "tokenizer", length)
    channels = r.choice([4, 4, 3, 8])
    text = text_encoder(r, tok, length)
    sched, config, steps = scheduler(r)
    tok_2, _ = tokenizer(r, folder / "tokenizer_2", length)
    for name, t in (("tokenizer", tok), ("tokenizer_2", tok_2)):  # the pipeline pads to what each says, and both must be the same
        length_say(t, folder / name, length)
    text_2 = text_encoder(r, tok_2, length, CLIPTextModelWithProjection)
    parts = dict(tokenizer=tok, tokenizer_2=tok_2, text_encoder=text, text_encoder_2=text_2, vae=vae(r, channels), scheduler=sched,
                 unet=unet(r, channels, text.config.hidden_size + text_2.config.hidden_size, text_2.config.projection_dim),
                 index=dict(force_zeros_for_empty_prompt=r.random() < 0.5))
    save(r, parts, folder, "StableDiffusionXLPipeline")
    scheduler_save(r, config, folder)
    run, what = job(r, parts, steps, multiple(parts), as_it_is)
    return parts, run, f"{form}, {what}"


def length_say(tok, folder, length):
    tok.model_max_length = length
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), model_max_length=length)))


def pixart(r, folder):
    tok, text = t5(r, folder, 120)
    channels = r.choice([4, 4, 3, 5])
    sched, config, steps = scheduler(r)
    transformer = pixart_transformer(r, channels, text.config.d_model)
    parts = dict(tokenizer=tok, text_encoder=text, transformer=transformer, vae=vae(r, channels), scheduler=sched, index={})
    save(r, parts, folder, "PixArtAlphaPipeline")
    scheduler_save(r, config, folder)
    run, what = job(r, parts, steps, multiple(parts, transformer.config.patch_size), as_it_is)
    return parts, run, f"{'told sizes, ' if transformer.use_additional_conditions else ''}patches of {transformer.config.patch_size}, {what}"


def flux(r, folder):
    length = r.choice([8, 13, 24, 77])
    tok, form = tokenizer(r, folder / "tokenizer", length)
    length_say(tok, folder / "tokenizer", length)
    text = text_encoder(r, tok, length)
    (folder / "t5").mkdir()
    tok_2, text_2 = t5(r, folder / "t5", r.choice([28, 512]))
    (folder / "t5" / "tokenizer").rename(folder / "tokenizer_2")
    (folder / "t5").rmdir()
    channels = r.choice([4, 6, 3])
    decoder = vae(r, channels)
    if isinstance(decoder, AutoencoderKL):
        decoder.register_to_config(shift_factor=r.choice([0.1159, 0.0, -0.4]))
    sched = FlowMatchEulerDiscreteScheduler(shift=r.choice([1.0, 1.0, 3.0, 0.7]))
    transformer = flux_transformer(r, channels, text_2.config.d_model, text.config.hidden_size)
    parts = dict(tokenizer=tok, tokenizer_2=tok_2, text_encoder=text, text_encoder_2=text_2, transformer=transformer, vae=decoder,
                 scheduler=sched, index={})
    save(r, parts, folder, "FluxPipeline")
    sched.save_pretrained(folder / "scheduler")
    run, what = job(r, parts, r.choice([1, 1, 2, 4]), multiple(parts, 2), as_it_is)
    run["nasa-variant"] = r.choice(["text", "mass", "joint"])
    variant = f", {run['nasa-variant']}" if run["guidance"] == "nasa" else ""
    return parts, run, f"{form}, {what}{variant}"


FAMILIES = {"sd": sd, "sdxl": sdxl, "pixart": pixart, "flux": flux}


def make_folder(seed, folder, family):
    torch.manual_seed(seed)
    return FAMILIES[family](random.Random(seed), folder)
