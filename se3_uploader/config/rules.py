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
from urllib.parse import SplitResult, urlsplit

from .. import units
from .yaml_file import Document, Path, Problems

SCHEMA = pathlib.Path(__file__).with_name("schema.json")

Found = Iterator[Tuple[Path, str]]


def check_config(document: Document) -> List[str]:
    """Every problem of a whole uploader.yaml, its profile aside, as ``file:line: key: text``."""
    problems = _problems(document, schema())
    endpoints: List[Tuple[Path, Mapping[str, Any]]] = []
    for section in ("history_event", "device_status"):
        for place, endpoint in enumerate(_list(document.data, section, "endpoints")):
            at: Path = (section, "endpoints", place)
            if _sound(at, problems):
                endpoints.append((at, endpoint))
                _add(problems, at, _endpoint_problems(endpoint))
                if section == "history_event" and _sound((section, "pictures"), problems):
                    general = document.data[section].get("pictures")
                    _add(problems, at, _picture_problems(endpoint, general))
    _add(problems, (), _name_problems(endpoints))
    for section, rule in (("source", _source_problems), ("retry", _retry_problems)):
        if _sound((section,), problems):
            _add(problems, (section,), rule(document.data.get(section, {})))
    if _sound(("source",), problems) and _sound(("outbox",), problems):
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


# --- formats: each raises ValueError with the sentence to tell ---


def _word(value: str) -> None:
    if not re.fullmatch(r"\S+", value):
        raise ValueError("must be one word, without white space")


def _name(value: str) -> None:
    if not (0 < len(value) <= 200 and value.isprintable() and value == value.strip()):
        raise ValueError("must be a name on one line, at most 200 characters, no space around it")


def _mac(value: str) -> None:
    if value != "auto" and not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", value):
        raise ValueError("must be auto or a MAC address such as e0:a5:09:00:0e:6d")


def _ip_address(value: str) -> None:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError("must be a literal IP address such as 192.168.1.101") from None


def _positive_duration(value: Any) -> None:
    if units.duration(value) == 0:
        raise ValueError("must be longer than 0, for example 20s")


def _probe(value: str) -> None:
    kind, _, argument = value.partition(":")
    if kind == "tcp" and _is_port(argument):
        return
    if kind == "seen" and argument:
        _positive_duration(argument)
    elif value != "none":
        raise ValueError("must be tcp:PORT, seen:DURATION or none, for example tcp:80 or seen:10m")


def _listen(value: str) -> None:
    host, _, port = value.rpartition(":")
    if not _is_port(port) or not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[\w.-]+", host):
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:9529")


def _is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[1-9][0-9]{0,4}", text)) and int(text) < 65536


def _http_url(value: str) -> SplitResult:
    try:
        url = urlsplit(value)
        # Reading the port is what checks it.
        good = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"[\s\\]", value) or not value.isprintable():
        raise ValueError("must be an http:// or https:// address with a host")
    return url


def _endpoint_url(value: str) -> None:
    if "@" in _http_url(value).netloc:
        raise ValueError("must not hold credentials, put them into a file and name it under auth")


def _proxy_url(value: str) -> None:
    _http_url(value)


def _source_url(value: str) -> None:
    scheme, separator, rest = value.partition("://")
    known = ("sqlite", "mysql", "postgresql", "mongodb")
    other = {"mariadb": "mysql", "postgres": "postgresql", "sqlite3": "sqlite"}.get(scheme)
    if other and separator:
        raise ValueError(f"must begin with {other}:// in place of {scheme}://")
    if scheme not in known or not separator:
        raise ValueError(f"must begin with one of {', '.join(f'{name}://' for name in known)}")
    if scheme == "sqlite" and (not re.match(r"/[^?]", rest) or rest.startswith("/:memory:")):
        raise ValueError("must name a file: sqlite:///PATH, with four slashes if PATH is absolute")
    if scheme != "sqlite" and not re.match(r"[^/?]*/[^/?]", rest):
        raise ValueError(f"must name a database: {scheme}://USER:PASSWORD@HOST/DATABASE")


_RESERVED = {
    "accept-encoding", "connection", "content-encoding", "content-length", "content-type",
    "expect", "host", "idempotency-key", "keep-alive", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "user-agent",
}  # fmt: skip


def _header_name(value: str) -> None:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", value):
        raise ValueError("is no name of a header, write one such as X-Site")
    if value.lower() in ("authorization", "proxy-authorization"):
        raise ValueError("holds credentials, put them into a file and name it under auth")
    if value.lower() in _RESERVED:
        raise ValueError("is set by the uploader itself, remove it")


def _header_value(value: str) -> None:
    if not re.fullmatch(r"[ -~]*", value) or value != value.strip():
        raise ValueError("must be printable ASCII on one line, no space around it")


def _format(
    rule: Callable[[Any], object], kinds: Tuple[type, ...] = (str,)
) -> Callable[[Any], bool]:
    """A rule as jsonschema wants it: values of another type are left to the rule for types."""

    def holds(value: object) -> bool:
        if isinstance(value, kinds):
            rule(value)
        return True

    return holds


FORMATS: Dict[str, Callable[[Any], bool]] = {
    "duration": _format(units.duration, (str, int, float)),
    "positive-duration": _format(_positive_duration, (str, int, float)),
    "size": _format(units.size, (str, int)),
    "word": _format(_word),
    "name": _format(_name),
    "mac": _format(_mac),
    "ip-address": _format(_ip_address),
    "probe": _format(_probe),
    "listen": _format(_listen),
    "endpoint-url": _format(_endpoint_url),
    "proxy-url": _format(_proxy_url),
    "source-url": _format(_source_url),
    "header-name": _format(_header_name),
    "header-value": _format(_header_value),
}


# --- rules over more than one key; each gets a part that the schema found sound ---


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


def _endpoint_problems(endpoint: Mapping[str, Any]) -> Found:
    auth = _given(endpoint, "auth")
    tls = _given(endpoint, "tls")
    if len(auth) > 1:
        yield ("auth",), "holds bearer_file and basic_file, keep one of them"
    if "key_file" in tls and "cert_file" not in tls:
        yield ("tls", "key_file"), "needs cert_file beside it"
    if auth and _exposed(endpoint):
        yield (
            ("url",),
            "would send a token or password unencrypted to a public address: use https://, "
            "or set allow_plaintext: true",
        )


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


def _list(data: Any, section: str, key: str) -> List[Any]:
    part = data.get(section) if isinstance(data, dict) else None
    items = part.get(key) if isinstance(part, dict) else None
    return items if isinstance(items, list) else []


def _given(part: Mapping[str, Any], key: str) -> Dict[str, Any]:
    """A mapping inside a part without its null entries; empty where there is none."""
    return {name: value for name, value in (part.get(key) or {}).items() if value is not None}
