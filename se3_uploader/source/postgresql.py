"""PostgreSQL, by psycopg2."""

from __future__ import annotations

import json
from select import select
from time import monotonic
from typing import Any, Callable, ClassVar

import peewee
import psycopg2
from psycopg2 import extensions

from .. import config
from .server import STATEMENT_TIMEOUT, arguments_of
from .sql import SqlSource
from .statements import Statement

_BYTEA, _TEXT, _JSON, _BPCHAR, _VARCHAR, _JSONB = 17, 25, 114, 1042, 1043, 3802
_DATE, _TIMESTAMP, _TIMESTAMPTZ = 1082, 1114, 1184


def make(source: config.Source) -> PostgresqlSource:
    """Make the source of a ``postgresql://user:password@host:port/database`` url."""
    return PostgresqlSource(source)


class PostgresqlSource(SqlSource):
    """A table in PostgreSQL; a key is drawn before the commit, so ids may appear late."""

    engine = "postgresql"

    _begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    _long_types = frozenset((_BYTEA, _TEXT, _BPCHAR, _VARCHAR))
    _errors = (peewee.PeeweeException, psycopg2.Error, OSError, ValueError)
    _advice: ClassVar = {
        "Connection refused": "is the server running, and are host and port of source.url right?",
        "authentication failed": "are user and password of source.url right?",
        "invalid input syntax": "source.query turns a value into a type that it is not of",
        "permission denied": "the user of source.url needs the right to SELECT",
        "relation": "is source.table right?",
        "column": "is source.columns right?",
        "database": "is the database in source.url right?",
        "too many clients": "the server has no connection left, we try again",
        "server closed": "the server went away, we try again",
        "terminating connection": "the server went away, we try again",
        "starting up": "we try again",
        "statement timeout": "a read took too long; is there an index on source.key?",
    }

    def _connect(self) -> peewee.Database:
        database = peewee.PostgresqlDatabase(**arguments_of(self._source.url))
        database.connect()
        self._database = database
        connection = database.connection()
        connection.autocommit = True
        for types, name, read in _READERS:
            extensions.register_type(extensions.new_type(types, name, read), connection)
        database.execute_sql(
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY;"
            f" SET statement_timeout = '{STATEMENT_TIMEOUT}s'; SET timezone = 'UTC'"
        )
        return database

    def _scans(self, database: peewee.Database, statement: Statement) -> bool:
        """Ask for the plan as if the table were large, where an index is worth its while."""
        with database.manual_commit():
            database.execute_sql(self._begin)
            for way in ("sort", "seqscan", "bitmapscan"):
                database.execute_sql(f"SET LOCAL enable_{way} = off")
            plan = database.execute_sql("EXPLAIN " + statement.sql, statement.parameters).fetchall()
            database.execute_sql("ROLLBACK")
        return any("Sort  (" in step and "Incremental" not in step for (step,) in plan)


def _wait(connection: Any) -> None:
    """Wait for the server, but not for ever: a statement_timeout is of no use if it has died.

    Raises OperationalError, upon which psycopg2 closes the connection.
    """
    deadline = monotonic() + 2 * STATEMENT_TIMEOUT
    while True:
        state = connection.poll()
        if state == extensions.POLL_OK:
            return
        reading, writing = (
            ([connection], []) if state == extensions.POLL_READ else ([], [connection])
        )
        if not any(select(reading, writing, [], max(0, deadline - monotonic()))):
            raise psycopg2.OperationalError("the server gives no answer")


extensions.set_wait_callback(_wait)


Reader = Callable[[Any, Any], Any]


def _leniently(read: Reader) -> Reader:
    """Hand a value that Python cannot hold over as text: it must not stop the rows beside it."""

    def read_or_text(text: Any, cursor: Any) -> Any:
        try:
            return read(text, cursor)
        except (ValueError, ArithmeticError, RecursionError, psycopg2.Error):
            return text

    return read_or_text


def _bytes(text: Any, cursor: Any) -> Any:
    return None if text is None else bytes(psycopg2.BINARY(text, cursor))


def _json(text: Any, _cursor: Any) -> Any:
    return None if text is None else json.loads(text)


_READERS = (
    ((_BYTEA,), "BYTES", _bytes),
    ((_JSON, _JSONB), "JSON", _leniently(_json)),
    ((_DATE,), "DATE", _leniently(extensions.PYDATE)),
    ((_TIMESTAMP,), "TIMESTAMP", _leniently(extensions.PYDATETIME)),
    ((_TIMESTAMPTZ,), "TIMESTAMPTZ", _leniently(extensions.PYDATETIMETZ)),
)
"""Types that are read in another way than psycopg2's own."""
