"""Sample events: a database like the box's own, filled with people who do not exist.

Everything follows from a seed, so that two machines make the same events (the bytes of a drawn
picture also depend on the version of pillow).
"""

# ruff: noqa: S311  (sample data, not secrets)

from __future__ import annotations

import json
import random
import sqlite3
from functools import lru_cache
from itertools import islice
from typing import Any, Dict, Iterable, Iterator, NamedTuple, Optional

Event = Dict[str, Any]
"""Column of the event table -> value, without the id, which the database gives."""

DEV_SNO = "TJGSDX000120190726103455"
"""The sample box's authorisation code; what an engine knows and writes into its rows."""

CREATE_EVENT = """
CREATE TABLE IF NOT EXISTS event (
  id             INTEGER PRIMARY KEY AUTOINCREMENT,
  identity_id    TEXT NOT NULL,
  identity_name  TEXT NOT NULL,
  group_id       TEXT,
  group_name     TEXT,
  reg_pic        BLOB,              -- registered face
  timestamp      INTEGER NOT NULL,  -- milliseconds
  score          REAL NOT NULL,
  device_ip      TEXT,
  ep_id          TEXT,
  spot_pic       BLOB,              -- large picture of the scene
  face_pic       BLOB,              -- small picture: the face cut out
  person_type    INTEGER,
  device_type    TEXT,
  grab_fiqa_info TEXT,              -- JSON
  box_fiqa_info  TEXT,              -- JSON
  dev_sno        TEXT
)
"""

EMPLOYEE, VISITOR, BLACKLIST, STRANGER, VIP = 1, 2, 3, 4, 5
"""person_type, protocol section 1."""


class Person(NamedTuple):
    """Somebody registered with the box."""

    identity_id: str
    name: str
    group_id: str
    group_name: Optional[str]
    person_type: Optional[int]


class Camera(NamedTuple):
    """A capture device (ep)."""

    ip: str
    name: str
    device_type: str


PEOPLE = (
    Person("10001", "王小明", "g-rd", "研发部", EMPLOYEE),
    Person("10002", "李娜", "g-rd", "研发部", EMPLOYEE),
    Person("10003", "陈静怡", "g-sales", "销售部", EMPLOYEE),
    Person("10004", "欧阳志远", "g-sales", "销售部", None),
    Person("10005", "Alice Johnson", "g-office", "Office", EMPLOYEE),
    Person("10006", 'Michael "Mick" O\'Brien', "g-office", "Office", EMPLOYEE),
    Person("10007", "Zoë Müller", "g-office", None, EMPLOYEE),
    Person("10008", "张伟 (David Zhang)", "g-rd", "研发部", EMPLOYEE),
    Person("10009", "Priya Raman", "g-rd", "研发部", None),
    Person("10010", "赵雅琪", "g-hr", "人事部", EMPLOYEE),
    Person("20001", "刘洋", "g-visitor", "访客 Visitors", VISITOR),
    Person("20002", "Tom Baker", "g-visitor", "访客 Visitors", VISITOR),
    Person("20003", "Sofia García", "g-visitor", "访客 Visitors", VISITOR),
    Person("30001", "孙某", "g-black", "黑名单", BLACKLIST),
    Person("50001", "周总 ⭐", "g-vip", "VIP", VIP),
    Person("50002", "Dr. Emma Clarke", "g-vip", "VIP", VIP),
)
CAMERAS = (
    Camera("192.168.1.101", "north gate", "0"),
    Camera("192.168.1.102", "lobby 大厅", "1"),
    Camera("192.168.1.103", "car park", "3"),
    Camera("192.168.1.104", "server room door", "4"),
)
STRANGERS = 6
"""Different faces among those whom nobody knows."""


def connect(path: str) -> sqlite3.Connection:
    """Open an event database as the box's engine does: WAL mode, the table made if need be."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(CREATE_EVENT)
    db.commit()
    return db


def events(
    *, start_ms: int, step_ms: int = 1000, seed: int = 0, pictures: bool = True
) -> Iterator[Event]:
    """Events without end: the first at start_ms (epoch milliseconds), one each step_ms.

    pictures draws them with pillow (ModuleNotFoundError without the extra ``pictures``); otherwise
    the picture columns hold a few bytes that only look like a JPEG.
    """
    rng = random.Random(seed)
    timestamp = start_ms
    while True:
        yield event(rng, timestamp, pictures=pictures)
        timestamp += step_ms


def event(rng: random.Random, timestamp: int, *, pictures: bool = True) -> Event:
    """One passage at a time (epoch milliseconds): who, where and how good the face was."""
    camera_number = rng.randrange(len(CAMERAS))
    if rng.random() < 0.2:
        look = len(PEOPLE) + rng.randrange(STRANGERS)
        number = str(rng.randint(60000, 99999))
        person = Person(number, "stranger", "g-default", "default_group", STRANGER)
        score = round(rng.uniform(0.05, 0.45), 4)
    else:
        look = rng.randrange(len(PEOPLE))
        person = PEOPLE[look]
        score = round(rng.uniform(0.82, 0.99), 4)
    camera = CAMERAS[camera_number]
    registered, spot, face = (_drawn if pictures else _tiny)(look, camera_number)
    return {
        "identity_id": person.identity_id,
        "identity_name": person.name,
        "group_id": person.group_id,
        "group_name": person.group_name,
        "reg_pic": None if person.person_type == STRANGER else registered,
        "timestamp": timestamp,
        "score": score,
        "device_ip": camera.ip,
        "ep_id": f"{DEV_SNO}__{camera.ip}" if rng.random() < 0.9 else None,
        "spot_pic": spot,
        "face_pic": face,
        "person_type": person.person_type,
        "device_type": camera.device_type,
        "grab_fiqa_info": json.dumps(_grab_fiqa(rng)) if camera.device_type == "1" else None,
        "box_fiqa_info": json.dumps(_box_fiqa(rng)),
        "dev_sno": DEV_SNO,
    }


def insert(db: sqlite3.Connection, rows: Iterable[Event]) -> None:
    """Write events in one transaction."""
    with db:
        for row in rows:
            columns, values = ", ".join(row), ", ".join("?" * len(row))
            db.execute(f"INSERT INTO event ({columns}) VALUES ({values})", tuple(row.values()))


def insert_events(
    path: str, n: int, *, start_ms: int, step_ms: int = 1000, seed: int = 0, pictures: bool = True
) -> None:
    """Write n events (see events) into the database at path, which is made if it is not there."""
    db = connect(path)
    try:
        rows = events(start_ms=start_ms, step_ms=step_ms, seed=seed, pictures=pictures)
        for done in range(0, n, 500):
            insert(db, islice(rows, min(500, n - done)))
    finally:
        db.close()


@lru_cache(maxsize=None)
def _drawn(look: int, camera: int) -> tuple[bytes, bytes, bytes]:
    """Registered face, scene and face cut out of it; drawn once for each person and camera."""
    from . import pictures

    spot, face = pictures.passage(look, camera)
    return pictures.registered_face(look), spot, face


def _tiny(look: int, camera: int) -> tuple[bytes, bytes, bytes]:
    """Stand-ins of a few bytes each, different for each person and camera."""
    parts = (b"reg", look, 0), (b"spot", look, camera), (b"face", look, camera)
    registered, spot, face = (b"\xff\xd8\xff\xe0%s-%d-%d\xff\xd9" % part for part in parts)
    return registered, spot, face


def _grab_fiqa(rng: random.Random) -> Dict[str, Any]:
    """Face quality as a capture camera measures it (protocol section 1)."""
    left, top, size = rng.randint(200, 1500), rng.randint(100, 600), rng.randint(80, 240)
    return {
        "confidence": rng.randint(60, 99),
        "face_id": rng.randint(1, 9999),
        "rect": {"top": top, "bottom": top + size, "right": left + size, "left": left},
        "rel_rect": {"top": 62, "bottom": 62 + size, "right": 52 + size, "left": 52},
        "pitch": rng.randint(-20, 20),
        "yaw": rng.randint(-30, 30),
        "roll": rng.randint(-10, 10),
        "age": rng.randint(18, 70),
        "eye_dist": size // 2,
        "sex": rng.randint(0, 1),
    }


def _box_fiqa(rng: random.Random) -> Dict[str, Any]:
    """Face quality as the box measures it (protocol section 1); one face in ten is too poor."""
    checks = ["face_size", "clarity", "headpose", "partial", "brightness"]
    fails = rng.sample(checks, rng.randint(1, 2)) if rng.random() < 0.1 else []
    return {
        "age": rng.randint(18, 70),
        "sex": rng.randint(0, 1),
        "info": {
            "face_size": float(rng.randint(80, 300)),
            "clarity": rng.uniform(0.4, 1.6),
            "headpose": {
                "roll_angle": round(rng.uniform(-15, 15), 3),
                "pitch_angle": round(rng.uniform(-20, 20), 3),
                "yaw_angle": round(rng.uniform(-30, 30), 3),
            },
            "partial": "partial" in fails,
            "brightness": rng.random(),
        },
        "fiqa_result": not fails,
        "success": [check for check in checks if check not in fails],
        "fails": fails,
    }
