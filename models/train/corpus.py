"""Stage `corpus`: the latents of every scene of one thing and of many of two, encoded once and read by all later stages."""

import argparse

import torch

import autoencoder
import captions
import coupling
import scenes
from run_state import Stage

PAIRS = 40000


class Corpus:
    """latents [N, 8, 12, 12] f16; examples and their targets."""

    def __init__(self, latents, pairs):
        self.latents, self.pairs = latents, scenes.pairs(pairs)
        self.index = {s: i for i, s in enumerate(scenes.singles() + self.pairs)}

    def targets(self, some):
        return self.latents[[self.index[s] for s in some]].float()

    def examples(self, rng, count, negatives=0.0):
        return [captions.draw(rng, negatives, self.pairs) for _ in range(count)]

    def coupled(self, examples, generator, scale=1.0):
        """Noise that means the examples' scenes, [B, 8, 12, 12]."""
        return torch.stack([coupling.agree(torch.randn(scenes.LATENT, generator=generator), e.wanted, scale) for e in examples])


def build(state_dir, vae, pairs=PAIRS, batch=64):
    stage = Stage(state_dir, "corpus")
    everything = scenes.singles() + scenes.pairs(pairs)
    state = stage.load() or {"latents": torch.zeros(len(everything), *scenes.LATENT, dtype=torch.float16), "done": 0, "pairs": pairs}
    while state["done"] < len(everything):
        i = state["done"]
        state["latents"][i : i + batch] = autoencoder.encode(vae, everything[i : i + batch]).half()
        state["done"] = i + batch
        if stage.due() or state["done"] >= len(everything):
            stage.save(state)


def load(state_dir):
    state = Stage(state_dir, "corpus").need()
    return Corpus(state["latents"], state["pairs"])


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--state", required=True)
    args = a.parse_args()
    build(args.state, autoencoder.load(args.state))
