"""PURE: stored reports -> what the page is told of them, in bounded size. The page escapes."""

from __future__ import annotations

from typing import Any, Dict, List

import orjson

from .store import Report

_LONGEST_JSON = 100_000


def clipped(value: Any, length: int = 200, items: int = 256, depth: int = 6) -> Any:
    """The same JSON, with long texts and lists cut and deep nesting left out."""
    if isinstance(value, str):
        return value if len(value) <= length else value[:length] + "…"
    if isinstance(value, (dict, list)) and not depth:
        return "…"
    if isinstance(value, list):
        return [clipped(item, length, items, depth - 1) for item in value[:items]]
    if isinstance(value, dict):
        return {
            clipped(name, length): clipped(item, length, items, depth - 1)
            for name, item in list(value.items())[:items]
        }
    return value


def event_card(report: Report) -> Dict[str, Any]:
    """An event as its card shows it."""
    event = report.payload if isinstance(report.payload, dict) else {}
    extra = event["ext_data"] if isinstance(event.get("ext_data"), dict) else {}
    shown = {name: event.get(name) for name in ("identity_id", "identity_name", "group_name")}
    shown.update({name: event.get(name) for name in ("timestamp", "score")})
    shown.update({name: extra.get(name) for name in ("device_ip", "device_type", "ep_id")})
    return {
        **clipped(shown, depth=2),
        "person_type": clipped(extra.get("person_type", 1), depth=1),
        "pictures": report.pictures,
        **_receipt(report),
    }


def event_details(report: Report) -> Dict[str, Any]:
    """Everything that came with an event but its pictures, as indented JSON text."""
    text = orjson.dumps(report.payload, option=orjson.OPT_INDENT_2).decode()
    return {"key": clipped(report.key), "json": clipped(text, _LONGEST_JSON), **_receipt(report)}


def gateway_card(reports: List[Report]) -> Dict[str, Any]:
    """A box by its newest reports: the newest whole, and the usage over time, oldest first.

    A refused report says nothing about the box, so it only shows by its reasons.
    """
    accepted = [report for report in reports if not report.reasons]
    newest = (accepted or reports)[0]
    return {
        "status": clipped(newest.payload),
        "reported_at": newest.received_at,
        "usage": [_usage(report.payload) for report in reversed(accepted)],
        **_receipt(reports[0]),
    }


def _receipt(report: Report) -> Dict[str, Any]:
    return {
        "id": report.id,
        "received_at": report.received_at,
        "repeats": report.repeats,
        "differing": report.differing,
        "reasons": report.reasons[:50],
    }


def _usage(status: Any) -> Dict[str, Any]:
    """Percent of cpu, memory and disk in use (protocol section 2); None where not reported."""
    extra = status["gateway_ext_data"]
    memory, size, free = (
        extra.get(name) for name in ("memory_usage", "disk_size", "disk_free_size")
    )
    return {
        "cpu": extra.get("cpu_usage"),
        "memory": None if memory is None else 100 * memory,
        "disk": None if size is None or free is None else 100 * (1 - free / size),
    }
