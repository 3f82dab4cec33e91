"""The detector's own accuracy: on clean pictures that training never showed, blurred, noisy, through a model's autoencoder; on ghosts made on
purpose; and beside eyes, on a student's pictures that somebody has named."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import detector
from detector import scenes
from verdict import share

HERE = Path(__file__).resolve().parent


def held_out(count):
    """Scenes of one and of two things, all of them of pairs of thing and background that training does not show."""
    ones = [s for s in scenes.singles() if s.held_out()]
    return ones[:: max(1, len(ones) // count)][:count] + scenes.pairs(count, held_out=True, seed=7)


def blurred(x):
    return F.avg_pool2d(F.pad(x, (1,) * 4, mode="replicate"), 3, 1)


@torch.no_grad()
def decoded(folder, x):
    """Through a model folder's autoencoder."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").float().eval()
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in x.split(32)])


def ghosted(scene, strength):
    """The scene's picture with its last thing as a ghost of so much strength: what is left of it, or its inverse."""
    rest = scenes.Scene(scene.things[:-1], scene.colour, scene.pattern)
    with_it, without = scenes.pictures([scene, rest])
    return (without + strength * (with_it - without)).clamp(-1, 1)


def report(look, folder, count=150, write=print):
    everything = held_out(count)
    clean = scenes.pictures(everything)
    vocabulary = json.loads((Path(folder) / "tokenizer" / "vocab.json").read_text())
    known = [i for i, s in enumerate(everything) if all(t.noun + "</w>" in vocabulary for t in s.things)]
    noise = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    write("Detector, on scenes of pairs held out of training, % (95 % interval):")
    write(f"  {'':46}{'things':>14}{'and places':>14}{'and kinds':>14}{'background':>14}{'false ghosts':>14}")
    for name, some, x in (("clean", everything, clean), ("blurred (3x3)", everything, blurred(clean)), ("noisy (sigma 0.1)", everything, clean + noise),
                          ("through the autoencoder, its words", [everything[i] for i in known], decoded(folder, clean[known]))):
        seen = look(x)
        of = lambda what: share(sorted(map(what, s.things)) == sorted(map(what, scene.things)) for s, scene in zip(seen, some))
        write(f"  {f'{name}, {len(some)}':46}{of(lambda t: t.noun):>14}{of(lambda t: (t.noun, t.place)):>14}{of(lambda t: (t.noun, t.variant)):>14}"
              f"{share((s.colour, s.pattern) == (scene.colour, scene.pattern) for s, scene in zip(seen, some)):>14}{share(bool(s.ghosts) for s in seen):>14}")
    twos = scenes.pairs(count, held_out=True, seed=8)
    write(f"Ghosts of a second thing, {count} each: seen as that thing or its ghost, any ghost, %")
    for strength in (0.5, 0.3, 0.2, -0.2, -0.3, -0.5):
        seen = look(torch.stack([ghosted(s, strength) for s in twos]))
        right = [any(g.of == scene.things[-1].noun and (g.kind == "inverse") == (strength < 0) for g in s.ghosts)
                 or scene.things[-1].noun in s.nouns() for s, scene in zip(seen, twos)]
        write(f"  strength {strength:+.1f}   {share(right):>14}{share(bool(s.ghosts) for s in seen):>14}")
    eyes(look, write)


def eyes(look, write):
    """eyes.json names the pictures of eyes.webp, a sheet of 12 in a row, as somebody saw them; made by sheet.py --eyes."""
    named = json.loads((HERE / "eyes.json").read_text())["pictures"]
    seen = look(scenes.to_tensor(cut(HERE / "eyes.webp", len(named))))
    things = [s.nouns() == sorted(n["things"]) for s, n in zip(seen, named)]
    grounds = [(s.colour, s.pattern) == (n["colour"], n["pattern"]) for s, n in zip(seen, named)]
    ghosts = [bool(s.ghosts) == n["ghost"] for s, n in zip(seen, named)]
    write(f"Beside eyes, on {len(named)} pictures of a student: things {share(things)}, background {share(grounds)}, ghost or not {share(ghosts)} %")
    return things, grounds, ghosts


def cut(sheet, count, row=12, side=scenes.SIZE):
    image = np.asarray(Image.open(sheet).convert("RGB"))
    return [image[i // row * side : i // row * side + side, i % row * side : i % row * side + side] for i in range(count)]


if __name__ == "__main__":
    report(detector.Detector().look, HERE.parents[1] / "models" / "demo")
