"""Commands run as people run them: with captured output, on a terminal, as another user."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, Dict

import pytest

TOP = Path(__file__).parent.parent
NOBODY = 65534


def on_a_terminal(*arguments: str, answer: str = "", **environment: str) -> str:
    """Run se3-uploader with a real terminal as its three streams; returns all that was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "se3_uploader", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=TOP,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, answer.encode())
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # the other side has closed
        pass
    os.close(ours)
    process.wait(20)
    return shown.decode()


def as_nobody(work: Callable[[], int]) -> int:
    """Do something as a user without rights; returns the exit code it returned."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.WEXITSTATUS(os.waitpid(child, 0)[1])


def let_in(folder: Path) -> None:
    """Let other users into a temporary folder of pytest, however deep xdist puts it."""
    for each in (folder, *folder.parents):
        if each == Path(tempfile.gettempdir()):
            break
        each.chmod(0o755)


def sizes(folder: Path) -> Dict[str, int]:
    """Name -> size of everything in a folder."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}
