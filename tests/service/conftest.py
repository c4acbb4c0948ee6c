"""The packages under test, and a booted box that has them installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from .container import Box, unavailable
from .site import Site

TOP = Path(__file__).parent.parent.parent


def readme_command(beginning: str) -> str:
    """The README's line that begins with sudo and this, for a shell in a box."""
    (line,) = re.findall(rf"^sudo {beginning} .*$", (TOP / "README.md").read_text("utf-8"), re.M)
    # In inside/bin stand a sudo and a nano.
    return f"PATH=$PATH:/inside/bin; cd /dist; {line}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is slow, and skipped visibly where no container can run."""
    reason = unavailable()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages: $SE3_UPLOADER_DIST, or built now."""
    given = os.environ.get("SE3_UPLOADER_DIST")
    folder = Path(given).resolve() if given else tmp_path_factory.mktemp("dist")
    if not given:
        build = TOP / "systemd/package/build.py"
        subprocess.run([sys.executable, build, "--dist", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def bare(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A bare Debian 12 that has never seen the agent; one for the tests of a file."""
    with Box(dist, tmp_path_factory.mktemp("box") / "console") as box:
        yield box


@pytest.fixture(scope="module")
def installed(bare: Box) -> Box:
    """The same with the package installed by the README's first command."""
    bare.sh(readme_command("apt install"))
    return bare


@pytest.fixture
def site(installed: Box) -> Iterator[Site]:
    """A platform and an event database beside the agent, which is configured but stopped."""
    with Site(installed) as site:
        yield site
