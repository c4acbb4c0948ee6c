from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Iterator

import pytest

from .conftest import TOP

MACHINES = {"amd64": 62, "arm64": 183}
"""e_machine in the header of an ELF file."""
PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
import bson, inotify_simple, jsonschema, orjson, peewee, prometheus_client, psutil, pybase64
import pymongo, pymysql, requests, rich.table, tenacity, yaml
from se3_uploader import cli
assert psutil.cpu_times() and orjson.loads(orjson.dumps([1])) == [1] and bson.has_c()
assert "C extension active" in pybase64.get_version()
assert requests.__file__.startswith(sys.argv[1])
sys.exit(cli.main(["check", "--no-network", "--config", sys.argv[2]]))
"""


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Path]:
    """The files of each .deb."""
    folders = {}
    for arch in MACHINES:
        folders[arch] = tmp_path_factory.mktemp(arch)
        (package,) = dist.glob(f"*_{arch}.deb")
        subprocess.run(["dpkg-deb", "-x", package, folders[arch]], check=True)
    return folders


def find_python(version: str) -> Iterator[str]:
    """Interpreters of a version on this machine."""
    for found in Path.home().glob(f".pyenv/versions/{version}.*/bin/python"):
        yield str(found)
    for folder in ("/usr/local/bin", "/usr/bin"):
        if os.access(f"{folder}/python{version}", os.X_OK):
            yield f"{folder}/python{version}"


@pytest.mark.parametrize("version", PYTHONS)
def test_one_package_fits_every_python(version: str, unpacked: Dict[str, Path]) -> None:
    """On each Python everything in the package imports and the shipped configuration passes."""
    python = next(find_python(version), None)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    lib = unpacked["amd64"] / "opt/se3-uploader/lib"
    settings = unpacked["amd64"] / "etc/se3-uploader/uploader.yaml"
    done = subprocess.run(
        [python, "-I", "-B", "-c", IMPORTS, lib, settings],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # 1: on this machine there is no event database; anything else would be ours.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arch", MACHINES)
def test_compiled_modules_are_for_the_architecture(arch: str, unpacked: Dict[str, Path]) -> None:
    """No module of another machine has slipped in, and orjson is there for each Python."""
    modules = list((unpacked[arch] / "opt").rglob("*.so"))
    for module in modules:
        assert int.from_bytes(module.read_bytes()[18:20], "little") == MACHINES[arch], module
    for version in PYTHONS:
        tag = version.replace(".", "")
        assert any(f"orjson.cpython-{tag}-" in module.name for module in modules)


@pytest.mark.parametrize("arch", MACHINES)
def test_lintian_has_no_error(arch: str, dist: Path) -> None:
    """Debian's own checker finds no error."""
    if shutil.which("lintian") is None:
        pytest.skip("needs lintian")
    (package,) = dist.glob(f"*_{arch}.deb")
    done = subprocess.run(
        ["lintian", "--fail-on", "error", package], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_same_commit_gives_the_same_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel built again, elsewhere and under another umask, has the same bytes."""
    spec = importlib.util.spec_from_file_location("build", TOP / "systemd/package/build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", build.commit_time().strip())
    sources = {umask: build.check_out(tmp_path / f"{umask:o}/source") for umask in (0o022, 0o077)}
    wheels = []
    for umask, source in sources.items():
        before = os.umask(umask)
        try:
            wheels.append(build.build_wheel(source, tmp_path, source.parent).read_bytes())
        finally:
            os.umask(before)
    assert wheels[0] == wheels[1]
