"""The disk of the outbox fails under the daemon: strace injects errors into system calls."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ..http_server import Server
from ..site import Site
from .daemon import RETRY, Daemon, assert_all_arrived, needs, until

pytestmark = [pytest.mark.slow, needs("strace")]

EVENTS = 300


@pytest.mark.parametrize(
    "injected",
    [
        "fsync,fdatasync:error=EIO:when=3..12",
        "fsync,fdatasync:error=ENOSPC:when=3+4",
        "pwrite64:error=EIO:when=20..60",
        "pwrite64:error=ENOSPC:when=20..60",
        "pwrite64:error=ENOSPC:when=15+9",
        "fsync,fdatasync:delay_enter=300000:when=3..12",
    ],
)
def test_failing_system_calls(tmp_path: Path, injected: str) -> None:
    """Errors of the disk lose nothing, send nothing twice, and the account is true in the end."""
    site = Site(tmp_path)
    site.outbox.parent.mkdir(mode=0o700)
    trace = tmp_path / "trace"
    strace = [
        "strace", "-f", "-qq", "-o", str(trace), "-e", f"inject={injected}",
        "-P", str(site.outbox), "-P", f"{site.outbox}-wal",
    ]  # fmt: skip
    with Server() as platform:
        config = site.configure(platform.url, retry=RETRY)
        with Daemon(config, strace) as process:
            process.wait_for("ready", timeout=60)
            for begin in range(1, EVENTS, 30):
                site.add(*range(begin, begin + 30))
                until(lambda: len(platform.requests) >= begin + 29)  # noqa: B023
            until(lambda: site.account()["delivered"] == EVENTS)
            process.signal(signal.SIGTERM)
            process.end(60)
    assert "INJECTED" in trace.read_text() or "DELAYED" in trace.read_text()
    assert_all_arrived(site, platform, range(1, EVENTS + 1))
    assert len(platform.requests) == EVENTS
    assert site.rows("PRAGMA integrity_check") == [("ok",)]
