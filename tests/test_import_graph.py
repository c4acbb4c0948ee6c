"""Dependencies point one way, and the daemon imports nothing that it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Dict, Set

import pytest

import se3_uploader

PACKAGE = Path(se3_uploader.__file__).parent
PURE = ["payload", "policy", "units"]
"""Decisions apart from I/O; what they may import of the package besides each other: config, which
reads uploader.yaml, for its dataclasses."""
PURE_INSIDE = ["payload.columns", "payload.values", "engine.tail", "sink.answer", "sink.plaintext"]
PROCESSES = {"agent", "cli", "backfill", "check", "demo", "status", "metrics", "receiver"}
TALKS = {"cli", "demo", "receiver", "__main__"}
"""Only these print."""


def modules() -> Dict[str, Path]:
    """Dotted name within the package -> file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name or "__init__"] = path
    return found


MODULES = modules()


@lru_cache(maxsize=None)
def imports(name: str) -> Set[str]:
    """Top-level modules of the package that a module imports at run time, in functions too."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    tree.body = [node for node in tree.body if not _is_type_checking(node)]
    inside = MODULES[name].relative_to(PACKAGE).parts[:-1]
    found: Set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*inside[: len(inside) + 1 - node.level], *(node.module or "").split("."))
            base = tuple(part for part in base if part)
            found.update([base[0]] if base else [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("se3_uploader"):
            base = tuple((node.module or "").split(".")[1:])
            found.update([base[0]] if base else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found.update(parts[1] for parts in names if parts[0] == "se3_uploader" and parts[1:])
    return found & {one.split(".")[0] for one in MODULES}


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


@lru_cache(maxsize=None)
def reach(name: str) -> Set[str]:
    """Everything of the package that comes along with a top-level module."""
    found: Set[str] = set()
    left = [name]
    while left:
        for module in [one for one in MODULES if one.split(".")[0] == left[0]]:
            new = imports(module) - found
            found |= new
            left += new
        del left[0]
    return found - {name}


def test_the_graph_is_seen() -> None:
    """The walk itself sees imports of every form; else the other tests would prove nothing."""
    assert {"engine", "sink", "source", "outbox", "wake"} <= imports("agent")
    assert "policy" in imports("engine")
    assert "payload" in imports("source.rows")
    assert {"policy", "config"} <= imports("sink")
    assert {"engine", "outbox", "source", "payload", "config"} <= reach("agent")


@pytest.mark.parametrize("name", PURE)
def test_pure_modules(name: str) -> None:
    """Pure modules import each other and the shapes of the configuration, and nothing else."""
    assert reach(name) <= {*PURE, "config"}


@pytest.mark.parametrize("name", [*PURE, *PURE_INSIDE])
def test_pure_modules_touch_nothing(name: str) -> None:
    """They import no library that does I/O either."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    impure = {"os", "socket", "sqlite3", "peewee", "requests", "urllib3", "threading", "psutil",
              "subprocess", "random", "logging"}  # fmt: skip
    assert not {one.split(".")[0] for one in names} & impure


@pytest.mark.parametrize("name", ["sink", "source", "outbox", "device_status"])
def test_the_outer_parts_do_not_know_the_engine(name: str) -> None:
    """Source, outbox and sink serve the engine and know nothing of it, nor of the process."""
    assert not reach(name) & {"engine", *PROCESSES}


def test_the_engine_does_not_know_the_process() -> None:
    """The engine runs in a simulation as well, so it knows no agent, no command, no signal."""
    assert not reach("engine") & (PROCESSES | {"wake", "sdnotify", "lock"})


def test_source_outbox_and_sink_do_not_know_each_other() -> None:
    """Only the names of keys and references go from the source to the outbox."""
    assert not reach("source") & {"outbox", "sink"}
    assert not reach("sink") & {"outbox", "source"}
    assert "sink" not in reach("outbox")


def test_no_circles() -> None:
    """No module comes back to itself through what it imports at run time."""
    for name in {one.split(".")[0] for one in MODULES} - {"__init__", "__main__"}:
        for other in reach(name):
            assert other == name or name not in reach(other), f"{name} <-> {other}"


def test_who_prints() -> None:
    """Only the command line and its texts print; everything else logs or returns."""
    printing = set()
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text("utf-8"))
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        if any(isinstance(call, ast.Name) and call.id == "print" for call in calls):
            printing.add(name.split(".")[0])
    assert "cli" in printing
    assert printing <= TALKS


HEAVY = [
    "rich", "flask", "waitress", "jsonschema", "pymongo", "bson", "PIL", "prometheus_client",
    "playhouse", "asyncio", "unittest", "numpy", "tenacity", "psutil",
]  # fmt: skip
"""PyMySQL and psycopg2 are not among them: peewee imports those by itself where they are."""


def test_what_the_daemon_imports() -> None:
    """A fresh process that runs the daemon holds no library that only other commands need.

    Nor psutil, before a status report is asked for.
    """
    program = (
        "import sys; import se3_uploader.cli, se3_uploader.agent, se3_uploader.source.sqlite;"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert {"peewee", "requests", "orjson", "se3_uploader"} <= loaded
    assert not loaded & set(HEAVY)
