"""MariaDB and MySQL, by PyMySQL."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, ClassVar, Dict

import peewee
import pymysql
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions, convert_datetime

from .. import config
from .server import CONNECT_TIMEOUT, STATEMENT_TIMEOUT, arguments_of
from .sql import SqlSource
from .statements import Statement


def make(source: config.Source) -> MysqlSource:
    """Make the source of a ``mysql://user:password@host:port/database`` url."""
    return MysqlSource(source)


class MysqlSource(SqlSource):
    """A table in MariaDB or MySQL; a key is drawn before the commit, so ids may appear late."""

    engine = "mysql"

    _begin = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"
    _quote = "`"
    _long_types = frozenset(
        (
            FIELD_TYPE.VARCHAR,
            FIELD_TYPE.VAR_STRING,
            FIELD_TYPE.STRING,
            FIELD_TYPE.TINY_BLOB,
            FIELD_TYPE.BLOB,
            FIELD_TYPE.MEDIUM_BLOB,
            FIELD_TYPE.LONG_BLOB,
            FIELD_TYPE.JSON,
        )
    )
    _errors = (
        peewee.PeeweeException,
        pymysql.MySQLError,
        OSError,
        ValueError,
        TypeError,  # an option in the url that the driver does not know
        RuntimeError,  # a way to log in that needs the package cryptography
    )
    _advice: ClassVar = {
        "Can't connect": "is the server running, and are host and port of source.url right?",
        "Access denied": "are user and password of source.url right, and may the user SELECT?",
        "Unknown database": "is the database in source.url right?",
        "doesn't exist": "is source.table right?",
        "Unknown column": "is source.columns right?",
        "Too many connections": "the server has none left, we try again",
        "Lost connection": "the server went away, we try again",
        "execution time": "a read took too long; is there an index on source.key?",
        "max_statement_time": "a read took too long; is there an index on source.key?",
    }

    def _connect(self) -> peewee.Database:
        arguments: Dict[str, Any] = {
            "charset": "utf8mb4",  # older peewee asks for UTF-8 of three bytes, without emoji
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": 2 * STATEMENT_TIMEOUT,
            "write_timeout": 2 * STATEMENT_TIMEOUT,
            "conv": {**conversions, FIELD_TYPE.TIMESTAMP: _utc},
        }
        database = peewee.MySQLDatabase(**{**arguments, **arguments_of(self._source.url)})
        database.connect()
        self._database = database
        database.connection().autocommit(True)
        ((version,),) = database.execute_sql("SELECT VERSION()").fetchall()
        limit = (
            f"max_statement_time = {STATEMENT_TIMEOUT}"
            if "mariadb" in version.lower()
            else f"max_execution_time = {STATEMENT_TIMEOUT * 1000}"
        )
        database.execute_sql(f"SET SESSION {limit}, time_zone = '+00:00'")
        database.execute_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return database

    def _scans(self, database: peewee.Database, statement: Statement) -> bool:
        plan = database.execute_sql("EXPLAIN " + statement.sql, statement.parameters)
        return any("filesort" in str(step[-1]) for step in plan.fetchall())


def _utc(text: Any) -> Any:
    """Read a TIMESTAMP, which the server gives in the time zone of the session."""
    moment = convert_datetime(text)
    return moment.replace(tzinfo=timezone.utc) if isinstance(moment, datetime) else moment
