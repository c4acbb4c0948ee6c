"""One seed's story: what happens to box, network, clock and process, while the engine runs."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from typing import Callable, Dict, List, Optional, Tuple

from se3_uploader import config
from se3_uploader.engine import Engine
from se3_uploader.outbox import Changes, Outbox, OutboxError
from se3_uploader.recorder import Clock
from se3_uploader.source import open_source

from .box import Box
from .oracle import accounts
from .platform import WEATHERS, Crash, Network, Platform, SimulatedSink

LONGEST = 2 * 3600.0
"""Simulated seconds after which everything must have healed."""


class FaultyOutbox(Outbox):
    """The real outbox on a disk that fills up, in a box whose power fails."""

    crash_next: Optional[str] = None
    full = False

    def write(self, changes: Changes) -> None:
        """Write, or not."""
        if self.full:
            raise OutboxError("the disk is full")
        crash, self.crash_next = self.crash_next, None
        if crash == "before":
            raise Crash("before a commit")
        super().write(changes)
        if crash == "after":
            raise Crash("after a commit")


class Story:
    """Everything that one seed decides."""

    def __init__(self, seed: int, folder: str) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.wall = 1_700_000_000.0
        self.told: List[str] = []
        self.crashes = 0
        self.reloads = 0
        self.folder = folder
        self.box = Box(folder, self.rng, lambda: self.wall)
        self.network = Network(self.rng, lambda: self.now)
        endpoints = tuple(
            config.Endpoint(
                kind="history_event", url=f"http://p{n}/", name=f"p{n}",
                max_in_flight=self.rng.choice((1, 2, 4, 8)),
            )
            for n in range(self.rng.choice((1, 1, 2, 3)))
        )  # fmt: skip
        self.platforms: Dict[str, Platform] = {e.name: Platform(self.rng) for e in endpoints}
        self.config = config.Config(
            path="",
            gateway=config.Gateway(dev_sno="SIM"),
            source=config.Source(url=f"sqlite:///{self.box.path}"),
            history_event=config.HistoryEvent(endpoints=endpoints),
            retry=config.Retry(base=1.0, cap=60.0),
            outbox=config.Outbox(
                path=os.path.join(folder, "outbox.db"),
                max_size=self.rng.choice((0, 2_000, 1_000_000)),
                min_free_disk=0,
            ),
        )
        self.undone = dict.fromkeys(self.platforms, 0)
        """By endpoint, acceptances that the uploader heard of and a crash made it forget."""
        self.most_undone = 0
        self._boot()

    def tell(self, what: str) -> None:
        """Remember what happened, for whoever has to find out why a seed fails."""
        self.told.append(f"{self.now:10.2f}  {what}")

    # The process

    def _boot(self) -> None:
        self.outbox = FaultyOutbox(self.config.outbox.path, lambda: self.wall)
        self.source = open_source(self.config.source)
        self._make_engine()

    def _make_engine(self) -> None:
        self.engine = Engine(
            self.config, self.source, self.outbox, self._make_sink,
            clock=Clock(lambda: self.now, lambda: self.wall), random=self.rng.random,
            wake=lambda: None,
        )  # fmt: skip

    def _make_sink(self, endpoint: config.Endpoint, collect: Callable[..., None]) -> SimulatedSink:
        return SimulatedSink(endpoint, collect, self.network, self.platforms[endpoint.name])

    def _crash(self, why: str) -> None:
        self.crashes += 1
        self.tell(f"CRASH {why}")
        self.network.hang_up()
        self.outbox.close()
        self.source.close()
        delivered = accounts(self.config.outbox.path)
        for name, platform in self.platforms.items():
            known = sum(arrival.known for arrival in platform.arrivals)
            undone = known - self.undone[name] - delivered.get(name, {}).get("delivered", 0)
            self.tell(f"{undone} acceptances of {name} were not written yet")
            self.most_undone = max(self.most_undone, undone)
            self.undone[name] += undone
        self._boot()

    def _reload(self) -> None:
        self.reloads += 1
        self.tell("reload")
        self.engine.stopping = True
        deadline = self.now + 20
        while self.engine.in_flight() and self.now < deadline:
            self._advance(self.engine.step(), deadline)
        self.engine.flush()
        if self.engine.outbox_error:
            self.engine.stopping = False
            return
        self.engine.close(0.0)
        self.engine.flush()
        policy = config.Pictures(spot_pic=self.rng.choice(("large", "small", "strip")))
        events = self.config.history_event
        self.config = replace(
            self.config,
            history_event=replace(
                events, endpoints=tuple(replace(e, pictures=policy) for e in events.endpoints)
            ),
        )
        self._make_engine()

    # Time

    def _advance(self, due: float, until: float) -> None:
        """Let simulated time pass to whatever comes next."""
        step = min(self.now + max(due, 0.001), self.network.next_at(), until)
        step = max(step, self.now + 0.0005)
        self.wall += step - self.now
        self.now = step
        self.network.deliver_answers()

    def run_until(self, until: float, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Let the engine run in simulated time."""
        while self.now < until and not stop():
            try:
                due = self.engine.step()
            except Crash as crash:
                self._crash(str(crash))
                due = 0.0
            self._advance(due, until)

    # The story

    def run(self) -> None:
        """Let accidents happen, then heal everything and wait until all is delivered."""
        for _ in range(self.rng.randint(5, 25)):
            self._accident()
            self.run_until(self.now + self.rng.choice((0.01, 0.3, 2, 10, 90)))
        self.tell("everything heals")
        self.outbox.full = False
        self.outbox.crash_next = self.network.crash_next = None
        for platform in self.platforms.values():
            platform.weather = "fine"
        self.run_until(self.now + 5)
        self.run_until(self.now + LONGEST, stop=self.engine_is_idle)
        self.engine.flush()

    def engine_is_idle(self) -> bool:
        """Has the engine nothing left to do?"""
        return self.engine.is_idle()

    def _accident(self) -> None:
        happens = self.rng.choice(self._accidents())
        self.tell(happens[0])
        try:
            happens[1]()
        except Crash as crash:
            self._crash(str(crash))

    def _accidents(self) -> List[Tuple[str, Callable[[], None]]]:
        rng, box = self.rng, self.box
        platform = rng.choice(list(self.platforms.values()))
        weather = rng.choice(WEATHERS)
        when = rng.choice(("before", "after"))
        count = rng.choice((1, 3, 20, 60))
        serial = rng.randint(1, len(box.events) + 10)
        jump = rng.choice((-3600 * 24 * 400, -90, 90, 3600 * 24 * 400))
        write = (f"write {count}", lambda: box.write(count))
        change = (f"weather {weather}", lambda: setattr(platform, "weather", weather))
        return [
            write, write, write, write, write, change, change, change, change,
            ("prune", box.prune), ("cut back", box.cut_back), ("wipe", box.wipe),
            ("touch", box.touch), ("replace", box.replace), ("back up", box.back_up),
            ("restore", box.restore), ("reload", self._reload),
            (f"poison {serial}", lambda: platform.poison.add(serial)),
            (f"too large {serial}", lambda: platform.too_large.add(serial)),
            (f"clock jumps {jump}", lambda: setattr(self, "wall", self.wall + jump)),
            (f"disk full {not self.outbox.full}",
             lambda: setattr(self.outbox, "full", not self.outbox.full)),
            (f"crash {when} a commit", lambda: setattr(self.outbox, "crash_next", when)),
            (f"crash {when} a POST", lambda: setattr(self.network, "crash_next", when)),
            ("crash now", lambda: self._crash("now")),
        ]  # fmt: skip

    def close(self) -> None:
        """Let go of everything and remove the files."""
        self.outbox.close()
        self.source.close()
        self.box.close()
        shutil.rmtree(self.folder, ignore_errors=True)
