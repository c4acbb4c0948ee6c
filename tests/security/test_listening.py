"""Who can connect to us: nobody from another machine, unless somebody said so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import List, Set

import psutil
import pytest

from tests.http_server import Server
from tests.site import Process, Site

TOP = Path(__file__).parent.parent.parent


def listening(pid: int) -> Set[str]:
    """The addresses on which a process listens."""
    return {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.pid == pid and connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.parametrize("words", [["receive"], ["demo"]], ids=lambda words: words[0])
def test_the_test_receiver_listens_on_this_machine_alone(words: List[str]) -> None:
    """Started without a word about it, by itself or for the demo."""
    pytest.importorskip("flask", reason="needs the extra 'receiver'")
    command = [sys.executable, "-m", "se3_uploader", *words, "--port", "0"]
    with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        said = ""
        while "http://" not in said:
            line = receiver.stdout.readline()
            assert line, said
            said += line
        found = listening(receiver.pid)
        receiver.terminate()
        receiver.stdout.read()
    assert found == {"127.0.0.1"}


def test_the_daemon_listens_nowhere(site: Site) -> None:
    """Unless metrics.listen names an address."""
    with Server() as server, Process(site.configure(server.url)) as daemon:
        daemon.wait_for("ready")
        server.wait_for(1)
        assert listening(daemon.popen.pid) == set()
