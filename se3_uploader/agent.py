"""The process around the engine: start, the loop, signals, reload, status reports, a clean stop."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Mapping, Optional, Tuple

from . import config as configuration
from . import device_status, log, memory, policy, sdnotify
from .config import Config
from .engine import Engine
from .engine.recorder import Clock
from .outbox import Outbox, OutboxDamaged, quarantine
from .sink import Sink
from .source import SourceError, open_source
from .wake import Wake

if TYPE_CHECKING:
    from .device_status.gateway import Reader
    from .metrics import Metrics

OK, PROBLEM, TEMPORARY = 0, 1, 75
STOP_WITHIN = 8.0
"""Seconds in which what is in flight is finished, at a stop and at a reload."""
REFRESH = 1.0
"""Seconds between two looks at what other processes put into the outbox."""
START_PATIENCE = 60.0
"""Seconds a start waits for the event database; then the daemon waits on, and boot need not."""
HOUSEKEEPING = 60.0
GIVE_BACK = 60.0
"""Seconds at least between two times that memory is given back, each after some work."""
NEW_EVENTS = 1000
"""Rows in which capture devices are looked for by the probe seen: since the last report."""
LONGEST_COLLECTION = 1.8
"""Seconds that reading the box and probing its capture devices may take."""
ATTEMPTS_ONCE = 5
"""Failed rounds after which `run --once` leaves an endpoint for another time."""
PATIENCE_ONCE = 15.0
"""Seconds `run --once` waits for an endpoint's next attempt, or for the event database."""


def clock() -> Clock:
    """The real one."""
    return Clock(time.monotonic, time.time)


def open_outbox(path: str) -> Outbox:
    """Open the outbox; one that is damaged is moved aside first. Raises OutboxError."""
    try:
        return Outbox(path, time.time)
    except OutboxDamaged as error:
        aside = quarantine(path, time.time)
        log.error(
            f"{error}. It was moved aside, and every event the source still holds is sent again"
            " under its old idempotency key",
            kept_as=aside,
        )
        return Outbox(path, time.time)


def run_once(config: Config) -> int:
    """Take in what the database holds now, deliver it, and return the exit code.

    0 all delivered, 75 something is still pending, 1 something is dead or was lost. Raises
    OutboxError, SourceError.
    """
    outbox = open_outbox(config.outbox.path)
    delivered_before, lost_before = outbox.total("delivered"), outbox.total("lost")
    wake = Wake(())
    source = open_source(config.source)
    engine = Engine(
        config, source, outbox, partial(Sink, wake), clock=clock(), random=random.random
    )
    began = time.monotonic()
    try:
        while not _is_done(engine, began):
            wake.wait(min(1.0, engine.step()))
        engine.flush()
        engine.copy_all()
        young = engine.unsettled()
    finally:
        engine.close(STOP_WITHIN)
        engine.flush()
        source.close()
        wake.close()
    pending, dead = outbox.total("pending"), outbox.total("dead")
    delivered = outbox.total("delivered") - delivered_before
    lost = outbox.total("lost") - lost_before
    failed = engine.source_error or engine.outbox_error
    outbox.close()
    log.info("done", delivered=delivered, pending=pending, dead=dead, lost=lost)
    if young:
        log.info("events that are younger than source.settle wait for another time")
    if failed or pending or young:
        return TEMPORARY
    return PROBLEM if dead or lost else OK


def _is_done(engine: Engine, began: float) -> bool:
    now = time.monotonic()
    if engine.source_error or engine.outbox_error:
        return now - began > PATIENCE_ONCE
    if engine.is_idle() and all(queue.is_idle() for queue in engine.queues):
        return True
    return all(
        (queue.caught_up or not queue.is_events)
        and (
            queue.is_idle()
            or queue.health.state == policy.PAUSED
            or queue.health.failures >= ATTEMPTS_ONCE
            or queue.health.next_attempt - now > PATIENCE_ONCE
        )
        for queue in engine.queues
    )


class Daemon:
    """The long-running service; one thread, besides those that connect and a report's probes."""

    def __init__(self, config: Config) -> None:
        """Open everything. Raises OutboxError, SourceError."""
        self.config = config
        self._stop = False
        self._reload = False
        self._source = open_source(config.source)
        self._outbox = open_outbox(config.outbox.path)
        self._wake = Wake(self._source.watch_paths())
        self._engine = self._make_engine()
        self._reports: Deque[device_status.Report] = deque()
        self._collecting: Optional[threading.Thread] = None
        self._reader: Optional[Reader] = None
        self._report_problems: List[str] = []
        self._source_problems: List[str] = []
        self._device_rows: List[Mapping[str, Any]] = []
        self._devices_seen: Dict[str, int] = {}
        self._metrics: Optional[Metrics] = None
        self._begin_metrics()
        self._started = time.monotonic()
        self._begin_reports()

    def _make_engine(self) -> Engine:
        return Engine(
            self.config, self._source, self._outbox, partial(Sink, self._wake),
            clock=clock(), random=random.random, observe=self._observe,
        )  # fmt: skip

    def _observe(self, endpoint: str, seconds: float) -> None:
        if self._metrics is not None:
            self._metrics.observe(endpoint, seconds)

    def _begin_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self.config.metrics.listen is not None:
            from . import metrics

            self._metrics = metrics.start(self.config)

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; SIGHUP reloads. Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        ready = False
        refresh_at = housekeeping_at = watchdog_at = give_back_at = 0.0
        worked = False
        interval = sdnotify.watchdog_interval()
        while not self._stop:
            due = self._engine.step()
            now = time.monotonic()
            worked |= due == 0.0
            if self._reload:
                self._reload = False
                sdnotify.reloading()
                self._do_reload()
                sdnotify.ready(self._engine.summary())
                due = 0.0
            if not ready and self._is_ready(now):
                ready = True
                sdnotify.ready(self._engine.summary())
            if now >= refresh_at:
                refresh_at = now + REFRESH
                self._engine.refresh()
                sdnotify.status(self._engine.summary())
                if worked and now >= give_back_at and self._engine.is_idle():
                    worked, give_back_at = False, now + GIVE_BACK
                    memory.give_back()
            if now >= housekeeping_at:
                housekeeping_at = now + HOUSEKEEPING
                self._engine.housekeeping()
            if interval is not None and now >= watchdog_at:
                watchdog_at = now + interval
                sdnotify.watchdog()
            due = min(due, self._report_step(now) - now, refresh_at - now)
            if interval is not None:
                due = min(due, watchdog_at - now)
            if self._wake.wait(due):
                self._engine.look_soon()
        self._end()
        return OK

    def _is_ready(self, now: float) -> bool:
        """Is the start complete: source and outbox were gone through, or it took too long?"""
        if self._engine.source_error is None:
            log.info("ready", source=self.config.source.name, pid=os.getpid())
            return True
        if now - self._started < START_PATIENCE:
            return False
        log.warning("started, though the event database cannot be read yet; it is tried on")
        return True

    def _on_stop(self, *_: Any) -> None:
        self._stop = True

    def _on_reload(self, *_: Any) -> None:
        self._reload = True

    # Status reports

    def _begin_reports(self) -> None:
        self._reader = None
        if self.config.device_status.endpoints:
            from .device_status.gateway import Reader

            self._reader = Reader(self.config)
        self._look_back = device_status.EARLIER_EVENTS
        self._beat = time.monotonic()

    def _report_step(self, now: float) -> float:
        """Start and hand on reports; returns when the next one is due (monotonic seconds)."""
        handed_on = bool(self._reports)
        while self._reports:
            report = self._reports.popleft()
            self._engine.report(report.payload)
            self._tell_problems([*self._source_problems, *report.problems])
        if self._reader is None:
            return now if handed_on else float("inf")
        if now >= self._beat:
            interval = self.config.device_status.interval
            self._beat = device_status.next_beat(self._started, interval, now)
            self._collect("online")
        return now if handed_on else self._beat

    def _collect(self, status: str) -> None:
        if self._reader is None or (self._collecting and self._collecting.is_alive()):
            return
        rows, seen = self._from_source()
        arguments: Dict[str, Any] = {
            "table_rows": rows, "seen": seen, "status": status, "now_ms": int(time.time() * 1000),
        }  # fmt: skip
        self._collecting = threading.Thread(
            target=self._collect_in_thread, args=(arguments,), name="device-status", daemon=True
        )
        self._collecting.start()

    def _collect_in_thread(self, arguments: Dict[str, Any]) -> None:
        assert self._reader is not None
        self._reports.append(device_status.collect(self.config, self._reader, **arguments))
        self._wake.set()

    def _from_source(self) -> Tuple[List[Mapping[str, Any]], Dict[str, int]]:
        wanted = self.config.device_status
        try:
            if wanted.sub_devices_table:
                self._device_rows = self._source.sub_devices(wanted.sub_devices_table)
            probed = {d.ep_ip for d in wanted.sub_devices if d.probe.startswith("seen:")}
            if probed:
                # A quiet device may have been seen before the newest rows, which are others'.
                found = {**self._devices_seen, **self._source.last_seen(self._look_back)}
                self._devices_seen = {ep_ip: found[ep_ip] for ep_ip in probed & found.keys()}
                self._look_back = NEW_EVENTS
        except SourceError as error:
            self._look_back = device_status.EARLIER_EVENTS
            # What was read before is better than devices that vanish from the report.
            self._source_problems = [f"the capture devices cannot be read: {error}"]
        else:
            self._source_problems = []
        return self._device_rows, self._devices_seen

    def _tell_problems(self, problems: List[str]) -> None:
        for problem in problems:
            if problem not in self._report_problems:
                log.warning(f"the status report is not complete: {problem}")
        self._report_problems = problems

    # Reload and stop

    def _do_reload(self) -> None:
        """Go on with the file as it is now; where that cannot be, tell why and go on as before."""
        try:
            config = configuration.load(self.config.path)
            source = (
                self._source if config.source == self.config.source else open_source(config.source)
            )
        except configuration.ConfigError as error:
            for problem in error.problems:
                log.error(f"not reloaded, the old configuration goes on: {problem}")
            return
        except SourceError as error:
            log.error(f"not reloaded, the old configuration goes on: {error}")
            return
        if config.outbox.path != self.config.outbox.path:
            log.warning("outbox.path changes only with a restart; the old outbox stays in use")
            config = _with_outbox_path(config, self.config.outbox.path)
        self._drain(STOP_WITHIN)
        if self._engine.outbox_error:
            # Receipts that are only in memory would be forgotten, and their events sent again.
            log.error("not reloaded: the outbox cannot be written; reload again when it can be")
            self._engine.stopping = False
            return
        self._engine.close(0.0)
        self._engine.flush()
        if source is not self._source:
            self._source.close()
            self._source = source
            self._wake.watch(source.watch_paths())
        log.setup(config.log.level, config.log.format)
        self.config = config
        self._engine = self._make_engine()
        self._begin_reports()
        self._begin_metrics()
        log.info("reloaded", endpoints=len(config.endpoints))

    def _drain(self, seconds: float) -> None:
        """Send nothing new, and wait for what is in flight."""
        deadline = time.monotonic() + seconds
        self._engine.stopping = True
        while self._engine.in_flight() and time.monotonic() < deadline:
            self._wake.wait(min(0.1, self._engine.step()))
        self._engine.flush()

    def _end(self) -> None:
        sdnotify.stopping()
        log.info("stopping")
        deadline = time.monotonic() + STOP_WITHIN
        if self._collecting is not None:
            self._collecting.join(LONGEST_COLLECTION)
        self._reports.clear()
        self._collect("offline")
        if self._collecting is not None:
            self._collecting.join(LONGEST_COLLECTION / 2)
        self._report_step(0.0)
        self._drain(3.0)
        self._engine.close(max(0.0, deadline - time.monotonic()))
        self._engine.flush()
        self._source.close()
        self._outbox.close()
        self._wake.close()
        if self._metrics is not None:
            self._metrics.close()
        log.info("stopped")


def _with_outbox_path(config: Config, path: str) -> Config:
    return replace(config, outbox=replace(config.outbox, path=path))
