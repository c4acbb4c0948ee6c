"""sink/answer.py: an answer reads as by the standard library, in whatever pieces it comes."""

from __future__ import annotations

import http.client
import socket
from typing import Any, List

import pytest

from se3_uploader.sink.answer import AnswerReader, Reply

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


NAMES = ("retry-after", "date", "server", "content-length")


def expected(answer: bytes) -> List[Any]:
    """All that a POST needs to know of an answer, as the standard library reads it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.close()
        response = http.client.HTTPResponse(ours, method="POST")
        response.begin()
        headers = [(response.headers.get(name) or "").partition("\r\n")[0] for name in NAMES]
        return [response.status, not response.will_close, *headers, response.read()]


def known(reply: Reply) -> List[Any]:
    """The same of ours."""
    headers = [reply.headers.get(name) or "" for name in NAMES]
    return [reply.status, reply.reusable, *headers, reply.body]


def read(pieces: List[bytes]) -> Reply:
    """Read an answer that comes in pieces, and then the end of the connection."""
    reader = AnswerReader()
    for piece in [*pieces, b""]:
        reply = reader.feed(piece)
        if reply is not None:
            return reply
    raise AssertionError("the answer has no end")


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_read_as_by_the_standard_library(answer: bytes) -> None:
    """Status, headers, body, and whether the connection can be used again, are the same."""
    assert known(read([answer])) == expected(answer)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_may_come_in_any_pieces(answer: bytes) -> None:
    """Wherever an answer is broken in two, or byte by byte, it reads the same."""
    if len(answer) > 1000:
        pytest.skip("one of a thousand digits is like the others")
    whole = read([answer])
    for place in range(1, len(answer)):
        assert read([answer[:place], answer[place:]]) == whole
    assert read([answer[place : place + 1] for place in range(len(answer))]) == whole


def test_more_than_the_answer_spoils_the_connection() -> None:
    """Bytes behind an answer are no part of it, and the connection is not used again."""
    reply = AnswerReader().feed(ANSWERS["usual"] + b"HTTP/1.1 200 OK\r\n")
    assert reply is not None
    assert (reply.body, reply.reusable) == (b"{}", False)


@pytest.mark.parametrize(
    ("beginning", "status"),
    [(b"HTTP/1.1 200 OK\r\nServ", None), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", 200)],
)
def test_a_connection_that_fails_in_an_answer(beginning: bytes, status: int) -> None:
    """Once the body has begun there is a reply, without a body; before that there is none."""
    reader = AnswerReader()
    assert reader.feed(beginning) is None
    error = TimeoutError()
    reply = reader.fail(error)
    assert (reply and reply.status) == status
    if reply is not None:
        assert (reply.body, reply.broken, reply.reusable) == (b"", error, False)


def test_an_answer_that_ends_in_its_headers_is_none() -> None:
    """The standard library takes the end of the connection for that of the headers; we do not."""
    reader = AnswerReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Le")
    with pytest.raises(ConnectionError):
        reader.feed(b"")


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_answers_are_passed_over(status: int) -> None:
    """Whatever a platform promises first, the final answer counts (RFC 9110, section 15.2)."""
    interim = b"HTTP/1.1 %d Soon\r\nContent-Length: 7\r\nConnection: close\r\n\r\n" % status
    assert read([interim + ANSWERS["usual"]]) == read([ANSWERS["usual"]])


@pytest.mark.parametrize("rest", [b"", b"\r", b"HTTP/1.1 200 OK\r\n\r"])
def test_nothing_counts_as_a_line_without_its_end(rest: bytes) -> None:
    """A connection that ends in the middle of a head brought no answer."""
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        read([rest])
