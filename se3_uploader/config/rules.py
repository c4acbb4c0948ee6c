"""What is wrong with an uploader.yaml: its JSON Schema in our own words, and the rules beyond it.

A sentence never repeats a value, which may be a secret: its line is named, and what is allowed.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import pathlib
import re
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from .. import units
from .formats import FORMATS
from .yaml_file import Document, Path, Problems

SCHEMA = pathlib.Path(__file__).with_name("schema.json")

Found = Iterator[Tuple[Path, str]]


def check_config(document: Document) -> List[str]:
    """Every problem of a whole uploader.yaml, its profile aside, as ``file:line: key: text``."""
    problems = _problems(document, schema())
    named: List[Tuple[Path, Mapping[str, Any]]] = []
    for section in ("history_event", "device_status"):
        for place, endpoint in enumerate(_list(document.data, section, "endpoints")):
            at: Path = (section, "endpoints", place)
            for keys, rule in _ENDPOINT_RULES.items():
                if _all_sound(at, keys, problems):
                    _add(problems, at, rule(endpoint))
            if _all_sound(at, ("name", "url"), problems):
                named.append((at, endpoint))
            if (
                section == "history_event"
                and _sound((section, "pictures"), problems)
                and _all_sound(at, ("url", "allow_plaintext", "pictures"), problems)
            ):
                general = document.data[section].get("pictures")
                _add(problems, at, _picture_problems(endpoint, general))
    _add(problems, (), _name_problems(named))
    if _all_sound(("source",), ("table", "query"), problems):
        _add(problems, ("source",), _source_problems(document.data.get("source", {})))
    if _all_sound(("retry",), ("base", "cap"), problems):
        _add(problems, ("retry",), _retry_problems(document.data.get("retry", {})))
    if _sound(("source", "lookback"), problems) and _sound(("outbox", "keep_delivered"), problems):
        _add(problems, (), _lookback_problems(document.data))
    devices = _list(document.data, "device_status", "sub_devices")
    if _sound(("device_status", "sub_devices"), problems):
        _add(problems, ("device_status", "sub_devices"), _sub_device_problems(devices))
    return document.report(problems)


def check_profile(document: Document) -> List[str]:
    """Every problem of a profile: keys of the section ``source`` at the top level of a file."""
    whole = schema()
    problems = _problems(document, {"$defs": whole["$defs"], **whole["$defs"]["source"]})
    for key in ("url", "name", "profile"):
        if isinstance(document.data, dict) and key in document.data:
            problems[(key,)] = "has no place in a profile, write it into uploader.yaml"
    if not problems:
        _add(problems, (), _source_problems(document.data))
    return document.report(problems)


def schema() -> Dict[str, Any]:
    """The JSON Schema (draft 2020-12) of uploader.yaml."""
    whole: Dict[str, Any] = json.loads(SCHEMA.read_text("utf-8"))
    return whole


def endpoint_name(endpoint: Mapping[str, Any]) -> str:
    """The name an endpoint has or, by default, host and path of its url."""
    if endpoint.get("name"):
        return str(endpoint["name"])
    url = urlsplit(endpoint["url"])
    return f"{url.netloc.lower()}{url.path}"


# --- the schema, in our own words ---


def _problems(document: Document, part: Mapping[str, Any]) -> Problems:
    """What the reader and the schema hold against a document; one problem for each place."""
    # Here and not above: only a check needs it, and it is large.
    import jsonschema

    checker = jsonschema.FormatChecker(formats=())
    for name, rule in FORMATS.items():
        checker.checks(name, raises=ValueError)(rule)
    validator = jsonschema.Draft202012Validator(part, format_checker=checker)
    problems: Problems = dict(document.problems)
    # Text of the wrong type is no use to any other rule.
    for error in sorted(validator.iter_errors(document.data), key=lambda e: e.validator != "type"):
        _add(problems, tuple(error.absolute_path), _explained(error))
    return problems


_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping (key: value)",
    "array": "a list (- item)",
}


def _explained(error: Any) -> Found:
    """A jsonschema error as places below its own and sentences."""
    rule, allowed, value = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties":
        known = list(error.schema["properties"])
        patterns = list(error.schema.get("patternProperties", ()))
        for key in value:
            if key not in known and not any(re.search(pattern, key) for pattern in patterns):
                yield (key,), f"is an unknown key{_meant(key, known)}, allowed: {', '.join(known)}"
    elif rule == "required":
        for key in allowed:
            if key not in value:
                yield (key,), "is missing and must be given"
    elif rule == "type":
        names = [allowed] if isinstance(allowed, str) else allowed
        wanted = " or ".join(_TYPES[name] for name in names if name != "null")
        text = set(names) <= {"string", "null"} and _is_scalar(value)
        quotes = "; put it in quotes" if text else ""
        yield (), f"must be {wanted}{quotes}"
    elif rule == "enum":
        hint = _meant(value, allowed) if isinstance(value, str) else "; put it in quotes"
        yield (), f"must be one of {', '.join(allowed)}{hint if _is_scalar(value) else ''}"
    elif rule == "format":
        named = "propertyNames" in error.absolute_schema_path
        yield (value,) if named else (), str(error.cause)
    elif rule in ("minLength", "minItems"):
        yield (), "must not be empty"
    elif rule == "minimum":
        yield (), f"must be at least {allowed}"
    elif rule == "maximum":
        yield (), f"must be at most {allowed}"
    else:
        raise NotImplementedError(f"schema.json uses {rule}, which has no words yet")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float))


def _meant(word: str, known: Sequence[str]) -> str:
    close = [name for name in known if name.endswith(f".{word}")]
    close += difflib.get_close_matches(word[:64], known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


# --- rules over more than one key; the schema found those sound that a rule reads ---


def _source_problems(source: Mapping[str, Any]) -> Found:
    if source.get("table") is not None and source.get("query") is not None:
        yield ("query",), "stands beside table, keep one of them"


def _lookback_problems(data: Mapping[str, Any]) -> Found:
    """A late row is told from a delivered one by its receipt; half is left for clocks being set."""
    lookback = data["source"].get("lookback")
    keep = _given(data, "outbox").get("keep_delivered", "30d")
    if 2 * units.duration("1m" if lookback is None else lookback) <= units.duration(keep):
        return
    why = "or events would be sent again once their receipts are gone"
    if lookback is not None:
        yield ("source", "lookback"), f"must be at most half of outbox.keep_delivered, {why}"
    else:
        yield ("outbox", "keep_delivered"), f"must be at least twice source.lookback (1m), {why}"


def _retry_problems(retry: Mapping[str, Any]) -> Found:
    if units.duration(retry.get("base", "1s")) > units.duration(retry.get("cap", "5m")):
        yield ("base",), "must not be longer than cap"


def _auth_problems(endpoint: Mapping[str, Any]) -> Found:
    if len(_given(endpoint, "auth")) > 1:
        yield ("auth",), "holds bearer_file and basic_file, keep one of them"


def _tls_problems(endpoint: Mapping[str, Any]) -> Found:
    tls = _given(endpoint, "tls")
    if "key_file" in tls and "cert_file" not in tls:
        yield ("tls", "key_file"), "needs cert_file beside it"


def _token_problems(endpoint: Mapping[str, Any]) -> Found:
    if _given(endpoint, "auth") and _exposed(endpoint):
        yield (
            ("url",),
            "would send a token or password unencrypted to a public address: use https://, "
            "or set allow_plaintext: true",
        )


_ENDPOINT_RULES: Mapping[Tuple[str, ...], Callable[[Mapping[str, Any]], Found]] = {
    ("auth",): _auth_problems,
    ("tls",): _tls_problems,
    ("url", "auth", "allow_plaintext"): _token_problems,
}
"""The keys that a rule reads, all of which must be sound -> the rule."""


def _picture_problems(endpoint: Mapping[str, Any], general: Optional[Mapping[str, Any]]) -> Found:
    pictures = {**(general or {}), **_given(endpoint, "pictures")}
    stripped = pictures.get("reg_pic") == pictures.get("spot_pic") == "strip"
    if not stripped and _exposed(endpoint):
        yield (
            ("url",),
            "would send pictures unencrypted to a public address: use https://, strip the "
            "pictures, or set allow_plaintext: true",
        )


def _exposed(endpoint: Mapping[str, Any]) -> bool:
    """Plain http to an address that is public for sure; host names are judged when connected."""
    url = urlsplit(endpoint["url"])
    if url.scheme != "http" or endpoint.get("allow_plaintext"):
        return False
    try:
        return ipaddress.ip_address(url.hostname or "").is_global
    except ValueError:
        return False


def _name_problems(endpoints: Iterable[Tuple[Path, Mapping[str, Any]]]) -> Found:
    taken = set()
    for at, endpoint in endpoints:
        name = endpoint_name(endpoint)
        if name in taken:
            yield (*at, "name"), "another endpoint has this name, give each its own"
        taken.add(name)


def _sub_device_problems(devices: Iterable[Mapping[str, Any]]) -> Found:
    taken = set()
    for place, device in enumerate(devices):
        if device["ep_ip"] in taken:
            yield (place, "ep_ip"), "stands in this list already, keep one of them"
        taken.add(device["ep_ip"])


# --- helpers ---


def _add(problems: Problems, at: Path, found: Found) -> None:
    for path, text in found:
        problems.setdefault((*at, *path), text)


def _sound(at: Path, problems: Mapping[Path, str]) -> bool:
    """Nothing is wrong at a place, above it or below it."""
    return not any(path[: len(at)] == at[: len(path)] for path in problems)


def _all_sound(at: Path, keys: Iterable[str], problems: Mapping[Path, str]) -> bool:
    return all(_sound((*at, key), problems) for key in keys)


def _list(data: Any, section: str, key: str) -> List[Any]:
    part = data.get(section) if isinstance(data, dict) else None
    items = part.get(key) if isinstance(part, dict) else None
    return items if isinstance(items, list) else []


def _given(part: Mapping[str, Any], key: str) -> Dict[str, Any]:
    """A mapping inside a part without its null entries; empty where there is none."""
    return {name: value for name, value in (part.get(key) or {}).items() if value is not None}
