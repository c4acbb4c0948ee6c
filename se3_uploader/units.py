"""PURE: durations, sizes and numbers as people write them, and back."""

from __future__ import annotations

import math
import re
from typing import Mapping, Union

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}

MAX_DURATION = 36500 * SECONDS["d"]
"""A hundred years: what every clock, timer and database on the way can still hold."""
MAX_SIZE = 2**60

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")


def duration(value: Union[str, int, float]) -> float:
    """Seconds of a number of seconds or of a text such as ``500ms``, ``20s``, ``2h``, ``30d``.

    Raises ValueError, in words for the one who wrote it, for anything else, for what is negative
    and for more than a hundred years.
    """
    seconds = _amount(value, SECONDS, "s")
    if seconds is None:
        raise ValueError("is no duration, write a number of seconds or 500ms, 20s, 5m, 2h, 30d")
    if not 0 <= seconds <= MAX_DURATION:
        raise ValueError("must be a duration between 0 and 36500d")
    return seconds


def size(value: Union[str, int, float]) -> int:
    """Bytes of a number of bytes or of a text such as ``800KiB``, ``512MiB``, ``1.5GiB``.

    Raises ValueError, in words for the one who wrote it, for anything else, for what is negative
    and for more than 2^60.
    """
    count = _amount(value, BYTES, "B")
    if count is None:
        raise ValueError("is no size, write a number of bytes or 800KiB, 512MiB, 2GiB")
    if not 0 <= count <= MAX_SIZE:
        raise ValueError("must be a size between 0 and 1048576TiB")
    return int(count)


def format_duration(seconds: float) -> str:
    """Seconds for people, in the two largest units: ``250ms``, ``20s``, ``1m 30s``, ``2d 4h``."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if 0 < round(seconds * 1000) < 1000:
        return f"{round(seconds * 1000)}ms"
    if seconds < 10 and round(seconds, 1) % 1:
        return f"{seconds:.1f}s"
    rest = round(seconds)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(SECONDS[unit]))
        parts.append(f"{count}{unit}" if count else "")
    first = next((place for place, part in enumerate(parts) if part), None)
    if first is None:
        return "0s"
    return " ".join(part for part in parts[first : first + 2] if part)


def format_size(count: int) -> str:
    """Bytes for people, one decimal where it says something: ``0B``, ``1.5GiB``, ``512MiB``."""
    unit = next((unit for unit in BYTES if round(abs(count) / BYTES[unit], 1) < 1024), "TiB")
    return f"{count / BYTES[unit]:.1f}".replace(".0", "") + unit


def _amount(
    value: Union[str, int, float], units: Mapping[str, float], plain: str
) -> Union[int, float, None]:
    """A number in the smallest unit; None for what is no number with a known unit."""
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if not match or (match[2] or plain) not in units:
            return None
        return float(match[1]) * units[match[2] or plain]
    if isinstance(value, bool) or not math.isfinite(value):
        return None
    return value


def counted(count: int, thing: str) -> str:
    """``1 event``, ``1,000 events``."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
