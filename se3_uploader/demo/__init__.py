"""The whole job on one machine: a sample box that makes events, the uploader, and a platform.

The uploader is the real daemon in a process of its own; it knows nothing of being in a demo.
"""

# ruff: noqa: S311  (sample data, not secrets)

from __future__ import annotations

import base64
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Set

import yaml

from . import sample

if TYPE_CHECKING:
    from ..receiver import Receiver, Store

EXTRAS = "pip install 'se3-uploader[receiver,pictures]'"
TICK = 0.05
"""Seconds between two looks at what arrived."""
SHOWN = 20
"""Faults told in full."""
PATIENCE = 30.0
"""Seconds without any news after which what is still missing counts as missing."""
KIND = {None: "employee", 1: "employee", 2: "visitor", 3: "BLACKLIST", 4: "not known", 5: "VIP"}
"""person_type in words (protocol section 1)."""


def run_demo(events: Optional[int], port: int, say: Callable[[str], None]) -> int:
    """Run the demo until Ctrl-C, or until so many events went through; call it in the main thread.

    say gets each line of what happens. Returns the exit code: 0 when all is well; with events, only
    if every one of them arrived intact and exactly once, and a device status too; else 1.
    """
    modules = {"flask": "flask", "waitress": "waitress", "pillow": "PIL"}
    absent = [package for package, module in modules.items() if not find_spec(module)]
    if absent:
        say(f"The demo needs {', '.join(absent)}, which is not installed: {EXTRAS}")
        return 1
    from ..receiver import Receiver, ReceiverError

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="se3-demo-") as folder:
        try:
            receiver = Receiver(port=port, dir=Path(folder, "platform"))
        except ReceiverError as error:
            say(str(error))
            return 1
        with receiver:
            say(f"Everything of this demo is in {folder} until it ends.")
            say(f"The platform's page: {receiver.url}/")
            return _Demo(Path(folder), receiver, stop, say).run(events)


def configuration(folder: Path, url: str) -> Dict[str, Any]:
    """The demo's uploader.yaml as a mapping; url is the platform's."""
    cameras = [
        {
            "ep_ip": camera.ip,
            "ep_name": camera.name,
            "ep_type": camera.device_type,
            "group_name": "default_group",
            "probe": "seen:10m",
        }
        for camera in sample.CAMERAS
    ]
    return {
        "gateway": {"dev_sno": sample.DEV_SNO, "name": "demo-box", "data_partition": str(folder)},
        "source": {"url": f"sqlite:///{folder / 'event.db'}"},
        "history_event": {"endpoints": [{"url": f"{url}/HistoryEvent"}]},
        "device_status": {
            "interval": "2s",
            "endpoints": [{"url": f"{url}/DeviceStatus"}],
            "sub_devices": cameras,
        },
        "outbox": {"path": str(folder / "outbox" / "outbox.db")},
    }


def expected(row: sample.Event) -> Dict[str, Any]:
    """The HistoryEvent that must arrive for a row of the sample database (protocol section 1)."""
    extended = {
        "device_ip": row["device_ip"],
        "ep_id": row["ep_id"] or f"{row['dev_sno']}__{row['device_ip']}",
        "spot_pic": base64.b64encode(row["spot_pic"]).decode(),
        "person_type": row["person_type"] or sample.EMPLOYEE,
        "device_type": row["device_type"],
        "grab_fiqa_info": json.loads(row["grab_fiqa_info"] or "{}"),
        "box_fiqa_info": json.loads(row["box_fiqa_info"]),
        "dev_sno": row["dev_sno"],
    }
    if row["group_name"]:
        extended["group_id"] = row["group_id"]
    payload = {
        "identity_id": row["identity_id"],
        "identity_name": row["identity_name"],
        "group_name": row["group_name"] or row["group_id"],
        "timestamp": row["timestamp"],
        "score": row["score"],
        "ext_data": extended,
    }
    if row["reg_pic"]:
        payload["reg_pic"] = base64.b64encode(row["reg_pic"]).decode()
    return payload


def shortcomings(inserted: Dict[int, sample.Event], store: Store) -> List[str]:
    """Compare what was inserted (timestamp -> row) with what arrived; a sentence for each fault."""
    faults: List[str] = []
    seen: Set[int] = set()
    for report in store.events():
        payload = report.payload
        timestamp = payload["timestamp"]
        if timestamp in seen or report.repeats:
            faults.append(f"Event {timestamp} arrived more than once.")
        elif timestamp not in inserted:
            faults.append(f"Event {timestamp} arrived, but was never inserted.")
        elif payload != expected(inserted[timestamp]):
            wrong = ", ".join(_differences(expected(inserted[timestamp]), payload))
            faults.append(f"Event {timestamp} arrived changed: {wrong}.")
        seen.add(timestamp)
    faults += [
        f"An event or report was refused: {'; '.join(report.reasons)}."
        for reports in (store.events(refused=True), store.statuses(refused=True))
        for report in reports
    ]
    faults += [f"Event {timestamp} did not arrive." for timestamp in sorted(set(inserted) - seen)]
    if not store.counts()["statuses"]:
        faults.append("No device status arrived.")
    return faults


class _Demo:
    """One run: the daemon, what was inserted so far, and what has arrived of it."""

    def __init__(
        self, folder: Path, receiver: Receiver, stop: threading.Event, say: Callable[[str], None]
    ) -> None:
        self.store, self.stop, self.say = receiver.store, stop, say
        self.database = sample.connect(str(folder / "event.db"))
        self.log = folder / "uploader.log"
        self.rng = random.Random()
        self.inserted: Dict[int, sample.Event] = {}
        """Timestamp, different for each event, -> row."""
        self.committed: Dict[int, int] = {}
        """Timestamp -> when the row was committed, epoch milliseconds."""
        self.delivered: Set[int] = set()
        self.cursor = 0
        config = folder / "uploader.yaml"
        settings = configuration(folder, receiver.url)
        config.write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), "utf-8")
        command = [sys.executable, "-m", "se3_uploader", "run", "-c", str(config)]
        with open(self.log, "wb") as log:
            # In a session of its own Ctrl-C does not reach it: the demo stops it in order.
            self.daemon = subprocess.Popen(  # noqa: S603  (our own program)
                command, stderr=log, start_new_session=True
            )

    def run(self, events: Optional[int]) -> int:
        """Let events happen, stop the daemon, judge; the exit code."""
        try:
            self._wait_for_start()
            self._play(events)
            died = self.daemon.poll()
        finally:
            self.database.close()
            self._stop_daemon()
        self._tell_arrivals()
        self.say(
            f"{len(self.inserted)} events inserted, {len(self.delivered)} delivered,"
            f" {self.store.counts()['statuses']} device status reports."
        )
        if died is not None:
            self.say(f"The uploader ended by itself, exit code {died}. It said:")
            self.say(self.log.read_text("utf-8", "replace")[-4000:])
            return 1
        if events is None:
            return 0
        faults = shortcomings(self.inserted, self.store)
        if len(self.inserted) < events:
            faults.append(f"Stopped before {events - len(self.inserted)} events were inserted.")
        for fault in faults[:SHOWN]:
            self.say(fault)
        if len(faults) > SHOWN:
            self.say(f"... and {len(faults) - SHOWN} more faults.")
        if not faults:
            self.say("Every event arrived intact, exactly once.")
        return 1 if faults else 0

    def _ticks(self) -> Iterator[float]:
        """Monotonic seconds every TICK, until the demo is stopped or the daemon is gone."""
        while not self.stop.wait(TICK) and self.daemon.poll() is None:
            yield time.monotonic()

    def _wait_for_start(self) -> None:
        """Wait for the first device status: only then do the delays of events mean anything."""
        deadline = time.monotonic() + PATIENCE
        for now in self._ticks():
            if self.store.counts()["statuses"]:
                self.say("The uploader is up: its first device status has arrived.")
                return
            if now > deadline:
                return

    def _play(self, events: Optional[int]) -> None:
        """Insert events as time goes by and tell of those that arrive."""
        due = news = time.monotonic()
        for now in self._ticks():
            count = 0
            while due <= now and (events is None or len(self.inserted) + count < events):
                count += 1
                due += self.rng.uniform(0.3, 2.0) if events is None else min(0.3, 10 / events)
            self._insert(count)
            if self._tell_arrivals() or count:
                news = now
            finished = len(self.inserted) == events
            if finished and (len(self.delivered) == events or now - news > PATIENCE):
                return

    def _insert(self, count: int) -> None:
        """Commit so many events that happen now."""
        timestamp = max(_epoch_ms(), max(self.inserted, default=0) + 1)
        rows = [sample.event(self.rng, timestamp + i) for i in range(count)]
        sample.insert(self.database, rows)
        for row in rows:
            self.inserted[row["timestamp"]] = row
            self.committed[row["timestamp"]] = _epoch_ms()

    def _tell_arrivals(self) -> bool:
        """Say which events have arrived since the last call, oldest first; False: none."""
        before, since = len(self.delivered), self.cursor
        self.cursor = self.store.cursor()
        for report in reversed(self.store.latest_events(1_000_000, since=since)):
            timestamp = report.payload.get("timestamp")
            if report.reasons or timestamp in self.delivered or timestamp not in self.inserted:
                continue
            self.delivered.add(timestamp)
            row = self.inserted[timestamp]
            camera = next(c.name for c in sample.CAMERAS if c.ip == row["device_ip"])
            took = max(0, report.received_at - self.committed[timestamp])
            clock = time.strftime("%H:%M:%S", time.localtime(timestamp / 1000))
            kind = KIND[row["person_type"]]
            name = row["identity_name"]
            self.say(f"{clock}  {name} ({kind}) at {camera}: delivered after {took} ms")
        return len(self.delivered) > before

    def _stop_daemon(self) -> None:
        """Ask the daemon to end, and see to it."""
        self.daemon.terminate()
        try:
            self.daemon.wait(20)
        except subprocess.TimeoutExpired:
            self.say("The uploader did not stop within 20 s and was killed.")
            self.daemon.kill()
            self.daemon.wait()


def _differences(wanted: Dict[str, Any], found: Dict[str, Any]) -> List[str]:
    """The fields of a payload that are not as wanted; those of ext_data by their own names."""
    flat_wanted, flat_found = ({**p, **p.get("ext_data", {})} for p in (wanted, found))
    fields = sorted({*flat_wanted, *flat_found} - {"ext_data"})
    return [name for name in fields if flat_wanted.get(name) != flat_found.get(name)]


def _epoch_ms() -> int:
    return time.time_ns() // 1_000_000
