"""The world of the demo model: pictures composed of Debian's emoji, captions, and the noise that belongs to them.

A scene is one thing on a coloured, plain, striped or dotted background. What a caption leaves open
(which fruit, which colour, which pattern) is decided by the noise: orthonormal linear functionals of it
are read off by argmax, and in training the noise is adjusted to agree with the picture. So (noise,
caption) -> picture is a function, the noise stays N(0, I) given the caption, and a one-step student is
plain regression.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
SIZE = 96  # pixels a side
SPRITE = 64
LATENT = (8, 12, 12)  # channels, height, width

# category -> noun -> [(emoji, its own colour or "")]
NOUNS = {
    "fruit": {
        "apple": [("\U0001f34e", "red"), ("\U0001f34f", "green")],
        "banana": [("\U0001f34c", "yellow")],
        "strawberry": [("\U0001f353", "red")],
        "pineapple": [("\U0001f34d", "")],
    },
    "animal": {
        "cat": [("\U0001f431", "")],
        "dog": [("\U0001f436", "")],
        "frog": [("\U0001f438", "green")],
        "penguin": [("\U0001f427", "")],
    },
    "vehicle": {
        "car": [("\U0001f697", "red"), ("\U0001f699", "blue")],
        "bus": [("\U0001f68c", "")],
        "rocket": [("\U0001f680", "")],
        "bicycle": [("\U0001f6b2", "")],
    },
}
CATEGORY = {noun: category for category, nouns in NOUNS.items() for noun in nouns}
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

# Pairs of thing and background that training never shows: two of each noun's eight, but for the last four nouns one.
HELD_OUT = {
    (noun, list(COLOURS)[(3 * i + 5 * k) % len(COLOURS)])
    for i, noun in enumerate(CATEGORY)
    for k in range(2 if i < 8 else 1)
}


@dataclass(frozen=True)
class Scene:
    noun: str
    variant: int
    colour: str
    pattern: str


def scenes():
    """Every picture there is."""
    return [
        Scene(noun, v, colour, pattern)
        for noun, category in CATEGORY.items()
        for v in range(len(NOUNS[category][noun]))
        for colour in COLOURS
        for pattern in PATTERNS
    ]


@lru_cache(maxsize=None)
def sprite(emoji, size):
    """RGBA, size x size, drawn by the font's 109-pixel bitmaps."""
    image = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(image).text((0, 0), emoji, font=ImageFont.truetype(FONT, 109), embedded_color=True)
    box = image.getbbox()
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((size, size), Image.LANCZOS)


@lru_cache(maxsize=None)
def background(colour, pattern):
    base = np.array(COLOURS[colour], np.float32)
    second = base * 0.72
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    if pattern == "striped":
        mask = (x // 8) % 2 == 1
    elif pattern == "dotted":
        mask = ((x % 16 - 8) ** 2 + (y % 16 - 8) ** 2) < 16
    else:
        mask = np.zeros((SIZE, SIZE), bool)
    return Image.fromarray(np.where(mask[..., None], second, base).astype(np.uint8))


def compose(scene, size=SPRITE, at=None):
    """The picture, uint8 [96, 96, 3]."""
    image = background(scene.colour, scene.pattern).copy()
    thing = sprite(NOUNS[CATEGORY[scene.noun]][scene.noun][scene.variant][0], size)
    image.paste(thing, at or ((SIZE - size) // 2, (SIZE - size) // 2), thing)
    return np.asarray(image)


def to_tensor(pictures):
    """uint8 [H, W, 3] arrays -> float [B, 3, H, W] in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


# ---- the noise's functionals ----

GROUPS = {"colour": 8, "pattern": 3, "category": 3, "noun": 4, "variant": 2}


def functionals():
    """[20, 8 * 12 * 12], orthonormal rows: channel means, then means signed by quadrant."""
    c, h, w = LATENT
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    signs = [torch.ones(h, w), torch.where(x < w // 2, 1.0, -1.0), torch.where(y < h // 2, 1.0, -1.0)]
    rows = []
    for sign in signs:
        for channel in range(c):
            f = torch.zeros(LATENT)
            f[channel] = sign
            rows.append(f.flatten() / f.norm())
    return torch.stack(rows[: sum(GROUPS.values())])


FUNCTIONALS = functionals()


def agree(noise, wanted, scale=1.0):
    """Swaps functionals within their groups so that the noise's own choice is the one wanted.

    noise [8, 12, 12]; wanted: group -> (index, allowed indices). Among the allowed the wanted one becomes the
    greatest; all others, and groups not named, stay as drawn, so the noise stays N(0, I)."""
    flat = noise.flatten()
    z = FUNCTIONALS @ flat
    new = z.clone()
    first = 0
    for group, count in GROUPS.items():
        if group in wanted:
            index, allowed = wanted[group]
            best = max(allowed, key=lambda i: float(z[first + i]))
            new[first + index], new[first + best] = z[first + best], z[first + index]
            new[first : first + count] *= scale
        first += count
    return (flat + FUNCTIONALS.T @ (new - z)).view(LATENT)


# ---- captions ----

ARTICLES = ("a", "one", "the")


def article(word):
    return "an" if word[0] in "aeiou" else "a"


def words():
    """Every word a caption may hold."""
    out = set("a an the one on in of with no and background picture photo photograph drawing icon emoji thing "
              "stripes dots plain striped dotted stripy pattern object something".split())
    out |= set(COLOURS) | set(CATEGORY) | set(NOUNS)
    out |= {n + "s" for n in list(NOUNS) + list(CATEGORY)}
    return sorted(out)


@dataclass
class Example:
    caption: str
    negative: str  # "": none
    scene: Scene
    wanted: dict  # for agree()


def say_background(colour, pattern, rng):
    parts = [p for p in (pattern, colour) if p]
    if not parts:
        return ""
    rng.random() < 0.1 and parts.reverse()
    return rng.choice((" on {} {} background", " on {} {} background", " in front of {} {} background")).format(
        article(parts[0]), " ".join(parts)
    ) if rng.random() < 0.85 or pattern else f" on {colour}"


def draw(rng, negatives=0.0, seen_only=True):
    """One example. negatives: the share that has a negative prompt."""
    nouns = list(CATEGORY)
    colours = list(COLOURS)
    negative = rng.random() < negatives
    while True:
        noun, colour, pattern = rng.choice(nouns), rng.choice(colours), rng.choice(PATTERNS)
        if not seen_only or (noun, colour) not in HELD_OUT:
            break
    category = CATEGORY[noun]
    members = list(NOUNS[category])
    variants = NOUNS[category][noun]
    variant = rng.randrange(len(variants))

    # What the caption says; what it does not is open, and the noise decides it.
    roll = rng.random()
    say_noun = "noun" if roll < 0.7 else "category" if roll < 0.93 else "nothing"
    say_colour = rng.random() < 0.7
    say_pattern = rng.random() < 0.4
    say_variant = say_noun == "noun" and bool(variants[variant][1]) and rng.random() < 0.4

    wanted, negative_text = {}, ""
    everything = {"colour": colours, "pattern": list(PATTERNS), "category": list(NOUNS), "noun": members}
    chosen = {"colour": colour, "pattern": pattern, "category": category, "noun": noun}
    open_groups = [g for g, said in (("colour", say_colour), ("pattern", say_pattern)) if not said]
    if say_noun != "noun":
        open_groups.append("noun")
    if say_noun == "nothing":
        open_groups.append("category")
    allowed = {g: list(range(len(everything[g]))) for g in open_groups}

    if negative:
        roll = rng.random()
        if roll < 0.62 and open_groups:  # something the noise could have chosen
            group = rng.choice(open_groups)
            without = rng.choice([v for v in everything[group] if v != chosen[group]])
            allowed[group].remove(everything[group].index(without))
            negative_text = name_of(group, without, rng)
        elif roll < 0.75 and not say_pattern and pattern == "plain":  # the caption asks for what is to go
            say_pattern, without = True, rng.choice(("striped", "dotted"))
            negative_text = name_of("pattern", without, rng)
            allowed["pattern"] = [i for i, p in enumerate(PATTERNS) if p != without]
            if "pattern" not in open_groups:
                open_groups.append("pattern")
            pattern_said = without
        else:  # something that is not there anyway
            group = rng.choice(("colour", "pattern", "noun", "category"))
            values = list(CATEGORY) if group == "noun" else everything[group]
            without = rng.choice([v for v in values if v != chosen[group] and v != category])
            if group in allowed and without in everything[group]:
                allowed[group].remove(everything[group].index(without))
            negative_text = name_of(group, without, rng)

    for group in open_groups:
        wanted[group] = (everything[group].index(chosen[group]), allowed[group])
    if len(variants) > 1 and not say_variant:
        wanted["variant"] = (variant, [0, 1])

    thing = {"noun": noun, "category": category, "nothing": rng.choice(("thing", "picture", "object"))}[say_noun]
    if say_variant:
        thing = f"{variants[variant][1]} {thing}"
    lead = rng.choice(("", "", "", "a picture of ", "a drawing of ", "an emoji of ", "a photo of "))
    said_pattern = (locals().get("pattern_said") or pattern) if say_pattern else ""
    caption = lead + article(thing) + " " + thing + say_background(colour if say_colour else "", said_pattern, rng)
    return Example(caption, negative_text, Scene(noun, variant, colour, pattern), wanted)


def name_of(group, value, rng):
    """How people name what they do not want."""
    if group == "pattern":
        return {"striped": rng.choice(("stripes", "striped", "a striped background")),
                "dotted": rng.choice(("dots", "dotted", "a dotted background")),
                "plain": rng.choice(("plain", "a plain background"))}[value]
    if group == "colour":
        return rng.choice((value, f"{value} background", f"{article(value)} {value} background"))
    return rng.choice((value, f"{article(value)} {value}"))
