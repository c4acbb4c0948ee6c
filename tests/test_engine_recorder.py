"""When changes are written, together with what, and what happens where they cannot be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Iterator, List, Optional

import pytest

from se3_uploader.engine.recorder import (
    RECEIPT_WAIT,
    RECEIPTS,
    REFERENCE_WAIT,
    UNWRITTEN,
    Clock,
    Recorder,
)
from se3_uploader.outbox import DEAD, DELIVERED, PENDING, Cursor, Entry, Outbox


class Bench:
    """A recorder on a real outbox, with a clock that is set by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 100.0
        self.written: List[Entry] = []
        self.covered: List[float] = []
        self.waiting: Optional[float] = None
        self.outbox = Outbox(str(path), lambda: 1.7e9 + self.now)
        self.outbox.register("p", "history_event", "http://p/")
        self.outbox.new_generation("events")
        self.recorder = Recorder(
            self.outbox,
            Clock(lambda: self.now, lambda: 1.7e9 + self.now),
            self._cover,
            self.written.extend,
        )

    def _cover(self, until: float) -> Optional[float]:
        self.covered.append(until)
        return self.waiting

    def account(self) -> object:
        """Seen, pending, delivered."""
        with closing(sqlite3.connect(self.path)) as reader:
            return reader.execute("SELECT seen, pending, delivered FROM ledger").fetchone()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A recorder with nothing to write."""
    made = Bench(tmp_path / "outbox.db")
    made.outbox._database.execute_sql("PRAGMA busy_timeout = 10")
    yield made
    made.outbox.close()


def entry(key: int) -> Entry:
    """A pending event."""
    return Entry(1, 1, key, b"%016d" % key, 0.0)


def test_nothing_to_write(bench: Bench) -> None:
    """With no change nothing is due, and a write does not touch the file."""
    before = bench.path.stat()
    assert bench.recorder.due() is None
    assert not bench.recorder.write_is_due(in_flight=False)
    bench.recorder.write()
    assert bench.path.stat().st_mtime_ns == before.st_mtime_ns
    assert bench.recorder.is_clean


def test_an_event_that_was_seen_waits_for_its_receipt(bench: Bench) -> None:
    """A reference alone is written after a second; with a receipt to come, together with that."""
    bench.recorder.note(entry(1))
    assert bench.recorder.due() == 100.0 + REFERENCE_WAIT
    assert not bench.recorder.write_is_due(in_flight=True)
    bench.now += REFERENCE_WAIT
    assert bench.recorder.write_is_due(in_flight=True)
    bench.recorder.write()
    assert bench.account() == (1, 1, 0)
    assert bench.recorder.due() is None


def test_receipts_are_written_in_groups(bench: Bench) -> None:
    """At once when nothing more can come, after a hundred, or after a moment."""
    entries = [entry(number) for number in range(RECEIPTS)]
    bench.recorder.end(entries[0], DELIVERED)
    assert bench.recorder.write_is_due(in_flight=False)
    assert not bench.recorder.write_is_due(in_flight=True)
    assert bench.recorder.due() == 100.0 + RECEIPT_WAIT
    for each in entries[1:]:
        bench.recorder.end(each, DELIVERED)
    assert bench.recorder.write_is_due(in_flight=True)
    bench.recorder.write()
    assert bench.account() == (RECEIPTS, 0, RECEIPTS)
    assert bench.written == entries


def test_place_and_events_in_one_transaction(bench: Bench) -> None:
    """The place moves in the very commit that records the events it covers."""
    bench.recorder.note(entry(1))
    bench.recorder.move_cursor(1, 1, Cursor(1, b"f" * 16, None))
    commits = bench.outbox.read("PRAGMA data_version")
    bench.recorder.write()
    assert bench.outbox.cursor(1, 1) == Cursor(1, b"f" * 16, None)
    assert bench.account() == (1, 1, 0)
    assert bench.outbox.read("PRAGMA data_version") == commits, "our own commits do not count"


def test_only_old_enough_events_unless_everything(bench: Bench) -> None:
    """Before a write it is asked what may be covered: all, or what has waited for its second."""
    bench.recorder.note(entry(1))
    bench.waiting = 99.5
    bench.recorder.write(everything=False)
    assert bench.covered == [100.0 - REFERENCE_WAIT]
    assert bench.recorder.due() == 99.5 + REFERENCE_WAIT
    bench.waiting = None
    bench.recorder.write()
    assert bench.covered[-1] == float("inf")


def test_what_cannot_be_written_waits(bench: Bench) -> None:
    """While the outbox is locked nothing is forgotten; it is tried each second, then all goes."""
    bench.recorder.end(entry(1), DELIVERED)
    with closing(sqlite3.connect(bench.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        bench.recorder.write()
        assert bench.recorder.error is not None
        assert not bench.recorder.is_clean
        assert not bench.recorder.write_is_due(in_flight=False)
        bench.now += 1.0
        assert bench.recorder.write_is_due(in_flight=False)
        other.execute("ROLLBACK")
    bench.recorder.write()
    assert bench.recorder.error is None
    assert bench.recorder.is_clean
    assert bench.account() == (1, 0, 1)


def test_memory_is_bounded_while_nothing_can_be_written(bench: Bench) -> None:
    """After so many unwritten answers no more requests are sent."""
    for number in range(UNWRITTEN - 1):
        bench.recorder.end(entry(number), DELIVERED)
    assert not bench.recorder.is_full
    bench.recorder.end(entry(UNWRITTEN), DELIVERED)
    assert bench.recorder.is_full


@pytest.mark.parametrize("state", [DELIVERED, DEAD])
def test_an_event_whose_key_was_taken_meanwhile(bench: Bench, state: int) -> None:
    """Its key was given out again, and a backfill recorded its successor first: both count."""
    mine, other, third = entry(1), entry(1), entry(1)
    other.fingerprint, third.fingerprint = b"somebody else   ", b"yet another     "
    bench.recorder.note(other)
    bench.recorder.write()
    for made in (mine, third):
        bench.recorder.end(made, state)
        bench.recorder.keep_body(made, made.fingerprint)
    while not bench.recorder.is_clean:
        bench.recorder.write()
    with closing(sqlite3.connect(bench.path)) as reader:
        rows = reader.execute("SELECT fingerprint, state FROM delivery").fetchall()
        sums = reader.execute(
            "SELECT sum(seen), sum(pending), sum(delivered) + sum(dead) FROM ledger"
        ).fetchone()
        copies = reader.execute("SELECT body FROM copy").fetchall()
    assert sorted(rows) == sorted(
        [(other.fingerprint, PENDING), (mine.fingerprint, state), (third.fingerprint, state)]
    )
    assert sums == (3, 1, 2)
    assert sorted(copies) == ([(mine.fingerprint,), (third.fingerprint,)] if state == DEAD else [])
    assert bench.outbox.generation("events") == (1, 1)


def test_copies_written_or_not(bench: Bench) -> None:
    """A copy can be read back before and after it is on the disk."""
    made = entry(1)
    bench.recorder.note(made)
    bench.recorder.keep_body(made, b"payload")
    assert bench.recorder.body(made) == b"payload"
    bench.recorder.write()
    assert made.copied
    assert bench.recorder.body(made) == b"payload"
    assert bench.recorder.body(entry(2)) is None


def test_start_over(bench: Bench) -> None:
    """After damage the old file is put aside, nothing unwritten is kept, and writing goes on."""
    bench.recorder.note(entry(1))
    bench.recorder.start_over()
    assert bench.recorder.is_clean
    assert len(list(bench.path.parent.glob("outbox.db.damaged-*"))) >= 1
    bench.outbox.register("p", "history_event", "http://p/")
    bench.recorder.note(entry(2))
    bench.recorder.write()
    assert bench.account() == (1, 1, 0)
