"""Cut the power of a machine again and again, and look for events that are lost.

    python -m tests.service.power_cut --report benchmarks/results/power_cut.md

A virtual machine runs Debian, the package from dist/ and an engine that writes events; QEMU is
killed at random moments. Each boot finds the disk as the cut left it. After the last one nothing is
written any more, the agent delivers what there is, and an account is made between the event
database, the platform, which stands outside, and what the agent says itself.

It is done twice: with an engine whose commits wait for the disk (synchronous=FULL), and with one
whose last commits a power cut takes back (NORMAL), so that ids are used a second time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from .container import unavailable, wait_for
from .machine import HOST, Machine, missing_tools

MODES = ("FULL", "NORMAL")
VERDICT = "Nothing that the event database kept was lost."
OUTAGE, PERIOD = 4.0, 12.0
"""Seconds in which the platform answers 503, of every so many."""
BOOT = 600.0
"""Seconds that a boot may take until events are written."""
LATEST = 10.0
"""Seconds within which the power is cut: after the first answer of a boot, and every third time
after the first event, when the agent is only about to start."""
IN_FLIGHT = 5.0
"""Seconds before a cut in which an answer may not have got onto the disk: 50 ms, and the time that
a commit takes on the disk of an emulated machine, which is seconds where the real one is busy."""


@dataclass(frozen=True)
class Receipt:
    """A request that the platform answered with 200."""

    key: str
    event: str
    boot: int
    at: float


class Platform:
    """The platform, on this machine; away for a third of the time."""

    def __init__(self) -> None:
        """Listen on a port of loopback."""
        self.boot = 0
        self.receipts: List[Receipt] = []
        self.report: Optional[Dict[str, Any]] = None
        platform = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = platform.take(self.path, self.headers["Idempotency-Key"], body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://{HOST}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path: str, key: str, body: Dict[str, Any]) -> int:
        """Note a request; returns the status to answer with."""
        if path == "/report":
            self.report = body
        elif time.time() % PERIOD < OUTAGE:
            return 503
        else:
            self.receipts.append(Receipt(key, body["identity_id"], self.boot, time.time()))
        return 200

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True)
class Course:
    """What happened to one machine."""

    mode: str
    written: List[str]
    """Events whose commit had ended before a cut, as far as they were heard of."""
    cuts: List[float]
    """When the power was cut."""
    receipts: List[Receipt]
    report: Dict[str, Any]


def settings(platform: Platform) -> str:
    """uploader.yaml, quick to try again."""
    return json.dumps(
        {
            "gateway": {"dev_sno": "TEST"},
            "source": {"url": "sqlite:////data/sophon/event.db"},
            "history_event": {
                "endpoints": [{"url": f"{platform.url}/HistoryEvent", "name": "platform"}]
            },
            "retry": {"base": 0.2, "cap": 1},
            "outbox": {"min_free_disk": 0},
        }
    )


def run(mode: str, cuts: int, dist: Path, folder: Path, chance: random.Random) -> Course:
    """Have one machine live through so many cuts, and let it come to rest."""
    platform = Platform()
    machine = Machine(folder, dist, settings(platform), f"{platform.url}/report")
    moments = []
    try:
        for platform.boot in range(cuts):
            known = len(machine.written()), len(platform.receipts)
            machine.boot("writing", f"synchronous={mode}")
            early = platform.boot % 3 == 2
            wait_for_work(machine, platform, *known, early)
            pause = chance.uniform(0, LATEST)
            time.sleep(pause)
            machine.cut_power()
            moments.append(time.time())
            written, accepted = len(machine.written()), len(platform.receipts)
            print(
                f"{mode} cut {platform.boot + 1}, {pause:.1f} s after the first"
                f" {'event' if early else 'answer'}: {written - known[0]} written,"
                f" {accepted - known[1]} accepted",
                flush=True,
            )
        platform.boot = cuts
        machine.boot("draining")
        machine.wait_off(2 * BOOT)
    finally:
        machine.cut_power()
        platform.close()
    return Course(mode, machine.written(), moments, platform.receipts, platform.report or {})


def wait_for_work(
    machine: Machine, platform: Platform, written: int, accepted: int, early: bool
) -> None:
    """Wait until a machine has written more events, and unless early had more of them accepted."""

    def happens() -> bool:
        assert machine.is_on, "the machine has switched itself off"
        is_accepted = early or len(platform.receipts) > accepted
        return is_accepted and len(machine.written()) > written

    wait_for("events", happens, BOOT)


def repeats(course: Course) -> List[float]:
    """Seconds before a cut at which those events were accepted that came again after it.

    Infinite where an event came again without a cut in between.
    """
    last: Dict[str, Receipt] = {}
    ages = []
    for receipt in course.receipts:
        before = last.get(receipt.key)
        last[receipt.key] = receipt
        if before is not None:
            cut = before.boot < receipt.boot
            ages.append(course.cuts[before.boot] - before.at if cut else float("inf"))
    return ages


def judge(course: Course) -> List[str]:
    """What is wrong."""
    if not course.report:
        return ["the machine did not come to rest, or could not say what it holds"]
    wrong = []
    events = set(course.report["events"])
    accepted = {receipt.event for receipt in course.receipts}
    keys = {(receipt.key, receipt.event) for receipt in course.receipts}
    endpoint = course.report["status"]["endpoints"][0]
    if not course.report["sound"]:
        wrong.append("the event database is damaged")
    if any(".damaged-" in name for name in course.report["outbox"]):
        wrong.append("the outbox was damaged")
    if lost := events - accepted:
        wrong.append(f"{len(lost)} events are in the database and never reached the platform")
    for number, what in ((0, "key"), (1, "event")):
        if max(Counter(pair[number] for pair in keys).values(), default=0) > 1:
            wrong.append(f"one {what} stands for several on the other side")
    # Between a commit and its line on the wire there is at most one event a cut.
    taken_back = len(set(course.written) - events)
    gone = taken_back + len(course.cuts) if course.mode == "NORMAL" else 0
    if endpoint["pending"] or endpoint["dead"] or endpoint["lost"] > gone:
        wrong.append(f"the account says {endpoint}")
    # What the agent saw is in the database at the end, or a cut took it back.
    if not len(events) <= endpoint["delivered"] <= len(keys):
        wrong.append(
            f"{endpoint['delivered']} count as delivered, of {len(events)} events in the database"
            f" and {len(keys)} that the platform accepted"
        )
    if course.mode == "FULL":
        if taken_back:
            wrong.append(
                f"{taken_back} events were lost by the engine though it waited for the disk"
            )
        if accepted != events:
            wrong.append("the platform has events that the database has not")
    if late := [age for age in repeats(course) if age > IN_FLIGHT]:
        wrong.append(f"{len(late)} events came again that were accepted long before a cut")
    return wrong


def figures(course: Course) -> Dict[str, object]:
    """What the account is made of."""
    ages = repeats(course)
    events = set(course.report.get("events", ()))
    status = course.report.get("status") or {"endpoints": [{}], "source": {}}
    return {
        "power cuts": len(course.cuts),
        "commits heard of": len(course.written),
        "of these taken back by a cut": len(set(course.written) - events),
        "events in the database at the end": len(events),
        "of these at the platform": len(events & {receipt.event for receipt in course.receipts}),
        "counted as delivered": status["endpoints"][0].get("delivered"),
        "counted as lost: taken back by a cut": status["endpoints"][0].get("lost"),
        "dead": status["endpoints"][0].get("dead"),
        "generations of the source": status["source"].get("generation"),
        "requests accepted": len(course.receipts),
        "repeated, each under its old key": len(ages),
        "accepted before the cut, at most": f"{max(ages, default=0):.2f} s",
    }


def page(command: str, courses: Sequence[Course], wrong: Sequence[str]) -> str:
    """The result as Markdown."""
    rows = [figures(course) for course in courses]
    inside = courses[0].report
    return "\n".join(
        [
            "# Power cuts\n",
            f"Made by `{command}` on {time.strftime('%Y-%m-%d')}: Linux {inside.get('kernel')},"
            f" SQLite {inside.get('sqlite')}, ext4, QEMU with `cache=none` killed with `kill -9`"
            f" up to {LATEST:g} s after the first event or answer of a boot, a platform that is"
            f" away {OUTAGE:g} of every {PERIOD:g} s.\n",
            "What the inner kernel has not written is gone with a cut. A disk that loses what it"
            " said to have written is not shown by this.\n",
            f"| engine: synchronous | {' | '.join(course.mode for course in courses)} |",
            f"|---|{'---:|' * len(courses)}",
            *(f"| {name} | {' | '.join(str(row[name]) for row in rows)} |" for name in rows[0]),
            f"\n{'**' + '; '.join(wrong) + '**' if wrong else VERDICT}\n",
        ]
    )


def main() -> int:
    """Run both modes; returns 1 where an event was lost or the account is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cuts", type=int, default=10, help="for each kind of engine (10)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (1)")
    parser.add_argument("--dist", type=Path, default=Path("dist"), help="folder of the packages")
    parser.add_argument("--report", type=Path, help="write the result here, as Markdown")
    arguments = parser.parse_args()
    if reason := unavailable() or ", ".join(missing_tools()):
        parser.error(f"cannot run here: {reason}; see CONTRIBUTING.md")

    def one(mode: str) -> Course:
        chance = random.Random(f"{arguments.seed} {mode}")
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            return run(mode, arguments.cuts, arguments.dist.resolve(), Path(folder), chance)

    with ThreadPoolExecutor() as pool:
        courses = list(pool.map(one, MODES))
    wrong = [f"{course.mode}: {what}" for course in courses for what in judge(course)]
    command = f"python -m tests.service.power_cut --cuts {arguments.cuts} --seed {arguments.seed}"
    text = page(command, courses, wrong)
    print(text)
    if arguments.report:
        arguments.report.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
