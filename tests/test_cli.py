"""The command line: words, exit codes, and that no traceback reaches a user."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest

from se3_uploader import __version__, cli
from se3_uploader.cli import arguments

from .http_server import Server
from .site import Site

TOP = Path(__file__).parent.parent
COMPLETION = TOP / "systemd" / "package" / "completion.bash"


@pytest.fixture
def site(tmp_path):
    """A box with an empty event database."""
    return Site(tmp_path)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "se3_uploader", *arguments],
        cwd=TOP, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def commands(
    parser: argparse.ArgumentParser, above: Tuple[str, ...] = ()
) -> Iterator[Tuple[Tuple[str, ...], List[str]]]:
    """Every command there is, with its options, long ones where there are both."""
    own = [action for action in parser._actions if action.dest not in ("help", "command", "action")]
    options = [action.option_strings[-1] for action in own if action.option_strings]
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    yield above, options
    for action in below:
        for name, command in action.choices.items():
            yield from commands(command, (*above, name))


ALL: Dict[Tuple[str, ...], List[str]] = dict(commands(arguments.parser()))


def test_the_version_is_told():
    """Both ways of starting it end in the same parser."""
    assert run("--version").stdout == f"se3-uploader {__version__}\n"


def test_every_command_says_what_it_does(capsys):
    """--help works everywhere, and no option goes without a word about it."""
    for command, options in ALL.items():
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--help"])
        assert ended.value.code == 0
        told = capsys.readouterr().out
        assert all(option in told for option in options), command


@pytest.mark.parametrize(
    "wrong",
    [[], ["fly"], ["status", "--jsn"], ["outbox"], ["outbox", "list", "x"],
     ["outbox", "show", "99999999999999999999"],
     ["outbox", "list", "--since", "yesterday"], ["receive", "--fail", "2"],
     ["receive", "--fail", "nan"], ["receive", "--port", "65536"], ["receive", "--delay", "-1"],
     ["receive", "--status", "99"], ["demo", "--port", "http"], ["demo", "--events", "0"]],
)  # fmt: skip
def test_wrong_usage_is_2_and_says_what_is_wrong(wrong, capsys):
    """As everywhere in Unix."""
    with pytest.raises(SystemExit) as ended:
        cli.main(wrong)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("spelling", [["--since", "-2d"], ["--since=-2d"], ["--since", "-36h"]])
def test_a_relative_time_is_no_option(site, spelling, capsys):
    """Argparse alone would take -2d for an option."""
    with Server() as platform:
        config = site.configure(platform.url)
        cli.main(["run", "--once", "-c", config.path])
    assert cli.main(["outbox", "list", "-c", config.path, "--json", *spelling]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_the_configuration_is_found_where_it_is_said_to_be(site, monkeypatch, capsys):
    """-c, the environment, the current folder; where there is none, that is 78 and named."""
    config = site.configure("http://127.0.0.1:9/")
    assert cli.main(["status", "-c", config.path]) == 0
    monkeypatch.setenv("SE3_UPLOADER_CONFIG", config.path)
    assert cli.main(["status"]) == 0
    monkeypatch.delenv("SE3_UPLOADER_CONFIG")
    monkeypatch.chdir(site.folder)
    assert cli.main(["status"]) == 0
    assert cli.main(["status", "-c", "/no/such.yaml"]) == 78
    assert "/no/such.yaml: " in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_in_one_line(site, capsys):
    """A file stands where the outbox's folder should be."""
    (site.folder / "state").write_text("")
    config = site.configure("http://127.0.0.1:9/")
    assert cli.main(["run", "--once", "-c", config.path]) == 75
    error = capsys.readouterr().err
    assert error.startswith(f"se3-uploader: {site.folder}/state")
    assert error.count("\n") == 1


def test_a_mistake_of_ours_is_told_without_what_it_was_about(monkeypatch, capsys):
    """The text of an exception may hold a person's name, so only its kind and place are told."""

    def broken(options: argparse.Namespace) -> int:
        raise KeyError(f"张伟 {options}")

    monkeypatch.setitem(cli._COMMANDS, "status", broken)
    assert cli.main(["status"]) == 1
    error = capsys.readouterr().err
    assert "a mistake in the program, KeyError at " in error
    assert "test_cli.py:" in error
    assert "张伟" not in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", ["status", "status --json", "check --no-network"])
def test_a_reader_that_leaves_early_is_no_failure(site, arguments):
    """A pipe into head that closes before all is printed ends quietly."""
    config = site.configure("http://127.0.0.1:9/")
    script = (
        f"set -o pipefail; {sys.executable} -m se3_uploader {arguments} -c {config.path} | true"
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=TOP, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_unicode_is_no_failure(site):
    """Names that it cannot show are spelled in escapes."""
    config = site.configure("http://127.0.0.1:9/", endpoint={"name": "平台"})
    done = run("status", "-c", config.path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "\\u5e73\\u53f0" in done.stdout


def test_the_daemon_loads_nothing_that_only_people_need():
    """Tables, validators of files and web servers cost memory on a box."""
    code = (
        "import sys, se3_uploader.agent, se3_uploader.cli;"
        "print([name for name in ('rich', 'flask', 'jsonschema', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def completed(*words: str) -> List[str]:
    """What bash offers for the last of some words."""
    script = (
        f'source {COMPLETION}; COMP_WORDS=(se3-uploader "$@"); COMP_CWORD=$#; _se3_uploader;'
        " printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_bash_completes_every_command_and_option():
    """The completion file says the same as the parser, so that neither is forgotten."""
    for command, options in ALL.items():
        below = [path[-1] for path in ALL if path[:-1] == command and path]
        assert sorted(completed(*command, "")) == sorted(below or options) or (
            command == () and sorted(completed("")) == sorted([*below, *options])
        ), command


def test_bash_completes_what_was_begun(tmp_path):
    """A part of a word, and file names after -c."""
    assert completed("st") == ["status"]
    assert completed("outbox", "retry", "--y") == ["--yes"]
    (tmp_path / "my.yaml").touch()
    assert completed("run", "-c", f"{tmp_path}/my") == [f"{tmp_path}/my.yaml"]
    assert completed("backfill", "--pictures", "s") == ["strip"]
