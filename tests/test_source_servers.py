"""What only a database server can do to us: run out of connections, cut one, take too long."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing, suppress
from typing import Iterator

import pytest

from se3_uploader.source import Source, SourceError, open_source

from .event_databases import EventDatabase, SqlEvents, event


@pytest.fixture
def server(database: EventDatabase) -> SqlEvents:
    """A table in MariaDB and in PostgreSQL, with an event."""
    if not isinstance(database, SqlEvents) or database.engine == "sqlite":
        pytest.skip("SQLite has no server, and MongoDB's driver mends its connections by itself")
    database.add([event(1)])
    return database


@pytest.fixture
def source(server: SqlEvents) -> Iterator[Source]:
    """The source that reads it."""
    with closing(open_source(server.source())) as opened:
        yield opened


def test_no_connection_left(server: SqlEvents, source: Source) -> None:
    """While others hold every connection that the server has we are told so; later we get one."""
    with ExitStack() as taken:
        with suppress(Exception):
            while True:
                taken.enter_context(closing(server.connect()))
        for _ in range(2):
            with pytest.raises(SourceError, match="we try again") as error:
                source.newest()
            assert "s3cret" not in str(error.value)
    deadline = time.monotonic() + 10
    while True:  # the server takes a moment to notice
        try:
            assert source.newest() == 1
            return
        except SourceError:
            assert time.monotonic() < deadline


def test_a_connection_that_the_server_ends(server: SqlEvents, source: Source) -> None:
    """An administrator, a failover or a timeout ends our connection: the call after next works."""
    assert source.newest() == 1
    if server.engine == "mysql":
        find, end = "SELECT id FROM information_schema.processlist WHERE id != {}", "KILL {}"
    else:
        find = "SELECT pid FROM pg_stat_activity WHERE datname = 'events' AND pid != {}"
        end = "SELECT pg_terminate_backend({})"
    own = {"mysql": "connection_id()", "postgresql": "pg_backend_pid()"}[server.engine]
    with closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute(find.format(own))
        others = [number for (number,) in cursor.fetchall()]
        for number in others:
            cursor.execute(end.format(number))
    assert others
    with pytest.raises(SourceError, match="we try again"):
        source.newest()
    assert source.newest() == 1


@pytest.mark.slow
def test_a_statement_that_takes_too_long(server: SqlEvents) -> None:
    """The server itself ends a read after 5 seconds, and says why; it does not go on in vain."""
    nap = {"mysql": "SLEEP(60)", "postgresql": "pg_sleep(60)"}[server.engine]
    query = f"SELECT e.*, {nap} AS nap FROM event e"
    with closing(open_source(server.source(query=query, table=None))) as source:
        began = time.monotonic()
        with pytest.raises(SourceError, match="took too long; is there an index"):
            source.rows([1], [], 2**20)
        assert 4 < time.monotonic() - began < 9


def test_a_value_that_a_query_cannot_turn(server: SqlEvents) -> None:
    """Where a query stumbles over what a row holds, the error does not repeat it."""
    for text in ("Zq7name", 'Zq7"name', "Zq7\nname"):
        server.remove()
        server.add([event(1, identity_name=text)])
        query = "SELECT e.*, CAST(e.identity_name AS DECIMAL(10, 2)) AS floor FROM event e"
        with closing(open_source(server.source(query=query, table=None))) as source:
            if server.engine == "mysql":  # takes it for 0
                assert source.rows([1], [], 2**20).rows[0].values["floor"] == 0
                continue
            with pytest.raises(SourceError, match="turns a value") as error:
                source.rows([1], [], 2**20)
            assert "Zq7" not in str(error.value)
