#!/usr/bin/env python3
"""The compiler's own word on the CUDA kernels: compiled for each ARCH with every spill an error, then read from the cubin.

    python tests/gpu/compiled.py NVCC ARCH...      e.g. nvcc 80 90; prints the table of docs/kernels.md and holds the gates
    python tests/gpu/compiled.py --write NVCC ARCH...      writes it there

Attention: instructions per 2048 useful multiply-adds (one mma.m16n8k16) are counted on the shortest way round the loop over key tiles: a tile
that is full, unmasked and not the last, which is nearly all of a long attention. Convolutions: per mma of a step of 32 channels, on the
shortest way round that copies weights alone, and on the shortest that copies a patch too (one step of nine where a kernel is 3x3)."""

import heapq
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ATTENTION, CONV = ROOT / "kernels/cuda/attention.cu", ROOT / "kernels/cuda/conv.cu"
PLAIN = [ROOT / "kernels/cuda" / name for name in ("norm.cu", "pointwise.cu")]  # bound by memory
RESIDENT_MIN = 1024  # threads of theirs on a multiprocessor, so that enough loads are on their way
PAGE = ROOT / "docs/kernels.md"
# The low 12 bits of an instruction.
HMMA, LDSM, LDGSTS, LDL, STL, BRA, EXIT, RET, CALL = 0x23C, 0x83B, 0xFAE, 0x983, 0x387, 0x947, 0x94D, 0x950, 0x944
SKIPPED = 77  # as tests/gpu.cmake says
ALWAYS = 7  # the predicate PT
GATES = {("d64", "long"): 7.0, ("d128", "long"): 5.5}
CONV_GATES = {"wide": (2.6, 4.0)}


def fail(text):
    sys.exit(f"compiled.py: {text}")


def compile_cubin(nvcc, arch, folder, source):
    """The cubin, and {kernel: registers}."""
    out = Path(folder) / f"{arch}.cubin"
    run = subprocess.run([nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-diag-suppress", "128", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror", "-I", ROOT / "kernels",
                          "-I", ROOT / "proto", "-cubin", "-o", out, source], capture_output=True, text=True)
    if run.returncode:
        fail(f"sm_{arch}: {run.stderr.strip()}")
    names = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", run.stderr, re.S)
    return out.read_bytes(), {name: int(registers) for name, registers in names}


def sections(elf):
    """{name: bytes} of a 64-bit ELF file."""
    at, = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", elf, at + i * size) for i in range(count)]
    base = heads[names][4]
    return {elf[base + h[0]:elf.index(b"\0", base + h[0])].decode(): elf[h[4]:h[4] + h[5]] for h in heads}


class Code:
    """A kernel's instructions: 128 bits each, opcode in the low 12, predicate in 12-14 (negated: 15)."""

    def __init__(self, text, arch):
        self.split = arch >= 90  # a branch's offset has its low byte elsewhere
        self.words = [int.from_bytes(text[i:i + 16], "little") for i in range(0, len(text), 16)]
        self.ops = [w & 0xFFF for w in self.words]

    def count(self, op):
        return self.ops.count(op)

    def next(self, i):
        """Where instruction i may lead."""
        w, op = self.words[i], self.ops[i]
        sure = w >> 12 & 15 == ALWAYS and w >> 87 & 15 == ALWAYS
        if op in (EXIT, RET):
            return [] if sure else [i + 1]
        if op == BRA:
            offset = w >> 34 & (1 << 48) - 1
            offset -= (offset >> 47) << 48
            if self.split:
                offset = offset * 256 + (w >> 16 & 255)
            target = i + 1 + offset * 4 // 16
            assert 0 <= target < len(self.ops), f"a branch from {i} to {target}"
            return [target] if sure else [i + 1, target]
        return [i + 1] if i + 1 < len(self.ops) else []

    def shortest(self, start):
        """{instruction: (steps, the one before)} of the shortest ways from start; start itself: the shortest round."""
        best, queue = {}, [(0, start, None)]
        while queue:
            length, i, before = heapq.heappop(queue)
            if i in best:
                continue
            if before is not None:
                best[i] = length, before
            for j in self.next(i):
                heapq.heappush(queue, (length + 1, j, i))
        return best

    def rounds(self):
        """For each copy to shared memory in the loop of the mma, the instructions of the shortest way round by it."""
        first, found = self.ops.index(HMMA), []
        out = self.shortest(first)
        for copy in (i for i in out if self.ops[i] == LDGSTS):
            back, way = self.shortest(copy), []
            if first not in back:
                continue
            for ways, start, end in ((out, first, copy), (back, copy, first)):
                while end != start:
                    way.append(end)
                    end = ways[end][1]
            found.append(way)
        return found

    def count_on(self, way, op):
        return sum(self.ops[i] == op for i in way)


def shapes():
    """{(D, name): (slices, row tiles, keys)} of ATTENTION_LIST."""
    found = re.findall(r"X\((\d+), (text|long), (\d+), (\d+), (\d+), \d+\)", ATTENTION.read_text())
    return {(int(d), name): (int(s), int(r), int(n)) for d, name, s, r, n in found}


def blocks_by_registers(registers, threads):
    return 65536 // ((registers * 32 + 255) // 256 * 256 * (threads // 32))


def kernels(nvcc, archs, source, wrong):
    """Yields (name, arch, registers, Code) of every kernel, and notes those that use local memory."""
    with tempfile.TemporaryDirectory() as folder:
        for arch in archs:
            cubin, registers = compile_cubin(nvcc, arch, folder, source)
            parts = sections(cubin)
            for name, count in registers.items():
                code = Code(parts[f".text.{name}"], int(arch))
                if code.count(LDL) or code.count(STL):
                    wrong.append(f"{name} sm_{arch}: {code.count(LDL)} loads and {code.count(STL)} stores of local memory")
                yield name, arch, count, code


def attention_table(nvcc, archs, wrong):
    rows = {}
    for name, arch, count, code in kernels(nvcc, archs, ATTENTION, wrong):
        m = re.fullmatch(r"attention_(bf16|f16)_d(\d+)_(text|long)", name)
        if not m:
            continue
        d, kind = int(m[2]), m[3]
        slices, r, n = shapes()[d, kind]
        threads = 32 * (4 if slices == 1 else 2 * slices)
        way = max(code.rounds(), key=len, default=[])  # the one that copies both tiles: some code is skipped by the last tile alone
        useful = 2 * 16 * r * n * (d // slices) / 2048
        if code.count_on(way, HMMA) < useful:
            wrong.append(f"{name} sm_{arch}: no round of the loop was found")
            continue
        per = len(way) / useful
        limit = GATES.get((f"d{d}", kind))
        if limit and per > limit:
            wrong.append(f"{name} sm_{arch}: {per:.2f} instructions per 2048 multiply-adds, over {limit}")
        cells = rows.setdefault((d, kind, r, n, threads), {})
        cells[arch] = tuple(map(max, cells.get(arch, (0, 0)), (count, per)))  # the worse of both types
    lines = ["| kernel | rows x keys a tile | threads |" + "".join(f" sm_{a}: registers, blocks, instructions |" for a in archs)]
    lines.append("|---|---|---|" + "---|" * len(archs))
    for (d, kind, r, n, threads), cells in rows.items():
        groups = threads // 32 if threads == 128 else 2
        lines.append(f"| d{d} {kind} | {16 * r * groups} x {n} | {threads} |" + "".join(f" {c}, {blocks_by_registers(c, threads)}, {p:.2f} |" for c, p in cells.values()))
    return "\n".join(lines)


def conv_table(nvcc, archs, wrong):
    found = re.findall(r"X\((\w+), CUDA_TILE_\w+, (\d+), (\d+), (\d+), (\d+), (\d), \d+\)", CONV.read_text())
    sizes, rows = {name: [int(x) for x in numbers] for name, *numbers in found}, {}
    for name, arch, count, code in kernels(nvcc, archs, CONV, wrong):
        kind = name.split("_")[-1]
        if kind not in sizes:
            continue
        down, across, r, n, narrow = sizes[kind]
        mma, threads = 2 * r * n, 32 * down * across
        ways = sorted(code.rounds(), key=len)
        if not ways or any(code.count_on(way, HMMA) != mma for way in (ways[0], ways[-1])):
            wrong.append(f"{name} sm_{arch}: no round of the loop was found")
            continue
        per = [len(way) / mma for way in (ways[0], ways[-1])]
        if kind in CONV_GATES and any(p > limit for p, limit in zip(per, CONV_GATES[kind])):
            wrong.append(f"{name} sm_{arch}: {per[0]:.2f} and {per[1]:.2f} instructions per mma, over {CONV_GATES[kind]}")
        cells = rows.setdefault((kind, 16 * down * r, 8 * across * n, threads, int(narrow)), {})
        cells[arch] = tuple(map(max, cells.get(arch, (0, 0, 0)), (count, *per)))
    lines = ["| kernel | pixels x channels | threads |" + "".join(f" sm_{a}: registers, blocks, instructions a mma, with a patch |" for a in archs)]
    lines.append("|---|---|---|" + "---|" * len(archs))
    for (kind, pixels, channels, threads, narrow), cells in rows.items():
        text = f"| {kind} | {pixels} x {channels} | {threads} |"
        for c, step, patch in (cells[a] for a in archs):
            text += f" {c}, {blocks_by_registers(c, threads)}, {step:.2f}" + (" |" if narrow else f", {patch:.2f} |")  # a narrow patch is loaded, not copied
        lines.append(text)
    return "\n".join(lines)


def plain_threads():
    """{kernel: threads of its largest block} of PLAIN."""
    sizes = {name: int(n) for f in PLAIN[0].parent.glob("*.cuh") for name, n in re.findall(r"(\w+_THREADS(?:_MAX)?) = (\d+)", f.read_text())}
    return {kernel: sizes[size] for f in PLAIN for size, kernel in re.findall(r"KERNEL\((\w+), \d+\) (\w+)\(", f.read_text())}


def plain_table(nvcc, archs, wrong):
    rows, threads = {}, plain_threads()
    for source in PLAIN:
        for name, arch, count, _ in kernels(nvcc, archs, source, wrong):
            resident = min(2048, threads[name] * blocks_by_registers(count, threads[name]))
            if resident < RESIDENT_MIN:
                wrong.append(f"{name} sm_{arch}: {resident} threads on a multiprocessor, below {RESIDENT_MIN}")
            rows.setdefault(name, {})[arch] = f" {count}, {resident} |"
    lines = ["| kernel | threads of a block |" + "".join(f" sm_{a}: registers, threads resident |" for a in archs), "|---|---|" + "---|" * len(archs)]
    return "\n".join(lines + [f"| {name} | {n} |" + "".join(rows[name][a] for a in archs) for name, n in threads.items()])


def table(nvcc, archs):
    wrong = []
    text = "\n\n".join(make(nvcc, archs, wrong) for make in (attention_table, conv_table, plain_table))
    if wrong:
        fail("\n".join(wrong))
    return text


def release(nvcc):
    return re.search(r"V([\d.]+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout)[1]


def main(arguments):
    write = "--write" in arguments
    nvcc, *archs = [a for a in arguments if a != "--write"]
    if not shutil.which(nvcc):
        print("skipped: no nvcc on this machine")
        sys.exit(SKIPPED)
    heading = f"nvcc {release(nvcc)}:"
    text = table(nvcc, archs)
    print(heading, text, sep="\n\n")
    page = PAGE.read_text()
    begin, end = page.index("<!-- compiled.py -->"), page.index("<!-- end -->")
    fresh = f"<!-- compiled.py -->\n{heading}\n\n{text}\n"
    if write:
        PAGE.write_text(page[:begin] + fresh + page[end:])
    elif heading in page and page[begin:end] != fresh:
        fail(f"{PAGE.relative_to(ROOT)} says otherwise; --write writes the table above")


if __name__ == "__main__":
    main(sys.argv[1:])
