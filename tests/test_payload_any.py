"""payload.py against whatever a database may hold."""

from __future__ import annotations

import json
import string
from typing import Any, Dict, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from se3_uploader.payload import Strip, Unusable, strip_pictures
from se3_uploader.payload.values import TooDeep, parsed, parsed_plain, plain
from tests.payloads import ROW, VALIDATOR, built, ext_of

SCALARS = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(
        ["{", "[1e999]", '{"a": NaN}', "[[]]", '{"x": 99999999999999999999}', "1", "3", "0.5"]
    )
)
OTHERS = st.booleans() | st.decimals() | st.datetimes() | st.dates() | st.times() | st.timedeltas()
ANYTHING = st.recursive(
    SCALARS | OTHERS | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from([*ROW, "upload_notes", "column_ep_id"]) | st.text(max_size=6)


@settings(deadline=None)
@given(
    changes=st.dictionaries(NAMES, SCALARS | ANYTHING, max_size=6),
    gone=st.sets(st.sampled_from(list(ROW)), max_size=3),
    policy=st.fixed_dictionaries(
        {
            "reg_pic": st.sampled_from(["keep", "strip"]),
            "spot_pic": st.sampled_from(["large", "small", "strip"]),
            "when_absent": st.sampled_from(["omit", "empty"]),
        }
    ),
    strip=st.sampled_from(Strip),
)
def test_any_row_is_valid_or_refused(changes: Any, gone: Any, policy: Any, strip: Strip) -> None:
    """Whatever a database may hold: a payload that the schema accepts, or Unusable, and no NaN."""
    row = {name: value for name, value in {**ROW, **changes}.items() if name not in gone}
    try:
        body = built(row, strip, pictures=policy).body
    except Unusable:
        return
    event = json.loads(body, parse_constant=lambda text: pytest.fail(f"{text} on the wire"))
    VALIDATOR.validate(event)
    assert strip_pictures(body, Strip.NOTHING) == body
    if "identity_name" not in changes:
        assert event["identity_name"] == ROW["identity_name"]


TEXTS = st.text().filter(lambda value: not value.lstrip().startswith(("{", "[")))


@settings(deadline=None)
@given(st.dictionaries(st.text(string.ascii_letters, min_size=1), TEXTS, max_size=5))
def test_any_text_survives(texts: Dict[str, str]) -> None:
    """Any text of an unknown column that does not look like JSON arrives unchanged."""
    ext = ext_of({**{f"x_{name}": value for name, value in texts.items()}, **ROW})
    for name, value in texts.items():
        assert ext[f"x_{name}"] == value


def read(way: Any, document: str) -> Any:
    """What a way of reading a document returns, with what it notes, or how it refuses it."""
    notes: List[str] = []
    try:
        return repr((way(document, notes.append), notes))
    except (Unusable, TooDeep) as refusal:
        return repr(refusal)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from([0, 99, 100, 101]),
)
def test_the_short_way_to_read_a_document_is_no_other(value: Any, depth: int) -> None:
    """JSON text that is not walked again gives the same, to the letter, as when it is."""
    document = "[" * depth + json.dumps(value) + "]" * depth
    walked = read(lambda text, note: plain(parsed(text), note), document)
    assert read(parsed_plain, document) == walked
