"""What changed and is not written yet: gathered, and written in one transaction when it is time."""

from __future__ import annotations

import os
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from .. import log
from ..outbox import (
    REPORTS,
    Changes,
    Cursor,
    EndpointState,
    Entry,
    Outbox,
    OutboxDamaged,
    OutboxError,
)
from .queue import FRESH

RECEIPT_WAIT = 0.25
"""Seconds an answer waits for others, to be written with them, while more are in flight."""
RECEIPTS = 100
"""So many answers are written at once."""
REFERENCE_WAIT = 1.0
"""Seconds until an event that was seen is recorded, when no answer came before."""
WRITE_AGAIN = 1.0
"""Seconds between two attempts while the outbox cannot be written."""
SANE_CLOCK = 1_577_836_800.0
"""2020: a wall clock before that was never set, so nothing is old by it."""
UNWRITTEN = 5_000
"""Answers kept in memory while the outbox cannot be written; then nothing more is sent."""


class Clock(NamedTuple):
    """Where the engine takes its time from, both in seconds."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]


class Recorder:
    """Everything that is to be written to the outbox, and whether it can be written."""

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        cover: Callable[[float], Optional[float]],
        written: Callable[[List[Entry]], None],
    ) -> None:
        """cover (Intake.cover) is asked before each write for what was seen; written is told of
        the entries after it."""
        self.outbox = outbox
        self.clock = clock
        self._cover = cover
        self._written = written
        self.error: Optional[str] = None
        """Why the outbox cannot be written, None when it can."""
        self.damaged: Optional[OutboxDamaged] = None
        self._write_at = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget what is not written."""
        self._changes = Changes()
        self._entries: Dict[int, Entry] = {}
        self._bodies: Dict[int, Tuple[Entry, bytes]] = {}
        self._ended = 0
        self._ended_at = 0.0
        self._changed_at: Optional[float] = None

    def note(self, entry: Entry) -> None:
        """Record an entry, new or changed."""
        self._entries[id(entry)] = entry
        self.touch()

    def end(self, entry: Entry, state: int, reason: Optional[str] = None) -> None:
        """Record that an entry came to its end: delivered, dead or lost, and why."""
        entry.state, entry.reason, entry.at = state, reason, self.clock.wall()
        self.note(entry)
        if not self._ended:
            self._ended_at = self.clock.monotonic()
        self._ended += 1

    def keep_body(self, entry: Entry, body: bytes) -> None:
        """Record a copy of an entry's payload."""
        self._bodies[id(entry)] = (entry, body)
        self.touch()

    def body(self, entry: Entry) -> Optional[bytes]:
        """The copy of a payload, written or not; None where there is none. Raises OutboxError."""
        if id(entry) in self._bodies:
            return self._bodies[id(entry)][1]
        return self.outbox.body(entry) if entry.copied else None

    def move_cursor(self, endpoint_id: int, generation_id: int, cursor: Cursor) -> None:
        """Record how far an endpoint has come."""
        self._changes.cursors[(endpoint_id, generation_id)] = cursor
        self.touch()

    def set_state(self, endpoint_id: int, state: EndpointState) -> None:
        """Record how an endpoint fares."""
        self._changes.endpoints[endpoint_id] = state
        self.touch()

    def set_certificate(self, endpoint_id: int, ends: float) -> None:
        """Record when the certificate of an endpoint's platform ends (epoch seconds)."""
        self._changes.certificates[endpoint_id] = ends
        self.touch()

    def touch(self) -> None:
        """Something is to be written before long."""
        if self._changed_at is None:
            self._changed_at = self.clock.monotonic()

    @property
    def is_full(self) -> bool:
        """Is so much unwritten that nothing more may be sent?"""
        return len(self._entries) >= UNWRITTEN

    @property
    def is_clean(self) -> bool:
        """Is everything written?"""
        return not self._entries

    def due(self) -> Optional[float]:
        """When to write (monotonic seconds), None: there is nothing to write."""
        if self._changed_at is None:
            return None
        wait, since = REFERENCE_WAIT, self._changed_at
        if self._ended:
            wait, since = RECEIPT_WAIT, self._ended_at
        return max(since + wait, self._write_at)

    def write_is_due(self, in_flight: bool) -> bool:
        """Is it time to write? At once, when no answer under way could be written with it."""
        due, now = self.due(), self.clock.monotonic()
        if due is None or now < self._write_at:
            return False
        if self._ended and (self._ended >= RECEIPTS or not in_flight):
            return True
        return now >= due or len(self._entries) >= 4 * FRESH

    def write(self, *, everything: bool = True) -> None:
        """Write all changes in one transaction; after a failure they wait for the next attempt.

        Not everything: new events that are still on their way wait, up to REFERENCE_WAIT, to be
        written together with their receipt.
        """
        until = float("inf") if everything else self.clock.monotonic() - REFERENCE_WAIT
        waiting_since = self._cover(until)
        changes = self._changes
        changes.entries = list(self._entries.values())
        changes.copies = list(self._bodies.values())
        if not changes and self.error is None:
            self._changed_at = waiting_since
            return
        try:
            self.outbox.write(changes)
        except OutboxError as error:
            self.failed(error)
            return
        if self.error is not None:
            log.info("the outbox can be written again")
            self.error = None
        self.reset()
        self._changed_at = waiting_since
        self._written(changes.entries)
        self._set_aside(changes)

    def _set_aside(self, changes: Changes) -> None:
        """Record elsewhere what was not written, as another event's row stood in its place."""
        for entry in changes.entries:
            if entry.row_id is None and entry.generation_id != REPORTS:
                try:
                    entry.generation_id = self.outbox.generation_aside(entry)
                except OutboxError as error:
                    self.failed(error)
                self.note(entry)
                for _, body in [copy for copy in changes.copies if copy[0] is entry]:
                    self.keep_body(entry, body)

    def failed(self, error: OutboxError) -> None:
        """Take note that the outbox failed; damage is for the engine to deal with."""
        self._write_at = self.clock.monotonic() + WRITE_AGAIN
        self.touch()
        if isinstance(error, OutboxDamaged):
            self.damaged = error
        if self.error is None:
            log.error(
                f"{error}. Delivery goes on; no new events are taken in until it can be written"
            )
        self.error = str(error)

    def start_over(self) -> None:
        """After damage: move the file aside and begin a new outbox. Raises OutboxError."""
        aside = self.outbox.start_over()
        log.error(
            f"{self.damaged}. It was moved aside, and every event the source still holds is sent"
            " again under its old idempotency key",
            kept_as=os.path.basename(aside),
        )
        self.damaged = self.error = None
        self.reset()
