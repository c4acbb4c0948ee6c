"""What each result of a POST leads to: every row of the outcome table, through the real engine.

Waits take no time here (see tests/site.py), so the engine's own clock tells how long they were.
"""

from __future__ import annotations

import email.utils
import json
import time
from pathlib import Path
from typing import Any, Dict, List

import orjson
import pytest

from se3_uploader import policy

from .http_server import DROP, HANG, RESET, Reply, Request, Server
from .site import (
    Site,
    Switch,
    Uploader,
    deliver,
    event,
    keys,
    notes_of,
    number_of,
    numbers,
    refusing,
    sums,
)

PICTURE = b"\xff\xd8" + bytes(3000)

SLOW: Dict[str, Any] = {"retry": {"cap": "60s"}, "source": {"poll_interval": "30s"}}
"""For hours that shall pass quickly."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A box that has not seen anybody yet."""
    return Site(tmp_path)


def reasons(site: Site) -> List[str]:
    """Why the dead and the delivered are what they are, where there is something to say."""
    return [reason for (reason,) in site.rows("SELECT reason FROM delivery ORDER BY id")]


@pytest.mark.parametrize(
    ("reply", "accept"),
    [
        (Reply(200), {}),
        (Reply(201, b""), {}),
        (Reply(204, b"", {"Content-Length": "0"}), {}),
        (Reply(200, b"<html>no JSON at all"), {}),
        (Reply(200, b'{"status": 0, "message": "SUCCESS"}'), {"status": 0}),
    ],
)
def test_accepted(site: Site, reply: Reply, accept: Dict[str, Any]) -> None:
    """Any 2xx is an acceptance (decision D6), with `accept` one whose JSON has these fields."""
    site.add(1, 2)
    with Server(reply) as platform:
        deliver(site.configure(platform.url, endpoint={"accept": accept}))
    assert len(platform.requests) == 2
    assert site.account() == sums(seen=2, delivered=2)


@pytest.mark.parametrize(
    "reply",
    [Reply(code) for code in (408, 425, 429, 500, 502, 503, 504, 599)]
    + [DROP, RESET, Reply(raw=b"no HTTP at all\r\n\r\n")],
)
def test_retried_until_it_is_taken(site: Site, reply: Reply) -> None:
    """However often the platform cannot take it, nothing is given up, and the key stays the same.

    After 30 failures, long past every limit on rejections, it is delivered with all others.
    """
    site.add(*range(1, 6))
    failures = 30

    def script(_: Request) -> Reply:
        return reply if len(platform.requests) <= failures else Reply()

    with Server(script) as platform:
        deliver(site.configure(platform.url))
    assert len(platform.requests) == failures + 5
    assert all(len(used) == 1 for used in keys(platform).values())
    assert site.account() == sums(seen=5, delivered=5)


def test_no_server_at_all(site: Site) -> None:
    """Where nobody listens events wait, and go when somebody does."""
    site.add(1, 2, 3)
    platform = Server().start()
    platform.stop()
    with Uploader(site.configure(platform.url)) as uploader:
        uploader.run_for(3600.0)
        assert uploader.queue.health.state == policy.RETRYING
        assert site.account() == sums(seen=3, pending=3)
        with platform:
            uploader.run()
    assert sorted(numbers(platform)) == [1, 2, 3]


def test_timeout(site: Site) -> None:
    """A platform that never answers is a failure like any other."""
    site.add(1)
    limits = {"timeout": {"connect": "1s", "read": "100ms", "total": "1s"}}
    with Server([HANG, HANG, Reply()]) as platform:
        deliver(site.configure(platform.url, endpoint=limits))
    assert numbers(platform) == [1, 1, 1]
    assert site.account() == sums(seen=1, delivered=1)


def waited(site: Site, *replies: Reply, **sections: Any) -> List[float]:
    """How long the engine waited after each of these answers to one event, with jitter of 0.5."""
    site.add(1)
    asked: List[float] = []

    def script(_: Request) -> Reply:
        asked.append(uploader.now)
        return replies[len(asked) - 1] if len(asked) <= len(replies) else Reply()

    with Server(script) as platform:
        uploader = Uploader(site.configure(platform.url, **sections), random=lambda: 0.5)
        with uploader:
            uploader.run()
    return [later - earlier for earlier, later in zip(asked, asked[1:])]


def http_date(seconds: float) -> str:
    """Spell the moment so many seconds from now as HTTP does."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("7", 7.5), ("0", 0.5), ("86400", 60.0), ("-5", 0.5), ("soon", 0.5), ("date+20", 20.0)],
)
def test_retry_after(site: Site, asked: str, expected: float) -> None:
    """What the platform asks for, in seconds or as a date, is added to our wait, up to the cap."""
    header = http_date(20) if asked == "date+20" else asked
    reply = Reply(503, headers={"Retry-After": header})
    (found,) = waited(site, reply, retry={"base": "1s", "cap": "60s"})
    assert found == pytest.approx(expected, abs=2.0 if asked == "date+20" else 0.3)


@pytest.mark.parametrize("status", [401, 403, 404, 405, 407, 301, 302, 307, 308])
def test_paused_and_probed(site: Site, status: int) -> None:
    """A wrong address or token pauses the endpoint: slow probes, one at a time, no event blamed.

    Two hours later nothing is dead; when the platform is mended everything goes.
    """
    site.add(*range(1, 21))
    reply = Reply(status, headers={"Location": "http://127.0.0.1:1/"})
    with Server(reply) as platform, site.uploader(platform, **SLOW) as uploader:
        uploader.run_for(7200.0)
        assert uploader.queue.health.state == policy.PAUSED
        assert site.account() == sums(seen=20, pending=20)
        # Between half of cap and cap for each, after the first few that are quicker.
        assert 7200 / 60 <= len(platform.requests) <= 7200 / 30 + 10
        assert f"HTTP {status}" in uploader.engine.summary()
        platform.script = Reply()
        uploader.run()
    assert set(numbers(platform)) == set(range(1, 21))
    assert site.account() == sums(seen=20, delivered=20)


def too_large(limit: int) -> Any:
    """Make a platform that takes no more bytes than that."""
    return lambda request: Reply(413 if len(request.body) > limit else 200)


@pytest.mark.parametrize(
    ("limit", "stripped"), [(6000, ["spot_pic"]), (3000, ["spot_pic", "reg_pic"])]
)
def test_too_large_for_the_platform(site: Site, limit: int, stripped: List[str]) -> None:
    """After a 413 the same event goes at once without spot_pic, then without reg_pic either.

    The payload says what was left out, the key stays, the account counts it as delivered, and the
    receipt tells it apart.
    """
    site.add(event(1, reg_pic=PICTURE, spot_pic=PICTURE), 2)
    with Server(too_large(limit)) as platform, site.uploader(platform) as uploader:
        before = uploader.now
        uploader.run()
        assert uploader.now - before < 5
    sent = [request for request in platform.requests if number_of(request) == 1]
    assert len(sent) == 1 + len(stripped)
    assert len({request.key for request in sent}) == 1
    assert notes_of(sent[-1]) == [f"{p}: left out, too large for the platform" for p in stripped]
    assert "spot_pic" not in sent[-1].json()["ext_data"]
    assert ("reg_pic" in sent[-1].json()) == ("reg_pic" not in stripped)
    assert site.account() == sums(seen=2, delivered=2)
    assert reasons(site) == ["stripped", None]


def test_too_large_without_pictures(site: Site) -> None:
    """What is still refused as too large without any picture is dead, and nothing else is."""
    site.add(event(1, group_name="g" * 5000, spot_pic=PICTURE), 2)
    with Server(too_large(2000)) as platform:
        deliver(site.configure(platform.url))
    assert numbers(platform).count(1) == 2
    assert reasons(site) == ["too large: HTTP 413", None]
    assert site.account() == sums(seen=2, delivered=1, dead=1)


def test_too_large_and_nothing_may_be_stripped(site: Site) -> None:
    """With when_too_large: dead no picture is left out: the event is a dead letter, whole."""
    site.add(event(1, spot_pic=PICTURE), 2)
    with Server(too_large(2000)) as platform:
        deliver(site.configure(platform.url, endpoint={"pictures": {"when_too_large": "dead"}}))
    assert numbers(platform).count(1) == 1
    assert site.account() == sums(seen=2, delivered=1, dead=1)
    ((body,),) = site.rows("SELECT body FROM copy")
    assert orjson.loads(body)["ext_data"]["spot_pic"]


@pytest.mark.parametrize(
    ("status", "accept"), [(400, {}), (415, {}), (422, {}), (409, {}), (418, {}), (200, {"ok": 1})]
)
def test_rejected_is_tried_and_then_dead(site: Site, status: int, accept: Dict[str, Any]) -> None:
    """What the platform refuses is tried 1 + reject_after times; the others pass meanwhile.

    The dead letter says why, with the platform's words, and keeps the payload as it was sent.
    """
    site.add(*range(1, 11))
    answer = Reply(status, b'{"ok": 0, "error": "no such group"}')
    script = refusing([4], answer)
    accepted = b'{"ok": 1}'
    with Server(lambda r: answer if script(r) is answer else Reply(200, accepted)) as platform:
        config = site.configure(
            platform.url, endpoint={"accept": accept}, retry={"reject_after": 2}
        )
        deliver(config)
    assert numbers(platform).count(4) == 3
    assert sorted(set(numbers(platform))) == list(range(1, 11))
    assert len(platform.requests) == 12
    assert site.account() == sums(seen=10, delivered=9, dead=1)
    ((reason, said, attempts, body),) = site.rows(
        "SELECT reason, answer, attempts, body FROM delivery"
        " JOIN copy ON copy.delivery_id = delivery.id WHERE state = 2"
    )
    assert reason.startswith(f"rejected: HTTP {status}")
    assert "no such group" in said
    assert attempts == 3
    assert bytes(body) in [request.body for request in platform.requests]


def test_answer_of_a_dead_letter_holds_nothing_personal(site: Site) -> None:
    """A platform that echoes the event back does not get a name or an id into the outbox's text."""
    site.add(event(77123, identity_name="王小明", ep_id="secret-camera"))

    def echo(request: Request) -> Reply:
        said = {"error": "bad", "got": request.json()}
        return Reply(400, json.dumps(said, ensure_ascii=False).encode())

    with Server(echo) as platform:
        deliver(site.configure(platform.url))
    ((answer,),) = site.rows("SELECT answer FROM delivery WHERE state = 2")
    assert "bad" in answer
    for personal in ("王小明", "77123", "secret-camera"):
        assert personal not in answer
    assert len(answer) <= 300


def test_rejected_for_a_while(site: Site) -> None:
    """An event that passes before its attempts are used up is simply delivered."""
    site.add(1, 2)
    with Server(lambda _: Reply(400 if numbers(platform).count(1) <= 3 else 200)) as platform:
        deliver(site.configure(platform.url))
    assert site.account() == sums(seen=2, delivered=2)


def test_a_platform_that_rejects_everything_is_paused(site: Site) -> None:
    """Many different events refused and none accepted: the platform is broken, not the events.

    Nothing stays buried, for as long as it lasts, and the probes are few; then everything goes.
    """
    site.add(*range(1, 101))
    with Server(Reply(422)) as platform, site.uploader(platform, **SLOW) as uploader:
        uploader.run_for(7200.0)
        assert uploader.queue.health.state == policy.PAUSED
        assert "rejects every event" in uploader.engine.summary()
        assert site.account() == sums(seen=100, pending=100)
        assert len(platform.requests) < 7200 / 30 + 50
        platform.script = Reply()
        uploader.run()
    assert set(numbers(platform)) == set(range(1, 101))
    assert site.account() == sums(seen=100, delivered=100)


def test_what_was_buried_too_early_is_raised_again(site: Site) -> None:
    """Few events come while the platform is broken: the first ones die one by one, as poison would.

    When the fifth in a row is refused it is clear what is wrong, and all of them live again, under
    their old keys.
    """
    retry = {"base": "100ms", "cap": "200ms", "reject_after": 1}
    with Server(Reply(400)) as platform, site.uploader(platform, retry=retry) as uploader:
        for number in range(1, 5):
            site.add(number)
            uploader.run(lambda n=number: site.account()["dead"] == n)  # type: ignore[misc]
        site.add(5)
        uploader.run(lambda: uploader.queue.health.state == policy.PAUSED)
        uploader.run_for(10.0)
        assert site.account() == sums(seen=5, pending=5)
        platform.script = switch = Switch()
        uploader.run()
    assert sorted(switch.accepted) == [1, 2, 3, 4, 5]
    assert all(len(used) == 1 for used in keys(platform).values())
    assert site.account() == sums(seen=5, delivered=5)


def test_what_was_buried_before_a_restart_is_raised_again(site: Site) -> None:
    """That holds also where the uploader was restarted, and once it has crashed, in between.

    What an acceptance came after is no part of it, and stays dead.
    """
    retry = {"base": "100ms", "cap": "200ms", "reject_after": 1}
    with Server(Reply(400)) as platform:
        with site.uploader(platform, retry=retry) as uploader:
            site.add(1)
            uploader.run(lambda: site.account()["dead"] == 1)
            platform.script = Reply()
            site.add(2)
            uploader.run(lambda: site.account()["delivered"] == 1)
            platform.script = Reply(400)
        for number in range(3, 8):
            with site.uploader(platform, retry=retry) as uploader:
                # The last one's time ran ahead of this one's.
                uploader.run_for(60.0 * number)
                site.add(number)
                uploader.run_for(20.0)
                if number % 2:
                    uploader.crash()
        assert site.account() == sums(seen=7, delivered=1, dead=1, pending=5)
        platform.script = switch = Switch()
        with site.uploader(platform, retry=retry) as uploader:
            uploader.run()
    assert sorted(switch.accepted) == [3, 4, 5, 6, 7]
    assert all(len(used) == 1 for used in keys(platform).values())
    assert site.account() == sums(seen=7, delivered=6, dead=1)


def test_poison_among_good_events(site: Site) -> None:
    """Poison does not stand for all: it dies after its four attempts, and all others pass."""
    poison = {3, 20, 21, 50, 51, 52}
    site.add(*range(1, 121))
    with Server(refusing(poison, Reply(400))) as platform:
        deliver(site.configure(platform.url))
    assert site.account() == sums(seen=120, delivered=114, dead=6)
    assert {number: numbers(platform).count(number) for number in poison} == dict.fromkeys(
        poison, 4
    )


def test_poison_without_end_does_not_stand_in_front(site: Site) -> None:
    """Seventy events in a row that the platform rejects look as if it were broken: it is paused.

    Still every probe is another event, so it gets past them, and all that can be delivered is.
    Once good events pass now and then it is the poison's own fault again, and it dies; what died
    just before the platform looked broken once more is tried anew, all of its attempts.
    """
    poison = range(1, 71)
    site.add(*range(1, 101))
    script = refusing(poison, Reply(400))
    with Server(script) as platform, site.uploader(platform, **SLOW) as uploader:
        uploader.run(lambda: site.account()["delivered"] == 30)
        assert max(numbers(platform).count(number) for number in poison) <= 3
        number = 100
        while site.account()["dead"] < 70:
            number += 1
            assert number < 1000
            site.add(number)
            uploader.run_for(30.0)
        uploader.run()
    assert site.account() == sums(seen=number, delivered=number - 70, dead=70)
    assert {numbers(platform).count(number) % 4 for number in poison} == {0}


@pytest.mark.parametrize("count", [3, 100])
def test_events_that_kill_the_platform_hold_up_no_other(site: Site, count: int) -> None:
    """Events that always get a 500 are tried for ever, and all others are delivered meanwhile."""
    site.add(*range(1, count + 101))
    script = refusing(range(1, count + 1), Reply(500))
    with Server(script) as platform, site.uploader(platform, **SLOW) as uploader:
        uploader.run(lambda: site.account()["delivered"] == 100, within=20_000.0)
        live = uploader.now
        site.add(count + 101)
        uploader.run(lambda: site.account()["delivered"] == 101)
        assert uploader.now - live < 3600
        assert site.account() == sums(seen=count + 101, delivered=101, pending=count)
        platform.script = Reply()
        uploader.run()
    assert site.account() == sums(seen=count + 101, delivered=count + 101)
