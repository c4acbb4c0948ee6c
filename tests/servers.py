"""Real database servers for tests, on loopback, in a folder of their own, gone with it.

Each function is a context manager that yields a running Server, and raises Missing with the reason
where the server is not installed, so that a test can skip visibly.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, ContextManager, Dict, Iterator, List, Optional

import psutil


class Missing(Exception):
    """The server is not installed here."""


class Server:
    """A database server that a test may stop, kill and start again, always on the same port."""

    crash = signal.SIGKILL
    """The signal that ends it like a power cut."""

    def __init__(self, url: str, command: List[str], port: int, log: Path) -> None:
        self.url = url
        self.port = port
        self._command = command
        self._log = log
        self._process: Optional[subprocess.Popen[bytes]] = None
        self.ready: Callable[[], object] = self._accepts

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.ready()
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    story = self._log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{self._command[0]} did not start:\n{story}") from error
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it as its service would, and wait."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """End it at once, like a power cut."""
        if self._process is not None:
            self._process.send_signal(self.crash)
            self._process.wait()
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold all its processes still: connections stay up, and nothing answers."""
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        processes = [main, *main.children(recursive=True)]
        for process in processes:
            process.suspend()
        for process in processes:
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                while (thread / "stat").read_text().rpartition(")")[2].split()[0] not in "TtZX":
                    time.sleep(0.01)  # a thread may yet come to the end of what it does
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def _accepts(self) -> None:
        socket.create_connection(("127.0.0.1", self.port), 1).close()


@contextmanager
def mariadb(folder: Path) -> Iterator[Server]:
    """MariaDB with a database ``events`` and a user ``box`` who may do everything in it."""
    _driver("pymysql")
    install, daemon = _program("mariadb-install-db"), _program("mariadbd", "/usr/sbin/mariadbd")
    data = folder / "mariadb"
    subprocess.run(
        [install, "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"],
        check=True,
        capture_output=True,
    )
    port = free_port()
    command = [daemon, "--no-defaults", "--user=root", f"--datadir={data}", f"--port={port}"]
    command += [f"--socket={folder / 'm.sock'}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
    command += ["--innodb-flush-log-at-trx-commit=2", "--max-allowed-packet=64M"]
    server = Server(f"mysql://box:s3cret@127.0.0.1:{port}/events", command, port, folder / "m.log")

    def ready() -> None:
        import pymysql

        with pymysql.connect(unix_socket=str(folder / "m.sock"), user="root") as connection:
            cursor = connection.cursor()
            cursor.execute("CREATE DATABASE IF NOT EXISTS events CHARACTER SET utf8mb4")
            cursor.execute("GRANT ALL ON events.* TO box@'127.0.0.1' IDENTIFIED BY 's3cret'")

    server.ready = ready
    with _running(server):
        yield server


@contextmanager
def postgresql(folder: Path) -> Iterator[Server]:
    """PostgreSQL with a database ``events`` and a user ``box`` who owns it."""
    _driver("psycopg2")
    newest = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
    )
    if not newest:
        raise Missing("postgresql is not installed (apt-get install postgresql)")
    as_user: List[str] = []
    if os.getuid() == 0:
        if not shutil.which("setpriv"):
            raise Missing("setpriv is not installed, and PostgreSQL does not run as root")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    # Not in folder: pytest lets nobody but its own user into that.
    with tempfile.TemporaryDirectory(prefix="se3-uploader-postgresql-") as data:
        if as_user:
            shutil.chown(data, "postgres", "postgres")
        with _postgresql(as_user, newest[-1], data, folder / "p.log") as server:
            yield server


@contextmanager
def _postgresql(as_user: List[str], programs: Path, data: str, log: Path) -> Iterator[Server]:
    initdb = [*as_user, str(programs / "initdb"), "-D", data, "-U", "box", "-E", "UTF8"]
    initdb += ["--no-sync", "--locale=C.UTF-8", "-A", "trust"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/")
    port = free_port()
    command = [*as_user, str(programs / "postgres"), "-D", data, "-p", str(port), "-F"]
    command += ["-k", data, "-c", "listen_addresses=127.0.0.1"]
    url = f"postgresql://box:s3cret@127.0.0.1:{port}/events"
    server = Server(url, command, port, log)
    server.crash = signal.SIGQUIT  # after SIGKILL its children hold the port for a while

    def ready() -> None:
        import psycopg2

        connection = psycopg2.connect(host="127.0.0.1", port=port, user="box", dbname="postgres")
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = 'events'")
        if not cursor.fetchall():
            cursor.execute("CREATE DATABASE events")
        connection.close()

    server.ready = ready
    with _running(server):
        yield server


@contextmanager
def mongodb(folder: Path) -> Iterator[Server]:
    """A server of MongoDB's wire protocol, secantusdb (Python >= 3.10; small data only)."""
    _driver("pymongo")
    program = _program("secantusd-py", str(Path(sys.executable).with_name("secantusd-py")))
    port = free_port()
    command = [program, "--port", str(port), "--storage-path", str(folder / "mongo")]
    command += ["--sync-on-commit"]
    server = Server(f"mongodb://127.0.0.1:{port}/events", command, port, folder / "s.log")

    def ready() -> None:
        import pymongo

        with pymongo.MongoClient(server.url, serverSelectionTimeoutMS=500) as client:
            client.admin.command("ping")

    server.ready = ready
    with _running(server):
        yield server


SERVERS: Dict[str, Callable[[Path], ContextManager[Server]]] = {
    "mysql": mariadb,
    "postgresql": postgresql,
    "mongodb": mongodb,
}


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(server: Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop()


def _driver(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise Missing(f"the Python package {name} is not installed")


def _program(*names: str) -> str:
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise Missing(f"{names[0]} is not installed")
