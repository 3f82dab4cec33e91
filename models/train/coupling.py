"""Which noise means which picture: the coupling that makes a one-step student plain regression.

What a caption leaves open (which fruit, which colour, where) is read off orthonormal linear functionals of the noise, which
are independent and N(0, 1): in each group the greatest one names the choice. In training the scene comes first, so the noise is made
to agree with it by swapping values within a group. As every choice is equally likely, the noise given the caption stays N(0, I),
and (noise, caption) -> picture is a function. Below the greatest stands the second greatest: what this noise would have drawn
had there been no such thing as the first. That is what a negative prompt asks for.
"""

import torch

import scenes
from scenes import LATENT

# group -> the choices. The second thing of a scene has groups of its own.
GROUPS = {
    "category": tuple(scenes.MEMBERS),
    "noun": tuple(range(6)),  # the place of the noun in its category
    "noun2": tuple(range(6)),
    "layout": scenes.LAYOUTS,
    "colour": tuple(scenes.COLOURS),
    "pattern": scenes.PATTERNS,
    "size": ("big", "small"),
    "place": scenes.SMALL,
    "variant": (0, 1),
    "variant2": (0, 1),
}


def functionals():
    """[choices, 8 * 12 * 12], orthonormal rows: each channel's mean, then its means under signs that alternate from
    cell to cell (along x, along y, along both) and from half to half."""
    channels, height, width = LATENT
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    flip = lambda odd: 1.0 - 2.0 * odd.float()
    signs = [flip(y < 0), flip(x % 2 == 1), flip(y % 2 == 1), flip((x + y) % 2 == 1), flip(x >= width // 2), flip(y >= height // 2)]
    rows = torch.zeros(len(signs), channels, *LATENT)
    for s, sign in enumerate(signs):
        for channel in range(channels):
            rows[s, channel, channel] = sign / (height * width) ** 0.5
    return rows.flatten(0, 1).flatten(1)[: sum(map(len, GROUPS.values()))]


FUNCTIONALS = functionals()


def spans():
    first = 0
    for group, choices in GROUPS.items():
        yield group, first, len(choices)
        first += len(choices)


def choices(noise):
    """noise [8, 12, 12] -> group -> its choices, the noise's first one first."""
    z = FUNCTIONALS @ noise.flatten()
    return {group: [GROUPS[group][i] for i in z[first : first + count].argsort(descending=True)] for group, first, count in spans()}


def agree(noise, wanted, scale=1.0):
    """The noise, changed within the groups that are named so that its first choices there are the wanted ones, in order.

    noise [8, 12, 12]; wanted: group -> choices. With a scale over 1 these groups stand out: easier to read, for a beginner."""
    flat = noise.flatten()
    z = FUNCTIONALS @ flat
    new = z.clone()
    for group, first, count in spans():
        if group not in wanted:
            continue
        part = new[first : first + count]
        for rank, choice in enumerate(wanted[group]):
            holder = part.argsort(descending=True)[rank].item()
            index = GROUPS[group].index(choice)
            part[[index, holder]] = part[[holder, index]]
        part *= scale
    return (flat + FUNCTIONALS.T @ (new - z)).view(LATENT)
