"""The program that writes a box's events, as a process: it tells what others made it wait.

    python -m tests.box_writer DATABASE COUNT BYTES [PID]

It commits COUNT events with pictures of so many BYTES, one every few milliseconds, and prints JSON:

waits     seconds for which each commit that met a lock was kept from the database
held      the same without the time in which the machine let this process, or a thread of the
          process PID that it waits for, not run although it wanted to
log       pages in the WAL after each commit; the writer has every commit checkpointed at once, so
          that they are more than one commit's only where somebody was reading
starved   for each of these, for how long the machine kept the process PID from running since the
          log was last reset
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Dict, List

PAUSE = 0.005
AGAIN = 0.0002


def run_delays(process: str) -> Dict[str, float]:
    """Thread -> seconds in which it could have run and no processor was free (Linux)."""
    return {
        task.name: int((task / "schedstat").read_text().split()[1]) / 1e9
        for task in Path(f"/proc/{process}/task").iterdir()
    }


def starved(process: str, since: Dict[str, float]) -> float:
    """For how long the thread of a process that was worst off was kept from running since then."""
    return max(delay - since.get(name, 0.0) for name, delay in run_delays(process).items())


class Writer:
    """One connection, and the account of its waits."""

    def __init__(self, path: str, other: str) -> None:
        self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA wal_autocheckpoint = 0")
        self._other = other
        self._reset_at = run_delays(other)
        self.told: Dict[str, List[float]] = {"waits": [], "held": [], "log": [], "starved": []}

    def commit(self, number: int, picture: bytes) -> None:
        """Write one event; a commit that meets a lock is repeated, as SQLite's own wait does."""
        self._insist("BEGIN IMMEDIATE")
        self._database.execute(
            "INSERT INTO event (identity_id, identity_name, group_name, timestamp, score, spot_pic)"
            " VALUES (?, 'n', 'g', 1767225600000, 0.5, ?)",
            (str(number), picture),
        )
        self._insist("COMMIT")
        _, pages, moved = self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self.told["log"].append(pages)
        self.told["starved"].append(starved(self._other, self._reset_at))
        if pages == moved:
            self._reset_at = run_delays(self._other)

    def _insist(self, statement: str) -> None:
        if self._is_done(statement):
            return
        began, mine, others = time.monotonic(), run_delays("self"), run_delays(self._other)
        while not self._is_done(statement):
            time.sleep(AGAIN)
        waited = time.monotonic() - began
        self.told["waits"].append(waited)
        self.told["held"].append(waited - starved("self", mine) - starved(self._other, others))

    def _is_done(self, statement: str) -> bool:
        """Run a statement, unless a lock is in the way."""
        try:
            self._database.execute(statement)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
        return True


def main() -> None:
    """Write, then tell."""
    path, count, size, *other = sys.argv[1:]
    writer = Writer(path, *(other or ["self"]))
    for number in range(int(count)):
        writer.commit(1_000_000 + number, bytes(int(size)))
        time.sleep(PAUSE)
    print(json.dumps(writer.told))


if __name__ == "__main__":
    main()
