"""Queues -> sinks -> policy: build what is next, send it, and act on the answer."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Callable, Deque, Dict, List, Optional, Tuple

from .. import log, payload, policy
from ..config import Config
from ..outbox import (
    DEAD,
    DELIVERED,
    LOST,
    REJECTED,
    REPORTS,
    SUPERSEDED,
    EndpointState,
    Entry,
    OutboxError,
)
from ..sink import Delivery
from ..source import Row, SourceError
from .intake import Fetched, Intake
from .queue import BUILT, Flight, Queue, event_id
from .recorder import Recorder

DELETED = "the event database deleted it before it was sent"
REPLACED = "the event database gave its key to another event"
TOLD_AGAIN = 300.0
"""Seconds between two log lines about the same outage."""


class Courier:
    """Sends deliveries, one endpoint as fast as it likes and another not at all."""

    def __init__(
        self, config: Config, recorder: Recorder, intake: Intake, random: Callable[[], float],
        observe: Callable[[str, float], None],
    ) -> None:  # fmt: skip
        """observe is told of each answer's endpoint and seconds."""
        self._config = config
        self._recorder = recorder
        self._intake = intake
        self._random = random
        self._observe = observe
        self._monotonic = recorder.clock.monotonic
        self._wall = recorder.clock.wall
        self._columns = payload.columns_of(config.source)
        self._answers: Deque[Tuple[int, policy.Answer]] = deque()
        self._tickets = itertools.count(1)
        self._flying: Dict[int, Queue] = {}
        self._told: Dict[Tuple[str, int, str], Tuple[float, int]] = {}

    @property
    def in_flight(self) -> bool:
        """Is a request under way?"""
        return bool(self._flying)

    @property
    def has_answers(self) -> bool:
        """Have answers come that are not judged yet?"""
        return bool(self._answers)

    def collect(self, ticket: int, answer: policy.Answer) -> None:
        """Take an answer from a sink; it is judged in the next step."""
        self._answers.append((ticket, answer))

    def deliver(self, queue: Queue) -> bool:
        """Send what the endpoint may have in flight, and build a little ahead; True when anything
        was done."""
        if queue.raising and not self._recorder.error:
            self._raise_buried(queue)
        now, sent = self._monotonic(), False
        while queue.slots(now) and not self._recorder.is_full:
            if not queue.ready and not self._prepare(queue, now):
                break
            if not queue.ready:
                continue
            entry, body = queue.next_ready()
            ticket = next(self._tickets)
            queue.flights[ticket] = Flight(entry, body, queue.health.round, queue.well)
            self._flying[ticket] = queue
            queue.sink.submit(Delivery(ticket, self._idempotency_key(entry), body))
            sent = True
        if queue.well and queue.flights and queue.has_room_for_payloads():
            return self._prepare(queue, now) or sent
        return sent

    def _idempotency_key(self, entry: Entry) -> str:
        if entry.generation_id == REPORTS:
            return str(entry.key)
        return payload.idempotency_key(self._config.gateway.dev_sno, entry.fingerprint)

    # Preparing

    def _prepare(self, queue: Queue, now: float) -> bool:
        """Build the next payloads; False when there is nothing that can be built now."""
        limit = BUILT if queue.well else 1
        entries: List[Entry] = []
        try:
            entries = queue.next_entries(limit, now)
            if not entries and queue.recorded:
                self._load(queue, 4 * limit)
                entries = queue.next_entries(limit, now)
            left, failed = self._build_all(queue, entries)
        except OutboxError as error:
            self._recorder.failed(error)
            queue.put_back(entries, now + 1.0)
            return False
        queue.put_back(left, now + 1.0 if failed else now)
        return len(left) < len(entries)

    def _load(self, queue: Queue, limit: int) -> None:
        """Bring pending entries from the outbox into memory."""
        entries = self._recorder.outbox.pending(queue.id, limit, queue.row_ids())
        queue.recorded = bool(entries)
        for entry in entries:
            held = queue.held.get((entry.key, entry.fingerprint))
            if held is not None:
                # A backfill recorded it while it was on its way already, perhaps in a newer
                # generation: that row is its account from now on.
                held.row_id, held.copied = entry.row_id, entry.copied
                held.generation_id = entry.generation_id
                continue
            queue.hold(entry)
            queue.backlog.append(entry)

    def _build_all(self, queue: Queue, entries: List[Entry]) -> Tuple[List[Entry], bool]:
        """Line up payloads as far as memory allows; returns the entries that are left.

        The second value tells that source or outbox failed, so that they are not tried at once.
        """
        bodies = {id(entry): self._copied_body(queue, entry) for entry in entries}
        found = self._intake.fetch(queue, [e for e in entries if bodies[id(e)] is None])
        left: List[Entry] = []
        failed = found.failed
        for number, entry in enumerate(entries):
            if left and queue.strict:
                return [*left, *entries[number:]], failed
            body = bodies[id(entry)]
            if body is None and entry.key in found.missing:
                self._lose(queue, entry, DELETED)
                continue
            if body is None and entry.key in found.rows:
                try:
                    body = self._build(queue, entry, found.rows[entry.key])
                except (SourceError, OutboxError) as error:
                    # Those before it are lined up already: only this one is left.
                    if isinstance(error, OutboxError):
                        self._recorder.failed(error)
                    left.append(entry)
                    failed = True
                    continue
                if body is None:
                    continue
            if body is None:
                left.append(entry)
            else:
                queue.make_ready(entry, body)
        return left, failed

    def _copied_body(self, queue: Queue, entry: Entry) -> Optional[bytes]:
        body = self._recorder.body(entry)
        if body is None or not entry.strip or not queue.is_events:
            return body
        when_absent = queue.endpoint.pictures.when_absent
        return payload.strip_pictures(body, payload.Strip(entry.strip), when_absent)

    def _build(self, queue: Queue, entry: Entry, row: Row) -> Optional[bytes]:
        """The payload of an entry; None where it has none, and so ended.

        Raises SourceError, OutboxError.
        """
        if not self._intake.is_same_event(queue, entry, row):
            self._intake.take_in(queue, row.ref)
            self._lose(queue, entry, REPLACED)
            return None
        try:
            return payload.build(
                row.values,
                self._columns,
                dev_sno=self._config.gateway.dev_sno,
                unit=self._config.source.timestamp_unit,
                wire_unit=self._config.history_event.timestamp_unit,
                pictures=queue.endpoint.pictures,
                strip=payload.Strip(entry.strip),
            ).body
        except payload.Unusable as unusable:
            self._end_dead(queue, entry, f"unusable: {unusable}")
            return None

    def copy_some(self, queue: Queue, limit: int, room: int) -> int:
        """Copy payloads that are at risk, oldest first; returns how many were dealt with.

        room: bytes that they may take.
        """
        self._recorder.write()
        if self._recorder.error:
            return 0
        try:
            entries = [
                queue.held.get((found.key, found.fingerprint), found)
                for found in self._recorder.outbox.uncopied(queue.id, limit)
            ]
            bodies = queue.bodies()
            fetched = self._intake.fetch(queue, [e for e in entries if id(e) not in bodies])
            done = 0
            for entry in entries:
                taken = self._copy(queue, entry, bodies.get(id(entry)), fetched, room)
                if taken is None:
                    break
                room -= taken
                done += 1
        except SourceError:
            return 0
        except OutboxError as error:
            self._recorder.failed(error)
            return 0
        self._recorder.write()
        return done

    def _copy(
        self, queue: Queue, entry: Entry, body: Optional[bytes], found: Fetched, room: int
    ) -> Optional[int]:
        """Deal with one entry; returns the bytes of its copy, None where it could not be made."""
        if body is None and entry.key in found.missing:
            self._lose(queue, entry, DELETED)
            return 0
        if body is None and entry.key in found.rows:
            body = self._build(queue, entry, found.rows[entry.key])
            if body is None:
                return 0
        if body is None or len(body) > room:
            return None
        self._recorder.keep_body(entry, body)
        return len(body)

    def _lose(self, queue: Queue, entry: Entry, reason: str) -> None:
        self._tell_end("an event is lost", queue, reason)
        self._recorder.end(entry, LOST, reason)

    def _end_dead(self, queue: Queue, entry: Entry, reason: str) -> None:
        self._tell_end("an event is dead", queue, reason)
        self._recorder.end(entry, DEAD, reason)

    def _tell_end(self, what: str, queue: Queue, reason: str) -> None:
        """Log it, but when thousands end the same way, only once a while with their number."""
        now, about = self._monotonic(), (what, queue.id, reason)
        last, silent = self._told.get(about, (float("-inf"), 0))
        if now - last < TOLD_AGAIN:
            self._told[about] = (last, silent + 1)
            return
        more = {"more_since": silent} if silent else {}
        log.error(what, endpoint=queue.endpoint.name, reason=reason, **more)
        if len(self._told) > 100:
            self._told.clear()
        self._told[about] = (now, 0)

    # Judging

    def judge_all(self) -> None:
        """Act on all answers that have come."""
        while self._answers:
            ticket, answer = self._answers.popleft()
            queue = self._flying.pop(ticket, None)
            if queue is not None:
                self._judge(queue, queue.flights.pop(ticket), answer)

    def _judge(self, queue: Queue, flight: Flight, answer: policy.Answer) -> None:
        verdict = policy.judge(answer, queue.endpoint.accept)
        if answer.status is not None:
            self._observe(queue.endpoint.name, answer.seconds)
        before, entry = queue.health, flight.entry
        entry.attempts += 1
        if verdict.outcome == policy.DELIVERED:
            queue.health = policy.accepted(before, queue.endpoint.max_in_flight, answer.seconds)
            if not queue.raising:
                queue.buried.clear()
            stripped = entry.strip in (payload.Strip.SPOT, payload.Strip.BOTH)
            self._recorder.end(entry, DELIVERED, "stripped" if stripped else None)
        elif verdict.outcome == policy.TOO_LARGE:
            self._too_large(queue, flight, answer, verdict.reason)
        elif verdict.outcome == policy.REJECTED:
            self._rejected(queue, flight, answer, verdict.reason)
        else:
            self._failed(queue, flight, answer, verdict)
        self._tell(queue, before)

    def _failed(
        self, queue: Queue, flight: Flight, answer: policy.Answer, verdict: policy.Verdict
    ) -> None:
        now, entry = self._monotonic(), flight.entry
        queue.health = policy.failed(
            queue.health, verdict.outcome, answer, verdict.reason, flight.round,
            self._config.retry, self._random(), now, self._wall(),
        )  # fmt: skip
        if queue.newest_report not in (None, entry):
            self._recorder.end(entry, SUPERSEDED)
            return
        if flight.well:
            entry.blamed += 1
        wait = policy.backoff(entry.blamed, self._config.retry, self._random())
        queue.again(entry, flight.body, now + wait if entry.blamed > 1 else now)
        self._recorder.note(entry)

    def _too_large(self, queue: Queue, flight: Flight, answer: policy.Answer, reason: str) -> None:
        entry, pictures = flight.entry, queue.endpoint.pictures
        if queue.is_events and pictures.when_too_large == "strip":
            for strip in (payload.Strip.SPOT, payload.Strip.BOTH):
                if strip > entry.strip:
                    body = payload.strip_pictures(flight.body, strip, pictures.when_absent)
                    if body != flight.body:
                        entry.strip = int(strip)
                        queue.make_ready(entry, body, front=True)
                        self._recorder.note(entry)
                        return
        self._bury(queue, flight, answer, f"too large: {reason}")

    def _rejected(self, queue: Queue, flight: Flight, answer: policy.Answer, reason: str) -> None:
        now, entry = self._monotonic(), flight.entry
        if not entry.rejections:
            entry.passes = queue.health.passes
        entry.rejections += 1
        queue.health = policy.refused(
            queue.health, event_id(entry), reason, flight.round,
            self._config.retry, self._random(), now, self._wall(),
        )  # fmt: skip
        in_a_row = len(queue.health.refused)
        passes = queue.health.passes - entry.passes
        if policy.is_dead(entry.rejections, passes, in_a_row, self._config.retry):
            self._bury(queue, flight, answer, f"{REJECTED}{reason}")
            queue.buried.append(entry)
            return
        wait = policy.backoff(entry.rejections, self._config.retry, self._random())
        queue.again(entry, flight.body, now + wait)
        self._recorder.note(entry)
        queue.raising |= queue.health.state == policy.PAUSED and bool(queue.buried)

    def _bury(self, queue: Queue, flight: Flight, answer: policy.Answer, reason: str) -> None:
        """A dead letter keeps a copy of its payload."""
        flight.entry.answer = policy.redact(answer, flight.body)
        self._recorder.keep_body(flight.entry, flight.body)
        self._end_dead(queue, flight.entry, reason)

    def _raise_buried(self, queue: Queue) -> None:
        """The platform proved broken: what it rejected until now was no fault of the events."""
        self._recorder.write()
        if self._recorder.error:
            return
        rows = [entry.row_id for entry in queue.buried if entry.row_id is not None]
        try:
            self._recorder.outbox.revive(rows)
        except OutboxError as error:
            self._recorder.failed(error)
            return
        queue.buried.clear()
        queue.raising, queue.recorded = False, True

    def _tell(self, queue: Queue, before: policy.Health) -> None:
        """Record how an endpoint fares; log when an outage starts, lasts and ends.

        One failed round is no outage yet.
        """
        after, name = queue.health, queue.endpoint.name
        if queue.stated and (after.state, after.failures) == (before.state, before.failures):
            return
        queue.stated = True
        now, wall = self._monotonic(), self._wall()
        wait = max(0.0, after.next_attempt - now)
        next_attempt = wall + wait if after.error else None
        state = EndpointState(after.state, after.since, after.error, next_attempt)
        self._recorder.set_state(queue.id, state)
        if before.state == policy.OK:
            queue.away_since = now
        if after.state == policy.OK:
            if queue.told is not None:
                away = now - queue.away_since
                log.info(f"{name} takes deliveries again", endpoint=name, away_s=away)
            queue.told = None
        elif queue.told is None and (after.failures > 1 or after.state == policy.PAUSED):
            log.warning(
                f"{name} does not take deliveries: {after.error}. They are kept and tried again",
                endpoint=name,
                next_attempt_s=wait,
            )
            queue.told = now
        elif queue.told is not None and now - queue.told >= TOLD_AGAIN:
            log.warning(
                f"{name} still does not take deliveries: {after.error}",
                endpoint=name,
                attempts=after.failures,
                next_attempt_s=wait,
            )
            queue.told = now
