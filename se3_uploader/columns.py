"""PURE: which column, or part of a document, becomes which field, and what is left over."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Dict, FrozenSet, Iterator, Mapping, Optional, Tuple

from . import config
from .values import TEXT, Unusable, parsed

EXT_DATA_FIELDS = (
    "device_ip",
    "ep_id",
    "spot_pic",
    "person_type",
    "device_type",
    "grab_fiqa_info",
    "box_fiqa_info",
    "dev_sno",
)
"""Fields of ext_data that the protocol (section 1) defines."""

HELPERS = ("group_id", "face_pic")
"""Columns that a field falls back on: group_id for group_name, face_pic for a small spot_pic."""

PICTURES = ("reg_pic", "spot_pic", "face_pic")


@dataclass(frozen=True)
class Columns:
    """Field -> path: a column, or ``column.part.part`` inside a document."""

    key: str = "id"
    id: Optional[str] = None
    identity_id: str = "identity_id"
    identity_name: str = "identity_name"
    group_name: str = "group_name"
    group_id: str = "group_id"
    reg_pic: str = "reg_pic"
    timestamp: str = "timestamp"
    score: str = "score"
    device_ip: str = "device_ip"
    ep_id: str = "ep_id"
    spot_pic: str = "spot_pic"
    face_pic: str = "face_pic"
    person_type: str = "person_type"
    device_type: str = "device_type"
    grab_fiqa_info: str = "grab_fiqa_info"
    box_fiqa_info: str = "box_fiqa_info"
    dev_sno: str = "dev_sno"
    extras: Mapping[str, str] = field(default_factory=dict)
    """Dotted place in ext_data -> path, for what the protocol does not define."""
    ignored: FrozenSet[str] = frozenset()
    """Paths that must not leave the box."""

    @cached_property
    def identity_paths(self) -> Tuple[str, ...]:
        """Paths that make a row this very event and no other; they never hold a picture."""
        paths = (self.timestamp, self.identity_id, self.identity_name, self.score, self.device_ip)
        return paths if self.id is None else (self.id, *paths)

    @cached_property
    def identity(self) -> Tuple[str, ...]:
        """The top-level columns that fingerprint needs besides the key, each once."""
        return tuple(dict.fromkeys(path.partition(".")[0] for path in self.identity_paths))

    @cached_property
    def pictures(self) -> Mapping[str, str]:
        """Picture field (reg_pic, spot_pic, face_pic) -> path, without those that stay home."""
        return {
            name: getattr(self, name) for name in PICTURES if not self.stays(getattr(self, name))
        }

    def stays(self, path: str) -> bool:
        """Tell whether a path, or a document that it lies in, must not leave the box."""
        return any(part in self.ignored for part in _upwards(path))

    @cached_property
    def _taken(self) -> FrozenSet[str]:
        """Paths that no leftover may hold: they are a field already, or stay home."""
        mapped = (getattr(self, name) for name in _FIELDS)
        return frozenset({self.key, *mapped, *self.extras.values(), *self.ignored})

    @cached_property
    def _branches(self) -> FrozenSet[str]:
        """Documents that hold a taken path."""
        return frozenset(above for path in self._taken for above in _upwards(path) if above != path)

    def leftovers(self, values: Mapping[str, Any]) -> Iterator[Tuple[str, Any]]:
        """Yield column and value of what no field took, without NULL and emptied documents.

        A value is an Unusable where it cannot be told what in it must not leave the box.
        """
        for name, value in values.items():
            try:
                rest = self._rest(name, value)
            except Unusable as error:
                rest = error
            if rest is not None:
                yield name, rest

    def _rest(self, path: str, value: Any) -> Any:
        if path in self._taken:
            return None
        if path not in self._branches:
            return value
        if isinstance(value, TEXT) and value:
            value = parsed(value)
        if isinstance(value, Mapping):
            parts = ((name, self._rest(f"{path}.{name}", part)) for name, part in value.items())
            return {name: part for name, part in parts if part is not None} or None
        if isinstance(value, list):
            return [self._rest(path, part) for part in value]
        return value


_FIELDS = tuple(f.name for f in fields(Columns) if f.name not in ("key", "id", "extras", "ignored"))


def columns_of(source: config.Source) -> Columns:
    """Resolve the mapping of a source: a column named like a field is that field, unless mapped.

    Keys of ``source.columns`` are fields (``identity_id``, ``ext_data.device_ip``, or in short
    ``device_ip``) or any other dotted place in ext_data; values are paths.
    """
    mapped: Dict[str, str] = {}
    extras: Dict[str, str] = {}
    for name, path in source.columns.items():
        short = name[len("ext_data.") :] if name.startswith("ext_data.") else name
        if name in _FIELDS or short in EXT_DATA_FIELDS + HELPERS:
            mapped[short] = path
        else:
            extras[short] = path
    return Columns(
        key=source.key,
        id=source.id if source.id != source.key else None,
        extras=extras,
        ignored=frozenset(source.ignore_columns),
        **mapped,
    )


def lookup(values: Mapping[str, Any], path: str) -> Any:
    """Find the value at a dotted path in a row; None where there is none.

    JSON text on the way is parsed; a path leads into documents, never into lists.
    """
    value: Any = values
    for part in path.split("."):
        if isinstance(value, TEXT):
            try:
                value = parsed(value)
            except Unusable:
                return None
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _upwards(path: str) -> Iterator[str]:
    """Yield a path and then every document that it lies in."""
    while path:
        yield path
        path = path.rpartition(".")[0]
