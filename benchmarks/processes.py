"""Programs under measurement, and what /proc says of them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

TICK = 0.02
"""Seconds between two looks at a running program."""
SETTLE = 5.0
"""Seconds after the start until a daemon counts as idle."""
ROOT = Path(__file__).parent.parent


class Usage(NamedTuple):
    """What a program has used since it started."""

    cpu: float
    """Seconds, user and system, all threads."""
    peak_rss: int
    """Bytes, the greatest so far."""
    rss: int
    """Bytes now."""
    written: int
    """Bytes that the program made the kernel write to disks (/proc/PID/io write_bytes); 0 on a
    file system in memory."""
    wakeups: int
    """Voluntary context switches of the threads that still run."""


class Program:
    """A Python program of this repository, started now; also a context manager that ends it."""

    def __init__(self, arguments: List[str], log: Path) -> None:
        self.arguments, self.log = arguments, log
        self.started = time.monotonic()
        # As on a box: an installed package has its bytecode, and the unit sets this.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["MALLOC_ARENA_MAX"] = "1"
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT, env=environment, stdout=output, stderr=output,
            )  # fmt: skip

    def usage(self) -> Usage:
        """Measure now; after the program's end only cpu and written are known."""
        proc = Path("/proc", str(self.process.pid))
        status = _fields(proc / "status")
        switches = 0
        for task in proc.glob("task/*/status"):
            try:
                switches += int(_fields(task).get("voluntary_ctxt_switches", 0))
            except OSError:
                continue  # a thread that has just ended
        return Usage(
            # The CPU-time clock of another process, see clock_getcpuclockid(3).
            cpu=time.clock_gettime((~self.process.pid << 3) | 2),
            peak_rss=1024 * int(status.get("VmHWM", "0").split()[0]),
            rss=1024 * int(status.get("VmRSS", "0").split()[0]),
            written=int(_fields(proc / "io")["write_bytes"]),
            wakeups=switches,
        )

    def finish(self, *, stop: bool) -> Usage:
        """Wait for the end, asked for by SIGTERM if stop. RuntimeError: the exit code is not 0."""
        if stop:
            peak = self.usage().peak_rss
            self.process.send_signal(signal.SIGTERM)
        else:
            peak = 0
        pid = self.process.pid
        # WNOWAIT leaves the dead program unreaped, so that its counters can be read to the end.
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            peak = max(peak, self.usage().peak_rss)
            time.sleep(TICK)
        usage = self.usage()._replace(peak_rss=peak)
        if self.process.wait():
            raise RuntimeError(f"{self.arguments} failed: {self.log.read_text()[-2000:]}")
        return usage

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Platform:
    """The fast receiver in a process of its own; also a context manager that ends it."""

    def __init__(self, *, delay_ms: float = 0, identify: bool = False) -> None:
        command = [sys.executable, "-m", "benchmarks.receiver", "--delay-ms", str(delay_ms)]
        command += ["--identify"] * identify
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/HistoryEvent"

    def report(self) -> Dict[str, Any]:
        """What came so far, see receiver.Receiver.report."""
        return self._get("/report", timeout=30)

    def wait(self, events: int, timeout: float) -> Dict[str, Any]:
        """The report as soon as so many different events have come; TimeoutError after seconds."""
        return self._get(f"/wait/{events}", timeout)

    def _get(self, path: str, timeout: float) -> Dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer: Dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def _fields(path: Path) -> Dict[str, str]:
    """The lines ``name: value`` of a file under /proc."""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}
