"""`se3-uploader source inspect`: what a database holds, and a mapping to paste."""

from __future__ import annotations

import argparse
from typing import Callable, Optional

from ..config import rules

OK, PROBLEM = 0, 1


def add_arguments(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    """Declare the command below `source` and its arguments; configured: knows -c/--config."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    look = commands.add_parser(
        "inspect", parents=[configured], help="list tables with their rows, and propose a mapping"
    )
    look.add_argument(
        "url", nargs="?", type=_url, metavar="URL", help="of the database (default: source.url"
        " of uploader.yaml, which keeps a password out of the list of processes)",
    )  # fmt: skip


def run(url: str, tell: Callable[[str], None]) -> int:
    """Tell what the database at a url holds: YAML to paste, and all else as comments in it.

    Returns 0 where every required field was found in one table, 1 where not. Raises SourceError.
    """
    from ..source.inspect import inspect

    found = inspect(url)
    for table in found.tables:
        tell(f"# {_counted(table.rows):>9}  {_shown(table.name)}")
    if not found.proposal:
        tell("# no table looks like events; a query can put one together, see source.query")
        return PROBLEM
    best = found.tables[0]
    tell("# what looks most like events; the newest one as it would be sent: check --show-payload")
    tell(found.proposal.rstrip("\n"))
    return PROBLEM if best.missing else OK


def _url(text: str) -> str:
    try:
        rules.FORMATS["source-url"](text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _counted(rows: Optional[int]) -> str:
    from ..source.inspect import COUNT_LIMIT

    if rows is None:
        return "?"
    return f"{rows:,}{'+' if rows == COUNT_LIMIT else ''}"


def _shown(name: str) -> str:
    """A name on one line, so that no part of it leaves the comment."""
    return name if name.isprintable() else ascii(name)
