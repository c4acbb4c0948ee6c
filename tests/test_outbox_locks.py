"""Two connections to the outbox in one process, as a backfill without a daemon has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from se3_uploader.outbox.schema import connect, connect_readonly


def test_a_second_connection_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    """Another process that comes and goes leaves the write-ahead log to those who still use it.

    POSIX drops all locks of a process on a file when it closes any handle of it. Without its lock
    our connection does not count, and who closes last deletes the log under it.
    """
    path = tmp_path / "outbox.db"
    first = connect(str(path))
    second, third = connect(str(path)), connect_readonly(str(path))
    first.execute_sql("INSERT INTO endpoint (name, kind, url) VALUES ('p0', 'history_event', '')")
    other = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM endpoint')"
    subprocess.run([sys.executable, "-c", other, str(path)], check=True)
    assert path.with_name("outbox.db-wal").stat().st_size > 0
    for database in (first, second, third):
        assert database.execute_sql("SELECT name FROM endpoint").fetchall() == [("p0",)]
        database.close()
