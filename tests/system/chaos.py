"""kill -9 of a random program every 100 to 500 ms under load, judged by a ledger outside the farm.

STEER_CHAOS_SECONDS: how long (default 20). Broker, workers and a `steer render` are killed. Everything accepted must be delivered
60 s after the last kill, no image again once its acknowledgement was answered, each with the bytes that a calm farm gives, and the
farm must do at least a quarter of its undisturbed work meanwhile.
"""

import hashlib
import os
import random
import sys
import threading
import time

import zmq

from farm import BIN, GOLDEN, Farm, Program
from steer_client import Refused

SECONDS = float(os.environ.get("STEER_CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("STEER_CHAOS_SEED", "1"))
BACKLOG = 40  # jobs: enough to keep the workers busy, few enough to be rendered in the minute after
JOB = dict(model="small", prompt="a cat", recipe="sbv2-sd15", guidance=dict(method=0))
RENDER = ["--model", "small", "--recipe", "sbv2-sd15", "--guidance", "none", "a cat", "--images", "2"]


class Ledger:
    """What was accepted, delivered and acknowledged, and what is wrong with it."""

    def __init__(self):
        self.lock, self.wrong = threading.Lock(), []
        self.accepted, self.delivered, self.acked, self.bytes_of_seed = {}, {}, set(), {}
        self.waiting = {}  # job: indices not yet delivered. Looked at all the time, so small however much was accepted.
        self.images = 0

    def accept(self, job, images):
        with self.lock:
            if job not in self.accepted:
                self.accepted[job] = images
                left = set(range(images)) - self.delivered.get(job, set())
                if left:
                    self.waiting[job] = left

    def deliver(self, job, m, data):
        with self.lock:
            if (job, m.index) in self.acked:
                self.wrong.append(f"{job} {m.index} came again after its acknowledgement was answered")
            delivered = self.delivered.setdefault(job, set())
            self.images += m.index not in delivered
            delivered.add(m.index)
            if job in self.waiting:
                self.waiting[job].discard(m.index)
                if not self.waiting[job]:
                    del self.waiting[job]
            self.picture(m.seed, data, f"{job} {m.index}")

    def picture(self, seed, data, what):
        digest = hashlib.sha256(data).hexdigest()
        if self.bytes_of_seed.setdefault(seed, digest) != digest:
            self.wrong.append(f"{what}: seed {seed} has other bytes than before")

    def missing(self):
        with self.lock:
            return list(self.waiting)


def submitter(farm, ledger, stop, number):
    """Submits under keys of its own until told to stop; an unanswered SUBMIT is sent again under its key."""
    client, n = farm.client(hello=False), 0
    while not stop.is_set():
        if len(ledger.missing()) > BACKLOG:
            stop.wait(0.02)
            continue
        try:
            client.hello(seconds=60)
            while not stop.is_set() and len(ledger.missing()) <= BACKLOG:
                a = client.submit(f"chaos-{number}-{n}", images=1 + n % 3, seed=n, seconds=1.0, **JOB)
                ledger.accept(a.job, a.images)
                n += 1
        except (TimeoutError, Refused):
            client.close()
            client = farm.client(hello=False)
    client.close()


class Connection:
    """A client that is made anew when its pipe stays full: a connection that died with unread messages is not noticed by sending."""

    def __init__(self, farm):
        self.farm, self.client = farm, farm.client(hello=False)

    def send(self, *args, **fields):
        try:
            self.client.send(*args, **fields)
        except zmq.Again:
            self.client.close()
            self.client = self.farm.client(hello=False)

    def receive(self, seconds):
        return self.client.receive(seconds)

    def close(self):
        self.client.close()


def fetcher(farm, ledger, stop):
    client, asked, heard, waiting, tag, fetching = Connection(farm), 0.0, 0.0, {}, 0, set()
    while not (stop.is_set() and not ledger.missing()) and time.monotonic() < fetcher.deadline:
        now = time.monotonic()
        if now - asked > 0.3:  # brokers die; a new one answers HELLO_REQUIRED
            client.send("PING", tag=0)
            asked = now
        if now - heard > 3:
            heard, fetching = now, set()
        for job in ledger.missing()[:64]:
            if job not in fetching:
                fetching.add(job)
                client.send("FETCH", job=job, credit=8)
        got = client.receive(0.1)
        if not got:
            continue
        name, m, payload = got
        if name == "RESULT":
            heard = now
            ledger.deliver(m.job, m, payload)
            tag += 1
            waiting[tag] = (m.job, m.index)
            client.send("RESULT_ACK", job=m.job, indices=[dict(first=m.index, last=m.index)], tag=tag)
        elif name == "REPLY" and m.tag in waiting:
            with ledger.lock:
                ledger.acked.add(waiting.pop(m.tag))
        elif name == "REFUSED" and m.code == "HELLO_REQUIRED":
            client.send("HELLO", version_min=1, version_max=1, role=1)
        elif name == "WELCOME":
            fetching = set()
    client.close()


class Renderer:
    """`steer render` under keys of its own, killed and run again with the same key until it says that all is written."""

    def __init__(self, farm):
        self.farm, self.done = farm, 0
        self.start()

    def path(self, number, index="{index}"):
        return self.farm.dir / f"cli-{number}-{index}.webp"

    def start(self):
        self.program = Program([BIN / "steer", "render", *RENDER, "--broker", self.farm.client_endpoint, "--key", f"cli-{self.done}", "--seed",
                                self.done, "--output", self.path(self.done), "--overwrite", "--timeout", "90"], self.farm.dir / "cli.log")

    def look(self):
        code = self.program.process.poll()
        if code == 0:
            self.done += 1
        if code is not None:
            self.start()

    def kill(self):
        self.program.kill()

    def finish(self, seconds):
        end = time.monotonic() + seconds
        number = self.done
        while self.done == number and time.monotonic() < end:
            self.look()
            time.sleep(0.05)
        self.kill()
        return self.done > number


def run(target, *args):
    """A thread whose exception is not lost."""

    def body():
        try:
            target(*args)
        except BaseException as e:  # noqa: BLE001
            run.errors.append(f"{target.__name__}: {e!r}")

    thread = threading.Thread(target=body)
    thread.start()
    return thread


run.errors = []


def main():
    rng, ledger = random.Random(SEED), Ledger()
    with Farm(models={"small": GOLDEN / "small" / "model"}, workers=2) as farm:
        farm.wait_models()
        stop, done = threading.Event(), threading.Event()
        fetcher.deadline = time.monotonic() + SECONDS * 1.25 + 120
        submitters = [run(submitter, farm, ledger, stop, i) for i in range(2)]
        fetching = run(fetcher, farm, ledger, done)
        time.sleep(1)  # the load is on
        calm_seconds = max(4, SECONDS / 4)
        before = ledger.images
        time.sleep(calm_seconds)
        calm = (ledger.images - before) / calm_seconds

        renderer = Renderer(farm)
        victims = {"broker": [farm.broker], "worker": farm.workers, "steer render": [renderer]}
        kills, before, end = dict.fromkeys(victims, 0), ledger.images, time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.1, 0.5))
            renderer.look()
            name = rng.choice(["broker", "worker", "worker", "steer render"])
            victim = rng.choice(victims[name])
            victim.kill()
            victim.start()
            kills[name] += 1
        under_fire = (ledger.images - before) / SECONDS
        last_kill = time.monotonic()
        stop.set()
        for t in submitters:
            t.join()
        done.set()
        fetching.join()
        took, missing = time.monotonic() - last_kill, ledger.missing()
        rendered = renderer.finish(60)
        for number in range(renderer.done):
            for index in range(2):
                ledger.picture(number + index, renderer.path(number, f"{index:04}").read_bytes(), f"cli-{number}")
        # The bytes of a calm farm, for the seeds that were used most.
        client = farm.client()
        for m, data in client.fetch(client.submit("calm", images=8, seed=0, **JOB).job)[0].values():
            ledger.picture(m.seed, data, "calm")
        print(f"killed in {SECONDS:.0f} s: " + ", ".join(f"{n} {k}" for k, n in kills.items()))
        print(f"{len(ledger.accepted)} jobs of {sum(ledger.accepted.values())} images accepted, {renderer.done} by steer render; missing {len(missing)}; "
              f"all there {took:.1f} s after the last kill")
        print(f"images/s: {calm:.1f} undisturbed, {under_fire:.1f} under fire ({100 * under_fire / calm:.0f} %)")
        checks = {
            "something was accepted, from steer render too": len(ledger.accepted) > 2 * SECONDS and renderer.done > 0,
            "each program was killed": min(kills.values()) > SECONDS / 20,
            "nothing is missing": not missing, "within 60 s": took <= 60, "steer render ends": rendered,
            "each image once, with the same bytes": not ledger.wrong, "at least 25 % of the work": under_fire >= 0.25 * calm,
            "no thread failed": not run.errors,
        }
        for job in missing[:5]:
            print(client.query(1, job=job))
        print("\n".join(ledger.wrong[:5] + run.errors))
        failed = [name for name, fine in checks.items() if not fine]
        if failed:
            sys.exit("not so: " + "; ".join(failed))


if __name__ == "__main__":
    main()
