"""kill -9 of a random program every 100 to 500 ms under load, judged by a ledger outside the farm.

STEER_CHAOS_SECONDS: how long (default 20). Everything accepted must be delivered, each image once, 60 s after the last kill.
"""

import os
import random
import sys
import threading
import time

from farm import GOLDEN, Farm
from steer_client import Refused

SECONDS = float(os.environ.get("STEER_CHAOS_SECONDS", "20"))
BACKLOG = 20  # jobs: enough to keep the workers busy, few enough to be rendered in the minute after
SEED = int(os.environ.get("STEER_CHAOS_SEED", "1"))


class Ledger:
    def __init__(self):
        self.lock, self.accepted, self.delivered, self.doubled = threading.Lock(), {}, {}, 0

    def accept(self, job, images):
        with self.lock:
            self.accepted[job] = images

    def deliver(self, job, index):
        with self.lock:
            seen = self.delivered.setdefault(job, set())
            self.doubled += index in seen
            seen.add(index)

    def missing(self):
        with self.lock:
            return [j for j, n in self.accepted.items() if len(self.delivered.get(j, ())) < n]


def submitter(farm, ledger, stop, number):
    """Submits under keys of its own until told to stop; an unanswered SUBMIT is sent again under its key."""
    client, n = farm.client(hello=False), 0
    client.hello(seconds=60)
    while not stop.is_set():
        if len(ledger.missing()) > BACKLOG:
            stop.wait(0.05)
            continue
        key, images = f"chaos-{number}-{n}", 1 + n % 3
        try:
            client.tag += 1
            client.send("SUBMIT", tag=client.tag, key=key, job=dict(
                model="small", prompt="a cat", images=images, recipe="sbv2-sd15", guidance=dict(method=0), seed=n))
            a = client.expect("ACCEPTED", seconds=1.0, tag=client.tag)[1]
            ledger.accept(a.job, images)
            n += 1
            stop.wait(0.05)
        except (TimeoutError, Refused):
            client.close()
            client = farm.client(hello=False)
            try:
                client.hello(seconds=5)
            except TimeoutError:
                pass
    client.close()


def fetcher(farm, ledger, stop):
    client, last = farm.client(hello=False), 0.0
    while not (stop.is_set() and not ledger.missing()):
        if time.monotonic() - last > 1.0:  # ask again for everything: brokers die
            client.send("HELLO", version_min=1, version_max=1, role=1)
            for job in ledger.missing()[:50]:
                client.send("FETCH", job=job, credit=8)
            last = time.monotonic()
        got = client.receive(0.2)
        if got and got[0] == "RESULT":
            m = got[1]
            if m.index not in ledger.delivered.get(m.job, ()):
                ledger.deliver(m.job, m.index)
            client.send("RESULT_ACK", job=m.job, indices=[dict(first=m.index, last=m.index)])
            if len(ledger.delivered[m.job]) >= ledger.accepted.get(m.job, 99):
                last = 0.0
        if time.monotonic() > fetcher.deadline:
            break
    client.close()


def main():
    rng, ledger = random.Random(SEED), Ledger()
    with Farm(models={"small": GOLDEN / "small" / "model"}, workers=2) as farm:
        farm.wait_models()
        stop, done = threading.Event(), threading.Event()
        fetcher.deadline = time.monotonic() + SECONDS + 90
        threads = [threading.Thread(target=submitter, args=(farm, ledger, stop, i)) for i in range(2)]
        threads.append(threading.Thread(target=fetcher, args=(farm, ledger, done)))
        for t in threads:
            t.start()
        end, kills = time.monotonic() + SECONDS, {"broker": 0, "worker": 0}
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.1, 0.5))
            victim = rng.choice([farm.broker, *farm.workers])
            victim.kill()
            victim.start()
            kills["broker" if victim is farm.broker else "worker"] += 1
        stop.set()
        last_kill = time.monotonic()
        for t in threads[:2]:
            t.join()
        done.set()
        threads[2].join()
        took = time.monotonic() - last_kill
        missing = ledger.missing()
        images = sum(ledger.accepted.values())
        print(f"{kills['broker']} brokers and {kills['worker']} workers killed in {SECONDS:.0f} s; {len(ledger.accepted)} jobs of "
              f"{images} images accepted; missing {len(missing)}; delivered {took:.1f} s after the last kill")
        if missing or took > 60:
            client = farm.client()
            for job in missing[:5]:
                print(client.query(1, job=job))
            sys.exit(1)


if __name__ == "__main__":
    main()
