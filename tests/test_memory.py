"""Memory given back to the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from se3_uploader import memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

kept = [bytearray(10_000) for _ in range(5_000)]
del kept[::2]
before = resident()
memory.give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to")
def test_holes_between_what_is_in_use_are_given_back() -> None:
    """Half of 50 MB is free, in pieces: most of that goes back to the kernel."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(done.stdout) > 10_000_000
