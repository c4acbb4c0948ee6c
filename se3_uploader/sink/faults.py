"""What went wrong with a POST, as one of policy.FAULTS and words for people."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import Tuple
from urllib.parse import urlsplit

import requests

from .. import config
from .credentials import CredentialsError
from .plaintext import PlaintextRefused

Fault = Tuple[str, str]
"""One of policy.FAULTS, and words for people."""


class Cut(Exception):
    """We ended a POST ourselves; says why."""


class Stopped(Cut):
    """The sink is closed."""

    def __init__(self) -> None:
        super().__init__("stopped before the answer came; it is sent again with the same key")


class TookTooLong(Cut):
    """A time limit has passed."""


def explain(error: BaseException, endpoint: config.Endpoint) -> Fault:
    """Turn what a POST came to into one of policy.FAULTS and words about what to do.

    The words name the host, and hold nothing else of the URL, the request or the answer.
    """
    where = urlsplit(endpoint.proxy or endpoint.url).netloc.rpartition("@")[2]
    if isinstance(error, Stopped):
        return "connection", str(error)
    if isinstance(error, TookTooLong):
        return "timeout", f"{where}: {error}"
    if isinstance(error, CredentialsError):
        return "credentials", str(error)
    if isinstance(error, PlaintextRefused):
        return "plaintext", f"{where}: {error} would go unencrypted to a public address; use https"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "timeout", f"{where}: nothing moved within the time that the network allows"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "tls", f"{where}: certificate refused: {error.verify_message}{_clock_hint(error)}"
    if is_eof(error):
        return "connection", f"{where}: hung up without an answer"
    if isinstance(error, ssl.SSLError):
        return "tls", f"{where}: no secure connection: {error.reason or 'TLS failed'}"
    if isinstance(error, ConnectionError):
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


def is_eof(error: BaseException) -> bool:
    """Tell a connection that broke under TLS; older Pythons have no class of their own for it."""
    kinds = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    return isinstance(error, kinds) or (
        isinstance(error, ssl.SSLError) and "EOF" in (error.reason or "")
    )


def _clock_hint(error: ssl.SSLCertVerificationError) -> str:
    """Boxes without a battery start in 1970, long before any certificate was made."""
    return "; check the clock of this box" if error.verify_code in (9, 10) else ""
