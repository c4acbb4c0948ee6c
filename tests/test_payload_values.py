"""values.py: times, numbers and pictures as drivers give them."""

from __future__ import annotations

import base64
import os
import time
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from se3_uploader.payload.values import Unusable, picture, timestamp_ms

MOMENT = 1560408984678  # 2019-06-13T06:56:24.678Z


@pytest.fixture
def shanghai() -> Iterator[None]:
    """Put the process eight hours east of Greenwich, as a box in China is."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "CST-8"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(
    ("stored", "unit", "milliseconds"),
    [
        (1560408984, "auto", 1560408984000),
        (1560408984.678, "auto", MOMENT),
        (MOMENT, "auto", MOMENT),
        (MOMENT * 1000 + 400, "auto", MOMENT),
        (0, "auto", 0),
        (99_999_999_999, "auto", 99_999_999_999_000),
        (100_000_000_000, "auto", 100_000_000_000),
        (10**14, "auto", 10**11),
        (12, "s", 12000),
        (12, "ms", 12),
        (1607062639.7013178, "s", 1607062639701),
        (Decimal("1560408984.678"), "s", MOMENT),
        (" 1560408984.678 ", "s", MOMENT),
        ("1.560408984678e12", "ms", MOMENT),
        (b"1560408984678", "ms", MOMENT),
        ("2019-06-13T06:56:24.678Z", "auto", MOMENT),
        ("2019-06-13 06:56:24,678000123Z", "iso", MOMENT),
        ("2019-06-13T14:56:24.678+08:00", "iso", MOMENT),
        ("2019-06-13T14:56:24.678 +0800", "ms", MOMENT),
        ("2019-06-13T03:26:24.678-03:30", "s", MOMENT),
        ("2019-06-13T06:56+00", "iso", 1560408960000),
        (datetime(2019, 6, 13, 6, 56, 24, 678000, timezone.utc), "s", MOMENT),
        (
            datetime(2019, 6, 13, 14, 56, 24, 678000, timezone(timedelta(hours=8))),
            "ms",
            MOMENT,
        ),
    ],
)
def test_timestamp(stored: Any, unit: str, milliseconds: int) -> None:
    """Numbers count in their unit or are told apart by size; a zone is respected."""
    assert timestamp_ms(stored, unit) == milliseconds


@pytest.mark.usefixtures("shanghai")
@pytest.mark.parametrize(
    ("stored", "milliseconds"),
    [
        ("2019-06-13 14:56:24.678", MOMENT),
        ("2019-06-13T14:56", 1560408960000),
        (datetime(2019, 6, 13, 14, 56, 24, 678000), MOMENT),
        ("2019-06-13", 1560355200000),
        (date(2019, 6, 13), 1560355200000),
    ],
)
def test_timestamp_without_a_zone(stored: Any, milliseconds: int) -> None:
    """A time without a zone is local time, which is what a box writes."""
    assert timestamp_ms(stored, "iso") == milliseconds


@pytest.mark.parametrize(
    ("stored", "unit", "reason"),
    [
        (None, "auto", "not a number"),
        ("", "auto", "not a number"),
        ("0x10", "auto", "not a number"),
        ("1_000", "auto", "not a number"),
        ("١٢", "auto", "not a number"),
        (True, "auto", "not a number"),
        ([1], "auto", "not a number"),
        (float("nan"), "auto", "not a finite number"),
        (float("inf"), "ms", "not a finite number"),
        (Decimal("NaN"), "ms", "not a finite number"),
        (10**400, "ms", "not a finite number"),
        ("9" * 5000, "ms", "not a finite number"),
        (Decimal("1E+1000000"), "ms", "not a finite number"),
        (-1, "auto", "before 1970"),
        ("1969-12-31T00:00:00Z", "auto", "before 1970"),
        (10**17, "auto", "timestamp_unit"),
        (MOMENT, "s", "timestamp_unit"),
        (MOMENT, "iso", "not an ISO 8601 time"),
        ("13.06.2019", "iso", "not an ISO 8601 time"),
        ("0000-00-00 00:00:00", "auto", "calendar"),
        ("2019-02-30T00:00:00Z", "auto", "calendar"),
        ("2019-06-13T25:00:00", "iso", "calendar"),
        ("2019-06-13T00:00:00+99:00", "iso", "calendar"),
        (b"\xff", "auto", "not valid UTF-8"),
    ],
)
def test_timestamp_that_is_none(stored: Any, unit: str, reason: str) -> None:
    """What is no time, before 1970 or absurdly late is refused with the reason."""
    with pytest.raises(Unusable, match=reason):
        timestamp_ms(stored, unit)


RAW = bytes(range(256))
TEXT = base64.b64encode(RAW).decode()


@pytest.mark.parametrize(
    "stored",
    [
        TEXT,
        TEXT.encode(),
        memoryview(TEXT.encode()),
        RAW,
        bytearray(RAW),
        memoryview(RAW),
        f"data:image/jpeg;base64,{TEXT}",
        f"data:image/jpeg;base64,{TEXT}".encode(),
        "\r\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)) + "\n",
        TEXT.rstrip("="),
        TEXT[:-1],
        base64.urlsafe_b64encode(RAW).decode(),
        base64.urlsafe_b64encode(RAW).decode().rstrip("="),
    ],
)
def test_picture(stored: Any) -> None:
    """However a picture is stored, the same standard base64 is sent."""
    assert picture(stored) == TEXT


@pytest.mark.parametrize(
    "stored",
    ["spot.jpg", "A", "AB=C", "A===", "AAAA====", "=AAA", "图", "\ud800", "data:,!", 7, [1]],
)
def test_picture_that_is_none(stored: Any) -> None:
    """Text that cannot be base64, and values that are neither text nor bytes, are refused."""
    with pytest.raises(Unusable):
        picture(stored)


@given(
    st.text("AZaz09+/=-_ \n", max_size=12)
    | st.binary(max_size=9).map(lambda raw: base64.b64encode(raw).decode())
)
def test_what_passes_for_base64(text: str) -> None:
    """Text is sent untouched just where the standard library can decode it strictly."""
    try:
        base64.b64decode(text, validate=True)
        sound = len(text) % 4 == 0
    except ValueError:
        sound = False
    try:
        sent = picture(text)
    except Unusable:
        sent = None
    assert (sent is text) == sound
    if sent is not None:
        base64.b64decode(sent, validate=True)


def test_sound_base64_is_not_copied() -> None:
    """Text that is sound passes through as the very object it was."""
    text = base64.b64encode(os.urandom(120_000)).decode()
    assert picture(text) is text
