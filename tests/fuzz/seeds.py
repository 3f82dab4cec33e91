#!/usr/bin/env python3
"""Writes the fuzzers' first seeds under corpus/ again, from the golden models and steer.proto; needs tests/requirements.txt."""

import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden" / "data"
ROOT = HERE.parents[1]


def put(kind, name, data):
    (HERE / "corpus" / kind / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def tensor_file(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(*parts):
    return json.loads(GOLDEN.joinpath(*parts).read_text().replace("-Infinity", "null"))


put("safetensors", "two", tensor_file({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
                                       "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]}, "__metadata__": {"format": "pt"}}, bytes(26)))
put("safetensors", "index", json.dumps({"metadata": {}, "weight_map": {"a": "fuzz.safetensors", "b": "../b.safetensors"}}))
CHECKPOINTS = HERE.parent / "golden" / "checkpoints"
for name in ("strided.pt", "training.ckpt", "protocol4.pt", "evil.pt"):
    with zipfile.ZipFile(CHECKPOINTS / name) as archive:
        put("torch_archive", f"pickle-{name}", archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
for name in ("sd21-text", "flux", "flux-kohya", "peft"):  # their headers, over zeros: the values do not matter
    data = (CHECKPOINTS / f"{name}.safetensors").read_bytes()
    length = 8 + struct.unpack("<Q", data[:8])[0]
    put("checkpoint", name, data[:length] + bytes(len(data) - length))
put("torch_archive", "plain", (CHECKPOINTS / "plain.pt").read_bytes())
put("json", "python", '{"lower_order_final": true, "lambda_min_clipped": -Infinity, "x": [NaN, Infinity, 1e400, "\\u00e9\\ud83d\\ude00"]}')
recipes = {p.stem: json.loads(p.read_text()) for p in (ROOT / "worker" / "recipes").glob("*.json")}
for model, recipe in (("tiny", "lcm"), ("small", "dmd2-sd15"), ("odd", "pndm"), ("consistency", "sd15")):
    put("config", model, json.dumps({"unet": read(model, "model", "unet", "config.json"), "clip": read(model, "model", "text_encoder", "config.json"),
                                     "vae": read(model, "model", "vae", "config.json"),
                                     "scheduler": read(model, "model", "scheduler", "scheduler_config.json"), "recipe": recipes[recipe]}))
for model, recipe in (("pixart", "dmd-pixart"), ("pixart_ms", "pixart"), ("pixart_odd", "yoso-pixart")):
    put("config", model, json.dumps({"pixart": read(model, "model", "transformer", "config.json"),
                                     "t5": read(model, "model", "text_encoder", "config.json"), "vae": read(model, "model", "vae", "config.json"),
                                     "scheduler": read(model, "model", "scheduler", "scheduler_config.json"), "recipe": recipes[recipe]}))
put("config", "flux", json.dumps({"flux": read("flux", "model", "transformer", "config.json"), "t5": read("flux", "model", "text_encoder_2", "config.json"),
                                  "vae": read("flux", "model", "vae", "config.json"),
                                  "scheduler": read("flux", "model", "scheduler", "scheduler_config.json"), "recipe": recipes["flux-schnell"]}))
for name, recipe in recipes.items():
    put("config", f"recipe-{name}", json.dumps({"recipe": recipe, "scheduler": {"_class_name": "DDIMScheduler"}}))
put("config", "model-file", json.dumps({"model_file": {"base": ".", "unet": "model.json", "vae": ".", "single_file": "model.json", "recipe": "ddim",
                                                       "loras": [{"file": "model.json", "weight": 0.5}]}}))
for name in ("gated", "relu"):
    put("config", f"t5-{name}", json.dumps({"t5": read("t5", "model", name, "config.json")}))
vocab = {c: i for i, c in enumerate(["a", "b", "c", "a</w>", "b</w>", "c</w>", "ab", "ab</w>", "abc</w>", "é</w>", "<|startoftext|>", "<|endoftext|>"])}
put("tokenizer", "small", json.dumps(vocab) + "\f#version: 0.2\na b\na b</w>\nab c</w>\n\f" + '{"model_max_length": 16, "pad_token": "<|endoftext|>"}'
    + "\fabc a'll  ABC \u0130 \u00e9 <|endoftext|> 12 \u0301")
whole = {"added_tokens": [{"id": 12, "content": "<SKS>", "normalized": True, "special": False}],
         "model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": [["a", "b"], "a b</w>", ["ab", "c</w>"]]}}
put("prompt", "weights", "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).")
put("prompt", "words", "\\(a\\) BREAK (b BREAK c:1.2) [d:e:0.5] <lora:x:1> AND")
def unigram(name, first, config, text):
    put("unigram", name, struct.pack("<I", len(first)) + first + json.dumps(config).encode() + b"\f" + text.encode())


forms = read("unigram_forms.json")
spiece = bytes.fromhex(forms["base"]["spiece.model"])
saved = json.dumps(forms["saved"]).encode()
unigram("spiece", spiece, {"model_max_length": 16, "extra_ids": 4}, "a red cat \u2603\u2603 <pad></s>x \uff1c/s> caf\u00e9 cafe\u0301\u0302 \u2581a\u2581")
unigram("saved", saved, {}, "a <extra_id_3> red <unk> cat")
unigram("added", spiece, {"extra_ids": 0, "added_tokens_decoder": {"9": {"content": "<\u00e9>", "rstrip": True}, "99": {"content": "at", "lstrip": True}}},
        "a <e\u0301>  cat  at")
put("tokenizer", "whole", json.dumps(whole) + "\f\f" + '{"model_max_length": 1000000000000000019884624838656}' + "\fabc <SKS> <sks> abc")

with tempfile.TemporaryDirectory() as tmp:
    subprocess.run(["protoc", f"--python_out={tmp}", f"--proto_path={ROOT / 'proto'}", "steer.proto"], check=True)
    sys.path.insert(0, tmp)
    import steer_pb2 as pb

    def message(name, type_number, body, payload=b""):
        put("wire", name, bytes([type_number, len(payload)]) + body.SerializePartialToString() + payload)

    def full(body):
        """Every field set, lists with one entry."""
        for field in body.DESCRIPTOR.fields:
            one = {field.TYPE_STRING: "a cat", field.TYPE_BYTES: b"0123456789abcdef"}.get(field.type, 1)
            if field.type == field.TYPE_MESSAGE:
                full(getattr(body, field.name).add() if field.is_repeated else getattr(body, field.name))
            else:
                one = field.enum_type.values[-1].number if field.type == field.TYPE_ENUM else one
                getattr(body, field.name).append(one) if field.is_repeated else setattr(body, field.name, one)
        return body

    for value in pb.MessageType.DESCRIPTOR.values:
        cls = getattr(pb, "".join(w.capitalize() for w in value.name.split("_")), None)
        if cls:
            message(value.name.lower(), value.number, full(cls()), b"RIFF" if value.name == "RESULT" else b"")
