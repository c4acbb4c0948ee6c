"""What every torture needs: a daemon that may run under a tool, and the judgement in the end."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from typing import Callable, Iterable, Mapping, Optional, Sequence

import pytest

from se3_uploader.config import Config

from ..http_server import Server
from ..site import Process, Site, keys, numbers, sums

RETRY = {"base": 0.1, "cap": 1.0}


class Daemon(Process):
    """`se3-uploader run` behind another command (strace, ip netns exec), in an environment."""

    def __init__(
        self, config: Config, prefix: Sequence[str] = (), environment: Optional[Mapping[str, str]]
        = None,
    ) -> None:  # fmt: skip
        super().__init__(config)
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        self._command = [*prefix, *(["env", *variables] if variables else []), *self._command]


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip, and say why, where a tool is not installed or we are not root."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    reason = f"needs {', '.join(missing)}" if missing else "needs root"
    return pytest.mark.skipif(bool(missing) or os.geteuid() != 0, reason=reason)


def assert_all_arrived(site: Site, platform: Server, wanted: Iterable[int]) -> None:
    """Every event arrived under one key, and the account says so."""
    wanted = set(wanted)
    arrived = Counter(numbers(platform))
    assert wanted == set(arrived), sorted(wanted - set(arrived))[:20]
    assert site.account() == sums(seen=len(wanted), delivered=len(wanted))
    found = keys(platform)
    assert all(len(each) == 1 for each in found.values())
    assert len(set().union(*found.values())) == len(wanted)


def until(holds: Callable[[], bool], timeout: float = 60.0) -> None:
    """Wait until something holds that no event tells of."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout:g} s"
        pause(0.01)


def pause(seconds: float) -> None:
    """Let so much time pass: chance decides when a fault strikes."""
    threading.Event().wait(seconds)
