"""uploader.yaml as frozen dataclasses, one field for each key of the file.

Durations are float seconds, sizes are int bytes, paths are absolute strings or as written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Tuple, Union


@dataclass(frozen=True)
class FromFile:
    """A value that stands in a file, written ``{file: PATH}``; the file is read again when it changes."""

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

    url: str
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
    url: str
    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    auth: Auth = Auth()
    tls: Tls = Tls()
    proxy: Optional[str] = None
    timeout: Timeout = Timeout()
    allow_plaintext: bool = False
    max_in_flight: int = 4
    compression: str = "none"
    accept: Mapping[str, Any] = field(default_factory=dict)
    pictures: Pictures = Pictures()
    """The policy of history_event with this endpoint's own overrides laid over it."""


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
