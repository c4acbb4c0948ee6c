"""Every target of the fuzzer: its corpus each time, and new inputs for a while where that is asked.

For longer: `python -m tests.fuzz TARGET -max_total_time=600` (needs PyPI's atheris).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .fuzz.targets import TARGETS

TOP = Path(__file__).parent.parent
CORPUS = Path(__file__).parent / "fuzz" / "corpus"
SECONDS = 20
"""Of fuzzing for each target, in the slow lane."""


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_passes(target: str) -> None:
    """What once was worth keeping does no harm, and there is something for every target."""
    inputs = sorted((CORPUS / target).iterdir())
    assert len(inputs) > 5
    for path in inputs:
        TARGETS[target](path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    """Inputs grown by coverage for some seconds; what fails is shown, to be added to the corpus."""
    pytest.importorskip("atheris", reason="needs atheris, which has no wheel for every Python")
    run = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz", target, f"-max_total_time={SECONDS}",
            f"-artifact_prefix={tmp_path}/",
        ],
        cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS + 120,
    )  # fmt: skip
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run.returncode == 0, (left, run.stdout.decode(errors="replace")[-4000:])
