"""A box full of secrets, and everything that is logged in this process."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Iterator

import pytest

from se3_uploader import log
from tests.site import Site

from .secrets_of import secret_event


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A box with an event full of secrets."""
    site = Site(tmp_path)
    site.run("ALTER TABLE event ADD COLUMN phone TEXT")
    site.add(secret_event())
    return site


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that the program logs in this process, and what packages would print."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log.setup("debug", "json")
    loggers = (logging.getLogger("se3_uploader"), logging.getLogger())
    for logger in loggers:
        logger.addHandler(handler)
    yield stream
    loggers[1].removeHandler(handler)
    loggers[0].handlers.clear()
    loggers[0].propagate = True
