"""Stage 2: the one-step student. Text encoder and U-Net together, regression on x0, NASA in the loop at the end."""

import argparse
import random
import time

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import autoencoder
import scenes
import tokenizer
from optimiser import Muon
from run_state import Stage

T = 999
ALPHA_BAR = float(DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod[T])


def build(tok):
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tok), hidden_size=192, intermediate_size=768, num_hidden_layers=3, num_attention_heads=6,
        max_position_embeddings=tokenizer.LENGTH, projection_dim=192, bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id))
    unet = UNet2DConditionModel(
        sample_size=scenes.LATENT[1], in_channels=8, out_channels=8, block_out_channels=(96, 160), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=192, attention_head_dim=(3, 5))
    return text, unet


class NasaProcessor:
    """Cross-attention Z+ - alpha Z-, before the output projection (SNOOPI, Eq. 7-9)."""

    def __init__(self, shared):
        self.shared = shared

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        residual, b = hidden_states, hidden_states.shape[0]
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        split = lambda t: t.view(b, -1, attn.heads, t.shape[-1] // attn.heads).transpose(1, 2)
        q = split(attn.to_q(hidden_states))
        z = F.scaled_dot_product_attention(q, split(attn.to_k(context)), split(attn.to_v(context)))
        if encoder_hidden_states is not None and self.shared["negative"] is not None:
            minus = self.shared["negative"]
            zn = F.scaled_dot_product_attention(q, split(attn.to_k(minus)), split(attn.to_v(minus)))
            z = z - self.shared["alpha"].view(-1, 1, 1, 1) * zn
        out = attn.to_out[0](z.transpose(1, 2).flatten(2))
        return out / attn.rescale_output_factor + (residual if attn.residual_connection else 0)


def encode(tok, text, captions):
    ids = tok(captions, padding="max_length", max_length=tokenizer.LENGTH, truncation=True, return_tensors="pt").input_ids
    return text(ids).last_hidden_state


def x0_of(unet, noise, context):
    v = unet(noise, torch.full((len(noise),), T), context).sample
    return ALPHA_BAR**0.5 * noise - (1 - ALPHA_BAR) ** 0.5 * v


def train(state_dir, vae, tok, samples, batch=48, lr=0.01, nasa_from=0.6):
    torch.manual_seed(2)
    text, unet = build(tok)
    shared = {"negative": None, "alpha": None}
    unet.set_attn_processor(NasaProcessor(shared))
    models = torch.nn.ModuleDict({"text": text, "unet": unet})
    averaged = {k: v.clone() for k, v in models.state_dict().items()}
    opt = Muon(models.parameters(), lr, adam_lr=1e-3)
    stage = Stage(state_dir, "student")
    done = 0
    if state := stage.load():
        models.load_state_dict(state["model"])
        averaged = state["averaged"]
        opt.load_state_dict(state["optimiser"])
        done = state["done"]
    everything = scenes.scenes()
    with torch.no_grad():
        vae.eval()
        latents = torch.cat([vae.encode(scenes.to_tensor([scenes.compose(s) for s in part])).latent_dist.mean
                             for part in autoencoder.chunks(everything, 32)])
    index = {s: i for i, s in enumerate(everything)}
    began, begun, mean = time.time(), done, None
    while done < samples:
        share = done / samples
        rng = random.Random(10_000_000 + done)
        generator = torch.Generator().manual_seed(10_000_000 + done)
        nasa = share >= nasa_from
        examples = [scenes.draw(rng, negatives=0.5 if nasa else 0.0) for _ in range(batch)]
        # The functionals begin exaggerated and end as the noise has them.
        scale = 1 + 3 * max(0, 1 - share / 0.3)
        noise = torch.stack([scenes.agree(torch.randn(scenes.LATENT, generator=generator), e.wanted, scale) for e in examples])
        target = latents[[index[e.scene] for e in examples]]
        alpha = torch.tensor([rng.uniform(0.4, 1.0) if e.negative else 0.0 for e in examples])
        context = encode(tok, text, [e.caption for e in examples] + ([e.negative for e in examples] if nasa else []))
        shared["negative"] = context[batch:] if nasa else None
        shared["alpha"] = alpha
        x0 = x0_of(unet, noise, context[:batch])
        loss = F.mse_loss(x0, target) + 0.5 * F.l1_loss(x0, target)
        loss.backward()
        opt.step(lr * min(1, done / 2000 + 0.05) * min(1, (1 - share) / 0.35 + 0.01))
        decay = min(0.998, (done / batch + 1) / (done / batch + 10))
        with torch.no_grad():
            for k, v in models.state_dict().items():
                if v.is_floating_point():
                    averaged[k].lerp_(v, 1 - decay)
        done += batch
        mean = loss.item() if mean is None else 0.97 * mean + 0.03 * loss.item()
        if done // batch % 25 == 0:
            stage.log(done=done, loss=mean, per_s=(done - begun) / (time.time() - began))
        if stage.due() or done >= samples:
            stage.save({"model": models.state_dict(), "averaged": averaged, "optimiser": opt.state_dict(), "done": done})
    models.load_state_dict(averaged)
    return text, unet


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--state", required=True)
    a.add_argument("--samples", type=int, default=100000)
    args = a.parse_args()
    vae = autoencoder.build()
    vae.load_state_dict(Stage(args.state, "autoencoder").load()["model"])
    tokenizer.make(f"{args.state}/tokenizer")
    train(args.state, autoencoder.whiten(vae), CLIPTokenizer.from_pretrained(f"{args.state}/tokenizer"), args.samples)
