"""A backfill beside other processes: a daemon that comes and goes, interruptions, another one."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Dict, List

import pytest

from se3_uploader.lock import Lock

from .backfills import backfill, end, filled, span, start
from .http_server import Reply, Request, Server
from .site import Process, Site, deliver, keys, number_of, numbers, sums

SLOW = Reply(delay=0.02)


def assert_each_once(platform: Server, first: int, after: int) -> None:
    """Every event of a range arrived exactly once."""
    assert sorted(numbers(platform)) == list(range(first, after))


def test_running_daemon_delivers_what_the_backfill_queues(tmp_path: Path) -> None:
    """Beside a daemon the backfill only queues: all requests come from the daemon, each once."""
    site = filled(tmp_path, 300)
    with Server() as platform:
        config = site.configure(platform.url, source={"start": "latest"})
        with Process(config) as daemon:
            daemon.wait_for("ready")
            site.add(301)
            platform.wait_for(1)
            used = platform.connections
            done = backfill(config, *span(101, 301))
            assert (done.code, done.summary) == (0, {"p0": {"delivered": 200}})
            assert_each_once(platform, 101, 302)
            assert platform.connections <= used + 4
            daemon.signal(signal.SIGTERM)
            daemon.end()
    assert site.account() == sums(seen=201, delivered=201)


def test_daemon_takes_over_from_a_backfill_and_gives_back(tmp_path: Path) -> None:
    """A daemon that starts meanwhile delivers the rest; when it stops, the backfill goes on."""
    site = filled(tmp_path, 900)
    with Server(SLOW) as platform:
        config = site.configure(platform.url, source={"start": "latest"})
        running = start(config, "--json", *span(1, 901))
        platform.wait_for(50)
        with Process(config) as daemon:
            daemon.wait_for("ready")
            taken_over = len(platform.requests)
            platform.wait_for(taken_over + 100)
            daemon.signal(signal.SIGTERM)
            assert daemon.end() == 0
        assert len(platform.requests) < 850, "the daemon delivered all: nothing is shown"
        done = end(running)
        assert (done.code, done.summary) == (0, {"p0": {"delivered": 900}})
        assert_each_once(platform, 1, 901)
    assert site.account() == sums(seen=900, delivered=900)


def test_events_written_meanwhile_go_out_once(tmp_path: Path) -> None:
    """A range that reaches beyond now, rows still being written: the two share them out."""
    site = filled(tmp_path, 200)
    with Server(SLOW) as platform:
        config = site.configure(platform.url)
        with Process(config) as daemon:
            daemon.wait_for("ready")
            running = start(config, "--json", *span(1, 100_000))
            for number in range(201, 401):
                site.add(number)
            done = end(running)
            platform.wait_until(lambda: len(set(numbers(platform))) == 400, 30)
            daemon.signal(signal.SIGTERM)
            daemon.end()
        assert done.code in (0, 75)
        assert_each_once(platform, 1, 401)
    assert site.account() == sums(seen=400, delivered=400)


@pytest.mark.parametrize(("delay", "old", "live"), [(0.01, 100, 20), (0.15, 20, 8)])
def test_live_events_overtake_a_backfill(tmp_path: Path, delay: float, old: int, live: int) -> None:
    """While a backfill runs beside the daemon a live event waits for none of its events.

    Nor for those that are built already, where the platform is far away.
    """
    site = filled(tmp_path, 1500)
    with Server(Reply(delay=delay)) as platform:
        config = site.configure(platform.url, source={"start": "latest"})
        with Process(config) as daemon:
            daemon.wait_for("ready")
            running = start(config, *span(1, 1501))
            platform.wait_for(old)
            waits = live_latencies(site, platform, 2001, live)
            assert running.poll() is None, "the backfill ended too soon to show anything"
            platform.script = Reply()
            assert end(running).code == 0
    assert max(waits) < 1.0


def live_latencies(site: Site, platform: Server, first: int, count: int) -> List[float]:
    """Write events one after the other; seconds until the platform has each."""
    waits = []
    for number in range(first, first + count):
        site.add(number)
        began = time.monotonic()
        arrived: Dict[int, float] = {}

        def has_come(number: int = number, arrived: Dict[int, float] = arrived) -> bool:
            arrived.update({number_of(one): one.at for one in platform.requests[-200:]})
            return number in arrived

        platform.wait_until(has_come)
        waits.append(arrived[number] - began)
    return waits


def test_killed_backfill_goes_on_where_it_was(tmp_path: Path) -> None:
    """After kill -9 the same command sends the rest; only what was in flight can come again."""
    site = filled(tmp_path, 600)
    deliver_nothing_yet = {"start": "latest"}
    with Server(SLOW) as platform:
        config = site.configure(platform.url, source=deliver_nothing_yet)
        for stop in (60, 200, 350):
            running = start(config, *span(1, 601))
            platform.wait_for(stop)
            running.kill()
            end(running)
        done = backfill(config, *span(1, 601))
        assert (done.code, done.summary) == (0, {"p0": {"delivered": 600}})
        sent = numbers(platform)
        assert set(sent) == set(range(1, 601))
        # Four in flight, and what was answered but not yet recorded (recorder: 250 ms, at 200/s).
        assert len(sent) - 600 <= 3 * 60
        assert {len(each) for each in keys(platform).values()} == {1}
    assert site.account() == sums(seen=600, delivered=600)


def test_interrupted_resend_sends_each_event_once_more(tmp_path: Path) -> None:
    """Ctrl-C ends what is in flight: over all interruptions --resend repeats each event once."""
    site = filled(tmp_path, 500)
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
        platform.script = SLOW
        for stop, number in ((550, signal.SIGINT), (650, signal.SIGTERM), (750, signal.SIGHUP)):
            running = start(config, "--json", *span(1, 501), "--resend")
            platform.wait_for(stop)
            running.send_signal(number)
            done = end(running)
            assert done.code == 75
            assert done.objects("summary")[0]["interrupted"] is True
            assert sum(done.summary["p0"].values()) == 500
        assert backfill(config, *span(1, 501), "--resend").code == 0
        assert sorted(numbers(platform)) == sorted([*range(1, 501)] * 2)
    assert site.account() == sums(seen=500, delivered=500)


def test_daemon_finishes_what_an_interrupted_backfill_queued(tmp_path: Path) -> None:
    """Queued events need no second call of the command: the daemon delivers them."""
    site = filled(tmp_path, 400)
    with Server(SLOW) as platform:
        config = site.configure(platform.url, source={"start": "latest"})
        running = start(config, *span(1, 401))
        platform.wait_for(20)
        running.kill()
        end(running)
        deliver(config)
        assert set(numbers(platform)) == set(range(1, 401))
    assert site.account() == sums(seen=400, delivered=400)


def test_two_backfills_at_once(tmp_path: Path) -> None:
    """Two that overlap, and two of the same words, share the range: each event goes out once."""
    site = filled(tmp_path, 500)
    with Server(SLOW) as platform:
        config = site.configure(platform.url)
        words = [span(1, 401), span(101, 501), span(1, 401)]
        running = [start(config, "--json", *each) for each in words]
        done = [end(each) for each in running]
        assert [(each.code, each.err) for each in done] == [(0, "")] * 3
        assert [each.summary["p0"] for each in done] == [{"delivered": 400}] * 3
        assert_each_once(platform, 1, 501)


def test_backfill_waits_for_run_once(tmp_path: Path) -> None:
    """While `run --once` delivers, the backfill queues, and delivers as soon as that has ended."""
    site = filled(tmp_path, 100)
    hold = threading.Event()

    def first_waits(request: Request) -> Reply:
        return Reply(delay=2.0) if number_of(request) == 1 and not hold.is_set() else Reply()

    with Server(first_waits) as platform:
        config = site.configure(platform.url)
        with Process(config, "--once") as once:
            platform.wait_for(50)
            running = start(config, "--json", *span(1, 101))
            assert once.end() == 0
            hold.set()
            done = end(running)
        assert (done.code, done.summary) == (0, {"p0": {"delivered": 100}})
        assert_each_once(platform, 1, 101)


def test_endpoint_that_the_daemon_does_not_know(tmp_path: Path) -> None:
    """An endpoint added to the file needs a reload of the daemon first, which is said."""
    site = filled(tmp_path, 10)
    config = site.configure("http://127.0.0.1:9/")
    with Process(config) as daemon:
        daemon.wait_for("ready")
        config = site.configure("http://127.0.0.1:9/", "http://127.0.0.1:10/")
        done = backfill(config, *span(1, 5))
    assert done.code == 75
    assert "does not know p1 yet: reload the daemon" in done.err


def test_unreadable_source_is_waited_for_and_told(tmp_path: Path) -> None:
    """Where the event database goes away meanwhile, it ends with 75 after a while and resumes."""
    site = filled(tmp_path, 3000)
    with Server(SLOW) as platform:
        config = site.configure(platform.url)
        running = start(config, "--json", *span(1, 3001), patience=1.5)
        platform.wait_for(20)
        away = site.events.with_name("away.db")
        site.events.rename(away)
        done = end(running)
        assert done.code == 75
        assert str(site.events) in done.objects("summary")[0]["trouble"]
        assert sum(done.summary["p0"].values()) == 3000
        away.rename(site.events)
        platform.script = Reply()
        assert backfill(config, *span(1, 3001)).summary == {"p0": {"delivered": 3000}}
        assert_each_once(platform, 1, 3001)


def test_locked_outbox_folder(tmp_path: Path) -> None:
    """Whoever holds the lock without delivering leaves the backfill waiting, not sending twice."""
    site = filled(tmp_path, 10)
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
        lock = Lock(config.outbox.path)
        assert lock.acquire("once") is None
        done = backfill(config, *span(1, 11), "--resend", patience=1.0)
        assert done.code == 75
        assert len(platform.requests) == 10
        lock.release()
        assert backfill(config, *span(1, 11), "--resend").code == 0
        assert len(platform.requests) == 20
    assert os.path.exists(config.outbox.path)
