"""The recognition engine of a machine whose power is cut: writes events until then.

/proc/cmdline says synchronous=FULL or NORMAL, which is what a commit waits for. The identity_id of
an event holds the boot, so that an id used twice is noticed; it goes out on /dev/ttyS1 after the
commit.
"""

import os
import sqlite3
import time
from pathlib import Path

SYNCHRONOUS = Path("/proc/cmdline").read_text().split("synchronous=")[1].split()[0]
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]

os.makedirs("/data/sophon", exist_ok=True)
database = sqlite3.connect("/data/sophon/event.db", isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute(f"PRAGMA synchronous={SYNCHRONOUS}")
database.execute(
    "CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " identity_id TEXT NOT NULL, identity_name TEXT NOT NULL, group_name TEXT NOT NULL,"
    " timestamp INTEGER NOT NULL, score REAL NOT NULL, spot_pic BLOB)"
)
with open("/dev/ttyS1", "w", buffering=1) as wire:
    for number in range(1_000_000):
        event = f"{BOOT}-{number}"
        database.execute(
            "INSERT INTO event (identity_id, identity_name, group_name, timestamp, score, spot_pic)"
            " VALUES (?, 'somebody', 'staff', ?, 0.9, ?)",
            (event, int(time.time() * 1000), b"\xff\xd8" + os.urandom(5000) + b"\xff\xd9"),
        )
        print(event, file=wire)
        time.sleep(0.1)
