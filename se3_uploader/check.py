"""`se3-uploader check`: every part tried for real, without sending an event or making a file.

No finding holds a name, a person's id, a picture or a token; payloads are kept apart.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
import time
from contextlib import closing
from datetime import datetime
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

import orjson

from . import device_status, payload
from .config import Config, Endpoint
from .device_status.gateway import Reader
from .outbox import OutboxError, OutboxMissing
from .outbox.schema import connect_readonly
from .payload.columns import PICTURES
from .sink import CredentialsError, read_access, try_connection
from .source import Source, SourceError, open_source
from .status import EXPIRY, free_bytes, nearest_folder
from .units import format_duration, format_size

OK, WARN, FAIL, SKIP = "ok", "warn", "FAIL", "skip"
"""Well; works, but look at it; does not work; not tried."""

SHORT = 200
"""Characters of a text in a payload that are shown; of a picture it is fewer in any case."""


class Finding(NamedTuple):
    """What one part said when it was tried."""

    level: str
    part: str
    said: str
    """What was tried and what came back."""
    advice: str = ""
    """What to do about it."""
    payload: Optional[Mapping[str, Any]] = None
    """What would be sent, pictures shortened; personal data, shown only where asked for."""


def run(config: Config, *, network: bool = True) -> Iterator[Finding]:
    """Try every part of a valid configuration; network False: only what needs no connection."""
    yield _file(config)
    yield from _source(config, network)
    yield from _outbox(config)
    for endpoint in config.endpoints:
        yield from _endpoint(endpoint, network)
    if config.device_status.endpoints:
        yield _data_partition(config)
        yield from _report(config, network)


def _file(config: Config) -> Finding:
    if config.gateway.dev_sno.startswith("FILL-IN"):
        return Finding(
            WARN, config.path, "valid, but gateway.dev_sno is not filled in",
            "write the box's authorisation code there",
        )  # fmt: skip
    return Finding(OK, config.path, "valid")


# The event database


def _source(config: Config, network: bool) -> Iterator[Finding]:
    part = f"event database {config.source.name}"
    if not network and not config.source.url.startswith("sqlite:"):
        yield Finding(SKIP, part, "not tried, it needs the network")
        return
    try:
        with closing(open_source(config.source)) as source:
            missing = [path for path in source.watch_paths()[:1] if _is_missing(path)]
            if missing:
                # A service that starts, and asks for no network, waits for it.
                yield Finding(
                    FAIL if network else WARN, part, f"{missing[0]} is not there",
                    "the box makes it with its first event; if it has, mend source.url",
                )  # fmt: skip
                return
            problems = source.problems()
            for problem in problems:
                yield Finding(FAIL, part, problem, "mend source.key, source.columns or the table")
            if not problems:
                yield Finding(OK, part, f"{source.engine}, can be read, every column is there")
                yield _newest_event(config, source)
    except SourceError as error:
        yield Finding(FAIL, part, str(error))


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _newest_event(config: Config, source: Source) -> Finding:
    """Build the newest event as the first endpoint would get it."""
    part = "newest event"
    endpoint = config.history_event.endpoints[0]
    key = source.newest()
    rows = [] if key is None else source.rows([key], _wanted(endpoint), 1).rows
    if not rows:
        return Finding(OK, part, "there is none yet")
    try:
        built = payload.build(
            rows[0].values,
            payload.columns_of(config.source),
            dev_sno=config.gateway.dev_sno,
            unit=config.source.timestamp_unit,
            wire_unit=config.history_event.timestamp_unit,
            pictures=endpoint.pictures,
        )
    except payload.Unusable as unusable:
        return Finding(
            FAIL, part, f"cannot be sent: {unusable}",
            "an event like it becomes a dead letter; source.columns names the columns",
        )  # fmt: skip
    event = orjson.loads(built.body)
    seconds = event["timestamp"] / (1 if config.history_event.timestamp_unit == "s" else 1000)
    happened = datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    said = f"can be sent, {format_size(len(built.body))} {_with_pictures(built)}, of {happened}"
    if not 1_262_304_000 < seconds < time.time() + 86400:
        return Finding(WARN, part, said, "no likely time: mend source.timestamp_unit or the clock")
    if built.notes:
        said = f"{said}; {'; '.join(built.notes)}"
    return Finding(WARN if built.notes else OK, part, said, payload=shortened(event))


def _wanted(endpoint: Endpoint) -> Tuple[str, ...]:
    return payload.wanted_pictures(endpoint.pictures)


def _with_pictures(built: payload.Built) -> str:
    names = [
        name for name, has in (("spot_pic", built.has_spot), ("reg_pic", built.has_reg)) if has
    ]
    return f"with {' and '.join(names)}" if names else "without a picture"


def shortened(value: Any) -> Any:
    """Cut every long text of a payload, such as a picture."""
    if isinstance(value, dict):
        return {
            name: _cut(part)
            if name in PICTURES and isinstance(part, str) and part
            else shortened(part)
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [shortened(part) for part in value]
    if isinstance(value, str) and len(value) > SHORT:
        return _cut(value)
    return value


def _cut(text: str) -> str:
    return f"{text[:16]}… ({len(text):,} characters)"


# The outbox


def _outbox(config: Config) -> Iterator[Finding]:
    path = config.outbox.path
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(folder):
        yield _folder(folder)
        yield _outbox_file(path)
        if os.geteuid() == 0 and os.stat(folder).st_uid != 0:
            owner = _user(os.stat(folder).st_uid)
            yield Finding(
                WARN, "user", f"this is root, but the service runs as {owner}, who may read less",
                f"check as that user: sudo -u {owner} se3-uploader check",
            )  # fmt: skip
    else:
        yield _folder_to_be(folder)
    free, least = free_bytes(path), config.outbox.min_free_disk
    if free is not None and free < least:
        yield Finding(
            WARN, "disk of the outbox", f"{format_size(free)} free, less than {format_size(least)}",
            "payloads at risk are not copied: make room, or lower outbox.min_free_disk",
        )  # fmt: skip
    elif free is not None:
        yield Finding(OK, "disk of the outbox", f"{format_size(free)} free")


def _folder(folder: str) -> Finding:
    part = "outbox folder"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return Finding(
            FAIL, part, f"{folder}: cannot be written by {_user(os.geteuid())}: {error.strerror}",
            "give the folder to the user that the service runs as, or run this as that user",
        )  # fmt: skip
    if stat.S_IMODE(os.stat(folder).st_mode) & 0o077:
        return Finding(WARN, part, f"{folder}: others may look into it", f"chmod 700 {folder}")
    return Finding(OK, part, f"{folder}: can be written, by nobody else")


def _folder_to_be(folder: str) -> Finding:
    parent = nearest_folder(folder)
    if os.access(parent, os.W_OK | os.X_OK):
        return Finding(OK, "outbox folder", f"{folder}: is made at the first start")
    return Finding(
        WARN, "outbox folder",
        f"{folder}: is not there, and {_user(os.geteuid())} cannot make it in {parent}",
        "StateDirectory= of the service makes it; else make it, mode 700, and mend outbox.path",
    )  # fmt: skip


def _outbox_file(path: str) -> Finding:
    unusable = Finding(
        FAIL, "outbox", f"{path}: is a symbolic link, or not writable by this user",
        "give the file itself to the user that the service runs as",
    )  # fmt: skip
    if os.path.islink(path):
        return unusable
    try:
        connect_readonly(path).close()
    except OutboxMissing:
        return Finding(OK, "outbox", f"{path}: is made at the first start")
    except OutboxError as error:
        return Finding(FAIL, "outbox", str(error))
    if not os.access(path, os.W_OK):
        return unusable
    return Finding(OK, "outbox", f"{path}: can be read")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# The endpoints

_ADVICE = {
    "connection": "start the platform, or correct host and port in the url",
    "timeout": "look at the network, the firewall and the proxy on the way",
    "tls": "have the certificate renewed, or name its authority in tls.ca_file",
}
"""What to do about a fault of the sink, where its own words do not say it."""


def _endpoint(endpoint: Endpoint, network: bool) -> Iterator[Finding]:
    try:
        read_access(endpoint)
    except CredentialsError as error:
        yield Finding(FAIL, endpoint.name, str(error))
        return
    yield from _secrets(endpoint)
    for path in _secret_files(endpoint):
        yield Finding(OK, endpoint.name, f"{path}: can be read")
    if endpoint.url.lower().startswith("http:") and endpoint.allow_plaintext:
        yield Finding(
            WARN, endpoint.name, "allow_plaintext: what is sent can be read on the way", "use https"
        )
    if not endpoint.tls.verify:
        yield Finding(
            WARN, endpoint.name, "tls.verify is false: whoever answers gets everything",
            "name the platform's authority in tls.ca_file instead",
        )  # fmt: skip
    if network:
        yield _connection(endpoint)
    else:
        yield Finding(SKIP, endpoint.name, "not connected to, it needs the network")


def _secrets(endpoint: Endpoint) -> Iterator[Finding]:
    """Tell of secrets that others may read."""
    for path in _secret_files(endpoint):
        if os.path.exists(path) and stat.S_IMODE(os.stat(path).st_mode) & 0o007:
            advice = f"chmod o-rwx {path}"
            yield Finding(WARN, endpoint.name, f"{path}: everybody may read this secret", advice)


def _secret_files(endpoint: Endpoint) -> List[str]:
    auth, tls = endpoint.auth, endpoint.tls
    return [path for path in (auth.bearer_file, auth.basic_file, tls.key_file) if path]


def _connection(endpoint: Endpoint) -> Finding:
    started = time.monotonic()
    fault, not_after = try_connection(endpoint)
    if fault is not None:
        return Finding(FAIL, endpoint.name, fault[1], _ADVICE.get(fault[0], ""))
    took = format_duration(time.monotonic() - started)
    where = urlsplit(endpoint.proxy or endpoint.url).netloc.rpartition("@")[2]
    proxy = "the proxy " if endpoint.proxy else ""
    said = f"{proxy}{where} can be connected to, in {took}"
    if not_after is None:
        return Finding(OK, endpoint.name, said)
    until = datetime.fromtimestamp(not_after).strftime("%Y-%m-%d")
    said = f"{said}; its certificate is good until {until}"
    if not_after - time.time() < EXPIRY:
        return Finding(WARN, endpoint.name, said, "have it renewed: after that nothing is sent")
    return Finding(OK, endpoint.name, said)


# The status report


def _report(config: Config, network: bool) -> Iterator[Finding]:
    part = "status report"
    if not network:
        yield Finding(SKIP, part, "not made, it needs the network")
        return
    rows, seen, problems = _devices(config)
    report = device_status.collect(
        config, Reader(config), table_rows=rows, seen=seen, status="online",
        now_ms=int(time.time() * 1000),
    )  # fmt: skip
    for problem in problems:
        yield Finding(FAIL, part, problem, "mend device_status.sub_devices_table, or leave it out")
    for problem in report.problems:
        yield Finding(WARN, part, problem, "the report goes without it")
    devices = report.payload["sub_devices"]
    online = sum(device["ep_status"] == "online" for device in devices)
    shown = shortened(report.payload)
    said = (
        f"can be made, {online} of {len(devices)} capture devices online:"
        f" {orjson.dumps(shown).decode()}"
    )
    yield Finding(OK, part, said, payload=shown)


def _data_partition(config: Config) -> Finding:
    part, path = "data partition", config.gateway.data_partition
    try:
        disk = os.statvfs(path)
    except OSError as error:
        return Finding(
            WARN, part, f"{path}: {error.strerror}",
            "reports go without the disk's sizes; gateway.data_partition names it",
        )  # fmt: skip
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    return Finding(OK, part, f"{path}: {format_size(free)} of {format_size(size)} free")


def _devices(config: Config) -> Tuple[List[Mapping[str, Any]], Dict[str, int], List[str]]:
    """Read what the event database says of the capture devices, as the daemon does."""
    table = config.device_status.sub_devices_table
    probed = any(d.probe.startswith("seen:") for d in config.device_status.sub_devices)
    rows: List[Mapping[str, Any]] = []
    seen: Dict[str, int] = {}
    if not table and not probed:
        return rows, seen, []
    try:
        with closing(open_source(config.source)) as source:
            if table:
                rows = source.sub_devices(table)
            if probed:
                seen = source.last_seen(device_status.EARLIER_EVENTS)
    except SourceError as error:
        return rows, seen, [f"the capture devices cannot be read: {error}"]
    return rows, seen, []
