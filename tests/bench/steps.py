#!/usr/bin/env python3
"""What a denoiser's step costs: NASA and CFG beside no guidance, a batch of four beside four singles, shares of the machine's peak.

    python3 tests/bench/steps.py --model DIR [--size 96x96] [--pairs 20] [--runs 5] [--threads 2] [--precision auto|f32|bf16]
                                  [--without cfg,batch]

Every pair is one `steer-worker bench` each of none, NASA, CFG and a batch of four, one after another, so that a noisy neighbour meets all of them;
each figure is the median of the pairs' own, beside the 10th and 90th percentile. Prints one JSON object:

    nasa_cost_percent   by timers per operation: what its cross-attention takes more than plain cross-attention, in % of the plain denoiser
    nasa_stage_percent, cfg_stage_percent    what the whole stage takes more than the plain one, least times
    batch_of_4_times    images per second in batches of four, over those one by one
    peak_share          FLOP/s of the direct algorithm over the better of an FMA loop and oneDNN's 2048^3 (bf16 where that is computed in), per stage
    first_minus_warm_ms of an image, without loading
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

BIN = Path(os.environ.get("STEER_BIN_DIR", Path(__file__).resolve().parents[2] / "build" / "bin"))


def bench(args, *more):
    out = subprocess.run([BIN / "steer-worker", "bench", "--model", args.model, "--size", args.size, "--runs", str(args.runs), "--threads",
                          str(args.threads), "--precision", args.precision, "--ops", "--json", *more], capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    return json.loads(out.stdout)


def ops(result, stage):
    return [o for o in result["ops"] if o["stage"] == stage]


def ms(operations):
    return sum(o["ms"] for o in operations)


def least(result):
    return result["stages"]["denoise"]["min_ms"]


def pair(args):
    plain = bench(args, "--guidance", "none")
    nasa = bench(args, "--guidance", "nasa")
    cfg = None if "cfg" in args.without else bench(args, "--guidance", "cfg")
    four = None if "batch" in args.without else bench(args, "--guidance", "none", "--batch", "4")
    a, b = ops(plain, "denoise"), ops(nasa, "denoise")
    assert len(a) == len(b)
    crossed = [(x, y) for x, y in zip(a, b) if y["op"] == "guided_attention"]
    assert crossed and all(x["op"] == "attention" for x, _ in crossed)
    peak = max(plain["peak_gflops"]["fma_f32"], plain["peak_gflops"]["onednn_bf16" if plain["precision"] == "bf16" else "onednn_f32"])
    share = {s: plain["stages"][s]["gflop"] / (1e-3 * plain["stages"][s]["min_ms"]) / peak for s in ("text", "denoise", "decode")}
    row = {
        "nasa_cost_percent": 100 * sum(y["ms"] - x["ms"] for x, y in crossed) / ms(a),
        "nasa_stage_percent": 100 * (least(nasa) / least(plain) - 1),
        "peak_share_text": share["text"], "peak_share_unet": share["denoise"], "peak_share_vae": share["decode"],
        "first_minus_warm_ms": plain["first_image_ms"] - plain["total"]["median_ms"],
        "image_ms": plain["total"]["median_ms"], "peak_gflops": peak}
    if cfg:
        row["cfg_stage_percent"] = 100 * (least(cfg) / least(plain) - 1)
    if four:
        row["batch_of_4_times"] = 4 * plain["total"]["median_ms"] / four["total"]["median_ms"]
    return row, plain


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", required=True)
    a.add_argument("--size", default="96x96")
    a.add_argument("--pairs", type=int, default=20)
    a.add_argument("--runs", type=int, default=5)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--precision", default="auto")
    a.add_argument("--without", default="")
    args = a.parse_args()
    rows = []
    for i in range(args.pairs):
        row, last = pair(args)
        rows.append(row)
        print(f"pair {i + 1} of {args.pairs}: NASA {row['nasa_cost_percent']:.2f} %", file=sys.stderr)
    figures = {}
    for key in rows[0]:
        values = sorted(row[key] for row in rows)
        tenth = len(values) // 10
        figures[key] = {"median": round(statistics.median(values), 3), "p10": round(values[tenth], 3), "p90": round(values[-1 - tenth], 3)}
    print(json.dumps({"model": last["model"], "size": last["size"], "pairs": args.pairs, "runs": args.runs, "numerics": last["numerics"], **figures}, indent=2))


if __name__ == "__main__":
    main()
