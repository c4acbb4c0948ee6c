"""The engine: read events from the source, put a reference to each in the outbox, build its
payload, POST it through the sink, and let policy decide what the answer means.

One thread does everything. Clock, randomness, source and sinks are passed in, so that the same
engine runs in a simulation.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from typing import Any, Callable, Deque, List, Mapping, Optional

import orjson

from .. import payload, policy
from ..config import Config, Endpoint
from ..outbox import PENDING, REPORTS, EndpointState, Entry, Outbox, OutboxError
from ..source import Source
from .courier import Courier
from .intake import Intake
from .queue import Queue, Transport
from .recorder import SANE_CLOCK, WRITE_AGAIN, Clock, Recorder

COPIES = 8
"""Payloads copied at a time."""
AT_RISK = 2
"""Failed rounds after which payloads are copied, before the source deletes them."""
STEADY = 600.0
"""Seconds the wall clock must have gone without a jump before anything is deleted by its age."""
CLOCK_JUMP = 5.0
RECEIPTS_PRUNED = 5000
"""Rows of the outbox looked at in one go for receipts that are old."""
EARLY = 100
"""Status reports kept in memory while there is no outbox at all; the newest stay."""
LETTERS = 20
"""Dead letters whose pictures are dropped in one go."""

MakeSink = Callable[[Endpoint, Callable[[int, policy.Answer], None]], Transport]


class Engine:
    """All endpoints, and the steps that move their deliveries on."""

    def __init__(
        self,
        config: Config,
        source: Source,
        outbox: Outbox,
        make_sink: MakeSink,
        *,
        clock: Clock,
        random: Callable[[], float],
        observe: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        """observe is told how long each answer took, in seconds. Raises OutboxError."""
        self.config = config
        self.stopping = False
        """Set to send no more events, only what is in flight and the last report."""
        self._source = source
        self._outbox = outbox
        self._make_sink = make_sink
        self._clock = clock
        self._random = random
        self._observe = observe
        self._recorder = Recorder(outbox, clock, self._cover, self._forget)
        self._pruned = 0
        self._copied = True
        self._drift = clock.wall() - clock.monotonic()
        self._steady_since = clock.monotonic()
        self.queues: List[Queue] = []
        self._is_open = True
        """False after damage, until a new outbox could be begun."""
        self._early: Deque[Mapping[str, Any]] = deque(maxlen=EARLY)
        """Status reports that came before that."""
        self._open()

    def _open(self) -> None:
        queues: List[Queue] = []
        for endpoint in self.config.endpoints:
            number = self._outbox.register(endpoint.name, endpoint.kind, endpoint.shown_url)
            # The courier that collects exists a moment later, before anything is sent.
            sink = self._make_sink(endpoint, lambda *answer: self._courier.collect(*answer))
            queue = Queue(endpoint, number, sink)
            queue.remember(self._outbox.rejected(number))
            queues.append(queue)
            if endpoint.kind == "device_status" and self.config.device_status.keep == "latest":
                self._outbox.forget_reports(number)
            if not self._outbox.pending(number, 1, set()):
                # How it fared in another process is no news, and nothing is there to try it with.
                self._recorder.set_state(number, EndpointState(policy.OK, None, None, None))
        self._intake = Intake(self.config, self._source, self._recorder, queues)
        self.queues = queues
        self._courier = Courier(
            self.config, self._recorder, self._intake, self._random, self._observe
        )

    @property
    def source_error(self) -> Optional[str]:
        """Why the event database cannot be read, None when it can."""
        return self._intake.error

    @property
    def outbox_error(self) -> Optional[str]:
        """Why the outbox cannot be written, None when it can."""
        return self._recorder.error

    def step(self) -> float:
        """Do everything that can be done now; returns seconds until something is due again."""
        if self._recorder.damaged is not None or not self._is_open:
            self._start_over()
            if not self._is_open:
                return WRITE_AGAIN
        self._courier.judge_all()
        busy = False
        if not self.stopping:
            self._intake.poll()
        for queue in self.queues:
            if queue.is_events and self.stopping:
                continue
            if queue.is_events:
                busy |= self._intake.tail(queue)
            busy |= self._courier.deliver(queue)
        if self._recorder.write_is_due(self._courier.in_flight):
            self._recorder.write(everything=False)
        for queue in self.queues:
            busy |= self._copy(queue)
        return 0.0 if busy or self._courier.has_answers else self._next_due()

    def _next_due(self) -> float:
        now = self._clock.monotonic()
        dues = [self._intake.due()]
        written = self._recorder.due()
        if written is not None:
            dues.append(written)
        for queue in self.queues:
            due = queue.next_due()
            if due is not None and (queue.slots(now) or due > now):
                dues.append(due)
        return max(0.0, min(dues) - now)

    def _cover(self, until: float) -> Optional[float]:
        return self._intake.cover(until)

    def _forget(self, written: List[Entry]) -> None:
        for queue in self.queues:
            queue.forget(written)

    def _start_over(self) -> None:
        """The outbox is damaged: begin a new one from the source, under the same keys."""
        try:
            if self._is_open:
                self._recorder.start_over()
                self.close(0.0)
                self._is_open = False
            # What was noted meanwhile speaks of rows of the old file.
            self._recorder.reset()
            self._open()
            self._is_open = True
            # A copy: they wait again where the new one is damaged as well.
            early = list(self._early)
            self._early.clear()
            for report in early:
                self.report(report)
        except OutboxError as error:
            self._recorder.failed(error)

    def take_nothing_in(self) -> None:
        """Deliver what stands in the outbox, and leave new events to whoever runs the daemon.

        Raises SourceError, OutboxError.
        """
        self._intake.enabled = False
        self._intake.verify()
        self._recorder.write()

    def look_soon(self) -> None:
        """The files of the source were written to: look at it once the commit can be seen."""
        self._intake.look_soon()

    def refresh(self) -> None:
        """Notice what another process (a backfill, an operator) put into the outbox, and what
        certificates the platforms show."""
        self._note_certificates()
        try:
            if self._outbox.changed():
                for queue in self.queues:
                    queue.recorded = True
        except OutboxError as error:
            self._recorder.failed(error)

    # Copies

    def _copy(self, queue: Queue) -> bool:
        """Copy payloads of an endpoint that is away; True when there may be more at once."""
        if not queue.is_events or queue.well or queue.health.failures < AT_RISK:
            return False
        if self._clock.monotonic() < queue.copy_at:
            return False
        done = self._courier.copy_some(queue, COPIES, self._room_for_copies())
        if not done:
            queue.copy_at = self._clock.monotonic() + max(1.0, self.config.source.poll_interval)
        return done > 0

    def copy_all(self) -> None:
        """Copy every payload that is still pending, as far as the bounds of the outbox allow."""
        for queue in self.queues:
            while queue.is_events:
                if not self._courier.copy_some(queue, COPIES, self._room_for_copies()):
                    break

    def _room_for_copies(self) -> int:
        """Bytes that the bounds of the outbox leave for copies (max_size, min_free_disk)."""
        try:
            disk = os.statvfs(os.path.dirname(os.path.abspath(self._outbox.path)))
        except OSError:
            return 0
        above = disk.f_bavail * disk.f_frsize - self.config.outbox.min_free_disk
        return max(0, min(self.config.outbox.max_size - self._outbox.copied_bytes, above))

    # Reports

    def report(self, report: Mapping[str, Any]) -> None:
        """Queue a status report for its endpoints; with keep: latest it replaces older ones."""
        if self._recorder.damaged is not None or not self._is_open:
            self._early.append(report)
            return
        body = orjson.dumps(report)
        for queue in self.queues:
            if queue.is_events:
                continue
            entry = self._replaceable(queue)
            if entry is None:
                entry = Entry(queue.id, REPORTS, "", b"", 0.0)
                queue.fresh.append(entry)
            else:
                queue.release(entry)
            entry.key, entry.at = str(uuid.uuid4()), self._clock.wall()
            queue.hold(entry)
            if self.config.device_status.keep == "latest":
                queue.newest_report = entry
            self._recorder.keep_body(entry, body)
            self._recorder.note(entry)

    def _replaceable(self, queue: Queue) -> Optional[Entry]:
        keeps_all = self.config.device_status.keep == "all" and not self._recorder.is_full
        if keeps_all and self._room_for_copies():
            return None
        flying = {id(flight.entry) for flight in queue.flights.values()}
        ready = {id(entry) for entry, _ in queue.ready}
        for entry in queue.held.values():
            if entry.state == PENDING and id(entry) not in flying and id(entry) not in ready:
                return entry
        return None

    # For the process around it

    def in_flight(self) -> bool:
        """Is a request under way, or a report about to be sent?"""
        reports = (queue for queue in self.queues if not queue.is_events and queue.well)
        return self._courier.in_flight or any(queue.fresh or queue.ready for queue in reports)

    def is_idle(self) -> bool:
        """Is everything delivered and written that the source and the outbox held?"""
        return (
            self.source_error is None
            and self._recorder.is_clean
            and not any(queue.seen for queue in self.queues)
            and all(q.is_idle() and q.caught_up for q in self.queues if q.is_events)
        )

    def unsettled(self) -> bool:
        """Does the source hold rows that are still too young to be taken in (source.settle)?"""
        return self._intake.unsettled()

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
        return ", ".join([f"{self._pending()} pending", *(parts or ["all endpoints well"])])

    def _pending(self) -> int:
        recorded = 0 if self.outbox_error else self._outbox.total("pending")
        entries = (seen.entry for queue in self.queues for seen in queue.seen)
        return recorded + sum(1 for e in entries if e and e.row_id is None and e.state == PENDING)

    def housekeeping(self) -> None:
        """Delete receipts and dead letters' pictures that are old, once the wall clock is known
        to be right; what was deleted does not stay in the write-ahead log."""
        self._fold()
        wall, now = self._clock.wall(), self._clock.monotonic()
        if abs(wall - now - self._drift) > CLOCK_JUMP:
            self._drift, self._steady_since = wall - now, now
        if self.outbox_error or wall < SANE_CLOCK or now - self._steady_since < STEADY:
            return
        keep = self.config.outbox
        try:
            before = wall - keep.keep_delivered
            self._pruned = self._outbox.prune(before, self._pruned, RECEIPTS_PRUNED) or 0
            self._outbox.strip_dead(wall - keep.keep_dead_pictures, _without_pictures, LETTERS)
        except OutboxError as error:
            self._recorder.failed(error)

    def _note_certificates(self) -> None:
        for queue in self.queues:
            ends = queue.sink.certificate_not_after
            if ends is not None and ends != queue.certificate:
                queue.certificate = ends
                self._recorder.set_certificate(queue.id, ends)

    def _fold(self) -> None:
        """Once no copy is left, none shall stay in the write-ahead log either."""
        copied, self._copied = self._copied, bool(self._outbox.copied_bytes)
        if copied and not self._copied and not self.outbox_error:
            try:
                self._outbox.fold()
            except OutboxError as error:
                self._recorder.failed(error)

    def flush(self) -> None:
        """Act on the answers that are there and write everything, so that nothing is repeated."""
        self._courier.judge_all()
        self._note_certificates()
        self._recorder.write()

    def close(self, timeout: float) -> None:
        """End all sinks, waiting up to timeout seconds for what is in flight."""
        deadline = self._clock.monotonic() + timeout
        for queue in self.queues:
            queue.sink.close(max(0.0, deadline - self._clock.monotonic()))


def _without_pictures(body: bytes) -> bytes:
    return payload.strip_pictures(body, payload.Strip.REQUESTED)
