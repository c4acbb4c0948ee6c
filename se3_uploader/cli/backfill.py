"""`se3-uploader backfill`: its words, its plan and its summary."""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections import Counter
from datetime import datetime, timezone
from typing import Any, Dict, List, Optional, Tuple

from .. import backfill, config, log
from ..backfill.plan import Plan, Wanted, plan
from ..outbox import PENDING, STATES
from ..outbox.backfills import Backfills
from ..payload import Strip
from ..source import open_source
from ..units import counted, format_duration, format_size
from . import progress, times


class UsageError(Exception):
    """The command line asks for something that cannot be."""


def run(options: argparse.Namespace, loaded: config.Config) -> int:
    """Carry out the command; returns the exit code. Raises UsageError, SourceError, OutboxError."""
    wanted = _wanted(options, loaded)
    found, wanted = _plan(loaded, wanted)
    say = _say_json if options.json else _say
    say(_plan_lines(wanted, found), _plan_json(wanted, found))
    if options.dry_run or not (found.events or wanted.begun):
        return 0
    log.setup("warning", loaded.log.format)
    started = backfill.Run(loaded, wanted, found)
    interrupted = _stop_signals(started)
    stuck, why = False, None
    try:
        with progress.shown(options.json, started.progress) as tell:
            while not (interrupted or stuck) and started.step():
                tell()
                stuck = started.is_stuck()
        why = started.progress().trouble
    finally:
        states = started.end()
    exit_code = backfill.exit_code(states)
    say(
        _summary_lines(states, why, bool(interrupted)),
        {
            "summary": {
                "exit_code": exit_code,
                "interrupted": bool(interrupted),
                "trouble": why,
                "endpoints": [{"name": name, **_named(each)} for name, each in states.items()],
            }
        },
    )
    return exit_code


def _stop_signals(started: backfill.Run) -> List[int]:
    """Note signals to stop, so that what is in flight ends well; the second of a kind kills."""
    came: List[int] = []

    def on_stop(number: int, _: object) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)
        started.wake()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_stop)
    return came


def _wanted(options: argparse.Namespace, loaded: config.Config) -> Wanted:
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
    names = list(dict.fromkeys(options.endpoint or known))
    for name in names:
        if name not in known:
            raise UsageError(f"there is no endpoint {name}; known are: {', '.join(known)}")
    settled = round((now - loaded.source.settle) * 1000)
    young = loaded.source.settle > 0 and until > settled
    words = [options.since, options.until, *sorted(names), options.resend, options.pictures]
    return Wanted(
        since=since,
        until=max(since, settled) if young else until,
        endpoints=tuple(known[name] for name in names),
        rate=options.rate,
        resend=options.resend,
        strip=Strip.REQUESTED if options.pictures == "strip" else Strip.NOTHING,
        words=json.dumps(words),
        cut=young,
    )


def _moment(option: str, text: str, now: float) -> int:
    try:
        moment = times.parse_time(text, now)
    except ValueError as error:
        raise UsageError(f"{option} {text} {error}") from None
    try:
        _both(moment)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{option} {text} is too far away") from None
    return moment


def _plan(loaded: config.Config, wanted: Wanted) -> Tuple[Plan, Wanted]:
    """Plan with what the outbox knows; an interrupted backfill keeps the range it began with."""
    source = open_source(loaded.source)
    table: Optional[Backfills] = None
    try:
        table = Backfills.reading(loaded.outbox.path)
        if table is not None:
            wanted = wanted.resuming(table.find(wanted.words))
        return plan(loaded, wanted, source, table), wanted
    finally:
        source.close()
        if table is not None:
            table.close()


def _plan_lines(wanted: Wanted, found: Plan) -> List[str]:
    lines = [
        f"from {_both(wanted.since)}",
        f"to   {_both(wanted.until)} (not included)",
    ]
    if wanted.begun:
        lines.append("The same command was interrupted: it goes on, with the range it had then.")
    if wanted.cut:
        lines.append("Younger events may still be incomplete (source.settle): the daemon's part.")
    if not found.events:
        return [*lines, "The event database holds no events of that time: nothing to do."]
    for name, share in found.shares.items():
        there = ", ".join(
            f"{share.known[n]} {state}" for n, state in enumerate(STATES) if share.known[n]
        )
        lines.append(
            f"{name}: {counted(found.events, 'event')} in the database"
            + (f", of which the outbox knows: {there}" if there else "")
            + f"; to send: {share.to_send}, about {format_size(share.bytes)}"
        )
    seconds = found.seconds(wanted.rate)
    if seconds is not None:
        lines.append(f"at {wanted.rate:g} a second that takes {format_duration(seconds)}")
    return lines


def _plan_json(wanted: Wanted, found: Plan) -> Dict[str, Any]:
    return {
        "plan": {
            "since": _local(wanted.since),
            "until": _local(wanted.until),
            "resumed": wanted.begun is not None,
            "events": found.events,
            "endpoints": [
                {
                    "name": name,
                    "known": _named(share.known),
                    "to_send": share.to_send,
                    "bytes": share.bytes,
                }
                for name, share in found.shares.items()
            ],
            "seconds": found.seconds(wanted.rate),
        }
    }


def _summary_lines(
    states: Dict[str, Counter[int]], why: Optional[str], interrupted: bool
) -> List[str]:
    lines = []
    for name, found in states.items():
        said = ", ".join(f"{number} {state}" for state, number in _named(found).items() if number)
        lines.append(f"{name}: of the range {said or 'nothing'}")
    if any(found[PENDING] for found in states.values()):
        reason = "interrupted" if interrupted else why or "nothing moved for too long"
        lines.append(
            f"Not all is delivered: {reason}. Nothing is lost: the same command goes on where this"
            " one stopped, and a running daemon delivers what is queued."
        )
    return lines


def _named(states: Counter[int]) -> Dict[str, int]:
    return {name: states[number] for number, name in enumerate(STATES)}


def _local(epoch_ms: int) -> str:
    return _iso(datetime.fromtimestamp(epoch_ms / 1000).astimezone())


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")


def _both(epoch_ms: int) -> str:
    utc = datetime.fromtimestamp(epoch_ms / 1000, timezone.utc)
    return f"{_local(epoch_ms)} ({_iso(utc.replace(tzinfo=None))} UTC)"


def _say(lines: List[str], _: Dict[str, Any]) -> None:
    print("\n".join(lines), flush=True)


def _say_json(_: List[str], found: Dict[str, Any]) -> None:
    print(json.dumps(found, ensure_ascii=False), flush=True)
