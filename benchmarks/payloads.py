"""What the baselines send: the HistoryEvent as anybody would write it in ten lines."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Dict, Iterator

DIRECT = ("identity_id", "identity_name", "group_name", "reg_pic", "timestamp", "score")
EXTENDED = ("device_ip", "ep_id", "spot_pic", "person_type", "device_type", "dev_sno")


def history_event(row: sqlite3.Row) -> Dict[str, Any]:
    """Build the payload of one row (protocol section 1)."""
    payload = {name: row[name] for name in DIRECT if row[name] is not None}
    payload["ext_data"] = {name: row[name] for name in EXTENDED if row[name] is not None}
    for name in ("grab_fiqa_info", "box_fiqa_info"):
        payload["ext_data"][name] = json.loads(row[name] or "{}")
    return payload


def read(path: str) -> Iterator[sqlite3.Row]:
    """Yield all rows of an event database in the order of their ids."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    yield from db.execute("SELECT * FROM event ORDER BY id")
