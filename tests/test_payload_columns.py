"""columns.py: mappings into columns and documents, and what is left over."""

from __future__ import annotations

import json
from typing import Any, Dict

import orjson
import pytest
import yaml

from se3_uploader import config
from se3_uploader.payload import Unreadable, Unusable, build
from se3_uploader.payload.columns import columns_of, lookup

PROFILES = config.PROFILES


def source(**options: Any) -> config.Source:
    """A source with a mapping."""
    return config.Source(url="sqlite:///event.db", **options)


def event_of(row: Dict[str, Any], unit: str = "auto", **options: Any) -> Dict[str, Any]:
    """Build a row under a mapping, and return the payload parsed."""
    event: Dict[str, Any] = orjson.loads(
        build(
            row,
            columns_of(source(**options)),
            dev_sno="BOX-SNO",
            unit=unit,
            wire_unit="ms",
            pictures=config.Pictures(),
        ).body
    )
    return event


def test_a_column_named_like_a_field_is_that_field() -> None:
    """Without a mapping every field is the column of its name."""
    columns = columns_of(source())
    assert columns.timestamp == "timestamp"
    assert columns.device_ip == "device_ip"
    assert columns.pictures == {name: name for name in ("reg_pic", "spot_pic", "face_pic")}
    assert columns.identity == ("timestamp", "identity_id", "identity_name", "score")


def test_keys_of_a_mapping() -> None:
    """A field of ext_data may be written with or without ``ext_data.``; the rest are new names."""
    columns = columns_of(
        source(
            columns={
                "identity_id": "person",
                "ext_data.device_ip": "camera",
                "spot_pic": "scene",
                "face_pic": "face",
                "ext_data.door": "gate_no",
                "ext_data.identity_name": "nick",
            }
        )
    )
    assert (columns.identity_id, columns.device_ip) == ("person", "camera")
    assert columns.pictures == {"reg_pic": "reg_pic", "spot_pic": "scene", "face_pic": "face"}
    assert columns.identity_name == "identity_name"
    assert columns.extras == {"door": "gate_no", "identity_name": "nick"}


def test_fields_of_devices_are_none_of_events() -> None:
    """What is mapped for the table of devices is no field of an event, nor does it take a column.

    Under ``ext_data.`` the same name is a place of the user's own.
    """
    mapping = dict.fromkeys(("ep_ip", "ep_name", "ep_type", "sw_version"), "score")
    assert columns_of(source(columns=mapping)) == columns_of(source())
    row = {"timestamp": 1560408984678, "score": 1, "identity_id": "1", "identity_name": "x",
           "group_name": "g", "title": "door"}  # fmt: skip
    sent = event_of(row, columns={"ep_name": "title", "ext_data.ep_ip": "title"})
    assert sent["ext_data"]["ep_ip"] == "door"
    assert "ep_name" not in sent["ext_data"]
    assert event_of(row, columns={"ep_name": "title"}) == event_of(row)


def test_identity_of_a_key_that_can_tie() -> None:
    """The id column belongs to the identity where key alone is not unique; each column once."""
    columns = columns_of(
        source(key="time", id="uid", columns={"identity_id": "doc.id", "score": "doc.score"})
    )
    assert columns.identity == ("uid", "timestamp", "doc", "identity_name")
    assert columns_of(source(id="id")).identity == columns_of(source()).identity


def test_pictures_that_must_not_leave_are_not_read() -> None:
    """An ignored picture, or one in an ignored document, is no picture of the source."""
    columns = columns_of(
        source(columns={"spot_pic": "raw.scene"}, ignore_columns=("raw", "face_pic"))
    )
    assert columns.pictures == {"reg_pic": "reg_pic"}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("plain", 1),
        ("doc.a.b", 2),
        ("text.a.b", 3),
        ("blob.a", 4),
        ("doc.a.none", None),
        ("doc.a.b.c", None),
        ("doc.list.0", None),
        ("broken.a", None),
        ("plain.a", None),
        ("nowhere.a", None),
        ("null.a", None),
        ("doc.text.x", 5),
    ],
)
def test_lookup(path: str, found: Any) -> None:
    """A path leads through documents and JSON text, and to nothing where it cannot go on."""
    row = {
        "plain": 1,
        "doc": {"a": {"b": 2}, "list": [1], "text": '{"x": 5}'},
        "text": '{"a": {"b": 3}}',
        "blob": b'{"a": 4}',
        "broken": "{",
        "null": None,
    }
    assert lookup(row, path) == found


ROW = {
    "id": 1,
    "person": {"no": 7, "name": "张三", "team": {"label": "staff"}, "card": "c-9"},
    "at": 1560408984678,
    "match": '{"score": 0.5, "template": [0.1, 0.2], "frame": 3}',
}
MAPPING = {
    "identity_id": "person.no",
    "identity_name": "person.name",
    "group_name": "person.team.label",
    "timestamp": "at",
    "score": "match.score",
}


def test_documents_are_sent_without_what_a_field_took() -> None:
    """Of documents and JSON text only the rest goes to ext_data; emptied ones vanish."""
    event = event_of(ROW, columns=MAPPING, ignore_columns=("match.template",))
    assert (event["identity_id"], event["group_name"], event["score"]) == ("7", "staff", 0.5)
    assert event["ext_data"] == {
        "dev_sno": "BOX-SNO",
        "person_type": 1,
        "grab_fiqa_info": {},
        "box_fiqa_info": {},
        "person": {"card": "c-9"},
        "match": {"frame": 3},
    }


def test_dotted_places_on_the_other_side() -> None:
    """A mapping may put a value deep into ext_data, beside what stands there and never over it."""
    event = event_of(
        {**ROW, "grab_fiqa_info": {"age": 30}, "yaw": 1.5, "age": 31, "door": "north"},
        columns={
            **MAPPING,
            "ext_data.grab_fiqa_info.yaw": "yaw",
            "ext_data.grab_fiqa_info.age": "age",
            "ext_data.place.door": "door",
            "ext_data.place.card": "person.card",
            "ext_data.place.door.wing": "match.frame",
            "ext_data.device_ip.port": "id",
        },
    )
    ext = event["ext_data"]
    assert ext["grab_fiqa_info"] == {"age": 30, "yaw": 1.5, "column_age": 31}
    assert ext["place"] == {"door": "north", "card": "c-9", "column_door": {"wing": 3}}
    assert ext["column_device_ip"] == {"port": 1}
    assert "device_ip" not in ext
    assert "person" not in ext


@pytest.mark.parametrize(
    "match",
    [
        {"score": 0.5, "template": [7.25], "frame": 3},
        {"score": 0.5, "frame": 3, "faces": [1]},
        '{"score": 0.5, "template": [7.25], "frame": 3}',
        b'{"score": 0.5, "template": [7.25], "frame": 3}',
        [{"template": [7.25]}, {"template": 7.25, "x": 1}, [{"template": 7.25}]],
        '[{"template": 7.25}]',
        '{"template": [7.25, NaN]}',
        '{"template": [7.25',
        "[" * 900 + '{"template": 7.25}' + "]" * 900,
    ],
)
def test_an_ignored_part_never_leaves(match: Any) -> None:
    """Not in a document mapped as a whole, not in a list, not in JSON text too broken to prune."""
    row = {**ROW, "match": match, "points": 0.5}
    mapping = {**MAPPING, "score": "points", "ext_data.whole": "match"}
    for columns in ({**MAPPING, "score": "points"}, mapping):
        sent = json.dumps(event_of(row, columns=columns, ignore_columns=("match.template",)))
        assert "template" not in sent
        assert "7.25" not in sent


def test_broken_json_with_parts_to_prune_is_noted() -> None:
    """A column left out because its parts cannot be told apart is named."""
    event = event_of(
        {**ROW, "match": "{", "points": 0.5},
        columns={**MAPPING, "score": "points"},
        ignore_columns=("match.template",),
    )
    assert event["ext_data"]["upload_notes"] == ["match: left out, is not valid JSON"]


def test_plain_text_where_a_document_was_expected() -> None:
    """Text that is no JSON at all hides nothing and is sent as it is."""
    row = {**ROW, "match": "hello", "points": 0.5}
    mapping = {**MAPPING, "score": "points", "ext_data.device_type": "match.kind"}
    assert event_of(row, columns=mapping)["ext_data"]["match"] == "hello"


# Profiles


def profile(name: str) -> Dict[str, Any]:
    """Read a profile of the package as keys of a source section."""
    keys: Dict[str, Any] = yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))
    return keys


FACTORY_EVENT: Dict[str, Any] = {
    "_id": "1607062639.737444",
    "timestamp": 1607062639.7013178,
    "common": {
        "card_id": "",
        "ep_info": {
            "device_id": "a853043e",
            "ep_id": "0xe0a509261422__192.168.1.96",
            "ep_ip": "192.168.1.96",
            "ep_name": "lobby",
            "ep_type": "photo",
        },
        "group_id": "g-1",
        "group_name": "",
        "identity_id": "1244354",
        "identity_info": {"image_id": b"\xff\xd8 registered", "face_ids": ["f-1"]},
        "identity_name": "张三",
        "is_send": 0,
        "person_type": 5,
        "recognize_face_attr": {"age": "youth", "feature": [-0.0129, 0.0659], "mask": None},
        "recognize_face_pic_id": b"\xff\xd8 face",
        "score": 92.5,
        "spot_pic_id": b"\xff\xd8 scene",
        "want_action": "0",
    },
    "gate_data": {},
    "grab_data": {"grap_fiqa_info": {"age": "30", "sex": "0"}},
    "video_data": {"track_id": 4},
}


def factory_event(**common: Any) -> Dict[str, Any]:
    """Build the factory's document, with changes, under its profile."""
    keys = profile("sophon-gate")
    row = {**FACTORY_EVENT, "common": {**FACTORY_EVENT["common"], **common}}
    return event_of(
        row,
        unit=keys["timestamp_unit"],
        key=keys["key"],
        columns=keys["columns"],
        ignore_columns=tuple(keys["ignore_columns"]),
    )


def test_sophon_gate_profile() -> None:
    """The factory's document becomes a HistoryEvent; the template stays home, the rest is kept."""
    assert factory_event() == {
        "identity_id": "1244354",
        "identity_name": "张三",
        "group_name": "g-1",
        "timestamp": 1607062639701,
        "score": 92.5,
        "reg_pic": "/9ggcmVnaXN0ZXJlZA==",
        "ext_data": {
            "dev_sno": "BOX-SNO",
            "device_ip": "192.168.1.96",
            "ep_id": "0xe0a509261422__192.168.1.96",
            "person_type": 5,
            "grab_fiqa_info": {"age": "30", "sex": "0"},
            "box_fiqa_info": {},
            "common": {
                "card_id": "",
                "ep_info": {"device_id": "a853043e", "ep_name": "lobby", "ep_type": "photo"},
                "identity_info": {"face_ids": ["f-1"]},
                "is_send": 0,
                "recognize_face_attr": {"age": "youth"},
                "want_action": "0",
            },
            "gate_data": {},
            "video_data": {"track_id": 4},
            "spot_pic": "/9ggc2NlbmU=",
        },
    }


def test_sophon_gate_stranger() -> None:
    """Where the firmware matched nobody it stores empty texts; a stranger is reported."""
    event = factory_event(
        identity_id="", identity_name="", identity_info={}, group_id="", person_type=4
    )
    assert (event["identity_id"], event["identity_name"]) == ("", "stranger")
    assert event["group_name"] == ""
    assert "reg_pic" not in event
    assert "upload_notes" not in event["ext_data"]


def test_sophon_gate_picture_gone() -> None:
    """A picture file that is gone costs its picture alone."""
    event = factory_event(spot_pic_id=Unreadable("the file is gone"))
    assert event["ext_data"]["upload_notes"] == ["spot_pic: left out, the file is gone"]


def test_se3_profile_is_the_default_table() -> None:
    """The profile of the default table says what the defaults of a source say."""
    keys = profile("se3")
    defaults = config.Source(url="")
    assert keys == {name: getattr(defaults, name) for name in keys}


def test_unusable_names_the_field_not_the_path() -> None:
    """A reason speaks of the protocol's field, whatever column it comes from."""
    with pytest.raises(Unusable, match=r"^score: is missing$"):
        event_of({**ROW, "match": {}}, columns=MAPPING)
