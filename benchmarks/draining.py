"""A database full of events, drained by each contestant in turn, several times."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Sequence

from benchmarks import events, uploader
from benchmarks.processes import SETTLE, Platform, Program


class Contestant(NamedTuple):
    """A program that sends what a database holds."""

    name: str
    arguments: Callable[[Path, Path, str], List[str]]
    """Folder of its own, event database, url -> arguments of python."""
    runs_on: bool = False
    """True: a daemon, stopped once everything has come."""


class Drained(NamedTuple):
    """One run of one contestant."""

    rate: float
    """Events a second, from the first request to the last."""
    cpu: float
    """CPU seconds per 1000 events, without those of a run over an empty database."""
    peak_rss: int
    """Bytes."""
    written: float
    """Bytes written to disk per event."""
    busy: float
    """Fraction of the time that the receiver itself was busy: far below 1, it is no bottleneck."""


def script(name: str) -> Callable[[Path, Path, str], List[str]]:
    """The arguments of one of the scripts beside this file."""
    return lambda folder, database, url: [
        *("-m", f"benchmarks.{name}", str(database), url, str(folder / "outbox.db"))
    ]


LIMIT = Contestant("limit: one connection, prepared bytes", script("flood"))
BARE = Contestant("bare loop", script("bare"))
DURABLE = Contestant("durable script", script("durable"))
ONCE = Contestant("se3-uploader run --once", uploader.once)
DAEMON = Contestant("se3-uploader run", uploader.daemon, runs_on=True)
ALL = (LIMIT, BARE, DURABLE, ONCE, DAEMON)

Results = Dict[str, List[Drained]]


def drain(contestant: Contestant, database: Path, n: int, idle_cpu: float = 0.0) -> Drained:
    """Let a contestant send a database's n events once; RuntimeError unless all n came once."""
    with tempfile.TemporaryDirectory(prefix="se3-bench-") as name, Platform() as platform:
        folder = Path(name)
        arguments = contestant.arguments(folder, database, platform.url)
        with Program(arguments, folder / "log") as program:
            if contestant.runs_on:
                platform.wait(n, timeout=3600)
                time.sleep(0 if n else SETTLE)
            usage = program.finish(stop=contestant.runs_on)
        report = platform.report()
    if not report["keys"] == report["requests"] == n:
        raise RuntimeError(
            f"{contestant.name}: {report['requests']} requests and {report['keys']} different keys"
            f" for {n} events"
        )
    seconds = (report["last"] - report["first"]) or 1.0
    return Drained(
        rate=n / seconds,
        cpu=(usage.cpu - idle_cpu) / max(n, 1) * 1000,
        peak_rss=usage.peak_rss,
        written=usage.written / max(n, 1),
        busy=report["cpu"] / seconds,
    )


def compare(
    folder: Path, n: int, *, large: bool, rounds: int, contestants: Sequence[Contestant] = ALL
) -> Results:
    """Drain n events by each contestant in turn (A B C A B C ...): noise meets all alike."""
    database = events.create(folder / f"events-{n}-{large}.db", n, large=large)
    empty = events.create(folder / f"empty-{n}-{large}.db", 0, large=large)
    idle_cpu = {c.name: drain(c, empty, 0).cpu / 1000 for c in contestants if c != LIMIT}
    results: Results = {contestant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            idle = idle_cpu.get(contestant.name, 0.0)
            results[contestant.name].append(drain(contestant, database, n, idle))
    database.unlink()
    return results
