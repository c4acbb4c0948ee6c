"""Times as people write them on the command line."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from se3_uploader.cli.times import parse_time

NOW = 1_772_000_000.0


@pytest.fixture(autouse=True)
def shanghai(monkeypatch):
    """The local zone of these tests is eight hours ahead of UTC."""
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2026-03-01", "2026-02-28T16:00:00"),
        ("2026-03-01T08:30", "2026-03-01T00:30:00"),
        ("2026-03-01 08:30:15", "2026-03-01T00:30:15"),
        ("2026-03-01T08:30:15.25", "2026-03-01T00:30:15.250000"),
        ("2026-03-01T08:30:15,123456789", "2026-03-01T00:30:15.123456"),
        ("2026-03-01T08:30Z", "2026-03-01T08:30:00"),
        ("2026-03-01T08:30:15.5Z", "2026-03-01T08:30:15.500000"),
        ("2026-03-01T08:30+02:00", "2026-03-01T06:30:00"),
        ("2026-03-01T08:30:00-0530", "2026-03-01T14:00:00"),
        ("2026-03-01T08:30 +02", "2026-03-01T06:30:00"),
        (" 2026-03-01 ", "2026-02-28T16:00:00"),
    ],
)
def test_a_moment_is_local_unless_a_zone_is_given(written, moment):
    """Every way of ISO 8601 that the command line takes, held against UTC."""
    utc = datetime.fromisoformat(moment).replace(tzinfo=timezone.utc)
    assert parse_time(written, NOW) == int(utc.timestamp() * 1000)


@pytest.mark.parametrize(
    ("written", "seconds_ago"),
    [("-2d", 172800), ("-6h", 21600), ("-30m", 1800), ("-90", 90), ("-0s", 0), ("-500ms", 0.5)],
)
def test_a_time_may_be_relative_to_now(written, seconds_ago):
    """So long ago, in the units of the configuration file."""
    assert parse_time(written, NOW) == (NOW - seconds_ago) * 1000


def test_zero_is_the_beginning():
    """Milliseconds or seconds, 0 is 1970: what somebody writes who wants everything."""
    assert parse_time("0", NOW) == 0


@given(st.integers(10**11, 10**15 - 1))
def test_epoch_milliseconds_stay_what_they_are(milliseconds):
    """From 1973 on, twelve digits or more are epoch milliseconds."""
    assert parse_time(str(milliseconds), NOW) == milliseconds


@pytest.mark.parametrize(
    "written",
    [
        "", "yesterday", "2d", "+2d", "--2d", "-2 weeks", "2026-3-1", "20260301", "1772000000",
        "2026-03-01T", "2026-03-01T8:30", "2026-03-01T08:30:15.Z", "-", "-d", "٢٠٢٦-٠٣-٠١",
    ],
)  # fmt: skip
def test_anything_else_is_told_how_a_time_is_written(written):
    """So are epoch seconds and a date without dashes, which would mean another time in silence."""
    with pytest.raises(ValueError, match=r"write 2026-03-01|write a number of seconds"):
        parse_time(written, NOW)


@pytest.mark.parametrize("written", ["2026-02-30", "2026-03-01T25:00", "0000-01-01", "-99999d"])
def test_a_time_that_does_not_exist_is_refused(written):
    """The shape is right, the calendar says no."""
    with pytest.raises(ValueError, match=r"no time that exists|must be a duration"):
        parse_time(written, NOW)
