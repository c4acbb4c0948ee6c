"""Baseline 2, the usual durable script: each payload is copied into an outbox before it is sent.

``python -m benchmarks.durable EVENT_DB URL OUTBOX_DB``
"""

from __future__ import annotations

import json
import sqlite3
import sys

import requests

from benchmarks.payloads import history_event, read


def main(path: str, url: str, outbox: str) -> None:
    """Copy, commit, POST, delete, commit: for every event of a database."""
    db = sqlite3.connect(outbox)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE outbox (id INTEGER PRIMARY KEY, payload TEXT)")
    session = requests.Session()
    for row in read(path):
        with db:
            db.execute(
                "INSERT INTO outbox VALUES (?, ?)", (row["id"], json.dumps(history_event(row)))
            )
        [(number, body)] = db.execute("SELECT id, payload FROM outbox")
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(number)}
        session.post(url, data=body, headers=headers, timeout=30).raise_for_status()
        with db:
            db.execute("DELETE FROM outbox WHERE id = ?", (number,))


if __name__ == "__main__":
    main(*sys.argv[1:4])
