#!/usr/bin/env python3
"""Makes tests/golden/checkpoints: files as people publish them, and beside each the tensors that torch and diffusers
read from it. Run it where tests/golden/make.py runs:

    python tests/golden/checkpoints.py [torch] [single] [lora]      the last needs peft besides
"""

import collections
import inspect
import json
import os
import re
import sys
import tempfile
import types
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import original_naming

OUT = Path(__file__).parent / "checkpoints"


def expect(name, tensors):
    """NAME.safetensors: what must be found in NAME, in order and dense."""
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, OUT / f"{name}.safetensors")


# ---- archives of torch.save ----

class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def fake_class(module, name):
    """A class that pickles as module.name."""
    made = type(name, (), {"__module__": module})
    parent = ""
    for part in module.split("."):
        parent = f"{parent}.{part}".lstrip(".")
        sys.modules.setdefault(parent, types.ModuleType(parent))
    setattr(sys.modules[module], name, made)
    return made


def torch_archives():
    torch.manual_seed(6)
    draw = lambda *shape: torch.randn(*shape)
    plain = {"a.weight": draw(2, 3), "a.bias": draw(3).half(), "b": draw(2, 1, 2).bfloat16(), "ids": torch.arange(5),
             "mask": torch.tensor([True, False]), "bytes": torch.arange(7, dtype=torch.uint8), "scale": torch.tensor(0.25),
             "none": torch.zeros(0, 4), "wide": draw(2).double(), "small": torch.arange(3, dtype=torch.int16)}
    torch.save(plain, OUT / "plain.pt")
    expect("plain.pt", plain)

    base, qkv = draw(4, 6), draw(12, 4).bfloat16()
    q, k, v = qkv.chunk(3)
    strided = {"base": base, "t": base.t(), "columns": base[:, 1:5:2], "row": base[2], "q": q, "k": k, "v": v.t(),
               "conv": draw(2, 3, 3, 3).half().contiguous(memory_format=torch.channels_last), "one": base[1:2, 3:4].t()}
    torch.save(strided, OUT / "strided.pt")
    expect("strided.pt", strided)

    checkpoint = fake_class("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    training = {"epoch": 3, "global_step": 2**40, "pytorch-lightning_version": "1.4.2", "state_dict": module.state_dict(),
                "loops": None, "callbacks": {checkpoint: {"best_model_score": np.float32(0.5), "current_score": 1.5,
                                                          "monitor": "val/loss", "best": torch.tensor(2.0)}},
                "optimizer_states": [{"state": {0: {"exp_avg": draw(2)}}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]}],
                "lr_schedulers": [{"milestones": collections.Counter([1, 2])}], "who": {1, 2}}
    torch.save(training, OUT / "training.ckpt")
    expect("training.ckpt", module.state_dict())

    parameters = {k: torch.nn.Parameter(v) for k, v in module.state_dict().items()}
    torch.save(parameters, OUT / "protocol4.pt", pickle_protocol=4)
    expect("protocol4.pt", parameters)

    torch.save(plain, OUT / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": draw(2), "b": Evil()}, OUT / "evil.pt")
    torch.save(module, OUT / "module.pt")

    typed = {"a.weight": draw(3, 2), "plain": draw(2), "b": draw(2, 2).half()}
    typed["a.weight"].sharded, typed["b"]._names = {"rank": 0}, ("x", None)  # as training wrappers leave attributes on tensors
    torch.save(typed, OUT / "typed.pt")
    expect("typed.pt", typed)


# ---- single files in the original naming ----

def unet_original(model):
    names = original_naming.unet(model.state_dict(), model.config)
    return {names[k]: v for k, v in model.state_dict().items()}


def vae_original(model):
    names = original_naming.vae(model.state_dict(), model.config)
    return {names[k]: v[:, :, None, None] if ".attn_1." in names[k] and v.ndim == 2 else v for k, v in model.state_dict().items()}


def open_clip_original(model):
    """CLIPTextModelWithProjection (or without) as OpenCLIP holds it, with its scale of logits."""
    ours, out = model.state_dict(), {}
    ours = {k.removeprefix("text_model."): v for k, v in ours.items()}
    for k, v in ours.items():
        m = re.match(r"encoder.layers.(\d+).self_attn.q_proj.(weight|bias)", k)
        if m:
            qkv = [ours[k.replace("q_proj", p)] for p in ("q_proj", "k_proj", "v_proj")]
            out[f"transformer.resblocks.{m[1]}.attn.in_proj_{m[2]}"] = torch.cat(qkv)
        elif not re.search("[kv]_proj", k):
            k = re.sub(r"encoder.layers.(\d+)", r"transformer.resblocks.\1", k).replace("layer_norm", "ln_").replace("self_attn", "attn")
            k = k.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj").replace("final_ln_", "ln_final").replace("embeddings.", "")
            k = k.replace("position_embedding.weight", "positional_embedding").replace("text_projection.weight", "text_projection")
            out[k] = v.T.contiguous() if k == "text_projection" else v
    return {**out, "logit_scale": torch.tensor(4.6)}


def flux_original(model):
    ours, out = model.state_dict(), {}
    fused = {"attn.to_q": ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
             "attn.add_q_proj": ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"))}
    for i in range(model.config.num_layers):
        a, b = f"transformer_blocks.{i}.", f"double_blocks.{i}."
        for end in ("weight", "bias"):
            for theirs, parts in fused.values():
                out[f"{b}{theirs}.{end}"] = torch.cat([ours.pop(f"{a}{p}.{end}") for p in parts])
            for x, y in (("norm1.linear", "img_mod.lin"), ("norm1_context.linear", "txt_mod.lin"), ("attn.to_out.0", "img_attn.proj"),
                         ("attn.to_add_out", "txt_attn.proj"), ("ff.net.0.proj", "img_mlp.0"), ("ff.net.2", "img_mlp.2"),
                         ("ff_context.net.0.proj", "txt_mlp.0"), ("ff_context.net.2", "txt_mlp.2")):
                out[f"{b}{y}.{end}"] = ours.pop(f"{a}{x}.{end}")
        for x, y in (("norm_q", "img_attn.norm.query_norm"), ("norm_k", "img_attn.norm.key_norm"),
                     ("norm_added_q", "txt_attn.norm.query_norm"), ("norm_added_k", "txt_attn.norm.key_norm")):
            out[f"{b}{y}.scale"] = ours.pop(f"{a}attn.{x}.weight")
    for i in range(model.config.num_single_layers):
        a, b = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        for end in ("weight", "bias"):
            out[f"{b}linear1.{end}"] = torch.cat([ours.pop(f"{a}{p}.{end}") for p in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")])
            out[f"{b}linear2.{end}"] = ours.pop(f"{a}proj_out.{end}")
            out[f"{b}modulation.lin.{end}"] = ours.pop(f"{a}norm.linear.{end}")
        out[f"{b}norm.query_norm.scale"] = ours.pop(f"{a}attn.norm_q.weight")
        out[f"{b}norm.key_norm.scale"] = ours.pop(f"{a}attn.norm_k.weight")
    for end in ("weight", "bias"):
        for x, y in (("time_text_embed.timestep_embedder", "time_in"), ("time_text_embed.text_embedder", "vector_in"),
                     ("time_text_embed.guidance_embedder", "guidance_in")):
            out[f"{y}.in_layer.{end}"] = ours.pop(f"{x}.linear_1.{end}")
            out[f"{y}.out_layer.{end}"] = ours.pop(f"{x}.linear_2.{end}")
        for x, y in (("context_embedder", "txt_in"), ("x_embedder", "img_in"), ("proj_out", "final_layer.linear")):
            out[f"{y}.{end}"] = ours.pop(f"{x}.{end}")
        out[f"final_layer.adaLN_modulation.1.{end}"] = torch.cat(ours.pop(f"norm_out.linear.{end}").chunk(2)[::-1])
    assert not ours, list(ours)
    return out


def flux_convert(checkpoint, width):
    """diffusers' converter, which knows one width only."""
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    scope = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), scope)
    return scope["convert_flux_transformer_checkpoint_to_diffusers"](dict(checkpoint))


def expect_parts(name, parts):
    """NAME.txt: part, tensor, CRC-32 of its f16 bytes, shape; what diffusers made of NAME."""
    lines = []
    for part, tensors in parts.items():
        for k, v in sorted(tensors.items()):
            lines.append(f"{part} {k} {zlib.crc32(v.half().contiguous().numpy().tobytes()):08x} {'x'.join(map(str, v.shape)) or '-'}\n")
    (OUT / f"{name}.txt").write_text("".join(lines))


def read_back(path, folder, unet, vae, texts):
    """What diffusers' from_single_file makes of each component, and that it is what went in."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    load = lambda cls, part: cls.from_single_file(str(path), config=str(folder), subfolder=part, local_files_only=True)
    parts = {"unet": load(UNet2DConditionModel, "unet"), "vae": load(AutoencoderKL, "vae")}
    for part, model in texts.items():
        model.save_pretrained(folder / part)
        checkpoint = single_file_utils.load_single_file_checkpoint(str(path))
        parts[part] = single_file_utils.create_diffusers_clip_model_from_ldm(
            type(model), checkpoint, config=str(folder), subfolder=part, local_files_only=True)
    parts = {k: v.state_dict() for k, v in parts.items()}
    for part, model in {"unet": unet, "vae": vae, **texts}.items():
        for k, v in model.state_dict().items():
            assert torch.equal(parts[part][k].half(), v.half()), (part, k)
    return parts


def text_make(cls, width, layers):
    return cls(CLIPTextConfig(vocab_size=40, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
                              max_position_embeddings=8, projection_dim=width, hidden_act="gelu"))


def vae_make():
    return AutoencoderKL(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
                         down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)


def lively(model):
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
    return model.half()


def sd_unet(**more):
    return UNet2DConditionModel(sample_size=8, block_out_channels=(4, 8), norm_num_groups=2, attention_head_dim=(1, 2), **more)


def prefixed(prefix, tensors):
    return {prefix + k: v for k, v in tensors.items()}


def single_files():
    torch.manual_seed(7)
    # SD1.5 as a training's archive: averages beside the weights, convolutions as projections.
    unet = lively(sd_unet(layers_per_block=1, cross_attention_dim=6, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                          up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")))
    vae, text = lively(vae_make()), lively(text_make(CLIPTextModel, 6, 2))
    root = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in text.state_dict().items()}
    state = {**prefixed("model.diffusion_model.", unet_original(unet)), **prefixed("first_stage_model.", vae_original(vae)),
             **prefixed("cond_stage_model.transformer.", root),
             "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(8)[None],
             "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(2), "alphas_cumprod": torch.linspace(1, 0, 10)}
    torch.save({"global_step": 1, "state_dict": state}, OUT / "sd15.ckpt")
    with tempfile.TemporaryDirectory() as tmp:
        parts = read_back(OUT / "sd15.ckpt", Path(tmp), unet, vae, {"text_encoder": text})
    expect_parts("sd15.ckpt", parts)

    # SDXL: two layers a block, linear projections, both text encoders.
    unet = lively(sd_unet(layers_per_block=2, cross_attention_dim=14, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                          up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True, transformer_layers_per_block=(1, 2),
                          addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32))
    texts = {"text_encoder": lively(text_make(CLIPTextModel, 6, 2)), "text_encoder_2": lively(text_make(CLIPTextModelWithProjection, 8, 3))}
    vae = lively(vae_make())
    root = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in texts["text_encoder"].state_dict().items()}
    state = {**prefixed("model.diffusion_model.", unet_original(unet)), **prefixed("first_stage_model.", vae_original(vae)),
             **prefixed("conditioner.embedders.0.transformer.", root),
             **prefixed("conditioner.embedders.1.model.", open_clip_original(texts["text_encoder_2"]))}
    save_file({k: v.contiguous() for k, v in state.items()}, OUT / "sdxl.safetensors")
    with tempfile.TemporaryDirectory() as tmp:
        parts = read_back(OUT / "sdxl.safetensors", Path(tmp), unet, vae, texts)
    expect_parts("sdxl.safetensors", parts)

    # SD2.1's text encoder alone differs from those.
    text = lively(text_make(CLIPTextModel, 8, 2))
    state = prefixed("cond_stage_model.model.", open_clip_original(text))
    save_file(state, OUT / "sd21-text.safetensors")
    with tempfile.TemporaryDirectory() as tmp:
        text.save_pretrained(Path(tmp) / "text_encoder")
        read = single_file_utils.create_diffusers_clip_model_from_ldm(CLIPTextModel, dict(state), config=tmp, subfolder="text_encoder",
                                                                      local_files_only=True).state_dict()
    assert all(torch.equal(read[k].half(), v) for k, v in text.state_dict().items())
    expect_parts("sd21-text.safetensors", {"text_encoder": read})

    flux = lively(FluxTransformer2DModel(patch_size=1, in_channels=8, num_layers=2, num_single_layers=2, attention_head_dim=8,
                                         num_attention_heads=1, joint_attention_dim=6, pooled_projection_dim=5, guidance_embeds=True,
                                         axes_dims_rope=(2, 2, 4)))
    state = flux_original(flux)
    save_file(state, OUT / "flux.safetensors")
    read = flux_convert(state, 8)
    assert all(torch.equal(read.get(k), v) for k, v in flux.state_dict().items())
    expect_parts("flux.safetensors", {"transformer": read})


# ---- LoRA files ----

def lora_draw(model, names, rank):
    """(down, up) for each module whose name one of the patterns matches; linear layers and convolutions."""
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and any(re.search(n, name) for n in names):
            w = module.weight
            out[name] = (torch.randn(rank, *w.shape[1:]) * 0.3, torch.randn(w.shape[0], rank, *(1,) * (w.ndim - 2)) * 0.3)
    assert out
    return out


def kohya(prefix, layers, alpha, dtype=torch.float16):
    out = {}
    for name, (down, up) in layers.items():
        key = prefix + name.replace(".", "_")
        out.update({f"{key}.lora_down.weight": down.to(dtype), f"{key}.lora_up.weight": up.to(dtype)})
        if alpha:
            out[f"{key}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return out


def spelt(prefix, layers, down, up, dtype=torch.float32, name=lambda n: n):
    return {f"{prefix}{name(n)}{end}": t.to(dtype) for n, pair in layers.items() for end, t in zip((down, up), pair)}


def lora_expect(name, before, models, **layers):
    """NAME.safetensors: the weights that changed, as `target/tensor`; they must be those of the layers."""
    changed = {}
    for target, model in models.items():
        for k, v in model.state_dict().items():
            k = k.replace(".base_layer", "")
            if "lora_" not in k and not torch.equal(v, before[target][k]):
                changed[f"{target}/{k}"] = v
    want = {f"{target}/{n}.weight" for target, names in layers.items() for n in names}
    assert set(changed) == want, (name, set(changed) ^ want)
    expect(name, changed)


def lora_files():
    import copy

    from diffusers import FluxPipeline, StableDiffusionXLPipeline
    from diffusers.loaders import lora_conversion_utils, lora_pipeline
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(8)
    unet = lively(sd_unet(layers_per_block=1, cross_attention_dim=14, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                          up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=4,
                          projection_class_embeddings_input_dim=32)).float()
    text, text_2 = lively(text_make(CLIPTextModel, 6, 2)).float(), lively(text_make(CLIPTextModelWithProjection, 8, 2)).float()
    flux = lively(FluxTransformer2DModel(patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8,
                                         num_attention_heads=1, joint_attention_dim=6, pooled_projection_dim=5, guidance_embeds=True,
                                         axes_dims_rope=(2, 2, 4))).float()
    models = {"denoiser": unet, "text": text, "text_2": text_2}
    for target, model in {**models, "flux": flux}.items():
        save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, OUT / f"lora-base-{target}.safetensors")

    def fused(files, weights):
        """Each file merged by diffusers' own pipeline."""
        made = {k: copy.deepcopy(m) for k, m in models.items()}
        pipe = StableDiffusionXLPipeline(vae=None, text_encoder=made["text"], text_encoder_2=made["text_2"], tokenizer=None,
                                         tokenizer_2=None, unet=made["denoiser"], scheduler=None)
        for i, name in enumerate(files):
            pipe.load_lora_weights(str(OUT), weight_name=name, adapter_name=f"a{i}")
        pipe.set_adapters([f"a{i}" for i in range(len(files))], list(weights))
        pipe.fuse_lora(adapter_names=[f"a{i}" for i in range(len(files))])
        pipe.unload_lora_weights()
        return {k: getattr(pipe, {"denoiser": "unet", "text": "text_encoder", "text_2": "text_encoder_2"}[k]) for k in made}

    before = {k: {n: v.clone() for n, v in m.state_dict().items()} for k, m in models.items()}
    root = lambda m: "" if any(n.startswith("text_model") for n, _ in m.named_modules()) else "text_model_"
    attention = [r"attn[12].to_[qkv]$", r"to_out.0$"]

    texts = [r"self_attn", r"mlp"]

    # kohya-ss: everything that it trains, also 3x3 kernels; alpha 2 of rank 3, weight 0.7.
    a, b, c = (lora_draw(unet, [*attention, r"ff.net", r"proj_(in|out)$", r"conv", r"time_emb_proj", r"time_embedding.linear_1"], 3),
               lora_draw(text, texts, 2), lora_draw(text_2, texts, 2))
    save_file({**kohya("lora_unet_", a, 2.0), **kohya("lora_te1_" + root(text), b, 1.0), **kohya("lora_te2_" + root(text_2), c, 0.5)},
              OUT / "kohya.safetensors")
    lora_expect("kohya.safetensors", before, fused(["kohya.safetensors"], [0.7]), denoiser=a, text=b, text_2=c)

    # kohya-ss over the original U-Net, as it trains SDXL.
    names = {n.removesuffix(".weight"): o.removesuffix(".weight") for n, o in zip(unet.state_dict(), unet_original(unet))}
    d = lora_draw(unet, [*attention, r"ff.net", r"proj_(in|out)$", r"conv", r"time_emb_proj", r"embedding.linear"], 2)
    save_file(kohya("lora_unet_", {names[n]: pair for n, pair in d.items()}, 1.0), OUT / "sgm.safetensors")
    lora_expect("sgm.safetensors", before, fused(["sgm.safetensors"], [1.0]), denoiser=d)

    # peft's names with diffusers' metadata, the older names, the processors' as a .bin; and two at once.
    d, e = lora_draw(unet, attention, 2), lora_draw(text, [r"self_attn"], 2)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    metadata = {"unet.r": 2, "unet.lora_alpha": 5, "unet.target_modules": targets, "text_encoder.r": 2, "text_encoder.lora_alpha": 3,
                "text_encoder.target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"]}
    save_file({**spelt("unet.", d, ".lora_A.weight", ".lora_B.weight", torch.bfloat16),
               **spelt("text_encoder.", e, ".lora_A.weight", ".lora_B.weight", torch.bfloat16)},
              OUT / "peft.safetensors", metadata={"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})
    lora_expect("peft.safetensors", before, fused(["peft.safetensors"], [1.0]), denoiser=d, text=e)
    lora_expect("two", before, fused(["peft.safetensors", "kohya.safetensors"], [0.5, -0.25]), denoiser=a, text=b, text_2=c)
    e = lora_draw(text, texts, 2)
    save_file({**spelt("unet.", d, ".lora.down.weight", ".lora.up.weight"),
               **spelt("text_encoder." + root(text).replace("_model_", "_model."), e, ".lora_linear_layer.down.weight",
                       ".lora_linear_layer.up.weight")}, OUT / "older.safetensors")
    lora_expect("older.safetensors", before, fused(["older.safetensors"], [1.0]), denoiser=d, text=e)
    processor = lambda n: re.sub(r"(attn[12])\.(to_[a-z]+)(\.0)?$", r"\1.processor.\2_lora", n)
    torch.save(spelt("unet.", d, ".down.weight", ".up.weight", name=processor), OUT / "processor.bin")
    lora_expect("processor.bin", before, fused(["processor.bin"], [1.0]), denoiser=d)

    # A folder of peft itself.
    made = get_peft_model(copy.deepcopy(unet), LoraConfig(r=2, lora_alpha=7, target_modules=["to_q", "conv1"], use_rslora=True))
    with torch.no_grad():
        for n, p in made.named_parameters():
            if "lora_B" in n:
                p.copy_(torch.randn_like(p) * 0.3)
    made.save_pretrained(OUT / "adapter")
    (OUT / "adapter" / "README.md").unlink(missing_ok=True)
    lora_expect("adapter", before, {"denoiser": made.merge_and_unload()}, denoiser=lora_draw(unet, [r"to_q$", r"conv1$"], 1))

    # FLUX: fused layers by kohya-ss, which diffusers takes apart for its one width; diffusers' own names; ComfyUI's.
    def flux_fused(name):
        source = inspect.getsource(lora_conversion_utils._convert_kohya_flux_lora_to_diffusers)
        scope = dict(vars(lora_conversion_utils))
        exec(source.replace("[3072, 3072, 3072, 12288]", "[8, 8, 8, 32]"), scope)
        lora_pipeline._convert_kohya_flux_lora_to_diffusers = scope["_convert_kohya_flux_lora_to_diffusers"]
        pipe = FluxPipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
                            transformer=copy.deepcopy(flux))
        pipe.load_lora_weights(str(OUT), weight_name=name)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        return {"flux": pipe.transformer}

    before["flux"] = {n: v.clone() for n, v in flux.state_dict().items()}
    theirs = {k.removesuffix(".weight"): v for k, v in flux_original(flux).items() if k.endswith(".weight") and v.ndim == 2}
    pairs = {k: (torch.randn(2, v.shape[1]) * 0.3, torch.randn(v.shape[0], 2) * 0.3) for k, v in theirs.items()}
    blocks = {k: p for k, p in pairs.items() if "_blocks" in k}
    ours = lora_draw(flux, ["transformer_blocks"], 1)
    save_file(kohya("lora_unet_", blocks, 1.0), OUT / "flux-kohya.safetensors")
    lora_expect("flux-kohya.safetensors", before, flux_fused("flux-kohya.safetensors"), flux=ours)
    d = lora_draw(flux, [r"attn.to_[qkv]", r"proj_out", r"norm_out"], 2)
    save_file(spelt("transformer.", d, ".lora_A.weight", ".lora_B.weight"), OUT / "flux-peft.safetensors")
    lora_expect("flux-peft.safetensors", before, flux_fused("flux-peft.safetensors"), flux=d)
    # diffusers leaves out what is in no block, so this one is merged in the original names and then converted.
    save_file(spelt("diffusion_model.", pairs, ".lora_down.weight", ".lora_up.weight"), OUT / "flux-comfy.safetensors")
    merged = {k: v + pairs[k[:-7]][1] @ pairs[k[:-7]][0] if k[:-7] in pairs and k.endswith(".weight") else v
              for k, v in flux_original(flux).items()}
    made = copy.deepcopy(flux)
    made.load_state_dict(flux_convert(merged, 8))
    lora_expect("flux-comfy.safetensors", before, {"flux": made}, flux=lora_draw(flux, [""], 1))


PARTS = {"torch": torch_archives, "single": single_files, "lora": lora_files}

if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
