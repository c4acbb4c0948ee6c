"""What the engine thread sleeps on: an answer, a signal, or a write to the source's files."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Dict, Optional, Sequence

from inotify_simple import INotify, flags

LOOK_AGAIN = 0.1
"""Seconds between two looks for files that are not there yet. Each look lets the sinks' threads
run, and under load it is a while until they let this one go on."""

_WRITTEN = flags.MODIFY | flags.DELETE_SELF | flags.MOVE_SELF


class Wake:
    """A sleep that answers, signals and file changes interrupt."""

    def __init__(self, paths: Sequence[str]) -> None:
        """paths: files of the source to watch; they may come and go."""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)
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
        except BlockingIOError:
            pass

    def wait(self, timeout: float) -> bool:
        """Sleep at most timeout seconds; True when the source's files were written to."""
        if time.monotonic() >= self._look_at:
            self._watch()
        events = self._poll.poll(max(0.0, timeout) * 1000)
        ready = {handle for handle, _ in events}
        if self._read in ready:
            try:
                os.read(self._read, 65536)
            except BlockingIOError:
                pass
        if self._inotify is None or self._inotify.fileno() not in ready:
            return False
        for event in self._inotify.read(timeout=0):
            if event.mask & (flags.IGNORED | flags.DELETE_SELF | flags.MOVE_SELF):
                self._watched.pop(event.wd, None)
        return True

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
