#!/usr/bin/env python3
"""Draws the README's sheet again: models/demo, one step, same seeds above and below. Needs a build and pillow.

The seeds are such that the plain picture has what the negative names; models/demo/README.md counts all cases.
"""

import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COLUMNS = [("a cat", "stripes", 22), ("a fruit on a white background", "banana", 22), ("a fruit", "strawberry", 8), ("an animal on a blue background", "cat", 24), ("a bus", "dots", 2),
           ("a red apple on a pink background", "", 4)]
SIDE, TEXT = 192, 40


def draw(prompt, negative, seed, folder):
    path = Path(folder) / "x.png"
    args = ["--negative", negative, "--guidance", "nasa"] if negative else []
    subprocess.run([ROOT / "build/bin/steer-worker", "render", "--model", ROOT / "models/demo", "--prompt", prompt, "--seed", str(seed), "--output", path, *args],
                   check=True, stdout=subprocess.DEVNULL)
    return Image.open(path).resize((SIDE, SIDE), Image.LANCZOS)


sheet = Image.new("RGB", (len(COLUMNS) * (SIDE + 8) - 8, 2 * (SIDE + TEXT)), "white")
pen = ImageDraw.Draw(sheet)
font = ImageFont.load_default(13)
with tempfile.TemporaryDirectory() as folder:
    for i, (prompt, negative, seed) in enumerate(COLUMNS):
        x = i * (SIDE + 8)
        for row, minus in enumerate(("", negative)):
            y = row * (SIDE + TEXT)
            sheet.paste(draw(prompt, minus, seed if minus or not row or negative else seed + 1, folder), (x, y + TEXT))
            words = prompt if len(prompt) < 28 else prompt.replace(" on ", "\non ")
            pen.text((x + 2, y + 4), words if not row or not negative else f"{words.split(chr(10))[0]}\nnegative: {negative}", "black", font)
sheet.save(HERE / "sheet.webp", quality=85)
