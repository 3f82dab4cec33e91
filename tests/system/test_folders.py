"""Models as steer-worker finds them: folders that cannot be loaded, folders that can though they look odd, model files, and what check says."""

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import unittest
from pathlib import Path

import tensors
from worker_case import BIN, CHECKPOINTS, Case, GOLDEN, SOURCE, TEXT, UNET, VAE, distance, edit, edit_scheduler, edit_tensors

sys.path.insert(0, str(SOURCE / "tests" / "golden"))
import original_naming


class BadFolders(Case):
    def test_no_folder(self):
        self.refused(self.dir / "nowhere", "nowhere", "does not exist")
        self.refused(self.dir, "model_index.json")
        file = self.dir / "file"
        file.write_text("{}")
        self.refused(file, "file")

    def test_index(self):
        for change, words in (
            (lambda i: i.pop("unet"), ("unet", "missing")),
            (lambda i: i.update(unet=["diffusers", "FluxTransformer2DModel"]), ("FluxTransformer2DModel", "UNet2DConditionModel")),
            (lambda i: i.update(text_encoder_2=["transformers", "CLIPTextModelWithProjection"]), ("text_encoder_2",)),
            (lambda i: i.update(vae=["diffusers", "VQModel"]), ("VQModel", "AutoencoderKL")),
        ):
            model = self.folder()
            edit(model / "model_index.json", change)
            self.refused(model, "model_index.json", *words)
        model = self.folder()
        (model / "model_index.json").write_text('{"unet": ')
        self.refused(model, "model_index.json", "JSON")

    def test_missing_file(self):
        for part in (VAE, UNET, TEXT, "tokenizer/vocab.json", "tokenizer/merges.txt", "unet/config.json", "text_encoder/config.json"):
            model = self.folder()
            (model / "tokenizer/tokenizer.json").unlink()  # it would do without vocab.json and merges.txt
            (model / part).unlink()
            self.refused(model, part.split("/")[0], Path(part).name.split(".")[0])

    def test_truncated_tensors(self):
        for part in (VAE, UNET, TEXT):
            for keep in (0, 7, 100, 0.5, -1):
                model = self.folder()
                data = (model / part).read_bytes()
                keep = int(len(data) * keep) if isinstance(keep, float) else keep
                (model / part).write_bytes(data[:keep])
                self.refused(model, Path(part).name)

    def test_lying_header(self):
        for header in (b"[]", b"{", b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1152921504606846976]}}',
                       b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
                       b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4294967296], "data_offsets": [0, 0]}}'):
            model = self.folder()
            (model / UNET).write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
            self.refused(model, "diffusion_pytorch_model.safetensors")
        model = self.folder()
        (model / UNET).write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 40)
        self.refused(model, "diffusion_pytorch_model.safetensors")

    def test_missing_tensor(self):
        model = self.folder()
        edit_tensors(model / UNET, lambda t: t.pop("mid_block.resnets.0.conv1.weight"))
        self.refused(model, "mid_block.resnets.0.conv1.weight", "unet")

    def test_wrong_shape(self):
        model = self.folder()

        def narrow(t):
            dtype, (rows, columns), data = t["time_embedding.linear_1.weight"]
            t["time_embedding.linear_1.weight"] = dtype, [rows // 2, columns * 2], data

        edit_tensors(model / UNET, narrow)
        rows, columns = tensors.read(model / UNET)["time_embedding.linear_1.weight"][1]
        self.refused(model, "time_embedding.linear_1.weight", f"[{rows}, {columns}]", f"[{rows * 2}, {columns // 2}]")

    def test_wrong_dtype(self):
        model = self.folder()

        def integers(t):
            _, shape, _ = t["conv_in.bias"]
            t["conv_in.bias"] = "I32", shape, bytes(4 * math.prod(shape))

        edit_tensors(model / UNET, integers)
        self.refused(model, "conv_in.bias", "I32")

    def test_configurations(self):
        for part, change, words in (
            ("unet", lambda c: c.update(block_out_channels=[32, "x"]), ("block_out_channels",)),
            ("unet", lambda c: c.update(block_out_channels=[]), ("block_out_channels",)),
            ("unet", lambda c: c.update(cross_attention_dim=10**12), ("cross_attention_dim",)),
            ("unet", lambda c: c.update(down_block_types=["AttnDownBlock2D"] * 2), ("AttnDownBlock2D",)),
            ("unet", lambda c: c.update(addition_embed_type="text_time"), ("addition_embed_type",)),
            ("unet", lambda c: c.update(norm_num_groups=5), ("5",)),
            ("unet", lambda c: c.update(in_channels=9), ("9",)),
            ("text_encoder", lambda c: c.update(num_attention_heads=0), ("num_attention_heads",)),
            ("text_encoder", lambda c: c.update(hidden_act="tanhshrink"), ("tanhshrink", "quick_gelu")),
            ("vae", lambda c: c.update(act_fn="mish"), ("mish",)),
            ("text_encoder", lambda c: c.update(use_attention_mask=True), ("use_attention_mask",)),
            ("text_encoder", lambda c: c.update(layer_norm_eps="small"), ("layer_norm_eps", "small")),
            ("text_encoder", lambda c: c.update(hidden_size=16), ("hidden_size 16", "32")),
            ("unet", lambda c: c.update(cross_attention_dim=48), ("cross_attention_dim", "48", "32", "hidden_size")),
            ("unet", lambda c: c.update(cross_attention_dim=[32, 48]), ("cross_attention_dim", "48", "32")),
            ("unet", lambda c: c.update(down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2, mid_block_type=None),
             ("cross-attention",)),
            ("unet", lambda c: c.update(conv_in_kernel=4), ("conv_in_kernel", "4")),
            ("unet", lambda c: c.update(num_attention_heads=2), ("num_attention_heads",)),
            ("unet", lambda c: c.update(transformer_layers_per_block=[1, 2, 3]), ("transformer_layers_per_block", "3", "2")),
            ("unet", lambda c: c.update(transformer_layers_per_block=16, layers_per_block=16), ("cross-attention", "256")),
            ("unet", lambda c: c.update(transformer_layers_per_block=[[1], [1, 1]]), ("transformer_layers_per_block",)),
            ("unet", lambda c: c.update(norm_num_groups=None), ("norm_num_groups",)),
            ("unet", lambda c: c.update(norm_eps="1e-5"), ("norm_eps",)),
            ("unet", lambda c: c.update(flip_sin_to_cos="yes"), ("flip_sin_to_cos", "yes")),
            ("unet", lambda c: c.update(mid_block_type=7), ("mid_block_type", "7")),
            ("unet", lambda c: c.update(mid_block_type="UNetMidBlock2DSimpleCrossAttn"), ("UNetMidBlock2DSimpleCrossAttn",)),
            ("unet", lambda c: c.update(act_fn="mish"), ("act_fn", "mish")),
            ("unet", lambda c: c.update(resnet_time_scale_shift="scale_shift"), ("resnet_time_scale_shift", "scale_shift")),
            ("unet", lambda c: c.update(time_embedding_type="fourier"), ("fourier",)),
            ("unet", lambda c: c.update(only_cross_attention=[False, True]), ("only_cross_attention", "true")),
            ("unet", lambda c: c.update(mid_block_scale_factor=2), ("mid_block_scale_factor", "2")),
            ("unet", lambda c: c.update(downsample_padding=0), ("downsample_padding", "0")),
            ("unet", lambda c: c.update(encoder_hid_dim=32), ("encoder_hid_dim",)),
            ("unet", lambda c: c.update(attention_type="gated"), ("gated",)),
            ("unet", lambda c: c.update(sample_size="big"), ("sample_size", "big")),
            ("vae", lambda c: c.update(scaling_factor="0.18"), ("scaling_factor", "0.18")),
            ("vae", lambda c: c.update(scaling_factor=0), ("scaling_factor",)),
            ("vae", lambda c: c.update(latents_mean=[0] * 4, latents_std=[1] * 4), ("latents_mean", "AutoencoderKL", "sdxl")),
            ("vae", lambda c: c.update(latents_mean=[0] * 3), ("latents_mean", "4 numbers")),
            ("vae", lambda c: c.update(latents_std=[1, 1, 1, "1"]), ("latents_std", "4 numbers")),
            ("vae", lambda c: c.update(latents_std={}), ("latents_std", "4 numbers")),
            ("vae", lambda c: c.update(upsample_fn="bilinear"), ("bilinear",)),
            ("vae", lambda c: c.update(num_decoder_blocks=[1, 2]), ("num_decoder_blocks",)),
        ):
            model = self.folder()
            edit(model / part / "config.json", change)
            self.refused(model, *words)

    def test_vae_configurations(self):
        for change, words in (
            (lambda c: c.update(up_block_types=["UpDecoderBlock2D"] * 3), ("up_block_types", "3", "4")),
            (lambda c: c.update(up_block_types=["AttnUpDecoderBlock2D"] * 4), ("AttnUpDecoderBlock2D",)),
            (lambda c: c.update(mid_block_add_attention="no"), ("mid_block_add_attention",)),
            (lambda c: c.update(norm_num_groups=3), ("norm_num_groups", "3")),
        ):
            model = self.folder("small")
            edit(model / "vae/config.json", change)
            self.refused(model, *words)

    def test_what_is_no_file(self):
        """A FIFO would block for ever, a folder cannot be read."""
        for part in (UNET, "tokenizer/tokenizer.json", "unet/config.json", "model_index.json", "tokenizer/tokenizer_config.json"):
            for make in (os.mkfifo, os.mkdir):
                model = self.folder()
                (model / part).unlink()
                make(model / part)
                self.refused(model, Path(part).name)

    def test_gaps(self):
        model = self.folder()
        data = (model / UNET).read_bytes()
        (model / UNET).write_bytes(data + bytes(8))
        self.refused(model, "8 bytes after")
        header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                             "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}).encode()
        (model / UNET).write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
        self.refused(model, "\"b\"")

    def test_serve_leaves_out(self):
        """What serve cannot render is not offered, and the log says why."""
        models = self.dir / "models"
        for name, change in (("good", lambda m: None), ("cut", lambda m: (m / UNET).write_bytes((m / UNET).read_bytes()[:-1])),
                             ("alone", lambda m: edit_scheduler(m, _class_name="DPMSolverSinglestepScheduler")),
                             ("named", lambda m: (m / "steer.json").write_text('{"recipe": "nonsense"}'))):
            shutil.copytree(GOLDEN / "tiny" / "model", models / name)
            change(models / name)
        with subprocess.Popen([BIN / "steer-worker", "serve", "--models", models, "--broker", "tcp://127.0.0.1:9"], stderr=subprocess.PIPE) as worker:
            try:
                lines = []
                while not any("model.left_out" in l and "nonsense" in l for l in lines):
                    lines.append(worker.stderr.readline().decode())
                    self.assertTrue(lines[-1], "".join(lines))
            finally:
                worker.kill()
        log = "".join(lines)
        self.assertIn("truncated", log)
        self.assertIn("DPMSolverSinglestepScheduler", log)
        self.assertNotIn("models/good", log)

    def test_scheduler_of_another_kind(self):
        model = self.folder()
        edit(model / "model_index.json", lambda i: i.update(scheduler=["diffusers", "DPMSolverSinglestepScheduler"]))
        self.refused(model, "DPMSolverSinglestepScheduler", "DDIMScheduler", "UniPCMultistepScheduler", "--recipe")
        self.render(model, "--recipe", "euler")
        self.render(model, "--recipe", SOURCE / "worker/recipes/euler.json")
        edit_scheduler(model, _class_name="EulerDiscreteScheduler", use_beta_sigmas=True)
        self.refused(model, "use_beta_sigmas")

    def test_hash(self):
        """Over what is read: a variant beside it changes nothing, a byte of a tensor or of a configuration does."""
        model = self.folder()

        def now():
            out = self.run_worker("render", "--model", model, "--prompt", "a cat", "--seed", 1, "--output", self.dir / "h.png", "--json")
            self.assertEqual(out.returncode, 0, out.stderr)
            return json.loads(out.stdout)["model_hash"]

        hashes = [now()]
        (model / "unet/diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"more")
        (model / "v1-5-pruned.safetensors").write_bytes(b"more")
        self.assertEqual(now(), hashes[0])
        data = bytearray((model / UNET).read_bytes())
        data[-1] ^= 1
        (model / UNET).write_bytes(data)
        hashes.append(now())
        edit(model / "scheduler/scheduler_config.json", lambda c: c.update(note=1))
        hashes.append(now())
        self.assertEqual(len(set(hashes)), 3)

    def test_not_finite(self):
        model = self.folder()

        def infinite(t):
            dtype, shape, data = t["conv_out.bias"]
            t["conv_out.bias"] = "F32", shape, struct.pack("<f", math.inf) * math.prod(shape)

        edit_tensors(model / UNET, infinite)
        self.refused(model, "not finite")

    def test_scheduler(self):
        model = self.folder()
        edit(model / "scheduler/scheduler_config.json", lambda c: c.update(beta_schedule="cubic"))
        self.refused(model, "cubic", args=("--recipe", "euler"))
        self.refused(self.folder(), "nonsense", args=("--recipe", "nonsense"))


class OddFolders(Case):
    """What published folders hold that a loader trips over: the same picture comes out."""

    def check(self, change, name="small"):
        plain, odd = self.folder(name), self.folder(name)
        change(odd)
        want, got = self.render(plain), self.render(odd)
        self.assertEqual(want["image"][2], got["image"][2])

    def test_old_attention_names(self):
        new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

        def rename(t):
            found = [k for k in t if ".attentions." in k and any(f".{n}." in k for n in new)]
            self.assertGreaterEqual(len(found), 8)
            for k in found:
                old = k
                for n, o in new.items():
                    old = old.replace(f".{n}.", f".{o}.")
                t[old] = t.pop(k)

        self.check(lambda m: edit_tensors(m / VAE, rename))

    def test_torch_archives(self):
        def archives(m):
            for path, new in ((m / UNET, "diffusion_pytorch_model.bin"), (m / TEXT, "pytorch_model.bin")):
                tensors.torch_write(path.with_name(new), tensors.read(path))
                path.unlink()

        self.check(archives)

    def test_position_ids(self):
        def more(t):
            n = next(v[1][0] for k, v in t.items() if "position_embedding" in k)
            prefix = next(k for k in t if "position_embedding" in k).split("embeddings.")[0]
            t[f"{prefix}embeddings.position_ids"] = "I64", [1, n], struct.pack(f"<{n}q", *range(n))

        self.check(lambda m: edit_tensors(m / TEXT, more))

    def test_prefixed_text_encoder(self):
        def prefixes(t):
            for k in list(t):
                other = k.removeprefix("text_model.") if k.startswith("text_model.") else "text_model." + k
                t[other] = t.pop(k)

        self.check(lambda m: edit_tensors(m / TEXT, prefixes))

    def test_words_of_python(self):
        def change(m):
            edit(m / "model_index.json", lambda i: i.update(safety_checker=[None, None], requires_safety_checker=False, image_encoder=[None, None]))
            edit(m / "scheduler/scheduler_config.json", lambda c: c.update(lambda_min_clipped="HERE", other="THERE"))
            path = m / "scheduler/scheduler_config.json"
            path.write_text(path.read_text().replace('"HERE"', "-Infinity").replace('"THERE"', "NaN"))

        self.check(change)

    def test_variants_are_not_read(self):
        def change(m):
            for part in (UNET, VAE):
                path = m / part
                for variant in ("non_ema", "fp16", "ema_only"):
                    (path.parent / path.name.replace(".safetensors", f".{variant}.safetensors")).write_bytes(b"not a tensor file")
                (path.parent / "diffusion_pytorch_model.bin").write_bytes(b"pickle")

        self.check(change)

    def test_only_a_variant(self):
        self.check(lambda m: (m / UNET).rename(m / "unet/diffusion_pytorch_model.fp16.safetensors"))

    def test_defaults_left_out(self):
        def change(m):
            for part, keys in (("unet", ("act_fn", "center_input_sample", "downsample_padding", "flip_sin_to_cos", "freq_shift", "norm_eps",
                                         "mid_block_scale_factor", "use_linear_projection", "dual_cross_attention", "only_cross_attention")),
                               ("vae", ("act_fn", "scaling_factor", "shift_factor")), ("text_encoder", ("hidden_act", "layer_norm_eps"))):
                path = m / part / "config.json"
                config = json.loads(path.read_text())
                defaults = {"act_fn": "silu", "center_input_sample": False, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0,
                            "norm_eps": 1e-5, "mid_block_scale_factor": 1, "use_linear_projection": False, "dual_cross_attention": False,
                            "only_cross_attention": False, "scaling_factor": 0.18215, "shift_factor": None, "hidden_act": "quick_gelu",
                            "layer_norm_eps": 1e-5}
                for key in keys:
                    if key in config and config[key] == defaults[key]:
                        del config[key]
                path.write_text(json.dumps(config))

        self.check(change)

    def test_shards(self):
        def change(m):
            all_of_them = tensors.read(m / UNET)
            (m / UNET).unlink()
            parts = {0: {}, 1: {}, 2: {}}
            for i, k in enumerate(reversed(sorted(all_of_them))):  # a layer's weight and bias lie in different files
                parts[i % 3][k] = all_of_them[k]
            names = {i: f"diffusion_pytorch_model-0000{i + 1}-of-00003.safetensors" for i in parts}
            for i, p in parts.items():
                tensors.write(m / "unet" / names[i], p)
            (m / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(
                {"metadata": {"total_size": 1}, "weight_map": {k: names[i] for i, p in parts.items() for k in p}}))

        self.check(change)

    def test_shard_missing(self):
        model = self.folder()
        (model / UNET).unlink()
        (model / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(
            {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}))
        self.refused(model, "diffusion_pytorch_model-00001-of-00002.safetensors")
        (model / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": "../../etc/passwd"}}))
        self.refused(model, "../../etc/passwd")

    def test_vocabulary_escapes(self):
        for ascii_only in (True, False):
            self.check(lambda m: (m / "tokenizer/vocab.json").write_text(
                json.dumps(json.loads((m / "tokenizer/vocab.json").read_text()), ensure_ascii=ascii_only)))

    def test_added_tokens(self):
        """A token that was added to the vocabulary gets the next id, which the table may have a row for or not."""
        model = self.folder()
        rows = len(json.loads((model / "tokenizer/vocab.json").read_text()))
        edit(model / "tokenizer/tokenizer.json", lambda t: t["added_tokens"].append(
            {"id": 5, "content": "<sks>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}))
        self.refused(model, str(rows), "<sks>", "rows", prompt="a <sks> cat")
        self.render(model, prompt="a cat")

        def one_more(t):
            key = next(k for k in t if k.endswith("token_embedding.weight"))
            dtype, (count, width), data = t[key]
            t[key] = dtype, [count + 1, width], bytes(data) + bytes(len(data) // count)

        edit_tensors(model / TEXT, one_more)
        edit(model / "text_encoder/config.json", lambda c: c.update(vocab_size=rows + 1))
        self.assertIn(rows, tensors.floats(self.render(model, prompt="a <sks> cat")["tokens.pos"]))


def single_file(model):
    """The folder's parts as one checkpoint in the original naming."""
    out = {}
    for part, prefix, names in ((UNET, "model.diffusion_model.", original_naming.unet), (VAE, "first_stage_model.", original_naming.vae)):
        found = tensors.read(model / part)
        named = names(found, json.loads((model / part).with_name("config.json").read_text()))
        for k, (dtype, shape, data) in found.items():
            flat = ".attn_1." in named[k] and len(shape) == 2
            out[prefix + named[k]] = dtype, shape + [1, 1] if flat else shape, data
    for k, v in tensors.read(model / TEXT).items():
        out["cond_stage_model.transformer.text_model." + k.removeprefix("text_model.")] = v
    return out


class ModelFiles(Case):
    """Models put together by a JSON file."""

    def model_file(self, name="m.json", **keys):
        path = self.dir / name
        path.write_text(json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in keys.items()}))
        return path

    def same(self, want, got, *more):
        a, b = self.render(want, *more), self.render(got, *more)
        self.assertEqual(a["image"][2], b["image"][2])
        self.assertEqual(a["denoise.out.0"][2], b["denoise.out.0"][2])

    def changed(self, name="tiny"):
        """A folder whose every part differs from the golden one's."""
        model = self.folder(name)
        for part in (UNET, VAE, TEXT):
            def shift(t):
                for k, (dtype, shape, data) in t.items():
                    t[k] = dtype, shape, data[2:] + data[:2]
            edit_tensors(model / part, shift)
        return model

    def test_parts(self):
        base, other = self.folder(), self.changed()
        for part, file in (("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)):
            want = self.folder()
            shutil.copy(other / file, want / file)
            self.assertNotEqual(self.render(want)["image"][2], self.render(base)["image"][2])
            self.same(want, self.model_file(base=base, **{part: other / file}))
            self.same(want, self.model_file(base=base, **{part: other / part}))

    def test_relative_paths(self):
        (self.dir / "models").mkdir()
        base, other = self.folder(), self.changed()
        path = self.model_file("models/m.json", base=f"../{base.name}", unet=f"../{other.name}/unet", recipe="ddim")
        want = self.folder()
        shutil.copy(other / UNET, want / UNET)
        (want / "steer.json").write_text('{"recipe": "ddim"}')
        self.same(want, path)
        os.chdir(self.dir / "models")
        self.addCleanup(os.chdir, "/")
        self.same(want, "m.json")

    def test_part_of_another_class(self):
        """A folder brings its own configuration: a decoder of another class."""
        base, want = self.folder("small"), self.folder("small")
        shutil.rmtree(want / "vae")
        shutil.copytree(GOLDEN / "tiny/model/vae", want / "vae")
        edit(want / "model_index.json", lambda i: i.update(vae=["diffusers", "AutoencoderTiny"]))
        self.same(want, self.model_file(base=base, vae=GOLDEN / "tiny/model/vae"), "--size", "64x64", "--recipe", "ddim", "--steps", 2)

    def test_single_file(self):
        """Everything from one file in the original naming, over configurations alone; a part of its own wins."""
        want, base, other = self.folder("quiet"), self.folder("quiet"), self.changed("quiet")
        tensors.write(self.dir / "single.safetensors", single_file(want))
        tensors.torch_write(self.dir / "single.ckpt", single_file(want))
        for part in (UNET, VAE, TEXT):
            (base / part).unlink()
        self.same(want, self.model_file(base=base, single_file=self.dir / "single.safetensors"))
        self.same(want, self.model_file(base=base, single_file=self.dir / "single.ckpt"))
        shutil.copy(other / VAE, want / VAE)
        self.same(want, self.model_file(base=base, single_file="single.safetensors", vae=other / VAE))

    def xl(self, changes):
        """A folder of Stable Diffusion XL's kind around the models that checkpoints.py makes LoRAs for."""
        model = self.folder()
        text = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8, "hidden_act": "gelu",
                "bos_token_id": 38, "eos_token_id": 39, "pad_token_id": 39, "model_type": "clip_text_model"}
        configs = {"unet": {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [4, 8], "norm_num_groups": 2,
                            "attention_head_dim": [1, 2], "layers_per_block": 1, "cross_attention_dim": 14,
                            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
                            "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32},
                   "text_encoder": {**text, "hidden_size": 6, "intermediate_size": 12, "projection_dim": 6},
                   "text_encoder_2": {**text, "hidden_size": 8, "intermediate_size": 16, "projection_dim": 8}}
        shutil.rmtree(model / "tokenizer")
        for target, part, file in (("denoiser", "unet", UNET), ("text", "text_encoder", TEXT), ("text_2", "text_encoder_2", TEXT)):
            (model / part).mkdir(exist_ok=True)
            (model / part / "config.json").write_text(json.dumps(configs[part]))
            found = tensors.read(CHECKPOINTS / f"lora-base-{target}.safetensors")
            found.update({k.removeprefix(f"{target}/"): v for k, v in changes.items() if k.startswith(f"{target}/")})
            tensors.write(model / part / Path(file).name, found)
        letters = [chr(97 + i) for i in range(19)]
        words = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
        for tokenizer in ("tokenizer", "tokenizer_2"):
            (model / tokenizer).mkdir()
            (model / tokenizer / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
            (model / tokenizer / "merges.txt").write_text("#version: 0.2\n")
            (model / tokenizer / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>",
                                                                                 "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}))
        edit(model / "model_index.json", lambda i: i.update(text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
                                                           tokenizer_2=["transformers", "CLIPTokenizer"]))
        return model

    def test_loras(self):
        """LoRAs with their weights draw what diffusers' fused weights draw."""
        base = self.xl({})
        plain = tensors.floats(self.render(base, "--size", "64x64", prompt="cab bag")["denoise.out.0"])
        for fused, loras in (("kohya.safetensors", [("kohya.safetensors", 0.7)]), ("peft.safetensors", [("peft.safetensors", None)]),
                             ("two", [("peft.safetensors", 0.5), ("kohya.safetensors", -0.25)])):
            want = self.xl(tensors.read(CHECKPOINTS / f"{fused}.safetensors"))
            file = self.model_file(base=base, loras=[{"file": str(CHECKPOINTS / n), **({} if w is None else {"weight": w})} for n, w in loras])
            a, b = (self.render(m, "--size", "64x64", prompt="cab bag") for m in (want, file))
            for name in ("text.pos", "pooled.pos", "denoise.out.0"):
                self.assertLess(distance(tensors.floats(a[name]), tensors.floats(b[name])), 1e-6, name)  # measured: at most 1.5e-7
            self.assertGreater(distance(tensors.floats(b["denoise.out.0"]), plain), 1e-3)

    def mean_file(self, name, value, shape=(4, 1, 1), apart=1):
        """Channel c has c * apart + value."""
        data = b"".join(struct.pack("<f", c * apart + value) * shape[-1] * shape[-2] for c in range(4))
        tensors.write(self.dir / name, {"m": ("F32", list(shape), data)})
        return self.dir / name

    def test_mean_latent(self):
        """Where a recipe asks for it and a model file brings it, the schedule's noise is added to it; for Euler the noise at
        its first level is not scaled once more. Nobody else's start changes."""
        base, recipes = self.folder(), {}
        for name, start in (("plain", "noise"), ("informed", "mean_latent")):
            recipes[name] = self.dir / f"{name}.json"
            recipes[name].write_text(json.dumps({"scheduler": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps": 2, "start": start}))
        file = self.model_file(base=base, mean_latent=self.mean_file("mean.safetensors", 0.5))
        size = ("--size", "40x24")
        plain = self.render(base, "--recipe", recipes["plain"], *size)
        noise = tensors.floats(plain["latents.start"])
        for model, recipe in ((file, "plain"), (base, "informed")):
            got = self.render(model, "--recipe", recipes[recipe], *size)
            self.assertEqual((got["latents.start"], got["latents.final"]), (plain["latents.start"], plain["latents.final"]))
        start = tensors.floats(self.render(file, "--recipe", recipes["informed"], *size)["latents.start"])
        betas = [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(1000)]
        bar = math.prod(1 - b for b in betas[:502])  # two leading steps begin at 501
        for i, (x, e) in enumerate(zip(start, noise)):
            self.assertAlmostEqual(x, i // 15 + 0.5 + ((1 - bar) / bar) ** 0.5 * e, places=4)
        same = self.model_file("sized.json", base=base, mean_latent=self.mean_file("sized.safetensors", 0.5, (1, 4, 3, 5)))
        for name in ("latents.start", "latents.final"):
            self.assertEqual(self.render(same, "--recipe", recipes["informed"], *size)[name], self.render(file, "--recipe", recipes["informed"], *size)[name])
        self.refused(same, "5x3", "8x8", args=("--recipe", recipes["informed"], "--size", "64x64"))
        self.render(same, "--recipe", recipes["plain"], "--size", "64x64")
        # With linspace a mean of zeros is what no mean is: noise at the first level, once.
        for name, start in (("plain", "noise"), ("informed", "mean_latent")):
            recipes[name].write_text(json.dumps({"scheduler": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "steps": 2, "start": start}))
        zero = self.model_file("zero.json", base=base, mean_latent=self.mean_file("zero.safetensors", 0, apart=0))
        a, b = (self.render(m, "--recipe", recipes[r], *size) for m, r in ((zero, "informed"), (base, "plain")))
        self.assertEqual(a["latents.final"], b["latents.final"])
        recipes["plain"].write_text(json.dumps({"scheduler": "EulerDiscreteScheduler", "start": "image"}))
        self.refused(base, "start", "noise mean_latent", args=("--recipe", recipes["plain"]))

    def test_documented(self):
        """Every model file of docs/models.md is one, and names a recipe that ships."""
        text = (SOURCE / "docs/models.md").read_text()
        files = [json.loads(f) for f in re.findall(r"`(\{\"base\".*?\})`", text)]
        self.assertGreater(len(files), 20)
        known = {"base", "unet", "transformer", "vae", "text_encoder", "text_encoder_2", "single_file", "loras", "mean_latent", "recipe"}
        for f in files:
            self.assertLessEqual(f.keys(), known)
            self.assertTrue("recipe" not in f or (SOURCE / f"worker/recipes/{f['recipe']}.json").exists(), f)

    def test_hash(self):
        """Over everything that the file names, and nothing beside it."""
        base, other = self.folder(), self.changed()
        lora = self.dir / "lora.safetensors"
        k = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
        width = tensors.read(base / UNET)[f"{k}.weight"][1]

        def lora_write(value):
            f32 = lambda *shape: ("F32", list(shape), struct.pack("<f", value) * math.prod(shape))
            key = "lora_unet_" + k.replace(".", "_")
            tensors.write(lora, {f"{key}.lora_down.weight": f32(1, width[1]), f"{key}.lora_up.weight": f32(width[0], 1)})

        def now(**keys):
            path = self.model_file(base=base, **keys)
            out = self.run_worker("check", path, "--json")
            self.assertEqual(out.returncode, 0, out.stderr)
            return json.loads(out.stdout)["hash"]

        lora_write(1)
        keys = {"unet": str(other / UNET), "loras": [{"file": str(lora), "weight": 1}]}
        hashes = [now(), now(unet=str(other / UNET)), now(**keys), now(**keys, recipe="ddim")]
        (other / "unet/other.safetensors").write_bytes(b"beside it")
        self.assertEqual(now(**keys), hashes[2])
        hashes += [now(**keys, mean_latent=str(self.mean_file("mean.safetensors", v))) for v in (0.5, 1.5)]
        lora_write(2)
        hashes.append(now(**keys))
        data = bytearray((other / UNET).read_bytes())
        data[-1] ^= 1
        (other / UNET).write_bytes(data)
        hashes.append(now(**keys))
        edit(base / "vae/config.json", lambda c: c.update(_name_or_path="x"))
        hashes.append(now(**keys))
        self.assertEqual(len(set(hashes)), len(hashes))

    def test_refused(self):
        base = self.folder()
        kohya, sdxl = CHECKPOINTS / "kohya.safetensors", CHECKPOINTS / "sdxl.safetensors"
        plain = self.dir / "plain.safetensors"
        tensors.write(plain, {"a": ("F32", [1], bytes(4))})
        os.mkfifo(self.dir / "fifo")
        many = [{"file": str(kohya)}] * 17
        for keys, words in (
            ({"unett": "x"}, ("unett", "not known", "text_encoder_2")),
            ({"unet": "nowhere.safetensors"}, ("\"unet\"", "nowhere.safetensors")),
            ({"unet": 7}, ("\"unet\" is 7",)),
            ({"unet": ""}, ("\"unet\"", "path")),
            ({"unet": "fifo"}, ("fifo", "neither file nor folder")),
            ({"unet": "x" * 2000}, ("\"unet\"", "bytes")),
            ({"unet": "a\0b"}, ("NUL",)),
            ({"unet": base}, ("config.json",)),
            ({"unet": plain}, ("plain.safetensors", "no U-Net", "a")),
            ({"vae": base / UNET}, ("unet", "no VAE")),
            ({"unet": CHECKPOINTS / "evil.pt"}, ("evil.pt",)),
            ({"unet": sdxl}, ("sdxl.safetensors with the configuration of", "unet", "tensor")),
            ({"single_file": sdxl}, ("sdxl.safetensors with the configuration of", "tensor")),
            ({"single_file": base}, ("single_file", "is a folder")),
            ({"transformer": plain}, ("transformer", "no such part")),
            ({"text_encoder_2": plain}, ("text_encoder_2", "no such part")),
            ({"vae": GOLDEN / "odd/model/vae"}, ("latent channels",)),
            ({"text_encoder": GOLDEN / "odd/model/text_encoder"}, ("cross_attention_dim", "hidden_size")),
            ({"loras": [{"file": str(kohya)}]}, ("kohya.safetensors", "a LoRA of another model")),
            ({"loras": [{"file": str(CHECKPOINTS / "flux-kohya.safetensors")}]}, ("layers are not in this model", "double_blocks")),
            ({"loras": [{"file": str(plain)}]}, ("plain.safetensors",)),
            ({"loras": [{"file": str(base)}]}, ("loras[0].file", "is a folder")),
            ({"loras": [{"file": str(kohya), "alpha": 1}]}, ("loras[0].alpha", "not known")),
            ({"loras": [{"weight": 1}]}, ("loras[0].file", "absent")),
            ({"loras": [{"file": str(kohya), "weight": "1"}]}, ("weight", "a number")),
            ({"loras": ["x"]}, ("loras[0]", "file")),
            ({"loras": {}}, ("loras", "a list")),
            ({"loras": many}, ("loras", "16")),
            ({"mean_latent": plain}, ("plain.safetensors", "\"a\" is [1]", "[4, h, w]")),
            ({"mean_latent": sdxl}, ("sdxl.safetensors", "tensors", "expected one")),
            ({"mean_latent": base}, ("mean_latent", "is a folder")),
            ({"mean_latent": self.mean_file("nan.safetensors", float("nan"))}, ("nan.safetensors", "finite")),
            ({"recipe": "../x"}, ("recipe", "name")),
            ({"recipe": "nonsense"}, ("nonsense", "unknown")),
        ):
            with self.subTest(list(keys.items())[0]):
                self.refused(self.model_file(**{"base": base, **keys}), *words)
        self.refused(self.model_file(unet=base / UNET), "base", "missing")
        self.refused(self.model_file(base=base / UNET), "base", "is a file")
        self.refused(self.model_file(base=self.dir), "base", "model_index.json")
        self.refused(self.model_file(base="nowhere"), "base", "nowhere")
        (self.dir / "m.json").write_text("[]")
        self.refused(self.dir / "m.json", "m.json", "JSON object")
        (self.dir / "m.json").write_text("{")
        self.refused(self.dir / "m.json", "m.json", "JSON")


class Check(Case):
    """steer-worker check, and `steer models check` in front of it."""

    def check(self, path, *more, code=0, program="steer-worker"):
        words = ("check",) if program == "steer-worker" else ("models", "check")
        out = subprocess.run([BIN / program, *words, str(path), "--json", *map(str, more)], capture_output=True, timeout=120)
        self.assertEqual(out.returncode, code, out.stderr)
        return [json.loads(line) for line in out.stdout.splitlines()], out.stderr.decode()

    def test_folder(self):
        model = self.folder()
        (model / "unet/diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"more")
        for program in ("steer-worker", "steer"):
            (told,), _ = self.check(model, program=program)
            self.assertEqual([told[k] for k in ("model", "family", "width", "height", "size_multiple", "text_tokens", "recipe")],
                             [model.name, "sd15", 72, 72, 8, 20, "lcm"])
            self.assertEqual(told["recipes"][0], "lcm")
            self.assertIn("dmd2-sd15", told["recipes"])
            self.assertNotIn("sdxl", told["recipes"])
            self.assertEqual([(p["part"], p["class"], p["dtypes"], p["not_read"]) for p in told["parts"]], [
                ("unet", "UNet2DConditionModel", ["BF16"], ["diffusion_pytorch_model.non_ema.safetensors"]),
                ("vae", "AutoencoderTiny", ["F16"], []), ("text_encoder", "CLIPTextModel", ["F16"], [])])
            self.assertEqual(told["parts"][0]["bytes"], sum(len(t[2]) for t in tensors.read(model / UNET).values()))
            self.assertNotIn("error", told)
        words = self.run_worker("check", model).stdout.decode()
        for word in ("sd15", "72x72", "UNet2DConditionModel", "BF16", "non_ema", "lcm; also fit: ", "memory f32"):
            self.assertIn(word, words)

    def test_memory(self):
        """Rendering needs what is told: it fits into that, and not into less than weights and plans."""
        for name in ("tiny", "small"):
            model = self.folder(name)
            (told,), _ = self.check(model)
            for precision, flags in (("f32", ("--precision", "f32")), ("bf16", ("--precision", "bf16")), ("int8", ("--weights", "int8"))):
                need = told["memory"][precision]
                if "error" in need:
                    self.assertIn("AVX-512", need["error"])
                    continue
                self.assertGreaterEqual(need["bytes"], need["weights"] + need["plans"])
                args = ("bench", "--model", model, "--runs", 1, *flags, "--memory")
                out = self.run_worker(*args, need["bytes"])
                self.assertEqual(out.returncode, 0, out.stderr)
                out = self.run_worker(*args, need["weights"] + need["plans"] - 1)
                self.assertEqual(out.returncode, 71, out.stderr)

    def test_less_memory(self):
        """int8 weights take less than any precision, and texts that leave less still: a model renders in what is told, to the same bytes."""
        model = self.folder("flux")
        (told,), _ = self.check(model)
        (gone,), _ = self.check(model, "--text-resident", "no")
        self.assertLess(told["memory"]["int8"]["weights"], told["memory"]["f32"]["weights"] / 2)
        self.assertLess(gone["memory"]["int8"]["bytes"], told["memory"]["int8"]["bytes"])
        args = ("render", "--model", model, "--prompt", "the red cat", "--seed", 7, "--weights", "int8", "--output")
        self.assertEqual(self.run_worker(*args, self.dir / "all.png").returncode, 0)
        out = self.run_worker(*args, self.dir / "less.png", "--text-resident", "no", "--memory", gone["memory"]["int8"]["bytes"])
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertEqual((self.dir / "all.png").read_bytes(), (self.dir / "less.png").read_bytes())
        self.assertIn("memory int8", self.run_worker("check", model).stdout.decode())

    def test_everything_missing_is_told(self):
        model = self.folder()
        for part in (VAE, UNET):
            (model / part).unlink()
        (told,), text = self.check(model, code=65)
        self.assertEqual([p["part"] for p in told["parts"] if "error" in p], ["unet", "vae"])
        self.assertIn(told["error"]["text"], text)
        self.assertEqual(told["error"]["code"], "BAD_MODEL")
        words = self.run_worker("check", model).stdout.decode()
        self.assertIn("refused ", words)
        self.assertEqual(len(text.strip().splitlines()), 1)

    def test_recipe_missing(self):
        model = self.folder()
        edit_scheduler(model, _class_name="DPMSolverSinglestepScheduler")
        (told,), _ = self.check(model, code=69)
        self.assertIn("DPMSolverSinglestepScheduler", told["error"]["text"])
        self.assertIn("euler", told["recipes"])

    def test_folder_of_models(self):
        shutil.copytree(GOLDEN / "tiny/model", self.dir / "a")
        shutil.copytree(GOLDEN / "tiny/model", self.dir / "b")
        (self.dir / "b" / UNET).unlink()
        (self.dir / "c.json").write_text('{"base": "a", "unet": "a/unet"}')
        (self.dir / "notes.txt").write_text("x")
        told, _ = self.check(self.dir, code=65)
        self.assertEqual([Path(t["path"]).name for t in told], ["a", "b", "c.json"])
        self.assertEqual([t.get("model") for t in told], ["a", None, "c"])

    def test_what_is_no_model(self):
        (self.dir / "empty").mkdir()
        told, text = self.check(self.dir / "empty", code=65)
        self.assertIn("model_index.json", text)
        _, text = self.check(self.dir / "nowhere", code=66)
        self.assertIn("nowhere", text)
        self.assertEqual(self.run_worker("check").returncode, 64)


if __name__ == "__main__":
    unittest.main(verbosity=2)
