"""A bare Debian 12 with a real systemd, booted in a container in a second."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Callable, List, Optional, Type

INSIDE = Path(__file__).parent / "inside"
PACKAGES = "systemd,systemd-sysv,dbus,python3,procps"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def unavailable() -> Optional[str]:
    """Why no container can run here, None where it can."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("systemd-nspawn", "mmdebstrap", "nsenter", "dpkg-deb"):
        if shutil.which(tool) is None:
            return f"needs {tool}: apt-get install systemd-container mmdebstrap"
    return None


def tree() -> Path:
    """The file system of the container, made once and kept outside the repository."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "se3-uploader"
    finished = base / "bookworm-service"
    if not finished.exists():
        base.mkdir(parents=True, exist_ok=True)
        making = base / f"bookworm-service.{os.getpid()}"
        subprocess.run(
            ["mmdebstrap", "-q", "--variant=minbase", f"--include={PACKAGES}", "bookworm", making],
            check=True,
        )
        making.rename(finished)
    return finished


def wait_for(what: str, happens: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something in the container happens; TimeoutError names it where it does not."""
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


class Box:
    """A booted container without a network; what happens inside is gone afterwards."""

    def __init__(self, dist: Path, log: Path) -> None:
        """Say what to boot: dist stands read-only at /dist, the folder inside/ at /inside."""
        self._command = [
            *("systemd-nspawn", "-q", "-D", str(tree()), "-b", "--volatile=overlay"),
            *("--register=no", "--keep-unit", "--private-network", "--console=pipe"),
            *(f"--bind-ro={dist}:/dist", f"--bind-ro={INSIDE}:/inside"),
        ]
        self._log = log

    def __enter__(self) -> Box:
        """Boot."""
        with self._log.open("w") as log:
            self._nspawn = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for("the container's first process", lambda: bool(self._children()))
        self._leader = self._children()[0]
        wait_for("systemd in the container", self._is_booted)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """Shut down as a machine does."""
        subprocess.run(["kill", "-s", "RTMIN+3", self._leader], check=False)
        self._nspawn.wait(30)

    def _children(self) -> List[str]:
        found = subprocess.run(
            ["pgrep", "-P", str(self._nspawn.pid)], capture_output=True, text=True, check=False
        )
        return found.stdout.split()

    def _is_booted(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False)
        return state.strip() in ("running", "degraded")

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command inside as root; returns what it wrote, errors included."""
        done = subprocess.run(
            ["nsenter", "-t", self._leader, "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--",
             "env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=200, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def sh(self, script: str, check: bool = True) -> str:
        """Run a shell script inside as root."""
        return self.run("sh", "-ec", script, check=check)

    def show(self, name: str, unit: str = "se3-uploader") -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "-P", name, unit).strip()

    def journal(self, unit: str = "se3-uploader") -> str:
        """What a unit and systemd said about it since boot."""
        return self.run("journalctl", "-q", "--no-pager", "-o", "cat", "-u", unit)
