"""uploader.yaml as frozen dataclasses, one field for each key of the file.

Durations are float seconds, sizes are int bytes, paths are as written. What may hold a password
stays out of every repr.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union
from urllib.parse import urlsplit

from .. import units
from . import rules, yaml_file

PLACES = ("./uploader.yaml", "/etc/se3-uploader/uploader.yaml")
"""Where uploader.yaml is looked for when nobody says where it is."""

PROFILES = pathlib.Path(__file__).parent.parent / "source" / "profiles"
"""The profiles that come with the package, one file NAME.yaml each."""


class ConfigError(Exception):
    """The configuration is wrong; ``problems`` holds every mistake as ``file:line: key: text``."""

    def __init__(self, problems: List[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class FromFile:
    """A value that stands in a file, written ``{file: PATH}``; read again when the file changes."""

    path: str


TextOrFile = Union[str, FromFile]


@dataclass(frozen=True)
class Gateway:
    """Who this box is."""

    dev_sno: str
    ip: str = "auto"
    name: str = "auto"
    sn: TextOrFile = "auto"
    mac: str = "auto"
    sw_version: TextOrFile = ""
    sdk_version: TextOrFile = ""
    data_partition: str = "/data"


@dataclass(frozen=True)
class Source:
    """The event database and how its columns become fields."""

    url: str = field(repr=False)
    name: str = "events"
    profile: str = "se3"
    table: Optional[str] = "event"
    query: Optional[str] = None
    key: str = "id"
    id: Optional[str] = None
    lookback: float = 60.0
    start: str = "earliest"
    poll_interval: float = 1.0
    timestamp_unit: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore_columns: Tuple[str, ...] = ()
    pictures_dir: Optional[str] = None
    settle: float = 0.0


@dataclass(frozen=True)
class Pictures:
    """Which pictures leave the box."""

    reg_pic: str = "keep"
    spot_pic: str = "large"
    when_absent: str = "omit"
    when_too_large: str = "strip"


@dataclass(frozen=True)
class Auth:
    """Credentials, always by reference to a file."""

    bearer_file: Optional[str] = None
    basic_file: Optional[str] = None


@dataclass(frozen=True)
class Tls:
    """How the platform is verified and how we show who we are."""

    ca_file: Optional[str] = None
    cert_file: Optional[str] = None
    key_file: Optional[str] = None
    verify: bool = True


@dataclass(frozen=True)
class Timeout:
    """Seconds: to connect, between two reads, and for the whole request."""

    connect: float = 5.0
    read: float = 30.0
    total: float = 120.0


@dataclass(frozen=True)
class Endpoint:
    """One URL that receives everything of its kind, independently of the others."""

    kind: str
    """``history_event`` or ``device_status``: the section it stands in."""
    url: str = field(repr=False)
    name: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: Auth = Auth()
    tls: Tls = Tls()
    proxy: Optional[str] = field(default=None, repr=False)
    timeout: Timeout = Timeout()
    allow_plaintext: bool = False
    max_in_flight: int = 4
    compression: str = "none"
    accept: Mapping[str, Any] = field(default_factory=dict)
    pictures: Pictures = Pictures()
    """The policy of history_event with this endpoint's own overrides laid over it."""

    @property
    def shown_url(self) -> str:
        """The url as people and the outbox get it: without its query, which may hold a token."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class HistoryEvent:
    """Events on the wire."""

    endpoints: Tuple[Endpoint, ...] = ()
    timestamp_unit: str = "ms"
    pictures: Pictures = Pictures()


@dataclass(frozen=True)
class SubDevice:
    """A capture device (ep) connected to the box."""

    ep_ip: str
    ep_type: str = "1"
    ep_name: str = ""
    group_name: str = ""
    sw_version: str = ""
    probe: str = "none"


@dataclass(frozen=True)
class DeviceStatus:
    """The periodic report on the box."""

    endpoints: Tuple[Endpoint, ...] = ()
    interval: float = 20.0
    keep: str = "latest"
    ep_ext_data: str = "string"
    sub_devices_table: Optional[str] = None
    sub_devices: Tuple[SubDevice, ...] = ()


@dataclass(frozen=True)
class Retry:
    """Seconds of the shortest and longest wait; repetitions before a rejected event is dead."""

    base: float = 1.0
    cap: float = 300.0
    reject_after: int = 3


@dataclass(frozen=True)
class Outbox:
    """Where deliveries are recorded, and the bounds on that file."""

    path: str = "/var/lib/se3-uploader/outbox.db"
    max_size: int = 512 * 1024**2
    min_free_disk: int = 256 * 1024**2
    keep_delivered: float = 30 * 86400.0
    keep_dead_pictures: float = 30 * 86400.0


@dataclass(frozen=True)
class Log:
    """Level and shape of log lines, always to stderr."""

    level: str = "info"
    format: str = "text"


@dataclass(frozen=True)
class Metrics:
    """Where Prometheus may read; None: nowhere."""

    listen: Optional[str] = None


@dataclass(frozen=True)
class Config:
    """A whole, valid uploader.yaml."""

    path: str
    gateway: Gateway
    source: Source
    history_event: HistoryEvent = HistoryEvent()
    device_status: DeviceStatus = DeviceStatus()
    retry: Retry = Retry()
    outbox: Outbox = Outbox()
    log: Log = Log()
    metrics: Metrics = Metrics()

    @property
    def endpoints(self) -> Tuple[Endpoint, ...]:
        """All endpoints, events first."""
        return self.history_event.endpoints + self.device_status.endpoints


def find(option: Optional[str]) -> str:
    """Path of the configuration: -c, $SE3_UPLOADER_CONFIG, or the first of PLACES that exists.

    Raises ConfigError, naming the places, where there is none. A path that somebody gave is taken
    as it is: that it cannot be read is for load to say.
    """
    given = option or os.environ.get("SE3_UPLOADER_CONFIG")
    path = given or next((place for place in PLACES if os.path.exists(place)), None)
    if path is None:
        raise ConfigError(
            [
                "no uploader.yaml was found: give its path with -c or in $SE3_UPLOADER_CONFIG, "
                f"or put it at {' or '.join(PLACES)}"
            ]
        )
    return path


def load(path: str) -> Config:
    """Read uploader.yaml and the profile it names; raises ConfigError with every mistake."""
    document = _read(path)
    if isinstance(document.data, dict):
        # A section all of whose keys are commented out is null in YAML.
        sections = {name: {} if part is None else part for name, part in document.data.items()}
        document = dataclasses.replace(document, data=sections)
    problems = rules.check_config(document)
    source = document.data.get("source") if isinstance(document.data, dict) else None
    profile: Mapping[str, Any] = {}
    if isinstance(source, dict) and isinstance(source.get("profile", "se3"), str):
        ours = sorted(path.stem for path in PROFILES.glob("*.yaml"))
        name = source.get("profile", "se3")
        place = PROFILES / f"{name}.yaml" if name in ours else pathlib.Path(path).parent / name
        try:
            read = _read(str(place))
        except ConfigError as error:
            why = f"{error.problems[0]}; it takes {', '.join(ours)} or the path of a file"
            problems += document.report({("source", "profile"): why})
        else:
            problems += rules.check_profile(read)
            profile = read.data
    if problems:
        raise ConfigError(problems)
    return _config(path, {**document.data, "source": _merged(profile, document.data["source"])})


def _read(path: str) -> yaml_file.Document:
    try:
        return yaml_file.read(path)
    except yaml_file.Unreadable as error:
        raise ConfigError([str(error)]) from None


def _merged(profile: Mapping[str, Any], source: Mapping[str, Any]) -> Dict[str, Any]:
    """The section ``source`` laid over its profile."""
    merged = {**profile, **source}
    if source.get("table") is not None:
        merged["query"] = None
    merged["columns"] = {**(profile.get("columns") or {}), **(source.get("columns") or {})}
    ignored = [*(profile.get("ignore_columns") or ()), *(source.get("ignore_columns") or ())]
    merged["ignore_columns"] = list(dict.fromkeys(ignored))
    return merged


def _config(path: str, data: Mapping[str, Any]) -> Config:
    events = data["history_event"]
    status = data.get("device_status", {})
    source = _filled(Source, data["source"])
    if source.query is not None:
        # It replaces the table, be that the profile's or the default.
        source = dataclasses.replace(source, table=None)
    pictures = _filled(Pictures, events.get("pictures"))
    devices = tuple(_filled(SubDevice, device) for device in status.get("sub_devices") or ())
    return Config(
        path=path,
        gateway=_filled(Gateway, data["gateway"]),
        source=source,
        history_event=_filled(
            HistoryEvent,
            events,
            pictures=pictures,
            endpoints=_endpoints("history_event", events, pictures),
        ),
        device_status=_filled(
            DeviceStatus,
            status,
            sub_devices=devices,
            endpoints=_endpoints("device_status", status, pictures),
        ),
        retry=_filled(Retry, data.get("retry")),
        outbox=_filled(Outbox, data.get("outbox")),
        log=_filled(Log, data.get("log")),
        metrics=_filled(Metrics, data.get("metrics")),
    )


def _endpoints(kind: str, section: Mapping[str, Any], pictures: Pictures) -> Tuple[Endpoint, ...]:
    return tuple(
        _filled(
            Endpoint,
            endpoint,
            kind=kind,
            name=rules.endpoint_name(endpoint),
            auth=_filled(Auth, endpoint.get("auth")),
            tls=_filled(Tls, endpoint.get("tls")),
            timeout=_filled(Timeout, endpoint.get("timeout")),
            pictures=_filled(
                Pictures, {**dataclasses.asdict(pictures), **_given(endpoint.get("pictures"))}
            ),
        )
        for endpoint in section.get("endpoints") or ()
    )


_CONVERT: Dict[Any, Callable[[Any], Any]] = {
    "float": units.duration,
    "int": units.size,
    "Tuple[str, ...]": tuple,
    "TextOrFile": lambda value: FromFile(value["file"]) if isinstance(value, dict) else value,
}
"""Annotation of a field -> how a value of the file becomes one; a plain count passes as a size."""


def _filled(shape: Any, keys: Optional[Mapping[str, Any]], **parts: Any) -> Any:
    """A dataclass of a section's keys, parts as they are; what is absent or null is the default."""
    kinds = {spec.name: spec.type for spec in dataclasses.fields(shape)}
    values = {
        name: _CONVERT[kinds[name]](value) if kinds[name] in _CONVERT else value
        for name, value in _given(keys).items()
        if name not in parts
    }
    return shape(**values, **parts)


def _given(keys: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    return {name: value for name, value in (keys or {}).items() if value is not None}
