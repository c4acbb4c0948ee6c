"""The demo: it runs the real daemon, and it notices whatever goes wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterator, List

import orjson
import pytest

from se3_uploader.demo import expected, sample, shortcomings

pytest.importorskip("flask", reason="needs flask, extra 'receiver'")
pytest.importorskip("waitress", reason="needs waitress, extra 'receiver'")
pytest.importorskip("PIL.Image", reason="needs pillow, extra 'pictures'")

from se3_uploader.receiver import Store

DEMO = [sys.executable, "-m", "se3_uploader", "demo"]
STATUS = {
    "gateway_ip": "",
    "gateway_name": "box",
    "gateway_status": "online",
    "gateway_sn": "",
    "gateway_ext_data": {},
    "sub_devices": [],
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty platform."""
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def rows() -> Dict[int, sample.Event]:
    """Twenty inserted events by their timestamp."""
    events = islice(sample.events(start_ms=1_700_000_000_000, pictures=False), 20)
    return {row["timestamp"]: row for row in events}


def arrive(store: Store, payloads: List[Dict[str, Any]], reasons: List[str]) -> None:
    """Store events as if they had come over the wire, each under a key of its own."""
    for payload in payloads:
        store.add_event(payload, reasons, os.urandom(8).hex(), orjson.dumps(payload))


def test_twenty_events_arrive_intact() -> None:
    """demo --events N ends by itself with 0, having told of the page, each event and the result."""
    done = subprocess.run(
        [*DEMO, "--events", "20", "--port", "0"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"http://127\.0\.0\.1:\d+/", done.stdout)
    assert len(re.findall(r"delivered after \d+ ms", done.stdout)) == 20
    assert "Every event arrived intact, exactly once." in done.stdout


def test_ctrl_c_ends_an_endless_demo_cleanly() -> None:
    """Without --events it goes on until Ctrl-C, then exits 0 and leaves no daemon behind."""
    with subprocess.Popen(
        [*DEMO, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout
        assert demo.stderr
        try:
            assert any("delivered after" in line for line in demo.stdout)
            [daemon] = children(demo.pid)
            demo.send_signal(signal.SIGINT)
            rest, errors = demo.communicate(timeout=30)
        finally:
            demo.kill()
    assert demo.returncode == 0
    assert "delivered" in rest.splitlines()[-1]
    assert "Traceback" not in errors
    assert not Path(f"/proc/{daemon}").exists()


def children(pid: int) -> List[int]:
    """The child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_port_in_use_is_said_clearly() -> None:
    """Exit 1 and a sentence, no traceback, where somebody else has the port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = subprocess.run(
            [*DEMO, "--events", "1", "--port", port], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert port in said
    assert "another program listens there" in said
    assert "Traceback" not in said


def test_a_missing_extra_is_named() -> None:
    """Without pillow the demo says what to install."""
    code = "import sys; sys.modules['PIL'] = None; from se3_uploader.demo import run_demo;"
    code += "sys.exit(run_demo(1, 0, print))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pillow" in done.stdout
    assert "pip install 'se3-uploader[receiver,pictures]'" in done.stdout


def test_nothing_is_amiss_when_all_is_well(store: Store, rows: Dict[int, sample.Event]) -> None:
    """Every row as the protocol wants it, and a status: no fault."""
    arrive(store, [expected(row) for row in rows.values()], [])
    store.add_status(STATUS, [], "s", b"")
    assert shortcomings(rows, store) == []


def test_every_kind_of_fault_is_found(store: Store, rows: Dict[int, sample.Event]) -> None:
    """Missing, changed, doubled, unknown and refused events and a missing status are all named."""
    missing, changed, picture, doubled, *others = rows.values()
    payloads = [expected(row) for row in (changed, picture, doubled, doubled, *others)]
    payloads[0]["identity_name"] += "!"
    payloads[1]["ext_data"]["spot_pic"] = "AAAA"
    payloads.append({**expected(missing), "timestamp": 1})
    arrive(store, payloads, [])
    arrive(store, [{"score": "high"}], ["score: not a number"])
    assert shortcomings(rows, store) == [
        f"Event {changed['timestamp']} arrived changed: identity_name.",
        f"Event {picture['timestamp']} arrived changed: spot_pic.",
        f"Event {doubled['timestamp']} arrived more than once.",
        "Event 1 arrived, but was never inserted.",
        "An event or report was refused: score: not a number.",
        f"Event {missing['timestamp']} did not arrive.",
        "No device status arrived.",
    ]


def test_the_same_key_twice_is_more_than_once(store: Store, rows: Dict[int, sample.Event]) -> None:
    """A repetition that the platform recognised by its key is still told."""
    row = next(iter(rows.values()))
    body = orjson.dumps(expected(row))
    for _ in range(2):
        store.add_event(expected(row), [], "the-key", body)
    store.add_status(STATUS, [], "s", b"")
    assert shortcomings({row["timestamp"]: row}, store) == [
        f"Event {row['timestamp']} arrived more than once."
    ]
