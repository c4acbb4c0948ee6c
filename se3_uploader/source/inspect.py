"""What an unknown database holds, and a guess how it maps onto the HistoryEvent."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Protocol, Tuple, cast
from urllib.parse import urlsplit

import yaml

from .. import config, payload
from ..payload.columns import EXT_DATA_FIELDS
from ..payload.values import Unusable, is_document, parsed
from . import Source, SourceError, open_source

COUNT_LIMIT = 100_000
"""Rows of a table are counted up to here."""

_REQUIRED = ("identity_id", "identity_name", "timestamp", "score")

_ALIASES: Mapping[str, Tuple[str, ...]] = {
    "identity_id": (
        "person_id", "user_id", "employee_id", "member_id", "personid", "userid", "person_no",
        "employee_no", "job_no",
    ),
    "identity_name": (
        "person_name", "user_name", "employee_name", "name", "label", "sub_label", "person",
    ),
    "group_name": ("group", "department", "dept_name", "team"),
    "group_id": ("groupid", "department_id", "dept_id"),
    "reg_pic": ("register_pic", "reg_image", "register_image", "base_pic", "image_id"),
    "timestamp": (
        "event_time", "time", "ts", "start_time", "capture_time", "create_time", "happened_at",
        "occurred_at", "created_at",
    ),
    "score": ("similarity", "confidence", "top_score", "match_score", "likeness"),
    "device_ip": ("camera_ip", "ep_ip", "ip", "dev_ip", "device_addr"),
    "ep_id": ("device_id", "camera_id", "camera"),
    "spot_pic": ("spot_pic_id", "snapshot", "snap_pic", "scene_pic", "capture_pic", "image"),
    "face_pic": ("face_image", "face_crop", "thumbnail", "recognize_face_pic_id", "crop"),
    "person_type": ("identity_type", "user_type"),
    "device_type": ("ep_type", "camera_type"),
    "grab_fiqa_info": ("grap_fiqa_info",),
    "box_fiqa_info": (),
    "dev_sno": (),
}  # fmt: skip
"""Field -> what its column is called elsewhere, the likeliest first, after its own name."""


class Table(NamedTuple):
    """A table or collection."""

    name: str
    rows: Optional[int]
    """How many rows, counted up to COUNT_LIMIT; None: it cannot be read."""
    fields: List[str]
    """Its columns, and the dotted paths inside the documents of its newest row."""
    order: Dict[str, str]
    """source.key, and source.id where the key can tie."""
    columns: Dict[str, str]
    """Field of the HistoryEvent -> the column, or path, that looks like it."""
    missing: List[str]
    """Required fields that no column looks like; group_name where there is no group_id either."""


class Inspection(NamedTuple):
    """What a database holds, the likeliest table of events first."""

    tables: List[Table]
    proposal: str
    """The ``source:`` section for uploader.yaml, without the password; empty where nothing fits."""


class _Inspectable(Source, Protocol):
    """What every source of this package can tell besides events."""

    def tables(self) -> List[str]:
        """List tables and views, or collections."""

    def fields(self) -> List[str]:
        """List the columns of the table, as far as the database knows them."""

    def primary_key(self) -> Optional[str]:
        """Name the column that is the primary key, None where there is none or it has several."""


def inspect(url: str) -> Inspection:
    """Look into the database at a url, read-only, and propose a mapping; raise SourceError."""
    with closing(_open(url)) as source:
        names = source.tables()
    tables = [_table(url, name) for name in names]
    tables.sort(key=lambda table: (len(table.missing), -len(table.columns), -(table.rows or 0)))
    fitting = [table for table in tables if not set(_REQUIRED) <= set(table.missing)]
    return Inspection(tables, _proposal(url, fitting[0]) if fitting else "")


def _open(url: str, **changes: Any) -> _Inspectable:
    return cast(_Inspectable, open_source(config.Source(url=url, **changes)))


def _table(url: str, name: str) -> Table:
    """Read what can be told of a table from its columns and its newest row."""
    with closing(_open(url, table=name)) as source:
        fields = source.fields()
        primary = source.primary_key()
    key = primary or (fields or ["id"])[0]
    rows: Optional[int] = None
    with closing(_open(url, table=name, key=key)) as source:
        try:
            rows = source.count(None, COUNT_LIMIT)
            newest = source.newest()
            found = source.rows([newest], [], 2**20).rows if newest is not None else []
        except SourceError:  # one odd table must not hide the others
            newest, found = None, []
    for row in found:
        fields = list(dict.fromkeys([*fields, *_paths(row.values)]))
    columns = _guess(fields)
    if primary is not None and not (isinstance(newest, str) and primary != "_id"):
        order = {"key": primary}
    else:  # text in no order, or nothing that is unique
        order = {"key": columns.get("timestamp", key), **({"id": primary} if primary else {})}
    missing = [field for field in _REQUIRED if field not in columns]
    if not {"group_name", "group_id"} & set(columns):
        missing.append("group_name")
    return Table(name, rows, fields, order, columns, missing)


def _paths(document: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the dotted paths in a document, and in the JSON text that it holds.

    Of what lies in a document only the ends, except for fields that are documents themselves.
    """
    for name, value in document.items():
        if is_document(value):
            try:
                value = parsed(value)
            except Unusable:
                pass
        if isinstance(value, Mapping):
            yield from _paths(value, f"{above}{name}.")
        if not isinstance(value, Mapping) or not above or name.endswith("_fiqa_info"):
            yield f"{above}{name}"


def _guess(fields: List[str]) -> Dict[str, str]:
    """Map fields of the HistoryEvent to the columns that look like them, each column once."""
    columns: Dict[str, str] = {}
    for alias in range(max(map(len, _ALIASES.values())) + 1):
        for field, others in _ALIASES.items():
            wanted = [field, *others][alias : alias + 1]
            for path in sorted(fields, key=lambda path: path.count(".")):
                plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path.rpartition(".")[2]).lower()
                if [plain] == wanted and field not in columns and path not in columns.values():
                    columns[field] = path
    return columns


def _proposal(url: str, table: Table) -> str:
    """Write the ``source:`` section that reads a table, by a profile of ours where one fits."""
    parts = urlsplit(url)
    shown = url.replace(f":{parts.password}@", ":PASSWORD@") if parts.password else url
    section: Dict[str, Any] = {"url": shown}
    profile, mapped = _profile(table)
    section.update({"profile": profile} if profile else table.order, table=table.name)
    named = {}
    for field, path in table.columns.items():
        name = f"ext_data.{field}" if field in EXT_DATA_FIELDS else field
        usual = mapped.get(name, field)
        if path != usual and usual not in table.fields:
            named[name] = path
    if named:
        section["columns"] = named
    text = yaml.safe_dump({"source": section}, sort_keys=False, allow_unicode=True)
    return text + "".join(
        f"  # {field} is required, and no column looks like it\n" for field in table.missing
    )


def _profile(table: Table) -> Tuple[str, Mapping[str, str]]:
    """Return the profile of this package all of whose required columns are there, and its columns.

    Where none fits, nothing.
    """
    for path in sorted(Path(__file__).with_name("profiles").glob("*.yaml")):
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
        mapped = profile.get("columns", {})
        columns = payload.columns_of(config.Source(url="", key=profile["key"], columns=mapped))
        needed = [profile["key"], *(getattr(columns, field) for field in _REQUIRED)]
        if all(name in table.fields for name in needed):
            return path.stem, mapped
    return "", {}
