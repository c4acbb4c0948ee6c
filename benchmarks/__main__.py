"""Measure the uploader beside two scripts that do the same job.

``python -m benchmarks`` takes about twenty minutes and writes results/latest.md and latest.svg.
``--short`` takes less than three minutes, writes nothing, and exits with 1 only where a ratio fell
under half of the recorded one (results/recorded.json, made by ``--record``).

Run it without the extras ``mysql`` and ``postgres``: peewee imports the drivers that it finds, and
they cost the daemon 18 MB that a box with SQLite does not pay.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Callable, Dict, List

from benchmarks import daemon, report
from benchmarks.daemon import Finding
from benchmarks.draining import BARE, DURABLE, ONCE, Results, compare

RESULTS = Path(__file__).parent / "results"
RECORDED = RESULTS / "recorded.json"

MEASUREMENTS: Dict[str, Callable[[Path], List[Finding]]] = {
    "start": lambda folder: daemon.first_post(folder, rounds=7),
    "idle": lambda folder: daemon.idle(folder, seconds=30),
    "latency": lambda folder: daemon.latency(folder, n=300),
    "trickle": lambda folder: daemon.trickle(folder, seconds=30),
    "round_trip": lambda folder: daemon.round_trip(folder, n=1_000),
    "linearity": lambda folder: daemon.linearity(folder, few=10_000, many=1_000_000),
    "backlog": lambda folder: daemon.backlog(folder, n=100_000),
}
DRAINING = {"large": (3_000, True), "small": (10_000, False)}
"""Events, and whether they are of 160 KB."""


def full(folder: Path, wanted: List[str], rounds: int) -> None:
    """Make the measurements wanted and tell each as it is made; all of them make the page."""
    results: Dict[str, Results] = {}
    found: List[Finding] = []
    for size in DRAINING:
        if size in wanted:
            n, large = DRAINING[size]
            results[size] = compare(folder, n, large=large, rounds=rounds)
    found += report.findings(results)
    for finding in found:
        print(report.line(finding), flush=True)
    for name, measure in MEASUREMENTS.items():
        if name in wanted:
            for finding in measure(folder):
                found.append(finding)
                print(report.line(finding), flush=True)
    page = report.page(results, found, f"python -m benchmarks --rounds {rounds}")
    if set(wanted) != {*DRAINING, *MEASUREMENTS}:
        print(page)
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.md").write_text(page)
    (RESULTS / "latest.svg").write_text(report.plot(results))
    print(f"Written: {RESULTS / 'latest.md'} and latest.svg")


def short(folder: Path, *, record: bool) -> int:
    """Compare this machine's ratios with the recorded ones; 1 where one has collapsed."""
    measured = report.ratios(
        {
            "large": compare(folder, 400, large=True, rounds=3, contestants=(BARE, DURABLE, ONCE)),
            "small": compare(folder, 2_000, large=False, rounds=3, contestants=(BARE, ONCE)),
        }
    )
    if record:
        RECORDED.write_text(json.dumps(measured, indent=2) + "\n")
    recorded: Dict[str, float] = json.loads(RECORDED.read_text())
    collapsed = [name for name, ratio in recorded.items() if measured[name] < ratio / 2]
    for name, ratio in recorded.items():
        verdict = "COLLAPSED" if name in collapsed else "good"
        print(f"{name}: {measured[name]:.2f}, recorded {ratio:.2f}: {verdict}")
    return 1 if collapsed else 0


def main() -> int:
    """Run what was asked for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--record", action="store_true", help="make these ratios the recorded ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*DRAINING, *MEASUREMENTS],
        metavar="WHAT",
        help=", ".join([*DRAINING, *MEASUREMENTS]),
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="se3-bench-") as name:
        if options.short:
            return short(Path(name), record=options.record)
        full(Path(name), options.only or [*DRAINING, *MEASUREMENTS], options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
