"""Durations and sizes as people write them."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from se3_uploader import units


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (5, 5.0),
        (0.25, 0.25),
        ("5", 5.0),
        ("500ms", 0.5),
        ("20s", 20.0),
        ("1.5m", 90.0),
        ("5 m", 300.0),
        ("2h", 7200.0),
        ("30d", 2592000.0),
        (0, 0.0),
    ],
)
def test_a_duration_is_seconds(written, seconds):
    """Numbers are seconds; every unit of the contract and a blank before it are understood."""
    assert units.duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "s", "20 sec", "5M", "-1s", "1e3", "٣s", "1h30m", True, math.nan, math.inf]
)
def test_what_is_no_duration_is_told_how_one_is_written(written):
    """Anything else is refused with examples, and the refused text is not repeated."""
    with pytest.raises(ValueError, match="write a number of seconds or 500ms, 20s"):
        units.duration(written)


@pytest.mark.parametrize("written", [-1, "36501d", 1e308])
def test_a_duration_has_bounds(written):
    """Negative times and those that overflow a timer are refused."""
    with pytest.raises(ValueError, match="between 0 and 36500d"):
        units.duration(written)


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("7B", 7),
        ("800KiB", 819200),
        ("512MiB", 536870912),
        ("1.5GiB", 1610612736),
        ("2 TiB", 2199023255552),
        ("0.1KiB", 102),
    ],
)
def test_a_size_is_bytes(written, count):
    """Numbers are bytes; units are the binary ones; a part of a byte is dropped."""
    result = units.size(written)
    assert (result, type(result)) == (count, int)


@pytest.mark.parametrize("written", ["", "MiB", "512MB", "512mib", "-1B", True])
def test_what_is_no_size_is_told_how_one_is_written(written):
    """Anything else, decimal units among it, is refused with examples."""
    with pytest.raises(ValueError, match="write a number of bytes or 800KiB, 512MiB"):
        units.size(written)


@pytest.mark.parametrize("written", [-1, 2**60 + 1, "9999999TiB"])
def test_a_size_has_bounds(written):
    """Negative sizes and those that overflow a database integer are refused."""
    with pytest.raises(ValueError, match="between 0 and"):
        units.size(written)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (0.9999, "1s"),
        (1.5, "1.5s"),
        (9.97, "10s"),
        (20, "20s"),
        (59.7, "1m"),
        (90, "1m 30s"),
        (3600, "1h"),
        (3605, "1h"),
        (187200, "2d 4h"),
        (-90, "-1m 30s"),
    ],
)
def test_a_duration_is_shown_in_two_units(seconds, text):
    """The two largest neighbouring units are enough for people."""
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (1610612736, "1.5GiB"),
        (536870912, "512MiB"),
        (1024**2 - 1, "1MiB"),
    ],
)
def test_a_size_is_shown_in_one_unit(count, text):
    """One decimal where it says something, in the largest unit that fits."""
    assert units.format_size(count) == text


@given(st.floats(0, units.MAX_DURATION))
def test_a_shown_duration_is_close(seconds):
    """What is shown for any duration adds up to it, but for what is too small to matter."""
    parts = re.findall(r"[0-9.]+[a-z]+", units.format_duration(seconds))
    assert sum(map(units.duration, parts)) == pytest.approx(seconds, rel=0.05, abs=0.0006)
