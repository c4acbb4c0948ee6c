"""An event database of any kind, written to as the box would, for tests of what reads it."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Mapping, Optional
from urllib.parse import urlsplit

from se3_uploader import config

Event = Dict[str, Any]

COLUMNS = {
    "id": {"": "BIGINT PRIMARY KEY", "sqlite": "INTEGER PRIMARY KEY"},
    "identity_id": {"": "VARCHAR(100)"},
    "identity_name": {"": "VARCHAR(100)"},
    "reg_pic": {"": "BLOB", "mysql": "LONGBLOB", "postgresql": "BYTEA"},
    "timestamp": {"": "BIGINT"},
    "score": {"": "DOUBLE PRECISION"},
    "device_ip": {"": "VARCHAR(100)"},
    "spot_pic": {"": "TEXT", "mysql": "LONGTEXT"},
}
"""Column -> type, by engine; "" for all others."""


def event(number: int, **changes: Any) -> Event:
    """Make the event with an id; it happened that many seconds after 2026-01-01 UTC."""
    return {
        "id": number,
        "identity_id": f"p{number % 7}",
        "identity_name": '张伟 "O\'Neil" 😀 %s ?',
        "reg_pic": bytes(range(256)),
        "timestamp": 1_767_225_600_000 + number * 1000,
        "score": number / 7,
        "device_ip": f"192.168.1.{number % 3}",
        "spot_pic": "c3BvdA==",
        **changes,
    }


class EventDatabase:
    """A table of events. extra: further columns, with their type by engine ("" for all others)."""

    engine: str

    def __init__(self, url: str) -> None:
        self.url = url

    def source(self, **changes: Any) -> config.Source:
        """Return the configuration that reads this database."""
        return config.Source(**{"url": self.url, "timestamp_unit": "ms", **changes})

    def create(self, types: Optional[Mapping[str, Mapping[str, str]]] = None) -> None:
        """Make an empty table ``event``; types adds columns or replaces their types."""
        raise NotImplementedError

    def add(self, events: Iterable[Event]) -> None:
        """Insert events and commit."""
        raise NotImplementedError

    @contextmanager
    def late(self, events: Iterable[Event]) -> Iterator[None]:
        """Insert events, and commit at the end of the block what was begun before it.

        Where only one program can write at a time, or nothing is committed, insert them then.
        """
        yield
        self.add(events)

    def remove(self, *ids: Any) -> None:
        """Delete the events with these ids, all without any, and commit."""
        raise NotImplementedError

    def wipe(self) -> None:
        """Delete everything, and begin to count anew."""
        self.remove()


class SqlEvents(EventDatabase):
    """A table in SQLite, MariaDB or PostgreSQL."""

    def __init__(self, engine: str, url: str) -> None:
        super().__init__(url)
        self.engine = engine

    def connect(self) -> Any:
        """Open a connection of the engine's own driver."""
        parts = urlsplit(self.url)
        if self.engine == "sqlite":
            return sqlite3.connect(self.url[len("sqlite:///") :], timeout=10)
        place = {"host": parts.hostname, "port": parts.port, "user": parts.username}
        if self.engine == "mysql":
            import pymysql

            return pymysql.connect(
                **place, password=parts.password, database=parts.path[1:], charset="utf8mb4"
            )
        import psycopg2

        return psycopg2.connect(**place, password=parts.password, dbname=parts.path[1:])

    def run(self, sql: str, rows: Iterable[Any] = ((),)) -> None:
        """Run a statement (parameters marked ``?``) for each row of parameters, and commit."""
        if self.engine != "sqlite":
            sql = sql.replace("%", "%%").replace("?", "%s")
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            for row in rows:
                cursor.execute(sql, row)
            connection.commit()

    def create(self, types: Optional[Mapping[str, Mapping[str, str]]] = None) -> None:
        columns = {**COLUMNS, **(types or {})}
        described = (f"{name} {t.get(self.engine) or t['']}" for name, t in columns.items())
        self.run("DROP TABLE IF EXISTS event")
        self.run(f"CREATE TABLE event ({', '.join(described)})")

    @contextmanager
    def late(self, events: Iterable[Event]) -> Iterator[None]:
        if self.engine == "sqlite":
            with super().late(events):
                yield
            return
        with closing(self.connect()) as connection:
            for one in events:
                marks = ", ".join(["%s"] * len(one))
                sql = f"INSERT INTO event ({', '.join(one)}) VALUES ({marks})"
                connection.cursor().execute(sql, list(one.values()))
            yield
            connection.commit()

    def add(self, events: Iterable[Event]) -> None:
        events = list(events)
        names = list(events[0])
        marks = ", ".join("?" for _ in names)
        sql = f"INSERT INTO event ({', '.join(names)}) VALUES "
        chunks = [events[first : first + 100] for first in range(0, len(events), 100)]
        for size in {len(chunk) for chunk in chunks}:
            self.run(
                sql + ", ".join([f"({marks})"] * size),
                [
                    [e[name] for e in chunk for name in names]
                    for chunk in chunks
                    if len(chunk) == size
                ],
            )

    def remove(self, *ids: Any) -> None:
        if ids:
            self.run("DELETE FROM event WHERE id = ?", [(one,) for one in ids])
        else:
            self.run("DELETE FROM event")

    def wipe(self) -> None:
        statements = {
            "sqlite": "DELETE FROM event",
            "mysql": "TRUNCATE TABLE event",
            "postgresql": "TRUNCATE TABLE event RESTART IDENTITY",
        }
        self.run(statements[self.engine])


class MongoEvents(EventDatabase):
    """A collection in MongoDB."""

    engine = "mongodb"

    def create(self, types: Optional[Mapping[str, Mapping[str, str]]] = None) -> None:
        del types  # a collection has none
        with self._client() as client:
            client.events.drop_collection("event")
            client.events.create_collection("event")
            client.events.event.create_index("id", unique=True)

    def add(self, events: Iterable[Event]) -> None:
        with self._client() as client:
            client.events.event.insert_many([dict(event) for event in events])

    def remove(self, *ids: Any) -> None:
        with self._client() as client:
            client.events.event.delete_many({"id": {"$in": list(ids)}} if ids else {})

    def _client(self) -> Any:
        import pymongo

        return pymongo.MongoClient(self.url)


def sqlite_events(path: Path) -> SqlEvents:
    """Name an SQLite file as an event database."""
    return SqlEvents("sqlite", f"sqlite:///{path}")
