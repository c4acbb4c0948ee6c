"""A backfill of a large past: quick to plan, flat in memory, unnoticed by others."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Dict, List, Optional

import pytest

from se3_uploader.config import Config
from se3_uploader.source import Key, open_source

from .backfills import Done, backfill, end, span, start
from .http_server import Reply, Server
from .site import Process, Site, event
from .terminals import TOP
from .test_backfill_beside import live_latencies

_MEASURED = """
import resource, sys, time
from se3_uploader import cli
began = time.monotonic(), time.process_time()
code = cli.main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("measured", time.monotonic() - began[0], time.process_time() - began[1], used,
      file=sys.stderr)
sys.exit(code)
"""


def site_in(folder: Path) -> Site:
    """A site in a folder of its own."""
    folder.mkdir()
    return Site(folder)


def old_rows(site: Site, count: int) -> None:
    """Rows without pictures, as many as asked for, in one statement."""
    names = ("identity_id", "identity_name", "group_name", "timestamp", "score")
    first = event(0)
    with closing(sqlite3.connect(site.events)) as database, database:
        database.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
            f" INSERT INTO event ({', '.join(names)})"
            " SELECT CAST(i AS TEXT), ?, ?, ? + i, ? FROM n",
            [first[name] for name in names[1:]],
        )


def plan_measured(config: Config, count: int) -> Dict[str, float]:
    """Plan for so many rows; seconds of the clock and of the processor, and peak memory in KB."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, "backfill", "-c", config.path, "--json", "--dry-run",
         *span(0, count + 1)],
        cwd=TOP, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Done(0, done.stdout, "").plan["events"] == count
    wall, processor, used = map(float, done.stderr.split("measured")[1].split())
    return {"wall": wall, "processor": processor, "memory": used}


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_plan_is_quick_and_flat(tmp_path: Path, count: int) -> None:
    """A million rows without an index on the time are planned in 5 s, in the memory of a few."""
    few, many = Site(tmp_path), site_in(tmp_path / "many")
    old_rows(few, 100)
    old_rows(many, count)
    least = plan_measured(few.configure("http://127.0.0.1:9/"), 100)
    most = plan_measured(many.configure("http://127.0.0.1:9/"), count)
    assert most["processor"] - least["processor"] < 5.0 * count / 1_000_000 + 0.5
    assert most["memory"] - least["memory"] < 20 * 1024


def test_writer_is_never_held_up_by_a_plan(tmp_path: Path) -> None:
    """With a rollback journal a read keeps the writer out: no write waits 100 ms for a plan.

    On a machine with more work than processors one in fifty may, while the reader is off its own.
    """
    site = Site(tmp_path, journal="delete")
    old_rows(site, 200_000)
    config = site.configure("http://127.0.0.1:9/")
    planning = start(config, *span(0, 300_000), "--dry-run")
    waits: List[float] = []
    pause = threading.Event()
    with closing(sqlite3.connect(site.events, timeout=0)) as database:
        database.execute("PRAGMA synchronous = OFF")
        while planning.poll() is None:
            waits.append(write(database, pause))
            pause.wait(0.002)
    assert end(planning).code == 0
    assert len(waits) > 50
    assert sum(wait > 0.1 for wait in waits) <= len(waits) / 50
    assert max(waits) < 1.0


def write(database: sqlite3.Connection, pause: threading.Event) -> float:
    """Change a row; seconds that a reader's lock kept us from it."""
    began = last = time.monotonic()
    while True:
        try:
            with database:
                database.execute("UPDATE event SET score = 0.7 WHERE id = 1")
            return last - began
        except sqlite3.OperationalError:
            pause.wait(0.001)
            last = time.monotonic()


@pytest.mark.slow
def test_live_events_keep_their_latency_beside_10_000(tmp_path: Path) -> None:
    """p99 of live events stays below a second while a backfill of 10,000 runs."""
    site = Site(tmp_path)
    old_rows(site, 10_000)
    with Server(Reply(delay=0.01)) as platform:
        config = site.configure(platform.url, source={"start": "latest"})
        with Process(config) as daemon:
            daemon.wait_for("ready")
            running = start(config, *span(1, 10_001))
            platform.wait_for(100)
            waits: List[float] = []
            while running.poll() is None:
                waits += live_latencies(site, platform, 20_001 + len(waits), 1)
            assert end(running).code == 0
    assert len(waits) >= 100
    assert sorted(waits)[int(len(waits) * 0.99)] < 1.0


@pytest.mark.slow
def test_whole_run_is_flat(tmp_path: Path) -> None:
    """Skipping a hundred thousand known events, to the very end, takes no more memory."""
    used = []
    for count in (1_000, 100_000):
        site = site_in(tmp_path / str(count))
        old_rows(site, count)
        with Server() as platform:
            config = site.configure(platform.url)
            assert backfill(config, *span(1, 2)).code == 0
            mark_delivered(site, config, count)
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            assert backfill(config, *span(0, count + 1)).summary == {"p0": {"delivered": count}}
            assert len(platform.requests) == 1
            used.append(max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
    assert used[1] - used[0] < 20 * 1024


def mark_delivered(site: Site, config: Config, count: int) -> None:
    """Make all events but the first delivered ones, as if the daemon had run all the time."""
    source = open_source(config.source)
    after: Optional[Key] = 1
    with closing(sqlite3.connect(site.outbox)) as outbox, outbox:
        while after is not None:
            page = source.between(0, 2**60, after, 20_000)
            outbox.executemany(
                "INSERT INTO delivery (endpoint_id, generation_id, key, fingerprint, lane, state,"
                " strip, attempts, at) VALUES (1, 1, ?, ?, 0, 1, 0, 1, 0)",
                page.refs,
            )
            after = page.scanned_to
        outbox.execute("UPDATE ledger SET seen = ?, delivered = ?, pending = 0", (count, count))
    source.close()
