"""Source -> queues: which events are new, which came late, is the source still the same."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from .. import log, payload
from ..config import Config
from ..outbox import Cursor, Entry, OutboxError
from ..source import Key, Look, Ref, Row, Source, SourceError
from .queue import BUILT_BYTES, Queue, Seen
from .recorder import SANE_CLOCK, Recorder
from .tail import NOWHERE, Lookback, Patrol, same_history

PAGE = 256
"""Events read from the source at a time."""
WINDOW = 200_000
"""References to events kept for an endpoint that is away; more wait in the source."""
WITNESSES = 8
"""Rows asked whether the source is still the same, where the one at the position is gone."""
PATROL_PAGE = 1000
PATROL_WAIT = 300.0
"""Seconds between two walks through a source whose keys are times or text."""
COMMIT_WAITS = (0.01, 0.06, 0.3)
"""Seconds after a write to the files of the source at which to look: commits show after fsync."""


class Fetched(NamedTuple):
    """Whole rows by key, keys that the source has no row for, and whether it could not be read."""

    rows: Dict[Key, Row]
    missing: Sequence[Key] = ()
    failed: bool = False


class Intake:
    """Follows the source for every endpoint that receives events."""

    def __init__(
        self,
        config: Config,
        source: Source,
        recorder: Recorder,
        queues: Sequence[Queue],
    ) -> None:
        """Raises OutboxError."""
        self.enabled = True
        """Are new events taken in? Not while a backfill runs the engine by itself."""
        self._config = config.source
        self._source = source
        self._recorder = recorder
        self._outbox = recorder.outbox
        self._monotonic = recorder.clock.monotonic
        self._wall = recorder.clock.wall
        self._queues = [queue for queue in queues if queue.is_events]
        # What a damaged outbox held is not known, so nothing may be skipped: better twice.
        self._start = "earliest" if self._outbox.is_rebuilt() else self._config.start
        self._keep_delivered = config.outbox.keep_delivered
        self._is_by_time = payload.columns_of(config.source).timestamp == config.source.key
        self._look_at = 0.0
        self._hints: List[float] = []
        self._again_at = 0.0
        self.error: Optional[str] = None
        """Why the source cannot be read, None when it can."""
        name = self._config.name
        self.generation, self.number = self._outbox.generation(name) or self._outbox.new_generation(
            name
        )
        for queue in self._queues:
            self._place(queue, self._outbox.cursor(queue.id, self.generation))
            if not queue.begun and self._start == "earliest":
                self._recorder.move_cursor(queue.id, self.generation, NOWHERE)
                queue.begun = True

    def _place(self, queue: Queue, cursor: Optional[Cursor]) -> None:
        queue.begun = cursor is not None
        queue.cursor = cursor or NOWHERE
        queue.caught_up = False
        queue.lookback = Lookback(self._config.lookback)
        queue.patrol = Patrol()
        if queue.cursor.position is not None:
            queue.lookback.moved(queue.cursor.position, self._monotonic())

    def look_soon(self) -> None:
        """The files of the source were written to: look at it once the commit can be seen."""
        now = self._monotonic()
        self._hints = [now + wait for wait in COMMIT_WAITS]

    def due(self) -> float:
        """When the source is looked at next (monotonic seconds)."""
        return min([self._look_at, *self._hints[:1]])

    def poll(self) -> None:
        """Where it is time, ask the source whether it may hold something new."""
        now = self._monotonic()
        if now < self.due():
            return
        self._look_at = now + self._config.poll_interval
        try:
            changed = self._source.changed()
        except SourceError as error:
            self._failed(error)
            return
        self._hints = [] if changed else [hint for hint in self._hints if hint > now]
        for queue in self._queues:
            queue.lookback.owed |= changed or self.error is not None
            if queue.lookback.owed or now >= queue.patrol.due:
                queue.caught_up = False

    def tail(self, queue: Queue) -> bool:
        """Take the next events in for an endpoint; True when there may be more at once."""
        if not self.enabled or self._recorder.error or self._monotonic() < self._again_at:
            return False
        if queue.caught_up or not queue.has_room() or not self._has_window(queue):
            return False
        try:
            more = self._take_in(queue)
        except SourceError as error:
            self._failed(error)
            return False
        except OutboxError as error:
            self._recorder.failed(error)
            return False
        self._recovered()
        return more

    def _has_window(self, queue: Queue) -> bool:
        return queue.well or self._outbox.pending_count(queue.id) < WINDOW

    def _take_in(self, queue: Queue) -> bool:
        # A crash may leave a generation without places: its past belongs to us all the same.
        if not queue.begun and self._start == "latest" and not self._outbox.has_begun(queue.id):
            self._begin_at_newest(queue)
        page = self._source.look(queue.cursor.position, PAGE)
        if not self._is_same_history(queue, page):
            self._begin_generation(page)
            return True
        if self._outbox.clashes(queue.id, self.generation, page.refs):
            # A crash, or a backfill ahead of us, left no place to compare the source with.
            self._begin_generation(None)
            return True
        now = self._monotonic()
        for ref, entry in self._add(queue, page.refs):
            queue.cursor = queue.cursor._replace(position=ref.key, fingerprint=ref.fingerprint)
            queue.seen.append(Seen(entry, queue.cursor, now))
            queue.lookback.moved(ref.key, now)
        if not queue.begun:
            queue.seen.append(Seen(None, queue.cursor, now))
            queue.begun = True
            # Whatever comes from now on is new, also if the power goes in this moment.
            self._recorder.write()
        if queue.seen:
            self._recorder.touch()
        sweeping = self._sweep(queue, queue.lookback)
        # A page may be short because the source kept its read short for the writer's sake.
        at_end = not page.refs or page.refs[-1].key == page.newest
        queue.caught_up = at_end and not sweeping
        if queue.caught_up:
            self._patrol(queue)
        return bool(page.refs) or sweeping

    def _is_same_history(self, queue: Queue, page: Look) -> bool:
        if not same_history(queue.cursor, page):
            return False
        if page.at is not None or queue.cursor.position is None or not page.refs:
            return True
        # The row at the position is gone, so ask those that were seen before it.
        for ref in self._outbox.recent(queue.id, self.generation, WITNESSES):
            now = self._source.look(ref.key, 1).at
            if now is not None and now.fingerprint != ref.fingerprint:
                return False
        return True

    def _add(self, queue: Queue, found: Sequence[Ref]) -> List[Tuple[Ref, Optional[Entry]]]:
        """Queue those events that are not known yet; returns all, with their new entries."""
        held = {e.key for e in queue.held.values() if e.generation_id == self.generation}
        refs = [
            ref
            for ref in found
            if ref.key not in held and (ref.key, ref.fingerprint) not in queue.held
        ]
        known = self._outbox.known(queue.id, self.generation, refs) if refs else set()
        new: Dict[Ref, Entry] = {}
        for ref in refs:
            if ref.key not in known:
                entry = Entry(queue.id, self.generation, ref.key, ref.fingerprint, self._wall())
                queue.hold(entry)
                queue.fresh.append(entry)
                new[ref] = entry
        return [(ref, new.get(ref)) for ref in found]

    def _add_late(self, queue: Queue, found: Sequence[Ref]) -> None:
        for _, entry in self._add(queue, found):
            if entry is not None:
                self._recorder.note(entry)

    def take_in(self, queue: Queue, ref: Ref) -> None:
        """Take in a row that was met under the key of another event, unless it is known.

        The cursor may have gone over it, when it was that other event.
        """
        self._add_late(queue, [ref])

    def _sweep(self, queue: Queue, lookback: Lookback) -> bool:
        """Look again at a page of the recent past, for rows that became visible late."""
        if self._source.ordered:
            lookback.owed = False
            return False
        if not lookback.begin(queue.cursor, self._monotonic()):
            return False
        page = self._source.look(lookback.at, PAGE)
        self._add_late(queue, page.refs)
        before, now = queue.cursor, self._monotonic()
        queue.cursor = lookback.swept(before, page, now)
        if queue.cursor != before:
            queue.seen.append(Seen(None, queue.cursor, now))
            self._recorder.touch()
        return lookback.until is not None

    def _patrol(self, queue: Queue) -> None:
        """Look at a page of everything, for rows that came to stand where no lookback reaches.

        Taken are only rows of a time from which all receipts are there: others may have been
        delivered. Half of keep_delivered is left for clocks that disagree.
        """
        patrol, now, wall = queue.patrol, self._monotonic(), self._wall()
        if now < patrol.due:
            return
        patrol.due = now + PATROL_WAIT
        if wall < SANE_CLOCK or not self._may_go_back(queue.cursor.position):
            return
        since = wall - self._keep_delivered / 2
        until = wall - self._config.lookback - self._config.settle
        page = self._source.between(int(since * 1000), int(until * 1000), patrol.at, PATROL_PAGE)
        self._add_late(queue, page.refs)
        patrol.at = page.scanned_to
        if patrol.at is not None:
            patrol.due = now + self._config.poll_interval

    def _may_go_back(self, position: Optional[Key]) -> bool:
        """Can a row of ours come to stand far behind the position? Not where rows are counted.

        Where one began at the newest row there is no telling which of the others are ours.
        """
        is_counter = isinstance(position, int) and not self._is_by_time
        return not self._source.ordered and not is_counter and self._start == "earliest"

    def unsettled(self) -> bool:
        """Does the source hold rows behind the place that source.settle keeps back?"""
        if not self._config.settle:
            return False
        try:
            return any(self._source.count(queue.cursor.position, 1) for queue in self._queues)
        except SourceError as error:
            self._failed(error)
            return False

    def cover(self, until: float) -> Optional[float]:
        """Hand the recorder what may be written of all events seen (Queue.cover).

        Returns since when (monotonic seconds) the oldest of the rest waits, None: there is none.
        """
        for queue in self._queues:
            entries, cursor = queue.cover(until)
            for entry in entries:
                self._recorder.note(entry)
            if cursor is not None:
                self._recorder.move_cursor(queue.id, self.generation, cursor)
        return min((queue.seen[0].at for queue in self._queues if queue.seen), default=None)

    def _begin_at_newest(self, queue: Queue) -> None:
        newest = self._source.newest()
        at = self._source.look(newest, 1).at if newest is not None else None
        if at is not None:
            queue.cursor = Cursor(at.key, at.fingerprint, at.key)

    def _begin_generation(self, page: Optional[Look]) -> None:
        """The source is another one than before: look at all of it, and skip what is known.

        Where there is no telling what is known, since old receipts are gone or source.start is
        latest, that begins at the newest row, if it is known: then newer ones were deleted.
        page: the look that showed it.
        """
        self._recorder.write()
        newest, settled = None, {}
        if page is not None and page.at is None and page.newest is not None:
            newest = self._source.look(page.newest, 1).at
            for queue in self._queues:
                # Rows up to the newest may still become visible late; later ones are new.
                is_there = bool(self._source.look(queue.cursor.settled, 1).refs)
                settled[queue.id] = queue.cursor.settled if is_there else page.newest
        self.generation, self.number = self._outbox.new_generation(self._config.name)
        log.warning(
            "the event database was wiped, replaced or cut back: a new generation of it begins,"
            " and every event that is not known yet is taken in",
            source=self._config.name,
            generation=self.number,
        )
        for queue in self._queues:
            cursor = NOWHERE
            skips = self._start == "latest" or not self._outbox.has_all_receipts(queue.id)
            if newest and skips and self._outbox.known(queue.id, self.generation, [newest]):
                cursor = Cursor(newest.key, newest.fingerprint, settled[queue.id])
            self._place(queue, cursor)
            self._recorder.move_cursor(queue.id, self.generation, cursor)
            queue.begun = True

    def verify(self) -> None:
        """Notice now whether the source was wiped or replaced, and where an endpoint begins.

        Before the first event was taken in, only what backfills recorded can tell. Raises
        SourceError, OutboxError.
        """
        for queue in self._queues:
            if not queue.begun:
                if self._start == "latest":
                    self._begin_at_newest(queue)
                self._recorder.move_cursor(queue.id, self.generation, queue.cursor)
                queue.begun = True
            cursor = queue.cursor
            if cursor.position is None:
                for ref in self._outbox.recent(queue.id, self.generation, 1):
                    cursor = Cursor(ref.key, ref.fingerprint, None)
            page = self._source.look(cursor.position, 1)
            if not (same_history(cursor, page) and self._is_same_history(queue, page)):
                self._begin_generation(page)
                return

    def fetch(self, queue: Queue, entries: Sequence[Entry]) -> Fetched:
        """Read the whole rows of entries, as many as memory allows, with the pictures it wants."""
        if not entries:
            return Fetched({})
        if self._monotonic() < self._again_at:
            return Fetched({}, failed=True)
        keys = list(dict.fromkeys(entry.key for entry in entries))
        wanted = payload.wanted_pictures(queue.endpoint.pictures)
        try:
            found = self._source.rows(keys, wanted, BUILT_BYTES)
        except SourceError as error:
            self._failed(error)
            return Fetched({}, failed=True)
        return Fetched({row.ref.key: row for row in found.rows}, found.missing)

    def is_same_event(self, queue: Queue, entry: Entry, row: Row) -> bool:
        """Is this row still the event that was seen? Raises SourceError.

        A row that reads otherwise than before was changed by somebody while the source is the
        same; after a wipe it is another event under a key that was given out again. Without a place
        in the source there is no telling (only a backfill was recorded yet), and it is another.
        """
        if row.ref.fingerprint == entry.fingerprint:
            return True
        if entry.generation_id != self.generation or queue.cursor.position is None:
            return False
        page = self._source.look(queue.cursor.position, 1)
        if self._is_same_history(queue, page):
            return True
        self._begin_generation(page)
        return False

    def _failed(self, error: SourceError) -> None:
        self._again_at = self._monotonic() + max(1.0, self._config.poll_interval)
        if self.error is None:
            log.error(f"the event database cannot be read: {error}", source=self._config.name)
        self.error = str(error)

    def _recovered(self) -> None:
        if self.error is not None:
            log.info("the event database can be read again", source=self._config.name)
            self.error = None
