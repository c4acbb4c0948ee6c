"""A platform that costs next to nothing: one thread, epoll, bodies counted and thrown away.

Runs in a process of its own (``python -m benchmarks.receiver``) and prints its port. It answers
every POST with 200 and ``{"status": 0}``, after a delay if asked; ``GET /report`` tells what came,
``GET /wait/N`` does so as soon as N different Idempotency-Keys have come.
"""

from __future__ import annotations

import argparse
import heapq
import json
import re
import select
import socket
import time
from dataclasses import dataclass, field
from typing import Dict, List, Tuple

HEAD = 4096
"""Bytes of the first read of a request: its head, and as little of the body as possible."""
OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"status": 0}'
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
KEY = re.compile(rb"\r\nidempotency-key: *([^\r]+)", re.IGNORECASE)
IDENTITY = re.compile(rb'"identity_id": ?"(\d+)"')


@dataclass
class Connection:
    """One client: what came of the head of its request, and how much of the body is missing."""

    socket: socket.socket
    head: bytearray = field(default_factory=bytearray)
    body: bytearray = field(default_factory=bytearray)
    missing: int = 0


class Receiver:
    """Counts requests; all times are CLOCK_MONOTONIC, the same in every process of the machine."""

    def __init__(self, delay: float, identify: bool) -> None:
        self.delay = delay
        self.identify = identify
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.epoll = select.epoll()
        self.epoll.register(self.listener, select.EPOLLIN)
        self.connections: Dict[int, Connection] = {}
        self.scratch = memoryview(bytearray(1 << 20))
        self.answers: List[Tuple[float, int, Connection]] = []
        self.waiting: List[Tuple[int, Connection]] = []
        self.requests = self.bytes = 0
        self.keys: set[bytes] = set()
        self.first = self.last = self.first_cpu = self.last_cpu = 0.0
        self.arrivals: Dict[str, float] = {}

    def serve(self) -> None:
        """Serve for ever."""
        while True:
            # epoll would wait up to a millisecond too long, as it counts whole ones, upwards.
            due = self.answers[0][0] - time.monotonic() if self.answers else 0
            pause = max(0.0, due - 0.001) if self.answers else -1
            for number, _ in self.epoll.poll(pause):
                if number == self.listener.fileno():
                    self.accept()
                else:
                    self.read(self.connections[number])
            while self.answers and self.answers[0][0] <= time.monotonic():
                self.send(heapq.heappop(self.answers)[2], OK)

    def accept(self) -> None:
        """Take in a new client."""
        client, _ = self.listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections[client.fileno()] = Connection(client)
        self.epoll.register(client, select.EPOLLIN)

    def close(self, connection: Connection) -> None:
        """Forget a client that went away."""
        self.epoll.unregister(connection.socket)
        del self.connections[connection.socket.fileno()]
        connection.socket.close()

    def send(self, connection: Connection, answer: bytes) -> None:
        """Answer a client, unless it has left."""
        if connection.socket.fileno() in self.connections:
            connection.socket.sendall(answer)

    def read(self, connection: Connection) -> None:
        """Take in what a client sent. Nobody pipelines, so a request ends with what was read."""
        # MSG_TRUNC: the kernel drops the bytes of a TCP stream instead of copying them to us.
        drop = connection.missing and not self.identify
        try:
            count = connection.socket.recv_into(
                self.scratch, connection.missing or HEAD, socket.MSG_TRUNC if drop else 0
            )
        except ConnectionError:
            count = 0
        if not count:
            self.close(connection)
            return
        if not connection.missing:
            connection.head += self.scratch[:count]
            end = connection.head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = LENGTH.search(connection.head, 0, end + 2)
            connection.body += connection.head[end + 4 :]
            connection.missing = int(length.group(1)) - len(connection.body) if length else 0
            del connection.head[end + 2 :]
        else:
            connection.missing -= count
            if self.identify:
                connection.body += self.scratch[:count]
        if not connection.missing:
            self.answer(connection)

    def answer(self, connection: Connection) -> None:
        """Count a whole request and answer it, now or after the delay."""
        head, body = bytes(connection.head), bytes(connection.body)
        connection.head.clear()
        connection.body.clear()
        if head.startswith(b"GET /wait/"):
            self.waiting.append((int(head.split()[1].rsplit(b"/", 1)[1]), connection))
        elif head.startswith(b"GET"):
            self.send(connection, self.report())
        else:
            self.count(head, body)
            if self.delay:
                due = time.monotonic() + self.delay
                heapq.heappush(self.answers, (due, self.requests, connection))
            else:
                self.send(connection, OK)
        for want, waiter in [w for w in self.waiting if len(self.keys) >= w[0]]:
            self.waiting.remove((want, waiter))
            self.send(waiter, self.report())

    def count(self, head: bytes, body: bytes) -> None:
        """Write down one POST."""
        self.last = time.monotonic()
        self.last_cpu = time.process_time()
        if not self.requests:
            self.first, self.first_cpu = self.last, self.last_cpu
        self.requests += 1
        length, key = LENGTH.search(head), KEY.search(head)
        self.bytes += int(length.group(1)) if length else 0
        if key:
            self.keys.add(key.group(1))
        identity = IDENTITY.search(body) if body else None
        if identity:
            self.arrivals.setdefault(identity.group(1).decode(), self.last)

    def report(self) -> bytes:
        """What came so far, as an HTTP answer."""
        body = json.dumps(
            {
                "requests": self.requests,
                "keys": len(self.keys),
                "bytes": self.bytes,
                "first": self.first,
                "last": self.last,
                "cpu": self.last_cpu - self.first_cpu,
                "arrivals": self.arrivals,
            }
        ).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def main() -> None:
    """Serve on a free loopback port until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--identify", action="store_true", help="note when which event came")
    options = parser.parse_args()
    receiver = Receiver(options.delay_ms / 1000, options.identify)
    print(receiver.listener.getsockname()[1], flush=True)
    receiver.serve()


if __name__ == "__main__":
    main()
