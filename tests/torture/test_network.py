"""The network between the daemon and its platform fails: a network namespace, veth and nft."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from ..http_server import Server
from ..site import Site, keys, numbers
from .daemon import RETRY, Daemon, needs, pause, until

pytestmark = [pytest.mark.slow, needs("ip", "nft")]

HOST, BOX = "10.213.7.1", "10.213.7.2"
EVENTS = 30


def run(*command: str, check: bool = True, text: str = "") -> None:
    """Run a command of the system, with something to read."""
    subprocess.run(
        command, check=check, input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture
def namespace() -> Iterator[str]:
    """A box's network, joined to ours by one cable."""
    name = f"box{os.getpid()}"
    ours, theirs = f"{name}h", f"{name}b"
    try:
        run("ip", "netns", "add", name)
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
    except subprocess.CalledProcessError as error:
        run("ip", "netns", "del", name, check=False)
        pytest.skip(f"no network namespace can be made here: {error.stdout.decode().strip()}")
    run("ip", "addr", "add", f"{HOST}/30", "dev", ours)
    run("ip", "link", "set", ours, "up")
    run("ip", "-n", name, "addr", "add", f"{BOX}/30", "dev", theirs)
    run("ip", "-n", name, "link", "set", theirs, "up")
    run("ip", "-n", name, "link", "set", "lo", "up")
    yield name
    run("ip", "link", "del", ours, check=False)
    run("ip", "netns", "del", name, check=False)


FAULTS = {
    "dropped": "chain out { type filter hook output priority 0; tcp dport PORT drop\n}",
    "rejected": "chain out { type filter hook output priority 0;"
    " tcp dport PORT reject with tcp reset\n}",
    "unreachable": "chain out { type filter hook output priority 0;"
    " tcp dport PORT reject with icmp type host-unreachable\n}",
    "replies lost": "chain in { type filter hook input priority 0;"
    " tcp sport PORT tcp flags & psh == psh drop\n}",
    "quota": "chain out { type filter hook output priority 0;"
    " tcp dport PORT quota over 5 kbytes drop\n}",
    "lossy": "chain out { type filter hook output priority 0;"
    " numgen random mod 100 < 30 drop\n}"
    "\nchain in { type filter hook input priority 0; numgen random mod 100 < 30 drop\n}",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_network_fault(tmp_path: Path, namespace: str, fault: str) -> None:
    """While the network fails and after it, nothing is lost; the account is exact in the end.

    What is sent again are only requests without an answer, always under the same key.
    """
    nft = ("ip", "netns", "exec", namespace, "nft")
    site = Site(tmp_path)
    with Server(host=HOST) as platform:
        limits = {"connect": 0.5, "read": 0.5, "total": 2}
        config = site.configure(
            platform.url, retry=RETRY, endpoint={"timeout": limits, "allow_plaintext": True}
        )
        with Daemon(config, ["ip", "netns", "exec", namespace]) as process:
            process.wait_for("ready", timeout=60)
            site.add(0)
            until(lambda: site.account()["delivered"] == 1)
            rules = FAULTS[fault].replace("PORT", str(platform.port))
            run(*nft, "-f", "-", text=f"table inet fault {{\n{rules}\n}}\n")
            site.add(*range(1, EVENTS))
            pause(5)
            if fault != "lossy":
                assert site.account()["delivered"] < EVENTS
                run(*nft, "flush", "ruleset")
            until(lambda: site.account()["delivered"] == EVENTS, 120)
    assert set(numbers(platform)) == set(range(EVENTS))
    assert all(len(each) == 1 for each in keys(platform).values())
    if fault in ("dropped", "rejected", "unreachable"):
        assert len(platform.requests) == EVENTS
