#!/usr/bin/env python3
"""The forms a tokenizer folder comes in, and what transformers 5.23's CLIPTokenizer makes of each:

    python tests/golden/tokenizer_forms.py      tests/golden/data/tokenizer_forms.json, for tests/engine/test_tokenizer.c

{"base": {file: text}, "cases": [{"name", "files": {file: text, or null where it is not there}, "rows": [[text, ids]]}]};
without rows the folder must be refused.
"""

import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

from make import tokenizer_make

LENGTH = 24
TEXTS = ["the red cat on a Dog, 42!", "a <sks> cat <SKS> <sks>on", "x<|endoftext|>y <|startoftext|> <pad>", "###a # ! <x> \u00c9<\u00e9>"]


def added(content, **more):
    return dict(content=content, lstrip=False, rstrip=False, normalized=False, single_word=False, special=True) | more


def main():
    cases = []
    with tempfile.TemporaryDirectory() as tmp:
        plain = Path(tmp) / "plain"
        tokenizer_make(plain, LENGTH)
        files = {f.name: f.read_text() for f in plain.iterdir()}
        vocab, config = json.loads(files["vocab.json"]), json.loads(files["tokenizer_config.json"])
        count = len(vocab)
        t = CLIPTokenizer.from_pretrained(plain)
        t.add_tokens(["<sks>", "<\u00c9>"])
        t.save_pretrained(Path(tmp) / "saved")
        saved = {f.name: f.read_text() for f in (Path(tmp) / "saved").iterdir()}
        assert set(saved) == {"tokenizer.json", "tokenizer_config.json"}
        whole = json.loads(saved["tokenizer.json"])
        only = {**dict.fromkeys(files), **saved}

        def case(name, change, refused=False):
            here = Path(tmp) / f"case{len(cases)}"
            here.mkdir()
            for file, text in {**files, **change}.items():
                if text is not None:
                    (here / file).write_text(text)
            row = dict(name=name, files=change)
            if not refused:
                t = CLIPTokenizer.from_pretrained(here)
                row["rows"] = [[text, t(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids] for text in TEXTS]
            cases.append(row)

        def configured(name, drop_map=False, refused=False, **keys):
            new = {k: v for k, v in {**config, **keys}.items() if v != "gone"}
            case(name, {"tokenizer_config.json": json.dumps(new), **({"special_tokens_map.json": None} if drop_map else {})}, refused)

        def whole_case(name, change, refused=False):
            new = json.loads(json.dumps(whole))
            change(new)
            case(name, {**only, "tokenizer.json": json.dumps(new)}, refused)

        case("vocab.json and merges.txt", {})
        case("vocabulary and merges alone", {"tokenizer_config.json": None, "special_tokens_map.json": None})
        case("tokenizer.json alone", only)
        whole_case("merges as texts", lambda w: w["model"].update(merges=[" ".join(m) for m in w["model"]["merges"]]))
        whole_case("no merges", lambda w: w["model"].update(merges=[]))
        whole_case("no added tokens", lambda w: w.update(added_tokens=[]))
        whole_case("a post-processor and a normalizer of its own", lambda w: w.update(normalizer=None, post_processor=None))
        turned = {word: (i + 1) % count for word, i in vocab.items()}
        case("tokenizer.json wins", {**saved, "vocab.json": json.dumps(turned), "merges.txt": "#version: 0.2\n"})
        whole_case("another kind of model", lambda w: w["model"].update(type="WordPiece"), True)
        whole_case("another ending of words", lambda w: w["model"].update(end_of_word_suffix=""), True)
        whole_case("a merge of an unknown token", lambda w: w["model"]["merges"].append(["zz", "zz"]), True)
        case("added_tokens.json", {"added_tokens.json": json.dumps({"<sks>": 5})})
        case("added_tokens.json, ids far away", {"added_tokens.json": json.dumps({"<sks>": count + 7, "<x>": count + 3})})
        configured("added_tokens_decoder", added_tokens_decoder={
            str(count + 1): added("<sks>"), str(count - 1): added("<|endoftext|>"), str(count): added("<x>", normalized=True)})
        configured("added_tokens_decoder, normalized", added_tokens_decoder={"9": added("<SKS>", normalized=True, special=False),
                                                                            "8": added("<\u00c9>", normalized=True, special=False)})
        configured("lstrip and rstrip", added_tokens_decoder={"9": added("<sks>", lstrip=True, rstrip=True)})
        configured("single_word", added_tokens_decoder={"9": added("<sks>", single_word=True)}, refused=True)
        configured("additional_special_tokens", additional_special_tokens=["<sks>", "<x>"])
        configured("extra_special_tokens", extra_special_tokens=["<sks>"])
        configured("pad of the config, where the map says otherwise", pad_token="!")
        configured("pad of the config", pad_token="!", drop_map=True)
        configured("pad that the vocabulary does not have", pad_token="<pad>", drop_map=True)
        configured("objects for tokens", drop_map=True, unk_token=dict(added("<|endoftext|>"), __type="AddedToken"),
                   bos_token=dict(added("<|startoftext|>", normalized=True), __type="AddedToken"))
        case("pad of the map", {"special_tokens_map.json": json.dumps({"pad_token": "!"})})
        case("objects in the map", {"special_tokens_map.json": json.dumps({"pad_token": added("<pad>"), "eos_token": added("<|endoftext|>")})})
        case("additional tokens of the map", {"special_tokens_map.json": json.dumps({"additional_special_tokens": ["<sks>"]})})
        configured("no length", model_max_length="gone")
        configured("a length without end", model_max_length=1e30)
        configured("a length without end, written out", model_max_length=int(1e30))
        configured("a length of 1", refused=True, model_max_length=1)
        configured("padding on the left", refused=True, padding_side="left")
        configured("special tokens split", refused=True, split_special_tokens=True)
        more = {**vocab, "##": count}
        case("a merge that begins with #", {"vocab.json": json.dumps(more), "merges.txt": "#version: 0.2\n# #\na t</w>\n"})
        case("no #version", {"merges.txt": "a t</w>\nc at</w>\n"})
        case("line ends of Windows", {"merges.txt": files["merges.txt"].replace("\n", "\r\n")})
        case("three tokens a merge", {"merges.txt": "a t</w> b\n"}, True)
    out = Path(__file__).parent / "data" / "tokenizer_forms.json"
    out.write_text(json.dumps(dict(length=LENGTH, base=files, cases=cases), separators=(",", ":")) + "\n")
    print(len(cases), "folders in", out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
