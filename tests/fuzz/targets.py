"""What is fuzzed: each target takes bytes, and fails with an AssertionError or any other exception.

Only what a target names may be raised: a configuration is wrong, a row unusable, an answer broken.
"""

from __future__ import annotations

import base64
import datetime
import http.client
import struct
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Union

import orjson

from se3_uploader import config, policy
from se3_uploader.payload import (
    Strip,
    Unusable,
    build,
    columns_of,
    fingerprint,
    idempotency_key,
    strip_pictures,
    timestamp_ms,
)
from se3_uploader.payload.values import picture, scaled
from se3_uploader.sink.answer import MAX_RETRY_AFTER, AnswerReader, Reply, retry_after
from se3_uploader.sink.faults import explain
from se3_uploader.source.pictures import read_picture
from tests.payloads import ROW

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
OUTSIDE = b"\xff\xd8 what lies outside the folder of pictures"


def any_config(data: bytes) -> None:
    """uploader.yaml: a configuration, or mistakes on one line each that name it or its profile."""
    path = FOLDER / "uploader.yaml"
    path.write_bytes(data)
    problems: List[str] = []
    try:
        assert config.load(str(path)).endpoints
    except config.ConfigError as error:
        problems = error.problems or ["none was told"]
    for problem in problems:
        assert problem.startswith("/"), problem
        assert problem.startswith(str(path)) or "profile" in data.decode(errors="replace"), problem
        assert problem.isprintable(), problem


def _values(data: bytes) -> List[Any]:
    """Values as drivers give them: pieces of the data, their first byte says which kind."""
    return [_value(piece[0] % 8, piece[1:]) for piece in data.split(b"\xfe\xff") if piece]


def _value(kind: int, data: bytes) -> Any:
    if kind == 0:
        return data.decode("utf-8", "replace")
    if kind == 1:
        return data.decode("utf-8", "surrogateescape")
    if kind == 2:
        return data
    if kind == 3:
        return int.from_bytes(data[:9], "big", signed=True)
    if kind == 4:
        return struct.unpack("d", data[:8].ljust(8, b"\0"))[0]
    if kind == 5:
        return None
    if kind == 6:
        return memoryview(data)
    return datetime.datetime(1 + sum(data) % 9999, 1, 1)


COLUMNS = columns_of(config.Source(url="sqlite:////e.db", columns={"ext_data.a.b": "extra"}))


def any_row(data: bytes) -> None:
    """A row of the event database: JSON with all that is required, or Unusable; and a key."""
    row = {**ROW, **dict(zip([*ROW, "extra", "other"], _values(data)))}
    key = fingerprint(row, COLUMNS, 7)
    assert len(idempotency_key("BOX", key)) == 36
    try:
        built = build(
            row, COLUMNS, dev_sno="BOX", unit="auto", wire_unit="ms", pictures=config.Pictures()
        )
    except Unusable:
        return
    event = orjson.loads(built.body)
    assert isinstance(event["identity_id"], str)
    assert isinstance(event["timestamp"], int)
    assert isinstance(event["score"], float)
    assert event["ext_data"]["dev_sno"]
    bare = orjson.loads(strip_pictures(built.body, Strip.BOTH))
    assert "reg_pic" not in bare
    assert "spot_pic" not in bare["ext_data"]


ENDPOINT = config.Endpoint(kind="device_status", url="http://127.0.0.1:9/", name="platform")
EVENT = orjson.dumps({"identity_name": "张伟", "identity_id": "13028", "n": ["4711", "O'Neil"]})


def any_answer(data: bytes) -> None:
    """What a platform sends back: an answer or a fault, a verdict, and no text of the event.

    It reads the same in one piece and in two.
    """
    reply = _read([data])
    half = len(data) // 2
    assert repr(_read([data[:half], data[half:]])) == repr(reply)
    if isinstance(reply, Exception):
        kind, words = explain(reply, ENDPOINT)
        assert kind in policy.FAULTS
        assert words.isprintable()
        return
    wait = retry_after(reply.headers)
    assert wait is None or 0 <= wait <= MAX_RETRY_AFTER
    answer = policy.Answer(status=reply.status, body=reply.body, retry_after=wait)
    for accept in ({}, {"status": 0}):
        assert policy.judge(answer, accept).reason.isprintable()
    said = policy.redact(answer, EVENT)
    assert len(said) <= 300
    assert not any(text in said for text in ("张伟", "13028", "4711", "O'Neil"))


def _read(pieces: List[bytes]) -> Union[Reply, Exception]:
    reader = AnswerReader()
    try:
        for piece in [*filter(None, pieces), b""]:
            reply = reader.feed(piece)
            if reply is not None:
                # Whether more came with the answer depends on the pieces.
                return reply._replace(reusable=False)
    except (OSError, http.client.HTTPException) as error:
        return error
    raise AssertionError("an answer that does not end with its connection")


def any_picture(data: bytes) -> None:
    """A picture in a row: base64 of it, itself or made small, or Unusable."""
    try:
        text = picture(data)
        base64.b64decode(text, validate=True)
        small = scaled(text)
    except Unusable:
        return
    if small is not None and small != text:
        assert base64.b64decode(small).startswith(b"\xff\xd8\xff")
        assert len(small) < 400_000


def _pictures() -> Path:
    folder = FOLDER / "pictures"
    folder.mkdir()
    (folder / "2026-01-31").mkdir()
    (folder / "2026-01-31" / "a.jpg").write_bytes(b"\xff\xd8 inside")
    (FOLDER / "outside.jpg").write_bytes(OUTSIDE)
    (folder / "link.jpg").symlink_to(FOLDER / "outside.jpg")
    (folder / "up").symlink_to(FOLDER)
    return folder


PICTURES = _pictures()


def any_picture_name(data: bytes) -> None:
    """The name of a picture in a row: a picture inside the folder, or none."""
    name = data[8:].decode("utf-8", "surrogateescape").replace("{folder}", str(PICTURES))
    try:
        moment = timestamp_ms(struct.unpack("q", data[:8].ljust(8, b"\0"))[0], "auto")
    except Unusable:
        moment = 1_769_860_800_000
    found = read_picture(str(PICTURES), name, moment)
    assert found in (b"\xff\xd8 inside", name) or not isinstance(found, (bytes, str)), found


TARGETS: Dict[str, Callable[[bytes], None]] = {
    "config": any_config,
    "row": any_row,
    "answer": any_answer,
    "picture": any_picture,
    "picture_name": any_picture_name,
}
