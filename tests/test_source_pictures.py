"""Pictures in files: found where the box puts them, and nothing outside the folder ever."""

from __future__ import annotations

import base64
import os
import socket
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Union

import pytest

from se3_uploader.payload import Unreadable
from se3_uploader.source import open_source
from se3_uploader.source.pictures import MAX_BYTES, read_picture

from .event_databases import event, sqlite_events

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256))
MIDNIGHT = int(datetime(2026, 3, 1).timestamp() * 1000)
"""Local midnight, epoch ms."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty pictures_dir, beside a file that nobody may have."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    made = tmp_path / "events"
    made.mkdir()
    return made


def put(path: Path, content: bytes = JPEG) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refused(picture: Union[bytes, str, Unreadable]) -> str:
    """Return why a picture was not read; fail where it was."""
    assert isinstance(picture, Unreadable)
    assert "secret" not in picture.reason
    return picture.reason


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg", "./a.jpg"),
        ("a.jpg", "a"),
        ("a.jpeg", "a"),
        ("a.png", "a"),
        ("a", "a"),
        ("gate/人 脸.jpg", "gate/人 脸.jpg"),
        ("2026-03-01/a.jpg", "a"),
        ("20260301/a.jpg", "a.jpg"),
        ("2026/03/01/a.png", "a"),
        ("2026-02-28/a.jpg", "a"),
        ("20260302/a.jpg", "a"),
        ("1607062639.737444.jpg", "1607062639.737444"),
    ],
)
def test_where_a_picture_is_looked_for(folder: Path, file: str, name: str) -> None:
    """By path or by id, in the folder and in those of the event's date and the days around it."""
    put(folder / file)
    assert read_picture(str(folder), name, MIDNIGHT) == JPEG


def test_absolute_paths(folder: Path, tmp_path: Path) -> None:
    """A path inside the folder will do, also by the folder's other name; no other path will."""
    put(folder / "x" / "a.jpg")
    other = tmp_path / "other"
    other.symlink_to(folder)
    for base in (folder, other):
        for name in (folder / "x" / "a.jpg", other / "x" / "a.jpg"):
            if base == other or str(name).startswith(str(folder)):
                assert read_picture(str(base), str(name), None) == JPEG
    assert "outside" in refused(read_picture(str(folder), str(tmp_path / "secret.jpg"), None))


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "x/../../secret.jpg", "..", "/", ".", "x/..", "../events/../secret.jpg"],
)
def test_no_way_out(folder: Path, name: str) -> None:
    """Dots do not lead out of the folder."""
    (folder / "x").mkdir()
    refused(read_picture(str(folder), name, MIDNIGHT))


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    """Neither a linked file nor a linked folder is read, wherever the link leads."""
    (folder / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    for name in ("a.jpg", "a", "out/secret.jpg", "loop", "loop/x"):
        assert "link" in refused(read_picture(str(folder), name, None))


def test_what_is_no_regular_file(folder: Path) -> None:
    """A folder, a FIFO and a socket are refused at once; nothing waits for a writer."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder / "socket"))
        for name in ("folder", "fifo"):
            assert "regular" in refused(read_picture(str(folder), name, None))
        refused(read_picture(str(folder), "socket", None))
    put(folder / "folder.jpg")
    assert read_picture(str(folder), "folder", None) == JPEG


@pytest.mark.parametrize("name", ["gone", "a\0b", "x" * 1000, "\ud800", "a/b/c"])
def test_what_is_not_there(folder: Path, name: str) -> None:
    """Whatever a row holds as a name, the worst that happens is a reason."""
    refused(read_picture(str(folder), name, MIDNIGHT))


def test_sizes(folder: Path) -> None:
    """Up to 16 MiB are read; a larger file and an empty one are refused."""
    put(folder / "most", bytes(MAX_BYTES))
    put(folder / "more", bytes(MAX_BYTES + 1))
    put(folder / "none", b"")
    most = read_picture(str(folder), "most", None)
    assert isinstance(most, bytes)
    assert len(most) == MAX_BYTES
    assert "larger than 16 MiB" in refused(read_picture(str(folder), "more", None))
    assert "empty" in refused(read_picture(str(folder), "none", None))


def test_no_folder(folder: Path) -> None:
    """That the whole folder is missing is said as such: a disk may not be mounted."""
    reason = refused(read_picture(str(folder / "nowhere"), "a", None))
    assert "pictures_dir is not there" in reason


def test_a_column_that_holds_the_picture_itself(folder: Path) -> None:
    """Base64 of an image passes; but a file of that name, however odd, comes first."""
    for text in (
        base64.b64encode(JPEG).decode(),
        "data:image/jpeg;base64," + base64.b64encode(JPEG * 100).decode(),
        base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)).decode(),
        base64.b64encode(bytes(2000)).decode(),  # of a kind nobody knows, but no name either
    ):
        assert read_picture(str(folder), text, None) == text
    name = "iVBORw0KGgo" + "A" * 60
    put(folder / name)
    assert read_picture(str(folder), name, None) == JPEG


def test_a_name_may_stand_in_a_blob(folder: Path, tmp_path: Path) -> None:
    """MySQL gives BLOB columns as bytes, whatever they hold; a picture in them stays one."""
    events = sqlite_events(tmp_path / "event.db")
    events.create({"reg_pic": {"": "BLOB"}, "spot_pic": {"": "BLOB"}})
    put(folder / "one.jpg")
    short = b"\xff\xd8 short"
    events.add([event(1, reg_pic=b"one.jpg", spot_pic=short)])
    with closing(open_source(events.source(pictures_dir=str(folder)))) as source:
        (row,) = source.rows([1], ["reg_pic", "spot_pic"], 2**20).rows
    assert (row.values["reg_pic"], row.values["spot_pic"]) == (JPEG, short)


def test_a_source_with_pictures_dir(folder: Path, tmp_path: Path) -> None:
    """Rows come with the files' bytes, or the reason; also where the name lies in JSON."""
    events = sqlite_events(tmp_path / "event.db")
    events.create({"common": {"": "TEXT"}, "reg_pic": {"": "TEXT"}})
    put(folder / "2026-03-01" / "one.jpg")
    names = '{"pictures": {"spot": "one"}, "other": 1}'
    events.add(
        [
            event(1, reg_pic="one", common=names, timestamp=MIDNIGHT + 5),
            event(2, reg_pic="two", common=None, timestamp=MIDNIGHT + 5),
            event(3, reg_pic=None, common="no JSON", timestamp=None),
        ]
    )
    configured = events.source(
        pictures_dir=str(folder), columns={"ext_data.spot_pic": "common.pictures.spot"}
    )
    with closing(open_source(configured)) as source:
        look = source.look(None, 10)
        rows = source.rows([1, 2, 3], ["reg_pic", "spot_pic"], 2**20).rows
        assert [row.ref for row in rows] == look.refs
        assert rows[0].values["reg_pic"] == JPEG
        assert rows[0].values["common"] == {"pictures": {"spot": JPEG}, "other": 1}
        assert rows[1].values["reg_pic"] == Unreadable("file is gone")
        assert rows[2].values["reg_pic"] is None
        unread = source.rows([1], [], 2**20).rows[0].values
        assert unread["common"] == names
