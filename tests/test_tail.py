"""Rows that became visible late are looked for as long as promised, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from se3_uploader.outbox import Cursor
from se3_uploader.source import Look, Ref
from se3_uploader.tail import Lookback

from .http_server import Server
from .site import Site, Uploader, event, numbers


def swept(lookback: Lookback, cursor: Cursor, now: float) -> Cursor:
    """Sweep everything up to the cursor in one page."""
    assert lookback.begin(cursor, now)
    assert cursor.position is not None
    page = Look(None, cursor.position, [Ref(cursor.position, b"")])
    return lookback.swept(cursor, page, now)


def test_a_position_settles_after_lookback() -> None:
    """A row is looked for once more when lookback has passed since the cursor went over it.

    That holds while the cursor moves on several times a second.
    """
    lookback, cursor = Lookback(60.0), Cursor(None, b"", None)
    for tenth in range(3000):
        now = tenth / 10
        lookback.moved(tenth, now)
        cursor = cursor._replace(position=tenth)
        if now >= lookback.next_sweep:
            cursor = swept(lookback, cursor, now)
            settled = cursor.settled
            assert settled is None or now - 62.5 <= int(settled) / 10 <= now - 60
    assert cursor.settled is not None


def test_what_is_remembered_is_bounded() -> None:
    """A source that is never swept makes no list that grows."""
    lookback = Lookback(60.0)
    for second in range(10_000):
        lookback.moved(second, float(second))
    assert len(lookback.passed) < 200


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_late_just_after_a_sweep(tmp_path: Path, pause: float) -> None:
    """A row that comes late between two sweeps does not wait for the next change of the file."""
    site = Site(tmp_path)
    by_time: Any = {"key": "timestamp", "id": "id", "poll_interval": "50ms"}
    with Server() as platform, Uploader(site.configure(platform.url, source=by_time)) as uploader:
        site.add(event(2, timestamp=2000))
        uploader.run()
        uploader.run_for(pause)
        site.add(event(1, timestamp=1000))
        uploader.run_for(5.0)
    assert numbers(platform) == [2, 1]
