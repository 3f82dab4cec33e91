"""A farm of the real programs in a folder of its own, for tests."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from steer_client import Client

SOURCE = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("STEER_BIN_DIR", SOURCE / "build" / "bin"))
GOLDEN = SOURCE / "tests" / "golden" / "data"
FAST = dict(recipe="sbv2-sd15", guidance=dict(method=0))  # one step


def digest(images):
    """{index: hash} of what Client.fetch returned."""
    return {i: hashlib.sha256(data).hexdigest() for i, (_, data) in images.items()}


class Program:
    def __init__(self, args, log, **env):
        self.args, self.log, self.env = [str(a) for a in args], Path(log), env
        self.start()

    def start(self):
        with self.log.open("ab") as f:
            self.process = subprocess.Popen(self.args, stdout=f, stderr=f, env={**os.environ, "OMP_WAIT_POLICY": "passive", **self.env})

    def text(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern, seconds=30.0, after=0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(pattern, self.text()[after:]):
                return found
            if self.process.poll() is not None and not re.search(pattern, self.text()[after:]):
                raise RuntimeError(f"{self.args[0]} ended with {self.process.returncode}:\n{self.text()[-2000:]}")
            time.sleep(0.02)
        raise TimeoutError(f"{pattern!r} not in the log of {self.args[0]}:\n{self.text()[-2000:]}")

    def signal(self, number):
        self.process.send_signal(number)

    def memory(self, what="VmRSS"):
        """Resident bytes, now or (VmHWM) at most so far."""
        return 1024 * int(re.search(what + r":\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1])

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, seconds=30.0):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode


class Farm:
    def __init__(self, models=None, workers=1, broker_args=(), threads=1, broker_env=None, broker_prefix=(), data=None):
        self.dir = Path(tempfile.mkdtemp(prefix="steerfarm-"))
        self.models = self.dir / "models"
        if models is None:
            models = {name: GOLDEN / name / "model" for name in ("small", "tiny")}
        self.models.mkdir()
        for name, path in models.items():
            (self.models / name).symlink_to(path)
        self.client_endpoint = f"ipc://{self.dir}/clients"
        self.worker_endpoint = f"ipc://{self.dir}/workers"
        self.threads, self.keep, self.clients = threads, False, []
        self.broker = Program([*broker_prefix, BIN / "steer-broker", "--clients", self.client_endpoint, "--workers", self.worker_endpoint,
                               "--data", data or self.dir / "data", *broker_args], self.dir / "broker.log", **(broker_env or {}))
        self.broker.wait_for("ev=broker.ready")
        self.workers = [self.worker(i) for i in range(workers)]

    def worker(self, i, *args, endpoint=None):
        return Program([BIN / "steer-worker", "serve", "--broker", endpoint or self.worker_endpoint, "--models", self.models, "--worker",
                        f"w{i}", "--threads", self.threads, *args], self.dir / f"worker{i}.log")

    def restart_broker(self):
        at = len(self.broker.text())
        self.broker.start()
        self.broker.wait_for("ev=broker.ready", after=at)

    def client(self, **kwargs):
        self.clients.append(Client(self.client_endpoint, **kwargs))
        return self.clients[-1]

    def steer(self, *args, endpoint=None):
        """The command line as a Program; .log has what it printed."""
        number = len(list(self.dir.glob("steer*.log")))
        return Program([BIN / "steer", *args], self.dir / f"steer{number}.log", STEER_BROKER=endpoint or self.client_endpoint)

    def wait_models(self, seconds=30.0):
        """Until the catalogue has all models."""
        client = self.client()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if len(client.query(4).models) >= len(list(self.models.iterdir())):
                client.close()
                return
            time.sleep(0.05)
        raise TimeoutError("no models:\n" + "\n".join(w.text()[-1000:] for w in self.workers))

    def close(self):
        for client in self.clients:
            client.close()
        for p in [*self.workers, self.broker]:
            if p.process.poll() is None:
                p.signal(signal.SIGCONT)
                p.kill()
        if self.keep:
            for p in [self.broker, *self.workers]:
                print(f"--- {p.log}\n{p.text()[-3000:]}")
        else:
            shutil.rmtree(self.dir)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.keep = self.keep or bool(exc[0])
        self.close()


class FarmCase(unittest.TestCase):
    """Tests that share one farm; its folder stays when one of them fails."""

    OPTIONS = {}

    @classmethod
    def setUpClass(cls):
        cls.farm = Farm(**cls.OPTIONS)
        cls.addClassCleanup(cls.farm.close)
        if cls.farm.workers:
            cls.farm.wait_models()

    def run(self, result=None):
        result = result or self.defaultTestResult()
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            self.farm.keep = True
        return result

    def setUp(self):
        self.client = self.farm.client()
        self.addCleanup(self.client.close)
