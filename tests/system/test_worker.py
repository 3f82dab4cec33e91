"""steer-worker without a broker: what it draws, what it refuses, its commands; and how it speaks with a broker."""

import json
import os
import shutil
import sys
import time
import unittest
import zlib

import zmq

import farm
from steer_client import BODIES, NAMES, TYPES
from worker_case import BIN, Case, DEMO, GOLDEN, edit, png, psnr, webp


class BadJobs(Case):
    def test_prompts(self):
        model = self.folder()
        self.refused(model, "prompt", prompt="")
        self.refused(model, "prompt", prompt="   ")
        self.refused(model, "UTF-8", prompt=b"caf\xe9")
        self.refused(model, "prompt", prompt="x" * 100000)
        out = self.run_worker("render", "--model", model, "--prompt", "a cat " * 60, "--seed", 1, "--output", self.dir / "cut.png")
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertRegex(out.stderr.decode(), r"positive prompt .* was cut at byte \d+")

    def test_sizes(self):
        model = self.folder()
        for size in ("0x64", "64x0", "63x64", "64x60", "65536x64", "1000000000x1000000000", "64", "x", "-64x64"):
            self.refused(model, size.lstrip("-"), args=("--size", size))

    def test_numbers(self):
        model = self.folder()
        for flag, value in (("--alpha", "nan"), ("--alpha", "inf"), ("--alpha", "-1000"), ("--steps", "0"), ("--steps", "100000"), ("--images", "0"),
                            ("--seed", "-1"), ("--seed", "x"), ("--guidance-scale", "nan"), ("--threads", "-2"), ("--quality", "101")):
            self.refused(model, value.lstrip("-"), args=(flag, value, "--negative", "a dog"))
        self.refused(model, "smoke", args=("--guidance", "smoke"))
        self.refused(model, "negative", "none", args=("--guidance", "none", "--negative", "a dog"))


class Drawing(Case):
    def test_names_and_formats(self):
        model = self.folder()
        out = self.run_worker("render", "--model", model, "--prompt", "a cat", "--seed", 5, "--images", 2, "--output", self.dir / "p-{index}-{seed}.png")
        self.assertEqual(out.returncode, 0, out.stderr)
        for name in ("p-0000-5.png", "p-0001-6.png"):
            self.assertTrue((self.dir / name).read_bytes().startswith(b"\x89PNG"), name)
        self.run_worker("render", "--model", model, "--prompt", "a cat", "--seed", 5, "--images", 2, "--output", self.dir / "q.webp")
        self.assertTrue((self.dir / "q-0001.webp").read_bytes().startswith(b"RIFF"))

    def test_own_recipe(self):
        """A whole consistency model is told 8.5 unless the job says otherwise, another LCM is not guided."""
        model = self.folder("consistency")
        self.assertEqual(self.render(model)["image"][2], self.render(model, "--recipe", "lcm", "--guidance-scale", 8.5)["image"][2])
        self.assertNotEqual(self.render(model)["image"][2], self.render(model, "--guidance-scale", 1)["image"][2])
        model = self.folder("tiny")
        self.assertEqual(self.render(model)["image"][2], self.render(model, "--recipe", "lcm")["image"][2])

    def test_default_size(self):
        """Of the U-Net's sample_size, which may be two, and is 64 where a folder older than diffusers 0.9 says less."""
        for config, shape in ((dict(sample_size=3), [24, 24, 3]), (dict(sample_size=[2, 5]), [16, 40, 3]),
                              (dict(sample_size=3, _diffusers_version="0.14.0"), [24, 24, 3]),
                              (dict(sample_size=32, _diffusers_version="0.8.1"), [512, 512, 3]), (dict(sample_size=None), [512, 512, 3])):
            model = self.folder()
            edit(model / "unet/config.json", lambda c: c.update(config))
            self.assertEqual(self.render(model)["image"][1], shape)

    def test_every_size(self):
        model = self.folder()
        for size in ("104x72", "8x8", "8x200", "72x104"):
            width, height = map(int, size.split("x"))
            image = self.render(model, "--size", size)["image"]
            self.assertEqual(image[1], [height, width, 3])

    def test_methods_leave_traces(self):
        """alpha 0 is the plain picture to the byte, a negative changes it, and so does each method."""
        plain = self.render(DEMO, "--guidance", "none", prompt="a cat")["image"][2]
        zero = self.render(DEMO, "--guidance", "nasa", "--alpha", "0", "--negative", "stripes", prompt="a cat")["image"][2]
        self.assertEqual(plain, zero)
        seen = {plain}
        for more in (("nasa",), ("nag",), ("vsf",), ("cfg", "--guidance-scale", "2")):
            seen.add(self.render(DEMO, "--guidance", *more, "--negative", "stripes", prompt="a cat")["image"][2])
        self.assertEqual(len(seen), 5)

    def test_background(self):
        """models/demo draws the background that was asked for: the corners' colour is the nearest of eight."""
        colours = {"red": (222, 60, 60), "orange": (245, 150, 50), "yellow": (250, 220, 80), "green": (80, 175, 90), "blue": (70, 120, 220),
                   "purple": (150, 90, 190), "pink": (250, 165, 195), "white": (245, 245, 245)}
        right = 0
        for name in colours:
            _, (h, w, _), pixels = self.render(DEMO, prompt=f"a dog on a plain {name} background")["image"]
            corners = [pixels[3 * (y * w + x) : 3 * (y * w + x) + 3] for x in (2, 20, w - 20, w - 3) for y in (2, h - 3)]
            mean = [sum(c[k] for c in corners) / len(corners) for k in range(3)]
            nearest = min(colours, key=lambda n: sum((a - b) ** 2 for a, b in zip(colours[n], mean)))
            right += nearest == name
        self.assertGreaterEqual(right, 8)  # measured: 8 of 8

    def test_bf16_is_close(self):
        """64 seeds of models/demo: bf16's worst picture is at least 35 dB from f32's, and so is that of int8 weights in bf16."""
        args = ["render", "--model", DEMO, "--prompt", "a cat on a green background", "--negative", "stripes", "--seed", 100, "--images", 64, "--format", "png"]
        if b"needs a processor" in self.run_worker(*args[:-4], "--precision", "bf16", "--output", self.dir / "x.png").stderr:
            self.skipTest("this processor has no AVX-512")
        pictures = {}
        for name, flags in (("f32", ("f32",)), ("bf16", ("bf16",)), ("int8", ("bf16", "--weights", "int8"))):
            (self.dir / name).mkdir()
            out = self.run_worker(*args, "--precision", *flags, "--output", self.dir / name / "{index}.png")
            self.assertEqual(out.returncode, 0, out.stderr)
            pictures[name] = [png(p) for p in sorted((self.dir / name).iterdir())]
            self.assertEqual(len(pictures[name]), 64)
        for name in ("bf16", "int8"):
            worst = min(psnr(a, b) for a, b in zip(pictures["f32"], pictures[name]))
            print(f"{name} beside f32, worst of 64: {worst:.1f} dB", file=sys.stderr)
            self.assertGreaterEqual(worst, 35)

    def test_no_reference_code(self):
        """Nothing of the cpu backend runs in oneDNN's or our own reference code."""
        for precision in (("f32",), ("bf16",), ("f32", "--weights", "int8")):
            out = self.run_worker("bench", "--model", DEMO, "--negative", "stripes", "--guidance", "nasa", "--precision", *precision, "--runs", 1, "--ops", "--json")
            if b"needs a processor" in out.stderr:
                continue
            ops = json.loads(out.stdout)["ops"]
            self.assertGreater(len(ops), 100)
            slow = [o for o in ops if o["primitive"].startswith("ref") and o["op"] in ("conv", "linear", "attention", "guided_attention", "group_norm")]
            self.assertEqual(slow, [])
            held = {o["stage"] for o in ops if o["primitive"].startswith("ours_int8:")}
            self.assertEqual(held, {"text", "denoise"} if len(precision) > 1 else set())


class Commands(Case):
    def json(self, *args):
        out = self.run_worker(*args)
        self.assertEqual(out.returncode, 0, out.stderr.decode())
        return json.loads(out.stdout)

    def test_bench_says_all(self):
        plain = self.json("bench", "--model", DEMO, "--runs", 3, "--batch", 2, "--size", "64x96", "--threads", 1, "--precision", "f32", "--ops", "--json")
        self.assertLessEqual({"model", "size", "batch", "steps", "guidance", "precision", "weights", "threads", "runs", "numerics", "load_ms", "first_image_ms",
                              "peak_rss_bytes", "stages", "total", "peak_gflops", "ops"}, set(plain))
        self.assertEqual([plain[k] for k in ("model", "size", "batch", "steps", "precision", "threads", "runs")], ["demo", "64x96", 2, 1, "f32", 1, 3])
        self.assertIn("-t1-", plain["numerics"])
        self.assertEqual(plain["weights"], "auto")
        self.assertEqual(set(plain["stages"]), {"text", "denoise", "decode", "encode"})
        for name, stage in plain["stages"].items():
            self.assertEqual(set(stage), {"min_ms", "median_ms", "gflop"})
            self.assertTrue(0 < stage["min_ms"] <= stage["median_ms"], name)
            self.assertEqual(stage["gflop"] > 0, name != "encode", name)
        self.assertGreaterEqual(plain["total"]["median_ms"], plain["total"]["min_ms"])
        self.assertGreater(plain["first_image_ms"], 0)
        self.assertEqual(set(plain["peak_gflops"]), {"fma_f32", "onednn_f32", "onednn_bf16"})
        self.assertTrue(1 << 20 < plain["peak_rss_bytes"] < 1 << 30)
        for op in plain["ops"]:
            self.assertEqual(set(op), {"stage", "op", "primitive", "type", "layout", "out", "gflop", "ms"})
        self.assertEqual({op["stage"] for op in plain["ops"]}, {"text", "denoise", "decode"})

    def test_bench_counts_real_calls(self):
        """CFG calls the denoiser twice a step, PNDM once more than it has steps; a text costs what it costs for each image."""

        def gflop(*more):
            stages = self.json("bench", "--model", DEMO, "--runs", 1, "--size", "64x64", "--json", *more)["stages"]
            return [stages[k]["gflop"] for k in ("text", "denoise", "decode")]

        one = gflop("--guidance", "none")
        for more, times in ((("--guidance", "cfg"), (1, 2, 1)), (("--batch", 3), (3, 3, 3)), (("--guidance", "none", "--recipe", "pndm", "--steps", 4), (1, 5, 1)),
                            (("--guidance", "none", "--recipe", "ddim", "--steps", 4), (1, 4, 1))):
            for got, want, factor in zip(gflop(*more), one, times):
                self.assertAlmostEqual(got, want * factor, delta=1e-6 * got, msg=more)

    def test_tune_makes_a_table(self):
        table, old = self.dir / "table.txt", b"conv3 1 1 1x1 direct\n"
        table.write_bytes(old)
        self.assertNotEqual(self.run_worker("tune", "--model", self.dir / "nowhere", "--output", table).returncode, 0)
        self.assertEqual(table.read_bytes(), old)  # whole or not at all
        out = self.run_worker("tune", "--model", DEMO, "--size", "64x64", "--output", table)
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertEqual(list(self.dir.iterdir()), [table])
        lines = table.read_text().splitlines()
        self.assertGreater(len(lines), 4)
        for line in lines[1:]:
            self.assertRegex(line, r"^conv3 \d+ \d+ \d+x\d+ (wino|direct)$")
        args = ("render", "--model", DEMO, "--prompt", "a cat", "--seed", 1, "--size", "64x64", "--json", "--output", self.dir / "x.png")
        plain, tuned = self.json(*args), self.json(*args, "--tuning", table)
        self.assertNotEqual(plain["numerics"], tuned["numerics"])
        self.assertEqual(tuned["numerics"], self.json(*args, "--tuning", table)["numerics"])

    def test_render_json(self):
        for seed in (7, 2**64 - 1):  # what JSON libraries end at is a text
            told = self.json("render", "--model", DEMO, "--prompt", "a cat", "--seed", seed, "--threads", 1, "--json", "--output", self.dir / "x.webp")
            self.assertEqual(set(told), {"model", "model_hash", "numerics", "load_ms", "images"})
            self.assertIn("-t1-", told["numerics"])
            (image,) = told["images"]
            self.assertEqual(image["file"], str(self.dir / "x.webp"))
            self.assertEqual(int(image["seed"]), seed)
            self.assertEqual(image["bytes"], (self.dir / "x.webp").stat().st_size)
            self.assertEqual(set(image["times"]), {"load_us", "tokenize_us", "text_us", "denoise_us", "decode_us", "encode_us", "total_us"})
            self.assertIn(str(seed).encode(), (self.dir / "x.webp").read_bytes())

    def test_images_are_single_renders(self):
        args = ("render", "--model", DEMO, "--prompt", "a cat", "--negative", "stripes", "--guidance", "nasa")
        self.json(*args, "--seed", 40, "--images", 3, "--json", "--output", self.dir / "all.png")
        for i in range(3):
            self.json(*args, "--seed", 40 + i, "--json", "--output", self.dir / f"one-{i}.png")
            self.assertEqual((self.dir / f"all-000{i}.png").read_bytes(), (self.dir / f"one-{i}.png").read_bytes())

    def test_lossless_is_png(self):
        args = ("render", "--model", DEMO, "--prompt", "a cat", "--seed", 3, "--json", "--output")
        self.json(*args, self.dir / "x.png")
        self.json(*args, self.dir / "x.webp", "--format", "lossless")
        self.assertEqual(webp(self.dir / "x.webp"), png(self.dir / "x.png"))
        self.json(*args, self.dir / "y.webp")
        self.assertNotEqual(webp(self.dir / "y.webp"), png(self.dir / "x.png"))

    def test_recipe_file(self):
        """A recipe by path is for the local user: rendered, benched and tuned; its class is another than the shipped one's of the same name."""
        deep = self.dir / ("d" * 150)  # longer than a name may be
        deep.mkdir()
        text = (BIN.parent / "share/steerfarm/recipes/ddim.json").read_text()
        (deep / "mine.json").write_text(text)
        args = ("--model", DEMO, "--prompt", "a cat", "--seed", 3, "--steps", 2, "--size", "64x64", "--json")
        shipped = self.json("render", *args, "--recipe", "ddim", "--output", self.dir / "a.webp", "--format", "lossless")
        mine = self.json("render", *args, "--recipe", deep / "mine.json", "--output", self.dir / "b.webp", "--format", "lossless")
        self.assertEqual(webp(self.dir / "a.webp"), webp(self.dir / "b.webp"))
        self.assertNotEqual(shipped["numerics"], mine["numerics"])
        self.json("bench", "--model", DEMO, "--recipe", deep / "mine.json", "--runs", 1, "--steps", 3, "--size", "64x64")
        self.assertEqual(self.run_worker("tune", "--model", DEMO, "--recipe", deep / "mine.json", "--size", "64x64", "--output", self.dir / "t.txt").returncode, 0)
        self.refused(DEMO, "nothing.json", args=("--recipe", deep / "nothing.json"))

    def test_recipes_are_in_the_class(self):
        args = ("render", "--model", DEMO, "--prompt", "a cat", "--seed", 3, "--json", "--output", self.dir / "a.webp")
        before = self.json(*args)["numerics"]
        (self.dir / "recipes").mkdir()
        shutil.copy(BIN.parent / "share/steerfarm/recipes/lcm.json", self.dir / "recipes")
        edit(self.dir / "recipes/lcm.json", lambda c: c.update(steps=3))
        os.environ["STEER_RECIPES"] = str(self.dir / "recipes")
        self.addCleanup(os.environ.pop, "STEER_RECIPES")
        self.assertNotEqual(before, self.json(*args)["numerics"])

    def test_weights_are_told(self):
        out = self.json("render", "--model", DEMO, "--prompt", "a cat", "--seed", 3, "--precision", "f32", "--weights", "int8", "--json", "--output", self.dir / "a.png")
        self.assertIn("-f32-int8-", out["numerics"])
        image = (self.dir / "a.png").read_bytes()
        self.assertIn(b"&quot;precision&quot;:&quot;f32&quot;,&quot;weights&quot;:&quot;int8&quot;", image.replace(b'"', b"&quot;"))
        self.assertEqual(self.json("bench", "--model", DEMO, "--runs", 1, "--weights", "int8", "--json")["weights"], "int8")
        self.refused(DEMO, "--weights", "int4", "auto or int8", args=("--weights", "int4"))
        self.refused(DEMO, "--text-resident", "maybe", "yes or no", args=("--text-resident", "maybe"))

    def test_memory(self):
        begin = time.monotonic()
        self.refused(DEMO, "2048x2048", "MB", "--memory", args=("--size", "2048x2048", "--memory", "512M"))
        self.assertLess(time.monotonic() - begin, 20)  # before anything of it is rendered

    def test_both_texts_cut(self):
        out = self.run_worker("render", "--model", DEMO, "--prompt", "a cat " * 60, "--negative", "a dog " * 60, "--guidance", "nasa", "--output", self.dir / "x.png")
        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertRegex(out.stderr.decode(), r"positive prompt .* was cut at byte \d+")
        self.assertRegex(out.stderr.decode(), r"negative prompt .* was cut at byte \d+")


class Wire(Case):
    """A worker's conversation with a broker that this test plays."""

    def setUp(self):
        super().setUp()
        self.endpoint = f"ipc://{self.dir}/broker"
        (self.dir / "models").mkdir()
        (self.dir / "models/small").symlink_to(GOLDEN / "small" / "model")
        self.socket = self.bind()

    def bind(self):
        socket = zmq.Context.instance().socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a worker that begins anew has the same name
        socket.bind(self.endpoint)
        self.addCleanup(socket.close)
        return socket

    def serve(self, *args, heartbeat_ms=5000):
        self.heartbeat_ms = heartbeat_ms  # after five of them without a word the worker begins anew
        self.worker = farm.Program([BIN / "steer-worker", "serve", "--broker", self.endpoint, "--models", self.dir / "models", "--worker", "w", "--threads", 1, *args],
                                   self.dir / "worker.log")
        self.addCleanup(self.worker.kill)
        return self.welcome()

    def receive(self, *names, seconds=20):
        """The next message of these names; others are passed over."""
        end = time.monotonic() + seconds
        while self.socket.poll(max(0, end - time.monotonic()) * 1000):
            self.identity, head, body, *payload = self.socket.recv_multipart()
            name = NAMES[head[3]]
            if name in names:
                return name, BODIES[name].FromString(body), payload[0] if payload else None
        self.fail(f"no {names}:\n{self.worker.text()}")

    def send(self, name, **fields):
        self.socket.send_multipart([self.identity, b"SF\x01" + bytes([TYPES[name]]), BODIES[name](**fields).SerializeToString()])

    def welcome(self):
        hello = self.receive("HELLO")[1]
        self.send("WELCOME", version=1, epoch=5, heartbeat_ms=self.heartbeat_ms, lease_ms=400)
        return hello

    def assign(self, lease, **job):
        job = {"model": "small", "prompt": "a cat", "seed": lease, "recipe": "ddim", "steps": 2, "width": 64, "height": 64, **job}
        self.send("ASSIGN", images=[{"lease": {"epoch": 5, "lease": lease, "job": "job", "index": 0}, "job": job}])

    def result(self, lease):
        _, result, payload = self.receive("RESULT")
        self.assertEqual((result.lease.lease, result.bytes, result.crc32), (lease, len(payload), zlib.crc32(payload)))
        return result

    def fails(self, lease, code):
        fail = self.receive("FAIL")[1]
        self.assertEqual((fail.lease.lease, fail.code), (lease, code), fail.text)
        return fail

    def test_names_that_the_wire_cannot_carry(self):
        for name in (b"caf\xe9", b"x" * 200):
            os.symlink(GOLDEN / "tiny" / "model", os.fsencode(self.dir / "models") + b"/" + name)
        self.assertEqual([m.name for m in self.serve().models], ["small"])
        self.assertEqual(self.worker.text().count("128 bytes of UTF-8"), 2)

    def test_model_files(self):
        """Offered under their stems; those that cannot be are told."""
        models = self.dir / "models"
        (models / "file.json").write_text(json.dumps({"base": "small", "unet": "small/unet", "recipe": "ddim"}))
        (models / "small.json").write_text(json.dumps({"base": "small"}))
        (models / "bad.json").write_text("{}")
        hello = self.serve()
        self.assertEqual([m.name for m in hello.models], ["file", "small"])
        self.assertEqual(hello.models[0].recipes[0].name, "ddim")
        self.assertNotEqual(hello.models[0].hash, hello.models[1].hash)
        text = self.worker.text()
        self.assertIn("another model of this name", text)
        self.assertIn("bad.json", text)
        self.assign(1, model="file")
        self.result(1)

    def test_a_recipe_by_path_is_refused(self):
        (self.dir / "lcm.json").write_text("{}")
        self.serve()
        for lease, name in enumerate((f"{self.dir}/lcm.json", "../lcm", "lcm.json")):
            self.assign(lease, recipe=name)
            self.assertFalse(self.fails(lease, "UNKNOWN_RECIPE").retryable)
        self.assign(9)
        self.result(9)

    def test_an_assign_that_crosses_drain(self):
        self.serve()
        self.assign(1, width=256, height=256, steps=20)
        self.worker.wait_for("ev=model.load")  # so it runs
        self.send("DRAIN")
        self.receive("DRAIN")
        self.assign(2)
        self.fails(2, "CANCELLED")
        self.result(1)
        self.send("VERDICT", lease={"epoch": 5, "lease": 1, "job": "job", "index": 0}, verdict="kept")
        self.assertEqual(self.worker.process.wait(20), 0)

    def test_what_was_not_heard_is_told_again(self):
        """Two RESULTs and a FAIL that end while the broker is away all come once it is back."""
        self.serve(heartbeat_ms=200)
        self.assign(1, width=256, height=256, steps=20)
        self.assign(2, recipe="./no.json")
        self.assign(3)
        while len(self.receive("RENEW")[1].leases) < 3:
            pass
        self.socket.close()
        self.worker.wait_for("job=job index=0 .*no.json")
        self.socket, got, renewed = self.bind(), {}, {2}
        while len(got) < 3 or 2 in renewed:  # they may come before HELLO, on the old connection
            name, message, _ = self.receive("HELLO", "RESULT", "FAIL", "RENEW")
            if name == "HELLO":
                self.send("WELCOME", version=1, epoch=5, heartbeat_ms=5000, lease_ms=400)
            elif name == "RENEW":
                renewed = {lease.lease for lease in message.leases}  # a failed one is not renewed for ever
            else:
                got[message.lease.lease] = name
        self.assertEqual(got, {1: "RESULT", 2: "FAIL", 3: "RESULT"})

    def test_weights_are_offered(self):
        """HELLO and results tell that weights are held as int8; texts that leave change nothing else."""
        hello = self.serve("--weights", "int8", "--text-resident", "no")
        self.assertEqual([m.weights for m in hello.models], ["int8"])
        self.assertIn("-int8-", hello.device.numerics)
        for lease in (1, 2):
            self.assign(lease, prompt=f"a cat {lease}")
            self.assertEqual(self.result(lease).numerics, hello.device.numerics)

    def test_never_fits(self):
        """Less than a model's weights: each job is refused when it is loaded, with the numbers."""
        self.assertFalse(self.serve("--memory", "1M").models[0].weights)
        for lease in (1, 2):
            self.assign(lease)
            self.assertRegex(self.fails(lease, "NO_MEMORY").text, r"needs at least \d+\.\d MB more beside the \d+\.\d MB in use; the limit is 1\.0 MB \(--memory\)")

    def test_memory(self):
        """What does not fit fails with the numbers, and the worker goes on."""
        self.serve("--memory", "16M")
        self.assign(1, width=1024, height=1024)
        self.assertIn("MB", self.fails(1, "NO_MEMORY").text)
        self.assign(2)
        self.result(2)

    def test_both_texts_cut(self):
        self.serve()
        self.assign(1, prompt="a cat " * 60, negative_prompt="a dog " * 60, guidance={"method": 1})
        warning = self.result(1).warning
        self.assertIn("positive", warning)
        self.assertIn("negative", warning)


if __name__ == "__main__":
    unittest.main(verbosity=2)
