"""steer-worker without a broker, for tests: golden folders to be changed, renders, refusals, and what is in an image file."""

import ctypes
import json
import math
import os
import shutil
import struct
import subprocess
import tempfile
import unittest
import zlib
from pathlib import Path

import tensors

SOURCE = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("STEER_BIN_DIR", SOURCE / "build" / "bin"))
GOLDEN = SOURCE / "tests" / "golden" / "data"
CHECKPOINTS = SOURCE / "tests" / "golden" / "checkpoints"
DEMO = SOURCE / "models" / "demo"
VAE = "vae/diffusion_pytorch_model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="steer-worker-"))
        self.addCleanup(shutil.rmtree, self.dir)

    def run_worker(self, *args, timeout=120):
        return subprocess.run([BIN / "steer-worker", *map(str, args)], capture_output=True, timeout=timeout)

    def folder(self, name="tiny"):
        to = self.dir / f"{name}-{len(list(self.dir.iterdir()))}"
        shutil.copytree(GOLDEN / name / "model", to)
        return to

    def render(self, model, *more, prompt="the red cat", output="x.png"):
        """The image's tensor and everything else of --dump-tensors."""
        out = self.run_worker("render", "--model", model, "--prompt", prompt, "--seed", 7, "--precision", "f32", "--output", self.dir / output,
                              "--dump-tensors", self.dir / "dump.safetensors", *more)
        self.assertEqual(out.returncode, 0, out.stderr.decode())
        return tensors.read(self.dir / "dump.safetensors")

    def refused(self, model, *words, args=(), prompt="the red cat"):
        """One sentence that has all of these words, an exit code, no image."""
        prompt = ("--prompt", prompt) if prompt is not None else ()
        out = subprocess.run([BIN / "steer-worker", "render", "--model", model, *prompt, "--output", self.dir / "no.png", *map(str, args)],
                             capture_output=True, timeout=120)
        text = out.stderr.decode()
        self.assertGreaterEqual(out.returncode, 64, text)
        self.assertLess(out.returncode, 80, text)
        self.assertEqual(len(text.strip().splitlines()), 1, text)
        for word in words:
            self.assertIn(word, text)
        self.assertFalse((self.dir / "no.png").exists())


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path, change):
    all_of_them = tensors.read(path)
    change(all_of_them)
    tensors.write(path, all_of_them)


def edit_scheduler(model, **keys):
    """The index names the class that is made; the file beside its keys says it again."""
    edit(model / "scheduler/scheduler_config.json", lambda c: c.update(keys))
    if "_class_name" in keys:
        edit(model / "model_index.json", lambda i: i.update(scheduler=["diffusers", keys["_class_name"]]))


def distance(a, b):
    """norm2(a - b) / norm2(b)"""
    return math.dist(a, b) / math.hypot(*b)


def webp(path):
    """The pixels of a WebP file, by libwebp."""
    lib, data = ctypes.CDLL("libwebp.so.7"), path.read_bytes()
    width, height = ctypes.c_int(), ctypes.c_int()
    lib.WebPDecodeRGB.restype = ctypes.c_void_p
    lib.WebPFree.argtypes = [ctypes.c_void_p]
    at = lib.WebPDecodeRGB(data, ctypes.c_size_t(len(data)), ctypes.byref(width), ctypes.byref(height))
    pixels = ctypes.string_at(at, 3 * width.value * height.value)
    lib.WebPFree(at)
    return pixels


def png(path):
    """The pixels of an RGB PNG of 8 bits."""
    data, at, packed, width = path.read_bytes(), 8, b"", 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IHDR":
            width, height = struct.unpack(">II", data[at + 8 : at + 16])
        if kind == b"IDAT":
            packed += data[at + 8 : at + 8 + size]
        at += size + 12
    raw, stride, rows, before = zlib.decompress(packed), 3 * width, [], bytearray(3 * width)
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        for i in range(stride):
            a, b, c = (line[i - 3] if i >= 3 else 0), before[i], (before[i - 3] if i >= 3 else 0)
            if kind == 4:
                p = a + b - c
                pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
                a = a if pa <= pb and pa <= pc else b if pb <= pc else c
            line[i] = (line[i] + (0, a, b, (a + b) // 2, a)[kind]) & 255
        rows.append(line)
        before = line
    return b"".join(rows)


def psnr(a, b):
    error = sum((x - y) ** 2 for x, y in zip(a, b)) / len(a)
    return 10 * math.log10(255**2 / error) if error else math.inf
