"""What the running daemon costs and how quick it is; each function makes one measurement."""

from __future__ import annotations

import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple

from benchmarks import events, uploader
from benchmarks.draining import ONCE, drain
from benchmarks.processes import ROOT, SETTLE, Platform, Program
from se3_uploader.demo import sample


class Finding(NamedTuple):
    """One measured number and what it should be."""

    what: str
    value: float
    unit: str
    bound: str
    """``<= 500``, ``>= 3`` or, where nothing is asked for, empty."""
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether the bound holds."""
        if not self.bound:
            return True
        relation, number = self.bound.split()
        return self.value <= float(number) if relation == "<=" else self.value >= float(number)


@contextmanager
def running(folder: Path, database: Path, url: str) -> Iterator[Program]:
    """The daemon on a database, with a fresh outbox in the folder."""
    shutil.rmtree(folder / "outbox", ignore_errors=True)
    with Program(uploader.daemon(folder, database, url), folder / "log") as program:
        try:
            yield program
        except TimeoutError as error:
            said = (folder / "log").read_text()[-2000:]
            raise RuntimeError(f"The daemon did not send what was waited for: {said}") from error
        program.finish(stop=True)


def first_post(folder: Path, rounds: int) -> List[Finding]:
    """Start of the process to the first request, with one event waiting."""
    database = events.create(folder / "one.db", 1, large=True)
    seconds = []
    for _ in range(rounds):
        with Platform() as platform, running(folder, database, platform.url) as daemon:
            seconds.append(platform.wait(1, timeout=30)["first"] - daemon.started)
    return [Finding("start to first POST (median)", statistics.median(seconds), "s", "<= 0.6")]


def idle(folder: Path, seconds: float) -> List[Finding]:
    """What the daemon costs while nothing happens, after it has sent some events."""
    database = events.create(folder / "idle.db", 100, large=True)
    with Platform() as platform, running(folder, database, platform.url) as daemon:
        platform.wait(100, timeout=60)
        time.sleep(SETTLE)
        before = daemon.usage()
        time.sleep(seconds)
        after = daemon.usage()
    cpu = 100 * (after.cpu - before.cpu) / seconds
    return [
        Finding("idle: RSS", after.rss / 1e6, "MB", "<= 45"),
        Finding("idle: CPU", cpu, "% of a core", "<= 0.1"),
        Finding("idle: wake-ups", (after.wakeups - before.wakeups) / seconds, "/s", "<= 2"),
        Finding("idle: written", after.written - before.written, "bytes", "<= 0"),
    ]


def latency(folder: Path, n: int) -> List[Finding]:
    """Commit in the event database to the request at the platform: n events, about 5 a second."""
    path = events.create(folder / "latency.db", 0, large=True)
    rng = random.Random(2)
    committed: Dict[str, float] = {}
    writer = sample.connect(str(path))
    with Platform(identify=True) as platform, running(folder, path, platform.url):
        time.sleep(SETTLE)
        for row in events.rows(n, large=True):
            time.sleep(rng.uniform(0.05, 0.35))
            sample.insert(writer, [row])
            committed[row["identity_id"]] = time.monotonic()
        arrivals = platform.wait(n, timeout=60)["arrivals"]
    writer.close()
    delays = sorted(1000 * (arrivals[number] - at) for number, at in committed.items())
    return [
        Finding("commit to request: p50", delays[n // 2], "ms", "<= 100"),
        Finding("commit to request: p99", delays[n * 99 // 100], "ms", "<= 400"),
    ]


def trickle(folder: Path, seconds: int) -> List[Finding]:
    """What one event a second makes the daemon write to the disk."""
    path = events.create(folder / "trickle.db", 0, large=True)
    writer = sample.connect(str(path))
    with Platform() as platform, running(folder, path, platform.url) as daemon:
        time.sleep(SETTLE)
        before = daemon.usage().written
        for row in events.rows(seconds, large=True):
            sample.insert(writer, [row])
            time.sleep(1)
        platform.wait(seconds, timeout=60)
        time.sleep(SETTLE)
        written = (daemon.usage().written - before) / seconds
    writer.close()
    return [Finding("one event a second: written", written, "bytes per event", "<= 24000")]


def round_trip(folder: Path, n: int) -> List[Finding]:
    """Throughput against a platform that takes 50 ms to answer, relative to the most possible."""
    path = events.create(folder / "line.db", n, large=True)
    with Platform(delay_ms=50) as platform, running(folder, path, platform.url):
        report = platform.wait(n, timeout=600)
    rate = n / (report["last"] - report["first"])
    most = uploader.IN_FLIGHT / 0.05
    note = f"{uploader.IN_FLIGHT} in flight"
    return [
        Finding("50 ms round trip: events", rate, "/s", "", note),
        Finding("50 ms round trip: of in-flight / 0.05 s", rate / most, "", ">= 0.95", note),
    ]


def backlog(folder: Path, n: int) -> List[Finding]:
    """Memory with so many events of 160 KB waiting for a platform that is away."""
    room = shutil.disk_usage(folder).free // 2
    n = min(n, room // 200_000)
    empty = events.create(folder / "empty.db", 0, large=True)
    path = events.create(folder / "backlog.db", n, large=True)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/HistoryEvent"
    with running(folder, empty, url) as daemon:
        time.sleep(SETTLE)
        idle_rss = daemon.usage().rss
    with running(folder, path, url) as daemon:
        before, pending = -1, 0
        while before < pending:  # until no more are taken in
            time.sleep(3 * SETTLE)
            before, pending = pending, _pending(folder)
        usage = daemon.usage()
    path.unlink()
    more = (usage.peak_rss - idle_rss) / 1e6
    note = f"{pending} events of 160 KB waiting"
    return [
        Finding("backlog: RSS", usage.rss / 1e6, "MB", "", note),
        Finding("backlog: peak RSS above idle", more, "MB", "<= 10", note),
    ]


def _pending(folder: Path) -> int:
    """The events waiting, as the status command tells."""
    command = [sys.executable, *uploader.STATUS, str(folder / "uploader.yaml")]
    status = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE).stdout)
    return int(status["endpoints"][0]["pending"])


def linearity(folder: Path, few: int, many: int) -> List[Finding]:
    """CPU per event and memory of draining many small events, relative to few."""
    idle_cpu = drain(ONCE, events.create(folder / "none.db", 0, large=False), 0).cpu / 1000
    runs = []
    for n in (few, many):
        path = events.create(folder / f"small-{n}.db", n, large=False)
        runs.append(drain(ONCE, path, n, idle_cpu))
        path.unlink()
    first, last = runs
    more = (last.peak_rss - first.peak_rss) / 1e6
    note = f"{many} events beside {few}"
    return [
        Finding("linear: CPU per event, many / few", last.cpu / first.cpu, "", "<= 1.15", note),
        Finding("linear: peak RSS, many", last.peak_rss / 1e6, "MB", "", note),
        Finding("linear: peak RSS, many - few", more, "MB", "<= 5", note),
    ]
