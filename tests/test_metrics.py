"""Metrics: what Prometheus is told, where it may ask, and what happens where it cannot."""

from __future__ import annotations

import datetime
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Dict, Set

import psutil
import pytest
import trustme

from se3_uploader import cli, metrics

from .http_server import Reply, Request, Server
from .servers import free_port
from .site import Process, Site, deliver, event, number_of

pytest.importorskip("prometheus_client", reason="needs prometheus-client, extra 'metrics'")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A box with an empty event database."""
    return Site(tmp_path)


def page(listen: str) -> str:
    """What Prometheus gets."""
    with urllib.request.urlopen(f"http://{listen}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def figures(listen: str) -> Dict[str, float]:
    """Name and labels of every sample -> its value, without our common prefix."""
    found = re.findall(r"(?m)^se3_uploader_(\S+) (\S+)$", page(listen))
    return {name: float(value) for name, value in found}


def test_the_figures_are_those_of_the_account(site: Site) -> None:
    """Delivered, pending, dead, the source and the time of each answer, endpoint by endpoint."""
    site.add(1, 2, 3)
    listen = f"127.0.0.1:{free_port()}"

    def script(request: Request) -> Reply:
        return Reply(422 if number_of(request) == 2 else 200)

    with Server(script) as well, Server(Reply(503)) as away:
        settings = site.configure(
            well.url, away.url, metrics={"listen": listen},
            retry={"base": "0.1s", "cap": "1s", "reject_after": 1},
        )  # fmt: skip
        with Process(settings) as daemon:
            daemon.wait_for("an event is dead")
            daemon.wait_for("p1 does not take deliveries")
            well.wait_until(lambda: site.outbox.exists() and site.account()["dead"] == 1)
            end = time.monotonic() + 10
            while not (found := figures(listen))['oldest_pending_seconds{endpoint="p1"}']:
                assert time.monotonic() < end  # told in tenths of a second, so not 0 for long
    assert found['events_delivered_total{endpoint="p0"}'] == 2
    assert found['outbox_dead{endpoint="p0"}'] == 1
    assert found['endpoint_ok{endpoint="p0"}'] == 1
    assert found['delivery_seconds_count{endpoint="p0"}'] == 4
    assert found['endpoint_ok{endpoint="p1"}'] == 0
    assert found['outbox_pending{endpoint="p1"}'] == 3
    assert 0 < found['oldest_pending_seconds{endpoint="p1"}'] < 60
    assert found['events_lost_total{endpoint="p1"}'] == 0
    assert (found["source_ok"], found["source_behind"]) == (1, 0)
    assert found["outbox_bytes"] > 0
    assert found["outbox_max_bytes"] == 512 * 1024**2


@pytest.mark.parametrize("days", [31, 29])
def test_the_end_of_a_certificate_is_told(site: Site, tmp_path: Path, capsys, days: int) -> None:
    """Metrics and status --json tell when it ends, and status warns 30 days ahead."""
    site.add(1)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days, minutes=5)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=end).configure_cert(tls)
    listen = f"127.0.0.1:{free_port()}"
    with Server(tls=tls) as platform:
        settings = site.configure(
            platform.url, metrics={"listen": listen},
            endpoint={"tls": {"ca_file": str(tmp_path / "ca.pem")}},
        )  # fmt: skip
        with Process(settings, "--once") as once:
            assert once.end() == 0
        with Process(settings) as daemon:
            daemon.wait_for("metrics are at")
            found = figures(listen)
            name = 'certificate_expiry_timestamp_seconds{endpoint="p0"}'
            assert found[name] == pytest.approx(end.timestamp(), abs=1)
            capsys.readouterr()
            assert cli.main(["status", "-c", settings.path]) == 0
            out = capsys.readouterr().out
        day = datetime.datetime.fromtimestamp(end.timestamp()).strftime("%Y-%m-%d")
        assert (f"ends on {day}, in 29d: have it renewed" in out) == (days == 29), out


def test_a_platform_that_was_taken_out_wakes_nobody_up(site: Site) -> None:
    """What still waits for an endpoint that is no longer in uploader.yaml is left to status."""
    site.add(1)
    with Server(Reply(503)) as gone, Server() as platform:
        with site.uploader(gone) as uploader:
            uploader.run_for(5)
        listen = f"127.0.0.1:{free_port()}"
        settings = site.configure(
            platform.url, endpoint={"name": "left"}, metrics={"listen": listen}
        )
        started = metrics.start(settings)
        assert started is not None
        found = figures(listen)
        started.close()
    assert found['outbox_pending{endpoint="left"}'] == 0
    assert not [name for name in found if "p0" in name]


def test_a_certificate_belongs_to_its_url(site: Site) -> None:
    """When an endpoint moves to another url, the end of the old certificate is forgotten."""
    with Server() as first, Server() as second:
        with site.uploader(first) as uploader:
            outbox = uploader.outbox
            with outbox.transaction() as run:
                run("UPDATE endpoint SET certificate = 1.0")
        with site.uploader(first):
            assert site.rows("SELECT certificate FROM endpoint") == [(1.0,)]
        with site.uploader(second):
            assert site.rows("SELECT certificate FROM endpoint") == [(None,)]


def test_a_port_in_use_is_told_and_delivery_goes_on(site: Site) -> None:
    """Somebody else has the port: one line in the log, and every event arrives."""
    site.add(1, 2)
    with socket.create_server(("127.0.0.1", 0)) as taken, Server() as platform:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with Process(site.configure(platform.url, metrics={"listen": listen})) as daemon:
            daemon.wait_for(f"error: cannot listen on {listen} for metrics")
            platform.wait_for(2)


def test_a_missing_package_is_told_and_delivery_goes_on(site: Site) -> None:
    """Without prometheus-client the line says what to install, and every event arrives."""
    site.add(1)
    listen = f"127.0.0.1:{free_port()}"
    with Server() as platform:
        settings = site.configure(platform.url, metrics={"listen": listen})
        hidden = (
            "import sys; sys.modules['prometheus_client'] = None\n"
            "from se3_uploader import agent, config, log\n"
            f"settings = config.load({settings.path!r}); log.setup('info', 'text')\n"
            "agent.Daemon(settings).run()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", hidden], stderr=subprocess.PIPE, text=True
        ) as daemon:
            platform.wait_for(1)
            daemon.send_signal(signal.SIGTERM)
            _, said = daemon.communicate(timeout=20)
    assert "metrics.listen needs a package: pip install 'se3-uploader[metrics]'" in said
    assert daemon.returncode == 0


def test_a_reload_moves_the_port(site: Site) -> None:
    """After a reload the new port answers and the old one is free; without listen there is none."""
    old, new = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with Server() as platform:
        settings = site.configure(platform.url, metrics={"listen": old})
        with Process(settings) as daemon:
            daemon.wait_for("ready")
            assert "source_ok" in page(old)
            site.configure(platform.url, metrics={"listen": new})
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("reloaded")
            assert "source_ok" in page(new)
            assert not listening(daemon) - {new}
            site.configure(platform.url)
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("reloaded", count=2)
            assert listening(daemon) == set()


def test_who_connects_and_says_nothing_is_hung_up_on(site: Site, monkeypatch) -> None:
    """A connection holds a thread of the daemon, so none may stay for ever."""
    monkeypatch.setattr(metrics, "IDLE", 0.2)
    port = free_port()
    server = metrics.Metrics(
        site.configure("http://127.0.0.1:9/", metrics={"listen": f"127.0.0.1:{port}"})
    )
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
            assert silent.recv(1) == b""
    finally:
        server.close()


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/etc/passwd", "/%2e%2e/uploader.yaml"])
def test_no_file_is_served(site: Site, path: str) -> None:
    """Whatever path is asked for, there are figures and nothing else."""
    port = free_port()
    server = metrics.Metrics(
        site.configure("http://127.0.0.1:9/", metrics={"listen": f"127.0.0.1:{port}"})
    )
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as asking:
            asking.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = asking.makefile("rb").read()
    finally:
        server.close()
    _, _, body = answer.partition(b"\r\n\r\n")
    assert all(line.startswith((b"# ", b"se3_uploader_")) for line in body.splitlines())


def listening(daemon: Process) -> Set[str]:
    """Addresses at which a daemon listens."""
    found = [c for c in psutil.net_connections("inet") if c.pid == daemon.popen.pid]
    return {f"{c.laddr.ip}:{c.laddr.port}" for c in found if c.status == psutil.CONN_LISTEN}


def test_nothing_listens_unless_configured(site: Site) -> None:
    """By default there is no port at all, and an address without a host is a mistake."""
    with Server() as platform, Process(site.configure(platform.url)) as daemon:
        daemon.wait_for("ready")
        assert listening(daemon) == set()


def test_an_outbox_that_cannot_be_read_gives_no_figures(site: Site) -> None:
    """The port goes on answering, and Prometheus sees that the figures are gone."""
    listen = f"127.0.0.1:{free_port()}"
    with Server() as platform:
        settings = site.configure(platform.url, metrics={"listen": listen})
        with Process(settings) as daemon:
            daemon.wait_for("ready")
            before = page(listen)
            for path in site.outbox.parent.glob(f"{site.outbox.name}*"):
                # The -wal beside it too: pages that it holds would be read in place of the file's.
                path.rename(path.with_suffix(path.suffix + ".gone"))
            site.outbox.write_bytes(b"no database at all" * 500)
            after = page(listen)
    assert "endpoint_ok" in before
    assert "endpoint_ok" not in after


def test_how_long_until_the_box_deletes_what_waits(site: Site) -> None:
    """Told for an endpoint once the box deletes, and while something waits there uncopied."""
    listen = f"127.0.0.1:{free_port()}"
    day = 86_400_000
    site.add(*(event(number, timestamp=1_767_225_600_000 + number * day) for number in range(5)))
    with Server() as platform:
        deliver(site.configure(platform.url))
    room = {"path": str(site.outbox), "max_size": 0, "min_free_disk": 0}
    site.add(event(5, timestamp=1_767_225_600_000 + 5 * day))
    site.remove(0, 1)
    with Server(Reply(503)) as away:
        settings = site.configure(away.url, metrics={"listen": listen}, outbox=room)
        with Process(settings) as daemon:
            daemon.wait_for("p0 does not take deliveries")
            found = figures(listen)
    assert found['deleted_in_seconds{endpoint="p0"}'] == 3 * 86400
