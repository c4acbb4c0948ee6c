"""Nothing grows without bound: memory, threads, connections and requests while a backlog waits."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Dict

import psutil
import pytest

from .http_server import Reply, Server
from .site import Process, Site, Switch, event, sums

MIB = 1024**2
PICTURE = b"\xff\xd8" + os.urandom(60_000)


def footprint(daemon: Process) -> Dict[str, float]:
    """What a process holds: MiB of memory, threads, open files and connections."""
    process = psutil.Process(daemon.popen.pid)
    return {
        "memory": process.memory_info().rss / MIB,
        "threads": process.num_threads(),
        "files": process.num_fds(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("max_size", [1, 64 * MIB])
def test_memory_does_not_grow_with_the_backlog(tmp_path: Path, max_size: int) -> None:
    """With 2,000 events of 160 KB waiting the daemon holds at most 10 MiB more than with none.

    That is while the platform is away, with copies and without; draining takes a little more.
    """
    site = Site(tmp_path)
    room = {"path": str(site.outbox), "max_size": max_size, "min_free_disk": 0}
    retry = {"base": "50ms", "cap": "100ms"}
    with Server() as platform:
        config = site.configure(platform.url, outbox=room, retry=retry)
        with Process(config) as daemon:
            site.add(*(event(number, spot_pic=PICTURE, reg_pic=PICTURE) for number in range(20)))
            platform.wait_for(20)
            threading.Event().wait(1.0)
            none = footprint(daemon)
        for first in range(100, 2100, 100):
            site.add(*(event(first + n, spot_pic=PICTURE, reg_pic=PICTURE) for n in range(100)))
        platform.script = switch = Switch(Reply(503))
        with Process(config) as daemon:
            platform.wait_for(20 + 100, timeout=60.0)
            waiting = footprint(daemon)
            switch.down = None
            most: Dict[str, float] = dict.fromkeys(waiting, 0.0)

            def drained() -> bool:
                for name, found in footprint(daemon).items():
                    most[name] = max(most[name], found)
                return len(switch.accepted) == 2000

            platform.wait_until(drained, timeout=120.0)
    assert waiting["memory"] < none["memory"] + 10, (none, waiting)
    assert most["memory"] < none["memory"] + 24, (none, most)
    assert most["threads"] <= none["threads"] + 4
    assert most["files"] <= none["files"] + 8


def test_requests_per_second_while_away(tmp_path: Path) -> None:
    """However many events wait, a platform that is away is asked less and less often."""
    site = Site(tmp_path)
    site.add(*range(1, 1001))
    slow: Dict[str, Any] = {"retry": {"cap": "60s"}, "source": {"poll_interval": "30s"}}
    with Server(Reply(503)) as platform, site.uploader(platform, **slow) as uploader:
        uploader.run_for(1800.0)
        first = len(platform.requests)
        site.add(*range(1001, 2001))
        uploader.run_for(1800.0)
        assert len(platform.requests) - first <= 1800 / 30
        assert len(uploader.queue.held) < 600, "entries in memory"
    assert site.account() == sums(seen=2000, pending=2000)
