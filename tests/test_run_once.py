"""The main job: what a box's database holds reaches the platform, as the protocol says, once."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Dict

import pytest

from se3_uploader.agent import run_once

from .http_server import DROP, Reply, Server
from .payloads import VALIDATOR
from .site import Process, Site, event, keys, number_of, numbers, refusing, sums

NAMES = [
    "张伟", "李雷 韩梅梅", 'O\'Brien "x" \\ /', "😀👨‍👩‍👧", "a\x01\x1f\x7f\t\r\nb", "ß é ﷽",
    "", "null", "%s {} ${x} <b>&amp;", "\u202eright to left", "\ufeffbom", "\ud7ff\ue000\uffff",
]  # fmt: skip


def held_out(number: int, rng: random.Random) -> Dict[str, Any]:
    """A row with anything in it that a box may write and a platform must be able to take."""

    def maybe(*values: Any) -> Any:
        return rng.choice((None, *values))

    raw = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 400)))
    return {
        "identity_id": str(number),
        "identity_name": rng.choice(NAMES),
        "group_id": rng.choice(("g-1", "组")),
        "group_name": maybe("", "员工", 'group "1"'),
        "reg_pic": maybe(raw, base64.b64encode(raw).decode()),
        "timestamp": 1_767_225_600_000 + rng.randrange(10**9),
        "score": rng.choice((0.0, 1.0, 0.16, 1 / 3, 97.25)),
        "device_ip": maybe("192.168.1.25"),
        "ep_id": maybe("", "AKOPKKKKK__192.168.1.25"),
        "spot_pic": maybe(raw[::-1], base64.b64encode(raw[::-1]).decode()),
        "face_pic": maybe(b"never sent under its own name"),
        "person_type": maybe(1, 2, 3, 4, 5),
        "device_type": maybe("0", "4"),
        "grab_fiqa_info": maybe("", '{"confidence": 90, "rect": {"top": 420, "left": 1.5}}'),
        "box_fiqa_info": maybe('{"age": 4, "success": [], "info": {"partial": false}}'),
        "dev_sno": maybe("ROW-SNO"),
    }


def expected(row: Dict[str, Any]) -> Dict[str, Any]:
    """What protocol section 1 makes of a row, written down from its table and nothing else."""

    def text_of(stored: Any) -> str:
        return stored if isinstance(stored, str) else base64.b64encode(stored).decode()

    sno = row["dev_sno"] or "BOX"
    ext: Dict[str, Any] = {
        "dev_sno": sno,
        "person_type": row["person_type"] or 1,
        "grab_fiqa_info": json.loads(row["grab_fiqa_info"] or "{}"),
        "box_fiqa_info": json.loads(row["box_fiqa_info"] or "{}"),
    }
    if row["device_ip"]:
        ext["device_ip"] = row["device_ip"]
    if row["ep_id"] or row["device_ip"]:
        ext["ep_id"] = row["ep_id"] or f"{sno}__{row['device_ip']}"
    if row["device_type"]:
        ext["device_type"] = row["device_type"]
    if row["spot_pic"]:
        ext["spot_pic"] = text_of(row["spot_pic"])
    if row["group_name"]:
        ext["group_id"] = row["group_id"]  # "all Event fields": it has no other place then
    event = {
        "identity_id": row["identity_id"],
        "identity_name": row["identity_name"],
        "group_name": row["group_name"] or row["group_id"],
        "timestamp": row["timestamp"],
        "score": row["score"],
        "ext_data": ext,
    }
    if row["reg_pic"]:
        event["reg_pic"] = text_of(row["reg_pic"])
    return event


def test_thousands_of_rows_arrive_once_and_as_the_protocol_says(tmp_path: Path) -> None:
    """Every field of 2,000 rows of all shapes arrives, valid, exactly once, under its own key.

    A second run sends nothing, since nothing is left to be sent.
    """
    site, rng = Site(tmp_path), random.Random(7)
    rows = {number: held_out(number, rng) for number in range(1, 2001)}
    site.add(*rows.values())
    with Server() as platform:
        config = site.configure(platform.url)
        assert run_once(config) == 0
        assert run_once(config) == 0
        requests = platform.requests
    assert sorted(numbers(platform)) == list(rows)
    assert len({request.key for request in requests}) == len(rows)
    for request in requests:
        assert request.json() == expected(rows[number_of(request)])
        VALIDATOR.validate(request.json())
        assert request.headers["content-type"] == "application/json; charset=utf-8"
        assert request.headers["user-agent"].startswith("se3-uploader/")
    assert site.account() == sums(seen=2000, delivered=2000)


def test_names_arrive_byte_for_byte(tmp_path: Path) -> None:
    """Chinese, quotes, emoji and control characters are on the wire as the database holds them."""
    site = Site(tmp_path)
    site.add(*(event(number, identity_name=name) for number, name in enumerate(NAMES)))
    with Server() as platform:
        assert run_once(site.configure(platform.url)) == 0
    for request in platform.requests:
        name = NAMES[number_of(request)]
        sent = json.loads(request.body.decode("utf-8"))["identity_name"]
        assert sent.encode("utf-8") == name.encode("utf-8")
    assert len(platform.requests) == len(NAMES)


def test_unusable_rows_die_alone(tmp_path: Path) -> None:
    """A row that cannot be built is dead with its reason, and all around it arrive.

    NaN (stored as NULL by SQLite, or as text) and infinity never reach the wire, nor does text
    that is no UTF-8.
    """
    site = Site(tmp_path)
    broken = {
        "score: is not a finite number": {"score": float("inf")},
        "score: is missing": {"score": float("nan")},
        "timestamp: is missing": {"timestamp": None},
        "identity_name: is not valid UTF-8": {"identity_name": b"\xff\xfe"},
        "group_name: is missing, and so is group_id": {"group_name": None},
    }
    for number, changes in enumerate(broken.values()):
        site.add(10 * number + 1, event(10 * number + 2, **changes), 10 * number + 3)
    site.add(event(90, score="nan"))
    with Server() as platform:
        config = site.configure(platform.url)
        assert run_once(config) == 1
    good = [10 * number + place for number in range(len(broken)) for place in (1, 3)]
    assert sorted(numbers(platform)) == good
    assert not any(b"NaN" in r.body or b"Infinity" in r.body for r in platform.requests)
    reasons = [reason for (reason,) in site.rows("SELECT reason FROM delivery WHERE state = 2")]
    assert {f"unusable: {reason}" for reason in broken} <= set(reasons)
    assert site.account() == sums(seen=16, delivered=10, dead=6)


def test_exit_codes_while_the_platform_is_away(tmp_path: Path) -> None:
    """75 with something pending, which is not forgotten; 0 once it is delivered; 1 for the dead."""
    site = Site(tmp_path)
    site.add(1, 2, 3)
    quick = {"base": "10ms", "cap": "20ms", "reject_after": 1}
    with Server(Reply(503)) as platform:
        config = site.configure(platform.url, retry=quick)
        assert run_once(config) == 75
        assert site.account() == sums(seen=3, pending=3)
        platform.script = refusing([], Reply())
        asked = len(platform.requests)
        assert run_once(config) == 0
        assert sorted(numbers(platform)[asked:]) == [1, 2, 3]
        site.add(4)
        platform.script = Reply(422)
        assert run_once(config) == 1
    assert site.account() == sums(seen=4, delivered=3, dead=1)


def test_reports_that_were_kept_are_delivered_too(tmp_path: Path) -> None:
    """What keep: all left behind is pending like any event, and one run delivers all of it."""
    site = Site(tmp_path)
    site.add(1)
    with Server() as events, Server(Reply(503)) as reports:
        section = {"endpoints": [{"url": reports.url, "name": "status"}], "keep": "all"}
        with site.uploader(events, device_status=section) as uploader:
            for number in range(5):
                uploader.engine.report({"gateway_name": str(number)})
            uploader.run(lambda: len(reports.requests) == 1)
        assert site.account("status") == sums(seen=5, pending=5)
        reports.script = Reply()
        assert run_once(uploader.engine.config) == 0
    assert site.account("status") == sums(seen=5, delivered=5)
    assert numbers(events) == [1]


def test_a_mapping_that_is_added_later_sends_nothing_again(tmp_path: Path) -> None:
    """The events are the same ones, under the same keys, whatever else is sent of them."""
    site = Site(tmp_path)
    site.run("ALTER TABLE event ADD COLUMN camera TEXT")
    site.add(*(event(number, camera=f"10.0.0.{number}") for number in (1, 2, 3)))
    with Server() as platform:
        assert run_once(site.configure(platform.url)) == 0
        site.add(event(4, camera="10.0.0.4"))
        source = {"columns": {"ext_data.device_ip": "camera"}}
        assert run_once(site.configure(platform.url, source=source)) == 0
    assert sorted(numbers(platform)) == [1, 2, 3, 4]
    assert platform.requests[-1].json()["ext_data"]["device_ip"] == "10.0.0.4"


def test_a_required_column_that_is_not_there_kills_no_event(tmp_path: Path) -> None:
    """A slip in the mapping is told, events wait in the source, and arrive once it is mended."""
    site = Site(tmp_path)
    site.add(1, 2, 3)
    with Server() as platform:
        config = site.configure(platform.url, source={"columns": {"score": "scroe"}})
        with Process(config, "--once") as process:
            process.wait_for("no such column: scroe; is source.columns right?")
            process.popen.kill()
        assert site.account() == sums()
        assert run_once(site.configure(platform.url)) == 0
    assert sorted(numbers(platform)) == [1, 2, 3]
    assert site.account() == sums(seen=3, delivered=3)


def test_copies_outlive_the_source(tmp_path: Path) -> None:
    """A run that cannot deliver keeps copies: what the box deletes meanwhile arrives all the same,
    under the same key and with the same content."""
    site = Site(tmp_path)
    site.add(*(event(number, spot_pic=b"\xff\xd8 %d" % number) for number in range(1, 31)))
    with Server(DROP) as platform:
        config = site.configure(platform.url, retry={"base": "10ms", "cap": "20ms"})
        assert run_once(config) == 75
        before = keys(platform)
        site.remove()
        platform.script = Reply()
        asked = len(platform.requests)
        assert run_once(config) == 0
    arrived = platform.requests[asked:]
    assert sorted(map(number_of, arrived)) == list(range(1, 31))
    for request in arrived:
        number = number_of(request)
        assert before.get(number, {request.key}) == {request.key}
        assert base64.b64decode(request.json()["ext_data"]["spot_pic"]) == b"\xff\xd8 %d" % number


def test_two_do_not_deliver_at_once(tmp_path: Path) -> None:
    """While one process delivers from an outbox a second `run --once` leaves at once, with 75."""
    site = Site(tmp_path)
    site.add(1)
    with Server(Reply(delay=5)) as platform:
        config = site.configure(platform.url)
        with Process(config, "--once") as first:
            platform.wait_for(1)
            with Process(config, "--once") as second:
                assert second.end() == 75
            assert "delivers from this outbox already" in second.log
            platform.stop()
            first.popen.kill()
        platform.start()
    assert numbers(platform) == [1]


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_the_event_database_is_never_written(tmp_path: Path, journal: str) -> None:
    """Its bytes and those of its WAL are the same after everything was delivered from them.

    That holds with a writer attached, so that a WAL with frames in it is there to be checkpointed.
    """
    site = Site(tmp_path, journal=journal)
    with closing(sqlite3.connect(site.events)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        site.add(*range(1, 200))
        writer.execute("SELECT count(*) FROM event").fetchone()
        before = state_of(site)
        assert (journal == "wal") == any(name.endswith("-wal") for name in before)
        with Server() as platform:
            assert run_once(site.configure(platform.url)) == 0
        assert len(platform.requests) == 199
        assert state_of(site) == before


def state_of(site: Site) -> Dict[str, str]:
    """Hash the files of the event database; -shm is shared memory, which readers lock."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in site.folder.glob("event.db*")
        if not path.name.endswith("-shm")
    }


def test_the_wal_is_not_pinned(tmp_path: Path) -> None:
    """While requests hang nothing of the event database is held: a checkpoint gets through."""
    site = Site(tmp_path)
    site.add(*range(1, 50))
    with Server(Reply(delay=60)) as platform:
        config = site.configure(platform.url)
        with Process(config, "--once"):
            platform.wait_for(1)
            with closing(sqlite3.connect(site.events)) as box:
                box.execute("INSERT INTO event (identity_id) VALUES ('x')")
                box.commit()
                busy, frames, moved = box.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                assert (busy, frames, moved) == (0, 0, 0)


def test_rows_written_during_the_run_are_left_or_sent_once(tmp_path: Path) -> None:
    """A box that keeps writing neither keeps `run --once` from ending nor gets rows sent twice."""
    site = Site(tmp_path)
    site.add(*range(1, 301))
    stop = threading.Event()

    def box() -> None:
        number = 1000
        while not stop.wait(0.005):
            number += 1
            site.add(number)

    with Server() as platform:
        config = site.configure(platform.url)
        writing = threading.Thread(target=box)
        writing.start()
        try:
            assert run_once(config) == 0
        finally:
            stop.set()
            writing.join()
        assert run_once(config) == 0
        with closing(sqlite3.connect(site.events)) as database:
            held = [int(one) for (one,) in database.execute("SELECT identity_id FROM event")]
    assert sorted(numbers(platform)) == held


def test_what_is_too_young_waits_for_another_time(tmp_path: Path) -> None:
    """Rows that source.settle keeps back are there and not delivered: 75, and no event is sent."""
    site = Site(tmp_path)
    now = int(time.time() * 1000)
    site.add(event(1, timestamp=now - 7_200_000), event(2, timestamp=now))
    with Server() as platform:
        assert run_once(site.configure(platform.url, source={"settle": "1h"})) == 75
        assert numbers(platform) == [1]
        assert run_once(site.configure(platform.url)) == 0
