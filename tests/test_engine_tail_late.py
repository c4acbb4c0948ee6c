"""Rows that come to stand behind the place arrive all the same, and no other again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict

import pytest

from se3_uploader.engine.tail import Lookback
from se3_uploader.outbox import Cursor
from se3_uploader.source import Look, Ref

from .http_server import Server
from .site import Site, Uploader, event, numbers, sums

BY_TIME: Dict[str, Any] = {"key": "timestamp", "id": "id"}
DAY = 86_400_000


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
    source = {**BY_TIME, "poll_interval": "50ms"}
    with Server() as platform, Uploader(site.configure(platform.url, source=source)) as uploader:
        site.add(event(2, timestamp=2000))
        uploader.run()
        uploader.run_for(pause)
        site.add(event(1, timestamp=1000))
        uploader.run_for(5.0)
    assert numbers(platform) == [2, 1]


def test_a_box_that_boots_in_1970(tmp_path: Path) -> None:
    """Where times are text, those of 1970 sort behind all others: what follows still arrives."""
    site = Site(tmp_path)
    site.run("ALTER TABLE event ADD COLUMN at TEXT")
    now = int(time.time() * 1000)

    def at(number: int, ms: int) -> Dict[str, Any]:
        return event(number, timestamp=ms, at=f"{ms / 1000:.6f}")

    site.add(at(1, now - DAY), at(2, 45_000))
    source = {"key": "at", "poll_interval": "20s"}
    with Server() as platform, Uploader(site.configure(platform.url, source=source)) as uploader:
        uploader.run()
        uploader.run_for(100.0)
        site.add(at(3, 46_000))
        uploader.run_for(100.0)
        assert uploader.queue.cursor.settled is not None
        site.add(at(4, now - 1000), at(5, now))
        uploader.run_for(600.0)
    assert sorted(numbers(platform)) == [1, 2, 3, 4, 5]


def test_delivered_events_are_not_found_again(tmp_path: Path) -> None:
    """When receipts have been deleted, no walk through the source takes their rows for new ones."""
    site = Site(tmp_path)
    now = int(time.time() * 1000)
    site.add(*(event(n, timestamp=now - DAY + n) for n in range(1, 11)))
    site.add(event(11, timestamp=now))
    outbox = {"keep_delivered": "2h"}
    source = {**BY_TIME, "poll_interval": "60s"}
    with Server() as platform:
        config = site.configure(platform.url, source=source, outbox=outbox)
        with Uploader(config) as uploader:
            for _ in range(15):
                uploader.run_for(900.0)
                uploader.engine.housekeeping()
        assert site.rows("SELECT count(*) FROM delivery") == [(0,)]
    assert sorted(numbers(platform)) == list(range(1, 12))
    assert site.account() == sums(seen=11, delivered=11)


def test_what_came_before_the_start_stays(tmp_path: Path) -> None:
    """With start: latest no walk through the source brings what the operator left out."""
    site = Site(tmp_path)
    now = int(time.time() * 1000)
    site.add(*(event(n, timestamp=now - DAY + n) for n in range(1, 11)))
    source = {**BY_TIME, "start": "latest", "poll_interval": "60s"}
    with Server() as platform, Uploader(site.configure(platform.url, source=source)) as uploader:
        uploader.run()
        site.add(event(11, timestamp=now))
        uploader.run_for(1000.0)
    assert numbers(platform) == [11]


def test_a_sweep_between_other_work_does_not_put_off_the_next() -> None:
    """What counts is the time that its pages took, not how long a drain went on beside it."""
    lookback, cursor = Lookback(60.0), Cursor(9, b"", None)
    lookback.moved(9, 0.0)
    for key in range(10):
        assert lookback.begin(cursor, 100.0 * key)
        cursor = lookback.swept(cursor, Look(None, 9, [Ref(key, b"")]), 100.0 * key + 0.1)
    assert lookback.next_sweep == pytest.approx(900.1 + 10.0)


def test_late_where_the_newest_were_deleted(tmp_path: Path) -> None:
    """The newest rows are deleted and their ids given out again: that may be late as well."""
    site = Site(tmp_path)
    query = {"query": "SELECT * FROM event", "table": None, "start": "latest"}
    site.add(1)
    with Server() as platform, Uploader(site.configure(platform.url, source=query)) as uploader:
        uploader.step()
        site.add(*range(2, 11))
        uploader.run(lambda: len(platform.requests) == 9)
        uploader.run_for(200.0)
        site.run("CREATE TABLE other (id)")
        uploader.run_for(5.0)
        assert uploader.queue.cursor.settled == 10
        site.remove(8, 9, 10)
        uploader.run_for(5.0)
        site.add(event(29, id=9))
        uploader.run(lambda: 29 in numbers(platform))
        site.add(event(28, id=8))
        uploader.run(lambda: 28 in numbers(platform))
        uploader.run_for(10.0)
    assert sorted(numbers(platform)) == [*range(2, 11), 28, 29]
