"""transport.py: an answer is read as the standard library reads it."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from typing import Any, List

import pytest

from se3_uploader.transport import Response, send

ANSWERS = {
    "usual": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\n{}",
    "no length": b"HTTP/1.1 200 OK\r\n\r\n{}",
    "hangs up": b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n{}",
    "old": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "old, kept": b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\n{}",
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "no body to come": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    "interim first": b"HTTP/1.1 100 Go\r\nA: b\r\n\r\nHTTP/1.1 201 X\r\nContent-Length: 0\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n2\r\n{}\r\n0\r\nA: b\r\n\r\n",
    "chunks and length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\n{}\r\n0\r\n\r\n"
    ),
    "length no number": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
    "length no digit": b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n{}",
    "length endless": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 9999 + b"\r\n\r\n{}",
    "length below zero": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
    "folded": b"HTTP/1.1 200 OK\r\nServer: a\r\n Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "twice": b"HTTP/1.1 200 OK\r\nRetry-After: 1\r\nretry-after: 2\r\nContent-Length: 0\r\n\r\n",
    "line breaks of Unix": b"HTTP/1.1 200 OK\nContent-Length: 2\nDate:now\n\n{}",
    "no reason, no ASCII": b"HTTP/1.1 503\r\nServer: caf\xe9\r\nContent-Length: 0\r\n\r\n",
}


def read(kind: Any, answer: bytes) -> List[Any]:
    """Read an answer, and tell all that a POST needs to know of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.close()
        response = kind(ours, method="POST")
        response.begin()
        fields = response.fields if kind is Response else response.headers
        names = ("retry-after", "date", "server", "content-length")
        known = [response.status, response.will_close, response.length, response.chunked]
        headers = [(fields.get(name) or "").partition("\r\n")[0] for name in names]
        return [*known, *headers, response.read(), response.isclosed()]


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_read_as_by_the_standard_library(answer: bytes) -> None:
    """Status, headers, body, and whether the connection can be used again, are the same."""
    assert read(Response, answer) == read(http.client.HTTPResponse, answer)


def test_a_long_body_leaves_in_whatever_pieces_the_line_takes() -> None:
    """However little of head and body goes at once, every byte arrives, once and in order."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that the kernel allows
    ours.settimeout(5.0)
    head, body = os.urandom(50_000), os.urandom(300_000)
    received = bytearray()
    with ours, theirs:
        reader = threading.Thread(target=lambda: received.extend(theirs.makefile("rb").read()))
        reader.start()
        send(ours, head, body)
        ours.shutdown(socket.SHUT_WR)
        reader.join()
    assert received == head + body
