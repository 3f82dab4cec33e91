"""The real programs together: what is accepted is rendered once, whoever dies.

    python tests/system/test_farm.py [TestClass[.test]]
"""

import json
import os
import random
import re
import shutil
import subprocess
import unittest

import zmq

from farm import BIN, FAST, GOLDEN, Farm, FarmCase, digest
from proxy import Proxy
from steer_client import MESSAGES, TYPES, Refused

SMALL = {"small": GOLDEN / "small" / "model"}


def zlib_data(png):
    """The compressed pixels of a PNG, without what it says of itself."""
    at, data = 8, b""
    while at < len(png):
        size, kind = int.from_bytes(png[at:at + 4], "big"), png[at + 4:at + 8]
        data += png[at + 8:at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return data


class Basics(FarmCase):
    def test_render(self):
        a = self.client.submit("render", model="small", prompt="a cat", images=3, seed=7, **FAST)
        self.assertEqual(a.resolved.seed, 7)
        images, status = self.client.fetch(a.job)
        self.assertEqual(sorted(images), [0, 1, 2])
        self.assertEqual(status.state, "done")
        self.assertEqual(len(set(digest(images).values())), 3)
        result, data = images[1]
        self.assertEqual((result.seed, result.width, result.height), (8, 64, 64))
        self.assertEqual(data[:4], b"RIFF")
        t = result.timing
        stages = [t.queue_us, t.dispatch_us, t.load_us, t.tokenize_us, t.text_us, t.denoise_us, t.decode_us, t.encode_us,
                  t.other_us]
        self.assertEqual(sum(stages), t.total_us)
        self.assertGreater(t.denoise_us, 0)

    def test_image_i_is_seed_plus_i(self):
        """Image i of a job equals a job of one image with seed + i, byte for byte."""
        job = dict(model="small", prompt="a cat", **FAST)
        together, _ = self.client.fetch(self.client.submit("three", images=3, seed=41, **job).job)
        for i in range(3):
            alone, _ = self.client.fetch(self.client.submit(f"alone of {i}", seed=41 + i, **job).job)
            self.assertEqual(alone[0][1], together[i][1])

    def test_a_cut_prompt_is_said(self):
        long, _ = self.client.fetch(self.client.submit("long", model="small", prompt="a cat " * 200, **FAST).job)
        self.assertRegex(long[0][0].warning, r"the positive prompt .* was cut at byte \d+")
        short, _ = self.client.fetch(self.client.submit("short", model="small", prompt="a cat", **FAST).job)
        self.assertEqual(short[0][0].warning, "")

    def test_same_key(self):
        job = dict(model="small", prompt="a dog", **FAST)
        a = self.client.submit("same", **job)
        self.assertEqual(self.client.submit("same", **job).job, a.job)
        for other in ({"prompt": "another"}, {"long_prompt": 1}, {"prompt_syntax": 1}):
            with self.assertRaises(Refused) as e:
                self.client.submit("same", **{**job, **other})
            self.assertEqual(e.exception.code, "KEY_CONFLICT")
        self.client.fetch(a.job)
        again = self.client.submit("same", **job)  # it has ended: the store remembers
        self.assertEqual((again.job, again.again), (a.job, True))

    def test_cancel_key_first(self):
        self.client.ask("CANCEL", "REPLY", key="never")
        with self.assertRaises(Refused) as e:
            self.client.submit("never", model="small", prompt="x", **FAST)
        self.assertEqual(e.exception.code, "CANCELLED")

    def test_cancel(self):
        a = self.client.submit("cancel", model="small", prompt="x", images=100000, **FAST)
        reply = self.client.ask("CANCEL", "REPLY", job=a.job)
        self.assertEqual(reply.jobs[0].job, a.job)
        images, status = self.client.fetch(a.job)
        self.assertEqual(status.state, "cancelled")
        self.assertEqual(status.counts.cancelled + status.counts.acked, 100000)

    def test_refusals(self):
        good = dict(model="small", prompt="x", **FAST)
        nan = float("nan")
        cases = [
            ({"model": "nope"}, "UNKNOWN_MODEL"), ({"recipe": "nope"}, "UNKNOWN_RECIPE"), ({"prompt": ""}, "BAD_TEXT"),
            ({"prompt": "  \n"}, "BAD_TEXT"), ({"prompt": "x" * 20000}, "BAD_TEXT"), ({"width": 0}, "BAD_SIZE"),
            ({"width": 65}, "BAD_SIZE"), ({"width": 2**31}, "BAD_SIZE"), ({"height": 4096, "width": 4096}, "BAD_SIZE"),
            ({"steps": 7}, "BAD_VALUE"), ({"images": 0}, "BAD_VALUE"), ({"images": 1000001}, "BAD_VALUE"),
            ({"guidance": dict(method=1, alpha=nan)}, "BAD_VALUE"), ({"negative_prompt": "dog"}, "BAD_VALUE"),
            ({"output": dict(quality=101)}, "BAD_VALUE"),
        ]
        for i, (change, code) in enumerate(cases):
            with self.assertRaises(Refused, msg=str(change)) as e:
                self.client.submit(f"bad{i}", **{**good, **change})
            self.assertEqual(e.exception.code, code, change)
            self.assertGreater(len(e.exception.text), 10)
        with self.assertRaises(Refused) as e:
            self.client.query(1, job="0-zzz")
        self.assertEqual(e.exception.code, "UNKNOWN_JOB")

    def test_hostile_frames(self):
        """Nonsense gets one REFUSED with its code; the farm goes on."""
        raw = zmq.Context.instance().socket(zmq.DEALER)
        raw.setsockopt(zmq.LINGER, 0)
        raw.connect(self.farm.client_endpoint)
        head = lambda kind, version=1: bytes([ord("S"), ord("F"), version, kind])
        ping = MESSAGES["Ping"]().SerializeToString()
        rng = random.Random(3)
        made = [
            ("BAD_FRAME", [b""]), ("BAD_FRAME", [b"SF"]), ("BAD_FRAME", [head(4)]), ("BAD_FRAME", [head(4), ping, b"x"]),
            ("BAD_FRAME", [head(4), ping, b"", b"", b"", b"", b""]), ("BAD_VERSION", [head(4, 9), ping]), ("BAD_VERSION", [head(4, 0), ping]),
            ("BAD_FRAME", [b"XX\x01\x04", ping]), ("BAD_FRAME", [b"SF\x01\x04\x00", ping]), ("BAD_FRAME", [head(250), ping]), ("BAD_FRAME", [head(0), ping]),
            ("BAD_FRAME", [head(16), b"\xff\xff\xff"]),  # no protobuf
            ("BAD_FRAME", [head(16), b"\x0a\x01k\x12\x05\x0a\x01m"]),  # a length past the end
            ("HELLO_REQUIRED", [head(16), b"\x0a\x01k\x12\x05\x0a\x01m\x12\x00"]),  # well-formed, the prompt is empty
            ("BAD_FRAME", [head(16), b""]),  # a SUBMIT without what it needs
            ("BAD_FRAME", [head(16), b"\x0a\x03k\x00k" + b"\x12\x06\x0a\x01m\x12\x01p"]),  # a key with NUL
            ("HELLO_REQUIRED", [head(4), ping]),  # well-formed
            ("BAD_TEXT", [head(16), b"\x0a\x02\xff\xfe" + b"\x12\x06\x0a\x01m\x12\x01p"]),  # a key that is not UTF-8
        ]
        for expected, message in made:
            raw.send_multipart(message)
            self.assertTrue(raw.poll(20000), message)
            reply = raw.recv_multipart()
            self.assertEqual(reply[0][3], TYPES["REFUSED"])
            self.assertEqual(MESSAGES["Refused"].FromString(reply[1]).code, expected, message)
        for _ in range(200):
            raw.send_multipart([rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(1, 5))])
        for _ in range(200):  # none of those begins with a head of ours
            self.assertTrue(raw.poll(20000))
            self.assertEqual(MESSAGES["Refused"].FromString(raw.recv_multipart()[1]).code, "BAD_FRAME")
        raw.close()
        a = self.client.submit("after nonsense", model="small", prompt="x", **FAST)
        self.assertEqual(len(self.client.fetch(a.job)[0]), 1)

    def test_a_client_that_never_reads(self):
        lazy = self.farm.client()
        a = self.client.submit("lazy", model="small", prompt="x", images=6, **FAST)
        lazy.send("FETCH", job=a.job, credit=4)
        lazy.send("WATCH", job=a.job)
        b = self.client.submit("not lazy", model="small", prompt="y", **FAST)
        self.assertEqual(len(self.client.fetch(b.job)[0]), 1)
        images, status = self.client.fetch(a.job)  # takes the job over
        self.assertEqual((len(images), status.state), (6, "done"))
        lazy.close()

    def test_batches_change_nothing(self):
        """32 mixed jobs at once equal their single renders byte for byte."""
        rng = random.Random(1)
        prompts = ["a cat", "the red dog", "blue " * 12, "a", "on the blue cat the dog", "x y z"]
        jobs = []
        for i in range(32):
            method = rng.choice((0, 1, 1, 2, 3))
            guidance = dict(method=method, alpha=rng.choice((0.1, 0.5)), phi=2, tau=2.5, beta=0.4, offset=0.2)
            if i % 4 == 3:
                guidance["guidance_scale"] = 3.0
            job = dict(model="small", prompt=rng.choice(prompts), seed=i, recipe="sbv2-sd15", guidance=guidance)
            if method:
                job["negative_prompt"] = rng.choice(("dog", "blue", "the red"))
            jobs.append(job)
        self.client.ask("ADMIN", "REPLY", kind=2)  # pause, so that they wait for each other
        together = [self.client.submit(f"together{i}", **job).job for i, job in enumerate(jobs)]
        self.client.ask("ADMIN", "REPLY", kind=3)
        company, batches = [], []
        for job in together:
            images, _ = self.client.fetch(job)
            company.append(digest(images)[0])
            batches.append(images[0][0].batch)
        self.assertEqual(max(batches), 4)  # the worker's limit was reached
        for i, job in enumerate(jobs):
            images, _ = self.client.fetch(self.client.submit(f"alone{i}", **job).job)
            self.assertEqual(images[0][0].batch, 1)
            self.assertEqual(digest(images)[0], company[i], job)


class CommandLine(FarmCase):
    OPTIONS = dict(models=SMALL)

    def steer(self, *args, code=0):
        run = subprocess.run([BIN / "steer", *map(str, args)], capture_output=True, text=True, cwd=self.farm.dir, timeout=120,
                             env={**os.environ, "STEER_BROKER": self.farm.client_endpoint})
        self.assertEqual(run.returncode, code, f"{args}: {run.stderr}{run.stdout}")
        return run

    FLAGS = ("--recipe", "sbv2-sd15", "--guidance", "none")

    def test_render_and_from(self):
        self.steer("render", "a cat", *self.FLAGS, "--seed", 3, "--output", "one.webp")
        self.steer("render", "--from", "one.webp", "--output", "again.webp")
        self.assertEqual((self.farm.dir / "one.webp").read_bytes(), (self.farm.dir / "again.webp").read_bytes())
        self.steer("render", "a <cat> & \"dog\"", *self.FLAGS, "--seed", 3, "--output", "one.png")
        self.steer("render", "--from", "one.png", "--output", "again.png")
        self.assertEqual((self.farm.dir / "one.png").read_bytes(), (self.farm.dir / "again.png").read_bytes())

    def test_long_and_weighed(self):
        """Flags of the text reach the worker, are in the image, and make it again."""
        def render(name, text, *flags):
            run = self.steer("render", text, *self.FLAGS, "--seed", 3, *flags, "--output", f"{name}.png")
            return (self.farm.dir / f"{name}.png").read_bytes(), run.stderr

        long = "the red cat on the blue dog, a cat on the red blue dog, the cat"
        cut, said = render("cut", long)
        self.assertRegex(said, r"the positive prompt .* was cut at byte \d+")
        at = int(re.search(r"byte (\d+)", said)[1])
        self.assertTrue(long[at:].startswith("dog, the cat"), at)
        chunked, said = render("chunked", long, "--long-prompt", "chunk")
        self.assertNotIn("cut", said)
        weighed, _ = render("weighed", "a (red:1.5) cat BREAK a [dog]", "--prompt-syntax", "a1111", "--long-prompt", "chunk")
        plain, _ = render("plain", "a (red:1.5) cat BREAK a [dog]", "--long-prompt", "chunk")
        self.assertIn(b"Emphasis: None", plain)
        self.assertNotIn(b"Emphasis", weighed)
        pixels = [zlib_data(image) for image in (cut, chunked, weighed, plain)]
        self.assertEqual(len(set(pixels)), 4)
        for name, image in (("cut", cut), ("chunked", chunked), ("weighed", weighed)):
            self.steer("render", "--from", f"{name}.png", "--output", "again.png")
            self.assertEqual((self.farm.dir / "again.png").read_bytes(), image, name)
        run = self.steer("render", "a [cat|dog]", *self.FLAGS, "--prompt-syntax", "a1111", code=70)
        self.assertIn("alternation is not supported", run.stderr)

    def test_many(self):
        self.steer("render", "a cat", *self.FLAGS, "--images", 3, "--seed", 5, "--output", "m-{index}-{seed}.webp")
        self.assertTrue((self.farm.dir / "m-0002-7.webp").exists())
        self.steer("render", "a cat", *self.FLAGS, "--images", 2, "--output", "n.webp")
        self.assertTrue((self.farm.dir / "n-0001.webp").exists())

    def test_submit_fetch_show(self):
        job = json.loads(self.steer("submit", "a dog", *self.FLAGS, "--images", 4, "--label", "shot=1", "--json").stdout)["job"]
        self.steer("wait", job)
        self.steer("fetch", job, "--index", "1-2", "--output", "f-{index}.webp")
        self.assertEqual(sorted(p.name for p in self.farm.dir.glob("f-*")), ["f-0001.webp", "f-0002.webp"])
        self.steer("fetch", job, "--output", "f-{index}.webp", "--overwrite")
        self.assertEqual(len(list(self.farm.dir.glob("f-*.webp"))), 4)
        shown = json.loads(self.steer("show", job, "--json").stdout)
        self.assertEqual((shown["state"], shown["counts"]["acked"]), ("done", 4))
        listed = self.steer("jobs", "--label", "shot=1", "--json").stdout.splitlines()
        self.assertEqual([json.loads(line)["job"] for line in listed], [job])

    def test_prompts_file(self):
        (self.farm.dir / "prompts").write_text('a cat\n\n{"prompt": "a dog", "seed": 9}\n{"prompt": 3}\n{bad\n')
        run = self.steer("submit", "--prompts", "prompts", *self.FLAGS, "--json", code=64)
        self.assertEqual(len(run.stdout.splitlines()), 2)
        self.assertIn("line 4", run.stderr)
        self.assertIn("line 5", run.stderr)

    def test_sentences(self):
        for args, code in (
            (("render", "x", "--size", "65x64"), 64), (("render", "x", "--alpha", "nan"), 64), (("render", "x", "--bogus"), 64),
            (("render", ""), 64), (("render", "x", "--model", "nope"), 66), (("show", "0-77"), 66), (("fetch", "nonsense"), 66),
            (("render", "--from", "/etc/passwd"), 64), (("render", "x", "--negative", "y", *self.FLAGS), 64), (("bogus",), 64),
            (("render", b"\xff\xfe".decode("utf8", "surrogateescape")), 64),
        ):
            run = self.steer(*args, code=code)
            self.assertEqual(len(run.stderr.strip().splitlines()), 1, run.stderr)

    def test_no_broker(self):
        run = subprocess.run([BIN / "steer", "jobs", "--broker", f"ipc://{self.farm.dir}/nobody", "--timeout", "1"],
                             capture_output=True, text=True)
        self.assertEqual(run.returncode, 75)
        self.assertIn("no answer", run.stderr)

    def test_questions(self):
        for command in ("models", "workers", "status", "jobs", "doctor"):
            self.steer(command)
        self.steer("pause")
        self.steer("resume")


class Deaths(unittest.TestCase):
    JOB = dict(model="small", prompt="a cat", steps=8, recipe="ddim", guidance=dict(method=0))

    def farm(self, workers=1):
        """A farm with proxies between workers and broker, which tell when what happens."""
        farm = self.enterContext(Farm(models=SMALL, workers=0))
        self.proxies = [Proxy(farm.dir, farm.worker_endpoint, i) for i in range(workers)]
        for i, proxy in enumerate(self.proxies):
            self.addCleanup(proxy.close)
            farm.workers.append(farm.worker(i, endpoint=proxy.endpoint))
            proxy.wait("down", "WELCOME")
        return farm, farm.client()

    def submit(self, client, name, jobs=3, images=10):
        """Jobs of seeds of their own."""
        return [(client.submit(f"{name}{k}", images=images, seed=100 * k, **self.JOB).job, images, 100 * k) for k in range(jobs)]

    def check(self, jobs, client, seconds=120.0):
        """Every accepted image is delivered exactly once and equals the same seed's of a farm where nobody died."""
        got = {}
        for job, images, seed in jobs:
            pictures, status = client.fetch(job, seconds=seconds)
            self.assertEqual(sorted(pictures), list(range(images)), status)
            self.assertEqual((status.state, status.counts.acked), ("done", images))
            got |= {seed + i: d for i, d in digest(pictures).items()}
        with Farm(models=SMALL) as calm:
            calm.wait_models()
            client = calm.client()
            for _, images, seed in jobs:
                pictures, _ = client.fetch(client.submit(f"calm{seed}", images=images, seed=seed, **self.JOB).job)
                self.assertEqual({i: got[seed + i] for i in range(images)}, digest(pictures))
            client.close()

    def test_kill_worker(self):
        """Each of the workers dies twice with images assigned to it that it has not given back."""
        farm, client = self.farm(workers=2)
        jobs = self.submit(client, "k", images=20)
        for i in range(4):
            assigned = self.proxies[i % 2].once("down", "ASSIGN", "after")
            other = self.proxies[1 - i % 2].once("down", "ASSIGN", "after")  # it shall leave some work for this one
            assigned.wait()
            farm.workers[i % 2].kill()
            farm.workers[i % 2].start()
            assigned.resolve()
            other.resolve()
        self.check(jobs, client)

    def test_kill_broker(self):
        """It dies three times, each time while results are on their way to it."""
        farm, client = self.farm()
        jobs = self.submit(client, "k")
        for _ in range(3):
            result = self.proxies[0].once("up", "RESULT", "before")
            result.wait()
            farm.broker.kill()
            farm.restart_broker()
            result.resolve(deliver=False)
        client.hello()
        self.check(jobs, client)
        epoch = {c.name: c.value for c in client.query(5).counters}["epoch"]
        self.assertEqual(epoch, 4)

    def test_drain(self):
        """SIGTERM gives work back; nothing is lost and nobody is blamed."""
        farm, client = self.farm()
        jobs = self.submit(client, "drain", jobs=1, images=12)
        assigned = self.proxies[0].once("down", "ASSIGN", "after")
        assigned.wait()
        assigned.resolve()
        farm.workers.append(farm.worker(1))
        self.assertEqual(farm.workers[0].stop(), 0)
        self.check(jobs, client)
        status = client.query(1, job=jobs[0][0]).jobs[0]
        self.assertEqual(len(status.failures), 0)

    def test_two_workers_of_one_id(self):
        with Farm(models={"small": GOLDEN / "small" / "model"}) as farm:
            farm.wait_models()
            twin = farm.worker(0)
            farm.workers[0].process.wait(30)  # the older one leaves
            self.assertNotEqual(farm.workers[0].process.returncode, 0)
            client = farm.client()
            job = client.submit("twin", model="small", prompt="x", **FAST).job
            self.assertEqual(len(client.fetch(job)[0]), 1)
            farm.workers.append(twin)

    def test_a_model_that_fails(self):
        """A worker promises a model and cannot load it: the job fails with the reason, others go on."""
        with Farm() as farm:
            farm.wait_models()
            farm.workers[0].stop()
            (farm.models / "tiny").unlink()
            shutil.copytree(GOLDEN / "tiny" / "model", farm.models / "tiny")
            farm.workers[0].start()
            client = farm.client()
            farm.broker.wait_for("worker.hello.*\n(.*\n)*.*worker.hello")
            file = farm.models / "tiny" / "unet" / "diffusion_pytorch_model.safetensors"
            os.truncate(file, file.stat().st_size // 2)
            bad = client.submit("bad", model="tiny", prompt="x").job
            good = client.submit("good", model="small", prompt="x", **FAST).job
            self.assertEqual(len(client.fetch(good)[0]), 1)
            _, status = client.fetch(bad)
            self.assertEqual(status.state, "failed")
            self.assertIn("truncated" if "truncated" in status.failures[0].text else "diffusion_pytorch_model",
                          status.failures[0].text)

    def test_a_folder_that_is_written_anew(self):
        """While it is open: a plan that needs its files is refused, the model opened anew, and the job rendered."""
        with Farm() as farm:
            farm.workers[0].stop()
            (farm.models / "small").unlink()
            shutil.copytree(GOLDEN / "small" / "model", farm.models / "small")
            farm.workers[0].start()
            farm.wait_models()
            client = farm.client()
            job = dict(model="small", prompt="x", **FAST)
            self.assertEqual(client.fetch(client.submit("before", **job).job)[1].state, "done")
            for file in (farm.models / "small").rglob("*.safetensors"):
                os.utime(file)
            images, status = client.fetch(client.submit("after", width=32, height=64, **job).job)
            self.assertEqual((len(images), status.state), (1, "done"), status)


class DataDirectory(unittest.TestCase):
    def broker(self, farm, *args):
        return subprocess.run([BIN / "steer-broker", "--clients", f"ipc://{farm.dir}/c2", "--workers", f"ipc://{farm.dir}/w2", *args],
                              capture_output=True, text=True, timeout=20)

    def test_refused(self):
        with Farm(workers=0) as farm:
            run = self.broker(farm, "--data", farm.dir / "data")  # in use by the other broker
            self.assertNotEqual(run.returncode, 0)
            self.assertIn("in use by another", run.stderr)
            (farm.dir / "other").mkdir()
            (farm.dir / "other" / "letter.txt").write_text("mine")
            run = self.broker(farm, "--data", farm.dir / "other")
            self.assertNotEqual(run.returncode, 0)
            self.assertTrue((farm.dir / "other" / "letter.txt").exists())
            run = subprocess.run([BIN / "steer-broker", "--clients", farm.client_endpoint, "--workers", f"ipc://{farm.dir}/w3", "--data", farm.dir / "d3"],
                                 capture_output=True, text=True, timeout=20)
            self.assertEqual(run.returncode, 74)
            self.assertIn("somebody listens there already", run.stderr)
            self.assertEqual(farm.client().query(5).counters[0].name, "epoch")  # the first one's
            run = subprocess.run([BIN / "steer-broker", "--keep", "0", "--data", farm.dir / "d3"], capture_output=True, text=True, timeout=20)
            self.assertEqual(run.returncode, 64)
            run = subprocess.run([BIN / "steer-broker", "--clients", "tcp://0.0.0.0:*"], capture_output=True, text=True)
            self.assertEqual(run.returncode, 77)
            self.assertIn("--insecure", run.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
