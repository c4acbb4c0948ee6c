"""Is the source still the same history, and which part of it is looked at again."""

from __future__ import annotations

from typing import List, Optional

import pytest

from se3_uploader.engine.tail import NOWHERE, Lookback, same_history
from se3_uploader.outbox import Cursor
from se3_uploader.source import Look, Ref

SEEN = Ref(10, b"x" * 16)
OTHER = Ref(10, b"y" * 16)
AT_TEN = Cursor(SEEN.key, SEEN.fingerprint, None)


def later(*keys: int) -> List[Ref]:
    """Rows behind the place."""
    return [Ref(key, b"z" * 16) for key in keys]


@pytest.mark.parametrize(
    ("cursor", "look", "same"),
    [
        (NOWHERE, Look(None, None, []), True),
        (NOWHERE, Look(None, 3, later(1, 2, 3)), True),
        (AT_TEN, Look(SEEN, 10, []), True),
        (AT_TEN, Look(SEEN, 12, later(11, 12)), True),
        (AT_TEN, Look(OTHER, 10, []), False),
        (AT_TEN, Look(OTHER, 99, later(11, 99)), False),
        (AT_TEN, Look(None, 12, later(11, 12)), True),
        (AT_TEN, Look(None, 8, []), False),
        (AT_TEN, Look(None, None, []), True),
    ],
    ids=[
        "new and empty", "new", "nothing new", "new rows", "another row, none behind",
        "another row, many behind", "the row was pruned", "the newest were deleted", "empty",
    ],
)  # fmt: skip
def test_same_history(cursor: Cursor, look: Look, same: bool) -> None:
    """A wipe, a restore and a cut back are told from pruning; an empty source proves nothing."""
    assert same_history(cursor, look) == same


def page(*keys: int) -> Look:
    """A page of a sweep."""
    return Look(None, 100, later(*keys))


def swept(lookback: Lookback, cursor: Cursor, now: float, *pages: Look) -> Cursor:
    """Go through a sweep that is due."""
    assert lookback.begin(cursor, now)
    for each in pages:
        cursor = lookback.swept(cursor, each, now)
    return cursor


def test_a_sweep_goes_from_what_is_settled_to_the_place() -> None:
    """Page by page, and no further than the place was when it began."""
    lookback = Lookback(60.0)
    for key in (10, 20, 30):
        lookback.moved(key, float(key))
    cursor = Cursor(30, b"", 5)
    assert lookback.begin(cursor, 40.0)
    assert (lookback.at, lookback.until) == (5, 30)
    assert lookback.swept(cursor, page(6, 12), 40.0) == cursor
    assert lookback.at == 12
    assert lookback.begin(cursor, 40.0), "it is under way"
    after = lookback.swept(cursor, page(18, 30), 40.0)
    assert after.position == 30
    assert not lookback.begin(after, 40.5), "the next one is due later"


@pytest.mark.parametrize(("now", "settled"), [(50.0, None), (75.0, 10), (85.0, 20), (200.0, 30)])
def test_rows_settle_after_lookback(now: float, settled: Optional[int]) -> None:
    """What the place went over so many seconds ago is not looked at again."""
    lookback = Lookback(60.0)
    for key in (10, 20, 30):
        lookback.moved(key, float(key))
    assert swept(lookback, Cursor(30, b"", None), now, page(30)).settled == settled


def test_an_empty_page_ends_a_sweep() -> None:
    """Where all rows up to the place were deleted meanwhile the sweep ends all the same."""
    lookback = Lookback(60.0)
    lookback.moved(10, 0.0)
    assert swept(lookback, Cursor(10, b"", None), 100.0, page()).settled == 10


def test_memory_stays_flat() -> None:
    """However many rows come, the places remembered are about one for each sixtieth of lookback."""
    lookback = Lookback(60.0)
    for number in range(100_000):
        lookback.moved(number, number / 1000)
    assert len(lookback.passed) <= 102


def test_slow_sweeps_are_rare() -> None:
    """A sweep that takes long is followed by a pause ten times as long."""
    lookback = Lookback(60.0)
    lookback.moved(10, 0.0)
    cursor = Cursor(10, b"", None)
    assert lookback.begin(cursor, 100.0)
    lookback.swept(cursor, page(10), 103.0)
    lookback.moved(11, 103.0)
    assert not lookback.begin(cursor, 132.0)
    assert lookback.begin(cursor, 133.5)
