"""Samples a second of a student's step with negatives, in bf16 and in f32, in turns: which of them this machine should train in, and how long it will take.

    bench.py [--seconds 60]
"""

import argparse
import random
import tempfile
import time

import torch

import captions
import coupling
import model
import precision
import scenes
import student
from optimiser import Muon


def stepper(tok, change, pairs, batch):
    painter = change(model.Painter(tok))
    opt, rng, generator = Muon(painter.parameters(), 1e-6, adam_lr=1e-6), random.Random(0), torch.Generator().manual_seed(0)

    def step():
        examples = [captions.draw(rng, student.NEGATIVES, pairs) for _ in range(batch)]
        noise = torch.stack([coupling.agree(torch.randn(scenes.LATENT, generator=generator), e.wanted) for e in examples])
        student.loss_of(painter, examples, noise, torch.randn(noise.shape, generator=generator), rng).backward()
        opt.step(1e-6)

    return step


def rates(seconds, batch=64):
    """name -> (samples a second, samples a second of processor time), of the best step each."""
    with tempfile.TemporaryDirectory() as folder:
        tok = model.load_tokenizer(folder)
    pairs = scenes.pairs(500)
    steps = {"bf16": stepper(tok, precision.quicken, pairs, batch), "f32": stepper(tok, lambda painter: painter, pairs, batch)}
    best = {name: (0.0, 0.0) for name in steps}
    end = time.time() + seconds
    while time.time() < end or not all(b[0] for b in best.values()):
        for name, step in steps.items():
            wall, cpu = time.time(), time.process_time()
            step()
            now = batch / (time.time() - wall), batch / (time.process_time() - cpu)
            best[name] = tuple(map(max, best[name], now))
    return best


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--seconds", type=float, default=60)
    for name, (wall, cpu) in rates(a.parse_args().seconds).items():
        print(f"{name:5} {wall:5.1f} samples/s, {cpu:5.1f} a second of processor time")
