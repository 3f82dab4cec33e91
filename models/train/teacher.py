"""Stage `teacher`: an ordinary diffusion model of the same scenes, n steps and classifier-free guidance.

Its noise is independent of the scene, so what a caption leaves open comes out at random. It begins with the student's `base`, which knows the words and
shapes; ordinary denoising at all time steps then unlearns the coupling.
"""

import argparse

import torch

import corpus
import model
from optimiser import Muon
from precision import quicken
from run_state import Stage, Training

NO_CAPTION = 0.12  # share of a batch; the unconditional half of classifier-free guidance


def train(state_dir, data, painter, samples, batch=64, lr=0.006):
    parent = Stage(state_dir, "base").need()
    painter.load_state_dict(parent["averaged"])
    opt = Muon(quicken(painter).parameters(), lr, adam_lr=1e-3)
    training = Training(Stage(state_dir, "teacher"), painter, [opt], samples, batch, seed=20_000_000)
    for step in training:
        examples = data.examples(step.rng, batch)
        captions = ["" if step.rng.random() < NO_CAPTION else e.caption for e in examples]
        loss = denoising_loss(painter, data.targets([e.scene for e in examples]), painter.encode(captions), step.generator)
        loss.backward()
        opt.step(lr * min(1, step.done / 5000 + 0.05) * (min(1, (1 - step.share) / 0.6) + 0.01))
        training.note(loss=loss.detach())
    return training.averaged


def denoising_loss(painter, x0, context, generator):
    """v-prediction at random times. Half of them late, where what a caption leaves open is decided."""
    u = torch.rand(len(x0), generator=generator)
    t = (999 * torch.where(torch.arange(len(x0)) % 2 == 0, u, u**0.5)).round().long()
    x, v = model.noised(x0, torch.randn(x0.shape, generator=generator), t)
    return (painter.velocity(x, t, context) - v).square().mean()


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--state", required=True)
    a.add_argument("--samples", type=int, default=240_000)
    args = a.parse_args()
    torch.manual_seed(3)
    train(args.state, corpus.load(args.state), model.Painter(model.load_tokenizer(args.state)), args.samples)
