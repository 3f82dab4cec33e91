#!/usr/bin/env python3
"""What a denoiser's step costs: methods of guidance beside none, a batch of four beside four singles, shares of the machine's peak.

    python3 tests/bench/steps.py --model DIR|FILE.json [--size 96x96] [--pairs 20] [--runs 5] [--threads 2] [--precision auto|f32|bf16]
                                 [--beside nasa,cfg,batch] [--state FILE]

`--beside` lists what is measured against no guidance: nasa, nasa:text, nasa:mass, nasa:joint (joint attention knows three), nag, vsf, cfg
(two whole passes), batch (four images). Every pair is one `steer-worker bench` of each, one after another, so that a noisy neighbour meets
all of them; each figure is the median of the pairs' own, beside the 10th and 90th percentile. FILE keeps what was measured, and a run that
was stopped goes on from there. Prints one JSON object:

    METHOD.cost_percent   by timers per operation: what its attention takes more than the plain one, and the operations that it has besides
                          (a second text's rows in joint attention), in % of the plain denoiser
    METHOD.stage_percent  what the whole stage takes more than the plain one, least times
    batch_of_4_times      images per second in batches of four, over those one by one
    peak_share_*          FLOP/s of the direct algorithm over the better of an FMA loop and oneDNN's 2048^3 (bf16 where that is computed in)
    first_minus_warm_ms   of an image, without loading
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from state import State

BIN = Path(os.environ.get("STEER_BIN_DIR", Path(__file__).resolve().parents[2] / "build" / "bin"))
METHODS = ("nasa", "nasa:text", "nasa:mass", "nasa:joint", "nag", "vsf", "cfg")


def bench(args, what):
    method, _, variant = what.partition(":")
    more = ["--batch", "4"] if what == "batch" else ["--nasa-variant", variant] if variant else []
    out = subprocess.run([BIN / "steer-worker", "bench", "--model", args.model, "--size", args.size, "--steps", "1", "--runs", str(args.runs), "--threads",
                          str(args.threads), "--precision", args.precision, "--ops", "--json", "--guidance",
                          "none" if what == "batch" else method, *more], capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    return json.loads(out.stdout)


def timers(result):
    """The denoiser's milliseconds by (operation, shape): attention of any kind is one, the others are lists."""
    found = collections.defaultdict(list)
    for o in result["ops"]:
        if o["stage"] == "denoise":
            found["attention" if "attention" in o["op"] else (o["op"], o["out"])].append(o["ms"])
    return found


def cost(plain, guided):
    """Milliseconds. Operations that both have are the same work, so their noise is not counted."""
    a, b = timers(plain), timers(guided)
    more = sum(b["attention"]) - sum(a["attention"])
    for key in b.keys() - {"attention"}:
        assert len(b[key]) >= len(a[key]), key
        more += (len(b[key]) - len(a[key])) * statistics.mean(b[key])
    return more


def row_of(results):
    plain = results["none"]
    least = lambda result: result["stages"]["denoise"]["min_ms"]
    whole = sum(o["ms"] for o in plain["ops"] if o["stage"] == "denoise")
    peak = max(plain["peak_gflops"]["fma_f32"], plain["peak_gflops"]["onednn_bf16" if plain["precision"] == "bf16" else "onednn_f32"])
    row = {"image_ms": plain["total"]["median_ms"], "denoise_ms": least(plain), "peak_gflops": peak,
           "first_minus_warm_ms": plain["first_image_ms"] - plain["total"]["median_ms"]}
    for stage in ("text", "denoise", "decode"):
        row[f"peak_share_{stage}"] = plain["stages"][stage]["gflop"] / (1e-3 * plain["stages"][stage]["min_ms"]) / peak
    for method in results.keys() & set(METHODS):
        row[f"{method}.stage_percent"] = 100 * (least(results[method]) / least(plain) - 1)
        if method != "cfg":
            row[f"{method}.cost_percent"] = 100 * cost(plain, results[method]) / whole
    if "batch" in results:
        row["batch_of_4_times"] = 4 * plain["total"]["median_ms"] / results["batch"]["total"]["median_ms"]
    return row


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", required=True)
    a.add_argument("--size", default="96x96")
    a.add_argument("--pairs", type=int, default=20)
    a.add_argument("--runs", type=int, default=5)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--precision", default="auto")
    a.add_argument("--beside", default="nasa,cfg,batch")
    a.add_argument("--state")
    args = a.parse_args()
    beside = args.beside.split(",")
    if unknown := set(beside) - {*METHODS, "batch"}:
        a.error(f"--beside: {', '.join(unknown)}: expected {', '.join(METHODS)} or batch")
    state = State(args.state)
    rows = []
    for pair in range(args.pairs):
        results = {what: state.get(f"step {what} {pair}", lambda: bench(args, what)) for what in ("none", *beside)}
        rows.append(row_of(results))
    figures = {}
    for key in sorted(rows[0]):
        values = sorted(row[key] for row in rows)
        tenth = len(values) // 10
        figures[key] = {"median": round(statistics.median(values), 3), "p10": round(values[tenth], 3), "p90": round(values[-1 - tenth], 3)}
    last = results["none"]
    print(json.dumps({"model": last["model"], "size": last["size"], "pairs": args.pairs, "runs": args.runs, "numerics": last["numerics"], **figures}, indent=2))


if __name__ == "__main__":
    main()
