#!/usr/bin/env python3
"""The broker beside beanstalkd -f0 and redis (appendfsync always), in one run on one file system.

    python3 tests/bench/broker.py [--seconds 20] [--rounds 3] [--dir DIR] [--jobs 1000000] [--images 1000000] [--skip-memory] [--skip-rates]

Needs a build with tests (farm_load) and Debian's beanstalkd and redis-server. Prints one JSON object: accepted/s, whole cycles/s, memory per
queued job, memory of a job of so many images with every second one done, and the time from kill -9 to the first ASSIGN
with so many queued and so many ended jobs.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

BIN = Path(os.environ.get("STEER_BIN_DIR", Path(__file__).resolve().parents[2] / "build" / "bin"))
CLIENTS, WORKERS = "tcp://127.0.0.1:7555", "tcp://127.0.0.1:7556"


def load(*args):
    return json.loads(subprocess.run([BIN / "farm_load", *map(str, args)], check=True, capture_output=True, text=True, timeout=3600).stdout)


class Running:
    def __init__(self, args, ready):
        self.process = subprocess.Popen([str(a) for a in args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{ready}"], stderr=subprocess.DEVNULL).returncode == 0:
                return
            time.sleep(0.02)
        raise TimeoutError(args[0])

    def rss(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()


def broker(folder):
    return Running([BIN / "steer-broker", "--clients", CLIENTS, "--workers", WORKERS, "--data", folder, "--log-level", "error"], 7555)


def rates(folder, seconds):
    row = {}
    row.update(load("fsync", folder / "fsync"))
    b = broker(folder / "ours")
    load_offer()
    row["accepted_sync32_per_s"] = load("accept", seconds, 32, 1, CLIENTS)["accepted_per_s"]
    row["accepted_pipelined_per_s"] = load("accept", seconds, 4, 256, CLIENTS)["accepted_per_s"]
    b.stop()
    shutil.rmtree(folder / "ours")
    b = broker(folder / "ours")
    row["cycles_per_s"] = load("cycle", seconds, 32, CLIENTS, WORKERS)["cycles_per_s"]
    b.stop()
    shutil.rmtree(folder / "ours")
    (folder / "bean").mkdir()
    b = Running(["beanstalkd", "-b", folder / "bean", "-f0", "-p", "7557", "-l", "127.0.0.1"], 7557)
    row["beanstalkd_cycles_per_s"] = load("beanstalkd", seconds, 32, 7557)["cycles_per_s"]
    b.stop()
    shutil.rmtree(folder / "bean")
    (folder / "redis").mkdir()
    b = Running(["redis-server", "--port", "7558", "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always", "--dir", folder / "redis", "--save", ""], 7558)
    row["redis_cycles_per_s"] = load("redis", seconds, 32, 7558)["cycles_per_s"]
    b.stop()
    shutil.rmtree(folder / "redis")
    row["times_beanstalkd"] = row["cycles_per_s"] / row["beanstalkd_cycles_per_s"]
    row["times_redis"] = row["cycles_per_s"] / row["redis_cycles_per_s"]
    return row


def load_offer():
    load_args = [BIN / "farm_load", "offer", WORKERS]
    subprocess.run([str(a) for a in load_args], check=True, timeout=60)


def memory(folder, jobs):
    """Bytes a queued job, then the restart: kill -9 with as many queued and as many ended jobs, to the first ASSIGN."""
    b = broker(folder / "ours")
    load_offer()
    load("fill", 1000, 1, CLIENTS)
    before = b.rss()
    filled = load("fill", jobs, 1, CLIENTS)
    after = b.rss()
    load("ended", jobs, CLIENTS)
    b.stop(signal.SIGKILL)
    begin = time.monotonic()
    worker = subprocess.Popen([str(BIN / "farm_load"), "first", WORKERS], stdout=subprocess.PIPE, text=True)
    b = broker(folder / "ours")
    out, _ = worker.communicate(timeout=600)
    if worker.returncode:
        raise RuntimeError("no ASSIGN after the restart")
    again = time.monotonic() - begin
    b.stop()
    shutil.rmtree(folder / "ours")
    return {"jobs": jobs, "fill_seconds": filled["seconds"], "bytes_per_job": (after - before) / jobs, "bytes_per_job_without_text": (after - before) / jobs - 1024,
            "ended_jobs": jobs, "kill_to_first_assign_seconds": round(again, 3), "welcome_seconds": json.loads(out)["welcome_seconds"]}


def half(folder, images):
    """Growth of the broker's memory by a job of which every second image is done. A first such job, which stays, fills what is filled once: caches, pools."""
    b = broker(folder / "ours")
    load("half", images, CLIENTS, WORKERS)
    before = b.rss()
    took = load("half", images, CLIENTS, WORKERS)
    after = b.rss()
    b.stop()
    shutil.rmtree(folder / "ours")
    return {"images": images, "seconds": took["seconds"], "bytes": after - before, "mib": round((after - before) / 2**20, 3)}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--seconds", type=float, default=20)
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--dir", default=None)
    a.add_argument("--jobs", type=int, default=1000000)
    a.add_argument("--images", type=int, default=1000000)
    a.add_argument("--skip-memory", action="store_true")
    a.add_argument("--skip-rates", action="store_true")
    args = a.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="steer-bench-", dir=args.dir))
    rows = [] if args.skip_rates else [rates(folder, args.seconds) for _ in range(args.rounds)]
    out = {k: round(statistics.median(r[k] for r in rows), 3) for k in (rows[0] if rows else {})}
    if not args.skip_memory:
        out["memory"] = memory(folder, args.jobs)
        out["half_done_job"] = half(folder, args.images)
    shutil.rmtree(folder)
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
