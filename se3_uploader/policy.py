"""PURE: what an HTTP result means, how long to wait, when to pause an endpoint, when to give up."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any, FrozenSet, Iterable, Mapping, NamedTuple, Optional
from urllib.parse import unquote

import orjson

from .config import Retry

DELIVERED = "delivered"
RETRY = "retry"
BLOCKED = "blocked"
TOO_LARGE = "too_large"
REJECTED = "rejected"

OK = "ok"
RETRYING = "retrying"
PAUSED = "paused"

MOST_STRAIN = 5.0
"""So many refusals for overload lengthen the waits, to 16 times retry.base."""

REJECTED_IN_A_ROW = 5
"""So many different events refused, none accepted between them: the platform is broken."""

FAULTS = {
    "connection": "no connection, or it broke before the answer was there",
    "timeout": "no answer within the time limits of the endpoint",
    "protocol": "the answer was no HTTP",
    "tls": "the platform's certificate, or ours, was refused",
    "credentials": "a token, password or certificate file cannot be read",
    "plaintext": "pictures or a token would go unencrypted to a public address",
}
"""Kinds of failed POST. The first three are retried, the others pause the endpoint."""

_RETRIED_FAULTS = ("connection", "timeout", "protocol")
_RETRIED_STATUS = (408, 425, 429)
_OVERLOADED_STATUS = (429, 503)
_BLOCKED_STATUS = (401, 403, 404, 405, 407)


@dataclass(frozen=True)
class Answer:
    """What came of one POST, as the sink saw it."""

    status: Optional[int] = None
    """HTTP status; None where no answer came, then fault says why."""
    fault: Optional[str] = None
    """One of FAULTS, None where an answer came."""
    detail: str = ""
    """For people: what went wrong, at most 200 characters, without personal data or credentials."""
    body: bytes = b""
    """The first 64 KiB of the answer's body, undecoded bytes."""
    retry_after: Optional[float] = None
    """Seconds the platform asked us to wait (from seconds or a date), never negative."""
    seconds: float = 0.0
    """How long the request took."""
    secrets: FrozenSet[str] = field(default=frozenset(), repr=False)
    """Credentials that the request carried; the answer may hold them as well."""


class Verdict(NamedTuple):
    """What an answer means for the delivery, and why, in words without personal data."""

    outcome: str
    reason: str


def judge(answer: Answer, accept: Mapping[str, Any]) -> Verdict:
    """Say what an answer means: delivered, retry, blocked, too_large or rejected.

    A 2xx is an acceptance (decision D6) unless accept names fields that the JSON answer lacks.
    """
    if answer.fault is not None:
        outcome = RETRY if answer.fault in _RETRIED_FAULTS else BLOCKED
        return Verdict(outcome, answer.detail or FAULTS.get(answer.fault, answer.fault))
    status = answer.status or 0
    reason = f"HTTP {status}"
    if 200 <= status < 300:
        if not accept or _holds(answer.body, accept):
            return Verdict(DELIVERED, reason)
        wanted = ", ".join(sorted(accept))
        return Verdict(REJECTED, f"{reason}, but the answer lacks what 'accept' asks of: {wanted}")
    if status in _RETRIED_STATUS or status >= 500 or status < 200:
        return Verdict(RETRY, reason)
    if status in _BLOCKED_STATUS or 300 <= status < 400:
        return Verdict(BLOCKED, reason)
    if status == 413:
        return Verdict(TOO_LARGE, reason)
    return Verdict(REJECTED, reason)


def _holds(body: bytes, accept: Mapping[str, Any]) -> bool:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(answer, dict) and all(
        name in answer and _is_same(answer[name], wanted) for name, wanted in accept.items()
    )


def _is_same(found: Any, wanted: Any) -> bool:
    """Compare JSON values: true is not 1, and 1.0 is."""
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)


def backoff(
    failures: int, retry: Retry, random: float, retry_after: Optional[float] = None
) -> float:
    """Seconds to wait after so many failures in a row, random being uniform in [0, 1).

    Full jitter: anywhere up to base * 2^(failures-1). From the cap on it is from half of the cap
    to cap: among boxes that wait anywhere up to cap, twice as many as on average are due in the
    first moments after an outage (benchmarks/fleet.py). What the platform asked for (Retry-After)
    comes on top, so that those it asked at once do not come back at once; at most cap in all.
    """
    ceiling = retry.base * 2.0 ** min(failures - 1, 60)
    wait = random * ceiling if ceiling < retry.cap else retry.cap * (0.5 + random / 2)
    if retry_after is not None:
        wait = min(wait + retry_after, retry.cap)
    return wait


def probe_wait(failures: int, retry: Retry, random: float) -> float:
    """Seconds between two probes of a paused endpoint: slower than a retry, from 10 * base to cap.

    Equal jitter: at least half of it, since a pause is not mended within a moment.
    """
    ceiling = min(retry.cap, 10 * retry.base * 2.0 ** min(failures - 1, 60))
    return ceiling * (0.5 + random / 2)


class Health(NamedTuple):
    """How an endpoint fares, which decides how many requests it may have in flight, and when."""

    state: str = OK
    failures: int = 0
    """Failed rounds in a row. Requests that were in flight together fail as one round."""
    round: int = 0
    """Grows with every failure; a request carries the round it was sent in."""
    strain: float = 0.0
    """How often the platform lately said that it has too much to do: a refusal among many
    acceptances means little, but where every other request is refused, waits grow all the same."""
    allowed: float = 1.0
    """Requests in flight that the endpoint has earned: it starts at one and grows by answers."""
    next_attempt: float = 0.0
    """Monotonic seconds before which nothing is sent."""
    since: Optional[float] = None
    """Wall clock of the first failure in a row, epoch seconds."""
    error: Optional[str] = None
    """Why the last request failed."""
    passes: int = 0
    """Deliveries accepted so far, to tell a poisoned event from a broken platform."""
    refused: FrozenSet[int] = frozenset()
    """Different events rejected since the last one that was accepted."""
    fastest: float = 0.0
    """Seconds of the quickest recent answer."""
    usual: float = 0.0
    """Moving average of the answers' seconds."""


def slots(health: Health, max_in_flight: int, in_flight: int, now: float) -> int:
    """How many more requests may be sent now (monotonic s); one probe at a time when unwell."""
    if now < health.next_attempt:
        return 0
    limit = min(max_in_flight, int(health.allowed)) if health.state == OK else 1
    return max(0, limit - in_flight)


def accepted(health: Health, max_in_flight: int, seconds: float) -> Health:
    """After an acceptance: well again, and one more in flight while answers stay as quick.

    Growing latency means that more in flight only wait in the platform's queue, so it shrinks.
    """
    fastest = seconds if not health.fastest else min(seconds, health.fastest * 1.01)
    usual = seconds if not health.usual else 0.9 * health.usual + 0.1 * seconds
    slowing = usual > 3 * fastest + 0.05
    allowed = (
        health.allowed * 0.95 if slowing else health.allowed + 1 / max(1.0, health.allowed / 4)
    )
    return health._replace(
        state=OK,
        failures=0,
        next_attempt=0.0,
        since=None,
        error=None,
        allowed=max(1.0, min(float(max_in_flight), allowed)),
        strain=0.9 * health.strain,
        passes=health.passes + 1,
        refused=frozenset(),
        fastest=fastest,
        usual=usual,
    )


def failed(
    health: Health, outcome: str, answer: Answer, reason: str, sent_in: int, retry: Retry,
    random: float, now: float, wall: float,
) -> Health:  # fmt: skip
    """After a retry or blocked outcome: wait, with a single probe, then start slowly.

    An answer to a request of an earlier round says nothing new and changes nothing.
    """
    if sent_in != health.round:
        return health
    failures, strain = health.failures + 1, health.strain
    if answer.status in _OVERLOADED_STATUS:
        strain = min(strain + 1, MOST_STRAIN)
    if outcome == BLOCKED:
        state, wait = PAUSED, probe_wait(failures, retry, random)
    else:
        state, wait = (
            RETRYING,
            backoff(max(failures, round(strain)), retry, random, answer.retry_after),
        )
    return health._replace(
        state=state,
        failures=failures,
        round=health.round + 1,
        strain=strain,
        allowed=1.0,
        next_attempt=now + wait,
        since=wall if health.since is None else health.since,
        error=reason,
        fastest=0.0,
        usual=0.0,
    )


def refused(
    health: Health, event: int, reason: str, sent_in: int, retry: Retry, random: float, now: float,
    wall: float,
) -> Health:  # fmt: skip
    """After a rejection of an event (its id): paused once many different ones were refused."""
    in_a_row = health.refused | {event}
    health = health._replace(
        refused=in_a_row if len(in_a_row) <= REJECTED_IN_A_ROW else health.refused
    )
    if len(health.refused) < REJECTED_IN_A_ROW:
        return health
    reason = f"the platform rejects every event ({reason})"
    return failed(health, BLOCKED, Answer(), reason, sent_in, retry, random, now, wall)


def is_dead(rejections: int, passes_since_first: int, in_a_row: int, retry: Retry) -> bool:
    """Give up on an event that was rejected so often, after 1 + reject_after attempts?

    Only while the platform is known to work: another event passed since this one was first
    rejected, or too few different ones were refused to say that it is broken.
    """
    if rejections <= retry.reject_after:
        return False
    return passes_since_first > 0 or in_a_row < REJECTED_IN_A_ROW


def redact(answer: Answer, payload: bytes, limit: int = 300) -> str:
    """The text of an answer for a dead letter: cut, without a text of the event or a credential.

    A platform may send the request back, escaped, in part, or in another encoding, so words that
    have anything in common with those go, and so do those that no person would write.
    """
    try:
        texts = _texts(orjson.loads(payload)) | {s for s in answer.secrets if len(s) > 1}
    except orjson.JSONDecodeError:
        return ""
    said = _unescaped(answer.body[: 4 * limit].decode("utf-8", "replace"))
    for text in sorted(texts, key=len, reverse=True):
        said = said.replace(text, "…")
    if len(answer.body) > 4 * limit:
        said = _WORD_AT_END.sub("", said)  # it may be half a name
    folded = [text.casefold() for text in texts]
    said = _WORD.sub(lambda word: "…" if _may_be_personal(word[0], folded) else word[0], said)
    said = "".join(c if c.isprintable() else " " for c in said)[:limit]
    return "" if any(text in said.casefold() for text in folded) else said


_WORD = re.compile(r"[\w+/=\ufffd-]+")
_WORD_AT_END = re.compile(_WORD.pattern + r"\Z")
_LONGEST_WORD = 40
_LONG_TEXT = 64
"""Characters; of what is longer, pictures above all, short words would be found by chance."""


def _may_be_personal(word: str, texts: Iterable[str]) -> bool:
    if len(word) > _LONGEST_WORD or "\ufffd" in word:
        return True
    if len(word) == 1 and word.isascii():
        return False
    word = word.casefold()
    return any(
        text in word or ((len(text) <= _LONG_TEXT or len(word) >= 8) and word in text)
        for text in texts
    )


def _unescaped(text: str) -> str:
    """Undo the escapes of JSON, HTML and URLs, however often they were laid on each other."""
    text = unquote(html.unescape(text), errors="replace")
    text = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), text)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return re.sub(r"\\+[bfnrt]?", lambda escape: " " if escape[0][-1] != "\\" else "", text)


def _texts(value: Any) -> FrozenSet[str]:
    """The texts and numbers of a JSON value, those of a single character left out."""
    if isinstance(value, dict):
        return frozenset().union(*map(_texts, value.values()))
    if isinstance(value, list):
        return frozenset().union(*map(_texts, value))
    text = "" if isinstance(value, bool) or value is None else str(value)
    return frozenset([text] if len(text) > 1 else [])
