#!/usr/bin/env python3
"""Makes tests/golden/data/tokens.json: awkward strings and the ids that the Hugging Face fast CLIP tokenizer
(transformers 5.23) gives them, with the tokenizer of tests/golden/data/small."""

import json
import random
import unicodedata
from pathlib import Path

from transformers import CLIPTokenizer

DATA = Path(__file__).parent / "data"

HAND = """|a cat|A CAT|  two   spaces  |tab\tand\nnewline\r\n|don't can't we'll they're I've he'd I'm|DON'T|'s|it's's|''s 's's|1234567890|3rd 4x5 a1b2c3
!!!???...|a,b;c:d|(parentheses) [brackets] {braces}|#hashtag @mention $100 50% a&b|e\u0301 vs \u00e9|\u212b \u00c5|\ufb01ne ligature|\u0130stanbul
I\u0307|\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \u03a3\u03a3|\u00df \u1e9e|\u01c5 title|\u0301 alone|a\u0301\u0302\u0303|\u0915\u094d\u0937\u093f|\u0e01\u0e33|\u1100\u1161\u11a8|\uac01
\u4e2d\u6587\u5b57|\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8|\ud55c\uad6d\uc5b4|\u0627\u0644\u0639\u0631\u0628\u064a\u0629|\u05e2\u05d1\u05e8\u05d9\u05ea|\u00bd \u2153 \u2460 \u2167|\u0661\u0662\u0663|\u00b2\u00b3 x\u2082
\U0001f600|\U0001f468\u200d\U0001f469\u200d\U0001f467|\U0001f1e9\U0001f1ea|\u2764\ufe0f|\U0001d400\U0001d401|\u00a0nbsp\u00a0|\u2003em\u3000ideographic|zero\u200bwidth|bom\ufeff|soft\u00adhyphen
\x1c\x1d\x1e\x1f|\x0b\x0c|\x85next|\u2028line\u2029par|<|startoftext|>|<|endoftext|> inside|x<|endoftext|>y|<|ENDOFTEXT|>|</w>|a</w>b|\u0120|\u00c4\u00a0|\x7f\x01
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|the the the|cat's dog's|don\u2019t|caf\u00e9 na\u00efve|\u1d2c\u1d47|\u2126 \u03a9|\u1fbe \u03b9|\u0345|\ufdfa|\u3392"""


def strings():
    out = [s for line in HAND.split("\n") for s in line.split("|")]
    out += ["<|startoftext|>", "<|endoftext|>", "a <|endoftext|> b", "<|startoftext|><|endoftext|>"]
    rng = random.Random(5)
    interesting = [c for c in map(chr, range(0x20, 0x30000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    for _ in range(120):
        out.append("".join(rng.choice(interesting) for _ in range(rng.randrange(1, 9))))
    for _ in range(60):
        out.append("".join(rng.choice("aA1 '’.-_\t\u0301\u00a0sS\u0130\u03a3\u4e2d\u200b!<|>") for _ in range(rng.randrange(1, 14))))
    seen = set()
    return [s for s in out if not (s in seen or seen.add(s)) and "\0" not in s]


if __name__ == "__main__":
    tokenizer = CLIPTokenizer.from_pretrained(DATA / "small" / "model" / "tokenizer")
    rows = [[s, tokenizer(s, padding="max_length", max_length=40, truncation=True).input_ids] for s in strings()]
    (DATA / "tokens.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    print(len(rows), "strings")
