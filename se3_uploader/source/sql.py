"""What all SQL databases have in common: the statements, and how their answers are read."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from time import monotonic
from typing import (
    Any,
    ClassVar,
    Collection,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
)
from urllib.parse import unquote, urlsplit

import peewee

from .. import config
from . import Key, Keys, Look, Row, Rows, Slice, SourceError
from .keys import decode, encode
from .pictures import TOO_LARGE
from .rows import MAX_SUB_DEVICES, RowMaker, size_of
from .settle import Settle
from .statements import Statement, Statements, Values, Whole

_QUOTED = re.compile(r"""[:\s]*["'].*""")
"""What a message quotes, and all that follows, since a value may hold quotes as well."""


class SqlSource(ABC):
    """A table, or a SELECT, in a database that peewee connects to.

    Every statement has a LIMIT and its answer is fetched at once, so that no cursor stays open;
    after any error the connection is closed, so that the next call starts afresh.
    """

    engine: str
    ordered = False

    _begin: str
    """Opens a read-only transaction that sees one state of the database."""
    _quote = '"'
    _parameter = "%s"
    _octets = "OCTET_LENGTH({})"
    """Expression for the bytes of a column."""
    _refuses_long = False
    """Whether the engine can be told to read no value that is too long."""
    _long_types: Optional[FrozenSet[int]] = None
    """Type codes of the columns that can be long; None: all."""
    _read_time: Optional[float] = None
    """Seconds after which a read is cut short, where reading can hold up the writer."""
    _errors: ClassVar[Tuple[Type[Exception], ...]]
    """What peewee and the driver raise where the database cannot be read."""
    _advice: ClassVar[Mapping[str, str]]
    """Part of a driver's message -> what to do."""

    def __init__(self, source: config.Source) -> None:
        self._source = source
        self._make = RowMaker(source)
        self._settle = Settle(source.settle)
        self._database: Optional[peewee.Database] = None
        self._whole_of: Optional[Tuple[Dict[str, Optional[int]], Whole]] = None
        """The columns last read and how."""
        columns = self._make.columns
        self._key = [source.key] if columns.id is None else [source.key, columns.id]
        self._sql = Statements(source, self._key, self._quote, self._parameter)

    # Each engine's own

    @abstractmethod
    def _connect(self) -> peewee.Database:
        """Open the database for reading only, with limits on how long anything may take."""

    @abstractmethod
    def _scans(self, database: peewee.Database, statement: Statement) -> bool:
        """Tell whether a statement reads or sorts the whole table, for want of an index."""

    # The interface

    def look(self, after: Optional[Key], limit: int) -> Look:
        """Read the row at a position, the newest key and what follows, in one transaction."""
        with self._session() as database, self._snapshot(database):
            names = self._existing(database, self._make.columns.identity)
            for name in self._make.columns.identity:
                if name not in names:
                    # Every event would die of it, by a slip in the configuration.
                    raise SourceError(
                        f"{self._place()}: no such column: {name}; is source.columns right?"
                    )
            here: List[Values] = []
            if after is not None:
                here, _ = self._fetch(database, self._sql.select(names, self._sql.at(after), 1))
            newest = self._newest(database)
            found, _ = self._fetch(database, self._sql.select(names, self._sql.after(after), limit))
        refs, moments = [], []
        for key, values in self._read(found, names):
            refs.append(self._make.ref(key, values))
            moments.append(self._make.moment(values) if self._settle.seconds else None)
        settled = self._settle.settled([ref.key for ref in refs], moments)
        at = next((self._make.ref(key, values) for key, values in self._read(here, names)), None)
        return Look(at, newest, refs[:settled])

    def rows(self, keys: Sequence[Key], pictures: Sequence[str], max_bytes: int) -> Rows:
        """Read whole rows, and hold hardly more of them than was asked for."""
        found: List[Row] = []
        missing: List[Key] = []
        used = 0
        with self._session() as database:
            whole = self._whole(database, self._make.unwanted(pictures))
            for key, values in self._whole_rows(database, whole, keys, max_bytes):
                if values is None:
                    missing.append(key)
                    continue
                ref = self._make.ref(key, values)
                found.append(Row(ref, self._make.with_files(values, pictures)))
                used += size_of(values)
                if used >= max_bytes:
                    break
        return Rows(found, missing)

    def newest(self) -> Optional[Key]:
        """Read the greatest key."""
        with self._session() as database:
            return self._newest(database)

    def count(self, after: Optional[Key], limit: int) -> int:
        """Count the rows after a position, up to limit."""
        with self._session() as database:
            ((number,),), _ = self._fetch(database, self._sql.count(self._sql.after(after), limit))
        return int(number)

    def between(self, since: int, until: int, after: Optional[Key], limit: int) -> Slice:
        """Page over the key and pick by time, so that no index on the time is needed."""
        rows, end = self._scan(self._make.columns.identity, since, until, after, limit)
        return Slice([self._make.ref(key, values) for key, values in rows], end)

    def keys_between(self, since: int, until: int, after: Optional[Key], limit: int) -> Keys:
        """Scan as between does, for the keys alone."""
        time_column = self._make.columns.timestamp.partition(".")[0]
        rows, end = self._scan([time_column], since, until, after, limit)
        return Keys([key for key, _ in rows], end)

    def last_seen(self, limit: int) -> Dict[str, int]:
        """Take the newest timestamp of each device among the newest limit rows."""
        columns = dict.fromkeys(path.partition(".")[0] for path in self._make.columns.seen_paths)
        with self._session() as database:
            names = self._existing(database, list(columns))
            newest = self._sql.select(names, self._sql.after(None), limit, "DESC")
            rows, _ = self._fetch(database, newest)
        return self._make.last_seen(values for _, values in self._read(rows, names))

    def sub_devices(self, table: str) -> List[Mapping[str, Any]]:
        """Read the first rows of a table of capture devices."""
        relation = f"{self._sql.quoted(table)} AS q"
        with self._session() as database:
            names = list(self._types(database, relation))
            everything = Statement(f"SELECT * FROM {relation} LIMIT {MAX_SUB_DEVICES}")
            rows, _ = self._fetch(database, everything)
        return [dict(zip(names, row)) for row in rows]

    def changed(self) -> bool:
        """A server does not tell without being asked."""
        return True

    def watch_paths(self) -> Tuple[str, ...]:
        """There is no file to watch."""
        return ()

    def problems(self) -> List[str]:
        """Check the columns, that the key tells the newest rows apart, and that it has an index."""
        ordering = ", ".join(self._key)
        with self._session() as database:
            there = self._types(database)
            missing = [
                f"{name}: there is no such column" for name in self._key if name not in there
            ]
            if missing:
                return missing
            found = self._make.problems(there)
            found += [
                f"{path}: there is no such column, and source.ignore_columns is to keep it here"
                for path in sorted(self._make.columns.ignored)
                if path.partition(".")[0] not in there
            ]
            newest, _ = self._fetch(
                database, self._sql.select([], self._sql.after(None), 1000, "DESC")
            )
            if len(set(newest)) < len(newest):
                found.append(f"{ordering}: rows share a value, and all but one of them are skipped")
            if (
                newest
                and not self._fetch(
                    database, self._sql.select([], self._sql.at(encode(newest[0])), 1)
                )[0]
            ):
                found.append(
                    f"{ordering}: its values cannot be told exactly (a FLOAT?), use another"
                )
            place = encode(newest[-1]) if newest else None
            if self._scans(database, self._sql.select([], self._sql.after(place), 100)):
                found.append(f"{ordering}: has no index, so that every look reads the whole table")
        return found

    def tables(self) -> List[str]:
        """List the tables and views (of the default schema)."""
        with self._session() as database:
            return sorted({*database.get_tables(), *(v.name for v in database.get_views())})

    def fields(self) -> List[str]:
        """List the columns of the table."""
        with self._session() as database:
            return list(self._types(database))

    def primary_key(self) -> Optional[str]:
        """Name the primary key, None where there is none or it has several columns."""
        with self._session() as database:
            names = database.get_primary_keys(self._source.table)
        return names[0] if len(names) == 1 else None

    def close(self) -> None:
        """Close the connection, however broken it is."""
        database, self._database = self._database, None
        if database is not None:
            with suppress(Exception):
                database.close()

    # Reading

    @contextmanager
    def _session(self) -> Iterator[peewee.Database]:
        """Lend the open database; an error closes it and becomes a SourceError."""
        try:
            yield self._open()
        except SourceError:
            self.close()
            raise
        except self._errors as error:
            self.close()
            raise SourceError(self._explained(error)) from None

    def _open(self) -> peewee.Database:
        if self._database is None:
            self._database = self._connect()
        return self._database

    @contextmanager
    def _snapshot(self, database: peewee.Database) -> Iterator[None]:
        """Hold one state of the database; where the block fails, _session closes the connection."""
        with database.manual_commit():
            database.execute_sql(self._begin)
            yield
            database.execute_sql("COMMIT")

    def _fetch(self, database: peewee.Database, statement: Statement) -> Tuple[List[Values], bool]:
        """Fetch an answer; the second part tells that it was cut short to let the writer go on."""
        cursor = database.execute_sql(*statement)
        try:
            if self._read_time is None:
                return cursor.fetchall(), False
            rows: List[Values] = []
            deadline = monotonic() + self._read_time
            for row in cursor:
                rows.append(row)
                if monotonic() > deadline:
                    return rows, True
            return rows, False
        finally:
            cursor.close()

    def _types(
        self, database: peewee.Database, relation: Optional[str] = None
    ) -> Dict[str, Optional[int]]:
        """Return column -> type code (None where the engine has none), asked anew each time.

        A firmware that adds a column does not tell us.
        """
        cursor = database.execute_sql(f"SELECT * FROM {relation or self._sql.relation} LIMIT 0", ())
        try:
            return {column[0]: column[1] for column in cursor.description}
        finally:
            cursor.close()

    def _existing(self, database: peewee.Database, names: Sequence[str]) -> List[str]:
        there = self._types(database)
        return [name for name in names if name in there]

    def _newest(self, database: peewee.Database) -> Optional[Key]:
        rows, _ = self._fetch(database, self._sql.select([], self._sql.after(None), 1, "DESC"))
        return encode(rows[0]) if rows else None

    def _scan(
        self, names: Sequence[str], since: int, until: int, after: Optional[Key], limit: int
    ) -> Tuple[Iterator[Tuple[Key, Dict[str, Any]]], Optional[Key]]:
        """Return the rows of one page in a range of time, and where to go on."""
        with self._session() as database:
            names = self._existing(database, names)
            rows, cut = self._fetch(
                database, self._sql.select(names, self._sql.after(after), limit)
            )
        end = encode(rows[-1][: len(self._key)]) if cut or len(rows) == limit else None
        moment = self._make.moment_reader([*self._key, *names])
        inside = [row for row in rows if since <= moment(row) < until]
        return self._read(inside, names), end

    def _read(
        self, rows: Iterable[Values], names: Sequence[str]
    ) -> Iterator[Tuple[Key, Dict[str, Any]]]:
        """Yield the Key of each row and its values by name."""
        width = len(self._key)
        for row in rows:
            yield encode(row[:width]), dict(zip(names, row[width:]))

    def _whole(self, database: peewee.Database, unwanted: Collection[str]) -> Whole:
        """Prepare to read all columns but the unwanted."""
        types = {n: code for n, code in self._types(database).items() if n not in unwanted}
        if self._whole_of is None or self._whole_of[0] != types:
            long = [
                name
                for name, code in types.items()
                if (not self._long_types or code in self._long_types)
                and name not in self._make.columns.identity  # which look has read, too
            ]
            whole = self._sql.whole(
                list(types), long, self._octets.format, measured=not self._refuses_long
            )
            self._whole_of = (types, whole)
        return self._whole_of[1]

    def _whole_rows(
        self,
        database: peewee.Database,
        whole: Whole,
        keys: Sequence[Key],
        _max_bytes: int,
    ) -> Iterator[Tuple[Key, Optional[Dict[str, Any]]]]:
        """Yield each key with its row, None where there is none; read when it is asked for."""
        for key in keys:
            yield key, self._whole_row(database, whole, key)

    def _whole_row(
        self, database: peewee.Database, whole: Whole, key: Key
    ) -> Optional[Dict[str, Any]]:
        """Read a whole row; a value beyond MAX_BYTES is not loaded, but Unreadable."""
        place = decode(key, len(self._key))
        rows = self._short_row(database, whole, place)
        if rows:
            return dict(zip(whole.names, rows[0]))
        rows, _ = self._fetch(database, Statement(whole.guarded, place))
        if not rows:
            return None
        values = dict(zip(whole.names, rows[0]))
        flags = rows[0][len(whole.names) :]
        values.update((name, TOO_LARGE) for name, flag in zip(whole.long, flags) if flag)
        return values

    def _short_row(self, database: peewee.Database, whole: Whole, place: Values) -> List[Values]:
        """Read a whole row where no value of it is too long."""
        return self._fetch(database, Statement(whole.short, place))[0]

    def _explained(self, error: BaseException) -> str:
        """Say what the driver said, and what to do; not the url's password nor a row's values."""
        said = str(error.args[-1] if error.args else "").strip().splitlines() or [
            type(error).__name__
        ]
        password = urlsplit(self._source.url).password or ""
        message = said[0]
        for secret in filter(None, (password, unquote(password))):
            message = message.replace(secret, "***")
        if isinstance(error, peewee.DataError):
            message = _QUOTED.sub("", message)
        advice = next((text for part, text in self._advice.items() if part in message), "")
        return f"{self._place()}: {message}" + (f"; {advice}" if advice else "")

    def _place(self) -> str:
        """Name the database in messages."""
        url = urlsplit(self._source.url)
        return f"{url.scheme}://{url.hostname}{url.path}"
