"""What status tells of an outbox: short reads only, so that whoever delivers never waits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import peewee

from ..source import Key
from .schema import DEAD, DELIVERED, OutboxMissing, connect_readonly, explain

RATE_OVER = 60.0
"""Seconds over which the rate is measured."""
_PAGE = 1000
"""Rows read at a time in search of recent receipts."""
_PAGES = 60
_ACCOUNT = (
    "name", "kind", "url", "state", "since", "error", "next_attempt", "certificate", "pending",
    "delivered", "dead", "lost", "last_delivered", "begun", "position",
)  # fmt: skip
_OLDEST = 100
"""Rows, in the order they were seen, among which the oldest pending one is looked for."""

_AT_RISK = "AND state = 0 AND id NOT IN (SELECT delivery_id FROM copy)"


@dataclass(frozen=True)
class EndpointFigures:
    """The account of an endpoint over all generations of the source, and how it fares.

    Times are epoch seconds.
    """

    name: str
    kind: str
    url: str
    state: str
    """As in policy: ok, retrying or paused."""
    since: Optional[float]
    """When the first of the failures in a row came."""
    error: Optional[str]
    next_attempt: Optional[float]
    certificate: Optional[float]
    """When the platform's certificate ends; None: none was seen."""
    pending: int
    delivered: int
    dead: int
    lost: int
    last_delivered: Optional[float]
    oldest_pending: Optional[float]
    dead_reason: Optional[str]
    """The most frequent one."""
    recent: int
    """Deliveries of events in the last RATE_OVER seconds."""
    begun: int
    """1 when it has a place in the present generation of the source."""
    position: Optional[Key]
    """That place."""
    first: Optional[Key]
    """The first event that the outbox remembers of that generation."""
    at_risk: Optional[Key]
    """The oldest event of it that is pending and has no copy."""


@dataclass(frozen=True)
class Figures:
    """An outbox at one moment."""

    generation: int
    """Number of the present generation of the source; 0: it was never seen."""
    endpoints: List[EndpointFigures]
    """All there ever were, in the order in which they came."""
    bytes: int
    """Of the file and its write-ahead log."""
    copied_bytes: int
    """Of the payload copies in it, which outbox.max_size bounds."""


NOTHING = Figures(0, [], 0, 0)


def read(path: str, source: str, now: float) -> Figures:
    """Read the figures of an outbox and of one source by its name; now: epoch seconds.

    Where there is no outbox yet they are NOTHING. Raises OutboxError.
    """
    try:
        database = connect_readonly(path)
    except OutboxMissing:
        return NOTHING
    try:
        return _read(database, path, source, now)
    except peewee.PeeweeException as error:
        raise explain(error, path) from None
    finally:
        database.close()


def _read(database: peewee.SqliteDatabase, path: str, source: str, now: float) -> Figures:
    generations = _rows(
        database,
        "SELECT id, number FROM generation WHERE source = ? ORDER BY number DESC LIMIT 1", source,
    )  # fmt: skip
    generation_id, number = generations[0] if generations else (None, 0)
    # One statement sees one state of the database, so that every account balances.
    accounts = _rows(
        database,
        "SELECT e.id, e.name, e.kind, e.url, e.state, e.since, e.error, e.next_attempt,"
        " e.certificate,"
        " coalesce(sum(l.pending), 0), coalesce(sum(l.delivered), 0), coalesce(sum(l.dead), 0),"
        " coalesce(sum(l.lost), 0), max(l.last_delivered), here.endpoint_id IS NOT NULL,"
        " here.position"
        " FROM endpoint e LEFT JOIN ledger l ON l.endpoint_id = e.id"
        " LEFT JOIN ledger here ON here.endpoint_id = e.id AND here.generation_id = ?"
        " GROUP BY e.id ORDER BY e.id",
        generation_id,
    )
    endpoints = [_endpoint(database, now, generation_id, *account) for account in accounts]
    ((copied,),) = _rows(database, "SELECT coalesce(sum(bytes), 0) FROM copy")
    return Figures(number, endpoints, _size(path) + _size(f"{path}-wal"), copied)


def _endpoint(
    database: peewee.SqliteDatabase, now: float, generation_id: Optional[int], endpoint_id: int,
    *account: Any,
) -> EndpointFigures:  # fmt: skip
    fields: Dict[str, Any] = dict(zip(_ACCOUNT, account))
    return EndpointFigures(
        **fields,
        oldest_pending=_oldest_pending(database, endpoint_id),
        dead_reason=_dead_reason(database, endpoint_id),
        recent=_recent(database, endpoint_id, now - RATE_OVER),
        first=_first_key(database, endpoint_id, generation_id),
        at_risk=_first_key(database, endpoint_id, generation_id, _AT_RISK),
    )


def _rows(database: peewee.SqliteDatabase, sql: str, *values: object) -> List[Tuple[Any, ...]]:
    return list(database.execute_sql(sql, values).fetchall())


def _oldest_pending(database: peewee.SqliteDatabase, endpoint_id: int) -> Optional[float]:
    """When the oldest was seen; not among all, of which there may be hundreds of thousands."""
    sql = (
        "SELECT min(at) FROM delivery WHERE id IN (SELECT id FROM delivery INDEXED BY"
        f" delivery_pending WHERE endpoint_id = ? AND state = 0 ORDER BY id LIMIT {_OLDEST})"
    )
    oldest: Optional[float] = _rows(database, sql, endpoint_id)[0][0]
    return oldest


def _first_key(
    database: peewee.SqliteDatabase, endpoint_id: int, generation_id: Optional[int], which: str = ""
) -> Optional[Key]:
    found = _rows(
        database,
        f"SELECT key FROM delivery WHERE endpoint_id = ? AND generation_id = ? {which}"
        " ORDER BY key LIMIT 1",
        endpoint_id, generation_id,
    )  # fmt: skip
    return found[0][0] if found else None


def _dead_reason(database: peewee.SqliteDatabase, endpoint_id: int) -> Optional[str]:
    found = _rows(
        database,
        f"SELECT reason FROM delivery WHERE state = {DEAD} AND endpoint_id = ?"
        " GROUP BY reason ORDER BY count(*) DESC LIMIT 1",
        endpoint_id,
    )
    return found[0][0] if found else None


def _recent(database: peewee.SqliteDatabase, endpoint_id: int, since: float) -> int:
    """Count receipts since a time (epoch s), without reading all of them.

    Live events are delivered soon after they were seen, so theirs are the newest rows; a backlog
    is delivered in the order it was seen, so its receipts end where the first pending row is.
    """
    ((newest,),) = _rows(database, "SELECT coalesce(max(id), 0) FROM delivery")
    count, below = _recent_below(database, endpoint_id, since, newest + 1)
    front = _rows(
        database,
        "SELECT id FROM delivery WHERE endpoint_id = ? AND state = 0 ORDER BY lane, id LIMIT 1",
        endpoint_id,
    )
    if front:
        more, _ = _recent_below(database, endpoint_id, since, min(below, front[0][0] + _PAGE // 2))
        count += more
    return count


def _recent_below(
    database: peewee.SqliteDatabase, endpoint_id: int, since: float, below: int
) -> Tuple[int, int]:
    """Count recent receipts in the rows below an id, down to a page without any.

    Returns their number and the id at which the count ended.
    """
    count = 0
    for _ in range(_PAGES):
        ((end, found),) = _rows(
            database,
            f"SELECT min(id), sum(state = {DELIVERED} AND at > ? AND endpoint_id = ?)"
            f" FROM (SELECT * FROM delivery WHERE id < ? ORDER BY id DESC LIMIT {_PAGE})",
            since, endpoint_id, below,
        )  # fmt: skip
        if not found:
            break
        count, below = count + found, end
    return count, below


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
