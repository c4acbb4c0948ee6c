"""The recognition engine: engine.py FIRST COUNT PER_SECOND writes events, its database kept open.

COUNT 0: for ever. The database is in WAL mode, readable by the group se3-events and nobody else.
"""

import os
import shutil
import sqlite3
import sys
import time

FOLDER = "/data/sophon"
first, count, per_second = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
os.makedirs("/data", mode=0o755, exist_ok=True)
os.umask(0o027)
os.makedirs(FOLDER, exist_ok=True)
database = sqlite3.connect(f"{FOLDER}/event.db", isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute(
    "CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " identity_id TEXT NOT NULL, identity_name TEXT NOT NULL, group_id TEXT, group_name TEXT,"
    " reg_pic BLOB, timestamp INTEGER NOT NULL, score REAL NOT NULL, device_ip TEXT, ep_id TEXT,"
    " spot_pic BLOB, face_pic BLOB, person_type INTEGER, device_type TEXT, grab_fiqa_info TEXT,"
    " box_fiqa_info TEXT, dev_sno TEXT)"
)
for path in (FOLDER, f"{FOLDER}/event.db", f"{FOLDER}/event.db-wal", f"{FOLDER}/event.db-shm"):
    shutil.chown(path, "root", "se3-events")
number = first
while count == 0 or number < first + count:
    database.execute(
        "INSERT INTO event (identity_id, identity_name, group_name, timestamp, score, device_ip,"
        " spot_pic) VALUES (?, 'somebody', 'staff', ?, 0.9, '192.168.1.25', ?)",
        (str(number), int(time.time() * 1000), b"\xff\xd8" + os.urandom(5000) + b"\xff\xd9"),
    )
    number += 1
    if per_second:
        time.sleep(1 / per_second)
print("written", flush=True)
while True:
    time.sleep(3600)
