"""One seed's story: what happens to box, network, clock and process, while the engine runs."""

from __future__ import annotations

import os
import random
import shutil
from typing import Callable, List, Tuple

from se3_uploader import config
from se3_uploader.outbox import letters
from se3_uploader.outbox.backfills import Backfills

from . import oracle
from .box import HUGE, Box
from .clock import SimulatedClock
from .platform import WEATHERS, Crash, Platform
from .process import Process

LONGEST = 2 * 3600.0
"""Simulated seconds after which everything must have healed."""
LOOKBACK = 60.0
AGES = 10**9
"""Seconds, more than between any two events."""
PLENTY = 50_000_000


class Story:
    """Everything that one seed decides."""

    def __init__(self, seed: int, folder: str) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.folder = folder
        self.told: List[str] = []
        self.clock = SimulatedClock()
        self.box = Box(folder, self.rng, self.clock)
        self.config = self._config()
        self.platforms = {
            endpoint.name: Platform(
                self.rng,
                explains=bool(endpoint.accept),
                strips=endpoint.pictures.when_too_large == "strip",
            )
            for endpoint in self.config.endpoints
        }
        self.process = Process(self.config, self.platforms, self.rng, self.clock, self.tell)

    def _config(self) -> config.Config:
        rng = self.rng
        status = tuple(self._endpoint("device_status", "status") for _ in range(rng.random() < 0.4))
        return config.Config(
            path="",
            gateway=config.Gateway(dev_sno="SIM"),
            source=config.Source(
                url=f"sqlite:///{self.box.path}",
                # A query says nothing about the order in which its rows become visible.
                table="event" if self.box.ordered else None,
                query=None if self.box.ordered else "SELECT * FROM event",
                lookback=LOOKBACK,
                poll_interval=rng.choice((1.0, 5.0)),
            ),
            history_event=config.HistoryEvent(
                endpoints=tuple(
                    self._endpoint("history_event", f"p{n}")
                    for n in range(rng.choice((1, 1, 2, 3)))
                )
            ),
            device_status=config.DeviceStatus(endpoints=status, keep=rng.choice(("latest", "all"))),
            retry=config.Retry(base=1.0, cap=60.0),
            outbox=config.Outbox(
                path=os.path.join(self.folder, "outbox.db"),
                max_size=rng.choice((0, 2_000, PLENTY)),
                min_free_disk=0,
            ),
        )

    def _endpoint(self, kind: str, name: str) -> config.Endpoint:
        rng = self.rng
        return config.Endpoint(
            kind=kind, url=f"http://{name}/", name=name,
            max_in_flight=rng.choice((1, 2, 4, 8)),
            accept=rng.choice(({}, {"status": 0})),
            pictures=config.Pictures(when_too_large=rng.choice(("strip", "strip", "dead"))),
        )  # fmt: skip

    def tell(self, what: str) -> None:
        """Remember what happened, for whoever has to find out why a seed fails."""
        self.told.append(f"{self.clock.now:10.2f}  {what}")

    # Time

    def run_until(self, until: float, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Let the uploader run in simulated time."""
        while self.clock.now < until and not stop():
            try:
                due = self.process.step()
            except Crash as crash:
                self.process.crash(str(crash))
                due = 0.0
            self.process.advance(due, min(until, self.box.next_at()))
            self.box.show_late()

    # The story

    def run(self) -> None:
        """Let accidents happen, then heal everything and wait until all is delivered."""
        for _ in range(self.rng.randint(5, 25)):
            self._attempt(self._accident)
            until = self.clock.now + self.rng.choice((0.01, 0.3, 2, 10, 90))
            while self.clock.now < until:
                self._attempt(self.process.report_when_due)
                self.run_until(min(until, self.clock.now + 20))
        self._heal()

    def _heal(self) -> None:
        self.tell("everything heals")
        process = self.process
        process.source.failing = process.outbox.full = process.outbox.rotten = False
        process.outbox.crash_next = process.network.crash_next = None
        for platform in self.platforms.values():
            platform.weather = "fine"
        self.run_until(self.clock.now + 5)
        process.reload(process.whole)
        process.report()
        self.run_until(self.clock.now + (5 if self.box.ordered else LOOKBACK))
        self.run_until(self.clock.now + LONGEST, stop=process.is_idle)
        process.engine.flush()
        for platform in self.platforms.values():
            platform.end_streak()

    def _attempt(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Crash as crash:
            self.process.crash(str(crash))

    def _accident(self) -> None:
        name, happens = self.rng.choice(self._accidents())
        self.tell(name)
        happens()

    def _accidents(self) -> List[Tuple[str, Callable[[], object]]]:
        rng, box, process = self.rng, self.box, self.process
        outbox, source, network = process.outbox, process.source, process.network
        name = rng.choice(list(self.platforms))
        platform = self.platforms[name]
        weather = rng.choice(WEATHERS)
        when = rng.choice(("before", "after"))
        count = rng.choice((1, 3, 20, 60))
        serial = rng.randint(1, len(box.events) + 10)
        jump = rng.choice((-3600 * 24 * 400, -90, 90, 3600 * 24 * 400))
        write = (f"write {count}", lambda: box.write(count))
        change = (f"{name} has weather {weather}", lambda: setattr(platform, "weather", weather))
        return [
            *[write] * 8, *[change] * 8,
            ("write huge ones", lambda: box.write(4, HUGE)),
            ("prune", lambda: self._delete(box.prune)),
            ("cut back", lambda: self._delete(box.cut_back)),
            ("wipe", lambda: self._delete(box.wipe)),
            ("replace", lambda: self._delete(box.replace)),
            ("restore", lambda: self._delete(box.restore)),
            ("back up", box.back_up), ("touch", box.touch), ("rename", box.rename),
            ("reload", process.reload),
            (f"{name} rejects {serial}", lambda: platform.poison.add(serial)),
            (f"{name} finds {serial} too large", lambda: platform.too_large.add(serial)),
            (f"clock jumps {jump}", lambda: self.clock.jump(jump)),
            (f"disk full {not outbox.full}", lambda: setattr(outbox, "full", not outbox.full)),
            ("outbox rots", lambda: setattr(outbox, "rotten", True)),
            (f"source fails {not source.failing}",
             lambda: setattr(source, "failing", not source.failing)),
            (f"crash {when} a commit", lambda: setattr(outbox, "crash_next", when)),
            (f"crash {when} a POST", lambda: setattr(network, "crash_next", when)),
            ("crash now", lambda: process.crash("now")),
            (f"backfill to {name}", lambda: process.beside(lambda: self._backfill(name, False))),
            (f"resend to {name}", lambda: process.beside(lambda: self._backfill(name, True))),
            ("retry dead ones", self._retry), ("discard dead ones", self._discard),
        ]  # fmt: skip

    def _delete(self, how: Callable[[], None]) -> None:
        copied = oracle.copied(self.config.outbox.path)
        before = {event.serial for event in self.box.living()}
        how()
        gone = before - {event.serial for event in self.box.living()}
        for name, serials in copied.items():
            self.process.safe[name] |= serials & gone

    # What other processes do to the outbox

    def _backfill(self, name: str, resend: bool) -> None:
        """Queue a part of the events that the box holds, as the command does."""
        until = int((self.clock.time + AGES) * 1000)
        since = int((self.clock.time - self.rng.choice((5, 100, AGES))) * 1000)
        if self.process.source.failing:
            return
        outbox = Backfills(self.config.outbox.path)
        try:
            endpoint = outbox.endpoints().get(name)
            generation = outbox.generation("events")
            if endpoint is not None and generation is not None and name != "status":
                refs = self.process.source.between(since, until, None, 1000).refs
                begun = outbox.begin(f"{len(self.told)}", since, until)
                outbox.enqueue(begun, endpoint, generation, refs, room=1000, strip=0, resend=resend)
        finally:
            outbox.close()

    def _dead(self) -> List[letters.Letter]:
        found = letters.Letters(self.config.outbox.path)
        try:
            return list(found.find(letters.Filter(), [letters.DEAD]))
        finally:
            found.close()

    def _retry(self) -> None:
        ids = [letter.id for letter in self._dead()]
        letters.retry(self.config.outbox.path, ids, self.clock.time)

    def _discard(self) -> None:
        for name, serials in oracle.copied(self.config.outbox.path, state=letters.DEAD).items():
            self.platforms[name].excused |= serials
        ids = [letter.id for letter in self._dead()]
        letters.discard(self.config.outbox.path, ids, self.clock.time)

    def close(self) -> None:
        """Let go of everything and remove the files."""
        self.process.close()
        self.box.close()
        shutil.rmtree(self.folder, ignore_errors=True)
