"""`se3-uploader source inspect` on real databases: what it prints can be pasted and works."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from se3_uploader import cli

from .event_databases import EventDatabase, SqlEvents, event, sqlite_events
from .http_server import Server
from .site import Site


def test_what_it_prints_can_be_pasted(
    database: EventDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On every kind of database the proposal alone makes a configuration by which events arrive."""
    database.create({"department": {"": "VARCHAR(20)"}})
    database.add(event(n, department="staff") for n in range(1, 4))
    if isinstance(database, SqlEvents):
        database.run("DROP TABLE IF EXISTS person")
        database.run("CREATE TABLE person (pid VARCHAR(10) PRIMARY KEY, mood VARCHAR(50))")
    assert cli.main(["source", "inspect", database.url]) == 0
    printed = capsys.readouterr().out
    assert "s3cret" not in printed
    assert "#         3  event\n" in printed
    source = yaml.safe_load(printed)["source"]
    source["url"] = source["url"].replace("PASSWORD", "s3cret")
    (tmp_path / "site").mkdir()
    with Server() as platform:
        config = Site(tmp_path / "site").configure(platform.url, source=source)
        assert cli.main(["run", "--once", "-c", config.path]) == 0
        assert [r.json()["group_name"] for r in platform.requests] == ["staff"] * 3


def test_what_is_missing_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The configured database is looked into; what no column was found for makes it end with 1."""
    site = Site(tmp_path)
    site.run("ALTER TABLE event RENAME COLUMN score TO wert")
    site.run('CREATE TABLE "odd\nname: 1" (a TEXT)')
    site.add({"identity_id": "1", "timestamp": 1})
    config = site.configure("http://127.0.0.1:9/")
    assert cli.main(["source", "inspect", "-c", config.path]) == 1
    printed = capsys.readouterr().out
    assert "  # score is required, and no column looks like it\n" in printed
    assert list(yaml.safe_load(printed)) == ["source"]


def test_nothing_like_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A database without events gets no proposal, and says so."""
    other = sqlite_events(tmp_path / "other.db")
    other.run("CREATE TABLE settings (key TEXT, value TEXT)")
    assert cli.main(["source", "inspect", other.url]) == 1
    printed = capsys.readouterr().out
    assert "settings" in printed
    assert "no table looks like events" in printed
    assert yaml.safe_load(printed) is None


def test_a_database_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong words are 2, a database that cannot be read is 75, each in a line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["source", "inspect", "mariadb://box:s3cret@127.0.0.1/events"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "must begin with mysql://" in error
    assert "s3cret" not in error
    assert cli.main(["source", "inspect", f"sqlite:///{tmp_path}/none.db"]) == 75
    assert "none.db" in capsys.readouterr().err
