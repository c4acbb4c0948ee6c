"""What an HTTP result means, how long to wait and when to pause: pure decisions, one by one."""

from __future__ import annotations

import json
from typing import Any, Dict, Optional

import pytest

from se3_uploader import policy
from se3_uploader.config import Retry
from se3_uploader.policy import Answer, Health

RETRY = Retry(base=1.0, cap=60.0, reject_after=3)
EXPECTED = {
    policy.DELIVERED: [200, 201, 202, 204, 299],
    policy.RETRY: [100, 199, 408, 425, 429, 500, 501, 502, 503, 504, 599],
    policy.BLOCKED: [300, 301, 302, 304, 307, 308, 401, 403, 404, 405, 407],
    policy.TOO_LARGE: [413],
    policy.REJECTED: [400, 402, 406, 409, 410, 411, 414, 415, 417, 418, 422, 451, 499],
}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(status, outcome) for outcome, found in EXPECTED.items() for status in found],
)
def test_status(status: int, outcome: str) -> None:
    """Every kind of status means what the outcome table says, and the reason names it."""
    verdict = policy.judge(Answer(status=status), {})
    assert verdict == (outcome, f"HTTP {status}")


def test_no_status_is_without_a_meaning() -> None:
    """There is no status that stops the engine."""
    for status in range(1000):
        assert policy.judge(Answer(status=status), {}).outcome in EXPECTED


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("connection", policy.RETRY),
        ("timeout", policy.RETRY),
        ("protocol", policy.RETRY),
        ("tls", policy.BLOCKED),
        ("credentials", policy.BLOCKED),
        ("plaintext", policy.BLOCKED),
    ],
)
def test_fault(fault: str, outcome: str) -> None:
    """No answer is retried; what only a person can mend pauses. The sink's words are kept."""
    assert policy.judge(Answer(fault=fault, detail="because"), {}) == (outcome, "because")
    assert policy.judge(Answer(fault=fault), {}) == (outcome, policy.FAULTS[fault])
    assert set(policy.FAULTS) == {
        "connection", "timeout", "protocol", "tls", "credentials", "plaintext",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "accept", "holds"),
    [
        (b'{"status": 0}', {"status": 0}, True),
        (b'{"status": 0, "more": [1]}', {"status": 0}, True),
        (b'{"status": 0, "ok": true}', {"status": 0, "ok": True}, True),
        (b'{"status": 1}', {"status": 0}, False),
        (b'{"status": false}', {"status": 0}, False),
        (b'{"ok": 1}', {"ok": True}, False),
        (b'{"status": 0.0}', {"status": 0}, True),
        (b'{"status": "0"}', {"status": 0}, False),
        (b'{"message": "SUCCESS"}', {"status": 0}, False),
        (b'{"status": null}', {"status": None}, True),
        (b"{}", {"status": None}, False),
        (b"[0]", {"status": 0}, False),
        (b"", {"status": 0}, False),
        (b"<html>", {"status": 0}, False),
        (b"\xff\xfe", {"status": 0}, False),
    ],
)
def test_accept(body: bytes, accept: Dict[str, Any], holds: bool) -> None:
    """With `accept` a 2xx counts only where the JSON answer has those fields (decision D6)."""
    verdict = policy.judge(Answer(status=200, body=body), accept)
    assert verdict.outcome == (policy.DELIVERED if holds else policy.REJECTED)
    assert holds or "accept" in verdict.reason
    assert policy.judge(Answer(status=503, body=body), accept).outcome == policy.RETRY


@pytest.mark.parametrize(
    ("failures", "random", "asked", "expected"),
    [
        (1, 0.0, None, 0.0),
        (1, 0.5, None, 0.5),
        (2, 0.5, None, 1.0),
        (5, 0.5, None, 8.0),
        (7, 0.0, None, 30.0),
        (7, 0.5, None, 45.0),
        (10**6, 0.0, None, 30.0),
        (10**6, 1.0, None, 60.0),
        (1, 0.5, 0.0, 0.5),
        (1, 0.5, 7.0, 7.5),
        (7, 0.5, 7.0, 52.0),
        (1, 0.5, 86400.0, 60.0),
    ],
)
def test_backoff(failures: int, random: float, asked: Optional[float], expected: float) -> None:
    """Full jitter up to base * 2^(failures-1), from the cap on between half of it and all of it.

    Retry-After comes on top, up to cap.
    """
    assert policy.backoff(failures, RETRY, random, asked) == pytest.approx(expected)


def test_probes_of_a_paused_endpoint_are_slower() -> None:
    """A pause is probed from half of 10 * base up to cap, at least at half of the ceiling."""
    for failures in range(1, 200):
        low, high = (policy.probe_wait(failures, RETRY, at) for at in (0.0, 0.999))
        assert low == pytest.approx(high / 2, rel=0.01)
        assert low >= 5.0
        assert high <= 60.0


def failed(health: Health, outcome: str = policy.RETRY, now: float = 100.0) -> Health:
    """The health after one more failure of the round under way."""
    return policy.failed(
        health, outcome, Answer(status=503), "HTTP 503", health.round, RETRY, 0.5, now, 1.7e9
    )


def test_requests_that_were_in_flight_together_fail_as_one() -> None:
    """Four answers of the same round are one failure: waits do not grow by the number in flight."""
    health = Health(allowed=4.0)
    first = failed(health)
    assert (first.state, first.failures, first.allowed) == (policy.RETRYING, 1, 1.0)
    for _ in range(3):
        late = policy.failed(
            first, policy.RETRY, Answer(), "late", health.round, RETRY, 0.9, 101.0, 1.7e9
        )
        assert late == first
    assert failed(first).failures == 2
    assert failed(failed(first)).since == first.since == 1.7e9


def test_one_probe_at_a_time() -> None:
    """Nothing is sent before the next attempt is due, and then a single request."""
    health = failed(Health(allowed=4.0))
    assert health.next_attempt == 100.5
    assert policy.slots(health, 4, 0, 100.4) == 0
    assert policy.slots(health, 4, 0, 100.5) == 1
    assert policy.slots(health, 4, 1, 100.5) == 0


def test_blocked_is_paused() -> None:
    """A blocked outcome pauses, however well the endpoint was before."""
    health = failed(Health(), policy.BLOCKED)
    assert (health.state, health.error) == (policy.PAUSED, "HTTP 503")
    assert health.next_attempt - 100 == pytest.approx(7.5)


def test_slow_start() -> None:
    """In-flight grows from one by acceptances up to max_in_flight, and stays there."""
    health, allowed = Health(), []
    for _ in range(200):
        health = policy.accepted(health, 16, 0.05)
        allowed.append(int(health.allowed))
    assert allowed == sorted(allowed)
    assert allowed[0] == 2
    assert allowed[-1] == 16
    assert policy.slots(health, 16, 0, 0.0) == 16
    assert policy.slots(health, 16, 20, 0.0) == 0


def test_growing_latency_shrinks_what_is_in_flight() -> None:
    """When answers take three times as long as they can, more in flight only wait in a queue."""
    health = Health()
    for _ in range(200):
        health = policy.accepted(health, 32, 0.05)
    assert health.allowed == 32
    for _ in range(100):
        health = policy.accepted(health, 32, 1.0)
    assert health.allowed < 4


def test_an_acceptance_heals() -> None:
    """After a success nothing of the outage is left."""
    health = policy.accepted(failed(failed(Health())), 4, 0.1)
    assert health.state == policy.OK
    assert (health.failures, health.next_attempt, health.since, health.error) == (
        0,
        0.0,
        None,
        None,
    )
    assert health.passes == 1


def refused(health: Health, event: int) -> Health:
    """The health after one more rejection."""
    return policy.refused(health, event, "HTTP 400", health.round, RETRY, 0.5, 100.0, 1.7e9)


def test_many_different_rejected_events_pause() -> None:
    """Five different events refused in a row are a broken platform; one refused often is not."""
    health = Health()
    for _ in range(20):
        health = refused(health, 1)
    assert health.state == policy.OK
    for event in range(2, policy.REJECTED_IN_A_ROW):
        health = refused(health, event)
    assert health.state == policy.OK
    health = refused(health, 99)
    assert health.state == policy.PAUSED
    assert health.error == "the platform rejects every event (HTTP 400)"


def test_an_acceptance_between_clears_the_suspicion() -> None:
    """Poison now and then never pauses while others pass."""
    health = Health()
    for event in range(100):
        health = refused(health, event)
        if event % 4 == 3:
            health = policy.accepted(health, 4, 0.1)
        assert health.state == policy.OK


def test_refused_events_are_not_remembered_without_end() -> None:
    """A platform that refuses a million events costs no memory."""
    health = Health()
    for event in range(1000):
        health = refused(health, event)
    assert len(health.refused) <= policy.REJECTED_IN_A_ROW


@pytest.mark.parametrize(
    ("rejections", "passes", "in_a_row", "dead"),
    [
        (3, 100, 1, False),
        (4, 0, 1, True),
        (4, 0, policy.REJECTED_IN_A_ROW - 1, True),
        (4, 0, policy.REJECTED_IN_A_ROW, False),
        (400, 0, policy.REJECTED_IN_A_ROW, False),
        (4, 1, policy.REJECTED_IN_A_ROW, True),
    ],
)
def test_when_an_event_is_given_up(rejections: int, passes: int, in_a_row: int, dead: bool) -> None:
    """After 1 + reject_after attempts, and only while the platform is known to work."""
    assert policy.is_dead(rejections, passes, in_a_row, RETRY) == dead


def test_redact() -> None:
    """What the event held is taken out of an answer, however deep it stands in the payload."""
    event = {
        "identity_name": "王小明", "score": 0.987654, "flag": True, "none": None,
        "ext_data": {"list": [{"ep": "camera-7"}], "spot_pic": "A" * 5000},
    }  # fmt: skip
    answer = f"no 王小明 at camera-7, 0.987654! {'A' * 5000} sorry\n\x1b[31m"
    said = policy.redact(Answer(body=answer.encode()), json.dumps(event).encode())
    for personal in ("王小明", "camera-7", "987654", "A" * 64, "\x1b", "\n"):
        assert personal not in said
    assert said.startswith("no …")
    assert len(said) <= 300
    assert policy.redact(Answer(body=b"\xff\xfe"), b"{}").isprintable()
    assert policy.redact(Answer(body=b"secret"), b"no JSON") == ""
