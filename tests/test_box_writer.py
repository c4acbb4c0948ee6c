"""The program that writes the event database never notices us."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import pytest

from .http_server import Server
from .site import Process, Site, event

PATIENCE = 0.1
"""Seconds that the writer may have to wait for us at most."""
FEW = 8
"""Pages of its WAL that our reads may add."""
LIVE = 300
PICTURE = bytes(50_000)


def write(site: Site, count: int, size: int, *beside: int) -> Dict[str, List[float]]:
    """Have a process write events, beside the daemon of this pid; returns what it tells."""
    command = [sys.executable, "-m", "tests.box_writer", str(site.events), str(count), str(size)]
    done = subprocess.run(
        [*command, *map(str, beside)], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE,
        check=True, timeout=120,
    )  # fmt: skip
    told: Dict[str, List[float]] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_the_writer_never_waits(tmp_path: Path, journal: str) -> None:
    """While the daemon delivers a backlog and follows what is written, no commit waits 100 ms.

    Counted is how long a lock of ours is in the way, and not for how long the machine had no
    processor for whoever held it.
    """
    site = Site(tmp_path, journal=journal)
    site.add(*(event(number, spot_pic=PICTURE, reg_pic=PICTURE) for number in range(1, 401)))
    with Server() as platform, Process(site.configure(platform.url)) as daemon:
        platform.wait_for(20)
        told = write(site, LIVE, len(PICTURE), daemon.popen.pid)
        platform.wait_until(lambda: site.account()["delivered"] == 400 + LIVE, timeout=60.0)
    print(
        f"{len(told['waits'])} waits, longest {max(told['waits'], default=0.0):.3f} s,"
        f" {max(told['held'], default=0.0):.3f} s of it for us"
    )
    assert len(told["log"]) == LIVE
    assert all(held < PATIENCE for held in told["held"])
    if journal == "wal":
        assert not told["waits"]


def test_the_wal_does_not_grow_for_us(tmp_path: Path) -> None:
    """The writer's WAL is emptied as soon beside the daemon as without it, but for a few pages."""
    (tmp_path / "alone").mkdir()
    site, alone = Site(tmp_path), Site(tmp_path / "alone")
    site.add(*range(1, 3001))
    with Server() as platform, Process(site.configure(platform.url)) as daemon:
        platform.wait_for(20)
        told = write(site, LIVE, 60, daemon.popen.pid)
        platform.wait_until(lambda: site.account()["delivered"] == 3000 + LIVE, timeout=60.0)
    usual = max(write(alone, 50, 60)["log"])
    fair = [pages for pages, late in zip(told["log"], told["starved"]) if late < 0.002]
    print(f"usual {usual}, beside us at most {max(told['log'])}, {max(fair)} where we could run")
    assert len(fair) > LIVE / 10
    assert max(fair) <= usual + FEW
