"""Baseline 1: json.dumps and requests on one session. Nothing is durable: a crash loses or repeats.

``python -m benchmarks.bare EVENT_DB URL``
"""

from __future__ import annotations

import json
import sys

import requests

from benchmarks.payloads import history_event, read


def main(path: str, url: str) -> None:
    """POST every event of a database once, one after the other."""
    session = requests.Session()
    for row in read(path):
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(row["id"])}
        body = json.dumps(history_event(row))
        session.post(url, data=body, headers=headers, timeout=30).raise_for_status()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
