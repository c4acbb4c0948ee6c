"""payload.py: the fingerprint of an event, and the Idempotency-Key made from it."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Dict

import pytest

from se3_uploader import config
from se3_uploader.payload import columns_of, fingerprint, idempotency_key
from se3_uploader.payload.columns import EXT_DATA_FIELDS
from tests.payloads import ROW


@pytest.mark.parametrize(
    ("row", "source", "key", "expected"),
    [
        (ROW, {}, 7, "050bf22d3503183679f31111b02a0d1c"),
        (
            ROW,
            {"key": "timestamp", "id": "id"},
            "[1560408984678,7]",
            "3cd5e573aaf5f3d22e9b25526aaf69d7",
        ),
        (
            {"timestamp": 1.5, "score": Decimal("0.10"), "identity_id": b"\xff"},
            {},
            1,
            "c34a24b2c979865b3b1f4220652490a2",
        ),
        (
            {"timestamp": datetime(2019, 6, 13, 8, tzinfo=timezone.utc)},
            {},
            "a",
            "52ca029fb56671ab9018ef0a0e2d8bf6",
        ),
    ],
)
def test_fingerprint_is_the_same_for_ever(row: Any, source: Any, key: Any, expected: str) -> None:
    """Pinned values: a change here would send every event again under another Idempotency-Key."""
    columns = columns_of(config.Source(url="", **source))
    assert fingerprint(row, columns, key).hex() == expected


def test_fingerprint_ignores_all_but_the_identity() -> None:
    """Pictures written a moment later, and columns a look does not read, change nothing."""
    columns = columns_of(config.Source(url=""))
    look = {name: ROW[name] for name in columns.identity}
    assert fingerprint(look, columns, 7) == fingerprint(ROW, columns, 7)
    assert not {"reg_pic", "spot_pic", "face_pic"} & set(columns.identity)


@pytest.mark.parametrize(
    "change",
    [
        {"timestamp": 1560408984679},
        {"timestamp": "1560408984678"},
        {"timestamp": 1560408984678.0},
        {"identity_id": "13029"},
        {"identity_id": "1302", "identity_name": "8张三"},
        {"identity_name": None},
        {"score": 0.17},
    ],
)
def test_fingerprint_tells_events_apart(change: Dict[str, Any]) -> None:
    """Any change of key or identity, be it of type or of where one value ends, is another event."""
    columns = columns_of(config.Source(url=""))
    one = fingerprint(ROW, columns, 7)
    assert len(one) == 16
    assert fingerprint({**ROW, **change}, columns, 7) != one
    assert fingerprint(ROW, columns, 8) != one
    assert fingerprint(ROW, columns, "7") != one


def test_fingerprint_of_an_event_whose_optional_fields_are_mapped_later() -> None:
    """The event stays the same one, under the same key."""
    optional = {f"ext_data.{name}": f"other_{name}" for name in EXT_DATA_FIELDS}
    mapped = config.Source(url="", columns={**optional, "group_name": "other", "group_id": "more"})
    row = {**ROW, **dict.fromkeys(mapped.columns.values(), "new")}
    assert fingerprint(row, columns_of(mapped), 7) == fingerprint(
        ROW, columns_of(config.Source(url="")), 7
    )


def test_fingerprint_of_a_moment_in_another_zone() -> None:
    """The session's time zone of a database does not matter."""
    columns = columns_of(config.Source(url=""))
    east = timezone(timedelta(hours=8))
    utc, local = (
        datetime(2019, 6, 13, 8, tzinfo=timezone.utc),
        datetime(2019, 6, 13, 16, tzinfo=east),
    )
    assert fingerprint({"timestamp": utc}, columns, 1) == fingerprint(
        {"timestamp": local}, columns, 1
    )


def test_idempotency_key() -> None:
    """A UUID, the same for ever, another one for another gateway or event."""
    key = idempotency_key("BOX-SNO", bytes(16))
    assert key == "811fa296-1026-529d-ac70-28b8d4deac31"
    assert str(uuid.UUID(key)) == key
    assert (
        len(
            {key, idempotency_key("OTHER", bytes(16)), idempotency_key("BOX-SNO", bytes(15) + b"1")}
        )
        == 3
    )


def test_fingerprint_at_the_end_of_the_calendar() -> None:
    """A moment that other zones cannot express is hashed like any other."""
    moment = datetime.max.replace(tzinfo=timezone(-timedelta(hours=8)))
    assert len(fingerprint({"timestamp": moment}, columns_of(config.Source(url="")), 1)) == 16
