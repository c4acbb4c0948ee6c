"""The box of a simulation: its writer, its event database, and what ever happened in it."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Set, Tuple

from .clock import SimulatedClock

COLUMNS = "identity_id, identity_name, group_name, timestamp, score, device_ip, spot_pic"
LATEST = 50.0
"""Seconds after which a late row becomes visible at the latest; source.lookback is a minute."""
HUGE = 900_000
"""Bytes of a picture of which few fit into memory at once."""


@dataclass
class Event:
    """An event that the box wrote; its serial number is its identity_id."""

    serial: int
    row_id: int
    usable: bool
    deleted: bool = False


class Box:
    """Writes events as an engine would, prunes, wipes and restores them. Knows nothing of us."""

    def __init__(self, folder: str, rng: random.Random, clock: SimulatedClock) -> None:
        self.path = os.path.join(folder, "event.db")
        self.events: Dict[int, Event] = {}
        self.deleted: Set[int] = set()
        """Serials of events that were gone at some time."""
        self.renamed: Counter[int] = Counter()
        """Serial -> how often its name was changed; every time it became another event."""
        self.autoincrement = rng.random() < 0.5
        self.ordered = rng.random() < 0.7
        """Do rows become visible in the order of their ids? Not where several writers commit."""
        self._wal = rng.random() < 0.5
        self._rng = rng
        self._clock = clock
        self._serial = 0
        self._late: List[Tuple[float, Event, Tuple[object, ...]]] = []
        self._backup: Optional[Set[int]] = None
        self._db = self._create(self.path)

    def _create(self, path: str) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute(f"PRAGMA journal_mode = {'WAL' if self._wal else 'DELETE'}")
        db.execute("PRAGMA synchronous = OFF")
        key = "AUTOINCREMENT" if self.autoincrement else ""
        db.execute(f"CREATE TABLE event (id INTEGER PRIMARY KEY {key}, {COLUMNS})")
        return db

    def write(self, count: int, size: int = 60) -> None:
        """Insert events with pictures of so many bytes; one in a hundred lacks a required field."""
        with self._db:
            self._db.execute("BEGIN")
            rows = [self._insert(size) for _ in range(count)]
            for event, values in rows:
                # The first shows that the ids were given out again, and the last keeps them taken.
                outer = event in (rows[0][0], rows[-1][0])
                if not self.ordered and not outer and self._rng.random() < 0.15:
                    self._db.execute("DELETE FROM event WHERE id = ?", (event.row_id,))
                    visible_at = self._clock.now + self._rng.uniform(0.1, LATEST)
                    self._late.append((visible_at, event, values))
                else:
                    self.events[event.serial] = event
            self._db.execute("COMMIT")

    def _insert(self, size: int) -> Tuple[Event, Tuple[object, ...]]:
        self._serial += 1
        usable = self._rng.random() > 0.01
        values = (
            str(self._serial),
            f"person {self._serial}",
            "g",
            int(self._clock.time * 1000),
            0.5 if usable else None,
            "10.0.0.1",
            bytes([self._serial % 256]) * size,
        )
        done = self._db.execute(f"INSERT INTO event ({COLUMNS}) VALUES (?,?,?,?,?,?,?)", values)
        return Event(self._serial, done.lastrowid or 0, usable), values

    def next_at(self) -> float:
        """When the next late row becomes visible."""
        return min((visible_at for visible_at, *_ in self._late), default=float("inf"))

    def show_late(self) -> None:
        """Insert the late rows whose time has come, where their ids are still free."""
        due = [row for row in self._late if row[0] <= self._clock.now]
        self._late = [row for row in self._late if row[0] > self._clock.now]
        for _, event, values in due:
            try:
                self._db.execute(
                    f"INSERT INTO event (id, {COLUMNS}) VALUES (?,?,?,?,?,?,?,?)",
                    (event.row_id, *values),
                )
            except sqlite3.IntegrityError:
                continue
            self.events[event.serial] = event

    def living(self) -> List[Event]:
        """Events that the database holds now."""
        return [event for event in self.events.values() if not event.deleted]

    def _delete(self, events: List[Event]) -> None:
        self._db.executemany("DELETE FROM event WHERE id = ?", [(e.row_id,) for e in events])
        self._gone(events)

    def _gone(self, events: Iterable[Event]) -> None:
        for event in events:
            event.deleted = True
            self.deleted.add(event.serial)

    def prune(self) -> None:
        """Delete the oldest, as a quota does."""
        living = sorted(self.living(), key=lambda event: event.row_id)
        self._delete(living[: self._rng.randint(0, len(living))])

    def cut_back(self) -> None:
        """Delete the newest, whose ids are given out again where there is no AUTOINCREMENT."""
        self._late.clear()
        living = sorted(self.living(), key=lambda event: event.row_id)
        self._delete(living[-self._rng.randint(1, 5) :])

    def wipe(self) -> None:
        """Delete everything; ids start again."""
        self._late.clear()
        self._delete(self.living())
        if self.autoincrement:
            self._db.execute("DELETE FROM sqlite_sequence")

    def touch(self) -> None:
        """Change a row after it was written: its picture came late."""
        living = self.living()
        if living:
            event = self._rng.choice(living)
            self._db.execute("UPDATE event SET spot_pic = ? WHERE id = ?", (b"late", event.row_id))

    def rename(self) -> None:
        """Change what makes a row this event, as an operator who corrects a name does."""
        living = self.living()
        if living:
            event = self._rng.choice(living)
            self.renamed[event.serial] += 1
            self._db.execute(
                "UPDATE event SET identity_name = identity_name || '!' WHERE id = ?",
                (event.row_id,),
            )

    def replace(self) -> None:
        """Put a fresh, empty database file in the place of the old one."""
        self._db.close()
        self._gone(self.living())
        self._new_file()

    def _new_file(self) -> None:
        self._late.clear()
        for suffix in ("-wal", "-shm", "-journal"):
            if os.path.exists(self.path + suffix):
                os.remove(self.path + suffix)
        fresh = self.path + ".new"
        self._create(fresh).close()
        os.replace(fresh, self.path)
        self._db = sqlite3.connect(self.path, isolation_level=None)

    def back_up(self) -> None:
        """Keep a copy of the database file."""
        if self._backup is None:
            self._db.execute("VACUUM INTO ?", (self.path + ".backup",))
            self._backup = {event.serial for event in self.living()}

    def restore(self) -> None:
        """Put the copy in the place of the file: later events are gone, deleted ones are back."""
        if self._backup is None:
            return
        self._late.clear()
        self._db.close()
        for suffix in ("-wal", "-shm", "-journal"):
            if os.path.exists(self.path + suffix):
                os.remove(self.path + suffix)
        shutil.copy(self.path + ".backup", self.path + ".new")
        os.replace(self.path + ".new", self.path)
        self._gone(event for event in self.living() if event.serial not in self._backup)
        for serial in self._backup:
            self.events[serial].deleted = False
        self._db = sqlite3.connect(self.path, isolation_level=None)

    def close(self) -> None:
        """End the writer."""
        self._db.close()
