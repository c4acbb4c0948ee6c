"""All threads of this process on one processor core.

Python runs one of them at a time. On several cores they hand its lock from cache to cache, and the
scheduler wakes them here and there, which costs more than what they do in between.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Iterable

_ALLOWED = os.sched_getaffinity(0)
"""The cores that whoever started us lets us use."""
_CORE_FIELD = 39
"""Of /proc/PID/stat, see proc(5)."""


def gather() -> None:
    """Put all threads on the core that this one runs on; those started later stay there, too.

    Nothing happens where that is forbidden, or done already.
    """
    if len(os.sched_getaffinity(0)) == 1:
        return
    with suppress(OSError):
        with open("/proc/thread-self/stat", encoding="ascii", errors="replace") as file:
            after_name = file.read().rpartition(")")[2].split()
        _allow([int(after_name[_CORE_FIELD - 3])])


def scatter() -> None:
    """Let the scheduler find a better core, before they are gathered again."""
    with suppress(OSError):
        _allow(_ALLOWED)


def _allow(cores: Iterable[int]) -> None:
    for thread in threading.enumerate():
        if thread.native_id is not None:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.native_id, cores)
