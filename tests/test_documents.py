"""The documents say what the program does, in both languages alike."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
import textwrap
import urllib.request
from contextlib import closing
from typing import Any, Dict, Iterator, List, Set

import pytest
import yaml

from se3_uploader import config
from se3_uploader.cli import arguments
from se3_uploader.config import rules
from tests.http_server import Server
from tests.site import Process, Site

TOP = pathlib.Path(__file__).parent.parent
PROGRAM = TOP / "se3_uploader"
TRANSLATED = {
    TOP / "README.md": TOP / "README.zh-CN.md",
    **{path: path.parent / "zh" / path.name for path in sorted((TOP / "docs").glob("*.md"))},
}
DOCUMENTS = [
    *TRANSLATED,
    *TRANSLATED.values(),
    *(TOP / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
]
FENCE = re.compile(r"(?ms)^```(\w+)\n(.*?)^```$")
PAIRS = pytest.mark.parametrize(
    ("english", "chinese"), TRANSLATED.items(), ids=lambda path: path.name
)
EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TOP)))

SMALLEST = {
    "gateway": {"dev_sno": "SNO"},
    "source": {"url": "sqlite:///event.db"},
    "history_event": {"endpoints": [{"url": "http://127.0.0.1/HistoryEvent"}]},
}


def text_of(document: pathlib.Path) -> str:
    """The whole text of a document."""
    return document.read_text("utf-8")


def blocks(document: pathlib.Path, *languages: str) -> List[str]:
    """The code blocks of a document, those of some languages or all."""
    found = FENCE.findall(text_of(document))
    return [body for language, body in found if not languages or language in languages]


def prose(document: pathlib.Path) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", text_of(document))


def spans(text: str) -> Set[str]:
    """Everything that stands in `backquotes`."""
    return {re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", text)}


def without_comments(block: str) -> List[str]:
    """The lines of a code block, what follows a # or -- left out, since comments are translated."""
    lines = (re.sub(r"(^|\s+)(#|--) .*", "", line).rstrip() for line in block.splitlines())
    return [line for line in lines if line]


def run(*words: str, cwd: pathlib.Path = TOP) -> subprocess.CompletedProcess[str]:
    """Run the program as the installed command would."""
    return subprocess.run(
        [sys.executable, "-m", "se3_uploader", *words],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(TOP)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


# Both languages


@PAIRS
def test_both_languages_have_the_same_headings(english, chinese):
    """Every page exists in both, with as many headings of the same level in the same order."""
    levels = [re.findall(r"(?m)^(#+) ", prose(page)) for page in (english, chinese)]
    assert levels[0] == levels[1]


@PAIRS
def test_both_languages_have_the_same_code(english, chinese):
    """Commands, keys and values in code blocks are the same; only comments differ."""
    code = [[without_comments(b) for b in blocks(page)] for page in (english, chinese)]
    assert code[0] == code[1]


@PAIRS
def test_both_languages_name_the_same_commands_and_keys(english, chinese):
    """What stands in backquotes on one page stands on the other, too."""
    assert spans(prose(english)) ^ spans(prose(chinese)) == set()


def test_the_reference_has_the_same_defaults_in_chinese():
    """Each row of the generated reference is there, in order, with its key and default."""
    rows = re.compile(r"(?m)^\| (`[^|]+`) \| ([^|]*) \|")
    english, chinese = (
        rows.findall(text_of(TOP / "docs" / page))
        for page in ("configuration.md", "zh/configuration.md")
    )
    assert len(english) > 80
    assert english == chinese


# Every document


@EACH
def test_links_resolve(document):
    """Every relative link leads to a file, and to a heading where it names one."""
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", prose(document)):
        path = document.parent / target if target else document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), anchor


def anchors(document: pathlib.Path) -> List[str]:
    """The names that headings are linked by."""
    headings = re.findall(r"(?m)^#+ (.*)$", prose(document))
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@EACH
def test_no_document_names_a_machine_of_ours(document):
    """No path of whoever wrote it, and no home."""
    assert not re.findall(r"/work\b|/root\b|/home/|/tmp/", text_of(document))


@EACH
def test_commands_can_be_parsed(document):
    """Every command line of the program, in blocks and in prose, is one that the parser takes."""
    for line in commands(document):
        words = shlex.split(line.replace("ID…", "17"))
        assert parses(words), f"se3-uploader {line}"


def parses(words: List[str]) -> bool:
    """Does the command line take these words?"""
    try:
        arguments.parser().parse_args(arguments.joined_times(words))
    except SystemExit as ended:
        return not ended.code
    return True


def commands(document: pathlib.Path) -> Iterator[str]:
    """The arguments of each se3-uploader command in a document, placeholders filled in."""
    code = [line for block in blocks(document, "sh") for line in without_comments(block)]
    for line in [*code, *spans(prose(document))]:
        found = re.search(r"(?:^|&& |/|sudo -u se3-uploader |\| )se3-uploader ([a-z-].*)", line)
        if found:
            words = re.split(r" (?:&&|[|>]) ", found[1])[0]
            yield re.sub(r"\bT\b", "-2d", re.sub(r"\bID\b", "17", words))


@EACH
def test_configurations_are_valid(document, tmp_path):
    """Every piece of uploader.yaml in a document, put into the smallest file, can be loaded."""
    for block in blocks(document, "yaml"):
        if block.startswith("# yaml-language-server"):
            continue
        for name in re.findall(r"profile: (\w+\.yaml)", block):
            (tmp_path / name).write_text("table: event\n")
        path = tmp_path / "uploader.yaml"
        path.write_text(yaml.safe_dump(completed(block)), "utf-8")
        config.load(str(path))


def completed(block: str) -> Dict[str, Any]:
    """A whole configuration from a piece: of an endpoint (indented 6), of source (2), or more."""
    piece = yaml.safe_load(textwrap.dedent(block))
    indent = len(block) - len(block.lstrip(" "))
    if indent == 6:
        endpoint = {**SMALLEST["history_event"]["endpoints"][0], **piece}
        return {**SMALLEST, "history_event": {"endpoints": [endpoint]}}
    if indent == 2 or not set(piece) <= set(rules.schema()["properties"]):
        piece = {"source": piece}
    sections = {
        name: {**SMALLEST.get(name, {}), **part} if isinstance(part, dict) else part
        for name, part in piece.items()
    }
    return {**SMALLEST, **sections}


# README


def test_every_command_is_in_the_readme():
    """Each subcommand of the parser has a row in the table of both READMEs."""
    found = re.findall(r"(?m)^    (\w+) ", run("--help").stdout)
    assert {"run", "receive", "demo"} <= set(found)
    for readme in (TOP / "README.md", TOP / "README.zh-CN.md"):
        rows = re.findall(r"(?m)^\| `se3-uploader (\w+)", text_of(readme))
        assert set(found) == set(rows)


def test_the_demo_command_runs():
    """What follows the installation in the README's first command ends with every event intact."""
    pytest.importorskip("flask", reason="needs flask, extra 'receiver'")
    pytest.importorskip("PIL.Image", reason="needs pillow, extra 'pictures'")
    _, _, command = blocks(TOP / "README.md", "sh")[0].strip().rpartition("&& ")
    program, *words = shlex.split(command)
    assert program.endswith("/se3-uploader")
    done = run(*words, "--port", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every event arrived intact, exactly once." in done.stdout


def test_the_walk_through_works(tmp_path):
    """With the README's my.yaml, events of a table like its own arrive, and only once."""
    (settings,) = blocks(TOP / "README.md", "yaml")
    with Server() as platform, closing(sqlite3.connect(tmp_path / "visits.db")) as visits:
        visits.executescript(
            """
            CREATE TABLE visits (id INTEGER PRIMARY KEY, person_no, person, team, happened_at,
                                 similarity, door);
            INSERT INTO visits VALUES (1, 17, '王小明', 'staff', 1772323200, 0.93, 'north'),
                                      (2, 18, 'Alice', 'staff', 1772323260, 0.91, 'south');
            """
        )
        settings = settings.replace("http://127.0.0.1:9528", platform.url)
        (tmp_path / "my.yaml").write_text(settings, "utf-8")
        lines = [re.search(r"se3-uploader (.* my\.yaml)$", line) for line in readme_lines()]
        words = [line[1].split() for line in lines if line]
        assert [word for word, *_ in words] == ["check", "run"]
        told = ""
        for each in [*words, words[-1]]:
            done = run(*each, cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
            told += done.stderr
        assert re.findall(r"done \[delivered=(\d+) ", told) == ["2", "0"]
        assert len(platform.requests) == 2


def readme_lines() -> List[str]:
    """The lines of the README's commands."""
    return "".join(blocks(TOP / "README.md", "sh")).splitlines()


def test_the_test_command_is_extracted():
    """`.ci/run` finds exactly one line behind the README's marker: the one that runs the tests."""
    line = re.search(r"(?m)^readme\(\) \{ bash -ec (.*); \}$", text_of(TOP / ".ci" / "run"))[1]
    found = subprocess.check_output(["bash", "-c", f"echo {line}"], cwd=TOP, text=True)
    assert len(found.splitlines()) == 1
    assert found.strip() in text_of(TOP / "CONTRIBUTING.md")
    assert ".venv/bin/pytest" in found


def test_the_shipped_configuration_passes_check():
    """As it stands uploader.yaml is free of mistakes, also where there is no box."""
    done = run("check", "--no-network", "-c", str(TOP / "uploader.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


# Pages that quote the program


def sentences() -> str:
    """All constant text of the program; in f-strings … stands for what is filled in."""
    found = [os.strerror(number) for number in range(1, 130)]
    for path in sorted(PROGRAM.rglob("*.py")):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…"
                         for part in node.values)  # fmt: skip
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("page", ["recovery.md", "status.md"])
def test_quoted_messages_are_the_programs_own(page):
    """Each message in the first column of a table stands in the program, word for word."""
    said = sentences()
    cells = re.findall(r"(?m)^\| ([^|]*`[^|]*) \|", prose(TOP / "docs" / page))
    quoted = [re.sub(r"\d+", "…", span) for cell in cells for span in sorted(spans(cell))]
    assert len(quoted) > 10
    for message in quoted:
        for part in filter(None, message.split("…")):
            assert part in said, message


def test_every_metric_is_listed(tmp_path):
    """The tables list what a daemon offers Prometheus, name and kind; the alerts use no others."""
    pytest.importorskip("prometheus_client", reason="needs prometheus-client, extra 'metrics'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    site = Site(tmp_path)
    with Server() as platform:
        settings = site.configure(platform.url, metrics={"listen": listen})
        with Process(settings) as daemon:
            daemon.wait_for("metrics are at")
            with urllib.request.urlopen(f"http://{listen}/metrics") as answer:
                kinds = dict(re.findall(r"(?m)^# TYPE (\w+) (\w+)$", answer.read().decode()))
    offered = {name: kind for name, kind in kinds.items() if not name.endswith("_created")}
    page = text_of(TOP / "docs" / "metrics.md")
    listed = dict(re.findall(r"(?m)^\| `(se3_uploader_\w+)` \| (\w+) \|", page))
    # Only there once a platform has shown a certificate, or the box has deleted what is waited for.
    assert listed.pop("se3_uploader_certificate_expiry_timestamp_seconds") == "gauge"
    assert listed.pop("se3_uploader_deleted_in_seconds") == "gauge"
    assert listed == offered
    alerts = yaml.safe_load(text_of(TOP / "docs" / "alerts" / "se3-uploader.yml"))
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    assert len(expressions) == 3
    assert set(re.findall(r"se3_uploader_\w+", " ".join(expressions))) <= set(offered)


def test_the_architecture_names_every_module():
    """Every module of the package, or its folder, is in the table; and nothing else is."""
    named = re.findall(r"`(\w+(?:\.py|/))`", text_of(TOP / "docs" / "architecture.md"))
    parts = {f"{path.name}/" if path.is_dir() else path.name for path in PROGRAM.iterdir()}
    modules = {part for part in parts if part.endswith((".py", "/")) and part[0] != "_"}
    assert set(named) == modules


def test_the_lanes_are_all_described():
    """CONTRIBUTING.md has a row for each lane of .ci/run, in any order."""
    run = text_of(TOP / ".ci" / "run")
    lanes = " ".join(re.findall(r'(?ms)^(?:LANES|ADVISORY)="([^"]*)"', run)).split()
    rows = re.findall(r"(?m)^\| (`.*?`) \|", text_of(TOP / "CONTRIBUTING.md"))
    assert sorted(lane.partition(":")[0] for lane in lanes) == sorted(
        set().union(*map(spans, rows))
    )
