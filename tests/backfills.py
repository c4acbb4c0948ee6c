"""`se3-uploader backfill` as a process of its own, beside a site (tests/site.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

from se3_uploader.config import Config

from .site import Site, event

BASE = event(0)["timestamp"]
"""When event 0 happened, epoch milliseconds; each number is a millisecond later."""

_PROGRAM = """
import sys
from se3_uploader import backfill, cli
from se3_uploader.cli import progress
backfill.PATIENCE, progress.LINE_EVERY = float(sys.argv[1]), float(sys.argv[2])
sys.exit(cli.main(sys.argv[3:]))
"""


def span(first: int, after: int) -> List[str]:
    """The options for the events with numbers first <= number < after."""
    return [f"--since={BASE + first}", f"--until={BASE + after}"]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def objects(self, kind: str) -> List[Dict[str, Any]]:
        """What it said of a kind (plan, progress, summary) under --json."""
        found = (json.loads(line) for line in self.out.splitlines())
        return [each[kind] for each in found if kind in each]

    @property
    def plan(self) -> Dict[str, Any]:
        return self.objects("plan")[0]

    @property
    def summary(self) -> Dict[str, Dict[str, int]]:
        """Endpoint -> state -> number, of those states that any event is in."""
        (summary,) = self.objects("summary")
        return {
            each["name"]: {state: n for state, n in each.items() if state != "name" and n}
            for each in summary["endpoints"]
        }


def start(
    config: Config, *options: str, patience: float = 60.0, every: float = 10.0
) -> subprocess.Popen[str]:
    """Start the command; patience, and seconds between two lines, in place of its own."""
    command = [sys.executable, "-c", _PROGRAM, str(patience), str(every), "backfill"]
    return subprocess.Popen(
        [*command, "-c", config.path, *options], cwd=Path(__file__).parent.parent, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen[str], timeout: float = 60.0) -> Done:
    """Wait for its end."""
    out, err = process.communicate(timeout=timeout)
    return Done(process.returncode, out, err)


def backfill(config: Config, *options: str, **seconds: float) -> Done:
    """Run the command with --json to its end."""
    return end(start(config, "--json", *options, **seconds))


def filled(folder: Path, count: int, **changes: Any) -> Site:
    """A site whose box wrote events 1 to count in the past."""
    site = Site(folder)
    site.add(*(event(number, **changes) for number in range(1, count + 1)))
    return site
