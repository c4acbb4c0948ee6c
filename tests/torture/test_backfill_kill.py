"""A backfill and the daemon beside it, killed again and again at random moments."""

from __future__ import annotations

import random
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import List

import pytest

from tests.backfills import backfill, filled, span, start
from tests.http_server import Reply, Server
from tests.site import Process, keys, numbers, sums

EVENTS = 3000
KILLS = 30


@pytest.mark.slow
@pytest.mark.parametrize("resend", [False, True])
def test_kills_of_the_backfill_and_of_the_daemon(tmp_path: Path, resend: bool) -> None:
    """However often either is killed -9, each event of the range arrives, and nothing else.

    Only what was in flight or not yet recorded at a kill comes twice, under the same key.
    """
    rng = random.Random(5)
    site = filled(tmp_path, EVENTS + 100)
    words = [*span(1, EVENTS + 1), *(["--resend"] if resend else [])]
    with Server(Reply(delay=0.02)) as platform, ExitStack() as stack:
        config = site.configure(platform.url, source={"start": "latest"})
        running: List[subprocess.Popen[str]] = []
        stack.callback(lambda: [each.kill() for each in running])
        daemon = None
        for kill in range(KILLS):
            running.append(start(config, *words))
            if kill % 3 == 1:
                daemon = stack.enter_context(Process(config))
            # Now and then before anything was sent, mostly in the middle of it.
            before = len(platform.requests)
            try:
                platform.wait_for(before + rng.randint(0, 60), timeout=rng.uniform(0.1, 5.0))
            except AssertionError:
                pass
            if daemon is not None and kill % 3 == 2:
                daemon.signal(signal.SIGKILL)
                daemon = None
            running[-1].kill()
            running[-1].communicate()
        done = backfill(config, *words)
        assert (done.code, done.summary) == (0, {"p0": {"delivered": EVENTS}})
        sent = numbers(platform)
        assert set(sent) == set(range(1, EVENTS + 1))
        assert {len(each) for each in keys(platform).values()} == {1}
        assert len(sent) - EVENTS <= 2 * KILLS * 20
    assert site.account() == sums(seen=EVENTS, delivered=EVENTS)
