"""What a backfill delivers: exactly its range, each event once, and a true account of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from .backfills import backfill, end, filled, span, start
from .http_server import Reply, Server
from .servers import free_port
from .site import Site, deliver, event, keys, numbers, refusing, sums


def test_range_is_half_open_and_each_event_is_sent_once(tmp_path: Path) -> None:
    """The first moment belongs to the range, the last does not; a second run sends nothing."""
    site = filled(tmp_path, 20)
    with Server() as platform:
        config = site.configure(platform.url)
        done = backfill(config, *span(5, 9))
        assert sorted(numbers(platform)) == [5, 6, 7, 8]
        assert (done.code, done.summary) == (0, {"p0": {"delivered": 4}})
        again = backfill(config, *span(3, 9))
        assert sorted(numbers(platform)) == [3, 4, 5, 6, 7, 8]
    assert again.plan["endpoints"][0]["known"]["delivered"] == 4
    assert again.plan["endpoints"][0]["to_send"] == 2
    assert (again.code, again.summary) == (0, {"p0": {"delivered": 6}})
    assert site.account() == sums(seen=6, delivered=6)


def test_events_out_of_order_in_time_are_found(tmp_path: Path) -> None:
    """The range is one of time, however the times stand in the table."""
    site = Site(tmp_path)
    site.add(*(event(n, timestamp=event(n * 7919 % 3001)["timestamp"]) for n in range(1, 3001)))
    with Server() as platform:
        assert backfill(site.configure(platform.url), *span(1000, 1100)).code == 0
        moments = sorted(request.json()["timestamp"] for request in platform.requests)
    assert moments == [event(n)["timestamp"] for n in range(1000, 1100)]


def test_start_latest_still_begins_at_the_newest_after_a_backfill(tmp_path: Path) -> None:
    """A backfill before the daemon's first start does not make it upload the whole past."""
    site = filled(tmp_path, 10)
    with Server() as platform:
        config = site.configure(platform.url, source={"start": "latest"})
        assert backfill(config, *span(3, 5)).code == 0
        site.add(11)
        deliver(config)
        assert sorted(numbers(platform)) == [3, 4, 11]


def test_live_path_skips_what_a_backfill_delivered(tmp_path: Path) -> None:
    """A daemon that starts after a backfill sends all the rest, and that once."""
    site = filled(tmp_path, 10)
    with Server() as platform:
        config = site.configure(platform.url)
        assert backfill(config, *span(4, 8)).code == 0
        deliver(config)
        assert sorted(numbers(platform)) == list(range(1, 11))
    assert site.account() == sums(seen=10, delivered=10)


def test_resend_sends_the_same_keys_once_more(tmp_path: Path) -> None:
    """With --resend each event goes out once more under its old idempotency key."""
    site = filled(tmp_path, 10)
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
        done = backfill(config, *span(3, 7), "--resend")
        assert done.plan["endpoints"][0]["to_send"] == 4
        assert sorted(numbers(platform)[10:]) == [3, 4, 5, 6]
        assert {len(each) for each in keys(platform).values()} == {1}
        assert backfill(config, *span(3, 7), "--resend").code == 0
        assert len(platform.requests) == 18
    assert site.account() == sums(seen=10, delivered=10)


def test_strip_leaves_the_pictures_out(tmp_path: Path) -> None:
    """--pictures strip sends the events without pictures and plans with fewer bytes."""
    site = filled(tmp_path, 3, reg_pic=b"\xff" * 9000, spot_pic=b"\xfe" * 9000)
    with Server() as platform:
        config = site.configure(platform.url)
        whole = backfill(config, *span(1, 4), "--dry-run").plan["endpoints"][0]["bytes"]
        done = backfill(config, *span(1, 4), "--pictures", "strip")
        assert done.code == 0
        assert max(len(request.body) for request in platform.requests) < 1000
        assert not any("reg_pic" in request.json() for request in platform.requests)
    assert whole > 3 * 24000 > 3000 > done.plan["endpoints"][0]["bytes"]


def test_rate_is_kept(tmp_path: Path) -> None:
    """--rate bounds the events a second, and what is known already is skipped at full speed."""
    site = filled(tmp_path, 400)
    with Server() as platform:
        config = site.configure(platform.url)
        assert backfill(config, *span(1, 351)).code == 0
        done = backfill(config, *span(1, 391), "--rate", "20")
        assert done.plan["seconds"] == 2.0
        times = [request.at for request in platform.requests[350:]]
    assert len(times) == 40
    assert 1.4 < times[-1] - times[0] < 4.0
    assert all(later - sooner > 0.5 for sooner, later in zip(times, times[25:]))


def test_each_endpoint_goes_at_its_own_pace(tmp_path: Path) -> None:
    """An endpoint that is down does not hold up another; the summary tells them apart."""
    site = filled(tmp_path, 1500)
    with Server() as platform:
        config = site.configure(f"http://127.0.0.1:{free_port()}/", platform.url)
        done = backfill(config, *span(1, 1501), patience=2.0)
        assert sorted(numbers(platform)) == list(range(1, 1501))
    assert done.code == 75
    assert done.summary == {"p0": {"pending": 1500}, "p1": {"delivered": 1500}}
    assert "refused" in done.objects("summary")[0]["trouble"]


def test_endpoints_are_chosen_and_known_apart(tmp_path: Path) -> None:
    """--endpoint sends to those named alone; the plan knows what each of them has."""
    site = filled(tmp_path, 6)
    with Server() as first, Server() as second, Server() as third:
        config = site.configure(first.url, second.url, third.url)
        assert backfill(config, *span(1, 4), "--endpoint", "p1").code == 0
        done = backfill(config, *span(1, 7), "--endpoint", "p2", "--endpoint", "p1")
        assert numbers(first) == []
        assert sorted(numbers(second)) == sorted(numbers(third)) == [1, 2, 3, 4, 5, 6]
    plans = {each["name"]: each for each in done.plan["endpoints"]}
    assert {name: each["to_send"] for name, each in plans.items()} == {"p1": 3, "p2": 6}
    assert plans["p1"]["known"]["delivered"] == 3
    assert plans["p2"]["known"]["delivered"] == 0


def test_dead_letters_are_told_and_not_sent_again(tmp_path: Path) -> None:
    """What the platform rejects is dead: exit 1, also the next time, when nothing is sent."""
    site = filled(tmp_path, 30)
    with Server(refusing([7], Reply(422))) as platform:
        config = site.configure(platform.url, retry={"base": 0.01, "reject_after": 2})
        done = backfill(config, *span(1, 31))
        assert (done.code, done.summary) == (1, {"p0": {"delivered": 29, "dead": 1}})
        sent = len(platform.requests)
        again = backfill(config, *span(1, 31))
        assert len(platform.requests) == sent
    assert (again.code, again.summary) == (1, {"p0": {"delivered": 29, "dead": 1}})


def test_platform_down_leaves_the_rest_and_the_same_command_resumes(tmp_path: Path) -> None:
    """Where nothing moves, it ends with 75, says why, and goes on when it is called again."""
    site = filled(tmp_path, 300)
    port = free_port()
    config = site.configure(f"http://127.0.0.1:{port}/HistoryEvent")
    done = end(start(config, *span(1, 301), patience=1.0))
    assert done.code == 75
    assert "300 pending" in done.out
    assert "refused" in done.out
    assert "the same command goes on" in done.out
    with Server(port=port) as platform:
        again = backfill(config, *span(1, 301))
        assert sorted(numbers(platform)) == list(range(1, 301))
    assert (again.code, again.summary) == (0, {"p0": {"delivered": 300}})
    assert again.plan["resumed"] is True


def test_queued_events_that_the_box_deletes_do_not_vanish_from_the_account(tmp_path: Path) -> None:
    """Rows deleted after they were queued are lost, in the outbox as in the summary."""
    site = filled(tmp_path, 20)
    port = free_port()
    config = site.configure(f"http://127.0.0.1:{port}/HistoryEvent", outbox={"max_size": 0})
    assert backfill(config, *span(1, 21), patience=1.0).code == 75
    site.remove(*range(1, 11))
    with Server(port=port) as platform:
        done = backfill(config, *span(1, 21))
        assert sorted(numbers(platform)) == list(range(11, 21))
    assert done.plan["events"] == 10
    assert (done.code, done.summary) == (1, {"p0": {"delivered": 10, "lost": 10}})
    assert site.account() == sums(seen=20, delivered=10, lost=10)


def test_what_is_queued_is_delivered_though_the_source_holds_nothing_any_more(
    tmp_path: Path,
) -> None:
    """Copies in the outbox are sent by the same command even where the plan finds no event."""
    site = filled(tmp_path, 5)
    port = free_port()
    config = site.configure(f"http://127.0.0.1:{port}/HistoryEvent")
    assert backfill(config, *span(1, 6), patience=4.0).code == 75
    site.remove()
    with Server(port=port) as platform:
        done = backfill(config, *span(1, 6))
        assert sorted(numbers(platform)) == [1, 2, 3, 4, 5]
    assert (done.code, done.summary) == (0, {"p0": {"delivered": 5}})


@pytest.mark.parametrize("left", [0, 3])
def test_wiped_source_is_another_one(tmp_path: Path, left: int) -> None:
    """After a wipe ids start again: known keys prove nothing, neither to the plan nor later."""
    site = Site(tmp_path, autoincrement=False)
    site.add(*range(1, 11))
    with Server() as platform:
        config = site.configure(platform.url)
        assert backfill(config, *span(1, 11)).code == 0
        site.remove()
        site.add(*range(21, 25 + left))
        done = backfill(config, *span(1, 40))
        assert sorted(numbers(platform)[10:]) == list(range(21, 25 + left))
    assert done.plan["endpoints"][0]["to_send"] == 4 + left
    assert (done.code, done.summary) == (0, {"p0": {"delivered": 4 + left}})


def test_restored_source_is_not_sent_again(tmp_path: Path) -> None:
    """Events of an older generation are known by their fingerprints; the plan says so, too."""
    site = Site(tmp_path, autoincrement=False)
    site.add(*range(1, 11))
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
        site.remove()
        site.add(*range(21, 24))
        deliver(config)
        site.remove()
        site.add(*range(1, 13))
        done = backfill(config, *span(1, 13))
        assert sorted(numbers(platform)[13:]) == [11, 12]
    assert done.plan["endpoints"][0]["to_send"] == 2
    assert (done.code, done.summary) == (0, {"p0": {"delivered": 12}})


def test_lost_event_that_is_back_is_sent(tmp_path: Path) -> None:
    """An event was lost because the box had deleted it: where the row is back, it is sent."""
    site = filled(tmp_path, 3)
    port = free_port()
    config = site.configure(f"http://127.0.0.1:{port}/HistoryEvent", outbox={"max_size": 0})
    assert backfill(config, *span(1, 4), patience=1.0).code == 75
    with closing(sqlite3.connect(site.events)) as database:
        rows = database.execute("SELECT * FROM event").fetchall()
    site.remove(2)
    with Server(port=port) as platform:
        assert backfill(config, *span(1, 4)).code == 1
        site.run(f"INSERT INTO event VALUES ({', '.join('?' * len(rows[1]))})", *rows[1])
        done = backfill(config, *span(1, 4))
        assert sorted(numbers(platform)) == [1, 2, 3]
    assert done.plan["endpoints"][0]["to_send"] == 1
    assert (done.code, done.summary) == (0, {"p0": {"delivered": 3}})
    assert site.account() == sums(seen=3, delivered=3)


def test_pending_live_events_of_the_range_are_delivered_and_counted(tmp_path: Path) -> None:
    """What a stopped daemon left pending belongs to the range as well, and is waited for."""
    site = filled(tmp_path, 8)
    port = free_port()
    config = site.configure(f"http://127.0.0.1:{port}/HistoryEvent")
    assert backfill(config, *span(3, 6), patience=1.0).code == 75
    with Server(port=port) as platform:
        done = backfill(config, *span(1, 8))
        assert sorted(numbers(platform)) == [1, 2, 3, 4, 5, 6, 7]
    assert done.plan["endpoints"][0]["known"]["pending"] == 3
    assert (done.code, done.summary) == (0, {"p0": {"delivered": 7}})


def test_text_keys(tmp_path: Path) -> None:
    """Keys need not be numbers: a plan, a resumption and a resend work with text."""
    site = Site(tmp_path)
    site.run("ALTER TABLE event ADD COLUMN uid TEXT")
    site.add(*(event(n, uid=f"k{n:04}-é") for n in range(1, 1301)))
    with Server() as platform:
        config = site.configure(platform.url, source={"key": "uid"})
        assert backfill(config, *span(1, 601)).code == 0
        done = backfill(config, *span(1, 1301))
        assert done.plan["endpoints"][0]["to_send"] == 700
        assert sorted(numbers(platform)) == list(range(1, 1301))
        assert backfill(config, *span(1, 3), "--resend").code == 0
        assert sorted(numbers(platform)[1300:]) == [1, 2]
    assert done.summary == {"p0": {"delivered": 1300}}
