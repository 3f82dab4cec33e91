"""Stage 1: the autoencoder. AutoencoderKL, 8 pixels a latent cell, 8 channels, whitened."""

import argparse
import random
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

import scenes
from optimiser import Muon
from run_state import Stage


def build():
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128), layers_per_block=1, latent_channels=8, norm_num_groups=8,
        sample_size=scenes.SIZE, scaling_factor=1.0)
    with torch.no_grad():  # a posterior that begins narrow; wider ones never learn their noise away
        vae.quant_conv.bias[8:] = -5
        vae.quant_conv.weight[8:] *= 0.1
    return vae


def pictures(rng, count, everything):
    out = []
    for _ in range(count):
        if rng.random() < 0.6:
            out.append(scenes.compose(rng.choice(everything)))
        else:
            size = rng.choice((40, 48, 56, 64))
            at = tuple(rng.randrange(0, scenes.SIZE - size + 1, 8) for _ in range(2))
            out.append(scenes.compose(rng.choice(everything), size, at))
    return scenes.to_tensor(out)


def train(state_dir, images, batch=16, lr=0.01):
    torch.manual_seed(1)
    vae = build()  # f32, contiguous: 13.5 images/s on two cores where bf16 autocast makes 7.4
    opt = Muon(vae.parameters(), lr, adam_lr=2e-3)
    stage = Stage(state_dir, "autoencoder")
    done = 0
    if state := stage.load():
        vae.load_state_dict(state["model"])
        opt.load_state_dict(state["optimiser"])
        done = state["done"]
    everything = scenes.scenes()
    began, begun = time.time(), done
    loss_mean = mse_mean = None
    while done < images:
        rng = random.Random(done)
        torch.manual_seed(done)
        x = pictures(rng, batch, everything)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        mean, logvar = posterior.mean, posterior.logvar
        mse = F.mse_loss(y, x)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = mse + 0.25 * F.l1_loss(y, x) + 1e-4 * kl
        loss.backward()
        left = 1 - done / images
        opt.step(lr * min(1, done / 500 + 0.05) * min(1, left / 0.4))
        done += batch
        mse_mean = mse.item() if mse_mean is None else 0.98 * mse_mean + 0.02 * mse.item()
        if done // batch % 50 == 0:
            psnr = 10 * torch.log10(torch.tensor(4 / mse_mean)).item()
            stage.log(done=done, psnr=psnr, kl=kl.item(), per_s=(done - begun) / (time.time() - began))
        if stage.due():
            stage.save({"model": vae.state_dict(), "optimiser": opt.state_dict(), "done": done})
    stage.save({"model": vae.state_dict(), "optimiser": opt.state_dict(), "done": done})
    return vae


@torch.no_grad()
def whiten(vae):
    """Folds mean and covariance of the latents into the quant convolutions: latents become N(0, I)-like."""
    vae.eval()
    latents = torch.cat([vae.encode(scenes.to_tensor([scenes.compose(s) for s in part])).latent_dist.mean
                         for part in chunks(scenes.scenes(), 32)])
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat))
    # ZCA with a floor: directions that carry nothing are not blown up.
    scale = values.clamp(min=1e-4).rsqrt()
    to = vectors @ torch.diag(scale) @ vectors.T
    back = vectors @ torch.diag(1 / scale) @ vectors.T
    q, p = vae.quant_conv, vae.post_quant_conv
    w, b = q.weight.double(), q.bias.double()
    n = len(mean)
    q.weight[:n] = torch.einsum("oc,cikl->oikl", to, w[:n]).float()
    q.bias[:n] = (to @ (b[:n] - mean)).float()
    q.bias[n:] += 2 * torch.log(scale.mean()).float()
    pw, pb = p.weight.double()[:, :, 0, 0], p.bias.double()
    p.weight[:] = (pw @ back).float()[:, :, None, None]
    p.bias[:] = (pb + pw @ mean).float()
    return vae


def chunks(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--state", required=True)
    a.add_argument("--images", type=int, default=16000)
    args = a.parse_args()
    train(args.state, args.images)
