"""PURE: the SQL that reads a table, or a SELECT, in the order of its key."""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from .. import config
from . import Key
from .keys import decode
from .pictures import MAX_BYTES

Values = Tuple[Any, ...]


class Statement(NamedTuple):
    """SQL and its parameters."""

    sql: str
    parameters: Values = ()


class Condition(NamedTuple):
    """What stands after WHERE, and its parameters."""

    sql: str
    parameters: Values


class Whole(NamedTuple):
    """How to read a whole row; the parameters are the values of its key columns."""

    names: List[str]
    long: List[str]
    """Those of the columns that can be too long."""
    short: str
    """Finds the row only where no value is too long, or leaves that to the engine."""
    together: str
    """The same for several rows, the key column first; a list of its values is to follow."""
    guarded: str
    """Leaves out what is too long; after the columns, 1 for each of the long that was left out."""


class Statements:
    """Writes SQL for one source, in the dialect of an engine.

    quote marks names, parameter stands for a value: ``?`` or ``%s``.
    """

    def __init__(
        self, source: config.Source, key: Sequence[str], quote: str, parameter: str
    ) -> None:
        self._key = key
        self._quote = quote
        self._parameter = parameter
        if source.query is None:
            self.relation = f"{self.quoted(source.table or '')} AS q"
        else:  # the line break ends a comment
            self.relation = f"({self._escaped(source.query.strip().rstrip(';'))}\n) AS q"
        self._here = " AND ".join(f"{self._column(name)} = {parameter}" for name in key)

    def quoted(self, table: str) -> str:
        """Quote the name of a table, with its schema if it has one."""
        return ".".join(map(self._name, table.split(".")))

    def after(self, key: Optional[Key]) -> Condition:
        """Say which rows follow a position, such that an index on the key alone can be used."""
        first, *second = map(self._column, self._key)
        if key is None:
            return Condition(f"{first} IS NOT NULL", ())
        values, mark = decode(key, len(self._key)), self._parameter
        if not second:
            return Condition(f"{first} > {mark}", values)
        sql = f"{first} >= {mark} AND ({first} > {mark} OR {second[0]} > {mark})"
        return Condition(sql, (values[0], values[0], values[1]))

    def at(self, key: Key) -> Condition:
        """Say which row stands at a position."""
        return Condition(self._here, decode(key, len(self._key)))

    def select(
        self, names: Sequence[str], where: Condition, limit: int, direction: str = "ASC"
    ) -> Statement:
        """Select the key columns and those named, in key order."""
        columns = ", ".join(self._column(name) for name in (*self._key, *names))
        order = ", ".join(f"{self._column(name)} {direction}" for name in self._key)
        sql = f"SELECT {columns} FROM {self.relation} WHERE {where.sql}"
        return Statement(f"{sql} ORDER BY {order} LIMIT {limit:d}", where.parameters)

    def count(self, where: Condition, limit: int) -> Statement:
        """Count rows, up to limit."""
        some = f"SELECT 1 FROM {self.relation} WHERE {where.sql} LIMIT {limit:d}"
        return Statement(f"SELECT COUNT(*) FROM ({some}) AS counted", where.parameters)

    def whole(
        self, names: List[str], long: List[str], octets: Callable[[str], str], measured: bool
    ) -> Whole:
        """Prepare to read columns of a row; octets is the engine's expression for a length.

        Not measured: the engine itself refuses what is too long.
        """
        columns = {name: self._column(name) for name in names}
        sizes = [f"COALESCE({octets(columns[name])}, 0)" for name in long]
        short = "".join(f"{size} <= {MAX_BYTES} AND " for size in sizes if measured)
        read = f"{', '.join(columns.values())} FROM {self.relation} WHERE {short}"
        key = self._column(self._key[0])
        for name, size in zip(long, sizes):
            columns[name] = f"CASE WHEN {size} <= {MAX_BYTES} THEN {columns[name]} END"
        too_long = [f"CASE WHEN {size} > {MAX_BYTES} THEN 1 END" for size in sizes]
        guarded = f"SELECT {', '.join([*columns.values(), *too_long])} FROM {self.relation}"
        return Whole(
            names,
            long,
            f"SELECT {read}{self._here} LIMIT 1",
            f"SELECT {key}, {read}{key} IN ",
            f"{guarded} WHERE {self._here} LIMIT 1",
        )

    def _column(self, name: str) -> str:
        """Quote the name of a column. Unqualified, SQLite would take a wrong one for a string."""
        return f"q.{self._name(name)}"

    def _name(self, name: str) -> str:
        doubled = name.replace(self._quote, self._quote * 2)
        return f"{self._quote}{self._escaped(doubled)}{self._quote}"

    def _escaped(self, sql: str) -> str:
        return sql.replace("%", "%%") if self._parameter == "%s" else sql
