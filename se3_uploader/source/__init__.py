"""The event database: one small read-only interface, one module for each kind of database."""

from __future__ import annotations

from importlib import import_module
from typing import (
    Any,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Union,
    cast,
)

from .. import config

Key = Union[int, str]
"""A row's place in the order of the source, opaque outside it.

An integer key stays an int. Anything else (a string key, a time, key + id) is a str that the source
made and alone can read; equal rows always give the equal Key.
"""


class SourceError(Exception):
    """The event database could not be read. Says what was tried, what came back and what to do.

    Never holds a row's content, nor a password of the url.
    """


class Ref(NamedTuple):
    """What the outbox remembers of a row: its place, and a hash of what makes it this event."""

    key: Key
    fingerprint: bytes
    """16 bytes from payload.fingerprint."""


class Look(NamedTuple):
    """One short look at the source, everything read in one transaction."""

    at: Optional[Ref]
    """The row that stands at the position asked for now, None where there is none."""
    newest: Optional[Key]
    """The greatest key in the source, None when it is empty."""
    refs: List[Ref]
    """The rows after the position, in key order. May be cut short before limit to keep the read
    short; empty only where nothing (that has settled) follows."""


class Row(NamedTuple):
    """A whole row, ready for payload.build."""

    ref: Ref
    values: Mapping[str, Any]
    """Column (or dotted path's first part) -> value as the driver gives it.

    A picture held as a file has been read: bytes, or payload.Unreadable with the reason. Any value
    too large to be read is Unreadable, too.
    """


class Rows(NamedTuple):
    """The answer to a read of several keys; a key in neither part was not read for lack of room."""

    rows: List[Row]
    missing: List[Key]


class Slice(NamedTuple):
    """A piece of a scan by time."""

    refs: List[Ref]
    scanned_to: Optional[Key]
    """Go on after this key; None: the scan is at the end."""


class Keys(NamedTuple):
    """The same without fingerprints: a fifth of the time, enough to plan with."""

    keys: List[Key]
    scanned_to: Optional[Key]
    """Go on after this key; None: the scan is at the end."""


class Source(Protocol):
    """Read-only. Every method is one short read with a limit that leaves no cursor and no
    transaction open, and raises SourceError where the database cannot be read."""

    engine: str
    """sqlite, mysql, postgresql or mongodb."""
    ordered: bool
    """True where key order is commit order, so that no row becomes visible late."""

    def look(self, after: Optional[Key], limit: int) -> Look:
        """Read at most limit references after a position (None: from the start)."""

    def rows(self, keys: Sequence[Key], pictures: Sequence[str], max_bytes: int) -> Rows:
        """Read whole rows, of the picture fields (reg_pic, spot_pic, face_pic) only those named.

        Stops once max_bytes have been read (at least one row is always read).
        """

    def newest(self) -> Optional[Key]:
        """The greatest key, None when the source is empty."""

    def count(self, after: Optional[Key], limit: int) -> int:
        """How many rows stand after a position, counted up to limit."""

    def between(self, since: int, until: int, after: Optional[Key], limit: int) -> Slice:
        """Scan at most limit rows after a key for since <= timestamp < until (epoch ms)."""

    def keys_between(self, since: int, until: int, after: Optional[Key], limit: int) -> Keys:
        """Scan as between does, for the keys alone."""

    def last_seen(self, limit: int) -> Dict[str, int]:
        """device_ip -> newest timestamp (epoch ms) among the newest limit rows."""

    def sub_devices(self, table: str) -> List[Mapping[str, Any]]:
        """The rows of a table of capture devices."""

    def changed(self) -> bool:
        """Cheap: may there be something new since the last call? True when that cannot be known."""

    def watch_paths(self) -> Tuple[str, ...]:
        """Files whose modification means that there may be something new; () where none do."""

    def problems(self) -> List[str]:
        """What is wrong with tables, columns, keys: for check; empty when all is well."""

    def close(self) -> None:
        """Let go of the database. The next call opens it again."""


def open_source(source: config.Source) -> Source:
    """Make the source that source.url names; nothing is opened before the first call to it.

    Raises SourceError for an unknown kind of database, or where its driver is not installed.
    """
    scheme = source.url.partition(":")[0]
    if scheme not in _ENGINES:
        raise SourceError(
            f"{scheme}: is no kind of database that can be read; known are {', '.join(_ENGINES)}"
        )
    module, extra = _ENGINES[scheme]
    try:
        return cast(Source, import_module(f"{__name__}.{module}").make(source))
    except ModuleNotFoundError as error:
        raise SourceError(
            f"reading {scheme} needs the Python package {error.name}, which is not installed; "
            f"pip install 'se3-uploader[{extra}]'"
        ) from None


_ENGINES = {
    "sqlite": ("sqlite", ""),
    "mysql": ("mysql", "mysql"),
    "postgresql": ("postgresql", "postgres"),
    "mongodb": ("mongodb", "mongo"),
}
"""Scheme of source.url -> module of this package, extra that installs its driver."""
