"""The factory's own collection, read through the profile that describes it."""

from __future__ import annotations

import base64
import datetime
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from se3_uploader import config, payload
from se3_uploader.agent import run_once
from se3_uploader.source import SourceError, open_source
from se3_uploader.source.inspect import inspect

from .event_databases import MongoEvents
from .http_server import Server as Platform
from .payloads import VALIDATOR
from .servers import Missing, Server, mongodb
from .site import Site, notes_of, numbers

bson = pytest.importorskip("bson")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server."""
    try:
        with mongodb(tmp_path_factory.mktemp("mongodb")) as running:
            yield running
    except Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture
def database(server: Server) -> MongoEvents:
    """An empty collection."""
    made = MongoEvents(server.url)
    made.create()
    return made


def factory_event(moment: float, **common: Any) -> Dict[str, Any]:
    """Make a document as the factory's firmware writes it (protocol section 4)."""
    return {
        "_id": f"{moment:.6f}",
        "id": f"{moment:.6f}",  # only for the unique index of the tests' collection
        "timestamp": moment,
        "common": {
            "identity_id": "p1",
            "identity_name": "张伟",
            "group_id": "g1",
            "group_name": "staff",
            "person_type": 1,
            "score": 0.93,
            "ep_info": {"ep_id": "BOX__192.168.1.25", "ep_ip": "192.168.1.25", "ep_type": "1"},
            "spot_pic_id": "spot1",
            "recognize_face_pic_id": "face1",
            "identity_info": {"image_id": "reg1"},
            "recognize_face_attr": {"feature": [0.1] * 512, "age": 30},
            **common,
        },
        "grab_data": {"grap_fiqa_info": {"confidence": 0.9}},
    }


def test_the_factory_profile(database: MongoEvents, tmp_path: Path) -> None:
    """Profile, url and the folder of the pictures are all that an operator writes."""
    pictures = tmp_path / "pictures"
    day = datetime.datetime.fromtimestamp(1607062639).strftime("%Y-%m-%d")
    (pictures / day).mkdir(parents=True)
    for name in ("spot1", "face1", "reg1"):
        (pictures / day / f"{name}.jpg").write_bytes(b"\xff\xd8" + name.encode())
    database.add(factory_event(1607062639.737444 + n) for n in range(3))
    (tmp_path / "uploader.yaml").write_text(
        "gateway: {dev_sno: BOX}\n"
        f"source: {{profile: sophon-gate, url: '{database.url}', pictures_dir: '{pictures}'}}\n"
        "history_event: {endpoints: [{url: 'http://127.0.0.1:9/HistoryEvent'}]}\n"
    )
    settings = config.load(str(tmp_path / "uploader.yaml"))
    with closing(open_source(settings.source)) as source:
        refs = source.look(None, 10).refs
        assert [ref.key for ref in refs] == [f'["{1607062639 + n}.737444"]' for n in range(3)]
        assert source.look(refs[0].key, 10).refs == refs[1:]
        assert source.between(1607062640_000, 1607062641_000, None, 10).refs == [refs[1]]
        assert source.last_seen(10) == {"192.168.1.25": 1607062641737}
        rows = source.rows([ref.key for ref in refs], ["reg_pic", "spot_pic"], 2**20).rows
        assert [row.ref for row in rows] == refs
        assert rows[0].values["common"]["spot_pic_id"] == b"\xff\xd8spot1"
        assert rows[0].values["common"]["identity_info"]["image_id"] == b"\xff\xd8reg1"
        assert "recognize_face_pic_id" not in rows[0].values["common"]
        assert [p for p in source.problems() if "score" in p or "_id" in p] == []
        built = payload.build(
            rows[0].values,
            payload.columns_of(settings.source),
            dev_sno="BOX",
            unit=settings.source.timestamp_unit,
            wire_unit="ms",
            pictures=config.Pictures(),
        )
    assert b'"timestamp":1607062639737' in built.body
    assert b"feature" not in built.body
    assert built.has_spot
    assert built.has_reg


def test_the_factory_profile_end_to_end(database: MongoEvents, tmp_path: Path) -> None:
    """The factory's documents arrive with the pictures from their files, each once, in order.

    A picture whose file is gone is left out with a note.
    """
    day = datetime.datetime.fromtimestamp(1607062639)
    folder = tmp_path / "pictures" / day.strftime("%Y%m%d")
    folder.mkdir(parents=True)
    for number in range(1, 31):
        (folder / f"spot{number}.jpg").write_bytes(b"\xff\xd8spot%d" % number)
        (folder / f"reg{number}.jpg").write_bytes(b"\xff\xd8reg%d" % number)
    (folder / "spot7.jpg").unlink()
    documents = [
        factory_event(
            1607062639 + number / 8, identity_id=str(number), group_name="",
            spot_pic_id=f"spot{number}", identity_info={"image_id": f"reg{number}"},
        )
        for number in range(1, 31)
    ]  # fmt: skip
    source = {"profile": "sophon-gate", "url": database.url}
    site = Site(tmp_path)
    with Platform() as platform:
        config = site.configure(
            platform.url, endpoint={"max_in_flight": 1},
            source={**source, "pictures_dir": str(tmp_path / "pictures")},
        )  # fmt: skip
        for part in (documents[:20], documents[20:]):
            database.add(part)
            assert run_once(config) == 0
    assert numbers(platform) == list(range(1, 31))
    for number, request in enumerate(platform.requests, 1):
        sent = request.json()
        VALIDATOR.validate(sent)
        assert sent["identity_name"] == "张伟"
        assert sent["group_name"] == "g1"
        assert sent["timestamp"] == int((1607062639 + number / 8) * 1000)
        assert base64.b64decode(sent["reg_pic"]) == b"\xff\xd8reg%d" % number
        assert b"feature" not in request.body
        spot = sent["ext_data"].get("spot_pic")
        if number == 7:
            assert spot is None
            assert notes_of(request) == ["spot_pic: left out, file is gone"]
        else:
            assert base64.b64decode(spot) == b"\xff\xd8spot%d" % number


def test_the_factory_profile_is_proposed(database: MongoEvents) -> None:
    """Inspect recognises the factory's documents."""
    database.add([factory_event(1607062639.5)])
    assert "profile: sophon-gate" in inspect(database.url).proposal


def test_types_of_bson(database: MongoEvents) -> None:
    """Keys and values of MongoDB's own types become plain Python and find their way back."""
    ids = [bson.ObjectId(), bson.ObjectId()]
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    database.add(
        {
            "_id": one,
            "id": n,
            "timestamp": moment,
            "score": bson.Decimal128("0.5"),
            "reg_pic": bson.Binary(b"\xff\xd8"),
            "device_ip": bson.Int64(5),
            "spot_pic": bson.Regex("x"),
        }
        for n, one in enumerate(ids)
    )
    with closing(open_source(database.source(key="_id", timestamp_unit="auto"))) as source:
        refs = source.look(None, 10).refs
        assert source.look(refs[0].key, 10).refs == refs[1:]
        rows, missing = source.rows([ref.key for ref in refs], ["reg_pic", "spot_pic"], 2**20)
        assert missing == []
        assert [row.ref for row in rows] == refs
        values = rows[0].values
        assert values["_id"] == str(ids[0])
        assert values["score"] == Decimal("0.5")
        assert values["timestamp"] == moment
        assert values["reg_pic"] == b"\xff\xd8"
        assert type(values["device_ip"]) is int
        assert isinstance(values["spot_pic"], str)


def test_what_mongodb_cannot_do(database: MongoEvents) -> None:
    """A SELECT is refused with a reason, and so is a url without a database."""
    with pytest.raises(SourceError, match="SQL"):
        open_source(database.source(query="SELECT 1", table=None))
    nameless = database.source(url=database.url.rpartition("/")[0])
    with closing(open_source(nameless)) as source, pytest.raises(SourceError, match="database"):
        source.newest()
