"""What a backfill reads from and writes to the outbox, beside the process that delivers."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Collection, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import peewee

from ..source import Key, Ref
from .schema import (
    DEAD,
    DELIVERED,
    LOST,
    PENDING,
    OutboxError,
    OutboxMissing,
    connect,
    connect_readonly,
    explain,
)

_KEYS = 500
"""Keys asked for in one statement."""
_BOUND = {DELIVERED: "delivered", DEAD: "dead"}
"""State -> column of the account; all others are lost."""


class Backfill(NamedTuple):
    """A backfill under way. Resumed by the same words, it means the same range as before."""

    id: int
    """Lane of its deliveries."""
    since: int
    """Epoch milliseconds, included."""
    until: int
    """Epoch milliseconds, excluded."""


class Known(NamedTuple):
    """What the outbox knows of an event."""

    row_id: int
    state: int
    lane: int
    generation_id: int


def is_to_be_sent(state: int, lane: int, resend: bool, begun: float) -> bool:
    """Is a known event to be queued once more by the backfill with the id begun?

    One that was lost is, since the source has it after all. With resend so is all that came to its
    end, unless this backfill or one that was asked for later has queued it already.
    """
    if state == PENDING:
        return False
    return state == LOST or (resend and lane < begun)


class Queued(NamedTuple):
    """What became of some references that were to be queued."""

    looked_at: int
    """How many, counted from the first; the rest has to wait for room."""
    queued: int
    others: List[Known]
    """Those that are none of this backfill's: delivered before, or queued by somebody else."""


class Backfills:
    """A connection of its own. All methods raise OutboxError."""

    def __init__(self, path: str, database: Optional[peewee.SqliteDatabase] = None) -> None:
        self._path = path
        self._database = database or connect(path)
        self._file = os.stat(path).st_ino

    @classmethod
    def reading(cls, path: str) -> Optional[Backfills]:
        """Only to look, nothing is written; None where there is no outbox yet."""
        try:
            return cls(path, connect_readonly(path))
        except OutboxMissing:
            return None

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def verify(self) -> None:
        """Raise OutboxError where another file stands at the path: ours was put aside, damaged."""
        if not os.path.exists(self._path) or os.stat(self._path).st_ino != self._file:
            raise OutboxError(
                f"the outbox at {self._path} was replaced meanwhile: give the same command again"
            )

    def _run(self, sql: str, *values: object) -> List[Tuple]:  # type: ignore[type-arg]
        try:
            return list(self._database.execute_sql(sql, values).fetchall())
        except peewee.PeeweeException as error:
            raise explain(error, self._path) from None

    # Backfills

    def begin(self, wanted: str, since: int, until: int) -> Backfill:
        """Begin a backfill, or take up the unfinished one that was asked for in the same words."""
        self._run(
            "INSERT INTO backfill (wanted, since, until) VALUES (?, ?, ?)"
            " ON CONFLICT (wanted) DO NOTHING",
            wanted, since, until,
        )  # fmt: skip
        begun = self.find(wanted)
        assert begun is not None
        return begun

    def find(self, wanted: str) -> Optional[Backfill]:
        """The unfinished backfill asked for in these words."""
        rows = self._run("SELECT id, since, until FROM backfill WHERE wanted = ?", wanted)
        return Backfill(*rows[0]) if rows else None

    def finish(self, backfill: Backfill) -> None:
        """Record its end; its id is not given out again while deliveries bear it."""
        self._run(
            "UPDATE backfill SET finished = ?, wanted = wanted || ' #' || id"
            " WHERE id = ? AND finished IS NULL",
            time.time(), backfill.id,
        )  # fmt: skip

    # Endpoints and the source

    def endpoints(self) -> Dict[str, int]:
        """Name -> id of the endpoints that the outbox knows."""
        return dict(self._run("SELECT name, id FROM endpoint"))

    def error(self, endpoint_id: int) -> Optional[str]:
        """Why an endpoint takes no deliveries, None when it does."""
        rows = self._run("SELECT error FROM endpoint WHERE id = ?", endpoint_id)
        return str(rows[0][0]) if rows and rows[0][0] else None

    def ended(self, endpoint_id: int) -> Tuple[int, ...]:
        """How many of all deliveries to an endpoint are delivered, dead, lost: do they move?"""
        sums = "coalesce(sum(delivered), 0), coalesce(sum(dead), 0), coalesce(sum(lost), 0)"
        return tuple(self._run(f"SELECT {sums} FROM ledger WHERE endpoint_id = ?", endpoint_id)[0])

    def generation(self, source: str) -> Optional[int]:
        """Id of the newest generation of a source, None where it was never seen."""
        return self._run("SELECT max(id) FROM generation WHERE source = ?", source)[0][0]  # type: ignore[no-any-return]

    def witnesses(self, generation: int, limit: int) -> List[Ref]:
        """Rows that stood in the source: those at the cursors, and those recorded last."""
        rows = self._run(
            "SELECT position, fingerprint FROM ledger"
            " WHERE generation_id = ? AND position IS NOT NULL"
            " UNION SELECT key, fingerprint FROM (SELECT key, fingerprint FROM delivery"
            " WHERE generation_id = ? ORDER BY id DESC LIMIT ?)",
            generation, generation, limit,
        )  # fmt: skip
        return [Ref(key, bytes(fingerprint)) for key, fingerprint in rows]

    # Deliveries

    def known(
        self, endpoint_id: int, generation: Optional[int], keys: Sequence[Key]
    ) -> Tuple[Counter[Tuple[int, int]], Set[Key]]:
        """(state, lane) -> how many events are known by their keys alone; and the other keys.

        A key proves an event only in the newest generation; in an older one it may be another's.
        With generation None it proves nothing.
        """
        found: Counter[Tuple[int, int]] = Counter()
        doubtful: Set[Key] = set()
        for start in range(0, len(keys), _KEYS):
            part = keys[start : start + _KEYS]
            these = f"FROM delivery WHERE endpoint_id = ? AND key IN ({_marks(part)})"
            old = False
            for state, lane, proved, number in self._run(
                f"SELECT state, lane, generation_id IS ?, count(*) {these} GROUP BY 1, 2, 3",
                generation, endpoint_id, *part,
            ):  # fmt: skip
                if proved:
                    found[state, lane] += number
                old |= not proved
            if old:
                doubtful.update(key for (key,) in self._run(
                    f"SELECT key {these} GROUP BY key HAVING NOT max(generation_id IS ?)",
                    endpoint_id, *part, generation,
                ))  # fmt: skip
        return found, doubtful

    def known_exactly(
        self, endpoint_id: int, generation: Optional[int], refs: Sequence[Ref]
    ) -> Dict[Key, Known]:
        """What is known of events by key and fingerprint, in whatever generation.

        In the given one the key is enough: a row that reads otherwise was changed by somebody.
        """
        found: Dict[Key, Known] = {}
        for start in range(0, len(refs), _KEYS):
            part = {ref.key: ref.fingerprint for ref in refs[start : start + _KEYS]}
            sql = (
                "SELECT key, fingerprint, id, state, lane, generation_id FROM delivery"
                f" WHERE endpoint_id = ? AND key IN ({_marks(part)}) ORDER BY generation_id"
            )
            for key, fingerprint, *rest in self._run(sql, endpoint_id, *part):
                if rest[3] == generation or fingerprint == part[key]:
                    found[key] = Known(*rest)
        return found

    def pending(self, backfill: Backfill, endpoint_id: int) -> int:
        """How many of its deliveries wait to be sent."""
        return self._count("lane = ? AND state = 0", backfill, endpoint_id)

    def failed(self, backfill: Backfill, endpoint_id: int) -> int:
        """How many of its deliveries are dead or lost."""
        return self._count("lane = ? AND state > 1", backfill, endpoint_id)

    def _count(self, condition: str, backfill: Backfill, endpoint_id: int) -> int:
        sql = f"SELECT count(*) FROM delivery WHERE {condition} AND endpoint_id = ?"
        return int(self._run(sql, backfill.id, endpoint_id)[0][0])

    def states(self, backfill: Backfill, endpoint_id: int) -> Counter[int]:
        """State -> how many of its deliveries; reads the whole outbox, so only for the end."""
        rows = self._run(
            "SELECT state, count(*) FROM delivery WHERE endpoint_id = ? AND lane = ?"
            " GROUP BY state",
            endpoint_id, backfill.id,
        )  # fmt: skip
        return Counter(dict(rows))

    def state(self, row_id: int) -> int:
        """How a delivery stands. A receipt that was deleted for its age counts as delivered."""
        rows = self._run("SELECT state FROM delivery WHERE id = ?", row_id)
        return int(rows[0][0]) if rows else DELIVERED

    def enqueue(
        self, backfill: Backfill, endpoint_id: int, generation: int, refs: Sequence[Ref], *,
        room: int, strip: int, resend: bool,
    ) -> Queued:  # fmt: skip
        """Put at most room events into the outbox, in one transaction.

        generation: the newest one before the references were read from the source.
        """
        others: List[Known] = []
        fresh: Dict[Key, Ref] = {}
        again: List[Known] = []
        looked_at = 0
        try:
            with self._database.atomic("IMMEDIATE"):
                known = self.known_exactly(endpoint_id, generation, refs)
                for looked_at, ref in enumerate(refs, 1):  # noqa: B007
                    before = known.get(ref.key)
                    if before is None:
                        fresh[ref.key] = ref
                    elif is_to_be_sent(before.state, before.lane, resend, backfill.id):
                        again.append(before)
                    elif before.lane != backfill.id:
                        others.append(before)
                    if len(fresh) + len(again) == room:
                        break
                self._insert(backfill, endpoint_id, generation, list(fresh.values()), strip)
                for before in again:
                    self._again(backfill, endpoint_id, before, strip)
        except peewee.PeeweeException as error:
            raise explain(error, self._path) from None
        return Queued(looked_at, len(fresh) + len(again), others)

    def _insert(
        self, backfill: Backfill, endpoint_id: int, generation: int, refs: List[Ref], strip: int
    ) -> None:
        if not refs:
            return
        now = time.time()
        for ref in refs:
            self._run(
                "INSERT INTO delivery (endpoint_id, generation_id, key, fingerprint, lane, state,"
                " strip, attempts, at) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)",
                endpoint_id, generation, ref.key, ref.fingerprint, backfill.id, PENDING, strip,
                now,
            )  # fmt: skip
        self._run(
            "INSERT INTO ledger (endpoint_id, generation_id, seen, pending) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET seen = seen + excluded.seen,"
            " pending = pending + excluded.pending",
            endpoint_id, generation, len(refs), len(refs),
        )  # fmt: skip

    def _again(self, backfill: Backfill, endpoint_id: int, known: Known, strip: int) -> None:
        column = _BOUND.get(known.state, "lost")
        self._run(
            "UPDATE delivery SET state = 0, lane = ?, strip = ?, at = ?, reason = NULL,"
            " answer = NULL WHERE id = ?",
            backfill.id, strip, time.time(), known.row_id,
        )  # fmt: skip
        self._run(
            f"UPDATE ledger SET pending = pending + 1, {column} = {column} - 1"
            " WHERE endpoint_id = ? AND generation_id = ?",
            endpoint_id, known.generation_id,
        )  # fmt: skip


def _marks(values: Collection[object]) -> str:
    return ",".join("?" * len(values))
