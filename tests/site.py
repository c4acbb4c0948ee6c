"""A whole site for tests: a box that writes events, platforms on loopback, the uploader between.

    site = Site(tmp_path)                       # an event database with the contract's table
    site.add(1, 2, 3)                           # the box writes events, each with its own number
    with Server() as platform:
        config = site.configure(platform.url)   # uploader.yaml, written and loaded
        with Uploader(config) as uploader:      # the real engine, sinks and outbox
            uploader.run()                      # until all is delivered
    assert numbers(platform) == [1, 2, 3]

An event's number is its identity_id, so that it is known wherever it shows up.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Set, Union

import yaml

from se3_uploader import config as configuration
from se3_uploader.agent import open_outbox
from se3_uploader.config import Config
from se3_uploader.engine import Engine
from se3_uploader.engine.queue import Queue
from se3_uploader.engine.recorder import Clock
from se3_uploader.outbox import Outbox
from se3_uploader.sink import Sink
from se3_uploader.source import Source, open_source
from se3_uploader.wake import Wake

from .http_server import Reply, Request, Server

SUMS = ("seen", "pending", "delivered", "dead", "lost")

TABLE = """
CREATE TABLE event (
  id             INTEGER PRIMARY KEY {autoincrement},
  identity_id    TEXT,
  identity_name  TEXT,
  group_id       TEXT,
  group_name     TEXT,
  reg_pic        BLOB,
  timestamp      INTEGER,
  score          REAL,
  device_ip      TEXT,
  ep_id          TEXT,
  spot_pic       BLOB,
  face_pic       BLOB,
  person_type    INTEGER,
  device_type    TEXT,
  grab_fiqa_info TEXT,
  box_fiqa_info  TEXT,
  dev_sno        TEXT
)
"""
"""The event table of the contract, without NOT NULL, so that a box can get it wrong."""


def event(number: int, **changes: Any) -> Dict[str, Any]:
    """Make an event that is good enough to be sent; its id is the database's to give."""
    return {
        "identity_id": str(number),
        "identity_name": "张伟",
        "group_name": "staff",
        "timestamp": 1_767_225_600_000 + number,
        "score": 0.5,
        **changes,
    }


class Site:
    """A box: its event database, and where its uploader keeps uploader.yaml and the outbox."""

    def __init__(self, folder: Path, *, journal: str = "wal", autoincrement: bool = True) -> None:
        self.folder = folder
        self.events = folder / "event.db"
        self.outbox = folder / "state" / "outbox.db"
        self.journal = journal
        self.autoincrement = autoincrement
        self.create()

    def create(self, path: Optional[Path] = None) -> None:
        """Make an empty event database, at another path if one is given."""
        with closing(sqlite3.connect(path or self.events)) as database:
            database.execute(f"PRAGMA journal_mode = {self.journal}")
            key = "AUTOINCREMENT" if self.autoincrement else ""
            database.execute(TABLE.format(autoincrement=key))

    def add(self, *events: Union[int, Mapping[str, Any]]) -> None:
        """Write events, given whole or as their numbers, in one transaction."""
        rows = [event(one) if isinstance(one, int) else one for one in events]
        with closing(sqlite3.connect(self.events, timeout=10)) as database, database:
            for row in rows:
                marks = ", ".join("?" * len(row))
                database.execute(
                    f"INSERT INTO event ({', '.join(row)}) VALUES ({marks})", list(row.values())
                )

    def run(self, sql: str, *values: Any) -> None:
        """Change the event database, as the box's own software would."""
        with closing(sqlite3.connect(self.events, timeout=10)) as database, database:
            database.execute(sql, values)

    def remove(self, *numbers: int) -> None:
        """Delete events by their numbers, all of them without any."""
        for number in numbers:
            self.run("DELETE FROM event WHERE identity_id = ?", str(number))
        if not numbers:
            self.run("DELETE FROM event")

    def configure(self, *urls: str, **sections: Mapping[str, Any]) -> Config:
        """Write uploader.yaml and load it: one endpoint p0, p1, … for each url.

        sections are laid over what tests want; ``endpoint`` over every endpoint for events.
        """
        common = sections.pop("endpoint", {})
        endpoints = [{"url": url, "name": f"p{n}", **common} for n, url in enumerate(urls)]
        document: Dict[str, Dict[str, Any]] = {
            "gateway": {"dev_sno": "BOX"},
            "source": {"url": f"sqlite:///{self.events}"},
            "history_event": {"endpoints": endpoints},
            "outbox": {"path": str(self.outbox), "min_free_disk": 0},
        }
        for name, section in sections.items():
            document[name] = {**document.get(name, {}), **section}
        path = self.folder / "uploader.yaml"
        # Through JSON, so that what is used twice is written twice: aliases are not allowed.
        text = yaml.safe_dump(json.loads(json.dumps(document)), allow_unicode=True)
        path.write_text(text, "utf-8")
        return configuration.load(str(path))

    def uploader(self, *platforms: Server, **sections: Any) -> Uploader:
        """An uploader of this site's events to these platforms, configured as configure does."""
        return Uploader(self.configure(*(each.url for each in platforms), **sections))

    def account(self, endpoint: str = "p0") -> Dict[str, int]:
        """The sums of an endpoint's account over all generations, read from outside."""
        return dict(zip(SUMS, self.rows(
            f"SELECT {', '.join(f'coalesce(sum({name}), 0)' for name in SUMS)}"
            " FROM ledger JOIN endpoint ON endpoint.id = endpoint_id WHERE name = ?",
            endpoint,
        )[0]))  # fmt: skip

    def rows(self, sql: str, *values: Any) -> List[Any]:
        """Read the outbox from outside."""
        with closing(sqlite3.connect(f"file:{self.outbox}?mode=ro", uri=True)) as outbox:
            return outbox.execute(sql, values).fetchall()


def sums(seen: int = 0, pending: int = 0, delivered: int = 0, dead: int = 0, lost: int = 0) -> Any:
    """Spell out an account."""
    return dict(zip(SUMS, (seen, pending, delivered, dead, lost)))


def number_of(request: Request) -> int:
    """The number of the event in a request."""
    return int(request.json()["identity_id"])


def numbers(server: Server) -> List[int]:
    """Numbers of the events a platform was asked to take, in that order."""
    return [number_of(request) for request in server.requests]


def refusing(refused: Iterable[int], reply: Reply) -> Callable[[Request], Reply]:
    """A platform that answers so to some events, and takes all others."""
    wanted = set(refused)
    return lambda request: reply if number_of(request) in wanted else Reply()


class Switch:
    """A platform that can be brought down, and remembers what it accepted."""

    def __init__(self, down: Optional[Reply] = None) -> None:
        self.down = down
        """The answer while it is down; None: it is up."""
        self.accepted: List[int] = []

    def __call__(self, request: Request) -> Reply:
        if self.down is not None:
            return self.down
        self.accepted.append(number_of(request))
        return Reply()


class Uploader:
    """The real engine in this process, in real time except that waits take none.

    While a request is under way time passes as it does; when there is nothing but to wait, the
    clock jumps to the moment at which something is due.
    """

    def __init__(
        self, config: Config, *, random: Callable[[], float] = lambda: 0.5,
        outbox: Optional[Outbox] = None, source: Optional[Source] = None,
    ) -> None:  # fmt: skip
        self._skipped = 0.0
        self._crashed = False
        self._wake = Wake(())
        self.source = source or open_source(config.source)
        self.outbox = outbox or open_outbox(config.outbox.path)
        self.clock = Clock(
            lambda: time.monotonic() + self._skipped, lambda: time.time() + self._skipped
        )
        self.engine = Engine(
            config, self.source, self.outbox, partial(Sink, self._wake), clock=self.clock,
            random=random,
        )  # fmt: skip

    @property
    def now(self) -> float:
        """Monotonic seconds, waits included."""
        return self.clock.monotonic()

    @property
    def queue(self) -> Queue:
        """The first endpoint's."""
        return self.engine.queues[0]

    def step(self) -> None:
        """One step of the engine, and the wait after it."""
        due = self.engine.step()
        if self.engine.in_flight():
            self._wake.wait(min(due, 0.5))
        else:
            self._skipped += due

    def run(
        self, until: Optional[Callable[[], bool]] = None, *, within: float = 7200.0,
        patience: float = 30.0,
    ) -> None:  # fmt: skip
        """Work until something holds, by default until all is delivered.

        AssertionError after so many seconds of the engine's time, or of patience in real time.
        """
        until = until or self.engine.is_idle
        deadline, end = self.now + within, time.monotonic() + patience
        while not until():
            assert self.now < deadline, self.engine.summary()
            assert time.monotonic() < end, self.engine.summary()
            self.step()
        self.engine.flush()

    def run_for(self, seconds: float) -> None:
        """Work for so many seconds of the engine's time."""
        end = self.now + seconds
        self.run(lambda: self.now >= end, within=2 * seconds)

    def crash(self) -> None:
        """End without writing anything more, as a power cut does."""
        for queue in self.engine.queues:
            queue.sink.close(0.0)
        self._wake.close()
        self.outbox.close()
        self.source.close()
        self._crashed = True

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._crashed:
            return
        self.engine.close(1.0)
        self.engine.flush()
        self._wake.close()
        self.outbox.close()
        self.source.close()


def deliver(config: Config, patience: float = 30.0) -> None:
    """Run an uploader until everything the source and the outbox hold has come to its end.

    AssertionError after so many real seconds.
    """
    with Uploader(config) as uploader:
        uploader.run(patience=patience)


class Process:
    """`se3-uploader run` as a process of its own; killed at the end of `with` if it still runs."""

    def __init__(self, config: Config, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "se3_uploader", "run", "-c", config.path, *arguments]
        self.lines: List[str] = []
        """What it logged so far."""
        self._changed = threading.Condition()

    def __enter__(self) -> Process:
        self.popen = subprocess.Popen(
            self._command, cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, text=True
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
        self._reading.join()
        assert self.popen.stderr
        self.popen.stderr.close()

    def _read(self) -> None:
        assert self.popen.stderr
        for line in self.popen.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    @property
    def log(self) -> str:
        """All lines so far."""
        return "\n".join(self.lines)

    def wait_for(self, text: str, count: int = 1, timeout: float = 15.0) -> None:
        """Wait until so many lines with a text in them were logged."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: sum(text in line for line in self.lines) >= count, timeout
            ), self.log

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.popen.send_signal(number)

    def end(self, timeout: float = 15.0) -> int:
        """Wait for its end; returns the exit code."""
        return self.popen.wait(timeout)


def keys(server: Server) -> Dict[int, Set[str]]:
    """Number of an event -> the idempotency keys it was sent under."""
    found: Dict[int, Set[str]] = {}
    for request in server.requests:
        found.setdefault(number_of(request), set()).add(request.key)
    return found


def notes_of(request: Request) -> List[str]:
    """What a payload says was left out of it."""
    body: Dict[str, Any] = json.loads(request.body)
    notes: List[str] = body["ext_data"].get("upload_notes", [])
    return notes
