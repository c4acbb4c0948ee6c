"""What the engine reads from and writes to the outbox, all changes of a moment in one transaction.

An event is recorded together with its cursor, at the latest a second after it was seen, often
together with its receipt: until then the cursor has not moved either, so after a crash it is seen
again. That writes half of what recording first and marking later does; flash memory wears out.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import peewee

from .letters import move_dead
from .reader import REPORTS, SUPERSEDED, Cursor, EndpointState, Entry, Reader
from .schema import DEAD, DELIVERED, DISCARDED, LOST, PENDING, connect, explain, quarantine


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


WITHOUT_PICTURES = 3
"""In column strip: neither picture is sent, nor spoken of (payload.Strip.REQUESTED)."""


class _Tally:
    """Changes of a ledger row within one transaction."""

    __slots__ = ("counts", "last_delivered", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.counts = [0, 0, 0, 0]
        self.last_delivered: Optional[float] = None

    def add(self, state: int, number: int) -> None:
        self.counts[LOST if state == DISCARDED else state] += number


class Outbox(Reader):
    """The tables, for the one process that delivers. Methods raise OutboxError or OutboxDamaged."""

    def __init__(self, path: str, wall: Callable[[], float]) -> None:
        """Open or make the file; wall gives epoch seconds."""
        self.path = path
        self._wall = wall
        self._aside: Optional[str] = None
        self._database = connect(path)
        self._version = self._data_version()
        self.copied_bytes: int = self._one("SELECT coalesce(sum(bytes), 0) FROM copy")

    def close(self) -> None:
        """Let go of the file; the last one to do so folds the write-ahead log into it."""
        self._database.close()

    def start_over(self) -> str:
        """After damage: move the file aside and begin an empty one; returns the old one's name.

        May be tried again where there is no room for the new one.
        """
        self._database.close()
        self._aside = aside = self._aside or quarantine(self.path, self._wall)
        self._database = connect(self.path)
        self._aside = None
        self._version = self._data_version()
        self.copied_bytes = 0
        return aside

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., Any]]:
        """All or nothing, while nobody else writes; lends a function that runs a statement."""
        try:
            with self._database.atomic("IMMEDIATE"):
                yield lambda sql, *values: self._database.execute_sql(sql, values)
        except peewee.PeeweeException as error:
            raise explain(error, self.path) from None

    def register(self, name: str, kind: str, url: str) -> int:
        """The id of an endpoint by its name, recorded where it is new."""
        with self.transaction() as run:
            run(
                "INSERT INTO endpoint (name, kind, url) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, url = excluded.url,"
                " certificate = CASE WHEN url = excluded.url THEN certificate END",
                name, kind, url,
            )  # fmt: skip
            return self._one("SELECT id FROM endpoint WHERE name = ?", name)

    def new_generation(self, source: str) -> Tuple[int, int]:
        """Begin the next generation of a source; returns its (id, number)."""
        with self.transaction() as run:
            run(
                "INSERT INTO generation (source, number, started) SELECT ?,"
                " coalesce(max(number), 0) + 1, ? FROM generation WHERE source = ?",
                source, self._wall(), source,
            )  # fmt: skip
        generation = self.generation(source)
        assert generation is not None
        return generation

    def generation_aside(self, entry: Entry) -> int:
        """The id of a generation for an event whose key, in its own, is another event's already.

        Their numbers are below those of the lives of a source, 1 and up.
        """
        with self.transaction() as run:
            ((source,),) = self.read(
                "SELECT source FROM generation WHERE id = ?", entry.generation_id
            )
            free = self.read(
                "SELECT id FROM generation WHERE source = ? AND number < 1 AND id NOT IN"
                " (SELECT generation_id FROM delivery WHERE endpoint_id = ? AND key = ?)",
                source, entry.endpoint_id, entry.key,
            )  # fmt: skip
            if free:
                return int(free[0][0])
            done = run(
                "INSERT INTO generation (source, number, started) SELECT ?, min(number) - 1, ?"
                " FROM generation WHERE source = ?",
                source, self._wall(), source,
            )  # fmt: skip
            return int(done.lastrowid)

    def write(self, changes: Changes) -> None:
        """Write all changes, or none; entries that were new have their row_id afterwards.

        They have none where another event's row stands in their place (see generation_aside).
        """
        new_ids: Dict[int, int] = {}
        copied_bytes = self.copied_bytes
        tallies: Dict[Tuple[int, int], _Tally] = {}
        with self.transaction() as run:
            for entry in changes.entries:
                account = (entry.endpoint_id, entry.generation_id)
                tally = tallies.setdefault(account, _Tally())
                copied_bytes -= self._save(entry, tally, new_ids)
            for entry, body in changes.copies:
                if entry.state in (PENDING, DEAD):
                    row_id = new_ids.get(id(entry), entry.row_id)
                    copied_bytes += self._copy(row_id, body) if row_id is not None else 0
            for account in {*tallies, *changes.cursors}:
                self._post(account, tallies.get(account), changes.cursors.get(account))
            for endpoint_id, state in changes.endpoints.items():
                run(
                    "UPDATE endpoint SET state = ?, since = ?, error = ?, next_attempt = ?"
                    " WHERE id = ?",
                    *state, endpoint_id,
                )  # fmt: skip
            for endpoint_id, ends in changes.certificates.items():
                run("UPDATE endpoint SET certificate = ? WHERE id = ?", ends, endpoint_id)
        self.copied_bytes = copied_bytes
        for entry in changes.entries:
            entry.row_id = new_ids.get(id(entry), entry.row_id)
        for entry, _ in changes.copies:
            entry.copied = True

    def _save(self, entry: Entry, tally: _Tally, new_ids: Dict[int, int]) -> int:
        """Insert or update one row; returns the bytes of its copy where that was let go."""
        if entry.state == SUPERSEDED:
            return self._withdraw(entry, tally)
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
            adopted = self._adopt(entry, tally)
            if adopted is None:
                return 0
            entry.copied = True
            new_ids[id(entry)] = adopted
        row_id = new_ids.get(id(entry), entry.row_id)
        values: Tuple[object, ...] = ()
        if entry.generation_id == REPORTS and entry.state == DELIVERED:
            change = "DELETE FROM delivery"
        else:
            change = (
                "UPDATE delivery SET state = ?, strip = ?, attempts = ?, at = ?, reason = ?,"
                " answer = ?"
            )
            values = (
                entry.state, entry.strip, entry.attempts, entry.at, entry.reason, entry.answer,
            )  # fmt: skip
            if entry.generation_id == REPORTS:
                # A newer report may have taken its place, and its key with it. The key of an event
                # never changes, and to set it would write its index.
                change, values = f"{change}, key = ?", (*values, entry.key)
        sql = f"{change} WHERE id = ? AND state = 0"
        if self._database.execute_sql(sql, (*values, row_id)).rowcount == 0:
            return 0
        tally.add(PENDING, -1)
        self._count(entry, tally)
        if entry.state in (PENDING, DEAD):
            return 0
        return self._drop_copy(row_id) if entry.copied else 0

    def _withdraw(self, entry: Entry, tally: _Tally) -> int:
        """Delete the row of a report that is not sent; returns the bytes of its copy."""
        sql = "DELETE FROM delivery WHERE id = ? AND state = 0"
        if self._database.execute_sql(sql, (entry.row_id,)).rowcount == 0:
            return 0
        tally.seen -= 1
        tally.add(PENDING, -1)
        return self._drop_copy(entry.row_id)

    def _adopt(self, entry: Entry, tally: _Tally) -> Optional[int]:
        """The row an event has already; one that was lost and has come back is open again.

        None where the row is another event's: a backfill recorded what came to stand at the key
        before we could record what stood there until then, and its row is not ours to end.
        """
        found = self.read(
            "SELECT id, state FROM delivery"
            " WHERE endpoint_id = ? AND key = ? AND generation_id = ? AND fingerprint = ?",
            entry.endpoint_id, entry.key, entry.generation_id, entry.fingerprint,
        )  # fmt: skip
        if not found:
            return None
        row_id, state = found[0]
        if state == LOST:
            self._database.execute_sql("UPDATE delivery SET state = 0 WHERE id = ?", (row_id,))
            tally.add(LOST, -1)
            tally.add(PENDING, 1)
        return int(row_id)

    def revive(self, row_ids: Sequence[int]) -> int:
        """Make dead letters pending again under their old idempotency keys; returns how many."""
        with self.transaction():
            return move_dead(self._database, row_ids, PENDING, self._wall())

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
        found = self.read("SELECT bytes FROM copy WHERE delivery_id = ?", row_id)
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

    # Upkeep

    def forget_reports(self, endpoint_id: int) -> None:
        """Drop status reports that were never sent: a fresh one takes their place."""
        with self.transaction() as run:
            rows = self.read(
                "SELECT id FROM delivery WHERE endpoint_id = ? AND state = 0", endpoint_id
            )
            for (row_id,) in rows:
                self.copied_bytes -= self._drop_copy(row_id)
                run("DELETE FROM delivery WHERE id = ?", row_id)
            if rows:
                tally = _Tally()
                tally.seen = -len(rows)
                tally.add(PENDING, -len(rows))
                self._post((endpoint_id, REPORTS), tally, None)

    def prune(self, before: float, after_id: int, limit: int) -> Optional[int]:
        """Delete receipts older than before (epoch s) among limit rows after an id.

        Returns where to go on, None when the rest is younger. Pending and dead ones always stay.
        """
        rows = self.read(
            "SELECT id, state, at FROM delivery WHERE id > ? ORDER BY id LIMIT ?", after_id, limit
        )
        old = [row_id for row_id, state, at in rows if state not in (PENDING, DEAD) and at < before]
        if not old:
            return rows[-1][0] if rows and rows[-1][1] in (PENDING, DEAD) else None
        with self.transaction() as run:
            for row_id in old:
                run("DELETE FROM delivery WHERE id = ?", row_id)
        self.read("PRAGMA incremental_vacuum(1000)")
        return int(rows[-1][0])

    def strip_dead(self, before: float, strip: Callable[[bytes], bytes], limit: int) -> int:
        """Take the pictures out of dead letters older than before (epoch s); returns how many."""
        rows = self.read(
            "SELECT id, body FROM delivery JOIN copy ON delivery_id = id"
            f" WHERE state = {DEAD} AND at < ? AND strip < {WITHOUT_PICTURES} LIMIT ?",
            before, limit,
        )  # fmt: skip
        if not rows:
            return 0
        with self.transaction() as run:
            for row_id, body in rows:
                self.copied_bytes += self._copy(row_id, strip(bytes(body)))
                run("UPDATE delivery SET strip = ? WHERE id = ?", WITHOUT_PICTURES, row_id)
        return len(rows)

    def fold(self) -> None:
        """Empty the write-ahead log, in which deleted copies may still stand."""
        self.read("PRAGMA wal_checkpoint(TRUNCATE)")
