"""The engine: read events from the source, put a reference to each in the outbox, build its
payload, POST it through the sink, and let policy decide what the answer means.

One thread owns all state. Workers of the sinks only hand back answers; clock, randomness, source
and sinks are passed in, so that the same engine runs in a simulation.
"""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import orjson

from . import log, payload, policy
from .config import Config, Endpoint
from .outbox import (
    DEAD,
    DELIVERED,
    LOST,
    PENDING,
    REPORTS,
    Changes,
    Cursor,
    EndpointState,
    Entry,
    Outbox,
    OutboxDamaged,
    OutboxError,
)
from .queue import FRESH, READY, READY_BYTES, Flight, Queue, Transport
from .sink import Delivery
from .source import Look, Row, Source, SourceError
from .tail import NOWHERE, Lookback, same_history

PAGE = 256
"""Events read from the source at a time."""
WINDOW = 200_000
"""References to events kept for an endpoint that is away; more wait in the source."""
RECEIPT_WAIT = 0.05
"""Seconds an answer waits for others, to be written with them, while more are in flight."""
RECEIPTS = 100
"""So many answers are written at once."""
REFERENCE_WAIT = 1.0
"""Seconds until an event that was seen is recorded, when no answer came before."""
COMMIT_WAITS = (0.01, 0.06, 0.3)
"""Seconds after a write to the files of the source at which to look: commits show after fsync."""
COPIES = 8
"""Payloads copied at a time."""
SANE_CLOCK = 1_577_836_800.0
"""2020: a wall clock before that was never set, so nothing is old by it."""
STEADY = 600.0
"""Seconds the wall clock must have gone without a jump before anything is deleted by its age."""
CLOCK_JUMP = 5.0
UNWRITTEN = 5_000
"""Answers kept in memory while the outbox cannot be written; then nothing more is sent."""


class Clock(NamedTuple):
    """Where the engine takes its time from, both in seconds."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]


MakeSink = Callable[[Endpoint, Callable[[int, policy.Answer], None]], Transport]


class Engine:
    """The state of all endpoints, and the steps that move it on."""

    def __init__(
        self,
        config: Config,
        source: Source,
        outbox: Outbox,
        make_sink: MakeSink,
        *,
        clock: Clock,
        random: Callable[[], float],
        wake: Callable[[], None],
        start: Optional[str] = None,
    ) -> None:
        """wake is called from the sinks' threads when an answer has come; start overrides the
        configured source.start. Raises OutboxError."""
        self.config = config
        self.source = source
        self.outbox = outbox
        self._make_sink = make_sink
        self._clock = clock
        self._random = random
        self._wake = wake
        self._answers: Deque[Tuple[int, policy.Answer]] = deque()
        self._tickets = itertools.count(1)
        self._flying: Dict[int, Queue] = {}
        self._changes = Changes()
        self._unwritten: Dict[int, Entry] = {}
        self._bodies: Dict[int, Tuple[Entry, bytes]] = {}
        self._answered = 0
        self._changed_at: Optional[float] = None
        self._answered_at = 0.0
        self._look_at = 0.0
        self._hints: List[float] = []
        self._source_at = 0.0
        self._write_at = 0.0
        self.source_error: Optional[str] = None
        self.outbox_error: Optional[str] = None
        self._drift = clock.wall() - clock.monotonic()
        self._steady_since = clock.monotonic()
        self.stopping = False
        """Set to send no more events, only what is in flight and the last report."""
        self.queues: List[Queue] = []
        self._columns = payload.columns_of(config.source)
        self._open_queues(start or config.source.start)

    def _open_queues(self, start: str) -> None:
        self.generation, self.generation_number = self.outbox.generation(
            self.config.source.name
        ) or self.outbox.new_generation(self.config.source.name)
        self._start = start
        self.queues = [self._open_queue(endpoint) for endpoint in self.config.endpoints]

    def _open_queue(self, endpoint: Endpoint) -> Queue:
        number = self.outbox.register(endpoint.name, endpoint.kind, endpoint.url)
        queue = Queue(endpoint, number, self._make_sink(endpoint, self._collect))
        if queue.is_events:
            self._place(queue, self.outbox.cursor(number, self.generation))
        elif self.config.device_status.keep == "latest":
            self.outbox.forget_reports(number)
        return queue

    def _place(self, queue: Queue, cursor: Optional[Cursor]) -> None:
        queue.caught_up = False
        queue.lookback = None if self.source.ordered else Lookback(self.config.source.lookback)
        queue.begun = cursor is not None
        queue.cursor = cursor or NOWHERE
        if queue.lookback is not None and queue.cursor.position is not None:
            queue.lookback.moved(queue.cursor.position, self._clock.monotonic())

    def _collect(self, ticket: int, answer: policy.Answer) -> None:
        self._answers.append((ticket, answer))
        self._wake()

    # One step

    def step(self) -> float:
        """Do everything that can be done now; returns seconds until something is due again."""
        now = self._clock.monotonic()
        self._judge_all(now)
        busy = False
        for queue in self.queues:
            if queue.is_events and self.stopping:
                continue
            if queue.is_events:
                busy |= self._tail(queue, now)
            busy |= self._deliver(queue, now)
        if self._write_is_due(now):
            self._write(now)
        for queue in self.queues:
            busy |= self._copy(queue, now)
        return 0.0 if busy or self._answers else self._next_due(now)

    def look_soon(self) -> None:
        """The files of the source were written to: look at it once the commit can be seen."""
        now = self._clock.monotonic()
        self._hints = [now + wait for wait in COMMIT_WAITS]

    def refresh(self) -> None:
        """Notice what another process (a backfill, an operator) put into the outbox."""
        try:
            if self.outbox.changed():
                for queue in self.queues:
                    queue.recorded = True
        except OutboxError as error:
            self._outbox_failed(error, self._clock.monotonic())

    def _next_due(self, now: float) -> float:
        dues = [self._look_at, *self._hints[:1]]
        if self._changed_at is not None:
            wait = RECEIPT_WAIT if self._answered else REFERENCE_WAIT
            since = self._answered_at if self._answered else self._changed_at
            dues.append(max(since + wait, self._write_at))
        for queue in self.queues:
            due = queue.next_due()
            if due is not None and (queue.slots(now) or due > now):
                dues.append(due)
        return max(0.0, min(dues) - now)

    # Source -> queue

    def _tail(self, queue: Queue, now: float) -> bool:
        """Take the next events in; True when there may be more at once."""
        if now >= self._look_at or (self._hints and now >= self._hints[0]):
            self._look_at = now + self.config.source.poll_interval
            self._poll(now)
        if self.outbox_error or now < self._source_at:
            return False
        if queue.caught_up or not queue.wants_tail() or not self._has_window(queue):
            return False
        try:
            more = self._take_in(queue, now)
        except SourceError as error:
            self._source_failed(error, now)
            return False
        self._source_recovered()
        return more

    def _poll(self, now: float) -> None:
        try:
            changed = self.source.changed()
        except SourceError as error:
            self._source_failed(error, now)
            return
        self._hints = [] if changed else [hint for hint in self._hints if hint > now]
        if changed or self.source_error:
            for queue in self.queues:
                queue.caught_up = False

    def _has_window(self, queue: Queue) -> bool:
        return queue.well or self.outbox.pending_count(queue.id) < WINDOW

    def _take_in(self, queue: Queue, now: float) -> bool:
        if not queue.begun and self._start == "latest":
            self._begin_at_newest(queue)
        page = self.source.look(queue.cursor.position, PAGE)
        if not same_history(queue.cursor, page):
            self._begin_generation(page)
            return True
        self._add(queue, page, now)
        if page.refs:
            last = page.refs[-1]
            queue.cursor = queue.cursor._replace(position=last.key, fingerprint=last.fingerprint)
            if queue.lookback is not None:
                queue.lookback.moved(last.key, now)
        if page.refs or not queue.begun:
            self._move_cursor(queue, now)
        sweeping = queue.lookback is not None and self._sweep(queue, queue.lookback, now)
        queue.caught_up = len(page.refs) < PAGE and not sweeping
        return bool(page.refs) or sweeping

    def _add(self, queue: Queue, page: Look, now: float) -> None:
        refs = [ref for ref in page.refs if (ref.key, ref.fingerprint) not in queue.held]
        known = self.outbox.known(queue.id, refs) if refs else set()
        for ref in refs:
            if ref.key in known:
                continue
            entry = Entry(queue.id, self.generation, ref.key, ref.fingerprint, self._clock.wall())
            queue.hold(entry)
            queue.fresh.append(entry)
            self._note(entry, now)

    def _sweep(self, queue: Queue, lookback: Lookback, now: float) -> bool:
        """Look again at a page of the recent past, for rows that became visible late."""
        if not lookback.begin(queue.cursor, now):
            return False
        page = self.source.look(lookback.at, PAGE)
        self._add(queue, page, now)
        queue.cursor = lookback.swept(queue.cursor, page, len(page.refs) == PAGE, now)
        return lookback.until is not None

    def _move_cursor(self, queue: Queue, now: float) -> None:
        queue.begun = True
        self._changes.cursors[(queue.id, self.generation)] = queue.cursor
        self._touch(now)

    def _begin_at_newest(self, queue: Queue) -> None:
        newest = self.source.newest()
        at = self.source.look(newest, 1).at if newest is not None else None
        if at is not None:
            queue.cursor = Cursor(at.key, at.fingerprint, at.key)

    def _begin_generation(self, page: Look) -> None:
        """The source is another one than before: look at all of it, and skip what is known."""
        now = self._clock.monotonic()
        self._write(now)
        newest = None
        if page.at is None and page.newest is not None:
            newest = self.source.look(page.newest, 1).at
        self.generation, self.generation_number = self.outbox.new_generation(
            self.config.source.name
        )
        log.warning(
            "the event database was wiped, replaced or cut back: a new generation of it begins,"
            " and every event that is not known yet is taken in",
            source=self.config.source.name,
            generation=self.generation_number,
        )
        for queue in self.queues:
            if not queue.is_events:
                continue
            cursor = NOWHERE
            if newest is not None and self.outbox.known(queue.id, [newest]):
                cursor = Cursor(newest.key, newest.fingerprint, newest.key)
            self._place(queue, cursor)
            self._move_cursor(queue, now)

    def _source_failed(self, error: SourceError, now: float) -> None:
        self._source_at = now + max(1.0, self.config.source.poll_interval)
        if self.source_error is None:
            log.error(f"the event database cannot be read: {error}", source=self.config.source.name)
        self.source_error = str(error)

    def _source_recovered(self) -> None:
        if self.source_error is not None:
            log.info("the event database can be read again", source=self.config.source.name)
            self.source_error = None

    # Queue -> sink

    def _deliver(self, queue: Queue, now: float) -> bool:
        """Send what the endpoint may have in flight; True when something was sent."""
        sent = False
        while queue.slots(now) and len(self._unwritten) < UNWRITTEN:
            if not queue.ready and not self._prepare(queue, now):
                break
            if not queue.ready:
                continue
            entry, body = queue.next_ready()
            if entry.state != PENDING:
                continue
            ticket = next(self._tickets)
            queue.flights[ticket] = Flight(entry, body, queue.health.round, queue.well)
            self._flying[ticket] = queue
            queue.sink.submit(Delivery(ticket, self._idempotency_key(entry), body))
            sent = True
        return sent

    def _idempotency_key(self, entry: Entry) -> str:
        if entry.generation_id == REPORTS:
            return str(entry.key)
        return payload.idempotency_key(self.config.gateway.dev_sno, entry.fingerprint)

    def _prepare(self, queue: Queue, now: float) -> bool:
        """Build the next payloads; False when there is nothing that can be built now."""
        limit = READY if queue.well else 1
        entries = queue.next_entries(limit, now)
        if not entries and queue.recorded and not self.outbox_error:
            self._load(queue, limit)
            entries = queue.next_entries(limit, now)
        if not entries:
            return False
        try:
            rest, due = self._build_all(queue, entries, now)
        except OutboxError as error:
            queue.put_back(entries, now + 1.0)
            self._outbox_failed(error, now)
            return False
        queue.put_back(rest, due)
        return bool(queue.ready) or len(rest) < len(entries)

    def _load(self, queue: Queue, limit: int) -> None:
        try:
            entries = self.outbox.pending(queue.id, 4 * limit, queue.row_ids())
        except OutboxError as error:
            self._outbox_failed(error, self._clock.monotonic())
            return
        queue.recorded = bool(entries)
        for entry in entries:
            held = queue.held.get((entry.key, entry.fingerprint))
            if held is not None:
                held.row_id, held.copied = entry.row_id, entry.copied
                continue
            queue.hold(entry)
            queue.backlog.append(entry)

    def _build_all(
        self, queue: Queue, entries: List[Entry], now: float
    ) -> Tuple[List[Entry], float]:
        """Make entries ready as far as memory allows; returns those left, and when to go on."""
        bodies = {id(e): self._stored_body(queue, e) for e in entries if self._is_stored(e)}
        due = now
        try:
            rows, missing = self._fetch(queue, [e for e in entries if id(e) not in bodies])
        except SourceError as error:
            self._source_failed(error, now)
            rows, missing, due = {}, [], self._source_at
        left: List[Entry] = []
        for number, entry in enumerate(entries):
            body = bodies.get(id(entry))
            if body is None and entry.key in missing:
                self._lose(queue, entry, "the event database deleted it before it was sent", now)
                continue
            if body is None and entry.key not in rows:
                left.append(entry)
                if queue.strict:
                    return entries[number:], due
                continue
            if body is None:
                body = self._build(queue, entry, rows[entry.key], now)
            if body is not None:
                queue.make_ready(entry, body)
        return left, due

    def _is_stored(self, entry: Entry) -> bool:
        return entry.copied or id(entry) in self._bodies

    def _stored_body(self, queue: Queue, entry: Entry) -> bytes:
        unwritten = self._bodies.get(id(entry))
        body = unwritten[1] if unwritten else self.outbox.body(entry)
        if body is None:
            raise OutboxError(f"the copy of delivery {entry.row_id} is gone: look at the disk")
        if not entry.strip or not queue.is_events:
            return body
        return payload.strip_pictures(
            body, payload.Strip(entry.strip), queue.endpoint.pictures.when_absent
        )

    def _fetch(self, queue: Queue, entries: Sequence[Entry]) -> Tuple[Dict[Any, Row], List[Any]]:
        if not entries:
            return {}, []
        wanted = payload.wanted_pictures(queue.endpoint.pictures)
        keys = list(dict.fromkeys(entry.key for entry in entries))
        found = self.source.rows(keys, wanted, READY_BYTES)
        return {row.ref.key: row for row in found.rows}, found.missing

    def _build(self, queue: Queue, entry: Entry, row: Row, now: float) -> Optional[bytes]:
        if row.ref.fingerprint != entry.fingerprint and not self._was_updated(queue, entry):
            self._lose(queue, entry, "the event database gave its key to another event", now)
            return None
        try:
            return payload.build(
                row.values,
                self._columns,
                dev_sno=self.config.gateway.dev_sno,
                unit=self.config.source.timestamp_unit,
                wire_unit=self.config.history_event.timestamp_unit,
                pictures=queue.endpoint.pictures,
                strip=payload.Strip(entry.strip),
            ).body
        except payload.Unusable as unusable:
            self._end(queue, entry, DEAD, f"unusable: {unusable}", now)
            return None

    def _was_updated(self, queue: Queue, entry: Entry) -> bool:
        """Is a row that reads otherwise than before still the same event?

        Yes while the source is the same: then somebody changed the row. After a wipe it is
        another event under a key that was given out again.
        """
        if entry.generation_id != self.generation:
            return False
        page = self.source.look(queue.cursor.position, 1)
        if same_history(queue.cursor, page):
            return True
        self._begin_generation(page)
        return False

    def _lose(self, queue: Queue, entry: Entry, reason: str, now: float) -> None:
        log.error("an event is lost", endpoint=queue.endpoint.name, reason=reason)
        self._end(queue, entry, LOST, reason, now)

    def _end(
        self, queue: Queue, entry: Entry, state: int, reason: Optional[str], now: float
    ) -> None:
        entry.state, entry.reason, entry.at = state, reason, self._clock.wall()
        self._note(entry, now)
        if not self._answered:
            self._answered_at = now
        self._answered += 1
        if state == DEAD:
            log.error("an event is dead", endpoint=queue.endpoint.name, reason=reason)

    # Sink -> policy -> outbox

    def _judge_all(self, now: float) -> None:
        while self._answers:
            ticket, answer = self._answers.popleft()
            queue = self._flying.pop(ticket, None)
            flight = queue.flights.pop(ticket, None) if queue else None
            if queue and flight:
                self._judge(queue, flight, answer, now)

    def _judge(self, queue: Queue, flight: Flight, answer: policy.Answer, now: float) -> None:
        verdict = policy.judge(answer, queue.endpoint.accept)
        before = queue.health
        entry = flight.entry
        entry.attempts += 1
        if verdict.outcome == policy.DELIVERED:
            queue.health = policy.accepted(before, queue.endpoint.max_in_flight, answer.seconds)
            queue.buried.clear()
            stripped = entry.strip in (payload.Strip.SPOT, payload.Strip.BOTH)
            self._end(queue, entry, DELIVERED, "stripped" if stripped else None, now)
        elif verdict.outcome == policy.TOO_LARGE:
            self._too_large(queue, flight, answer, verdict.reason, now)
        elif verdict.outcome == policy.REJECTED:
            self._rejected(queue, flight, answer, verdict.reason, now)
        else:
            self._failed(queue, flight, answer, verdict, now)
        self._tell(queue, before, now)

    def _failed(
        self,
        queue: Queue,
        flight: Flight,
        answer: policy.Answer,
        verdict: policy.Verdict,
        now: float,
    ) -> None:
        queue.health = policy.failed(
            queue.health, verdict.outcome, answer, verdict.reason, flight.round,
            self.config.retry, self._random(), now, self._clock.wall(),
        )  # fmt: skip
        entry = flight.entry
        if flight.well:
            entry.blamed += 1
        wait = policy.backoff(entry.blamed, self.config.retry, self._random())
        queue.again(entry, flight.body, now + wait if entry.blamed > 1 else now)
        self._note(entry, now)

    def _too_large(
        self, queue: Queue, flight: Flight, answer: policy.Answer, reason: str, now: float
    ) -> None:
        entry, pictures = flight.entry, queue.endpoint.pictures
        if queue.is_events and pictures.when_too_large == "strip":
            for strip in (payload.Strip.SPOT, payload.Strip.BOTH):
                if strip > entry.strip:
                    body = payload.strip_pictures(flight.body, strip, pictures.when_absent)
                    if len(body) < len(flight.body):
                        entry.strip = int(strip)
                        queue.make_ready(entry, body, front=True)
                        self._note(entry, now)
                        return
        self._bury(queue, flight, answer, f"too large: {reason}", now)

    def _rejected(
        self, queue: Queue, flight: Flight, answer: policy.Answer, reason: str, now: float
    ) -> None:
        entry = flight.entry
        if not entry.rejections:
            entry.passes = queue.health.passes
        entry.rejections += 1
        queue.health = policy.refused(
            queue.health, hash((entry.generation_id, entry.key)), reason, flight.round,
            self.config.retry, self._random(), now, self._clock.wall(),
        )  # fmt: skip
        in_a_row = len(queue.health.refused)
        passes = queue.health.passes - entry.passes
        if policy.is_dead(entry.rejections, passes, in_a_row, self.config.retry):
            self._bury(queue, flight, answer, f"rejected: {reason}", now)
            queue.buried.append(entry)
            return
        wait = policy.backoff(entry.rejections, self.config.retry, self._random())
        queue.again(entry, flight.body, now + wait)
        self._note(entry, now)
        if queue.health.state == policy.PAUSED and queue.buried:
            self._raise(queue, now)

    def _bury(
        self, queue: Queue, flight: Flight, answer: policy.Answer, reason: str, now: float
    ) -> None:
        """A dead letter keeps a copy of its payload."""
        entry = flight.entry
        entry.answer = policy.redact(answer.body, flight.body)
        self._bodies[id(entry)] = (entry, flight.body)
        self._end(queue, entry, DEAD, reason, now)

    def _raise(self, queue: Queue, now: float) -> None:
        """The platform proved broken: what it rejected until now was no fault of the events."""
        self._write(now)
        if self.outbox_error:
            return
        rows = [entry.row_id for entry in queue.buried if entry.row_id is not None]
        try:
            self.outbox.revive(rows)
        except OutboxError as error:
            self._outbox_failed(error, now)
            return
        queue.buried.clear()
        queue.recorded = True

    def _tell(self, queue: Queue, before: policy.Health, now: float) -> None:
        """Log when an outage starts and ends; record the state for status."""
        after = queue.health
        if after.state == before.state and after.failures == before.failures:
            return
        wait = max(0.0, after.next_attempt - now)
        wall = self._clock.wall()
        self._changes.endpoints[queue.id] = EndpointState(
            after.state, after.since, after.error, wall + wait if after.error else None
        )
        self._touch(now)
        name = queue.endpoint.name
        if before.state == policy.OK:
            log.warning(
                f"{name} does not take deliveries: {after.error}. They are kept and tried again",
                endpoint=name,
                next_attempt_s=wait,
            )
            queue.told = now
        elif after.state == policy.OK:
            away = wall - before.since if before.since is not None else 0.0
            log.info(f"{name} takes deliveries again", endpoint=name, away_s=max(0.0, away))
        elif now - queue.told >= 300 or after.state != before.state:
            log.warning(
                f"{name} still does not take deliveries: {after.error}",
                endpoint=name,
                attempts=after.failures,
                next_attempt_s=wait,
            )
            queue.told = now

    # Outbox

    def _note(self, entry: Entry, now: float) -> None:
        self._unwritten[id(entry)] = entry
        self._touch(now)

    def _touch(self, now: float) -> None:
        if self._changed_at is None:
            self._changed_at = now

    def _write_is_due(self, now: float) -> bool:
        if self._changed_at is None or now < self._write_at:
            return False
        if not self._answered:
            return now - self._changed_at >= REFERENCE_WAIT or len(self._unwritten) >= 4 * FRESH
        if self._answered >= RECEIPTS or not self._flying:
            return True
        return now - self._answered_at >= RECEIPT_WAIT

    def _write(self, now: float) -> None:
        """Write all that changed in one transaction, and forget what has come to its end."""
        changes = self._changes
        changes.entries = list(self._unwritten.values())
        changes.copies = list(self._bodies.values())
        if not changes and self.outbox_error is None:
            self._changed_at = None
            return
        try:
            self.outbox.write(changes)
        except OutboxError as error:
            self._outbox_failed(error, now)
            return
        if self.outbox_error is not None:
            log.info("the outbox can be written again")
            self.outbox_error = None
        self._changes, self._unwritten, self._bodies = Changes(), {}, {}
        self._answered, self._changed_at = 0, None
        for queue in self.queues:
            self._forget(queue, changes.entries)

    def _forget(self, queue: Queue, written: Sequence[Entry]) -> None:
        for entry in written:
            if entry.endpoint_id == queue.id and entry.state != PENDING:
                queue.release(entry)
        if queue.is_events and not queue.well and queue.fresh:
            for entry in queue.fresh:
                queue.release(entry)
            queue.fresh.clear()
            queue.recorded = True

    def _outbox_failed(self, error: OutboxError, now: float) -> None:
        self._write_at = now + 1.0
        self._touch(now)
        if isinstance(error, OutboxDamaged):
            self._rebuild(error)
            return
        if self.outbox_error is None:
            log.error(
                f"{error}. Delivery goes on; no new events are taken in until it can be written"
            )
        self.outbox_error = str(error)

    def _rebuild(self, error: OutboxDamaged) -> None:
        """Begin a new outbox from the source; what was delivered may be sent again, same keys."""
        aside = self.outbox.start_over()
        log.error(
            f"{error}. It was moved aside, and every event the source still holds is sent again"
            " under its old idempotency key",
            kept_as=os.path.basename(aside),
        )
        self._changes, self._unwritten, self._bodies = Changes(), {}, {}
        self._answered, self._changed_at, self._flying = 0, None, {}
        self.close(0.0)
        self._open_queues("earliest")

    def _copy(self, queue: Queue, now: float) -> bool:
        """Copy payloads of an endpoint that is away, oldest first, before the source deletes them.

        True when there may be more to copy at once.
        """
        if not queue.is_events or queue.well or queue.health.failures < 2 or self.outbox_error:
            return False
        if now < queue.copy_at or not self.room_for_copies():
            return False
        return self.copy_some(queue) > 0

    def copy_some(self, queue: Queue) -> int:
        """Copy a few payloads that are at risk; returns how many were dealt with."""
        now = self._clock.monotonic()
        self._write(now)
        try:
            entries = [
                queue.held.get((found.key, found.fingerprint), found)
                for found in self.outbox.uncopied(queue.id, COPIES)
            ]
            entries = [entry for entry in entries if entry.state == PENDING][:COPIES]
            rows, missing = self._fetch(queue, entries)
        except SourceError as error:
            self._source_failed(error, now)
            return 0
        except OutboxError as error:
            self._outbox_failed(error, now)
            return 0
        done = 0
        for entry in entries:
            if entry.key in missing:
                self._lose(queue, entry, "the event database deleted it before it was sent", now)
            elif entry.key in rows:
                body = self._build(queue, entry, rows[entry.key], now)
                if body is not None:
                    self._bodies[id(entry)] = (entry, body)
            else:
                break
            done += 1
        queue.copy_at = now if done else now + self.config.source.poll_interval
        self._touch(now)
        self._write(now)
        return done

    def room_for_copies(self) -> bool:
        """Do the bounds of the outbox allow another copy (max_size, min_free_disk)?"""
        if self.outbox.copied_bytes >= self.config.outbox.max_size:
            return False
        try:
            disk = os.statvfs(os.path.dirname(os.path.abspath(self.outbox.path)))
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= self.config.outbox.min_free_disk

    # Reports, end

    def report(self, report: Mapping[str, Any]) -> None:
        """Queue a status report for its endpoints; with keep: latest it replaces older ones."""
        now = self._clock.monotonic()
        body = orjson.dumps(report)
        for queue in self.queues:
            if queue.is_events:
                continue
            entry = self._replaceable(queue)
            if entry is None:
                entry = Entry(queue.id, REPORTS, str(uuid.uuid4()), b"", self._clock.wall())
                queue.fresh.append(entry)
            else:
                queue.release(entry)
                entry.key, entry.at = str(uuid.uuid4()), self._clock.wall()
            queue.hold(entry)
            self._bodies[id(entry)] = (entry, body)
            self._note(entry, now)

    def _replaceable(self, queue: Queue) -> Optional[Entry]:
        if self.config.device_status.keep == "all" and self.room_for_copies():
            return None
        flying = {id(flight.entry) for flight in queue.flights.values()}
        ready = {id(entry) for entry, _ in queue.ready}
        for entry in queue.held.values():
            if entry.state == PENDING and id(entry) not in flying and id(entry) not in ready:
                return entry
        return None

    def in_flight(self) -> bool:
        """Is a request under way, or a report about to be sent?"""
        reports = (queue for queue in self.queues if not queue.is_events and queue.well)
        return bool(self._flying) or any(queue.fresh or queue.ready for queue in reports)

    def summary(self) -> str:
        """One line for people: what is pending, and which endpoint is away since when."""
        parts = []
        for queue in self.queues:
            if not queue.well and queue.health.since is not None:
                since = time.strftime("%H:%M", time.localtime(queue.health.since))
                parts.append(f"{queue.endpoint.name} away since {since} ({queue.health.error})")
        if self.source_error:
            parts.append(f"event database unreadable: {self.source_error}")
        if self.outbox_error:
            parts.append(f"outbox: {self.outbox_error}")
        pending = self._pending()
        return ", ".join([f"{pending} pending", *(parts or ["all endpoints well"])])

    def _pending(self) -> int:
        recorded = 0 if self.outbox_error else self.outbox.total("pending")
        unrecorded = sum(1 for e in self._unwritten.values() if e.row_id is None)
        return recorded + unrecorded

    def housekeeping(self, after_id: int) -> int:
        """Delete a page of old receipts; returns the row id after which to go on next time."""
        if self.outbox_error:
            return after_id
        wall, now = self._clock.wall(), self._clock.monotonic()
        drift = wall - now
        steady = abs(drift - self._drift) < CLOCK_JUMP
        if not steady:
            self._drift, self._steady_since = drift, now
        if wall < SANE_CLOCK or now - self._steady_since < STEADY:
            return 0
        try:
            after = self.outbox.prune(wall - self.config.outbox.keep_delivered, after_id, 1000)
        except OutboxError as error:
            self._outbox_failed(error, now)
            return after_id
        return after or 0

    def is_idle(self) -> bool:
        """Is everything delivered and written that the source and the outbox held?"""
        return (
            self.source_error is None
            and not self._unwritten
            and all(q.is_idle() and (q.caught_up or not q.is_events) for q in self.queues)
        )

    def flush(self) -> None:
        """Judge the answers that are there and write everything, so that nothing is repeated."""
        now = self._clock.monotonic()
        self._judge_all(now)
        self._write(now)

    def close(self, timeout: float) -> None:
        """End all sinks, waiting up to timeout seconds for what is in flight."""
        for queue in self.queues:
            queue.sink.close(timeout)
