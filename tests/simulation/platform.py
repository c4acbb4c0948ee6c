"""The platform of a simulation, and the network to it: every way an answer can come, or not."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Set, Tuple

import orjson

from se3_uploader.config import Endpoint
from se3_uploader.policy import Answer
from se3_uploader.sink import Delivery


class Crash(Exception):
    """The power went."""


@dataclass
class Arrival:
    """A request that the platform took in and accepted."""

    key: str
    serial: int
    known: bool
    """The uploader got the acceptance."""


WEATHERS = (
    "fine", "fine", "fine", "refused", "timeout", "500", "503", "429", "401", "400", "lost", "half",
    "slow", "garbage",
)  # fmt: skip


@dataclass
class Platform:
    """What one endpoint's platform did; oracles read it."""

    rng: random.Random
    weather: str = "fine"
    poison: Set[int] = field(default_factory=set)
    """Serials it rejects whatever the weather."""
    too_large: Set[int] = field(default_factory=set)
    """Serials whose picture it does not take."""
    arrivals: List[Arrival] = field(default_factory=list)
    rejections: Dict[int, int] = field(default_factory=dict)
    keys: Dict[int, Set[str]] = field(default_factory=dict)

    def receive(self, delivery: Delivery) -> Tuple[Answer, Optional[Arrival]]:
        """Answer one request; the second value is what was accepted of it."""
        event = orjson.loads(delivery.body)
        serial = int(event["identity_id"]) if "identity_id" in event else 0
        weather = self.weather
        if weather == "half":
            weather = self.rng.choice(("fine", "fine", "503", "lost", "timeout"))
        if weather == "refused":
            return Answer(fault="connection"), None
        if weather == "timeout":
            return Answer(fault="timeout"), None
        if weather == "garbage":
            return Answer(fault="protocol"), None
        self.keys.setdefault(serial, set()).add(delivery.key)
        if weather in ("500", "503", "429"):
            wait = self.rng.choice((None, 0.5, 7.0, 10_000.0))
            return Answer(status=int(weather), retry_after=wait), None
        if weather == "401":
            return Answer(status=401), None
        if weather == "400" or serial in self.poison:
            self.rejections[serial] = self.rejections.get(serial, 0) + 1
            return Answer(status=400, body=b"no"), None
        if serial in self.too_large and event.get("ext_data", {}).get("spot_pic"):
            return Answer(status=413), None
        arrival = Arrival(delivery.key, serial, weather != "lost")
        self.arrivals.append(arrival)
        if weather == "lost":
            return Answer(fault="timeout"), arrival
        return Answer(status=200, seconds=0.01), arrival


class Network:
    """Carries deliveries to platforms and answers back, in simulated time."""

    def __init__(self, rng: random.Random, monotonic: Callable[[], float]) -> None:
        self._rng = rng
        self._monotonic = monotonic
        self._order = itertools.count()
        self._answers: List[Tuple[float, int, SimulatedSink, int, Answer, Optional[Arrival]]] = []
        self.crash_next: Optional[str] = None
        """Crash at the next POST: before or after the platform got it."""

    def submit(self, sink: SimulatedSink, delivery: Delivery) -> None:
        """Send one delivery."""
        crash, self.crash_next = self.crash_next, None
        if crash == "before":
            raise Crash("before a POST")
        answer, arrival = sink.platform.receive(delivery)
        if crash == "after":
            if arrival:
                arrival.known = False
            raise Crash("after a POST")
        takes = self._rng.expovariate(20)
        if sink.platform.weather == "slow":
            takes += self._rng.uniform(0.5, 8)
        if answer.fault == "timeout":
            takes += 5
        at = self._monotonic() + takes
        heapq.heappush(self._answers, (at, next(self._order), sink, delivery.id, answer, arrival))

    def next_at(self) -> float:
        """When the next answer comes."""
        return self._answers[0][0] if self._answers else float("inf")

    def deliver_answers(self) -> None:
        """Hand over all answers that have come by now."""
        while self._answers and self._answers[0][0] <= self._monotonic():
            _, _, sink, number, answer, _ = heapq.heappop(self._answers)
            sink.collect(number, answer)

    def hang_up(self, sink: Optional[SimulatedSink] = None) -> None:
        """Drop the answers under way, of one sink or of all."""
        kept = []
        for item in self._answers:
            if sink is not None and item[2] is not sink:
                kept.append(item)
            elif item[5] is not None:
                item[5].known = False
        self._answers = kept
        heapq.heapify(self._answers)


class SimulatedSink:
    """In the place of sink.Sink."""

    def __init__(
        self, endpoint: Endpoint, collect: Callable[[int, Answer], None], network: Network,
        platform: Platform,
    ) -> None:  # fmt: skip
        self.endpoint = endpoint
        self.collect = collect
        self.platform = platform
        self._network = network

    def submit(self, delivery: Delivery) -> None:
        """Send a delivery."""
        self._network.submit(self, delivery)

    def close(self, timeout: float) -> None:
        """Abort what is in flight."""
        del timeout
        self._network.hang_up(self)
