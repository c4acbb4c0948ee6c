"""Answers out of turn: before the request has left, in pieces, or while the engine was busy."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Callable, List, Optional

import pytest

from se3_uploader import config
from tests.http_server import Reply, Server
from tests.posting import Posting
from tests.test_sink_tls import CA, Tunnel, server_tls

OK = Reply(body=b"").encode()
BIG = b"x" * 8_000_000
"""More than the buffers of any socket hold."""


class Platform:
    """Calls a function with each connection, in a thread of its own."""

    def __init__(
        self, serve: Callable[[socket.socket], None], tls: Optional[ssl.SSLContext] = None
    ) -> None:
        self._serve, self._tls = serve, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.port = self._listener.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            try:
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                with connection:
                    self._serve(connection)
            except OSError:
                pass  # hung up

    def __enter__(self) -> Platform:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(15)
        self._listener.close()


def head_of(connection: socket.socket) -> int:
    """Read a request up to its body; returns how many bytes of that are still to come."""
    data = b""
    while b"\r\n\r\n" not in data:
        block = connection.recv(1000)
        if not block:
            raise ConnectionError("hung up")
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.rpartition(b"Content-Length: ")[2]) - len(body)


def body_of(connection: socket.socket, size: int) -> int:
    """Read so many bytes; returns how many came."""
    received = 0
    while received < size:
        block = connection.recv(200_000)
        if not block:
            break
        received += len(block)
    return received


def test_acceptance_counts_once_the_platform_has_it_all() -> None:
    """A platform may say 200 first and read then: it gets the whole body, not the beginning."""
    missing: List[int] = []

    def serve(connection: socket.socket) -> None:
        left = head_of(connection)
        connection.sendall(OK)
        missing.append(left - body_of(connection, left))

    with Platform(serve) as platform, Posting(platform.url) as posting:
        assert posting.post(BIG).status == 200
    assert missing == [0]


def test_acceptance_of_what_was_not_read_is_none() -> None:
    """Where a platform says 200 and hangs up before it has the body, the event is not delivered."""

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(OK)

    with Platform(serve) as platform, Posting(platform.url) as posting:
        answer = posting.post(BIG)
    assert (answer.status, answer.fault) == (None, "connection")


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_a_late_second_answer_is_not_that_of_the_next_post(tmp_path: Path, secure: bool) -> None:
    """What comes on a kept connection before the next request has left is none to that one."""
    missing: List[int] = []
    connections: List[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        connections.append(connection)
        left = head_of(connection)
        missing.append(left - body_of(connection, left))
        connection.sendall(OK)
        if len(connections) == 1:
            head_of(connection)  # of the big one, which is on its way
            connection.sendall(OK)
            body_of(connection, 1000)

    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = config.Tls(ca_file=str(tmp_path / "ca.pem"))
    with Platform(serve, server_tls() if secure else None) as platform:
        with Posting(platform.url, tls=tls, max_in_flight=1) as posting:
            assert posting.post(b"{}").status == 200
            assert posting.post(BIG).status == 200
        assert (missing, len(connections)) == ([0, 0], 2)


def test_a_refusal_is_heard_through_two_layers_of_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 413 before the body has left is heard, and waiting for it takes no turns of the loop."""

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        time.sleep(0.5)  # until the line is full: nothing tells the platform so
        connection.sendall(Reply(413, b"").encode())
        connection.recv(1)
        time.sleep(1.0)  # and leaves the rest where it is

    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    established = b"HTTP/1.1 200 Connection established\r\n\r\n"
    limits = config.Timeout(connect=2, read=5, total=10)
    with Platform(serve, server_tls()) as platform, Tunnel(
        established, platform.port, server_tls()
    ) as tunnel, Posting(platform.url, proxy=tunnel.url, timeout=limits) as posting:
        assert posting.post(BIG + BIG).status == 413
        assert posting.turns < 2_000


@pytest.mark.parametrize("pieces", [[OK[:17], OK[17:-2], OK[-2:]], [bytes([b]) for b in OK]])
def test_an_answer_that_came_in_time_counts(tmp_path: Path, pieces: List[bytes]) -> None:
    """Records of TLS that came while the engine was busy beyond the time limit are all read."""
    answered = threading.Event()

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        for piece in pieces:
            connection.sendall(piece)
        answered.set()
        connection.recv(1)

    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = config.Tls(ca_file=str(tmp_path / "ca.pem"))
    limits = config.Timeout(connect=2, read=1, total=1)
    with Platform(serve, server_tls()) as platform, Posting(
        platform.url, tls=tls, timeout=limits
    ) as posting:

        def submit_and_be_busy() -> None:
            posting.submit_here(b"{}")
            while not answered.is_set():
                posting.turn(0.05)
            time.sleep(1.2)  # reading a database, say

        posting.in_thread(submit_and_be_busy)
        assert posting.wait(0).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_alert_on_a_kept_connection(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A kept connection that ends in a TLS error, unanswered, is replaced like any that died."""
    connections: List[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        connections.append(connection)
        body_of(connection, head_of(connection))
        connection.sendall(OK)
        if len(connections) == 1:
            body_of(connection, head_of(connection))
            os.write(connection.fileno(), b"\x15\x03\x03\x00\x02\x02\x50")  # a fatal alert

    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = config.Tls(ca_file=str(tmp_path / "ca.pem"))
    context = server_tls()
    context.minimum_version = context.maximum_version = version
    with Platform(serve, context) as platform, Posting(platform.url, tls=tls) as posting:
        assert posting.post().status == 200
        assert posting.post().status == 200
        assert len(connections) == 2


def test_many_small_records(tmp_path: Path) -> None:
    """An answer may come in as many records as it has bytes."""
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = config.Tls(ca_file=str(tmp_path / "ca.pem"))
    reply = Reply(body=os.urandom(3_000), drip=1e-6)
    with Server(reply, tls=server_tls()) as server, Posting(server.url, tls=tls) as posting:
        assert posting.post().body == reply.body


def test_closing_waits_for_nobody_who_is_connecting() -> None:
    """However many sinks hang in connecting, each is closed at once, and every answer is there."""
    limits = config.Timeout(connect=20, read=20, total=20)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with socket.create_connection(listener.getsockname()):  # the only place in the queue
            postings = [Posting(url, timeout=limits) for _ in range(5)]
            for posting in postings:
                posting.submit()
            started = time.monotonic()
            for posting in postings:
                posting.close(0.0)
                assert posting.wait(0).fault == "connection"
            assert time.monotonic() - started < 1.0
