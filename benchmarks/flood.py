"""The limit of the receiver: one connection, the same prepared bytes again and again.

``python -m benchmarks.flood EVENT_DB URL``: as many requests as the database has events.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
from urllib.parse import urlsplit

from benchmarks.payloads import history_event, read


def main(path: str, url: str) -> None:
    """Send the first event's payload once for each row; only the key differs."""
    [count] = sqlite3.connect(path).execute("SELECT count(*) FROM event").fetchone()
    body = json.dumps(history_event(next(read(path)))).encode()
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nIdempotency-Key: %d\r\n\r\n"
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 80)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(count):
            client.sendall(head % (len(body), number) + body)
            client.recv(4096)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
