"""Fuzz every target for so many seconds, two at a time, and print what came of it as Markdown.

    python -m tests.fuzz.report 600 > benchmarks/results/fuzz.md

What fails is left as a file `crash-…`, and the exit code is 1 then.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import NamedTuple

from .targets import TARGETS


class Run(NamedTuple):
    """How fuzzing a target went."""

    target: str
    inputs: int
    """Tried."""
    kept: int
    """Inputs that reached something new."""
    crashes: int


def fuzz(target: str, seconds: int) -> Run:
    """Fuzz a target; it stops at the first crash."""
    options = [f"-max_total_time={seconds}", "-print_final_stats=1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    told = done.stderr.decode(errors="replace")
    figures = dict(re.findall(r"^stat::(\w+): +(\d+)$", told, re.MULTILINE))
    return Run(
        target, int(figures["number_of_executed_units"]), int(figures["new_units_added"]),
        int(done.returncode != 0),
    )  # fmt: skip


def main(seconds: int) -> int:
    """Fuzz all targets and print the table; 1 where one crashed."""
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda target: fuzz(target, seconds), TARGETS))
    machine = f"Python {platform.python_version()}, atheris {version('atheris')}"
    print(f"# Fuzzing\n\nEach target for {seconds} seconds, two at a time; {machine}.\n")
    print("| target | inputs tried | inputs that reached something new | crashes |")
    print("|---|--:|--:|--:|")
    for run in runs:
        print(f"| `{run.target}` | {run.inputs:,} | {run.kept:,} | {run.crashes} |")
    return max(run.crashes for run in runs)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
