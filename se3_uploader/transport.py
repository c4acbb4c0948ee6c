"""How bytes travel: connections that can be cut off, verified TLS, credentials from files.

Everything here belongs to one endpoint and is free of any idea of events or answers; the sink is
the only user.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
import warnings
from http.client import HTTPConnection as PlainConnection
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.certs import where
from urllib3.connection import HTTPConnection, HTTPSConnection

from se3_uploader import config

SEND_BLOCK = 64 * 1024
"""Bytes handed to a socket at once: each block has the read timeout to leave in."""

MAX_SECRET = 16 * 1024
"""Bytes of a token file that are read; no server takes a longer header."""

TRUSTED_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
"""Loopback, private and link-local, spelled out: Python's is_private changes with its version."""

# urllib3 warns by quoting the platform's headers and our path; neither belongs in a log.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)


class CredentialsError(Exception):
    """A token, password or certificate file cannot be used. Names the file, never its content."""


class PlaintextRefused(Exception):
    """Something that must not be read by others would go unencrypted to a public address."""


class Access(NamedTuple):
    """What the files of an endpoint held when they were last read."""

    stamp: Tuple[Tuple[int, int, int], ...]
    """From `stamp`, taken before reading."""
    authorization: Optional[str]
    """Value of the Authorization header."""
    context: Optional[ssl.SSLContext]
    """None for http."""


def stamp(endpoint: config.Endpoint) -> Tuple[Tuple[int, int, int], ...]:
    """Say in a few numbers which versions of an endpoint's files there are now.

    Raises CredentialsError where one is missing.
    """
    stamps = []
    for name in _files(endpoint):
        try:
            found = os.stat(_expand(name))
        except OSError as error:
            raise CredentialsError(_unreadable(name, error)) from None
        stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamps)


def read_access(endpoint: config.Endpoint) -> Access:
    """Read the credentials and certificates of an endpoint.

    Raises CredentialsError where a file is missing, empty, or not what it should be.
    """
    auth = endpoint.auth
    before = stamp(endpoint)
    authorization = None
    if auth.bearer_file:
        authorization = "Bearer " + _secret(auth.bearer_file)
    elif auth.basic_file:
        secret = _secret(auth.basic_file)
        if ":" not in secret:
            raise CredentialsError(f"{auth.basic_file}: write user:password on one line")
        authorization = "Basic " + base64.b64encode(secret.encode()).decode()
    context = tls_context(endpoint.tls) if endpoint.url.startswith("https:") else None
    return Access(before, authorization, context)


def tls_context(tls: config.Tls) -> ssl.SSLContext:
    """Make what a TLS connection is checked against: at least TLS 1.2, own CA or the machine's.

    Raises CredentialsError where a certificate or key cannot be loaded.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_file:
        _load(tls.ca_file, lambda path: context.load_verify_locations(cafile=path))
    elif _machine_has_authorities():
        context.load_default_certs()
    else:
        context.load_verify_locations(cafile=where())
    if tls.cert_file:
        key_file = _expand(tls.key_file) if tls.key_file else None
        # A password is given so that an encrypted key fails instead of asking on the terminal.
        _load(tls.cert_file, lambda path: context.load_cert_chain(path, key_file, password=""))
    return context


class Line:
    """The one connection of a worker, kept alive between POSTs, open to be cut by another thread.

    Cutting shuts the socket down under the worker, whatever it waits for: sending, the TLS
    handshake, or an answer that comes byte by byte. A duplicate of the socket serves for that, as
    TLS takes the original over and a half-read answer outlives its connection.
    """

    def __init__(self, refusal: str, read_timeout: float) -> None:
        self.refusal = refusal
        """Why this endpoint must not be reached in plain text at a public address; "" if it may."""
        self.read_timeout = read_timeout
        self.deadline = float("inf")
        """Monotonic time at which the POST in hand is cut; infinite between POSTs."""
        self.cut_reason = ""
        """Why the POST in hand was cut; "" while it was not."""
        self.answers = 0
        """Complete answers seen on the present connection."""
        self.connection: Optional[PlainConnection] = None
        self.certificate_not_after: Optional[float] = None
        self._lock = threading.Lock()
        self._handle: Optional[socket.socket] = None

    def begin(self, total: float) -> None:
        """Start the clock of a POST that may take total seconds."""
        self.cut_reason = ""
        self.deadline = time.monotonic() + total

    def end(self) -> None:
        """Stop the clock, and let a closed connection be closed for the peer as well."""
        self.deadline = float("inf")
        if self.connection is None or self.connection.sock is None:
            self.release()

    def cut(self, reason: str) -> None:
        """End the POST in hand from another thread; every later connection of it fails as well."""
        with self._lock:
            self.deadline = float("inf")
            self.cut_reason = reason
            if self._handle is not None:
                try:
                    self._handle.shutdown(socket.SHUT_RDWR)
                except OSError:  # the peer was faster
                    pass

    def opened(self, connection: socket.socket) -> None:
        """Take charge of a new connection before the first byte is sent on it.

        Raises PlaintextRefused, and ConnectionAbortedError when the POST was cut meanwhile.
        """
        if self.refusal and not is_trusted(connection.getpeername()[0]):
            raise PlaintextRefused(self.refusal)
        with self._lock:
            if self.cut_reason:
                raise ConnectionAbortedError(self.cut_reason)
            self._drop()
            self._handle = connection.dup()
            self.answers = 0

    def release(self) -> None:
        """Let the duplicate of the socket go."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def is_trusted(address: str) -> bool:
    """Tell whether an address is loopback, private or link-local."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in TRUSTED_NETWORKS)


class Route(NamedTuple):
    """Where POSTs of an endpoint go: a pool of one connection, and what to ask of it."""

    pool: Any
    """urllib3's HTTPConnectionPool (typed too differently across its versions to be named)."""
    target: str
    """Path and query, or with a proxy for http the whole URL."""
    line: Line

    def close(self) -> None:
        """Close the connection."""
        self.pool.close()
        self.line.release()


def open_route(endpoint: config.Endpoint, access: Access) -> Route:
    """Prepare the way to an endpoint, through its proxy if it has one. Connects nothing yet.

    requests' adapter makes the pools, so that URLs and proxies work as everywhere in requests. Its
    send() is left out: it costs as much again as the POST, and trusts certifi beside our own CA.
    Nothing is taken from the environment.
    """
    prepared = requests.Request("POST", endpoint.url).prepare()
    adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1)
    if endpoint.proxy:
        proxies = {urlsplit(endpoint.url).scheme: endpoint.proxy}
        manager = adapter.proxy_manager_for(endpoint.proxy, ssl_context=access.context)
    else:
        proxies = {}
        adapter.init_poolmanager(1, 1, ssl_context=access.context)
        manager = adapter.poolmanager
    if not endpoint.tls.verify:
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
    line = Line(_refusal(endpoint, access), endpoint.timeout.read)
    pool = manager.connection_from_url(prepared.url)
    pool.ConnectionCls = _SecureConnection if pool.scheme == "https" else _Connection
    pool.conn_kw["line"] = line
    return Route(pool, adapter.request_url(prepared, proxies), line)


def _refusal(endpoint: config.Endpoint, access: Access) -> str:
    """Name what would be readable on the way, if that is not allowed."""
    if endpoint.allow_plaintext:
        return ""
    if endpoint.proxy and endpoint.proxy.startswith("http:") and "@" in endpoint.proxy:
        return "the proxy's password"
    if not endpoint.url.startswith("http:"):
        return ""
    headers = {name.lower() for name in endpoint.headers}
    if access.authorization or "authorization" in headers or "@" in urlsplit(endpoint.url).netloc:
        return "a token or password"
    pictures = (endpoint.pictures.reg_pic, endpoint.pictures.spot_pic)
    if endpoint.kind == "history_event" and pictures != ("strip", "strip"):
        return "face pictures"
    return ""


if TYPE_CHECKING:
    _Base = HTTPConnection
else:
    _Base = object


class _Guarded(_Base):
    """What our connections add to urllib3's: their line, and time limits that hold for sending."""

    def __init__(self, *args: Any, line: Line, **kwargs: Any) -> None:
        self.line = line
        line.connection = self
        super().__init__(*args, **kwargs)

    def _new_conn(self) -> socket.socket:
        connection = super()._new_conn()
        try:
            self.line.opened(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect(self) -> None:
        super().connect()
        # urllib3 leaves the connect timeout in force until the whole body is sent.
        self.sock.settimeout(self.line.read_timeout)

    def send(self, data: Any) -> None:
        view = memoryview(data)
        try:
            for start in range(0, len(view), SEND_BLOCK):
                PlainConnection.send(self, view[start : start + SEND_BLOCK])
        except ConnectionResetError as error:
            # A platform may answer and hang up without reading on. urllib3 reads that answer after
            # a broken pipe, in older versions not after a reset.
            raise BrokenPipeError(error.errno, error.strerror) from error


class _Connection(_Guarded, HTTPConnection):
    pass


class _SecureConnection(_Guarded, HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, ssl.SSLSocket)
        not_after = (self.sock.getpeercert() or {}).get("notAfter")
        if isinstance(not_after, str):
            self.line.certificate_not_after = ssl.cert_time_to_seconds(not_after)


def _files(endpoint: config.Endpoint) -> Tuple[str, ...]:
    auth, tls = endpoint.auth, endpoint.tls
    names = (auth.bearer_file, auth.basic_file, tls.ca_file, tls.cert_file, tls.key_file)
    return tuple(name for name in names if name)


def _expand(path: str) -> str:
    """Put systemd's folder of credentials into a path; no other variable is expanded."""
    for variable in ("${CREDENTIALS_DIRECTORY}", "$CREDENTIALS_DIRECTORY"):
        if variable in path:
            folder = os.environ.get("CREDENTIALS_DIRECTORY")
            if not folder:
                raise CredentialsError(
                    f"{path}: CREDENTIALS_DIRECTORY is not set; add LoadCredential= to the unit"
                )
            return path.replace(variable, folder)
    return path


def _secret(name: str) -> str:
    """Read one line that can stand in a header."""
    try:
        with open(_expand(name), "rb") as file:
            content = file.read(MAX_SECRET + 1)
    except OSError as error:
        raise CredentialsError(_unreadable(name, error)) from None
    if len(content) > MAX_SECRET:
        raise CredentialsError(f"{name}: longer than {MAX_SECRET} bytes, is it the right file?")
    text = content.decode("utf-8", "replace").strip()
    if not text:
        raise CredentialsError(f"{name}: the file is empty, write the token or password into it")
    if not text.isprintable() or "\ufffd" in text:
        raise CredentialsError(f"{name}: must be one line of text")
    return text


def _load(name: str, load: Callable[[str], None]) -> None:
    try:
        load(_expand(name))
    except ssl.SSLError as error:
        reason = error.reason or "no usable certificate in it"
        raise CredentialsError(
            f"{name}: cannot be loaded ({reason}); it must be PEM, a key unencrypted and matching"
        ) from None
    except OSError as error:
        raise CredentialsError(_unreadable(name, error)) from None


def _unreadable(name: str, error: OSError) -> str:
    return f"{name}: {error.strerror}; the service's user must be able to read it"


def _machine_has_authorities() -> bool:
    """Tell whether OpenSSL's default places hold certificates; small systems come without."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile and os.path.getsize(paths.cafile):
        return True
    return bool(paths.capath and os.listdir(paths.capath))
