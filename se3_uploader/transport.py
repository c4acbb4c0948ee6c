"""How bytes travel: one connection that is kept alive and can be cut off at any time.

Free of any idea of events or of what an answer means; the sink is the only user.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import threading
import time
import warnings
from typing import IO, TYPE_CHECKING, Any, Callable, Dict, Mapping, NamedTuple, Optional
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.connection import is_connection_dropped

from se3_uploader import config
from se3_uploader.credentials import Access
from se3_uploader.plaintext import PlaintextRefused, is_trusted, refusal

MAX_BODY = 64 * 1024
"""Bytes of an answer's body that are read and kept."""

MAX_HEADERS, MAX_LINE = 100, 64 * 1024
"""Headers of an answer, and bytes of one of them, as in the standard library."""

SEND_BLOCK = 64 * 1024
"""Bytes handed to TLS at once: each block has the read timeout to leave in."""

OBJECTION = 0.5
"""Seconds a platform has to refuse our certificate when a connection is only tried."""

FOREVER = float("inf")
"""The deadline of what has none."""

# urllib3 warns by quoting the platform's headers and our path; neither belongs in a log.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)


class ConnectTimeout(Exception):
    """No connection, TLS included, within the connect timeout."""


class StaleConnection(Exception):
    """A kept connection had died unseen: nothing came back on it."""


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes
    """At most MAX_BODY bytes, undecoded; b"" where it broke off."""
    broken: Optional[Exception]
    """Why the body broke off; None where it did not."""


class Response(http.client.HTTPResponse):
    """The standard library's reader of an answer, but for the headers.

    It has them parsed like those of an e-mail, which takes longer than all the rest of a POST.
    """

    fields: Mapping[str, str]
    """The headers by their names in lower case, known after begin."""

    def begin(self) -> None:
        """Read up to the body; raises OSError or http.client.HTTPException."""
        version, status, _ = self._read_status()  # type: ignore[attr-defined]
        while status == http.client.CONTINUE:
            _read_fields(self.fp)
            version, status, _ = self._read_status()  # type: ignore[attr-defined]
        if not version.startswith("HTTP/1."):
            raise http.client.UnknownProtocol(version)
        self.status = status
        self.fields = _read_fields(self.fp)
        self.chunked = self.fields.get("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        length = self.fields.get("content-length", "")
        told = length.isdecimal() and len(length) < 20 and not self.chunked
        self.length = int(length) if told else None
        if status < 200 or status in (http.client.NO_CONTENT, http.client.NOT_MODIFIED):
            self.length = 0
        kept = self.fields.get("connection", "").lower()
        ends = "close" in kept or (version == "HTTP/1.0" and "keep-alive" not in kept)
        self.will_close = ends or (self.length is None and not self.chunked)

    def _read_next_chunk_size(self) -> int:
        """Refuse a size below zero, for which the standard library reads on without an end."""
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise ValueError("a chunk of less than nothing")
        return size


def _read_fields(file: IO[bytes]) -> Mapping[str, str]:
    """Read headers up to the empty line, of those with the same name the first."""
    fields: Dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise http.client.LineTooLong("header line")
        if line in (b"\r\n", b"\n", b""):
            return fields
        name, _, value = line.decode("latin-1").partition(":")
        if not name.startswith((" ", "\t")):  # else the line goes on with the one above
            fields.setdefault(name.strip().lower(), value.strip())
    raise http.client.HTTPException(f"more than {MAX_HEADERS} headers")


class Line:
    """The way to an endpoint, through its proxy if it has one, on one connection kept alive.

    Belongs to one thread, but any thread may cut it. That shuts the socket down under the owner,
    whatever it waits for: the TLS handshake, sending, or an answer that comes byte by byte. It is
    done on a duplicate of the socket, because TLS takes the original over.

    requests prepares the URL and the headers, and its adapter makes the pool that opens
    connections, so addresses, TLS and proxies work as everywhere in requests. Its send() and
    urllib3's urlopen() are left out: they take several times as long as the exchange itself, and
    send() trusts the public authorities beside our own. Nothing is taken from the environment.
    """

    def __init__(self, endpoint: config.Endpoint, access: Access, headers: Mapping[str, str]):
        """Connect nothing yet. Raises ValueError for an impossible url or header."""
        self.access = access
        self.deadline = FOREVER
        """Monotonic time at which the POST in hand is to be cut; infinite between POSTs."""
        self.cut_reason = ""
        """Why the POST in hand was cut; "" while it was not."""
        self.certificate_not_after: Optional[float] = None
        """Epoch seconds, of the platform's certificate on the last verified connection."""
        self._limits = endpoint.timeout
        self._refusal = refusal(endpoint, access.authorization)
        self._lock = threading.Lock()
        self._handle: Optional[socket.socket] = None
        self._connection: Any = None

        prepared = requests.Request("POST", endpoint.url, headers=headers).prepare()
        if access.authorization:
            prepared.headers["Authorization"] = access.authorization
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1)
        adapter.init_poolmanager(1, 1, ssl_context=access.context)
        manager, proxies = adapter.poolmanager, {}
        if endpoint.proxy:
            manager = adapter.proxy_manager_for(endpoint.proxy, ssl_context=access.context)
            proxies = {urlsplit(endpoint.url).scheme: endpoint.proxy}
        self._tunnel = bool(endpoint.proxy) and access.context is not None
        if endpoint.proxy and not self._tunnel:
            prepared.headers.update(adapter.proxy_headers(endpoint.proxy))
        self._head = _head(adapter.request_url(prepared, proxies), prepared)
        if not endpoint.tls.verify:
            warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
        self._pool: Any = manager.connection_from_url(prepared.url)
        self._pool.ConnectionCls = _Secure if self._pool.scheme == "https" else _Plain
        self._pool.conn_kw["opened"] = self._opened

    def begin(self) -> None:
        """Start the clock of a POST."""
        self.cut_reason = ""
        self.deadline = time.monotonic() + self._limits.total

    def end(self) -> None:
        """Stop the clock."""
        self.deadline = FOREVER

    def cut(self, reason: str) -> None:
        """End the POST in hand from another thread; a connection that it still opens ends too."""
        with self._lock:
            self.deadline = FOREVER
            self.cut_reason = reason
            if self._handle is not None:
                try:
                    self._handle.shutdown(socket.SHUT_RDWR)
                except OSError:  # the peer was faster
                    pass

    def exchange(self, key: str, body: bytes) -> Reply:
        """POST a body under an idempotency key, and read the answer.

        Raises StaleConnection where it is safe and sensible to try again at once. Else
        ConnectTimeout, PlaintextRefused, OSError (ssl.SSLError among them) or
        http.client.HTTPException.
        """
        fresh = self._connection is None or _is_unusable(self._connection)
        response: Optional[Response] = None
        try:
            if self.cut_reason:
                raise ConnectionAbortedError(self.cut_reason)
            if fresh:
                self.disconnect()
                self._connect()
            connection: socket.socket = self._connection.sock
            response = Response(connection, method="POST")
            tail = f"Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
            try:
                send(connection, self._head + tail.encode("ascii"), body)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                pass  # A platform may answer and hang up without reading on.
            response.begin()
            if self.cut_reason:  # what looks like the end of the headers was our own doing
                raise ConnectionAbortedError(self.cut_reason)
        except BaseException as error:
            unanswered = response is not None and not isinstance(response.status, int)
            died = isinstance(error, ConnectionError) or is_eof(error)
            self._hang_up(response)
            if died and unanswered and not fresh and not self.cut_reason:
                raise StaleConnection from error
            raise
        return self._read(response)

    def probe(self) -> None:
        """Connect and hang up, without a byte of a request; raises what exchange raises.

        With TLS 1.3 a platform that refuses our certificate says so only after the handshake, so
        it is given a moment to object.
        """
        try:
            self._connect()
            if self.access.context is not None:
                self._connection.sock.settimeout(OBJECTION)
                self._connection.sock.recv(1)
        except socket.timeout:
            pass
        finally:
            self.disconnect()

    def _read(self, response: Response) -> Reply:
        """Read what is kept of a body; a connection with more of it to come is closed."""
        broken: Optional[Exception] = None
        body = b""
        try:
            body = response.read(MAX_BODY)
            if self.cut_reason or (response.length and len(body) < MAX_BODY):
                raise ConnectionAbortedError("the answer broke off")
        except (OSError, http.client.HTTPException) as error:
            broken, body = error, b""
        if broken or response.will_close or not response.isclosed() or response.status < 200:
            self._hang_up(response)
        return Reply(response.status, response.fields, body, broken)

    def disconnect(self) -> None:
        """Close the connection, if there is one."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _hang_up(self, response: Optional[Response]) -> None:
        if response is not None:
            response.close()
        self.disconnect()

    def _connect(self) -> None:
        connection = self._connection = self._pool._new_conn()
        connection.timeout = self._limits.connect
        try:
            if self._tunnel:
                self._pool._prepare_proxy(connection)
            else:
                connection.connect()
        except socket.timeout as error:
            raise ConnectTimeout from error
        connection.sock.settimeout(self._limits.read)
        if self.access.context is not None:
            not_after = (connection.sock.getpeercert() or {}).get("notAfter")
            if not_after:
                self.certificate_not_after = ssl.cert_time_to_seconds(not_after)

    def _opened(self, connection: socket.socket) -> None:
        """Take charge of a new socket before the first byte is sent on it."""
        if self._refusal and not is_trusted(connection.getpeername()[0]):
            raise PlaintextRefused(self._refusal)
        with self._lock:
            if self.cut_reason:
                raise ConnectionAbortedError(self.cut_reason)
            self._handle = connection.dup()


def _is_unusable(connection: Any) -> bool:
    """Was a kept connection closed, or did more come on it than the answer that was asked for?"""
    pending = getattr(connection.sock, "pending", None)  # what TLS has decrypted already
    return is_connection_dropped(connection) or (pending is not None and pending() > 0)


def is_eof(error: BaseException) -> bool:
    """Tell a connection that broke under TLS; older Pythons have no class of their own for it."""
    kinds = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    return isinstance(error, kinds) or (
        isinstance(error, ssl.SSLError) and "EOF" in (error.reason or "")
    )


def _head(target: str, prepared: requests.PreparedRequest) -> bytes:
    """Write the part of a request that is the same for every POST.

    requests has refused line breaks in headers; lengths and the key belong to the single POST.
    """
    headers = prepared.headers
    headers.setdefault("Host", urlsplit(str(prepared.url)).netloc.rpartition("@")[2])
    own = {"content-length", "transfer-encoding", "idempotency-key", "connection"}
    lines = [f"POST {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in own]
    return "\r\n".join([*lines, ""]).encode("latin-1")


def send(connection: socket.socket, head: bytes, body: bytes) -> None:
    """Send in pieces, as the time limit of a socket is for one call, however much it is to send."""
    if type(connection) is not socket.socket:  # TLS, which cannot send from two places at once
        connection.sendall(head + body[:SEND_BLOCK])
        for start in range(SEND_BLOCK, len(body), SEND_BLOCK):
            connection.sendall(memoryview(body)[start : start + SEND_BLOCK])
        return
    rest = [memoryview(head), memoryview(body)]
    while rest:
        sent = connection.sendmsg(rest)
        while rest and sent >= len(rest[0]):
            sent -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][sent:]


if TYPE_CHECKING:
    _Base = HTTPConnection
else:
    _Base = object


class _Watched(_Base):
    """Shows a new socket to its line before anything is sent on it, TLS included.

    The socket is made here, not by urllib3, which would hide the reason of a failure.
    """

    def __init__(self, *args: Any, opened: Callable[[socket.socket], None], **kwargs: Any) -> None:
        self._opened = opened
        super().__init__(*args, **kwargs)

    def _new_conn(self) -> socket.socket:
        connection = socket.create_connection((self._dns_host, self.port), self.timeout)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._opened(connection)
        except BaseException:
            connection.close()
            raise
        return connection


class _Plain(_Watched, HTTPConnection):
    pass


class _Secure(_Watched, HTTPSConnection):
    pass
