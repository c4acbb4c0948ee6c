"""Sample events: the table, the rows and their drawn pictures."""

from __future__ import annotations

import io
import json
import sqlite3
from itertools import islice
from pathlib import Path
from typing import Any, Dict, List

import pytest

from se3_uploader.demo import sample


def rows_of(path: Path) -> List[sqlite3.Row]:
    """All rows of an event database, oldest first."""
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    try:
        return db.execute("SELECT * FROM event ORDER BY id").fetchall()
    finally:
        db.close()


def test_the_database_is_one_in_wal_mode_with_the_rows_asked_for(tmp_path: Path) -> None:
    """insert_events makes a WAL database with n rows whose times start and step as asked."""
    path = tmp_path / "event.db"
    sample.insert_events(str(path), 7, start_ms=1_700_000_000_000, step_ms=250, pictures=False)
    times = [row["timestamp"] for row in rows_of(path)]
    assert times == [1_700_000_000_000 + 250 * i for i in range(7)]
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_inserting_again_goes_on_with_the_next_ids(tmp_path: Path) -> None:
    """A second insert into the same file adds rows after the first ones."""
    path = tmp_path / "event.db"
    for _ in range(2):
        sample.insert_events(str(path), 3, start_ms=0, pictures=False)
    assert [row["id"] for row in rows_of(path)] == [1, 2, 3, 4, 5, 6]


def test_a_seed_gives_the_same_events_and_another_seed_others() -> None:
    """Events follow from the seed alone."""

    def first(seed: int) -> List[sample.Event]:
        return list(islice(sample.events(start_ms=0, seed=seed, pictures=False), 50))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_the_sample_holds_every_case_the_protocol_tells_apart() -> None:
    """All person types and a missing one, missing group names and ep ids, both kinds of quality."""
    rows = list(islice(sample.events(start_ms=0, pictures=False), 1000))
    assert {row["person_type"] for row in rows} == {None, 1, 2, 3, 4, 5}
    assert {row["device_type"] for row in rows} == {"0", "1", "3", "4"}
    for column in ("group_name", "ep_id", "reg_pic", "grab_fiqa_info"):
        assert {row[column] is None for row in rows} == {True, False}, column
    assert {json.loads(row["box_fiqa_info"])["fiqa_result"] for row in rows} == {True, False}
    assert any("一" <= letter <= "鿿" for row in rows for letter in row["identity_name"])
    assert any(row["identity_name"].isascii() for row in rows)


def test_pictures_are_jpegs_of_a_real_size() -> None:
    """Drawn pictures are JPEGs as large as a box's, and differ from person to person."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow, extra 'pictures'")
    rows = list(islice(sample.events(start_ms=0, seed=3), 12))
    sizes = {"reg_pic": (5_000, 20_000), "spot_pic": (50_000, 110_000), "face_pic": (3_000, 12_000)}
    for column, (least, most) in sizes.items():
        drawn = {row[column] for row in rows if row[column]}
        assert len(drawn) > 3
        for picture in drawn:
            assert least < len(picture) < most
            assert image.open(io.BytesIO(picture)).format == "JPEG"


def test_a_person_is_drawn_once() -> None:
    """The same person before the same camera is the same object, so 10,000 rows are cheap."""
    pytest.importorskip("PIL.Image", reason="needs pillow, extra 'pictures'")
    seen: Dict[Any, sample.Event] = {}
    for row in islice(sample.events(start_ms=0, seed=5), 60):
        known = seen.setdefault((row["identity_name"], row["device_ip"]), row)
        if row["identity_name"] != "stranger":
            assert row["spot_pic"] is known["spot_pic"]
            assert row["reg_pic"] is known["reg_pic"]
