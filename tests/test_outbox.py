"""The outbox file: private, exact, migrated, and refused or put aside where it is no good."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from se3_uploader.outbox import (
    DEAD,
    DELIVERED,
    LOST,
    PENDING,
    REPORTS,
    Changes,
    Cursor,
    Entry,
    Outbox,
    OutboxDamaged,
    OutboxError,
    OutboxMissing,
    quarantine,
)
from se3_uploader.outbox.schema import MIGRATIONS, connect_readonly
from se3_uploader.source import Ref

NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the outbox is made, in a folder that is not there yet."""
    return tmp_path / "state" / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    """A new outbox with one endpoint (1) and one generation of the source (1)."""
    made = Outbox(str(path), lambda: NOW)
    assert made.register("p", "history_event", "http://p/") == 1
    assert made.new_generation("events") == (1, 1)
    yield made
    made.close()


def entry(key: int, **changes: Any) -> Entry:
    """An event that was seen."""
    made = Entry(1, 1, key, b"%016d" % key, NOW)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def write(outbox: Outbox, *entries: Entry, **changes: Any) -> List[Entry]:
    """Write entries and whatever else changed."""
    outbox.write(Changes(entries=list(entries), **changes))
    return list(entries)


def account(path: Path) -> Any:
    """Seen, pending, delivered, dead, lost."""
    with closing(sqlite3.connect(path)) as reader:
        return reader.execute("SELECT seen, pending, delivered, dead, lost FROM ledger").fetchone()


def test_only_the_owner_can_read_it(outbox: Outbox, path: Path) -> None:
    """The files are 0600 in a folder of 0700: they may hold pictures of people."""
    write(outbox, entry(1))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_dead_report_keeps_the_key_it_was_sent_under(outbox: Outbox) -> None:
    """A newer report takes an older one's row and dies before that was written: its key is its own.

    Brought back to life it would else be sent under the key of the older one.
    """
    (made,) = write(outbox, Entry(1, REPORTS, "old", b"", NOW))
    made.key, made.state = "new", DEAD
    write(outbox, made, copies=[(made, b"payload")])
    assert outbox.revive([made.row_id or 0]) == 1
    assert [entry.key for entry in outbox.pending(1, 10)] == ["new"]


def test_a_file_left_open_to_others_is_closed(path: Path) -> None:
    """An outbox that others may read is made private again when it is opened."""
    Outbox(str(path), lambda: NOW).close()
    os.chmod(path, 0o644)
    Outbox(str(path), lambda: NOW).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_symbolic_link_is_followed(path: Path, tmp_path: Path) -> None:
    """A link in the place of the file, which somebody may have planted, is refused."""
    path.parent.mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(OutboxError, match="symbolic link"):
        Outbox(str(path), lambda: NOW)
    assert not (tmp_path / "elsewhere.db").exists()


def test_safe_settings(outbox: Outbox) -> None:
    """Every commit is on the disk before it counts, and what is deleted is overwritten."""
    settings = {
        name: outbox.read(f"PRAGMA {name}")[0][0]
        for name in ("journal_mode", "synchronous", "secure_delete", "auto_vacuum")
    }
    assert settings == {
        "journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "auto_vacuum": 2,
    }  # fmt: skip


def test_migrations_run_once(path: Path) -> None:
    """A new file has the newest format; opening it again makes nothing anew and loses nothing."""
    first = Outbox(str(path), lambda: NOW)
    first.register("p", "history_event", "http://p/")
    write(first, entry(1))
    first.close()
    before = dump(path)
    Outbox(str(path), lambda: NOW).close()
    assert dump(path) == before
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def dump(path: Path) -> List[str]:
    """Everything in a database, as SQL."""
    with closing(sqlite3.connect(path)) as reader:
        return list(reader.iterdump())


def test_a_newer_format_is_refused(path: Path) -> None:
    """After a downgrade the program says so and leaves the file alone."""
    Outbox(str(path), lambda: NOW).close()
    with closing(sqlite3.connect(path)) as writer:
        writer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(OutboxError, match="newer se3-uploader"):
        Outbox(str(path), lambda: NOW)
    with pytest.raises(OutboxError, match="newer se3-uploader"):
        connect_readonly(str(path))


def test_damage_is_told_from_other_errors(path: Path) -> None:
    """A file that is no database is damaged; a folder that cannot be made is not."""
    path.parent.mkdir(mode=0o700)
    path.write_bytes(os.urandom(8192))
    with pytest.raises(OutboxDamaged):
        Outbox(str(path), lambda: NOW)
    with pytest.raises(OutboxError, match=r"outbox\.path") as error:
        Outbox(str(path / "below" / "outbox.db"), lambda: NOW)
    assert not isinstance(error.value, OutboxDamaged)


def test_quarantine_keeps_everything(path: Path) -> None:
    """A damaged file goes aside with its write-ahead log under a dated name, never over another."""
    path.parent.mkdir(mode=0o700)
    names = []
    for content in (b"one", b"two"):
        path.write_bytes(content)
        Path(f"{path}-wal").write_bytes(content)
        names.append(quarantine(str(path), lambda: NOW))
    assert names[0] == f"{path}.damaged-20231114-221320"
    assert len(set(names)) == 2
    for name, content in zip(names, (b"one", b"two")):
        assert Path(name).read_bytes() == content
        assert Path(f"{name}-wal").read_bytes() == content
    assert not path.exists()


def test_readers_write_nothing(outbox: Outbox, path: Path) -> None:
    """What status opens cannot write, and says where there is no outbox yet."""
    write(outbox, entry(1))
    reader = connect_readonly(str(path))
    assert reader.execute_sql("SELECT count(*) FROM delivery").fetchone() == (1,)
    with pytest.raises(Exception, match="readonly"):
        reader.execute_sql("DELETE FROM delivery")
    reader.close()
    with pytest.raises(OutboxMissing):
        connect_readonly(f"{path}.none")


def test_all_or_nothing(outbox: Outbox, path: Path) -> None:
    """A transaction that fails in its last step leaves nothing of its first: cursor with events."""
    first = entry(1)
    write(outbox, first, cursors={(1, 1): Cursor(1, first.fingerprint, None)})
    broken: Any = {(1, 1): Cursor(object(), b"", None)}  # type: ignore[arg-type]
    with pytest.raises(Exception, match="type"):
        write(outbox, entry(2), cursors=broken)
    assert account(path) == (1, 1, 0, 0, 0)
    assert outbox.cursor(1, 1) == Cursor(1, first.fingerprint, None)
    write(outbox, entry(2))
    assert account(path) == (2, 2, 0, 0, 0)


def test_the_database_itself_refuses_a_wrong_account(outbox: Outbox, path: Path) -> None:
    """seen = pending + delivered + dead + lost is a constraint of the table."""
    write(outbox, entry(1))
    with closing(sqlite3.connect(path)) as writer:
        for change in ("seen = seen + 1", "delivered = 1", "pending = -1, lost = 2"):
            with pytest.raises(sqlite3.IntegrityError):
                writer.execute(f"UPDATE ledger SET {change}")


def test_the_life_of_deliveries(outbox: Outbox, path: Path) -> None:
    """From pending to each end, once; a second end of the same delivery changes nothing."""
    entries = write(outbox, *map(entry, range(1, 5)))
    assert account(path) == (4, 4, 0, 0, 0)
    for each, state in zip(entries, (DELIVERED, DEAD, LOST)):
        each.state, each.reason = state, "why"
    write(outbox, *entries[:3])
    assert account(path) == (4, 1, 1, 1, 1)
    entries[0].state = LOST
    write(outbox, *entries[:3])
    assert account(path) == (4, 1, 1, 1, 1)
    assert [one.key for one in outbox.pending(1, 10)] == [4]
    assert outbox.revive([entries[1].row_id or 0, entries[0].row_id or 0, 999]) == 1
    assert account(path) == (4, 2, 1, 0, 1)


def test_delivered_at_once_is_one_row(outbox: Outbox, path: Path) -> None:
    """An event that is delivered before it was recorded is written once, as a receipt."""
    write(outbox, entry(1, state=DELIVERED))
    assert account(path) == (1, 0, 1, 0, 0)
    assert outbox.pending(1, 10) == []


def test_copies(outbox: Outbox, path: Path) -> None:
    """Bytes of copies are counted; a copy goes with its delivery and stays with a dead one."""
    entries = write(outbox, *map(entry, range(1, 4)))
    write(outbox, copies=[(each, b"x" * 1000) for each in entries])
    assert outbox.copied_bytes == 3000
    assert [outbox.body(each) for each in entries] == [b"x" * 1000] * 3
    assert outbox.uncopied(1, 10) == []
    for each, state in zip(entries, (DELIVERED, DEAD, LOST)):
        each.state = state
    write(outbox, *entries)
    assert outbox.copied_bytes == 1000
    assert [outbox.body(each) for each in entries] == [None, b"x" * 1000, None]
    outbox.close()
    again = Outbox(str(path), lambda: NOW)
    assert again.copied_bytes == 1000
    again.close()


def test_live_before_backfilled_and_old_before_new(outbox: Outbox) -> None:
    """Pending ones come in the order they are to be sent, without those in memory already."""
    entries = write(outbox, entry(1, lane=7), entry(2), entry(3))
    assert [one.key for one in outbox.pending(1, 10)] == [2, 3, 1]
    assert [one.key for one in outbox.pending(1, 1, {entries[1].row_id or 0})] == [3]


def test_known(outbox: Outbox) -> None:
    """An event is known by key and fingerprint in every generation; a lost one may come back."""
    entries = write(outbox, *map(entry, range(1, 4)))
    entries[2].state = LOST
    write(outbox, entries[2])
    second, _ = outbox.new_generation("events")
    refs = [Ref(1, entries[0].fingerprint), Ref(2, b"y" * 16), Ref(3, entries[2].fingerprint)]
    assert outbox.known(1, second, refs) == {1}


def test_places(outbox: Outbox) -> None:
    """Each endpoint has its own place in each generation; an account alone is no place."""
    assert outbox.cursor(1, 1) is None
    write(outbox, entry(1))
    assert outbox.cursor(1, 1) is None
    assert not outbox.has_begun(1)
    write(outbox, cursors={(1, 1): Cursor(None, b"", None)})
    assert outbox.cursor(1, 1) == Cursor(None, b"", None)
    assert outbox.has_begun(1)
    assert not outbox.has_begun(2)
    for key in (7, "1607062639.737444"):
        write(outbox, cursors={(1, 1): Cursor(key, b"f" * 16, key)})
        assert outbox.cursor(1, 1) == Cursor(key, b"f" * 16, key)


def test_reports_leave_no_receipt(outbox: Outbox, path: Path) -> None:
    """A report is stored while it waits, replaced in its row, and gone when it is delivered."""
    waiting = Entry(1, REPORTS, "key-1", b"", NOW)
    write(outbox, waiting, copies=[(waiting, b"one")])
    waiting.key = "key-2"
    write(outbox, waiting, copies=[(waiting, b"two")])
    assert outbox.read("SELECT key, body FROM delivery JOIN copy ON delivery_id = id") == [
        ("key-2", b"two")
    ]
    waiting.state = DELIVERED
    write(outbox, waiting)
    assert outbox.read("SELECT count(*) FROM delivery") == [(0,)]
    assert outbox.copied_bytes == 0
    assert account(path) == (1, 0, 1, 0, 0)


def test_old_receipts_are_pruned(outbox: Outbox, path: Path) -> None:
    """Only receipts older than asked for go, a page at a time; the account keeps counting them."""
    old, new = NOW - 1000, NOW
    write(
        outbox,
        *(entry(key, state=DELIVERED, at=old) for key in range(1, 11)),
        entry(11, at=old),
        entry(12, state=DEAD, at=old),
        *(entry(key, state=DELIVERED, at=new) for key in range(13, 16)),
    )
    place, rounds = 0, 0
    while (after := outbox.prune(NOW - 500, place, 4)) is not None and rounds < 20:
        place, rounds = after, rounds + 1
    keys = [key for (key,) in outbox.read("SELECT key FROM delivery ORDER BY key")]
    assert keys == [11, 12, 13, 14, 15]
    assert account(path) == (15, 1, 13, 1, 0)


def test_another_process_is_noticed(outbox: Outbox, path: Path) -> None:
    """What an operator or a backfill writes is noticed, our own writes are not."""
    write(outbox, entry(1))
    outbox.changed()
    write(outbox, entry(2))
    assert not outbox.changed()
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE endpoint SET error = 'x'")
        other.commit()
    assert outbox.changed()
    assert not outbox.changed()


def test_pending_is_the_default() -> None:
    """A new entry is pending and was never tried."""
    made = entry(1)
    assert (made.state, made.attempts, made.row_id, made.copied) == (PENDING, 0, None, False)
