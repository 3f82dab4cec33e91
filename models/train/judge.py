"""What a student draws in one step, counted by the detector of tests/removal: the gates of training, in torch, minutes before any farm.

    judge.py --state DIR --stage nasa
"""

import argparse
import random
import sys
from pathlib import Path

import torch

import captions
import coupling
import scenes
from scenes import CATEGORY, COLOURS, MEMBERS

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "removal"))
from detector import Detector  # noqa: E402

ALPHA = 0.5


class Judge:
    """Questions with fixed captions and noises, so that two stages are asked the same."""

    def __init__(self, count=48):
        self.count, self.detector = count, Detector()

    @torch.no_grad()
    def seen(self, painter, vae, texts, noise, negatives=None):
        context = painter.encode(texts)
        minus = painter.encode(negatives) if negatives else None
        x0 = painter.draw(noise, context, minus, torch.full((len(texts),), ALPHA) if negatives else None)
        return self.detector.look(vae.decode(x0).sample.clamp(-1, 1))

    def gates(self, painter, vae):
        """name -> percent."""
        n = self.count
        ask = lambda texts, seed=0, negatives=None: self.seen(painter, vae, texts, noises(n, seed), negatives)
        out = {}
        for name, held in (("single", False), ("held_out", True)):
            chosen = [p for p in ((noun, c) for noun in CATEGORY for c in COLOURS) if (p in scenes.HELD_OUT) == held]
            chosen = random.Random(1).sample(chosen, n) if len(chosen) >= n else random.Random(1).choices(chosen, k=n)
            seen = ask([f"{captions.article(noun)} on {captions.article(c)} background" for noun, c in chosen])
            out[name] = percent(s.nouns() == [noun] and s.colour == c for s, (noun, c) in zip(seen, chosen))
        categories = [list(MEMBERS)[i % len(MEMBERS)] for i in range(n)]
        plain = ask([captions.article(c) for c in categories], 1000)
        out["category"] = percent(len(s.things) == 1 and CATEGORY[s.things[0].noun] == c for s, c in zip(plain, categories))
        rng = random.Random(2)
        twos = [rng.sample(list(CATEGORY), 2) for _ in range(n)]
        seen = ask([f"{captions.article(a)} and {captions.article(b)}" for a, b in twos], 2000)
        out["two"] = percent(s.nouns() == sorted(two) for s, two in zip(seen, twos))
        places = [rng.choice(("left", "right", "top", "bottom")) for _ in range(n)]
        seen = ask([f"{captions.article(a)} {captions.WHERE[p][0]}" for (a, _), p in zip(twos, places)], 3000)
        out["place"] = percent([t.place for t in s.things] == [p] for s, p in zip(seen, places))
        # Minus what this noise would have drawn; minus what nobody asked for; one of two; stripes, asked for.
        first = [MEMBERS[c][coupling.choices(z)["noun"][0]] for c, z in zip(categories, noises(n, 1000))]
        seen = ask([captions.article(c) for c in categories], 1000, first)
        out["minus_member"] = percent(len(s.things) == 1 and CATEGORY[s.things[0].noun] == c and s.things[0].noun != f and not s.ghosts
                                      for s, c, f in zip(seen, categories, first))
        seen = ask([f"{captions.article(a)} and {captions.article(b)}" for a, b in twos], 2000, [b for _, b in twos])
        out["minus_second"] = percent(s.nouns() == [a] and not s.ghosts for s, (a, _) in zip(seen, twos))
        seen = ask([f"{captions.article(a)} on a striped background" for a, _ in twos], 4000, ["stripes"] * n)
        out["minus_stripes"] = percent(s.nouns() == [a] and s.pattern != "striped" and not s.ghosts for s, (a, _) in zip(seen, twos))
        other = [b if CATEGORY[a] != CATEGORY[b] else "background" for a, b in twos]
        texts = [f"{captions.article(a)} on {captions.article(list(COLOURS)[i % 8])} background" for i, (a, _) in enumerate(twos)]
        before, after = ask(texts, 5000), ask(texts, 5000, other)
        out["unrelated_kept"] = percent(s.nouns() == [a] and (s.nouns(), s.colour, s.pattern) == (t.nouns(), t.colour, t.pattern)
                                        for s, t, (a, _) in zip(before, after, twos))
        return out


def noises(count, seed):
    return torch.stack([torch.randn(scenes.LATENT, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])


def percent(hits):
    hits = list(hits)
    return 100.0 * sum(hits) / len(hits)


if __name__ == "__main__":
    import export

    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--state", required=True)
    a.add_argument("--stage", default="nasa")
    a.add_argument("--count", type=int, default=200)
    args = a.parse_args()
    painter, vae = export.load(args.state, args.stage)
    for name, value in Judge(args.count).gates(painter, vae).items():
        print(f"{name:16} {value:5.1f} % of {args.count}")
