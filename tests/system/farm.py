"""A farm of the real programs in a folder of its own, for tests."""

import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from steer_client import Client

SOURCE = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("STEER_BIN_DIR", SOURCE / "build" / "bin"))
GOLDEN = SOURCE / "tests" / "golden" / "data"


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
    def __init__(self, models=None, workers=1, broker_args=(), threads=1):
        self.dir = Path(tempfile.mkdtemp(prefix="steerfarm-"))
        self.models = self.dir / "models"
        if models is None:
            models = {name: GOLDEN / name / "model" for name in ("small", "tiny")}
        self.models.mkdir()
        for name, path in models.items():
            (self.models / name).symlink_to(path)
        self.client_endpoint = f"ipc://{self.dir}/clients"
        self.worker_endpoint = f"ipc://{self.dir}/workers"
        self.threads = threads
        self.broker = Program([BIN / "steer-broker", "--clients", self.client_endpoint, "--workers", self.worker_endpoint,
                               "--data", self.dir / "data", *broker_args], self.dir / "broker.log")
        self.broker.wait_for("ev=broker.ready")
        self.workers = [self.worker(i) for i in range(workers)]

    def worker(self, i, *args):
        return Program([BIN / "steer-worker", "serve", "--broker", self.worker_endpoint, "--models", self.models, "--worker",
                        f"w{i}", "--threads", self.threads, *args], self.dir / f"worker{i}.log")

    def restart_broker(self):
        at = len(self.broker.text())
        self.broker.start()
        self.broker.wait_for("ev=broker.ready", after=at)

    def client(self, **kwargs):
        return Client(self.client_endpoint, **kwargs)

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
        for p in [*self.workers, self.broker]:
            if p.process.poll() is None:
                p.signal(signal.SIGCONT)
                p.kill()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
        if exc[0]:
            for p in [self.broker, *self.workers]:
                print(f"--- {p.log}\n{p.text()[-3000:]}")
