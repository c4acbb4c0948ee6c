"""One-shot upload of a time range, through the same outbox and the same steps as live events.

The events of the range are put into the outbox page by page; whoever holds the lock delivers them:
a running daemon, else this process with an engine of its own. Whatever ends in between, the same
command goes on where it was, since the outbox knows what has been queued and delivered.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Deque, Dict, Iterator, List, Optional, Sequence, Tuple

from . import agent
from .config import Config, Endpoint
from .engine import Engine
from .lock import Lock, daemon_lock, holder
from .outbox import DEAD, DISCARDED, LOST, PENDING, Outbox
from .outbox.backfills import Backfill, Backfills
from .payload import Strip, wanted_pictures
from .sink import Sink
from .source import Key, Ref, Source, open_source
from .wake import Wake

SCAN = 20_000
"""Rows of the source looked at in one short read."""
PAGE = 200
"""Events queued in one transaction, so that a daemon never waits long for the outbox."""
WINDOW = 1000
"""Events of a backfill that stand in an endpoint's queue at once."""
SCAN_REFS = 2000
"""Rows looked at in one go for events to queue."""
SAMPLE = 40
"""Rows read whole to estimate how many bytes there are to send."""
PATIENCE = 60.0
"""Seconds without a delivery after which a backfill leaves the rest for another time."""
WATCH = 0.2
"""Seconds between two looks at a delivery that another process makes."""


@dataclass(frozen=True)
class Wanted:
    """What the operator asked for."""

    since: int
    """Epoch milliseconds, included."""
    until: int
    """Epoch milliseconds, excluded."""
    endpoints: Tuple[Endpoint, ...]
    rate: Optional[float] = None
    """Events per second, None: as fast as the platform takes them."""
    resend: bool = False
    strip: bool = False
    """Send without pictures."""
    words: str = ""
    """The request as it was typed, by which it is known again after an interruption."""


@dataclass
class Plan:
    """What a backfill would do."""

    events: int = 0
    known: Dict[str, Counter[int]] = field(default_factory=dict)
    """Endpoint -> state -> how many events of the range the outbox knows already."""
    bytes_each: float = 0.0
    """Average of a few events' payloads, pictures included."""

    def to_send(self, endpoint: str, resend: bool) -> int:
        """How many events are still to be sent to an endpoint."""
        known = self.known[endpoint]
        return self.events - (0 if resend else sum(known.values()) - known[PENDING])

    def seconds(self, wanted: Wanted) -> Optional[float]:
        """How long the sending takes at the chosen rate, None without one."""
        if wanted.rate is None:
            return None
        return max(self.to_send(e.name, wanted.resend) for e in wanted.endpoints) / wanted.rate


@dataclass
class Progress:
    """Where a backfill stands, summed over its endpoints."""

    total: int
    queued: int = 0
    waiting: int = 0
    done: int = 0


def scan(source: Source, since: int, until: int) -> Iterator[List[Key]]:
    """The keys of a time range, page by page, with flat memory. Raises SourceError."""
    after: Optional[Key] = None
    while True:
        page = source.keys_between(since, until, after, SCAN)
        if page.keys:
            yield page.keys
        if page.scanned_to is None:
            return
        after = page.scanned_to


def resumed(wanted: Wanted, begun: Backfill) -> Wanted:
    """The same request with the range that was meant when it was first typed."""
    return replace(wanted, since=begun.since, until=begun.until)


def plan(wanted: Wanted, source: Source, outbox: Optional[Backfills]) -> Plan:
    """Count what there is to do; outbox is None where there is none yet. Writes nothing.

    Raises SourceError, OutboxError.
    """
    found = Plan(known={endpoint.name: Counter() for endpoint in wanted.endpoints})
    ids = outbox.endpoints() if outbox is not None else {}
    asked = [e.name for e in wanted.endpoints if e.name in ids]
    sample: List[Key] = []
    for keys in scan(source, wanted.since, wanted.until):
        found.events += len(keys)
        sample = [*sample, *keys[:: max(1, len(keys) // SAMPLE)]]
        for name in asked:
            assert outbox is not None
            found.known[name].update(outbox.states(ids[name], keys).values())
    found.bytes_each = _bytes_each(wanted, source, sample)
    return found


def _bytes_each(wanted: Wanted, source: Source, keys: Sequence[Key]) -> float:
    keys = keys[:: max(1, len(keys) // SAMPLE)][:SAMPLE]
    pictures = set()
    if not wanted.strip:
        pictures = {name for e in wanted.endpoints for name in wanted_pictures(e.pictures)}
    sizes = []
    for key in keys:
        for row in source.rows([key], sorted(pictures), 1).rows:
            sizes.append(300 + sum(_size(value) for value in row.values.values()))
    return sum(sizes) / len(sizes) if sizes else 0.0


def _size(value: object) -> float:
    if isinstance(value, bytes):
        return len(value) * 4 / 3
    return len(value) if isinstance(value, str) else 10


class Run:
    """A backfill being carried out."""

    def __init__(self, config: Config, wanted: Wanted, found: Plan) -> None:
        """Open outbox and source. Raises OutboxError, SourceError."""
        self._config = config
        self._wanted = wanted
        self._source = open_source(config.source)
        self._lock = Lock(config.outbox.path)
        self._engine: Optional[Engine] = None
        self._outbox: Optional[Outbox] = None
        self._wake = Wake(())
        self._found: Deque[Ref] = deque()
        self._scan_from: Optional[Key] = None
        self._scanned = False
        self._began = time.monotonic()
        self._take_over()
        self._table = Backfills(config.outbox.path)
        self._ids = self._table.endpoints()
        self.backfill: Backfill = self._table.begin(wanted.words, wanted.since, wanted.until)
        sends = [found.to_send(e.name, wanted.resend) for e in wanted.endpoints]
        self.progress = Progress(total=sum(sends), queued=sum(self._waiting().values()))
        self._moved_at = self._began

    def _waiting(self) -> Dict[str, int]:
        names = (endpoint.name for endpoint in self._wanted.endpoints)
        return {name: self._table.pending(self.backfill, self._ids[name]) for name in names}

    def _take_over(self) -> None:
        """Deliver ourselves, where nobody else does."""
        if self._engine is not None or self._lock.acquire("backfill") is not None:
            return
        self._outbox, rebuilt = agent.open_outbox(self._config.outbox.path)
        self._engine = Engine(
            self._config, self._source, self._outbox, Sink,
            clock=agent.clock(), random=random.random, wake=self._wake.set,
            start="earliest" if rebuilt else None,
        )  # fmt: skip
        self._engine.take_nothing_in()

    def _hand_over(self) -> None:
        """Leave the delivery to a daemon that is starting, with nothing in flight."""
        if self._engine is None or self._outbox is None:
            return
        self._engine.stopping = True
        deadline = time.monotonic() + agent.STOP_WITHIN
        while self._engine.in_flight() and time.monotonic() < deadline:
            self._wake.wait(min(0.1, self._engine.step()))
        self._engine.close(max(0.0, deadline - time.monotonic()))
        self._engine.flush()
        self._outbox.close()
        self._engine = self._outbox = None
        self._lock.release()

    def step(self) -> bool:
        """Queue what there is room for, deliver or watch for a moment; False once all is done."""
        if holder(daemon_lock(self._config.outbox.path)) is not None:
            self._hand_over()
        else:
            self._take_over()
        waiting = self._waiting()
        room = WINDOW - max(waiting.values())
        queued = self._queue(min(room, self._budget())) if room > 0 else 0
        self._take_note(sum(waiting.values()) + queued)
        if self._engine is not None:
            self._engine.refresh()
            self._wake.wait(min(WATCH, self._engine.step()))
        elif not queued:
            time.sleep(WATCH)
        return bool(self._found) or not self._scanned or self.progress.waiting > 0

    def _take_note(self, waiting: int) -> None:
        done = max(0, self.progress.queued - waiting)
        if done != self.progress.done or not waiting:
            self._moved_at = time.monotonic()
        self.progress.waiting, self.progress.done = waiting, done

    def _budget(self) -> int:
        """How many events the rate allows to queue now."""
        if self._wanted.rate is None:
            return PAGE
        passed = time.monotonic() - self._began
        allowed = passed * self._wanted.rate * len(self._wanted.endpoints)
        return min(PAGE, int(allowed - self.progress.queued))

    def _queue(self, limit: int) -> int:
        """Put up to limit events into the outbox; returns how many deliveries that made."""
        if not self._found and not self._scanned:
            since, until = self.backfill.since, self.backfill.until
            page = self._source.between(since, until, self._scan_from, SCAN_REFS)
            self._found.extend(page.refs)
            self._scan_from, self._scanned = page.scanned_to, page.scanned_to is None
        refs = [self._found.popleft() for _ in range(min(limit, len(self._found)))]
        strip = int(Strip.REQUESTED if self._wanted.strip else Strip.NOTHING)
        queued = 0
        for endpoint in self._wanted.endpoints:
            if refs:
                queued += self._table.enqueue(
                    self.backfill, self._ids[endpoint.name], self._config.source.name, refs,
                    strip=strip, resend=self._wanted.resend,
                )  # fmt: skip
        self.progress.queued += queued
        return queued

    def is_stuck(self) -> bool:
        """Has nothing been delivered for so long that another time is better?"""
        return self.progress.waiting > 0 and time.monotonic() - self._moved_at > PATIENCE

    def close(self) -> None:
        """Finish what is in flight and leave the rest for the next time."""
        self._hand_over()
        self._table.close()
        self._source.close()
        self._wake.close()

    def finish(self) -> Counter[int]:
        """The states of all events of the range, over all endpoints, once nothing is pending."""
        states: Counter[int] = Counter()
        for keys in scan(self._source, self.backfill.since, self.backfill.until):
            for endpoint in self._wanted.endpoints:
                known = self._table.states(self._ids[endpoint.name], keys)
                states.update(known.get(key, PENDING) for key in keys)
        if not states[PENDING]:
            self._table.finish(self.backfill)
        return states


def exit_code(states: Counter[int]) -> int:
    """0 all delivered, 75 something is still pending, 1 something is dead or lost."""
    if states[PENDING]:
        return agent.TEMPORARY
    return agent.PROBLEM if states[DEAD] + states[LOST] + states[DISCARDED] else agent.OK
