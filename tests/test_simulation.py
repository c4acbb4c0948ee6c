"""The engine under every fault at once: thousands of seeded stories, and an oracle that is tested.

``python -m tests.simulation --seeds 1-2000`` tells more of them.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
import uuid
from typing import Any, List, Optional, Tuple

import pytest

from se3_uploader.engine.courier import Courier
from se3_uploader.engine.intake import Intake
from se3_uploader.engine.queue import Queue
from se3_uploader.outbox import LOST, Cursor, Entry, Outbox
from se3_uploader.policy import Answer

from .simulation.__main__ import run_seed, run_seeds, tell

CAUGHT_WITHIN = 120
"""Seeds in which the oracle has to notice that an engine is broken."""


ACCEPTED = Answer(status=200, body=b'{"status": 0}')


def check(seeds: range) -> None:
    """Run seeds; those that fail are told with what reproduces them."""
    failed, sums = run_seeds(seeds)
    assert sums["arrivals"] > sums["events"] > 0
    assert not failed, "\n".join(tell(seed, *failed[seed]) for seed in failed)


def test_some_seeds() -> None:
    """Whatever happens, all invariants hold in the end."""
    check(range(1, 61))


@pytest.mark.slow
def test_two_thousand_seeds() -> None:
    """The same for 2,000 other stories, in less than five minutes."""
    began = time.monotonic()
    check(range(10_001, 12_001))
    assert time.monotonic() - began < 300


def test_same_seed_same_story() -> None:
    """A seed tells the same story in every process, whatever the hashes of strings are there."""
    stories = [
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seeds", "17", "--tell"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]  # fmt: skip
    assert stories[0] == stories[1]
    assert len(stories[0].splitlines()) > 5


def caught() -> str:
    """What the oracle says of the first seeds in which it notices something."""
    found: List[str] = []
    for seed in range(1, CAUGHT_WITHIN + 1):
        wrong, _, _ = run_seed(seed)
        found += wrong
        if len(found) >= 3:
            break
    return "\n".join(found)


def test_oracle_notices_delivered_before_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes every answer for an acceptance loses events."""
    judge = Courier._judge
    monkeypatch.setattr(
        Courier, "_judge", lambda self, queue, flight, _: judge(self, queue, flight, ACCEPTED)
    )
    assert "never arrived" in caught()


def test_oracle_notices_a_skipped_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes one row in fifty for known loses it."""
    known, count = Outbox.known, itertools.count(1)

    def overlook(self: Outbox, endpoint_id: int, generation_id: int, refs: Any) -> Any:
        skipped = {ref.key for ref in refs if next(count) % 50 == 0}
        return known(self, endpoint_id, generation_id, refs) | skipped

    monkeypatch.setattr(Outbox, "known", overlook)
    assert "never arrived" in caught()


def test_oracle_notices_a_cursor_of_its_own_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cursor that is written before the rows it covers skips them after a crash."""

    def run_ahead(self: Queue, _: float) -> Tuple[List[Entry], Optional[Cursor]]:
        cursor = self.seen[-1].cursor if self.seen else None
        self.seen.clear()
        return [], cursor

    monkeypatch.setattr(Queue, "cover", run_ahead)
    assert "never arrived" in caught()


def test_oracle_notices_a_retry_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that gives an event up after some failures loses it."""
    failed = Courier._failed

    def give_up(self: Courier, queue: Queue, flight: Any, answer: Answer, verdict: Any) -> None:
        if flight.entry.attempts > 2:
            self._recorder.end(flight.entry, LOST, "too many attempts")
        else:
            failed(self, queue, flight, answer, verdict)

    monkeypatch.setattr(Courier, "_failed", give_up)
    assert "never arrived" in caught()


def test_oracle_notices_keys_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry under another idempotency key is a second event to the platform."""
    monkeypatch.setattr(Courier, "_idempotency_key", lambda *_: str(uuid.uuid4()))
    assert "idempotency keys" in caught()


def test_oracle_notices_shared_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key made of the row's id alone belongs to another event after a wipe."""
    monkeypatch.setattr(Courier, "_idempotency_key", lambda _, entry: f"row {entry.key}")
    assert "same idempotency key" in caught()


def test_oracle_notices_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not know its receipts sends a restored database once more."""
    monkeypatch.setattr(Outbox, "known", lambda *_: set())
    assert "sent again" in caught()


def test_oracle_notices_late_rows_that_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that only looks ahead misses the rows that become visible late."""
    monkeypatch.setattr(Intake, "_sweep", lambda *_: False)
    assert "never arrived" in caught()


def test_oracle_notices_copies_that_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was copied before the box deleted it has to arrive."""
    copied_body = Courier._copied_body
    monkeypatch.setattr(
        Courier,
        "_copied_body",
        lambda self, queue, entry: None if queue.is_events else copied_body(self, queue, entry),
    )
    assert "there was a copy" in caught()


def test_oracle_notices_an_account_that_does_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox that counts an event as delivered twice is found out."""
    save = Outbox._save

    def twice(self: Outbox, entry: Any, tally: Any, new_ids: Any) -> int:
        saved = save(self, entry, tally, new_ids)
        if tally.counts[1] == 3:
            tally.seen += 1
            tally.add(1, 1)
        return saved

    monkeypatch.setattr(Outbox, "_save", twice)
    assert "delivered by the account" in caught()
