"""The farm when something breaks: messages lost, doubled and late, programs killed at each step, disks full, syncs that fail, hostile bytes.

    python tests/system/test_faults.py [TestClass[.test]]

Nothing here sleeps: a proxy on the link in question is the clock.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from farm import BIN, FAST, GOLDEN, Farm, FarmCase, digest
from proxy import Proxy
from steer_client import MESSAGES, TYPES, Client, Refused

SMALL = {"small": GOLDEN / "small" / "model"}
JOB = dict(model="small", prompt="a cat", seed=1, images=3, **FAST)
RENDER = ["a cat", "--model", "small", "--recipe", "sbv2-sd15", "--guidance", "none", "--images", "3", "--seed", "1"]
QUERY_JOB, QUERY_JOBS, QUERY_WORKERS, QUERY_MODELS, QUERY_STATUS = 1, 2, 3, 4, 5
PAUSE, RESUME = 2, 3


class Case(FarmCase):
    """A farm behind proxies, and what a calm one gives."""

    OPTIONS = dict(models=SMALL)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not cls.farm.workers:
            calm = cls.farm.worker("calm")
            cls.farm.wait_models()
        client = cls.farm.client()
        cls.calm = digest(client.fetch(client.submit("calm", **JOB).job)[0])
        assert len(set(cls.calm.values())) == 3
        client.close()
        if not cls.farm.workers:
            assert calm.stop() == 0

    def proxy(self, name, target):
        proxy = Proxy(self.farm.dir, target, name)
        self.addCleanup(proxy.close)
        return proxy

    def worker(self, proxy):
        """w0 behind a proxy; the next one of this name takes over from it."""
        self.farm.workers[:] = [self.farm.worker(0, endpoint=proxy.endpoint)]
        self.addCleanup(self.farm.workers[0].kill)
        return self.farm.workers[0]

    def render(self, key, endpoint=None, flags=RENDER):
        """`steer render` under way; what it printed is checked by rendered()."""
        run = self.farm.steer("render", *flags, "--key", key, "--json", "--output", self.farm.dir / f"{key}-{{index}}.webp", "--timeout", 90,
                              endpoint=endpoint)
        self.addCleanup(run.kill)
        return run

    def rendered(self, run, key, calm=None):
        """It ended well, showed each image once and wrote the bytes of a calm farm; the broker has one job of this key, all acknowledged."""
        calm = calm or self.calm
        self.assertEqual(run.process.wait(120), 0, f"{key}: {run.text()}")
        shown = [json.loads(line)["index"] for line in run.text().splitlines() if line.startswith("{")]
        self.assertEqual(sorted(shown), sorted(calm), f"{key}: shown {shown}")
        self.stored(key, calm)

    def stored(self, key, calm=None):
        calm = calm or self.calm
        files = {i: hashlib.sha256((self.farm.dir / f"{key}-{i:04}.webp").read_bytes()).hexdigest() for i in calm}
        self.assertEqual(files, calm, key)
        jobs = [j for j in self.client.query(QUERY_JOBS, limit=1000).jobs if j.key == key]
        self.assertEqual([(j.state, j.counts.acked) for j in jobs], [("done", len(calm))], key)


def each(direction, kinds):
    """A test for each kind of message, of the method that knows what to do with it."""

    def decorate(cls):
        for kind in kinds:
            def test(self, kind=kind):
                for what in ("drop", "double", "delay"):
                    with self.subTest(what=what):
                        getattr(self, f"check_{kind}", self.check)(direction, kind, what)

            setattr(cls, f"test_{direction}_{kind}", test)
        return cls

    return decorate


@each("down", ["WELCOME", "ASSIGN", "VERDICT", "REVOKE", "PING", "REFUSED"])
@each("up", ["HELLO", "CREDIT", "RENEW", "RESULT", "FAIL", "PONG"])
class WorkerLink(Case):
    """Each kind of message between a worker and its broker, once dropped, doubled and late. (Workers send no PING, so no PONG comes down.)"""

    OPTIONS = dict(models=SMALL, workers=0)

    def begin(self, direction, kind, what, **fault):
        key = f"{kind}-{what}"
        proxy = self.proxy(key, self.farm.worker_endpoint)
        fault = proxy.once(direction, kind, what, **fault)
        self.worker(proxy)
        proxy.wait("down", "WELCOME")  # from here on the one of the test before gets nothing
        return key, proxy, fault

    def check(self, direction, kind, what):
        key, _, fault = self.begin(direction, kind, what)
        self.rendered(self.render(key), key)
        fault.wait(30)

    def check_RENEW(self, direction, kind, what):
        """One that keeps leases: the results stay on the way until it has gone."""
        key, proxy, fault = self.begin(direction, kind, what, when=lambda m: m.leases)
        for i in range(3):
            proxy.once("up", "RESULT", "delay", when=lambda m, i=i: m.index == i, until=fault.happened)
        self.rendered(self.render(key), key)
        self.assertTrue(fault.happened.is_set())

    def check_REFUSED(self, direction, kind, what):
        """The broker is another one when the RESULT comes: say HELLO first."""
        key, proxy, fault = self.begin(direction, kind, what)
        assigned = proxy.once("down", "ASSIGN", "after")
        run = self.render(key)
        assigned.wait()
        self.farm.broker.kill()
        self.farm.restart_broker()
        self.client.hello()
        assigned.resolve()
        self.rendered(run, key)
        self.assertTrue(fault.happened.is_set())

    def check_REVOKE(self, direction, kind, what):
        """Cancelled while the results are on their way: what was not asked for any more changes nothing, and the worker takes other work."""
        key, proxy, fault = self.begin(direction, kind, what)
        results = [proxy.once("up", "RESULT", "delay", when=lambda m, i=i: m.index == i, until=fault.happened) for i in range(3)]
        job = self.client.submit(key, **JOB).job
        for r in results:
            r.wait()
        self.client.ask("CANCEL", "REPLY", job=job)
        images, status = self.client.fetch(job)
        self.assertEqual((len(images), status.state, status.counts.cancelled), (0, "cancelled", 3))
        fault.wait()
        key += "-after"
        self.rendered(self.render(key), key)

    def check_FAIL(self, direction, kind, what):
        """The model cannot be loaded at first."""
        folder = self.farm.models / f"broken-{what}"
        shutil.copytree(GOLDEN / "tiny" / "model", folder)
        self.addCleanup(shutil.rmtree, folder)
        key, proxy, fault = self.begin(direction, kind, what)
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        whole = file.read_bytes()
        os.truncate(file, len(whole) // 2)
        job = self.client.submit(key, model=folder.name, prompt="a cat", seed=1, images=3).job
        fault.wait()
        file.write_bytes(whole)
        images, status = self.client.fetch(job, seconds=90)
        self.assertEqual((status.state, status.counts.acked, len(status.failures)), ("done", 3, 0))
        again = self.client.submit(f"{key}-again", model=folder.name, prompt="a cat", seed=1, images=3).job
        self.assertEqual(digest(images), digest(self.client.fetch(again)[0]))


@each("down", ["WELCOME", "ACCEPTED", "RESULT", "DONE", "PROGRESS", "REPLY", "REFUSED", "PONG"])
@each("up", ["HELLO", "SUBMIT", "FETCH", "WATCH", "RESULT_ACK", "QUERY", "PING"])
class ClientLink(Case):
    """Each kind of message between `steer render` and the broker, once dropped, doubled and late."""

    def begin(self, direction, kind, what):
        key = f"{direction}-{kind}-{what}"
        proxy = self.proxy(key, self.farm.client_endpoint)
        return key, proxy, proxy.once(direction, kind, what)

    def check(self, direction, kind, what):
        key, proxy, fault = self.begin(direction, kind, what)
        self.rendered(self.render(key, proxy.endpoint), key)
        self.assertTrue(fault.happened.is_set())

    def check_both(self, direction, kind, what):
        """`steer render` says it twice and hears it twice, once for FETCH and once for WATCH: both meet the fault."""
        key, proxy, fault = self.begin(direction, kind, what)
        second = proxy.once(direction, kind, what)
        self.rendered(self.render(key, proxy.endpoint), key)
        self.assertTrue(fault.happened.is_set() and second.happened.is_set())

    check_FETCH = check_DONE = check_both

    def check_silence(self, direction, kind, what):
        """The farm has nothing to say until the message has met its fault."""
        self.client.ask("ADMIN", "REPLY", kind=PAUSE)
        try:
            key, proxy, fault = self.begin(direction, kind, what)
            run = self.render(key, proxy.endpoint)
            fault.wait()
        finally:
            self.client.ask("ADMIN", "REPLY", kind=RESUME)
        self.rendered(run, key)

    check_PING = check_PONG = check_silence

    def check_PROGRESS(self, direction, kind, what):
        steps = ["a cat", "--model", "small", "--recipe", "ddim", "--steps", "25", "--guidance", "none", "--images", "3", "--seed", "1"]
        job = dict(model="small", prompt="a cat", recipe="ddim", steps=25, guidance=dict(method=0), images=3, seed=1)
        calm = digest(self.client.fetch(self.client.submit(f"{what}-calm", **job).job)[0])
        key, proxy, fault = self.begin(direction, kind, what)
        self.rendered(self.render(key, proxy.endpoint, steps), key, calm)
        self.assertTrue(fault.happened.is_set())

    def check_REFUSED(self, direction, kind, what):
        """A final no ends it in one sentence; "say HELLO first" of a broker that is a new one does not."""
        key, proxy, fault = self.begin(direction, kind, what)
        run = self.render(key, proxy.endpoint, ["a cat", "--model", "nonesuch"])
        self.assertEqual(run.process.wait(60), 66, run.text())
        self.assertEqual(len(run.text().splitlines()), 1, run.text())
        self.assertTrue(fault.happened.is_set())
        key, proxy, fault = f"{key}-restart", proxy, proxy.once(direction, kind, what)
        accepted = proxy.once("down", "ACCEPTED", "after")
        run = self.render(key, proxy.endpoint)
        accepted.wait()
        self.farm.broker.kill()
        self.farm.restart_broker()
        self.client.hello()
        accepted.resolve()
        self.rendered(run, key)
        self.assertTrue(fault.happened.is_set())


class Kills(Case):
    """kill -9 at each step of a job's life: what was accepted comes once, with the right bytes, whoever died.

    A message that was in hand when one of its ends died is gone; else it goes on its way.
    """

    OPTIONS = dict(models=SMALL, workers=0)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.workers_proxy = Proxy(cls.farm.dir, cls.farm.worker_endpoint, "workers")
        cls.addClassCleanup(cls.workers_proxy.close)
        cls.farm.workers.append(cls.farm.worker(0, endpoint=cls.workers_proxy.endpoint))
        cls.workers_proxy.wait("down", "WELCOME")

    def begin(self, key, clients, submitted):
        """`steer render`, or `steer fetch` of what was submitted already."""
        if not submitted:
            return self.render(key, clients.endpoint)
        run = self.farm.steer("fetch", self.client.submit(key, **JOB).job, "--json", "--overwrite", "--output", self.farm.dir / f"{key}-{{index}}.webp",
                              "--timeout", 90, endpoint=clients.endpoint)
        self.addCleanup(run.kill)
        return run

    def check(self, end, direction, kind, when, submitted=True):
        for victim in ("broker", "worker", "client"):
            with self.subTest(kill=victim):
                key = f"{end}-{direction}-{kind}-{victim}"
                clients = self.proxy(key, self.farm.client_endpoint)
                step = (clients if end == "client" else self.workers_proxy).once(direction, kind, when)
                run = self.begin(key, clients, submitted)
                step.wait()
                if victim == "broker":
                    self.farm.broker.kill()
                    self.farm.restart_broker()
                    self.client.hello()
                elif victim == "worker":
                    self.farm.workers[0].kill()
                    self.farm.workers[0].start()
                else:
                    run.kill()
                step.resolve(deliver=victim not in (end, "broker"))
                if victim == "client":
                    run = self.begin(key, clients, submitted)
                    self.assertEqual(run.process.wait(120), 0, run.text())
                    shown = [json.loads(line)["index"] for line in run.text().splitlines() if line.startswith("{")]
                    self.assertEqual(len(shown), len(set(shown)))
                    self.stored(key)
                else:
                    self.rendered(run, key)

    def test_submit_forwarded(self):
        self.check("client", "up", "SUBMIT", "after", submitted=False)

    def test_accepted_held(self):
        self.check("client", "down", "ACCEPTED", "before", submitted=False)

    def test_assign_delivered(self):
        self.check("worker", "down", "ASSIGN", "after")

    def test_result_of_worker_held(self):
        self.check("worker", "up", "RESULT", "before")

    def test_verdict_held(self):
        self.check("worker", "down", "VERDICT", "before")

    def test_result_to_client_held(self):
        self.check("client", "down", "RESULT", "before")

    def test_ack_held(self):
        self.check("client", "up", "RESULT_ACK", "before")

    def test_done_held(self):
        self.check("client", "down", "DONE", "before")


class Stopped(Case):
    """SIGSTOP past the lease, then SIGCONT: another worker renders, and the late result changes nothing."""

    OPTIONS = dict(models=SMALL, workers=0)

    def stopped(self, step):
        """A job whose ASSIGN w0 has and whose `step` is in hand; w0 stops, w1 renders all. Gives what is needed to go on."""
        proxy = self.proxy(step, self.farm.worker_endpoint)
        worker = self.worker(proxy)
        proxy.wait("down", "WELCOME")
        fault = proxy.once(*{"ASSIGN": ("down", "ASSIGN", "after"), "RESULT": ("up", "RESULT", "before")}[step])
        job = self.client.submit(step, **JOB).job
        fault.wait()
        worker.signal(signal.SIGSTOP)
        self.assertEqual(self.client.query(QUERY_JOB, job=job).jobs[0].counts.leased, 3)
        other = self.farm.worker(1)
        self.farm.workers.append(other)
        self.addCleanup(other.kill)
        self.client.send("WATCH", job=job)
        while self.client.expect("PROGRESS", seconds=60)[1].counts.spooled < 3:
            pass
        return job, proxy, worker, fault

    def unchanged(self, job):
        """All three are there, once, from w1."""
        images, status = self.client.fetch(job)
        self.assertEqual((digest(images), status.state, status.counts.acked, status.counts.failed), (self.calm, "done", 3, 0))
        self.assertEqual({r.worker for r, _ in images.values()}, {"w1"})

    def answered(self, proxy, at):
        """Until each lease was revoked or its RESULT got a verdict, none of them `kept`; gives the indices with the verdict `duplicate`."""

        def verdicts():
            return {m.lease.index: m.verdict for _, kind, m in proxy.seen[at:] if kind == "VERDICT"}

        def all_three():
            return len(set(verdicts()) | {lease.index for _, kind, m in proxy.seen[at:] if kind == "REVOKE" for lease in m.leases}) == 3

        with proxy.changed:
            self.assertTrue(proxy.changed.wait_for(all_three, 60), proxy.seen[at:])
        self.assertLessEqual(set(verdicts().values()), {"duplicate"})
        return set(verdicts())

    def test_a_result_that_was_on_its_way(self):
        job, proxy, worker, fault = self.stopped("RESULT")
        with proxy.changed:
            late = [m for _, kind, m in proxy.seen if kind == "RESULT"][0]
        before = {c.name: c.value for c in self.client.query(QUERY_STATUS).counters}
        at = len(proxy.seen)
        fault.resolve()
        worker.signal(signal.SIGCONT)
        proxy.wait("down", "VERDICT", lambda m: m.lease.index == late.index and m.verdict == "duplicate", after=at)
        duplicates = self.answered(proxy, at)
        after = {c.name: c.value for c in self.client.query(QUERY_STATUS).counters}
        self.assertEqual(after["results_kept"], before["results_kept"])
        self.assertGreaterEqual(after["results_duplicate"], before["results_duplicate"] + len(duplicates))
        self.unchanged(job)

    def test_a_worker_in_its_render(self):
        job, proxy, worker, fault = self.stopped("ASSIGN")
        at = len(proxy.seen)
        fault.resolve()
        worker.signal(signal.SIGCONT)
        self.answered(proxy, at)
        self.unchanged(job)
        self.assertEqual(digest(self.client.fetch(self.client.submit("after", **JOB).job)[0]), self.calm)


class SmallDisk(unittest.TestCase):
    """A file system of 24 MB: the broker takes no more than fits, says so, and goes on when there is room."""

    BIG = dict(model="small", prompt="a cat", seed=1, width=256, height=256, output=dict(format=1), **FAST)

    def setUp(self):
        """A mount of our own, kept by a process that lives longer than the broker."""
        self.dir = Path(tempfile.mkdtemp(prefix="steerfarm-disk-"))
        self.addCleanup(shutil.rmtree, self.dir)
        self.holder = subprocess.Popen(["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=24m tmpfs {self.dir} && echo mounted && exec cat"],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(self.holder.communicate)
        if self.holder.stdout.readline() != b"mounted\n":
            self.skipTest(f"no file system can be mounted here: {self.holder.stderr.read().decode().strip()}")

    def counts(self, client, job):
        c = client.query(QUERY_JOB, job=job).jobs[0].counts
        return dict(open=c.queued + c.leased, spooled=c.spooled, acked=c.acked, failed=c.failed)

    def test_fills_up(self):
        with Farm(models=SMALL, broker_prefix=["nsenter", "-t", self.holder.pid, "-m"], data=self.dir / "data") as farm:
            farm.wait_models()
            client = farm.client()
            self.addCleanup(client.close)
            images = 300
            job = client.submit("big", images=images, **self.BIG).job
            other = client.submit("other", images=2, **self.BIG).job
            client.send("WATCH", job=job)
            farm.broker.wait_for("ev=spool.full", 240)
            while (counts := client.expect("PROGRESS", seconds=60)[1].counts).leased:
                pass
            self.assertGreater(counts.spooled, 20)
            self.assertGreater(counts.queued, 20)
            status = {c.name: c.value for c in client.query(QUERY_STATUS).counters}
            # All that was rendered was kept: nothing had been assigned for which there was no room.
            self.assertEqual((status["results_kept"], status["results_duplicate"], status["images_failed"]), (status["images_spooled"], 0, 0))
            self.assertNotIn("store.full", farm.broker.text())

            accepted = []
            with self.assertRaises(Refused) as e:
                for i in range(3000):
                    accepted.append(client.submit(f"long-{i}", **{**self.BIG, "prompt": f"{i} " + "cat " * 4000}).job)
            self.assertEqual(e.exception.code, "DISK_FULL")
            self.assertGreater(e.exception.message.retry_after_ms, 0)

            # Acknowledgements and cancels pass.
            client.send("FETCH", job=job, credit=1)
            m = client.expect("RESULT")[1]
            client.ask("RESULT_ACK", "REPLY", job=job, indices=[dict(first=m.index, last=m.index)])
            client.send("FETCH", job=job, credit=0)
            self.assertEqual(client.ask("CANCEL", "REPLY", job=other).jobs[0].counts.cancelled, 2)
            before = self.counts(client, job)
            self.assertEqual((before["acked"], before["failed"]), (1, 0))
            farm.broker.kill()
            farm.restart_broker()
            client.hello()
            after = self.counts(client, job)
            self.assertEqual(after["open"] + after["spooled"], before["open"] + before["spooled"])
            self.assertGreaterEqual(after["spooled"], before["spooled"])  # the room that the acknowledgement gave may be used again
            self.assertEqual((after["acked"], after["failed"]), (1, 0))

            for long in accepted:
                client.ask("CANCEL", "REPLY", job=long)
            got, status = client.fetch(job, seconds=240)
            self.assertEqual((len(got), status.state, status.counts.acked), (images - 1, "done", images))
            end = time.monotonic() + 30
            while True:
                try:
                    new = client.submit("new", **self.BIG).job
                    break
                except Refused as e:
                    self.assertEqual(e.code, "DISK_FULL")
                    self.assertLess(time.monotonic(), end)
            self.assertEqual(len(client.fetch(new)[0]), 1)


class FailingSync(Case):
    """An fsync of the broker fails: it does not promise anything any more, says so and leaves; the next one has all that was promised."""

    @classmethod
    def setUpClass(cls):
        cls.dir = Path(tempfile.mkdtemp(prefix="steerfarm-sync-"))
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        cls.trigger = cls.dir / "trigger"
        cls.OPTIONS = dict(models=SMALL, broker_env={"LD_PRELOAD": str(BIN / "libfail_fsync.so"), "STEER_TEST_FSYNC_FAIL": str(cls.trigger),
                                                     "ASAN_OPTIONS": "verify_asan_link_order=0"})
        super().setUpClass()

    def fail(self, n):
        self.trigger.with_suffix(".new").write_text(str(n))
        self.trigger.with_suffix(".new").rename(self.trigger)

    def left(self, at):
        """It has ended with one sentence that names the disk's part in it."""
        self.assertEqual(self.farm.broker.process.wait(30), 74, self.farm.broker.text()[at:])
        said = [line for line in self.farm.broker.text()[at:].splitlines() if "level=error" in line]
        self.assertEqual(len(said), 1, said)
        self.assertRegex(said[0], r"ev=broker\.failed code=STORE reason=.*(sync|I/O)")

    def restart(self):
        self.trigger.unlink()
        self.farm.restart_broker()
        self.client.hello()

    def test_the_first_commit_afterwards(self):
        """The job of the commit that failed is not accepted; the same key may be submitted again."""
        at = len(self.farm.broker.text())
        kept = self.client.submit("kept", **JOB).job
        self.client.fetch(kept)
        self.fail(1)
        self.client.send("SUBMIT", key="first", job=MESSAGES["Job"](**JOB), tag=1)
        self.left(at)
        while got := self.client.receive(0.1):
            self.assertNotEqual(got[0], "ACCEPTED")
        self.restart()
        self.assertEqual(self.client.query(QUERY_JOB, job=kept).jobs[0].state, "done")
        images, status = self.client.fetch(self.client.submit("first", **JOB).job)
        self.assertEqual((digest(images), status.counts.acked), (self.calm, 3))

    def test_each_of_the_next(self):
        """The n-th sync fails in the middle of submitting, rendering and acknowledging."""
        for n in range(2, 8):
            with self.subTest(n=n):
                at = len(self.farm.broker.text())
                self.fail(n)
                accepted, sent = {}, 0
                while self.farm.broker.process.poll() is None:
                    self.assertLess(sent, 100, "no sync failed")
                    self.client.send("SUBMIT", key=f"{n}-{sent}", job=MESSAGES["Job"](**JOB), tag=sent)
                    sent += 1
                    while got := self.client.receive(0.1 if self.farm.broker.process.poll() is None else 0):
                        if got[0] == "ACCEPTED":
                            accepted[got[1].key] = got[1].job
                            break
                self.left(at)
                while got := self.client.receive(0.1):
                    if got[0] == "ACCEPTED":
                        accepted[got[1].key] = got[1].job
                self.restart()
                for key, job in accepted.items():
                    again = self.client.submit(key, **JOB)
                    self.assertEqual((again.job, again.again), (job, True))
                    images, status = self.client.fetch(job)
                    self.assertEqual((digest(images), status.state), (self.calm, "done"))


def head(kind, version=1):
    return bytes([ord("S"), ord("F"), version, kind])


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def bomb(number, size=4 << 20):
    """A body of that size, all empty submessages of one field: each costs many times its bytes when unpacked."""
    one = varint(number << 3 | 2) + b"\0"
    return one * (size // len(one))


class Limits(Case):
    """What breaks a limit or a rule gets its code and costs the broker nothing; the farm goes on."""

    WORKER = dict(version_min=1, version_max=1, role=2, worker="odd", incarnation=1, device=MESSAGES["Device"](kind="cpu"))

    def setUp(self):
        super().setUp()
        self.memory = self.farm.broker.memory()

    def tearDown(self):
        self.assertLess(self.farm.broker.memory("VmHWM") - self.memory, 64 << 20)
        number = self.id().rsplit(".", 1)[-1]
        images, status = self.client.fetch(self.client.submit(f"after {number}", **JOB).job)
        self.assertEqual((digest(images), status.state), (self.calm, "done"))

    def peer(self, port, hello=True, **fields):
        """A DEALER at that port, welcomed unless told otherwise."""
        peer = Client(getattr(self.farm, f"{port}_endpoint"), hello=False, identity=b"odd/%d" % random.randrange(1 << 60) if port == "worker" else None)
        self.addCleanup(peer.close)
        if hello:
            peer.send("HELLO", **(self.WORKER if port == "worker" else dict(version_min=1, version_max=1, role=1)))
            peer.expect("WELCOME")
        return peer

    def refused(self, peer, code, frames):
        peer.socket.send_multipart(frames)
        self.assertEqual(peer.expect("REFUSED")[1].code, code, [f[:40] for f in frames])

    def test_bodies(self):
        for port, kind in (("client", "SUBMIT"), ("worker", "RENEW")):
            with self.subTest(port=port):
                peer = self.peer(port)
                self.refused(peer, "BAD_FRAME", [head(TYPES[kind]), bytes((4 << 20) + 1)])
                self.refused(peer, "BAD_FRAME", [head(TYPES[kind]), b"\x08" * (4 << 20)])

    def test_bombs(self):
        """4 MiB of empty submessages: leases in HELLO, ranges in RESULT_ACK, labels in a job."""
        for port, kind, field in (("client", "HELLO", 11), ("worker", "HELLO", 11), ("client", "RESULT_ACK", 2), ("worker", "RENEW", 1), ("client", "PROGRESS", 2)):
            with self.subTest(port=port, kind=kind):
                self.refused(self.peer(port), "BAD_FRAME", [head(TYPES[kind]), bomb(field)])
        inner = b"\x0a\x01m\x12\x01p" + bomb(15, (4 << 20) - 100)
        self.refused(self.peer("client"), "BAD_FRAME", [head(TYPES["SUBMIT"]), b"\x0a\x01k\x12" + varint(len(inner)) + inner])

    def test_hellos(self):
        for port in ("client", "worker"):
            good = dict(self.WORKER, role=2 if port == "worker" else 1)
            for code, change in (("BAD_VERSION", dict(version_min=2, version_max=9)), ("BAD_VERSION", dict(version_min=0, version_max=0)),
                                 ("UNSUPPORTED", dict(requires=["telepathy"])), ("BAD_VALUE", dict(role=3 - good["role"]))):
                with self.subTest(port=port, change=change):
                    self.refused(self.peer(port, hello=False), code, [head(TYPES["HELLO"]), MESSAGES["Hello"](**{**good, **change}).SerializeToString()])
        for missing in ("worker", "incarnation", "device"):
            hello = MESSAGES["Hello"](**{k: v for k, v in self.WORKER.items() if k != missing})
            self.refused(self.peer("worker", hello=False), "BAD_VALUE", [head(TYPES["HELLO"]), hello.SerializeToString()])

    def test_without_hello(self):
        """Every message of both ports, before HELLO."""
        lease = MESSAGES["Lease"](epoch=1, lease=1, job="0-1", index=0)
        bodies = {"SUBMIT": dict(key="k", job=MESSAGES["Job"](model="small", prompt="x")), "CANCEL": {}, "WATCH": dict(job="0-1"), "FETCH": dict(job="0-1", credit=1),
                  "QUERY": dict(kind=QUERY_STATUS), "RESULT_ACK": dict(job="0-1"), "ADMIN": dict(kind=PAUSE), "PING": {}, "PONG": {}, "CREDIT": dict(images=9),
                  "RENEW": {}, "DRAIN": {}, "FAIL": dict(lease=lease, code="IO", text="x", retryable=True), "RESULT": dict(job="0-1", index=0, lease=lease, bytes=1, crc32=0)}
        for port in ("client", "worker"):
            peer = self.peer(port, hello=False)
            for kind, fields in bodies.items():
                with self.subTest(port=port, kind=kind):
                    peer.send(kind, payload=b"x" if kind == "RESULT" else None, **fields)
                    m = peer.expect("REFUSED")[1]
                    self.assertEqual((m.code, m.request), ("HELLO_REQUIRED", TYPES[kind]))

    def test_the_wrong_port(self):
        """What only the other side may send."""
        lease = MESSAGES["Lease"](epoch=1, lease=1, job="0-1", index=0)
        for port, kind, fields in (("client", "CREDIT", dict(images=9)), ("client", "ASSIGN", {}), ("worker", "QUERY", dict(kind=QUERY_STATUS)),
                                   ("worker", "SUBMIT", dict(key="k", job=MESSAGES["Job"](model="small", prompt="x"))), ("worker", "VERDICT", dict(lease=lease, verdict="kept"))):
            with self.subTest(port=port, kind=kind):
                peer = self.peer(port)
                peer.send(kind, **fields)
                self.assertEqual(peer.expect("REFUSED")[1].code, "BAD_FRAME")

    def test_results(self):
        """Results with no lease, of another image than the lease's, of a job that is none, damaged, too long."""
        peer = self.peer("worker")
        lease = dict(epoch=1, lease=99, job="0-zzz", index=0)
        result = lambda **change: MESSAGES["Result"](**{**dict(job="0-zzz", index=0, lease=MESSAGES["Lease"](**lease), bytes=1, crc32=0), **change}).SerializeToString()
        self.refused(peer, "BAD_FRAME", [head(TYPES["RESULT"]), result()])
        self.refused(peer, "BAD_FRAME", [head(TYPES["RESULT"]), result(lease=None), b"x"])
        self.refused(peer, "BAD_FRAME", [head(TYPES["RESULT"]), result(index=1), b"x"])
        peer.socket.send_multipart([head(TYPES["RESULT"]), result(), b"x"])
        self.assertEqual(peer.expect("VERDICT")[1].verdict, "unknown")

    def test_a_frame_over_the_limit(self):
        """ZeroMQ itself drops a connection that announces more than a side's most: the length alone, not the bytes, is sent over a bare socket."""
        for port, most in (("client", 16 << 20), ("worker", 256 << 20)):
            bare = socket.socket(socket.AF_UNIX)
            bare.settimeout(20)
            bare.connect(getattr(self.farm, f"{port}_endpoint").removeprefix("ipc://"))
            bare.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))  # ZMTP 3.0's greeting
            greeting = b""
            while len(greeting) < 64:
                greeting += bare.recv(64 - len(greeting))
            ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER\x08Identity" + bytes(4)
            bare.sendall(b"\x04" + bytes([len(ready)]) + ready)
            bare.sendall(b"\x01\x04" + head(TYPES["PING"]) + b"\x00\x00")  # the connection works
            answer = b""
            while b"HELLO_REQUIRED" not in answer:
                answer += bare.recv(4096)
            bare.sendall(b"\x02" + (most + 1).to_bytes(8, "big"))
            while bare.recv(4096):  # to the end: it was not waited for
                pass
            bare.close()

    def test_random_frames(self):
        rng = random.Random(5)
        for port in ("client", "worker"):
            peer = self.peer(port)
            for _ in range(500):
                frames = [rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(1, 6))]
                if rng.random() < 0.7:
                    frames[0] = head(rng.choice([t for t in TYPES.values() if t != TYPES["ADMIN"]]), rng.choice((1, 1, 1, 2)))
                peer.socket.send_multipart(frames)
            peer.send("PING", tag=77)
            while peer.expect("PONG", "REFUSED", "WELCOME", "REPLY", "VERDICT", "DONE")[0] != "PONG":
                pass


class NeverReads(Case):
    """A client that asks and asks and reads nothing: its queue fills up, the others go on, and the broker's memory stays within bounds."""

    def lazy(self):
        lazy = Client(self.farm.client_endpoint)
        self.addCleanup(lazy.close)
        return lazy

    def processed(self, lazy, key):
        """Until the broker has read all that lazy has sent: its last word is this job."""
        lazy.send("SUBMIT", key=key, job=MESSAGES["Job"](**JOB))
        end = time.monotonic() + 120
        while not any(j.key == key for j in self.client.query(QUERY_JOBS, limit=5).jobs):
            self.assertLess(time.monotonic(), end)

    def test_questions(self):
        lazy, before = self.lazy(), self.farm.broker.memory()
        for i in range(60000):  # six times what the broker keeps for one peer
            lazy.send("QUERY", kind=QUERY_STATUS, tag=i)
        images, status = self.client.fetch(self.client.submit("meanwhile", **JOB).job)
        self.assertEqual((digest(images), status.state), (self.calm, "done"))
        self.processed(lazy, "last word")
        grown = self.farm.broker.memory("VmHWM") - before
        self.assertLess(grown, 64 << 20)
        self.assertGreater(grown, 4 << 20)  # the queue was really filled

    def test_images(self):
        """Results and progress that nobody takes; whoever fetches next gets them all."""
        lazy = self.lazy()
        job = self.client.submit("unread", **{**JOB, "images": 100}).job
        lazy.send("WATCH", job=job)
        lazy.send("FETCH", job=job, credit=64)
        self.processed(lazy, "fetches nothing")
        images, status = self.client.fetch(self.client.submit("others", **JOB).job)
        self.assertEqual((digest(images), status.state), (self.calm, "done"))
        images, status = self.client.fetch(job)
        self.assertEqual((sorted(images), status.state), (list(range(100)), "done"))
        self.assertEqual({i: d for i, d in digest(images).items() if i < 3}, self.calm)

    def test_long_lists(self):
        """An answer is a message like others: at most 4 MiB, the rest is `more`."""
        self.client.ask("ADMIN", "REPLY", kind=PAUSE)
        keys = {f"long-{i}" for i in range(320)}
        try:
            jobs = [self.client.submit(key, **{**JOB, "prompt": "cat " * 4000}).job for key in sorted(keys)]
            self.client.send("QUERY", kind=QUERY_JOBS, limit=1000, tag=1000000)
            head, body = self.client.socket.recv_multipart()
            self.assertLess(len(body), 4 << 20)
            reply = MESSAGES["Reply"].FromString(body)
            self.assertTrue(reply.more)
            self.assertGreater(len([j for j in reply.jobs if j.key in keys]), 50)
            for job in jobs:
                self.client.ask("CANCEL", "REPLY", job=job)
        finally:
            self.client.ask("ADMIN", "REPLY", kind=RESUME)


if __name__ == "__main__":
    unittest.main(verbosity=2)
