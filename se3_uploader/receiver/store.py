"""What the receiver received: one SQLite file, ``received.db``, and all SQL on it."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import orjson

from .intake import put_pictures, take_pictures

KEEP = 100_000
"""Events, and as many status reports; the newest are kept."""
KEEP_BYTES = 4 * 1024**3
"""Bytes of the file; beyond it the oldest events go, however few they are."""

_REPORT = """
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    key         TEXT,              -- Idempotency-Key
    received_at INTEGER NOT NULL,  -- milliseconds
    change      INTEGER NOT NULL,  -- grows with every change of any row: the page's cursor
    digest      BLOB NOT NULL,     -- of the whole body as it came
    repeats     INTEGER NOT NULL DEFAULT 0,
    differing   INTEGER NOT NULL DEFAULT 0,  -- repeats whose body was another one
    reasons     TEXT,              -- JSON list: what the schema says against it; NULL: accepted
"""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS event ({_REPORT}
    person_type INTEGER,
    search      TEXT NOT NULL,     -- casefolded words the page can look for
    body        TEXT NOT NULL      -- JSON without the pictures
);
CREATE TABLE IF NOT EXISTS status ({_REPORT}
    gateway     TEXT NOT NULL,
    body        TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS picture (
    event_id INTEGER NOT NULL,
    field    TEXT NOT NULL,        -- reg_pic or spot_pic
    content  BLOB,                 -- as decoded
    text     TEXT,                 -- as it came, where it was no plain base64
    PRIMARY KEY (event_id, field)
);
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS event_key ON event (key, reasons IS NULL);
CREATE UNIQUE INDEX IF NOT EXISTS status_key ON status (key, reasons IS NULL);
CREATE INDEX IF NOT EXISTS event_change ON event (change);
CREATE INDEX IF NOT EXISTS event_received_at ON event (received_at);
CREATE INDEX IF NOT EXISTS status_change ON status (change);
CREATE INDEX IF NOT EXISTS status_gateway ON status (gateway, id);
"""
_COUNTERS = ("accepted", "refused", "repeats", "differing", "statuses", "turned_away")


class Report(NamedTuple):
    """One stored POST."""

    id: int
    key: Optional[str]
    received_at: int
    """Milliseconds."""
    repeats: int
    differing: int
    reasons: List[str]
    payload: Any
    """The JSON; from ``latest_events`` and ``latest_statuses`` without its pictures."""
    pictures: Tuple[str, ...] = ()
    """The fields that hold a picture which can be shown."""


class Store:
    """The received events and status reports in ``folder``/received.db.

    Usable from several threads, and from another process beside a running receiver.
    Raises OSError or sqlite3.Error where the file cannot be made, read or written.
    """

    def __init__(
        self, folder: Union[str, Path], keep: int = KEEP, keep_bytes: int = KEEP_BYTES
    ) -> None:
        self.path = Path(folder, "received.db")
        self.token = secrets.token_hex(8)
        """Tells the page that another store answers than a moment ago."""
        self._keep, self._keep_bytes = keep, keep_bytes
        self._lock = threading.RLock()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # faces: for the owner alone
        self._db = sqlite3.connect(
            str(self.path), timeout=30, isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def add_event(
        self, payload: Any, reasons: Sequence[str], key: Optional[str], body: bytes
    ) -> None:
        """Store a HistoryEvent, refused where there are reasons; the same key again is a repeat.

        ``body`` is what came over the wire, to tell whether a repeat is the same one.
        """
        rest, pictures = take_pictures(payload)
        own = {
            "person_type": _person_type(rest),
            "search": _search(rest),
            "body": orjson.dumps(rest).decode(),
        }
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            new = self._add("event", own, reasons, key, body)
            if new is None:
                return
            self._db.executemany(
                "INSERT INTO picture VALUES (?, ?, ?, ?)",
                [(new, field, *_decoded(text)) for field, text in pictures.items()],
            )
            self._count("refused" if reasons else "accepted")
            self._prune(new)

    def add_status(
        self, payload: Any, reasons: Sequence[str], key: Optional[str], body: bytes
    ) -> None:
        """Store a DeviceStatus like an event."""
        own = {"gateway": _gateway(payload), "body": orjson.dumps(payload).decode()}
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            new = self._add("status", own, reasons, key, body)
            if new is None:
                return
            self._count("refused" if reasons else "statuses")
            self._db.execute("DELETE FROM status WHERE id <= ?", (new - self._keep,))

    def add_turned_away(self) -> None:
        """Count a POST that was answered with an error on purpose."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._count("turned_away")
            self._count("change")

    def events(self, refused: bool = False) -> Iterator[Report]:
        """All accepted (or all refused) events, oldest first, with their pictures as they came."""
        for report in self._reports("event", refused):
            pictures = {
                field: base64.b64encode(content).decode() if text is None else text
                for field, content, text in self._all(
                    "SELECT field, content, text FROM picture WHERE event_id = ?", report.id
                )
            }
            yield report._replace(payload=put_pictures(report.payload, pictures))

    def statuses(self, refused: bool = False) -> Iterator[Report]:
        """All accepted (or all refused) status reports, oldest first."""
        return self._reports("status", refused)

    def counts(self) -> Dict[str, int]:
        """How many events were accepted, refused, repeated, … since the file was made.

        Each key counts different things: ``accepted`` events, ``statuses`` accepted, ``refused``
        events and reports, ``repeats`` of either, ``differing`` repeats with another body, POSTs
        ``turned_away`` on purpose. What was pruned since then still counts.
        """
        found = dict(self._all("SELECT name, n FROM counter"))
        return {name: found.get(name, 0) for name in _COUNTERS}

    def cursor(self) -> int:
        """Grows with every change; ``latest_events`` takes it as ``since``."""
        rows = self._all("SELECT n FROM counter WHERE name = 'change'")
        return int(rows[0][0]) if rows else 0

    def rate(self, seconds: int, now: int) -> List[int]:
        """New events in each of the last ``seconds`` whole seconds before ``now`` (ms)."""
        end = now // 1000
        per_second = dict(
            self._all(
                "SELECT received_at / 1000, count(*) FROM event"
                " WHERE received_at >= ? AND received_at < ? GROUP BY 1",
                (end - seconds) * 1000,
                end * 1000,
            )
        )
        return [per_second.get(second, 0) for second in range(end - seconds, end)]

    def latest_events(
        self,
        limit: int,
        *,
        since: int = 0,
        before: int = 0,
        words: str = "",
        person_type: int = 0,
        refused: bool = False,
    ) -> List[Report]:
        """The newest events first: changed after ``since``, older than the id ``before``, filtered.

        0 and "" switch a condition off.
        """
        wanted: List[Tuple[str, Any]] = []
        if since:
            # in a query of its own, or SQLite walks through all events to find the few
            wanted.append(("id IN (SELECT id FROM event WHERE change > ?)", since))
        if before:
            wanted.append(("id < ?", before))
        if words:
            wanted.append(("instr(search, ?)", words.casefold()))
        if person_type:
            wanted.append(("person_type = ?", person_type))
        if refused:
            wanted.append(("(reasons IS NULL) = ?", False))
        where = " AND ".join(condition for condition, _ in wanted) or "1"
        return self._select("event", where, [value for _, value in wanted], limit)

    def event(self, event_id: int) -> Optional[Report]:
        """One event without its pictures."""
        return next(iter(self._select("event", "id = ?", [event_id], 1)), None)

    def has_new_statuses(self, since: int) -> bool:
        """Whether a status report came after the cursor ``since``."""
        return bool(self._all("SELECT 1 FROM status WHERE change > ? LIMIT 1", since))

    def latest_statuses(self, gateways: int, history: int) -> List[List[Report]]:
        """For each of the ``gateways`` heard of last its newest reports, newest first."""
        names = self._all(
            "SELECT gateway, max(id) FROM status GROUP BY gateway ORDER BY 2 DESC LIMIT ?", gateways
        )
        return [self._select("status", "gateway = ?", [name], history) for name, _ in names]

    def picture(self, event_id: int, field: str) -> Optional[bytes]:
        """The bytes of a picture, None where there is none."""
        rows = self._all(
            "SELECT content FROM picture WHERE event_id = ? AND field = ?", event_id, field
        )
        return rows[0][0] if rows else None

    def _all(self, sql: str, *values: Any) -> List[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _select(self, table: str, where: str, values: List[Any], limit: int) -> List[Report]:
        shown = (
            "(SELECT group_concat(field) FROM picture WHERE event_id = event.id AND text IS NULL)"
        )
        rows = self._all(
            "SELECT id, key, received_at, repeats, differing, reasons, body,"
            f" {shown if table == 'event' else 'NULL'}"
            f" FROM {table} WHERE {where} ORDER BY id DESC LIMIT ?",
            *values,
            limit,
        )
        return [_report(*row) for row in rows]

    def _reports(self, table: str, refused: bool) -> Iterator[Report]:
        last = 0
        while True:
            rows = self._all(
                "SELECT id, key, received_at, repeats, differing, reasons, body, NULL"
                f" FROM {table} WHERE id > ? AND (reasons IS NOT NULL) = ? ORDER BY id LIMIT 100",
                last,
                refused,
            )
            if not rows:
                return
            yield from (_report(*row) for row in rows)
            last = rows[-1][0]

    def _add(
        self,
        table: str,
        own: Mapping[str, Any],
        reasons: Sequence[str],
        key: Optional[str],
        body: bytes,
    ) -> Optional[int]:
        """Insert a row and return its id, or count a repeat and return None."""
        digest = hashlib.sha256(body).digest()
        self._count("change")
        earlier = self._all(
            f"SELECT id, digest FROM {table} WHERE key = ? AND (reasons IS NULL) = ?",
            key,
            not reasons,
        )
        if earlier:
            differs = earlier[0][1] != digest
            self._db.execute(
                f"UPDATE {table} SET change = ?, repeats = repeats + 1,"
                " differing = differing + ? WHERE id = ?",
                (self.cursor(), differs, earlier[0][0]),
            )
            self._count("repeats")
            if differs:
                self._count("differing")
            return None
        row = {
            "key": key,
            "received_at": time.time_ns() // 1_000_000,
            "change": self.cursor(),
            "digest": digest,
            "reasons": orjson.dumps(list(reasons)).decode() if reasons else None,
            **own,
        }
        places = ", ".join("?" * len(row))
        inserted = self._db.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", list(row.values())
        )
        return inserted.lastrowid

    def _count(self, name: str) -> None:
        self._db.execute(
            "INSERT INTO counter VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = n + 1", (name,)
        )

    def _prune(self, newest: int) -> None:
        """Drop the oldest events beyond either bound: a hundred at a time where bytes are short."""
        oldest = newest - self._keep
        used, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (used - free) * size > self._keep_bytes:
            first = self._db.execute("SELECT min(id) FROM event").fetchone()[0]
            oldest = max(oldest, min(first + 99, newest - 1))
        self._db.execute("DELETE FROM event WHERE id <= ?", (oldest,))
        self._db.execute("DELETE FROM picture WHERE event_id <= ?", (oldest,))


def _report(
    id: int,
    key: Optional[str],
    received_at: int,
    repeats: int,
    differing: int,
    reasons: Optional[str],
    body: str,
    pictures: Optional[str],
) -> Report:
    return Report(
        id,
        key,
        received_at,
        repeats,
        differing,
        orjson.loads(reasons) if reasons else [],
        orjson.loads(body),
        tuple(pictures.split(",")) if pictures else (),
    )


def _decoded(text: str) -> Tuple[Optional[bytes], Optional[str]]:
    """A picture as (bytes, None), or (None, text) where bytes would not give the text back."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        return None, text
    same = base64.b64encode(content).decode() == text
    return (content, None) if same and content else (None, text)


def _person_type(event: Any) -> Optional[int]:
    """As the protocol has it, section 1: an employee where the field is missing."""
    extra = event.get("ext_data") if isinstance(event, dict) else None
    value = extra.get("person_type", 1) if isinstance(extra, dict) else 1
    return value if value in range(1, 6) else None


def _search(event: Any) -> str:
    if not isinstance(event, dict):
        return ""
    extra = event["ext_data"] if isinstance(event.get("ext_data"), dict) else {}
    values = [event.get(name) for name in ("identity_name", "identity_id", "group_name")]
    values += [extra.get(name) for name in ("device_ip", "ep_id", "dev_sno")]
    return "\n".join(str(value) for value in values if value is not None).casefold()[:1000]


def _gateway(status: Any) -> str:
    """What tells one box from another; empty where the report does not say."""
    names = ("gateway_sn", "dev_sno", "gateway_ip")
    values = [status.get(name) for name in names] if isinstance(status, dict) else []
    return next((value for value in values if isinstance(value, str) and value), "")
