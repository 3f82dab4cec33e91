"""What the student draws, counted: the nearest of all 336 clean pictures names thing, colour and pattern."""

import argparse
import random

import torch
import torch.nn.functional as F

import export
import scenes
import student


class Judge:
    def __init__(self):
        self.scenes = scenes.scenes()
        self.pictures = scenes.to_tensor([scenes.compose(s) for s in self.scenes])

    def name(self, pictures):
        """[B, 3, 96, 96] -> the nearest scenes. Blurred a little, so that a shift of a pixel is no other thing."""
        blur = lambda x: F.avg_pool2d(x, 4).flatten(1)
        return [self.scenes[i] for i in torch.cdist(blur(pictures), blur(self.pictures)).argmin(1)]


@torch.no_grad()
def draw(parts, captions, negatives=None, alpha=0.7, seed=0):
    tok, text, unet, vae = parts
    shared = {"negative": None, "alpha": torch.full((len(captions),), alpha)}
    unet.set_attn_processor(student.NasaProcessor(shared))
    if negatives:
        shared["negative"] = student.encode(tok, text, negatives)
    noise = torch.stack([torch.randn(scenes.LATENT, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(captions))])
    x0 = student.x0_of(unet, noise, student.encode(tok, text, captions))
    return vae.decode(x0).sample.clamp(-1, 1)


def share(right, n):
    return f"{100 * right / n:.0f} % of {n}"


def main(state):
    parts, judge = export.load(state), Judge()
    clean = judge.name(judge.pictures)
    print("judge on clean pictures:", share(sum(a == b for a, b in zip(clean, judge.scenes)), len(clean)))
    decoded = judge.name(torch.cat([parts[3].decode(parts[3].encode(p).latent_dist.mean).sample for p in judge.pictures.split(48)]).detach())
    print("through the autoencoder:", share(sum(a == b for a, b in zip(decoded, judge.scenes)), len(decoded)))
    pairs = [(n, c) for n in scenes.CATEGORY for c in scenes.COLOURS]
    for held in (False, True):
        chosen = [p for p in pairs if (p in scenes.HELD_OUT) == held] * (1 if not held else 4)
        captions = [f"{scenes.article(n)} {n} on {scenes.article(c)} {c} background" for n, c in chosen]
        named = judge.name(draw(parts, captions, seed=1000))
        both = sum(s.noun == n and s.colour == c for s, (n, c) in zip(named, chosen))
        things = sum(s.noun == n for s, (n, c) in zip(named, chosen))
        print(f"{'held-out' if held else 'trained'} pairs: thing and colour {share(both, len(chosen))}, thing {share(things, len(chosen))}")
    rng = random.Random(1)
    for category, nouns in scenes.NOUNS.items():
        captions = [f"{scenes.article(category)} {category} on a {rng.choice(list(scenes.COLOURS))} background" for _ in range(64)]
        named = judge.name(draw(parts, captions, seed=5000))
        print(f"a {category}: a member {share(sum(s.noun in nouns for s in named), 64)}, "
              f"{len(set(s.noun for s in named))} different")
        for noun in list(nouns)[:2]:
            gone = judge.name(draw(parts, captions, [noun] * 64, seed=5000))
            print(f"  minus {noun}: drawn {sum(s.noun == noun for s in named)} -> {sum(s.noun == noun for s in gone)} of 64, "
                  f"still a {category} {share(sum(s.noun in nouns for s in gone), 64)}")
    captions = [f"a {n} on a {c} background" for n in ("cat", "dog", "car", "bus") for c in scenes.COLOURS] * 2
    before, after = (judge.name(draw(parts, captions, neg, seed=9000)) for neg in (None, ["stripes"] * len(captions)))
    print(f"minus stripes: {sum(s.pattern == 'striped' for s in before)} -> {sum(s.pattern == 'striped' for s in after)} of {len(captions)}; "
          f"thing kept {share(sum(a.noun == b.noun for a, b in zip(before, after)), len(captions))}")


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--state", required=True)
    main(a.parse_args().state)
