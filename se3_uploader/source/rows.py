"""What a driver hands over -> Ref and Row, the same for every kind of database."""

from __future__ import annotations

import json
import math
from sys import getsizeof
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from .. import config, payload
from ..payload.columns import DEVICE_FIELDS
from . import Key, Ref
from .pictures import name_of, read_picture

MAX_SUB_DEVICES = 1000
"""How many rows of a table of capture devices are read."""

_REQUIRED = ("identity_id", "identity_name", "timestamp", "score")


class RowMaker:
    """Knows the mapping of one source."""

    def __init__(self, source: config.Source) -> None:
        self.columns = payload.columns_of(source)
        self._mapped = {
            name: path for name, path in source.columns.items() if name not in DEVICE_FIELDS
        }
        self._unit = source.timestamp_unit
        self._pictures_dir = source.pictures_dir

    def ref(self, key: Key, values: Mapping[str, Any]) -> Ref:
        """Make the reference of a row of which at least the identity columns were read."""
        return Ref(key, payload.fingerprint(values, self.columns, key))

    def moment(self, values: Mapping[str, Any]) -> Optional[int]:
        """Return when the event happened, epoch ms; None where its timestamp is unusable."""
        value = payload.lookup(values, self.columns.timestamp)
        try:
            return payload.timestamp_ms(value, self._unit)
        except payload.Unusable:
            return None

    def moment_reader(self, names: Sequence[str]) -> Callable[[Sequence[Any]], float]:
        """Return a function that tells when the event of a row happened, epoch ms.

        It takes the values of the columns named, in their order, and is quick; for an unusable
        timestamp it returns NaN, which lies in no range.
        """
        if self.columns.timestamp not in names:
            return lambda row: _or_nan(self.moment(dict(zip(names, row))))
        place = names.index(self.columns.timestamp)
        unit, timestamp_ms, unusable = self._unit, payload.timestamp_ms, payload.Unusable

        def moment(row: Sequence[Any]) -> float:
            try:
                return timestamp_ms(row[place], unit)
            except unusable:
                return math.nan

        return moment

    def inside(
        self, since: int, until: int, rows: Iterable[Tuple[Key, Dict[str, Any]]]
    ) -> Iterator[Tuple[Key, Dict[str, Any]]]:
        """Yield the rows with since <= timestamp < until (epoch ms)."""
        for key, values in rows:
            moment = self.moment(values)
            if moment is not None and since <= moment < until:
                yield key, values

    def last_seen(self, rows: Iterable[Mapping[str, Any]]) -> Dict[str, int]:
        """Return device_ip -> newest timestamp (epoch ms)."""
        seen: Dict[str, int] = {}
        for values in rows:
            device = payload.lookup(values, self.columns.device_ip)
            moment = self.moment(values)
            if isinstance(device, str) and moment is not None:
                seen[device] = max(moment, seen.get(device, 0))
        return seen

    def unwanted(self, pictures: Sequence[str]) -> FrozenSet[str]:
        """Return the paths of the pictures that need not be read."""
        mapped = self.columns.pictures
        wanted = {path for field, path in mapped.items() if field in pictures}
        return frozenset(mapped.values()) - wanted

    def with_files(self, values: Dict[str, Any], pictures: Sequence[str]) -> Dict[str, Any]:
        """Replace the file names among the wanted pictures by what the files hold."""
        if self._pictures_dir is None:
            return values
        for field, path in self.columns.pictures.items():
            name = name_of(payload.lookup(values, path))
            if field in pictures and name:
                picture = read_picture(self._pictures_dir, name, self.moment(values))
                _put(values, path.split("."), picture)
        return values

    def problems(self, there: Collection[str]) -> List[str]:
        """Say which columns are missing, given those that are there."""
        needed = {field: getattr(self.columns, field) for field in _REQUIRED}
        needed.update(self._mapped)
        return [
            f"{path}: there is no such column, and {field} is read from it"
            for field, path in needed.items()
            if path.partition(".")[0] not in there
        ]


def _or_nan(moment: Optional[int]) -> float:
    return math.nan if moment is None else moment


def size_of(value: Any) -> int:
    """Return about how many bytes of memory a value keeps."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return getsizeof(value)
    return 64 + sum([size_of(v) if type(v) in (dict, list) else getsizeof(v) for v in value])


def _put(document: Dict[str, Any], path: List[str], value: Any) -> None:
    """Set the value at a path that lookup has found; JSON text on the way becomes a document."""
    for part in path[:-1]:
        below = document[part]
        if not isinstance(below, dict):
            below = json.loads(below)
            document[part] = below
        document = below
    document[path[-1]] = value
