"""What is built into the .deb: each package in one version, and that one by its hash."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

TOP = Path(__file__).parent.parent.parent
LOCK = TOP / "systemd" / "package" / "requirements.lock"
PIN = re.compile(r"([a-z0-9-]+)==[0-9][0-9a-z.]*( \\\n +--hash=sha256:[0-9a-f]{64})+\n")


def test_every_package_is_pinned_by_its_hash() -> None:
    """The lock holds nothing but versions with hashes, pip being told to take nothing else."""
    lines = LOCK.read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if line.strip() and not line.startswith("#"))
    assert PIN.sub("", text) == ""
    build = LOCK.with_name("build.py").read_text()
    assert len(re.findall(r'"(?:install|download)", "-q"', build)) == 2
    assert build.count('"--require-hashes"') == 2


def test_nothing_that_the_agent_needs_is_left_out() -> None:
    """All that setup.cfg asks for, and the drivers, are in the lock."""
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg")
    wanted = setup["options"]["install_requires"]
    wanted += "".join(setup["options.extras_require"][name] for name in ("mysql", "mongo"))
    names = set(re.findall(r"^[A-Za-z][\w-]*", wanted, re.MULTILINE))
    pinned = {found[1] for found in PIN.finditer(LOCK.read_text())}
    assert len(names) > 8
    assert {name.lower().replace("_", "-") for name in names} - pinned == set()
