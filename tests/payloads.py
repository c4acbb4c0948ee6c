"""A full row of the default table, and payloads built from it and held against the schema."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Dict

import orjson
from jsonschema import Draft202012Validator

from se3_uploader import config
from se3_uploader.payload import Built, Strip, build, columns_of

SCHEMA = Path(config.__file__).parent.parent / "receiver/schemas/history_event.schema.json"
VALIDATOR = Draft202012Validator(json.loads(SCHEMA.read_text()))

PICTURE = base64.b64encode(b"\xff\xd8\xff a picture").decode()
FACE = base64.b64encode(b"\xff\xd8\xff a face").decode()

ROW: Dict[str, Any] = {
    "id": 7,
    "identity_id": "13028",
    "identity_name": "张三",
    "group_id": "g-1",
    "group_name": "staff",
    "reg_pic": PICTURE,
    "timestamp": 1560408984678,
    "score": 0.16,
    "device_ip": "192.168.1.151",
    "ep_id": "AKOPKKKKK__192.168.1.25",
    "spot_pic": PICTURE,
    "face_pic": FACE,
    "person_type": 2,
    "device_type": "1",
    "grab_fiqa_info": '{"confidence": 90, "rect": {"top": 420}}',
    "box_fiqa_info": '{"age": 4, "info": {"clarity": 1.285613331998212}}',
    "dev_sno": "ROW-SNO",
}


def built(row: Dict[str, Any], strip: Strip = Strip.NOTHING, **options: Any) -> Built:
    """Build a row with the defaults of uploader.yaml, except for the options given."""
    pictures = config.Pictures(**options.pop("pictures", {}))
    unit = options.pop("unit", "auto")
    wire_unit = options.pop("wire_unit", "ms")
    columns = columns_of(config.Source(url="sqlite:///event.db", **options))
    return build(
        row,
        columns,
        dev_sno="BOX-SNO",
        unit=unit,
        wire_unit=wire_unit,
        pictures=pictures,
        strip=strip,
    )


def event_of(row: Dict[str, Any], strip: Strip = Strip.NOTHING, **options: Any) -> Dict[str, Any]:
    """Build a row, hold the payload against the schema, and return it parsed."""
    payload = built(row, strip, **options)
    event: Dict[str, Any] = orjson.loads(payload.body)
    VALIDATOR.validate(event)
    assert list(payload.notes) == event["ext_data"].get("upload_notes", [])
    return event


def ext_of(row: Dict[str, Any], **options: Any) -> Dict[str, Any]:
    """Return ext_data of the payload of a row."""
    ext: Dict[str, Any] = event_of(row, **options)["ext_data"]
    return ext
