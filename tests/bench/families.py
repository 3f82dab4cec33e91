#!/usr/bin/env python3
"""One family at its true size: makes the folder, measures images and guidance, prints rows for docs/speed.md.

    python tests/bench/families.py FAMILY DIR [--size WxH] [--pairs 5] [--step-pairs 20] [--method-pairs 3] [--threads 2]
                                   [--text small|true] [--blocks 1,2] [--peers torch] [--keep]

Runs true_size.py (random weights, one family on disk at a time: the folder goes at the end, unless --keep), engine.py on the whole model
and steps.py on the same with a small decoder. What was measured stays in DIR/FAMILY.state.json: a run that was stopped, or is asked for
more pairs, goes on from there. T5 is small and FLUX has 1 of 19 double and 2 of 38 single blocks unless it is said otherwise.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
JOINT = "nasa:text,nasa:mass,nasa:joint,nag,vsf,cfg"
TEXTS = "nasa,nag,vsf,cfg"
# The side of a picture; what is measured beside no guidance, what of it over all pairs.
FAMILIES = {"sd15": (512, TEXTS, "nasa"), "sd21": (512, TEXTS, "nasa"), "sd21-v": (768, TEXTS, "nasa"), "sdxl": (1024, TEXTS, "nasa"),
            "pixart-512": (512, TEXTS, "nasa"), "pixart-1024": (1024, TEXTS, "nasa"), "flux": (1024, JOINT, "nasa:text")}


def run(script, *args):
    out = subprocess.run([sys.executable, HERE / script, *map(str, args)], stdout=subprocess.PIPE, text=True)
    if out.returncode:
        sys.exit(out.returncode)
    return out.stdout


def image_row(name, r):
    cells = [f"{name}, {r['size']}"]
    for stage in ("image_s", "denoise_s"):
        peer, times = next(iter(r[stage]["times_ours"].items()))
        cells += [f"{r[stage]['median']['ours']:.2f}", f"{r[stage]['median'][peer]:.2f}", f"{times:.2f}"]
    close = r["agreement"][peer]
    cells += [peer.removeprefix("torch "), "{text:.1e}, {denoise:.1e}, {decode:.1e}; {image_psnr_db:.1f} dB".format(**close),
              f"{r['ours']['peak_rss_bytes'] / 2**30:.2f}"]
    return "| " + " | ".join(cells) + " |"


def method_row(name, size, method, r):
    spread = lambda f: f"{f['median']:.2f} ({f['p10']:.2f} to {f['p90']:.2f})"
    by_timers = r.get(f"{method}.cost_percent")
    return f"| {name}, {size} | {method} | {spread(by_timers) if by_timers else ''} | {spread(r[f'{method}.stage_percent'])} | {r['pairs']} |"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("family", choices=FAMILIES)
    a.add_argument("folder", type=Path)
    a.add_argument("--size")
    a.add_argument("--pairs", type=int, default=5)
    a.add_argument("--step-pairs", type=int, default=20)
    a.add_argument("--method-pairs", type=int, default=3)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--text", default="small", choices=("small", "true"))
    a.add_argument("--blocks", default="1,2")
    a.add_argument("--peers", default="torch")
    a.add_argument("--keep", action="store_true")
    args = a.parse_args()
    side, methods, first = FAMILIES[args.family]
    size = args.size or f"{side}x{side}"
    model = args.folder / args.family
    if not model.with_name(f"{model.name}-tiny.json").exists():  # which is written last
        shutil.rmtree(model, ignore_errors=True)
        print(run("true_size.py", args.family, model, "--text", args.text, "--blocks", args.blocks), file=sys.stderr)
    common = ("--size", size, "--threads", args.threads, "--state", args.folder / f"{args.family}.state.json")
    images = json.loads(run("engine.py", "--model", model, "--pairs", args.pairs, "--peers", args.peers, *common))
    step = lambda beside, pairs: json.loads(run("steps.py", "--model", f"{model}-tiny.json", "--runs", 1, "--pairs", pairs, "--beside", beside, *common))
    several, one = step(methods, args.method_pairs), step(first, args.step_pairs)
    print("| model | ours: image s | torch | times | ours: denoiser s | torch | times | torch in | text, denoiser, decoder; picture | peak GiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print(image_row(args.family, images))
    print("\n| model | guidance | % of the denoiser, by timers | % by whole stages | pairs |")
    print("|---|---|---|---|---|")
    print(method_row(args.family, size, first, one))
    for method in methods.split(","):
        if method != first:
            print(method_row(args.family, size, method, several))
    if not args.keep:
        shutil.rmtree(model)
        model.with_name(f"{model.name}-tiny.json").unlink()


if __name__ == "__main__":
    main()
