"""An empty event table in each kind of database, for the suites that run unchanged on all."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional

import pytest

from .event_databases import EventDatabase, MongoEvents, SqlEvents, sqlite_events
from .servers import SERVERS, Missing, Server


@pytest.fixture(scope="module", params=["sqlite", *SERVERS])
def database_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Optional[Server]]:
    """A running server of each kind, None for SQLite."""
    if request.param == "sqlite":
        yield None
        return
    try:
        with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as running:
            yield running
    except Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture
def database(database_server: Optional[Server], tmp_path: Path) -> EventDatabase:
    """An empty event table in each kind of database."""
    made: EventDatabase
    if database_server is None:
        made = sqlite_events(tmp_path / "event.db")
    elif database_server.url.startswith("mongodb"):
        made = MongoEvents(database_server.url)
    else:
        made = SqlEvents(database_server.url.partition(":")[0], database_server.url)
    made.create()
    return made
