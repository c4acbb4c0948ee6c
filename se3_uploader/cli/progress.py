"""How far a backfill has come: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, Optional

from ..backfill import Progress
from ..units import format_duration, format_size

LINE_EVERY = 10.0
"""Seconds between two lines where there is no terminal."""
BAR_EVERY = 0.2

Tell = Callable[[Progress], None]


@contextmanager
def shown(as_json: bool, look: Callable[[], Progress]) -> Iterator[Callable[[], None]]:
    """Show progress on standard output; the block calls what it is lent at every step."""
    began = time.monotonic()
    if sys.stdout.isatty() and not as_json:
        with _bar(began) as tell:
            yield _every(BAR_EVERY, look, tell)
            tell(look())
        return

    def tell_line(progress: Progress) -> None:
        print(_json(progress, began) if as_json else _line(progress, began), flush=True)

    yield _every(LINE_EVERY, look, tell_line)


def _every(seconds: float, look: Callable[[], Progress], tell: Tell) -> Callable[[], None]:
    told = time.monotonic()

    def tell_in_time() -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= seconds:
            told = now
            tell(look())

    return tell_in_time


def _per_second(progress: Progress, began: float) -> float:
    return progress.done / max(0.001, time.monotonic() - began)


def _seconds_left(progress: Progress, began: float) -> Optional[float]:
    """None while nothing is done yet."""
    rate = _per_second(progress, began)
    return (progress.total - progress.done) / rate if rate else None


def _line(progress: Progress, began: float) -> str:
    left = _seconds_left(progress, began)
    parts = [
        f"{progress.done} of {progress.total} done",
        f"{progress.waiting} queued",
        f"{progress.failed} failed",
        f"{_per_second(progress, began):.1f} a second",
        f"about {format_size(round(progress.bytes))}",
        f"{format_duration(left)} left" if left is not None else "time left unknown",
    ]
    return ", ".join(parts) + (f" ({progress.trouble})" if progress.trouble else "")


def _json(progress: Progress, began: float) -> str:
    left = _seconds_left(progress, began)
    figures: Dict[str, object] = {
        "done": progress.done,
        "total": progress.total,
        "waiting": progress.waiting,
        "failed": progress.failed,
        "per_second": round(_per_second(progress, began), 1),
        "bytes": round(progress.bytes),
        "seconds_left": None if left is None else round(left),
        "trouble": progress.trouble,
    }
    return json.dumps({"progress": figures}, ensure_ascii=False)


@contextmanager
def _bar(began: float) -> Iterator[Tell]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    troubles: Dict[str, None] = {}
    with Bar(*columns) as bar:
        task = bar.add_task("backfill", total=None, said="")

        def tell(progress: Progress) -> None:
            left = _seconds_left(progress, began)
            said = (
                f"{_per_second(progress, began):.0f}/s {format_size(round(progress.bytes))}"
                f" {'-' if left is None else format_duration(left)} left"
                f" {progress.failed} failed"
            )
            bar.update(task, total=progress.total, completed=progress.done, said=said)
            if progress.trouble and progress.trouble not in troubles:
                troubles[progress.trouble] = None
                bar.console.print(progress.trouble, markup=False, highlight=False)

        yield tell
