"""PURE: a row of the event database -> the HistoryEvent that is POSTed (protocol section 1).

Every value passes through one of three gates: a required field that is unusable raises Unusable,
an optional one is left out and named in ``ext_data.upload_notes``, and everything else of the row
goes into ext_data as it stands.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime, timezone
from decimal import Decimal
from enum import IntEnum
from functools import partial
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

import orjson

from .. import config
from .columns import EXT_DATA_FIELDS, Columns, columns_of, lookup
from .values import (
    TEXT,
    TooDeep,
    Unreadable,
    Unusable,
    is_document,
    number,
    one_of,
    parsed_plain,
    picture,
    plain,
    scaled,
    text,
    timestamp_ms,
)

__all__ = [
    "Built",
    "Columns",
    "Strip",
    "Unreadable",
    "Unusable",
    "build",
    "columns_of",
    "fingerprint",
    "idempotency_key",
    "lookup",
    "strip_pictures",
    "timestamp_ms",
    "wanted_pictures",
]

NOTES = "upload_notes"

_FIQA = ("grab_fiqa_info", "box_fiqa_info")
_RESERVED = {*EXT_DATA_FIELDS, "face_pic", NOTES} - {*_FIQA}
_T = TypeVar("_T")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NAMESPACE = uuid.UUID("6c9ffc3b-6a1c-5b6f-9b0e-1f0a6f2e5d11")


class Strip(IntEnum):
    """What else is left out of one delivery, beyond the picture policy."""

    NOTHING = 0
    SPOT = 1
    """Too large for the platform: without spot_pic."""
    BOTH = 2
    """Still too large: without reg_pic either."""
    REQUESTED = 3
    """The operator asked for no pictures; the payload says nothing about it."""


class Built(NamedTuple):
    """A payload ready to be sent."""

    body: bytes
    notes: Tuple[str, ...]
    """What was left out or changed and why; the same as ext_data.upload_notes."""
    has_spot: bool
    has_reg: bool


def build(
    values: Mapping[str, Any],
    columns: Columns,
    *,
    dev_sno: str,
    unit: str,
    wire_unit: str,
    pictures: config.Pictures,
    strip: Strip = Strip.NOTHING,
) -> Built:
    """Build the HistoryEvent of a row (protocol section 1, decisions D1, D2, D4).

    values: column -> value as the driver gives it; a picture column that is not there was not
    asked for. dev_sno: the gateway's. unit: of the timestamp in the row (auto, s, ms, iso);
    wire_unit: of the timestamp sent (ms, s). Raises Unusable, naming the field and never the
    value, where a required field is missing or unusable.
    """
    row = _Row(values, columns)
    milliseconds = row.required("timestamp", lambda value: timestamp_ms(value, unit))
    identity_id = row.required("identity_id", text)
    name = row.required("identity_name", text)
    event: Dict[str, Any] = {
        "identity_id": identity_id,
        "identity_name": name or ("" if identity_id else "stranger"),
        "group_name": _group_name(row),
        "timestamp": milliseconds // 1000 if wire_unit == "s" else milliseconds,
        "score": row.required("score", number),
        "ext_data": _ext_data(row, dev_sno),
    }
    _add_pictures(event, row, pictures, strip)
    if strip:
        row.notes += _leave_out(event, strip, pictures.when_absent)
    if row.notes:
        event["ext_data"][NOTES] = row.notes
    return Built(
        orjson.dumps(event),
        tuple(row.notes),
        has_spot=bool(event["ext_data"].get("spot_pic")),
        has_reg=bool(event.get("reg_pic")),
    )


def strip_pictures(body: bytes, strip: Strip, when_absent: str = "omit") -> bytes:
    """Leave pictures out of a payload that build made; nothing happens where they are out already.

    when_absent: of the endpoint's picture policy (decision D2).
    """
    event = orjson.loads(body)
    notes = _leave_out(event, strip, when_absent)
    if notes:
        event["ext_data"].setdefault(NOTES, []).extend(notes)
    return orjson.dumps(event)


def wanted_pictures(pictures: config.Pictures, strip: Strip = Strip.NOTHING) -> Tuple[str, ...]:
    """Name the picture fields that build needs under a policy; no other need be read."""
    if strip == Strip.REQUESTED:
        return ()
    reg = ("reg_pic",) if pictures.reg_pic == "keep" else ()
    spot = {"large": ("spot_pic",), "small": ("face_pic", "spot_pic")}.get(pictures.spot_pic, ())
    return reg + spot


def fingerprint(values: Mapping[str, Any], columns: Columns, key: Union[int, str]) -> bytes:
    """Hash into 16 bytes what makes a row this very event, as stored, and no picture.

    The same for ever: whoever changes this changes the Idempotency-Key of every event.
    """
    parts = [key, *[lookup(values, path) for path in columns.identity_paths]]
    return hashlib.blake2b(b"".join(map(_spelled, parts)), digest_size=16).digest()


def idempotency_key(dev_sno: str, fingerprint: bytes) -> str:
    """Name an event of a gateway as a UUID, for the Idempotency-Key header."""
    return str(uuid.uuid5(_NAMESPACE, f"{dev_sno}/{fingerprint.hex()}"))


def _spelled(value: Any) -> bytes:
    """Spell a value in the one way there is: type tag, length, bytes; the commonest types first."""
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return b"s%d:%b" % (len(data), data)
    if type(value) is int:
        data = b"%d" % value
        return b"i%d:%b" % (len(data), data)
    if type(value) is float:
        tag, data = b"f", repr(value).encode()
    elif value is None:
        tag, data = b"n", b""
    elif isinstance(value, (bytes, bytearray, memoryview)):
        tag, data = b"b", bytes(value)
    elif isinstance(value, datetime):
        moment = value.isoformat() if value.tzinfo is None else str(value - _EPOCH)
        tag, data = b"t", moment.encode()
    else:
        tags = ((bool, b"?"), (int, b"i"), (float, b"f"), (Decimal, b"d"))
        tag = next((tag for kind, tag in tags if isinstance(value, kind)), b"o")
        data = str(value).encode("utf-8", "surrogatepass")
    return b"%b%d:%b" % (tag, len(data), data)


class _Row:
    """A row seen through its mapping, and the notes on what of it could not be sent."""

    def __init__(self, values: Mapping[str, Any], columns: Columns) -> None:
        self.values = columns.leaving(values)
        self.columns = columns
        self.fields = columns.fields(self.values)
        """What is stored of each field; None where there is nothing or it must not leave."""
        self.notes: List[str] = []

    def note(self, name: str, what: object) -> None:
        line = f"{name}: {what}"
        if line not in self.notes:
            self.notes.append(line)

    def required(self, field: str, convert: Callable[[Any], _T]) -> _T:
        value = self.fields[field]
        if value is None:
            raise Unusable(f"{field}: is missing")
        try:
            return convert(value)
        except Unusable as error:
            raise Unusable(f"{field}: {_reason(value, error)}") from None

    def optional(self, field: str, convert: Callable[[Any], _T]) -> Optional[_T]:
        """Return None where there is nothing, or nothing usable, which is noted."""
        value = self.fields[field]
        if not value and _is_empty(value):
            return None
        try:
            return convert(value)
        except (Unusable, TooDeep) as error:
            self.note(field, f"left out, {_reason(value, error)}")
            return None

    def as_json(self, name: str, value: Any) -> Any:
        """Return a value of no field as JSON, JSON text parsed; None where it cannot be sent."""
        note = partial(self.note, name)
        if is_document(value):
            try:
                return parsed_plain(value, note)
            except (Unusable, TooDeep) as error:
                note(f"sent as text, {error}")
        try:
            return plain(value, note)
        except (Unusable, TooDeep) as error:
            note(f"left out, {error}")
            return None


def _reason(value: Any, error: Exception) -> str:
    """Say why a value cannot be used; what could not even be read says so itself."""
    return value.reason if isinstance(value, Unreadable) else str(error)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, TEXT) and len(value) == 0)


def _group_name(row: _Row) -> str:
    """Return the group's name or, where there is none, its id (protocol section 1)."""
    present = [name for name in ("group_name", "group_id") if row.fields[name] is not None]
    if not present:
        raise Unusable("group_name: is missing, and so is group_id")
    for name in present:
        if not _is_empty(row.fields[name]):
            return row.required(name, text)
    return ""


def _person_type(value: Any) -> int:
    return one_of(value, 1, 5)


def _device_type(value: Any) -> str:
    return str(one_of(value, 0, 4))


def _ext_data(row: _Row, dev_sno: str) -> Dict[str, Any]:
    """Return ext_data without pictures and notes."""
    dev_sno = row.optional("dev_sno", text) or dev_sno
    device_ip = row.optional("device_ip", text)
    ep_id = row.optional("ep_id", text) or (device_ip and f"{dev_sno}__{device_ip}")
    person_type = row.optional("person_type", _person_type)
    if _is_empty(row.fields["person_type"]):
        person_type = 1
    known = {
        "dev_sno": dev_sno,
        "device_ip": device_ip,
        "ep_id": ep_id,
        "person_type": person_type,
        "device_type": row.optional("device_type", _device_type),
    }
    ext: Dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    for name in _FIQA:
        ext[name] = row.optional(name, partial(_json_object, partial(row.note, name))) or {}
    if not _is_empty(row.fields["group_name"]):
        _put(ext, ["group_id"], row.as_json("group_id", row.fields["group_id"]))
    for place, path in row.columns.extras.items():
        _put(ext, place.split("."), row.as_json(place, lookup(row.values, path)))
    for column, value in row.columns.leftovers(row.values).items():
        name = column.encode(errors="replace").decode()
        _put(ext, [name], row.as_json(name, value))
    return ext


def _json_object(note: Callable[[str], None], value: Any) -> Dict[str, Any]:
    document = parsed_plain(value, note) if isinstance(value, TEXT) else value
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise Unusable("is not a JSON object")
    result: Dict[str, Any] = document if isinstance(value, TEXT) else plain(document, note)
    return result


def _put(ext: Dict[str, Any], place: Sequence[str], value: Any) -> None:
    """Put a value at a place in ext_data where it hides nothing and is not mistaken for a field."""
    if value is None:
        return
    if place[0] in _RESERVED:
        place = [f"column_{place[0]}", *place[1:]]
    *parents, leaf = place
    target = ext
    for name in parents:
        while not isinstance(target.setdefault(name, {}), dict):
            name = f"column_{name}"
        target = target[name]
    while leaf in target:
        leaf = f"column_{leaf}"
    target[leaf] = value


def _add_pictures(
    event: Dict[str, Any], row: _Row, pictures: config.Pictures, strip: Strip
) -> None:
    wanted = wanted_pictures(pictures, strip)
    reg = row.optional("reg_pic", picture) if "reg_pic" in wanted else None
    spot = row.optional("face_pic", picture) if "face_pic" in wanted else None
    if not spot and "spot_pic" in wanted:
        spot = row.optional(
            "spot_pic", picture if pictures.spot_pic == "large" else lambda v: scaled(picture(v))
        )
    for target, name, value in ((event, "reg_pic", reg), (event["ext_data"], "spot_pic", spot)):
        if value or pictures.when_absent == "empty":
            target[name] = value or ""


def _leave_out(event: Dict[str, Any], strip: Strip, when_absent: str) -> List[str]:
    """Take the pictures out of an event that are left out, and return the notes on that."""
    notes = []
    for level, name, place in (
        (Strip.SPOT, "spot_pic", event["ext_data"]),
        (Strip.BOTH, "reg_pic", event),
    ):
        if strip >= level and place.get(name):
            if when_absent == "empty":
                place[name] = ""
            else:
                del place[name]
            if strip != Strip.REQUESTED:
                notes.append(f"{name}: left out, too large for the platform")
    return notes
