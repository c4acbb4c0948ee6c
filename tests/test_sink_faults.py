"""The sink on a bad line: faults, time limits, dead connections, hostile answers."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Dict, List, Optional

import pytest

from se3_uploader import config
from tests.http_server import DROP, FOREVER, HANG, RESET, Reply, Server
from tests.posting import Posting, post

QUICK = config.Timeout(connect=0.3, read=0.3, total=0.6)
BIG = b"x" * 20_000_000
"""More than the buffers of any socket hold."""


def test_refused() -> None:
    """A port where nobody listens is a connection fault that names host and port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    answer = post(f"http://127.0.0.1:{port}/HistoryEvent?secret=1")
    assert (answer.status, answer.fault) == (None, "connection")
    assert answer.detail == f"127.0.0.1:{port}: Connection refused"


def test_comes_back_after_a_refusal() -> None:
    """A platform that was down is reached by the same sink as soon as it is up."""
    with Server() as server:
        port = server.port
    with Posting(f"http://127.0.0.1:{port}/") as posting:
        assert posting.post().fault == "connection"
        with Server(port=port):
            assert posting.post().status == 200


@pytest.mark.parametrize("script", [DROP, RESET])
def test_fresh_connection_that_dies_is_not_tried_again(script: Reply) -> None:
    """Without an answer on a new connection the platform has a problem: one attempt, one fault."""
    with Server(script) as server:
        answer = post(server.url)
        assert (answer.fault, len(server.requests)) == ("connection", 1)


@pytest.mark.parametrize("script", [DROP, RESET])
def test_kept_connection_that_dies_unanswered_is_replaced(script: Reply) -> None:
    """A kept-alive connection that dies on us is replaced at once, under the same key."""
    with Server([Reply(), script, Reply()]) as server, Posting(server.url) as posting:
        posting.post()
        assert posting.post(key="same").status == 200
        assert [request.connection for request in server.requests] == [0, 0, 1]
        assert [request.key for request in server.requests[1:]] == ["same", "same"]


def test_only_one_more_attempt() -> None:
    """When the new connection dies too the fault is reported, and nothing is tried a third time."""
    with Server([Reply(), DROP]) as server, Posting(server.url) as posting:
        posting.post()
        assert posting.post().fault == "connection"
        assert len(server.requests) == 3


def test_kept_connection_that_dies_in_its_answer_is_not_tried_again() -> None:
    """After the first line of an answer a POST is not repeated within the call."""
    started = Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Le", reset=True)
    with Server([Reply(), started, Reply()]) as server, Posting(server.url) as posting:
        posting.post()
        posting.post()
        assert len(server.requests) == 2


def test_connection_closed_while_idle() -> None:
    """A connection that the platform closed between POSTs costs nothing: it is opened anew."""
    with Server() as server, Posting(server.url) as posting:
        for _ in range(3):
            assert posting.post().status == 200
            server.disconnect()
            server.wait_until(lambda: not server.open_connections)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("script", "at_most"),
    [
        (HANG, 0.5),
        (Reply(drip=0.1), 0.9),
        (Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, drip=0.001), 0.9),
    ],
    ids=["never answers", "byte by byte", "promises for ever"],
)
def test_slow_answers_end_in_time(script: Reply, at_most: float) -> None:
    """Neither silence nor an answer byte by byte holds a connection beyond the limits."""
    with Server(script) as server, Posting(server.url, timeout=QUICK) as posting:
        answer = posting.post()
        assert answer.fault == "timeout", answer
        assert answer.seconds < at_most + 0.3
        server.script = Reply()
        assert posting.post().status == 200


def test_total_holds_for_every_one_of_many() -> None:
    """Each POST has its own deadline, also when they began at different times."""
    drip = Reply(drip=0.05)
    with Server(drip) as server, Posting(server.url, timeout=QUICK, max_in_flight=4) as posting:
        numbers = []
        for count in range(1, 5):
            numbers.append(posting.submit())
            server.wait_for(count)
        answers = [posting.wait(number) for number in numbers]
    assert {answer.fault for answer in answers} == {"timeout"}
    assert all(QUICK.total - 0.05 < answer.seconds < QUICK.total + 0.3 for answer in answers)


def test_platform_that_stops_reading() -> None:
    """Sending has time limits as well: a platform that reads no further is given up."""
    with Server(early=Reply(delay=FOREVER)) as server:
        answer = post(server.url, BIG, timeout=QUICK)
    assert answer.fault == "timeout"
    assert answer.seconds < 0.9


def test_long_body_may_take_longer_than_connect_and_read_timeout() -> None:
    """Over a slow line a long body has all the time it needs, as long as blocks of it leave."""
    limits = config.Timeout(connect=0.3, read=0.6, total=20)
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, Posting(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=limits) as p:
        number = p.submit(BIG)
        connection, _ = listener.accept()
        with connection:
            received = 0
            started = time.monotonic()
            while received < len(BIG):
                block = connection.recv(400_000)
                assert block, "given up in the middle"
                received += len(block)
                time.sleep(0.03)  # the line is slow: this is the point
            assert time.monotonic() - started > limits.connect + limits.read
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert p.wait(number).status == 204


def test_what_the_kernel_still_sends_is_under_way() -> None:
    """A body that the kernel took at once has the time it needs to leave over a thin line.

    The time limit holds from then on, and a line on which nothing moves any more is given up.
    """
    limits = config.Timeout(connect=0.5, read=0.5, total=20)
    body = b"x" * 300_000  # fits into the buffer of the sender, and into that of the receiver not
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with Posting(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=limits) as posting:
            number = posting.submit(body)
            connection, _ = listener.accept()
            with connection:
                received, started = 0, time.monotonic()
                while received < len(body):
                    block = connection.recv(20_000)
                    assert block, "given up in the middle"
                    received += len(block)
                    time.sleep(0.1)  # the line is thin: this is the point
                assert time.monotonic() - started > 2 * limits.read
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert posting.wait(number).status == 204
            number = posting.submit(body)
            connection, _ = listener.accept()
            with connection:
                answer = posting.wait(number)
            assert answer.fault == "timeout"
            assert answer.detail.endswith("nothing moved for 0.5 s")
            assert answer.seconds < 3 * limits.read


def test_answer_may_take_longer_than_the_connect_timeout() -> None:
    """A platform that thinks for a while is waited for, however short connecting may take."""
    limits = config.Timeout(connect=0.2, read=5, total=5)
    with Server(Reply(delay=0.5)) as server:
        assert post(server.url, timeout=limits).status == 200


def test_silent_host() -> None:
    """A host that does not even accept is given up after the connect timeout."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):  # the only place in the queue
            answer = post(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=QUICK)
    assert answer.fault == "timeout"
    assert answer.detail.endswith("no connection within 0.3 s")
    assert answer.seconds < 0.6


def test_early_answer_is_heard() -> None:
    """A platform may refuse a body by its headers and hang up: its 413 counts, not the hang-up."""
    with Server(early=Reply(413)) as server, Posting(server.url) as posting:
        found = [posting.post(BIG[:300_000]).status for _ in range(10)]
    assert found.count(413) >= 8  # the reset may overtake the answer on its way


GARBAGE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP 0.9": b"<html>hello</html>",
    "status no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "status too small": b"HTTP/1.1 20\r\n\r\n",
    "HTTP 2": b"HTTP/2 200 OK\r\n\r\n",
    "endless first line": b"HTTP/1.1 200 " + b"a" * 1_000_000,
    "endless header": b"HTTP/1.1 200 OK\r\nA: " + b"a" * 1_000_000,
    "header flood": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
    "interim flood": b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
    "protocol switched": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    "chunk no number": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n\r\n",
    "chunk too long": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}, {}\r\n0\r\n\r\n"
    ),
    "chunk below zero": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n\r\n",
}


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE.keys())
def test_broken_http(raw: bytes) -> None:
    """What is no HTTP is a protocol fault, and the next POST starts on a clean connection."""
    with Server([Reply(raw=raw), Reply()]) as server:
        with Posting(server.url, accept={"status": 0}) as posting:
            answer = posting.post()
            assert (answer.status, answer.fault) == (None, "protocol"), answer
            assert posting.post().status == 200
        assert [request.connection for request in server.requests] == [0, 1]


def test_body_is_cut_at_64_kib() -> None:
    """Of a huge body the beginning is kept, whether its length is told or not."""
    huge = b"y" * 2_000_000
    replies = [
        Reply(body=huge),
        Reply(raw=b"HTTP/1.1 200 OK\r\n\r\n" + huge),
        Reply(
            headers={"Transfer-Encoding": "chunked"},
            body=b"".join(b"%x\r\n%s\r\n" % (50_000, huge[:50_000]) for _ in range(9))
            + b"0\r\n\r\n",
        ),
        Reply(body=b"y" * 64 * 1024),
    ]
    with Server(replies) as server, Posting(server.url) as posting:
        for _ in replies:
            assert posting.post().body == b"y" * 64 * 1024
        assert posting.post().status == 200


def test_chunk_without_an_end() -> None:
    """A chunk of size -1, which Python's own reader takes to have no end, is not read at all."""
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + b"{" * 60_000
    with Server(Reply(raw=raw, drip=0.0001)) as server:
        answer = post(server.url, timeout=QUICK, accept={"status": 0})
    assert answer.fault == "protocol", answer


def test_compressed_bomb_stays_packed() -> None:
    """An answer is never unpacked, though it says that it could be."""
    bomb = gzip.compress(b"\0" * 10_000_000)
    with Server(Reply(body=bomb, headers={"Content-Encoding": "gzip"})) as server:
        assert post(server.url).body == bomb


BROKEN_BODIES = {
    "too short": Reply(raw=b"HTTP/1.1 %d X\r\nContent-Length: 90\r\n\r\n{"),
    "broken chunk": Reply(raw=b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
    "reset": Reply(raw=b"HTTP/1.1 %d X\r\nContent-Length: 90\r\n\r\n{", reset=True),
    "byte by byte": Reply(raw=b"HTTP/1.1 %d X\r\n\r\n" + b"{" * 60_000, drip=0.0001),
}


@pytest.mark.parametrize("reply", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
@pytest.mark.parametrize(
    ("status", "accept", "expected"),
    [(200, {}, 200), (500, {"status": 0}, 500), (200, {"status": 0}, None)],
)
def test_body_that_breaks_off(
    reply: Reply, status: int, accept: Dict[str, int], expected: Optional[int]
) -> None:
    """A body that breaks off is a fault only where it decides whether the event was accepted."""
    assert reply.raw is not None
    script = Reply(raw=reply.raw.replace(b"%d", b"%d" % status), drip=reply.drip, reset=reply.reset)
    with Server(script) as server:
        answer = post(server.url, timeout=QUICK, accept=accept)
    assert (answer.status, answer.body) == (expected, b"")
    assert (answer.fault is None) == (expected is not None)


NOW = 1_700_000_000


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": "99999999999999999999"}, 86400.0),
        ({"Retry-After": "9" * 10_000}, 86400.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": formatdate(NOW + 90, usegmt=True), "Date": formatdate(NOW)}, 90.0),
        ({"Retry-After": formatdate(NOW, usegmt=True), "Date": formatdate(NOW + 90)}, 0.0),
        ({"Retry-After": formatdate(NOW, usegmt=True)}, 0.0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86400.0),
        ({"Retry-After": "Fri, 99 Foo 9999 99:99:99 GMT"}, None),
    ],
)
def test_retry_after(headers: Dict[str, str], seconds: Optional[float]) -> None:
    """Retry-After is read as seconds or a date by the platform's own clock, within bounds."""
    with Server(Reply(503, headers=headers)) as server:
        answer = post(server.url)
    assert (answer.status, answer.retry_after) == (503, seconds)


def test_details_hold_nothing_of_the_answer_or_the_url() -> None:
    """No words of the platform, the path or the user part of the URL come through to people."""
    for raw in (
        b"SECRET\r\n",
        b"HTTP/1.1 SECRET\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"SECRET: 1\r\n" * 999,
    ):
        with Server(Reply(raw=raw)) as server:
            url = server.url.replace("//", "//SECRET:SECRET@") + "?token=SECRET"
            answer = post(url, b"SECRET")
        assert answer.fault == "protocol"
        assert "SECRET" not in answer.detail
        assert f"127.0.0.1:{server.port}" in answer.detail


PUBLIC = """
import subprocess, sys
from se3_uploader import config
from tests.http_server import Server
from tests.posting import post

for command in ("link set lo up", "addr add 203.0.113.9/32 dev lo", "addr add fd00::9/128 dev lo"):
    subprocess.run(["ip", *command.split()], check=True)
strip = config.Pictures(reg_pic="strip", spot_pic="strip")
token = config.Auth(bearer_file=sys.argv[1])
cases = [
    ("203.0.113.9", dict(), "plaintext"),
    ("203.0.113.9", dict(pictures=config.Pictures(reg_pic="strip", spot_pic="small")), "plaintext"),
    ("203.0.113.9", dict(pictures=strip, auth=token), "plaintext"),
    ("203.0.113.9", dict(pictures=strip, headers={"authorization": "x"}), "plaintext"),
    ("203.0.113.9", dict(kind="device_status", auth=token), "plaintext"),
    ("203.0.113.9", dict(pictures=strip), None),
    ("203.0.113.9", dict(kind="device_status"), None),
    ("203.0.113.9", dict(auth=token, allow_plaintext=True), None),
    ("127.0.0.1", dict(auth=token), None),
    ("fd00::9", dict(auth=token), None),
]
for host, changes, fault in cases:
    with Server(host=host) as server:
        answer = post(server.url, **changes)
        assert answer.fault == fault, (host, changes, answer)
        assert bool(server.received) == (fault is None), (host, changes, server.received)
        proxied = post("http://platform.example/", proxy=server.url[:-13], **changes)
        assert proxied.fault == fault, (host, changes, proxied)
with Server(host="203.0.113.9") as server:
    assert post(server.url.replace("http:", "HTTP:")).fault == "plaintext"
    proxy = server.url[:-13].replace("//", "//me:secret@")
    assert post("https://platform.example/", proxy=proxy).fault == "plaintext"
    assert server.received == 0
answer = post("http://platform.example/HistoryEvent")
assert answer.fault == "connection" and "cannot be resolved" in answer.detail, answer
print("all cases hold")
"""


def test_nothing_in_plain_text_to_a_public_address(tmp_path: Path) -> None:
    """Over http to a public address no byte of a token or picture leaves, unless it is allowed.

    In a network namespace of its own, as only there a public address is at hand that is ours. It
    has no name server, so a name that cannot be resolved is shown here as well.
    """
    enter: List[str] = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare (util-linux) and ip (iproute2)")
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make network namespaces")
    (tmp_path / "token").write_text("t0ken")
    command = [*enter, sys.executable, "-c", PUBLIC, str(tmp_path / "token")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.stdout == "all cases hold\n", done.stderr
