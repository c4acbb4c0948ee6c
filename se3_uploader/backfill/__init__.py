"""One-shot upload of a time range, through the same outbox and the same steps as live events.

The events of the range are put into the outbox page by page; whoever holds the lock delivers them:
a running daemon, else this process with an engine of its own. Whatever ends in between, the same
command goes on where it was, since the outbox knows what has been queued and delivered.
"""

from __future__ import annotations

import random
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import Deque, Dict, List, Mapping, Optional

import tenacity

from .. import agent
from ..config import Config, Endpoint
from ..engine import Engine
from ..lock import Lock, daemon_lock, holder
from ..outbox import DEAD, DISCARDED, LOST, PENDING, Outbox, OutboxError
from ..outbox.backfills import Backfills
from ..sink import Sink
from ..source import Key, Ref, Source, SourceError, open_source
from ..wake import Wake
from .plan import Plan, Wanted

PAGE = 200
"""Events queued in one transaction, so that a daemon never waits long for the outbox."""
WINDOW = 1000
"""Events of a backfill that stand in an endpoint's queue at once."""
SCAN_REFS = 2000
"""Rows of the source looked at in one go for events to queue."""
PATIENCE = 60.0
"""Seconds in which nothing moves, after which a backfill leaves the rest for another time."""
WATCH = 0.2
"""Seconds between two looks at a delivery that another process makes."""
STARTING = 5.0
"""Seconds in which a process that has just begun to deliver records its endpoints."""
AGAIN = 1.0
"""Seconds after which a source or an outbox that failed is tried again."""


@dataclass
class Progress:
    """Where a backfill stands, summed over its endpoints."""

    total: int = 0
    done: int = 0
    """Brought to their end since this process started: delivered, dead or lost."""
    waiting: int = 0
    """In the outbox, to be sent."""
    failed: int = 0
    """Dead or lost."""
    bytes: float = 0.0
    """Of what is done, by the plan's estimate."""
    trouble: Optional[str] = None
    """What keeps the rest waiting."""


class _Feed:
    """One endpoint's share: fed from the source at its own pace, so that none waits for another."""

    def __init__(self, endpoint: Endpoint, endpoint_id: int) -> None:
        self.endpoint = endpoint
        self.id = endpoint_id
        self.refs: Deque[Ref] = deque()
        """Read from the source, not queued yet."""
        self.generation = 0
        """Of the source when refs were read."""
        self.after: Optional[Key] = None
        self.scanned = False
        self.seen = 0
        self.queued = 0
        self.waiting = 0
        self.settled = 0
        """Awaited ones that came to their end."""
        self.others: Counter[int] = Counter()
        """State -> how many of the range came to their end outside this backfill."""
        self.awaited = array("q")
        """Rows of the outbox that are pending outside this backfill; 8 bytes each."""
        self.tokens = 1.0
        """How many events the rate allows to queue now."""
        self.ended: object = None
        self.moved_at = time.monotonic()

    @property
    def is_done(self) -> bool:
        return self.scanned and not (self.refs or self.waiting or self.awaited)

    @property
    def done(self) -> int:
        return self.queued - self.waiting + self.settled


class Run:
    """A backfill being carried out."""

    def __init__(self, config: Config, wanted: Wanted, found: Plan) -> None:
        """Open outbox and source. Raises OutboxError, SourceError."""
        self._config = config
        self._wanted = wanted
        self._plan = found
        self._source: Source = open_source(config.source)
        self._lock = Lock(config.outbox.path)
        self._engine: Optional[Engine] = None
        self._outbox: Optional[Outbox] = None
        self._wake = Wake(())
        self._trouble: Optional[str] = None
        self._again_at = 0.0
        self._take_over()
        self._table = Backfills(config.outbox.path)
        ids = self._endpoint_ids()
        self.backfill = self._table.begin(wanted.words, wanted.since, wanted.until)
        self._feeds = [_Feed(endpoint, ids[endpoint.name]) for endpoint in wanted.endpoints]
        for feed in self._feeds:
            feed.waiting = feed.queued = self._table.pending(self.backfill, feed.id)
        self._ticked = time.monotonic()

    def _endpoint_ids(self) -> Dict[str, int]:
        """Name -> id; waits for a process that is just starting to deliver. Raises OutboxError."""
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda ids: bool(self._unknown(ids))),
            stop=tenacity.stop_after_delay(STARTING),
            wait=tenacity.wait_fixed(WATCH),
            sleep=self._sleep,
            before_sleep=lambda _: self._take_over(),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        ids = patiently(self._table.endpoints)
        unknown = self._unknown(ids)
        if unknown:
            raise OutboxError(
                f"the process that delivers now does not know {', '.join(unknown)} yet: reload"
                " the daemon, or wait for the other command to end"
            )
        return ids

    def _sleep(self, seconds: float) -> None:
        self._wake.wait(seconds)

    def _unknown(self, ids: Mapping[str, int]) -> List[str]:
        return [one.name for one in self._wanted.endpoints if one.name not in ids]

    # Who delivers

    def _decide_who_delivers(self) -> None:
        if holder(daemon_lock(self._config.outbox.path)) is not None:
            self._hand_over()
        else:
            self._take_over()

    def _take_over(self) -> None:
        """Deliver ourselves, where nobody else does."""
        if self._engine is not None:
            return
        try:
            taken = self._lock.acquire("backfill") is None
        except OSError as error:
            raise OutboxError(
                f"cannot lock {self._config.outbox.path}: {error.strerror}; do this as the user"
                " that the service runs as"
            ) from None
        if not taken:
            return
        self._outbox = agent.open_outbox(self._config.outbox.path)
        self._engine = Engine(
            self._config, self._source, self._outbox, partial(Sink, self._wake),
            clock=agent.clock(), random=random.random,
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

    # Moving on

    def step(self) -> bool:
        """Queue what there is room for, deliver or watch for a moment; False once all is done.

        Raises OutboxError where the outbox was replaced.
        """
        self._table.verify()
        due = WATCH
        if time.monotonic() >= self._again_at:
            try:
                self._decide_who_delivers()
                if self._queue_all():
                    due = 0.0
                self._trouble = None
            except (SourceError, OutboxError) as error:
                self._trouble = str(error)
                self._again_at = time.monotonic() + AGAIN
        if self._engine is not None:
            self._engine.refresh()
            due = min(due, self._engine.step())
        self._wake.wait(due)
        return not all(feed.is_done for feed in self._feeds)

    def wake(self) -> None:
        """End the sleep of a step, from a signal handler."""
        self._wake.set()

    def _queue_all(self) -> bool:
        """Queue for every endpoint what there is room for; True when there may be more at once."""
        now = time.monotonic()
        passed, self._ticked = now - self._ticked, now
        moved = False
        for feed in self._feeds:
            feed.waiting = self._table.pending(self.backfill, feed.id)
            if self._wanted.rate is not None:
                feed.tokens += passed * self._wanted.rate
            room = self._room(feed)
            if room > 0:
                moved |= self._queue(feed, room)
            if feed.scanned and not feed.refs and not feed.waiting:
                self._settle_others(feed)
            self._take_note(feed, now)
        return moved

    def _room(self, feed: _Feed) -> int:
        """How many events may be queued now."""
        if self._wanted.rate is None:
            return PAGE if feed.waiting <= WINDOW - PAGE else 0
        # What was not sent in a second is not caught up with later.
        second = max(1.0, self._wanted.rate)
        feed.tokens = min(feed.tokens, second)
        if feed.tokens < self._wanted.rate * WATCH:
            return 0  # rather a few at once: every transaction wears out the flash memory
        return int(min(feed.tokens, PAGE, max(0.0, second - feed.waiting)))

    def _queue(self, feed: _Feed, room: int) -> bool:
        """Queue at most room events; True when there may be more at once."""
        if not feed.refs and not feed.scanned:
            self._read(feed)
        refs = [feed.refs[place] for place in range(min(PAGE, len(feed.refs)))]
        if not refs:
            return not feed.scanned
        found = self._table.enqueue(
            self.backfill, feed.id, feed.generation, refs,
            room=room, strip=int(self._wanted.strip), resend=self._wanted.resend,
        )  # fmt: skip
        for _ in range(found.looked_at):
            feed.refs.popleft()
        feed.seen += found.looked_at
        feed.queued += found.queued
        feed.waiting += found.queued
        feed.tokens -= found.queued
        feed.awaited.extend(one.row_id for one in found.others if one.state == PENDING)
        feed.others.update(one.state for one in found.others if one.state != PENDING)
        return True

    def _read(self, feed: _Feed) -> None:
        """Read the next page of the range. Raises SourceError, OutboxError."""
        if self._engine is not None:
            self._engine.take_nothing_in()
        # Before the page: rows of a source that is wiped in between are not taken for its new ones.
        generation = self._table.generation(self._config.source.name)
        if generation is None:
            raise OutboxError("the process that delivers has not seen the event database yet")
        if generation != feed.generation:
            feed.generation, feed.after = generation, None
        since, until = self.backfill.since, self.backfill.until
        page = self._source.between(since, until, feed.after, SCAN_REFS)
        feed.refs.extend(page.refs)
        feed.after, feed.scanned = page.scanned_to, page.scanned_to is None

    def _settle_others(self, feed: _Feed) -> None:
        """Count those that others had queued, as far as they have come to their end."""
        while feed.awaited:
            state = self._table.state(feed.awaited[-1])
            if state == PENDING:
                return
            feed.awaited.pop()
            feed.others[state] += 1
            feed.settled += 1

    def _take_note(self, feed: _Feed, now: float) -> None:
        ended = self._table.ended(feed.id)
        if ended != feed.ended or not (feed.waiting or feed.awaited):
            feed.ended, feed.moved_at = ended, now

    def progress(self) -> Progress:
        """Where it stands. Raises OutboxError."""
        found = Progress(trouble=self._why())
        for feed in self._feeds:
            share = self._plan.shares[feed.endpoint.name]
            found.total += max(share.to_send, feed.queued)
            found.done += feed.done
            found.waiting += feed.waiting
            found.failed += self._table.failed(self.backfill, feed.id)
            found.bytes += feed.done * share.bytes_each
        return found

    def _why(self) -> Optional[str]:
        if self._trouble is not None:
            return self._trouble
        if self._engine is not None and (self._engine.source_error or self._engine.outbox_error):
            return self._engine.source_error or self._engine.outbox_error
        for feed in self._feeds:
            error = None if feed.is_done else self._table.error(feed.id)
            if error is not None:
                return f"{feed.endpoint.name}: {error}"
        return None

    def is_stuck(self) -> bool:
        """Has nothing moved for so long that another time is better?"""
        now = time.monotonic()
        return all(feed.is_done or now - feed.moved_at > PATIENCE for feed in self._feeds)

    # The end

    def end(self) -> Dict[str, Counter[int]]:
        """Finish what is in flight, leave the rest for the next time, and close everything.

        Returns endpoint -> state -> how many events of the range. Raises OutboxError.
        """
        try:
            self._hand_over()
            states = {feed.endpoint.name: self._states(feed) for feed in self._feeds}
            if not any(found[PENDING] for found in states.values()):
                self._table.finish(self.backfill)
            return states
        finally:
            self._table.close()
            self._source.close()
            self._wake.close()

    def _states(self, feed: _Feed) -> Counter[int]:
        self._settle_others(feed)
        states = self._table.states(self.backfill, feed.id) + feed.others
        states[PENDING] += len(feed.awaited)
        # Of what was planned, the rest is not queued yet, or was deleted before it could be.
        rest = max(0, self._plan.events - feed.seen)
        states[LOST if feed.scanned and not feed.refs else PENDING] += rest
        return states


def exit_code(states: Dict[str, Counter[int]]) -> int:
    """0 all delivered, 75 something is still pending, 1 something is dead or lost."""
    total: Counter[int] = sum(states.values(), Counter())
    if total[PENDING]:
        return agent.TEMPORARY
    return agent.PROBLEM if total[DEAD] + total[LOST] + total[DISCARDED] else agent.OK
