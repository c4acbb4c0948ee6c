"""Configuration files for tests."""

from __future__ import annotations

import pathlib
from typing import Any, List

import pytest
import yaml

from se3_uploader import config

SMALLEST = """\
gateway: {dev_sno: TJGSDX0001}
source: {url: "sqlite:////data/event.db"}
history_event: {endpoints: [{url: "http://192.168.1.19:9528/HistoryEvent"}]}
"""


def smallest(**sections: Any) -> str:
    """The smallest working file with keys laid over its sections."""
    data = yaml.safe_load(SMALLEST)
    for name, keys in sections.items():
        data[name] = {**data.get(name, {}), **keys}
    return yaml.safe_dump(data, allow_unicode=True)


def endpoint(url: str = "https://platform.example/api", **keys: Any) -> str:
    """The smallest working file with another endpoint."""
    return smallest(history_event={"endpoints": [{"url": url, **keys}]})


def write(folder: pathlib.Path, text: str) -> str:
    """Write a text as uploader.yaml of a folder; its path."""
    path = folder / "uploader.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def problems(folder: pathlib.Path, text: str) -> List[str]:
    """What load holds against a text, as ``line: key: sentence`` without the file's name."""
    path = write(folder, text)
    with pytest.raises(config.ConfigError) as caught:
        config.load(path)
    return [problem.replace(path + ":", "", 1) for problem in caught.value.problems]
