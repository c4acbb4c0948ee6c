"""Log lines are events with fields, to stderr: text for people and the journal, or JSON."""

from __future__ import annotations

import logging
import sys
from typing import Any

import orjson

_LOGGER = logging.getLogger("se3_uploader")


def setup(level: str, form: str) -> None:
    """Send lines of at least this level to stderr; form is text or json. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    _LOGGER.handlers = [handler]
    _LOGGER.setLevel(level.upper())
    _LOGGER.propagate = False


def debug(message: str, **fields: Any) -> None:
    """For whoever looks for a fault."""
    _LOGGER.debug(message, extra={"fields": fields})


def info(message: str, **fields: Any) -> None:
    """Something changed that an operator may want to know."""
    _LOGGER.info(message, extra={"fields": fields})


def warning(message: str, **fields: Any) -> None:
    """Something is wrong that the program copes with."""
    _LOGGER.warning(message, extra={"fields": fields})


def error(message: str, **fields: Any) -> None:
    """Somebody has to do something."""
    _LOGGER.error(message, extra={"fields": fields})


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        known = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        return f"{line} [{known}]" if known else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return orjson.dumps(line, default=str).decode()


def _word(value: Any) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return f'"{text}"' if " " in text or not text else text
