#!/usr/bin/env python3
"""The forms a T5 tokenizer's folder comes in, and what transformers 5.23's T5Tokenizer makes of each:

    python tests/golden/unigram_forms.py      tests/golden/data/unigram_forms.json, for tests/engine/test_unigram.c

{"base": {file: text}, "cases": [{"name", "files": {file: text, or null where it is not there}, "rows": [[text, ids]]}]};
without rows the folder must be refused. spiece.model is written as hexadecimal digits. A tokenizer.json that is no text has the keys
that replace those of "saved", one level down inside of "model".
"""

import json
import tempfile
from pathlib import Path

from transformers import T5Tokenizer

from make import CORPUS, spiece_make

LENGTH = 24
TEXTS = ["a red\u2581cat, on a dog 42", "a <sks> cat <SKS> <sks>on", "x</s>y <pad> <extra_id_0>z<extra_id_7>", "\uff1c/s\uff1e caf\u00e9 cafe\u0301 \u2603",
         "<x> a<x>b<\u00e9> <e\u0301> </s >"]


def added(content, **more):
    return dict(content=content, lstrip=False, rstrip=False, normalized=False, single_word=False, special=True) | more


def main():
    cases = []
    model = spiece_make(CORPUS, lambda source: source in ("\uff1c", "\uff1e", "e\u0301", "\t", "\u00a0", "\x01"), vocab_size=70,
                        max_sentencepiece_length=5)
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": LENGTH, "extra_ids": 9, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    base = {"spiece.model": model.SerializeToString(), "tokenizer_config.json": json.dumps(config)}
    with tempfile.TemporaryDirectory() as tmp:
        def write(here, files):
            here.mkdir()
            for file, data in files.items():
                if data is not None:
                    (here / file).write_bytes(data if isinstance(data, bytes) else data.encode())
            return here

        def case(name, change, refused=False):
            row = dict(name=name, files={k: v.hex() if isinstance(v, bytes) else v for k, v in change.items()})
            if not refused:
                t = T5Tokenizer.from_pretrained(write(Path(tmp) / f"case{len(cases)}", {**base, **change}))
                row["rows"] = [[text, t(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids] for text in TEXTS]
            cases.append(row)

        def configured(name, refused=False, **keys):
            case(name, {"tokenizer_config.json": json.dumps({k: v for k, v in {**config, **keys}.items() if v != "gone"})}, refused)

        def modelled(name, change, refused=True, **more):
            new = type(model).FromString(base["spiece.model"])
            change(new)
            case(name, {"spiece.model": new.SerializeToString(), **more}, refused)

        def costly(m):
            """`dog` is known, `d` is not: to be unknown must cost more than the least score."""
            for p in m.pieces:
                if p.piece in "og":
                    p.score = -0.1
                elif "d" in p.piece:
                    p.piece = p.piece.replace("d", "\u1234")
            m.pieces.add(piece="dog", score=-20)

        T5Tokenizer.from_pretrained(write(Path(tmp) / "plain", base)).save_pretrained(Path(tmp) / "saved")
        saved = {f.name: f.read_text() for f in (Path(tmp) / "saved").iterdir()}
        assert set(saved) == {"tokenizer.json", "tokenizer_config.json"}, set(saved)
        whole = json.loads(saved["tokenizer.json"])
        only = {"spiece.model": None, **saved}

        def whole_case(name, change, refused=False, **more):
            new = json.loads(json.dumps(whole))
            change(new)
            case(name, {**only, "tokenizer.json": json.dumps(new), **more}, refused)
            differ = lambda a, b: {k: v for k, v in a.items() if k not in b or v != b[k]}
            changed = differ(new, whole)
            cases[-1]["files"]["tokenizer.json"] = {**changed, "model": differ(new["model"], whole["model"])} if "model" in changed else changed

        short = lambda w: w["model"].update(vocab=w["model"]["vocab"][:-9])  # without the extra ids, which must come back
        case("spiece.model and a config", {})
        case("spiece.model alone", {"tokenizer_config.json": None})
        case("nothing", {"spiece.model": None}, True)
        case("as transformers 5 saves it", only)
        case("tokenizer.json wins", {**saved, "spiece.model": b""})
        whole_case("normalizers in a sequence", lambda w: w.update(normalizer={"type": "Sequence", "normalizers": [
            {"type": "Strip", "strip_left": False, "strip_right": True}, w["normalizer"],
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}]}))
        whole_case("no normalizer", lambda w: w.update(normalizer=None))
        whole_case("another normalizer", lambda w: w.update(normalizer={"type": "NFKC"}))
        whole_case("a post-processor and a pre-tokenizer of its own", lambda w: w.update(post_processor=None, pre_tokenizer={"type": "Whitespace"}))
        whole_case("truncation and padding", lambda w: w.update(
            truncation={"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
            padding={"strategy": {"Fixed": 11}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                     "pad_token": "<pad>"}))
        whole_case("cut on the left", lambda w: w.update(truncation={"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}),
                   True)
        whole_case("padding on the left", lambda w: w.update(
            padding={"strategy": {"Fixed": 11}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                     "pad_token": "<pad>"}), True)
        whole_case("pieces twice", lambda w: w["model"]["vocab"].append(["a", -1.0]))
        whole_case("a piece with a mark inside, which no word has", lambda w: w["model"]["vocab"].append(["d\u2581c", -0.1]))
        whole_case("scores that are whole numbers", lambda w: w["model"]["vocab"].append(["ed", -1]))
        whole_case("no extra ids", short, **{"tokenizer_config.json": json.dumps({**config, "extra_ids": 3})})
        whole_case("another kind of model", lambda w: w["model"].update(type="BPE"), True)
        whole_case("another unk_id", lambda w: w["model"].update(unk_id=0), True)
        whole_case("bytes for what is unknown", lambda w: w["model"].update(byte_fallback=True), True)
        whole_case("a piece without a score", lambda w: w["model"]["vocab"].append(["ed"]), True)
        whole_case("no pieces", lambda w: w["model"].update(vocab=[]), True)
        whole_case("base64 of other letters", lambda w: w["normalizer"].update(precompiled_charsmap="AA_="), True)
        whole_case("added tokens", lambda w: w["added_tokens"].extend([
            dict(added("<sks>"), id=900), dict(added("<\u00e9>", normalized=True, special=False), id=901)]),
            **{"tokenizer_config.json": None})
        whole_case("a map of special tokens", short, **{"tokenizer_config.json": None, "special_tokens_map.json": json.dumps(
            {"eos_token": added("</s>"), "pad_token": "<unk>", "additional_special_tokens": ["<sks>", "<x>"]})})
        case("added_tokens.json", {"added_tokens.json": json.dumps({"<sks>": 5, "<\u00e9>": 4}), "special_tokens_map.json": json.dumps(
            {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<sks>"})})
        decoder = {str(i): added(t) for i, t in enumerate(("<pad>", "</s>", "<unk>"))}
        configured("added_tokens_decoder", added_tokens_decoder={**decoder, "900": added("<sks>"), "800": added("<x>", normalized=True)})
        configured("added_tokens_decoder, normalized", added_tokens_decoder={
            **decoder, "900": added("<SKS>", normalized=True, special=False), "800": added("<\u00e9>", normalized=True, special=False)})
        configured("flags left out", added_tokens_decoder={**decoder, "900": {"content": "<e\u0301>"}, "901": {"content": "<x>", "special": True}})
        configured("lstrip and rstrip", added_tokens_decoder={**decoder, "900": added("<sks>", lstrip=True, rstrip=True), "901": added("<x>", rstrip=True)})
        configured("single_word", added_tokens_decoder={**decoder, "900": added("<sks>", single_word=True)}, refused=True)
        configured("a token that vanishes", added_tokens_decoder={**decoder, "900": added("\x01", normalized=True)}, refused=True)
        configured("additional_special_tokens", additional_special_tokens=["<sks>", "<x>", "<extra_id_0>"])
        configured("extra_special_tokens", extra_special_tokens=["<sks>", dict(added("<x>"), __type="AddedToken")])
        configured("extra_special_tokens, named", extra_special_tokens={"image_token": "<sks>"})
        configured("other extra_ids", extra_ids=3)
        configured("no extra_ids", extra_ids=0)
        configured("another padding", pad_token="<x>")
        configured("another end", eos_token="<sks>")
        configured("more named tokens", bos_token="<sks>", mask_token=dict(added("<x>", lstrip=True), __type="AddedToken"))
        configured("settings of no consequence", legacy=True, sp_model_kwargs={}, clean_up_tokenization_spaces=True, add_prefix_space=False,
                   add_eos_token=False, model_max_length="gone")
        configured("a length of 1", refused=True, model_max_length=1)
        configured("padding on the left, by the config", refused=True, padding_side="left")
        configured("special tokens split", refused=True, split_special_tokens=True)
        modelled("bytes, by spiece.model", lambda m: setattr(m.trainer_spec, "byte_fallback", True))
        modelled("byte pairs", lambda m: setattr(m.trainer_spec, "model_type", 2))
        modelled("space behind", lambda m: setattr(m.trainer_spec, "treat_whitespace_as_suffix", True))
        modelled("another unk_id in spiece.model, which nobody reads", lambda m: setattr(m.trainer_spec, "unk_id", 0), False)
        modelled("no unknown piece", lambda m: setattr(m.pieces[2], "type", 1))
        modelled("an unknown piece elsewhere", lambda m: setattr(m.pieces[20], "type", 2))
        modelled("no space before", lambda m: setattr(m.normalizer_spec, "add_dummy_prefix", False))
        modelled("spaces kept", lambda m: setattr(m.normalizer_spec, "remove_extra_whitespaces", False))
        modelled("no normalizer in spiece.model", lambda m: m.normalizer_spec.ClearField("precompiled_charsmap"), False)
        modelled("a torn normalizer", lambda m: setattr(m.normalizer_spec, "precompiled_charsmap", m.normalizer_spec.precompiled_charsmap[:99]))
        modelled("a score that is no number", lambda m: setattr(m.pieces[9], "score", float("nan")))
        modelled("two pieces", lambda m: m.pieces.__delitem__(slice(2, None)), **{"tokenizer_config.json": json.dumps({**config, "extra_ids": 0})})
        modelled("nothing in spiece.model", lambda m: m.Clear())
        modelled("a letter that only a costly piece has", costly, False)
        modelled("user-defined pieces", lambda m: setattr(m.pieces[20], "type", 4), False)
        case("a torn file", {"spiece.model": base["spiece.model"][:-3]}, True)
    out = Path(__file__).parent / "data" / "unigram_forms.json"
    out.write_text(json.dumps(dict(length=LENGTH, saved=whole, base={k: v.hex() if isinstance(v, bytes) else v for k, v in base.items()}, cases=cases),
                              separators=(",", ":")) + "\n")
    print(len(cases), "folders in", out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
