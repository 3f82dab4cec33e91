#!/usr/bin/env python3
"""Awkward strings and the ids that T5's tokenizers give them, both: transformers 5.23's (the fast one) and SentencePiece's own.

    python tests/golden/unigram.py      tests/golden/data/unigram.json, for tests/engine/test_unigram.c

{"rows": [[text, ids, null or [SentencePiece's ids, why they differ]]], "cuts": [[text, length, ids, how many are no padding]]}
"""

import json

import sentencepiece
from transformers import T5Tokenizer

from tokens import DATA, strings

FOLDER = DATA / "t5" / "model" / "tokenizer"
HAND = """</s>|<pad>|<unk>|<extra_id_0>|<extra_id_99>|<extra_id_100>|a</s>b|a </s> b|</s></s>|<pad> <pad>|a<unk>b|\u2603<unk>\u2603|cat<extra_id_5> dog
<sks>|a <sks> cat|a<sks>cat|<SKS>|<s>|\uff1c\uff0f\uff53\uff1e|\uff1cpad\uff1e x|</\u200bs>|< /s>|\u2581|\u2581a|a\u2581b|\u2581\u2581|a \u2581 b|a\u2581|\u2581 \u2581
 a|a |  a  |\ta\n|\u3000a|a\u200b\u200bb|\u200b|\u00ad|a\u0085b|\u0085|a\u2028b|a\u1680b|a\u0300|A\u030a|\u212b\u0301|\u2460\u0301|e\u0301\u0302|\u1e9b\u0323|\u0958
\r\n|a\r\nb|\r|a\u0301\u0302\u0303\u0304\u0305|\u00b2\u0301|\ufb01\u0301|\u1100\u1161|\u1100\u1161\u11a8|\u1161\u11a8|\uff76\uff9e|\u0301|\u0301a| \u0301|\u200d|a\u200db
\u2603|\u2603\u2603\u2603|\u2603 \u2603|a\u2603|\u2603a\u2603|\u2603\U0001f600x\u2603|\U0001f600\U0001f600|\ufffd|\ufeffa|\U000e0041|\U0010ffff|\x01\x02|a\x01b|\x7f|a\x7fb"""


def unigram_strings():
    out = [s for line in HAND.split("\n") for s in line.split("|")]
    out += [s for s in strings() if s not in out]
    out += ["red" * 40, "\u2603" * 70, "a red cat on a blue background, worst quality, low quality, ugly " * 2]
    return out


def main():
    fast = T5Tokenizer.from_pretrained(FOLDER)
    own = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "spiece.model"))
    special = [str(t) for t in fast.added_tokens_decoder.values()]

    def why(text):
        normal = fast.backend_tokenizer.normalizer.normalize_str(text)
        if any(t in text or t in normal for t in special):
            return "special tokens"
        if "\u2581" in normal:  # to the one it is white space and begins a word, to the other only white space
            return "U+2581"
        if "".join("\u2581" + w for w in normal.split()) != own.normalize(text):
            return "normalizer"
        raise SystemExit(f"{text!a}: nobody knows why the tokenizers differ")

    rows, counts = [], {}
    for text in unigram_strings():
        ids, other = fast(text).input_ids, own.encode(text) + [1]
        rows.append([text, ids, None if ids == other else [other, why(text)]])
        if ids != other:
            counts[rows[-1][2][1]] = counts.get(rows[-1][2][1], 0) + 1
    cuts = []
    for text in ("a red cat on a blue dog", "", "cat", "a</s>cat</s>", "\u2603 cat \u2603 " * 3, "quality" * 5):
        for length in (1, 2, 3, 5, 12):
            cut = fast(text, padding="max_length", max_length=length, truncation=True)
            cuts.append([text, length, cut.input_ids, sum(cut.attention_mask)])
    lines = lambda rows: ",\n".join(json.dumps(r) for r in rows)
    (DATA / "unigram.json").write_text(f'{{"rows": [\n{lines(rows)}\n], "cuts": [\n{lines(cuts)}\n]}}\n')
    print(len(rows), "strings; SentencePiece differs on", counts)


if __name__ == "__main__":
    main()
