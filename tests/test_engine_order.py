"""What goes first: strict order, live before old, and endpoints that do not wait for each other."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Dict, List

import pytest

from se3_uploader import policy

from .http_server import DROP, HANG, Reply, Request, Server
from .site import Site, Switch, Uploader, deliver, event, number_of, numbers, refusing, sums


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A box that has not seen anybody yet."""
    return Site(tmp_path)


def test_strict_order_under_failures(site: Site) -> None:
    """With max_in_flight 1 events are accepted in the order of the database, whatever happens.

    Half of all requests fail in one way or another, events keep coming, and the process dies twice.
    """
    rng = random.Random(3)
    accepted: List[int] = []
    bad = [Reply(500), Reply(503, headers={"Retry-After": "1"}), Reply(429), DROP, Reply(401)]

    def script(request: Request) -> Reply:
        if rng.random() < 0.5:
            return rng.choice(bad)
        accepted.append(number_of(request))
        return Reply()

    one = {"endpoint": {"max_in_flight": 1}}
    with Server(script) as platform:
        for part in range(3):
            uploader = site.uploader(platform, **one)
            for number in range(part * 40, part * 40 + 40):
                site.add(number)
                uploader.run_for(rng.random())
            uploader.crash()
        with site.uploader(platform, **one) as uploader:
            uploader.run()
    # What was accepted just before a crash may come again, right after it.
    order = [n for place, n in enumerate(accepted) if n not in accepted[:place]]
    assert order == list(range(120))
    assert len(accepted) <= 120 + 2 * 100


def test_strict_order_waits_for_poison(site: Site) -> None:
    """Strictly in order nothing overtakes a rejected event: only once it is dead the next one goes.

    The same holds for one that is too large and goes again without its picture.
    """
    site.add(1, event(2, spot_pic=b"\xff" * 3000), 3, 4)

    def script(request: Request) -> Reply:
        if number_of(request) == 3:
            return Reply(400)
        return Reply(413 if len(request.body) > 2000 else 200)

    one = {"max_in_flight": 1}
    with Server(script) as platform, site.uploader(platform, endpoint=one) as uploader:
        uploader.run()
    assert numbers(platform) == [1, 2, 2, 3, 3, 3, 3, 4]
    assert site.account() == sums(seen=4, delivered=3, dead=1)


def test_live_before_backlog(site: Site) -> None:
    """After an outage an event that happens now does not wait until the backlog is through."""
    site.add(*range(1, 1001))
    switch = Switch(Reply(503))
    with Server(switch) as platform, site.uploader(platform) as uploader:
        uploader.run(lambda: site.account()["pending"] == 1000)
        switch.down = None
        uploader.run(lambda: len(switch.accepted) > 100)
        site.add(5000)
        uploader.engine.look_soon()
        uploader.run()
    assert set(switch.accepted) == {*range(1, 1001), 5000}
    assert switch.accepted.index(5000) < 400


def test_one_endpoint_down_delays_no_other(site: Site) -> None:
    """Two of three platforms are dead, each in its own way: the third gets everything at once.

    The dead ones keep all of it pending, and get it when they are back.
    """
    limits = {"timeout": {"connect": "1s", "read": "30s", "total": "1m"}, "max_in_flight": 2}
    with Server() as well, Server(HANG) as hanging, Server(Reply(503)) as broken:
        uploader = site.uploader(well, hanging, broken, endpoint=limits)
        with uploader:
            site.add(*range(0, 50))
            uploader.run(lambda: site.account("p0")["delivered"] == 50)
            took = []
            for number in range(50, 70):
                began = time.monotonic()
                site.add(number)
                uploader.engine.look_soon()
                uploader.run(lambda n=number: n in numbers(well))  # type: ignore[misc]
                took.append(time.monotonic() - began)
            assert sorted(took)[len(took) // 2] < 2.0
            assert site.account("p0")["delivered"] == 70
            hanging.script = broken.script = Reply()
            hanging.disconnect()
            uploader.run()
    for name, platform in (("p1", hanging), ("p2", broken)):
        assert set(numbers(platform)) == set(range(70))
        assert site.account(name) == sums(seen=70, delivered=70)


def test_pictures_by_endpoint(site: Site) -> None:
    """Each endpoint gets the pictures that its own policy sends, under the same key."""
    site.add(event(1, reg_pic=b"\xff\xd8reg", spot_pic=b"\xff\xd8spot"))
    with Server() as full, Server() as bare:
        stripped = {"pictures": {"reg_pic": "strip", "spot_pic": "strip"}}
        config = site.configure(
            history_event={
                "endpoints": [
                    {"url": full.url, "name": "p0"},
                    {"url": bare.url, "name": "p1", **stripped},
                ]
            }
        )
        with Uploader(config) as uploader:
            uploader.run()
    (one,), (other,) = full.requests, bare.requests
    assert "reg_pic" in one.json()
    assert "spot_pic" in one.json()["ext_data"]
    assert "reg_pic" not in other.json()
    assert "spot_pic" not in other.json()["ext_data"]
    assert one.key == other.key


class Counting:
    """A platform that answers when it is told to, and knows how many wait for their answer."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self, _: Request) -> Reply:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        threading.Timer(0.02, self._done).start()
        return Reply(delay=0.03)

    def _done(self) -> None:
        with self._lock:
            self._now -= 1


def test_slow_start_after_an_outage(site: Site) -> None:
    """While a platform is away one request at a time asks; then in-flight grows by answers."""
    site.add(*range(1, 201))
    counting = Counting()
    with Server(Reply(503)) as platform:
        uploader = site.uploader(platform, endpoint={"max_in_flight": 8})
        with uploader:
            uploader.run(lambda: uploader.queue.health.failures >= 4)
            asked = len(platform.requests)
            assert uploader.queue.health.allowed == 1.0
            platform.script = counting
            uploader.run()
            assert uploader.queue.health.allowed == 8.0
    assert 2 <= counting.most <= 8
    first = [request.at for request in platform.requests[asked:]]
    assert first[1] - first[0] >= 0.03, "the second went before the first was answered"


def test_overload_shrinks_what_is_in_flight(site: Site) -> None:
    """A 429 takes an endpoint back to a single request, and it earns the others again."""
    site.add(*range(1, 301))
    seen: Dict[int, float] = {}

    def script(_: Request) -> Reply:
        seen[len(platform.requests)] = uploader.queue.health.allowed
        return Reply(429 if 100 <= len(platform.requests) < 110 else 200)

    with Server(script) as platform, site.uploader(platform) as uploader:
        uploader.run()
    assert seen[99] == 4.0
    assert min(seen[place] for place in range(101, 112)) == 1.0
    assert seen[300] == 4.0
    assert site.account() == sums(seen=300, delivered=300)


def test_probes_are_single(site: Site) -> None:
    """However many events wait, a platform that is away is asked by one request at a time."""
    site.add(*range(1, 101))
    with Server(Reply(503, delay=0.02)) as platform, site.uploader(platform) as uploader:
        uploader.run(lambda: uploader.queue.health.failures >= 10)
        assert uploader.queue.health.state == policy.RETRYING
        assert len(platform.requests) <= 4 + 10


def test_poison_of_one_endpoint_is_no_other_ones(site: Site) -> None:
    """An event that one platform rejects is dead there, and delivered everywhere else."""
    site.add(1, 2, 3)
    with Server(refusing([2], Reply(422))) as picky, Server() as easy:
        deliver(site.configure(picky.url, easy.url))
    assert site.account("p0") == sums(seen=3, delivered=2, dead=1)
    assert site.account("p1") == sums(seen=3, delivered=3)
