"""A CLIP tokenizer of our own: byte-level BPE in which every caption word is one token."""

import json
import sys
from collections import Counter
from pathlib import Path

import captions

LENGTH = 26


def merges_of(words):
    """The pairs to join, in order, until each word is one token: always the most frequent one, the first by letters among equals."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while counts := Counter(pair for parts in split for pair in zip(parts, parts[1:])):
        pair = min(counts, key=lambda p: (-counts[p], p))
        merges.append(pair)
        split = [joined(parts, pair) for parts in split]
    return merges


def joined(parts, pair):
    out = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def make(folder):
    """Writes the tokenizer's files: the same words, the same files."""
    folder = Path(folder)
    merges = merges_of(captions.words())
    letters = byte_letters()
    vocab = {}
    for token in letters + [letter + "</w>" for letter in letters] + ["".join(m) for m in merges]:
        vocab.setdefault(token, len(vocab))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=True))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True, "errors": "replace", **special}, indent=2))


def byte_letters():
    """The 256 printable letters that stand for bytes, in CLIP's order (GPT-2's bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


if __name__ == "__main__":
    make(sys.argv[1])
