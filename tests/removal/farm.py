"""A farm of the real programs (`steer up`) that renders jobs and gives their pictures back as tensors."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SOURCE = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("STEER_BIN_DIR", SOURCE / "build" / "bin"))


class Farm:
    def __init__(self, folders):
        """folders: name -> model folder."""
        self.dir = Path(tempfile.mkdtemp(prefix="steerfarm-removal-"))
        (self.dir / "models").mkdir()
        for name, folder in folders.items():
            (self.dir / "models" / name).symlink_to(Path(folder).resolve())
        self.endpoint = f"ipc://{self.dir}/clients"
        self.log = self.dir / "up.log"
        with self.log.open("wb") as log:
            self.up = subprocess.Popen([BIN / "steer", "up", "--models", self.dir / "models", "--data", self.dir / "data", "--clients", self.endpoint,
                                        "--workers", f"ipc://{self.dir}/workers"], stdout=log, stderr=log, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
        try:
            self.wait_ready(folders)
        except BaseException:
            self.close()
            raise

    def wait_ready(self, folders):
        end = time.monotonic() + 120
        while "farm ready" not in self.log.read_text():
            if self.up.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the farm did not come up:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)
        offered = self.steer("models", "--json")
        if missing := [name for name in folders if f'"{name}"' not in offered]:
            raise RuntimeError(f"the worker does not offer {', '.join(missing)}:\n{self.log.read_text()[-2000:]}")

    def steer(self, *args, input=None):
        run = subprocess.run([BIN / "steer", *map(str, args)], input=input, capture_output=True, text=True, cwd=self.dir,
                             env={**os.environ, "STEER_BROKER": self.endpoint})
        if run.returncode:
            raise RuntimeError(f"steer {args[0]}: {run.stderr.strip()}")
        return run.stdout

    def submit(self, jobs):
        """jobs: objects like message Job. Their ids, once they are durable."""
        lines = "".join(json.dumps({**job, "output": {"format": "lossless"}}) + "\n" for job in jobs)
        return self.steer("submit", "--prompts", "-", input=lines).split()

    def fetch(self, job):
        """uint8 arrays [H, W, 3] by index."""
        folder = self.dir / "images"
        folder.mkdir()
        self.steer("fetch", job, "--output", f"{folder}/{{index}}.webp", "--quiet")
        pictures = [np.asarray(Image.open(f).convert("RGB")) for f in sorted(folder.iterdir(), key=lambda f: int(f.stem))]
        shutil.rmtree(folder)
        return pictures

    def close(self):
        if self.up.poll() is None:
            self.up.terminate()
            try:
                self.up.wait(30)
            except subprocess.TimeoutExpired:
                self.up.kill()
                self.up.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
