"""Which capture devices a report names: those of the configuration, and those of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest

from se3_uploader import check
from se3_uploader.config import SubDevice
from se3_uploader.device_status import known_devices

from .site import Site


def test_devices_of_configuration_and_table() -> None:
    """The table adds to the configuration, which wins where both have a device."""
    configured = [SubDevice("192.168.1.101", "0", "lobby", probe="tcp:80")]
    rows = [
        {"id": 1, "ep_ip": "192.168.1.101", "ep_name": "other", "ep_type": "3"},
        {"id": 2, "ep_ip": b" 192.168.1.102\n", "ep_type": 4, "ep_name": "门", "group_name": None},
    ]
    assert known_devices(configured, rows, {}) == (
        [configured[0], SubDevice("192.168.1.102", "4", "门")],
        [],
    )


def test_a_device_of_unknown_type() -> None:
    """It is reported as a capture camera, since a device that vanished would do more harm."""
    devices, problems = known_devices([], [{"ep_ip": "192.168.1.101", "ep_type": "17"}], {})
    assert devices == [SubDevice("192.168.1.101", "1")]
    assert "192.168.1.101" in problems[0]
    assert "'17'" in problems[0]


@pytest.mark.parametrize("row", [{}, {"ep_ip": None}, {"ep_ip": " "}, {"ep_ip": "a b"}])
def test_a_device_without_address(row: Dict[str, Any]) -> None:
    """It has no ep_id, so it is left out and told; the others stay."""
    devices, problems = known_devices([], [row, {"ep_ip": "192.168.1.101"}], {})
    assert devices == [SubDevice("192.168.1.101")]
    assert len(problems) == 1


MAPPING = {
    "identity_id": "person",
    "group_name": "team",
    "ep_ip": "net.address",
    "ep_name": "title",
    "ep_type": "kind",
    "sw_version": "firmware",
}
"""source.columns, for events and devices alike."""


@pytest.mark.parametrize("net", [{"address": "10.0.0.1"}, '{"address": "10.0.0.1"}'])
def test_a_table_with_other_names(net: object) -> None:
    """Every field is read where source.columns says, in documents and JSON text, too."""
    row = {
        "net": net, "title": "门", "kind": 4, "firmware": "1.2", "team": "staff",
        "ep_ip": "10.9.9.9", "ep_name": "?", "ep_type": "0", "sw_version": "?", "group_name": "?",
    }  # fmt: skip
    assert known_devices([], [row], MAPPING) == (
        [SubDevice("10.0.0.1", "4", "门", "staff", "1.2")],
        [],
    )


@pytest.mark.parametrize("mapped", ["team", "common.team"])
def test_the_group_of_a_table_without_the_events_column(mapped: str) -> None:
    """It is mapped for the events; a table of devices that has not heard of that has its own."""
    rows = [{"ep_ip": "10.0.0.1", "group_name": "staff"}]
    devices, problems = known_devices([], rows, {"group_name": mapped})
    assert (devices, problems) == ([SubDevice("10.0.0.1", group_name="staff")], [])


def test_a_table_without_addresses() -> None:
    """The column that is not there is told once, by its name, and not for each of the rows."""
    rows = [{"id": 1, "ep_name": "door"}, {"id": 2, "ep_name": "gate"}]
    for columns, path in (({}, "ep_ip"), ({"ep_ip": "net.address"}, "net.address")):
        devices, (problem,) = known_devices([SubDevice("10.0.0.1")], rows, columns)
        assert devices == [SubDevice("10.0.0.1")]
        assert f"ep_ip is read from {path}, and there is no such column" in problem
        assert "source.columns.ep_ip" in problem
    assert known_devices([], [], {"ep_ip": "address"}) == ([], [])


def test_addresses_that_a_path_does_not_lead_to() -> None:
    """A table full of devices without an address is one problem, not one for each row."""
    rows: List[Dict[str, Any]] = [{"net": "{}"}, {"net": None}, {"net": "broken {"}]
    devices, problems = known_devices([], rows, {"ep_ip": "net.address"})
    assert devices == []
    assert problems == ["a capture device without an address (ep_ip) is not reported"]


def test_a_table_without_a_column_that_was_mapped() -> None:
    """A slip in the name is told; the devices are reported without the field."""
    rows = [{"ep_ip": "10.0.0.1", "title": "door"}]
    devices, (problem,) = known_devices([], rows, {"ep_name": "titel", "ep_type": "ep_type"})
    assert devices == [SubDevice("10.0.0.1")]
    assert "ep_name is read from titel, and there is no such column" in problem


def test_check_reads_a_table_with_other_names(tmp_path: Path) -> None:
    """In a real database; the event table need not have the columns mapped for devices."""
    site = Site(tmp_path)
    site.run("CREATE TABLE cameras (address TEXT, info TEXT, group_name TEXT)")
    site.run("""INSERT INTO cameras VALUES ('10.0.0.1', '{"title": "door"}', 'lobby')""")

    def told(part: str, **columns: str) -> Dict[str, str]:
        config = site.configure(
            "http://127.0.0.1:9/",
            source={"columns": columns},
            device_status={
                "endpoints": [{"url": "http://127.0.0.1:9/", "name": "status"}],
                "sub_devices_table": "cameras",
            },
        )
        return {one.said: one.level for one in check.run(config, network=True) if one.part == part}

    report = " ".join(told("status report", ep_ip="address", ep_name="info.title"))
    assert "1 of 1 capture devices online" in report
    assert '"ep_name":"door","ep_ip":"10.0.0.1"' in report
    assert set(told("event database events", ep_ip="address").values()) == {"ok"}
    warned = [text for text, level in told("status report", ep_ip="adress").items()
              if level == "warn" and "adress" in text]  # fmt: skip
    assert len(warned) == 1
    assert "ep_ip is read from adress, and there is no such column" in warned[0]
