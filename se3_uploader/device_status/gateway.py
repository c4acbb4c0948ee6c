"""The state of the box, read from the system it runs on."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar
from urllib.parse import urlsplit

import psutil

from ..config import Config, FromFile, TextOrFile

LOOKUP_LIMIT = 0.3
"""Seconds a report waits for the platform's address where none is known yet."""
CPU_INTERVAL = 0.2
"""Seconds: over less a CPU percentage means little, because the kernel counts in steps of 10 ms."""
FILE_LIMIT = 4096
"""Bytes read of a file that holds a version or a serial number."""

NUMERIC = socket.AI_NUMERICHOST
MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
NO_MAC = "00:00:00:00:00:00"
ANYWHERE = ("192.0.2.1", "2001:db8::1")
"""Documentation addresses: the way to them is the default route. Nothing is ever sent there."""
SERIAL_NUMBERS = (
    "proc/device-tree/serial-number",
    "sys/firmware/devicetree/base/serial-number",
    "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/board_serial",
)
NO_SERIAL_NUMBER = {
    "",
    "0",
    "none",
    "default string",
    "not specified",
    "system serial number",
    "to be filled by o.e.m.",
}
"""What firmware says (in lower case) where the maker wrote no serial number."""

Addresses = List[Tuple[Any, ...]]
"""What socket.getaddrinfo returns."""
Interfaces = Mapping[str, Sequence[Any]]
"""What psutil.net_if_addrs returns: interface -> its addresses, each with family and address."""
T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """What could be found out about the box; None: unknown, and problems says why."""

    ip: Optional[str] = None
    name: Optional[str] = None
    sn: Optional[str] = None
    mac: Optional[str] = None
    """Lower case with colons, as protocol section 2 has it."""
    sw_version: Optional[str] = None
    """None: not configured; empty: configured, but its file cannot be read."""
    sdk_version: Optional[str] = None
    cpu_percent: Optional[float] = None
    memory_bytes: Optional[float] = None
    memory_fraction: Optional[float] = None
    disk_bytes: Optional[float] = None
    disk_free_bytes: Optional[float] = None
    """Usable by others than root."""
    problems: Tuple[str, ...] = ()


class Reader:
    """Reads the box, again and again, in one thread at a time.

    root is where /proc and /sys are looked for serial numbers; monotonic gives seconds.
    """

    def __init__(
        self,
        config: Config,
        monotonic: Callable[[], float] = time.monotonic,
        root: Path = Path("/"),
    ) -> None:
        self._gateway = config.gateway
        self._monotonic = monotonic
        self._root = root
        self._platform = Platform(_platform_host(config))
        self._problems: List[str] = []
        self._cpu_times: Dict[str, float] = {}
        self._cpu_read_at = 0.0
        with suppress(Exception):  # read() tries again and says why it fails
            self._read_cpu_times()

    def read(self) -> Reading:
        """Read everything, in some ms, at most 0.5 s. What fails is None and named in problems."""
        self._problems = []
        gateway = self._gateway
        interfaces = self._try("the network interfaces", psutil.net_if_addrs) or {}
        ip = self._try("gateway.ip", lambda: self._ip(interfaces))
        memory = self._try("the memory", psutil.virtual_memory)
        disk = self._try(
            f"gateway.data_partition {gateway.data_partition}",
            lambda: psutil.disk_usage(gateway.data_partition),
        )
        return Reading(
            ip=ip,
            name=self._try("gateway.name", self._name),
            sn=self._try("gateway.sn", self._serial_number),
            mac=self._try("gateway.mac", lambda: self._mac(interfaces, ip)),
            sw_version=self._version("gateway.sw_version", gateway.sw_version),
            sdk_version=self._version("gateway.sdk_version", gateway.sdk_version),
            cpu_percent=self._try("the CPU usage", self._cpu_percent),
            memory_bytes=memory and memory.total,
            memory_fraction=memory and 1 - memory.available / memory.total,
            disk_bytes=disk and disk.total,
            disk_free_bytes=disk and disk.free,
            problems=tuple(self._problems),
        )

    def _try(self, what: str, read: Callable[[], T]) -> Optional[T]:
        try:
            return read()
        except Exception as error:  # whatever a sensor does, the report goes without it
            self._problems.append(f"cannot read {what}: {error}")
            return None

    def _ip(self, interfaces: Interfaces) -> str:
        wanted = self._gateway.ip
        if wanted == "auto":
            return self._own_address()
        if wanted in interfaces:
            return _address_of(wanted, interfaces[wanted])
        try:
            return str(ipaddress.ip_address(wanted))
        except ValueError:
            raise ValueError(f"{wanted!r} is no interface of this box and no address") from None

    def _own_address(self) -> str:
        """Our address on the way to the platform, or on the default route while DNS is silent."""
        addresses = self._platform.addresses()
        if not addresses:
            self._problems.append(
                f"the platform {self._platform.host} has no known address (DNS), "
                "so gateway_ip is the address on the default route"
            )
            addresses = [found for address in ANYWHERE for found in look_up(address, NUMERIC)]
        for family, kind, protocol, _, place in addresses:
            with suppress(OSError), socket.socket(family, kind, protocol) as datagrams:
                datagrams.connect(place)  # UDP: picks the route and sends nothing
                return str(datagrams.getsockname()[0])
        raise LookupError("no network interface leads to the platform")

    def _mac(self, interfaces: Interfaces, ip: Optional[str]) -> str:
        if self._gateway.mac != "auto":
            mac = self._gateway.mac.lower().replace("-", ":")
            if not MAC.fullmatch(mac):
                raise ValueError("it is not of the form e0:a5:09:00:0e:6d")
            return mac
        names = [name for name in interfaces if name == self._gateway.ip] or [
            name.partition(":")[0]  # wan:1 labels a second address of wan, which has the MAC
            for name, addresses in interfaces.items()
            if ip in [_without_zone(each.address) for each in addresses]
        ]
        for name in names:
            for each in interfaces.get(name, ()):
                mac = str(each.address).lower()
                if each.family == psutil.AF_LINK and MAC.fullmatch(mac) and mac != NO_MAC:
                    return mac
        raise LookupError(f"no interface with a MAC has the address {ip or '(unknown)'}")

    def _name(self) -> str:
        name = socket.gethostname() if self._gateway.name == "auto" else self._gateway.name
        return name.encode("utf-8", "replace").decode("utf-8")

    def _serial_number(self) -> str:
        wanted = self._gateway.sn
        if isinstance(wanted, FromFile):
            return first_line(Path(wanted.path))
        if wanted != "auto":
            return wanted
        for place in SERIAL_NUMBERS:
            with suppress(OSError):
                found = first_line(self._root / place)
                if found.lower() not in NO_SERIAL_NUMBER:
                    return found
        raise LookupError("neither the device tree nor DMI has a serial number we may read")

    def _version(self, key: str, wanted: TextOrFile) -> Optional[str]:
        """Return None where none is configured, empty text where its file cannot be read."""
        if isinstance(wanted, FromFile):
            path = Path(wanted.path)
            return self._try(key, lambda: first_line(path)) or ""
        return wanted or None

    def _cpu_percent(self) -> float:
        """Busy percent of all processors since the last report."""
        if not self._cpu_times:
            self._read_cpu_times()
        if self._monotonic() - self._cpu_read_at < CPU_INTERVAL:
            time.sleep(CPU_INTERVAL)
        before = self._cpu_times
        self._read_cpu_times()
        return busy_percent(before, self._cpu_times)

    def _read_cpu_times(self) -> None:
        self._cpu_times = psutil.cpu_times()._asdict()
        self._cpu_read_at = self._monotonic()


class Platform:
    """The host our packets go to, looked up beside the report, since DNS may hang for a minute."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._numeric = look_up(host, NUMERIC)
        self._found: Addresses = []
        self._lookup: Optional[threading.Thread] = None

    def addresses(self) -> Addresses:
        """The addresses known now. Waits LOOKUP_LIMIT for a first answer, not for a newer one."""
        if self._numeric:
            return self._numeric
        if self._lookup is None or not self._lookup.is_alive():
            self._lookup = threading.Thread(target=self._refresh, name="lookup", daemon=True)
            self._lookup.start()
        if not self._found:
            self._lookup.join(LOOKUP_LIMIT)
        return self._found

    def _refresh(self) -> None:
        self._found = look_up(self.host) or self._found


def look_up(host: str, flags: int = 0) -> Addresses:
    """Return the addresses of a host for UDP, none where it has none; flags as for getaddrinfo."""
    try:
        return list(socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM, flags=flags))
    except (OSError, ValueError):
        return []


def first_line(path: Path) -> str:
    """Return the first line of text in a file, without NULs (device tree) and space around it.

    Raises OSError where it cannot be read or is no ordinary file, so that no pipe can hold us.
    """

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is not an ordinary file")
        text = file.read(FILE_LIMIT).decode("utf-8", "replace").replace("\0", "").strip()
    return text.splitlines()[0].strip() if text else ""


def busy_percent(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """How busy the processors were between two readings of /proc/stat (kind of time -> seconds).

    Time waiting for the disk is idle. Guest time is part of user time already.
    """
    spent = {
        kind: max(after[kind] - before[kind], 0.0) for kind in after if not kind.startswith("guest")
    }
    total = sum(spent.values())
    if total <= 0:
        raise ValueError("the kernel counted no time since the last report")
    return 100 * (1 - (spent["idle"] + spent.get("iowait", 0.0)) / total)


def _platform_host(config: Config) -> str:
    for endpoint in config.device_status.endpoints:
        return urlsplit(endpoint.proxy or endpoint.url).hostname or ANYWHERE[0]
    return ANYWHERE[0]


def _address_of(name: str, addresses: Sequence[Any]) -> str:
    """Return an interface's IPv4 address, else its IPv6 address, the link-local ones last."""
    found = [
        ipaddress.ip_address(_without_zone(each.address))
        for each in addresses
        if each.family in (socket.AF_INET, socket.AF_INET6)
    ]
    if not found:
        raise LookupError(f"interface {name} has no address")
    return str(min(found, key=lambda address: (address.is_link_local, address.version)))


def _without_zone(address: str) -> str:
    return address.partition("%")[0]
