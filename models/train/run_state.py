"""One training stage: its checkpoint, its curve, and a loop that resumes where it was stopped."""

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch


class Stage:
    """NAME.pt and NAME.jsonl in a state folder."""

    def __init__(self, folder, name, minutes=2.0):
        self.file = Path(folder) / f"{name}.pt"
        self.log_file = Path(folder) / f"{name}.jsonl"
        self.every, self.saved = minutes * 60, time.time()
        Path(folder).mkdir(parents=True, exist_ok=True)

    def load(self):
        return torch.load(self.file, weights_only=True) if self.file.exists() else None

    def need(self):
        if (state := self.load()) is None:
            raise SystemExit(f"{self.file} is missing: run that stage first")
        return state

    def save(self, state):
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.file)
        self.saved = time.time()

    def due(self):
        return time.time() - self.saved > self.every

    def log(self, **row):
        with self.log_file.open("a") as f:
            f.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}) + "\n")
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)


@dataclass
class Batch:
    done: int  # samples seen before it
    share: float  # of the stage that is done, 0 to 1
    rng: random.Random  # these two depend on done alone
    generator: torch.Generator


class Training:
    """Iterating gives batches until `until` samples are seen; whatever the body does between two of them is a step.

    model: what is trained, averaged over the last steps into `averaged` (which is what is used in the end).
    parent: the state of another stage to begin with, if this one has not begun.
    fresh: samples seen when the optimisers were new."""

    def __init__(self, stage, model, optimisers, until, batch, seed, parent=None, rows=100):
        self.stage, self.model, self.optimisers = stage, model, optimisers
        self.until, self.batch, self.seed = until, batch, seed
        self.averaged = {k: v.clone() for k, v in model.state_dict().items()}
        self.begin = self.done = self.fresh = 0
        self.meter, self.every = {}, max(1, until // batch // rows)
        state = stage.load() or parent
        if state:
            self.begin = state["begin"] if state is not parent else parent["done"]
            self.done, self.fresh, self.averaged = state["done"], state["fresh"], state["averaged"]
            model.load_state_dict(state["model"])
            for optimiser, kept in zip(optimisers, state["optimisers"]):
                optimiser.load_state_dict(kept)

    def state(self):
        return {"model": self.model.state_dict(), "averaged": self.averaged, "done": self.done, "begin": self.begin, "fresh": self.fresh,
                "optimisers": [o.state_dict() for o in self.optimisers]}

    def __iter__(self):
        began, first = time.time(), self.done
        while self.done < self.until:
            torch.manual_seed(self.seed + self.done)
            yield Batch(self.done, (self.done - self.begin) / (self.until - self.begin), random.Random(self.seed + self.done),
                        torch.Generator().manual_seed(self.seed + self.done))
            self.done += self.batch
            self.average()
            if self.done // self.batch % self.every == 0 and self.meter:
                self.stage.log(done=self.done, **{k: s / n for k, (s, n) in self.meter.items()}, per_s=(self.done - first) / (time.time() - began))
                self.meter = {}
            if self.stage.due() or self.done >= self.until:
                self.stage.save(self.state())

    def average(self):
        steps = self.done / self.batch
        decay = min(0.998, steps / (steps + 9))
        with torch.no_grad():
            for k, v in self.model.state_dict().items():
                if v.is_floating_point():
                    self.averaged[k].lerp_(v, 1 - decay)

    def note(self, **values):
        """For the curve: means between two rows."""
        for k, v in values.items():
            s, n = self.meter.get(k, (0.0, 0))
            self.meter[k] = (s + float(v), n + 1)
