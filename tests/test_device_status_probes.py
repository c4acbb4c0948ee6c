"""Probes against real listening, closed and silent sockets on the loopback interface."""

from __future__ import annotations

import errno
import socket
import time
from contextlib import ExitStack
from typing import Iterator, Optional

import pytest

from se3_uploader.config import SubDevice
from se3_uploader.device_status.probes import probe, seen_within, statuses

NOW = 1_700_000_000_000


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of 127.0.0.1 that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections: bound, so that nobody else takes it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    """A port of all of 127.0.0.0/8 that answers nothing at all, like a camera without power."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=0))
        for _ in range(4):  # once the backlog is full the kernel drops every further SYN
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            assert filler.connect_ex(("127.0.0.1", server.getsockname()[1])) == errno.EINPROGRESS
        yield server.getsockname()[1]


def test_accepted_refused_and_silent(listening: int, closed: int, silent: int) -> None:
    """Only a device that accepts the connection is online, however the others fail."""
    targets = {"127.0.0.1": listening, "127.0.0.2": closed, "127.0.0.3": silent}
    assert probe(targets, 0.2) == {"127.0.0.1": True, "127.0.0.2": False, "127.0.0.3": False}


def test_64_silent_devices_cost_one_limit(silent: int) -> None:
    """All probes run at once: 64 dead cameras take as long as one, not longer than the limit."""
    targets = {f"127.0.1.{number}": silent for number in range(1, 65)}
    started = time.monotonic()
    answers = probe(targets, 0.5)
    assert 0.5 <= time.monotonic() - started < 2
    assert answers == dict.fromkeys(targets, False)


def test_answers_end_the_wait(listening: int, closed: int) -> None:
    """Where every device answers, nobody waits for the limit."""
    started = time.monotonic()
    probe({"127.0.0.1": listening, "127.0.0.2": closed}, 5)
    assert time.monotonic() - started < 1


def test_ipv6() -> None:
    """IPv6 devices are probed as well."""
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert probe({"::1": server.getsockname()[1]}, 1) == {"::1": True}


def test_no_dns(listening: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name is never looked up: no answer, and for the report offline with the reason."""
    asked = []
    lookup = socket.getaddrinfo

    def watched(host: str, *arguments: int, flags: int, **more: int) -> object:
        asked.append(flags)
        return lookup(host, *arguments, flags=flags, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    assert probe({"localhost": listening}, 1) == {}
    assert asked == [socket.AI_NUMERICHOST]
    found = statuses([SubDevice("localhost", probe=f"tcp:{listening}")], {}, NOW, 1)
    assert found.online == {"localhost": False}
    assert "localhost is not an IP address" in found.problems[0]


@pytest.mark.parametrize("address", ["", "a\0b", "x" * 300, "\ud800", "127.0.0.1 "])
def test_odd_addresses(address: str, listening: int) -> None:
    """Whatever a database holds as an address, the probes of the others go on."""
    assert probe({address: listening, "127.0.0.1": listening}, 1) == {"127.0.0.1": True}


def test_unreachable_network() -> None:
    """A device the kernel refuses to connect to at once is offline, not an error."""
    assert probe({"255.255.255.255": 80}, 1) == {"255.255.255.255": False}


def test_each_device_by_its_probe(listening: int, closed: int) -> None:
    """tcp asks the port, seen asks the events, none takes the device for online."""
    devices = [
        SubDevice("127.0.0.1", probe=f"tcp:{listening}"),
        SubDevice("127.0.0.2", probe=f"tcp:{closed}"),
        SubDevice("10.0.0.1", probe="seen:10m"),
        SubDevice("10.0.0.2", probe="seen:10m"),
        SubDevice("10.0.0.3", probe="seen:10m"),
        SubDevice("10.0.0.4", probe="none"),
    ]
    seen = {"10.0.0.1": NOW - 599_000, "10.0.0.2": NOW - 601_000}
    assert statuses(devices, seen, NOW, 1) == (
        {
            "127.0.0.1": True,
            "127.0.0.2": False,
            "10.0.0.1": True,
            "10.0.0.2": False,
            "10.0.0.3": False,
            "10.0.0.4": True,
        },
        [],
    )


@pytest.mark.parametrize(
    ("newest", "online"),
    [
        (None, False),
        (NOW, True),
        (NOW - 60_000, True),
        (NOW - 60_001, False),
        (NOW + 60_000, True),
        (NOW + 60_001, False),
    ],
)
def test_seen_within_a_minute(newest: Optional[int], online: bool) -> None:
    """The age counts to the millisecond; an event from our future proves nothing either."""
    assert seen_within(60, newest, now_ms=NOW) is online
