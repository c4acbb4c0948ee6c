"""The wall clock of the daemon jumps: libfaketime changes it under the running process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Tuple

import pytest

from ..http_server import Reply, Server
from ..site import Site
from .daemon import RETRY, Daemon, assert_all_arrived, until

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LIBRARY is None, reason="needs the package libfaketime"),
]


@pytest.mark.parametrize("jumps", [("+365d", "-365d"), ("-365d", "+365d"), ("-20000d", "+0d")])
def test_clock_jumps(tmp_path: Path, jumps: Tuple[str, ...]) -> None:
    """A year on, a year back, from 1970 to now: all arrive, once, and no receipt is deleted."""
    site = Site(tmp_path)
    clock = tmp_path / "clock"
    clock.write_text("+0d" if jumps[0] != "-20000d" else jumps[0])
    environment = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    count = 0
    with Server() as platform:
        config = site.configure(platform.url, retry=RETRY)
        with Daemon(config, environment=environment) as process:
            process.wait_for("ready", timeout=60)
            for jump in ("", *jumps):
                if jump:
                    clock.write_text(jump)
                site.add(*range(count + 1, count + 21))
                count += 20
                until(lambda: site.account()["delivered"] == count)  # noqa: B023
            process.signal(signal.SIGTERM)
            assert process.end() == 0
    assert_all_arrived(site, platform, range(1, count + 1))
    assert len(platform.requests) == count
    assert site.rows("SELECT count(*) FROM delivery WHERE state = 1") == [(count,)]


def test_waits_do_not_follow_the_clock(tmp_path: Path) -> None:
    """A retry that is due in a moment is not put off by a clock that goes back a year."""
    site = Site(tmp_path)
    clock = tmp_path / "clock"
    clock.write_text("+0d")
    environment = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with Server(Reply(503)) as platform:
        config = site.configure(platform.url, retry=RETRY)
        with Daemon(config, environment=environment) as process:
            process.wait_for("ready", timeout=60)
            site.add(1)
            platform.wait_for(2, 30)
            clock.write_text("-365d")
            platform.script = Reply()
            until(lambda: site.account()["delivered"] == 1, 20)
