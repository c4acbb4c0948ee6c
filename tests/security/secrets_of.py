"""Marked secrets: an event, credentials and settings in which every secret text can be found."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Dict, List
from urllib.parse import quote

NAME = "王Zq7name"
PERSON = "Zq7person771"
REG_PIC = b"\xff\xd8\xffZq7reg" + bytes(range(256)) * 3
SPOT_PIC = b"\xff\xd8\xffZq7spot" + bytes(reversed(range(256))) * 3
BEARER = "Zq7bearer.token"
USER, PASSWORD = "Zq7user", "Zq7p4ssword"
HEADER = "Zq7header"
QUERY = "Zq7query"
PHONE = "Zq7phone555"
"""A column of the box's own that nobody knows anything about."""

TEXTS = (NAME, PERSON, BEARER, USER, PASSWORD, HEADER, QUERY, PHONE)


def needles() -> List[bytes]:
    """Every secret in each form in which it could stand somewhere, in lower case."""
    found = [b"zq7"]
    for text in TEXTS:
        found += [text.encode(), json.dumps(text)[1:-1].encode(), quote(text).encode()]
    found.append(base64.b64encode(f"{USER}:{PASSWORD}".encode()))
    found.append(base64.b64encode(f"{USER}:{PASSWORD}".encode())[8:24])
    return [needle.lower() for needle in found] + PIECES


PIECES = [
    piece.lower()
    for picture in (REG_PIC, SPOT_PIC)
    for piece in (picture[100:120], base64.b64encode(picture)[200:224])
]
"""From the middle of each picture, raw and as base64."""
NEEDLES = needles()


def secrets_in(said: bytes) -> List[bytes]:
    """Which secrets stand in what was written somewhere."""
    return [needle for needle in NEEDLES if needle in said.lower()]


def secret_event(**changes: Any) -> Dict[str, Any]:
    """An event all of whose personal texts are marked."""
    return {
        "identity_id": PERSON,
        "identity_name": NAME,
        "group_name": "staff",
        "reg_pic": base64.b64encode(REG_PIC).decode(),
        "spot_pic": SPOT_PIC,
        "timestamp": 1_767_225_600_000,
        "score": 0.5,
        "phone": PHONE,
        **changes,
    }


def bearer(folder: Path, text: str = BEARER) -> Dict[str, Any]:
    """The settings of an endpoint with a token."""
    return {"auth": {"bearer_file": _file(folder / "bearer", text)}}


def basic(folder: Path, text: str = f"{USER}:{PASSWORD}") -> Dict[str, Any]:
    """The settings of an endpoint with a password."""
    return {"auth": {"basic_file": _file(folder / "basic", text)}}


def _file(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    path.chmod(0o600)
    return str(path)
