"""Opening connections beside the engine's thread, as names are looked up and TLS greets there."""

from __future__ import annotations

import threading
from typing import Callable, Optional

from se3_uploader import config

from .connect import Attempt, Opened, Way
from .credentials import stamp_of
from .faults import Fault, explain
from .loop import Loop


class Ways:
    """The way to an endpoint, found anew when the files of its credentials change."""

    def __init__(self, endpoint: config.Endpoint) -> None:
        """Read nothing yet."""
        self._endpoint = endpoint
        self._way: Optional[Way] = None
        self._reading = threading.Lock()

    def known(self) -> Optional[Way]:
        """The way where it is known and still right; it takes a moment. Raises CredentialsError."""
        way, stamp = self._way, stamp_of(self._endpoint)
        return way if way is not None and way.access.stamp == stamp else None

    def find(self) -> Way:
        """Find it; this may block. Raises what Way raises."""
        with self._reading:
            way = self.known()
            if way is None:
                way = self._way = Way(self._endpoint)
            return way


class Opening:
    """A connection that is being made in a thread of its own."""

    def __init__(
        self, endpoint: config.Endpoint, ways: Ways, loop: Loop, done: Callable[[Opening], None]
    ) -> None:
        """Begin; the loop calls done at the end, unless it was given up. Raises RuntimeError where
        no thread can be had."""
        self.way: Optional[Way] = None
        self.opened: Optional[Opened] = None
        self.fault: Optional[Fault] = None
        """Why it failed."""
        self._endpoint, self._ways, self._loop, self._done = endpoint, ways, loop, done
        self._attempt = Attempt()
        self._lock = threading.Lock()
        self._given_up = False
        threading.Thread(target=self._run, name=f"connect {endpoint.name}", daemon=True).start()

    def _run(self) -> None:
        opened: Optional[Opened] = None
        try:
            self.way = self._ways.find()
            opened = self.way.open(self._attempt)
        except Exception as error:
            # Not the error itself: its traceback holds this object, and with it whatever sockets
            # the standard library left open, until the garbage collector comes.
            self.fault = explain(error, self._endpoint)
        with self._lock:
            if not self._given_up:
                self.opened = opened
                self._loop.call(lambda: None if self._given_up else self._done(self))
            elif opened is not None:
                opened.socket.close()

    def give_up(self) -> None:
        """Let the thread end; what it comes to is thrown away.

        It may take a while: nothing ends a name lookup.
        """
        with self._lock:
            self._given_up = True
        self._attempt.end()
        if self.opened is not None:
            self.opened.socket.close()
