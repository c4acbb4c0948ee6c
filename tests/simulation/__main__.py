"""Run seeds and tell the story of those that fail: python -m tests.simulation --seeds 1-2000."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from typing import Dict, List, Sequence, Tuple

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


def run_seeds(
    seeds: Sequence[int],
) -> Tuple[Dict[int, Tuple[List[str], List[str]]], Dict[str, int]]:
    """Run many seeds on all processors; returns the failed ones and the sums of the figures."""
    failed = {}
    sums: Dict[str, int] = {}
    with ProcessPoolExecutor(os.cpu_count(), initializer=_be_quiet) as pool:
        for seed, (wrong, told, figures) in zip(seeds, pool.map(run_seed, seeds, chunksize=8)):
            if wrong:
                failed[seed] = (wrong, told)
            for name, number in figures.items():
                sums[name] = sums.get(name, 0) + number
    return failed, sums


def _be_quiet() -> None:
    logging.disable(logging.CRITICAL)


def tell(seed: int, wrong: Sequence[str], told: Sequence[str]) -> str:
    """The story of a seed, what is wrong with it, and the command that tells it again."""
    lines = [f"Seed {seed} {'fails' if wrong else 'is good'}:", *(f"  {line}" for line in told)]
    lines += [f"  WRONG: {text}" for text in wrong]
    return "\n".join([*lines, f"  again: python -m tests.simulation --seeds {seed} --tell"])


def main() -> int:
    """Parse the seeds and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="1-2000", help="A-B, or one number")
    parser.add_argument("--tell", action="store_true", help="tell the story of every seed")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    if arguments.tell:
        _be_quiet()
        stories = {seed: run_seed(seed) for seed in seeds}
        for seed, (wrong, told, _) in stories.items():
            print(tell(seed, wrong, told))
        return 1 if any(wrong for wrong, *_ in stories.values()) else 0
    began = time.monotonic()
    failed, sums = run_seeds(seeds)
    for seed, (wrong, told) in failed.items():
        print(tell(seed, wrong, told), end="\n\n")
    figures = ", ".join(f"{number} {name}" for name, number in sums.items())
    print(
        f"{len(seeds)} seeds in {time.monotonic() - began:.0f} s: {figures}; {len(failed)} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
