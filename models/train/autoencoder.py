"""Stage `autoencoder`: AutoencoderKL, 8 pixels a latent cell, 8 channels, whitened in the end."""

import argparse

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

import scenes
from optimiser import Muon
from precision import quicken
from run_state import Stage, Training


def build(widths=(16, 32, 64, 128)):
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=widths,
        layers_per_block=1, latent_channels=scenes.LATENT[0], norm_num_groups=8, sample_size=scenes.SIZE, scaling_factor=1.0)
    with torch.no_grad():  # a posterior that begins narrow; wider ones never learn their noise away
        vae.quant_conv.bias[8:] = -5
        vae.quant_conv.weight[8:] *= 0.1
    return vae


def train(state_dir, images, batch=16, lr=0.01, widths=(16, 32, 64, 128)):
    torch.manual_seed(1)
    vae = quicken(build(widths))
    opt = Muon(vae.parameters(), lr, adam_lr=2e-3)
    training = Training(Stage(state_dir, "autoencoder"), vae, [opt], images, batch, seed=0)
    world = scenes.singles() + scenes.pairs(5000)
    for step in training:
        x = scenes.pictures(step.rng.choices(world, k=batch))
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        mean, logvar = posterior.mean, posterior.logvar
        mse = F.mse_loss(y, x)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        (mse + 0.25 * F.l1_loss(y, x) + 1e-4 * kl).backward()
        opt.step(lr * min(1, step.done / 500 + 0.05) * min(1, (1 - step.share) / 0.4))
        training.note(psnr=10 * torch.log10(4 / mse.detach()), kl=kl.detach())
    vae.load_state_dict(training.averaged)
    Stage(state_dir, "vae").save(whiten(vae, world[:: max(1, len(world) // 1000)]).state_dict())


def load(state_dir, widths=(16, 32, 64, 128)):
    """The whitened one, ready for use."""
    vae = build(widths)
    vae.load_state_dict(Stage(state_dir, "vae").need())
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae, some, batch=32):
    """[N, 8, 12, 12], the means."""
    return torch.cat([vae.encode(scenes.pictures(some[i : i + batch])).latent_dist.mean for i in range(0, len(some), batch)])


@torch.no_grad()
def whiten(vae, some):
    """Folds mean and covariance of the scenes' latents into the quant convolutions: latents become N(0, I)-like."""
    vae.eval()
    flat = encode(vae, some).permute(1, 0, 2, 3).flatten(1).double()
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


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--state", required=True)
    a.add_argument("--images", type=int, default=28000)
    args = a.parse_args()
    train(args.state, args.images)
