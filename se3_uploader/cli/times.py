"""PURE: times as people write them on the command line."""

from __future__ import annotations

import re
from datetime import datetime

from .. import units

RELATIVE = re.compile(r"-[0-9.]+ ?[A-Za-z]*")
"""What looks like a time before now: ``-2d``, ``-6h``, ``-90`` (seconds)."""

_MOMENT = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:[T ](?P<time>\d\d:\d\d(?::\d\d)?)(?:[.,](?P<fraction>\d{1,6})\d*)?"
    r" ?(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
_EPOCH_MS = re.compile(r"[0-9]{12,15}|0")
"""Since 1973, or all: other fewer digits are seconds, or a date without its dashes."""


def parse_time(text: str, now: float) -> int:
    """Epoch milliseconds of a time; now: epoch seconds.

    Takes ISO 8601 (local zone unless given), YYYY-MM-DD (its first moment, local), epoch
    milliseconds, or relative to now: ``-2d``, ``-6h`` (contract, "Commands"). Raises ValueError, in
    words for the one who wrote it, for anything else.
    """
    text = text.strip()
    if RELATIVE.fullmatch(text):
        return round((now - units.duration(text[1:])) * 1000)
    if _EPOCH_MS.fullmatch(text):
        return int(text)
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise ValueError(
            "is no time, write 2026-03-01, 2026-03-01T08:30, 2026-03-01T08:30:00+08:00, epoch"
            " milliseconds, or -2d, -6h, -30m for so long ago"
        )
    try:
        return round(_moment(match).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise ValueError("is no time that exists") from None


def _moment(match: re.Match[str]) -> datetime:
    time = match["time"] or "00:00"
    seconds = "" if len(time) == len("08:30:00") else ":00"
    fraction = (match["fraction"] or "").ljust(6, "0")
    zone = (match["zone"] or "").replace("Z", "+00:00")
    if zone and ":" not in zone:
        zone = f"{zone[:3]}:{zone[3:] or '00'}"
    return datetime.fromisoformat(f"{match['date']}T{time}{seconds}.{fraction}{zone}")
