"""Whatever database a box has, its events arrive: the whole engine, one suite for every kind."""

from __future__ import annotations

import base64
import json
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from se3_uploader.agent import run_once

from .event_databases import Event, EventDatabase, SqlEvents
from .event_databases import event as stored
from .http_server import Server as Platform
from .payloads import VALIDATOR
from .servers import Server
from .site import Process, Site, Uploader, keys, numbers, sums

GROUP = {"group_name": {"": "VARCHAR(100)"}}
BY_TIME = {"key": "timestamp", "id": "id"}


def event(number: int, **changes: Any) -> Event:
    """An event that can be sent; its number is its identity_id, and its id by default."""
    return stored(number, **{"identity_id": str(number), "group_name": "staff", **changes})


@pytest.fixture
def site(database: EventDatabase, tmp_path: Path) -> Site:
    """An uploader's side of things, beside an empty event table."""
    database.create(GROUP)
    (tmp_path / "site").mkdir()
    return Site(tmp_path / "site")


def reading(database: EventDatabase, **source: Any) -> Dict[str, Any]:
    """The section ``source:`` that reads a database."""
    return {"url": database.url, "timestamp_unit": "ms", **source}


@pytest.mark.parametrize("order", [{}, BY_TIME], ids=["by id", "by time"])
def test_all_arrive_once_in_order(site: Site, database: EventDatabase, order: Any) -> None:
    """However rows are inserted and wherever times tie, they arrive in order, each once.

    After a restart nothing is sent again, and what is new goes on behind it.
    """
    many = 60 if database.engine == "mongodb" else 300
    shuffled = random.Random(7).sample(range(1, many + 1), many)
    database.add(event(n, timestamp=stored(n // 10)["timestamp"]) for n in shuffled)
    with Platform() as platform:
        config = site.configure(
            platform.url, source=reading(database, **order), endpoint={"max_in_flight": 1}
        )
        assert run_once(config) == 0
        assert numbers(platform) == list(range(1, many + 1))
        assert run_once(config) == 0
        database.add([event(many + 1)])
        assert run_once(config) == 0
    assert numbers(platform) == list(range(1, many + 2))
    assert len({request.key for request in platform.requests}) == many + 1
    assert site.account() == sums(seen=many + 1, delivered=many + 1)


def test_late_rows_arrive_once(site: Site, database: EventDatabase) -> None:
    """What is committed after later rows were sent arrives within lookback, also over a restart."""
    early, late, later = event(10), [event(5), event(10, id=9)], event(7)
    with Platform() as platform:
        config = site.configure(platform.url, source=reading(database, **BY_TIME))
        with database.late([later]):
            with database.late(late):
                database.add([event(1), early, event(20)])
                with Uploader(config) as uploader:
                    uploader.run()
                assert sorted(numbers(platform)) == [1, 10, 20]
            with Uploader(config) as uploader:
                uploader.run_for(20.0)
                assert sorted(numbers(platform)) == [1, 5, 10, 10, 20]
        with Uploader(config) as uploader:
            uploader.run_for(100.0)
    assert sorted(numbers(platform)) == [1, 5, 7, 10, 10, 20]
    assert site.account() == sums(seen=6, delivered=6)


def test_gaps_that_never_fill(site: Site, database: EventDatabase) -> None:
    """Inserts that were rolled back leave gaps: nothing waits for them, and they are forgotten.

    While lookback lasts a gap that fills after all is noticed; then the place has settled.
    """
    database.add(event(n) for n in range(1, 101) if n % 3)
    source = reading(database, **BY_TIME, poll_interval="5s")
    with Platform() as platform, Uploader(site.configure(platform.url, source=source)) as uploader:
        uploader.run(within=20.0)
        assert len(platform.requests) == 67
        uploader.run_for(30.0)
        database.add([event(99)])
        uploader.run_for(40.0)
        assert numbers(platform)[67:] == [99]
        before = uploader.queue.cursor.position
        database.add([event(101)])
        uploader.run_for(20.0)
        assert uploader.queue.cursor.settled == before != uploader.queue.cursor.position
    assert site.account() == sums(seen=69, delivered=69)


def test_a_clock_that_is_set_back(site: Site, database: EventDatabase) -> None:
    """Ordered by time, rows of a clock set back by an hour arrive, though far behind the place."""
    now = int(time.time() * 1000)
    hour = 3_600_000
    database.add(event(n, timestamp=now - 2 * hour + n) for n in range(1, 21))
    source = reading(database, **BY_TIME, poll_interval="20s")
    with Platform() as platform, Uploader(site.configure(platform.url, source=source)) as uploader:
        uploader.run()
        uploader.run_for(100.0)
        database.add([event(41, timestamp=now - hour)])
        uploader.run_for(20.0)
        assert uploader.queue.cursor.settled is not None
        database.add(event(n, timestamp=now - 3 * hour + n) for n in range(21, 41))
        uploader.run_for(500.0)
    assert sorted(numbers(platform)) == list(range(1, 42))
    assert site.account() == sums(seen=41, delivered=41)


@pytest.mark.parametrize("rows", [3, 40], ids=["fewer", "more"])
def test_a_wipe(site: Site, database: EventDatabase, rows: int) -> None:
    """After a wipe that restarts the ids everything new arrives, under keys of its own."""
    database.add(event(n) for n in range(1, 21))
    with Platform() as platform, Uploader(
        site.configure(platform.url, source=reading(database))
    ) as uploader:
        uploader.run()
        database.wipe()
        database.add(event(100 + n, id=n) for n in range(1, rows + 1))
        uploader.run(lambda: len(platform.requests) >= 20 + rows)
        uploader.run_for(30.0)
    expected = [*range(1, 21), *range(101, 101 + rows)]
    assert sorted(numbers(platform)) == expected
    assert len({request.key for request in platform.requests}) == len(expected)
    assert site.rows("SELECT max(number) FROM generation") == [(2,)]
    assert site.account() == sums(seen=20 + rows, delivered=20 + rows)


def test_the_server_restarts_in_the_middle(
    site: Site, database: EventDatabase, database_server: Optional[Server]
) -> None:
    """A database server that dies during a drain and comes back costs time, and no event."""
    if database_server is None:
        pytest.skip("SQLite has no server")
    many = 100 if database.engine == "mongodb" else 400
    database.add(event(n) for n in range(1, many + 1))
    with Platform() as platform, Uploader(
        site.configure(platform.url, source=reading(database))
    ) as uploader:
        uploader.run(lambda: len(platform.requests) >= 30)
        database_server.kill()
        try:
            uploader.run(lambda: uploader.engine.source_error is not None)
            assert "s3cret" not in uploader.engine.summary()
        finally:
            database_server.start()
        uploader.run(lambda: len(platform.requests) >= many)
        uploader.run()
    assert sorted(numbers(platform)) == list(range(1, many + 1))
    assert site.account() == sums(seen=many, delivered=many)


def test_types(site: Site, database: EventDatabase) -> None:
    """Decimals, times with a zone, binary pictures, JSON, NULL and huge text, valid on the wire."""
    moment = datetime(2026, 1, 1, 20, 0, 0, 123000, tzinfo=timezone(timedelta(hours=8)))
    quality = {"age": 30, "info": {"名": ["a", None, 1.5]}}
    values: Dict[str, Any] = {
        "score": Decimal("0.9300"),
        "timestamp": moment,
        "box_fiqa_info": json.dumps(quality),
        "spot_pic": base64.b64encode(b"\xff\xd8spot").decode(),
        "note": "多" * 1_000_000,
        "unset": None,
    }
    if database.engine == "mongodb":
        bson = pytest.importorskip("bson")
        values.update(score=bson.Decimal128("0.9300"), box_fiqa_info=quality)
    if database.engine == "sqlite":
        values.update(score=0.93, timestamp=moment.isoformat())
    if database.engine == "mysql":  # of the server's time zone, which is this machine's
        values.update(timestamp=moment.astimezone().replace(tzinfo=None))
    database.create({
        **GROUP,
        "score": {"": "DECIMAL(10, 4)", "sqlite": "REAL"},
        "timestamp": {"": "TEXT", "mysql": "TIMESTAMP(3) NULL", "postgresql": "TIMESTAMPTZ"},
        "box_fiqa_info": {"": "TEXT", "mysql": "JSON", "postgresql": "JSONB"},
        "note": {"": "TEXT", "mysql": "LONGTEXT"},
        "unset": {"": "VARCHAR(10)"},
    })  # fmt: skip
    database.add([event(1, **values)])
    with Platform() as platform:
        config = site.configure(platform.url, source=reading(database, timestamp_unit="auto"))
        assert run_once(config) == 0
    sent = platform.requests[0].json()
    VALIDATOR.validate(sent)
    assert sent["timestamp"] == 1767268800123
    assert sent["score"] == 0.93
    assert base64.b64decode(sent["reg_pic"]) == bytes(range(256))
    ext = sent["ext_data"]
    assert ext["spot_pic"] == values["spot_pic"]
    assert ext["box_fiqa_info"] == quality
    assert ext["note"] == values["note"]
    assert "unset" not in ext
    assert "upload_notes" not in ext


def test_paths_into_documents(site: Site, database: EventDatabase) -> None:
    """A field is found by a dotted path in a JSON column, and put at one; a query may join."""
    many = 30 if database.engine == "mongodb" else 300
    data: Any = {"camera": {"ip": "10.0.0.7", "lens": "wide"}, "floor": 3, "feature": [0.5] * 9}
    source: Dict[str, Any] = {
        "columns": {
            "identity_name": "person",
            "ext_data.device_ip": "data.camera.ip",
            "ext_data.place.floor": "data.floor",
        },
        "ignore_columns": ["data.feature"],
    }
    if isinstance(database, SqlEvents):
        kind = {"": "TEXT", "mysql": "JSON", "postgresql": "JSONB"}
        database.create({**GROUP, "data": kind})
        database.add(event(n, data=json.dumps(data)) for n in range(1, many + 1))
        database.run("DROP TABLE IF EXISTS person")
        database.run("CREATE TABLE person (pid VARCHAR(10) PRIMARY KEY, name VARCHAR(50))")
        database.run("INSERT INTO person VALUES (?, ?)", [(str(n), "李雷") for n in range(1, many)])
        source["query"] = (
            "SELECT e.id, e.identity_id, p.name AS person, e.group_name, e.timestamp, e.score,"
            " e.data FROM event e JOIN person p ON p.pid = e.identity_id"
            " WHERE e.group_name LIKE 'st%' -- all of them"
        )
    else:
        database.add(event(n, data=data, person="李雷") for n in range(1, many))
    with Platform() as platform:
        config = site.configure(platform.url, source=reading(database, **source))
        assert run_once(config) == 0
    assert sorted(numbers(platform)) == list(range(1, many))
    for request in platform.requests:
        sent = request.json()
        VALIDATOR.validate(sent)
        assert sent["identity_name"] == "李雷"
        assert sent["ext_data"]["device_ip"] == "10.0.0.7"
        assert sent["ext_data"]["place"] == {"floor": 3}
        assert sent["ext_data"]["data"] == {"camera": {"lens": "wide"}}


class Writers:
    """Programs that insert at once, each in transactions of its own, and commit out of order."""

    def __init__(self, database: SqlEvents, count: int, transactions: int) -> None:
        self.committed: List[int] = []
        self._database = database
        self._transactions = transactions
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(count)]
        self._failed: List[BaseException] = []

    def run(self) -> None:
        """Write everything."""
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        assert self._failed == []

    def _write(self, writer: int) -> None:
        try:
            with closing(self._database.connect()) as connection:
                self._insert(connection, writer, random.Random(writer))
        except Exception as error:
            self._failed.append(error)

    def _insert(self, connection: Any, writer: int, rng: random.Random) -> None:
        linger = threading.Event()
        for transaction in range(self._transactions):
            first = (writer * self._transactions + transaction) * 3
            rows = range(first, first + rng.randrange(1, 4))
            for number in rows:
                one = event(number)
                del one["id"]  # the server draws it, long before the commit
                marks = ", ".join(["%s"] * len(one))
                sql = f"INSERT INTO event ({', '.join(one)}) VALUES ({marks})"
                connection.cursor().execute(sql, list(one.values()))
                linger.wait(rng.random() * 0.05)
            if rng.random() < 0.1:
                connection.rollback()
            else:
                connection.commit()
                self.committed.extend(rows)


@pytest.mark.parametrize(
    ("count", "transactions"), [(8, 10), pytest.param(50, 40, marks=pytest.mark.slow)]
)
def test_writers_that_commit_out_of_order(
    site: Site, database: EventDatabase, count: int, transactions: int
) -> None:
    """Beside a running daemon many write at once and some roll back: none lost, none repeated."""
    if not isinstance(database, SqlEvents) or database.engine == "sqlite":
        pytest.skip("ids become visible in order where only one program writes at a time")
    serial = {"mysql": "BIGINT AUTO_INCREMENT PRIMARY KEY", "postgresql": "BIGSERIAL PRIMARY KEY"}
    database.create({**GROUP, "id": serial})
    writers = Writers(database, count, transactions)
    with Platform() as platform:
        config = site.configure(platform.url, source=reading(database, poll_interval="20ms"))
        with Process(config) as daemon:
            daemon.wait_for("ready")
            writers.run()
            platform.wait_until(lambda: len(platform.requests) >= len(writers.committed), 60.0)
            daemon.signal(signal.SIGTERM)
            assert daemon.end() == 0
        assert run_once(config) == 0
    assert sorted(numbers(platform)) == sorted(writers.committed)
    assert site.account()["delivered"] == len(writers.committed)
    in_order = [key for (key,) in site.rows("SELECT key FROM delivery ORDER BY id")]
    assert in_order != sorted(in_order), "no row came late, so that nothing was shown"


@pytest.mark.parametrize(
    ("count", "transactions"), [(8, 5), pytest.param(50, 10, marks=pytest.mark.slow)]
)
def test_writers_that_commit_late(
    site: Site, database: EventDatabase, count: int, transactions: int
) -> None:
    """Many write at once rows whose time was taken before, in any order: none lost, none repeated.

    So where only one program can write at a time, or where nothing is ever committed, rows come to
    stand behind others that were sent as well.
    """
    committed: List[int] = []
    linger, wall = threading.Event(), int(time.time() * 1000)

    def write(writer: int) -> None:
        rng = random.Random(writer)
        for transaction in range(transactions):
            first = (writer * transactions + transaction) * 3
            rows = range(first, first + rng.randrange(1, 4))
            taken = wall + int(time.monotonic() * 1000) % 1_000_000
            with suppress(RolledBack):
                with database.late(event(n, timestamp=taken) for n in rows):
                    linger.wait(rng.random() * 0.5)
                    if rng.random() < 0.1:
                        raise RolledBack
                committed.extend(rows)

    source = reading(database, **BY_TIME, poll_interval="20ms")
    with Platform() as platform, ThreadPoolExecutor(count) as pool:
        with Process(site.configure(platform.url, source=source)) as daemon:
            daemon.wait_for("ready")
            for done in [pool.submit(write, writer) for writer in range(count)]:
                done.result()
            platform.wait_until(lambda: len(platform.requests) >= len(committed), 240.0)
            daemon.signal(signal.SIGTERM)
            assert daemon.end() == 0
        assert run_once(site.configure(platform.url, source=source)) == 0
    assert sorted(numbers(platform)) == sorted(committed)
    assert site.account()["delivered"] == len(committed)
    in_order = [json.loads(key) for (key,) in site.rows("SELECT key FROM delivery ORDER BY id")]
    assert in_order != sorted(in_order), "no row came late, so that nothing was shown"


class RolledBack(Exception):
    """The program that writes has changed its mind."""


@pytest.mark.slow
def test_many_rows(site: Site, database: EventDatabase) -> None:
    """100,000 rows (5,000 documents of MongoDB) arrive, each once."""
    size = 5_000 if database.engine == "mongodb" else 100_000
    for first in range(1, size, 5_000):
        database.add(event(n, reg_pic=None, spot_pic=None) for n in range(first, first + 5_000))
    with Platform() as platform:
        assert run_once(site.configure(platform.url, source=reading(database))) == 0
    assert sorted(numbers(platform)) == list(range(1, size + 1))
    assert all(len(used) == 1 for used in keys(platform).values())
    assert site.account() == sums(seen=size, delivered=size)
