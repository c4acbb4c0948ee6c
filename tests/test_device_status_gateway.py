"""Reading the box: against /proc, statvfs, real files and real network namespaces."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from se3_uploader.config import Config, DeviceStatus, Endpoint, FromFile, Gateway, Source
from se3_uploader.device_status.gateway import LOOKUP_LIMIT, Reader, busy_percent


def config(url: str = "http://127.0.0.1:9528/DeviceStatus", **gateway: Any) -> Config:
    """Make a configuration whose platform is at url."""
    return Config(
        path="uploader.yaml",
        gateway=Gateway(dev_sno="TJGSDX", **{"data_partition": "/", **gateway}),
        source=Source(url="sqlite:///event.db"),
        device_status=DeviceStatus((Endpoint(kind="device_status", url=url, name="platform"),)),
    )


@contextmanager
def one_busy_processor() -> Iterator[None]:
    """Keep one processor busy in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as spinner:
        assert spinner.stdout
        spinner.stdout.readline()
        try:
            yield
        finally:
            spinner.kill()


def busy_and_total() -> tuple[int, int]:
    """Read the kernel's own account of processor time, in clock ticks."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, iowait = fields[3:5]
    return sum(fields) - idle - iowait, sum(fields)


# --- readings ---


def test_cpu_usage_is_the_percentage_since_the_last_report() -> None:
    """The reading agrees with /proc/stat over the same interval, with a busy processor in it."""
    reader = Reader(config())
    reader.read()
    busy, total = busy_and_total()
    with one_busy_processor():
        threading.Event().wait(0.5)
        cpu_percent = reader.read().cpu_percent
    busy, total = (after - before for after, before in zip(busy_and_total(), (busy, total)))
    assert cpu_percent == pytest.approx(100 * busy / total, abs=8)
    assert cpu_percent > 80 / (os.cpu_count() or 1)


def test_first_cpu_usage_is_measured() -> None:
    """The first report measures for a moment instead of sending the 0.0 of a first reading."""
    with one_busy_processor():
        cpu_percent = Reader(config()).read().cpu_percent
    assert cpu_percent is not None
    assert cpu_percent > 50 / (os.cpu_count() or 1)


def test_cpu_usage_counts_waiting_as_idle_and_guests_once() -> None:
    """Waiting for the disk is idle time, guest time is not counted beside user time."""
    before = dict.fromkeys(["user", "idle", "iowait", "guest"], 10.0)
    after = {"user": 11.0, "idle": 12.0, "iowait": 11.0, "guest": 11.0}
    assert busy_percent(before, after) == 25


def test_cpu_usage_survives_a_counter_that_falls() -> None:
    """The kernel's iowait can fall: still a percentage. No time at all gives none."""
    before = {"user": 10.0, "idle": 10.0, "iowait": 10.0}
    assert busy_percent(before, {"user": 11.0, "idle": 11.0, "iowait": 2.0}) == 50
    with pytest.raises(ValueError, match="counted no time"):
        busy_percent(before, before)


def test_memory_agrees_with_proc_meminfo() -> None:
    """Total in bytes, usage as the fraction that is not available."""
    reading = Reader(config()).read()
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    assert reading.memory_bytes == kib["MemTotal"] * 1024
    expected = 1 - kib["MemAvailable"] / kib["MemTotal"]
    assert reading.memory_fraction == pytest.approx(expected, abs=0.03)


def test_disk_agrees_with_statvfs(tmp_path: Path) -> None:
    """Free is what others than root can use, on the partition that is named."""
    reading = Reader(config(data_partition=str(tmp_path))).read()
    partition = os.statvfs(tmp_path)
    assert reading.disk_bytes == partition.f_blocks * partition.f_frsize
    free = partition.f_bavail * partition.f_frsize
    assert reading.disk_free_bytes == pytest.approx(free, abs=64 * 2**20)


def test_free_leaves_out_what_only_root_can_use(tmp_path: Path) -> None:
    """On ext4 with blocks reserved for root the smaller of the two kinds of free is reported."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4 to make a file system with reserved blocks")
    image, mounted = tmp_path / "image", tmp_path / "data"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(32 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "20", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, mounted], check=False).returncode:
        pytest.skip("cannot mount a loop device here")
    try:
        partition = os.statvfs(mounted)
        reading = Reader(config(data_partition=str(mounted))).read()
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert partition.f_bfree > partition.f_bavail
    assert reading.disk_free_bytes == partition.f_bavail * partition.f_frsize


def test_a_partition_that_is_gone(tmp_path: Path) -> None:
    """Its two values are unknown, the reason is told, all else is read."""
    reading = Reader(config(data_partition=str(tmp_path / "gone"))).read()
    assert (reading.disk_bytes, reading.disk_free_bytes) == (None, None)
    assert any("gateway.data_partition" in problem for problem in reading.problems)
    assert reading.memory_bytes
    assert reading.name == socket.gethostname()


def test_a_system_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sandbox hides /proc/stat and /proc/meminfo, the rest is read and gaps are told."""
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    reader = Reader(config())
    reading = reader.read()
    assert (reading.cpu_percent, reading.memory_bytes, reading.memory_fraction) == (None,) * 3
    assert reading.disk_bytes
    told = "\n".join(reading.problems)
    assert "the CPU usage" in told
    assert "the memory" in told
    monkeypatch.undo()
    assert reader.read().cpu_percent is not None


# --- identity ---


def test_literals() -> None:
    """What the configuration states is reported as it stands, a MAC in the protocol's form."""
    reading = Reader(
        config(
            ip="203.0.113.7",
            name="lobby",
            sn="SZCCKQRAIJBAH0002",
            mac="E0-A5-09-00-0E-6D",
            sw_version="2.6.0",
            sdk_version="3.1",
        )
    ).read()
    assert reading.ip == "203.0.113.7"
    assert reading.name == "lobby"
    assert reading.sn == "SZCCKQRAIJBAH0002"
    assert reading.mac == "e0:a5:09:00:0e:6d"
    assert (reading.sw_version, reading.sdk_version) == ("2.6.0", "3.1")
    assert reading.problems == ()


def test_a_version_file_is_read_again(tmp_path: Path) -> None:
    """A changed, vanished or returned file shows in the next report; missing is empty, and told."""
    file = tmp_path / "version"
    reader = Reader(config(sw_version=FromFile(str(file)), sn="1", mac="e0:a5:09:00:0e:6d"))
    missing = reader.read()
    assert missing.sw_version == ""
    assert len(missing.problems) == 1
    assert "gateway.sw_version" in missing.problems[0]
    assert str(file) in missing.problems[0]
    file.write_text("\n  2.6.0 \nbuilt yesterday\n")
    assert reader.read().sw_version == "2.6.0"
    file.write_text("2.6.1")
    assert reader.read().sw_version == "2.6.1"
    assert reader.read().problems == ()
    file.unlink()
    assert reader.read().sw_version == ""


def test_an_unconfigured_version_is_unknown() -> None:
    """The default is no version at all, and no reason to complain."""
    reading = Reader(config()).read()
    assert (reading.sw_version, reading.sdk_version) == (None, None)
    assert not any("version" in problem for problem in reading.problems)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_version_file_that_is_no_file(kind: str, tmp_path: Path) -> None:
    """A named pipe cannot hold the report, /dev/zero cannot fill the memory."""
    path = tmp_path / "version"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    reading = Reader(config(sw_version=FromFile(str(path)))).read()
    assert reading.sw_version == ""
    assert any("gateway.sw_version" in problem for problem in reading.problems)


def test_a_version_file_of_odd_bytes(tmp_path: Path) -> None:
    """A huge line is cut, bytes that are no UTF-8 are replaced: the report stays valid."""
    path = tmp_path / "version"
    path.write_bytes(b"\xff2.6" + b"x" * 100_000)
    version = Reader(config(sw_version=FromFile(str(path)))).read().sw_version
    assert version is not None
    assert version.startswith("\ufffd2.6")
    assert len(version) <= 4096


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/device-tree/serial-number": b"SZCC0002\0"}, "SZCC0002"),
        ({"sys/firmware/devicetree/base/serial-number": b"SZCC0003\0"}, "SZCC0003"),
        ({"sys/class/dmi/id/product_serial": b"DMI4\n"}, "DMI4"),
        (
            {
                "sys/class/dmi/id/product_serial": b"To be filled by O.E.M.\n",
                "sys/class/dmi/id/board_serial": b"BOARD5\n",
            },
            "BOARD5",
        ),
        ({"proc/device-tree/serial-number": b"\0", "sys/class/dmi/id/product_serial": b"6"}, "6"),
    ],
)
def test_serial_number(files: Dict[str, bytes], expected: str, tmp_path: Path) -> None:
    """The device tree comes before DMI, and a placeholder of the firmware is no serial number."""
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert Reader(config(), root=tmp_path).read().sn == expected


def test_no_serial_number(tmp_path: Path) -> None:
    """A box that has none reports none, and says where one can be written."""
    reading = Reader(config(), root=tmp_path).read()
    assert reading.sn is None
    assert any("gateway.sn" in problem for problem in reading.problems)


# --- address ---


def test_the_address_that_reaches_the_platform() -> None:
    """A platform on this machine is reached from the loopback address, which has no MAC."""
    reading = Reader(config("http://127.0.0.1:9528/DeviceStatus")).read()
    assert reading.ip == "127.0.0.1"
    assert reading.mac is None
    assert any("gateway.mac" in problem for problem in reading.problems)


def test_the_platform_by_name() -> None:
    """A host name is looked up for the same purpose."""
    assert Reader(config("http://localhost:9528/")).read().ip in ("127.0.0.1", "::1")


def test_the_platform_behind_a_proxy() -> None:
    """What counts is the way to the proxy: the platform itself may have no route at all."""
    settings = config("http://203.0.113.1:9528/")
    platform = replace(settings.device_status.endpoints[0], proxy="http://127.0.0.1:3128")
    settings = replace(settings, device_status=DeviceStatus((platform,)))
    assert Reader(settings).read().ip == "127.0.0.1"


def test_an_interface_by_name() -> None:
    """The name of an interface stands for its IPv4 address."""
    assert Reader(config(ip="lo")).read().ip == "127.0.0.1"


@pytest.mark.parametrize("ip", ["eth99", "not an address"])
def test_an_interface_that_is_gone(ip: str) -> None:
    """Neither interface nor address: unknown, and the name is told."""
    reading = Reader(config(ip=ip)).read()
    assert (reading.ip, reading.mac) == (None, None)
    assert any(repr(ip) in problem for problem in reading.problems)


def test_hanging_dns_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While DNS hangs, a report waits a moment, one lookup stands, and its answer counts later."""
    answers, lookup = threading.Event(), socket.getaddrinfo
    asked = []

    def slow(host: str, *arguments: Any, flags: int = 0, **more: Any) -> Any:
        if host == "platform.example" and not flags:
            asked.append(host)
            answers.wait(10)
            host = "127.0.0.1"
        return lookup(host, *arguments, flags=flags, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    reader = Reader(config("http://platform.example:9528/"))
    reader.read()
    started = time.monotonic()
    reading = reader.read()
    assert time.monotonic() - started < LOOKUP_LIMIT + 0.5
    assert any("platform.example has no known address" in each for each in reading.problems)
    assert len(asked) == 1
    answers.set()
    reading = reader.read()
    assert reading.ip == "127.0.0.1"
    assert not any("platform.example" in each for each in reading.problems)


READ = """
import sys
from dataclasses import asdict
import json
from se3_uploader.device_status.gateway import Reader
from tests.test_device_status_gateway import config
reader = Reader(config(sys.argv[1], **json.loads(sys.argv[2])))
print(json.dumps(asdict(reader.read())))
"""


def read_in_network(commands: str, url: str, **gateway: str) -> Dict[str, Any]:
    """Read the box in a new network namespace, set up by shell commands."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs root, unshare and ip for a network of its own")
    shell = f'{commands}\nexec "$@"'
    python = [sys.executable, "-c", READ, url, json.dumps(gateway)]
    answer = subprocess.run(
        ["unshare", "-n", "sh", "-ec", shell, "sh", *python],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    reading: Dict[str, Any] = json.loads(answer.stdout)
    return reading


TWO_NETWORKS = """
ip link add lan type veth peer name lan-peer
ip link add wan type veth peer name wan-peer
ip link set lan-peer up
ip link set wan-peer up
ip link set lan address e0:a5:09:00:0e:6d up
ip link set wan address e0:a5:09:00:0e:6e up
ip addr add 10.1.0.2/24 dev lan
ip addr add 10.2.0.2/24 dev wan
ip addr add fd02::2/64 dev wan nodad
ip addr add 10.3.0.2/24 dev wan label wan:1
ip route add default via 10.2.0.1
"""


@pytest.mark.parametrize(
    ("url", "ip", "mac"),
    [
        ("http://10.1.0.9:9528/DeviceStatus", "10.1.0.2", "e0:a5:09:00:0e:6d"),
        ("http://10.2.0.9:9528/DeviceStatus", "10.2.0.2", "e0:a5:09:00:0e:6e"),
        ("https://203.0.113.1/DeviceStatus", "10.2.0.2", "e0:a5:09:00:0e:6e"),
        ("http://10.3.0.9:9528/DeviceStatus", "10.3.0.2", "e0:a5:09:00:0e:6e"),
        ("https://[fd02::9]/DeviceStatus", "fd02::2", "e0:a5:09:00:0e:6e"),
        ("https://platform.invalid/DeviceStatus", "10.2.0.2", "e0:a5:09:00:0e:6e"),
    ],
)
def test_address_and_mac_of_the_same_interface(url: str, ip: str, mac: str) -> None:
    """Of two interfaces the one the platform is reached by counts, for the address and the MAC."""
    reading = read_in_network(TWO_NETWORKS, url)
    assert (reading["ip"], reading["mac"]) == (ip, mac)


def test_mac_of_a_named_interface() -> None:
    """An interface named in the configuration wins over the way to the platform."""
    reading = read_in_network(TWO_NETWORKS, "http://10.2.0.9:9528/", ip="lan")
    assert (reading["ip"], reading["mac"]) == ("10.1.0.2", "e0:a5:09:00:0e:6d")


def test_mac_of_a_named_interface_without_address() -> None:
    """Such an interface still says which box this is."""
    commands = "ip link add lan address e0:a5:09:00:0e:6d type veth"
    reading = read_in_network(commands, "http://10.2.0.9:9528/", ip="lan")
    assert (reading["ip"], reading["mac"]) == (None, "e0:a5:09:00:0e:6d")


def test_no_network_at_all() -> None:
    """With every interface down address and MAC are unknown, all else is read."""
    reading = read_in_network("true", "http://10.1.0.9:9528/")
    assert (reading["ip"], reading["mac"]) == (None, None)
    assert any("no network interface leads to the platform" in each for each in reading["problems"])
    assert reading["cpu_percent"] is not None
    assert reading["disk_bytes"] is not None
