"""One connection to an endpoint, kept alive, and the POST that is under way on it."""

from __future__ import annotations

import array
import fcntl
import gzip
import ssl
import termios
import threading
import time
from select import POLLIN, POLLOUT
from typing import Any, Callable, List, NamedTuple, Optional, Protocol

from .. import config
from ..policy import Answer
from .answer import AnswerReader, Reply, retry_after
from .connect import Attempt, Opened, Way
from .credentials import stamp_of
from .faults import Stopped, TookTooLong, explain, is_eof

BLOCK = 64 * 1024
"""Bytes read at once, and handed to TLS at once."""

FOREVER = float("inf")

_CANNOT_READ = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Delivery(NamedTuple):
    """One POST to make."""

    id: int
    """Handed back with the answer; means nothing here."""
    key: str
    """Idempotency key."""
    body: bytes
    """JSON, UTF-8."""


class Loop(Protocol):
    """What waits for sockets, and calls back in the thread that waits."""

    def watch_socket(self, handle: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ready with what happened (poll's events) whenever one of events does."""

    def leave_socket(self, handle: int) -> None:
        """Watch it no longer; before it is closed."""

    def call(self, function: Callable[[], None]) -> None:
        """Call a function once, from the wait under way or the next one; from any thread."""


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


class _Opening:
    """A connection that is being made in a thread, as names are looked up and TLS greets there."""

    def __init__(self, ways: Ways, loop: Loop, name: str, done: Callable[[_Opening], None]) -> None:
        self.way: Optional[Way] = None
        self.opened: Optional[Opened] = None
        self.error: Optional[Exception] = None
        self._attempt = Attempt()
        self._lock = threading.Lock()
        self._given_up = False
        self._ways, self._loop, self._done = ways, loop, done
        self.thread = threading.Thread(target=self._run, name=f"connect {name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        opened: Optional[Opened] = None
        try:
            self.way = self._ways.find()
            opened = self.way.open(self._attempt)
        except Exception as error:
            self.error = error
        with self._lock:
            if not self._given_up:
                self.opened = opened
                self._loop.call(lambda: None if self._given_up else self._done(self))
            elif opened is not None:
                opened.socket.close()

    def give_up(self) -> None:
        """Let the thread end; what it comes to is thrown away."""
        with self._lock:
            self._given_up = True
        self._attempt.end()
        if self.opened is not None:
            self.opened.socket.close()


class Line:
    """At most one POST at a time; what comes of it is told by answered, exactly once."""

    def __init__(
        self,
        endpoint: config.Endpoint,
        ways: Ways,
        loop: Loop,
        answered: Callable[[Line, Delivery, Answer, Optional[float]], None],
    ) -> None:
        """Connect nothing yet. answered is called while the loop waits, with the delivery, the
        answer and the end of the platform's certificate (epoch seconds, None: not known)."""
        self.deadline = FOREVER
        """When expire is to be called (monotonic seconds)."""
        self._endpoint, self._ways, self._loop = endpoint, ways, loop
        self._answered = answered
        self._opening: Optional[_Opening] = None
        self._given_up: List[_Opening] = []
        self._way: Optional[Way] = None
        self._socket: Any = None
        self._is_tls = False
        self._certificate: Optional[float] = None
        self._delivery: Optional[Delivery] = None
        self._body = b""
        self._began = 0.0
        self._fresh = True
        """Was the connection opened for this POST?"""
        self._rest: List[memoryview] = []
        """What of the request is not sent yet."""
        self._is_sent = False
        """Did the whole request go out?"""
        self._held = 0
        """Bytes of it that the kernel held when it was last asked."""
        self._is_thin = False
        """Did it hold some for longer than the time limit?"""
        self._events = POLLIN
        """What the loop watches the socket for."""
        self._reader = AnswerReader()

    def post(self, delivery: Delivery) -> None:
        """Begin a POST; never blocks."""
        self._delivery, self._body = delivery, delivery.body
        self._began = time.monotonic()
        self.deadline = self._began + self._endpoint.timeout.total
        try:
            if self._endpoint.compression == "gzip":
                self._body = gzip.compress(self._body, compresslevel=1, mtime=0)
            way = self._ways.known()
            if self._socket is not None:
                self._receive_unasked()
            if self._socket is None or way is not self._way:
                self._open()
            else:
                self._fresh = False
                self._begin()
        except Exception as error:
            self._fail_later(error)

    def expire(self, now: float) -> None:
        """End a POST whose time is over (monotonic seconds)."""
        if now < self.deadline:
            return
        limits = self._endpoint.timeout
        if now >= self._began + limits.total:
            self._fail(TookTooLong(f"took longer than {limits.total:g} s in all"))
        elif self._socket is not None and self._has_left():
            self._moved()
        else:
            self._fail(TookTooLong(f"nothing moved for {limits.read:g} s"))

    def _has_left(self) -> bool:
        """Has more of the request left the kernel since this was last asked?

        It takes whole requests at once, and over a thin line it is a while until they are gone.
        """
        before, self._held = self._held, self._in_kernel()
        # What is gone at the first look went at once, over a line that is none of the thin ones.
        self._is_thin = self._held < before and (self._held > 0 or self._is_thin)
        return self._is_thin

    def _in_kernel(self) -> int:
        """Bytes of the request that the platform's kernel has not confirmed (SIOCOUTQ, tcp(7))."""
        held = array.array("i", [0])
        fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, held)
        return held[0]

    def stop(self) -> None:
        """End the POST under way, and close the connection."""
        if self._delivery is not None:
            self._fail(Stopped())
        self._disconnect()

    def join(self, seconds: float) -> None:
        """Wait for threads that were connecting, at most so many seconds."""
        end = time.monotonic() + seconds
        for opening in self._given_up:
            opening.thread.join(max(0.0, end - time.monotonic()))

    # Connecting

    def _open(self) -> None:
        self._disconnect()
        self._fresh = True
        self._reader = AnswerReader()
        self.deadline = self._began + self._endpoint.timeout.total
        try:
            self._opening = _Opening(self._ways, self._loop, self._endpoint.name, self._opened)
        except RuntimeError as error:  # no more threads
            self._fail_later(error)

    def _opened(self, opening: _Opening) -> None:
        self._opening = None
        if opening.opened is None:
            self._fail(opening.error or Stopped())
            return
        self._way, self._socket = opening.way, opening.opened.socket
        self._is_tls = hasattr(self._socket, "pending")
        self._certificate = opening.opened.certificate_not_after
        self._watch(POLLIN)
        try:
            self._begin()
        except Exception as error:
            self._fail(error)

    def _watch(self, events: int) -> None:
        self._events = events
        self._loop.watch_socket(self._socket.fileno(), events, self._ready)

    def _disconnect(self) -> None:
        if self._opening is not None:
            self._opening.give_up()
            self._given_up = [o for o in self._given_up if o.thread.is_alive()] + [self._opening]
            self._opening = None
        if self._socket is not None:
            self._loop.leave_socket(self._socket.fileno())
            self._socket.close()
            self._socket = None

    # Sending and receiving

    def _begin(self) -> None:
        assert self._way is not None
        assert self._delivery is not None
        head = self._way.head(self._delivery.key, len(self._body))
        self._rest = [memoryview(head), memoryview(self._body)]
        self._is_sent = False
        self._held, self._is_thin = len(head) + len(self._body), False
        self._reader = AnswerReader()
        self._send()

    def _send(self) -> None:
        """Send what the socket takes; what is left goes once it takes more."""
        events = POLLIN
        try:
            while self._rest:
                self._take_off(self._send_some())
            self._is_sent = True
        except ssl.SSLWantReadError:
            pass
        except (BlockingIOError, ssl.SSLWantWriteError):
            events |= POLLOUT
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            self._rest = []  # A platform may answer and hang up without reading on.
        self._moved()
        if events != self._events:
            self._watch(events)

    def _send_some(self) -> int:
        if self._is_tls:  # which cannot send from two places at once
            return int(self._socket.send(self._rest[0][:BLOCK]))
        return int(self._socket.sendmsg(self._rest))

    def _take_off(self, count: int) -> None:
        """So many bytes of the rest are sent."""
        while self._rest and count >= len(self._rest[0]):
            count -= len(self._rest.pop(0))
        if self._rest:
            self._rest[0] = self._rest[0][count:]

    def _ready(self, events: int) -> None:
        """Go on, as the socket can be read or written."""
        try:
            if self._delivery is None:
                self._receive_unasked()
                return
            if self._rest:
                self._send()
            reply = self._receive() if events & ~POLLOUT else None
        except Exception as error:
            self._fail(error)
        else:
            if reply is not None:
                self._finish(reply)

    def _receive(self) -> Optional[Reply]:
        """Read on in the answer; None while it is not complete."""
        while True:
            try:
                data = self._socket.recv(BLOCK)
            except _CANNOT_READ:
                return None
            except ssl.SSLError as error:
                if not is_eof(error):
                    raise
                data = b""
            self._moved()
            reply = self._reader.feed(data)
            # Of what TLS has decrypted already the loop can know nothing.
            if reply is not None or not (self._is_tls and self._socket.pending()):
                return reply

    def _receive_unasked(self) -> None:
        """Between two POSTs: a platform that hangs up or says anything is done with.

        What it says must never be taken for the answer to the next POST.
        """
        try:
            self._socket.recv(1)
        except _CANNOT_READ:
            return  # nothing, or TLS spoke to TLS
        except OSError:
            pass
        self._disconnect()

    def _moved(self) -> None:
        """Something moved, so that the time limit for that begins anew."""
        limits = self._endpoint.timeout
        self.deadline = min(self._began + limits.total, time.monotonic() + limits.read)

    # The end of a POST

    def _fail_later(self, error: Exception) -> None:
        """Fail while the loop waits: whoever submits next from answered comes back here."""
        delivery = self._delivery
        self._loop.call(lambda: self._fail(error) if self._delivery is delivery else None)

    def _fail(self, error: Exception) -> None:
        """End the POST by an error, unless a connection that had died unseen explains it.

        Nothing has come back on that one, so that it is safe and sensible to try again at once.
        """
        unanswered = self._reader.status is None
        died = isinstance(error, ConnectionError) or is_eof(error)
        if died and unanswered and not self._fresh:
            self._open()
            return
        reply = self._reader.fail(error)
        self._disconnect()
        if reply is not None:
            self._finish(reply)
        else:
            self._end(self._fault(error))

    def _finish(self, reply: Reply) -> None:
        if not reply.reusable or not self._is_sent:
            self._disconnect()
        if reply.broken and self._endpoint.accept and reply.status < 300:
            self._end(self._fault(reply.broken))  # whether it was accepted stands in the body
            return
        assert self._way is not None
        self._end(
            Answer(
                status=reply.status,
                body=reply.body,
                retry_after=retry_after(reply.headers),
                secrets=self._way.access.secrets,
                seconds=time.monotonic() - self._began,
            )
        )

    def _fault(self, error: Exception) -> Answer:
        fault, detail = explain(error, self._endpoint)
        return Answer(fault=fault, detail=detail[:200], seconds=time.monotonic() - self._began)

    def _end(self, answer: Answer) -> None:
        delivery, self._delivery = self._delivery, None
        assert delivery is not None
        self._body, self._rest, self.deadline = b"", [], FOREVER
        self._answered(self, delivery, answer, self._certificate)
