"""One process delivers from an outbox at a time: a lock on a file beside it, with who holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from typing import NamedTuple, Optional

import orjson


class Holder(NamedTuple):
    """The process that holds the lock."""

    pid: int
    since: float
    """Epoch seconds."""
    role: str
    """daemon, once or backfill."""


class Lock:
    """Exclusive until released or the process ends, however it ends."""

    def __init__(self, outbox_path: str) -> None:
        self._path = f"{outbox_path}.lock"
        self._handle: Optional[int] = None

    def acquire(self, role: str) -> Optional[Holder]:
        """Take the lock; returns who has it where that cannot be had, None when it is ours.

        Raises OSError where the file cannot be made.
        """
        os.makedirs(os.path.dirname(os.path.abspath(self._path)), mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(self._path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "is no regular file", self._path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(handle)
            os.close(handle)
            return holder
        os.ftruncate(handle, 0)
        line = {"pid": os.getpid(), "since": time.time(), "role": role}
        os.write(handle, orjson.dumps(line))
        self._handle = handle
        return None

    def release(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def daemon_lock(outbox_path: str) -> str:
    """The path whose lock says that a daemon is there, also while a backfill still delivers."""
    return f"{outbox_path}.daemon"


def holder(outbox_path: str) -> Optional[Holder]:
    """Who delivers from this outbox now, None: nobody. Never takes the lock from anyone."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(f"{outbox_path}.lock", flags)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(handle)
    finally:
        os.close(handle)
    return None


def _read(handle: int) -> Holder:
    try:
        found = orjson.loads(os.pread(handle, 4096, 0))
        return Holder(int(found["pid"]), float(found["since"]), str(found["role"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return Holder(0, 0.0, "daemon")
