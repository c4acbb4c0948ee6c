"""What holds for any input: texts that platforms echo, waits that they ask for, keys, files."""

from __future__ import annotations

import email.message
import html
import json
import tempfile
from pathlib import Path
from typing import Any, Dict
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from se3_uploader import config, policy
from se3_uploader.outbox import Changes, Entry, Outbox
from se3_uploader.payload import columns_of, fingerprint, idempotency_key
from se3_uploader.policy import Answer
from se3_uploader.sink.answer import MAX_RETRY_AFTER, retry_after
from tests.config_files import smallest

TEXTS = st.text(min_size=2, max_size=12) | st.text("张伟abcXYZ019-_/+= ", min_size=2, max_size=100)
EVENTS = st.dictionaries(st.sampled_from("abcdef"), TEXTS, min_size=1, max_size=4)
WAYS = {
    "as it is": lambda event: json.dumps(event, ensure_ascii=False),
    "escaped": json.dumps,
    "escaped twice": lambda event: json.dumps(json.dumps(event)),
    "slashes": lambda event: json.dumps(event).replace("/", "\\/"),
    "HTML": lambda event: html.escape(json.dumps(event, ensure_ascii=False)),
    "URL": lambda event: quote(json.dumps(event, ensure_ascii=False)),
    "capitals": lambda event: json.dumps(event, ensure_ascii=False).upper(),
    "bare": lambda event: " ".join(event.values()),
}


@settings(deadline=None)
@given(event=EVENTS, way=st.sampled_from(sorted(WAYS)), cut=st.integers(0, 400))
@example(event={"a": "QUJDRE" * 40}, way="as it is", cut=0)
@example(event={"a": "张伟"}, way="escaped", cut=0)
def test_no_text_of_an_event_survives(event: Dict[str, str], way: str, cut: int) -> None:
    """However a platform writes what it got, and wherever it stops: no text of it is kept."""
    payload = json.dumps(event).encode()
    said = f"refused: {WAYS[way](event)}".encode()
    kept = policy.redact(Answer(400, body=said[: len(said) - cut]), payload)
    assert len(kept) <= 300
    for text in event.values():
        assert text not in kept
        assert text.casefold() not in kept.casefold()


@settings(deadline=None)
@given(said=st.binary(max_size=400), event=EVENTS, secret=TEXTS)
def test_no_answer_at_all_betrays_the_event(
    said: bytes, event: Dict[str, str], secret: str
) -> None:
    """Bytes of any kind around it make no difference, and credentials are treated alike."""
    payload = json.dumps(event).encode()
    body = said + secret.encode() + said + b"".join(text.encode() for text in event.values())
    kept = policy.redact(Answer(400, body=body, secrets=frozenset([secret])), payload)
    assert kept.isprintable()
    assert not any(text in kept for text in [*event.values(), secret])


@pytest.mark.parametrize("way", WAYS)
def test_no_escaped_text_survives(way: str) -> None:
    """What is kept can be read by a machine: a name as escapes is a name."""
    event = {"identity_name": "张伟", "group": "a/b é"}
    kept = policy.redact(Answer(400, body=WAYS[way](event).encode()), json.dumps(event).encode())
    for piece in ("5f20", "4f1f", "%e5", "&#", "a/b", "a\\/b", "é", "e9"):
        assert piece not in kept.lower()


def test_what_a_platform_says_in_its_own_words_is_kept() -> None:
    """The reason of a refusal is what an operator needs."""
    payload = json.dumps({"identity_name": "张伟", "reg_pic": "iVBORw0KGgo" * 900}).encode()
    for words in (
        '{"status": 3, "message": "timestamp is not an int32"}',
        "group_name：没有这个分组",
        "<h1>413 Request Entity Too Large</h1> nginx/1.18.0",
    ):
        assert policy.redact(Answer(400, body=words.encode()), payload) == words
    said = policy.redact(Answer(400, body="no person 张伟 in group staff".encode()), payload)
    assert said == "no person … in group staff"


DATES = st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))


@settings(deadline=None)
@given(
    asked=st.text(max_size=30) | DATES | st.integers().map(str), now=st.none() | st.text() | DATES
)
@example(asked="Fri, 31 Dec 9999 23:59:59 -2400", now=None)
@example(asked="²", now=None)
@example(asked="1" * 5000, now=None)
def test_any_retry_after_is_a_wait_or_none(asked: str, now: Any) -> None:
    """Whatever stands in the header: seconds between none and a day, or nothing was asked."""
    headers = email.message.Message()
    headers["Retry-After"] = asked.replace("\n", " ").replace("\r", " ")
    if now is not None:
        headers["Date"] = now.replace("\n", " ").replace("\r", " ")
    wait = retry_after(headers)  # type: ignore[arg-type]
    assert wait is None or 0 <= wait <= MAX_RETRY_AFTER


KEYS = st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20).filter(lambda s: s.isprintable())


@settings(deadline=None, max_examples=20)
@given(keys=st.lists(KEYS, min_size=1, max_size=6, unique=True))
def test_any_key_comes_back_from_the_outbox_as_it_was(keys: Any) -> None:
    """Keys of any database, numbers and texts, stay what they are and are never mixed up."""
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(f"{folder}/outbox.db", lambda: 2e9)
        endpoint = outbox.register("p0", "history_event", "http://h/")
        generation, _ = outbox.new_generation("events")
        entries = [Entry(endpoint, generation, key, b"f" * 16, 1.0) for key in keys]
        outbox.write(Changes(entries=entries))
        found = [entry.key for entry in outbox.pending(endpoint, 99, [])]
        outbox.close()
    assert found == keys
    assert list(map(type, found)) == list(map(type, keys))


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
)


@given(row=st.fixed_dictionaries(dict.fromkeys(("identity_id", "timestamp"), VALUES)), key=KEYS)
def test_any_row_has_one_idempotency_key(row: Dict[str, Any], key: Any) -> None:
    """A key is a UUID, the same each time, and another one on another box or for another row."""
    columns = columns_of(config.Source(url="sqlite:////e.db"))
    mark = fingerprint(row, columns, key)
    name = idempotency_key("BOX", mark)
    assert len(mark) == 16
    assert name == idempotency_key("BOX", fingerprint(dict(row), columns, key))
    assert name != idempotency_key("BOX2", mark)
    assert mark != fingerprint(row, columns, f"{key}'")


SECTIONS = [
    "gateway",
    "source",
    "history_event",
    "device_status",
    "retry",
    "outbox",
    "log",
    "metrics",
]
JUNK = st.recursive(
    VALUES.filter(lambda value: not isinstance(value, bytes)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=30)
@given(section=st.sampled_from(SECTIONS), key=st.text(max_size=8) | st.sampled_from(
    ["url", "endpoints", "base", "columns", "pictures", "path", "listen", "level", "sub_devices"]
), value=JUNK)  # fmt: skip
def test_any_configuration_is_good_or_told_what_is_wrong(
    section: str, key: str, value: Any
) -> None:
    """Any value anywhere: a configuration, or mistakes by file and line, each on one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "uploader.yaml"
        try:
            path.write_text(smallest(**{section: {key: value}}), "utf-8")
        except UnicodeEncodeError:
            return
        try:
            config.load(str(path))
        except config.ConfigError as error:
            problems = error.problems
        else:
            return
    assert problems
    for problem in problems:
        assert problem.startswith(f"{path}:"), problem
        assert problem.isprintable(), problem
