"""kill -9 at random instants, of the daemon alone and of everything at once."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Dict, List

import pytest

from ..http_server import Reply, Server
from ..site import Process, Site, deliver, numbers
from .daemon import RETRY, assert_all_arrived, pause, until

pytestmark = pytest.mark.slow

KILLS = 200
PATIENCE = 300.0
"""Seconds for the backlog in the end: the longer a busy machine took, the more was written."""
UNRECORDED = 100 + 2 * 4
"""Answers that are written together, up to one short of the limit and then one of each request in
flight; and what is in flight after them."""


class Writer:
    """A thread of the box that writes events, a few at a time, until it is told to stop."""

    def __init__(self, site: Site, pause: float) -> None:
        self.written = 0
        self._site = site
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            self._site.add(*range(self.written + 1, self.written + 4))
            self.written += 3

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def repeats_by_run(arrived: List[int], ends: List[int]) -> List[int]:
    """How many events each run sent again; the very last run included.

    AssertionError where an event had been followed by so many others before its run began that it
    must have been recorded. Events sent again do not count as others, as a run that is killed
    within the wait for receipts records nothing.
    """
    repeats = []
    rank: Dict[int, int] = {}
    for begin, end in zip([0, *ends], [*ends, len(arrived)]):
        before = len(rank)
        again = [number for number in arrived[begin:end] if rank.get(number, before) < before]
        assert all(before - UNRECORDED <= rank[number] for number in again)
        assert len(set(arrived[begin:end])) == end - begin, "twice in one run"
        for number in arrived[begin:end]:
            rank.setdefault(number, len(rank))
        repeats.append(len(again))
    return repeats


def test_two_hundred_kills(tmp_path: Path) -> None:
    """Nothing is lost, and only what the killed process had not recorded is sent again."""
    rng = random.Random(1)
    site = Site(tmp_path)
    ends: List[int] = []
    with Server(Reply(delay=0.003)) as platform, Writer(site, 0.02) as writer:
        config = site.configure(platform.url, retry=RETRY)
        for _ in range(KILLS):
            before = len(platform.requests)
            with Process(config) as process:
                until(lambda: len(platform.requests) > before)  # noqa: B023
                pause(rng.uniform(0, 0.2))
                process.popen.kill()
                process.popen.wait()
            # What was on its way when the process died is taken in before the next one starts.
            until(lambda: platform.open_connections == 0)
            ends.append(len(platform.requests))
    with Server(Reply()) as last:
        config = site.configure(last.url, retry=RETRY)
        deliver(config, PATIENCE)
        platform.requests += last.requests
    assert_all_arrived(site, platform, range(1, writer.written + 1))
    repeats = repeats_by_run(numbers(platform), ends)
    assert max(repeats) <= UNRECORDED
    print(f"{writer.written} events, {KILLS} kills, {sum(repeats)} repeats, at most {max(repeats)}")


WRITER = """
import itertools, sys, time
from pathlib import Path
from tests.site import Site
site = Site.__new__(Site)
site.events = Path(sys.argv[1])
for number in itertools.count(int(sys.argv[2])):
    site.add(number)
    print(number, flush=True)
"""


def test_everything_dies_at_once(tmp_path: Path) -> None:
    """The box's writer and the daemon die together: what the writer had committed arrives."""
    rng = random.Random(2)
    site = Site(tmp_path, journal="delete")
    committed = 0
    with Server(Reply(delay=0.003)) as platform:
        config = site.configure(platform.url, retry=RETRY)
        for _ in range(10):
            before = len(platform.requests)
            with Process(config) as process:
                writer = subprocess.Popen(
                    [sys.executable, "-c", WRITER, str(site.events), str(committed + 1)],
                    cwd=Path(__file__).parent.parent.parent, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                until(lambda: len(platform.requests) > before)  # noqa: B023
                pause(rng.uniform(0, 0.3))
                for victim in (writer, process.popen):
                    os.kill(victim.pid, signal.SIGKILL)
                said = writer.communicate()[0].split()
            committed = max(committed, *map(int, said))
            # The last commit may have come through without a word about it.
            rows = site_rows(site)
            assert rows >= committed
            committed = rows
    with Server() as last:
        deliver(site.configure(last.url, retry=RETRY), PATIENCE)
        platform.requests += last.requests
    assert_all_arrived(site, platform, range(1, committed + 1))


def site_rows(site: Site) -> int:
    """How many events the box has, rolled back to the last commit."""
    with closing(sqlite3.connect(site.events, timeout=10)) as database:
        return int(database.execute("SELECT count(*) FROM event").fetchone()[0])


def test_stopped_and_continued(tmp_path: Path) -> None:
    """A process that is frozen for a while goes on where it was, without a word twice."""
    site = Site(tmp_path)
    with Server(Reply(delay=0.003)) as platform, Writer(site, 0.02) as writer:
        config = site.configure(platform.url, retry=RETRY)
        with Process(config) as process:
            for _ in range(5):
                before = len(platform.requests)
                until(lambda: len(platform.requests) > before + 5)  # noqa: B023
                process.signal(signal.SIGSTOP)
                frozen_at = writer.written
                until(lambda: writer.written > frozen_at + 20)  # noqa: B023
                process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
            assert process.end() == 0
    with Server() as last:
        deliver(site.configure(last.url, retry=RETRY), PATIENCE)
        platform.requests += last.requests
    assert_all_arrived(site, platform, range(1, writer.written + 1))
    assert max(Counter(numbers(platform)).values()) == 1


def test_flapping_platform(tmp_path: Path) -> None:
    """A platform that answers every other second in another way gets everything once it may."""
    rng = random.Random(3)
    moods = (
        Reply(), Reply(503), Reply(429, headers={"Retry-After": "1"}), Reply(raw=b""),
        Reply(raw=b"", reset=True), Reply(delay=0.2), Reply(raw=b"what?\r\n\r\n"), Reply(404),
    )  # fmt: skip
    site = Site(tmp_path)
    with Server() as platform, Writer(site, 0.02) as writer:
        config = site.configure(platform.url, retry=RETRY)
        with Process(config) as process:
            for _ in range(30):
                platform.script = rng.choice(moods)
                pause(rng.uniform(0.05, 0.5))
            platform.script = Reply()
            before = writer.written
            until(lambda: site.account()["delivered"] > before)
            process.signal(signal.SIGTERM)
            assert process.end() == 0
    with Server() as last:
        deliver(site.configure(last.url, retry=RETRY), PATIENCE)
        platform.requests += last.requests
    assert_all_arrived(site, platform, range(1, writer.written + 1))
