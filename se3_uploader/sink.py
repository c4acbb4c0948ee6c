"""One POST -> one Answer. Worker threads only send bytes and hand back what came; no database."""

from __future__ import annotations

import gzip
import http.client
import queue
import socket
import ssl
import threading
import time
from collections import deque
from email.utils import parsedate_to_datetime
from typing import Callable, Deque, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

import requests
import tenacity

from se3_uploader import __version__, config
from se3_uploader.credentials import Access, CredentialsError, read_access, stamp_of
from se3_uploader.plaintext import PlaintextRefused
from se3_uploader.policy import Answer
from se3_uploader.transport import FOREVER, ConnectTimeout, Line, StaleConnection, is_eof

MAX_RETRY_AFTER = 86400.0
"""Seconds: a platform that asks us to wait longer is taken to mean a day."""

ABORT_GRACE = 1.0
"""Seconds that close() waits for threads after it has cut their connections."""

STOPPED = "stopped before the answer came; it is sent again with the same key"

FaultText = Tuple[str, str]
"""One of policy.FAULTS, and words for people."""

Collect = Callable[[int, Answer], None]


class Delivery(NamedTuple):
    """One POST to make."""

    id: int
    """Handed back with the answer; means nothing here."""
    key: str
    """Idempotency key."""
    body: bytes
    """JSON, UTF-8."""


class Sink:
    """Everything that is POSTed to one endpoint.

    At most `max_in_flight` POSTs run at once, each in a thread of its own that keeps one connection
    alive; threads start when they are first needed. `collect` is called from those threads, exactly
    once for each delivery, and must not raise or block.
    """

    def __init__(self, endpoint: config.Endpoint, collect: Collect) -> None:
        """Connect nothing yet."""
        self.endpoint = endpoint
        self.certificate_not_after: Optional[float] = None
        """Epoch seconds at which the platform's certificate expires; None until it was seen."""
        self.collect = collect
        self._access: Optional[Access] = None
        self._reading = threading.Lock()
        """Held while files are read, which may take long enough to be noticed by submit."""
        self._changed = threading.Condition()
        """Guards everything below."""
        self._workers: List[_Worker] = []
        self._idle: List[_Worker] = []
        self._waiting: Deque[Delivery] = deque()
        self._in_flight = 0
        self._closing = False
        self._aborted = False
        self._watcher: Optional[threading.Thread] = None
        self._watcher_rests = False
        self._begun = False
        """Whether a POST began since the watcher last looked."""

    def submit(self, delivery: Delivery) -> None:
        """Have a delivery sent; never blocks. Raises RuntimeError after close."""
        with self._changed:
            if self._closing:
                raise RuntimeError("the sink is closed")
            self._in_flight += 1
            if self._idle:
                self._idle.pop().inbox.put(delivery)
            elif len(self._workers) < self.endpoint.max_in_flight:
                worker = _Worker(self)
                self._workers.append(worker)
                worker.inbox.put(delivery)
                worker.thread.start()
            else:
                self._waiting.append(delivery)

    def close(self, timeout: float) -> None:
        """Wait up to timeout seconds for what is in flight, cut off the rest, end all threads.

        What was cut off is collected with the fault "connection".
        """
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: self._in_flight == 0, timeout)
            self._aborted = True
            for worker in self._workers:
                if worker.line:
                    worker.line.cut(STOPPED)
            for worker in self._idle:
                worker.inbox.put(None)
            self._idle.clear()
            self._changed.notify_all()
        end = time.monotonic() + ABORT_GRACE
        threads = [worker.thread for worker in self._workers]
        for thread in threads + ([self._watcher] if self._watcher else []):
            thread.join(max(0.0, end - time.monotonic()))

    # What follows is called by the workers.

    def access(self) -> Access:
        """Give the endpoint's credentials, read again if a file changed since the last call.

        Raises CredentialsError.
        """
        stamp = stamp_of(self.endpoint)
        access = self._access
        if access is None or access.stamp != stamp:
            with self._reading:
                access = self._access
                if access is None or access.stamp != stamp:
                    access = self._access = read_access(self.endpoint)
        return access

    def begin(self, line: Line) -> None:
        """Start the total time limit of a POST, or cut it at once when the sink was aborted."""
        with self._changed:
            line.begin()
            self._begun = True
            if self._aborted:
                line.cut(STOPPED)
            elif self._watcher is None:
                self._watcher = threading.Thread(
                    target=self._watch, name=f"watch {self.endpoint.name}", daemon=True
                )
                self._watcher.start()
            elif self._watcher_rests:
                self._changed.notify_all()

    def next_for(self, worker: _Worker) -> None:
        """Give a worker that has its answer something to do next, before it hands that over.

        So a thread is free by the time its answer is known, and no other is started needlessly.
        """
        with self._changed:
            if self._waiting:
                worker.inbox.put(self._waiting.popleft())
            elif self._aborted:
                worker.inbox.put(None)
            else:
                self._idle.append(worker)

    def handed_over(self) -> None:
        """Count a delivery as collected."""
        with self._changed:
            self._in_flight -= 1
            if self._closing and not self._in_flight:
                self._changed.notify_all()

    def _watch(self) -> None:
        """Cut POSTs that take longer than the total time limit.

        A POST that begins later ends later, so the thread sleeps until the first deadline, or for a
        whole time limit when there is none, and is woken only after a limit without any POST.
        """
        total = self.endpoint.timeout.total
        with self._changed:
            while not self._aborted:
                now = time.monotonic()
                lines = [worker.line for worker in self._workers if worker.line]
                for line in lines:
                    if line.deadline <= now:
                        line.cut(f"took longer than {total:g} s in all")
                deadlines = [line.deadline for line in lines if line.deadline < FOREVER]
                self._watcher_rests = not (deadlines or self._begun)
                self._begun = False
                first = min([now + total, *deadlines])
                self._changed.wait(None if self._watcher_rests else first - now)


class _Worker:
    """A thread with one line."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.inbox: queue.SimpleQueue[Optional[Delivery]] = queue.SimpleQueue()
        self.line: Optional[Line] = None
        self.thread = threading.Thread(
            target=self._run, name=f"post {sink.endpoint.name}", daemon=True
        )
        self._again = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(2),
            retry=tenacity.retry_if_exception_type(StaleConnection),
            reraise=True,
        )

    def _run(self) -> None:
        while True:
            delivery = self.inbox.get()
            if delivery is None:
                break
            answer = self._answer(delivery)
            self.sink.next_for(self)
            self.sink.collect(delivery.id, answer)
            self.sink.handed_over()
            del delivery  # not to hold a picture while idle
        if self.line:
            self.line.disconnect()

    def _answer(self, delivery: Delivery) -> Answer:
        """Make a POST, whatever happens."""
        endpoint = self.sink.endpoint
        started = time.monotonic()
        line: Optional[Line] = None
        try:
            line = self._current_line()
            body = delivery.body
            if endpoint.compression == "gzip":
                body = gzip.compress(body, compresslevel=1, mtime=0)
            self.sink.begin(line)
            try:
                try:
                    reply = line.exchange(delivery.key, body)
                except StaleConnection:  # tenacity alone would cost every POST a tenth more
                    reply = self._again(line.exchange, delivery.key, body)
            finally:
                line.end()
            self.sink.certificate_not_after = line.certificate_not_after
            if reply.status < 200:
                raise http.client.HTTPException("an interim answer in place of a final one")
            if reply.broken and endpoint.accept and reply.status < 300:
                raise reply.broken  # whether the event was accepted stands in the body
        except Exception as error:
            fault, detail = explain(error, endpoint, line)
            return Answer(fault=fault, detail=detail[:200], seconds=time.monotonic() - started)
        return Answer(
            status=reply.status,
            body=reply.body,
            retry_after=retry_after(reply.headers),
            secrets=line.access.secrets,
            seconds=time.monotonic() - started,
        )

    def _current_line(self) -> Line:
        """Give the line, a new one when the credentials have changed."""
        access = self.sink.access()
        if self.line is None or self.line.access is not access:
            if self.line is not None:
                self.line.disconnect()
            self.line = Line(self.sink.endpoint, access, _headers(self.sink.endpoint))
        return self.line


def _headers(endpoint: config.Endpoint) -> Mapping[str, str]:
    """The headers that are the same for every POST (contract, "On the wire")."""
    headers = requests.structures.CaseInsensitiveDict(
        {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": f"se3-uploader/{__version__}",
            "Accept-Encoding": "identity",
        }
    )
    headers.update(endpoint.headers)
    if endpoint.compression == "gzip":
        headers["Content-Encoding"] = "gzip"
    return headers


def try_connection(endpoint: config.Endpoint) -> Tuple[Optional[FaultText], Optional[float]]:
    """Connect as a POST would, proxy and TLS included, and send nothing.

    Returns what went wrong, None where nothing did, and when the platform's certificate expires
    (epoch seconds), None where none was verified.
    """
    line: Optional[Line] = None
    try:
        line = Line(endpoint, read_access(endpoint), _headers(endpoint))
        line.probe()
    except Exception as error:
        return explain(error, endpoint, line), None
    return None, line.certificate_not_after


def retry_after(headers: Mapping[str, str]) -> Optional[float]:
    """Read Retry-After, seconds or a date, as seconds from now; None where there is none.

    A date is compared with the answer's own Date, as a box's clock may be years off.
    """
    value = headers.get("retry-after", "")
    try:
        if value.isdigit():
            seconds = float(value[:12])
        else:
            until = parsedate_to_datetime(value).timestamp()
            date = headers.get("date")
            seconds = until - (parsedate_to_datetime(date).timestamp() if date else time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def explain(error: BaseException, endpoint: config.Endpoint, line: Optional[Line]) -> FaultText:
    """Turn what a POST raised into one of policy.FAULTS and words about what to do.

    The words name the host, and hold nothing else of the URL, the request or the answer.
    """
    if line is not None and line.cut_reason:
        return ("connection" if line.cut_reason == STOPPED else "timeout"), line.cut_reason
    where = urlsplit(endpoint.proxy or endpoint.url).netloc.rpartition("@")[2]
    limits = endpoint.timeout
    if isinstance(error, CredentialsError):
        return "credentials", str(error)
    if isinstance(error, PlaintextRefused):
        return "plaintext", f"{where}: {error} would go unencrypted to a public address; use https"
    if isinstance(error, ConnectTimeout):
        return "timeout", f"{where}: no connection within {limits.connect:g} s"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "timeout", f"{where}: nothing moved for {limits.read:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "tls", f"{where}: certificate refused: {error.verify_message}{_clock_hint(error)}"
    if isinstance(error, ssl.SSLError) and not is_eof(error):
        return "tls", f"{where}: no secure connection: {error.reason or 'TLS failed'}"
    if isinstance(error, ConnectionError):  # RemoteDisconnected among them
        return "connection", f"{where}: {error.strerror or 'hung up without an answer'}"
    if isinstance(error, socket.gaierror):
        return "connection", f"{where}: the name cannot be resolved; check the url and the DNS"
    if isinstance(error, OSError):
        return "connection", f"{where}: {error.strerror or 'the proxy refused to connect us'}"
    if isinstance(error, http.client.HTTPException):
        return "protocol", f"{where}: the answer was no HTTP; check the url"
    if isinstance(error, (requests.RequestException, UnicodeError)):
        return "connection", f"{where}: the url or a header cannot be used; check the configuration"
    return "connection", f"{where}: unexpected {type(error).__name__}"


def _clock_hint(error: ssl.SSLCertVerificationError) -> str:
    """Boxes without a battery start in 1970, long before any certificate was made."""
    return "; check the clock of this box" if error.verify_code in (9, 10) else ""
