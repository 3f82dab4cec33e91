#!/usr/bin/env python3
"""Mistakes in the CUDA kernels, made by operator at every site, one at a time: some test must notice each.

    python tests/gpu/mutants.py BUILD [--kernels attention|conv|norm|pointwise] [--sample N] [--seed N] [--list] [FILE:LINE...]

BUILD is a folder in which test_cuda_attention and the others are built; its objects are used, and nothing in it is written. All sites take an hour or
more; --sample draws some. Prints for each who noticed, then a table by operator. Level 1 alone: the kernels' source on the SIMT model. A
mutant that does not compile is none."""

import argparse
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = {"attention": ("kernels/cuda/attention.cuh", "kernels/cuda/nag.cuh", "kernels/cuda/attention.cu"), "conv": ("kernels/cuda/conv.cuh", "kernels/cuda/conv.cu"),
         "norm": ("kernels/cuda/norm.cuh", "kernels/cuda/group_norm.cuh", "kernels/cuda/norm.cu"),
         "pointwise": ("kernels/cuda/pointwise.cuh", "kernels/cuda/values.cuh", "kernels/cuda/activation.cuh", "kernels/cuda/pointwise.cu")}
CPU_SECONDS = 90
STATEMENTS = "block_sync|warp_sync|rows_sync<S>|copy_async_wait<[^;>]*>|copy_async_commit|rows_pad<S>|logits_mask<S>|slices_sum<S>|mass_keep<S>|acc_keep<S>|state_clear<S>|patch_load<NARROW>|weights_load<S>|quad_constant<E>|rows_flatten"
OPERATORS = {  # name: (what it finds, what stands there then)
    "statement gone": (rf"\b(?:{STATEMENTS})\([^;]*\);", ";"),
    "+ to -": (r" \+ ", " - "),
    "- to +": (r" - ", " + "),
    "* to +": (r"(?<=\w) \* (?=\w)", " + "),
    "/ to *": (r" / ", " * "),
    "% to /": (r" % ", " / "),
    "< to <=": (r" < ", " <= "),
    "<= to <": (r" <= ", " < "),
    "> to >=": (r" > ", " >= "),
    ">= to >": (r" >= ", " > "),
    "== to !=": (r" == ", " != "),
    "!= to ==": (r" != ", " == "),
    "&& to ||": (r" && ", " || "),
    "|| to &&": (r" \|\| ", " && "),
    "sign gone": (r"(?<=[=(?:,] )-(?=[a-zA-Z])", ""),
    "maximum to minimum": (r"fmaxf", "fminf"),
    "number + 1": (r"(?<![\w.<])\d+(?![\w.])", lambda m: str(int(m[0]) + 1)),
}


def sites(files):
    """(file, line number, operator, the line, the line then), comments, declarations of templates and the preprocessor left out."""
    for file in files:
        comment = False
        for number, line in enumerate((ROOT / file).read_text().splitlines(), 1):
            code = re.sub(r"/\*.*?\*/", lambda m: " " * len(m[0]), line)
            starts = code.find("/*")
            if comment:
                comment = "*/" not in code
                continue
            if starts >= 0:
                comment, code = True, code[:starts]
            if re.match(r"\s*(#|template|static_assert|DEVICE|HOST_DEVICE|KERNEL|X\()", code) or code.endswith("\\"):
                continue
            for name, (pattern, new) in OPERATORS.items():
                for m in re.finditer(pattern, code):
                    yield file, number, name, line, line[:m.start()] + (new(m) if callable(new) else new) + line[m.end():]


def noticed(program, folder):
    """How the test failed, in a word and its first line; None when it did not."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    run = subprocess.run([program], cwd=folder, env={**os.environ, "CMOCKA_TEST_ABORT": "1"}, capture_output=True, text=True, errors="replace", preexec_fn=limit)
    if run.returncode == 0:
        return None
    said = next((line for line in run.stderr.splitlines() if line.strip()), f"ended by signal {-run.returncode}")
    kinds = {"race": "race", "on their way": "copy on its way", "on its way": "copy on its way", "nobody wrote": "unwritten", "another thread": "race", "outside": "bounds", "bytes of shared": "bounds",
             "aligned": "alignment", "waits": "convergence", "barrier": "convergence", "is over": "result", "differ": "bits", "signal 9": "does not end", "signal 24": "does not end"}
    return next((kind for word, kind in kinds.items() if word in said), "figures or codes"), said[:160]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    parser.add_argument("--kernels", choices=FILES, default="attention")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("places", nargs="*")
    options = parser.parse_args()
    files, test = FILES[options.kernels], f"test_cuda_{options.kernels}"
    wanted = [s for s in sites(files) if not options.places or f"{Path(s[0]).name}:{s[1]}" in options.places]
    if options.sample:
        wanted = random.Random(options.seed).sample(wanted, min(options.sample, len(wanted)))
    if options.list:
        for file, number, name, _, new in wanted:
            print(f"{Path(file).name}:{number} {name}: {new.strip()}")
        print(len(wanted), "sites")
        return 0
    build, folder = options.build.resolve(), Path(tempfile.mkdtemp(prefix="steer-gpu-mutants-"))
    shutil.copytree(ROOT / "kernels", folder / "kernels")
    program, mutated = folder / test, folder / "kernels.o"
    commands = subprocess.run(["ninja", "-C", build, "-t", "commands", test], capture_output=True, text=True, check=True).stdout.splitlines()
    compile_one = next(c for c in commands if c.endswith(f"kernels/cuda/{options.kernels}.cu"))
    compile_one = re.sub(r" -M[TF] \S+| -MD", "", compile_one).replace(str(ROOT / "kernels"), str(folder / "kernels"))
    compile_one = re.sub(r" -o \S+", f" -o {mutated}", compile_one) + " -Wno-error"
    # The library's other objects stand behind the mutated one, so its own object is not asked for.
    link = next(c for c in commands if f"-o bin/{test} " in c).replace(f"-o bin/{test} ", f"-o {program} {mutated} ")

    def make():
        return all(subprocess.run(c, shell=True, cwd=build, capture_output=True).returncode == 0 for c in (compile_one, link))

    assert make(), "the kernels do not build without a mutant"
    first = noticed(program, folder)
    assert first is None, f"the test fails without a mutant: {first}"
    sources = {file: (folder / file).read_text() for file in files}
    results, unseen, none = defaultdict(Counter), [], 0
    for file, number, name, line, new in wanted:
        text = sources[file].splitlines(keepends=True)
        text[number - 1] = new + "\n"
        (folder / file).write_text("".join(text))
        place = f"{Path(file).name}:{number} {name}: {new.strip()}"
        if not make():
            none += 1
        else:
            by = noticed(program, folder)
            results[name][by[0] if by else "NOT NOTICED"] += 1
            unseen += [] if by else [place]
            print(f"{place}\n    {': '.join(by) if by else 'NOT NOTICED'}", flush=True)
        (folder / file).write_text(sources[file])
    shutil.rmtree(folder)
    print("\n| operator | noticed by | not |\n|---|---|---|")
    for name, count in results.items():
        missed = count.pop("NOT NOTICED", 0)
        print(f"| {name} | {', '.join(f'{k} {n}' for k, n in count.most_common())} | {missed} |")
    total = sum(sum(c.values()) for c in results.values()) + len(unseen)
    print(f"\n{total - len(unseen)} of {total} noticed; {none} did not compile")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
