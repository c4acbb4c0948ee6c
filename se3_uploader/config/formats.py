"""Formats of single values of uploader.yaml: each raises ValueError with the sentence to tell."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Callable, Dict, Tuple
from urllib.parse import SplitResult, urlsplit

from .. import units


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
