"""One suite for every kind of event database, each a real one."""

from __future__ import annotations

import json
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Iterator, List, Optional

import pytest
import yaml

from se3_uploader import payload
from se3_uploader.source import Key, Ref, Source, SourceError, open_source
from se3_uploader.source.inspect import inspect

from .event_databases import EventDatabase, SqlEvents, event
from .servers import Server

START = 1_767_225_600_000
"""When event 0 happened, epoch ms."""


@pytest.fixture
def source(database: EventDatabase) -> Iterator[Source]:
    """The source that reads it, with the default mapping."""
    with closing(open_source(database.source())) as opened:
        yield opened


def drained(source: Source, limit: int, after: Optional[Key] = None) -> List[Ref]:
    """Read page after page to the end."""
    refs: List[Ref] = []
    while True:
        page = source.look(after, limit).refs
        if not page:
            return refs
        refs += page
        after = page[-1].key


def test_an_empty_source(source: Source) -> None:
    """Nothing is there yet, and nothing goes wrong."""
    assert source.look(None, 10) == (None, None, [])
    assert source.newest() is None
    assert source.count(None, 10) == 0
    assert source.rows([1], ["reg_pic"], 1000) == ([], [1])
    assert source.between(0, 2**60, None, 10) == ([], None)
    assert source.last_seen(10) == {}


def test_rows_come_in_key_order_each_once(database: EventDatabase, source: Source) -> None:
    """Whatever the order of insertion and the size of the page, every row comes once, in order."""
    database.add(event(n) for n in sorted(range(1, 51), key=lambda n: n * 7919 % 53))
    refs = drained(source, limit=7)
    assert [ref.key for ref in refs] == list(range(1, 51))
    assert refs == drained(source, limit=50)
    assert len({ref.fingerprint for ref in refs}) == 50
    assert source.newest() == source.look(None, 1).newest == 50
    assert source.count(None, 1000) == 50
    assert source.count(45, 1000) == 5
    assert source.count(None, 20) == 20


def test_look_shows_the_row_at_the_position(database: EventDatabase, source: Source) -> None:
    """The row at the position comes with the same fingerprint as before, or not at all."""
    database.add(event(n) for n in range(1, 6))
    third = source.look(2, 1).refs[0]
    assert source.look(3, 1).at == third
    database.remove(3)
    assert source.look(3, 1).at is None
    database.add([event(3, identity_id="somebody else")])
    at = source.look(3, 1).at
    assert at is not None
    assert at.key == 3
    assert at.fingerprint != third.fingerprint


def test_a_wipe_shows(database: EventDatabase, source: Source) -> None:
    """After a wipe the position is beyond the newest row, and no row stands at it."""
    database.add(event(n) for n in range(1, 6))
    assert len(source.look(None, 10).refs) == 5
    database.remove()
    database.add([event(1, identity_id="new")])
    look = source.look(5, 10)
    assert look.at is None
    assert look.newest == 1
    assert look.refs == []


def test_whole_rows(database: EventDatabase, source: Source) -> None:
    """A row comes back as it was stored, its reference as look gave it; a missing key is told."""
    database.add([event(1), event(2, reg_pic=None, score=None, identity_name="")])
    refs = source.look(None, 10).refs
    rows, missing = source.rows([2, 3, 1], ["reg_pic", "spot_pic", "face_pic"], 2**20)
    assert missing == [3]
    assert [row.ref for row in rows] == [refs[1], refs[0]]
    stored = dict(rows[1].values)
    stored.pop("_id", None)
    assert stored == event(1)
    assert rows[0].values["reg_pic"] is None
    assert rows[0].values["identity_name"] == ""


def test_only_wanted_pictures_are_read(database: EventDatabase, source: Source) -> None:
    """A picture that nobody asked for is not in the row."""
    database.add([event(1)])
    ((row,), _) = source.rows([1], ["spot_pic"], 2**20)
    assert "reg_pic" not in row.values
    assert row.values["spot_pic"] == "c3BvdA=="
    ((row,), _) = source.rows([1], [], 2**20)
    assert not {"reg_pic", "spot_pic"} & set(row.values)


def test_rows_stop_at_max_bytes(database: EventDatabase, source: Source) -> None:
    """Reading stops after max_bytes, but never before the first row."""
    database.add(event(n, reg_pic=bytes(10_000)) for n in range(1, 10))
    rows, missing = source.rows(range(1, 10), ["reg_pic"], 25_000)
    assert [row.ref.key for row in rows] == [1, 2, 3]
    assert missing == []
    assert len(source.rows(range(1, 10), ["reg_pic"], 1).rows) == 1


def test_a_scan_by_time(database: EventDatabase, source: Source) -> None:
    """A half-open range of time is found page by page, whatever the order of the keys."""
    database.add(event(n, timestamp=START + (n * 37 % 101) * 1000) for n in range(1, 101))
    inside = [n for n in range(1, 101) if 20 <= n * 37 % 101 < 60]
    refs: List[Ref] = []
    found: List[Key] = []
    after: Optional[Key] = None
    while True:
        piece = source.between(START + 20_000, START + 60_000, after, 30)
        keys = source.keys_between(START + 20_000, START + 60_000, after, 30)
        assert keys.scanned_to == piece.scanned_to
        refs += piece.refs
        found += keys.keys
        after = piece.scanned_to
        if after is None:
            break
    assert found == [ref.key for ref in refs] == inside
    assert refs == [ref for ref in drained(source, 100) if ref.key in inside]


def test_last_seen(database: EventDatabase, source: Source) -> None:
    """The newest time of each device, among the newest rows."""
    database.add(event(n) for n in range(1, 10))
    database.add([event(10, device_ip=None), event(11, timestamp=-5)])
    assert source.last_seen(4) == {"192.168.1.2": START + 8000, "192.168.1.0": START + 9000}


def test_sub_devices(database: EventDatabase, source: Source) -> None:
    """A table of capture devices comes row by row."""
    database.add([event(1)])
    (row,) = source.sub_devices("event")
    assert row["device_ip"] == "192.168.1.1"
    if database.engine != "mongodb":  # where no collection is an empty one
        with pytest.raises(SourceError, match="nothing"):
            source.sub_devices("nothing")


def test_ties_are_told_apart_by_id(database: EventDatabase) -> None:
    """Ordered by time, rows of the same instant all come, once, on whatever page they fall."""
    database.add(event(n, timestamp=START + n // 10) for n in range(1, 41))
    with closing(open_source(database.source(key="timestamp", id="id"))) as source:
        for limit in (1, 3, 10, 100):
            refs = drained(source, limit)
            _, missing = source.rows([ref.key for ref in refs], [], 2**20)
            assert len(refs) == len({ref.key for ref in refs}) == 40
            assert missing == []
        assert source.newest() == refs[-1].key
        assert source.look(refs[20].key, 1).at == refs[20]
        assert source.count(refs[20].key, 100) == 19
        database.add([event(0, timestamp=START + 2)])
        before_the_tie = source.look(refs[18].key, 100).refs
        assert [ref.key for ref in before_the_tie[1:]] == [ref.key for ref in refs[19:]]


@pytest.mark.parametrize(
    ("types", "values"),
    [
        ({"": "VARCHAR(50)"}, ["1607062639.737444", "1607062639.737445", "zażółć %s '\"\\"]),
        ({"": "DOUBLE PRECISION"}, [1607062639.1, 1607062639.737444, 1607062639.7374442]),
    ],
    ids=["text", "float"],
)
def test_keys_that_are_no_integers(database: EventDatabase, types: Any, values: List[Any]) -> None:
    """A text or float key keeps its order and finds its row again, exactly."""
    database.create({"id": types})
    database.add(event(n, id=value) for n, value in enumerate(values))
    with closing(open_source(database.source())) as source:
        refs = drained(source, 1)
        assert len({ref.key for ref in refs}) == len(values)
        assert all(isinstance(ref.key, str) for ref in refs)
        rows, missing = source.rows([ref.key for ref in refs], [], 2**20)
        assert [row.values["id"] for row in rows] == values
        assert missing == []
        assert source.look(refs[1].key, 5).at == refs[1]


def test_keys_of_database_types(database: EventDatabase) -> None:
    """A decimal, or a time with its zone, is as good a key as any other."""
    first = datetime(2026, 1, 1, 12, 0, 0, 1000, tzinfo=timezone.utc)
    moments = [first, first + timedelta(milliseconds=1), first + timedelta(days=1)]
    for types, values in (
        (
            {"": "TEXT", "mysql": "TIMESTAMP(6)", "postgresql": "TIMESTAMPTZ"},
            moments if database.engine != "sqlite" else [str(moment) for moment in moments],
        ),
        (
            {"": "DECIMAL(30, 10)", "sqlite": "TEXT"},
            [Decimal("1.1000000001"), Decimal("12345678901234567890.1000000002")]
            if database.engine in ("mysql", "postgresql")
            else ["1.10", "1.20"],
        ),
    ):
        database.create({"id": types})
        database.add(event(n, id=value) for n, value in enumerate(values))
        with closing(open_source(database.source())) as source:
            refs = drained(source, 1)
            rows, missing = source.rows([ref.key for ref in refs], [], 2**20)
            assert [row.values["id"] for row in rows] == list(values)
            assert missing == []


def test_columns_of_many_types(database: EventDatabase) -> None:
    """Every type of column becomes part of a payload; an odd value costs no more than itself."""
    if database.engine == "mongodb":
        types: Any = {}
        extra = {"tall": 1.5, "document": {"a": {"b": "多"}}, "moment": datetime(2026, 1, 1)}
    else:
        types = {
            "tall": {"": "DECIMAL(10, 2)", "sqlite": "REAL"},
            "document": {"": "JSON", "sqlite": "TEXT", "postgresql": "JSONB"},
            "moment": {"": "TIMESTAMP", "postgresql": "TIMESTAMPTZ"},
            "unset": {"": "VARCHAR(10)"},
            "huge": {"": "TEXT", "mysql": "LONGTEXT"},
        }
        extra = {
            "tall": 1.5,
            "document": json.dumps({"a": {"b": "多"}}),
            "moment": "2026-01-01 00:00:00",
            "unset": None,
            "huge": "多" * 1_000_000,
        }
    database.create(types)
    database.add([event(1, **extra)])
    columns = {"identity_name": "document.a.b"}
    with closing(open_source(database.source(columns=columns, timestamp_unit="auto"))) as source:
        ((row,), _) = source.rows([1], ["reg_pic"], 2**20)
    mapping = payload.columns_of(database.source(columns=columns))
    assert payload.lookup(row.values, "document.a.b") == "多"
    assert payload.lookup(row.values, mapping.identity_name) == "多"
    assert float(row.values["tall"]) == 1.5
    if database.engine in ("mysql", "postgresql"):
        assert row.values["moment"] == datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert row.values.get("unset") is None
    assert row.values.get("huge") in (None, extra.get("huge"))


def test_a_value_too_large_is_not_loaded(database: EventDatabase) -> None:
    """A picture over 16 MiB is Unreadable, and the row comes all the same."""
    if database.engine == "mongodb":
        pytest.skip("a MongoDB document holds at most 16 MB")
    database.add([event(1, reg_pic=bytes(16 * 2**20 + 1), spot_pic="c3BvdA==")])
    with closing(open_source(database.source())) as source:
        ((row,), _) = source.rows([1], ["reg_pic", "spot_pic"], 2**20)
    assert isinstance(row.values["reg_pic"], payload.Unreadable)
    assert row.values["spot_pic"] == "c3BvdA=="
    assert row.ref.key == 1


def test_a_column_that_appears_later(database: EventDatabase, source: Source) -> None:
    """A firmware adds a column to the table: it comes with the next row."""
    database.add([event(1)])
    assert "mood" not in source.rows([1], [], 2**20).rows[0].values
    if isinstance(database, SqlEvents):
        database.run("ALTER TABLE event ADD COLUMN mood VARCHAR(10)")
    database.add([event(2, mood="glad")])
    assert source.rows([2], [], 2**20).rows[0].values["mood"] == "glad"


def test_a_query(database: EventDatabase) -> None:
    """A SELECT that joins, with quotes and percent signs, is read like a table."""
    if not isinstance(database, SqlEvents):
        pytest.skip("a collection is not queried in SQL")
    database.run("DROP TABLE IF EXISTS person")
    database.run("CREATE TABLE person (pid VARCHAR(10) PRIMARY KEY, name VARCHAR(50))")
    database.run("INSERT INTO person VALUES (?, ?)", [(f"p{n}", f"name {n}") for n in range(7)])
    database.add(event(n) for n in range(1, 51))
    query = (
        "SELECT e.id AS number, e.timestamp, e.score, e.identity_id, p.name AS identity_name,"
        " '100%' AS share FROM event e JOIN person p ON p.pid = e.identity_id"
        " WHERE p.name LIKE 'name%' -- all of them"
    )
    config = database.source(query=query, table=None, key="number")
    with closing(open_source(config)) as source:
        refs = drained(source, 9)
        assert [ref.key for ref in refs] == list(range(1, 51))
        ((row,), _) = source.rows([10], ["reg_pic"], 2**20)
        assert row.values["identity_name"] == "name 3"
        assert row.values["share"] == "100%"
        assert source.look(10, 1).at == row.ref
        assert source.problems() == []
        assert not source.ordered


def test_problems(database: EventDatabase) -> None:
    """What is wrong with the mapping is said before the first event is sent."""
    database.add(event(n, timestamp=START) for n in range(1, 20))
    said = {
        "fine": open_source(database.source()).problems(),
        "key": open_source(database.source(key="number")).problems(),
        "columns": open_source(database.source(columns={"score": "likeness"})).problems(),
        "devices": open_source(database.source(columns={"ep_ip": "address"})).problems(),
        "ties": open_source(database.source(key="timestamp")).problems(),
        "index": open_source(database.source(key="timestamp", id="id")).problems(),
    }
    assert said["fine"] == said["devices"] == []
    assert "number" in said["key"][0]
    assert "likeness" in said["columns"][0]
    assert "share a value" in said["ties"][0]
    assert any("index" in problem for problem in said["index"])


def test_a_key_that_is_not_exact(database: EventDatabase) -> None:
    """A single-precision key does not find its own row again, which check says."""
    if database.engine not in ("mysql", "postgresql"):
        pytest.skip("has no single-precision numbers")
    database.create({"id": {"mysql": "FLOAT", "postgresql": "REAL"}})
    database.add([event(1, id=1.1)])
    with closing(open_source(database.source())) as source:
        assert "FLOAT" in source.problems()[0]


def test_a_position_made_with_another_key(database: EventDatabase, source: Source) -> None:
    """When key or id were changed, the old position is refused with advice."""
    database.add([event(1)])
    with pytest.raises(SourceError, match=r"source\.name"):
        source.look('["a","b"]', 1)
    assert len(source.look(None, 1).refs) == 1


def test_a_table_that_is_not_there(database: EventDatabase) -> None:
    """The error names what is missing; once it is there, the same source reads it."""
    if database.engine == "mongodb":
        pytest.skip("where no collection is an empty one")
    assert isinstance(database, SqlEvents)
    database.run("DROP TABLE event")
    with closing(open_source(database.source())) as source:
        with pytest.raises(SourceError, match=r"event.*source\.table"):
            source.look(None, 1)
        database.create()
        database.add([event(1)])
        assert len(source.look(None, 1).refs) == 1


def test_a_server_that_restarts(
    database_server: Optional[Server], database: EventDatabase, source: Source
) -> None:
    """While the server is away every call says so, without the password; then all goes on."""
    if database_server is None:
        pytest.skip("SQLite has no server")
    database.add(event(n) for n in range(1, 11))
    first = source.look(None, 5).refs
    database_server.kill()
    try:
        for call in (lambda: source.look(5, 5), source.newest):
            with pytest.raises(SourceError) as error:
                call()
            assert "s3cret" not in str(error.value)
            assert error.value.__cause__ is None
    finally:
        database_server.start()
    assert [ref.key for ref in first + source.look(5, 5).refs] == list(range(1, 11))


@pytest.mark.slow
def test_a_server_that_hangs(
    database_server: Optional[Server], database: EventDatabase, source: Source
) -> None:
    """A server that accepts and says nothing holds the engine up for no more than 15 seconds."""
    if database_server is None:
        pytest.skip("SQLite has no server")
    database.add([event(1)])
    assert source.newest() == 1
    with database_server.frozen():
        for _ in ("on the open connection", "on a new one"):
            began = time.monotonic()
            with pytest.raises(SourceError):
                source.newest()
            assert time.monotonic() - began < 15
    assert source.newest() == 1


def test_wrong_password(database: EventDatabase) -> None:
    """The error says what to look at, and nothing that is secret."""
    if database.engine != "mysql":
        pytest.skip("only the MariaDB of the tests asks for a password")
    url = database.url.replace("s3cret", "wr%40ng")
    with pytest.raises(SourceError, match=r"user and password of source\.url") as error:
        open_source(database.source(url=url)).newest()
    assert "wr%40ng" not in str(error.value)
    assert "wr@ng" not in str(error.value)


def test_we_cannot_write(database: EventDatabase, source: Source) -> None:
    """Even a statement that writes is refused by the connection that we read with."""
    if not isinstance(database, SqlEvents):
        pytest.skip("MongoDB has no read-only sessions")
    database.add([event(1)])
    source.look(None, 1)
    connection: Any = source._database  # type: ignore[attr-defined]
    with pytest.raises(Exception, match=r"(?i)read.?only"):
        connection.execute_sql("DELETE FROM event")
    assert source.count(None, 10) == 1


def test_settle(database: EventDatabase) -> None:
    """Rows too young for their pictures to be there wait, and older ones do not."""
    database.add(event(n) for n in range(1, 4))
    database.add([event(4, timestamp=4_000_000_000_000)])
    with closing(open_source(database.source(settle=3600))) as source:
        look = source.look(None, 10)
        assert [ref.key for ref in look.refs] == [1, 2, 3]
        assert look.newest == 4
        assert source.changed()


@pytest.mark.slow
def test_many_rows(database: EventDatabase, source: Source) -> None:
    """A large table is read to the end in pages, every row once."""
    size = 5_000 if database.engine == "mongodb" else 100_000
    for first in range(1, size, 5_000):
        database.add(event(n, reg_pic=None) for n in range(first, first + 5_000))
    refs = drained(source, 5_000)
    assert [ref.key for ref in refs] == list(range(1, size + 1))
    assert source.count(None, 2 * size) == size


def test_inspect(database: EventDatabase) -> None:
    """The table of events is found among others, and its mapping proposed."""
    database.add(event(n) for n in range(1, 4))
    if isinstance(database, SqlEvents):
        database.run("DROP TABLE IF EXISTS person")
        database.run("CREATE TABLE person (pid VARCHAR(10) PRIMARY KEY, name VARCHAR(50))")
    found = inspect(database.url)
    table = found.tables[0]
    assert (table.name, table.rows, table.missing) == ("event", 3, ["group_name"])
    assert "s3cret" not in found.proposal
    section = yaml.safe_load(found.proposal)["source"]
    assert section["table"] == "event"
    assert section.get("profile") == "se3"
