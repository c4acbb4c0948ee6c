"""Following the source: is it still the same history, and which rows became visible late?"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Deque, Optional, Tuple

from ..outbox import Cursor
from ..source import Key, Look

_PASSED = 128
"""Positions remembered, twice what lookback needs; without one a row is looked for longer."""

NOWHERE = Cursor(None, b"", None)
"""The place of an endpoint that has begun and has not seen a row yet."""


def same_history(cursor: Cursor, look: Look) -> bool:
    """Is the source at this look (taken after the cursor's position) still the one we followed?

    The row at the position must be the one we saw. Where it is gone, rows behind it prove that
    single rows were deleted, while none behind it and some before it mean that the newest were
    deleted: their keys may be given out again. An empty source proves nothing yet.
    """
    if cursor.position is None:
        return True
    if look.at is not None:
        return look.at.fingerprint == cursor.fingerprint
    return bool(look.refs) or look.newest is None


@dataclass
class Lookback:
    """Which part of an unordered source is swept again, page by page, for rows that came late."""

    seconds: float
    owed: bool = True
    """The source may have changed since the last sweep began."""
    passed: Deque[Tuple[float, Key]] = field(default_factory=lambda: deque(maxlen=_PASSED))
    """(monotonic seconds, position): when the cursor came to a position, for some of them."""
    at: Optional[Key] = None
    """Where the sweep under way goes on."""
    until: Optional[Key] = None
    """Where it ends; None: no sweep is under way."""
    settles: Optional[Key] = None
    """What counts as settled when the sweep has come to its end."""
    began: float = 0.0
    """When its page under way was asked for."""
    spent: float = 0.0
    """Seconds that its pages took; between them other work is done."""
    next_sweep: float = 0.0

    def moved(self, position: Key, now: float) -> None:
        """Remember when the cursor came to a position."""
        if len(self.passed) > 1 and now - self.passed[-2][0] < self.seconds / 60:
            self.passed.pop()
        self.passed.append((now, position))

    def begin(self, cursor: Cursor, now: float) -> bool:
        """Begin a sweep, where one is due; True while one is under way."""
        self.began = now
        if self.until is None and not self.passed:
            self.owed = False
        elif self.until is None and now >= self.next_sweep:
            self.owed = False
            self.at, self.until, self.settles = cursor.settled, cursor.position, cursor.settled
            self.spent = 0.0
            while self.passed and self.passed[0][0] <= now - self.seconds:
                self.settles = self.passed.popleft()[1]
        return self.until is not None

    def swept(self, cursor: Cursor, page: Look, now: float) -> Cursor:
        """Take note of a page read after self.at; returns the cursor as it is then."""
        self.spent += now - self.began
        reached = any(ref.key == self.until for ref in page.refs)
        if page.refs:
            self.at = page.refs[-1].key
        if page.refs and not reached:
            return cursor
        self.until = None
        self.next_sweep = now + max(1.0, 10 * self.spent)
        return cursor._replace(settled=self.settles)


@dataclass
class Patrol:
    """A slow walk through a whole source in which a row may come to stand far behind the place.

    That is one whose keys are times or text: a clock is set back, or a box boots in 1970.
    """

    at: Optional[Key] = None
    """Where it goes on, None: at the start."""
    due: float = 0.0
    """When it goes on (monotonic seconds)."""
