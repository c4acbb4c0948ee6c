"""PURE: what a database driver hands over, as the text, numbers, times and pictures of the wire."""

from __future__ import annotations

import io
import json
import math
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Callable, Dict, Match, NamedTuple, Optional, Union
from uuid import UUID

import orjson
import pybase64

TEXT = (str, bytes, bytearray, memoryview)
BYTES = (bytes, bytearray, memoryview)

MAX_DEPTH = 100
"""Levels of nested JSON in one value, as in MongoDB; orjson writes at most 254 in a payload."""


class Unusable(Exception):
    """A value that cannot be sent. Says what is wrong with it and never repeats it."""


class TooDeep(Exception):
    """A document nested deeper than JSON libraries agree to read."""


class Unreadable(NamedTuple):
    """A picture that the source could not read: file gone, outside pictures_dir, too large."""

    reason: str


def text(value: Any) -> str:
    """Return text as it stands, UTF-8 bytes decoded, a number as its digits; raise Unusable."""
    if isinstance(value, str):
        if not (value.isascii() or _encodable(value)):
            raise Unusable("is not valid Unicode (a lone surrogate)")
        return value
    if isinstance(value, BYTES):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise Unusable("is not valid UTF-8") from None
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (int, float, Decimal)):
        whole = abs(number(value)) < 1e40 and value == int(value)
        return str(int(value) if whole else value)
    raise Unusable("is neither text nor a number")


def number(value: Any) -> float:
    """Return a finite number, from a number or its text; raise Unusable."""
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, TEXT):
        value = text(value).strip()
        if not _NUMBER.fullmatch(value):
            raise Unusable("is not a number")
    elif not isinstance(value, (int, float, Decimal)) or isinstance(value, bool):
        raise Unusable("is not a number")
    try:
        result = float(value)
    except (OverflowError, ValueError):
        result = math.inf
    if not math.isfinite(result):
        raise Unusable("is not a finite number")
    return result


def one_of(value: Any, first: int, last: int) -> int:
    """Return a whole number from first to last, from a number or its text; raise Unusable."""
    if type(value) is int and first <= value <= last:
        return value
    result = number(value)
    if not result.is_integer() or not first <= result <= last:
        raise Unusable(f"is not one of {first} to {last}")
    return int(result)


def timestamp_ms(value: Any, unit: str) -> int:
    """Return milliseconds since 1970 from a stored time; raise Unusable.

    unit is that of a number (or its text): ``s``, ``ms``, or ``auto``, which tells seconds,
    milliseconds and microseconds apart by their size; ``iso`` allows no number. ISO 8601 text and
    date-time objects are understood under every unit; without a zone they are local time, because
    that is what a box writes. Times after the year 5138 are refused.
    """
    if type(value) is int and 10**11 <= value < 10**14 and unit in ("ms", "auto"):
        return value  # what nearly every row holds; a scan asks a million times
    if isinstance(value, TEXT):
        value = text(value).strip()
    try:
        if isinstance(value, str):
            iso = _ISO.fullmatch(value)
            value = _from_iso(iso) if iso else value
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            return _sane_ms(value.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise Unusable("is not a time in the calendar") from None
    if unit == "iso":
        raise Unusable("is not an ISO 8601 time")
    count = number(value)
    if unit == "s" or (unit == "auto" and count < 1e11):
        return _sane_ms(count * 1000)
    if unit == "ms" or count < 1e14:
        return _sane_ms(count)
    return _sane_ms(count / 1000)


def _sane_ms(milliseconds: float) -> int:
    if milliseconds < 0:
        raise Unusable("is before 1970")
    if milliseconds >= 1e14:
        raise Unusable("is too large for a time; is timestamp_unit right?")
    return round(milliseconds)


def _from_iso(match: Match[str]) -> datetime:
    """Read ISO 8601 text; on Python 3.8 datetime.fromisoformat takes only one spelling of it."""
    day, hour, minute, second, fraction = match.group("day", "hour", "minute", "second", "fraction")
    zone = match["zone"] or ""
    if zone in ("Z", "z"):
        zone = "+00:00"
    elif zone:
        zone = f"{zone[:3]}:{zone[3:].lstrip(':') or '00'}"
    return datetime.fromisoformat(
        f"{day} {hour or '00'}:{minute or '00'}:{second or '00'}.{(fraction or '')[:6]:0<6}{zone}"
    )


def is_document(value: Any) -> bool:
    """Tell whether text looks like a JSON object or list."""
    return isinstance(value, str) and _DOCUMENT.match(value) is not None


def parsed(document: Any) -> Any:
    """Parse JSON text or bytes; raise Unusable (NaN and Infinity are no JSON)."""
    document = text(document)
    try:
        value = orjson.loads(document)
        if _has_long_integer(document):
            value = json.loads(document)
    except (ValueError, RecursionError):
        raise Unusable("is not valid JSON") from None
    return value


def parsed_plain(document: Any, note: Callable[[str], None]) -> Any:
    """Parse JSON text or bytes into what plain makes of it; raise Unusable, or TooDeep.

    What orjson reads is plain already, unless it nests deeply or holds a number beyond 64 bits.
    """
    document = text(document)
    value = parsed(document)
    depth_at_most = document.count("{") + document.count("[")
    if depth_at_most <= MAX_DEPTH and not _has_long_integer(document):
        return value
    return plain(value, note)


def _has_long_integer(document: str) -> bool:
    """Look for 19 digits in a row; a regular expression takes ten times as long.

    orjson reads integers beyond 64 bits as rounded floats; the standard library keeps them.
    """
    return _LONG_INTEGER in document.encode().translate(_DIGITS_AS_ZEROS)


def plain(value: Any, note: Callable[[str], None], depth: int = 0) -> Any:
    """Return a value as JSON can carry it exactly; raise Unusable, or TooDeep.

    A part of a document that cannot be sent costs itself alone (in a list it becomes null) and is
    told to note. Bytes become base64, dates ISO 8601; numbers that JSON readers would round, text.
    """
    if depth > MAX_DEPTH:
        raise TooDeep("is nested too deeply")
    if isinstance(value, dict):
        return _plain_mapping(value, note, depth)
    if isinstance(value, (list, tuple)) and not isinstance(value, Unreadable):
        return [_plain_item(item, note, depth) for item in value]
    return _plain_leaf(value, note)


def _plain_mapping(
    value: Dict[Any, Any], note: Callable[[str], None], depth: int
) -> Dict[str, Any]:
    result = {}
    for name, part in value.items():
        try:
            result[text(name)] = plain(part, note, depth + 1)
        except Unusable as error:
            note(f"a part left out, {error}")
    return result


def _plain_item(item: Any, note: Callable[[str], None], depth: int) -> Any:
    try:
        return plain(item, note, depth + 1)
    except Unusable as error:
        note(f"a part left out, {error}")
        return None


def _plain_leaf(value: Any, note: Callable[[str], None]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        if -(2**63) <= value < 2**64:
            return value
        digits = text(value)
        note("sent as text, is too long for a number of JSON")
        return digits
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Decimal):
        return _plain_decimal(value, note)
    if isinstance(value, BYTES):
        return pybase64.b64encode_as_string(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (UUID, timedelta)):
        return str(value)
    if isinstance(value, Unreadable):
        raise Unusable(value.reason)
    if isinstance(value, Unusable):
        raise value
    raise Unusable(f"is of type {type(value).__name__}, which JSON cannot carry")


def _plain_decimal(value: Decimal, note: Callable[[str], None]) -> Any:
    result = number(value)
    if result == value or Decimal(repr(result)) == value:
        return int(result) if result.is_integer() and abs(result) < 2**53 else result
    note("sent as text, is too long for a number of JSON")
    return str(value)


def picture(value: Any) -> str:
    """Return a picture as base64; raise Unusable.

    Takes base64 text (sound text passes untouched; a data: prefix, line breaks, the URL alphabet
    and missing padding are repaired), the same as ASCII bytes, and raw bytes.
    """
    if not isinstance(value, TEXT):
        raise Unusable("is neither text nor bytes")
    raw = value if isinstance(value, str) else bytes(value)
    if raw.isascii():
        if _is_base64(raw):
            return raw if isinstance(raw, str) else raw.decode()
        repaired = _repaired(raw if isinstance(raw, bytes) else raw.encode())
        if _is_base64(repaired):
            return repaired.decode()
    if isinstance(raw, str):
        raise Unusable("is not base64")
    return pybase64.b64encode_as_string(raw)


def _is_base64(text: Union[str, bytes]) -> bool:
    """Tell whether this is whole blocks of the alphabet, padded at the end.

    Found out by decoding, which pybase64 does in a tenth of the time of any pass over the
    characters that the standard library offers.
    """
    try:
        pybase64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def _repaired(base64: bytes) -> bytes:
    """Return base64 without a data: prefix and white space, in the usual alphabet, and padded."""
    prefix = _DATA_PREFIX.match(base64)
    if prefix:
        base64 = base64[prefix.end() :]
    base64 = base64.translate(_STANDARD_ALPHABET, b" \t\r\n")
    return base64 + b"=" * (-len(base64) % 4)


def scaled(base64_text: str, side: int = 320, max_pixels: int = 25_000_000) -> Optional[str]:
    """Return a picture made to fit side x side pixels, None without pillow; raise Unusable."""
    try:
        from PIL import Image
    except ImportError:
        return None
    content = io.BytesIO(pybase64.b64decode(base64_text, validate=True))
    try:
        with Image.open(content, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Unusable("has too many pixels to be made small")
            if max(image.size) <= side:
                return base64_text
            image.draft("RGB", (side, side))
            image.thumbnail((side, side))
            small = io.BytesIO()
            image.convert("RGB").save(small, "JPEG", quality=80)
    except Unusable:
        raise
    except Exception:  # a damaged picture can raise nearly anything
        raise Unusable("cannot be made small, it is no intact picture") from None
    return pybase64.b64encode_as_string(small.getvalue())


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_INTEGER = b"0" * 19
_DOCUMENT = re.compile(r"\s*[{\[]")
_ISO = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)"
    r"([Tt ](?P<hour>\d\d):(?P<minute>\d\d)(:(?P<second>\d\d)([.,](?P<fraction>\d+))?)?"
    r"\s*(?P<zone>[Zz]|[+-]\d\d(:?\d\d)?)?)?"
)
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_DATA_PREFIX = re.compile(rb"\s*data:[^,]{0,100},")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
