"""Stages `base`, `nasa` and `plain`: the one-step student, text encoder and U-Net together, by regression on x0.

`base` learns to draw. `nasa` and `plain` both go on from it to the same number of samples, one with NASA in its loop and
negatives in half of its examples, one without: so the two ways of using NASA, in training and at inference only, can be told apart.
"""

import argparse

import torch

import autoencoder
import corpus
import judge
import model
import scenes
from optimiser import Muon
from precision import quicken
from run_state import Stage, Training

ALPHA = (0.3, 0.7)  # drawn from it in training; more of it hurts pictures that the negative does not concern
NEGATIVES = 0.5  # share of a batch in `nasa`
EASY = 0.5  # of `base`: for so long the noise's functionals are exaggerated, from four times to once
CLOSELY = 3.0  # weight of the cells where things stand, beside 1 for the background


def train(state_dir, name, data, painter, until, batch=64, lr=0.01, gate=None):
    """gate(training): called now and then, for the curve."""
    opt = Muon(quicken(painter).parameters(), lr, adam_lr=1e-3)
    stage = Stage(state_dir, name)
    parent = None if name == "base" or stage.load() else Stage(state_dir, "base").need()
    training = Training(stage, painter, [opt], until, batch, seed=10_000_000, parent=parent)
    for step in training:
        examples = data.examples(step.rng, batch, NEGATIVES if name == "nasa" else 0.0)
        scale = 1 + 3 * max(0, 1 - step.share / EASY) if name == "base" else 1.0
        loss = loss_of(painter, examples, data.coupled(examples, step.generator, scale), data.targets([e.scene for e in examples]), step.rng)
        loss.backward()
        # Constant in `base`; the branches cool down from there.
        left = 1 if name == "base" else min(1, (1 - step.share) / 0.7) + 0.01
        opt.step(lr * min(1, (step.done - training.fresh) / 2000 + 0.05) * left)
        training.note(loss=loss.detach())
        if gate and step.done // gate.every != (step.done + batch) // gate.every:
            gate(training, step.done + batch)
    return training.averaged


def loss_of(painter, examples, noise, target, rng):
    context = painter.encode([e.caption for e in examples])
    negative = alpha = None
    if any(e.negative for e in examples):
        negative = painter.encode([e.negative for e in examples])
        alpha = torch.tensor([rng.uniform(*ALPHA) if e.negative else 0.0 for e in examples])
    x0 = painter.draw(noise, context, negative, alpha)
    weight = torch.stack([1 + (CLOSELY - 1) * scenes.cells(e.things) for e in examples])[:, None]
    weight = weight / weight.mean((1, 2, 3), keepdim=True)
    off = x0 - target
    return (weight * (off**2 + 0.5 * off.abs())).mean()


class Gate:
    """Every so many samples: what the averaged student draws, counted, in the stage's curve (docs say what to expect when)."""

    def __init__(self, vae, tok, every=20000):
        self.vae, self.painter, self.every = vae, model.Painter(tok).eval(), every
        self.judge = judge.Judge()

    def __call__(self, training, done):
        self.painter.load_state_dict(training.averaged)
        training.stage.log(done=done, **self.judge.gates(self.painter, self.vae))


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("stage", choices=("base", "nasa", "plain"))
    a.add_argument("--state", required=True)
    a.add_argument("--samples", type=int, help="in all, those of `base` included")
    args = a.parse_args()
    torch.manual_seed(2)
    vae, tok = autoencoder.load(args.state), model.load_tokenizer(args.state)
    samples = args.samples or (240_000 if args.stage == "base" else 400_000)
    train(args.state, args.stage, corpus.load(args.state), model.Painter(tok), samples, gate=Gate(vae, tok))
