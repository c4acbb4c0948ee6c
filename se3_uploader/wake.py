"""What the engine thread sleeps on: sockets, signals, and writes to the source's files."""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from typing import Callable, Deque, Dict, List, Optional, Sequence

from inotify_simple import INotify, flags

from .sink import Timed

LOOK_AGAIN = 0.1
"""Seconds between two looks for files that are not there yet."""

_WRITTEN = flags.MODIFY | flags.DELETE_SELF | flags.MOVE_SELF


class Wake:
    """A sleep that sockets, signals and file changes interrupt; the loop of the sinks."""

    def __init__(self, paths: Sequence[str]) -> None:
        """paths: files of the source to watch; they may come and go."""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)
        self._sockets: Dict[int, Callable[[int], None]] = {}
        self._timed: List[Timed] = []
        self._calls: Deque[Callable[[], None]] = deque()
        self._inotify: Optional[INotify] = None
        self._watched: Dict[int, str] = {}
        self.watch(paths)

    def watch(self, paths: Sequence[str]) -> None:
        """Watch these files instead of those before."""
        if self._inotify is not None:
            self._poll.unregister(self._inotify.fileno())
            self._inotify.close()
        self._paths = paths
        self._watched = {}
        self._look_at = 0.0
        self._inotify = self._open() if paths else None

    def _open(self) -> Optional[INotify]:
        try:
            inotify = INotify(nonblocking=True)
        except OSError:  # no instance left for this user: polling must do
            return None
        self._poll.register(inotify.fileno(), select.POLLIN)
        return inotify

    def set(self) -> None:
        """End the sleep, from any thread."""
        try:
            os.write(self._write, b"1")
        except OSError:  # it is about to end anyway, or closed
            pass

    # For the sinks (sink.Loop)

    def watch_socket(self, handle: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ready with what happened (poll's events) whenever one of events does."""
        self._sockets[handle] = ready
        self._poll.register(handle, events)

    def leave_socket(self, handle: int) -> None:
        """Watch it no longer; before it is closed."""
        del self._sockets[handle]
        self._poll.unregister(handle)

    def call(self, function: Callable[[], None]) -> None:
        """Call a function once, from the wait under way or the next one; from any thread."""
        self._calls.append(function)
        self.set()

    def add(self, timed: Timed) -> None:
        """Have its deadlines kept."""
        self._timed.append(timed)

    def remove(self, timed: Timed) -> None:
        """Have them kept no longer."""
        self._timed.remove(timed)

    def wait(self, timeout: float) -> bool:
        """Sleep at most timeout seconds; True when the source's files were written to."""
        now = time.monotonic()
        if now >= self._look_at:
            self._watch()
        timeout = min([timeout, *(timed.deadline - now for timed in self._timed)])
        written = False
        events = self._poll.poll(max(0.0, timeout) * 1000)
        now = time.monotonic()
        for handle, event in events:
            if handle in self._sockets:
                self._sockets[handle](event)
            elif handle == self._read:
                self._empty()
            elif self._inotify is not None and handle == self._inotify.fileno():
                written = True
                self._read_changes(self._inotify)
        for _ in range(len(self._calls)):  # those that they add have their turn after the sockets
            self._calls.popleft()()
        # Last, and by the time of the poll, so that what came in time counts, however busy this
        # thread was.
        for timed in list(self._timed):
            if now >= timed.deadline:
                timed.expire(now)
        return written

    def _empty(self) -> None:
        try:
            os.read(self._read, 65536)
        except BlockingIOError:
            pass

    def _read_changes(self, inotify: INotify) -> None:
        for event in inotify.read(timeout=0):
            if event.mask & (flags.IGNORED | flags.DELETE_SELF | flags.MOVE_SELF):
                self._watched.pop(event.wd, None)

    def _watch(self) -> None:
        """Watch those files that are there and not watched yet."""
        self._look_at = time.monotonic() + LOOK_AGAIN
        if self._inotify is None or len(self._watched) == len(self._paths):
            return
        watched = set(self._watched.values())
        for path in self._paths:
            if path not in watched and os.path.exists(path):
                try:
                    self._watched[self._inotify.add_watch(path, _WRITTEN)] = path
                except OSError:
                    continue

    def close(self) -> None:
        """Let go of everything."""
        signal.set_wakeup_fd(-1)
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._read)
        os.close(self._write)
        self._write = -1
