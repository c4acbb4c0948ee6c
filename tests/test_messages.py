"""Every message that docs/recovery.md lists is what the program says in the situation it explains.

Each is brought about for real; the text is what an operator sees: the log, or the status.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import textwrap
from contextlib import closing
from typing import Any, Callable, Dict

import pytest

from se3_uploader.lock import Lock, daemon_lock

from .http_server import DROP, HANG, Reply, Server
from .site import Process, Site, Uploader, event, refusing
from .test_documents import TOP, prose, run
from .test_sink_tls import CA, not_yet_valid, server_tls

QUICK = {"connect": "300ms", "read": "300ms", "total": "600ms"}

Told = Callable[[], str]
"""The log so far, fields included."""


def listed() -> Dict[str, None]:
    """The messages in the first column of the tables, each once, in their order."""
    cells = re.findall(r"(?m)^\| ([^|]*`[^|]*) \|", prose(TOP / "docs" / "recovery.md"))
    quoted = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    return dict.fromkeys(span for span in quoted if span != "uploader.yaml")


@pytest.fixture
def site(tmp_path) -> Site:
    """A box with one event."""
    site = Site(tmp_path)
    site.add(1)
    return site


@pytest.fixture
def told(caplog) -> Told:
    """What was logged in this process."""
    caplog.set_level("INFO", "se3_uploader")
    return lambda: "\n".join(
        f"{record.getMessage()} {getattr(record, 'fields', '')}" for record in caplog.records
    )


# The platform: what status says of an endpoint that fails


def away(site: Site, url: str, **endpoint: Any) -> str:
    """Fail twice, and tell why."""
    with Uploader(site.configure(url, endpoint={"timeout": QUICK, **endpoint})) as uploader:
        uploader.run(lambda: uploader.queue.health.failures > 1)
        return uploader.engine.summary()


def answering(reply: Reply, **endpoint: Any) -> Callable[[Site, Told], str]:
    """A platform that always answers so."""

    def situation(site: Site, _: Told) -> str:
        with Server(reply) as platform:
            return away(site, platform.url, **endpoint)

    return situation


def nobody_listens(site: Site, _: Told) -> str:
    """The platform is not started."""
    platform = Server().start()
    platform.stop()
    return away(site, platform.url)


def no_way(site: Site, _: Told) -> str:
    """Nothing comes back at all: a full queue of connections stands for a firewall."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            return away(site, f"http://127.0.0.1:{port}/")


def in_a_network_of_its_own(url: str) -> Callable[[Site, Told], str]:
    """POST to url(server), where there is no name server and the server's address is public."""

    def situation(_: Site, __: Told) -> str:
        enter = ["unshare", "--map-root-user", "--net"]
        if not shutil.which("unshare") or not shutil.which("ip"):
            pytest.skip("needs unshare (util-linux) and ip (iproute2)")
        if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this user may not make network namespaces")
        code = f"""if True:
            import subprocess
            from tests.http_server import Server
            from tests.posting import post
            subprocess.run("ip link set lo up; ip addr add 203.0.113.9/32 dev lo", shell=True)
            with Server(host="203.0.113.9") as server:
                print(post({url}).detail)
        """
        return subprocess.check_output([*enter, sys.executable, "-c", code], cwd=TOP, text=True)

    return situation


def unknown_authority(site: Site, _: Told) -> str:
    """Its certificate comes from an authority that nobody knows."""
    with Server(tls=server_tls()) as platform:
        return away(site, platform.url)


def out_of_date(site: Site, _: Told) -> str:
    """By this machine's clock its certificate is not valid."""
    CA.cert_pem.write_to_path(str(site.folder / "ca.pem"))
    with Server(tls=not_yet_valid()) as platform:
        return away(site, platform.url, tls={"ca_file": str(site.folder / "ca.pem")})


def certificate_wanted(site: Site, _: Told) -> str:
    """The platform wants to see a certificate of the box."""
    CA.cert_pem.write_to_path(str(site.folder / "ca.pem"))
    context = server_tls()
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Server(tls=context) as platform:
        return away(site, platform.url, tls={"ca_file": str(site.folder / "ca.pem")})


def token_gone(site: Site, _: Told) -> str:
    """The token's file is not there."""
    with Server() as platform:
        return away(site, platform.url, auth={"bearer_file": str(site.folder / "token")})


def everything_refused(site: Site, _: Told) -> str:
    """The platform refuses every event there is."""
    site.add(*range(2, 9))
    with Server(Reply(422)) as platform, site.uploader(platform) as uploader:
        uploader.run(lambda: uploader.queue.health.state == "paused")
        return uploader.engine.summary()


# Single events: what the log says


def one_refused(site: Site, told: Told) -> str:
    """The platform refuses one event of two."""
    site.add(2)
    with Server(refusing({1}, Reply(422))) as platform, site.uploader(platform) as uploader:
        uploader.run()
    return told()


def one_unusable(site: Site, told: Told) -> str:
    """A row lacks a required field."""
    site.add(event(2, score=None))
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
    return told()


def one_too_large(site: Site, told: Told) -> str:
    """The platform finds an event too large even without pictures."""
    with Server(Reply(413)) as platform, site.uploader(platform) as uploader:
        uploader.run()
    return told()


def one_deleted(site: Site, told: Told) -> str:
    """The box deletes an event while the platform is away and there is no room for copies."""
    config = {"outbox": {"path": str(site.outbox), "max_size": 0}}
    with Server(Reply(503)) as platform, site.uploader(platform, **config) as uploader:
        uploader.run(lambda: uploader.queue.health.failures > 1)
        site.run("DELETE FROM event")
        site.add(2)
        platform.script = Reply()
        uploader.run()
    return told()


def one_replaced(site: Site, told: Told) -> str:
    """The box is wiped while the platform is away, and its ids begin again."""
    config = {"outbox": {"path": str(site.outbox), "max_size": 0}}
    with Server(Reply(503)) as platform, site.uploader(platform, **config) as uploader:
        uploader.run(lambda: uploader.queue.health.failures > 1)
        site.run("DELETE FROM event")
        site.run("DELETE FROM sqlite_sequence")
        site.add(17)
        platform.script = Reply()
        uploader.run()
    return told()


# The event database


def unreadable(site: Site, told: Told, **source: Any) -> str:
    """Try to follow the event database as it is now."""
    source = {"url": f"sqlite:///{site.events}", **source}
    with Server() as platform, site.uploader(platform, source=source) as uploader:
        uploader.run(lambda: uploader.engine.source_error is not None)
        return told() + uploader.engine.summary()


def no_file(site: Site, told: Told) -> str:
    """The box has not made its database yet."""
    site.events.unlink()
    return unreadable(site, told)


def no_right(site: Site, told: Told) -> str:
    """It cannot be opened; a socket in its place stands for that, as tests may run as root."""
    site.events.unlink()
    folder = os.open(site.folder, os.O_RDONLY)
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(f"/proc/self/fd/{folder}/{site.events.name}")
        os.close(folder)
        return unreadable(site, told)


def kept_locked(site: Site, told: Told) -> str:
    """Its writer holds it."""
    site.run("PRAGMA journal_mode = delete")
    with closing(sqlite3.connect(site.events, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        return unreadable(site, told)


def writer_died(site: Site, told: Told) -> str:
    """Its writer was killed in the middle of a transaction."""
    site.run("PRAGMA journal_mode = delete")
    site.add(*range(2, 200))
    crash = """
        import os, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("UPDATE event SET reg_pic = zeroblob(6000)")
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(crash), str(site.events)], check=True)
    return unreadable(site, told)


def no_table(site: Site, told: Told) -> str:
    """The table has another name."""
    return unreadable(site, told, table="events")


def no_column(site: Site, told: Told) -> str:
    """A mapped column is not there."""
    return unreadable(site, told, key="number")


def torn(site: Site, told: Told) -> str:
    """A page of the file is damaged."""
    site.run("PRAGMA journal_mode = delete")
    site.add(*range(2, 2000))
    with open(site.events, "r+b") as file:
        file.seek(8 * 4096)
        file.write(b"\xff" * 16 * 4096)
    return unreadable(site, told)


def wiped(site: Site, told: Told) -> str:
    """The table is emptied and ids begin again, with the service running."""
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
        site.run("DELETE FROM event")
        site.run("DELETE FROM sqlite_sequence")
        site.add(17)
        uploader.run(lambda: len(platform.requests) == 2)
    return told()


def other_key(site: Site, told: Told) -> str:
    """The key in uploader.yaml is another one than the saved position was made with."""
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
    return unreadable(site, told, key="timestamp", id="id")


# The outbox and the disk


def unwritable(site: Site, told: Told, pragma: str) -> str:
    """Deliver while SQLite refuses to write the outbox."""
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
        uploader.outbox._database.execute_sql(f"PRAGMA {pragma}").fetchall()
        site.add(*range(2, 300))
        uploader.run(lambda: uploader.engine.outbox_error is not None)
    return told()


def disk_full(site: Site, told: Told) -> str:
    """The outbox may not grow, as on a full disk."""
    return unwritable(site, told, "max_page_count = 1")


def disk_read_only(site: Site, told: Told) -> str:
    """The outbox may not be written, as on a disk that was remounted."""
    return unwritable(site, told, "query_only = 1")


def outbox_damaged(site: Site, told: Told) -> str:
    """The outbox holds something else."""
    site.outbox.parent.mkdir()
    site.outbox.write_bytes(b"no database " * 1000)
    with Server() as platform, site.uploader(platform) as uploader:
        uploader.run()
    return told()


def once(site: Site) -> str:
    """`run --once`, which fails before it sends anything."""
    done = run("run", "--once", "-c", site.configure("http://127.0.0.1:9/").path)
    assert done.returncode == 75
    return done.stderr


def outbox_a_link(site: Site, _: Told) -> str:
    """Somebody put a link where the outbox shall be."""
    site.outbox.parent.mkdir()
    site.outbox.symlink_to(site.folder / "elsewhere.db")
    return once(site)


def outbox_newer(site: Site, _: Told) -> str:
    """A version from the future wrote the outbox."""
    site.outbox.parent.mkdir()
    with closing(sqlite3.connect(site.outbox)) as outbox:
        outbox.execute("PRAGMA user_version = 99")
    return once(site)


def two_daemons(site: Site, _: Told) -> str:
    """The service is started twice."""
    lock = Lock(daemon_lock(str(site.outbox)))
    lock.acquire("daemon")
    try:
        return run("run", "-c", site.configure("http://127.0.0.1:9/").path).stderr
    finally:
        lock.release()


# The service


def reloaded_with_a_mistake(site: Site, _: Told) -> str:
    """SIGHUP after a slip of the hand."""
    with Server() as platform, Process(site.configure(platform.url)) as daemon:
        daemon.wait_for("ready")
        with open(site.folder / "uploader.yaml", "a") as file:
            file.write("retyr: {}\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("not reloaded")
        return daemon.log


def no_configuration(site: Site, _: Told) -> str:
    """No file at any of the places."""
    if os.path.exists("/etc/se3-uploader/uploader.yaml"):
        pytest.skip("this machine has /etc/se3-uploader/uploader.yaml")
    done = run("status", cwd=site.folder)
    assert done.returncode == 78
    return done.stderr


def no_driver(site: Site, _: Told) -> str:
    """A database whose Python package is not installed."""
    code = (
        "import sys; sys.modules['pymysql'] = None; from se3_uploader.cli import main;"
        "sys.exit(main(['run', '--once', '-c', sys.argv[1]]))"
    )
    path = site.configure("http://127.0.0.1:9/", source={"url": "mysql://u@127.0.0.1/d"}).path
    command = [sys.executable, "-c", code, path]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False).stderr


SITUATIONS: Dict[str, Callable[[Site, Told], str]] = {
    "no connection within …": no_way,
    "Connection refused": nobody_listens,
    "the name cannot be resolved; check the url and the DNS": in_a_network_of_its_own(
        "'http://platform.example/'"
    ),
    "nothing moved for …": answering(HANG),
    "took longer than …": answering(Reply(drip=0.1)),
    "hung up without an answer": answering(DROP),
    **{
        f"HTTP {status}": answering(Reply(status)) for status in (500, 503, 429, 401, 403, 404, 405)
    },
    "certificate refused: …": unknown_authority,
    "check the clock of this box": out_of_date,
    "no secure connection: …": certificate_wanted,
    "would go unencrypted to a public address; use https": in_a_network_of_its_own("server.url"),
    "the service's user must be able to read it": token_gone,
    "the answer was no HTTP; check the url": answering(Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n")),
    "the platform rejects every event …": everything_refused,
    "an event is dead": one_refused,
    "rejected: …": one_refused,
    "unusable: …": one_unusable,
    "too large: …": one_too_large,
    "an event is lost": one_deleted,
    "the event database deleted it before it was sent": one_deleted,
    "the event database gave its key to another event": one_replaced,
    "the event database cannot be read: …": no_file,
    "the event database appears when the box writes it": no_file,
    "may this user read it, and in WAL mode its -shm file?": no_right,
    "its writer keeps it locked, we try again": kept_locked,
    "its writer died in the middle of a transaction; …": writer_died,
    "is source.table right?": no_table,
    "is source.columns right?": no_column,
    "the file is damaged; …": torn,
    "the event database was wiped, replaced or cut back: …": wiped,
    "the saved position does not fit source.key and source.id; …": other_key,
    "the disk of … is full: make room, nothing is lost meanwhile": disk_full,
    "cannot be written …: remount its disk, or mend its owner": disk_read_only,
    "the outbox at … is damaged …": outbox_damaged,
    "cannot make or open …": outbox_a_link,
    "was written by a newer se3-uploader …": outbox_newer,
    "another daemon (pid …) delivers from this outbox already": two_daemons,
    "not reloaded, the old configuration goes on: …": reloaded_with_a_mistake,
    "no uploader.yaml was found: …": no_configuration,
    "reading … needs the Python package …": no_driver,
}
"""Message, as docs/recovery.md writes it -> what brings it about."""


@pytest.mark.parametrize("message", listed())
def test_the_program_says_so(message, site, told):
    """In its situation the program says what the page lists, word for word."""
    said = SITUATIONS[message](site, told)
    assert re.search(re.escape(message).replace("…", ".+"), said), said


def test_every_situation_is_listed():
    """Nothing is brought about here that the page does not explain."""
    assert set(SITUATIONS) == set(listed())
