"""No file, however hostile or broken, ends in anything but a configuration or its mistakes."""

from __future__ import annotations

import os
import pathlib
import re

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from se3_uploader import config
from tests.config_files import SMALLEST, problems, write

SHIPPED = pathlib.Path(__file__).parent.parent / "uploader.yaml"


HOSTILE = {
    "empty": (b"", "1: is empty"),
    "only comments": (b"# nothing\n", "1: is empty"),
    "a list": (b"- a\n", "1: must be a mapping (key: value)"),
    "a word": (b"hello", "1: must be a mapping (key: value)"),
    "not UTF-8": (b"a: 1\nb: \xff\n", "2: is not UTF-8"),
    "control character": (b"a: 1\nb: \x1b[31m\n", "2: holds a control character"),
    "tab": (b"a:\n\tb: 1\n", "2: is indented with a tab"),
    "broken": (b"a: {b: 1\nc: 2\n", "2: is not valid YAML: "),
    "two documents": (b"a: 1\n---\nb: 1\n", "2: is not valid YAML: but found another document"),
    "bomb of aliases": (
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "2: aliases (*name) are not allowed",
    ),
    "loop of aliases": (b"a: &a [*a]\n", "1: aliases (*name) are not allowed"),
    "deep": (b"a: " + b"[" * 100_000, "1: nested deeper than 20 levels"),
    "deep blocks": (b"- " * 100_000, "1: nested deeper than 20 levels"),
    "endless": (b"a: 1\n" * 100_000, "5000: holds more than 10000 keys and values"),
    "large": (b"#" * (1024**2 + 1), "is larger than 1 MiB"),
    "number beyond bounds": (b'a: "\\UFFFFFFFF"', "1: holds a number or an escape beyond"),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_file_that_cannot_be_checked_is_told_in_one_line(tmp_path, hostile):
    """Nothing in a file makes the reader crash, hang or swell; it says what is wrong and stops."""
    raw, expected = HOSTILE[hostile]
    path = tmp_path / "uploader.yaml"
    path.write_bytes(raw)
    with pytest.raises(config.ConfigError) as caught:
        config.load(str(path))
    (problem,) = caught.value.problems
    assert problem.startswith((f"{path}:{expected}", f"{path}: {expected}"))


REFUSED = {
    "tag on a value": ("log: {level: !!python/name:os.system }", "log.level", "has a tag"),
    "tag on a mapping": ("log: !!python/object:os.system {}", "log", "has a tag"),
    "tag on a key": ("log: {!x level: info}", "log.level", "is no text, and a key must be"),
    "complex key": ("log: {[level]: info}", "log.?", "is no text, and a key must be"),
    "number as key": ("log: {5: info}", "log.5", "is no text, and a key must be"),
    "merge key": ("log: {<<: {level: info}}", "log.?", "is an unknown key"),
    "twice the same key": ("log: {level: info,\n level: info}", "log.level", "stands here and in"),
    "twice the same section": (
        "log: {level: info}\nlog: {level: info}",
        "log",
        "stands here and in line 4",
    ),
    "half a character": ('log: {level: "\\ud800"}', "log.level", "holds a control character"),
    "escape sequence": ('log: {level: "\\e[31m"}', "log.level", "holds a control character"),
    "secret as key": ("log: {token hunter2: x}", "log.?", "is an unknown key"),
    "broken number": ("retry: {base: !!int x}", "retry.base", "is no number that can be used"),
    "broken empty number": ('retry: {base: !!int ""}', "retry.base", "is no number that can be"),
    "huge number": ("retry: {base: 9" + "9" * 5000 + "}", "retry.base", "is no number that can"),
    "number beyond 64 bits": ("retry: {base: 9223372036854775808}", "retry.base", "is no number"),
    "broken truth": ("retry: {base: !!bool maybe}", "retry.base", "is no number that can be used"),
    "infinity": ("retry: {base: .inf}", "retry.base", "is no number that can be used"),
    "not a number": ("retry: {base: .nan}", "retry.base", "is no number that can be used"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_dangerous_value_is_refused_at_its_place(tmp_path, refused):
    """Tags, keys that hide another, odd characters and numbers are told beside other mistakes."""
    line, key, text = REFUSED[refused]
    told = problems(tmp_path, f"{SMALLEST}{line}\nmetrics: 1\n")
    assert len(told) == 2, told
    assert f" {key}: {text}" in told[0]
    assert "metrics: must be a mapping" in told[1]


def test_a_date_is_text(tmp_path):
    """An unquoted serial number that YAML takes for a date, even an impossible one, stays text."""
    text = SMALLEST.replace("TJGSDX0001", "2020-99-99")
    assert config.load(write(tmp_path, text)).gateway.dev_sno == "2020-99-99"


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    """Editors of other systems put one at the beginning."""
    assert config.load(write(tmp_path, "\ufeff" + SMALLEST)).gateway.dev_sno == "TJGSDX0001"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_told(tmp_path, make, expected):
    """A missing file, a folder, a pipe nobody writes to and a link to itself end at once."""
    path = tmp_path / "uploader.yaml"
    make(path)
    with pytest.raises(config.ConfigError) as caught:
        config.load(str(path))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: {expected}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_told(tmp_path):
    """The reason of the system is passed on."""
    path = write(tmp_path, SMALLEST)
    os.chmod(path, 0)
    with pytest.raises(config.ConfigError, match="cannot be read: Permission denied"):
        config.load(path)


def test_a_path_with_a_null_byte_is_told():
    """No path can hold one, and the message shows none."""
    with pytest.raises(config.ConfigError, match=r"^a\?b: is no path$"):
        config.load("a\0b")


KEYS = sorted(set(re.findall(r"[a-z_]{2,}", SHIPPED.read_text("utf-8"))))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["20s", "http://a/", "sqlite:////x", "{file: x}", "tcp:80", "se3"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=6)
    ),
    max_leaves=30,
)
PIECES = st.sampled_from(
    [*"{}[]:,-?&*!|>%@`#'\"\n \\", "&a", "*a", "<<", "!!", "!!int", "\t", "\\U", "0x", "- ", ": "]
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """One file that every fuzzed text is written to."""
    return tmp_path_factory.mktemp("fuzz") / "uploader.yaml"


def load_or_refuse(path: pathlib.Path, raw: bytes) -> None:
    """Load raw bytes; anything but a Config or ConfigError is the failure looked for."""
    path.write_bytes(raw)
    try:
        config.load(str(path))
        return
    except config.ConfigError as error:
        told = error.problems
    assert told
    for problem in told:
        assert problem.startswith(str(path.parent))
        assert problem.isprintable()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(yaml.safe_load(SHIPPED.read_text("utf-8")), VALUES)
    )
)
@example({"source": {"url": "http://["}, "history_event": {"endpoints": [{"url": "http://["}]}})
def test_any_values_in_any_place_give_a_config_or_its_mistakes(scratch, sections):
    """Values of every kind under known and unknown keys never end in another exception."""
    data = {**yaml.safe_load(SMALLEST), **sections}
    load_or_refuse(scratch, yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "replace"))


@settings(deadline=None)
@given(st.lists(PIECES | st.sampled_from(KEYS) | st.text(max_size=5), max_size=40).map("".join))
@example('a: "\\U00110000"')
@example("%YAML 1" + "1" * 5000 + ".1\n---\na")
def test_any_text_gives_a_config_or_its_mistakes(scratch, text):
    """Text made of what means something in YAML never ends in another exception."""
    load_or_refuse(scratch, text.encode("utf-8", "replace"))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_config_or_its_mistakes(scratch, raw):
    """Bytes that are no text never end in another exception."""
    load_or_refuse(scratch, raw)
