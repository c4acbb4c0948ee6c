"""Opening a connection to an endpoint, through its proxy if it has one; this may block.

requests prepares the URL and the headers, and its adapter makes the pool that opens connections, so
addresses, TLS and proxies work as everywhere in requests. Its send() and urllib3's urlopen() are
left out: they wait for one answer at a time, take several times as long as the exchange itself, and
send() trusts the public authorities beside our own. Nothing is taken from the environment.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from .. import __version__, config
from .credentials import Access, read_access
from .faults import Fault, Stopped, TookTooLong, explain
from .plaintext import PlaintextRefused, is_trusted, refusal
from .tls_in_tls import TlsInTls

OBJECTION = 0.5
"""Seconds a platform has to refuse our certificate when a connection is only tried."""

# urllib3 warns by quoting the platform's headers and our path; neither belongs in a log.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)


class Attempt:
    """One opening of a connection, which another thread may end.

    That shuts the socket down under the one that opens it, whatever it waits for, the TLS handshake
    or a proxy's answer. It is done on a duplicate, because TLS takes the original over.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handle: Optional[socket.socket] = None
        self._ended = False

    def end(self) -> None:
        """Give it up; open raises something soon."""
        with self._lock:
            self._ended = True
            if self._handle is not None:
                try:
                    self._handle.shutdown(socket.SHUT_RDWR)
                except OSError:  # the peer was faster
                    pass

    def opened(self, connection: socket.socket) -> None:
        """Take charge of a new socket. Raises Stopped after the end."""
        with self._lock:
            if self._ended:
                raise Stopped
            self._handle = connection.dup()

    def close(self) -> None:
        """It is over, well or not."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None


class Opened(NamedTuple):
    """A connection on which nothing was sent yet."""

    socket: Any
    """socket.socket, ssl.SSLSocket or TlsInTls; does not block."""
    certificate_not_after: Optional[float]
    """Epoch seconds, of the platform's certificate; None where none was verified."""


class Way:
    """The way to an endpoint under the credentials that its files hold now."""

    def __init__(self, endpoint: config.Endpoint) -> None:
        """Read the credentials; connect nothing.

        Raises CredentialsError, and ValueError or requests.RequestException for an impossible url
        or header.
        """
        self.access: Access = read_access(endpoint)
        self._limits = endpoint.timeout
        self._refusal = refusal(endpoint, self.access.authorization)
        prepared = requests.Request("POST", endpoint.url, headers=_headers(endpoint)).prepare()
        if self.access.authorization:
            prepared.headers["Authorization"] = self.access.authorization
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1)
        adapter.init_poolmanager(1, 1, ssl_context=self.access.context)
        manager, proxies = adapter.poolmanager, {}
        if endpoint.proxy:
            manager = adapter.proxy_manager_for(endpoint.proxy, ssl_context=self.access.context)
            proxies = {urlsplit(endpoint.url).scheme: endpoint.proxy}
        self._tunnel = bool(endpoint.proxy) and self.access.context is not None
        if endpoint.proxy and not self._tunnel:
            prepared.headers.update(adapter.proxy_headers(endpoint.proxy))
        self._head = _head(adapter.request_url(prepared, proxies), prepared)
        if not endpoint.tls.verify:
            warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
        self._pool: Any = manager.connection_from_url(prepared.url)
        self._pool.ConnectionCls = _Secure if self._pool.scheme == "https" else _Plain

    def head(self, key: str, length: int) -> bytes:
        """The head of a POST with an idempotency key and a body of so many bytes."""
        tail = f"Idempotency-Key: {key}\r\nContent-Length: {length}\r\n\r\n"
        return self._head + tail.encode("ascii")

    def open(self, attempt: Attempt) -> Opened:
        """Connect, TLS and proxy included, each step within the connect timeout.

        Raises TookTooLong, Stopped, PlaintextRefused, OSError (ssl.SSLError among them) or
        http.client.HTTPException.
        """
        connection = self._pool._new_conn()
        connection.timeout = self._limits.connect
        connection.way, connection.attempt = self, attempt
        try:
            if self._tunnel:
                self._pool._prepare_proxy(connection)
            else:
                connection.connect()
            opened: Any = connection.sock
            not_after = None
            if self.access.context is not None:
                not_after = (opened.getpeercert() or {}).get("notAfter")
            connection.sock = None  # it is ours now, whatever becomes of the object
        except socket.timeout:
            connection.close()
            raise TookTooLong(f"no connection within {self._limits.connect:g} s") from None
        except BaseException:
            connection.close()
            raise
        finally:
            attempt.close()
        opened.settimeout(0.0)
        return Opened(
            opened if isinstance(opened, socket.socket) else TlsInTls(opened),
            ssl.cert_time_to_seconds(not_after) if not_after else None,
        )

    def check(self, connection: socket.socket) -> None:
        """Raise PlaintextRefused where the peer is public and what we send would be readable."""
        if self._refusal and not is_trusted(connection.getpeername()[0]):
            raise PlaintextRefused(self._refusal)


def try_connection(endpoint: config.Endpoint) -> Tuple[Optional[Fault], Optional[float]]:
    """Connect as a POST would, proxy and TLS included, and send nothing.

    Returns what went wrong, None where nothing did, and when the platform's certificate expires
    (epoch seconds), None where none was verified. With TLS 1.3 a platform that refuses our
    certificate says so only after the handshake, so it is given a moment to object.
    """
    try:
        opened = Way(endpoint).open(Attempt())
        try:
            if urlsplit(endpoint.url).scheme == "https":
                opened.socket.settimeout(OBJECTION)
                opened.socket.recv(1)
        except socket.timeout:
            pass
        finally:
            opened.socket.close()
    except Exception as error:
        return explain(error, endpoint), None
    return None, opened.certificate_not_after


def _headers(endpoint: config.Endpoint) -> requests.structures.CaseInsensitiveDict[str]:
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


if TYPE_CHECKING:
    _Base = HTTPConnection
else:
    _Base = object


class _Watched(_Base):
    """Checks a new socket before anything is sent on it, TLS included.

    The socket is made here, not by urllib3, which would hide the reason of a failure.
    """

    way: Way
    attempt: Attempt

    def _new_conn(self) -> socket.socket:
        connection = socket.create_connection((self._dns_host, self.port), self.timeout)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.way.check(connection)
            self.attempt.opened(connection)
        except BaseException:
            connection.close()
            raise
        return connection


class _Plain(_Watched, HTTPConnection):
    pass


class _Secure(_Watched, HTTPSConnection):
    pass
