"""PURE: the bytes of a POST -> its payload, and what the protocol's JSON Schemas say against it."""

from __future__ import annotations

import json
import zlib
from itertools import islice
from pathlib import Path
from typing import Any, Dict, List, Tuple, cast

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

MAX_BODY = 64 * 1024**2
"""Bytes of one request's body, after decompression."""
MAX_REASONS = 1000
"""How many reasons one answer lists."""

_SCHEMAS = Path(__file__).with_name("schemas")
_VALIDATORS = {
    kind: Draft202012Validator(json.loads((_SCHEMAS / f"{kind}.schema.json").read_text("utf-8")))
    for kind in ("history_event", "device_status")
}
_WORDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "text",
}


class Unreadable(Exception):
    """A body that is no JSON; ``status`` is the HTTP status that says so, 400, 413 or 415."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def decompress(body: bytes, encoding: str) -> bytes:
    """Undo the Content-Encoding of a body; never makes more than MAX_BODY bytes of it.

    Raises Unreadable.
    """
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise Unreadable(415, "Content-Encoding must be gzip or absent")
    gunzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = gunzip.decompress(body, MAX_BODY + 1)
    except zlib.error as error:
        raise Unreadable(400, "the body is no gzip, though Content-Encoding says so") from error
    if len(plain) > MAX_BODY:
        raise Unreadable(413, too_large())
    if not gunzip.eof or gunzip.unused_data:
        raise Unreadable(400, "the gzip body is cut off, or something follows it")
    return plain


def parse(body: bytes) -> Any:
    """Read JSON as RFC 8259 has it: UTF-8, neither NaN nor Infinity nor lone surrogates.

    Raises Unreadable.
    """
    try:
        payload = orjson.loads(body)
        orjson.dumps(take_pictures(payload)[0])  # nests less deeply than loads
    except orjson.JSONDecodeError as error:
        raise Unreadable(400, f"the body is no JSON: {error}") from error
    except TypeError as error:
        raise Unreadable(400, "the JSON is nested too deeply") from error
    return payload


def too_large() -> str:
    """The wording of a 413."""
    return f"the body is larger than {MAX_BODY // 1024**2} MiB"


def objections(kind: str, payload: Any) -> List[str]:
    """Everything the schema of a kind of endpoint says against a payload; empty: valid.

    A reason names the field and the rule but never the value, for a reason ends up in logs and the
    value is personal.
    """
    errors = islice(_VALIDATORS[kind].iter_errors(payload), MAX_REASONS)
    return sorted({reason for error in errors for reason in _reasons(error)})


def _reasons(error: ValidationError) -> List[str]:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.path)
    if error.validator != "required":
        return [f"{path.lstrip('.') or 'the body'}: {_rule(error)}"]
    instance, required = cast(Any, error.instance), cast(Any, error.validator_value)
    missing = [name for name in required if name not in instance]
    return [f"{path}.{name}: is missing".lstrip(".") for name in missing]


def _rule(error: ValidationError) -> str:
    rule, schema = cast(Any, error.validator_value), cast(Any, error.schema)
    if error.validator == "type":
        allowed = [rule] if isinstance(rule, str) else rule
        return (
            f"must be {' or '.join(_WORDS[name] for name in allowed)}, is {_kind(error.instance)}"
        )
    if error.validator == "enum":
        return "must be one of " + ", ".join(map(str, rule))
    if error.validator == "pattern":
        return "must be base64" if "contentEncoding" in schema else f"must match {rule}"
    if error.validator == "minLength":
        return "must not be empty"
    bound = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "more than"}
    return f"must be {bound[str(error.validator)]} {rule}"


def _kind(value: Any) -> str:
    names = {bool: "boolean", dict: "object", float: "number", int: "integer", list: "array"}
    return _WORDS[names.get(type(value), "null" if value is None else "string")]


def take_pictures(payload: Any) -> Tuple[Any, Dict[str, str]]:
    """Split an event into everything but its pictures, and their texts by field name."""
    if not isinstance(payload, dict):
        return payload, {}
    rest, pictures = dict(payload), {}
    if isinstance(rest.get("reg_pic"), str):
        pictures["reg_pic"] = rest.pop("reg_pic")
    if isinstance(rest.get("ext_data"), dict):
        rest["ext_data"] = dict(rest["ext_data"])
        if isinstance(rest["ext_data"].get("spot_pic"), str):
            pictures["spot_pic"] = rest["ext_data"].pop("spot_pic")
    return rest, pictures


def put_pictures(rest: Any, pictures: Dict[str, str]) -> Any:
    """The inverse of take_pictures; changes ``rest`` and returns it."""
    if "reg_pic" in pictures:
        rest["reg_pic"] = pictures["reg_pic"]
    if "spot_pic" in pictures:
        rest["ext_data"]["spot_pic"] = pictures["spot_pic"]
    return rest
