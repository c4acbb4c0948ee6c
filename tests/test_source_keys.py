"""Keys hold whatever orders a source, to the last bit."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from se3_uploader.source import SourceError
from se3_uploader.source.keys import decode, encode

parts = (
    st.integers()
    | st.text()
    | st.floats(allow_nan=False)
    | st.binary()
    | st.dates()
    | st.datetimes()
    | st.datetimes(timezones=st.just(timezone(timedelta(hours=8))))
    | st.decimals(allow_nan=False)
)


@given(st.lists(parts, min_size=1, max_size=2))
def test_a_key_comes_back_as_it_was(values: Any) -> None:
    """Every value that can order rows survives, with its type."""
    back = decode(encode(values), len(values))
    assert list(back) == values
    assert [type(part) for part in back] == [type(part) for part in values]


def test_an_integer_is_its_own_key() -> None:
    """The common case is readable; what SQLite could not keep as an integer becomes text."""
    assert encode([7]) == 7
    assert encode([-(2**63)]) == -(2**63)
    assert encode([2**63]) == "[9223372036854775808]"
    assert encode([7, "a"]) == '[7,"a"]'


def test_equal_moments_have_equal_keys() -> None:
    """The zone in which a server tells a time does not make it another row."""
    utc = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
    assert encode([utc]) == encode([utc.astimezone(timezone(timedelta(hours=8)))])
    assert encode([date(2026, 1, 1)]) != encode([datetime(2026, 1, 1)])
    assert encode([Decimal("1.5")]) != encode([1.5])


@pytest.mark.parametrize(
    ("key", "width"),
    [(1, 2), ('["a"]', 2), ('["a","b"]', 1), ("", 1), ("{", 1), ("1", 1), ('[{"x":"1"}]', 1)],
)
def test_a_key_of_another_making_is_refused(key: Any, width: int) -> None:
    """A position saved under other settings is told from a usable one."""
    with pytest.raises(SourceError, match=r"source\.name"):
        decode(key, width)
