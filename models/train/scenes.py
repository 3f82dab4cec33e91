"""The world of the demo model: one or two things, drawn by emoji, on a coloured, plain, striped or dotted background.

Places are 8 pixels apart, one cell of the latents, so that a thing has one latent appearance wherever it stands.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

import emoji

SIZE = 96  # pixels a side
LATENT = (8, 12, 12)  # channels, height, width

# category -> noun -> [(CLDR's name, the colour that tells variants apart or "")]
NOUNS = {
    "fruit": {
        "apple": [("red apple", "red"), ("green apple", "green")],
        "banana": [("banana", "")],
        "strawberry": [("strawberry", "")],
        "pineapple": [("pineapple", "")],
        "watermelon": [("watermelon", "")],
        "lemon": [("lemon", "")],
    },
    "animal": {
        "cat": [("cat face", "")],
        "dog": [("dog face", "")],
        "frog": [("frog", "")],
        "penguin": [("penguin", "")],
        "elephant": [("elephant", "")],
        "octopus": [("octopus", "")],
    },
    "vehicle": {
        "car": [("automobile", "red"), ("sport utility vehicle", "blue")],
        "bus": [("bus", "")],
        "rocket": [("rocket", "")],
        "bicycle": [("bicycle", "")],
        "tractor": [("tractor", "")],
        "sailboat": [("sailboat", "")],
    },
    "plant": {
        "rose": [("rose", "")],
        "sunflower": [("sunflower", "")],
        "tulip": [("tulip", "")],
        "cactus": [("cactus", "")],
        "tree": [("deciduous tree", "")],
        "clover": [("four leaf clover", "")],
    },
    "instrument": {
        "guitar": [("guitar", "")],
        "violin": [("violin", "")],
        "trumpet": [("trumpet", "")],
        "drum": [("drum", "")],
        "accordion": [("accordion", "")],
        "piano": [("musical keyboard", "")],
    },
}
CATEGORY = {noun: category for category, nouns in NOUNS.items() for noun in nouns}
MEMBERS = {category: list(nouns) for category, nouns in NOUNS.items()}
COLOURS = {
    "red": (222, 60, 60),
    "orange": (245, 150, 50),
    "yellow": (250, 220, 80),
    "green": (80, 175, 90),
    "blue": (70, 120, 220),
    "purple": (150, 90, 190),
    "pink": (250, 165, 195),
    "white": (245, 245, 245),
}
PATTERNS = ("plain", "striped", "dotted")

# place -> (x, y, side). Two pixels of air, so that neighbours do not touch.
PLACES = {
    "big": (10, 10, 76),
    "middle": (26, 26, 44),
    "left": (2, 26, 44),
    "right": (50, 26, 44),
    "top": (26, 2, 44),
    "bottom": (26, 50, 44),
}
SMALL = tuple(p for p in PLACES if p != "big")
# Where the first and the second of two things stand.
LAYOUTS = (("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top"))

# Pairs of thing and background that training never shows: two colours of each noun's eight.
HELD_OUT = {(noun, list(COLOURS)[(3 * i + 5 * k) % len(COLOURS)]) for i, noun in enumerate(CATEGORY) for k in range(2)}


@dataclass(frozen=True)
class Thing:
    noun: str
    variant: int
    place: str


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    colour: str
    pattern: str

    def held_out(self):
        return any((t.noun, self.colour) in HELD_OUT for t in self.things)


def variants(noun):
    return NOUNS[CATEGORY[noun]][noun]


def singles():
    """Every scene of one thing."""
    return [Scene((Thing(noun, v, place),), colour, pattern) for noun in CATEGORY for v in range(len(variants(noun)))
            for place in PLACES for colour in COLOURS for pattern in PATTERNS]


def pairs(count, held_out=False, seed=0):
    """So many scenes of two different things, of those that training shows or of those it does not."""
    rng = random.Random(seed)
    out = []
    while len(out) < count:
        nouns = rng.sample(list(CATEGORY), 2)
        places = rng.choice(LAYOUTS)
        scene = Scene(tuple(Thing(n, rng.randrange(len(variants(n))), p) for n, p in zip(nouns, places)),
                      rng.choice(list(COLOURS)), rng.choice(PATTERNS))
        if scene.held_out() == held_out:
            out.append(scene)
    return out


@lru_cache(maxsize=None)
def background(colour, pattern):
    """uint8 [96, 96, 3]"""
    base = np.array(COLOURS[colour], np.float32)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    darker = {"plain": np.zeros((SIZE, SIZE), bool), "striped": x // 8 % 2 == 1,
              "dotted": (x % 16 - 8) ** 2 + (y % 16 - 8) ** 2 < 16}[pattern]
    return np.where(darker[..., None], base * 0.72, base).astype(np.uint8)


def compose(scene):
    """The picture, uint8 [96, 96, 3]."""
    image = Image.fromarray(background(scene.colour, scene.pattern))
    for thing in scene.things:
        x, y, side = PLACES[thing.place]
        drawn = emoji.picture(variants(thing.noun)[thing.variant][0], side)
        image.paste(drawn, (x, y), drawn)
    return np.asarray(image)


def to_tensor(pictures):
    """uint8 [H, W, 3] arrays -> float [B, 3, H, W] in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def pictures(scenes):
    return to_tensor([compose(s) for s in scenes])


def cells(things):
    """[12, 12], 1 where a thing stands."""
    out = torch.zeros(LATENT[1:])
    for thing in things:
        x, y, side = PLACES[thing.place]
        out[y // 8 : -(-(y + side) // 8), x // 8 : -(-(x + side) // 8)] = 1
    return out
