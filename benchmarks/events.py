"""Event databases of two kinds: payloads of about 160 KB (pictures as base64 text) and of 1 KB."""

from __future__ import annotations

import base64
import random
import sqlite3
from pathlib import Path
from typing import Iterator

from se3_uploader.demo import sample

START_MS = 1_700_000_000_000
REG_PIC, SPOT_PIC = 11_000, 108_000
"""Bytes of the two pictures before base64 makes them a third longer."""
BATCH = 200


def rows(n: int, *, large: bool) -> Iterator[sample.Event]:
    """Yield n events numbered from 0 in identity_id; large ones carry pictures as base64 text."""
    rng = random.Random(1)
    pictures = [(_base64(rng, REG_PIC), _base64(rng, SPOT_PIC)) for _ in range(20 if large else 0)]
    for number in range(n):
        row = sample.event(rng, START_MS + number, pictures=False)
        reg_pic, spot_pic = pictures[number % len(pictures)] if large else (None, None)
        row.update(identity_id=str(number), reg_pic=reg_pic, spot_pic=spot_pic, face_pic=None)
        yield row


def create(path: Path, n: int, *, large: bool) -> Path:
    """Make an event database of n rows; beyond 10,000 the rows repeat under ids of their own."""
    db = sample.connect(str(path))
    db.execute("PRAGMA synchronous = OFF")
    batch = []
    for row in rows(min(n, 10_000), large=large):
        batch.append(row)
        if len(batch) == BATCH:
            sample.insert(db, batch)
            batch.clear()
    sample.insert(db, batch)
    _repeat(db, n)
    db.close()
    return path


def _repeat(db: sqlite3.Connection, n: int) -> None:
    """Copy the first rows to the end until there are n."""
    columns = ", ".join(sample.event(random.Random(0), 0, pictures=False))
    have = db.execute("SELECT count(*) FROM event").fetchone()[0]
    step = min(have, 2_000)
    while have < n:
        with db:
            db.execute(
                f"INSERT INTO event ({columns}) SELECT {columns} FROM event ORDER BY id LIMIT ?",
                (min(step, n - have),),
            )
        have += step


def _base64(rng: random.Random, size: int) -> str:
    return base64.b64encode(rng.getrandbits(8 * size).to_bytes(size, "little")).decode()
