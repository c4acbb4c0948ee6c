"""The outbox file: tables, migrations, permissions, errors, and putting a damaged one aside."""

from __future__ import annotations

import errno
import glob
import os
import stat
import time
from typing import Callable, Tuple

import peewee

PENDING, DELIVERED, DEAD, LOST, DISCARDED = range(5)
"""States of a delivery. A discarded one is a dead letter an operator gave up: counted as lost."""

STATES = ("pending", "delivered", "dead", "lost", "discarded")

LIVE = 0
"""The lane of live events, which go first; the lane of a backfilled one is its backfill's id."""

MIGRATIONS: Tuple[str, ...] = (
    """
    CREATE TABLE endpoint (
      id           INTEGER PRIMARY KEY,
      name         TEXT NOT NULL UNIQUE,
      kind         TEXT NOT NULL,
      url          TEXT NOT NULL,
      state        TEXT NOT NULL DEFAULT 'ok',
      since        REAL,
      error        TEXT,
      next_attempt REAL,
      certificate  REAL
    );
    CREATE TABLE generation (
      id      INTEGER PRIMARY KEY,
      source  TEXT NOT NULL,
      number  INTEGER NOT NULL,
      started REAL NOT NULL,
      UNIQUE (source, number)
    );
    -- Cursor and account stand on one page, since every commit writes both.
    CREATE TABLE ledger (
      endpoint_id    INTEGER NOT NULL,
      generation_id  INTEGER NOT NULL,
      position,
      fingerprint    BLOB,
      settled,
      seen           INTEGER NOT NULL DEFAULT 0,
      pending        INTEGER NOT NULL DEFAULT 0,
      delivered      INTEGER NOT NULL DEFAULT 0,
      dead           INTEGER NOT NULL DEFAULT 0,
      lost           INTEGER NOT NULL DEFAULT 0,
      last_delivered REAL,
      PRIMARY KEY (endpoint_id, generation_id),
      CHECK (seen = pending + delivered + dead + lost),
      CHECK (pending >= 0 AND delivered >= 0 AND dead >= 0 AND lost >= 0)
    ) WITHOUT ROWID;
    CREATE TABLE delivery (
      id            INTEGER PRIMARY KEY,
      endpoint_id   INTEGER NOT NULL,
      generation_id INTEGER NOT NULL,
      key           NOT NULL,
      fingerprint   BLOB NOT NULL,
      lane          INTEGER NOT NULL,
      state         INTEGER NOT NULL,
      strip         INTEGER NOT NULL,
      attempts      INTEGER NOT NULL,
      at            REAL NOT NULL,
      reason        TEXT,
      answer        TEXT
    );
    CREATE UNIQUE INDEX delivery_event ON delivery (endpoint_id, key, generation_id);
    CREATE INDEX delivery_pending ON delivery (endpoint_id, lane, id) WHERE state = 0;
    CREATE INDEX delivery_letter ON delivery (state, endpoint_id) WHERE state > 1;
    -- A backfill: its id is the lane of its deliveries.
    CREATE TABLE backfill (
      id       INTEGER PRIMARY KEY,
      wanted   TEXT NOT NULL UNIQUE,
      since    INTEGER NOT NULL,
      until    INTEGER NOT NULL,
      finished REAL
    );
    CREATE TABLE copy (
      delivery_id INTEGER PRIMARY KEY,
      bytes       INTEGER NOT NULL,
      body        BLOB NOT NULL
    );
    """,
)


class OutboxError(Exception):
    """The outbox could not be read or written. Says why and what to do; nothing was changed."""


class OutboxMissing(OutboxError):
    """There is no outbox yet."""


class OutboxDamaged(OutboxError):
    """The file is no sound database any more."""


def connect(path: str, *, timeout: float = 5.0) -> peewee.SqliteDatabase:
    """Open the outbox for writing, made 0600 in a 0700 folder where it does not exist yet.

    timeout: seconds to wait for another process that is writing. Raises OutboxError, OutboxDamaged.
    """
    _make_private(path)
    database = peewee.SqliteDatabase(
        path,
        timeout=timeout,
        pragmas=(
            # Every commit writes the few pages it touches whole; a copy of 160 KB wants large ones.
            ("page_size", 2048),
            ("auto_vacuum", "incremental"),
            ("journal_mode", "wal"),
            ("synchronous", "full"),
            ("secure_delete", "on"),
            ("journal_size_limit", 8 * 1024**2),
            ("cache_size", -512),
        ),
    )
    try:
        database.connect()
        _migrate(database)
    except peewee.PeeweeException as error:
        database.close()
        raise explain(error, path) from None
    except OutboxError:
        database.close()
        raise
    return database


def connect_readonly(path: str, *, timeout: float = 5.0) -> peewee.SqliteDatabase:
    """Open an existing outbox so that nothing can be written and its owner never waits.

    Raises OutboxMissing, OutboxError, OutboxDamaged.
    """
    try:
        _refuse_unless(path, os.R_OK)
    except FileNotFoundError:
        raise OutboxMissing(
            f"there is no outbox at {path} yet: the daemon makes it at its first start"
        ) from None
    except OSError as error:
        raise OutboxError(
            f"cannot read {path}: {error.strerror}; do this as root, or as the user that the"
            " service runs as"
        ) from None
    database = peewee.SqliteDatabase(
        f"file:{_quoted(path)}?mode=ro", uri=True, timeout=timeout, pragmas=(("query_only", 1),)
    )
    try:
        database.connect()
        version = database.execute_sql("PRAGMA user_version").fetchone()[0]
    except peewee.PeeweeException as error:
        database.close()
        raise explain(error, path) from None
    if version == 0:
        database.close()
        raise OutboxMissing(f"the outbox at {path} is just being made: try again in a moment")
    _refuse_newer(version, path)
    return database


def _make_private(path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o600))
        except FileExistsError:
            pass
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        _refuse_unless(path, os.R_OK | os.W_OK)
    except OSError as error:
        raise OutboxError(
            f"cannot make or open {path}: {error.strerror}. The folder must be writable by this"
            " user, and the file no symbolic link (outbox.path)"
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise OutboxError(f"{path} is no regular file: name another one (outbox.path)")
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != 0o600:
        os.chmod(path, 0o600)


def _refuse_unless(path: str, mode: int) -> None:
    """Raise OSError where the file is not there or may not be used so; never open it.

    Closing any handle of a file drops all locks that this process holds on it, also those of
    another connection to the outbox: somebody else would then delete its write-ahead log.
    """
    os.stat(path)
    if not os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _migrate(database: peewee.SqliteDatabase) -> None:
    version = database.execute_sql("PRAGMA user_version").fetchone()[0]
    _refuse_newer(version, database.database)
    if version == len(MIGRATIONS):
        return
    with database.atomic("IMMEDIATE"):
        version = database.execute_sql("PRAGMA user_version").fetchone()[0]
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            for statement in script.split(";"):
                if statement.strip():
                    database.execute_sql(statement)
            database.execute_sql(f"PRAGMA user_version = {number}")


def _refuse_newer(version: int, path: str) -> None:
    if version > len(MIGRATIONS):
        raise OutboxError(
            f"the outbox at {path} was written by a newer se3-uploader (format {version}, this"
            f" program knows {len(MIGRATIONS)}): install that version again, or a newer one"
        )


def explain(error: BaseException, path: str) -> OutboxError:
    """Turn a database error into one that says what to do."""
    while "cannot rollback" in str(error) and error.__context__ is not None:
        # SQLite had rolled back by itself, as it does on a full disk; that error is the reason.
        error = error.__context__
    text = str(error)
    low = text.lower()
    if "malformed" in low or "not a database" in low:
        return OutboxDamaged(f"the outbox at {path} is damaged ({text})")
    if "full" in low:
        return OutboxError(f"the disk of {path} is full: make room, nothing is lost meanwhile")
    if "readonly" in low or "read-only" in low:
        return OutboxError(
            f"{path} cannot be written ({text}): remount its disk, or mend its owner"
        )
    if "locked" in low or "busy" in low:
        return OutboxError(f"another process has been writing {path} for too long ({text})")
    return OutboxError(f"the outbox at {path} cannot be used ({text}): look at its disk")


def quarantine(path: str, wall: Callable[[], float]) -> str:
    """Move a damaged outbox aside under a dated name, with its -wal and -shm; returns that name."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(wall()))
    aside, number = f"{path}.damaged-{stamp}", 1
    while os.path.exists(aside):
        aside, number = f"{path}.damaged-{stamp}-{number}", number + 1
    for suffix in ("-wal", "-shm", ""):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, aside + suffix)
    return aside


def is_quarantined(path: str) -> bool:
    """Does an outbox that was once at this path lie beside it, damaged?"""
    return bool(glob.glob(f"{glob.escape(path)}.damaged-*"))


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
