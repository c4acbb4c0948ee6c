"""Our own program, configured as it comes: durable, with receipts, every default as shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List

from se3_uploader import config
from se3_uploader.demo import sample

IN_FLIGHT = config.Endpoint("", "", "").max_in_flight
"""The default number of requests under way at once."""

STATUS = ["-m", "se3_uploader", "status", "--json", "-c"]


def configure(folder: Path, database: Path, url: str) -> Path:
    """Write an uploader.yaml (JSON is YAML) whose outbox is in the folder; returns its path."""
    settings = {
        "gateway": {"dev_sno": sample.DEV_SNO, "data_partition": str(folder)},
        "source": {"url": f"sqlite:///{database}"},
        "history_event": {"endpoints": [{"url": url}]},
        "outbox": {"path": str(folder / "outbox" / "outbox.db")},
    }
    path = folder / "uploader.yaml"
    path.write_text(json.dumps(settings))
    return path


def once(folder: Path, database: Path, url: str) -> List[str]:
    """The arguments of python to deliver what is there and end."""
    return ["-m", "se3_uploader", "run", "--once", "-c", str(configure(folder, database, url))]


def daemon(folder: Path, database: Path, url: str) -> List[str]:
    """The arguments of python to run until stopped."""
    return ["-m", "se3_uploader", "run", "-c", str(configure(folder, database, url))]
