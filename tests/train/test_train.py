"""models/train at toy size: every file and class, from emoji to a folder that diffusers and the recipe's reader open.

    python tests/train/test_train.py [TestClass[.test]]
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "models" / "train"))

import torch  # noqa: E402

torch.set_num_threads(1)

import autoencoder  # noqa: E402
import bench  # noqa: E402
import captions  # noqa: E402
import corpus  # noqa: E402
import coupling  # noqa: E402
import distill  # noqa: E402
import emoji  # noqa: E402
import export  # noqa: E402
import judge  # noqa: E402
import model  # noqa: E402
import optimiser  # noqa: E402
import precision  # noqa: E402
import resume  # noqa: E402
import scenes  # noqa: E402
import student  # noqa: E402
import teacher  # noqa: E402
import tokenizer  # noqa: E402
from run_state import Stage, Training  # noqa: E402

WIDTHS = (8, 8, 8, 16)  # of the toy autoencoder


Painter = model.Painter


def toy(tok):
    torch.manual_seed(0)
    return Painter(tok, hidden=32, layers=1, widths=(32, 32), heads=(1, 1))


class Folder(unittest.TestCase):
    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="steerfarm-train-"))
        self.addCleanup(shutil.rmtree, self.dir)


class World(unittest.TestCase):
    """Emoji, scenes, coupling, captions, tokenizer: nothing is trained."""

    def test_emoji_are_what_unicode_says(self):
        groups = {"fruit": "food-fruit", "animal": "animal-", "vehicle": "transport-", "plant": "plant-", "instrument": "musical-instrument"}
        self.assertEqual(groups.keys(), scenes.NOUNS.keys())
        self.assertGreaterEqual(len(scenes.CATEGORY), 28)
        for category, nouns in scenes.NOUNS.items():
            for noun, drawings in nouns.items():
                for name, _ in drawings:
                    self.assertTrue(emoji.groups()[emoji.by_name()[name]].startswith(groups[category]), name)
        seen = {emoji.picture(name, 44).tobytes() for nouns in scenes.NOUNS.values() for drawings in nouns.values() for name, _ in drawings}
        self.assertEqual(len(seen), 32)

    def test_scenes(self):
        everything = scenes.singles()
        self.assertEqual(len(everything), len(set(everything)))
        self.assertEqual(len(scenes.HELD_OUT), 2 * len(scenes.CATEGORY))
        for held in (False, True):
            twos = scenes.pairs(50, held)
            self.assertEqual({s.held_out() for s in twos}, {held})
            self.assertEqual(twos, scenes.pairs(50, held))
        scene = scenes.Scene((scenes.Thing("cat", 0, "left"),), "red", "striped")
        bare = scenes.background("red", "striped")
        changed = (scenes.compose(scene) != bare).any(2)
        self.assertTrue(changed[26:70, 2:46].any())
        changed[26:70, 2:46] = False
        self.assertFalse(changed.any())
        covered = scenes.cells(scene.things)
        self.assertEqual(covered.sum(), 6 * 6)
        self.assertTrue(covered[5, 2] == 1 and covered[5, 8] == 0)

    def test_functionals_are_orthonormal(self):
        rows = coupling.FUNCTIONALS
        self.assertEqual(len(rows), sum(map(len, coupling.GROUPS.values())))
        self.assertLess((rows @ rows.T - torch.eye(len(rows))).abs().max(), 1e-5)

    def test_noise_agrees_and_stays_normal(self):
        generator, rng = torch.Generator().manual_seed(1), random.Random(1)
        out = []
        for _ in range(1500):
            wanted = {"colour": tuple(rng.sample(list(scenes.COLOURS), 2)), "noun": (rng.randrange(6),)}
            noise = torch.randn(scenes.LATENT, generator=generator)
            new = coupling.agree(noise, wanted)
            found = coupling.choices(new)
            self.assertEqual((tuple(found["colour"][:2]), found["noun"][0]), (wanted["colour"], wanted["noun"][0]))
            self.assertEqual(found["pattern"], coupling.choices(noise)["pattern"])
            out.append(coupling.FUNCTIONALS @ new.flatten())
        z = torch.stack(out)
        self.assertLess(z.mean(0).abs().max(), 0.12)  # 4.6 sigma
        self.assertLess((z.std(0) - 1).abs().max(), 0.09)
        self.assertLess((torch.cov(z.T) - torch.eye(z.shape[1])).abs().max(), 0.16)

    def test_captions(self):
        rng, pairs, known = random.Random(2), scenes.pairs(300), set(captions.words())
        kinds, longest = Counter(), 0
        held = {w for group, names in (("noun", [*scenes.CATEGORY, *scenes.MEMBERS]), ("colour", scenes.COLOURS), ("pattern", scenes.PATTERNS))
                for n in names for w in captions.wordings(group, n)[1]}
        for _ in range(6000):
            e = captions.draw(rng, 0.5, pairs)
            self.assertLessEqual(set(f"{e.caption} {e.negative}".split()), known)
            self.assertNotIn(e.negative, held)
            self.assertFalse(e.scene.held_out() and e.scene in pairs)
            for group, chosen in e.wanted.items():
                self.assertTrue(set(chosen) <= set(coupling.GROUPS[group]), e)
            longest = max(longest, len(e.caption.split()))
            kinds[bool(e.negative), len(e.scene.things)] += 1
            if e.negative and len(e.things) > len(e.scene.things):
                kinds["one of two"] += 1
        self.assertLessEqual(longest + 2, tokenizer.LENGTH)
        self.assertGreater(min(kinds.values()), 200)

    def test_left_open_is_what_the_caption_leaves_open(self):
        scene = scenes.Scene((scenes.Thing("apple", 1, "left"), scenes.Thing("dog", 0, "right")), "blue", "plain")
        said = captions.Said(["noun", "category"], [False, False])
        self.assertEqual(captions.left_open(scene, said), {"variant": 1, "noun2": 1, "colour": "blue", "pattern": "plain", "layout": ("left", "right")})
        said = captions.Said(["noun", "noun"], [True, False], layout=("left", "right"), colour="blue", pattern="plain")
        self.assertEqual(captions.left_open(scene, said), {})
        one = scenes.Scene((scenes.Thing("cat", 0, "big"),), "red", "plain")
        self.assertEqual(captions.left_open(one, captions.Said(["thing"], [False], colour="red", pattern="plain")),
                         {"category": "animal", "noun": 0, "size": "big"})

    def test_tokenizer(self):
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        tok = model.load_tokenizer(folder)
        before = (folder / "tokenizer" / "merges.txt").read_bytes()
        tokenizer.make(folder / "tokenizer")
        self.assertEqual(before, (folder / "tokenizer" / "merges.txt").read_bytes())
        for word in captions.words():
            self.assertEqual(len(tok.tokenize(word)), 1, word)
        self.assertGreater(len(tok.tokenize("steerfarm")), 1)
        self.assertEqual(tok.decode(tok("A Red apple", padding="max_length", max_length=8).input_ids, skip_special_tokens=True), "a red apple")


class Parts(Folder):
    """Optimiser, checkpoints, the model's arithmetic."""

    def test_muon_orthogonalises_and_learns(self):
        g = torch.randn(20, 48)
        values = torch.linalg.svdvals(optimiser.orthogonalise(g, 10))
        self.assertTrue(((values > 0.6) & (values < 1.3)).all(), values)
        layer = torch.nn.Linear(24, 24)
        wanted, x = torch.randn(24, 24), torch.randn(64, 24)
        opt = optimiser.Muon(layer.parameters(), 0.02)
        losses = []
        for _ in range(150):
            loss = (layer(x) - x @ wanted.T).square().mean()
            loss.backward()
            opt.step(0.05)
            losses.append(loss.item())
        self.assertLess(losses[-1], losses[0] / 20)

    def test_a_stopped_stage_goes_on_as_if_it_had_not(self):
        def run(name, untils):
            for until in untils:
                torch.manual_seed(5)
                layer = torch.nn.Linear(16, 16)
                opt = optimiser.Muon(layer.parameters(), 0.01)
                training = Training(Stage(self.dir, name), layer, [opt], until, 4, seed=9, rows=2)
                for step in training:
                    x = torch.randn(4, 16, generator=step.generator) + step.rng.random() + torch.rand(1)
                    loss = (layer(x) - x).square().mean()
                    loss.backward()
                    opt.step(0.01)
                    training.note(loss=loss.detach())
            return training.averaged["weight"]

        self.assertTrue(torch.equal(run("whole", [40]), run("halves", [20, 40])))
        self.assertTrue(torch.equal(run("whole", [40]), run("whole", [40])))  # done: nothing happens
        rows = [json.loads(line) for line in (self.dir / "whole.jsonl").read_text().splitlines()]
        self.assertEqual([r["done"] for r in rows], [20, 40])
        with self.assertRaisesRegex(SystemExit, "missing"):
            Stage(self.dir, "never").need()

    def test_nasa_is_the_formula(self):
        tok = model.load_tokenizer(self.dir)
        painter = toy(tok).eval()
        noise = torch.randn(2, *scenes.LATENT)
        with torch.no_grad():
            pos, neg = painter.encode(["a cat", "a dog"]), painter.encode(["stripes", "dots"])
            plain = painter.draw(noise, pos)
            self.assertTrue(torch.equal(plain, painter.draw(noise, pos, neg, torch.zeros(2))))
            some = painter.draw(noise, pos, neg, torch.tensor([0.5, 0.0]))
            self.assertFalse(torch.allclose(plain[0], some[0]))
            self.assertTrue(torch.allclose(plain[1], some[1], atol=1e-6))
            # One layer: out = Wo (Z+ - a Z-) + b is affine in alpha, so half of it lies half way.
            attn = painter.unet.mid_block.attentions[0].transformer_blocks[0].attn2
            x = torch.randn(2, 36, 32)
            outs = []
            for a in (0.0, 0.5, 1.0):
                painter.nasa.negative, painter.nasa.alpha = neg, torch.full((2,), a)
                outs.append(attn(x, pos))
            painter.nasa.negative = None
            self.assertLess((outs[1] - (outs[0] + outs[2]) / 2).abs().max(), 1e-5)
            q, k, v = attn.to_q(x), attn.to_k(neg), attn.to_v(neg)
            minus = torch.softmax(q @ k.transpose(1, 2) / 32**0.5, -1) @ v  # one head of 32
            self.assertLess((outs[0] - outs[2] - minus @ attn.to_out[0].weight.T).abs().max(), 1e-5)

    @unittest.skipUnless(precision.NATIVE, "no bf16 in this processor")
    def test_bf16_is_nearly_f32(self):
        tok = model.load_tokenizer(self.dir)
        noise, seen = torch.randn(2, *scenes.LATENT, generator=torch.Generator().manual_seed(0)), []
        for change in (lambda painter: painter, precision.quicken):
            painter = change(toy(tok))
            x = noise.clone().requires_grad_()
            x0 = painter.draw(x, painter.encode(["a cat", "a dog"]))
            x0.square().mean().backward()
            seen.append((x0.detach(), x.grad, torch.cat([p.grad.flatten() for p in painter.parameters() if p.grad is not None])))
        off = [((a - b).norm() / a.norm()).item() for a, b in zip(*seen)]
        self.assertTrue(all(0 < o < 0.03 for o in off), off)  # picture 0.009, gradients 0.016 and 0.014 when this was written

    def test_bench(self):
        self.addCleanup(setattr, model, "Painter", model.Painter)
        model.Painter = toy
        best = bench.rates(0, batch=2)
        self.assertEqual(best.keys(), {"bf16", "f32"})
        self.assertTrue(all(wall > 0 and cpu > 0 for wall, cpu in best.values()))

    def test_v_prediction(self):
        x0, noise = torch.randn(3, *scenes.LATENT), torch.randn(3, *scenes.LATENT)
        t = torch.tensor([0, 500, 999])
        x, v = model.noised(x0, noise, t)
        self.assertLess((model.x0_of(x, v, t) - x0).abs().max(), 1e-4)
        self.assertAlmostEqual(model.ALPHAS_BAR[999].item(), 0.00466009851, places=7)

    def test_whitening_keeps_the_picture(self):
        torch.manual_seed(1)
        vae = autoencoder.build(WIDTHS).eval()
        some = scenes.pairs(24)
        with torch.no_grad():
            x = scenes.pictures(some[:2])
            before = vae.decode(vae.encode(x).latent_dist.mean).sample
            autoencoder.whiten(vae, some)
            self.assertLess((vae.decode(vae.encode(x).latent_dist.mean).sample - before).abs().max(), 1e-3)
            latents = autoencoder.encode(vae, some)
        self.assertLess(latents.mean((0, 2, 3)).abs().max(), 0.05)

    def test_lora_begins_as_nothing_and_can_be_turned_off(self):
        painter = toy(model.load_tokenizer(self.dir))
        both = distill.Distillation(painter)
        x, t = torch.randn(2, *scenes.LATENT), torch.tensor([100, 900])
        with torch.no_grad():
            context = painter.encode(["a cat", "a dog"])
            off = both.score(x, t, context, lora=False)
            self.assertTrue(torch.allclose(off, both.score(x, t, context, lora=True), atol=1e-6))
            for part in both.lora:
                part.up.add_(0.05)
            self.assertTrue(torch.equal(off, both.score(x, t, context, lora=False)))
            self.assertFalse(torch.allclose(off, both.score(x, t, context, lora=True)))
        names = both.state_dict().keys()
        self.assertTrue(any(n.startswith("student.unet") for n in names) and not any("frozen" in n for n in names))

    def test_the_distillation_gradient(self):
        """With a LoRA that is the teacher and k = 1 there is nothing to learn; otherwise the gradient is w (eps_teacher - eps_lora)."""
        both = distill.Distillation(toy(model.load_tokenizer(self.dir)))
        x0 = torch.randn(2, *scenes.LATENT, requires_grad=True)
        context = both.student.encode(["a cat", "a dog"]).detach()
        loss = both.student_loss(x0, context, context, torch.Generator().manual_seed(0))  # y- = y: CFG changes nothing
        loss.backward()
        self.assertLess(x0.grad.abs().max(), 1e-5)
        for part in both.lora:
            torch.nn.init.normal_(part.up, std=0.05)
        x0.grad = None
        both.student_loss(x0, context, context, torch.Generator().manual_seed(0)).backward()
        generator = torch.Generator().manual_seed(0)
        t = torch.randint(*distill.TIMES, (2,), generator=generator)
        with torch.no_grad():
            x, _ = model.noised(x0, torch.randn(x0.shape, generator=generator), t)
            a, s = model.signal_and_noise(t)
            eps = [(x - a * both.score(x, t, context, lora)) / s for lora in (False, True)]
        self.assertLess((x0.grad - s**2 * (eps[0] - eps[1]) / 2).abs().max(), 1e-5)


class Command(Folder):
    """models/train/run with a Python that only says what it was asked."""

    def run_stages(self, *stages):
        return subprocess.run([SOURCE / "models" / "train" / "run", *stages], capture_output=True, text=True,
                              env={**os.environ, "STATE": str(self.dir), "PYTHON": "echo"})

    def test_stages(self):
        (self.dir / "plain.pt").touch()
        run = self.run_stages()
        self.assertEqual(run.returncode, 0, run.stderr)
        said = [line.split(" --state")[0] for line in run.stdout.splitlines()]
        self.assertEqual([line[3:] for line in said if line.startswith("== ")],
                         ["autoencoder", "corpus", "base", "nasa", "plain", "teacher", "vsd", "vsd-nasa", "judge", "export"])
        for asked in ("autoencoder.py", "corpus.py", "student.py base", "student.py nasa", "student.py plain", "teacher.py", "distill.py vsd", "distill.py vsd-nasa"):
            self.assertEqual(said.count(asked), 1, asked)
        self.assertEqual(run.stdout.count("--stage plain"), 2)  # judged and exported, as it is there
        self.assertNotIn("--stage teacher", run.stdout)
        self.assertEqual(self.run_stages("resume").stdout.splitlines(), ["== resume", f"resume.py --state {self.dir}"])
        (self.dir / "vae.pt").touch()  # trained already, or resumed
        self.assertEqual(self.run_stages("autoencoder").stdout.splitlines(), ["== autoencoder"])
        self.assertIn("--stage nasa --to ../demo", self.run_stages("export").stdout)
        self.assertEqual(self.run_stages("base").stdout.splitlines(), ["== base", f"student.py base --state {self.dir}"])
        wrong = self.run_stages("nothing")
        self.assertEqual(wrong.returncode, 64)
        self.assertIn("no stage nothing", wrong.stderr)


class Stages(Folder):
    """All of models/train/run, each stage for a few steps."""

    @torch.no_grad()
    def opened(self, folder):
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe("a red apple", num_inference_steps=1, guidance_scale=1.0, generator=torch.Generator().manual_seed(1), output_type="pt").images[0]

    def test_all(self):
        vae = autoencoder.train(self.dir, 16, batch=4, widths=WIDTHS) or autoencoder.load(self.dir, WIDTHS)
        small = scenes.singles
        self.addCleanup(setattr, scenes, "singles", small)
        # A corpus of a few scenes; one_thing draws from all, so targets of others are made up.
        scenes.singles = lambda: small()[:24]
        corpus.build(self.dir, vae, pairs=8)
        data = corpus.load(self.dir)
        self.assertEqual(data.latents.shape, (32, *scenes.LATENT))
        self.assertLess((data.targets([small()[3]]) - autoencoder.encode(vae, [small()[3]])).abs().max(), 0.02)
        data.targets = lambda some: torch.zeros(len(some), *scenes.LATENT)
        tok = model.load_tokenizer(self.dir)

        before = toy(tok).state_dict()
        base = student.train(self.dir, "base", data, toy(tok), 8, batch=4)
        self.assertFalse(torch.equal(before["unet.conv_in.weight"], base["unet.conv_in.weight"]))
        gate = lambda training, done: training.stage.log(done=done, **judge.Judge(2).gates(toy(tok).eval(), vae))
        gate.every = 8
        branches = {name: student.train(self.dir, name, data, toy(tok), 16, batch=4, gate=gate) for name in ("nasa", "plain")}
        self.assertFalse(torch.equal(branches["nasa"]["unet.conv_in.weight"], branches["plain"]["unet.conv_in.weight"]))
        self.assertIn("minus_member", (self.dir / "nasa.jsonl").read_text())
        taught = teacher.train(self.dir, data, toy(tok), 8, batch=4)
        for name in ("vsd", "vsd-nasa"):
            moved = distill.train(self.dir, name, data, toy(tok), 4, batch=2)
            self.assertEqual(moved.keys(), taught.keys())
            self.assertFalse(torch.equal(moved["unet.conv_in.weight"], taught["unet.conv_in.weight"]))
            for key in (k for k in taught if k.startswith("text.")):
                self.assertTrue(torch.allclose(moved[key], taught[key]), key)

        for stage, recipe in (("nasa", "demo"), ("vsd-nasa", "demo"), ("teacher", "demo-teacher")):
            export.export(self.dir, stage, self.dir / "out" / stage, toy(tok), autoencoder.load(self.dir, WIDTHS))
            self.assertEqual(json.loads((self.dir / "out" / stage / "steer.json").read_text())["recipe"], recipe)
            self.assertTrue((SOURCE / "worker" / "recipes" / f"{recipe}.json").exists())
        self.goes_on(self.dir / "out" / "nasa", data, tok, branches["nasa"])
        picture = self.opened(self.dir / "out" / "nasa")
        painter = toy(tok)
        painter, vae = export.load(self.dir, "nasa", painter, autoencoder.load(self.dir, WIDTHS))
        with torch.no_grad():
            noise = torch.randn(1, *scenes.LATENT, generator=torch.Generator().manual_seed(1))
            mine = vae.decode(painter.draw(noise, painter.encode(["a red apple"]))).sample[0] / 2 + 0.5
        self.assertLess((torch.as_tensor(picture) - mine.clamp(0, 1)).abs().max(), 0.02)  # the folder is fp16

    def goes_on(self, folder, data, tok, before):
        """In a new state, from an exported folder alone."""
        state = self.dir / "new"
        with self.assertRaisesRegex(SystemExit, "no training.json"):
            resume.resume(state, SOURCE / "models" / "train")
        self.assertEqual(resume.resume(state, folder), "nasa")
        with self.assertRaisesRegex(SystemExit, "of its own"):
            resume.resume(state, folder)
        kept = Stage(state, "nasa").load()
        self.assertEqual((kept["done"], kept["begin"]), (16, 8))
        for key, value in before.items():
            self.assertTrue(torch.allclose(kept["averaged"][key], value, atol=1e-3), key)
        self.assertEqual(autoencoder.load(state, WIDTHS).state_dict().keys(), autoencoder.load(self.dir, WIDTHS).state_dict().keys())
        after = student.train(state, "nasa", data, toy(tok), 20, batch=4)
        self.assertFalse(torch.equal(after["unet.conv_in.weight"], kept["averaged"]["unet.conv_in.weight"]))
        self.assertEqual(Stage(state, "nasa").load()["done"], 20)


if __name__ == "__main__":
    unittest.main(verbosity=2)
