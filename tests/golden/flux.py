"""The FLUX case of make.py: a small random model, and what diffusers' FluxPipeline makes of it.

Under a method the pipeline's transformer is replaced by `Streams`: diffusers' own blocks in order, with an attention
processor that lets the image see two texts. It is written from docs/guidance.md, independently of the engine.
"""

import json

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from transformers import CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

import make

TOKENS = 256  # max_sequence_length of schnell


def model_make(folder):
    """Odd widths, three heads of 12, axes of three lengths, shards, no quantisation convolutions; queries and keys that are
    so small in one block, and latents' rows in another, that the norms' epsilon counts."""
    clip = make.tokenizer_make(folder / "tokenizer", 16)
    t5 = make.unigram_make(folder / "tokenizer_2", 28)
    text_2 = make.lively(T5EncoderModel(T5Config(
        vocab_size=len(t5), d_model=16, d_kv=5, d_ff=24, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu")), 0.8)
    transformer = make.lively(FluxTransformer2DModel(
        in_channels=24, num_layers=2, num_single_layers=3, attention_head_dim=12, num_attention_heads=3,
        joint_attention_dim=16, pooled_projection_dim=20, axes_dims_rope=(2, 4, 6)))
    make.whisper(transformer, ("single_transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k", "x_embedder"), 0.01)
    vae = make.lively(AutoencoderKL(
        block_out_channels=(8, 8, 12, 12), layers_per_block=1, norm_num_groups=4, latent_channels=6, scaling_factor=0.3611,
        shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False, force_upcast=True,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4))
    make.text_make(clip, 16, 20, 2, 2, "quick_gelu").half().save_pretrained(folder / "text_encoder")
    text_2.bfloat16().save_pretrained(folder / "text_encoder_2")
    transformer.bfloat16().save_pretrained(folder / "transformer", max_shard_size="200KB")
    vae.half().save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "FluxPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
        "image_encoder": [None, None], "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}, indent=2))


def model_load(folder):
    parts = dict(tokenizer=CLIPTokenizer, text_encoder=CLIPTextModel, tokenizer_2=T5Tokenizer, text_encoder_2=T5EncoderModel,
                 transformer=FluxTransformer2DModel, vae=AutoencoderKL, scheduler=FlowMatchEulerDiscreteScheduler)
    parts = {k: c.from_pretrained(folder / k) for k, c in parts.items()}
    return {k: p.float().eval() if hasattr(p, "float") else p for k, p in parts.items()}


class Joint:
    """An attention processor for blocks that are called three times: with the negative text, whose queries, keys and values
    are kept; with the positive text, where the image sees both; again with the negative text, which gets what it sees of
    the image of the second call."""

    def __init__(self, state):
        self.state, self.call = state, None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        heads = lambda x: x.unflatten(-1, (attn.heads, -1))
        q, k, v = (heads(f(hidden_states)) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if encoder_hidden_states is not None:
            text = [heads(f(encoder_hidden_states)) for f in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
            q = torch.cat([attn.norm_added_q(text[0]), q], 1)
            k, v = torch.cat([attn.norm_added_k(text[1]), k], 1), torch.cat([text[2], v], 1)
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        z = self.attend(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return z
        return attn.to_out[0](z[:, TOKENS:]), attn.to_add_out(z[:, :TOKENS])

    def attend(self, q, k, v):
        s, text, image = self.state, slice(0, TOKENS), slice(TOKENS, None)
        if self.call == "keep":
            self.kept = q[:, :, text], k[:, :, text], v[:, :, text]
            return torch.zeros_like(q)
        if self.call == "replay":
            return torch.cat([self.seen, torch.zeros_like(q[:, :, image])], 2)
        logits = lambda q, k: q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        plain = lambda q, k, v: logits(q, k).softmax(-1) @ v
        qn, kn, vn = self.kept
        joint_kn, joint_vn = torch.cat([kn, k[:, :, image]], 2), torch.cat([vn, v[:, :, image]], 2)
        self.seen = plain(qn, joint_kn, joint_vn)
        z = plain(q, k, v)
        zi, qi = z[:, :, image], q[:, :, image]
        if s["method"] == "nasa":
            negative = {"text": lambda: plain(qi, kn, vn), "joint": lambda: plain(qi, joint_kn, joint_vn),
                        "mass": lambda: logits(qi, joint_kn).softmax(-1)[..., text] @ vn}[s["variant"]]()
            zi = zi - s["alpha"] * negative
        elif s["method"] == "vsf":
            both = torch.cat([logits(qi, k), logits(qi, kn) - s["offset"]], -1).softmax(-1)
            zi = both @ torch.cat([v, -s["alpha"] * vn], 2)
        elif s["method"] == "nag":
            flat = lambda x: x.transpose(1, 2).flatten(2)
            zp, zn = flat(zi), flat(plain(qi, joint_kn, joint_vn))
            t = zp + s["phi"] * (zp - zn)
            ratio = t.abs().sum(-1, True) / (zp.abs().sum(-1, True) + 1e-6)
            t = t * torch.where(ratio > s["tau"], s["tau"] / ratio, torch.ones_like(ratio))
            zi = (s["beta"] * t + (1 - s["beta"]) * zp).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
        return torch.cat([z[:, :, text], zi], 2)


class Streams:
    """FluxTransformer2DModel.forward with a negative text as a second text stream."""

    def __init__(self, model, state, negative):
        self.model, self.negative, self.processor = model, negative, Joint(state)

    def __call__(self, hidden_states, timestep, pooled_projections, encoder_hidden_states, txt_ids, img_ids, **_):
        m, p = self.model, self.processor
        embed = lambda pooled: m.time_text_embed(timestep * 1000, pooled)
        temb, temb_negative = embed(pooled_projections), embed(self.negative[1])
        x, text, negative = m.x_embedder(hidden_states), m.context_embedder(encoder_hidden_states), m.context_embedder(self.negative[0])
        rope = m.pos_embed(torch.cat([txt_ids, img_ids]))
        for block in [*m.transformer_blocks, *m.single_transformer_blocks]:
            before, block.attn.processor = block.attn.processor, p
            with_negative = dict(hidden_states=x, encoder_hidden_states=negative, temb=temb_negative, image_rotary_emb=rope)
            p.call = "keep"
            block(**with_negative)
            p.call = "guided"
            text, after = block(hidden_states=x, encoder_hidden_states=text, temb=temb, image_rotary_emb=rope)
            p.call = "replay"
            negative, _ = block(**with_negative)
            x, block.attn.processor = after, before
        return (m.proj_out(m.norm_out(x, temb)),)


def reference(parts, run):
    """The tensors of one run: FluxPipeline's own, seen from outside."""
    pipe = FluxPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    transformer, vae = parts["transformer"], parts["vae"]
    (w, h), out = run["size"], {}
    unpack = lambda x: pipe._unpack_latents(x, h, w, 8)[0]
    encoded = {}
    for name, prompt in (("pos", run["prompt"]), ("neg", (run.get("negative") or ""))):
        for suffix, tok, length in (("", parts["tokenizer"], 16), ("_2", parts["tokenizer_2"], TOKENS)):
            ids = tok(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
            out[f"tokens{suffix}.{name}"] = ids[0].int()
        states, pooled, _ = pipe.encode_prompt(prompt, max_sequence_length=TOKENS)
        pieces = run.get(f"pieces.{name}")
        if pieces:  # CLIP's pooled state knows no weights
            clip, _ = make.chunks_of(parts["tokenizer"], prompt, pieces, 16)[0]
            ids, states = make.t5_weighed(parts["tokenizer_2"], lambda i: parts["text_encoder_2"](i)[0], pieces, TOKENS)
            pooled = parts["text_encoder"](clip).pooler_output
            out[f"tokens.{name}"], out[f"tokens_2.{name}"] = clip[0].int(), ids[0].int()
        encoded[name] = states, pooled
        out[f"text.{name}"], out[f"pooled.{name}"] = states[0], pooled[0]
    noise = torch.randn(1, transformer.config.in_channels // 4, h // 8, w // 8, generator=torch.Generator("cpu").manual_seed(run["seed"]))
    out["latents.start"] = noise[0]

    state = dict(method=run["guidance"], variant=run.get("nasa-variant", "text"), alpha=run.get("alpha", 0.5),
                 offset=run.get("offset", 0.0), phi=run.get("phi", 4), tau=run.get("tau", 2.5), beta=run.get("beta", 0.25))
    streams, plain, calls, first = Streams(transformer, state, encoded["neg"]), transformer.forward, [], []

    def forward(**kwargs):
        # True CFG calls twice a step, the second time with the negative text, which is never guided.
        guided = state["method"] != "none" and torch.equal(kwargs["encoder_hidden_states"], encoded["pos"][0])
        calls.append((streams if guided else plain)(**kwargs))
        return calls[-1]

    def step(pipe, i, t, seen):
        first.append(seen["latents"])
        return {}

    def decode(z, return_dict):
        seen = AutoencoderKL.decode(vae, z, return_dict=False)
        out["vae.out"] = seen[0][0]
        return seen

    scale = run.get("guidance-scale", 1.0)
    transformer.forward, vae.decode = forward, decode
    try:
        given = dict(prompt_embeds=encoded["pos"][0], pooled_prompt_embeds=encoded["pos"][1]) if run.get("pieces.pos") else dict(prompt=run["prompt"])
        image = pipe(**given, negative_prompt=(run.get("negative") or "") if scale != 1 else None, true_cfg_scale=scale, height=h, width=w,
                     num_inference_steps=run["steps"], generator=torch.Generator("cpu").manual_seed(run["seed"]),
                     max_sequence_length=TOKENS, output_type="pt", callback_on_step_end=step).images
    finally:
        del transformer.forward, vae.decode
    v = calls[0][0] if scale == 1 else calls[1][0] + scale * (calls[0][0] - calls[1][0])
    out["denoise.out.0"], out["latents.final"] = unpack(v), unpack(first[-1])
    out["image"] = (image[0] * 255).round().permute(1, 2, 0).to(torch.uint8)
    return {k: v.contiguous() for k, v in out.items()}


FLUX = dict(prompt="a red cat on a blue background", negative="the lazy dog, blurry", recipe="flux-schnell", seed=7, steps=2)
RUNS = {
    "one": dict(FLUX, steps=1, guidance="none", negative=None, size=(64, 32)),
    "four": dict(FLUX, steps=4, guidance="none", negative=None, size=(16, 48), seed=3),
    "nasa": dict(FLUX, guidance="nasa", alpha=0.5, size=(48, 32)),
    "mass": dict(FLUX, guidance="nasa", alpha=0.7, size=(32, 48), **{"nasa-variant": "mass"}),
    "joint": dict(FLUX, guidance="nasa", alpha=0.3, size=(32, 16), **{"nasa-variant": "joint"}),
    "nag": dict(FLUX, guidance="nag", phi=4, tau=1.1, beta=0.4, size=(32, 48)),
    "vsf": dict(FLUX, guidance="vsf", alpha=0.8, offset=0.3, size=(48, 32), steps=3),
    "cfg": dict(FLUX, guidance="none", size=(32, 48), **{"guidance-scale": 2.5}),
    "weights": dict(FLUX, guidance="nasa", alpha=0.4, size=(32, 32), prompt="a (red cat:1.4) on [a blue] background",
                    negative="(blurry)", **{"prompt-syntax": "a1111", "pieces.neg": [("blurry", 1.1)],
                                            "pieces.pos": [("a ", 1.0), ("red cat", 1.4), (" on ", 1.0), ("a blue", 1 / 1.1), (" background", 1.0)]}),
    "nasa-cfg": dict(FLUX, guidance="nasa", alpha=0.4, size=(48, 16), **{"guidance-scale": 1.5}),
}


def build(folder):
    if not (folder / "model").exists():
        torch.manual_seed(6)
        model_make(folder / "model")
    parts = model_load(folder / "model")
    for run, spec in RUNS.items():
        if not (folder / run).exists():
            with torch.no_grad():
                make.run_write(folder / run, spec, reference(parts, spec))
