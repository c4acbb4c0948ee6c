"""A mapping is proposed for databases that nobody has described to us."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import yaml

from se3_uploader import config
from se3_uploader.source import open_source
from se3_uploader.source.inspect import inspect

from .event_databases import sqlite_events


def test_a_foreign_schema(tmp_path: Path) -> None:
    """Other names, text ids, float seconds and JSON: the proposal reads it as it stands."""
    events = sqlite_events(tmp_path / "nvr.db")
    events.run("CREATE TABLE settings (name TEXT, value TEXT)")
    events.run(
        "CREATE TABLE recognition (uid TEXT PRIMARY KEY, personId TEXT, label TEXT,"
        " start_time REAL, data TEXT, camera TEXT)"
    )
    events.run(
        "INSERT INTO recognition VALUES (?, ?, ?, ?, ?, ?)",
        [(uid, "p1", "张伟", 1767225600.5, '{"score": {"similarity": 0.5}}', "c") for uid in "ba"],
    )
    found = inspect(events.url)
    assert [table.name for table in found.tables] == ["recognition", "settings"]
    section = yaml.safe_load(found.proposal)["source"]
    assert section["key"] == "start_time"
    assert section["id"] == "uid"
    assert section["columns"]["score"] == "data.score.similarity"
    assert section["columns"]["ext_data.ep_id"] == "camera"
    with closing(open_source(config.Source(**section))) as source:
        assert len(source.look(None, 10).refs) == 2
        assert source.problems() == [
            "start_time, uid: has no index, so that every look reads the whole table"
        ]


def test_the_mapping_of_the_readme_is_proposed(tmp_path: Path) -> None:
    """Whoever asks instead of writing it by hand gets the same mapping."""
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    wanted = yaml.safe_load(readme.partition("```yaml\n")[2].partition("```")[0])["source"]
    visits = sqlite_events(tmp_path / "visits.db")
    columns = ", ".join(wanted["columns"].values())
    visits.run(f"CREATE TABLE {wanted['table']} (id INTEGER PRIMARY KEY, {columns}, door)")
    proposed = yaml.safe_load(inspect(visits.url).proposal)["source"]
    assert proposed == {**wanted, "url": visits.url}


def test_what_is_missing_is_marked(tmp_path: Path) -> None:
    """A required field without a column is named; a database without events gets no proposal."""
    events = sqlite_events(tmp_path / "some.db")
    events.run("CREATE TABLE log (id INTEGER PRIMARY KEY, person_name TEXT, ts INTEGER)")
    found = inspect(events.url)
    assert found.tables[0].missing == ["identity_id", "score", "group_name"]
    assert "score is required" in found.proposal
    other = sqlite_events(tmp_path / "other.db")
    other.run("CREATE TABLE settings (key TEXT, value TEXT)")
    assert inspect(other.url).proposal == ""
