"""What lies on the box's disk: who may read it, for how long it stays, and planted links."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Dict, List

import pytest

from se3_uploader import cli
from se3_uploader.outbox import Outbox, OutboxError
from tests.http_server import Reply, Server
from tests.site import Process, Site, Uploader, sums

from . import secrets_of as marked
from .secrets_of import secrets_in

DAY = 86400.0


def on_disk(site: Site) -> List[bytes]:
    """Which secrets stand in any file of the state folder."""
    return secrets_in(b"".join(path.read_bytes() for path in site.outbox.parent.iterdir()))


def modes(folder: Path) -> Dict[str, int]:
    """Name -> mode of a folder and what is in it."""
    found = {".": folder, **{path.name: path for path in folder.iterdir()}}
    return {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()}


def test_only_the_service_may_read_its_state(site: Site) -> None:
    """Under any umask, every file that a daemon makes is 0600, in a folder 0700."""
    before = os.umask(0)
    try:
        with Server(Reply(503)) as platform, Process(site.configure(platform.url)) as daemon:
            platform.wait_for(2)
            daemon.wait_for("does not take deliveries")
            found = modes(site.outbox.parent)
    finally:
        os.umask(before)
    assert found.pop(".") == 0o700
    assert {"outbox.db", "outbox.db-wal", "outbox.db.lock", "outbox.db.daemon.lock"} <= set(found)
    assert set(found.values()) == {0o600}


def test_an_outbox_that_others_could_read_is_closed_to_them(site: Site) -> None:
    """A mode that somebody changed is put right at the next start."""
    with Server() as platform:
        settings = site.configure(platform.url)
        Uploader(settings).crash()
        site.outbox.chmod(0o644)
        with Uploader(settings):
            assert modes(site.outbox.parent)["outbox.db"] == 0o600


def test_copies_are_gone_once_delivered(site: Site) -> None:
    """While the platform is away the event is on the disk; afterwards not a byte of it is.

    Neither in the outbox, which overwrites what it deletes, nor in its write-ahead log, while the
    engine still runs.
    """
    with Server(Reply(503)) as platform, Uploader(site.configure(platform.url)) as uploader:
        uploader.run(lambda: uploader.queue.health.failures > 3)
        uploader.engine.copy_all()
        uploader.engine.housekeeping()
        assert on_disk(site)
        platform.script = Reply()
        uploader.run()
        uploader.engine.housekeeping()
        assert on_disk(site) == []
    assert on_disk(site) == []


def test_an_event_that_is_delivered_at_once_is_never_on_the_disk(site: Site) -> None:
    """The outbox refers to the event in its database, which needs no picture and no name."""
    with Server() as platform, Uploader(site.configure(platform.url)) as uploader:
        uploader.run()
        assert site.account()["delivered"] == 1
        assert on_disk(site) == []


def test_pictures_of_dead_letters_go_and_the_event_stays(site: Site) -> None:
    """After keep_dead_pictures a dead letter holds the event without its pictures, to be retried.

    Not a minute before; and what was cut out is not in the file any more.
    """
    with Server(Reply(422)) as platform:
        settings = site.configure(
            platform.url, retry={"reject_after": 1}, outbox={"keep_dead_pictures": "30d"}
        )
        with Uploader(settings) as uploader:
            uploader.run(lambda: uploader.outbox.total("dead") == 1)
            whole = pictures_on_disk(site)
            uploader.engine.housekeeping()
            uploader._skipped += 29.9 * DAY
            uploader.engine.housekeeping()
            early = pictures_on_disk(site)
            uploader._skipped += 0.2 * DAY
            uploader.engine.housekeeping()
        assert (len(whole), len(early)) == (2, 2)
        assert pictures_on_disk(site) == []
        assert site.account() == sums(seen=1, dead=1)
        platform.script = Reply()
        assert cli.main(["outbox", "retry", "--yes", "-c", settings.path]) == 0
        with Uploader(settings) as uploader:
            uploader.run()
    event = platform.requests[-1].json()
    assert event["identity_name"] == marked.NAME
    assert "reg_pic" not in event
    assert "spot_pic" not in event["ext_data"]
    assert event["ext_data"]["phone"] == marked.PHONE


def pictures_on_disk(site: Site) -> List[bytes]:
    """Which pieces of pictures stand in the outbox and its log."""
    return [found for found in on_disk(site) if found in marked.PIECES]


@pytest.mark.parametrize("name", ["outbox.db", "outbox.db-wal", "outbox.db-shm"])
def test_a_planted_link_is_not_followed(site: Site, tmp_path: Path, name: str) -> None:
    """Where another user planted a link, the outbox is refused and the target stays as it was."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    target.chmod(0o644)
    site.outbox.parent.mkdir(mode=0o700)
    (site.outbox.parent / name).symlink_to(target)
    with Server() as platform:
        settings = site.configure(platform.url)
        with pytest.raises(OutboxError, match="cannot"):
            Outbox(str(site.outbox), lambda: 2e9)
        assert cli.main(["check", "-c", settings.path]) == 1
    assert target.read_bytes() == b""
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert platform.requests == []


@pytest.mark.parametrize("name", ["outbox.db.lock", "outbox.db.daemon.lock"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_a_planted_lock_is_not_used(
    site: Site, tmp_path: Path, capfd, name: str, kind: str
) -> None:
    """The daemon does not start on a lock that is a link or a pipe, and status does not hang."""
    site.outbox.parent.mkdir(mode=0o700)
    planted, target = site.outbox.parent / name, tmp_path / "target"
    if kind == "link":
        target.write_text("precious")
    if kind == "pipe":
        os.mkfifo(planted)
    else:
        planted.symlink_to(target)
    settings = site.configure("http://127.0.0.1:9/")
    with Process(settings) as daemon:
        assert daemon.end() != 0
    assert str(planted) in daemon.log
    assert cli.main(["status", "-c", settings.path]) == 0
    assert "not running" in capfd.readouterr().out
    assert target.exists() == (kind == "link")
    if kind == "link":
        assert target.read_text() == "precious"
