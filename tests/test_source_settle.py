"""Rows wait until they have settled, whatever the clocks say."""

from __future__ import annotations

from se3_uploader.source.settle import Settle


class Clocks:
    """A wall clock and a monotonic clock that stand still until they are moved."""

    def __init__(self, wall: float) -> None:
        self.wall = wall
        self.monotonic = 100.0

    def settle(self, seconds: float) -> Settle:
        """Make the rule on these clocks."""
        return Settle(seconds, lambda: self.wall, lambda: self.monotonic)


def test_old_rows_pass_and_young_ones_wait() -> None:
    """By their timestamp, up to the first that is too young."""
    clocks = Clocks(wall=1000.0)
    settle = clocks.settle(10)
    assert settle.settled([1, 2, 3], [980_000, 990_000, 990_001]) == 2
    assert settle.waiting
    clocks.wall += 1
    assert settle.settled([3], [990_001]) == 1
    assert not settle.waiting


def test_a_wrong_clock_delays_no_longer_than_settle() -> None:
    """A box in 1970 reads rows of 2026: they wait the settle time once, all together."""
    clocks = Clocks(wall=5.0)
    settle = clocks.settle(10)
    moments = [1_767_225_600_000, None, 1_767_225_600_000]
    assert settle.settled([1, 2, 3], moments) == 0
    clocks.monotonic += 9.9
    assert settle.settled([1, 2, 3], moments) == 0
    clocks.monotonic += 0.1
    assert settle.settled([1, 2, 3, 4], [*moments, None]) == 3


def test_without_settle_nothing_waits() -> None:
    """The default holds nothing back, nor does it ask for times."""
    settle = Clocks(wall=0.0).settle(0)
    assert settle.settled([1, 2, 3], []) == 3
    assert not settle.waiting


def test_memory_is_bounded() -> None:
    """However many rows are too young, what is remembered of them does not grow for ever."""
    settle = Clocks(wall=0.0).settle(10)
    for first in range(0, 100_000, 1000):
        keys = list(range(first, first + 1000))
        assert settle.settled(keys, [None] * 1000) == 0
    assert len(settle._first_seen) <= 10_000
