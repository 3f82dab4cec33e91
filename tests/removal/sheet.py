#!/usr/bin/env python3
"""Sheets of pictures that a farm renders: the same seeds, a column for each method.

    sheet.py --output docs/pictures/guidance.webp     for docs/guidance.md: rows of pairs.py, columns none, CFG, NASA, NAG, VSF
    sheet.py --eyes                                   pictures for eyes.webp; whoever looks at them writes their names into eyes.json
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import pairs
from farm import SOURCE, Farm
from removal import METHODS

HERE = Path(__file__).resolve().parent
SHOWN = ("none", "CFG 1.5", "CFG 2.5", "NASA", "NAG", "VSF")
SIDE, GAP, TEXT, WORDS = 96, 4, 22, 190


def job(pair, guidance, seed, images=1):
    return {"model": "demo", "prompt": pair.prompt, "seed": seed, "images": images, "guidance": guidance or {"method": "none"},
            **({"negative_prompt": pair.negative} if guidance else {})}


def first_that_has_it(farm, pair, seeds=40):
    """The first seed whose picture without guidance is right and shows what the negative names: no other choice is made."""
    import detector
    import verdict

    look = detector.Detector().look
    seen = look(detector.scenes.to_tensor(farm.fetch(farm.submit([job(pair, {}, 0, seeds)])[0])))
    return next((s for s, one in enumerate(seen) if verdict.there(pair.gone, one) and verdict.wanted(pair, one)[0]), 0)


def draw(farm, chosen, output):
    sheet = Image.new("RGB", (WORDS + len(SHOWN) * (SIDE + GAP), TEXT + len(chosen) * (SIDE + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, method in enumerate(SHOWN):
        pen.text((WORDS + i * (SIDE + GAP) + 4, 3), method, "black", font)
    for row, pair in enumerate(chosen):
        y = TEXT + row * (SIDE + GAP)
        seed = first_that_has_it(farm, pair)
        pen.multiline_text((4, y + 20), f"{pair.prompt.replace(' on ', chr(10) + 'on ')}\nminus {pair.negative}\nseed {seed}", "black", font, spacing=4)
        for i, name in enumerate(farm.submit([job(pair, METHODS[m], seed) for m in SHOWN])):
            sheet.paste(Image.fromarray(farm.fetch(name)[0]), (WORDS + i * (SIDE + GAP), y))
    sheet.save(output, quality=90)


def eyes(farm, output):
    """48 pictures, a third of them without guidance and the others under every method."""
    asked = [p for p in pairs.PAIRS if p.kind != "unrelated"][::3][:12]
    ids = [name for i, p in enumerate(asked) for name in farm.submit([job(p, METHODS[m], 100 + i) for m in ("none", "NASA", "CFG 2.5", ("NAG", "VSF", "CFG 1.5")[i % 3])])]
    sheet = Image.new("RGB", (12 * SIDE, 4 * SIDE))
    for i, name in enumerate(ids):
        sheet.paste(Image.fromarray(farm.fetch(name)[0]), (i % 12 * SIDE, i // 12 * SIDE))
    sheet.save(output, lossless=True)


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--model", default=SOURCE / "models" / "demo")
    a.add_argument("--output", default=SOURCE / "docs" / "pictures" / "guidance.webp")
    a.add_argument("--pairs", type=int, nargs="*", default=[0, 3, 9, 13, 16, 17], help="rows of pairs.py")
    a.add_argument("--eyes", action="store_true")
    args = a.parse_args()
    with Farm({"demo": args.model}) as made:
        if args.eyes:
            eyes(made, HERE / "eyes.webp")
        else:
            draw(made, [pairs.PAIRS[i] for i in args.pairs], args.output)
