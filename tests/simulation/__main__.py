"""Run seeds and tell the story of those that fail: python -m tests.simulation --seeds 1-2000."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from typing import Dict, List, Tuple

from . import oracle
from .story import Story


def run_seed(seed: int) -> Tuple[List[str], List[str], Dict[str, int]]:
    """Run one seed; returns what is wrong, the story, and figures of what happened."""
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    story = Story(seed, tempfile.mkdtemp(prefix=f"seed-{seed}-", dir=home))
    try:
        try:
            story.run()
        except Exception:
            return [traceback.format_exc()], story.told, {}
        figures = {
            "events": len(story.box.events),
            "arrivals": sum(len(p.arrivals) for p in story.platforms.values()),
            "crashes": story.process.crashes,
            "reloads": story.process.reloads,
        }
        return oracle.judge(story), story.told, figures
    finally:
        story.close()


def run_seeds(seeds: List[int]) -> Tuple[Dict[int, Tuple[List[str], List[str]]], Dict[str, int]]:
    """Run many seeds on all processors; returns the failed ones and the sums of the figures."""
    failed = {}
    sums: Dict[str, int] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for seed, (wrong, told, figures) in zip(seeds, pool.map(run_seed, seeds, chunksize=8)):
            if wrong:
                failed[seed] = (wrong, told)
            for name, number in figures.items():
                sums[name] = sums.get(name, 0) + number
    return failed, sums


def main() -> int:
    """Parse the seeds and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="1-2000", help="A-B, or one number")
    first, _, last = parser.parse_args().seeds.partition("-")
    seeds = list(range(int(first), int(last or first) + 1))
    began = time.monotonic()
    failed, sums = run_seeds(seeds)
    for seed, (wrong, told) in failed.items():
        print(f"\nSeed {seed} fails:")
        print("\n".join(f"  {line}" for line in told))
        print("\n".join(f"  WRONG: {text}" for text in wrong))
    figures = ", ".join(f"{number} {name}" for name, number in sums.items())
    print(
        f"{len(seeds)} seeds in {time.monotonic() - began:.0f} s: {figures}; {len(failed)} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
