"""The traps of tailing a table: wipes, replaced files, restored backups, late and changed rows."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from se3_uploader.source import Key, Look, Source, SourceError, open_source

from .http_server import Reply, Server
from .site import Site, Switch, Uploader, deliver, event, keys, number_of, numbers, refusing, sums

IN_ORDER = {"max_in_flight": 1}


@pytest.fixture(params=["wal", "delete"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """A box of either journal mode, whose table lacks AUTOINCREMENT as most ORMs make it."""
    return Site(tmp_path, journal=request.param, autoincrement=False)


def ids(site: Site) -> List[int]:
    """Ids that the event database gave out."""
    with closing(sqlite3.connect(site.events)) as database:
        return [row[0] for row in database.execute("SELECT id FROM event ORDER BY id")]


def generations(site: Site) -> int:
    """How many histories of the source the outbox knows."""
    return int(site.rows("SELECT max(number) FROM generation")[0][0])


def test_a_wipe_with_restarted_ids(site: Site) -> None:
    """All rows are deleted and ids start again: the new events arrive, under keys of their own."""
    site.add(*range(1, 11))
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
        site.remove()
        site.add(*range(101, 106))
        assert ids(site) == [1, 2, 3, 4, 5]
        uploader.run(lambda: len(platform.requests) == 15)
    assert sorted(numbers(platform)) == [*range(1, 11), *range(101, 106)]
    assert len({request.key for request in platform.requests}) == 15
    assert generations(site) == 2
    assert site.account() == sums(seen=15, delivered=15)


def test_a_wipe_that_has_grown_past_the_old_place(site: Site) -> None:
    """While the uploader is down all is wiped and more is written than before: nothing is skipped.

    The row at its place exists, yet it is another one.
    """
    site.add(*range(1, 11))
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
        site.remove()
        site.add(*range(101, 131))
        deliver(config)
    assert sorted(numbers(platform)) == [*range(1, 11), *range(101, 131)]
    assert generations(site) == 2


def test_cut_back_and_ids_used_again(site: Site) -> None:
    """The newest rows are deleted and their ids given out again: only the new events are sent."""
    site.add(*range(1, 11))
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
        site.remove(8, 9, 10)
        site.add(28, 29)
        assert ids(site) == list(range(1, 10))
        uploader.run(lambda: len(platform.requests) == 12)
        uploader.run_for(10.0)
    assert sorted(numbers(platform)) == [*range(1, 11), 28, 29]
    assert site.account() == sums(seen=12, delivered=12)


def test_cut_back_where_old_receipts_are_gone(site: Site) -> None:
    """What is older than the receipts is not taken for new when the newest rows are deleted."""
    site.add(*range(1, 11))
    with Server() as platform, site.uploader(platform, endpoint=IN_ORDER) as uploader:
        uploader.run()
        uploader.outbox.prune(uploader.clock.wall() + 1, 0, 5)
        site.remove(9, 10)
        uploader.run_for(5.0)
        assert generations(site) == 2
        site.add(29)
        uploader.run(lambda: 29 in numbers(platform))
        uploader.run_for(10.0)
    assert sorted(numbers(platform)) == [*range(1, 11), 29]


def test_lost_and_restored(site: Site) -> None:
    """A backup brings back what was deleted before it could be sent: it is sent, and once."""
    site.add(*range(1, 11))
    switch = Switch(Reply(503))
    backup = site.folder / "backup.db"
    with Server(switch) as platform:
        room = {"path": str(site.outbox), "max_size": 0, "min_free_disk": 0}
        with site.uploader(platform, outbox=room) as uploader:
            uploader.run(lambda: site.account()["pending"] == 10)
            site.run("VACUUM INTO ?", str(backup))
            site.add(11)
            site.remove(*range(1, 6))
            switch.down = None
            uploader.run(lambda: 11 in switch.accepted)
            uploader.run()
            assert site.account()["lost"] >= 2
            for path in site.folder.glob("event.db-*"):
                path.unlink()
            backup.replace(site.events)
            uploader.run(lambda: 1 in switch.accepted)
            uploader.run()
    assert sorted(switch.accepted) == list(range(1, 12))


def test_old_rows_deleted(site: Site) -> None:
    """Quota takes the oldest, even all but one: that is no new history, and nothing is repeated."""
    site.add(*range(1, 11))
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
        site.remove(*range(1, 10))
        site.add(11)
        uploader.run(lambda: len(platform.requests) == 11)
        site.remove(10)
        site.remove(11)
        site.add(12)
        uploader.run(lambda: 12 in numbers(platform))
        uploader.run_for(10.0)
    assert sorted(numbers(platform)) == list(range(1, 13))


def test_the_row_at_the_place_deleted(site: Site) -> None:
    """The last row seen is deleted and later ones follow: nothing is repeated, nothing skipped."""
    site.add(*range(1, 11))
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
        site.add(11, 12)
        site.remove(10)
        deliver(config)
    assert sorted(numbers(platform)) == list(range(1, 13))
    assert generations(site) == 1


def test_a_replaced_file(site: Site) -> None:
    """Another file is put at the path while ours is open: the new one is read, not the dead one."""
    site.add(*range(1, 6))
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
        fresh = Site(make(site.folder / "fresh"), journal=site.journal)
        fresh.add(*range(51, 54))
        move(fresh.events, site.events)
        uploader.run(lambda: len(platform.requests) == 8)
    assert sorted(numbers(platform)) == [1, 2, 3, 4, 5, 51, 52, 53]
    assert site.account() == sums(seen=8, delivered=8)


def make(folder: Path) -> Path:
    """Make a folder."""
    folder.mkdir()
    return folder


def move(new: Path, old: Path) -> None:
    """Put a database file in the place of another one, as a restore does."""
    with closing(sqlite3.connect(new)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
    for suffix in ("-wal", "-shm", "-journal"):
        if os.path.exists(f"{old}{suffix}"):
            os.remove(f"{old}{suffix}")
    os.replace(new, old)


def test_a_restored_backup(site: Site) -> None:
    """A backup from before is put back, and the box goes on: nothing is repeated, all new arrives.

    The ids behind the backup are given out a second time.
    """
    site.add(*range(1, 11))
    with closing(sqlite3.connect(site.events)) as database:
        database.execute("VACUUM INTO ?", (str(site.folder / "backup.db"),))
    with Server() as platform, site.uploader(platform) as uploader:
        site.add(*range(11, 16))
        uploader.run()
        move(site.folder / "backup.db", site.events)
        uploader.run_for(5.0)
        site.add(*range(21, 31))
        uploader.run(lambda: len(platform.requests) == 25)
        uploader.run_for(10.0)
    assert sorted(numbers(platform)) == [*range(1, 16), *range(21, 31)]
    assert site.account() == sums(seen=25, delivered=25)


def test_pending_events_of_a_wiped_source(site: Site) -> None:
    """A wipe in an outage costs what was not copied, counted to the last one, and nothing else.

    No event of the new history is sent in the place of an old one with the same id.
    """
    site.add(*range(1, 301))
    nothing = {"outbox": {"max_size": 1}}
    with Server(Reply(503)) as platform, site.uploader(platform, **nothing) as uploader:
        uploader.run(lambda: site.account()["pending"] == 300)
        site.remove()
        site.add(*range(1001, 1201))
        platform.script = switch = Switch()
        uploader.run()
    assert set(range(1001, 1201)) <= set(switch.accepted)
    assert len(switch.accepted) == len(set(switch.accepted))
    old = [number for number in switch.accepted if number <= 300]
    assert len({request.key for request in platform.requests}) >= len(switch.accepted)
    assert site.account() == sums(seen=500, delivered=200 + len(old), lost=300 - len(old))


def test_start_latest(site: Site) -> None:
    """A new installation with start: latest leaves the past alone, and takes all that follows.

    That decision is kept over a restart: what came while the uploader was down is sent.
    """
    site.add(*range(1, 11))
    with Server() as platform:
        config = site.configure(platform.url, source={"url": url(site), "start": "latest"})
        deliver(config)
        assert numbers(platform) == []
        site.add(11, 12)
        deliver(config)
        site.add(13)
        deliver(config)
    assert numbers(platform) == [11, 12, 13]
    assert site.account() == sums(seen=3, delivered=3)


def url(site: Site) -> str:
    """The url of the event database."""
    return f"sqlite:///{site.events}"


def test_start_latest_and_a_crash_at_once(site: Site) -> None:
    """Once a new installation has decided where it begins, what comes is kept over a power cut."""
    site.add(*range(1, 11))
    with Server() as platform:
        config = site.configure(platform.url, source={"url": url(site), "start": "latest"})
        with Uploader(config) as uploader:
            uploader.step()
            site.add(11)
            uploader.crash()
        deliver(config)
    assert numbers(platform) == [11]


@pytest.mark.parametrize("filled_first", [False, True])
def test_start_latest_on_an_empty_source(site: Site, filled_first: bool) -> None:
    """With nothing there yet everything is new; a wipe later does not make the past begin again."""
    with Server() as platform:
        config = site.configure(platform.url, source={"url": url(site), "start": "latest"})
        if filled_first:
            site.add(1, 2, 3)
        deliver(config)
        site.remove()
        site.add(101, 102)
        deliver(config)
    assert numbers(platform) == [101, 102]


def test_start_latest_and_a_crash_at_a_wipe(site: Site) -> None:
    """The power goes just after a wipe was noticed: the new history is read from its beginning.

    That a new installation would begin at its end has nothing to do with it.
    """
    site.add(1)
    with Server() as platform:
        config = site.configure(platform.url, source={"url": url(site), "start": "latest"})
        deliver(config)
        site.add(2)
        deliver(config)
        site.remove()
        site.add(11, 12, 13)
        with Uploader(config) as uploader:
            # The generation is there, the places of its endpoints are not written yet.
            uploader.outbox.new_generation("events")
            uploader.crash()
        deliver(config)
    assert sorted(numbers(platform)) == [2, 11, 12, 13]


def test_a_new_endpoint_later(site: Site) -> None:
    """An endpoint that is added later gets what the database still holds; the first one nothing
    twice."""
    site.add(*range(1, 11))
    with Server() as first, Server() as second:
        deliver(site.configure(first.url))
        site.remove(1, 2)
        deliver(site.configure(first.url, second.url))
    assert sorted(numbers(first)) == list(range(1, 11))
    assert sorted(numbers(second)) == list(range(3, 11))
    assert site.account("p1") == sums(seen=8, delivered=8)


def test_an_endpoint_that_moves(site: Site) -> None:
    """An endpoint keeps its place by its name when its url changes."""
    site.add(1, 2)
    with Server() as old, Server() as new:
        deliver(site.configure(old.url))
        site.add(3)
        deliver(site.configure(new.url))
    assert numbers(old) == [1, 2]
    assert numbers(new) == [3]


def test_a_source_that_moves(site: Site) -> None:
    """The same database at another path: source.name keeps the place, so nothing is repeated."""
    site.add(*range(1, 11))
    with Server() as platform:
        deliver(site.configure(platform.url))
        moved = site.folder / "elsewhere.db"
        with closing(sqlite3.connect(site.events)) as database:
            database.execute("VACUUM INTO ?", (str(moved),))
        site.events = moved
        site.add(11)
        deliver(site.configure(platform.url))
    assert sorted(numbers(platform)) == list(range(1, 12))
    assert generations(site) == 1


def test_a_row_changed_after_it_was_tried(site: Site) -> None:
    """A picture that comes late, or a corrected name, leave the idempotency key of an event alone.

    It is counted once, and what was delivered is not sent again for a change.
    """
    site.add(1, 2, 3)
    with Server(Reply(503)) as platform, site.uploader(platform) as uploader:
        uploader.run(lambda: {1, 2, 3} <= set(numbers(platform)))
        before = keys(platform)
        site.run("UPDATE event SET spot_pic = ?", b"\xff\xd8late")
        site.run("UPDATE event SET identity_name = 'corrected' WHERE identity_id = '2'")
        platform.script = switch = Switch()
        uploader.run()
        site.run("UPDATE event SET identity_name = 'again' WHERE identity_id = '2'")
        site.add(4)
        uploader.run(lambda: 4 in switch.accepted)
        uploader.run_for(10.0)
    assert sorted(switch.accepted) == [1, 2, 3, 4]
    assert {number: keys(platform)[number] for number in before} == before
    assert site.account() == sums(seen=4, delivered=4)


def test_changed_before_it_was_read_whole(site: Site) -> None:
    """Between seeing a row and sending it the box corrects it: the same event, as it is now."""
    site.add(*range(1, 40))
    nothing = {"outbox": {"min_free_disk": 2**50}}
    with Server(Reply(503)) as platform:
        uploader = site.uploader(platform, **nothing)
        uploader.run(lambda: site.account()["pending"] == 39)
        uploader.crash()
        tried = keys(platform)
        site.run("UPDATE event SET identity_name = 'corrected' WHERE id < 39")
        platform.script = Reply()
        deliver(site.configure(platform.url))
    sent = {number_of(request): request for request in platform.requests[-39:]}
    assert {sent[number].json()["identity_name"] for number in range(1, 39)} == {"corrected"}
    assert all(keys(platform)[number] == used for number, used in tried.items())
    assert site.account() == sums(seen=39, delivered=39)


def test_rows_settle_first(site: Site) -> None:
    """With source.settle a row that is too young waits, and then goes with what came late."""
    settle = {"url": url(site), "settle": "400ms", "poll_interval": "50ms"}
    with Server() as platform, site.uploader(platform, source=settle) as uploader:
        site.add(event(1, timestamp=int(time.time() * 1000)))
        uploader.step()
        site.run("UPDATE event SET spot_pic = ?", b"\xff\xd8late")
        uploader.run(lambda: len(platform.requests) == 1)
        uploader.run()
    assert platform.requests[0].json()["ext_data"]["spot_pic"]
    assert site.account() == sums(seen=1, delivered=1)


def test_the_source_fails_for_a_while(site: Site) -> None:
    """A database that cannot be read is reported, harms nothing, and is read again when it can."""
    site.add(1, 2, 3)
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
        away = site.folder / "away.db"
        os.rename(site.events, away)
        uploader.run_for(60.0)
        assert uploader.engine.source_error
        assert "unreadable" in uploader.engine.summary()
        os.rename(away, site.events)
        site.add(4)
        uploader.run(lambda: len(platform.requests) == 4)
        assert uploader.engine.source_error is None
    assert numbers(platform)[-1] == 4
    assert site.account() == sums(seen=4, delivered=4)


def test_a_source_that_does_not_exist_yet(tmp_path: Path) -> None:
    """The uploader may be there before the box wrote its first event."""
    site = Site(tmp_path)
    kept = tmp_path / "kept.db"
    shutil.move(str(site.events), kept)
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run_for(10.0)
        assert uploader.engine.source_error
        shutil.move(str(kept), site.events)
        site.add(1)
        uploader.run(lambda: len(platform.requests) == 1)
    assert site.account() == sums(seen=1, delivered=1)


class Late:
    """The real source of a database that makes rows visible out of order, as MySQL may."""

    ordered = False

    def __init__(self, source: Source) -> None:
        self._source = source
        self.hidden: Dict[Any, bool] = {}

    def look(self, after: Optional[Key], limit: int) -> Look:
        """Read as the real one does, without what is not visible yet."""
        look = self._source.look(after, limit)
        refs = [ref for ref in look.refs if not self.hidden.get(ref.key)]
        at = None if look.at and self.hidden.get(look.at.key) else look.at
        return Look(at, look.newest, refs)

    def changed(self) -> bool:
        """Nobody can know."""
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def test_rows_that_become_visible_late(tmp_path: Path) -> None:
    """A row that shows up behind the place within lookback arrives, once, and no other again."""
    site = Site(tmp_path)
    with Server() as platform:
        config = site.configure(platform.url)
        late = Late(open_source(config.source))
        with Uploader(config, source=late) as uploader:  # type: ignore[arg-type]
            site.add(*range(1, 21))
            late.hidden = {5: True, 6: True, 17: True}
            uploader.run(lambda: len(platform.requests) == 17)
            uploader.run_for(20.0)
            assert len(platform.requests) == 17
            late.hidden = {17: True}
            uploader.run(lambda: len(platform.requests) == 19, within=30.0)
            site.add(21)
            late.hidden = {}
            uploader.run(lambda: len(platform.requests) == 21, within=30.0)
            uploader.run_for(300.0)
    assert sorted(numbers(platform)) == list(range(1, 22))
    assert site.account() == sums(seen=21, delivered=21)


def test_the_place_survives_poison_and_crashes(site: Site) -> None:
    """Crashes at any moment of a drain lose nothing; only what was not recorded yet is repeated.

    What is repeated comes under its old key.
    """
    site.add(*range(1, 201))
    with Server(refusing([7], Reply(500))) as platform:
        for _ in range(8):
            uploader = site.uploader(platform)
            asked = len(platform.requests)
            uploader.run(lambda n=asked: len(platform.requests) > n + 20)  # type: ignore[misc]
            uploader.crash()
        platform.script = Reply()
        deliver(site.configure(platform.url))
    assert set(numbers(platform)) == set(range(1, 201))
    assert all(len(used) == 1 for used in keys(platform).values())
    assert site.account() == sums(seen=200, delivered=200)


def test_errors_of_the_source_hold_no_content(tmp_path: Path) -> None:
    """What is said about an unreadable database names no person."""
    site = Site(tmp_path)
    site.add(*(event(number, identity_name="绝密") for number in range(1, 200)))
    with Server() as platform, site.uploader(platform) as uploader:
        whole = site.events.read_bytes()
        site.events.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
        uploader.run_for(5.0)
        assert isinstance(uploader.engine.source_error, str)
        assert "绝密" not in uploader.engine.source_error
        with pytest.raises(SourceError):
            uploader.source.look(None, 10)
