"""Status reports beside events: neither delays the other, and a day of them leaves no trace."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path
from typing import Any, Callable, Dict, List

import psutil
import pytest

from se3_uploader.config import Endpoint
from se3_uploader.engine import Engine
from se3_uploader.engine.recorder import Clock
from se3_uploader.outbox import Outbox
from se3_uploader.policy import Answer
from se3_uploader.sink import Delivery
from se3_uploader.source import open_source

from .http_server import HANG, Reply, Server
from .site import Site, numbers, sums

MIB = 1024**2


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A box that has not seen anybody yet."""
    return Site(tmp_path)


def status(platform: Server, **keys: Any) -> Dict[str, Any]:
    """The section for status reports to a platform."""
    limits = {"timeout": {"connect": "1s", "read": "20s", "total": "20s"}}
    return {"endpoints": [{"url": platform.url, "name": "status", **limits}], **keys}


def report(number: int) -> Dict[str, Any]:
    """A report that can be told apart."""
    return {"gateway_name": f"report {number}", "gateway_status": "online"}


def names(platform: Server) -> List[str]:
    """Which reports a platform was asked to take."""
    return [request.json()["gateway_name"] for request in platform.requests]


def test_a_report_is_posted(site: Site) -> None:
    """A report goes as it is, under an idempotency key of its own, and leaves no row behind."""
    with Server() as events, Server() as reports:
        uploader = site.uploader(events, device_status=status(reports))
        with uploader:
            for number in range(3):
                uploader.engine.report(report(number))
                uploader.run(lambda n=number: len(reports.requests) == n + 1)  # type: ignore[misc]
            uploader.run_for(2.0)
    assert [request.json() for request in reports.requests] == [report(n) for n in range(3)]
    assert len({request.key for request in reports.requests}) == 3
    assert site.rows("SELECT count(*) FROM delivery") == [(0,)]
    assert site.account("status") == sums(seen=3, delivered=3)


def test_keep_latest(site: Site) -> None:
    """After hours offline the platform gets one fresh report at once, not hundreds of old ones."""
    with Server() as events, Server(Reply(503)) as reports:
        uploader = site.uploader(events, device_status=status(reports))
        with uploader:
            for number in range(180):
                uploader.engine.report(report(number))
                uploader.run_for(20.0)
            assert site.account("status")["pending"] == 1
            asked = len(reports.requests)
            reports.script = Reply()
            uploader.run(lambda: not site.account("status")["pending"], within=300.0)
            late = names(reports)[asked:]
    assert late == ["report 179"]


def test_a_report_that_was_on_its_way_gives_way_to_newer_ones(site: Site) -> None:
    """One that fails after a newer one has come is dropped: only the freshest is sent."""
    with Server() as events, Server(Reply(503, delay=0.5)) as reports:
        uploader = site.uploader(events, device_status=status(reports))
        with uploader:
            uploader.engine.report(report(0))
            uploader.run(lambda: len(reports.requests) == 1)
            uploader.engine.report(report(1))
            reports.script = Reply(503)
            for number in range(2, 6):
                uploader.run_for(20.0)
                uploader.engine.report(report(number))
            asked = len(reports.requests)
            reports.script = Reply()
            uploader.run(lambda: not site.account("status")["pending"], within=300.0)
            late = names(reports)[asked:]
    assert late == ["report 5"]
    assert site.rows("SELECT count(*) FROM delivery") == [(0,)]
    assert site.rows("SELECT count(*) FROM copy") == [(0,)]
    assert site.account("status") == sums(seen=1, delivered=1)


def test_keep_all(site: Site) -> None:
    """With keep: all every report waits, whole, also over a restart, and all arrive."""
    with Server() as events, Server(Reply(503)) as reports:
        section = {"device_status": status(reports, keep="all")}
        with site.uploader(events, **section) as uploader:
            for number in range(30):
                uploader.engine.report(report(number))
                uploader.run_for(20.0)
        asked = len(reports.requests)
        reports.script = Reply()
        with site.uploader(events, **section) as uploader:
            uploader.run(lambda: not site.account("status")["pending"])
        assert sorted(names(reports)[asked:]) == sorted(f"report {n}" for n in range(30))
    assert site.account("status") == sums(seen=30, delivered=30)


def test_keep_all_within_the_bounds(site: Site) -> None:
    """Beyond max_size even keep: all replaces, so that nothing grows without end."""
    with Server() as events, Server(Reply(503)) as reports:
        sections = {
            "device_status": status(reports, keep="all"),
            "outbox": {"path": str(site.outbox), "max_size": 1000, "min_free_disk": 0},
        }
        with site.uploader(events, **sections) as uploader:
            for number in range(200):
                uploader.engine.report(report(number))
                uploader.run_for(20.0)
            held = site.rows("SELECT count(*), sum(bytes) FROM copy")[0]
    assert 5 < held[0] < 30
    assert held[1] < 1200


def test_a_slow_status_platform_never_delays_events(site: Site) -> None:
    """While reports hang events are delivered as ever, and the other way round."""
    with Server() as events, Server(HANG) as reports:
        with site.uploader(events, device_status=status(reports)) as uploader:
            uploader.engine.report(report(1))
            uploader.run(lambda: len(reports.requests) == 1)
            site.add(*range(1, 51))
            uploader.engine.look_soon()
            uploader.run(lambda: len(events.requests) == 50, patience=5.0)
            assert len(reports.requests) == 1
        reports.script = Reply()
    assert sorted(numbers(events)) == list(range(1, 51))


def test_a_slow_event_platform_never_delays_reports(site: Site) -> None:
    """While all slots for events hang, reports arrive."""
    site.add(*range(1, 51))
    with Server(HANG) as events, Server() as reports:
        uploader = site.uploader(events, device_status=status(reports))
        with uploader:
            uploader.run(lambda: len(events.requests) == 1)
            for number in range(5):
                uploader.engine.report(report(number))
                uploader.run(lambda n=number: len(reports.requests) > n, patience=5.0)  # type: ignore[misc]
            events.disconnect()
            events.script = Reply()
    assert names(reports) == [f"report {number}" for number in range(5)]


class Instant:
    """In the place of the sink: answers at once, so that a day passes in minutes."""

    certificate_not_after = None

    def __init__(self, collect: Callable[[int, Answer], None], answers: Callable[[], Answer]):
        self._collect = collect
        self._answers = answers

    def submit(self, delivery: Delivery) -> None:
        """Answer."""
        self._collect(delivery.id, self._answers())

    def close(self, timeout: float) -> None:
        """Nothing is under way."""


@pytest.mark.parametrize("keep", ["latest", "all"])
@pytest.mark.parametrize("hours", [0.5, pytest.param(24, marks=pytest.mark.slow)])
def test_reports_leave_memory_and_outbox_flat(site: Site, keep: str, hours: float) -> None:
    """Hours of reports at 1 s, with outages of the platform: nothing has grown in the end."""
    with Server() as nobody:
        config = site.configure(
            nobody.url,
            device_status=status(nobody, interval="1s", keep=keep),
            source={"url": f"sqlite:///{site.events}", "poll_interval": "1h"},
        )
    now = 1000.0
    sent = itertools.count()

    def answers() -> Answer:
        away = now % 600 < 50
        next(sent)
        return Answer(status=503) if away else Answer(status=200, seconds=0.01)

    def sink(_: Endpoint, collect: Callable[[int, Answer], None]) -> Instant:
        return Instant(collect, answers)

    source = open_source(config.source)
    outbox = Outbox(config.outbox.path, lambda: now + 1.7e9)
    engine = Engine(
        config, source, outbox, sink,
        clock=Clock(lambda: now, lambda: now + 1.7e9), random=lambda: 0.5,
    )  # fmt: skip
    memory = []
    for second in range(int(hours * 3600)):
        engine.report(report(second))
        while engine.step() == 0.0:
            pass
        now += 1.0
        if second % 600 == 500:
            engine.flush()
            gc.collect()
            memory.append(psutil.Process().memory_info().rss)
            assert sum(path.stat().st_size for path in site.outbox.parent.iterdir()) < 8 * MIB
    engine.flush()
    outbox.close()
    source.close()
    assert next(sent) > 0.9 * hours * 3600
    assert memory[-1] < memory[0] + 2 * MIB, memory
    assert site.outbox.stat().st_size < MIB // 4
    account = site.account("status")
    assert account["pending"] == account["dead"] == account["lost"] == 0
