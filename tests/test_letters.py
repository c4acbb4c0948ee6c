"""Dead letters: looked at, sent again, given up; and a person erased."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest
from rich.cells import cell_len

from se3_uploader import cli
from se3_uploader.config import Config
from se3_uploader.outbox import Outbox, letters

from .http_server import Reply, Server
from .site import Process, Site, Uploader, deliver, event, keys, number_of, numbers, refusing, sums
from .terminals import on_a_terminal

PICTURE = "c3BvdCBwaWN0dXJl" * 40


@pytest.fixture
def site(tmp_path):
    """A box with an empty event database."""
    return Site(tmp_path)


def run(config: Config, *arguments: str) -> int:
    """Run `se3-uploader outbox …`."""
    return cli.main(["outbox", arguments[0], "-c", config.path, *arguments[1:]])


def listed(config: Config, capsys: Any, *arguments: str) -> List[Dict[str, Any]]:
    """What `outbox list --json` prints."""
    capsys.readouterr()
    assert run(config, "list", "--json", *arguments) == 0
    found: List[Dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def events(config: Config, capsys: Any, *arguments: str) -> List[Any]:
    """(state, event) of what is listed."""
    return [(one["state"], one["event"]) for one in listed(config, capsys, *arguments)]


def bury(site: Site, *refused: int) -> Config:
    """Have a platform refuse some of five events for good; an event's id is its delivery's."""
    site.add(*(event(number, spot_pic=PICTURE) for number in range(1, 6)))
    with Server(refusing(refused, Reply(413))) as platform:
        config = configured(site, platform)
        deliver(config)
    return config


def configured(site: Site, *platforms: Server, **sections: Any) -> Config:
    """Configure strictly in order, so that deliveries count as events do; 413 is the end."""
    return site.configure(
        *(platform.url for platform in platforms), endpoint={"max_in_flight": 1},
        history_event={"pictures": {"when_too_large": "dead"}}, **sections,
    )  # fmt: skip


def everything_in(folder: Path) -> bytes:
    """The bytes of every file in a folder."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_each_end_is_listed_with_its_state_dead_letters_first(site, capsys):
    """Dead, lost, discarded and stripped ones; what was delivered whole is not listed."""

    def script(request):
        heavy = PICTURE.encode() in request.body
        return Reply(413) if number_of(request) in (1, 5) or heavy else Reply()

    site.add(1, event(2, spot_pic=PICTURE), 3)
    with Server(script) as platform:
        config = site.configure(platform.url, endpoint={"max_in_flight": 1}, outbox={"max_size": 0})
        deliver(config)
        platform.script = Reply(503)
        site.add(4)
        with Uploader(config) as uploader:
            uploader.run(lambda: uploader.outbox.total("pending") == 1)
        site.remove(4)
        platform.script = script
        site.add(5)
        deliver(config)
    assert run(config, "discard", "--yes", "1") == 0
    assert events(config, capsys) == [("dead", 5), ("lost", 4), ("discarded", 1), ("stripped", 2)]
    assert site.account() == sums(seen=5, delivered=2, dead=1, lost=2)


def test_a_letter_tells_where_when_and_why(site, capsys):
    """All that a script may want to know, and nothing of the person."""
    config = bury(site, 3)
    (letter,) = listed(config, capsys)
    assert letter.pop("at").startswith(time.strftime("%Y-"))
    assert letter.pop("payload_bytes") > len(PICTURE)
    assert letter == {
        "id": 3, "state": "dead", "endpoint": "p0", "kind": "history_event", "event": 3,
        "attempts": 1, "reason": "too large: HTTP 413",
        "answer": '{"status": 0, "message": "SUCCESS"}',
    }  # fmt: skip


def test_nothing_to_list_is_said_so(site, capsys):
    """An empty list is valid JSON and, for people, a sentence."""
    config = bury(site)
    assert listed(config, capsys) == []
    assert run(config, "list") == 0
    assert capsys.readouterr().out.startswith("Nothing:")


def test_filters_narrow_what_is_meant(site, capsys):
    """Ids, endpoint, a part of the reason in any case, and the time of the end."""
    site.add(*range(1, 6))
    with Server(refusing([2, 4], Reply(413))) as p0, Server(refusing([3], Reply(422))) as p1:
        config = site.configure(p0.url, p1.url, retry={"reject_after": 1})
        deliver(config)
    assert len(listed(config, capsys)) == 3
    assert events(config, capsys, "--endpoint", "p1") == [("dead", 3)]
    assert events(config, capsys, "--reason", "TOO large") == [("dead", 2), ("dead", 4)]
    assert events(config, capsys, "--reason", "%") == []
    ids = [str(one["id"]) for one in listed(config, capsys, "--endpoint", "p0")]
    assert events(config, capsys, ids[1]) == [("dead", 4)]
    assert events(config, capsys, *ids, "--endpoint", "p1") == []
    assert len(events(config, capsys, "--since", "-1h")) == 3
    assert events(config, capsys, "--until", "-1h") == []
    assert events(config, capsys, "--since", "-2h", "--until", "-1h") == []


def test_a_retry_sends_the_same_event_under_the_same_key(site, capsys):
    """Even when the box has deleted it since; the account stays exact all the way."""
    site.add(*(event(number, spot_pic=PICTURE) for number in range(1, 6)))
    with Server(refusing([2, 4], Reply(413))) as platform:
        config = configured(site, platform)
        deliver(config)
        assert run(config, "retry", "--yes") == 0
        assert "2 dead letters made pending again" in capsys.readouterr().out
        assert site.account() == sums(seen=5, pending=2, delivered=3)
        site.remove()
        platform.script = Reply()
        deliver(config)
        assert numbers(platform) == [1, 2, 3, 4, 5, 2, 4]
        assert all(len(sent_under) == 1 for sent_under in keys(platform).values())
        assert platform.requests[-1].body == platform.requests[3].body
    assert site.account() == sums(seen=5, delivered=5)


def test_a_running_daemon_notices_a_retry(site, capsys):
    """Within a moment, without a restart."""
    site.add(1, 2)
    with Server(refusing([2], Reply(413))) as platform:
        config = site.configure(platform.url)
        with Process(config) as daemon:
            daemon.wait_for("an event is dead")
            platform.wait_for(2)
            platform.script = Reply()
            _until(lambda: site.account()["dead"] == 1)
            assert run(config, "retry", "--yes") == 0
            assert "not running" not in capsys.readouterr().out
            platform.wait_for(3, timeout=5)
            daemon.signal(15)
            daemon.end()
    assert numbers(platform)[-1] == 2
    assert site.account() == sums(seen=2, delivered=2)


def _until(holds: Any) -> None:
    """Wait for a state of a file that another process writes."""
    from threading import Event

    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        Event().wait(0.02)


def test_more_letters_than_fit_one_transaction_are_all_retried(site, capsys):
    """Page by page, each with its account."""
    site.add(*range(1, 451))
    with Server(Reply(413)) as platform:
        config = site.configure(platform.url)
        deliver(config)
        assert site.account() == sums(seen=450, dead=450)
        assert len(listed(config, capsys)) == 450
        assert run(config, "retry", "--yes") == 0
        assert site.account() == sums(seen=450, pending=450)
        platform.script = Reply()
        deliver(config)
    assert site.account() == sums(seen=450, delivered=450)


def test_a_retry_for_an_endpoint_that_is_gone_says_so(site, capsys):
    """The letters wait; nobody should wonder why they are not sent."""
    bury(site, 2)
    config = site.configure("http://127.0.0.1:9/", endpoint={"name": "other"})
    assert run(config, "retry", "--yes") == 0
    out = capsys.readouterr().out
    assert "p0: no longer in uploader.yaml" in out
    assert "The daemon is not running; they are sent once it runs." in out


def test_a_discard_deletes_the_payload_and_is_recorded(site, capsys):
    """State, time and account say what became of it; no byte of the picture is left behind."""
    config = bury(site, 2, 4)
    assert PICTURE.encode() in everything_in(site.outbox.parent)
    assert run(config, "discard", "--yes", "2") == 0
    assert "1 dead letter discarded; counted as lost" in capsys.readouterr().out
    assert site.account() == sums(seen=5, delivered=3, dead=1, lost=1)
    assert events(config, capsys) == [("dead", 4), ("discarded", 2)]
    assert site.rows("SELECT delivery_id FROM copy") == [(4,)]
    assert run(config, "discard", "--yes") == 0
    letters.fold(str(site.outbox))
    assert PICTURE.encode() not in everything_in(site.outbox.parent)
    deliver(config)  # the platform is away, but nothing is left to be sent
    assert site.account() == sums(seen=5, delivered=3, lost=2)


def test_what_is_no_dead_letter_any_more_is_left_alone(site):
    """Somebody else may have been faster between the question and the answer."""
    config = bury(site, 2)
    assert letters.retry(config.outbox.path, [1, 2, 3], time.time()) == 1
    assert letters.discard(config.outbox.path, [1, 2, 3], time.time()) == 0
    assert site.account() == sums(seen=5, delivered=4, pending=1)
    assert [state for (state,) in site.rows("SELECT state FROM delivery")] == [1, 0, 1, 1, 1]


@pytest.mark.parametrize("action", ["retry", "discard"])
def test_ids_that_are_no_dead_letters_change_nothing(site, action, capsys):
    """One wrong id among right ones: exit code 1, the wrong one is named, all stays as it was."""
    config = bury(site, 2)
    assert run(config, action, "--yes", "2", "3", "77") == 1
    error = capsys.readouterr().err
    assert "no dead letter has the id 3, 77; nothing was done" in error
    assert site.account() == sums(seen=5, delivered=4, dead=1)


def test_unknown_ids_are_named_when_looking_too(site, capsys):
    """list and show exit with 1."""
    config = bury(site, 2)
    assert run(config, "list", "77") == 1
    assert run(config, "show", "77") == 1
    assert capsys.readouterr().err.count("no delivery has the id 77") == 2


def test_without_a_terminal_nothing_is_given_up_unasked(site, capsys, monkeypatch):
    """Exit code 2 and the reason: a script has to say that it means it. To retry harms nothing."""
    config = bury(site, 2)
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert run(config, "discard") == 2
        assert "give --yes" in capsys.readouterr().err
        assert site.account()["dead"] == 1
        assert run(config, "retry") == 0
    assert (site.account()["dead"], site.account()["pending"]) == (0, 1)


def test_on_a_terminal_it_asks_first(site):
    """It says what for what reason; only yes is a yes."""
    config = bury(site, 2, 4)
    asked = ("outbox", "discard", "-c", config.path)
    shown = on_a_terminal(*asked, answer="\n")
    assert "2 of p0: too large: HTTP 413" in shown
    assert "Give up 2 dead letters for ever" in shown
    assert "Nothing was changed" in shown
    assert site.account()["dead"] == 2
    assert "2 dead letters discarded" in on_a_terminal(*asked, answer="y\n")
    assert site.account()["dead"] == 0


def test_nothing_dead_is_nothing_to_do(site, capsys):
    """No question, no failure."""
    config = bury(site)
    assert run(config, "retry") == 0
    assert run(config, "discard", "--reason", "whatever") == 0
    assert run(config, "show") == 0
    assert capsys.readouterr().out.count("There is no dead letter") == 3


def test_show_masks_the_person_unless_asked_for_the_payload(site, capsys):
    """Pictures never fill the screen; with --json --payload it is the payload as it was sent."""
    config = bury(site, 3)
    assert run(config, "show") == 0
    out = capsys.readouterr().out
    assert "too large: HTTP 413" in out
    assert '"identity_name": "***"' in out
    assert f'"spot_pic": "(picture, {len(PICTURE)} characters)"' in out
    assert "张伟" not in out
    assert run(config, "show", "3", "--payload") == 0
    out = capsys.readouterr().out
    assert '"identity_name": "张伟"' in out
    assert PICTURE not in out
    assert run(config, "show", "3", "--json") == 0
    assert "张伟" not in capsys.readouterr().out
    assert run(config, "show", "3", "--json", "--payload") == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["payload"]["ext_data"]["spot_pic"] == PICTURE
    assert run(config, "show", "1") == 0
    assert "none is kept" in capsys.readouterr().out


def test_fields_of_a_foreign_database_are_masked_too(site, capsys):
    """Nobody knows what an unknown column holds, so it is taken to be about the person."""
    site.run("ALTER TABLE event ADD COLUMN phone TEXT")
    site.add(event(1, phone="13800138000", box_fiqa_info='{"age": 40}'))
    with Server(Reply(413)) as platform:
        config = site.configure(platform.url)
        deliver(config)
    assert run(config, "show") == 0
    out = capsys.readouterr().out
    assert '"phone": "***"' in out
    assert '"box_fiqa_info": "***"' in out
    assert '"group_name": "staff"' in out


def test_a_dead_status_report_is_shown_whole(site, capsys):
    """It is about machines."""
    with Server(Reply(422)) as platform:
        config = site.configure(
            platform.url, device_status={"endpoints": [{"url": platform.url, "name": "status"}]},
            retry={"reject_after": 1},
        )  # fmt: skip
        with Uploader(config) as uploader:
            uploader.engine.report({"gateway_name": "box-1"})
            uploader.run(lambda: uploader.outbox.total("dead") == 1)
    assert run(config, "show") == 0
    assert '"gateway_name": "box-1"' in capsys.readouterr().out


def test_a_person_can_be_erased_with_proof(site, capsys):
    """Every kept payload goes, dead or pending, from all files; others stay; counts prove it."""
    site.add(*(event(7, identity_name="Erase Me", score=n / 10) for n in range(1, 4)), 8)
    with Server(refusing([7, 8], Reply(413))) as platform:
        config = site.configure(platform.url)
        deliver(config)
        platform.script = Reply(503)
        site.add(event(7, identity_name="Erase Me"), 9)
        with Uploader(config) as uploader:
            uploader.run(lambda: uploader.outbox.total("pending") == 2)
            uploader.engine.copy_all()
            uploader.engine.flush()
    assert b"Erase Me" in everything_in(site.outbox.parent)
    capsys.readouterr()
    assert run(config, "discard", "--person", "7", "--yes") == 0
    out = capsys.readouterr().out
    assert "Before: the outbox keeps 4 payloads (1 pending, 3 dead) of this person." in out or (
        "Before: the outbox keeps 4 payloads (3 dead, 1 pending) of this person." in out
    )
    assert "After: the outbox keeps 0 payloads of this person." in out
    assert "1 of them still wait to be sent" in out
    assert "Erase Me" not in out
    assert b"Erase Me" not in everything_in(site.outbox.parent)
    assert site.account() == sums(seen=6, pending=2, dead=1, lost=3)
    assert [one["state"] for one in listed(config, capsys)] == ["dead", *["discarded"] * 3]
    assert site.rows("SELECT count(*) FROM copy") == [(2,)]
    with Server() as platform:
        deliver(site.configure(platform.url))
        assert sorted(numbers(platform)) == [7, 9]


def test_a_person_nothing_is_kept_about_needs_no_question(site, capsys):
    """Nothing to erase, nothing to confirm."""
    config = bury(site, 2)
    assert run(config, "discard", "--person", "nobody") == 0
    assert "After: the outbox keeps 0 payloads" in capsys.readouterr().out
    assert site.account()["dead"] == 1


def test_a_damaged_outbox_set_aside_is_named_when_a_person_is_erased(site, capsys):
    """It is not searched, so the operator has to know of it."""
    config = bury(site, 2)
    aside = site.outbox.with_name("outbox.db.damaged-20260101-000000")
    aside.write_bytes(b"who knows")
    assert run(config, "discard", "--person", "2", "--yes") == 0
    assert f"{aside} was damaged and set aside" in capsys.readouterr().out


def test_a_person_stands_alone(site, capsys):
    """Filters beside it could leave something of the person behind."""
    config = bury(site, 2)
    assert run(config, "discard", "--person", "2", "--endpoint", "p0", "--yes") == 2
    assert "--person stands alone" in capsys.readouterr().err
    assert site.account()["dead"] == 1


def test_the_id_of_a_person_may_come_from_standard_input(site, capsys, monkeypatch, tmp_path):
    """Where no list of processes shows it."""
    config = bury(site, 2)
    (tmp_path / "who").write_text("2\n")
    with (tmp_path / "who").open() as who:
        monkeypatch.setattr("sys.stdin", who)
        assert run(config, "discard", "--person", "-", "--yes") == 0
    assert "1 dead" in capsys.readouterr().out
    assert site.account() == sums(seen=5, delivered=4, lost=1)


def test_an_account_that_would_not_balance_is_never_written(site):
    """When a change fails in the middle, the letters and their account are as before."""
    config = bury(site, 2)
    outbox = Outbox(config.outbox.path, time.time)
    outbox._database.execute_sql(
        "CREATE TRIGGER fail BEFORE DELETE ON copy BEGIN SELECT RAISE(ABORT, 'disk'); END"
    )
    outbox.close()
    with pytest.raises(Exception, match="disk"):
        letters.discard(config.outbox.path, [2], time.time())
    assert site.account() == sums(seen=5, delivered=4, dead=1)
    assert site.rows("SELECT state FROM delivery WHERE id = 2") == [(2,)]


def test_without_an_outbox_there_is_none_made(site, capsys):
    """Looking or changing before the first start says so, and leaves no file."""
    config = site.configure("http://127.0.0.1:9/")
    for action in ("list", "show", "retry", "discard"):
        assert run(config, action) == 75
    assert capsys.readouterr().err.count("there is no outbox") == 4
    assert not site.outbox.parent.exists()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_list_fits_its_terminal(site, width, capsys, monkeypatch):
    """On a phone as blocks, on a desk as a table; the reason is there in both."""
    monkeypatch.setenv("COLUMNS", str(width))
    config = bury(site, 2, 4)
    assert run(config, "list") == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    body = lines[: lines.index("")]
    assert max(map(cell_len, body)) <= width
    assert sum("too large: HTTP 413" in line for line in body) == 2
    assert len(body) == (3 if width == 120 else 6)
    assert "2 dead" in lines
