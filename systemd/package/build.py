"""Build dist/: the wheel, and a .deb for each architecture with everything the agent needs.

    python3 systemd/package/build.py [--dist DIR] [ARCHITECTURE…]

Needs git, dpkg-deb and Python with pip and venv; fetches the versions in requirements.lock and
refuses any file whose hash is not there. The same commit gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from email.parser import HeaderParser
from pathlib import Path
from typing import Dict, List, Sequence

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
OLDEST_PYTHON, OTHER_PYTHONS = "3.8", ("3.9", "3.10", "3.11", "3.12", "3.13")
ACCELERATORS = re.compile(r"yaml/_yaml\.|pvectorc\.")
"""Compiled parts that only make reading uploader.yaml faster, at 3 MB for each Python."""


def run(*command: object) -> str:
    """Run a command in the top folder; returns its output, CalledProcessError where it fails."""
    return subprocess.check_output([str(part) for part in command], text=True, cwd=TOP)


def commit_time() -> str:
    """Seconds since the epoch that stand for now in everything built (SOURCE_DATE_EPOCH)."""
    return os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct")


def locked(name: str = r"[\w-]+") -> str:
    """The lines of requirements.lock, or those of one package."""
    text = (HERE / "requirements.lock").read_text()
    return "".join(re.findall(rf"^{name}==.*\n(?: +--hash.*\n)+", text, re.M))


def check_out(to: Path) -> Path:
    """The files of the commit, and nothing that merely lies about."""
    to.mkdir(parents=True)
    archive = to.with_suffix(".tar")
    run("git", "-c", "tar.umask=0022", "archive", "--output", archive, "HEAD")
    shutil.unpack_archive(archive, to)
    return to


def build_wheel(source: Path, dist: Path, work: Path) -> Path:
    """Build the wheel with the locked setuptools."""
    os.umask(0o022)
    (work / "setuptools.lock").write_text(locked("setuptools"))
    run(sys.executable, "-m", "venv", work / "venv")
    pip = [work / "venv/bin/python", "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "-q", "--require-hashes", "-r", work / "setuptools.lock")
    run(*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", work / "wheel", source)
    (built,) = (work / "wheel").glob("*.whl")
    return Path(shutil.copy(built, dist))


def fetch(machine: str, python: str, requirements: str, to: Path) -> List[Path]:
    """Download locked wheels for another machine and Python."""
    to.mkdir(parents=True)
    (to / "lock").write_text(requirements)
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"),
        *("--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation", "cp"),
        *("--platform", f"manylinux2014_{machine}", "--platform", f"manylinux_2_17_{machine}"),
        *("--python-version", python, "-d", to, "-r", to / "lock"),
    )
    return sorted(to.glob("*.whl"))


def wheels_for(machine: str, work: Path) -> List[Path]:
    """All wheels that a box needs; those compiled for one Python come once for each Python.

    Compiled modules carry their Python in the file name, so they stand side by side in one folder.
    """
    wheels = [
        wheel
        for wheel in fetch(machine, OLDEST_PYTHON, locked(), work / OLDEST_PYTHON)
        if not wheel.name.startswith("setuptools-")
    ]
    compiled = "".join(
        locked(wheel.name.split("-")[0].lower())
        for wheel in wheels
        if "-cp38-cp38-" in wheel.name and kept_modules(wheel)
    )
    with ThreadPoolExecutor() as pool:
        others = pool.map(
            lambda version: fetch(machine, version, compiled, work / version), OTHER_PYTHONS
        )
        return wheels + [wheel for found in others for wheel in found]


def kept_modules(wheel: Path) -> List[str]:
    """The compiled modules of a wheel that go into the package."""
    return [
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if name.endswith(".so") and not ACCELERATORS.search(name)
    ]


def merge(wheels: Sequence[Path], lib: Path) -> None:
    """Unpack wheels over each other; two that disagree about a file are an error.

    Not so where they tell about themselves, as the wheels of one release are built by different
    tools: what the first one says stays.
    """
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                bookkeeping = name.endswith((".dist-info/RECORD", ".dist-info/WHEEL", "/REQUESTED"))
                if name.endswith(("/", ".pyi")) or ".data/" in name or bookkeeping:
                    continue
                if ACCELERATORS.search(name):
                    continue
                target = lib / name
                if target.exists() and name.endswith(".dist-info/METADATA"):
                    continue
                content = archive.read(name)
                if target.exists() and target.read_bytes() != content:
                    raise SystemExit(f"{wheel.name}: {name} differs from the one already unpacked")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


def copyright_notice(lib: Path) -> str:
    """The licence of the agent, and where those of the packages beside it are."""
    rows = []
    for metadata in sorted(lib.glob("*.dist-info/METADATA")):
        about = HeaderParser().parsestr(metadata.read_text())
        licence = about["License-Expression"] or about["License"] or "see there"
        rows.append(f"  {about['Name']} {about['Version']}: {licence.splitlines()[0]}")
    return "\n".join(
        [
            "SE3 uploader\n",
            (TOP / "LICENSE").read_text(),
            "Packages beside it in /opt/se3-uploader/lib; their licences stand in *.dist-info:\n",
            *rows,
            "\nOn Debian the Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0.\n",
        ]
    )


def install(text: str, to: Path, mode: int = 0o644) -> None:
    """Write a file of the package; one whose name ends in .gz is compressed."""
    to.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    to.write_bytes(gzip.compress(data, 9, mtime=0) if to.suffix == ".gz" else data)
    to.chmod(mode)


def lay_out(source: Path, root: Path, arch: str, version: str, moment: str) -> None:
    """Put everything but /opt/se3-uploader/lib in its place below root."""
    units, doc = source / "systemd", root / "usr/share/doc/se3-uploader"
    for unit in sorted(units.glob("*.service")):
        install(unit.read_text(), root / "lib/systemd/system" / unit.name)
    for kind in ("sysusers", "tmpfiles"):
        text = (units / f"se3-uploader.{kind}").read_text()
        install(text, root / f"usr/lib/{kind}.d/se3-uploader.conf")
    install((HERE / "se3-uploader").read_text(), root / "usr/bin/se3-uploader", 0o755)
    completion = root / "usr/share/bash-completion/completions/se3-uploader"
    install((HERE / "completion.bash").read_text(), completion)
    settings = (source / "uploader.yaml").read_text()
    install(settings, root / "etc/se3-uploader/uploader.yaml")
    install(settings, doc / "examples/uploader.yaml")
    install((source / "README.md").read_text(), doc / "README.md")
    install(copyright_notice(root / "opt/se3-uploader/lib"), doc / "copyright")
    overrides = (HERE / "lintian-overrides").read_text()
    install(overrides, root / "usr/share/lintian/overrides/se3-uploader")

    control = (HERE / "control").read_text()
    maintainer = re.search("^Maintainer: (.*)$", control, re.M)[1]  # type: ignore[index]
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(int(moment)))
    changes = f"se3-uploader ({version}) stable; urgency=medium\n\n  * See CHANGELOG.md.\n\n"
    install(f"{changes} -- {maintainer}  {date}\n", doc / "changelog.gz")
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) // 1024
    fields: Dict[str, object] = {"VERSION": version, "ARCHITECTURE": arch, "SIZE": size}
    for field, value in fields.items():
        control = control.replace(f"@{field}@", str(value))
    install(control, root / "DEBIAN/control")
    install("/etc/se3-uploader/uploader.yaml\n", root / "DEBIAN/conffiles")
    for script in ("postinst", "prerm", "postrm"):
        install((HERE / script).read_text(), root / "DEBIAN" / script, 0o755)


def build_deb(source: Path, arch: str, wheel: Path, dist: Path, work: Path, moment: str) -> Path:
    """Build the package of one architecture."""
    root = work / "root"
    version = wheel.name.split("-")[1]
    merge([*wheels_for(MACHINES[arch], work), wheel], root / "opt/se3-uploader/lib")
    lay_out(source, root, arch, version, moment)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    target = dist / f"se3-uploader_{version}_{arch}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, target)
    return target


def main() -> None:
    """Build what the command line asks for and print each file built."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("architecture", nargs="*", help="amd64, arm64; default: both")
    parser.add_argument("--dist", type=Path, default=TOP / "dist")
    arguments = parser.parse_args()
    for unknown in set(arguments.architecture) - set(MACHINES):
        parser.error(f"{unknown}: known are {', '.join(MACHINES)}")
    moment = os.environ["SOURCE_DATE_EPOCH"] = commit_time().strip()
    dist = arguments.dist.resolve()
    dist.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        source = check_out(Path(work, "source"))
        wheel = build_wheel(source, dist, Path(work))
        print(wheel)
        for arch in arguments.architecture or MACHINES:
            print(build_deb(source, arch, wheel, dist, Path(work, arch), moment))


if __name__ == "__main__":
    main()
