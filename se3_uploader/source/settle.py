"""Rows that are too young to be read: the box may still be writing their pictures."""

from __future__ import annotations

import time
from itertools import islice
from typing import Callable, Dict, Optional, Sequence

from . import Key

_REMEMBERED = 10_000


class Settle:
    """Holds rows back until they are seconds old, by their timestamp or since they were first seen.

    Both are asked because a box that boots in 1970 dates its clock far from its rows: a row from
    the future waits seconds and no longer.
    """

    def __init__(
        self,
        seconds: float,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._wall = wall
        self._monotonic = monotonic
        self._first_seen: Dict[Key, float] = {}
        self.waiting = False
        """True while the last answer held something back."""

    def settled(self, keys: Sequence[Key], moments: Sequence[Optional[int]]) -> int:
        """Return how many of these rows, counted from the first, may be taken.

        moments: when each event happened (epoch ms), None where its timestamp is unusable.
        """
        if not self.seconds:
            return len(keys)
        now, today = self._monotonic(), self._wall() * 1000
        young = {
            key: self._first_seen.setdefault(key, now)
            for key, moment in zip(keys, moments)
            if moment is None or not moment <= today - self.seconds * 1000
        }
        for key in list(islice(self._first_seen, max(0, len(self._first_seen) - _REMEMBERED))):
            del self._first_seen[key]
        for place, key in enumerate(keys):
            if now - young.get(key, float("-inf")) < self.seconds:
                self.waiting = True
                return place
        self.waiting = False
        return len(keys)
