"""Everything public says what it is, and every test says what it shows."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator, List, Union

import pytest

import se3_uploader

ROOT = Path(__file__).parent.parent
PACKAGE = sorted(Path(se3_uploader.__file__).parent.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))

Documented = Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef]


def name_of(path: Path) -> str:
    """The path as a person would say it."""
    return str(path.relative_to(ROOT))


def public(body: List[ast.stmt]) -> Iterator[Documented]:
    """Public functions and classes, and what is public in these."""
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if node.name.startswith("_"):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from public(node.body)


def is_override(node: Documented) -> bool:
    """Does it take its docstring from what it overloads?"""
    return any(getattr(mark, "id", "") in ("overload", "override") for mark in node.decorator_list)


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_public_things_have_docstrings(path: Path) -> None:
    """Modules, classes and functions of the package that others may use say what they are for."""
    tree = ast.parse(path.read_text("utf-8"))
    silent = [
        f"{node.name} (line {node.lineno})"
        for node in public(tree.body)
        if not ast.get_docstring(node) and not is_override(node)
    ]
    assert ast.get_docstring(tree), "the module has no docstring"
    assert not silent


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_tests_have_docstrings(path: Path) -> None:
    """Every test says in a sentence what it shows."""
    tree = ast.parse(path.read_text("utf-8"))
    silent = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not (ast.get_docstring(node) or "").rstrip().endswith((".", ":", "?", "!"))
    ]
    assert not silent


@pytest.mark.parametrize(
    "path", [path for path in PACKAGE if path.name != "__init__.py"], ids=name_of
)
def test_files_are_short(path: Path) -> None:
    """A module that grows past 400 lines does more than one thing."""
    assert len(path.read_text("utf-8").splitlines()) <= 400
