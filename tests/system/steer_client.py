"""A Steerfarm client from the specification alone: pyzmq, protobuf and steer.proto (docs/protocol.md).

Nothing of libsteer is in it; it is what a stranger would write.
"""

import subprocess
import tempfile
import time
import zlib
from pathlib import Path

import zmq
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTO = Path(__file__).resolve().parents[2] / "proto"


def load():
    with tempfile.NamedTemporaryFile() as f:
        subprocess.run(["protoc", f"--proto_path={PROTO}", f"--descriptor_set_out={f.name}", "steer.proto"], check=True)
        files = descriptor_pb2.FileDescriptorSet.FromString(Path(f.name).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    classes = message_factory.GetMessageClassesForFiles(["steer.proto"], pool)
    types = pool.FindEnumTypeByName("steerfarm.MessageType").values_by_name
    return {k.split(".")[-1]: v for k, v in classes.items()}, {n: v.number for n, v in types.items()}


MESSAGES, TYPES = load()
NAMES = {v: k for k, v in TYPES.items()}
# The message of a type byte: its name in capitals, letters only.
BODIES = {"".join(c for c in k.upper()): v for k, v in MESSAGES.items()}
BODIES["RESULT_ACK"] = MESSAGES["ResultAck"]


class Refused(Exception):
    def __init__(self, m):
        super().__init__(f"{m.code}: {m.text}")
        self.code, self.text, self.message = m.code, m.text, m


class Client:
    def __init__(self, endpoint, hello=True, identity=None):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        # A client that only sends, while what it has not read piles up, does not see its connection end: send raises zmq.Again.
        self.socket.setsockopt(zmq.SNDTIMEO, 5000)
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(endpoint)
        self.tag = 0
        if hello:
            self.hello()

    def close(self):
        self.socket.close()

    def send(self, name, payload=None, **fields):
        body = BODIES[name](**fields)
        frames = [bytes([ord("S"), ord("F"), 1, TYPES[name]]), body.SerializeToString()]
        self.socket.send_multipart(frames + ([payload] if payload is not None else []))

    def receive(self, seconds=10.0):
        """(name, message, payload) or None."""
        if not self.socket.poll(int(seconds * 1000)):
            return None
        head, body, *rest = self.socket.recv_multipart()
        assert head[:3] == b"SF\x01", head
        name = NAMES[head[3]]
        return name, BODIES[name].FromString(body), rest[0] if rest else None

    def expect(self, *names, seconds=20.0, tag=None):
        """The next message of one of those names (a REFUSED raises); others are passed over."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            got = self.receive(left)
            if got is None:
                break
            name, message, payload = got
            if name == "REFUSED" and "REFUSED" not in names and (tag is None or message.tag == tag):
                raise Refused(message)
            if name in names and (tag is None or message.tag == tag):
                return got
        raise TimeoutError(f"no {' or '.join(names)} in {seconds} s")

    def hello(self, seconds=20.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.send("HELLO", version_min=1, version_max=1, role=1, software="steer_client.py")
            try:
                return self.expect("WELCOME", seconds=1.0)[1]
            except TimeoutError:
                pass
            except Refused as e:  # what was sent to a broker before reached its successor first
                if e.code != "HELLO_REQUIRED":
                    raise
        raise TimeoutError("no WELCOME")

    def ask(self, name, answer, seconds=20.0, **fields):
        self.tag += 1
        self.send(name, tag=self.tag, **fields)
        return self.expect(answer, tag=self.tag, seconds=seconds)[1]

    def submit(self, key, seconds=20.0, **job):
        return self.ask("SUBMIT", "ACCEPTED", seconds=seconds, key=key, job=MESSAGES["Job"](**job))

    def query(self, kind, **fields):
        return self.ask("QUERY", "REPLY", kind=kind, **fields)

    def fetch(self, job, credit=8, seconds=60.0):
        """All images of a job as {index: (result, bytes)}, acknowledged, until DONE."""
        images = {}
        self.send("FETCH", job=job, credit=credit)
        while True:
            name, m, payload = self.expect("RESULT", "DONE", seconds=seconds)
            if name == "DONE":
                if m.status.job == job:
                    return images, m.status
                continue
            assert m.bytes == len(payload) and m.crc32 == zlib.crc32(payload)
            images[m.index] = (m, payload)
            self.send("RESULT_ACK", job=job, indices=[dict(first=m.index, last=m.index)])
