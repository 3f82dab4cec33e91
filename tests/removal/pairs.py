"""Prompts and negatives, in the manner of the paper's Table 2, and what is to be gone and kept in each.

Two halves. Alphas and defaults are chosen by the first; the second was never looked at meanwhile, and half of its negatives are worded as training never
words them.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    prompt: str
    negative: str
    kind: str  # member: one of a category; second: one of two; explicit: the prompt asks for it; pattern, colour, variant: left open
    gone: tuple  # ("noun" | "category" | "pattern" | "colour", value) or ("variant", noun, number)
    things: tuple  # nouns and categories that must be there
    colour: str = ""  # of the background, where the prompt says it and the negative does not deny it
    pattern: str = ""
    held_out: bool = False

    @property
    def name(self):
        return f"{self.prompt} - {self.negative}"


def pair(prompt, negative, kind, gone, things, colour="", pattern="", held_out=False):
    return Pair(prompt, negative, kind, tuple(gone.split(":")), tuple(things.split()), colour, pattern, held_out)


CHOSEN = [
    pair("a fruit", "banana", "member", "noun:banana", "fruit"),
    pair("a fruit on a white background", "a strawberry", "member", "noun:strawberry", "fruit", "white"),
    pair("an animal", "a dog", "member", "noun:dog", "animal"),
    pair("an animal on a red background", "cat", "member", "noun:cat", "animal", "red"),
    pair("a vehicle", "a bus", "member", "noun:bus", "vehicle"),
    pair("an instrument", "a violin", "member", "noun:violin", "instrument"),
    pair("a plant on a blue background", "cactus", "member", "noun:cactus", "plant", "blue"),
    pair("an object", "animal", "member", "category:animal", ""),
    pair("a cat and an apple", "apple", "second", "noun:apple", "cat"),
    pair("a rocket and a banana", "a rocket", "second", "noun:rocket", "banana"),
    pair("a dog above a car", "a car", "second", "noun:car", "dog"),
    pair("a frog and a fruit", "fruit", "second", "category:fruit", "frog"),
    pair("a guitar to the left of a tree on a yellow background", "guitar", "second", "noun:guitar", "tree", "yellow"),
    pair("a car", "stripes", "pattern", "pattern:striped", "car"),
    pair("a penguin on a green background", "a dotted background", "pattern", "pattern:dotted", "penguin", "green"),
    pair("a bus", "red background", "colour", "colour:red", "bus"),
    pair("a cat on a striped background", "stripes", "explicit", "pattern:striped", "cat"),
    pair("a bicycle on a pink background", "pink", "explicit", "colour:pink", "bicycle"),
    pair("a car", "a red car", "variant", "variant:car:0", "car"),
]
HELD_OUT = [
    pair("a fruit", "apple", "member", "noun:apple", "fruit", held_out=True),
    pair("a fruit on a purple background", "the pineapple", "member", "noun:pineapple", "fruit", "purple", held_out=True),
    pair("an animal", "the frog", "member", "noun:frog", "animal", held_out=True),
    pair("an animal on a yellow background", "a picture of a penguin", "member", "noun:penguin", "animal", "yellow", held_out=True),
    pair("a vehicle", "car", "member", "noun:car", "vehicle", held_out=True),
    pair("a vehicle on a green background", "one rocket", "member", "noun:rocket", "vehicle", "green", held_out=True),
    pair("an instrument on a pink background", "a drum", "member", "noun:drum", "instrument", "pink", held_out=True),
    pair("a plant", "the sunflower", "member", "noun:sunflower", "plant", held_out=True),
    pair("a thing", "the vehicle", "member", "category:vehicle", "", held_out=True),
    pair("a dog and a strawberry", "the strawberry", "second", "noun:strawberry", "dog", held_out=True),
    pair("a bus and a penguin", "penguin", "second", "noun:penguin", "bus", held_out=True),
    pair("a pineapple below a bicycle", "a pineapple", "second", "noun:pineapple", "bicycle", held_out=True),
    pair("a trumpet and an animal", "one animal", "second", "category:animal", "trumpet", held_out=True),
    pair("a rose to the right of an octopus on a white background", "rose", "second", "noun:rose", "octopus", "white", held_out=True),
    pair("a banana", "dots", "pattern", "pattern:dotted", "banana", held_out=True),
    pair("a frog on a pink background", "with stripes", "pattern", "pattern:striped", "frog", "pink", held_out=True),
    pair("a strawberry", "on blue", "colour", "colour:blue", "strawberry", held_out=True),
    pair("a dog on a dotted background", "dots", "explicit", "pattern:dotted", "dog", held_out=True),
    pair("a bus on an orange background", "on orange", "explicit", "colour:orange", "bus", held_out=True),
    pair("an apple", "a green apple", "variant", "variant:apple:1", "apple", held_out=True),
]
# Nothing of this is asked for, so nothing may change.
UNRELATED = [
    pair("a cat on a blue background", "banana", "unrelated", "noun:banana", "cat", "blue"),
    pair("an apple on a striped background", "a dog", "unrelated", "noun:dog", "apple", pattern="striped"),
    pair("a car on a yellow background", "frog", "unrelated", "noun:frog", "car", "yellow"),
    pair("a guitar and a clover", "vehicle", "unrelated", "category:vehicle", "guitar clover"),
    pair("a penguin on a plain red background", "the bicycle", "unrelated", "noun:bicycle", "penguin", "red", "plain", held_out=True),
    pair("a rocket on a pink background", "a picture of a strawberry", "unrelated", "noun:strawberry", "rocket", "pink", held_out=True),
    pair("a banana on a dotted background", "cats", "unrelated", "noun:cat", "banana", pattern="dotted", held_out=True),
    pair("a tulip and an elephant", "drum", "unrelated", "noun:drum", "tulip elephant", held_out=True),
]
PAIRS = CHOSEN + HELD_OUT + UNRELATED


def known(pair, vocabulary):
    """Whether a model's tokenizer has each word as one token; a word that it must spell was never in its training."""
    return all(word + "</w>" in vocabulary for word in re.findall(r"\w+", f"{pair.prompt} {pair.negative}"))
