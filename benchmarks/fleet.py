"""Ten thousand boxes come back after an outage of their platform: python -m benchmarks.fleet

No process and no network: virtual time, and the very functions of se3_uploader.policy that decide
when a box sends and how much. Writes fleet.svg (arrivals per second) and fleet.json (figures).
"""

from __future__ import annotations

import heapq
import json
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from se3_uploader import policy
from se3_uploader.config import Retry
from se3_uploader.policy import Answer, Health

BOXES = 10_000
BACKLOG = 30
"""Events that wait in each box when the platform is back."""
OUTAGE = 1800.0
LATENCY = 0.2
"""Seconds that the platform takes for an answer."""
MAX_IN_FLIGHT = 4
RETRY = Retry()
RESULTS = Path(__file__).parent / "results"


@dataclass
class Box:
    """One endpoint's queue of one box, as the courier works it."""

    left: int = BACKLOG
    in_flight: int = 0
    health: Health = field(default_factory=Health)
    last_attempt: float = 0.0
    longest_gap: float = 0.0
    """Seconds without an attempt since the platform is back, while there was something to send."""
    asleep: bool = False
    """An alarm for next_attempt is set."""


@dataclass
class Platform:
    """Down until OUTAGE, then answers so many requests a second and 503 to the rest."""

    capacity: Optional[int] = None
    retry_after: Optional[float] = None
    arrivals: Counter[int] = field(default_factory=Counter)
    accepted: Counter[int] = field(default_factory=Counter)

    def answer(self, now: float) -> Answer:
        """Take a request in."""
        if now < OUTAGE:
            return Answer(fault="connection")
        second = int(now - OUTAGE)
        self.arrivals[second] += 1
        if self.capacity is not None and self.accepted[second] >= self.capacity:
            return Answer(status=503, retry_after=self.retry_after)
        self.accepted[second] += 1
        return Answer(status=200, seconds=LATENCY)


class Fleet:
    """All boxes and their platform, from the beginning of the outage to the last delivery."""

    def __init__(self, platform: Platform, seed: int = 1) -> None:
        self._platform = platform
        self._rng = random.Random(seed)
        self._boxes = [Box() for _ in range(BOXES)]
        self._events: List[Tuple[float, int, int, int, Optional[Answer]]] = []
        """(second, order, number of the box, round it was sent in, answer or None: an alarm)."""
        self._order = 0
        # In each box something happens within a minute, and finds the platform gone.
        for number in range(BOXES):
            self._at(self._rng.uniform(0, 60), number, 0, None)

    def _at(self, second: float, number: int, sent_in: int, answer: Optional[Answer]) -> None:
        self._order += 1
        heapq.heappush(self._events, (second, self._order, number, sent_in, answer))

    def run(self) -> float:
        """Let it all happen.

        Returns the seconds from the end of the outage to
        the last delivery.
        """
        now = 0.0
        while self._events:
            now, _, number, sent_in, answer = heapq.heappop(self._events)
            box = self._boxes[number]
            if answer is None:
                box.asleep = False
            else:
                box.in_flight -= 1
                self._judge(box, answer, sent_in, now)
            self._send(box, number, now)
        return now - OUTAGE

    def _judge(self, box: Box, answer: Answer, sent_in: int, now: float) -> None:
        verdict = policy.judge(answer, {})
        if verdict.outcome == policy.DELIVERED:
            box.left -= 1
            box.health = policy.accepted(box.health, MAX_IN_FLIGHT, answer.seconds)
        else:
            box.health = policy.failed(
                box.health, verdict.outcome, answer, verdict.reason, sent_in, RETRY,
                self._rng.random(), now, now,
            )  # fmt: skip

    def _send(self, box: Box, number: int, now: float) -> None:
        slots = policy.slots(box.health, MAX_IN_FLIGHT, box.in_flight, now)
        for _ in range(min(slots, box.left - box.in_flight)):
            if now > OUTAGE:
                box.longest_gap = max(box.longest_gap, now - max(OUTAGE, box.last_attempt))
            box.last_attempt = now
            box.in_flight += 1
            answer = self._platform.answer(now)
            self._at(now + LATENCY, number, box.health.round, answer)
        if box.left > box.in_flight and box.health.next_attempt > now and not box.asleep:
            box.asleep = True
            self._at(box.health.next_attempt, number, 0, None)

    @property
    def longest_gap(self) -> float:
        """The longest time that a box with a backlog left the platform alone, in seconds."""
        return max(box.longest_gap for box in self._boxes)


def simulate(name: str, platform: Platform) -> Dict[str, Any]:
    """Run a fleet; returns its figures."""
    fleet = Fleet(platform)
    end = fleet.run()
    arrivals = [platform.arrivals[second] for second in range(int(end) + 1)]
    mean = sum(arrivals) / len(arrivals)
    return {
        "name": name,
        "recovered_s": round(end, 1),
        "mean_per_s": round(mean, 1),
        "peak_per_s": max(arrivals),
        "peak_over_mean": round(max(arrivals) / mean, 2),
        "refused": sum(arrivals) - BOXES * BACKLOG,
        "longest_wait_s": round(fleet.longest_gap, 1),
        "arrivals": arrivals,
    }


SCENARIOS = {
    "a platform without limit": Platform(),
    "800 requests a second, 503 beyond": Platform(800),
    "300 requests a second, 503 beyond": Platform(300),
    "the same with Retry-After: 30": Platform(300, 30.0),
}
WIDTH, HEIGHT, LEFT, GAP = 760, 110, 60, 44


def draw(findings: List[Dict[str, Any]]) -> str:
    """Arrivals per second of each scenario below one another, as SVG."""
    longest = max(len(finding["arrivals"]) for finding in findings)
    parts = []
    for place, finding in enumerate(findings):
        top = GAP + place * (HEIGHT + GAP)
        most = finding["peak_per_s"]
        points = " ".join(
            f"{LEFT + second * WIDTH / longest:.1f},{top + HEIGHT * (1 - count / most):.1f}"
            for second, count in enumerate(finding["arrivals"])
        )
        mean = top + HEIGHT * (1 - finding["mean_per_s"] / most)
        end, base = LEFT + WIDTH, top + HEIGHT
        parts += [
            f'<text x="{LEFT}" y="{top - 10}">{finding["name"]}: peak {most}/s, mean'
            f" {finding['mean_per_s']:.0f}/s, all delivered after {finding['recovered_s']:.0f} s"
            "</text>",
            f'<text x="{LEFT - 6}" y="{top + 5}" text-anchor="end">{most}</text>',
            f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">0</text>',
            f'<path d="M{LEFT} {base}H{end}" stroke="#999"/>',
            f'<path d="M{LEFT} {mean:.1f}H{end}" stroke="#999" stroke-dasharray="4"/>',
            f'<polyline points="{points}" fill="none" stroke="#06c"/>',
        ]
    height = GAP + len(findings) * (HEIGHT + GAP)
    parts.append(
        f'<text x="{LEFT}" y="{height - 12}">seconds since the platform is back: 0 to {longest}.'
        f" {BOXES} boxes with {BACKLOG} events each; dashed: the mean.</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}"'
        ' font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def main() -> int:
    """Run all scenarios; 1 where a peak reaches twice the mean, or a box waits beyond the cap."""
    findings = []
    for name, platform in SCENARIOS.items():
        findings.append(simulate(name, platform))
        print({key: value for key, value in findings[-1].items() if key != "arrivals"}, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fleet.svg").write_text(draw(findings), "utf-8")
    figures = [{k: v for k, v in each.items() if k != "arrivals"} for each in findings]
    (RESULTS / "fleet.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    good = all(
        each["peak_over_mean"] < 2 and each["longest_wait_s"] <= RETRY.cap + 2 * LATENCY
        for each in findings
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
