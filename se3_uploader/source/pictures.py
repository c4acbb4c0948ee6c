"""Pictures that the database names and a folder holds; nothing outside that folder is ever read."""

from __future__ import annotations

import errno
import os
import re
import stat
from datetime import datetime, timedelta
from typing import Iterator, List, Optional, Union

from ..payload import Unreadable

MAX_BYTES = 16 * 1024**2
"""The largest picture that is read; a larger one is Unreadable."""

LONGEST_NAME = 1024
"""Characters of a path that is looked for."""

TOO_LARGE = Unreadable(f"is larger than {MAX_BYTES // 1024**2} MiB")

_SUFFIXES = ("", ".jpg", ".jpeg", ".png")
_DATE_FOLDERS = ("%Y-%m-%d", "%Y%m%d", "%Y/%m/%d")
_BASE64_IMAGE = re.compile(r"(data:image/|/9j/|iVBORw0KGgo|UklGR|Qk)[A-Za-z0-9+/=;:,\-_.\s]{60,}")
"""The text of a JPEG, PNG, WebP or BMP, or a data: URL; asked only where no file was found."""


def name_of(value: object) -> str:
    """The name of a picture that a column holds, as text or as its bytes; "" for anything else."""
    if isinstance(value, (bytes, bytearray, memoryview)) and len(value) <= LONGEST_NAME:
        try:
            value = bytes(value).decode()
        except UnicodeDecodeError:
            return ""
        if not value.isprintable():
            return ""
    return value if isinstance(value, str) else ""


def read_picture(
    folder: str, name: str, timestamp_ms: Optional[int]
) -> Union[bytes, str, Unreadable]:
    """Read the picture that a row names, out of pictures_dir.

    name is a path inside the folder (absolute, or relative to it) or an id. Tried in turn are name,
    name.jpg, name.jpeg and name.png: in the folder itself, then in the folders of the event's local
    date (``2026-01-31``, ``20260131``, ``2026/01/31``) and of its two neighbours, since an event
    and its file can fall on either side of midnight. Text that is a picture itself (base64) is
    returned as it stands.
    """
    root = os.path.realpath(folder)
    if len(name) > LONGEST_NAME or "\0" in name:
        # Too long for a name, so it is the picture, or nothing.
        return Unreadable("is no usable file name") if "\0" in name else name
    for base in (os.path.abspath(folder), root):
        if os.path.isabs(name) and name.startswith(base + "/"):
            name = name[len(base) + 1 :]
    if os.path.isabs(name) or ".." in name.split("/"):
        refusal = Unreadable("lies outside pictures_dir")
    else:
        refusal = None
        for place in _places(timestamp_ms):
            for suffix in _SUFFIXES:
                found = _read(root, f"{place}/{name}{suffix}")
                if isinstance(found, bytes):
                    return found
                refusal = refusal or found
    if _BASE64_IMAGE.match(name):
        return name
    if not os.path.isdir(root):
        return Unreadable("pictures_dir is not there")
    return refusal or Unreadable("file is gone")


def _places(timestamp_ms: Optional[int]) -> Iterator[str]:
    """Yield the folders to look in, relative to pictures_dir, the likeliest first."""
    yield ""
    if timestamp_ms is None:
        return
    day = datetime.fromtimestamp(timestamp_ms / 1000)
    for days in (0, -1, 1):
        for form in _DATE_FOLDERS:
            yield (day + timedelta(days=days)).strftime(form)


def _read(root: str, path: str) -> Union[bytes, Unreadable, None]:
    """Read a regular file below root, walking down folder by folder and following no link.

    None where there is no such file. Opening without blocking keeps a FIFO from holding us.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts:
        return None
    here: Optional[int] = None
    try:
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | _FOLDER, dir_fd=here)
            os.close(here)
            here = below
        file = os.open(parts[-1], os.O_RDONLY | _FILE, dir_fd=here)
    except UnicodeEncodeError:
        return Unreadable("is no usable file name")
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        return Unreadable(_REFUSED.get(error.errno or 0, "file cannot be read"))
    finally:
        if here is not None:
            os.close(here)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return Unreadable("is not a regular file")
        return TOO_LARGE if status.st_size > MAX_BYTES else _read_whole(file)
    except OSError:
        return Unreadable("file cannot be read")
    finally:
        os.close(file)


def _read_whole(file: int) -> Union[bytes, Unreadable]:
    """Read to the end, but never more than MAX_BYTES: the file may be growing."""
    pieces: List[bytes] = []
    left = MAX_BYTES + 1
    while left > 0:
        piece = os.read(file, min(left, 2**18))
        if not piece:
            return b"".join(pieces) or Unreadable("file is empty")
        pieces.append(piece)
        left -= len(piece)
    return TOO_LARGE


_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_ABSENT = (errno.ENOENT, errno.ENAMETOOLONG)
_REFUSED = {
    errno.ELOOP: "is a link, which is not followed",
    errno.ENOTDIR: "is a link or lies below a file",
    errno.EACCES: "file may not be read by this user",
    errno.EPERM: "file may not be read by this user",
}
