"""Print the lowest version of every package that setup.cfg allows, as pip constraints."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

setup = configparser.ConfigParser()
setup.read(Path(__file__).parent.parent / "setup.cfg")
requirements = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
for line in sorted({line.strip() for part in requirements for line in part.splitlines()}):
    if bound := re.match(r"([\w-]+)>=([\w.]+)", line):
        print(f"{bound[1]}=={bound[2]}")
