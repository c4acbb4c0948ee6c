"""One connection to an endpoint, kept alive, and the POST that is under way on it."""

from __future__ import annotations

import array
import fcntl
import gzip
import ssl
import termios
import time
from select import POLLIN, POLLOUT
from typing import Any, Callable, List, NamedTuple, Optional

from se3_uploader import config
from se3_uploader.policy import Answer

from .answer import AnswerReader, Reply, retry_after
from .connect import Way
from .faults import Fault, Stopped, TookTooLong, explain, is_eof
from .loop import FOREVER, Loop
from .opening import Opening, Ways

BLOCK = 64 * 1024
"""Bytes read at once, and handed to TLS at once."""

ROUNDS = 100
"""Times a socket is read before the others have their turn."""

_CANNOT_READ = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Delivery(NamedTuple):
    """One POST to make."""

    id: int
    """Handed back with the answer; means nothing here."""
    key: str
    """Idempotency key."""
    body: bytes
    """JSON, UTF-8."""


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
        self._opening: Optional[Opening] = None
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
        self._early: Optional[Reply] = None
        """An answer that came before that."""
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

    # Connecting

    def _open(self) -> None:
        self._disconnect()
        self._fresh = True
        self._reader, self._early = AnswerReader(), None
        self.deadline = self._began + self._endpoint.timeout.total
        try:
            self._opening = Opening(self._endpoint, self._ways, self._loop, self._opened)
        except RuntimeError as error:  # no more threads
            self._fail_later(error)

    def _opened(self, opening: Opening) -> None:
        self._opening = None
        if opening.opened is None:
            assert opening.fault is not None
            self._end(self._failed(opening.fault))
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
        self._moved()
        self._send()

    def _send(self) -> None:
        """Send what the socket takes; what is left goes once it takes more."""
        events = POLLIN
        try:
            while self._rest:
                self._take_off(self._send_some())
                self._moved()
            self._is_sent = True
        except ssl.SSLWantReadError:
            pass
        except (BlockingIOError, ssl.SSLWantWriteError):
            events |= POLLOUT
        except OSError as error:
            if not (isinstance(error, (BrokenPipeError, ConnectionResetError)) or is_eof(error)):
                raise
            self._rest = []  # A platform may answer and hang up without reading on.
        if self._early is not None:
            events &= ~POLLIN  # what else it has to say is of no interest
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
            if events & POLLOUT:
                self._moved()
            if self._early is None and events & ~POLLOUT:
                self._early = self._receive()
            # An acceptance counts once the platform has all of the request.
            if self._rest and (self._early is None or self._early.status < 300):
                self._send()
        except Exception as error:
            self._fail(error)
            return
        reply = self._early
        if reply is not None and not (self._rest and reply.status < 300 and self._fresh):
            self._finish(reply)

    def _receive(self) -> Optional[Reply]:
        """Read on in the answer; None while it is not complete.

        More than once, as TLS hands out a record at a time, and the loop knows nothing of what is
        decrypted already; not for ever, as a platform may send for ever.
        """
        for _ in range(ROUNDS):
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
            if reply is not None:
                return reply
        if self._is_tls and self._socket.pending():
            connection = self._socket
            self._loop.call(lambda: self._ready(POLLIN) if self._socket is connection else None)
        return None

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

        Not a byte has come back on that one, so that it is safe and sensible to try again at once.
        """
        died = isinstance(error, (ConnectionError, ssl.SSLError))
        if died and not self._fresh and not self._reader.begun:
            self._open()
            return
        reply = self._reader.fail(error)
        self._disconnect()
        if reply is not None:
            self._finish(reply)
        else:
            self._end_by(error)

    def _finish(self, reply: Reply) -> None:
        accepted = reply.status < 300
        if accepted and not (self._is_sent or self._fresh or reply.broken):
            self._open()  # it is the answer to something else, and came late
            return
        if not reply.reusable or not self._is_sent:
            self._disconnect()
        if accepted and not self._is_sent:
            self._end_by(ConnectionAbortedError("the platform accepted what it had not read"))
        elif accepted and reply.broken and self._endpoint.accept:
            self._end_by(reply.broken)  # whether the event was accepted stands in the body
        else:
            self._end(self._answer(reply))

    def _answer(self, reply: Reply) -> Answer:
        assert self._way is not None
        return Answer(
            status=reply.status,
            body=reply.body,
            retry_after=retry_after(reply.headers),
            secrets=self._way.access.secrets,
            seconds=time.monotonic() - self._began,
        )

    def _end_by(self, error: Exception) -> None:
        self._end(self._failed(explain(error, self._endpoint)))

    def _failed(self, fault: Fault) -> Answer:
        kind, detail = fault
        return Answer(fault=kind, detail=detail[:200], seconds=time.monotonic() - self._began)

    def _end(self, answer: Answer) -> None:
        delivery, self._delivery = self._delivery, None
        assert delivery is not None
        self._body, self._rest, self.deadline = b"", [], FOREVER
        self._reader, self._early = AnswerReader(), None
        self._answered(self, delivery, answer, self._certificate)
