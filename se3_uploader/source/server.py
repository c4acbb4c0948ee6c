"""What database servers have in common beyond SQL: limits on how long we wait for them."""

from __future__ import annotations

from typing import Any, Dict
from urllib.parse import unquote, urlsplit

from playhouse import db_url

from . import SourceError

CONNECT_TIMEOUT = 5
"""Seconds to connect."""

STATEMENT_TIMEOUT = 5
"""Seconds that the server may spend on one statement."""


def arguments_of(url: str) -> Dict[str, Any]:
    """Return the parts of a url as peewee's database classes take them; raise SourceError."""
    if not urlsplit(url).path.strip("/"):
        raise SourceError("source.url names no database: it ends in /DATABASE")
    try:
        arguments: Dict[str, Any] = db_url.parse(url, unquote_password=True)
    except ValueError:
        raise SourceError(
            "source.url is no url: scheme://user:password@host:port/DATABASE"
        ) from None
    if "passwd" in arguments:  # what PyMySQL called it once
        arguments["password"] = arguments.pop("passwd")
    if "user" in arguments:
        arguments["user"] = unquote(arguments["user"])
    return arguments
