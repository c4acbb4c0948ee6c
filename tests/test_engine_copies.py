"""Reference first, copy when at risk: what the box deletes before a platform took it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List

import pytest

from .http_server import DROP, Reply, Server
from .site import Site, Switch, Uploader, deliver, event, keys, number_of, refusing, sums

PICTURE = b"\xff\xd8" + os.urandom(3000)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A box that has not seen anybody yet."""
    return Site(tmp_path)


def copies(site: Site) -> int:
    """How many payloads the outbox holds."""
    return int(site.rows("SELECT count(*) FROM copy")[0][0])


def test_copies_stay_within_their_bound(site: Site) -> None:
    """No copy is made that is larger than what is left of max_size, not at the end either."""
    site.add(*(event(number, spot_pic=os.urandom(40_000)) for number in range(1, 21)))
    with Server(Reply(503)) as platform:
        config = site.configure(platform.url, outbox={"max_size": 130_000})
        with Uploader(config) as uploader:
            uploader.run_for(600)
            uploader.engine.copy_all()
    assert copies(site) == 2
    assert site.rows("SELECT sum(bytes) <= 130000 FROM copy") == [(1,)]


def test_no_copy_while_all_is_well(site: Site) -> None:
    """A healthy endpoint writes no payload into the outbox: the event database holds them."""
    site.add(*range(1, 201))
    with Server() as platform, site.uploader(platform) as uploader:
        most = 0

        def done() -> bool:
            nonlocal most
            most = max(most, copies(site))
            return uploader.engine.is_idle()

        uploader.run(done)
    assert most == 0
    assert site.account() == sums(seen=200, delivered=200)


def test_deleted_during_an_outage(site: Site) -> None:
    """What the box wrote before and during an outage, and deleted in it, arrives after it.

    Each with the content it had and under the key it was tried with.
    """
    site.add(*(event(number, spot_pic=PICTURE + bytes([number])) for number in range(1, 31)))
    with Server(DROP) as platform, site.uploader(platform) as uploader:
        uploader.run(lambda: copies(site) == 30)
        site.add(*(event(number, spot_pic=PICTURE + bytes([number])) for number in range(31, 61)))
        uploader.run(lambda: copies(site) == 60)
        tried = keys(platform)
        site.remove()
        asked = len(platform.requests)
        uploader.run_for(3600.0)
        asked = len(platform.requests)
        platform.script = Reply()
        uploader.run()
    arrived = {number_of(request): request for request in platform.requests[asked:]}
    assert set(arrived) == set(range(1, 61))
    for number, request in arrived.items():
        assert {request.key} == tried.get(number, {request.key})
        assert request.json()["identity_name"] == "张伟"
        assert request.json()["ext_data"]["spot_pic"]
    assert len({request.json()["ext_data"]["spot_pic"] for request in arrived.values()}) == 60
    assert site.account() == sums(seen=60, delivered=60)
    assert copies(site) == 0


def test_copies_survive_a_crash(site: Site) -> None:
    """Copies are on disk: deleted events arrive though the process died in the outage."""
    site.add(*range(1, 21))
    with Server(Reply(503)) as platform:
        uploader = site.uploader(platform)
        uploader.run(lambda: copies(site) == 20)
        uploader.crash()
        site.remove()
        platform.script = switch = Switch()
        deliver(site.configure(platform.url))
    assert sorted(switch.accepted) == list(range(1, 21))
    assert site.account() == sums(seen=20, delivered=20)


def test_beyond_the_budget_events_wait_in_the_source(site: Site) -> None:
    """Past max_size nothing more is copied and nothing is dropped for room: it all arrives."""
    site.add(*(event(number, spot_pic=PICTURE) for number in range(1, 101)))
    budget = {"max_size": 50_000}
    with Server(Reply(503)) as platform, site.uploader(platform, outbox=budget) as uploader:
        uploader.run_for(1800.0)
        held = site.rows("SELECT count(*), sum(bytes) FROM copy")[0]
        assert 0 < held[0] < 20
        assert held[1] <= 50_000
        assert uploader.outbox.copied_bytes == held[1]
        platform.script = switch = Switch()
        uploader.run()
    assert sorted(switch.accepted) == list(range(1, 101))
    assert site.account() == sums(seen=100, delivered=100)


def test_lost_beyond_the_budget_is_counted_exactly(site: Site) -> None:
    """Only what was neither delivered nor copied when the box deleted it is lost, with a reason."""
    site.add(*(event(number, spot_pic=PICTURE) for number in range(1, 101)))
    budget = {"max_size": 50_000}
    with Server(Reply(503)) as platform, site.uploader(platform, outbox=budget) as uploader:
        uploader.run_for(1800.0)
        kept = copies(site)
        site.remove()
        site.add(200)
        platform.script = switch = Switch()
        uploader.run()
    in_memory = len(set(switch.accepted)) - kept - 1
    # Payloads that were built already need no source; there are few of them.
    assert 0 <= in_memory < 70
    lost = 101 - len(switch.accepted)
    assert site.account() == sums(seen=101, delivered=len(switch.accepted), lost=lost)
    assert lost > 0
    reasons = site.rows("SELECT DISTINCT reason FROM delivery WHERE state = 3")
    assert reasons == [("the event database deleted it before it was sent",)]


def test_oldest_are_copied_first(site: Site) -> None:
    """The box deletes its oldest events first, so these are copied first."""
    site.add(*(event(number, spot_pic=PICTURE) for number in range(1, 101)))
    budget = {"max_size": 50_000}
    with Server(Reply(503)) as platform, site.uploader(platform, outbox=budget) as uploader:
        uploader.run_for(600.0)
        rows = site.rows(
            "SELECT key FROM delivery JOIN copy ON delivery_id = delivery.id ORDER BY key"
        )
        assert [key for (key,) in rows] == list(range(1, len(rows) + 1))


def test_free_disk_is_left_alone(site: Site) -> None:
    """With less than min_free_disk free on the disk of the outbox nothing is copied at all."""
    site.add(*range(1, 21))
    plenty = 2**50
    sections: Any = {"outbox": {"min_free_disk": plenty}}
    with Server(Reply(503)) as platform, site.uploader(platform, **sections) as uploader:
        uploader.run_for(1800.0)
        assert copies(site) == 0
        assert site.account() == sums(seen=20, pending=20)
        platform.script = Reply()
        uploader.run()
    assert site.account() == sums(seen=20, delivered=20)


def test_dead_letters_keep_their_copy_whatever_the_budget(site: Site) -> None:
    """A dead letter always keeps its payload, also where max_size allows no copy."""
    site.add(*range(1, 11))
    with Server(refusing([3], Reply(422))) as platform:
        deliver(site.configure(platform.url, outbox={"max_size": 1}))
    assert site.account() == sums(seen=10, delivered=9, dead=1)
    assert copies(site) == 1


def test_deleted_copies_leave_no_trace(site: Site) -> None:
    """What was delivered from a copy is overwritten: no name, no picture is left in the file."""
    secret, picture = "绝密的名字", os.urandom(30).hex()
    site.add(*(event(n, identity_name=secret, ep_id=picture) for n in range(1, 21)))
    with Server(Reply(503)) as platform, site.uploader(platform) as uploader:
        uploader.run(lambda: copies(site) == 20)
        assert any(secret.encode() in path.read_bytes() for path in files(site))
        platform.script = Reply()
        uploader.run()
    for path in files(site):
        held = path.read_bytes()
        assert secret.encode() not in held
        assert picture.encode() not in held
    assert site.account() == sums(seen=20, delivered=20)


def files(site: Site) -> List[Path]:
    """The outbox and its write-ahead log."""
    return [path for path in site.outbox.parent.iterdir() if not path.name.endswith("-shm")]


def test_a_copy_goes_under_the_policy_of_today(site: Site) -> None:
    """Pictures that the platform proves not to take are stripped from copies, too."""
    site.add(event(1, spot_pic=PICTURE))
    with Server(Reply(503)) as platform, site.uploader(platform) as uploader:
        uploader.run(lambda: copies(site) == 1)
        site.remove()
        platform.script = lambda request: Reply(413 if len(request.body) > 1000 else 200)
        uploader.run()
    assert "spot_pic" not in platform.requests[-1].json()["ext_data"]
    assert site.account() == sums(seen=1, delivered=1)
