"""YAML read defensively: plain data only, every key with its line, bounded in size and depth."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import yaml

MAX_BYTES = 1024**2
MAX_DEPTH = 20
MAX_VALUES = 10_000

Path = Tuple[Union[str, int], ...]
"""The way to a value: keys of mappings and places in lists, from the top."""

Problems = Dict[Path, str]
"""What is wrong, one sentence for each place; the first thing found there is the one to tell."""


class Unreadable(Exception):
    """The file is no YAML that we take; one line: the file, where known the line, and why."""


@dataclass(frozen=True)
class Document:
    """A YAML file as plain data, and what the reader already holds against it."""

    file: str
    data: Any
    lines: Mapping[Path, int]
    problems: Mapping[Path, str]

    def report(self, problems: Mapping[Path, str]) -> List[str]:
        """Problems as ``file:line: key: text`` in the order of the file."""
        return [
            f"{self.file}:{line}: {key}{text}"
            for line, key, text in sorted(
                (self._line(path), _shown(path), text) for path, text in problems.items()
            )
        ]

    def _line(self, path: Path) -> int:
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def read(path: str) -> Document:
    """Read one file; raises Unreadable where there is nothing that could be checked further."""
    file = "".join(char if char.isprintable() else "?" for char in path)
    text = _text(path, file)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(f"{file}:{line}: holds a control character, remove it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise Unreadable(f"{file}:{line}: {_explained(error)}") from None
    except (ValueError, OverflowError):
        line = loader.get_mark().line + 1
        raise Unreadable(f"{file}:{line}: holds a number or an escape beyond all bounds") from None
    if node is None:
        raise Unreadable(
            f"{file}:1: is empty, start from the uploader.yaml that comes with the package"
        )
    lines: Dict[Path, int] = {(): 1}
    problems: Problems = {}
    data = _plain(loader, node, (), lines, problems)
    return Document(file, data, lines, problems)


def _text(path: str, file: str) -> str:
    try:
        # A pipe or device would block the open, so look before it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Unreadable(f"{file}: is not a regular file, give the path of a YAML file")
        with open(path, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise Unreadable(f"{file}: is no path") from None
    if len(raw) > MAX_BYTES:
        raise Unreadable(f"{file}: is larger than 1 MiB, that is no configuration")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"{file}:{line}: is not UTF-8, save the file in that encoding") from None


class _Loader(yaml.SafeLoader):
    """Refuses, before it is built, what would take much memory or time."""

    depth = 0
    values = 0

    def compose_node(self, parent: Optional[yaml.Node], index: Any) -> Optional[yaml.Node]:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not allowed, write the value out"
            raise _Refused(problem=problem, problem_mark=mark)
        if self.depth == MAX_DEPTH:
            problem = f"nested deeper than {MAX_DEPTH} levels"
            raise _Refused(problem=problem, problem_mark=mark)
        if self.values == MAX_VALUES:
            problem = f"holds more than {MAX_VALUES} keys and values, that is no configuration"
            raise _Refused(problem=problem, problem_mark=mark)
        self.values += 1
        self.depth += 1
        node: Optional[yaml.Node] = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Refused(yaml.MarkedYAMLError):
    """Good YAML, but not for us."""


def _explained(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if isinstance(error, _Refused):
        return problem
    if "'\\t'" in problem:
        return "is indented with a tab, YAML wants spaces"
    return f"is not valid YAML: {problem}"


_MAP, _SEQ = yaml.resolver.Resolver.DEFAULT_MAPPING_TAG, yaml.resolver.Resolver.DEFAULT_SEQUENCE_TAG
_TAG = "tag:yaml.org,2002:"


def _plain(
    loader: _Loader, node: yaml.Node, path: Path, lines: Dict[Path, int], problems: Problems
) -> Any:
    """A node as dict, list or scalar, its lines and problems noted; None for what is refused."""
    if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
        mapping: Dict[str, Any] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            at: Path = (*path, name)
            if name in mapping:
                problems[at] = f"stands here and in line {lines[at]}, keep one of them"
            lines[at] = key.start_mark.line + 1
            if not _is_text(loader, key):
                problems[at] = "is no text, and a key must be; put it in quotes if it is meant so"
            mapping[name] = _plain(loader, value, at, lines, problems)
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
        items = []
        for place, item in enumerate(node.value):
            at = (*path, place)
            lines[at] = item.start_mark.line + 1
            items.append(_plain(loader, item, at, lines, problems))
        return items
    try:
        return _scalar(loader, node)
    except ValueError as error:
        problems.setdefault(path, str(error))
        return None


def _is_text(loader: _Loader, node: yaml.Node) -> bool:
    try:
        return isinstance(_scalar(loader, node), str)
    except ValueError:
        return False


def _scalar(loader: _Loader, node: yaml.Node) -> Any:
    """Text, number, bool or None; raises ValueError in our words for anything else.

    Dates stay text: no key of ours takes one, and a serial number may look like one.
    """
    kind = node.tag[len(_TAG) :] if node.tag.startswith(_TAG) else ""
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError("has a tag (!name) or is a complex key, write a plain value")
    if kind in ("str", "merge", "value", "timestamp"):
        if any(
            unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n" for char in node.value
        ):
            raise ValueError("holds a control character or half a character, remove it")
        return node.value
    if kind == "null":
        return None
    try:
        if kind == "bool":
            return loader.construct_yaml_bool(node)
        if kind == "int":
            whole = loader.construct_yaml_int(node)
            if abs(whole) < 2**63:
                return whole
        if kind == "float":
            number = loader.construct_yaml_float(node)
            if abs(number) < float("inf"):
                return number
    except (ValueError, KeyError, IndexError, OverflowError):
        pass
    if kind in ("bool", "int", "float"):
        raise ValueError("is no number that can be used; put it in quotes if it is text")
    raise ValueError("has a tag (!name), write a plain value")


def _shown(path: Path) -> str:
    """``history_event.endpoints[0].url: ``; a key that is no plain word may be a lost secret."""
    parts = ""
    for part in path:
        if isinstance(part, int):
            parts += f"[{part}]"
        else:
            parts += "." + (part if re.fullmatch(r"[\w.-]{1,64}", part) else "?")
    return parts.lstrip(".") + ": " if path else ""
