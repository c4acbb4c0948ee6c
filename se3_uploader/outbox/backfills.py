"""What a backfill reads from and writes to the outbox, beside the process that delivers."""

from __future__ import annotations

import os
import time
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import peewee

from ..source import Key, Ref
from .schema import DEAD, DELIVERED, PENDING, connect, connect_readonly, explain

_KEYS = 500
"""Keys asked for in one statement."""


class Backfill(NamedTuple):
    """A backfill under way. Resumed by the same words, it means the same range as before."""

    id: int
    """Lane of its deliveries."""
    since: int
    """Epoch milliseconds, included."""
    until: int
    """Epoch milliseconds, excluded."""


class Backfills:
    """A connection of its own. All methods raise OutboxError."""

    def __init__(self, path: str, database: Optional[peewee.SqliteDatabase] = None) -> None:
        self._path = path
        self._database = database or connect(path)

    @classmethod
    def reading(cls, path: str) -> Optional[Backfills]:
        """Only to look, nothing is written; None where there is no outbox yet."""
        return cls(path, connect_readonly(path)) if os.path.exists(path) else None

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _run(self, sql: str, *values: object) -> List[Tuple]:  # type: ignore[type-arg]
        try:
            return list(self._database.execute_sql(sql, values).fetchall())
        except peewee.PeeweeException as error:
            raise explain(error, self._path) from None

    def begin(self, wanted: str, since: int, until: int) -> Backfill:
        """Begin a backfill, or take up the unfinished one that was asked for in the same words."""
        self._run(
            "INSERT INTO backfill (wanted, since, until) VALUES (?, ?, ?)"
            " ON CONFLICT (wanted) DO NOTHING",
            wanted, since, until,
        )  # fmt: skip
        rows = self._run("SELECT id, since, until FROM backfill WHERE wanted = ?", wanted)
        return Backfill(*rows[0])

    def find(self, wanted: str) -> Optional[Backfill]:
        """The unfinished backfill asked for in these words."""
        rows = self._run("SELECT id, since, until FROM backfill WHERE wanted = ?", wanted)
        return Backfill(*rows[0]) if rows else None

    def finish(self, backfill: Backfill) -> None:
        """Record its end; its id is not given out again while deliveries bear it."""
        self._run(
            "UPDATE backfill SET finished = ?, wanted = wanted || ' #' || id WHERE id = ?",
            time.time(), backfill.id,
        )  # fmt: skip

    def endpoints(self) -> Dict[str, int]:
        """Name -> id of the endpoints that the outbox knows."""
        return dict(self._run("SELECT name, id FROM endpoint"))

    def states(self, endpoint_id: int, keys: Sequence[Key]) -> Dict[Key, int]:
        """Key -> state in the newest generation that knows it, for those keys that are known."""
        found: Dict[Key, int] = {}
        for start in range(0, len(keys), _KEYS):
            part = keys[start : start + _KEYS]
            marks = ",".join("?" * len(part))
            sql = (
                f"SELECT key, state FROM delivery WHERE endpoint_id = ? AND key IN ({marks})"
                " ORDER BY generation_id"
            )
            found.update(self._run(sql, endpoint_id, *part))
        return found

    def pending(self, backfill: Backfill, endpoint_id: int) -> int:
        """How many of its deliveries wait to be sent."""
        return int(
            self._run(
                "SELECT count(*) FROM delivery WHERE endpoint_id = ? AND lane = ? AND state = 0",
                endpoint_id, backfill.id,
            )[0][0]
        )  # fmt: skip

    def enqueue(
        self, backfill: Backfill, endpoint_id: int, source: str, refs: Sequence[Ref], *,
        strip: int, resend: bool,
    ) -> int:  # fmt: skip
        """Put references into the outbox, in one transaction; returns how many were not there yet.

        Those that are known are left as they are, or with resend sent once more.
        """
        added = 0
        try:
            with self._database.atomic("IMMEDIATE"):
                generation = self._run("SELECT max(id) FROM generation WHERE source = ?", source)[
                    0
                ][0]
                for ref in refs:
                    known = self._run(
                        "SELECT id, state, lane, generation_id FROM delivery"
                        " WHERE endpoint_id = ? AND key = ? AND fingerprint = ?"
                        " ORDER BY generation_id DESC",
                        endpoint_id, ref.key, ref.fingerprint,
                    )  # fmt: skip
                    if not known:
                        added += self._insert(backfill, endpoint_id, generation, ref, strip)
                    elif resend:
                        added += self._again(backfill, endpoint_id, known[0], strip)
        except peewee.PeeweeException as error:
            raise explain(error, self._path) from None
        return added

    def _insert(
        self, backfill: Backfill, endpoint_id: int, generation: int, ref: Ref, strip: int
    ) -> int:
        done = self._database.execute_sql(
            "INSERT OR IGNORE INTO delivery (endpoint_id, generation_id, key, fingerprint, lane,"
            " state, strip, attempts, at) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)",
            (
                endpoint_id, generation, ref.key, ref.fingerprint, backfill.id, PENDING, strip,
                time.time(),
            ),
        )  # fmt: skip
        if done.rowcount:
            self._run(
                "INSERT INTO ledger (endpoint_id, generation_id) VALUES (?, ?)"
                " ON CONFLICT DO NOTHING",
                endpoint_id, generation,
            )  # fmt: skip
            self._run(
                "UPDATE ledger SET seen = seen + 1, pending = pending + 1"
                " WHERE endpoint_id = ? AND generation_id = ?",
                endpoint_id, generation,
            )  # fmt: skip
        return int(done.rowcount)

    def _again(
        self, backfill: Backfill, endpoint_id: int, known: Tuple[int, int, int, int], strip: int
    ) -> int:
        row_id, state, lane, generation = known
        if state == PENDING or lane == backfill.id:
            return 0
        column = "delivered" if state == DELIVERED else "dead" if state == DEAD else "lost"
        self._run(
            "UPDATE delivery SET state = 0, lane = ?, strip = ?, at = ?, reason = NULL,"
            " answer = NULL WHERE id = ?",
            backfill.id, strip, time.time(), row_id,
        )  # fmt: skip
        self._run(
            f"UPDATE ledger SET pending = pending + 1, {column} = {column} - 1"
            " WHERE endpoint_id = ? AND generation_id = ?",
            endpoint_id, generation,
        )  # fmt: skip
        return 1
