"""The uploader of a simulation: its process starts, crashes and reloads on faulty storage."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Callable, Dict, Optional, Set, Tuple

from se3_uploader.config import Config, Endpoint
from se3_uploader.engine import Engine
from se3_uploader.engine.recorder import Clock
from se3_uploader.outbox import DEAD, Changes, Outbox, OutboxDamaged, OutboxError
from se3_uploader.source import SourceError
from se3_uploader.source.sqlite import SqliteSource

from .clock import SimulatedClock
from .oracle import copied, delivered
from .platform import Crash, Network, Platform, SimulatedSink

HOUSEKEEPING = 60.0
REFRESH = 5.0
REPORT = 20.0


class FaultyOutbox(Outbox):
    """The real outbox on a disk that fills up or rots, in a box whose power fails."""

    crash_next: Optional[str] = None
    full = False
    rotten = False
    started_over = False
    unwritten_reports: Set[int]

    def write(self, changes: Changes) -> None:
        """Write, or not."""
        self._try()
        crash, self.crash_next = self.crash_next, None
        if crash == "before":
            raise Crash("before a commit")
        super().write(changes)
        self.unwritten_reports.clear()
        if crash == "after":
            raise Crash("after a commit")

    def new_generation(self, source: str) -> Tuple[int, int]:
        """Write, or not."""
        self._try()
        return super().new_generation(source)

    def start_over(self) -> str:
        """Remember that everything is forgotten."""
        self.started_over = True
        return super().start_over()

    def _try(self) -> None:
        if self.rotten:
            self.rotten = False
            raise OutboxDamaged("the outbox is damaged")
        if self.full:
            raise OutboxError("the disk is full")


class FaultySource(SqliteSource):
    """The real source on a disk that cannot be read at times."""

    failing = False
    _read_time = None
    """No read is cut short because the machine of the simulation is busy."""

    def _open(self):  # type: ignore[no-untyped-def]
        if self.failing:
            raise SourceError("the disk does not answer")
        return super()._open()


class Process:
    """The daemon, as far as it is not the operating system's."""

    def __init__(
        self, config: Config, platforms: Dict[str, Platform], rng: random.Random,
        clock: SimulatedClock, tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Start it."""
        self.config = config
        self.whole = config
        """The configuration with all endpoints; a reload may take some away for a while."""
        self.platforms = platforms
        self.network = Network(rng, clock)
        self.crashes = self.reloads = self.most_undone = 0
        self.undone = dict.fromkeys(platforms, 0)
        """By endpoint, acceptances that the uploader heard of and that its account lacks: a crash
        or damage made it forget them, or an operator wanted them again."""
        self.safe: Dict[str, Set[int]] = {name: set() for name in platforms}
        """By endpoint, serials that had a copy in the outbox when the box deleted them."""
        self.reports = 0
        self.forgotten_reports: Set[int] = set()
        """Reports that were not written when the process crashed, or went with a damaged outbox."""
        self._unwritten_reports: Set[int] = set()
        self._rng = rng
        self._clock = clock
        self._tell = tell
        self._refresh_at = self._housekeeping_at = self._report_at = 0.0
        self._boot()

    def _boot(self) -> None:
        self.outbox = FaultyOutbox(self.config.outbox.path, self._clock.wall)
        self.outbox.unwritten_reports = self._unwritten_reports
        self.source = FaultySource(self.config.source)
        self._make_engine()

    def _make_engine(self) -> None:
        for name, platform in self.platforms.items():
            buried = copied(self.config.outbox.path, DEAD).get(name, set())
            # Where the clock went back there is no telling what was rejected since when.
            platform.restarted(set() if self._clock.went_back else buried)
        self.engine = Engine(
            self.config, self.source, self.outbox, self._make_sink,
            clock=Clock(self._clock.monotonic, self._clock.wall), random=self._rng.random,
        )  # fmt: skip

    def _make_sink(self, endpoint: Endpoint, collect: Callable[..., None]) -> SimulatedSink:
        if self.outbox.started_over:
            # Old sinks are closed and new ones are made: nothing is delivered by the new account.
            self._forget_everything()
        return SimulatedSink(endpoint, collect, self.network, self.platforms[endpoint.name])

    def _forget_everything(self) -> None:
        for name, platform in self.platforms.items():
            self.undone[name] = _known(platform)
            platform.restarted(set())
            self.safe[name].clear()
        self.forgotten_reports.update(range(self.reports + 1))

    def step(self) -> float:
        """Do what the loop of the daemon does once; returns seconds until something is due."""
        now = self._clock.now
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH
            self.engine.refresh()
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING
            self.engine.housekeeping()
        due = self.engine.step()
        if self.outbox.started_over:
            self._tell("the outbox was damaged and begins anew")
            self.outbox.started_over = False
        return min(due, self._refresh_at - now)

    def report_when_due(self) -> None:
        """Make a status report where it is time."""
        if self._clock.now >= self._report_at:
            self._report_at = self._clock.now + REPORT
            self.report()

    def report(self) -> None:
        """Make a status report."""
        self.reports += 1
        self._unwritten_reports.add(self.reports)
        self.engine.report({"report": self.reports})

    def is_idle(self) -> bool:
        """Has the engine nothing left to do?"""
        return self.engine.is_idle() and all(queue.is_idle() for queue in self.engine.queues)

    def crash(self, why: str) -> None:
        """Lose everything that is in memory, and start again."""
        self.crashes += 1
        self._tell(f"CRASH {why}")
        self.network.hang_up()
        self.outbox.close()
        self.source.close()
        self.forgotten_reports |= self._unwritten_reports
        self._unwritten_reports.clear()
        account = delivered(self.config.outbox.path)
        for name, platform in self.platforms.items():
            undone = _known(platform) - self.undone[name] - account.get(name, 0)
            self.undone[name] += undone
            if not self.outbox.full:  # else no receipt can have been written for a while
                self.most_undone = max(self.most_undone, undone)
        self._boot()

    def beside(self, action: Callable[[], object]) -> None:
        """Let another process change the outbox, and see which receipts it takes back."""
        before = delivered(self.config.outbox.path)
        action()
        after = delivered(self.config.outbox.path)
        for name, number in before.items():
            self.undone[name] += number - after[name]

    def reload(self, config: Optional[Config] = None) -> None:
        """As the daemon does it: finish what is in flight, then go on with another configuration.

        That is a random one unless it is given.
        """
        self.reloads += 1
        self.engine.stopping = True
        deadline = self._clock.now + 20
        while self.engine.in_flight() and self._clock.now < deadline:
            self.advance(self.step(), deadline)
        self.engine.flush()
        if self.engine.outbox_error:
            self.engine.stopping = False
            return
        self.engine.close(0.0)
        self.engine.flush()
        self.config = config or self._random_config()
        self._make_engine()

    def _random_config(self) -> Config:
        rng, events = self._rng, self.whole.history_event
        spot = rng.choice(("large", "small", "strip"))
        endpoints = tuple(
            replace(
                endpoint,
                pictures=replace(endpoint.pictures, spot_pic=spot),
                max_in_flight=rng.choice((1, 2, 4, 8)),
            )
            for endpoint in events.endpoints
        )
        self.whole = replace(self.whole, history_event=replace(events, endpoints=endpoints))
        some = tuple(endpoint for endpoint in endpoints if rng.random() < 0.8)
        return replace(self.whole, history_event=replace(events, endpoints=some or endpoints))

    def advance(self, due: float, until: float) -> None:
        """Let simulated time pass to whatever comes next."""
        now = self._clock.now
        step = min(now + max(due, 0.001), self.network.next_at(), until)
        self._clock.move_to(max(step, now + 0.0005))
        self.network.deliver_answers()

    def close(self) -> None:
        """End it."""
        self.outbox.close()
        self.source.close()


def _known(platform: Platform) -> int:
    return sum(arrival.known for arrival in platform.arrivals)
