"""status: are the events arriving, and if not, why not."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Dict

import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console

from se3_uploader import cli, status
from se3_uploader.cli import status as text
from se3_uploader.config import Config
from se3_uploader.lock import Lock
from se3_uploader.outbox import letters

from .http_server import DROP, Reply, Server
from .site import Process, Site, Uploader, deliver, event, refusing
from .terminals import as_nobody, let_in, on_a_terminal

NEVER_UP = "http://127.0.0.1:9/HistoryEvent"


@pytest.fixture
def site(tmp_path):
    """A box with an empty event database."""
    return Site(tmp_path)


def told(config: Config, capsys: Any) -> Dict[str, Any]:
    """What `status --json` prints."""
    assert cli.main(["status", "-c", config.path, "--json"]) == 0
    found: Dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def sentence(config: Config) -> str:
    """The first line of `status`."""
    return text.answer(status.collect(config, time.time()), time.time())[0]


def shape(value: Any) -> Any:
    """Keys and kinds of a JSON value; numbers are one kind."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if number else type(value).__name__


def test_before_the_first_start_everything_is_zero(site, capsys):
    """Without an outbox there is an answer too, and status does not make one."""
    site.add(1, 2, 3)
    found = told(site.configure(NEVER_UP), capsys)
    assert found["daemon"] == {"running": False, "pid": None, "since": None, "delivers": None}
    assert found["source"]["behind"] == 3
    assert found["source"]["position"] is None
    assert found["source"]["generation"] == 0
    (endpoint,) = found["endpoints"]
    assert [endpoint[name] for name in ("pending", "delivered", "dead", "lost")] == [0, 0, 0, 0]
    assert found["outbox"]["bytes"] == 0
    assert not site.outbox.parent.exists()


def test_nothing_is_said_of_a_platform_that_was_not_tried(site, capsys):
    """That it takes deliveries is known once it took one."""
    site.add(1)
    with Server() as platform:
        config = site.configure(platform.url)
        cli.main(["status", "-c", config.path])
        assert "nothing was sent yet" in capsys.readouterr().out
        deliver(config)
        cli.main(["status", "-c", config.path])
        assert "takes deliveries" in capsys.readouterr().out


def test_a_script_gets_the_whole_answer_in_the_first_line(site, capsys):
    """However long the reason is: into a pipe the sentence is not broken at the 80th column."""
    site.events.unlink()
    config = site.configure(NEVER_UP)
    lock = Lock(config.outbox.path)
    lock.acquire("daemon")
    cli.main(["status", "-c", config.path])
    whole = sentence(config)
    lock.release()
    assert len(whole) > 80
    assert capsys.readouterr().out.splitlines()[0] == whole


def test_where_new_installations_begin_at_the_newest_nothing_is_behind(site, capsys):
    """With source.start latest, what is there before the first start is never sent."""
    site.add(1, 2, 3)
    config = site.configure(NEVER_UP, source={"url": f"sqlite:///{site.events}", "start": "latest"})
    assert told(config, capsys)["source"]["behind"] == 0


def test_the_keys_and_their_kinds_are_those_of_the_contract(site, capsys):
    """Everything that the contract's example has is there, of the same kind."""
    with Server(DROP) as platform:
        config = site.configure(platform.url)
        with Uploader(config) as uploader:
            site.add(1)
            uploader.run_for(5)
    found = told(config, capsys)
    (endpoint,) = found["endpoints"]
    assert shape(found["source"]) == {
        "name": "str", "engine": "str", "position": "number", "newest": "number",
        "behind": "number", "generation": "number", "error": "NoneType",
    }  # fmt: skip
    assert shape(endpoint) == {
        "name": "str", "kind": "str", "url": "str", "state": "str", "configured": "bool",
        "since": "str",
        "pending": "number", "delivered": "number", "dead": "number", "dead_reason": "NoneType",
        "lost": "number", "oldest_pending_s": "number", "deleted_in_s": "NoneType",
        "last_delivered": "NoneType",
        "rate_per_s": "number", "last_error": "str", "next_attempt": "str",
        "certificate_expires": "NoneType",
    }  # fmt: skip
    assert shape(found["outbox"]) == {
        "path": "str", "bytes": "number", "max_bytes": "number", "copied_bytes": "number",
        "free_bytes": "number", "min_free_bytes": "number",
    }  # fmt: skip
    assert datetime.fromisoformat(endpoint["next_attempt"]).tzinfo is not None
    assert found["outbox"]["bytes"] > 0


def test_what_was_delivered_is_told_with_its_rate(site, capsys):
    """Receipts of the last minute make the rate; an hour later they do not."""
    site.add(*range(1, 91))
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
        found = told(config, capsys)
    (endpoint,) = found["endpoints"]
    assert (endpoint["delivered"], endpoint["pending"], endpoint["rate_per_s"]) == (90, 0, 1.5)
    assert datetime.fromisoformat(endpoint["last_delivered"]).timestamp() > time.time() - 60
    assert (found["source"]["position"], found["source"]["behind"]) == (90, 0)
    later = status.collect(config, time.time() + 3600)
    assert later["endpoints"][0]["rate_per_s"] == 0


def test_the_rate_of_a_backlog_is_found_below_newer_events(site, capsys):
    """While old events are delivered, thousands that are newer stand behind them."""
    site.add(*range(1, 3501))
    with Server(Reply(503)) as platform:
        config = site.configure(platform.url, retry={"base": "1ms", "cap": "1ms"})
        with Uploader(config) as uploader:
            uploader.run(lambda: uploader.outbox.total("pending") == 3500)
            platform.script = Reply()
            uploader.run(lambda: uploader.outbox.total("delivered") >= 1200)
    found = told(config, capsys)["endpoints"][0]
    assert found["pending"] > 1500
    assert found["rate_per_s"] == pytest.approx(found["delivered"] / 60, abs=0.01)


def test_an_endpoint_that_is_away_is_told_with_its_reason(site, capsys):
    """State, error, since when, when it is tried again, and how old the oldest event is."""
    site.add(1, 2)
    with Server(Reply(503)) as platform:
        config = site.configure(platform.url)
        with Uploader(config) as uploader:
            uploader.run_for(40)
    found = told(config, capsys)["endpoints"][0]
    assert (found["state"], found["last_error"], found["pending"]) == ("retrying", "HTTP 503", 2)
    now = time.time()
    assert status.collect(config, now + 90)["endpoints"][0]["oldest_pending_s"] >= 90


def test_a_paused_endpoint_is_told_as_such(site, capsys):
    """A platform that wants a password is a thing for people to mend."""
    site.add(1)
    with Server(Reply(401)) as platform:
        config = site.configure(platform.url)
        with Uploader(config) as uploader:
            uploader.run_for(5)
    found = told(config, capsys)["endpoints"][0]
    assert (found["state"], found["last_error"]) == ("paused", "HTTP 401")


def test_the_account_balances_and_names_the_commonest_reason_of_death(site, capsys):
    """Delivered, pending, dead and lost make up what was seen, over all generations."""
    site.add(*range(1, 11))
    with Server(lambda r: Reply(413) if b'"identity_id":"3"' in r.body else Reply()) as platform:
        config = site.configure(platform.url)
        deliver(config)
        site.remove()
        site.run("DELETE FROM sqlite_sequence")
        site.add(*range(3, 6), event(6, score=None))
        deliver(config)
    found = told(config, capsys)
    (endpoint,) = found["endpoints"]
    account = site.account()
    assert {name: endpoint[name] for name in ("pending", "delivered", "dead", "lost")} == {
        name: account[name] for name in ("pending", "delivered", "dead", "lost")
    }
    assert (endpoint["delivered"], endpoint["dead"]) == (11, 3)
    assert endpoint["dead_reason"] == "too large: HTTP 413"
    assert found["source"]["generation"] == 2


@pytest.mark.parametrize("waiting", [True, False], ids=["something waits", "nothing waits"])
def test_an_outage_of_another_process_is_over_when_this_one_delivers(site, capsys, waiting):
    """The state that a process left behind does not outlive the next one's success."""
    site.add(1, 2)
    with Server(Reply(503)) as platform:
        config = site.configure(platform.url)
        with Uploader(config) as uploader:
            uploader.run_for(5)
        assert told(config, capsys)["endpoints"][0]["state"] == "retrying"
        if not waiting:
            cli.main(["outbox", "list", "-c", config.path])
            site.remove()
            with Uploader(config) as uploader:
                uploader.run_for(300)
        platform.script = Reply()
        with Uploader(config) as uploader:
            uploader.run()
    capsys.readouterr()
    (endpoint,) = told(config, capsys)["endpoints"]
    assert (endpoint["state"], endpoint["pending"]) == ("ok", 0)
    assert (endpoint["last_error"], endpoint["next_attempt"], endpoint["since"]) == (None,) * 3


def test_the_place_is_that_of_the_endpoint_furthest_behind(site, capsys):
    """One that was added later decides how far behind the source is."""
    site.add(1, 2, 3)
    with Server() as platform:
        deliver(site.configure(platform.url))
        site.add(4)
        config = site.configure(platform.url, NEVER_UP)
    found = told(config, capsys)["source"]
    assert (found["position"], found["newest"], found["behind"]) == (None, 4, 4)


def test_an_unreadable_event_database_is_a_finding_and_no_failure(site, capsys):
    """The reason stands where it belongs, and all else is told."""
    site.add(1)
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
    site.events.unlink()
    found = told(config, capsys)
    assert "No such file" in found["source"]["error"]
    assert (found["source"]["newest"], found["source"]["behind"]) == (None, None)
    assert found["endpoints"][0]["delivered"] == 1


def test_an_endpoint_that_left_the_configuration_shows_while_it_has_something(site, capsys):
    """Pending events of one that was renamed would be forgotten otherwise."""
    site.add(1)
    with Server(Reply(503)) as platform, Server() as other:
        with Uploader(site.configure(platform.url)) as uploader:
            uploader.run_for(5)
        config = site.configure(other.url, endpoint={"name": "renamed"})
        deliver(config)
        assert [(e["name"], e["state"]) for e in told(config, capsys)["endpoints"]] == [
            ("renamed", "ok"),
            ("p0", "paused"),
        ]
        left = told(config, capsys)["endpoints"][1]
        assert (left["configured"], left["next_attempt"]) == (False, None)
        assert "no longer in uploader.yaml" in left["last_error"]
        lock = Lock(config.outbox.path)
        lock.acquire("daemon")
        later = status.collect(config, time.time() + 2 * text.LATE)
        assert text.answer(later, time.time())[0] == (
            "Events arrive, but 1 event kept for p0, which is no longer in uploader.yaml"
        )
        lock.release()
        platform.script = Reply()
        deliver(site.configure(platform.url))
        config = site.configure(other.url, endpoint={"name": "renamed"})
        assert [e["name"] for e in told(config, capsys)["endpoints"]] == ["renamed"]


def test_what_a_url_may_hold_beside_the_address_is_not_shown(site, capsys):
    """A token in the query stays out of the output, for people and for machines."""
    config = site.configure("http://127.0.0.1:9/HistoryEvent?token=s3cret")
    assert told(config, capsys)["endpoints"][0]["url"] == "http://127.0.0.1:9/HistoryEvent"
    assert cli.main(["status", "-c", config.path]) == 0
    assert "s3cret" not in capsys.readouterr().out


def test_it_works_beside_a_running_daemon_and_a_writer(site, capsys):
    """It names the daemon, and does not wait for whoever is writing to the outbox."""
    site.add(1, 2)
    with Server() as platform:
        config = site.configure(platform.url)
        with Process(config) as daemon:
            daemon.wait_for("ready")
            platform.wait_for(2)
            with closing(sqlite3.connect(site.outbox, timeout=10)) as writer:
                writer.execute("BEGIN IMMEDIATE")
                began = time.monotonic()
                found = told(config, capsys)
                assert time.monotonic() - began < 2
            assert found["daemon"]["running"] is True
            assert found["daemon"]["pid"] == daemon.popen.pid
            assert found["daemon"]["delivers"] == "daemon"
            since = datetime.fromisoformat(found["daemon"]["since"]).timestamp()
            assert abs(time.time() - since) < 30
            assert sentence(config).startswith("Yes,")
    assert sentence(config).startswith("NO: the daemon is not running")


def test_the_first_line_says_what_keeps_events_from_arriving(site):
    """Each cause in its own words, the worst first, and what to do where that is known."""
    site.add(1, 2, 3)
    with Server(refusing([2], Reply(413))) as platform:
        config = site.configure(platform.url)
        assert sentence(config).startswith("NO: the daemon is not running")
        assert "3 events to deliver. Start it: systemctl start se3-uploader" in sentence(config)
        lock = Lock(config.outbox.path)
        lock.acquire("daemon")
        assert sentence(config) == "Yes, events arrive; 3 events on the way"
        with Uploader(config) as uploader:
            uploader.run()
            assert "1 event could not be delivered to p0: too large: HTTP 413" in sentence(config)
            assert "se3-uploader outbox list" in sentence(config)
            letters.discard(config.outbox.path, [2], time.time())
            assert sentence(config) == "Yes, every event has arrived but for 1 lost or discarded"
            platform.script = Reply(503)
            site.add(4)
            uploader.run_for(600)
            line = sentence(config)
            assert line.startswith("NO: p0 takes no events since ")
            assert line.endswith(": HTTP 503. 1 event waiting, none is lost")
            later = text.answer(status.collect(config, time.time()), time.time() + 7190)
            assert "(1h 59m)" in later[0]
            site.events.rename(site.folder / "elsewhere.db")
            assert sentence(config).startswith("NO new events: the event database cannot be read:")
        lock.release()


def test_an_outbox_that_may_not_be_read_is_said_so(site, tmp_path, capfd):
    """Someone who forgot sudo is told that, not that there is no outbox."""
    site.add(1)
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
    let_in(tmp_path)
    site.outbox.parent.chmod(0o700)
    assert as_nobody(lambda: cli.main(["status", "-c", config.path])) == 75
    assert "Permission denied; do this as root" in capfd.readouterr().err


def test_a_damaged_outbox_is_said_so(site, capsys):
    """One line, no traceback."""
    config = site.configure(NEVER_UP)
    site.outbox.parent.mkdir()
    site.outbox.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    assert cli.main(["status", "-c", config.path]) == 75
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_fits_its_terminal_and_chinese_is_aligned(site, width, capsys):
    """No line is wider than the terminal, and all figures begin in the same column."""
    site.add(1)
    config = site.configure(NEVER_UP, endpoint={"name": "园区平台"})
    with Uploader(config) as uploader:
        uploader.run_for(30)
    now = time.time()
    console = Console(width=width, color_system=None)
    for part in text.render(status.collect(config, now), now):
        console.print(part)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("NO:")
    assert "园区平台" in lines
    assert max(map(cell_len, lines)) <= width
    figures = [line for line in lines if line.startswith("  ") and line[2] != " "]
    assert len(figures) > 10
    column = len("  next attempt  ")
    assert all(line[:column].endswith("  ") and line[column] != " " for line in figures)


def test_colour_is_for_terminals_without_no_color(site, capsys):
    """None into a pipe, some on a terminal, none there either with NO_COLOR."""
    config = site.configure(NEVER_UP)
    cli.main(["status", "-c", config.path])
    assert "\x1b[" not in capsys.readouterr().out
    assert "\x1b[1;31mNO:" in on_a_terminal("status", "-c", config.path)
    assert "31m" not in on_a_terminal("status", "-c", config.path, NO_COLOR="1")


def test_a_wrong_configuration_is_78(site, capsys):
    """With the file, the line and the key, as everywhere."""
    config = site.configure(NEVER_UP)
    path = Path(config.path)
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**document, "outboks": {}}))
    assert cli.main(["status", "-c", config.path]) == 78
    assert "outboks" in capsys.readouterr().err


def hours(number: int, hour: float) -> Dict[str, Any]:
    """An event so many hours after the first of all."""
    return event(number, timestamp=1_767_225_600_000 + int(hour * 3_600_000))


def test_how_long_until_the_box_deletes_what_waits(site, capsys):
    """Once the box was seen to delete, its oldest event and the oldest unsent one tell it."""
    room = {"path": str(site.outbox), "max_size": 0, "min_free_disk": 0}
    with Server() as platform:
        site.add(*(hours(number, number) for number in range(10)))
        deliver(site.configure(platform.url))
        config = site.configure(NEVER_UP, outbox=room)
        with Uploader(config) as uploader:
            site.add(*(hours(number, number) for number in range(10, 20)))
            uploader.run(lambda: site.account()["pending"] == 10)
    (endpoint,) = told(config, capsys)["endpoints"]
    assert endpoint["deleted_in_s"] is None, "nothing was ever deleted"
    site.remove(0, 1, 2)
    (endpoint,) = told(config, capsys)["endpoints"]
    assert endpoint["deleted_in_s"] == 7 * 3600
    assert cli.main(["status", "-c", config.path]) == 0
    assert "deletion in about 7h" in " ".join(capsys.readouterr().out.split())
    site.remove(*range(3, 12))
    (endpoint,) = told(config, capsys)["endpoints"]
    assert endpoint["deleted_in_s"] == 0, "it has reached them"


def test_what_was_sent_or_copied_is_not_at_risk(site, capsys):
    """Counted is the first event that is neither; where there is none, nothing is told."""
    with Server() as platform:
        site.add(*(hours(number, number) for number in range(10)))
        deliver(site.configure(platform.url))
        config = site.configure(NEVER_UP)
        with Uploader(config) as uploader:
            site.add(*(hours(number, number) for number in range(10, 15)))
            uploader.run(lambda: site.rows("SELECT count(*) FROM copy") == [(5,)])
        site.remove(0, 1)
        assert told(config, capsys)["endpoints"][0]["deleted_in_s"] is None
        site.add(hours(15, 15.5))
        assert told(config, capsys)["endpoints"][0]["deleted_in_s"] == 13.5 * 3600
