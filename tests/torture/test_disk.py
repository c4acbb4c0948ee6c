"""The disk of the outbox fails under the daemon: strace injects errors into system calls."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ..http_server import Server
from ..site import Site, deliver
from .daemon import RETRY, Daemon, assert_all_arrived, needs, until

pytestmark = [pytest.mark.slow, needs("strace")]

EVENTS = 300


@pytest.mark.parametrize(
    "injected",
    [
        "fsync,fdatasync:error=EIO:when=6..15",
        "fsync,fdatasync:error=ENOSPC:when=6+4",
        "pwrite64:error=EIO:when=50..65",
        "pwrite64:error=ENOSPC:when=50..65",
        "pwrite64:error=ENOSPC:when=50+60",
        "fsync,fdatasync:delay_enter=300000:when=6..15",
    ],
)
def test_failing_system_calls(tmp_path: Path, injected: str) -> None:
    """Errors of the disk lose nothing, send nothing twice, and the account is true in the end."""
    site = Site(tmp_path)
    site.add(0)
    trace = tmp_path / "trace"
    strace = [
        "strace", "-D", "-f", "-qq", "-o", str(trace), "-e", f"inject={injected}",
        "-P", str(site.outbox), "-P", f"{site.outbox}-wal",
    ]  # fmt: skip
    with Server() as platform:
        config = site.configure(platform.url, retry=RETRY)
        deliver(config)  # the outbox is there when the first error comes
        with Daemon(config, strace) as process:
            process.wait_for("ready", timeout=60)
            for begin in range(1, EVENTS, 30):
                site.add(*range(begin, begin + 30))
                until(lambda: len(platform.requests) >= begin + 30)  # noqa: B023
            until(lambda: site.account()["delivered"] == EVENTS + 1)
            process.signal(signal.SIGTERM)
            process.end(60)
    assert "INJECTED" in trace.read_text() or "DELAYED" in trace.read_text()
    assert_all_arrived(site, platform, range(EVENTS + 1))
    assert len(platform.requests) == EVENTS + 1
    assert site.rows("PRAGMA integrity_check") == [("ok",)]
