"""`se3-uploader source inspect`: what a database holds, and a mapping to paste."""

from __future__ import annotations

from typing import Callable, Optional

from ..source.inspect import COUNT_LIMIT, inspect

OK, PROBLEM = 0, 1


def run(url: str, tell: Callable[[str], None]) -> int:
    """Tell what the database at a url holds: YAML to paste, and all else as comments in it.

    Returns 0 where every required field was found in one table, 1 where not. Raises SourceError.
    """
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


def _counted(rows: Optional[int]) -> str:
    if rows is None:
        return "?"
    return f"{rows:,}{'+' if rows == COUNT_LIMIT else ''}"


def _shown(name: str) -> str:
    """A name on one line, so that no part of it leaves the comment."""
    return name if name.isprintable() else ascii(name)
