"""PURE: the columns that order a source, as one Key, and back without losing a bit."""

from __future__ import annotations

import json
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, Callable, Dict, Sequence, Tuple

from . import Key, SourceError


def encode(parts: Sequence[Any]) -> Key:
    """Make a Key of the values of the key column (and of the id column, where key can tie).

    A single 64-bit integer is its own Key; anything else becomes a JSON list. Values that the
    database holds to be the same row give the same Key.
    """
    if len(parts) == 1 and type(parts[0]) is int and -(2**63) <= parts[0] < 2**63:
        return parts[0]
    return json.dumps([_tagged(part) for part in parts], ensure_ascii=False, separators=(",", ":"))


def decode(key: Key, width: int) -> Tuple[Any, ...]:
    """Return the width values that a Key was made of.

    Raises SourceError for a Key that was made with other settings of source.key and source.id.
    """
    try:
        parts = [key] if isinstance(key, int) else [_untagged(part) for part in json.loads(key)]
    except (ValueError, TypeError, LookupError, ArithmeticError):
        parts = []
    if len(parts) != width:
        raise SourceError(
            "the saved position does not fit source.key and source.id; "
            "if they were changed, give the source a new source.name"
        )
    return tuple(parts)


def _tagged(value: Any) -> Any:
    """Return a value as JSON; types that JSON lacks become a one-entry object naming the type."""
    if isinstance(value, datetime):
        moment = value.astimezone(timezone.utc) if value.tzinfo else value
        return {"datetime": moment.isoformat()}
    if isinstance(value, date):
        return {"date": value.isoformat()}
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(value).hex()}
    if type(value).__name__ == "ObjectId":  # bson is there only where MongoDB is used
        return {"oid": str(value)}
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)


def _untagged(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((tag, text),) = value.items()
    if tag == "oid":
        from bson import ObjectId

        return ObjectId(text)
    return _TYPES[tag](text)


_TYPES: Dict[str, Callable[[str], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "decimal": Decimal,
    "bytes": bytes.fromhex,
}
