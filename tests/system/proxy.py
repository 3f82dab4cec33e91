"""Sits between a client and the broker; drops, doubles or delays replies of one kind, once each."""

import threading

import zmq


class Proxy:
    """Clients connect to .endpoint. fault: (message type byte, "drop" | "double" | "delay")."""

    def __init__(self, folder, broker, fault, name):
        self.endpoint, self.broker, self.fault = f"ipc://{folder}/proxy-{name}", broker, fault
        self.done = False  # the fault has happened
        self.stopping = threading.Event()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        self.ready.wait()

    def run(self):
        context = zmq.Context()
        front = context.socket(zmq.ROUTER)
        front.bind(self.endpoint)
        backs, late = {}, []
        self.ready.set()
        poller = zmq.Poller()
        poller.register(front, zmq.POLLIN)
        while not self.stopping.is_set():
            for socket, _ in poller.poll(20):
                if socket is front:
                    who, *frames = front.recv_multipart()
                    if who not in backs:
                        backs[who] = context.socket(zmq.DEALER)
                        backs[who].connect(self.broker)
                        poller.register(backs[who], zmq.POLLIN)
                    backs[who].send_multipart(frames)
                    continue
                who = next(w for w, s in backs.items() if s is socket)
                frames = socket.recv_multipart()
                kind, what = self.fault
                if not self.done and frames[0][3] == kind:
                    self.done = True
                    if what == "drop":
                        continue
                    if what == "delay":
                        late.append([who, frames])
                        continue
                    front.send_multipart([who, *frames])
                front.send_multipart([who, *frames])
                # What was held back goes out after the next message has overtaken it.
                while late:
                    front.send_multipart([late[0][0], *late.pop(0)[1]])
        context.destroy(linger=0)

    def close(self):
        self.stopping.set()
        self.thread.join()
