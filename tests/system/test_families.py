"""Folders of every model family with steer-worker: parts of another family, what is not read, and which recipe is for whom."""

import json
import os
import re
import shutil
import sys
import unittest

import farm
import tensors
import worker_case
from worker_case import GOLDEN, TEXT, UNET, edit, edit_scheduler, edit_tensors, png

XL_TEXT = "text_encoder_2/model.safetensors"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def row_changed(table, row):
    """An embedding table with another row, in its own type."""
    dtype, (_, width), data = table
    size = width * tensors.WIDTH[dtype]
    return dtype, table[1], data[:row * size] + data[(row + 7) * size:(row + 8) * size] + data[(row + 1) * size:]


class Case(worker_case.Case):
    def take(self, model, other, *parts):
        """Puts parts of another golden folder over those of model."""
        for part in parts:
            shutil.rmtree(model / part)
            shutil.copytree(GOLDEN / other / "model" / part, model / part)
        return model


class Parts(Case):
    def test_unet_of_another_family(self):
        model = self.take(self.folder("small"), "xl", "unet")
        self.refused(model, "unet/config.json", "addition_embed_type", "text_time", "text_encoder_2")
        model = self.take(self.folder("xl"), "small", "unet")
        self.refused(model, "unet/config.json", "addition_embed_type", "null", "text_encoder_2")
        model = self.take(self.folder("tiny"), "second", "unet")
        self.refused(model, "cross_attention_dim is 40", "hidden_size 32")
        model = self.take(self.folder("xl"), "xl_odd", "unet")
        self.refused(model, "cross_attention_dim is 52", "24 and 32", "sum")

    def test_text_encoder_of_another_family(self):
        model = self.take(self.folder("xl"), "small", "text_encoder")
        self.refused(model, "cross_attention_dim is 56", "40 and 32")
        model = self.take(self.folder("xl"), "xl_odd", "tokenizer")
        self.refused(model, "text_encoder takes 11 tokens", "text_encoder_2 14")
        model = self.folder("xl")
        edit(model / "model_index.json", lambda i: i.update(text_encoder_2=["transformers", "T5EncoderModel"]))
        self.refused(model, "text_encoder_2", "T5EncoderModel", "CLIPTextModelWithProjection")

    def test_vae_of_another_family(self):
        self.refused(self.take(self.folder("xl"), "odd", "vae"), "unet has 4 latent channels", "VAE 8")

    def test_index(self):
        for change, words in (
            (lambda i: i.pop("tokenizer_2"), ("tokenizer_2", "missing", "text_encoder_2")),
            (lambda i: i.pop("text_encoder_2"), ("text_encoder_2", "missing", "CLIPTextModelWithProjection")),
            (lambda i: i.update(text_encoder=[None, None]), ("text_encoder", "missing", "CLIPTextModel")),
            (lambda i: i.update(requires_aesthetics_score=True), ("requires_aesthetics_score", "refiners")),
            (lambda i: i.update(force_zeros_for_empty_prompt="yes"), ("force_zeros_for_empty_prompt", "yes")),
            (lambda i: i.update(unet=[None, None], transformer=["diffusers", "SD3Transformer2DModel"]), ("SD3Transformer2DModel", "PixArtTransformer2DModel")),
            (lambda i: i.update(unet=[None, None]), ("denoiser", "unet", "transformer")),
            (lambda i: i.update(unet=["diffusers", "UNet3DConditionModel"]), ("UNet3DConditionModel", "UNet2DConditionModel")),
            (lambda i: i.update(controlnet=["diffusers", "ControlNetModel"]), ("controlnet",)),
        ):
            model = self.folder("xl")
            edit(model / "model_index.json", change)
            self.refused(model, "model_index.json", *words)

    def test_configurations(self):
        for part, change, words in (
            ("unet", lambda c: c.update(addition_embed_type="text_image"), ("addition_embed_type", "text_image", "text_time")),
            ("unet", lambda c: c.pop("addition_time_embed_dim"), ("addition_time_embed_dim",)),
            ("unet", lambda c: c.update(projection_class_embeddings_input_dim=2560), ("projection_class_embeddings_input_dim", "2560", "68")),
            ("unet", lambda c: c.update(addition_time_embed_dim=1), ("addition_time_embed_dim", "1")),
            ("text_encoder_2", lambda c: c.update(projection_dim=21), ("projection_class_embeddings_input_dim", "68", "69")),
            ("text_encoder_2", lambda c: c.update(eos_token_id="last"), ("eos_token_id", "last")),
        ):
            model = self.folder("xl")
            edit(model / part / "config.json", change)
            self.refused(model, f"{part if part == 'unet' else ''}", *words)

    def test_tensors(self):
        for file, name in ((UNET, "add_embedding.linear_1.weight"), (XL_TEXT, "text_projection.weight"),
                           (XL_TEXT, "text_model.final_layer_norm.bias")):
            model = self.folder("xl")
            edit_tensors(model / file, lambda t: t.pop(name))
            self.refused(model, name, file.split("/")[0])


class PixArt(Case):
    def test_configurations(self):
        for part, change, words in (
            ("transformer", lambda c: c.update(norm_type="ada_norm_zero"), ("norm_type", "ada_norm_zero", "ada_norm_single")),
            ("transformer", lambda c: c.update(attention_type="gated"), ("attention_type", "gated")),
            ("transformer", lambda c: c.update(double_self_attention=True), ("double_self_attention", "true")),
            ("transformer", lambda c: c.update(num_vector_embeds=8), ("num_vector_embeds", "8")),
            ("transformer", lambda c: c.update(activation_fn="geglu"), ("activation_fn", "geglu", "gelu-approximate")),
            ("transformer", lambda c: c.update(out_channels=6), ("out_channels", "6", "4")),
            ("transformer", lambda c: c.update(out_channels=None), ("proj_out.weight", "32")),
            ("transformer", lambda c: c.update(attention_head_dim=12), ("cross_attention_dim", "36", "24")),
            ("transformer", lambda c: c.update(num_attention_heads=3), ("3 heads", "multiple of 12")),
            ("transformer", lambda c: c.update(cross_attention_dim=40), ("cross_attention_dim", "40", "36")),
            ("transformer", lambda c: c.update(caption_channels=23), ("caption_channels", "23", "24")),
            ("transformer", lambda c: c.update(patch_size=0), ("patch_size", "0")),
            ("transformer", lambda c: c.update(sample_size=1), ("patch_size", "2", "sample_size 1")),
            ("transformer", lambda c: c.update(interpolation_scale=0), ("interpolation_scale",)),
            ("transformer", lambda c: c.update(norm_eps=-1), ("norm_eps",)),
            ("transformer", lambda c: c.update(num_layers=3), ("transformer_blocks.2.",)),
            ("text_encoder", lambda c: c.update(d_model=25), ("caption_channels", "24", "25")),
        ):
            model = self.folder("pixart_ms")
            edit(model / part / "config.json", change)
            self.refused(model, "transformer", *words)

    def test_parts(self):
        model = self.folder("pixart")
        edit(model / "model_index.json", lambda i: i.update(_class_name="PixArtSigmaPipeline"))
        self.refused(model, "model_index.json", "PixArtSigmaPipeline", "PixArtAlphaPipeline")
        for file, name in ((TRANSFORMER, "scale_shift_table"), (TRANSFORMER, "transformer_blocks.1.scale_shift_table"),
                           (TRANSFORMER, "caption_projection.linear_2.bias"), (TRANSFORMER, "pos_embed.proj.weight"),
                           (TRANSFORMER, "adaln_single.emb.aspect_ratio_embedder.linear_1.weight")):
            model = self.folder("pixart_ms")
            edit_tensors(model / file, lambda t: t.pop(name))
            self.refused(model, name, "transformer")
        self.refused(self.take(self.folder("pixart"), "small", "text_encoder"), "text_encoder")
        self.refused(self.take(self.folder("pixart"), "odd", "vae"), "transformer has 4 latent channels", "VAE 8")

    def test_sizes(self):
        """Multiples of the VAE's cell times the transformer's patch."""
        for name, size, multiple in (("pixart", "40x64", 16), ("pixart", "64x56", 16), ("pixart_odd", "32x48", 24)):
            self.refused(self.folder(name), size, f"multiples of {multiple}", args=("--size", size))
        for name, size in (("pixart", "64x96"), ("pixart_odd", "24x72")):
            image = self.render(self.folder(name), "--size", size, "--recipe", "dmd-pixart")["image"]
            self.assertEqual(image[1], [int(size.split("x")[1]), int(size.split("x")[0]), 3])

    def test_default_size(self):
        model = self.folder("pixart")
        self.assertEqual(self.render(model, "--recipe", "yoso-pixart")["image"][1], [80, 80, 3])

    def test_lower_case(self):
        """PixArtAlphaPipeline lower-cases and strips; where a text was cut is told of the text as it was given."""
        model = self.folder("pixart")
        flags = ("--size", "32x32", "--recipe", "dmd-pixart")
        want = self.render(model, *flags, "--negative", "dog", prompt="the red cat")
        got = self.render(model, *flags, "--negative", "\u2003DOG\n", prompt="  The RED Cat ")
        self.assertEqual(want["image"][2], got["image"][2])
        spaces, text = "   ", "THE RED CAT ON THE BLUE \u0130 " * 20
        cuts = []
        for prompt in (text, spaces + text):
            out = self.run_worker("render", "--model", model, "--prompt", prompt, "--seed", 1, *flags, "--output", self.dir / "cut.png")
            self.assertEqual(out.returncode, 0, out.stderr)
            cuts.append(int(re.search(r"does not fit into 120 tokens and was cut at byte (\d+)", out.stderr.decode())[1]))
        self.assertEqual(cuts[1], cuts[0] + len(spaces))
        self.assertEqual(text.encode()[cuts[0] - 1:cuts[0]], b" ")  # where a word begins

    def test_default_numbers(self):
        """The family's, where neither job nor recipe says any."""
        model = self.folder("pixart")
        flags = ("--size", "32x32", "--steps", "1", "--negative", "a dog", "--guidance")
        for method, numbers in (("nasa", ("--alpha", "0.5")), ("nag", ("--phi", "4", "--tau", "2.5", "--beta", "0.375"))):
            self.assertEqual(self.render(model, *flags, method)["image"][2], self.render(model, *flags, method, *numbers)["image"][2])

    def test_padding_is_not_seen(self):
        """<pad> is masked for both texts, each by its own length."""
        model = self.folder("pixart")
        flags = ("--size", "32x32", "--recipe", "dmd-pixart", "--guidance", "nasa", "--alpha", "0.4", "--negative", "a dog, blurry")
        want = self.render(model, *flags)
        edit_tensors(model / TEXT, lambda t: t.update({"shared.weight": row_changed(t["shared.weight"], 0)}))
        got = self.render(model, *flags)
        self.assertNotEqual(want["text.pos"][2], got["text.pos"][2])
        self.assertEqual(want["image"][2], got["image"][2])

    def test_farm(self):
        """Through a broker: what the worker alone makes."""
        flags = ("--seed", "3", "--size", "48x32", "--recipe", "sbv2-pixart", "--negative", "A dog", "--format", "png")
        with farm.Farm(models={"pixart": GOLDEN / "pixart" / "model"}) as f:
            f.wait_models()
            steer = f.steer("render", "The red cat", "--model", "pixart", *flags, "--output", self.dir / "farm.png")
            self.assertEqual(steer.process.wait(60), 0, steer.text())
        out = self.run_worker("render", "--model", GOLDEN / "pixart" / "model", "--prompt", "The red cat", "--threads", 1, *flags,
                              "--output", self.dir / "alone.png")
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertEqual(png(self.dir / "farm.png"), png(self.dir / "alone.png"))


class Flux(Case):
    """A second family: joint attention, two text encoders of two kinds, a scheduler without betas."""

    def test_bad_sizes(self):
        model = self.folder("flux")
        for size in ("40x32", "32x40", "24x24", "8x16"):
            self.refused(model, size, "16", args=("--size", size))

    def test_bad_folders(self):
        for part, change, words in (
            ("transformer/config.json", lambda c: c.update(guidance_embeds=True), ("guidance_embeds", "FLUX.1-dev")),
            ("transformer/config.json", lambda c: c.update(axes_dims_rope=[2, 4, 4]), ("axes_dims_rope", "[2, 4, 4]", "12")),
            ("transformer/config.json", lambda c: c.update(axes_dims_rope=[3, 3, 6]), ("axes_dims_rope", "even")),
            ("transformer/config.json", lambda c: c.update(axes_dims_rope=[4, 8]), ("axes_dims_rope", "3")),
            ("transformer/config.json", lambda c: c.pop("axes_dims_rope"), ("axes_dims_rope", "[16, 56, 56]", "12")),
            ("transformer/config.json", lambda c: c.update(patch_size=2), ("patch_size", "2")),
            ("transformer/config.json", lambda c: c.update(out_channels=12), ("out_channels", "24", "12")),
            ("transformer/config.json", lambda c: c.update(in_channels=22), ("in_channels", "22")),
            ("transformer/config.json", lambda c: c.update(in_channels=28), ("latent channels", "7", "6")),
            ("transformer/config.json", lambda c: c.update(num_layers=3), ("transformer_blocks.2.", "missing")),
            ("transformer/config.json", lambda c: c.update(num_single_layers=0), ("num_single_layers", "0")),
            ("transformer/config.json", lambda c: c.update(joint_attention_dim=20), ("joint_attention_dim", "20", "16")),
            ("transformer/config.json", lambda c: c.update(pooled_projection_dim=16), ("pooled_projection_dim", "16", "20")),
            ("scheduler/scheduler_config.json", lambda c: c.update(use_dynamic_shifting=True), ("use_dynamic_shifting",)),
            ("scheduler/scheduler_config.json", lambda c: c.update(shift=0), ("shift", "more than 0")),
            ("model_index.json", lambda c: c.update(text_encoder_2=["transformers", "CLIPTextModel"]), ("text_encoder_2", "T5EncoderModel")),
            ("model_index.json", lambda c: c.update(transformer=["diffusers", "SD3Transformer2DModel"]),
             ("SD3Transformer2DModel", "FluxTransformer2DModel")),
        ):
            model = self.folder("flux")
            edit(model / part, change)
            self.refused(model, part.split("/")[0], *words)

    def test_bad_jobs(self):
        model = self.folder("flux")
        self.refused(model, "5 steps", "1 to 4", args=("--steps", 5))
        self.refused(model, "ddim", "flux", args=("--recipe", "ddim"))
        self.refused(model, "nasa-variant", "image", args=("--nasa-variant", "image"))
        self.refused(self.folder(), "NASA variant", "joint attention", args=("--negative", "a dog", "--nasa-variant", "joint"))
        self.refused(self.folder(), "flux-schnell", "flux", args=("--recipe", "flux-schnell"))
        recipe = self.dir / "mass.json"
        recipe.write_text(json.dumps(dict(steps=1, guidance=dict(method="nasa", nasa_variant="mass"))))
        self.refused(self.folder(), "nasa_variant", "joint attention", args=("--recipe", recipe))

    def test_methods_leave_traces(self):
        """alpha 0 is the plain picture to the byte; each method and each variant draws another."""
        model = self.folder("flux")
        one = ("--size", "48x32", "--steps", 1)
        plain = self.render(model, *one)["image"]
        self.assertEqual(plain[1], [32, 48, 3])
        seen = {plain[2]}
        for more in (("nasa",), ("nasa", "--nasa-variant", "mass"), ("nasa", "--nasa-variant", "joint"), ("nag",), ("vsf",), ("cfg",)):
            seen.add(self.render(model, *one, "--negative", "lazy dog", "--guidance", *more)["image"][2])
            if more[0] == "nasa":
                self.assertEqual(self.render(model, *one, "--negative", "lazy dog", "--guidance", *more, "--alpha", 0)["image"][2], plain[2])
        self.assertEqual(len(seen), 7)
        default = self.render(model, *one, "--negative", "lazy dog")["image"][2]
        self.assertEqual(default, self.render(model, *one, "--negative", "lazy dog", "--guidance", "nasa", "--alpha", 0.5, "--nasa-variant", "text")["image"][2])

    def test_image_says_its_variant(self):
        args = ("--prompt", "a cat", "--size", "32x16", "--seed", 1, "--negative", "a dog", "--guidance", "nasa", "--output", self.dir / "x.webp")
        self.assertEqual(self.run_worker("render", "--model", self.folder("flux"), *args, "--nasa-variant", "joint").returncode, 0)
        image = (self.dir / "x.webp").read_bytes()
        self.assertIn(b"NASA variant: joint", image)
        self.assertIn(b"nasa_variant", image)
        self.assertEqual(self.run_worker("render", "--model", self.folder(), *args).returncode, 0)
        self.assertNotIn(b"nasa_variant", (self.dir / "x.webp").read_bytes())

    def test_long_prompt(self):
        """CLIP's pooled state may be cut, T5's text at 256 tokens is said so."""
        args = ("render", "--model", self.folder("flux"), "--size", "16x16", "--steps", 1, "--output", self.dir / "x.png")
        self.assertEqual(self.run_worker(*args, "--prompt", "a cat " * 30).stderr, b"")
        self.assertRegex(self.run_worker(*args, "--prompt", "a cat " * 200).stderr.decode(),
                         r"positive prompt does not fit into 256 tokens and was cut at byte \d+")


class Recipes(Case):
    def test_for_others(self):
        self.refused(self.folder("small"), "dmd2-sdxl-1step", "sdxl", "sd15", args=("--recipe", "dmd2-sdxl-1step"))
        self.refused(self.folder("second"), "sbv2-sd15", "sd15", "sd21", args=("--recipe", "sbv2-sd15"))
        own = self.dir / "own.json"
        own.write_text(json.dumps({"scheduler": "DDIMScheduler", "timesteps": [999], "steps": 1, "family": ["pixart", 5]}))
        self.refused(self.folder("xl"), "own.json", "family", args=("--recipe", own))

    def test_scheduler(self):
        model = self.folder("xl")
        edit_scheduler(model, _class_name="KDPM2DiscreteScheduler")
        self.refused(model, "KDPM2DiscreteScheduler", "EulerDiscreteScheduler")
        self.render(model, "--recipe", "euler")

    def test_student_of_ones_own(self):
        """docs/models.md: a recipe in $STEER_RECIPES with its own alpha, named by a model file; the job's alpha wins."""
        (self.dir / "recipes").mkdir()
        (self.dir / "recipes" / "my-nasat-pixart.json").write_text(json.dumps(
            {"family": "pixart", "scheduler": "DDIMScheduler", "prediction_type": "epsilon", "beta_schedule": "linear", "beta_start": 0.0001,
             "beta_end": 0.02, "set_alpha_to_one": True, "timesteps": [400], "guidance": {"method": "nasa", "alpha": 1.0}}))
        base = self.folder("pixart")
        student = self.dir / "student.json"
        student.write_text(json.dumps({"base": str(base), "recipe": "my-nasat-pixart"}))
        self.addCleanup(os.environ.pop, "STEER_RECIPES")
        os.environ["STEER_RECIPES"] = str(self.dir / "recipes")
        final = lambda model, *more: self.render(model, "--negative", "a dog", "--size", "32x48", *more)["latents.final"]
        own, told = final(student), final(base, "--recipe", "sbv2-pixart", "--alpha", 1)
        self.assertEqual(own, told)
        self.assertNotEqual(own, final(base, "--recipe", "sbv2-pixart"))
        self.assertEqual(final(student, "--alpha", 0.5), final(base, "--recipe", "sbv2-pixart"))

    def test_clip_sample_is_followed(self):
        """DDIMScheduler's default is true; StableDiffusionPipeline makes false of it, StableDiffusionXLPipeline does not."""
        for name, alike in (("small", True), ("xl", False)):
            seen = []
            for clip in ({}, {"clip_sample": True}, {"clip_sample": False}):
                model = self.folder(name)
                path = model / "scheduler" / "scheduler_config.json"
                config = {k: v for k, v in json.loads(path.read_text()).items() if k != "clip_sample"}
                path.write_text(json.dumps({**config, **clip, "_class_name": "DDIMScheduler"}))
                edit(model / "model_index.json", lambda i: i.update(scheduler=["diffusers", "DDIMScheduler"]))
                seen.append(self.render(model, "--steps", "2")["latents.final"])
                shutil.rmtree(model)
            self.assertEqual(seen[0], seen[1])
            self.assertEqual(seen[1] == seen[2], alike)

    def test_steps_offset_is_followed(self):
        """StableDiffusionPipeline makes 1 of it, StableDiffusionXLPipeline does not."""
        seen = set()
        for name in ("small", "xl"):
            for offset in (0, 1):
                model = self.folder(name)
                edit_scheduler(model, steps_offset=offset)
                seen.add((name, self.render(model, "--steps", "2", "--size", "24x24")["image"][2]))
        self.assertEqual(sum(name == "small" for name, _ in seen), 1)
        self.assertEqual(sum(name == "xl" for name, _ in seen), 2)


class Texts(Case):
    def test_absent_is_not_empty(self):
        """SDXL: zeros stand for an absent negative, also when the image is rendered again from what it says of itself."""
        model = self.folder("xl")
        flags = ("--steps", "1", "--size", "24x24")
        absent = self.render(model, *flags)
        empty = self.render(model, *flags, "--negative", "")
        self.assertNotIn("tokens.neg", absent)
        self.assertFalse(any(absent["text.neg"][2]) or any(absent["pooled.neg"][2]))
        self.assertTrue(any(empty["text.neg"][2]))
        self.assertIn("tokens_2.neg", empty)
        self.assertNotEqual(absent["image"][2], empty["image"][2])
        self.assertIn(b'"negative_prompt":""', (self.dir / "x.png").read_bytes())
        self.render(model, *flags)
        self.assertNotIn(b"negative_prompt", (self.dir / "x.png").read_bytes())

    def test_sd_knows_no_absence(self):
        model = self.folder("second")
        self.assertEqual(self.render(model)["image"][2], self.render(model, "--negative", "")["image"][2])

    def test_cut(self):
        """The first place where one of the encoders stops."""
        out = self.run_worker("render", "--model", self.folder("xl"), "--prompt", "a cat " * 30, "--seed", 1, "--output", self.dir / "cut.png")
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertRegex(out.stderr.decode(), r"positive prompt does not fit into 14 tokens and was cut at byte \d+")

    def test_t5_in_one(self):
        """T5 has weights and no chunks; one of 1 changes nothing, and the byte of a cut is the prompt's as it was written."""
        a1111 = ("--prompt-syntax", "a1111")
        for name, tokens in (("pixart", "120"), ("flux", "256")):
            model = self.folder(name)
            self.refused(model, "chunks", "T5", tokens, "long_prompt cut", args=("--long-prompt", "chunk"))
            self.refused(model, "BREAK", "T5", args=a1111, prompt="a cat BREAK a dog")
        model = self.folder("pixart")
        flags = ("--steps", "1", "--size", "32x32")
        plain = self.render(model, *flags, prompt="A CAT on the blue dog")
        for prompt, alike in (("(A CAT:1) on (the [blue] dog)", False), ("(A CAT:1) on (the blue:1.0) dog", True)):
            self.assertEqual(self.render(model, *flags, *a1111, prompt=prompt)["text.pos"] == plain["text.pos"], alike)
        cuts = []
        for prompt, more in (("  The Cat " * 60, ()), ("(" + "  The Cat " * 60 + ":1.2)", a1111)):
            out = self.run_worker("render", "--model", model, "--prompt", prompt, "--seed", 1, *flags, "--output", self.dir / "cut.png", *more)
            cuts.append(int(re.search(r"cut at byte (\d+)", out.stderr.decode())[1]))
            self.assertIn(prompt.encode()[cuts[-1]:][:3], (b"The", b"Cat"))
        self.assertEqual(cuts[0] + 1, cuts[1])

    def test_hash(self):
        """The second encoder's files count as the first one's do."""
        seen = set()
        for change in (lambda m: None, lambda m: edit(m / "text_encoder_2/config.json", lambda c: c.update(note=1)),
                       lambda m: edit(m / "tokenizer_2/tokenizer_config.json", lambda c: c.update(note=1)),
                       lambda m: edit_tensors(m / XL_TEXT, lambda t: t.update(more=("F32", [1], bytes(4))))):
            model = self.folder("xl")
            change(model)
            out = self.run_worker("render", "--model", model, "--prompt", "a cat", "--seed", 1, "--steps", 1, "--size", "24x24",
                                  "--output", self.dir / "h.png", "--json")
            self.assertEqual(out.returncode, 0, out.stderr)
            seen.add(json.loads(out.stdout)["model_hash"])
        self.assertEqual(len(seen), 4)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
