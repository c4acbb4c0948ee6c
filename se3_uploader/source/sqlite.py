"""SQLite: a file that another program writes, read so that it never notices."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing, contextmanager
from time import monotonic
from typing import Any, ClassVar, Dict, Iterator, List, Optional, Sequence, Tuple, Union
from urllib.parse import quote, unquote

import peewee

from .. import config
from . import Key, SourceError
from .keys import decode, encode
from .pictures import MAX_BYTES
from .sql import SqlSource
from .statements import Statement, Values, Whole

_READ_TIME = 0.03
"""Seconds after which a read lets the writer go on."""

_TOGETHER = 100
"""Rows that one statement reads at most."""

_BUSY_TIMEOUT = 2.0
"""Seconds that we wait for the writer."""


def make(source: config.Source) -> SqliteSource:
    """Make the source of a ``sqlite:///PATH`` url (``sqlite:////PATH`` for an absolute path)."""
    return SqliteSource(source)


class SqliteSource(SqlSource):
    """An SQLite file.

    A read in a rollback-journal database keeps the writer from committing, so every read ends after
    a moment: in the steps in which SQLite waits, a writer then loses at most 53 ms. We never write:
    the file is opened read-only, which also keeps SQLite from a checkpoint when we close it.
    """

    engine = "sqlite"

    _begin = "BEGIN"
    _parameter = "?"
    _octets = "length(CAST({} AS BLOB))"
    _read_time = _READ_TIME
    _refuses_long = sys.version_info >= (3, 11)
    _errors = (peewee.PeeweeException, sqlite3.Error)
    _advice: ClassVar = {
        "database is locked": "its writer keeps it locked, we try again",
        "attempt to write a readonly database": "its writer died in the middle of a transaction; "
        "it recovers when the program that writes it opens it",
        "unable to open database file": "may this user read it, and in WAL mode its -shm file?",
        "file is not a database": "is source.url the event database?",
        "malformed": "the file is damaged; the program that writes it has to repair it",
        "no such table": "is source.table right?",
        "no such column": "is source.columns right?",
    }

    def __init__(self, source: config.Source) -> None:
        super().__init__(source)
        self._path = os.path.abspath(unquote(source.url[len("sqlite:///") :].partition("?")[0]))
        self._file: Optional[Tuple[int, int]] = None
        self._version: Optional[int] = None

    def count(self, after: Optional[Key], limit: int) -> int:
        """Count in short reads, however large the table is."""
        number = 0
        while number < limit:
            with self._session() as database:
                rows, cut = self._fetch(
                    database, self._sql.select([], self._sql.after(after), limit - number)
                )
            number += len(rows)
            if not cut:
                break
            after = encode(rows[-1])
        return number

    def changed(self) -> bool:
        """Ask SQLite whether somebody has committed since the last call."""
        try:
            with self._session() as database:
                before = self._version
                self._version = database.execute_sql("PRAGMA data_version").fetchone()[0]
        except SourceError:
            return True
        return self._settle.waiting or before != self._version

    def watch_paths(self) -> Tuple[str, ...]:
        """The database, its WAL and its rollback journal."""
        return (self._path, f"{self._path}-wal", f"{self._path}-journal")

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._version = None

    def _open(self) -> peewee.Database:
        """Open the file anew where another one stands at its path: ours would be dead for ever."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise SourceError(
                f"{self._path}: {error.strerror}; the event database appears when the box writes it"
            ) from None
        if (status.st_dev, status.st_ino) != self._file:
            self.close()
            self._file = (status.st_dev, status.st_ino)
        return super()._open()

    def _connect(self) -> peewee.Database:
        database = peewee.SqliteDatabase(
            f"file:{quote(self._path)}?mode=ro",
            uri=True,
            timeout=_BUSY_TIMEOUT,
            pragmas={"query_only": 1, "cache_size": -256},
        )
        database.connect()
        self._database = database
        self.ordered = self._key_is_rowid(database)
        return database

    def _fetch(self, database: peewee.Database, statement: Statement) -> Tuple[List[Values], bool]:
        """Fetch an answer; where it holds text that is no UTF-8, that text as bytes.

        Decoding is left to sqlite3 as long as it succeeds, which is much faster than in Python.
        """
        try:
            return super()._fetch(database, statement)
        except (peewee.OperationalError, sqlite3.OperationalError) as error:
            if "Could not decode" not in str(error):
                raise
        connection = database.connection()
        connection.text_factory = _text
        try:
            return super()._fetch(database, statement)
        finally:
            connection.text_factory = str

    def _whole_rows(
        self, database: peewee.Database, whole: Whole, keys: Sequence[Key], max_bytes: int
    ) -> Iterator[Tuple[Key, Optional[Dict[str, Any]]]]:
        """Read what one statement can hold ahead, and the rest row by row."""
        ahead = self._together(database, whole, keys[:_TOGETHER], max_bytes)
        for key in keys:
            values = ahead.pop(key, None)
            yield key, values or self._whole_row(database, whole, key)

    def _together(
        self, database: peewee.Database, whole: Whole, keys: Sequence[Key], max_bytes: int
    ) -> Dict[Key, Dict[str, Any]]:
        """Read rows by one statement, up to max_bytes, to the first that makes difficulties."""
        found: Dict[Key, Dict[str, Any]] = {}
        if len(self._key) > 1:
            return found
        sql = f"{whole.together}({', '.join('?' * len(keys))})"
        deadline, used = monotonic() + _READ_TIME, 0
        with _limit(database.connection()) as connection, closing(connection.cursor()) as cursor:
            try:
                for key, *values in cursor.execute(sql, [decode(key, 1)[0] for key in keys]):
                    found[encode([key])] = dict(zip(whole.names, values))
                    used += sum(map(sys.getsizeof, values))
                    if used >= max_bytes or monotonic() > deadline:
                        break
            except sqlite3.Error:
                pass  # which one and why shows when each is read by itself
        return found

    def _short_row(self, database: peewee.Database, whole: Whole, place: Values) -> List[Values]:
        with _limit(database.connection()):
            try:
                return super()._short_row(database, whole, place)
            except (peewee.DataError, sqlite3.DataError):
                return []

    def _key_is_rowid(self, database: peewee.Database) -> bool:
        """Tell whether a single writer counts the key up, so that key order is commit order."""
        if self._source.query is not None or len(self._key) > 1:
            return False
        table = self._sql.quoted(self._source.table or "")
        columns = database.execute_sql(f"PRAGMA table_info({table})").fetchall()
        primary = [(name, kind.upper()) for _, name, kind, *_, place in columns if place]
        return primary == [(self._source.key, "INTEGER")]

    def _scans(self, database: peewee.Database, statement: Statement) -> bool:
        plan = database.execute_sql("EXPLAIN QUERY PLAN " + statement.sql, statement.parameters)
        return any(step[-1] == "USE TEMP B-TREE FOR ORDER BY" for step in plan.fetchall())

    def _place(self) -> str:
        return self._path


@contextmanager
def _limit(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Have SQLite refuse to read what is too long, where Python can tell it to."""
    if sys.version_info < (3, 11):
        yield connection
        return
    usual = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
    try:
        yield connection
    finally:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, usual)


def _text(raw: bytes) -> Union[str, bytes]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
