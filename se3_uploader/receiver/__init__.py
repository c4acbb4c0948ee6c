"""The test receiver: a platform to try the uploader against, and to see what arrives.

It needs the extra ``receiver`` (flask, waitress); the store can be read without it.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Callable, Optional, Union

from .intake import MAX_BODY
from .store import Report, Store

__all__ = ["Receiver", "ReceiverError", "Report", "Store", "serve"]

_THREADS = 16


class ReceiverError(Exception):
    """The receiver cannot start; the message says why and what to do."""


class Receiver:
    """The receiver in threads of this process; also a context manager.

    ``port`` 0 takes any free one. ``dir`` None stores in a temporary folder that goes with the
    receiver. For ``fail``, ``delay_ms`` and ``status`` see app.Trouble. Raises ReceiverError.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        dir: Optional[Union[str, Path]] = None,
        *,
        fail: float = 0.0,
        delay_ms: int = 0,
        status: Optional[int] = None,
    ) -> None:
        try:
            from waitress import create_server

            from .app import Trouble, create_app
        except ImportError as error:
            raise ReceiverError(
                f"The receiver needs {error.name}, which is not installed:"
                " pip install 'se3-uploader[receiver]'"
            ) from error
        logging.getLogger("waitress").setLevel(logging.ERROR)  # a burst is no news
        self._stopping = threading.Event()
        listener = _listen(host, port)
        address, self.port = listener.getsockname()[:2]
        self.url = f"http://[{address}]" if ":" in address else f"http://{address}"
        self.url += f":{self.port}"
        self._temporary = tempfile.TemporaryDirectory(prefix="se3-receiver-")
        try:
            self.store = Store(dir or self._temporary.name)
        except (OSError, sqlite3.Error) as error:
            listener.close()
            raise ReceiverError(
                f"The receiver cannot store in {dir or self._temporary.name}: {error}."
                " Choose a folder that can be written with --dir."
            ) from error
        self._server = create_server(
            create_app(
                self.store,
                Trouble(fail, delay_ms, status),
                self._stopping,
                local=ipaddress.ip_address(address).is_loopback,
            ),
            sockets=[listener],
            threads=_THREADS,
            max_request_body_size=2 * MAX_BODY,  # what is too large is read, so that 413 gets out
            clear_untrusted_proxy_headers=True,
            ident="se3-receiver",
        )
        self._thread = threading.Thread(target=self._server.run, name="receiver", daemon=True)

    def start(self) -> Receiver:
        """Answer from now on; returns at once."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Answer the requests under way (a delay ends at once), free the port, close the store."""
        self._stopping.set()
        self._server.task_dispatcher.shutdown()
        if self._thread.is_alive():
            self._server.trigger.pull_trigger(self._close_sockets)
            self._thread.join()
        else:
            self._close_sockets()
        self.store.close()
        self._temporary.cleanup()

    def _close_sockets(self) -> None:
        """With nothing left to watch, waitress's loop ends."""
        self._server.asyncore.close_all(self._server._map)

    def __enter__(self) -> Receiver:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    host: str,
    port: int,
    dir: Optional[str],
    *,
    fail: float,
    delay_ms: int,
    status: Optional[int],
    ready: Callable[[str], None],
) -> None:
    """Run the receiver until SIGTERM or SIGINT; call it in the main thread.

    ``ready`` gets the lines that say where the receiver is and where it stores, once it answers.
    Raises ReceiverError.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Receiver(host, port, dir, fail=fail, delay_ms=delay_ms, status=status) as receiver:
        until = "" if dir else ", until the receiver stops (--dir DIR keeps it)"
        ready(f"The receiver's page: {receiver.url}/")
        ready(f"Events go to {receiver.url}/HistoryEvent, reports to {receiver.url}/DeviceStatus")
        ready(f"What arrives is stored in {receiver.store.path}{until}")
        stop.wait()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "another program listens there. Stop it, or choose another port with --port."
        elif error.errno == errno.EACCES:
            why = "ports below 1024 are for root. Choose another one with --port."
        else:
            why = f"{error.strerror}. Choose an address of this machine with --host."
        raise ReceiverError(f"The receiver cannot listen on {host}, port {port}: {why}") from error
