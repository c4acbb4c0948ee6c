"""What stands in the outbox: its shapes, and everything the engine asks it."""

from __future__ import annotations

from typing import Collection, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import peewee

from ..source import Key, Ref
from .schema import DEAD, LIVE, LOST, PENDING, explain, is_quarantined

REPORTS = 0
"""Generation of status reports: they have no source, are stored whole, and leave no receipt."""

SUPERSEDED = -1
"""State, in memory alone, of a report that a newer one replaced: its row goes, and counts no more.
"""

REJECTED = "rejected: "
"""So the reason begins of what is dead because the platform rejected it."""

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
    fingerprint: bytes
    """Of the row at the position; empty where there is none."""
    settled: Optional[Key]
    """Rows up to here are no longer looked for when they become visible late."""


class EndpointState(NamedTuple):
    """What status says of an endpoint; times in epoch seconds."""

    state: str
    since: Optional[float]
    error: Optional[str]
    next_attempt: Optional[float]


class Reader:
    """The reading half of the outbox. Methods raise OutboxError or OutboxDamaged."""

    path: str
    copied_bytes: int
    _database: peewee.SqliteDatabase
    _version: int

    def read(self, sql: str, *values: object) -> List[Tuple]:  # type: ignore[type-arg]
        """The rows that a statement gives."""
        try:
            return list(self._database.execute_sql(sql, values).fetchall())
        except peewee.PeeweeException as error:
            raise explain(error, self.path) from None

    def _one(self, sql: str, *values: object) -> int:
        return int(self.read(sql, *values)[0][0])

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
        # A backfill may have opened the account of an endpoint that has no place yet.
        found = self.read(
            "SELECT position, fingerprint, settled FROM ledger"
            " WHERE endpoint_id = ? AND generation_id = ? AND fingerprint IS NOT NULL",
            endpoint_id, generation_id,
        )  # fmt: skip
        return Cursor(*found[0]) if found else None

    def has_begun(self, endpoint_id: int) -> bool:
        """Has an endpoint ever taken its place in a source?"""
        return bool(
            self.read(
                "SELECT 1 FROM ledger WHERE endpoint_id = ? AND fingerprint IS NOT NULL LIMIT 1",
                endpoint_id,
            )
        )

    def is_rebuilt(self) -> bool:
        """Was a damaged outbox moved aside for this one, in which nothing has begun yet?"""
        return is_quarantined(self.path) and not self.read(
            "SELECT 1 FROM ledger WHERE fingerprint IS NOT NULL LIMIT 1"
        )

    def generation(self, source: str) -> Optional[Tuple[int, int]]:
        """(id, number) of the newest generation of a source, None where it was never seen."""
        found = self.read(
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
            rows = self.read(
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
                self.read(
                    "SELECT key, fingerprint FROM delivery"
                    f" WHERE endpoint_id = ? AND key IN ({marks}) AND {condition}",
                    endpoint_id, *keys,
                )
            )  # fmt: skip
        return found

    def recent(self, endpoint_id: int, generation_id: int, limit: int) -> List[Ref]:
        """The references recorded last, and those with the greatest keys, limit of each.

        Those of older generations, where nothing was recorded in this one.
        """
        found: List[Ref] = []
        for condition in (f"generation_id = {generation_id:d}", "generation_id > 0"):
            for order in ("id", "key"):
                rows = self.read(
                    f"SELECT key, fingerprint FROM delivery WHERE endpoint_id = ? AND {condition}"
                    f" ORDER BY {order} DESC LIMIT ?",
                    endpoint_id, limit,
                )  # fmt: skip
                found += [Ref(key, bytes(fingerprint)) for key, fingerprint in rows]
            if found:
                break
        return found

    def pending(self, endpoint_id: int, limit: int, loaded: Collection[int] = ()) -> List[Entry]:
        """At most limit pending entries that are not loaded yet (row ids), live ones first."""
        rows = self.read(
            f"SELECT {_COLUMNS}, EXISTS (SELECT 1 FROM copy WHERE delivery_id = delivery.id)"
            " FROM delivery WHERE endpoint_id = ? AND state = 0 ORDER BY lane, id LIMIT ?",
            endpoint_id, limit + len(loaded),
        )  # fmt: skip
        return [_entry(endpoint_id, row) for row in rows if row[0] not in loaded][:limit]

    def uncopied(self, endpoint_id: int, limit: int) -> List[Entry]:
        """At most limit pending entries without a copy of their payload, oldest first."""
        rows = self.read(
            f"SELECT {_COLUMNS}, 0 FROM delivery WHERE endpoint_id = ? AND state = 0"
            " AND NOT EXISTS (SELECT 1 FROM copy WHERE delivery_id = delivery.id)"
            " ORDER BY lane, id LIMIT ?",
            endpoint_id, limit,
        )  # fmt: skip
        return [_entry(endpoint_id, row) for row in rows]

    def has_all_receipts(self, endpoint_id: int) -> bool:
        """Does everything stand here that an endpoint ever saw? Old receipts are deleted."""
        return bool(
            self._one(
                "SELECT (SELECT count(*) FROM delivery WHERE endpoint_id = ?1 AND generation_id)"
                " = coalesce(sum(seen), 0) FROM ledger WHERE endpoint_id = ?1 AND generation_id",
                endpoint_id,
            )
        )

    def rejected(self, endpoint_id: int) -> List[Entry]:
        """Dead letters that an endpoint rejected since it last accepted an event."""
        rows = self.read(
            f"SELECT {_COLUMNS}, 1 FROM delivery WHERE state = {DEAD} AND endpoint_id = ?1"
            f" AND reason LIKE '{REJECTED}%' AND at >="
            " (SELECT coalesce(max(last_delivered), 0) FROM ledger WHERE endpoint_id = ?1)",
            endpoint_id,
        )
        return [_entry(endpoint_id, row) for row in rows]

    def body(self, entry: Entry) -> Optional[bytes]:
        """The copied payload of an entry, None where there is none."""
        found = self.read("SELECT body FROM copy WHERE delivery_id = ?", entry.row_id)
        return bytes(found[0][0]) if found else None

    def pending_count(self, endpoint_id: int) -> int:
        """How many recorded deliveries of an endpoint are pending."""
        return self._one(
            "SELECT coalesce(sum(pending), 0) FROM ledger WHERE endpoint_id = ?", endpoint_id
        )

    def total(self, column: str) -> int:
        """Sum of a column of the account (pending, dead, lost, …) over all endpoints."""
        return self._one(f"SELECT coalesce(sum({column}), 0) FROM ledger")


def _entry(endpoint_id: int, row: Tuple) -> Entry:  # type: ignore[type-arg]
    row_id, generation_id, key, fingerprint, lane, strip, attempts, at, copied = row
    return Entry(
        endpoint_id, generation_id, key, bytes(fingerprint), at,
        lane=lane, strip=strip, attempts=attempts, row_id=row_id, copied=bool(copied),
    )  # fmt: skip
