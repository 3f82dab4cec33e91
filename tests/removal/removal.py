"""Counts what negative prompts do: renders every pair through a farm and lets the detector say what is gone and what stayed.

    removal.py [FOLDER ...] [--seeds 100] [--sweep-seeds 25] [--half chosen|held-out] [--json FILE]

FOLDER: students beside models/demo, each counted in the same way. Prints the detector's own accuracy first. "removed": what the negative names is
absent and no ghost is left; "kept": all else that the prompt asks for is there; "undone": of the seeds whose picture without guidance showed it, those where it is
removed and the rest kept. Every share has its 95 % interval (Wilson).
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch

import accuracy
import detector
import pairs
import verdict
from detector import scenes
from farm import SOURCE, Farm

torch.set_num_threads(1)  # the cores belong to the farm

# What the tables compare; NASA's alpha is the recipe's own.
METHODS = {
    "none": {},
    "CFG 1.5": {"method": "cfg", "guidance_scale": 1.5},
    "CFG 2.5": {"method": "cfg", "guidance_scale": 2.5},
    "NASA": {"method": "nasa"},
    "NAG": {"method": "nag", "phi": 2, "tau": 2.5, "beta": 0.375},
    "VSF": {"method": "vsf", "alpha": 1},
}
# Each method over its strength, on the pairs by which defaults are chosen.
SWEEP = {
    "NASA": ("alpha", [{"method": "nasa", "alpha": a} for a in (0.2, 0.35, 0.5, 0.7, 1.0)]),
    "VSF": ("alpha", [{"method": "vsf", "alpha": a} for a in (0.2, 0.35, 0.5, 0.7, 1.0)]),
    "NAG": ("phi", [{"method": "nag", "phi": p, "tau": 2.5, "beta": 0.375} for p in (1, 2, 4)]),
    "CFG": ("guidance_scale", [{"method": "cfg", "guidance_scale": k} for k in (1.25, 1.5, 2, 2.5)]),
}


class Counting:
    """Pictures of one model, each (prompt, negative, guidance) drawn once."""

    def __init__(self, farm, model, look):
        self.farm, self.model, self.look = farm, model, look
        self.jobs, self.seen, self.rendered = {}, {}, 0

    def want(self, pair, guidance, seeds):
        """Submits what is needed; guidance {}: none, and no negative, which would do nothing."""
        new = {}
        for g in ({}, guidance):
            key = self.key(pair, g)
            if key not in self.jobs and key not in new:
                new[key] = {"model": self.model, "prompt": pair.prompt, "seed": 0, "images": seeds, "guidance": g or {"method": "none"},
                            **({"negative_prompt": pair.negative} if g else {})}
        if new:
            self.jobs.update(zip(new, self.farm.submit(new.values())))
            self.rendered += seeds * len(new)

    def key(self, pair, guidance):
        return pair.prompt, pair.negative if guidance else "", json.dumps(guidance, sort_keys=True)

    def get(self, pair, guidance):
        """A Seen for each seed."""
        key = self.key(pair, guidance)
        if key not in self.seen:
            self.seen[key] = self.look(scenes.to_tensor(self.farm.fetch(self.jobs[key])))
        return self.seen[key]

    def rows(self, some, guidance):
        """One record a pair and seed."""
        out = []
        for pair in some:
            for seed, (before, after) in enumerate(zip(self.get(pair, {}), self.get(pair, guidance))):
                v = verdict.judge(pair, after)
                out.append({"pair": pair.name, "kind": pair.kind, "held_out": pair.held_out, "seed": seed, **asdict(v), "removed": v.removed,
                            "both": v.both, "had": verdict.there(pair.gone, before), "unchanged": verdict.unchanged(before, after),
                            "right": verdict.wanted(pair, before)[0]})
        return out


def table(title, by_method, write=print):
    write(f"\n{title}, % (95 % interval)")
    write(f"  {'':14}{'absent':>15}{'ghosts':>15}{'removed':>15}{'kept':>15}{'both':>15}{'undone':>15}{'confidence':>20}")
    for method, rows in by_method.items():
        of = lambda key: verdict.share(r[key] for r in rows)
        m, low, high = verdict.mean([r["confidence"] for r in rows])
        undone = verdict.share(r["both"] for r in rows if r["had"])
        write(f"  {method:14}{of('absent'):>15}{of('ghosts'):>15}{of('removed'):>15}{of('kept'):>15}{of('both'):>15}{undone:>15}"
              f"{f'{m:.3f} ({low:.3f}-{high:.3f})':>20}")


def unrelated_table(by_method, write=print):
    write("\nAn unrelated negative, of the pictures that were right without it, % (95 % interval)")
    write(f"  {'':14}{'as it was':>15}{'kept':>15}{'ghosts':>15}")
    for method, rows in by_method.items():
        rows = [r for r in rows if r["right"]]
        write(f"  {method:14}" + "".join(f"{verdict.share(r[k] for r in rows):>15}" for k in ("unchanged", "kept", "ghosts")))


def by_kind(by_method, write=print):
    kinds = list(dict.fromkeys(r["kind"] for r in next(iter(by_method.values()))))
    write("\nBoth at once by kind, %")
    write(f"  {'':14}" + "".join(f"{k:>15}" for k in kinds))
    for method, rows in by_method.items():
        write(f"  {method:14}" + "".join(f"{verdict.share(r['both'] for r in rows if r['kind'] == k):>15}" for k in kinds))


def count(farm, model, folder, look, args, write=print):
    vocabulary = json.loads((Path(folder) / "tokenizer" / "vocab.json").read_text())
    known = [p for p in pairs.PAIRS if pairs.known(p, vocabulary) and args.half in ("all", "held-out" if p.held_out else "chosen")]
    asked = [p for p in known if p.kind != "unrelated"]
    others = [p for p in known if p.kind == "unrelated"]
    write(f"\n=== {model}: {len(asked)} pairs of {len(pairs.CHOSEN + pairs.HELD_OUT)} in its words, {args.seeds} seeds each")
    begin = time.time()
    main, sweep = Counting(farm, model, look), Counting(farm, model, look)
    chosen = [p for p in asked if not p.held_out] if args.sweep_seeds else []
    for guidance in METHODS.values():
        for pair in asked + others:
            main.want(pair, guidance, args.seeds)
    for _, guidances in SWEEP.values():
        for guidance in guidances:
            for pair in chosen:
                sweep.want(pair, guidance, args.sweep_seeds)
    result = {"folder": str(folder), "seeds": args.seeds, "main": {}, "unrelated": {}, "sweep": defaultdict(dict)}
    for method, guidance in METHODS.items():
        result["main"][method] = main.rows(asked, guidance)
        result["unrelated"][method] = main.rows(others, guidance)
    for title, held in (("Pairs by which defaults were chosen", False), ("Held-out pairs and wordings", True)):
        part = {m: [r for r in rows if r["held_out"] == held] for m, rows in result["main"].items()}
        if part["none"]:
            table(f"{model}: {title}", part, write)
            by_kind(part, write)
    if others:
        unrelated_table(result["unrelated"], write)
    if chosen:
        for method, (name, guidances) in SWEEP.items():
            for guidance in guidances:
                result["sweep"][method][guidance[name]] = sweep.rows(chosen, guidance)
        table(f"{model}: each strength, {args.sweep_seeds} seeds, pairs by which defaults are chosen",
              {f"{m} {s:g}": rows for m, by in result["sweep"].items() for s, rows in by.items()}, write)
    spent = time.time() - begin
    write(f"\n{main.rendered + sweep.rendered} images rendered and counted in {spent:.0f} s: {(main.rendered + sweep.rendered) / spent:.1f} images/s")
    return result


def summary(result):
    """What plot.py draws: hits and numbers instead of rows."""
    of = lambda rows: {"n": len(rows), **{k: sum(r[k] for r in rows) for k in ("absent", "ghosts", "removed", "kept", "both")}}
    return {"folder": result["folder"], "main": {m: of([r for r in rows if r["held_out"]]) for m, rows in result["main"].items()},
            "sweep": {m: {s: of(rows) for s, rows in by.items()} for m, by in result["sweep"].items()}}


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("folders", nargs="*", default=[], help="students beside models/demo")
    a.add_argument("--seeds", type=int, default=100)
    a.add_argument("--sweep-seeds", type=int, default=25, help="0: no sweep over alphas")
    a.add_argument("--half", choices=("all", "chosen", "held-out"), default="all")
    a.add_argument("--json", help="a summary for plot.py")
    args = a.parse_args()
    demo = SOURCE / "models" / "demo"
    folders = {"demo": demo, **{Path(f).resolve().name: Path(f) for f in args.folders}}
    look = detector.Detector().look
    accuracy.report(look, demo)
    with Farm(folders) as farm:
        results = {name: count(farm, name, folder, look, args) for name, folder in folders.items()}
    if args.json:
        Path(args.json).write_text(json.dumps({name: summary(r) for name, r in results.items()}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
