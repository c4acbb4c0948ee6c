"""What the log says: events with fields, few enough to be read."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from se3_uploader import log

from .http_server import Reply, Server
from .site import Site, event

Lines = List[Tuple[str, Dict[str, Any]]]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A box with an empty event database."""
    return Site(tmp_path)


@pytest.fixture
def restored() -> Iterator[None]:
    """Leave the logger as it was found, whatever a test makes of it."""
    logger = logging.getLogger("se3_uploader")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def said(caplog: pytest.LogCaptureFixture, text: str) -> Lines:
    """The lines with a text in them, and the fields of each."""
    return [
        (record.getMessage(), getattr(record, "fields", {}))
        for record in caplog.records
        if text in record.getMessage()
    ]


def test_an_outage_is_told_when_it_starts_while_it_lasts_and_when_it_ends(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, one about every five minutes with the number of attempts, and one at the end.

    The next outage is told anew.
    """
    caplog.set_level("INFO", "se3_uploader")
    site.add(1)
    with Server(Reply(503)) as platform:
        # Attempts ten seconds apart: many more than lines.
        slow = {"base": "10s", "cap": "10s"}
        with site.uploader(platform, retry=slow) as uploader:
            uploader.run_for(1900)
            asked = len(platform.requests)
            platform.script = Reply()
            uploader.run()
            first = len(said(caplog, "p0"))
            platform.script = Reply(500)
            site.add(2)
            uploader.run_for(60)
    assert asked > 100
    ((_, start),) = said(caplog, "p0 does not take deliveries: HTTP 503. They are kept")
    assert start["endpoint"] == "p0"
    lasting = said(caplog, "p0 still does not take deliveries: HTTP 503")
    assert 5 <= len(lasting) <= 6
    attempts = [fields["attempts"] for _, fields in lasting]
    assert attempts == sorted(set(attempts))
    assert attempts[-1] <= asked
    ((_, end),) = said(caplog, "p0 takes deliveries again")
    assert end["away_s"] == pytest.approx(1900, abs=60)
    assert first == 2 + len(lasting)
    assert len(said(caplog, "p0 does not take deliveries: HTTP 500")) == 1


def test_events_that_die_alike_are_told_once_with_their_number(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A mapping that is wrong kills thousands for one reason; the next line counts the silent."""
    site.add(*(event(number, score=None) for number in range(1, 51)))
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
        assert len(said(caplog, "an event is dead")) == 1
        site.add(event(51, score=None))
        uploader.run_for(301)
        site.add(event(52, score=None))
        uploader.run(lambda: len(said(caplog, "an event is dead")) == 2)
    assert site.account()["dead"] == 52
    (_, first), (_, second) = said(caplog, "an event is dead")
    assert "more_since" not in first
    assert second["more_since"] == 50
    assert first["reason"] == second["reason"]


@pytest.mark.usefixtures("restored")
def test_lines_for_machines_are_json(capfd: pytest.CaptureFixture[str]) -> None:
    """With log.format json each line is an object: time, level, message and the event's fields."""
    log.setup("info", "json")
    log.debug("not asked for")
    log.warning("大门 is\naway", endpoint="大门", away_s=1.5)
    (line,) = capfd.readouterr().err.splitlines()
    found = json.loads(line)
    assert time.time() - found.pop("time") < 60
    assert found == {
        "level": "warning", "message": "大门 is\naway", "endpoint": "大门", "away_s": 1.5,
    }  # fmt: skip


@pytest.mark.usefixtures("restored")
def test_lines_for_people_show_fields_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """What holds a blank is quoted, and no field can begin a line of its own."""
    log.setup("info", "text")
    log.debug("not asked for")
    log.error("an event is dead", endpoint="p0", reason="no\nscore here", after=1.25)
    assert capfd.readouterr().err == (
        'error: an event is dead [endpoint=p0 reason="no?score here" after=1.2]\n'
    )
