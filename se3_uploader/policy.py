"""PURE: what an HTTP result means, how long to wait, when to pause an endpoint, when to give up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Answer:
    """What came of one POST, as the sink saw it."""

    status: Optional[int] = None
    """HTTP status; None where no answer came, then fault says why."""
    fault: Optional[str] = None
    """One of FAULTS, None where an answer came."""
    detail: str = ""
    """For people: what went wrong, without personal data, credentials or more than 200 characters."""
    body: bytes = b""
    """The first 64 KiB of the answer's body, undecoded bytes."""
    retry_after: Optional[float] = None
    """Seconds the platform asked us to wait (from seconds or a date), never negative."""
    seconds: float = 0.0
    """How long the request took."""


FAULTS = {
    "connection": "no connection, or it broke before the answer was there",
    "timeout": "no answer within the time limits of the endpoint",
    "protocol": "the answer was no HTTP",
    "tls": "the platform's certificate, or ours, was refused",
    "credentials": "a token, password or certificate file cannot be read",
    "plaintext": "pictures or a token would go unencrypted to a public address",
}
"""Kinds of failed POST. The first three are retried, the others pause the endpoint."""
