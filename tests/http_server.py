"""A real HTTP or HTTPS server on loopback that answers by script and remembers what it was asked.

    with Server() as server:                        # 200 {"status": 0, "message": "SUCCESS"}
        ... POST to server.url ...
        request, = server.wait_for(1)
        assert request.key == "..." and request.json()["score"] == 0.9

    Server(Reply(503))                              # always the same
    Server([Reply(503), DROP, Reply()])             # one after the other, the last for ever
    Server(lambda request: Reply(413 if len(request.body) > 1000 else 200))
    Server(Reply(delay=2))                          # answers late
    Server(Reply(drip=0.1))                         # answers byte by byte
    Server(HANG), Server(DROP), Server(RESET)       # never, hangs up, hangs up rudely
    Server(Reply(raw=b"what ever"))                 # exactly these bytes, then hangs up
    Server(early=Reply(413))                        # answers after the headers, leaves the body
    Server(tls=context)                             # see tests/test_sink_tls.py for contexts
    Server(port=port)                               # comes back where another one was stopped

`server.script` may be replaced at any time. Nothing here sleeps: `stop` ends every delay at once.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from http.client import responses
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union

SUCCESS = b'{"status": 0, "message": "SUCCESS"}'
FOREVER = float("inf")


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    target: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    connection: int
    """0 for the first connection of the server, 1 for the next ..."""
    at: float
    """time.monotonic() when it was complete."""

    @property
    def key(self) -> str:
        """The idempotency key."""
        return self.headers["idempotency-key"]

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """How to answer. Content-Length is added unless the headers hold one or Transfer-Encoding."""

    status: int = 200
    body: bytes = SUCCESS
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before the first byte."""
    drip: float = 0.0
    """Seconds between any two bytes, headers included."""
    raw: Optional[bytes] = None
    """These bytes in place of an answer; then the connection is closed."""
    close: bool = False
    """Close after the answer, without a word about it in the headers: keep-alive gone stale."""
    reset: bool = False
    """Close by TCP reset."""

    def encode(self) -> bytes:
        """The bytes of the answer."""
        if self.raw is not None:
            return self.raw
        headers = dict(self.headers)
        if not {name.lower() for name in headers} & {"content-length", "transfer-encoding"}:
            headers["Content-Length"] = str(len(self.body))
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


HANG = Reply(delay=FOREVER)
DROP = Reply(raw=b"")
RESET = Reply(raw=b"", reset=True)

Script = Union[Reply, Sequence[Reply], Callable[[Request], Reply]]


class Server:
    """Started by `with` or start(), on a free port unless told otherwise."""

    def __init__(
        self,
        script: Script = Reply(),
        *,
        early: Optional[Reply] = None,
        tls: Optional[ssl.SSLContext] = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.script = script
        self.early = early
        self.tls = tls
        self.host = host
        self.port = port
        self.requests: List[Request] = []
        """Complete requests in order of arrival."""
        self.connections = 0
        """How many were accepted so far."""
        self.received = 0
        """Bytes from clients, after decryption: 0 means that nothing of an event got here."""
        self.tls_errors: List[str] = []
        """Handshakes that came to nothing."""
        self._open: Dict[int, socket.socket] = {}
        self._threads: List[threading.Thread] = []
        self._changed = threading.Condition()
        self._stopping = threading.Event()

    @property
    def url(self) -> str:
        """http://HOST:PORT/HistoryEvent, or https."""
        scheme = "https" if self.tls else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/HistoryEvent"

    @property
    def open_connections(self) -> int:
        """How many there are now."""
        with self._changed:
            return len(self._open)

    def start(self) -> Server:
        """Listen; returns itself."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, self.port), family=family, backlog=128)
        self.port = self._listener.getsockname()[1]
        self._stopping.clear()
        self._spawn(self._accept)
        return self

    def stop(self) -> None:
        """Hang up on everybody and free the port."""
        self._stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self.disconnect()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()
        self._threads.clear()

    def disconnect(self) -> None:
        """Close all connections, as a platform does with idle ones."""
        with self._changed:
            for connection in self._open.values():
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def wait_for(self, count: int, timeout: float = 10.0) -> List[Request]:
        """Wait until so many requests have come, and return all there are."""
        return self.wait_until(lambda: len(self.requests) >= count, timeout)

    def wait_until(self, holds: Callable[[], bool], timeout: float = 10.0) -> List[Request]:
        """Wait until something about the server holds; AssertionError if it does not in time."""
        with self._changed:
            assert self._changed.wait_for(holds, timeout), (
                f"not in {timeout} s; {self.connections} connections, {len(self.requests)} requests"
            )
            return list(self.requests)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                number = self.connections
                self.connections += 1
                self._open[number] = connection
                self._changed.notify_all()
            self._spawn(self._serve, connection, number)

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
                with self._changed:
                    self._open[number] = connection
            while not self._stopping.is_set() and self._exchange(connection, number):
                pass
        except ssl.SSLError as error:
            self.tls_errors.append(str(error))
        except OSError:
            pass
        finally:
            connection.close()
            with self._changed:
                self._open.pop(number, None)
                self._changed.notify_all()

    def _exchange(self, connection: socket.socket, number: int) -> bool:
        """Read a request and answer; False when the connection is over."""
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            if not self._receive(connection, data):
                return False
        head, _, _ = bytes(data[:end]).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        if self.early:
            self._send(connection, self.early)
            return False
        del data[: end + 4]
        while len(data) < int(headers.get("content-length", 0)):
            if not self._receive(connection, data):
                return False
        request = Request(method, target, headers, bytes(data), number, time.monotonic())
        with self._changed:
            self.requests.append(request)
            reply = self._reply(request)
            self._changed.notify_all()
        return self._send(connection, reply)

    def _receive(self, connection: socket.socket, data: bytearray) -> bool:
        block = connection.recv(256 * 1024)
        self.received += len(block)
        data += block
        return bool(block)

    def _reply(self, request: Request) -> Reply:
        if isinstance(self.script, Reply):
            return self.script
        if callable(self.script):
            return self.script(request)
        return self.script[min(len(self.requests), len(self.script)) - 1]

    def _send(self, connection: socket.socket, reply: Reply) -> bool:
        """Answer; False when the connection is over."""
        if reply.delay and self._stopping.wait(None if reply.delay == FOREVER else reply.delay):
            return False
        data = reply.encode()
        step = 1 if reply.drip else max(1, len(data))
        for start in range(0, len(data), step):
            connection.sendall(data[start : start + step])
            if reply.drip and self._stopping.wait(reply.drip):
                return False
        if reply.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return reply.raw is None and not reply.close
