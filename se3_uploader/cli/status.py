"""The status for people: the answer in the first line, then every figure; fits a phone over ssh."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Iterator, List, Mapping, Optional, Tuple

from rich.console import RenderableType
from rich.text import Text

from ..status import COUNTED, EXPIRY
from ..units import counted, format_duration, format_size
from .terminal import BAD, GOOD, WORRYING, Line, clock, grid

SOON = 86400.0
"""Seconds before the box deletes an event that waits, from which on there is no time to lose."""
LATE = 60.0
"""Seconds after which an event that is still pending is worth a word."""


def render(status: Mapping[str, Any], now: float) -> Iterator[RenderableType]:
    """Yield what to print, of what status.collect returned; now: epoch seconds."""
    sentence, style = answer(status, now)
    yield Text(sentence, style=f"bold {style}")
    for endpoint in status["endpoints"]:
        yield Text()
        yield Text(endpoint["name"], style="bold")
        yield grid(_endpoint(endpoint, status, now))
    yield Text()
    yield Text(f"event database {status['source']['name']}", style="bold")
    yield grid(_source(status["source"]))
    yield Text()
    yield Text("this machine", style="bold")
    yield grid([*_daemon(status["daemon"], now), *_outbox(status["outbox"])])


def answer(status: Mapping[str, Any], now: float) -> Tuple[str, str]:
    """Answer in one sentence: are the events arriving, and if not, why not? With its colour."""
    endpoints = [e for e in status["endpoints"] if e["kind"] == "history_event"]
    waiting = sum(endpoint["pending"] for endpoint in endpoints)
    behind = status["source"]["behind"] or 0
    if status["daemon"]["delivers"] is None:
        return (
            "NO: the daemon is not running, so nothing is uploaded;"
            f" {counted(waiting + behind, 'event')} to deliver. Start it: systemctl start"
            " se3-uploader",
            BAD,
        )
    if status["source"]["error"]:
        return f"NO new events: the event database cannot be read: {status['source']['error']}", BAD
    away = [e for e in status["endpoints"] if e["configured"] and e["state"] != "ok"]
    for endpoint in sorted(away, key=lambda e: (e["kind"] != "history_event", e["state"])):
        what = "events" if endpoint["kind"] == "history_event" else "status reports"
        return (
            f"NO: {endpoint['name']} takes no {what}{_for_how_long(endpoint, now)}:"
            f" {endpoint['last_error']}. {counted(waiting, 'event')} waiting, none is lost",
            BAD if endpoint["state"] == "paused" else WORRYING,
        )
    for endpoint in endpoints:
        if endpoint["dead"]:
            return (
                f"Events arrive, but {counted(endpoint['dead'], 'event')} could not be delivered to"
                f" {endpoint['name']}: {endpoint['dead_reason']}. Look: se3-uploader outbox list",
                WORRYING,
            )
        if not endpoint["configured"] and endpoint["pending"]:
            return (
                f"Events arrive, but {counted(endpoint['pending'], 'event')} kept for"
                f" {endpoint['name']}, which is no longer in uploader.yaml",
                WORRYING,
            )
    oldest = max((e["oldest_pending_s"] or 0.0 for e in endpoints), default=0.0)
    if waiting and oldest > LATE:
        return (
            f"Events arrive, late: {counted(waiting, 'event')} on the way, the oldest for"
            f" {format_duration(oldest)}",
            WORRYING,
        )
    if waiting or behind:
        return f"Yes, events arrive; {counted(waiting + behind, 'event')} on the way", GOOD
    lost = sum(endpoint["lost"] for endpoint in endpoints)
    if lost:
        return f"Yes, every event has arrived but for {lost:,} lost or discarded", GOOD
    return "Yes, every event has arrived", GOOD


def _for_how_long(endpoint: Mapping[str, Any], now: float) -> str:
    if endpoint["since"] is None:
        return ""
    since = _epoch(endpoint["since"])
    return f" since {clock(since, now)} ({format_duration(max(0.0, now - since))})"


def _endpoint(found: Mapping[str, Any], status: Mapping[str, Any], now: float) -> List[Line]:
    lines = [("to", Text(found["url"])), ("state", _state(found, now))]
    if found["last_error"]:
        lines.append(("because", Text(found["last_error"])))
    if found["next_attempt"]:
        wait = _epoch(found["next_attempt"]) - now
        soon = f"in {format_duration(wait)}" if wait > 0 else "now"
        lines.append(
            ("next attempt", Text(soon if status["daemon"]["delivers"] else "not running"))
        )
    lines += _certificate(found, now)
    pending = f"{found['pending']:,}"
    if found["oldest_pending_s"] is not None:
        pending += f", the oldest for {format_duration(found['oldest_pending_s'])}"
    lines += [
        ("pending", Text(pending)),
        *_deletion(found),
        ("delivered", Text(f"{found['delivered']:,}{_last(found['last_delivered'], now)}")),
    ]
    if found["kind"] == "history_event":
        lines += [("rate now", Text(_rate(found))), ("drained in", Text(_drain(found, status)))]
    lines += [
        ("dead", Text(_dead(found), style=WORRYING if found["dead"] else "")),
        ("lost", Text(f"{found['lost']:,}", style=WORRYING if found["lost"] else "")),
    ]
    return lines


def _state(found: Mapping[str, Any], now: float) -> Text:
    if not found["configured"]:
        return Text("out of use", style=WORRYING)
    since = _for_how_long(found, now)
    tried = found["delivered"] or found["last_delivered"]
    return {
        "ok": Text("takes deliveries", style=GOOD) if tried else Text("nothing was sent yet"),
        "retrying": Text(f"does not answer{since}, tried again", style=WORRYING),
        "paused": Text(f"refuses deliveries{since}, probed slowly", style=BAD),
    }[found["state"]]


def _certificate(found: Mapping[str, Any], now: float) -> Iterator[Line]:
    """Warn while there is time to have the platform's certificate renewed."""
    if found["certificate_expires"] is None:
        return
    left = _epoch(found["certificate_expires"]) - now
    if left < EXPIRY:
        day = found["certificate_expires"][:10]
        ends = f"ends on {day}, in {format_duration(left)}" if left > 0 else f"ended on {day}"
        yield "certificate", Text(f"{ends}: have it renewed", style=WORRYING if left > 0 else BAD)


def _deletion(found: Mapping[str, Any]) -> Iterator[Line]:
    """Warn of the box, which deletes its oldest events whether they were sent or not."""
    left = found["deleted_in_s"]
    if left is not None:
        when = f"in about {format_duration(left)}" if left > 0 else "now"
        text = f"{when} the box reaches the oldest that is neither sent nor copied"
        yield "deletion", Text(text, style=WORRYING if left > SOON else BAD)


def _rate(found: Mapping[str, Any]) -> str:
    if found["rate_per_s"] >= 1:
        return f"{found['rate_per_s']:,.1f} events/s"
    return f"{found['rate_per_s'] * 60:.0f} events/min"


def _drain(found: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    left = found["pending"] + (status["source"]["behind"] or 0)
    if not left:
        return "nothing is pending"
    if not found["rate_per_s"]:
        return "unknown, nothing was delivered in the last minute"
    return f"about {format_duration(left / found['rate_per_s'])}"


def _dead(found: Mapping[str, Any]) -> str:
    if not found["dead"]:
        return "0"
    return f"{found['dead']:,}, mostly: {found['dead_reason']}"


def _last(moment: Optional[str], now: float) -> str:
    if moment is None:
        return ""
    at = _epoch(moment)
    return f", the last {format_duration(max(0.0, now - at))} ago ({clock(at, now)})"


def _source(source: Mapping[str, Any]) -> List[Line]:
    lines = [("engine", Text(f"{source['engine']}, generation {source['generation']}"))]
    if source["error"]:
        return [*lines, ("unreadable", Text(source["error"], style=BAD))]
    behind = source["behind"]
    more = " or more" if behind >= COUNTED else ""
    return [
        *lines,
        ("seen up to", Text("nothing yet" if source["position"] is None else _key(source))),
        ("behind", Text(f"{counted(behind, 'event')}{more}")),
    ]


def _key(source: Mapping[str, Any]) -> str:
    return f"{source['position']} of {source['newest']}"


def _daemon(daemon: Mapping[str, Any], now: float) -> List[Line]:
    lines = [("daemon", Text("not running", style=BAD))]
    if daemon["running"]:
        since = clock(_epoch(daemon["since"]), now)
        lines = [("daemon", Text(f"running, pid {daemon['pid']}, since {since}"))]
    if daemon["delivers"] not in (None, "daemon"):
        lines.append(("delivers now", Text(daemon["delivers"])))
    return lines


def _outbox(outbox: Mapping[str, Any]) -> List[Line]:
    copied, limit = outbox["copied_bytes"], outbox["max_bytes"]
    lines = [
        ("outbox", Text(f"{outbox['path']}, {format_size(outbox['bytes'])}")),
        (
            "copies",
            Text(
                f"{format_size(copied)} of {format_size(limit)}"
                + (": full, events wait in their database" if copied >= limit else ""),
                style=WORRYING if copied >= limit else "",
            ),
        ),
    ]
    free, least = outbox["free_bytes"], outbox["min_free_bytes"]
    if free is not None:
        short = f", less than {format_size(least)}: nothing is copied" if free < least else ""
        text = Text(f"{format_size(free)} free{short}", style=WORRYING if short else "")
        lines.append(("disk", text))
    return lines


def _epoch(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
