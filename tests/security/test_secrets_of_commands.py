"""No marked secret is told by a command at work, whatever hinders it, nor by one that crashes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import List

import pytest

from se3_uploader import cli
from tests.http_server import Reply, Server
from tests.site import Process, Site, Uploader
from tests.test_engine_faults import fill, small_disk  # noqa: F401  # a fixture

from . import secrets_of as marked
from .secrets_of import secrets_in
from .test_secrets import EVERYTHING, RETRY, all_said, around, echo

TOP = Path(__file__).parent.parent.parent
QUICK = {"base": "0.1s", "cap": "0.2s", "reject_after": 1}

DRIVEN = {
    "run": "the daemon and --once: here, and through every fault of test_secrets.py",
    "backfill": "here, alone and beside the daemon, and --dry-run after every fault",
    "check": "after every fault",
    "status": "after every fault",
    "outbox": "list and show after every fault, retry and discard in test_secrets.py",
    "source": "inspect after every fault",
    "receive": "in test_secrets.py",
    "demo": "reads nothing of a site; its people are made up",
}


def command(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own; its errors are part of its output."""
    return subprocess.run(
        [sys.executable, "-m", "se3_uploader", *words], cwd=TOP, timeout=120,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_every_command_is_driven() -> None:
    """A new command has to be driven through all this, too."""
    assert set(cli._COMMANDS) == set(DRIVEN)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk(site: Site, capfd, logged) -> None:
    """While not a byte can be written, neither the engine nor a command tells what it wanted to."""
    site.add(marked.secret_event(), marked.secret_event(score=marked.NAME))
    with Server(echo(422)) as server:
        config = site.configure(server.url, retry=RETRY)
        with Uploader(config) as uploader:
            uploader.run(lambda: site.account()["dead"] > 0)
            filler = fill(site.outbox.parent)
            site.add(*(marked.secret_event() for _ in range(300)))
            uploader.run(lambda: uploader.engine.outbox_error is not None)
            said = uploader.engine.summary().encode() + all_said(config, capfd)
        for words in ("outbox retry --yes", "outbox discard --person x --yes", "run --once"):
            done = command(*words.split(), "-c", config.path)
            assert done.returncode != 0
            said += done.stdout
        said += all_said(config, capfd) + logged.getvalue().encode() + around(config)
        filler.unlink()
    assert b"full" in said
    assert secrets_in(said) == []


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside the daemon"])
def test_a_backfill(site: Site, tmp_path: Path, capfd, beside: bool) -> None:
    """A backfill whose events are refused, then taken: its plan, its progress and its summary."""
    site.add(marked.secret_event(), marked.secret_event(score=marked.NAME))
    with Server(lambda request: echo(422 if server.requests[1:] else 500)(request)) as server:
        config = site.configure(
            f"{server.url}?token={marked.QUERY}", retry=QUICK, endpoint=marked.bearer(tmp_path),
            source={"url": f"sqlite:///{site.events}", "start": "latest"},
        )  # fmt: skip
        with Process(config) if beside else nullcontext() as daemon:
            if daemon:
                daemon.wait_for("ready")
            codes = []
            for words in ([], ["--resend", "--json"]):
                codes.append(cli.main(["backfill", *EVERYTHING, *words, "-c", config.path]))
                server.script = Reply()
        said = all_said(config, capfd) + around(config)
    assert codes == [1, 1]  # one can never be sent
    assert site.account()["delivered"] == 2
    assert secrets_in(said + (daemon.log.encode() if daemon else b"")) == []


PUBLIC = """
import subprocess, sys
from pathlib import Path
from se3_uploader import cli
from tests.http_server import Server
from tests.security import secrets_of as marked
from tests.site import Site

for words in ("link set lo up", "addr add 203.0.113.9/32 dev lo"):
    subprocess.run(["ip", *words.split()], check=True)
folder = Path(sys.argv[1])
site = Site(folder)
site.run("ALTER TABLE event ADD COLUMN phone TEXT")
site.add(marked.secret_event())
with Server(host="203.0.113.9") as server:
    for allowed in (False, True):
        config = site.configure(
            f"{server.url}?token={marked.QUERY}",
            endpoint={"allow_plaintext": allowed, **marked.bearer(folder)},
        )
        program = [sys.executable, "-m", "se3_uploader"]
        subprocess.run([*program, "run", "--once", "-c", config.path], check=False)
        for words in ("check", "status", "status --json", "outbox list"):
            cli.main([*words.split(), "-c", config.path])
        sys.stdout.flush()
        print("got an event:", bool(server.requests), flush=True)
"""


def test_what_may_not_go_unencrypted(tmp_path: Path) -> None:
    """Refused, a token and pictures stay here; allowed, it is warned about; neither is told.

    In a network namespace of its own, as only there a public address is at hand that is ours.
    """
    enter: List[str] = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare (util-linux) and ip (iproute2)")
    if subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make network namespaces")
    done = subprocess.run(
        [*enter, sys.executable, "-c", PUBLIC, str(tmp_path)], cwd=TOP,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
    )  # fmt: skip
    refused, _, allowed = done.stdout.decode().partition("got an event: False")
    assert "would go unencrypted to a public address" in refused
    assert "allow_plaintext: what is sent can be read on the way" in allowed
    assert allowed.endswith("got an event: True\n")
    assert secrets_in(done.stdout) == []


CRASH = """
import sys
from se3_uploader import agent, cli, device_status
from tests.security.secrets_of import NAME

def crash(*arguments, **named):
    raise ValueError(NAME)

where, config = sys.argv[1:]
if where == "engine":
    agent.Engine.step = crash
else:
    device_status.collect = crash
sys.exit(cli.main(["run", "-c", config]))
"""


@pytest.mark.parametrize("where", ["engine", "another thread"])
def test_a_daemon_that_crashes(site: Site, where: str) -> None:
    """The words of an exception that nobody foresaw are not told, and its place is."""
    with Server() as server:
        reports = {"endpoints": [{"url": server.url, "name": "reports"}]}
        config = site.configure(server.url, device_status=reports)
        crashing = [sys.executable, "-c", CRASH, where, config.path]
        with subprocess.Popen(crashing, cwd=TOP, stderr=subprocess.PIPE) as daemon:
            assert daemon.stderr is not None
            said = b""
            while b"ValueError" not in said:
                line = daemon.stderr.readline()
                assert line, said
                said += line
            if where != "engine":
                daemon.terminate()
            said += daemon.stderr.read()
    assert daemon.returncode == (1 if where == "engine" else 0)
    assert b"ValueError at " in said
    assert secrets_in(said) == []
