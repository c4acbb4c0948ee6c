"""Our own disk and our own database fail: delivery goes on, and the account stays exact."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest

from se3_uploader.agent import run_once
from se3_uploader.outbox import OutboxError

from .http_server import DROP, Reply, Request, Server
from .site import SUMS, Process, Site, Switch, Uploader, deliver, keys, number_of, numbers, sums


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A box that has not seen anybody yet."""
    return Site(tmp_path)


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    """A disk of 1 MiB where the outbox is."""
    folder = site.outbox.parent
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk, which takes root: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill a disk to its last byte; returns the file that does."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return filler


def test_disk_full(site: Site, small_disk: Path) -> None:
    """With no room left what was seen is delivered, and nothing new is taken in until there is.

    Then all of it arrives, each event once, and the account is exact.
    """
    site.add(*range(1, 51))
    switch = Switch(Reply(503))
    with Server(switch) as platform, site.uploader(platform) as uploader:
        uploader.run(lambda: site.account()["pending"] == 50)
        filler = fill(small_disk)
        switch.down = None
        uploader.run(lambda: len(switch.accepted) == 50)
        site.add(*range(51, 61))
        uploader.run_for(60.0)
        assert "disk" in (uploader.engine.outbox_error or "")
        assert "full" in uploader.engine.summary()
        assert len(switch.accepted) == 50
        filler.unlink()
        uploader.run()
        assert uploader.engine.outbox_error is None
    assert sorted(switch.accepted) == list(range(1, 61))
    assert site.account() == sums(seen=60, delivered=60)


def test_disk_full_at_the_start(site: Site, small_disk: Path) -> None:
    """An outbox that cannot even be made is an error that says what to do, not a crash."""
    site.add(1)
    filler = fill(small_disk)
    with Server() as platform:
        config = site.configure(platform.url)
        with pytest.raises(OutboxError, match=r"disk|make room"):
            run_once(config)
        filler.unlink()
        assert run_once(config) == 0
    assert numbers(platform) == [1]


def test_disk_read_only(site: Site, small_disk: Path) -> None:
    """On a disk mounted read-only nothing is begun, the error says so, and later all is well."""
    site.add(*range(1, 6))
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(OutboxError, match=r"cannot (be written|make or open)"):
            run_once(config)
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        site.add(6)
        deliver(config)
    assert sorted(numbers(platform)) == list(range(1, 7))
    assert site.account() == sums(seen=6, delivered=6)


def test_written_by_somebody_for_long(site: Site) -> None:
    """Another process keeps the outbox locked: delivery goes on, then everything is recorded."""
    site.add(1)
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
        uploader.outbox._database.execute_sql("PRAGMA busy_timeout = 100")
        with closing(sqlite3.connect(site.outbox, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            site.add(2)
            uploader.run(lambda: len(platform.requests) == 2)
            uploader.run_for(5.0)
            assert "writing" in (uploader.engine.outbox_error or "")
            other.execute("ROLLBACK")
        uploader.run()
    assert numbers(platform) == [1, 2]
    assert site.account() == sums(seen=2, delivered=2)


def damage(site: Site) -> None:
    """Overwrite the outbox with what is no database any more.

    The -shm too: by it SQLite knows that what it has in memory still holds, and need not be read.
    """
    for path in site.outbox.parent.glob("outbox.db*"):
        with open(path, "r+b") as file:
            file.write(os.urandom(max(4096, path.stat().st_size)))


def quarantined(site: Site) -> List[Path]:
    """Outboxes that were put aside."""
    return list(site.outbox.parent.glob("outbox.db.damaged-????????-??????"))


def test_damaged_outbox_at_the_start(site: Site) -> None:
    """A damaged outbox is put aside, and what the source holds is sent under the same keys."""
    site.add(*range(1, 21))
    with Server() as platform:
        config = site.configure(platform.url, source={"url": url(site), "start": "latest"})
        deliver(config)
        site.add(*range(21, 41))
        deliver(config)
        damage(site)
        site.add(41)
        deliver(config)
    # A new outbox knows nothing of start: latest either; better twice than never.
    assert set(numbers(platform)[:20]) == set(range(21, 41))
    assert set(numbers(platform)[20:]) == set(range(1, 42))
    assert all(len(used) == 1 for used in keys(platform).values())
    assert len(quarantined(site)) == 1
    assert site.account() == sums(seen=41, delivered=41)


def test_damaged_outbox_and_a_crash_before_the_first_commit(site: Site) -> None:
    """The power goes before anything is recorded in the new outbox: still nothing is skipped."""
    site.add(*range(1, 21))
    with Server() as platform:
        config = site.configure(platform.url, source={"url": url(site), "start": "latest"})
        deliver(config)
        damage(site)
        with Uploader(config) as uploader:
            uploader.crash()
        assert site.rows("SELECT count(*) FROM ledger") == [(0,)]
        deliver(config)
        site.add(21)
        deliver(config)
    assert sorted(numbers(platform)) == list(range(1, 22))


def url(site: Site) -> str:
    """The url of the event database."""
    return f"sqlite:///{site.events}"


def test_outbox_damaged_while_running(site: Site) -> None:
    """Damage that shows while the daemon runs is dealt with on the spot, and said loudly."""
    site.add(*range(1, 21))
    with Server() as platform:
        config = site.configure(platform.url)
        deliver(config)
        with Process(config) as daemon:
            daemon.wait_for("ready")
            site.add(21)
            while site.account()["delivered"] < 21:
                pass  # until all that belongs to a start is done and written
            damage(site)
            site.add(*range(22, 31))
            daemon.wait_for("moved aside")
            platform.wait_until(lambda: set(range(22, 31)) <= set(numbers(platform)))
            platform.wait_until(lambda: numbers(platform).count(1) == 2)
            daemon.signal(15)
            assert daemon.end() == 0
    assert all(len(used) == 1 for used in keys(platform).values())
    assert set(numbers(platform)) == set(range(1, 31))
    assert len(quarantined(site)) == 1
    assert site.account() == sums(seen=30, delivered=30)


def test_outbox_damaged_on_a_full_disk(site: Site, small_disk: Path) -> None:
    """Until there is room for a new outbox nothing is taken in; reports wait, and none is lost."""
    site.add(*range(1, 21))
    with Server() as platform, Server() as reports:
        status = {"endpoints": [{"url": reports.url, "name": "status"}], "keep": "all"}
        with site.uploader(platform, device_status=status) as uploader:
            uploader.run()
            damage(site)
            filler = fill(small_disk)
            site.add(21)
            uploader.run(lambda: bool(uploader.engine.outbox_error))
            for number in range(3):
                uploader.engine.report({"number": number})
                uploader.run_for(20.0)
            filler.unlink()
            uploader.run()
            uploader.run(lambda: len(reports.requests) == 3)
    assert sorted(request.json()["number"] for request in reports.requests) == [0, 1, 2]
    assert set(numbers(platform)) == set(range(1, 22))
    assert len(quarantined(site)) == 1
    assert len(list(small_disk.glob("*.damaged-*"))) <= 3, "with -wal and -shm"


def test_the_account_is_exact_at_every_commit(site: Site) -> None:
    """Whoever looks at the outbox while it is written sees accounts that balance.

    By endpoint and generation seen = pending + delivered + dead + lost, and each of them is the
    number of rows in that state.
    """
    seen: List[Tuple[int, ...]] = []
    wrong: List[object] = []
    stop = threading.Event()

    def watch() -> None:
        with closing(sqlite3.connect(f"file:{site.outbox}?mode=ro", uri=True)) as outbox:
            while not stop.wait(0.001):
                outbox.execute("BEGIN")
                account = outbox.execute(
                    f"SELECT {', '.join(f'coalesce(sum({name}), 0)' for name in SUMS)} FROM ledger"
                ).fetchone()
                rows = dict(outbox.execute("SELECT state, count(*) FROM delivery GROUP BY state"))
                outbox.execute("COMMIT")
                states = [rows.get(state, 0) for state in range(4)]
                seen.append(account)
                if account[0] != sum(account[1:]) or list(account[1:]) != states:
                    wrong.append((account, rows))

    count: Dict[int, int] = {}

    def script(request: Request) -> Reply:
        number = number_of(request)
        count[number] = count.get(number, 0) + 1
        if number % 50 == 0:
            return Reply(400)
        return DROP if number % 7 == 0 and count[number] == 1 else Reply()

    with Server(script) as platform:
        uploader = site.uploader(platform, retry={"base": "1ms", "cap": "5ms"})
        with uploader:
            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                for first in range(1, 601, 100):
                    site.add(*range(first, first + 100))
                    uploader.run(lambda n=first: site.account()["seen"] == n + 99)  # type: ignore[misc]
                    uploader.run()
            finally:
                stop.set()
                watcher.join()
    assert not wrong
    assert len(set(seen)) > 10
    assert site.account() == sums(seen=600, delivered=588, dead=12)
