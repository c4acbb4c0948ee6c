"""Deliveries that did not end well, and what an operator may do about them.

Every function is a series of short reads or of small transactions, safe beside a running daemon,
which notices within a second. The account (table ledger) is changed in the same transaction.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import orjson
import peewee

from ..source import Key
from .schema import (
    DEAD,
    DELIVERED,
    DISCARDED,
    LOST,
    PENDING,
    STATES,
    connect,
    connect_readonly,
    explain,
)

LISTED = (DEAD, LOST, DISCARDED, DELIVERED)
"""States that are listed, in this order; delivered ones only where their pictures were left out."""
STRIPPED = "stripped"
"""The reason of those."""
_PAGE = 200
"""Rows changed in one transaction, so that a daemon beside it never waits long."""
_SCANNED = 10_000
"""Rows of receipts looked at in one read."""
_COLUMNS = (
    "d.id, d.state, e.name, e.kind, d.generation_id, d.key, d.at, d.attempts, d.reason, d.answer,"
    " (SELECT bytes FROM copy WHERE delivery_id = d.id)"
)


class Letter(NamedTuple):
    """A delivery, as an operator sees it."""

    id: int
    state: int
    endpoint: str
    kind: str
    """history_event or device_status."""
    generation_id: int
    key: Key
    """Of the event in its database."""
    at: float
    """When it came to its end, epoch seconds."""
    attempts: int
    reason: Optional[str]
    answer: Optional[str]
    """What the platform said last, cut and without personal data."""
    bytes: Optional[int]
    """Size of the kept payload; None: there is none."""

    @property
    def state_name(self) -> str:
        """One of STATES, or stripped for one that was delivered without its pictures."""
        stripped = self.state == DELIVERED and self.reason == STRIPPED
        return STRIPPED if stripped else STATES[self.state]


@dataclass(frozen=True)
class Filter:
    """Which deliveries are meant; without any bound, all."""

    ids: Tuple[int, ...] = ()
    endpoint: Optional[str] = None
    reason: Optional[str] = None
    """Any part of the reason, in whatever case."""
    since: Optional[float] = None
    """Epoch seconds."""
    until: Optional[float] = None
    """Epoch seconds, not included."""

    def sql(self) -> Tuple[str, List[object]]:
        """Conditions on d (delivery) and e (endpoint), each beginning with AND; their values."""
        conditions: List[Tuple[str, Tuple[object, ...]]] = []
        if self.ids:
            conditions.append((f"d.id IN ({_list(self.ids)})", ()))
        if self.endpoint is not None:
            conditions.append(("e.name = ?", (self.endpoint,)))
        if self.reason is not None:
            conditions.append(("instr(lower(d.reason), lower(?)) > 0", (self.reason,)))
        if self.since is not None:
            conditions.append(("d.at >= ?", (self.since,)))
        if self.until is not None:
            conditions.append(("d.at < ?", (self.until,)))
        text = "".join(f" AND {condition}" for condition, _ in conditions)
        return text, [value for _, values in conditions for value in values]


class Letters:
    """The deliveries in an outbox, read-only. Methods raise OutboxError."""

    def __init__(self, path: str) -> None:
        """Open an outbox that exists. Raises OutboxMissing, OutboxError."""
        self._path = path
        self._database = connect_readonly(path)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def find(self, wanted: Filter, states: Sequence[int] = LISTED) -> Iterator[Letter]:
        """Yield the deliveries of a filter, state by state, oldest first."""
        for state in states:
            yield from self._receipts(wanted) if state == DELIVERED else self._ended(wanted, state)

    def _ended(self, wanted: Filter, state: int) -> Iterator[Letter]:
        conditions, values = wanted.sql()
        last = 0
        while True:
            rows = self._rows(
                f"SELECT {_COLUMNS} FROM delivery d JOIN endpoint e ON e.id = d.endpoint_id"
                f" WHERE d.state = {int(state)} AND d.id > ?{conditions}"
                f" ORDER BY d.id LIMIT {_PAGE}",
                last, *values,
            )  # fmt: skip
            yield from (Letter(*row) for row in rows)
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def _receipts(self, wanted: Filter) -> Iterator[Letter]:
        """Find stripped deliveries among the receipts, which may be very many."""
        conditions, values = wanted.sql()
        ((newest,),) = self._rows("SELECT coalesce(max(id), 0) FROM delivery")
        for start in range(0, newest, _SCANNED):
            rows = self._rows(
                f"SELECT {_COLUMNS} FROM delivery d JOIN endpoint e ON e.id = d.endpoint_id"
                f" WHERE d.state = {DELIVERED} AND d.reason = '{STRIPPED}'"
                f" AND d.id > ? AND d.id <= ?{conditions} ORDER BY d.id",
                start, start + _SCANNED, *values,
            )  # fmt: skip
            yield from (Letter(*row) for row in rows)

    def unknown(self, ids: Sequence[int], state: Optional[int] = None) -> List[int]:
        """Those of some ids that no delivery has, or none in that state."""
        condition = "" if state is None else f" AND state = {int(state)}"
        return [
            row_id
            for row_id in ids
            if not self._rows(f"SELECT 1 FROM delivery WHERE id = ?{condition}", row_id)
        ]

    def get(self, row_id: int) -> Tuple[Letter, Optional[bytes]]:
        """One delivery in whatever state, and its kept payload. Raises KeyError."""
        rows = self._rows(
            f"SELECT {_COLUMNS} FROM delivery d JOIN endpoint e ON e.id = d.endpoint_id"
            " WHERE d.id = ?",
            row_id,
        )
        if not rows:
            raise KeyError(row_id)
        bodies = self._rows("SELECT body FROM copy WHERE delivery_id = ?", row_id)
        return Letter(*rows[0]), bytes(bodies[0][0]) if bodies else None

    def about(self, person: str) -> Iterator[Letter]:
        """Yield every delivery whose kept payload has this identity_id."""
        last = 0
        while True:
            found = self._rows(
                "SELECT delivery_id, body FROM copy WHERE delivery_id > ? ORDER BY 1 LIMIT 1", last
            )
            if not found:
                return
            last = found[0][0]
            if _identity(found[0][1]) == person:
                yield self.get(last)[0]

    def _rows(self, sql: str, *values: object) -> List[Tuple[Any, ...]]:
        try:
            return list(self._database.execute_sql(sql, values).fetchall())
        except peewee.PeeweeException as error:
            raise explain(error, self._path) from None


def _identity(body: bytes) -> Optional[str]:
    event = orjson.loads(body)
    return str(event["identity_id"]) if "identity_id" in event else None


def retry(path: str, ids: Sequence[int], now: float) -> int:
    """Make dead letters pending again, under their old idempotency keys; returns how many were.

    now: epoch seconds. Raises OutboxError.
    """
    return _change(path, ids, lambda database, page: move_dead(database, page, PENDING, now))


def discard(path: str, ids: Sequence[int], now: float) -> int:
    """Give dead letters up: counted as lost, their payloads deleted; returns how many were.

    now: epoch seconds, recorded as the time of the discard. Raises OutboxError.
    """

    def discard_page(database: peewee.SqliteDatabase, page: Sequence[int]) -> int:
        moved = move_dead(database, page, DISCARDED, now)
        _delete_copies(database, page, (DISCARDED,))
        return moved

    return _change(path, ids, discard_page)


def erase(path: str, ids: Sequence[int], now: float) -> int:
    """Delete the payloads of deliveries and what the platform said; dead ones are discarded.

    Pending ones stay pending: they refer to the event in its database. Returns how many payloads
    were deleted. Nothing of them stays in the file (secure_delete); as for its write-ahead log, see
    fold. now: epoch seconds. Raises OutboxError.
    """

    def erase_page(database: peewee.SqliteDatabase, page: Sequence[int]) -> int:
        move_dead(database, page, DISCARDED, now)
        database.execute_sql(f"UPDATE delivery SET answer = NULL WHERE id IN ({_list(page)})")
        return _delete_copies(database, page, (PENDING, DISCARDED))

    return _change(path, ids, erase_page)


def fold(path: str) -> bool:
    """Empty the write-ahead log; False where another process used it just then.

    Raises OutboxError.
    """
    database = connect(path)
    try:
        ((busy, _, _),) = database.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except peewee.PeeweeException as error:
        raise explain(error, path) from None
    finally:
        database.close()
    return not busy


def _change(
    path: str,
    ids: Sequence[int],
    change: Callable[[peewee.SqliteDatabase, Sequence[int]], int],
) -> int:
    """Change rows page by page; returns how many changed."""
    connect_readonly(path).close()  # never make an outbox just to change it
    database = connect(path)
    changed = 0
    try:
        for start in range(0, len(ids), _PAGE):
            with database.atomic("IMMEDIATE"):
                changed += change(database, ids[start : start + _PAGE])
    except peewee.PeeweeException as error:
        raise explain(error, path) from None
    finally:
        database.close()
    return changed


def move_dead(database: peewee.SqliteDatabase, ids: Sequence[int], state: int, now: float) -> int:
    """Move those of some deliveries that are dead to another state, and their account with them."""
    which = f"id IN ({_list(ids)}) AND state = {DEAD}"
    accounts = database.execute_sql(
        "SELECT endpoint_id, generation_id, count(*) FROM delivery"
        f" WHERE {which} GROUP BY endpoint_id, generation_id"
    ).fetchall()
    column = "pending" if state == PENDING else "lost"
    for endpoint_id, generation_id, count in accounts:
        database.execute_sql(
            f"UPDATE ledger SET dead = dead - ?, {column} = {column} + ?"
            " WHERE endpoint_id = ? AND generation_id = ?",
            (count, count, endpoint_id, generation_id),
        )
    database.execute_sql(f"UPDATE delivery SET state = ?, at = ? WHERE {which}", (state, now))
    return sum(count for *_, count in accounts)


def _delete_copies(
    database: peewee.SqliteDatabase, ids: Sequence[int], states: Sequence[int]
) -> int:
    deleted = database.execute_sql(
        f"DELETE FROM copy WHERE delivery_id IN (SELECT id FROM delivery WHERE id IN ({_list(ids)})"
        f" AND state IN ({_list(states)}))"
    )
    return int(deleted.rowcount)


def _list(numbers: Sequence[int]) -> str:
    return ",".join(str(int(number)) for number in numbers)


def set_aside(path: str) -> List[str]:
    """Damaged outboxes that were moved aside; they are not searched, and may hold payloads."""
    folder, name = os.path.split(os.path.abspath(path))
    return [
        os.path.join(folder, found)
        for found in sorted(os.listdir(folder))
        if found.startswith(f"{name}.damaged-") and not found.endswith(("-wal", "-shm"))
    ]
