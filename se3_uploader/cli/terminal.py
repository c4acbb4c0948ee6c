"""How commands print for people: colours, tables, moments. Never imported by the daemon."""

from __future__ import annotations

from datetime import datetime
from typing import Sequence, Tuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

GOOD, WORRYING, BAD = "green", "yellow", "red"

Line = Tuple[str, Text]
"""What a figure is called, and the figure."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line what that means; rich alone would exit with 1."""
        raise BrokenPipeError


def console() -> Console:
    """Where tables go: colour only on a terminal, and not with NO_COLOR."""
    return _Console(highlight=False, markup=False, emoji=False)


def grid(lines: Sequence[Line]) -> Table:
    """Names and figures below each other, aligned, readable on 40 columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim", min_width=len("  next attempt"))
    table.add_column(overflow="fold")
    for name, figure in lines:
        table.add_row(f"  {name}", figure)
    return table


def clock(moment: float, now: float) -> str:
    """The time of day, with its date where that is not within 24 hours; epoch seconds."""
    shape = "%H:%M" if abs(now - moment) < 86400 else "%Y-%m-%d %H:%M"
    return datetime.fromtimestamp(moment).strftime(shape)
