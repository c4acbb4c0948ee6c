"""What an endpoint's files hold: tokens, passwords, certificates. Read again when they change."""

from __future__ import annotations

import base64
import os
import ssl
from typing import Any, Callable, FrozenSet, NamedTuple, Optional, Tuple
from urllib.parse import parse_qsl, unquote, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from .. import config

MAX_SECRET = 16 * 1024
"""Bytes of a token file that are read; no server takes a longer header."""


class CredentialsError(Exception):
    """A token, password or certificate file cannot be used. Names the file, never its content."""


class Access(NamedTuple):
    """What the files of an endpoint held when they were last read."""

    stamp: Tuple[Tuple[int, int, int], ...]
    """From stamp_of, taken before reading."""
    authorization: Optional[str]
    """Value of the Authorization header."""
    context: Optional[ssl.SSLContext]
    """None for http."""
    secrets: FrozenSet[str]
    """What a request carries that nobody else may read, should the platform send it back."""


def stamp_of(endpoint: config.Endpoint) -> Tuple[Tuple[int, int, int], ...]:
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
    before = stamp_of(endpoint)
    authorization = None
    if auth.bearer_file:
        token = _secret(auth.bearer_file)
        if not token.isascii():
            raise CredentialsError(f"{auth.bearer_file}: a token holds letters, digits, signs only")
        authorization = "Bearer " + token
    elif auth.basic_file:
        secret = _secret(auth.basic_file)
        if ":" not in secret:
            raise CredentialsError(f"{auth.basic_file}: write user:password on one line")
        authorization = "Basic " + base64.b64encode(secret.encode()).decode()
    parts = urlsplit(endpoint.url)
    context = tls_context(endpoint.tls, parts.hostname or "") if parts.scheme == "https" else None
    return Access(before, authorization, context, _secrets(endpoint, authorization))


class _NamedContext(ssl.SSLContext):
    """Checks for its own host's name, which urllib3 1.26 does not tell where it is an address."""

    host = ""

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return super().wrap_socket(*args, **{"server_hostname": self.host, **kwargs})


def tls_context(tls: config.Tls, host: str) -> ssl.SSLContext:
    """Make what a TLS connection is checked against: at least TLS 1.2, own CA or the machine's.

    Raises CredentialsError where a certificate or key cannot be loaded.
    """
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.host = host
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_file:
        _load(tls.ca_file, lambda path: context.load_verify_locations(cafile=path))
    elif _machine_has_authorities():
        context.load_default_certs()
    else:
        context.load_verify_locations(cafile=DEFAULT_CA_BUNDLE_PATH)
    if tls.cert_file:
        key_file = _expand(tls.key_file) if tls.key_file else None
        # A password is given so that an encrypted key fails instead of asking on the terminal.
        _load(tls.cert_file, lambda path: context.load_cert_chain(path, key_file, password=""))
    return context


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


def _secrets(endpoint: config.Endpoint, authorization: Optional[str]) -> FrozenSet[str]:
    found = set(endpoint.headers.values())
    query = urlsplit(endpoint.url).query
    found.update([query, *(value for _, value in parse_qsl(query))])
    proxy = urlsplit(endpoint.proxy or "")
    found.update([proxy.password or "", unquote(proxy.password or "")])
    kind, _, credentials = (authorization or "").partition(" ")
    found.add(credentials)
    if kind == "Basic":
        found.update(base64.b64decode(credentials).decode().split(":", 1))
    return frozenset(found - {""})


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
