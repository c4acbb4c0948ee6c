from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Dict, Iterator

import pytest

from se3_uploader import sdnotify


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A service manager's end of the socket, once as a file and once in the abstract namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            sock.bind(str(tmp_path / "notify"))
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        else:
            sock.bind(f"\0se3-uploader-{os.getpid()}")
            monkeypatch.setenv("NOTIFY_SOCKET", f"@se3-uploader-{os.getpid()}")
        sock.settimeout(5)
        yield sock


def heard(manager: socket.socket) -> Dict[str, str]:
    """The next message as NAME -> value."""
    lines = manager.recv(4096).decode().split("\n")
    return dict(line.split("=", 1) for line in lines)


def test_life_of_a_service_is_told_in_the_words_of_systemd(manager: socket.socket) -> None:
    """Start, progress, reload and stop arrive as sd_notify(3) spells them."""
    sdnotify.ready("12 pending, platform unreachable since 08:14")
    assert heard(manager) == {
        "READY": "1",
        "STATUS": "12 pending, platform unreachable since 08:14",
    }
    sdnotify.watchdog()
    assert heard(manager) == {"WATCHDOG": "1"}
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    sdnotify.reloading()
    told = heard(manager)
    assert told["RELOADING"] == "1"
    assert before <= int(told["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    sdnotify.ready()
    assert heard(manager) == {"READY": "1"}
    sdnotify.stopping()
    assert heard(manager) == {"STOPPING": "1"}


def test_status_stays_one_line(manager: socket.socket) -> None:
    """A line break inside a status cannot smuggle in another assignment; odd text arrives as ?."""
    sdnotify.status("broken\nSTOPPING=1 \ud800 大厅")
    assert heard(manager) == {"STATUS": "broken STOPPING=1 ? 大厅"}


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all", "/" + "x" * 300, "@"])
def test_without_a_listener_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside systemd, or with a socket that is gone, every call is silent."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    sdnotify.ready("x")
    sdnotify.status("x")
    sdnotify.reloading()
    sdnotify.watchdog()
    sdnotify.stopping()


def test_a_manager_that_does_not_read_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the queue full a call gives up after about a second instead of waiting for ever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(str(tmp_path / "notify"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    filler.sendto(b"x", str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        begin = time.monotonic()
        sdnotify.watchdog()
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("60000000", "ours", 30.0),
        ("60000000", None, 30.0),
        ("60000000", "1", None),
        (None, None, None),
        ("0", None, None),
        ("soon", None, None),
        ("60000000", "me", None),
    ],
)
def test_watchdog_interval(
    usec: str, pid: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what the unit asks for, and only where it is us that systemd watches."""
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "ours" else value)
    assert sdnotify.watchdog_interval() == seconds
