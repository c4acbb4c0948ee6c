"""PURE: which column, or part of a document, becomes which field, and what is left over."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Collection, Dict, FrozenSet, Iterator, Mapping, Optional, Tuple

from .. import config
from .values import TEXT, Unusable, is_document, parsed, text

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

FIELDS = (
    "identity_id",
    "identity_name",
    "group_name",
    "reg_pic",
    "timestamp",
    "score",
    *EXT_DATA_FIELDS,
    *HELPERS,
)

PICTURES = ("reg_pic", "spot_pic", "face_pic")

DEVICE_FIELDS = ("ep_ip", "ep_name", "ep_type", "sw_version")
"""Fields of a capture device that are none of an event; its group_name is one of both."""


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
        """Paths that make a row this very event and no other; they never hold a picture.

        Only what is required: an optional field can be mapped later, and would make every event
        that was sent another one.
        """
        paths = (self.timestamp, self.identity_id, self.identity_name, self.score)
        return paths if self.id is None else (self.id, *paths)

    @cached_property
    def identity(self) -> Tuple[str, ...]:
        """The top-level columns that fingerprint needs besides the key, each once."""
        return tuple(dict.fromkeys(path.partition(".")[0] for path in self.identity_paths))

    @cached_property
    def seen_paths(self) -> Tuple[str, ...]:
        """Paths that tell which capture device was seen when."""
        return (self.timestamp, self.device_ip)

    @cached_property
    def pictures(self) -> Mapping[str, str]:
        """Picture field (reg_pic, spot_pic, face_pic) -> path, without what must not leave."""
        paths = {name: getattr(self, name) for name in PICTURES}
        return {
            name: path for name, path in paths.items() if self.ignored.isdisjoint(_upwards(path))
        }

    def fields(self, values: Mapping[str, Any]) -> Dict[str, Any]:
        """Return every field of a row; None where there is none."""
        found = {name: values.get(path) for name, path in self._plain_paths.items()}
        for name, path in self._dotted_paths.items():
            found[name] = lookup(values, path)
        return found

    @cached_property
    def _plain_paths(self) -> Mapping[str, str]:
        """Field -> column, for fields that are whole columns."""
        paths = {name: getattr(self, name) for name in FIELDS}
        return {name: path for name, path in paths.items() if "." not in path}

    @cached_property
    def _dotted_paths(self) -> Mapping[str, str]:
        """Field -> path, for fields that are parts of documents."""
        return {name: getattr(self, name) for name in FIELDS if name not in self._plain_paths}

    def leaving(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row without what must not leave the box.

        A column of which that cannot be told, because its JSON is broken, becomes an Unusable.
        """
        return _without(values, self.ignored) if self.ignored else values

    def leftovers(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what of a row is neither key nor field, without NULL and emptied documents."""
        return _without(values, self._taken)

    @cached_property
    def _taken(self) -> FrozenSet[str]:
        mapped = (getattr(self, name) for name in FIELDS)
        return frozenset({self.key, *mapped, *self.extras.values()})


def _without(values: Mapping[str, Any], taken: FrozenSet[str]) -> Dict[str, Any]:
    """Copy a row without the taken paths, NULL, and documents that this empties."""
    branches = _branches(taken)
    result = {}
    for name, value in values.items():
        if name in taken or value is None:
            continue
        if name in branches:
            value = _rest_or_error(name, value, taken, branches)
            if value is None:
                continue
        result[name] = value
    return result


def _rest_or_error(path: str, value: Any, taken: FrozenSet[str], branches: FrozenSet[str]) -> Any:
    try:
        return _rest(path, value, taken, branches)
    except Unusable as error:
        return error
    except RecursionError:
        return Unusable("is nested too deeply")


def _rest(path: str, value: Any, taken: FrozenSet[str], branches: FrozenSet[str]) -> Any:
    if path in taken:
        return None
    if path not in branches:
        return value
    if isinstance(value, TEXT) and is_document(text(value)):
        value = parsed(value)
    if isinstance(value, dict):
        parts = {
            name: _rest(f"{path}.{name}", part, taken, branches) for name, part in value.items()
        }
        return {name: part for name, part in parts.items() if part is not None} or None
    if isinstance(value, list):
        return [_rest(path, part, taken, branches) for part in value]
    return value


@lru_cache(maxsize=32)
def _branches(taken: FrozenSet[str]) -> FrozenSet[str]:
    """Return the documents that hold a taken path."""
    return frozenset(above for path in taken for above in _upwards(path) if above != path)


def columns_of(source: config.Source) -> Columns:
    """Resolve the mapping of a source: a column named like a field is that field, unless mapped.

    Keys of ``source.columns`` are fields (``identity_id``, ``ext_data.device_ip``, or in short
    ``device_ip``) or any other dotted place in ext_data; values are paths. Those of DEVICE_FIELDS
    are for device_paths.
    """
    mapped: Dict[str, str] = {}
    extras: Dict[str, str] = {}
    for name, path in source.columns.items():
        short = name[len("ext_data.") :] if name.startswith("ext_data.") else name
        if name in FIELDS or short in EXT_DATA_FIELDS + HELPERS:
            mapped[short] = path
        elif name not in DEVICE_FIELDS:
            extras[short] = path
    return Columns(
        key=source.key,
        id=source.id if source.id != source.key else None,
        extras=extras,
        ignored=frozenset(source.ignore_columns),
        **mapped,
    )


def device_paths(mapped: Mapping[str, str], there: Collection[str]) -> Dict[str, str]:
    """Field of a capture device -> path, by ``source.columns`` and the columns of their table.

    group_name is mapped for the events; a table of devices without that column has its own.
    """
    paths = {name: mapped.get(name, name) for name in (*DEVICE_FIELDS, "group_name")}
    if paths["group_name"].partition(".")[0] not in there:
        paths["group_name"] = "group_name"
    return paths


def lookup(values: Mapping[str, Any], path: str) -> Any:
    """Find the value at a dotted path in a row; None where there is none.

    JSON text on the way is parsed; a path leads into documents, never into lists.
    """
    if "." not in path:
        return values.get(path)
    column, *parts = path.split(".")
    value = values.get(column)
    for part in parts:
        if isinstance(value, TEXT):
            try:
                value = parsed(value)
            except Unusable:
                return None
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _upwards(path: str) -> Iterator[str]:
    """Yield a path and then every document that it lies in."""
    while path:
        yield path
        path = path.rpartition(".")[0]
