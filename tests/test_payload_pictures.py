"""payload.py: which pictures leave the box, and what a payload says about the others."""

from __future__ import annotations

import base64
import io
from typing import Any, Dict

import orjson
import pytest

from se3_uploader import config
from se3_uploader.payload import Strip, Unreadable, strip_pictures, wanted_pictures
from tests.payloads import FACE, PICTURE, ROW, built, event_of, ext_of


@pytest.mark.parametrize(
    ("policy", "reg", "spot"),
    [
        ({}, PICTURE, PICTURE),
        ({"reg_pic": "strip"}, None, PICTURE),
        ({"spot_pic": "strip"}, PICTURE, None),
        ({"spot_pic": "small"}, PICTURE, FACE),
        ({"spot_pic": "strip", "reg_pic": "strip"}, None, None),
        ({"spot_pic": "strip", "reg_pic": "strip", "when_absent": "empty"}, "", ""),
    ],
)
def test_picture_policy(policy: Dict[str, str], reg: Any, spot: Any) -> None:
    """Each policy sends the pictures it names; face_pic never leaves under its own name."""
    payload = built(ROW, pictures=policy)
    event = event_of(ROW, pictures=policy)
    assert event.get("reg_pic") == reg
    assert event["ext_data"].get("spot_pic") == spot
    assert "face_pic" not in event["ext_data"]
    assert (payload.has_reg, payload.has_spot) == (bool(reg), bool(spot))
    assert payload.notes == ()


def test_absent_picture() -> None:
    """Decision D2: a key of a missing picture is left out, or empty where configured."""
    row = {**ROW, "reg_pic": None, "spot_pic": b""}
    event = event_of(row)
    assert "reg_pic" not in event
    assert "spot_pic" not in event["ext_data"]
    event = event_of(row, pictures={"when_absent": "empty"})
    assert event["reg_pic"] == event["ext_data"]["spot_pic"] == ""
    assert "upload_notes" not in event["ext_data"]


def test_unusable_picture_costs_only_itself() -> None:
    """A picture that is no base64, or whose file is gone, is left out under a note."""
    row = {**ROW, "reg_pic": "not base64!", "spot_pic": Unreadable("the file is gone")}
    event = event_of(row)
    assert "reg_pic" not in event
    assert event["ext_data"]["upload_notes"] == [
        "reg_pic: left out, is not base64",
        "spot_pic: left out, the file is gone",
    ]


def jpeg(width: int, height: int) -> bytes:
    """Draw a picture of a size."""
    image = pytest.importorskip("PIL.Image", reason="needs the extra pictures")
    data = io.BytesIO()
    image.new("RGB", (width, height), "navy").save(data, "JPEG")
    return data.getvalue()


@pytest.mark.parametrize("face", [None, "", Unreadable("the file is gone")])
def test_small_picture_made_from_the_large_one(face: Any) -> None:
    """Without a small picture the large one is scaled to at most 320 pixels."""
    from PIL import Image

    row = {**ROW, "face_pic": face, "spot_pic": jpeg(1280, 720)}
    small = base64.b64decode(ext_of(row, pictures={"spot_pic": "small"})["spot_pic"])
    assert Image.open(io.BytesIO(small)).size == (320, 180)


def test_small_picture_that_cannot_be_made() -> None:
    """A large picture that is damaged, or a decompression bomb, is left out under a note."""
    bomb = bytearray(jpeg(64, 64))
    size = bomb.index(b"\xff\xc0") + 5
    bomb[size : size + 4] = (5001).to_bytes(2, "big") * 2
    for large, reason in (
        (b"no picture", "cannot be made small, it is no intact picture"),
        (jpeg(640, 480)[:400], "cannot be made small, it is no intact picture"),
        (bytes(bomb), "has too many pixels to be made small"),
    ):
        ext = ext_of({**ROW, "face_pic": None, "spot_pic": large}, pictures={"spot_pic": "small"})
        assert "spot_pic" not in ext
        assert ext["upload_notes"] == [f"spot_pic: left out, {reason}"]


def test_small_picture_stays_as_it_is() -> None:
    """A spot_pic that is small already is not compressed again."""
    row = {**ROW, "face_pic": None, "spot_pic": jpeg(320, 240)}
    assert (
        base64.b64decode(ext_of(row, pictures={"spot_pic": "small"})["spot_pic"]) == row["spot_pic"]
    )


TOO_LARGE = "left out, too large for the platform"


@pytest.mark.parametrize(
    ("strip", "reg", "spot", "notes"),
    [
        (Strip.NOTHING, True, True, []),
        (Strip.SPOT, True, False, [f"spot_pic: {TOO_LARGE}"]),
        (Strip.BOTH, False, False, [f"spot_pic: {TOO_LARGE}", f"reg_pic: {TOO_LARGE}"]),
        (Strip.REQUESTED, False, False, []),
    ],
)
def test_strip(strip: Strip, reg: bool, spot: bool, notes: Any) -> None:
    """Each step leaves out its pictures with its notes, freshly built or in a stored copy alike."""
    fresh = built(ROW, strip)
    assert (fresh.has_reg, fresh.has_spot, list(fresh.notes)) == (reg, spot, notes)
    event_of(ROW, strip)
    copy = strip_pictures(built(ROW).body, strip)
    assert orjson.loads(copy) == orjson.loads(fresh.body)
    assert strip_pictures(copy, strip) == copy


def test_strip_step_by_step() -> None:
    """A copy stripped in two steps equals one stripped at once, whatever notes it had before."""
    row = {**ROW, "person_type": 9}
    copy = strip_pictures(strip_pictures(built(row).body, Strip.SPOT), Strip.BOTH)
    assert copy == built(row, Strip.BOTH).body


def test_strip_keeps_the_keys_a_platform_insists_on() -> None:
    """With ``when_absent: empty`` a stripped picture is an empty text."""
    copy = orjson.loads(strip_pictures(built(ROW).body, Strip.BOTH, "empty"))
    assert copy["reg_pic"] == copy["ext_data"]["spot_pic"] == ""
    fresh = built(ROW, Strip.BOTH, pictures={"when_absent": "empty"})
    assert orjson.loads(fresh.body) == copy


def test_strip_without_pictures_says_nothing() -> None:
    """An event that had no picture gets no note about one."""
    row = {**ROW, "reg_pic": None, "spot_pic": None}
    assert built(row, Strip.BOTH).notes == ()
    assert built(row, Strip.BOTH, pictures={"when_absent": "empty"}).notes == ()


def test_pictures_left_out_on_request_are_not_looked_at() -> None:
    """Where the operator asked for no pictures, none is read and a broken one is no news."""
    assert wanted_pictures(config.Pictures(), Strip.REQUESTED) == ()
    assert built({**ROW, "reg_pic": "not base64!"}, Strip.REQUESTED).notes == ()


def test_wanted_pictures_are_enough() -> None:
    """A source need read only the pictures that the policy names; the payload is the same."""
    for reg in ("keep", "strip"):
        for spot in ("large", "small", "strip"):
            for strip in Strip:
                policy = {"reg_pic": reg, "spot_pic": spot}
                wanted = wanted_pictures(config.Pictures(**policy), strip)
                row = {n: v for n, v in ROW.items() if not n.endswith("_pic") or n in wanted}
                assert built(row, strip, pictures=policy) == built(ROW, strip, pictures=policy)
