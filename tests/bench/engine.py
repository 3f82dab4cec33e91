#!/usr/bin/env python3
"""Whole one-step images, ours beside diffusers on torch and OpenVINO, alternating in one run.

    python tests/bench/engine.py --model DIR [--size 96x96] [--pairs 5] [--runs 1] [--threads 2] [--precision auto|f32|bf16]
                                 [--peers torch,openvino] [--state FILE]

tests/bench/requirements.txt says what it needs. Every measurement is a process of its own: loading and one image, then `runs` that are
timed. "torch" is the better of f32 and bf16, which is found out first; the pictures are compared once, given the same noise and text.
FILE keeps what was measured, and a run that was stopped goes on from there.
Prints one JSON object: medians, minima, ratios of the pairs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from state import State

HERE = Path(__file__).resolve()
BIN = Path(os.environ.get("STEER_BIN_DIR", HERE.parents[2] / "build" / "bin"))
PROMPT, SEED = "a photograph of an astronaut", 7


def output(command):
    out = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr[-4000:])
    return json.loads(out.stdout)


def ours(args):
    out = output([BIN / "steer-worker", "bench", "--model", args.model, "--size", args.size, "--steps", 1, "--guidance", "none", "--guidance-scale", 1,
                  "--runs", args.runs, "--threads", args.threads, "--precision", args.precision, "--json"])
    return {"image_ms": out["total"]["median_ms"], "denoise_ms": out["stages"]["denoise"]["median_ms"], "decode_ms": out["stages"]["decode"]["median_ms"],
            **{k: out[k] for k in ("numerics", "first_image_ms", "peak_rss_bytes", "peak_gflops", "stages")}}


def theirs(args, name, pair):
    out = output([sys.executable, HERE.with_name("peers.py"), name, "--model", args.model, "--size", args.size, "--runs", args.runs, "--first", 100 * pair,
                  "--threads", args.threads])
    return {k: statistics.median(v) for k, v in out.items()}


def agreement(args, name):
    """How far our picture of one prompt is from theirs, stage by stage."""
    with tempfile.TemporaryDirectory() as folder:
        dump = f"{folder}/x.safetensors"
        subprocess.run(list(map(str, [
            BIN / "steer-worker", "render", "--model", args.model, "--size", args.size, "--steps", 1, "--prompt", PROMPT, "--seed", SEED, "--threads",
            args.threads, "--precision", args.precision, "--guidance", "none", "--guidance-scale", 1, "--output", f"{folder}/x.png", "--dump-tensors", dump])),
            check=True, stdout=subprocess.DEVNULL)
        return output([sys.executable, HERE.with_name("peers.py"), name, "--model", args.model, "--size", args.size, "--threads", args.threads, "--runs", 0,
                       "--dump", dump])["agreement"]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", required=True)
    a.add_argument("--size", default="96x96")
    a.add_argument("--pairs", type=int, default=5)
    a.add_argument("--runs", type=int, default=1)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--precision", default="auto")
    a.add_argument("--peers", default="torch,openvino")
    a.add_argument("--state")
    args = a.parse_args()
    state, peers = State(args.state), []
    for name in args.peers.split(","):
        if name == "torch":
            both = {n: state.get(f"{n} first", lambda n=n: theirs(args, n, 0))["image_ms"] for n in ("torch bf16", "torch f32")}
            peers.append(min(both, key=both.get))
        else:
            peers.append("openvino bf16" if name == "openvino" else name)
    close = {n: state.get(f"{n} agreement", lambda n=n: agreement(args, n)) for n in peers}
    rows = {n: [] for n in ("ours", *peers)}
    for pair in range(args.pairs):
        for name in rows:
            measure = (lambda: ours(args)) if name == "ours" else (lambda name=name: theirs(args, name, pair + 1))
            rows[name].append(state.get(f"{name} {pair}", measure))
    each = lambda name, key: [r[key] for r in rows[name]]
    seconds = lambda f, key: {n: round(f(each(n, key)) / 1e3, 3) for n in rows}
    times = lambda key: {n: round(statistics.median(p / o for p, o in zip(each(n, key), each("ours", key))), 2) for n in peers}
    last = rows["ours"][-1]
    print(json.dumps({
        "model": Path(args.model).name, "size": args.size, "pairs": args.pairs,
        **{f"{k}_s": {"median": seconds(statistics.median, f"{k}_ms"), "min": seconds(min, f"{k}_ms"), "times_ours": times(f"{k}_ms")}
           for k in ("image", "denoise", "decode")}, "agreement": close,
        "ours": {k: last[k] for k in ("numerics", "first_image_ms", "peak_rss_bytes", "peak_gflops")},
        "stages_ms": {k: v["median_ms"] for k, v in last["stages"].items()}}, indent=2))


if __name__ == "__main__":
    main()
