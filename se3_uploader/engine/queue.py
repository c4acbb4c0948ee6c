"""The queue of one endpoint: what of its deliveries is in memory, and what may be sent next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Deque, Dict, List, NamedTuple, Optional, Protocol, Set, Tuple

from .. import policy
from ..config import Endpoint
from ..outbox import LIVE, PENDING, Cursor, Entry
from ..sink import Delivery
from ..source import Key
from .tail import NOWHERE, Lookback, Patrol

READY_BYTES = 2 * 1024**2
"""Payloads built ahead of sending, so that memory stays flat however long the backlog is."""
READY = 64
BUILT = 16
"""Payloads built in one go, between two looks at the answers."""
BUILT_BYTES = 512 * 1024
FRESH = 256
"""Events seen ahead of sending while the endpoint is well."""
PROBES = 64
"""Different events that are tried in turn while an endpoint is unwell."""


class Transport(Protocol):
    """How a delivery travels: the sink, or a simulated network."""

    certificate_not_after: Optional[float]
    """Epoch seconds at which the platform's certificate ends, None: not seen, or none."""

    def submit(self, delivery: Delivery) -> None:
        """Send it; the answer comes back through the function the transport was made with."""

    def close(self, timeout: float) -> None:
        """Wait so many seconds for what is in flight, then abort it."""


class Seen(NamedTuple):
    """A place in the source that the cursor may move to once its event is recorded."""

    entry: Optional[Entry]
    """None: an event that was known already, there is nothing to record."""
    cursor: Cursor
    at: float
    """Monotonic seconds."""


class Flight(NamedTuple):
    """A request that is under way."""

    entry: Entry
    body: bytes
    round: int
    """The endpoint's round of failures in which it was sent."""
    well: bool
    """Was the endpoint well then? If so a failure may be this event's own fault."""


def event_id(entry: Entry) -> int:
    """Tells events apart within this process (policy.refused)."""
    return hash((entry.generation_id, entry.key))


@dataclass
class Queue:
    """Everything in memory about one endpoint. Every pending entry stands in exactly one place."""

    endpoint: Endpoint
    id: int
    sink: Transport
    health: policy.Health = field(default_factory=policy.Health)
    cursor: Cursor = NOWHERE
    lookback: Lookback = field(default_factory=lambda: Lookback(0.0))
    patrol: Patrol = field(default_factory=Patrol)
    begun: bool = False
    """The place in the source is decided (source.start) and recorded."""
    caught_up: bool = False
    """The last look at the source brought everything there is."""
    recorded: bool = True
    """The outbox may hold pending entries that are not in memory."""

    seen: Deque[Seen] = field(default_factory=deque)
    """What was read from the source and the recorded cursor does not cover yet, in key order."""
    held: Dict[Tuple[Key, bytes], Entry] = field(default_factory=dict)
    """All entries in memory, also those whose end is not written yet."""
    fresh: Deque[Entry] = field(default_factory=deque)
    backlog: Deque[Entry] = field(default_factory=deque)
    waiting: List[Tuple[float, Entry]] = field(default_factory=list)
    """Entries to try again, with the monotonic second from which on."""
    ready: Deque[Tuple[Entry, bytes]] = field(default_factory=deque)
    ready_bytes: int = 0
    flights: Dict[int, Flight] = field(default_factory=dict)
    buried: List[Entry] = field(default_factory=list)
    """Died by rejection since the last acceptance: raised again if the platform proves broken."""
    raising: bool = False
    """They are to be raised, as soon as the outbox can be written."""
    copy_at: float = 0.0
    """When payloads at risk are looked for again."""
    stated: bool = False
    """Does the outbox say how the endpoint fares now, and not how it fared in another process?"""
    certificate: Optional[float] = None
    """End of the platform's certificate as it was recorded last."""
    told: Optional[float] = None
    """When the log last spoke of the outage under way, None: there is none worth a word."""
    away_since: float = 0.0
    """Monotonic second at which the last outage began."""
    newest_report: Optional[Entry] = None
    """With keep: latest, the status report that stands for all that failed before it."""
    not_before: float = 0.0
    """Strict order: the event in front waits until then, and all others behind it."""

    def remember(self, rejected: List[Entry]) -> None:
        """Take note of what the platform rejected before this start, and accepted nothing since."""
        self.buried = rejected
        self.health = self.health._replace(refused=frozenset(map(event_id, rejected)))

    @property
    def is_events(self) -> bool:
        """Does it receive events (else status reports)?"""
        return self.endpoint.kind == "history_event"

    @property
    def strict(self) -> bool:
        """Are deliveries kept strictly in order?"""
        return self.endpoint.max_in_flight == 1 and self.is_events

    @property
    def well(self) -> bool:
        """Is the endpoint in order?"""
        return self.health.state == policy.OK

    def slots(self, now: float) -> int:
        """How many more requests may be sent now."""
        if self.strict and now < self.not_before:
            return 0
        return policy.slots(self.health, self.endpoint.max_in_flight, len(self.flights), now)

    def hold(self, entry: Entry) -> None:
        """Keep an entry in memory."""
        self.held[(entry.key, entry.fingerprint)] = entry

    def release(self, entry: Entry) -> None:
        """Forget an entry whose end is written, or that the outbox keeps for later."""
        self.held.pop((entry.key, entry.fingerprint), None)

    def forget(self, written: List[Entry]) -> None:
        """Let go of what has come to its end and is written.

        While an endpoint is away the outbox keeps all of its new events, and memory none.
        """
        for entry in written:
            if entry.endpoint_id == self.id and entry.state != PENDING:
                self.release(entry)
        if self.is_events and not self.well and self.fresh:
            kept = [entry for entry in self.fresh if entry.row_id is None]
            for entry in self.fresh:
                if entry.row_id is not None:
                    self.release(entry)
            self.fresh = deque(kept)
            self.recorded = True

    def cover(self, until: float) -> Tuple[List[Entry], Optional[Cursor]]:
        """How far the recorded cursor may move, and the entries to be recorded along with it.

        It moves over events that have come to an end, over those seen until a monotonic second,
        and while the endpoint is away over all: what stays uncovered is seen again after a crash.
        Most events are thus written once, as delivered, and never as pending.
        """
        entries, cursor = [], None
        while self.seen:
            entry, place, at = self.seen[0]
            if (
                entry
                and entry.state == PENDING
                and entry.row_id is None
                and self.well
                and at > until
            ):
                break
            if entry is not None and entry.row_id is None:
                entries.append(entry)
            cursor = place
            self.seen.popleft()
        return entries, cursor

    def row_ids(self) -> Set[int]:
        """Rows of the outbox that are in memory."""
        return {entry.row_id for entry in self.held.values() if entry.row_id is not None}

    def has_room(self) -> bool:
        """Is there room in memory for more events?"""
        return len(self.fresh) < FRESH and len(self.waiting) < 2 * FRESH

    def next_entries(self, limit: int, now: float) -> List[Entry]:
        """Take at most limit entries in the order they are to be sent.

        That is: new ones, old ones, and then a single one that was tried before, so that events
        the platform cannot digest never stand for all. While the endpoint is unwell other events
        are tried in turn; after PROBES of them every second probe still is an untried one.
        Strictly in order old ones come first, and new ones only once there are none.
        """
        taken: List[Entry] = []
        if not self.well and len(self.waiting) >= PROBES and self.health.round % 2:
            self._take_due(taken, 1, now, tried=True)
        self._take_due(taken, max(1, limit - 1), now, tried=False)
        lines = (self.backlog, self.fresh) if self.strict else (self.fresh, self.backlog)
        for line in lines:
            while line and len(taken) < max(1, limit - 1):
                taken.append(line.popleft())
            if self.strict and self.recorded:
                break
        # With nothing untried in memory, what the outbox still holds comes first.
        if len(taken) < limit and (taken or not self.recorded):
            self._take_due(taken, len(taken) + 1, now, tried=True)
        return taken

    def _take_due(self, taken: List[Entry], limit: int, now: float, *, tried: bool) -> None:
        """Take what is due of those waiting, tried ones or those put back, up to limit in all."""
        later = []
        for due, entry in self.waiting:
            if due <= now and len(taken) < limit and bool(entry.attempts) == tried:
                taken.append(entry)
            else:
                later.append((due, entry))
        self.waiting = later

    def put_back(self, entries: List[Entry], due: float) -> None:
        """Entries that were taken and could not be prepared stay in front, from a second on."""
        if self.strict:
            self.backlog.extendleft(reversed(entries))
            if entries:
                self.not_before = due
        else:
            self.waiting = [(due, entry) for entry in entries] + self.waiting

    def has_room_for_payloads(self) -> bool:
        """May more payloads be built ahead?"""
        return len(self.ready) < READY and self.ready_bytes < READY_BYTES

    def make_ready(self, entry: Entry, body: bytes, *, front: bool = False) -> None:
        """Line up a payload for sending; those of a backfill let live ones pass."""
        place = 0 if front else len(self.ready)
        may_pass = entry.lane == LIVE and not self.strict
        while may_pass and place and self.ready[place - 1][0].lane != LIVE:
            place -= 1
        self.ready.insert(place, (entry, body))
        self.ready_bytes += len(body)

    def next_ready(self) -> Tuple[Entry, bytes]:
        """Take the next payload to be sent."""
        entry, body = self.ready.popleft()
        self.ready_bytes -= len(body)
        return entry, body

    def bodies(self) -> Dict[int, bytes]:
        """id of entry -> its payload, for those that are lined up or under way."""
        found = {id(entry): body for entry, body in self.ready}
        found.update((id(flight.entry), flight.body) for flight in self.flights.values())
        return found

    def again(self, entry: Entry, body: bytes, due: float) -> None:
        """Try an entry again at a monotonic second; others go first unless the order is strict."""
        if self.strict:
            self.not_before = due
            self.make_ready(entry, body, front=True)
        else:
            self.waiting.append((due, entry))

    def next_due(self) -> Optional[float]:
        """The monotonic second at which something waiting may be sent, None: nothing waits."""
        if not (self.ready or self.fresh or self.backlog or self.waiting or self.recorded):
            return None
        due = max(self.health.next_attempt, self.not_before if self.strict else 0.0)
        if self.ready or self.fresh or self.backlog or self.recorded:
            return due
        return max(due, min(when for when, _ in self.waiting))

    def is_idle(self) -> bool:
        """Is there nothing left to deliver, as far as is known?"""
        return not (
            self.flights
            or self.ready
            or self.fresh
            or self.backlog
            or self.waiting
            or self.recorded
        )
