"""payload.py against protocol section 1: the table, its fallbacks, and what is not in it."""

from __future__ import annotations

import json
import math
import uuid
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest

from se3_uploader.payload import Unreadable, Unusable
from tests.payloads import PICTURE, ROW, built, event_of, ext_of

TOO_LONG = "sent as text, is too long for a number of JSON"
PART_NOT_FINITE = "a part left out, is not a finite number"


def test_every_field_of_the_protocol_table() -> None:
    """A full row of the default table becomes exactly the fields of protocol section 1."""
    assert event_of(ROW) == {
        "identity_id": "13028",
        "identity_name": "张三",
        "group_name": "staff",
        "reg_pic": PICTURE,
        "timestamp": 1560408984678,
        "score": 0.16,
        "ext_data": {
            "device_ip": "192.168.1.151",
            "ep_id": "AKOPKKKKK__192.168.1.25",
            "spot_pic": PICTURE,
            "person_type": 2,
            "device_type": "1",
            "grab_fiqa_info": {"confidence": 90, "rect": {"top": 420}},
            "box_fiqa_info": {"age": 4, "info": {"clarity": 1.285613331998212}},
            "dev_sno": "ROW-SNO",
            "group_id": "g-1",
        },
    }


def test_example_of_the_protocol() -> None:
    """The protocol's own example, stored as columns, comes out as it stands there.

    Added are what it lacks by decision D4 and the fallback for ep_id; its spot_pic, ``xxxxx``, is
    no base64, and its empty reg_pic is left out by decision D2.
    """
    example = {
        "score": 0.16,
        "group_name": "default_group",
        "identity_id": "13028",
        "identity_name": "stranger",
        "timestamp": 1560408984678,
        "ext_data": {
            "device_type": "1",
            "grab_fiqa_info": {"confidence": 90, "face_id": 1381, "pitch": 0, "age": 4, "sex": 1},
            "box_fiqa_info": {"info": {"face_size": 255.0, "partial": False}, "fails": []},
            "person_type": 1,
            "device_ip": "192.168.1.151",
        },
    }
    row = {**example, **example["ext_data"], "reg_pic": "", "spot_pic": "xxxxx"}  # type: ignore[dict-item]
    del row["ext_data"]
    expected = json.loads(json.dumps(example))
    expected["ext_data"].update(
        dev_sno="BOX-SNO",
        ep_id="BOX-SNO__192.168.1.151",
        upload_notes=["spot_pic: left out, is not base64"],
    )
    assert event_of(row) == expected


@pytest.mark.parametrize(
    ("field", "stored", "sent"),
    [
        ("identity_id", 13028, "13028"),
        ("identity_id", 13028.0, "13028"),
        ("identity_id", Decimal("13028"), "13028"),
        ("identity_id", 1e300, "1e+300"),
        ("identity_id", b"13028", "13028"),
        ("identity_id", "", ""),
        ("identity_id", 0, "0"),
        ("identity_name", "", ""),
        ("group_name", 5, "5"),
        ("group_name", "", "g-1"),
        ("group_name", None, "g-1"),
        ("timestamp", 1560408984, 1560408984000),
        ("timestamp", 1560408984.678, 1560408984678),
        ("timestamp", "1560408984678", 1560408984678),
        ("timestamp", "2019-06-13T06:56:24.678Z", 1560408984678),
        ("score", "0.16", 0.16),
        ("score", 1, 1.0),
        ("score", Decimal("0.16"), 0.16),
        ("score", -0.5, -0.5),
    ],
)
def test_required_field_in_another_shape(field: str, stored: Any, sent: Any) -> None:
    """Numbers as text, text as numbers and the fallback of the group come out as the table says."""
    event = event_of({**ROW, field: stored})
    assert event[field] == sent
    assert type(event[field]) is type(sent)
    assert "upload_notes" not in event["ext_data"]


@pytest.mark.parametrize(
    ("field", "stored"),
    [
        ("identity_id", None),
        ("identity_id", b"\xff\xfe"),
        ("identity_id", "\ud800"),
        ("identity_id", True),
        ("identity_id", math.nan),
        ("identity_id", Decimal("NaN")),
        ("identity_id", ["1"]),
        ("identity_name", None),
        ("identity_name", b"\xb0\xa1"),
        ("identity_name", Unreadable("it has 20 MiB, the limit is 16 MiB")),
        ("group_name", b"\xff"),
        ("timestamp", None),
        ("timestamp", ""),
        ("timestamp", -1),
        ("timestamp", math.nan),
        ("timestamp", True),
        ("timestamp", 10**18),
        ("timestamp", "yesterday"),
        ("timestamp", "2019-13-41"),
        ("score", None),
        ("score", "high"),
        ("score", math.nan),
        ("score", "NaN"),
        ("score", math.inf),
        ("score", Decimal("sNaN")),
        ("score", 10**400),
        ("score", False),
    ],
)
def test_required_field_unusable(field: str, stored: Any) -> None:
    """A required field that is missing or unusable is refused by name, never by its value."""
    with pytest.raises(Unusable, match=f"^{field}: ") as refused:
        built({**ROW, field: stored})
    assert not stored or str(stored) not in str(refused.value)


def test_required_column_not_there() -> None:
    """A table without a required column gives the same refusal as NULL."""
    for field in ("identity_id", "identity_name", "timestamp", "score"):
        with pytest.raises(Unusable, match=f"^{field}: is missing$"):
            built({name: value for name, value in ROW.items() if name != field})


def test_no_group_at_all() -> None:
    """Without group name and id the event is refused; where both are empty, so is the field."""
    with pytest.raises(Unusable, match="group_name: is missing, and so is group_id"):
        built({**ROW, "group_name": None, "group_id": None})
    assert event_of({**ROW, "group_name": "", "group_id": ""})["group_name"] == ""


def test_group_id_is_not_lost() -> None:
    """group_id stands in ext_data unless it had to serve as group_name."""
    assert ext_of(ROW)["group_id"] == "g-1"
    assert "group_id" not in ext_of({**ROW, "group_name": ""})


def test_stranger_without_a_name() -> None:
    """Where nobody matched, firmware that stores two empty texts still reports a stranger."""
    assert event_of({**ROW, "identity_id": "", "identity_name": ""})["identity_name"] == "stranger"


@pytest.mark.parametrize(
    ("field", "stored", "sent"),
    [
        ("person_type", None, 1),
        ("person_type", "", 1),
        ("person_type", "5", 5),
        ("person_type", 4.0, 4),
        ("device_type", 0, "0"),
        ("device_type", 3.0, "3"),
        ("device_type", "4", "4"),
        ("ep_id", None, "ROW-SNO__192.168.1.151"),
        ("ep_id", "", "ROW-SNO__192.168.1.151"),
        ("dev_sno", None, "BOX-SNO"),
        ("dev_sno", "", "BOX-SNO"),
        ("grab_fiqa_info", None, {}),
        ("grab_fiqa_info", "", {}),
        ("grab_fiqa_info", "{}", {}),
        ("grab_fiqa_info", "null", {}),
        ("box_fiqa_info", {"sex": 1}, {"sex": 1}),
        ("box_fiqa_info", b'{"sex": 1}', {"sex": 1}),
    ],
)
def test_default_or_fallback_in_ext_data(field: str, stored: Any, sent: Any) -> None:
    """Defaults and fallbacks of the protocol, and other shapes of a value, need no note."""
    ext = ext_of({**ROW, field: stored})
    assert ext[field] == sent
    assert type(ext[field]) is type(sent)
    assert "upload_notes" not in ext


@pytest.mark.parametrize(
    ("field", "stored", "sent"),
    [
        ("person_type", 0, None),
        ("person_type", 6, None),
        ("person_type", 1.5, None),
        ("person_type", "vip", None),
        ("person_type", True, None),
        ("device_type", "photo", None),
        ("device_type", 5, None),
        ("device_type", -1, None),
        ("device_ip", b"\xff", None),
        ("device_ip", ["192.168.1.1"], None),
        ("dev_sno", b"\xff", "BOX-SNO"),
        ("ep_id", "\udfff", "ROW-SNO__192.168.1.151"),
        ("grab_fiqa_info", "{broken", {}),
        ("grab_fiqa_info", '{"yaw": NaN}', {}),
        ("grab_fiqa_info", "[1, 2]", {}),
        ("box_fiqa_info", "good", {}),
        ("box_fiqa_info", "[" * 300 + "]" * 300, {}),
        ("box_fiqa_info", {"yaw": math.inf, "sex": 1}, {"sex": 1}),
    ],
)
def test_optional_field_unusable(field: str, stored: Any, sent: Any) -> None:
    """An unusable optional field is left out, or falls back, under a note; the event goes."""
    ext = ext_of({**ROW, field: stored})
    assert ext.get(field) == sent
    assert [note.partition(":")[0] for note in ext["upload_notes"]] == [field]


def test_no_device_known() -> None:
    """Without device_ip and ep_id both are left out, as the protocol allows."""
    ext = ext_of({**ROW, "device_ip": None, "ep_id": None})
    assert not {"device_ip", "ep_id", "upload_notes"} & set(ext)


def test_timestamp_in_seconds_on_the_wire() -> None:
    """Decision D1: ``timestamp_unit: s`` sends whole seconds."""
    assert event_of(ROW, wire_unit="s")["timestamp"] == 1560408984


@pytest.mark.parametrize(
    ("stored", "sent"),
    [
        ("plain", "plain"),
        ("", ""),
        (0, 0),
        (False, False),
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        (1.5, 1.5),
        (Decimal("12.50"), 12.5),
        (Decimal("0.1"), 0.1),
        (Decimal("3"), 3),
        ('{"a": [1, null, "x"]}', {"a": [1, None, "x"]}),
        (" [1, 2]", [1, 2]),
        ("1,2", "1,2"),
        (b"\x00\xff", "AP8="),
        (memoryview(b"\x00\xff"), "AP8="),
        (datetime(2019, 6, 13, 6, 56, 24, tzinfo=timezone.utc), "2019-06-13T06:56:24+00:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (
            {"when": datetime(2019, 6, 13), "raw": b"\xff"},
            {"when": "2019-06-13T00:00:00", "raw": "/w=="},
        ),
    ],
)
def test_unknown_column_goes_to_ext_data(stored: Any, sent: Any) -> None:
    """What the protocol does not know is sent under its own name, JSON text as JSON, unchanged."""
    ext = ext_of({**ROW, "mask": stored})
    assert ext["mask"] == sent
    assert type(ext["mask"]) is type(sent)
    assert "upload_notes" not in ext


@pytest.mark.parametrize(
    ("stored", "sent", "note"),
    [
        (math.nan, None, "left out, is not a finite number"),
        (Decimal("Infinity"), None, "left out, is not a finite number"),
        ("\ud800", None, "left out, is not valid Unicode (a lone surrogate)"),
        (object(), None, "left out, is of type object, which JSON cannot carry"),
        (Unreadable("it has 20 MiB"), None, "left out, it has 20 MiB"),
        (2**64, "18446744073709551616", TOO_LONG),
        (Decimal("0.12345678901234567891"), "0.12345678901234567891", TOO_LONG),
        ('{"yaw": NaN}', '{"yaw": NaN}', "sent as text, is not valid JSON"),
        ("[1, 2", "[1, 2", "sent as text, is not valid JSON"),
        ("[" * 300 + "]" * 300, "[" * 300 + "]" * 300, "sent as text, is nested too deeply"),
        ("[" * 9999 + "]" * 9999, "[" * 9999 + "]" * 9999, "sent as text, is not valid JSON"),
        ('{"n": 18446744073709551617}', {"n": "18446744073709551617"}, TOO_LONG),
        ({"a": math.nan, "b": [math.inf]}, {"b": [None]}, PART_NOT_FINITE),
    ],
)  # fmt: skip
def test_unknown_column_that_json_cannot_carry(stored: Any, sent: Any, note: str) -> None:
    """It costs no more than itself, is kept as text where that is possible, and is noted once."""
    ext = ext_of({**ROW, "mask": stored})
    assert ext.get("mask") == sent
    assert ext["upload_notes"] == [f"mask: {note}"]


def test_document_too_deep_for_json() -> None:
    """A driver's document nested deeper than orjson can write costs itself alone."""
    deep: Any = 1
    for _ in range(400):
        deep = {"a": deep}
    ext = ext_of({**ROW, "mask": deep, "hat": 1})
    assert "mask" not in ext
    assert ext["hat"] == 1
    assert ext["upload_notes"] == ["mask: left out, is nested too deeply"]


def test_json_text_too_deep_with_a_long_number() -> None:
    """Text that only the slower JSON reader reads right may be too deep for it, and stays text."""
    stored = "[" * 1000 + "12345678901234567890" + "]" * 1000
    assert ext_of({**ROW, "mask": stored})["mask"] == stored


def test_null_column_is_left_out() -> None:
    """NULL holds nothing, so nothing is sent and nothing noted."""
    assert ext_of({**ROW, "mask": None}) == ext_of(ROW)


def test_extra_column_named_like_a_field() -> None:
    """A column that another one replaced as a field goes under a name that no reader mistakes."""
    row = {**ROW, "camera": "10.0.0.1", "upload_notes": "mine", "column_upload_notes": "too"}
    ext = ext_of(row, columns={"ext_data.device_ip": "camera"})
    assert ext["device_ip"] == "10.0.0.1"
    assert ext["column_device_ip"] == "192.168.1.151"
    assert ext["column_upload_notes"] == "mine"
    assert ext["column_column_upload_notes"] == "too"


def test_column_name_that_is_no_text() -> None:
    """Even a column whose name is broken neither stops the event nor is dropped."""
    assert ext_of({**ROW, "ma\udc80sk": 1})["ma?sk"] == 1


def test_key_and_ignored_columns_stay_home() -> None:
    """The key and ignore_columns are nowhere in the payload, not even as a fallback."""
    row = {**ROW, "group_name": "", "group_id": "secret", "salary": 5, "device_ip": "10.1.2.3"}
    row.pop("ep_id")
    payload = built({**row, "group_name": "g"}, ignore_columns=("group_id", "salary", "device_ip"))
    for absent in (b"secret", b"salary", b"10.1.2.3", b"__", b'"id"'):
        assert absent not in payload.body
    with pytest.raises(Unusable, match="group_name"):
        built({**row, "group_name": None}, ignore_columns=("group_id",))


@pytest.mark.parametrize(
    "name", ['O\'Brien "x" \\ /', "李雷 韩梅梅", "😀👨‍👩‍👧", "a\x01\x1f\x7f\t\r\n", "ß é"]
)
def test_names_survive_byte_for_byte(name: str) -> None:
    """Quotes, Chinese, emoji and control characters arrive as they were stored."""
    body = built({**ROW, "identity_name": name, "remark": name}).body
    event = json.loads(body.decode("utf-8"))
    assert event["identity_name"] == name
    assert event["ext_data"]["remark"] == name
