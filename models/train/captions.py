"""What training tells of a scene, and what it leaves to the noise; negatives, and what they change.

A negative prompt means: what this noise would have drawn, had there been none of it. An example with one is of three kinds.
Related: the caption leaves something open, the noise's first choice is named, the scene shows its second. Explicit: the caption itself asks for
what the negative takes away. Unrelated: the negative names what is not there, and nothing changes.
"""

from dataclasses import dataclass, replace

import scenes
from scenes import CATEGORY, COLOURS, LAYOUTS, MEMBERS, PATTERNS, Scene, Thing, variants

# Of the examples with a negative; unrelated ones are the rest. Fewer of those, and a negative hurts pictures that it does not concern.
RELATED, EXPLICIT = 0.45, 0.25
FIRST_CHOICE = 0.7  # of related examples: the negative names what the noise would have drawn
MARKS = {"striped": "stripes", "dotted": "dots"}
WHERE = {"middle": ("in the middle", "in the centre"), "left": ("on the left",), "right": ("on the right",),
         "top": ("at the top",), "bottom": ("at the bottom",)}
BETWEEN = {LAYOUTS[0]: "{} to the left of {}", LAYOUTS[1]: "{} to the right of {}", LAYOUTS[2]: "{} above {}", LAYOUTS[3]: "{} below {}"}


@dataclass
class Said:
    """What a caption tells; None or False is left open."""

    things: list  # for each thing "noun", "category" or "thing"
    variants: list  # for each thing whether its colour is told
    size: str | None = None
    place: str | None = None
    layout: tuple | None = None
    colour: str | None = None
    pattern: str | None = None


@dataclass
class Example:
    caption: str
    negative: str  # "": none
    scene: Scene
    wanted: dict  # for coupling.agree
    things: tuple  # where to look closely: what is drawn and what was taken away


def article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def plural(noun):
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + ("es" if noun.endswith(("s", "us")) else "s")


def draw(rng, negatives=0.0, pairs=()):
    """One example. negatives: the share with a negative prompt; pairs: scenes of two things, drawn half the time if given."""
    scene = rng.choice(pairs) if pairs and rng.random() < 0.5 else one_thing(rng)
    said = what_is_said(scene, rng)
    wanted = {group: (choice,) for group, choice in left_open(scene, said).items()}
    asked, negative, seen = said, "", scene
    if rng.random() < negatives:
        roll = rng.random()
        if roll < RELATED and wanted.keys() & {"colour", "pattern", "category", "noun", "noun2", "variant", "variant2"}:
            negative = related(scene, wanted, rng)
        elif roll < RELATED + EXPLICIT:
            asked, negative, seen = explicit(scene, said, wanted, rng)
        else:
            negative = unrelated(scene, rng)
    return Example(caption(scene, asked, rng), negative, seen, wanted, scene.things)


def one_thing(rng):
    while True:
        noun = rng.choice(list(CATEGORY))
        place = "big" if rng.random() < 0.5 else rng.choice(scenes.SMALL)
        scene = Scene((Thing(noun, rng.randrange(len(variants(noun))), place),), rng.choice(list(COLOURS)), rng.choice(PATTERNS))
        if not scene.held_out():
            return scene


def what_is_said(scene, rng):
    told = []
    for thing in scene.things:
        roll = rng.random()
        if len(scene.things) == 1:
            told.append("noun" if roll < 0.62 else "category" if roll < 0.92 else "thing")
        else:  # two of one category are told apart by their nouns
            alone = sum(CATEGORY[t.noun] == CATEGORY[thing.noun] for t in scene.things) == 1
            told.append("category" if roll < 0.25 and alone else "noun")
    said = Said(told, [level == "noun" and bool(variants(t.noun)[0][1]) and rng.random() < 0.4 for level, t in zip(told, scene.things)])
    if rng.random() < 0.6:
        said.colour = scene.colour
    if rng.random() < 0.45:
        said.pattern = scene.pattern
    if len(scene.things) == 2:
        said.layout = tuple(t.place for t in scene.things) if rng.random() < 0.5 else None
        return said
    place = scene.things[0].place
    said.size = ("big" if place == "big" else "small") if rng.random() < 0.3 else None
    said.place = place if place != "big" and rng.random() < 0.45 else None
    if place == "big" and said.size is None and rng.random() < 0.15:
        said.place = "middle"  # where the big ones are, too
    return said


def left_open(scene, said):
    """group -> the scene's choice, for coupling.agree."""
    out = {}
    for i, (thing, level, told) in enumerate(zip(scene.things, said.things, said.variants)):
        number = "2" if i else ""
        if level == "thing":
            out["category"] = CATEGORY[thing.noun]
        if level != "noun":
            out["noun" + number] = MEMBERS[CATEGORY[thing.noun]].index(thing.noun)
        if len(variants(thing.noun)) > 1 and not told:
            out["variant" + number] = thing.variant
    if said.colour is None:
        out["colour"] = scene.colour
    if said.pattern is None:
        out["pattern"] = scene.pattern
    if len(scene.things) == 2:
        if said.layout is None:
            out["layout"] = tuple(t.place for t in scene.things)
        return out
    place = scene.things[0].place
    if said.size is None and said.place in (None, "middle"):
        out["size"] = "big" if place == "big" else "small"
    if place != "big" and said.place is None:
        out["place"] = place
    return out


# ---- negatives ----


def related(scene, wanted, rng):
    """The noise's first choice of something open is named; the scene shows its second (or, sometimes, its first: then nothing is taken)."""
    group = rng.choice([g for g in wanted if g not in ("size", "place", "layout")])
    chosen = wanted[group][0]
    thing = scene.things[1 if group.endswith("2") and len(scene.things) > 1 else 0]
    values = {"colour": COLOURS, "pattern": PATTERNS, "category": MEMBERS, "noun": range(6), "variant": (0, 1)}[group.rstrip("2")]
    other = rng.choice([v for v in values if v != chosen])
    if rng.random() < FIRST_CHOICE:
        wanted[group] = (other, chosen)
    name = {"noun": lambda: MEMBERS[CATEGORY[thing.noun]][other],
            "variant": lambda: f"{variants(thing.noun)[other][1]} {thing.noun}"}.get(group.rstrip("2"), lambda: other)()
    return wording(group, name, rng)


def explicit(scene, said, wanted, rng):
    """(what the caption asks for, the negative that takes it away, what is then seen)."""
    ways = ["colour"] + ["pattern"] * 2 + ["thing"] * (3 if len(scene.things) == 2 else 0)
    way = rng.choice(ways)
    if way == "thing":  # one of two goes, the other stays where it was
        gone = rng.randrange(2)
        noun = scene.things[gone].noun
        level = said.things[gone]
        for group in ("noun", "variant"):
            wanted.pop(group + ("2" if gone else ""), None)
        seen = replace(scene, things=(scene.things[1 - gone],))
        return said, wording("noun", noun if level == "noun" else CATEGORY[noun], rng), seen
    values = list(COLOURS if way == "colour" else PATTERNS[1:])
    taken = rng.choice([v for v in values if v != getattr(scene, way)])
    # What the noise would have chosen may be the very thing that was taken, as often as chance has it.
    first = (taken,) if rng.random() < 1 / (len(COLOURS) if way == "colour" else len(PATTERNS)) else ()
    wanted[way] = (*first, getattr(scene, way))
    return replace(said, **{way: taken}), wording(way, taken, rng), scene


def unrelated(scene, rng):
    nouns = {t.noun for t in scene.things}
    group = rng.choice(("noun", "noun", "noun", "category", "colour", "pattern"))
    values = {"noun": [n for n in CATEGORY if n not in nouns and CATEGORY[n] not in {CATEGORY[m] for m in nouns}],
              "category": [c for c in MEMBERS if c not in {CATEGORY[n] for n in nouns}],
              "colour": [c for c in COLOURS if c != scene.colour],
              "pattern": [p for p in PATTERNS if p != scene.pattern]}[group]
    return wording(group, rng.choice(values), rng)


def wordings(group, name):
    """(those that training uses, those held out for tests): how people name what they do not want."""
    if group == "colour":
        return (name, f"{name} background", f"{article(name)} background"), (f"on {name}", f"on {article(name)} background", f"with {article(name)} background")
    if group == "pattern" and name != "plain":
        marks = MARKS[name]
        return (marks, name, f"{article(name)} background"), (f"{name} pattern", f"a background with {marks}", f"with {marks}")
    if group == "pattern":
        return (name, "a plain background"), ("on a plain background", "plain pattern")
    return (name, article(name), plural(name)), (f"the {name}", f"a picture of {article(name)}", f"one {name}")


def wording(group, name, rng):
    return rng.choice(wordings(group, name)[0])


# ---- words ----


def caption(scene, said, rng):
    names = []
    for thing, level, told in zip(scene.things, said.things, said.variants):
        name = {"noun": thing.noun, "category": CATEGORY[thing.noun], "thing": rng.choice(("thing", "object"))}[level]
        if told:
            name = f"{variants(thing.noun)[thing.variant][1]} {name}"
        if said.size:
            name = f"{rng.choice(('big', 'large') if said.size == 'big' else ('small', 'little'))} {name}"
        names.append(article(name) if rng.random() < 0.92 else f"{rng.choice(('one', 'the'))} {name}")
    if len(names) == 2:
        text = two_things(names, said.layout, rng)
    else:
        text = names[0] + (f" {rng.choice(WHERE[said.place])}" if said.place else "")
    lead = rng.choice(("", "", "", "a picture of ", "a drawing of ", "an emoji of ", "a photo of "))
    return lead + text + behind(said.colour, said.pattern, rng)


def two_things(names, layout, rng):
    if layout is None:
        return rng.choice(("{} and {}", "{} and {}", "{} with {}", "{} beside {}")).format(*names)
    if rng.random() < 0.5:
        return BETWEEN[layout].format(*names)
    return " and ".join(f"{name} {WHERE[place][0]}" for name, place in zip(names, layout))


def behind(colour, pattern, rng):
    if pattern in MARKS and rng.random() < 0.3:  # "on a red background with stripes"
        return (f" on {article(f'{colour} background' if colour else 'background')}" if rng.random() < 0.8 or colour else "") + f" with {MARKS[pattern]}"
    if colour and not pattern and rng.random() < 0.15:
        return f" on {colour}"
    words = [w for w in (pattern, colour) if w]
    if not words:
        return ""
    if pattern and not colour and rng.random() < 0.15:
        return f" with {article(pattern)} pattern"
    if rng.random() < 0.15:
        words.reverse()
    return f" {rng.choice(('on', 'on', 'in front of', 'with'))} {article(' '.join(words))} background"


def words():
    """Every word of captions and negatives, and a few that people may say."""
    out = set("a an the one on in of at to with and no without background picture photo drawing emoji thing object pattern "
              "big large small little left right top bottom middle centre above below beside front stripes dots stripy".split())
    out |= set(COLOURS) | set(PATTERNS)
    for name in (*CATEGORY, *MEMBERS):
        out |= {name, plural(name)}
    return sorted(out)
