"""TLS to the platform inside the TLS of a proxy, on a socket that does not block."""

from __future__ import annotations

import ssl
from typing import Any, Union

BLOCK = 16 * 1024
"""Bytes encrypted at once, one record of TLS."""


class TlsInTls:
    """What a line needs of a socket, over what urllib3 has made (urllib3.util.SSLTransport).

    Raises what ssl.SSLSocket raises, ssl.SSLWantReadError and SSLWantWriteError among it; send is
    then to be called again with the same data.
    """

    def __init__(self, made: Any) -> None:
        self._outer: ssl.SSLSocket = made.socket
        self._inner: ssl.SSLObject = made.sslobj
        self._incoming: ssl.MemoryBIO = made.incoming
        self._outgoing: ssl.MemoryBIO = made.outgoing
        self._encrypted = b""
        self._taken = 0
        """Bytes of the data given to send that are encrypted already."""

    def fileno(self) -> int:
        """Of the socket underneath."""
        return self._outer.fileno()

    def settimeout(self, seconds: float) -> None:
        """Of the socket underneath."""
        self._outer.settimeout(seconds)

    def send(self, data: Union[bytes, memoryview]) -> int:
        """Send the beginning of the data; returns how many bytes of it."""
        if not self._taken:
            self._taken = self._inner.write(data[:BLOCK])
        self._flush()
        sent, self._taken = self._taken, 0
        return sent

    def _flush(self) -> None:
        self._encrypted += self._outgoing.read()
        while self._encrypted:
            self._encrypted = self._encrypted[self._outer.send(self._encrypted) :]

    def recv(self, size: int) -> bytes:
        """Receive at most so many bytes, b"" at the end."""
        while True:
            try:
                return self._inner.read(size)
            except ssl.SSLWantReadError:
                try:
                    self._flush()  # an answer to the platform's TLS, if there is one
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass  # what cannot leave must not keep us from reading
                data = self._outer.recv(BLOCK)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            except ssl.SSLZeroReturnError:
                return b""

    def pending(self) -> int:
        """Bytes that have come and that the socket underneath knows nothing of any more."""
        return self._inner.pending() + self._incoming.pending + self._outer.pending()

    def close(self) -> None:
        """Close all of it."""
        self._outer.close()
