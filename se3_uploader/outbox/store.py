"""What the engine reads from and writes to the outbox, all changes of a moment in one transaction.

An event is recorded together with its cursor, at the latest a second after it was seen, often
together with its receipt: until then the cursor has not moved either, so after a crash it is seen
again. That writes half of what recording first and marking later does; flash memory wears out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Collection, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import peewee

from ..source import Key, Ref
from .schema import DEAD, DELIVERED, DISCARDED, LIVE, LOST, PENDING, connect, explain, quarantine

REPORTS = 0
"""Generation of status reports: they have no source, are stored whole, and leave no receipt."""

_COLUMNS = "id, generation_id, key, fingerprint, lane, strip, attempts, at"


class Entry:
    """One event (or report) for one endpoint: a row of the outbox, or one that soon will be."""

    __slots__ = (
        "answer", "at", "attempts", "blamed", "copied", "endpoint_id", "fingerprint",
        "generation_id", "key", "lane", "passes", "reason", "rejections", "row_id", "state",
        "strip",
    )  # fmt: skip

    def __init__(
        self, endpoint_id: int, generation_id: int, key: Key, fingerprint: bytes, at: float, *,
        lane: int = LIVE, strip: int = 0, attempts: int = 0, row_id: Optional[int] = None,
        copied: bool = False,
    ) -> None:  # fmt: skip
        self.row_id = row_id
        self.endpoint_id = endpoint_id
        self.generation_id = generation_id
        self.key = key
        self.fingerprint = fingerprint
        self.lane = lane
        self.state = PENDING
        self.strip = strip
        self.attempts = attempts
        self.at = at
        self.reason: Optional[str] = None
        self.answer: Optional[str] = None
        self.copied = copied
        self.blamed = 0
        """Failures while the endpoint was well, which may be this event's own fault."""
        self.rejections = 0
        self.passes = 0
        """Deliveries the endpoint had accepted when this one was first rejected."""


class Cursor(NamedTuple):
    """How far an endpoint has come in a generation of the source."""

    position: Optional[Key]
    """The last row seen, None: none yet."""
    fingerprint: Optional[bytes]
    """Of the row at the position."""
    settled: Optional[Key]
    """Rows up to here are no longer looked for when they become visible late."""


class EndpointState(NamedTuple):
    """What status says of an endpoint; times in epoch seconds."""

    state: str
    since: Optional[float]
    error: Optional[str]
    next_attempt: Optional[float]


@dataclass
class Changes:
    """Everything that is to be written in one transaction."""

    entries: List[Entry] = field(default_factory=list)
    copies: List[Tuple[Entry, bytes]] = field(default_factory=list)
    cursors: Dict[Tuple[int, int], Cursor] = field(default_factory=dict)
    endpoints: Dict[int, EndpointState] = field(default_factory=dict)
    certificates: Dict[int, float] = field(default_factory=dict)
    """Endpoint -> end of the platform's certificate, epoch seconds."""

    def __bool__(self) -> bool:
        return any(vars(self).values())


class _Tally:
    """Changes of a ledger row within one transaction."""

    __slots__ = ("counts", "last_delivered", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.counts = [0, 0, 0, 0]
        self.last_delivered: Optional[float] = None

    def add(self, state: int, number: int) -> None:
        self.counts[LOST if state == DISCARDED else state] += number


class Outbox:
    """The tables, for the one process that delivers. Methods raise OutboxError or OutboxDamaged."""

    def __init__(self, path: str, wall: Callable[[], float]) -> None:
        """Open or make the file; wall gives epoch seconds."""
        self.path = path
        self._wall = wall
        self._database = connect(path)
        self._version = self._data_version()
        self.copied_bytes: int = self._one("SELECT coalesce(sum(bytes), 0) FROM copy")

    def close(self) -> None:
        """Let go of the file; the last one to do so folds the write-ahead log into it."""
        self._database.close()

    def start_over(self) -> str:
        """After damage: move the file aside and begin an empty one; returns the old one's name."""
        self._database.close()
        aside = quarantine(self.path, self._wall)
        self._database = connect(self.path)
        self._version = self._data_version()
        self.copied_bytes = 0
        return aside

    # Reading

    def _read(self, sql: str, *values: object) -> List[Tuple]:  # type: ignore[type-arg]
        try:
            return list(self._database.execute_sql(sql, values).fetchall())
        except peewee.PeeweeException as error:
            raise explain(error, self.path) from None

    def _one(self, sql: str, *values: object) -> int:
        return int(self._read(sql, *values)[0][0])

    def _data_version(self) -> int:
        return self._one("PRAGMA data_version")

    def changed(self) -> bool:
        """Has another process written since the last call?"""
        version = self._data_version()
        changed, self._version = version != self._version, version
        if changed:
            self.copied_bytes = self._one("SELECT coalesce(sum(bytes), 0) FROM copy")
        return changed

    def cursor(self, endpoint_id: int, generation_id: int) -> Optional[Cursor]:
        """Where an endpoint stands, None where it has not begun."""
        found = self._read(
            "SELECT position, fingerprint, settled FROM ledger"
            " WHERE endpoint_id = ? AND generation_id = ?",
            endpoint_id, generation_id,
        )  # fmt: skip
        return Cursor(*found[0]) if found else None

    def generation(self, source: str) -> Optional[Tuple[int, int]]:
        """(id, number) of the newest generation of a source, None where it was never seen."""
        found = self._read(
            "SELECT id, number FROM generation WHERE source = ? ORDER BY number DESC LIMIT 1",
            source,
        )
        return (found[0][0], found[0][1]) if found else None

    def known(self, endpoint_id: int, generation_id: int, refs: Sequence[Ref]) -> Set[Key]:
        """Keys of those events that stand in the outbox already, in whatever generation.

        In the given one the key is enough: a row that reads otherwise was changed by somebody.
        A lost one does not count: where the source got it back after all, it is sent.
        """
        found: Set[Key] = set()
        for start in range(0, len(refs), 500):
            part = {ref.key: ref.fingerprint for ref in refs[start : start + 500]}
            marks = ",".join("?" * len(part))
            rows = self._read(
                "SELECT key, fingerprint, generation_id FROM delivery"
                f" WHERE endpoint_id = ? AND state <> {LOST} AND key IN ({marks})",
                endpoint_id, *part,
            )  # fmt: skip
            found.update(
                key
                for key, fingerprint, generation in rows
                if generation == generation_id or fingerprint == part[key]
            )
        return found

    def clashes(self, endpoint_id: int, generation_id: int, refs: Sequence[Ref]) -> bool:
        """Does one of these keys belong to another event of the same generation?"""
        found = self._fingerprints(endpoint_id, refs, f"generation_id = {generation_id:d}")
        return any(found.get(ref.key, ref.fingerprint) != ref.fingerprint for ref in refs)

    def _fingerprints(
        self, endpoint_id: int, refs: Sequence[Ref], condition: str
    ) -> Dict[Key, bytes]:
        found: Dict[Key, bytes] = {}
        for start in range(0, len(refs), 500):
            keys = [ref.key for ref in refs[start : start + 500]]
            marks = ",".join("?" * len(keys))
            found.update(
                self._read(
                    "SELECT key, fingerprint FROM delivery"
                    f" WHERE endpoint_id = ? AND key IN ({marks}) AND {condition}",
                    endpoint_id, *keys,
                )
            )  # fmt: skip
        return found

    def recent(self, endpoint_id: int, generation_id: int, limit: int) -> List[Ref]:
        """The references recorded last, newest first."""
        rows = self._read(
            "SELECT key, fingerprint FROM delivery WHERE endpoint_id = ? AND generation_id = ?"
            " ORDER BY id DESC LIMIT ?",
            endpoint_id, generation_id, limit,
        )  # fmt: skip
        return [Ref(key, bytes(fingerprint)) for key, fingerprint in rows]

    def pending(self, endpoint_id: int, limit: int, loaded: Collection[int] = ()) -> List[Entry]:
        """At most limit pending entries that are not loaded yet (row ids), live ones first."""
        rows = self._read(
            f"SELECT {_COLUMNS}, EXISTS (SELECT 1 FROM copy WHERE delivery_id = delivery.id)"
            " FROM delivery WHERE endpoint_id = ? AND state = 0 ORDER BY lane, id LIMIT ?",
            endpoint_id, limit + len(loaded),
        )  # fmt: skip
        return [_entry(endpoint_id, row) for row in rows if row[0] not in loaded][:limit]

    def uncopied(self, endpoint_id: int, limit: int) -> List[Entry]:
        """At most limit pending entries without a copy of their payload, oldest first."""
        rows = self._read(
            f"SELECT {_COLUMNS}, 0 FROM delivery WHERE endpoint_id = ? AND state = 0"
            " AND NOT EXISTS (SELECT 1 FROM copy WHERE delivery_id = delivery.id)"
            " ORDER BY lane, id LIMIT ?",
            endpoint_id, limit,
        )  # fmt: skip
        return [_entry(endpoint_id, row) for row in rows]

    def body(self, entry: Entry) -> Optional[bytes]:
        """The copied payload of an entry, None where there is none."""
        found = self._read("SELECT body FROM copy WHERE delivery_id = ?", entry.row_id)
        return bytes(found[0][0]) if found else None

    def pending_count(self, endpoint_id: int) -> int:
        """How many recorded deliveries of an endpoint are pending."""
        return self._one(
            "SELECT coalesce(sum(pending), 0) FROM ledger WHERE endpoint_id = ?", endpoint_id
        )

    def total(self, column: str) -> int:
        """Sum of a column of the account (pending, dead, lost, …) over all endpoints."""
        return self._one(f"SELECT coalesce(sum({column}), 0) FROM ledger")

    # Writing

    def register(self, name: str, kind: str, url: str) -> int:
        """The id of an endpoint by its name, recorded where it is new."""
        try:
            with self._database.atomic("IMMEDIATE"):
                self._database.execute_sql(
                    "INSERT INTO endpoint (name, kind, url) VALUES (?, ?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, url = excluded.url",
                    (name, kind, url),
                )
                return self._one("SELECT id FROM endpoint WHERE name = ?", name)
        except peewee.PeeweeException as error:
            raise explain(error, self.path) from None

    def new_generation(self, source: str) -> Tuple[int, int]:
        """Begin the next generation of a source; returns its (id, number)."""
        try:
            with self._database.atomic("IMMEDIATE"):
                self._database.execute_sql(
                    "INSERT INTO generation (source, number, started) SELECT ?,"
                    " coalesce(max(number), 0) + 1, ? FROM generation WHERE source = ?",
                    (source, self._wall(), source),
                )
        except peewee.PeeweeException as error:
            raise explain(error, self.path) from None
        generation = self.generation(source)
        assert generation is not None
        return generation

    def write(self, changes: Changes) -> None:
        """Write all changes, or none; entries that were new have their row_id afterwards."""
        new_ids: Dict[int, int] = {}
        copied_bytes = self.copied_bytes
        tallies: Dict[Tuple[int, int], _Tally] = {}
        try:
            with self._database.atomic("IMMEDIATE"):
                for entry in changes.entries:
                    account = (entry.endpoint_id, entry.generation_id)
                    tally = tallies.setdefault(account, _Tally())
                    copied_bytes -= self._save(entry, tally, new_ids)
                for entry, body in changes.copies:
                    if entry.state in (PENDING, DEAD):
                        row_id = new_ids.get(id(entry), entry.row_id)
                        copied_bytes += self._copy(row_id, body)
                for account in {*tallies, *changes.cursors}:
                    self._post(account, tallies.get(account), changes.cursors.get(account))
                for endpoint_id, state in changes.endpoints.items():
                    self._database.execute_sql(
                        "UPDATE endpoint SET state = ?, since = ?, error = ?, next_attempt = ?"
                        " WHERE id = ?",
                        (*state, endpoint_id),
                    )
                for endpoint_id, ends in changes.certificates.items():
                    self._database.execute_sql(
                        "UPDATE endpoint SET certificate = ? WHERE id = ?", (ends, endpoint_id)
                    )
        except peewee.PeeweeException as error:
            raise explain(error, self.path) from None
        self.copied_bytes = copied_bytes
        for entry in changes.entries:
            entry.row_id = new_ids.get(id(entry), entry.row_id)
        for entry, _ in changes.copies:
            entry.copied = True

    def _save(self, entry: Entry, tally: _Tally, new_ids: Dict[int, int]) -> int:
        """Insert or update one row; returns the bytes of its copy where that was let go."""
        if entry.row_id is None and entry.generation_id == REPORTS and entry.state == DELIVERED:
            tally.seen += 1
            self._count(entry, tally)
            return 0
        if entry.row_id is None:
            row_id = self._insert(entry, tally)
            if row_id is not None:
                new_ids[id(entry)] = row_id
                return 0
            # A backfill recorded the same event meanwhile, perhaps with a copy.
            entry.copied = True
            new_ids[id(entry)] = self._adopt(entry, tally)
        row_id = new_ids.get(id(entry), entry.row_id)
        values: Tuple[object, ...] = (row_id,)
        if entry.generation_id == REPORTS and entry.state == DELIVERED:
            sql = "DELETE FROM delivery WHERE id = ? AND state = 0"
        elif entry.generation_id == REPORTS and entry.state == PENDING:
            sql = "UPDATE delivery SET key = ?, attempts = ?, at = ? WHERE id = ? AND state = 0"
            values = (entry.key, entry.attempts, entry.at, row_id)
        else:
            sql = (
                "UPDATE delivery SET state = ?, strip = ?, attempts = ?, at = ?, reason = ?,"
                " answer = ? WHERE id = ? AND state = 0"
            )
            values = (
                entry.state, entry.strip, entry.attempts, entry.at, entry.reason, entry.answer,
                row_id,
            )  # fmt: skip
        if self._database.execute_sql(sql, values).rowcount == 0:
            return 0
        tally.add(PENDING, -1)
        self._count(entry, tally)
        if entry.state in (PENDING, DEAD):
            return 0
        return self._drop_copy(row_id) if entry.copied else 0

    def _adopt(self, entry: Entry, tally: _Tally) -> int:
        """The row an event has already; one that was lost and has come back is open again."""
        row_id, state = self._read(
            "SELECT id, state FROM delivery"
            " WHERE endpoint_id = ? AND key = ? AND generation_id = ?",
            entry.endpoint_id, entry.key, entry.generation_id,
        )[0]  # fmt: skip
        if state == LOST:
            self._database.execute_sql("UPDATE delivery SET state = 0 WHERE id = ?", (row_id,))
            tally.add(LOST, -1)
            tally.add(PENDING, 1)
        return int(row_id)

    def revive(self, row_ids: Sequence[int]) -> int:
        """Make dead letters pending again under their old idempotency keys; returns how many."""
        return self._move(row_ids, DEAD, PENDING)

    def _move(self, row_ids: Sequence[int], old: int, new: int) -> int:
        moved = 0
        try:
            with self._database.atomic("IMMEDIATE"):
                for row_id in row_ids:
                    found = self._read(
                        "SELECT endpoint_id, generation_id FROM delivery"
                        " WHERE id = ? AND state = ?",
                        row_id, old,
                    )  # fmt: skip
                    if not found:
                        continue
                    self._database.execute_sql(
                        "UPDATE delivery SET state = ?, at = ? WHERE id = ?",
                        (new, self._wall(), row_id),
                    )
                    tally = _Tally()
                    tally.add(old, -1)
                    tally.add(new, 1)
                    self._post(found[0], tally, None)
                    moved += 1
        except peewee.PeeweeException as error:
            raise explain(error, self.path) from None
        return moved

    def forget_reports(self, endpoint_id: int) -> None:
        """Drop status reports that were never sent: a fresh one takes their place."""
        try:
            with self._database.atomic("IMMEDIATE"):
                rows = self._read(
                    "SELECT id FROM delivery WHERE endpoint_id = ? AND state = 0", endpoint_id
                )
                for (row_id,) in rows:
                    self.copied_bytes -= self._drop_copy(row_id)
                    self._database.execute_sql("DELETE FROM delivery WHERE id = ?", (row_id,))
                if rows:
                    tally = _Tally()
                    tally.seen = -len(rows)
                    tally.add(PENDING, -len(rows))
                    self._post((endpoint_id, REPORTS), tally, None)
        except peewee.PeeweeException as error:
            raise explain(error, self.path) from None

    def _insert(self, entry: Entry, tally: _Tally) -> Optional[int]:
        done = self._database.execute_sql(
            "INSERT OR IGNORE INTO delivery (endpoint_id, generation_id, key, fingerprint, lane,"
            " state, strip, attempts, at, reason, answer) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.endpoint_id, entry.generation_id, entry.key, entry.fingerprint, entry.lane,
                entry.state, entry.strip, entry.attempts, entry.at, entry.reason, entry.answer,
            ),
        )  # fmt: skip
        if done.rowcount == 0:
            return None
        tally.seen += 1
        self._count(entry, tally)
        return int(done.lastrowid)

    def _count(self, entry: Entry, tally: _Tally) -> None:
        tally.add(entry.state, 1)
        if entry.state == DELIVERED:
            tally.last_delivered = entry.at

    def _copy(self, row_id: Optional[int], body: bytes) -> int:
        before = self._drop_copy(row_id)
        self._database.execute_sql(
            "INSERT INTO copy (delivery_id, bytes, body) VALUES (?, ?, ?)",
            (row_id, len(body), body),
        )
        return len(body) - before

    def _drop_copy(self, row_id: Optional[int]) -> int:
        found = self._read("SELECT bytes FROM copy WHERE delivery_id = ?", row_id)
        if found:
            self._database.execute_sql("DELETE FROM copy WHERE delivery_id = ?", (row_id,))
        return int(found[0][0]) if found else 0

    def _post(
        self, account: Tuple[int, int], tally: Optional[_Tally], cursor: Optional[Cursor]
    ) -> None:
        tally = tally or _Tally()
        self._database.execute_sql(
            "INSERT INTO ledger (endpoint_id, generation_id) VALUES (?, ?) ON CONFLICT DO NOTHING",
            account,
        )
        self._database.execute_sql(
            "UPDATE ledger SET seen = seen + ?, pending = pending + ?, delivered = delivered + ?,"
            " dead = dead + ?, lost = lost + ?, last_delivered = coalesce(?, last_delivered)"
            " WHERE endpoint_id = ? AND generation_id = ?",
            (tally.seen, *tally.counts, tally.last_delivered, *account),
        )
        if cursor is not None:
            self._database.execute_sql(
                "UPDATE ledger SET position = ?, fingerprint = ?, settled = ?"
                " WHERE endpoint_id = ? AND generation_id = ?",
                (*cursor, *account),
            )

    def prune(self, before: float, after_id: int, limit: int) -> Optional[int]:
        """Delete receipts older than before (epoch s) among limit rows after an id.

        Returns where to go on, None when the rest is younger. Pending and dead ones always stay.
        """
        rows = self._read(
            "SELECT id, state, at FROM delivery WHERE id > ? ORDER BY id LIMIT ?", after_id, limit
        )
        old = [row_id for row_id, state, at in rows if state not in (PENDING, DEAD) and at < before]
        if not old:
            return rows[-1][0] if rows and rows[-1][1] in (PENDING, DEAD) else None
        try:
            with self._database.atomic("IMMEDIATE"):
                for start in range(0, len(old), 500):
                    part = old[start : start + 500]
                    marks = ",".join("?" * len(part))
                    self._database.execute_sql(f"DELETE FROM delivery WHERE id IN ({marks})", part)
            self._database.execute_sql("PRAGMA incremental_vacuum(1000)").fetchall()
        except peewee.PeeweeException as error:
            raise explain(error, self.path) from None
        return int(rows[-1][0])


def _entry(endpoint_id: int, row: Tuple) -> Entry:  # type: ignore[type-arg]
    row_id, generation_id, key, fingerprint, lane, strip, attempts, at, copied = row
    return Entry(
        endpoint_id, generation_id, key, bytes(fingerprint), at,
        lane=lane, strip=strip, attempts=attempts, row_id=row_id, copied=bool(copied),
    )  # fmt: skip
