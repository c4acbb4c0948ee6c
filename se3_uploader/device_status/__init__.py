"""The DeviceStatus report: how the box and its capture devices are, as the platform wants it.

The report is section 2 of the protocol: GB are 2^30 bytes, cpu_usage is percent, memory_usage a
fraction. What cannot be found out is left out, or empty where the protocol requires the field;
nothing is invented.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..config import Config, Gateway, SubDevice
from ..payload.columns import device_paths, lookup
from .probes import Statuses, statuses

if TYPE_CHECKING:
    from .gateway import Reader, Reading

PROBE_LIMIT = 1.2
"""Seconds a report waits for dead capture devices: a lost SYN is sent again after 1 s.

With all else that a report waits for it stays under 2 s.
"""
LAST_PROBE_LIMIT = 0.5
"""The same for the report of a stop, which must be delivered within 3 s."""
EARLIER_EVENTS = 20_000
"""Rows in which capture devices are looked for by the probe seen: before the first report."""
EP_TYPES = ("0", "1", "2", "3", "4")


class Report(NamedTuple):
    """A DeviceStatus payload and what kept it from being complete, in words for the log."""

    payload: Dict[str, Any]
    problems: List[str]


def collect(
    config: Config,
    reader: Reader,
    *,
    table_rows: Sequence[Mapping[str, Any]],
    seen: Mapping[str, int],
    status: str,
    now_ms: int,
) -> Report:
    """Read the box, probe its capture devices and format the report; takes up to 2 s, never raises.

    Meant for a worker thread, one at a time. table_rows come from Source.sub_devices, seen from
    Source.last_seen, now_ms is the wall clock (epoch ms), status is ``online`` or, for the last
    report before a stop, ``offline``.
    """
    reading = reader.read()
    devices, problems = known_devices(
        config.device_status.sub_devices, table_rows, config.source.columns
    )
    limit = PROBE_LIMIT if status == "online" else LAST_PROBE_LIMIT
    try:
        found = statuses(devices, seen, now_ms, limit)
    except Exception as error:  # a report without probes is better than none
        found = Statuses({}, [f"the capture devices could not be probed: {error}"])
    payload = format_report(
        reading,
        [(device, found.online.get(device.ep_ip, False)) for device in devices],
        gateway=config.gateway,
        status=status,
        ep_ext_data=config.device_status.ep_ext_data,
    )
    return Report(payload, [*reading.problems, *problems, *found.problems])


def next_beat(started: float, interval: float, now: float) -> float:
    """When the next report is due: the first of started + k * interval after now (monotonic, s).

    Beats missed in a sleep are skipped, not made up for, and a late report shifts no later one.
    """
    beat = started + (math.floor((now - started) / interval) + 1) * interval
    return beat if beat > now else beat + interval


def known_devices(
    configured: Sequence[SubDevice],
    table_rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
) -> Tuple[List[SubDevice], List[str]]:
    """Every capture device once, and the problems met; the configuration wins over the table.

    columns is ``source.columns``, which also says where in the table a field is read from.
    A device without an address cannot be named in a report and is left out. One whose type the
    protocol does not know is reported as "1", capture camera, the configuration's own default:
    a device that vanished from the platform would do more harm.
    """
    devices: Dict[str, SubDevice] = {}
    from_table, problems = _devices_of_table(table_rows, columns)
    for device in [*configured, *from_table]:
        device = replace(device, ep_ip=device.ep_ip.strip())
        if len(device.ep_ip.split()) != 1:
            problems.append("a capture device without an address (ep_ip) is not reported")
            continue
        if device.ep_type not in EP_TYPES:
            problems.append(
                f"capture device {device.ep_ip}: ep_type {device.ep_type[:20]!r} is none of "
                f"{', '.join(EP_TYPES)}; reported as {SubDevice.ep_type}"
            )
            device = replace(device, ep_type=SubDevice.ep_type)
        devices.setdefault(device.ep_ip, device)
    return list(devices.values()), list(dict.fromkeys(problems))


def _devices_of_table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> Tuple[List[SubDevice], List[str]]:
    """The rows as capture devices, and which of the columns asked for none of them has."""
    if not rows:
        return [], []
    there = frozenset().union(*rows)
    paths = device_paths(columns, there)
    missing = [
        name
        for name, path in paths.items()
        if (name == "ep_ip" or path != name) and path.partition(".")[0] not in there
    ]
    problems = [
        f"device_status.sub_devices_table: {name} is read from {paths[name]}, and there is no such "
        f"column; name the right one in source.columns.{name}"
        for name in missing
    ]
    if "ep_ip" in missing:
        return [], problems
    devices = []
    for row in rows:
        fields = {name: _text(lookup(row, path)) for name, path in paths.items()}
        fields["ep_type"] = fields["ep_type"] or SubDevice.ep_type
        devices.append(SubDevice(**fields))
    return devices, problems


def format_report(
    reading: Reading,
    sub_devices: Sequence[Tuple[SubDevice, bool]],
    *,
    gateway: Gateway,
    status: str,
    ep_ext_data: str,
) -> Dict[str, Any]:
    """Format DeviceStatus as in protocol section 2; sub_devices: from known_devices, and if online.

    status is ``online`` or ``offline``; ep_ext_data is ``string`` or ``object`` (decision D3), and
    group_name stands in it (decision D5).
    """
    return {
        "gateway_ip": reading.ip or "",
        "gateway_name": reading.name or "",
        "gateway_status": status,
        "gateway_sn": reading.sn or "",
        "dev_sno": gateway.dev_sno,
        "gateway_ext_data": _known(
            sw_version=reading.sw_version,
            sdk_version=reading.sdk_version,
            gateway_mac=reading.mac,
            cpu_usage=_within(100, reading.cpu_percent),
            memory_size=_gb(reading.memory_bytes) or None,
            memory_usage=_within(1, reading.memory_fraction),
            disk_size=_gb(reading.disk_bytes) or None,
            disk_free_size=_gb(reading.disk_free_bytes),
        ),
        "sub_devices": [
            _sub_device(device, online, gateway.dev_sno, ep_ext_data)
            for device, online in sub_devices
        ],
    }


def _sub_device(device: SubDevice, online: bool, dev_sno: str, ep_ext_data: str) -> Dict[str, Any]:
    extra = _known(sw_version=device.sw_version or None, group_name=device.group_name or None)
    as_string = ep_ext_data == "string"
    return _known(
        ep_id=f"{dev_sno}__{device.ep_ip}",
        ep_name=device.ep_name or None,
        ep_ip=device.ep_ip,
        ep_status="online" if online else "offline",
        ep_type=device.ep_type,
        ep_ext_data=json.dumps(extra, ensure_ascii=False) if as_string else extra,
    )


def _known(**fields: Any) -> Dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _within(greatest: float, value: Optional[float]) -> Optional[float]:
    """Two decimals between 0 and greatest; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    return round(min(max(value, 0.0), greatest), 2)


def _gb(size: Optional[float]) -> Optional[float]:
    """Bytes as GB with two decimals; None for what is no size."""
    if size is None or not math.isfinite(size) or size < 0:
        return None
    return round(size / 2**30, 2)


def _text(value: Any) -> str:
    """Any value of a database or the system as text that UTF-8 can carry; empty for the rest."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, (str, int, float)):
        return ""
    return str(value).encode("utf-8", "replace").decode("utf-8").strip()
