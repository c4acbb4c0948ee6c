"""Threads on one core."""

from __future__ import annotations

import os
import threading
from typing import Iterator, Set

import pytest

from se3_uploader import one_core


@pytest.fixture(autouse=True)
def scattered() -> Iterator[None]:
    """Leave the process of the tests as it was."""
    yield
    one_core.scatter()


def cores_of_another_thread(start: threading.Event, found: Set[int]) -> threading.Thread:
    """A thread that tells, when it may, which cores it is allowed."""

    def tell() -> None:
        start.wait()
        found.update(os.sched_getaffinity(0))

    thread = threading.Thread(target=tell)
    thread.start()
    return thread


def test_all_threads_share_one_core_that_is_allowed() -> None:
    """Those that run already and those started later, until they are scattered again."""
    allowed = os.sched_getaffinity(0)
    go, earlier, later = threading.Event(), set(), set()  # type: ignore[var-annotated]
    threads = [cores_of_another_thread(go, earlier)]
    one_core.gather()
    threads.append(cores_of_another_thread(go, later))
    go.set()
    for thread in threads:
        thread.join()
    ours = os.sched_getaffinity(0)
    assert earlier == later == ours
    assert len(ours) == 1
    assert ours <= allowed
    one_core.scatter()
    assert os.sched_getaffinity(0) == allowed
