"""The sink on a healthy line: what goes out, what comes back, connections, closing."""

from __future__ import annotations

import gzip
import os
import random
import sys
import threading
import time
from typing import Any, Dict, Set

import pytest

from se3_uploader import __version__, config
from tests.http_server import DROP, HANG, RESET, SUCCESS, Reply, Request, Server
from tests.posting import BODY, Posting, post


def test_request_is_what_the_contract_says() -> None:
    """Method, path with query, headers and body arrive as the contract has them, byte for byte."""
    with Server() as server, Posting(server.url + "?box=1", headers={"X-Site": "hall"}) as posting:
        answer = posting.post(BODY, "3b9c")
        (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/HistoryEvent?box=1")
    assert request.body == BODY
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "content-type": "application/json; charset=utf-8",
        "user-agent": f"se3-uploader/{__version__}",
        "accept-encoding": "identity",
        "x-site": "hall",
        "idempotency-key": "3b9c",
        "content-length": str(len(BODY)),
    }
    assert (answer.status, answer.fault, answer.body) == (200, None, SUCCESS)
    assert 0 < answer.seconds < 5


def test_headers_of_the_configuration() -> None:
    """The configuration may replace a header, but not those that frame and identify a POST."""
    headers = {
        "user-agent": "gate",
        "host": "platform.example",
        "content-length": "3",
        "Idempotency-key": "same",
        "Transfer-Encoding": "chunked",
    }
    with Server() as server:
        assert post(server.url, headers=headers).status == 200
        (request,) = server.requests
    assert request.headers["user-agent"] == "gate"
    assert request.headers["host"] == "platform.example"
    assert request.headers["content-length"] == str(len(BODY))
    assert request.key == "key-0"
    assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize("size", [0, 1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 5_000_000])
def test_bodies_of_every_size(size: int) -> None:
    """A body arrives whole whether it leaves in one piece or in several blocks."""
    body = os.urandom(size)
    with Server() as server:
        assert post(server.url, body).status == 200
        assert server.requests[0].body == body


def test_compression() -> None:
    """With compression: gzip the body is compressed, says so, and is the same after unpacking."""
    body = BODY * 1000
    with Server() as server:
        assert post(server.url, body, compression="gzip").status == 200
        (request,) = server.requests
    assert request.headers["content-encoding"] == "gzip"
    assert len(request.body) < len(body) / 10
    assert gzip.decompress(request.body) == body


def test_connection_is_kept_and_no_thread_is_added_needlessly() -> None:
    """POSTs one after the other use one connection and no thread, whatever max_in_flight is."""
    with Server() as server, Posting(server.url, max_in_flight=8) as posting:
        posting.post()
        threads = threading.active_count()  # that which connected may not be gone yet
        for _ in range(50):
            assert posting.post().status == 200
        assert threading.active_count() <= threads
        assert server.connections == 1


def test_as_many_at_once_as_allowed() -> None:
    """max_in_flight POSTs are under way at the same time; more wait their turn, none is lost."""
    with Server(HANG) as server, Posting(server.url, max_in_flight=3) as posting:
        numbers = [posting.submit() for _ in range(7)]
        server.wait_until(lambda: len(server.requests) == 3)
        assert server.connections == 3
        server.script = Reply()
        server.disconnect()
        for number in numbers:
            posting.wait(number)
        faults = [posting.answers[number][0].fault for number in numbers]
    assert sorted(faults, key=str) == [None] * 4 + ["connection"] * 3


def test_cookies_are_not_kept() -> None:
    """A cookie set by one answer is not sent with the next POST."""
    with Server(Reply(headers={"Set-Cookie": "session=1"})) as server:
        with Posting(server.url) as posting:
            posting.post()
            posting.post()
        assert ["cookie" in request.headers for request in server.requests] == [False, False]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_reported_not_followed(status: int) -> None:
    """A redirect comes back as the status it is; the place it names is never asked."""
    with Server() as other, Server(Reply(status, headers={"Location": other.url})) as server:
        assert post(server.url).status == status
        assert (len(server.requests), other.connections) == (1, 0)


@pytest.mark.parametrize("status", [200, 201, 204, 304, 400, 401, 413, 422, 429, 500, 503, 999])
def test_every_status_comes_back(status: int) -> None:
    """The status is handed back unjudged, and the connection serves the next POST."""
    body = b"" if status in (204, 304) else b"no"
    with Server(Reply(status, body)) as server, Posting(server.url) as posting:
        for _ in range(2):
            answer = posting.post()
            assert (answer.status, answer.fault, answer.body) == (status, None, body)
        assert server.connections == 1


def test_nothing_is_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Neither a proxy nor a password in the environment changes where and how a POST goes."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Server() as server:
        assert post(server.url).status == 200
        assert "authorization" not in server.requests[0].headers


def test_proxy_of_the_endpoint() -> None:
    """An http endpoint behind a proxy is asked for through it, with the proxy's password."""
    with Server() as proxy:
        configured = proxy.url.replace("http://", "http://me:secret@").replace("/HistoryEvent", "")
        assert post("http://platform.example/HistoryEvent", proxy=configured).status == 200
        (request,) = proxy.requests
    assert request.target == "http://platform.example/HistoryEvent"
    assert request.headers["host"] == "platform.example"
    assert request.headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"


def test_submit_never_blocks() -> None:
    """Handing over is immediate while the platform hangs."""
    with Server(HANG) as server, Posting(server.url, max_in_flight=1) as posting:
        started = time.monotonic()
        for _ in range(1000):
            posting.submit()
        assert time.monotonic() - started < 1.0
        posting.close(0.0)


def test_close_waits_for_what_is_in_flight() -> None:
    """An answer that comes within the time given to close is handed back as it is."""
    with Server(Reply(delay=0.3)) as server:
        posting = Posting(server.url)
        number = posting.submit()
        server.wait_for(1)
        posting.close(5.0)
        assert [answer.status for answer in posting.answers[number]] == [200]
        server.wait_until(lambda: not server.open_connections)


@pytest.mark.parametrize("script", [HANG, Reply(drip=0.05, body=b"x" * 10_000)])
def test_close_cuts_off_what_hangs(script: Reply) -> None:
    """close() ends in time, hands back every delivery once, and leaves no thread behind."""
    before = set(threading.enumerate())
    with Server(script) as server:
        with_server = set(threading.enumerate())
        limits = config.Timeout(connect=60, read=60, total=60)
        posting = Posting(server.url, max_in_flight=4, timeout=limits, accept={"status": 0})
        numbers = [posting.submit() for _ in range(10)]
        server.wait_for(4)
        started = time.monotonic()
        posting.close(0.2)
        assert time.monotonic() - started < 1.0
        assert [[a.fault for a in posting.answers[n]] for n in numbers] == [["connection"]] * 10
        ours = set(threading.enumerate()) - with_server
        assert not [thread for thread in ours if "platform" in thread.name]
        with pytest.raises(RuntimeError):
            posting.submit()
    assert set(threading.enumerate()) <= before


def test_close_without_any_post() -> None:
    """A sink that was never used, or is closed twice, closes at once."""
    posting = Posting("http://127.0.0.1:9/")
    posting.close(5.0)
    posting.close(5.0)


def test_exactly_one_answer_for_each_delivery() -> None:
    """1,000 deliveries meet every kind of behaviour in random order; each is collected once.

    Whatever was answered 200 had arrived with its own key and body, and no answer went astray.
    """
    rng = random.Random(3)
    kinds = [
        *[Reply()] * 6,
        Reply(close=True),
        Reply(503, headers={"Retry-After": "1"}),
        Reply(delay=0.01),
        Reply(body=b"x" * 100_000),
        Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nshort"),
        Reply(raw=b"\x00\x01garbage\r\n\r\n"),
        Reply(raw=b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        DROP,
        RESET,
    ]
    planned = [rng.choice(kinds) for _ in range(1000)]
    attempts: Dict[str, int] = {}

    def script(request: Request) -> Reply:
        attempts[request.key] = attempts.get(request.key, 0) + 1
        return planned[int(request.key)]

    with Server(script) as server, Posting(server.url, max_in_flight=8) as posting:
        for number in range(1000):
            posting.submit(b"%d" % number, str(number))
        for number in range(1000):
            posting.wait(number)
        posting.close(5.0)
        assert {number: len(found) for number, found in posting.answers.items()} == dict.fromkeys(
            range(1000), 1
        )
        arrived: Set[str] = {r.key for r in server.requests if r.body == r.key.encode()}
        for number, (answer,) in posting.answers.items():
            reply = planned[number]
            assert str(number) in arrived
            if reply.raw is None:
                assert (answer.status, answer.fault) == (reply.status, None), reply
            elif reply in (DROP, RESET):
                assert (answer.status, answer.fault) == (None, "connection")
            elif b"short" in reply.raw:
                assert answer.status == 200
            else:
                assert (answer.status, answer.fault) == (None, "protocol"), reply
    repeated = {key for key, times in attempts.items() if times > 1}
    assert max(attempts.values()) <= 2
    assert all(planned[int(key)] in (DROP, RESET) for key in repeated)


def test_delivery_is_let_go() -> None:
    """An idle sink holds on to no body: no picture stays in memory for each connection."""
    body = os.urandom(1000)
    with Server() as server, Posting(server.url) as posting:
        before = sys.getrefcount(body)
        posting.post(body)
        posting.in_thread(lambda: None)  # the answer is known a moment before the loop is through
        assert sys.getrefcount(body) == before
