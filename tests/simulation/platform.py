"""The platform of a simulation, and the network to it: every way an answer can come, or not."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Callable, Dict, List, NamedTuple, Optional, Set

import orjson

from se3_uploader.config import Endpoint
from se3_uploader.policy import Answer
from se3_uploader.sink import Delivery

from .clock import SimulatedClock


class Crash(Exception):
    """The power went."""


@dataclass
class Arrival:
    """A request that the platform took in and accepted."""

    key: str
    serial: int
    known: bool
    """The uploader got the acceptance."""


class Reply(NamedTuple):
    """What a platform made of a request."""

    answer: Answer
    serial: int = 0
    arrival: Optional[Arrival] = None


WEATHERS = (
    "fine", "fine", "fine", "refused", "timeout", "500", "503", "429", "401", "400", "lost", "half",
    "slow", "crowded", "garbage",
)  # fmt: skip
MANY = 5
"""Different events rejected in a row, after which it must be the platform that is broken."""


@dataclass
class Platform:
    """What one endpoint's platform did; oracles read it."""

    rng: random.Random
    explains: bool = False
    """It says in the body of a 200 whether it accepted, {"status": 0}, as `accept` asks for."""
    strips: bool = True
    """What it finds too large is sent again without pictures; otherwise it is dead."""
    weather: str = "fine"
    poison: Set[int] = field(default_factory=set)
    """Serials it rejects whatever the weather."""
    too_large: Set[int] = field(default_factory=set)
    """Serials whose picture it does not take."""
    arrivals: List[Arrival] = field(default_factory=list)
    rejections: Dict[int, int] = field(default_factory=dict)
    keys: Dict[int, Set[str]] = field(default_factory=dict)
    excused: Set[int] = field(default_factory=set)
    """Serials that may have been given up as rejected by a platform that else works, or too large.
    """
    streak: Set[int] = field(default_factory=set)
    """Serials rejected since the uploader last heard of an acceptance."""

    def receive(self, delivery: Delivery) -> Reply:
        """Answer one request. A report's serial is its number, an event's its identity_id."""
        event = orjson.loads(delivery.body)
        serial = int(event.get("report") or event.get("identity_id") or 0)
        weather = self.weather
        if weather == "half":
            weather = self.rng.choice(("fine", "fine", "503", "lost", "timeout"))
        if weather == "refused":
            return Reply(Answer(fault="connection"))
        if weather == "timeout":
            return Reply(Answer(fault="timeout"))
        if weather == "garbage":
            return Reply(Answer(fault="protocol"))
        self.keys.setdefault(serial, set()).add(delivery.key)
        if weather in ("500", "503", "429"):
            wait = self.rng.choice((None, 0.5, 7.0, 10_000.0))
            return Reply(Answer(status=int(weather), retry_after=wait))
        if weather == "401":
            return Reply(Answer(status=401))
        if weather == "400" or serial in self.poison:
            self.rejections[serial] = self.rejections.get(serial, 0) + 1
            if self.explains:
                return Reply(Answer(status=200, body=b'{"status": 1}'), serial)
            return Reply(Answer(status=400, body=b"no"), serial)
        if serial in self.too_large and event.get("ext_data", {}).get("spot_pic"):
            return Reply(Answer(status=413), serial)
        arrival = Arrival(delivery.key, serial, weather != "lost")
        self.arrivals.append(arrival)
        if weather == "lost":
            return Reply(Answer(fault="timeout"), serial, arrival)
        body = b'{"status": 0}' if self.explains else b"ok"
        return Reply(Answer(status=200, body=body), serial, arrival)

    def heard(self, reply: Reply) -> None:
        """Take note of what the uploader learns, when it learns it."""
        status = reply.answer.status
        if status == 400 or (status == 200 and reply.arrival is None):
            self.streak.add(reply.serial)
        elif status == 200:
            self.end_streak()
        elif status == 413 and not self.strips:
            self.excused.add(reply.serial)

    def restarted(self, remembered: Set[int]) -> None:
        """A new start of the uploader, which knows no rejections but those of its dead letters."""
        self.excused |= self.streak - remembered
        self.streak &= remembered

    def end_streak(self) -> None:
        """An acceptance: what was rejected until now is settled."""
        if len(self.streak) < MANY:
            self.excused |= self.streak
        else:
            self.excused -= self.streak - self.poison
        self.streak = set()


class Network:
    """Carries deliveries to platforms and answers back, in simulated time."""

    def __init__(self, rng: random.Random, clock: SimulatedClock) -> None:
        self._rng = rng
        self._clock = clock
        self._order = itertools.count()
        self._coming: List[_Coming] = []
        self.crash_next: Optional[str] = None
        """Crash at the next POST: before or after the platform got it."""

    def submit(self, sink: SimulatedSink, delivery: Delivery) -> None:
        """Send one delivery."""
        crash, self.crash_next = self.crash_next, None
        if crash == "before":
            raise Crash("before a POST")
        reply = sink.platform.receive(delivery)
        if crash == "after":
            if reply.arrival:
                reply.arrival.known = False
            raise Crash("after a POST")
        takes = self._rng.expovariate(20)
        if sink.platform.weather == "slow":
            takes += self._rng.uniform(0.5, 8)
        if sink.platform.weather == "crowded":
            takes += 0.2 * sum(coming.sink is sink for coming in self._coming) ** 2
        if reply.answer.fault == "timeout":
            takes += 5
        reply = reply._replace(answer=replace(reply.answer, seconds=takes))
        at = self._clock.now + takes
        heapq.heappush(self._coming, _Coming(at, next(self._order), sink, delivery.id, reply))

    def next_at(self) -> float:
        """When the next answer comes."""
        return self._coming[0].at if self._coming else float("inf")

    def deliver_answers(self) -> None:
        """Hand over all answers that have come by now."""
        while self._coming and self._coming[0].at <= self._clock.now:
            coming = heapq.heappop(self._coming)
            coming.sink.platform.heard(coming.reply)
            coming.sink.collect(coming.id, coming.reply.answer)

    def hang_up(self, sink: Optional[SimulatedSink] = None) -> None:
        """Drop the answers under way, of one sink or of all."""
        kept = []
        for coming in self._coming:
            if sink is not None and coming.sink is not sink:
                kept.append(coming)
            elif coming.reply.arrival is not None:
                coming.reply.arrival.known = False
        self._coming = kept
        heapq.heapify(self._coming)


class SimulatedSink:
    """In the place of sink.Sink."""

    certificate_not_after = None

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


class _Coming(NamedTuple):
    """An answer under way."""

    at: float
    order: int
    sink: SimulatedSink
    id: int
    reply: Reply
