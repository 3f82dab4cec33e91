#!/usr/bin/env python3
"""docs/pictures/removal.svg of what removal.py --json counted: removed and kept over each method's strength, with 95 % intervals.

    plot.py COUNTS.json docs/pictures/removal.svg [--model demo]
"""

import argparse
import json
from pathlib import Path

from verdict import wilson

WIDTH, HEIGHT, LEFT, TOP, GAP = 210, 170, 40, 34, 26
LINES = (("removed", "#b3261e"), ("kept", "#1f5fa8"), ("both", "#222222"))
NAMES = {"NASA": "NASA, alpha", "VSF": "VSF, alpha", "NAG": "NAG, phi", "CFG": "CFG, scale"}


def panel(method, points, left):
    """points: strength -> counts. x by the strength's size, y in percent."""
    strengths = sorted(points, key=float)
    low, high = float(strengths[0]), float(strengths[-1])
    x = lambda s: left + 10 + (WIDTH - 20) * (float(s) - low) / (high - low)
    y = lambda p: TOP + HEIGHT * (1 - p)
    out = [f'<text x="{left + WIDTH / 2}" y="{TOP - 12}" text-anchor="middle">{NAMES[method]}</text>']
    for p in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y(p):.1f}" y2="{y(p):.1f}" stroke="#dddddd"/>')
        if left == LEFT:
            out.append(f'<text x="{left - 6}" y="{y(p) + 4:.1f}" text-anchor="end">{p:.0%}</text>')
    out += [f'<text x="{x(s):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{float(s):g}</text>' for s in strengths]
    for key, colour in LINES:
        shares = [(x(s), points[s][key] / points[s]["n"], wilson(points[s][key], points[s]["n"])) for s in strengths]
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{a:.1f},{y(p):.1f}" for a, p, _ in shares)}"/>')
        out += [f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{y(lo):.1f}" y2="{y(hi):.1f}" stroke="{colour}"/><circle cx="{a:.1f}" cy="{y(p):.1f}" r="2.5" fill="{colour}"/>'
                for a, p, (lo, hi) in shares]
    return out


def plot(sweep):
    methods = [m for m in NAMES if m in sweep]
    width, height = LEFT + len(methods) * (WIDTH + GAP), TOP + HEIGHT + 50
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for i, method in enumerate(methods):
        out += panel(method, sweep[method], LEFT + i * (WIDTH + GAP))
    for i, (key, colour) in enumerate(LINES):
        out.append(f'<text x="{LEFT + 70 * i}" y="{height - 10}" fill="{colour}">{key}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("counts")
    a.add_argument("output")
    a.add_argument("--model", default="demo")
    args = a.parse_args()
    Path(args.output).write_text(plot(json.loads(Path(args.counts).read_text())[args.model]["sweep"]))
