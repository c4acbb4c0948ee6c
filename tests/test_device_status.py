"""The DeviceStatus report: every format against the schema, a whole report against real sockets."""

from __future__ import annotations

import errno
import itertools
import json
import math
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Tuple

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import se3_uploader
from se3_uploader.config import Config, DeviceStatus, Endpoint, Gateway, Source, SubDevice
from se3_uploader.device_status import collect, format_report, known_devices, next_beat
from se3_uploader.device_status.gateway import Reader, Reading

SCHEMA = Path(se3_uploader.__file__).parent / "receiver/schemas/device_status.schema.json"
GATEWAY = Gateway(dev_sno="TJGSDX")
GB = 2**30

valid = Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))
reading = Reading(
    ip="192.168.1.25",
    name="lobby",
    sn="SZCCKQRAIJBAH0002",
    mac="e0:a5:09:00:0e:6d",
    sw_version="2.6.0",
    sdk_version="3.1",
    cpu_percent=6.4999,
    memory_bytes=1.554 * GB,
    memory_fraction=0.7651,
    disk_bytes=10.394 * GB,
    disk_free_bytes=9.409 * GB,
)


def report(state: Reading = reading, *devices: SubDevice, **options: Any) -> Dict[str, Any]:
    """Format an online report in which every device is online, and check it against the schema."""
    options = {"gateway": GATEWAY, "status": "online", "ep_ext_data": "string", **options}
    payload = format_report(state, [(device, True) for device in devices], **options)
    valid.validate(payload)
    return payload


# --- format ---


def test_a_whole_report() -> None:
    """Every field stands where the protocol has it, in its unit and with two decimals."""
    lobby = SubDevice("192.168.1.101", "0", "lobby", "default_group", "1.2")
    payload = format_report(
        reading,
        [(lobby, True), (SubDevice("192.168.1.102"), False)],
        gateway=GATEWAY,
        status="online",
        ep_ext_data="object",
    )
    valid.validate(payload)
    assert payload == {
        "gateway_ip": "192.168.1.25",
        "gateway_name": "lobby",
        "gateway_status": "online",
        "gateway_sn": "SZCCKQRAIJBAH0002",
        "dev_sno": "TJGSDX",
        "gateway_ext_data": {
            "sw_version": "2.6.0",
            "sdk_version": "3.1",
            "gateway_mac": "e0:a5:09:00:0e:6d",
            "cpu_usage": 6.5,
            "memory_size": 1.55,
            "memory_usage": 0.77,
            "disk_size": 10.39,
            "disk_free_size": 9.41,
        },
        "sub_devices": [
            {
                "ep_id": "TJGSDX__192.168.1.101",
                "ep_name": "lobby",
                "ep_ip": "192.168.1.101",
                "ep_status": "online",
                "ep_type": "0",
                "ep_ext_data": {"sw_version": "1.2", "group_name": "default_group"},
            },
            {
                "ep_id": "TJGSDX__192.168.1.102",
                "ep_ip": "192.168.1.102",
                "ep_status": "offline",
                "ep_type": "1",
                "ep_ext_data": {},
            },
        ],
    }


def test_nothing_known() -> None:
    """The fields the protocol requires are empty, the optional ones are left out."""
    assert report(Reading()) == {
        "gateway_ip": "",
        "gateway_name": "",
        "gateway_status": "online",
        "gateway_sn": "",
        "dev_sno": "TJGSDX",
        "gateway_ext_data": {},
        "sub_devices": [],
    }


def test_a_stop_is_reported_offline() -> None:
    """The last report says so."""
    assert report(status="offline")["gateway_status"] == "offline"


def test_ep_ext_data_is_a_string_holding_json() -> None:
    """The default of decision D3, Chinese text as it is."""
    device = SubDevice("192.168.1.101", group_name="默认组", sw_version="1.2")
    sent = report(reading, device, ep_ext_data="string")["sub_devices"][0]["ep_ext_data"]
    assert "默认组" in sent
    assert json.loads(sent) == {"sw_version": "1.2", "group_name": "默认组"}


def test_an_unreadable_version_file_is_sent_empty() -> None:
    """Configured and unreadable differs from not configured."""
    state = replace(reading, sw_version="", sdk_version=None)
    sent = report(state)["gateway_ext_data"]
    assert sent["sw_version"] == ""
    assert "sdk_version" not in sent


@pytest.mark.parametrize(
    ("field", "value", "name", "sent"),
    [
        ("cpu_percent", 0.0, "cpu_usage", 0.0),
        ("cpu_percent", 100.01, "cpu_usage", 100),
        ("cpu_percent", -0.5, "cpu_usage", 0),
        ("cpu_percent", math.nan, "cpu_usage", None),
        ("memory_fraction", 1.2, "memory_usage", 1),
        ("memory_fraction", math.inf, "memory_usage", None),
        ("memory_bytes", 1024, "memory_size", None),
        ("memory_bytes", -GB, "memory_size", None),
        ("disk_bytes", 0, "disk_size", None),
        ("disk_free_bytes", 0, "disk_free_size", 0.0),
        ("disk_free_bytes", math.nan, "disk_free_size", None),
    ],
)
def test_odd_numbers(field: str, value: float, name: str, sent: object) -> None:
    """Percentages are kept in their range; what is no size, or rounds to none, is left out."""
    assert report(replace(reading, **{field: value}))["gateway_ext_data"].get(name) == sent


numbers = st.none() | st.floats() | st.integers()
texts = st.none() | st.text()
cells = st.none() | st.text() | st.binary() | st.integers() | st.floats() | st.booleans()


@given(
    state=st.builds(
        Reading,
        ip=texts,
        name=texts,
        sn=texts,
        mac=st.none() | st.just("e0:a5:09:00:0e:6d"),
        sw_version=texts,
        sdk_version=texts,
        cpu_percent=numbers,
        memory_bytes=numbers,
        memory_fraction=numbers,
        disk_bytes=numbers,
        disk_free_bytes=numbers,
    ),
    configured=st.lists(st.builds(SubDevice, st.text(), st.text(), st.text()), max_size=3),
    rows=st.lists(
        st.dictionaries(
            st.sampled_from(["ep_ip", "ep_type", "ep_name", "group_name", "sw_version", "id"]),
            cells,
        ),
        max_size=3,
    ),
    ep_ext_data=st.sampled_from(["string", "object"]),
)
@example(Reading(), [], [{"ep_ip": "\ud800", "ep_name": "\udc80"}], "string")
@example(Reading(), [], [{"ep_ip": "a\nb"}], "object")
@example(Reading(), [], [{"ep_ip": "\n192.168.1.5 "}], "object")
def test_valid_in_every_case(
    state: Reading, configured: List[SubDevice], rows: List[Dict[str, Any]], ep_ext_data: str
) -> None:
    """Whatever is unknown or odd, the report is valid, strict JSON in UTF-8, each device once."""
    devices, _ = known_devices(configured, rows, {})
    payload = report(state, *devices, ep_ext_data=ep_ext_data)
    json.dumps(payload, allow_nan=False, ensure_ascii=False).encode("utf-8")
    addresses = [device["ep_ip"] for device in payload["sub_devices"]]
    assert len(addresses) == len(set(addresses))


# --- beat ---


@given(
    started=st.floats(0, 1e7),
    interval=st.floats(0.1, 1e5),
    elapsed=st.floats(0, 1e7),
)
def test_the_beat_is_fixed(started: float, interval: float, elapsed: float) -> None:
    """The next beat is ahead, at most an interval away, whole intervals from the start."""
    now = started + elapsed
    beat = next_beat(started, interval, now)
    assert now < beat <= now + interval * 1.0001
    assert (beat - started) / interval == pytest.approx(round((beat - started) / interval))


def test_no_drift_and_no_pile_up() -> None:
    """Late reports shift nothing, and of the beats slept through none is made up for."""
    assert next_beat(100, 20, 100) == 120
    assert next_beat(100, 20, 120) == 140
    assert next_beat(100, 20, 123.7) == 140
    assert next_beat(100, 20, 7305) == 7320


# --- collect ---


def config(
    *devices: SubDevice, url: str = "http://127.0.0.1:9528/DeviceStatus", **gateway: Any
) -> Config:
    """Make a configuration with a platform on this machine."""
    platform = Endpoint("device_status", url, "platform")
    return Config(
        path="uploader.yaml",
        gateway=Gateway(**{"dev_sno": "TJGSDX", "data_partition": "/", **gateway}),
        source=Source(url="sqlite:///event.db"),
        device_status=DeviceStatus((platform,), sub_devices=devices),
    )


def test_collect_with_64_dead_cameras() -> None:
    """The report is there within 2 s, made in a worker thread, and tells dead from alive."""
    with ExitStack() as stack:
        alive = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        dead = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=0))
        alive_port, dead_port = (server.getsockname()[1] for server in (alive, dead))
        for _ in range(4):  # once the backlog is full the kernel drops every further SYN
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            assert filler.connect_ex(("127.0.0.1", dead_port)) == errno.EINPROGRESS
        settings = config(
            SubDevice("127.0.0.1", probe=f"tcp:{alive_port}"),
            *[SubDevice(f"127.0.1.{number}", probe=f"tcp:{dead_port}") for number in range(1, 65)],
            SubDevice("10.0.0.1", probe="seen:1m"),
        )
        payloads: List[Dict[str, Any]] = []

        def work() -> None:
            payloads.append(
                collect(
                    settings,
                    Reader(settings),
                    table_rows=[{"ep_ip": "10.0.0.2", "ep_name": "table"}],
                    seen={"10.0.0.1": 1_700_000_000_000},
                    status="online",
                    now_ms=1_700_000_030_000,
                ).payload
            )

        worker = threading.Thread(target=work)
        started = time.monotonic()
        worker.start()
        worker.join(5)
        assert time.monotonic() - started < 2
    valid.validate(payloads[0])
    online = {each["ep_ip"] for each in payloads[0]["sub_devices"] if each["ep_status"] == "online"}
    assert online == {"127.0.0.1", "10.0.0.1", "10.0.0.2"}
    assert len(payloads[0]["sub_devices"]) == 67


def test_collect_names_every_problem() -> None:
    """With everything wrong at once a valid report goes, and each gap is named."""
    settings = config(
        SubDevice("camera.example", probe="tcp:80"),
        data_partition="/no/such/folder",
        ip="eth99",
    )
    made = collect(
        settings,
        Reader(settings, root=Path("/no/such/folder")),
        table_rows=[{"ep_ip": None}],
        seen={},
        status="offline",
        now_ms=0,
    )
    valid.validate(made.payload)
    assert made.payload["gateway_status"] == "offline"
    told = "\n".join(made.problems)
    for part in ("gateway.ip", "gateway.sn", "data_partition", "camera.example", "ep_ip"):
        assert part in told


def test_reports_leave_nothing_behind() -> None:
    """Report after report, neither sockets nor threads remain of the probes and lookups."""
    clock = itertools.count()
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as alive:
        settings = config(
            SubDevice("127.0.0.1", probe=f"tcp:{alive.getsockname()[1]}"),
            url="http://localhost:9528/DeviceStatus",
        )
        reader = Reader(settings, monotonic=lambda: float(next(clock)))

        def again() -> Tuple[int, int]:
            made = collect(settings, reader, table_rows=[], seen={}, status="online", now_ms=0)
            assert made.payload["sub_devices"][0]["ep_status"] == "online"
            return psutil.Process().num_fds(), threading.active_count()

        files, threads = again()
        for _ in range(200):
            files_now, threads_now = again()
            assert files_now <= files + 1
            assert threads_now <= threads + 1


def test_collect_survives_probes_that_cannot_run() -> None:
    """A probe nobody understands costs the devices their status, never the report."""
    settings = config(SubDevice("127.0.0.1", probe="tcp:http"))
    made = collect(settings, Reader(settings), table_rows=[], seen={}, status="online", now_ms=0)
    valid.validate(made.payload)
    assert made.payload["sub_devices"][0]["ep_status"] == "offline"
    assert any("could not be probed" in problem for problem in made.problems)
