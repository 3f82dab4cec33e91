"""`steer` against the real farm: what each command prints, writes and exits with.

    python tests/system/test_cli.py [TestClass[.test]]
"""

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from farm import BIN, GOLDEN, Farm, Program
from proxy import Proxy

FLAGS = ("--recipe", "sbv2-sd15", "--guidance", "none")
SLOW = ("--recipe", "ddim", "--steps", "50", "--guidance", "none", "--size", "128x128")  # seconds an image
SMALL = {"small": GOLDEN / "small" / "model"}


class CommandTest(unittest.TestCase):
    """One farm a class, an empty folder a test."""

    models, workers = SMALL, 1

    @classmethod
    def setUpClass(cls):
        cls.farm = Farm(models=cls.models, workers=cls.workers)
        if cls.workers:
            cls.farm.wait_models()

    @classmethod
    def tearDownClass(cls):
        cls.farm.close()

    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="steer-cli-"))
        self.addCleanup(shutil.rmtree, self.dir)

    def env(self, **more):
        return {**os.environ, "STEER_BROKER": self.farm.client_endpoint, **more}

    def steer(self, *args, code=0, input=None, **env):
        run = subprocess.run([BIN / "steer", *map(os.fsencode, map(str, args))], capture_output=True, text=True, cwd=self.dir,
                             timeout=120, input=input, env=self.env(**env))
        self.assertEqual(run.returncode, code, f"{args}: {run.stderr}{run.stdout}")
        if code:
            self.assertTrue(run.stderr.strip(), args)
        return run

    def start(self, *args, **kwargs):
        process = subprocess.Popen([BIN / "steer", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   cwd=self.dir, env=self.env(), **kwargs)
        self.addCleanup(lambda: (process.poll() is None and process.kill(), process.communicate()))
        return process

    def submit(self, *args):
        return self.steer("submit", "a cat", *args).stdout.strip()

    def shown(self, job):
        return json.loads(self.steer("show", job, "--json").stdout)

    def files(self):
        return sorted(p.name for p in self.dir.iterdir())


class Images(CommandTest):
    """Files: names, formats, what is fetched twice."""

    def test_format_by_name(self):
        self.steer("render", "a cat", *FLAGS, "--seed", 1, "--output", "a.png")
        self.assertEqual((self.dir / "a.png").read_bytes()[:4], b"\x89PNG")
        self.steer("render", "--from", "a.png", "--output", "b.webp")
        self.assertEqual((self.dir / "b.webp").read_bytes()[:4], b"RIFF")
        self.steer("render", "a cat", *FLAGS, "--format", "lossless", "--output", "c.webp")
        self.steer("render", "--from", "c.webp", "--output", "d.webp")
        self.assertIn(b"lossless", (self.dir / "d.webp").read_bytes())
        (self.dir / "small").symlink_to(GOLDEN / "small" / "model")
        subprocess.run([BIN / "steer-worker", "render", "--model", "small", "--prompt", "a cat", "--recipe", "sbv2-sd15", "--weights", "int8", "--output", "held.png"],
                       cwd=self.dir, check=True, capture_output=True, timeout=60)
        self.steer("render", "--from", "held.png", "--output", "again.png")  # by a worker that holds them otherwise
        for args in (("--output", "a.jpg"), ("--output", "a"), ("--format", "png", "--output", "a.webp")):
            self.assertIn("--output" if "--format" in args else args[-1], self.steer("render", "a cat", *FLAGS, *args, code=64).stderr)

    def test_folder_first(self):
        before = self.steer("status", "--json").stdout
        run = self.steer("render", "a cat", *FLAGS, "--output", "nowhere/a.webp", code=66)
        self.assertIn("nowhere", run.stderr)
        accepted = [json.loads(text)["jobs_accepted"] for text in (before, self.steer("status", "--json").stdout)]
        self.assertEqual(accepted[0], accepted[1])

    def test_fetch_twice(self):
        job = self.submit(*FLAGS, "--images", 2, "--seed", 5)
        self.steer("fetch", job, "--output", "x-{index}.webp")
        run = self.steer("fetch", job, "--output", "x-{index}.webp")  # the files are there
        self.assertIn("2 of 2", run.stderr)
        run = self.steer("fetch", job, "--output", "y-{index}.webp", code=66)
        self.assertIn("2 of 2 images", run.stderr)
        self.assertIn("fetched earlier", run.stderr)
        (self.dir / "x-0001.webp").unlink()
        self.assertIn("1 of 2", self.steer("fetch", job, "--output", "x-{index}.webp", code=66).stderr)

    def test_fetch_index(self):
        job = self.submit(*FLAGS, "--images", 4)
        self.steer("wait", job)
        self.assertIn("0 to 3", self.steer("fetch", job, "--index", "4", code=64).stderr)
        self.steer("fetch", job, "--index", "2-99", "--output", "x-{index}.webp")
        self.assertEqual(self.files(), ["x-0002.webp", "x-0003.webp"])
        self.assertEqual(self.shown(job)["counts"]["acked"], 2)
        # Others are still there, but these will not come again.
        self.steer("fetch", job, "--index", "2-3", "--output", "y-{index}.webp", "--timeout", "60", code=66)
        self.steer("fetch", job, "--index", "0", "--output", "x-{index}.webp")
        self.steer("fetch", job, "--output", "x-{index}.webp")
        self.assertEqual(len(self.files()), 4)

    def test_existing_file(self):
        job = self.submit(*FLAGS, "--images", 2, "--seed", 5)
        (self.dir / "x-0000.webp").write_bytes(b"mine")
        self.assertIn("--overwrite", self.steer("fetch", job, "--output", "x-{index}.webp", code=64).stderr)
        self.assertEqual((self.dir / "x-0000.webp").read_bytes(), b"mine")
        self.steer("fetch", job, "--output", "x-{index}.webp", "--overwrite")
        # A fetch that died between the file and its acknowledgement goes on.
        again = self.submit(*FLAGS, "--images", 2, "--seed", 5)
        self.steer("fetch", again, "--output", "x-{index}.webp")
        self.assertEqual(self.shown(again)["state"], "done")

    def test_big_seed(self):
        seed = 2**63 + 5
        self.steer("render", "a cat", *FLAGS, "--seed", seed, "--output", "a-{seed}.png")
        self.steer("render", "--from", f"a-{seed}.png", "--output", "b-{seed}.png")
        self.assertEqual((self.dir / f"a-{seed}.png").read_bytes(), (self.dir / f"b-{seed}.png").read_bytes())
        job = self.steer("submit", "--prompts", "-", *FLAGS, input=json.dumps({"prompt": "x", "seed": seed})).stdout.strip()
        self.assertEqual(int(self.shown(job)["spec"]["seed"]), seed)
        self.assertRegex(self.steer("show", job).stdout, rf"seed +{seed}\n")
        run = self.steer("submit", "--prompts", "-", *FLAGS, input='{"prompt": "x", "seed": -1}', code=64)
        self.assertIn('"seed"', run.stderr)

    def test_from_and_guidance(self):
        self.steer("render", "a cat", "--negative", "a dog", "--guidance", "nasa", "--alpha", "0.3", "--recipe", "sbv2-sd15",
                   "--seed", 4, "--output", "a.webp")
        self.steer("render", "--from", "a.webp", "--guidance", "none", "--output", "b.webp")
        self.assertNotIn(b"a dog", (self.dir / "b.webp").read_bytes())
        self.steer("render", "--from", "a.webp", "--guidance", "cfg", "--output", "c.webp")  # not the image's scale of 1
        self.assertIn(b"CFG scale: 7.5", (self.dir / "c.webp").read_bytes())
        self.steer("render", "--from", "a.webp", "--alpha", "0.4", "--output", "d.webp")
        self.assertIn(b"Guidance: nasa, Alpha: 0.4", (self.dir / "d.webp").read_bytes())

    def test_a_failed_image(self):
        """Of a job with failed images the others are fetched, and the exit code tells."""
        with Farm(models=SMALL, workers=1) as farm:
            farm.wait_models()
            mine, self.farm = self.farm, farm
            try:
                farm.workers[0].stop()
                (farm.models / "small").unlink()
                shutil.copytree(SMALL["small"], farm.models / "small")
                farm.workers[0].start()
                farm.broker.wait_for("worker.hello.*\n(.*\n)*.*worker.hello")
                file = farm.models / "small" / "unet" / "diffusion_pytorch_model.safetensors"
                whole = file.read_bytes()
                os.truncate(file, file.stat().st_size // 2)
                job = self.submit(*FLAGS, "--images", 1)
                self.assertIn(job, self.steer("wait", job, code=70).stderr)
                (self.dir / f"{job}.webp").write_bytes(b"another job's")  # which makes nothing good
                run = self.steer("fetch", job, code=70)
                (self.dir / f"{job}.webp").unlink()
                self.assertIn("image 0 failed", run.stderr)
                self.assertIn("diffusion_pytorch_model", run.stderr)
                self.steer("watch", job, "--json", code=70)
                self.assertRegex(self.steer("show", job).stdout, "failed +image 0")
                many = self.submit(*FLAGS, "--images", 70)
                self.steer("wait", many, code=70)
                self.assertIn("6 more images", self.steer("show", many).stdout)  # a status has 64
                self.assertIn("the first 64 are told", self.steer("fetch", many, code=70).stderr)
                file.write_bytes(whole)
                farm.workers[0].stop()
                farm.workers[0].start()
                self.steer("retry", job, "--failed")
                self.steer("fetch", job, "--output", "a.webp", "--timeout", "60")
                self.assertEqual(self.files(), ["a.webp"])
            finally:
                self.farm = mine


class Families(CommandTest):
    """What differs by family, through the farm: FLUX beside a U-Net."""

    models = {name: GOLDEN / name / "model" for name in ("tiny", "flux")}

    def test_joint_attention(self):
        joint = ("--model", "flux", "--negative", "lazy dog", "--size", "48x32", "--steps", 1, "--seed", 4, "--nasa-variant", "joint")
        self.steer("render", "a red cat", *joint, "--output", "a.webp")
        first = (self.dir / "a.webp").read_bytes()
        self.assertIn(b"Guidance: nasa, Alpha: 0.5, NASA variant: joint", first)
        self.steer("render", "--from", "a.webp", "--output", "b.webp")
        self.assertEqual((self.dir / "b.webp").read_bytes(), first)
        self.steer("render", "--from", "a.webp", "--nasa-variant", "text", "--output", "c.webp")
        self.assertIn(b"NASA variant: text", (self.dir / "c.webp").read_bytes())

    def test_refused(self):
        out = self.steer("render", "a cat", "--model", "tiny", "--negative", "a dog", "--nasa-variant", "joint", "--output", "a.webp", code=64)
        self.assertIn("joint attention", out.stderr)
        out = self.steer("render", "a cat", "--model", "flux", "--size", "40x32", "--output", "a.webp", code=64)
        self.assertIn("multiples of 16", out.stderr)


class Submitting(CommandTest):
    def lines(self, text, *args, code=0, **env):
        (self.dir / "list").write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.steer("submit", "--prompts", "list", *FLAGS, *args, code=code, **env)

    def test_lines(self):
        run = self.steer("submit", "--prompts", "-", *FLAGS, "--seed", 3, "--json", input='a cat\n {"prompt": "b", "seed": 9}\n')
        jobs = [self.shown(json.loads(line)["job"])["spec"] for line in run.stdout.splitlines()]
        self.assertEqual([(j["prompt"], j["seed"]) for j in jobs], [("a cat", 3), ("b", 9)])  # the line wins
        self.assertIn("expected one", self.steer("submit", "x", "--prompts", "-", code=64, input="a\n").stderr)

    def test_keys(self):
        first = self.lines("a\nb\n", "--key", "k").stdout
        self.assertEqual(self.lines("a\nb\n", "--key", "k").stdout, first)
        self.assertEqual(len(set(first.split())), 2)
        self.assertIn("at most 116", self.lines("a\n", "--key", "k" * 117, code=64).stderr)
        self.assertIn("expected 1 to 128", self.steer("submit", "x", "--key", "k" * 129, code=64).stderr)

    def test_not_utf8(self):
        bad = b"\xff\xfe".decode("utf8", "surrogateescape")
        for args in (("a", "--negative", bad), ("a", "--model", bad), ("a", "--label", f"k={bad}"), ("a", "--recipe", bad), (bad,),
                     ("a", "--key", bad), ("a", "--numerics", bad)):
            run = self.steer("submit", *args, code=64)
            self.assertIn("UTF-8", run.stderr, args)
        run = self.lines(b"a\n\xff\xfe\nb\nx\0y\n", code=64)
        self.assertEqual(len(run.stdout.split()), 2)
        self.assertIn("line 2", run.stderr)
        self.assertIn("line 4", run.stderr)
        self.assertIn("UTF-8", self.steer("jobs", "--label", f"k={bad}", code=64).stderr)

    def test_reading_fails(self):
        run = self.steer("submit", "--prompts", self.dir, code=74)
        self.assertIn("0 jobs were submitted", run.stderr)
        self.steer("submit", "--prompts", "nowhere", code=66)

    def test_interrupted(self):
        process = self.start("submit", "--prompts", "-", *FLAGS, stdin=subprocess.PIPE)
        process.stdin.write("a\nb\n")
        process.stdin.flush()
        self.assertTrue(process.stdout.readline() and process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 130, err)
        self.assertIn("2 jobs were submitted", err)

    def test_variables(self):
        self.steer("render", "a", *FLAGS, "--output", "v-{seed}.webp", STEER_SEED="11")
        self.steer("render", "a", *FLAGS, "--seed", "12", "--output", "v-{seed}.webp", STEER_SEED="11")
        self.assertEqual(self.files(), ["v-11.webp", "v-12.webp"])
        job = self.steer("submit", "a", *FLAGS, "--label", "a=1", "--label", "b=2", STEER_LABEL="c=3").stdout.strip()
        self.assertEqual([x["key"] for x in self.shown(job)["spec"]["labels"]], ["a", "b"])


class Commands(CommandTest):
    """Everything that asks or orders."""

    def test_help(self):
        names = re.findall(r"^  steer (\w+)", self.steer("--help").stdout, re.M)
        self.assertEqual(len(names), 17)
        for name in names:
            text = self.steer(name, "--help").stdout
            self.assertIn("Exit codes", text, name)
            self.assertIn("130", text, name)
        for name in ("serve", "render", "bench", "devices"):
            run = subprocess.run([BIN / "steer-worker", name, "--help"], capture_output=True, text=True)
            self.assertEqual((run.returncode, "Exit codes" in run.stdout), (0, True), name)
        run = subprocess.run([BIN / "steer-worker", "--help"], capture_output=True, text=True)
        self.assertIn("Exit codes", run.stdout)

    def test_json(self):
        status = [json.loads(line) for line in self.steer("status", "--json").stdout.splitlines()]
        self.assertEqual(len(status), 1)
        self.assertEqual(status[0]["workers"], 1)
        for line in self.steer("doctor", "--json").stdout.splitlines():
            self.assertIn(json.loads(line)["verdict"], ("ok", "warn", "fail"))
        self.assertNotIn("ok ", self.steer("doctor", "--quiet").stdout)
        self.assertEqual(json.loads(self.steer("pause", "--json").stdout), {"paused": True})
        self.assertEqual(json.loads(self.steer("status", "--json").stdout)["paused"], 1)
        self.assertEqual(json.loads(self.steer("resume", "--json").stdout), {"resumed": True})
        self.assertIn('"nobody"', self.steer("drain", "nobody", code=66).stderr)

    def test_wait_and_watch(self):
        self.steer("pause")
        job = self.submit(*FLAGS, "--images", 3)
        watching = self.start("watch", job)
        time.sleep(0.5)
        self.steer("resume")
        out, err = watching.communicate(timeout=30)
        self.assertEqual(watching.returncode, 0, err)
        self.assertRegex(out.splitlines()[-1], "rendered: 3 images to fetch, 0 fetched, 0 failed")
        self.assertIn(f"steer fetch {job}", err)
        last = json.loads(self.steer("wait", job, "--json").stdout.splitlines()[-1])
        self.assertEqual(last["counts"]["spooled"], 3)
        self.steer("fetch", job, "--output", "{index}.webp")
        self.assertIn("done", self.steer("watch", job).stdout)
        self.assertEqual(self.steer("wait", job, "--quiet").stdout, "")
        cancelled = self.submit(*SLOW, "--images", 50)
        self.steer("cancel", cancelled)
        run = self.steer("wait", cancelled, "--json", code=75)
        self.assertIn("cancelled", run.stderr)
        self.assertEqual(json.loads(run.stdout)["state"], "cancelled")
        self.steer("watch", cancelled, code=75)
        self.steer("pause")
        late = self.submit(*FLAGS, "--deadline", 1)
        self.steer("wait", late, "--timeout", "20", code=75)
        self.steer("resume")

    def test_ids(self):
        longer = "1-" + "a" * 50
        for command in ("wait", "watch", "show", "cancel", "retry", "fetch"):
            for job in (longer, "1-77777"):
                self.assertIn(job, self.steer(command, job, code=66).stderr, command)

    def test_timeout(self):
        self.steer("pause")
        try:
            job = self.submit(*FLAGS)
            for command in ("wait", "watch", "fetch"):
                begun = time.monotonic()
                self.assertIn("in time", self.steer(command, job, "--timeout", "1", code=75).stderr)
                self.assertLess(time.monotonic() - begun, 5, command)
            begun = time.monotonic()
            self.steer("render", "x", *FLAGS, "--timeout", "1", code=75)
            self.assertLess(time.monotonic() - begun, 5)
        finally:
            self.steer("resume")

    def test_cancel_key(self):
        self.assertIn("cancelled", self.steer("cancel", "--key", "gone").stdout)
        self.assertEqual(json.loads(self.steer("cancel", "--key", "dead", "--json").stdout), {"key": "dead", "state": "cancelled"})
        self.steer("submit", "x", *FLAGS, "--key", "gone", code=75)

    def test_more_jobs(self):
        for _ in range(3):
            self.submit(*FLAGS)
        run = self.steer("jobs", "--limit", 2, "--json")
        self.assertEqual(len(run.stdout.splitlines()), 2)
        self.assertIn("more", run.stderr)

    def test_broker_comes_later(self):
        endpoint = f"ipc://{self.dir}/late"
        asking = [self.start("jobs", "--broker", endpoint, "--timeout", "30"),
                  self.start("fetch", "1-1", "--broker", endpoint)]
        time.sleep(3.5)
        broker = Program([BIN / "steer-broker", "--clients", endpoint, "--workers", endpoint + "w", "--data", self.dir / "data"],
                         self.dir / "log")
        self.addCleanup(broker.kill)
        self.assertEqual(asking[0].wait(30), 0)
        self.assertEqual(asking[1].wait(30), 66)  # it waited, and learnt that there is no such job
        self.assertIn("waiting for it", asking[1].stderr.read())

    def test_drain(self):
        with Farm(models=SMALL) as farm:
            farm.wait_models()
            env = {**os.environ, "STEER_BROKER": farm.client_endpoint}
            run = subprocess.run([BIN / "steer", "drain", "w0", "--json"], capture_output=True, text=True, env=env)
            self.assertEqual((run.returncode, json.loads(run.stdout)), (0, {"draining": True}))
            self.assertEqual(farm.workers[0].process.wait(30), 0)
            run = subprocess.run([BIN / "steer", "render", "x", *FLAGS, "--timeout", "2"], capture_output=True, text=True, env=env)
            self.assertEqual(run.returncode, 75)
            self.assertIn('no worker with model "small"', run.stderr)


class Interrupts(CommandTest):
    """Ctrl-C: the job is cancelled, or left with --detach; 130."""

    def interrupt(self, *args, after=r"^job "):
        process = self.start("render", "a cat", *SLOW, "--images", "40", "--output", "{index}.webp", *args)
        first = process.stderr.readline()
        self.assertRegex(first, after)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 130, err)
        return first.split()[1], out, err

    def test_cancels(self):
        job, _, err = self.interrupt()
        self.assertIn(f"{job} is cancelled", err)
        self.assertEqual(self.shown(job)["counts"].get("queued", 0), 0)

    def test_detach(self):
        job, out, err = self.interrupt("--detach")
        self.assertEqual(out.split()[-1], job)
        self.assertIn(f"steer fetch {job}", err)
        self.assertIn(self.shown(job)["state"], ("queued", "running"))
        self.steer("cancel", job, "--quiet")

    def test_while_submitting(self):
        """The broker has accepted the job, but its answer was lost when Ctrl-C came: the key is cancelled."""
        proxy = Proxy(self.dir, self.farm.client_endpoint, "proxy")
        self.addCleanup(proxy.close)
        args = ("render", "a cat", "--model", "small", *SLOW, "--images", "90", "--broker", proxy.endpoint)
        for flags in ((), ("--detach", "--key", "left")):
            lost = proxy.once("down", "ACCEPTED", "drop")
            process = self.start(*args, *flags)
            lost.wait()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 130, err)
            job = json.loads(self.steer("jobs", "--limit", "1", "--json").stdout)
            if flags:
                self.assertIn("--key left", err)
                self.assertIn(job["state"], ("queued", "running"))
                self.steer("cancel", "--key", "left", "--quiet")
            else:
                self.assertIn("the job is cancelled", err)
                self.assertEqual((job["spec"]["images"], job["state"]), (90, "cancelled"))

    def test_stopped_broker(self):
        """A broker that does not answer: the second Ctrl-C ends the wait for the cancel, too."""
        self.farm.broker.signal(signal.SIGSTOP)
        try:
            process = self.start("render", "a cat", "--model", "small", *FLAGS)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            begun = time.monotonic()
            _, err = process.communicate(timeout=30)
            self.assertLess(time.monotonic() - begun, 1.5)
            self.assertEqual(process.returncode, 130, err)
            self.assertIn("steer cancel --key", err)
        finally:
            self.farm.broker.signal(signal.SIGCONT)

    def test_nobody_there(self):
        for args in (("render", "x"), ("jobs",), ("submit", "x"), ("fetch", "1-1"), ("wait", "1-1")):
            process = self.start(*args, "--broker", f"ipc://{self.dir}/nobody")
            time.sleep(0.4)
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            _, err = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 130, err)
            self.assertLess(time.monotonic() - begun, 5, args)

    def test_bar_and_lines(self):
        self.steer("pause")
        process = self.start("render", "a cat", *FLAGS, "--images", "8", "--output", "{index}.webp")
        time.sleep(7)  # the job is asked for again after 5 s without news
        self.steer("resume")
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)
        self.assertNotIn("\r", err)
        self.assertNotIn("\x1b", err)
        self.assertRegex(err, r"0/8 done, 0 running, 8 queued")
        lead, tail = pty.openpty()
        process = subprocess.Popen([BIN / "steer", "render", "a cat", *SLOW, "--images", "2", "--output", "{index}.webp"],
                                   stdout=subprocess.DEVNULL, stderr=tail, cwd=self.dir, env=self.env())
        os.close(tail)
        text = b""
        while select.select([lead], [], [], 60)[0]:
            try:
                text += os.read(lead, 4096)
            except OSError:
                break
        self.assertEqual(process.wait(60), 0)
        os.close(lead)
        self.assertIn(b"\r\x1b[K[", text)
        self.assertRegex(text, rb"\d/2 done")


class Up(unittest.TestCase):
    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="steer-up-"))
        self.addCleanup(shutil.rmtree, self.dir)
        (self.dir / "models").mkdir()
        (self.dir / "models" / "small").symlink_to(SMALL["small"])
        ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.clients, self.worker_port = (f"tcp://127.0.0.1:{port.getsockname()[1]}" for port in ports)
        [port.close() for port in ports]
        self.ups = []
        self.addCleanup(lambda: [up.stop() for up in self.ups])

    def up(self, *args, name="up", models=True, **env):
        flags = ["--models", self.dir / "models"] if models else []
        up = Program([BIN / "steer", "up", *flags, "--data", self.dir / "data", "--clients", self.clients, "--workers",
                      self.worker_port, "--threads", "1", *args], self.dir / f"{name}.log", **env)
        self.ups.append(up)
        return up

    def steer(self, *args, code=0):
        run = subprocess.run([BIN / "steer", *map(str, args), "--broker", self.clients], capture_output=True, text=True,
                             cwd=self.dir, timeout=60)
        self.assertEqual(run.returncode, code, run.stderr)
        return run

    def children(self, up):
        return Path(f"/proc/{up.process.pid}/task/{up.process.pid}/children").read_text().split()

    def test_up_and_down(self):
        up = self.up(models=False, STEER_MODELS=str(self.dir / "models"))
        up.wait_for("farm ready")
        self.assertIn("broker.ready", up.text())
        self.steer("render", "a cat", *FLAGS, "--output", "a.webp")
        self.assertTrue((self.dir / "a.webp").exists())
        children = self.children(up)
        self.assertEqual(len(children), 2)
        up.signal(signal.SIGINT)
        self.assertEqual(up.process.wait(30), 0)
        for pid in children:
            self.assertFalse(Path(f"/proc/{pid}").exists())

    def test_twice(self):
        self.up().wait_for("farm ready")
        hello = self.steer("workers", "--json").stdout
        for args, sentence in (((), "in use by another"), (("--data", str(self.dir / "other")), "listening on")):
            begun = time.monotonic()
            second = self.up(*args, name=f"second{len(args)}")
            self.assertNotEqual(second.process.wait(20), 0)
            self.assertLess(time.monotonic() - begun, 10)
            self.assertRegex(second.text().splitlines()[-1], f"steer up: .*{sentence}")
            self.assertNotIn("worker.start", second.text())
        self.assertEqual(self.steer("workers", "--json").stdout, hello)

    def test_children_that_end(self):
        up = self.up()
        up.wait_for("farm ready")
        broker, worker = map(int, self.children(up))
        os.kill(worker, signal.SIGKILL)
        up.wait_for("steer-worker ended; starting it again")
        os.kill(broker, signal.SIGKILL)
        up.wait_for("steer-broker ended; starting it again")
        up.wait_for("(?s)broker.ready.*broker.ready")
        self.steer("render", "a cat", *FLAGS, "--output", "a.webp", "--timeout", "30")
        name = json.loads(self.steer("workers", "--json").stdout.splitlines()[0])["worker"]
        self.steer("drain", name)
        up.wait_for("steer-worker has left")
        time.sleep(1)
        self.assertEqual(len(self.children(up)), 1)  # it was asked to leave: it stays away

    def test_replaced(self):
        """Another worker of the same id takes over: the two do not throw each other out for ever."""
        up = self.up()
        up.wait_for("farm ready")
        name = json.loads(self.steer("workers", "--json").stdout)["worker"]
        other = Program([BIN / "steer-worker", "serve", "--models", self.dir / "models", "--broker", self.worker_port, "--worker",
                         name, "--threads", "1"], self.dir / "other.log")
        self.addCleanup(other.stop)
        up.wait_for("steer-worker has left")
        self.steer("render", "a cat", *FLAGS, "--output", "a.webp", "--timeout", "30")
        self.assertIsNone(other.process.poll())
        self.assertEqual(len(self.children(up)), 1)

    def test_no_busy_loop(self):
        (self.dir / "models" / "small").unlink()
        up = self.up(STEER_LOG_LEVEL="warn")
        time.sleep(2)
        if up.process.poll() is None:
            ticks = Path(f"/proc/{up.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            self.assertLess(int(ticks[11]) + int(ticks[12]), 50)  # of 200
        self.assertNotIn("level=info ev=broker.ready", up.text())


class Worker(unittest.TestCase):
    def test_bare(self):
        """`steer-worker` with STEER_MODELS serves, as all its flags may be variables."""
        with Farm(models=SMALL, workers=0) as farm:
            worker = Program([BIN / "steer-worker"], farm.dir / "bare.log", STEER_MODELS=str(farm.models),
                             STEER_BROKER=farm.worker_endpoint, STEER_THREADS="1")
            farm.workers.append(worker)
            worker.wait_for("worker.start")
        run = subprocess.run([BIN / "steer-worker"], capture_output=True, text=True,
                             env={k: v for k, v in os.environ.items() if k != "STEER_MODELS"})
        self.assertEqual(run.returncode, 64)

    def test_devices(self):
        run = subprocess.run([BIN / "steer-worker", "devices"], capture_output=True, text=True)
        self.assertEqual(run.returncode, 0)
        self.assertTrue(run.stdout.startswith("cpu"))
        run = subprocess.run([BIN / "steer-worker", "devices", "x"], capture_output=True, text=True)
        self.assertEqual(run.returncode, 64)


if __name__ == "__main__":
    unittest.main(verbosity=2)
