"""Fuzz one target with atheris; a failure leaves the input as a file `crash-…`.

    python -m tests.fuzz config -max_total_time=600

What comes after the target goes to libFuzzer. New inputs stay in a folder of their own: those that
are worth keeping are copied into tests/fuzz/corpus/TARGET by hand.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"

with atheris.instrument_imports(include=["se3_uploader", "yaml", "http.client", "email"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [LIBFUZZER OPTION]...")
    target, options = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as found:
        places = [found, str(CORPUS / target)]
        atheris.Setup([sys.argv[0], "-max_len=8192", *options, *places], TARGETS[target])
        atheris.Fuzz()
