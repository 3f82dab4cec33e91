"""Checkpoints and logs of one training stage, so that every stage resumes where it was stopped."""

import json
import os
import time
from pathlib import Path

import torch


class Stage:
    def __init__(self, folder, name, minutes=2.0):
        self.file = Path(folder) / f"{name}.pt"
        self.log_file = Path(folder) / f"{name}.jsonl"
        self.every, self.saved = minutes * 60, time.time()
        Path(folder).mkdir(parents=True, exist_ok=True)

    def load(self):
        return torch.load(self.file, weights_only=True) if self.file.exists() else None

    def save(self, state):
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.file)
        self.saved = time.time()

    def due(self):
        return time.time() - self.saved > self.every

    def log(self, **row):
        with self.log_file.open("a") as f:
            f.write(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}) + "\n")
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
