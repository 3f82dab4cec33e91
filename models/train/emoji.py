"""Emoji by their English names: CLDR's annotations name them, Unicode's emoji-test.txt groups them, Noto's font draws them.

Debian's packages unicode-cldr-core, unicode-data and fonts-noto-color-emoji.
"""

import xml.etree.ElementTree as xml
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

NAMES = "/usr/share/unicode/cldr/common/annotations/en.xml"
GROUPS = "/usr/share/unicode/emoji/emoji-test.txt"
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
FONT_SIZE = 109  # the only size of its bitmaps


@lru_cache(maxsize=None)
def by_name():
    """CLDR's short name -> the emoji."""
    return {a.text: a.get("cp") for a in xml.parse(NAMES).iter("annotation") if a.get("type") == "tts"}


@lru_cache(maxsize=None)
def groups():
    """Emoji -> its subgroup, "food-fruit" for instance."""
    out, group = {}, ""
    with open(GROUPS, encoding="utf-8") as f:
        for line in f:
            if line.startswith("# subgroup:"):
                group = line.split(":")[1].strip()
            elif ";" in line and not line.startswith("#"):
                out["".join(chr(int(code, 16)) for code in line.split(";")[0].split())] = group
    return out


@lru_cache(maxsize=None)
def picture(name, size):
    """RGBA, size x size; the longer side fills it."""
    image = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(image).text((0, 0), by_name()[name], font=ImageFont.truetype(FONT, FONT_SIZE), embedded_color=True)
    image = image.crop(image.getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((size, size), Image.LANCZOS)
