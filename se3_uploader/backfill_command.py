"""`se3-uploader backfill`: its words, its plan, its progress and its summary."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from . import backfill, config, log, times
from .outbox import PENDING, STATES
from .outbox.backfills import Backfills
from .source import open_source
from .units import format_duration, format_size

LINE_EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""

Tell = Callable[[backfill.Progress], None]


class UsageError(Exception):
    """The command line asks for something that cannot be."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--since", required=True, metavar="T", help="first moment, e.g. -2d")
    parser.add_argument("--until", required=True, metavar="T", help="first moment after the range")
    parser.add_argument(
        "--endpoint", action="append", metavar="NAME", help="only to this one; may be repeated"
    )
    parser.add_argument("--rate", type=float, metavar="N", help="at most N events per second")
    parser.add_argument(
        "--resend", action="store_true", help="also what was delivered, under the same keys"
    )
    parser.add_argument(
        "--pictures", choices=("keep", "strip"), default="keep", help="strip: send none"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--json", action="store_true", help="JSON, one object a line")


def run(options: argparse.Namespace, loaded: config.Config) -> int:
    """Carry out the command; returns the exit code. Raises UsageError, SourceError, OutboxError."""
    wanted = _wanted(options, loaded)
    found, wanted = _plan(loaded, wanted)
    say = _say_json if options.json else _say
    say(_plan_lines(wanted, found), _plan_json(wanted, found))
    if options.dry_run or not found.events:
        return 0
    log.setup("warning", loaded.log.format)
    started = backfill.Run(loaded, wanted, found)
    stuck = interrupted = False
    try:
        with _progress(options.json) as tell:
            while started.step() and not stuck:
                tell(started.progress)
                stuck = started.is_stuck()
    except KeyboardInterrupt:
        interrupted = True
    try:
        states = started.finish()
    finally:
        started.close()
    say(_summary_lines(states, stuck, interrupted), {"summary": _named(states)})
    return backfill.exit_code(states)


def _wanted(options: argparse.Namespace, loaded: config.Config) -> backfill.Wanted:
    now = time.time()
    since, until = _moment("--since", options.since, now), _moment("--until", options.until, now)
    if since >= until:
        raise UsageError(
            f"--since {options.since} is not before --until {options.until}:"
            f" the range would be {_both(since)} to {_both(until)}"
        )
    if options.rate is not None and not 0 < options.rate < float("inf"):
        raise UsageError("--rate must be a number of events per second above 0")
    known = {endpoint.name: endpoint for endpoint in loaded.history_event.endpoints}
    names = options.endpoint or list(known)
    for name in names:
        if name not in known:
            raise UsageError(f"there is no endpoint {name}; known are: {', '.join(known)}")
    words = [options.since, options.until, *sorted(set(names)), options.resend, options.pictures]
    return backfill.Wanted(
        since=since,
        until=until,
        endpoints=tuple(known[name] for name in dict.fromkeys(names)),
        rate=options.rate,
        resend=options.resend,
        strip=options.pictures == "strip",
        words=json.dumps(words),
    )


def _moment(option: str, text: str, now: float) -> int:
    try:
        return times.parse_time(text, now)
    except ValueError as error:
        raise UsageError(f"{option} {text} {error}") from None


def _plan(loaded: config.Config, wanted: backfill.Wanted) -> Tuple[backfill.Plan, backfill.Wanted]:
    """Plan with what the outbox knows; an interrupted backfill keeps the range it began with."""
    source = open_source(loaded.source)
    table: Optional[Backfills] = None
    try:
        table = Backfills.reading(loaded.outbox.path)
        begun = table.find(wanted.words) if table is not None else None
        if begun is not None:
            wanted = backfill.resumed(wanted, begun)
        return backfill.plan(wanted, source, table), wanted
    finally:
        source.close()
        if table is not None:
            table.close()


def _plan_lines(wanted: backfill.Wanted, found: backfill.Plan) -> List[str]:
    lines = [
        f"from {_both(wanted.since)}",
        f"to   {_both(wanted.until)} (not included)",
    ]
    if not found.events:
        return [*lines, "The event database holds no events of that time: nothing to do."]
    for endpoint in wanted.endpoints:
        known = found.known[endpoint.name]
        there = ", ".join(f"{known[n]} {name}" for n, name in enumerate(STATES) if known[n])
        send = found.to_send(endpoint.name, wanted.resend)
        size = format_size(int(send * found.bytes_each))
        lines.append(
            f"{endpoint.name}: {found.events} events in the database"
            + (f", of which the outbox knows: {there}" if there else "")
            + f"; to send: {send}, about {size}"
        )
    seconds = found.seconds(wanted)
    if seconds is not None:
        lines.append(f"at {wanted.rate:g} a second that takes {format_duration(int(seconds))}")
    return lines


def _plan_json(wanted: backfill.Wanted, found: backfill.Plan) -> Dict[str, Any]:
    return {
        "plan": {
            "since": _local(wanted.since),
            "until": _local(wanted.until),
            "events": found.events,
            "endpoints": [
                {
                    "name": endpoint.name,
                    "known": _named(found.known[endpoint.name]),
                    "to_send": found.to_send(endpoint.name, wanted.resend),
                    "bytes": int(found.to_send(endpoint.name, wanted.resend) * found.bytes_each),
                }
                for endpoint in wanted.endpoints
            ],
            "seconds": found.seconds(wanted),
        }
    }


def _summary_lines(states: Counter[int], stuck: bool, interrupted: bool) -> List[str]:
    said = ", ".join(f"{number} {name}" for name, number in _named(states).items() if number)
    lines = [f"of the range: {said or 'nothing'}"]
    if states[PENDING] and (stuck or interrupted):
        why = "Interrupted" if interrupted else "The platform took nothing for a minute"
        lines.append(
            f"{why}. Nothing is lost: the same command goes on where this one stopped, and a"
            " running daemon delivers what is queued."
        )
    return lines


def _named(states: Counter[int]) -> Dict[str, int]:
    return {name: states[number] for number, name in enumerate(STATES)}


def _local(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000).astimezone().isoformat(timespec="seconds")


def _both(epoch_ms: int) -> str:
    utc = datetime.fromtimestamp(epoch_ms / 1000, timezone.utc)
    return f"{_local(epoch_ms)} ({utc:%Y-%m-%d %H:%M:%S} UTC)"


def _say(lines: List[str], _: Dict[str, Any]) -> None:
    print("\n".join(lines), flush=True)


def _say_json(_: List[str], found: Dict[str, Any]) -> None:
    print(json.dumps(found, ensure_ascii=False), flush=True)


@contextmanager
def _progress(as_json: bool) -> Iterator[Tell]:
    """A bar on a terminal, a line every ten seconds elsewhere."""
    if sys.stdout.isatty() and not as_json:
        with _bar() as tell:
            yield tell
        return
    began = told = time.monotonic()

    def tell_line(progress: backfill.Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < LINE_EVERY:
            return
        told = now
        rate = progress.done / (now - began)
        figures = {
            "done": progress.done, "total": progress.total, "waiting": progress.waiting,
            "per_second": round(rate, 1),
        }  # fmt: skip
        text = (
            f"{progress.done} of {progress.total} done, {progress.waiting} queued,"
            f" {rate:.1f} a second"
        )
        (_say_json if as_json else _say)([text], {"progress": figures})

    yield tell_line


@contextmanager
def _bar() -> Iterator[Tell]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"),
        TimeRemainingColumn(), TextColumn("{task.fields[queued]} queued"),
    )  # fmt: skip
    began = time.monotonic()
    with Progress(*columns) as bar:
        task = bar.add_task("backfill", total=None, rate="-", queued=0)

        def tell(progress: backfill.Progress) -> None:
            rate = progress.done / max(0.001, time.monotonic() - began)
            bar.update(
                task, total=progress.total, completed=progress.done, rate=f"{rate:.0f}",
                queued=progress.waiting,
            )  # fmt: skip

        yield tell
