"""Sits between peers and the broker and does to one message what networks do: drops, doubles, delays or holds it.

It works on either port: a worker's identity is handed through. "up" is towards the broker, "down" from it.
"""

import threading
import time

import zmq

from steer_client import BODIES, NAMES

LATE_SECONDS = 4.0  # longer than any program waits before it asks again


class Fault:
    """Meets the first message of a direction and kind that `when` says yes to.

    drop     the message is gone
    double   it comes twice
    delay    it comes after the next message of its direction has overtaken it, or when `until` is set, or after LATE_SECONDS
    before   the link stands still with the message in hand until resolve() says whether it goes on its way
    after    the link stands still just behind the message, until resolve()
    """

    def __init__(self, direction, kind, what, when, until):
        self.direction, self.kind, self.what, self.when, self.until = direction, kind, what, when, until
        self.happened, self.resolved, self.deliver = threading.Event(), threading.Event(), True

    def wait(self, seconds=60.0):
        if not self.happened.wait(seconds):
            raise TimeoutError(f"no {self.kind} went {self.direction} in {seconds} s")

    def resolve(self, deliver=True):
        self.deliver = deliver
        self.resolved.set()


class Proxy:
    """Peers connect to .endpoint. Everything that came is in .seen as (direction, name, message), in its order."""

    def __init__(self, folder, broker, name):
        self.endpoint, self.broker = f"ipc://{folder}/proxy-{name}", broker
        self.faults, self.seen, self.late = [], [], []  # late: [due, until, direction, send]
        self.changed = threading.Condition()
        self.stopping, ready = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run, args=(ready,), daemon=True)
        self.thread.start()
        ready.wait()

    def once(self, direction, kind, what, when=lambda message: True, until=None):
        self.faults.append(Fault(direction, kind, what, when, until))
        return self.faults[-1]

    def wait(self, direction, kind, when=lambda message: True, after=0, seconds=60.0):
        """The first message like that, counted from the `after`th seen; waits for it."""
        found = []

        def look():
            found[:] = [m for d, k, m in self.seen[after:] if (d, k) == (direction, kind) and when(m)]
            return found

        with self.changed:
            if not self.changed.wait_for(look, seconds):
                raise TimeoutError(f"no such {kind} went {direction} in {seconds} s")
        return found[0]

    def pass_on(self, direction, frames, send):
        """One message, with what befalls it."""
        name = NAMES.get(frames[0][3]) if len(frames) > 1 and len(frames[0]) == 4 else None
        message = BODIES[name].FromString(frames[1]) if name else None
        with self.changed:
            self.seen.append((direction, name, message))
            self.changed.notify_all()
        fault = next((f for f in self.faults if not f.happened.is_set() and (f.direction, f.kind) == (direction, name) and f.when(message)), None)
        what = fault.what if fault else None
        if what == "delay":
            self.late.append((time.monotonic() + LATE_SECONDS, fault.until, direction, send))
            fault.happened.set()
            return
        if what == "before":
            fault.happened.set()
            fault.resolved.wait()
        if what != "drop" and (what != "before" or fault.deliver):
            send()
        if what == "double":
            send()
        if fault:
            fault.happened.set()
        if what == "after":
            fault.resolved.wait()
        self.release(lambda until, d: until is None and d == direction)

    def release(self, overtaken=lambda until, direction: False):
        now, still = time.monotonic(), []
        for due, until, direction, send in self.late:
            if now >= due or (until and until.is_set()) or overtaken(until, direction):
                send()
            else:
                still.append((due, until, direction, send))
        self.late = still

    def run(self, ready):
        context = zmq.Context()
        front = context.socket(zmq.ROUTER)
        front.setsockopt(zmq.ROUTER_HANDOVER, 1)
        front.bind(self.endpoint)
        backs = {}
        poller = zmq.Poller()
        poller.register(front, zmq.POLLIN)
        ready.set()
        while not self.stopping.is_set():
            for socket, _ in poller.poll(20):
                if socket is front:
                    who, *frames = front.recv_multipart()
                    if who not in backs:
                        backs[who] = context.socket(zmq.DEALER)
                        if who[:1] != b"\0":  # the peer's own choice, not made up by our socket
                            backs[who].setsockopt(zmq.IDENTITY, who)
                        backs[who].connect(self.broker)
                        poller.register(backs[who], zmq.POLLIN)
                    self.pass_on("up", frames, lambda back=backs[who], frames=frames: back.send_multipart(frames))
                else:
                    who = next(w for w, s in backs.items() if s is socket)
                    frames = socket.recv_multipart()
                    self.pass_on("down", frames, lambda who=who, frames=frames: front.send_multipart([who, *frames]))
            self.release()
        context.destroy(linger=0)

    def close(self):
        for fault in self.faults:
            fault.resolve()
        self.stopping.set()
        self.thread.join()
