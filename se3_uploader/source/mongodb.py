"""MongoDB, by pymongo: a collection of documents, as later factory firmware keeps its events."""

from __future__ import annotations

from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import unquote, urlsplit

import pymongo
from bson import Binary, Decimal128, ObjectId
from bson.errors import BSONError
from pymongo.collection import Collection
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from .. import config, payload
from . import Key, Keys, Look, Row, Rows, Slice, SourceError
from .keys import decode, encode
from .rows import MAX_SUB_DEVICES, RowMaker, size_of
from .settle import Settle

Document = Dict[str, Any]

_TIMEOUT_MS = 5000
"""How long the server may take over one read."""
_ABSENT_MS = 1000
"""How long we look for a server that is down, with the engine waiting."""


def make(source: config.Source) -> MongoSource:
    """Make the source of a ``mongodb://host:port/database`` url; source.table is the collection."""
    return MongoSource(source)


class MongoSource:
    """A collection; a key is made before the insert, so documents may appear late."""

    engine = "mongodb"
    ordered = False

    def __init__(self, source: config.Source) -> None:
        if source.query is not None:
            raise SourceError("source.query is SQL, which MongoDB does not read; use source.table")
        self._source = source
        self._make = RowMaker(source)
        self._settle = Settle(source.settle)
        self._client: Optional[pymongo.MongoClient[Document]] = None
        columns = self._make.columns
        self._key = [source.key] if columns.id is None else [source.key, columns.id]

    def look(self, after: Optional[Key], limit: int) -> Look:
        """Read the document at a position, the newest key and what follows, one after the other."""
        paths = self._make.columns.identity_paths
        with self._session() as events:
            here = [] if after is None else self._find(events, self._at(after), paths, 1)
            newest = self._find(events, {}, (), 1, pymongo.DESCENDING)
            found = self._find(events, self._after(after), paths, limit)
        refs = [self._make.ref(*self._read(document)) for document in found]
        moments = [self._make.moment(d) for d in found] if self._settle.seconds else []
        settled = self._settle.settled([ref.key for ref in refs], moments)
        at = self._make.ref(*self._read(here[0])) if here else None
        return Look(at, self._read(newest[0])[0] if newest else None, refs[:settled])

    def rows(self, keys: Sequence[Key], pictures: Sequence[str], max_bytes: int) -> Rows:
        """Read whole documents one by one; none of them can be larger than 16 MB."""
        found: List[Row] = []
        missing: List[Key] = []
        used = 0
        without = dict.fromkeys(_outermost(self._make.unwanted(pictures)), 0)
        with self._session() as events:
            for key in keys:
                if found and used >= max_bytes:
                    break
                document = events.find_one(self._at(key), without, max_time_ms=_TIMEOUT_MS)
                if document is None:
                    missing.append(key)
                    continue
                values = _plain(document)
                ref = self._make.ref(key, _part(values, self._make.columns.identity_paths))
                found.append(Row(ref, self._make.with_files(values, pictures)))
                used += size_of(values)
        return Rows(found, missing)

    def newest(self) -> Optional[Key]:
        """Read the greatest key."""
        with self._session() as events:
            newest = self._find(events, {}, (), 1, pymongo.DESCENDING)
        return self._read(newest[0])[0] if newest else None

    def count(self, after: Optional[Key], limit: int) -> int:
        """Count the documents after a position, up to limit."""
        with self._session() as events:
            return events.count_documents(self._after(after), limit=limit, maxTimeMS=_TIMEOUT_MS)

    def between(self, since: int, until: int, after: Optional[Key], limit: int) -> Slice:
        """Page over the key and pick by time, so that no index on the time is needed."""
        paths = self._make.columns.identity_paths
        rows, end = self._scan(paths, since, until, after, limit)
        return Slice([self._make.ref(key, values) for key, values in rows], end)

    def keys_between(self, since: int, until: int, after: Optional[Key], limit: int) -> Keys:
        """Scan as between does, for the keys alone."""
        rows, end = self._scan([self._make.columns.timestamp], since, until, after, limit)
        return Keys([key for key, _ in rows], end)

    def last_seen(self, limit: int) -> Dict[str, int]:
        """Take the newest timestamp of each device among the newest limit documents."""
        paths = self._make.columns.seen_paths
        with self._session() as events:
            newest = self._find(events, {}, paths, limit, pymongo.DESCENDING)
        return self._make.last_seen(newest)

    def sub_devices(self, table: str) -> List[Mapping[str, Any]]:
        """Read the first documents of a collection of capture devices."""
        with self._session() as events:
            devices = events.database[table].find(max_time_ms=_TIMEOUT_MS)
            return [_plain(document) for document in devices.limit(MAX_SUB_DEVICES)]

    def changed(self) -> bool:
        """A server does not tell without being asked."""
        return True

    def watch_paths(self) -> Tuple[str, ...]:
        """There is no file to watch."""
        return ()

    def problems(self) -> List[str]:
        """Check the fields of the newest document, and that the key has an index and no ties."""
        ordering = ", ".join(self._key)
        with self._session() as events:
            newest = events.find_one({}, sort=self._order(pymongo.DESCENDING))
            if newest is None:
                return [f"{events.name}: the collection is empty, nothing could be checked"]
            rows = self._find(events, {}, (), 1000, pymongo.DESCENDING)
            indexes = [index["key"][0][0] for index in events.index_information().values()]
        missing = [name for name in self._key if payload.lookup(newest, name) is None]
        if missing:
            return [f"{name}: the newest document has no such field" for name in missing]
        found = self._make.problems(newest)
        if len({self._read(row)[0] for row in rows}) < len(rows):
            found.append(f"{ordering}: rows share a value, and all but one of them are skipped")
        if self._key[0] not in indexes:
            found.append(f"{ordering}: has no index, so that every look reads the whole collection")
        return found

    def tables(self) -> List[str]:
        """List the collections."""
        with self._session() as events:
            return sorted(events.database.list_collection_names())

    def fields(self) -> List[str]:
        """A collection knows no fields but its documents'."""
        return []

    def primary_key(self) -> Optional[str]:
        """Every document has one."""
        return "_id"

    def close(self) -> None:
        """Close all connections and end pymongo's threads."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextmanager
    def _session(self) -> Iterator[Collection[Document]]:
        """Lend the collection; pymongo mends its connections by itself."""
        url = urlsplit(self._source.url)
        try:
            if self._client is None:
                self._client = pymongo.MongoClient(
                    self._source.url,
                    serverSelectionTimeoutMS=_ABSENT_MS,
                    connectTimeoutMS=_TIMEOUT_MS,
                    socketTimeoutMS=2 * _TIMEOUT_MS,
                    maxPoolSize=1,
                    retryReads=False,  # the engine asks again by itself
                    readConcernLevel="local",
                    tz_aware=True,
                    unicode_decode_error_handler="replace",
                    datetime_conversion="DATETIME_AUTO",
                )
            yield self._client.get_default_database()[self._source.table or ""]
        except (PyMongoError, BSONError, OSError, ValueError) as error:
            advice = "the driver could not read what it was given"
            if isinstance(error, ServerSelectionTimeoutError):
                advice = "no answer; is it running, and are host and port of source.url right?"
            elif isinstance(error, PyMongoError):
                said = (str(error).splitlines() or [""])[0].partition(", full error")[0]
                advice = said.replace(unquote(url.password or "\0"), "***")
            if isinstance(error, OperationFailure) and error.code in (13, 18):
                advice = "are user and password of source.url right, and may the user read?"
            raise SourceError(f"mongodb://{url.hostname}{url.path}: {advice}") from None

    def _after(self, key: Optional[Key]) -> Document:
        """Say which documents follow a position, such that an index on the key can be used."""
        if key is None:
            return {}
        first, *second = _bson(decode(key, len(self._key)))
        if not second:
            return {self._key[0]: {"$gt": first}}
        later = [{self._key[0]: {"$gt": first}}, {self._key[1]: {"$gt": second[0]}}]
        return {self._key[0]: {"$gte": first}, "$or": later}

    def _at(self, key: Key) -> Document:
        return dict(zip(self._key, _bson(decode(key, len(self._key)))))

    def _order(self, direction: int) -> List[Tuple[str, int]]:
        return [(name, direction) for name in self._key]

    def _find(
        self,
        events: Collection[Document],
        where: Document,
        paths: Iterable[str],
        limit: int,
        direction: int = pymongo.ASCENDING,
    ) -> List[Document]:
        """Read the key and some paths of documents in key order; one without a key never comes."""
        wanted = {"_id": 0, **dict.fromkeys(_outermost([*paths, *self._key]), 1)}
        if "_id" not in self._key:
            where = {"$and": [{self._key[0]: {"$ne": None}}, where]}
        cursor = events.find(where, wanted, max_time_ms=_TIMEOUT_MS)
        return list(cursor.sort(self._order(direction)).limit(limit))

    def _scan(
        self, paths: Sequence[str], since: int, until: int, after: Optional[Key], limit: int
    ) -> Tuple[Iterator[Tuple[Key, Document]], Optional[Key]]:
        """Return the documents of one page in a range of time, and where to go on."""
        with self._session() as events:
            found = self._find(events, self._after(after), paths, limit)
        end = self._read(found[-1])[0] if len(found) == limit else None
        return self._make.inside(since, until, map(self._read, found)), end

    def _read(self, document: Document) -> Tuple[Key, Document]:
        """Return the Key of a document, and its values as plain Python."""
        parts = [payload.lookup(document, name) for name in self._key]
        return encode([p if isinstance(p, ObjectId) else _plain(p) for p in parts]), _plain(
            document
        )


def _outermost(paths: Iterable[str]) -> List[str]:
    """Leave out paths inside others: MongoDB refuses a projection of both."""
    every = set(paths)
    return [path for path in every if not any(path.startswith(f"{other}.") for other in every)]


def _part(document: Document, paths: Iterable[str]) -> Document:
    """Return of a whole document what a projection of the paths would have left."""
    part: Document = {}
    for path in paths:
        source: Any = document
        target = part
        *above, last = path.split(".")
        for name in above:
            source = source.get(name) if isinstance(source, dict) else None
            target = target.setdefault(name, {})
        if isinstance(source, dict) and last in source:
            target[last] = source[last]
    return part


def _plain(value: Any) -> Any:
    """Turn the types of BSON into Python's own."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, Binary):
        return bytes(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # Int64 is an int of its own kind
    return str(value) if type(value).__module__.startswith("bson.") else value


def _bson(values: Iterable[Any]) -> List[Any]:
    """Turn the values of a Key into what MongoDB compares with."""
    return [Decimal128(value) if isinstance(value, Decimal) else value for value in values]
