"""PURE: the platform's answer, read from what comes of it, in pieces of whatever size.

The standard library's reader waits for its socket, and has headers parsed like those of an e-mail,
which takes longer than all the rest of a POST.
"""

from __future__ import annotations

import http.client
import re
import time
from email.utils import parsedate_to_datetime
from typing import Dict, Generator, Mapping, NamedTuple, Optional

MAX_BODY = 64 * 1024
"""Bytes of an answer's body that are read and kept."""

MAX_HEADERS, MAX_LINE = 100, 64 * 1024
"""Headers of an answer, and bytes of one of them, as in the standard library."""

MAX_INTERIM = 100
"""Answers that only promise another one."""

MAX_RETRY_AFTER = 86400.0
"""Seconds: a platform that asks us to wait longer is taken to mean a day."""

_STATUS_LINE = re.compile(rb"HTTP/1\.(\d)\s+([1-9]\d\d)(\s.*)?")
_CHUNK_SIZE = re.compile(rb"\s*([0-9a-fA-F]{1,15})\s*(;.*)?")

Steps = Generator[None, None, None]
"""Reads on each time when more has come."""


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """By their names in lower case; of those with the same name the first."""
    body: bytes
    """At most MAX_BODY bytes, undecoded; b"" where it broke off."""
    broken: Optional[Exception]
    """Why the body broke off; None where it did not."""
    reusable: bool
    """May the connection be used again: nothing more is to come, and none will be closed?"""


class AnswerReader:
    """Reads one answer."""

    begun = False
    """Has anything come?"""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False
        self._body = bytearray()
        self._reading = self._read()
        next(self._reading)

    def feed(self, data: bytes) -> Optional[Reply]:
        """Take what has come, b"" for the end of the connection; None while more is to come.

        Raises http.client.HTTPException for what is no answer, ConnectionError where the connection
        ends before the body does.
        """
        self._buffer += data
        self._ended = not data
        self.begun |= bool(data)
        try:
            next(self._reading)
        except StopIteration as done:
            reply: Reply = done.value
            return reply
        return None

    def fail(self, error: Exception) -> Optional[Reply]:
        """The connection failed: the reply where only its body is missing, None where more is."""
        try:
            self._reading.throw(error)
        except StopIteration as done:
            reply: Reply = done.value
            return reply
        except Exception:
            return None
        return None

    def _read(self) -> Generator[None, None, Reply]:
        for _ in range(MAX_INTERIM):
            line = yield from self._first_line()
            begun = _STATUS_LINE.fullmatch(line)
            if begun is None:
                raise http.client.BadStatusLine("the first line of an answer is none")
            status = int(begun[2])
            fields = yield from self._fields()
            if status >= 200:
                break
            if status == http.client.SWITCHING_PROTOCOLS:
                raise http.client.HTTPException("another protocol, which nobody asked for")
        else:
            raise http.client.HTTPException(f"more than {MAX_INTERIM} interim answers")
        connection = fields.get("connection", "").lower()
        kept = "close" not in connection if begun[1] != b"0" else "keep-alive" in connection
        try:
            yield from self._read_body(status, fields)
        except _CutOff:
            kept = False
        except Exception as error:
            return Reply(status, fields, b"", error, False)
        return Reply(status, fields, bytes(self._body), None, kept and not self._buffer)

    def _first_line(self) -> Generator[None, None, bytes]:
        try:
            line = yield from self._line()
        except ConnectionAbortedError:
            if not self._buffer.startswith(b"HTTP/"[: len(self._buffer)]):
                raise http.client.BadStatusLine("the first line of an answer is none") from None
            raise
        return line

    def _line(self) -> Generator[None, None, bytes]:
        """Return the next line, without its end."""
        while True:
            end = self._buffer.find(b"\n", 0, MAX_LINE + 1)
            if end >= 0:
                break
            if len(self._buffer) > MAX_LINE:
                raise http.client.LineTooLong("header line")
            if self._ended:
                raise ConnectionAbortedError("the answer broke off")
            yield
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.rstrip(b"\r")

    def _fields(self) -> Generator[None, None, Mapping[str, str]]:
        """Return the headers up to the empty line."""
        fields: Dict[str, str] = {}
        for _ in range(MAX_HEADERS):
            line = yield from self._line()
            if not line:
                return fields
            name, _, value = line.decode("latin-1").partition(":")
            if not name.startswith((" ", "\t")):  # else the line goes on with the one above
                fields.setdefault(name.strip().lower(), value.strip())
        raise http.client.HTTPException(f"more than {MAX_HEADERS} headers")

    def _read_body(self, status: int, fields: Mapping[str, str]) -> Steps:
        """Read the body; raises _CutOff where it is longer than what is kept, or has no end."""
        length = fields.get("content-length", "")
        if status in (http.client.NO_CONTENT, http.client.NOT_MODIFIED):
            return
        if fields.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunks()
        elif length.isdecimal() and len(length) < 20:
            yield from self._take(int(length))
        else:
            while True:  # until the platform hangs up
                yield from self._take(len(self._buffer))
                if self._ended:
                    raise _CutOff
                yield

    def _chunks(self) -> Steps:
        size = -1
        while size:
            line = yield from self._line()
            told = _CHUNK_SIZE.fullmatch(line)
            if told is None:
                raise http.client.HTTPException("a chunk without a size")
            size = int(told[1], 16)
            yield from self._take(size)
            if size and (yield from self._line()):
                raise http.client.HTTPException("a chunk is longer than it says")
        yield from self._fields()

    def _take(self, count: int) -> Steps:
        """Move so many bytes to the body; raises ConnectionError where they do not come."""
        while count:
            piece = self._buffer[: min(count, MAX_BODY - len(self._body))]
            self._body += piece
            del self._buffer[: len(piece)]
            count -= len(piece)
            if count and len(self._body) == MAX_BODY:
                raise _CutOff
            if count and self._ended:
                raise ConnectionAbortedError("the answer broke off")
            if count:
                yield


class _CutOff(Exception):
    """The body is not read on, and so the connection is of no more use."""


def retry_after(headers: Mapping[str, str]) -> Optional[float]:
    """Read Retry-After, seconds or a date, as seconds from now; None where there is none.

    A date is compared with the answer's own Date, as a box's clock may be years off.
    """
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        if value.isdigit():
            seconds = float(value[:12])
        else:
            until = parsedate_to_datetime(value).timestamp()
            date = headers.get("date")
            seconds = until - (parsedate_to_datetime(date).timestamp() if date else time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
